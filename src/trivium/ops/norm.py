"""Normalisation: batch, layer; and the norms that vectors are divided by."""

from __future__ import annotations

import math
from typing import Any

from trivium.graph import OPS, Type
from trivium.op import S, case, composite
from trivium.shape import ShapeError, normalize_axes, size_product
from trivium.traits import along


def _same_dtype(name: str, t: Type | None, x: Type) -> None:
    if t is not None and t.dtype != x.dtype:
        raise TypeError(f"{name} is {t.dtype} beside {x}: cast one with astype()")


def _batch_norm_rule(x: Type, scale: Any, bias: Any, mean: Type, var: Type, *, axis: int,
                     **attrs: Any) -> Any:  # fmt: skip
    for name, t in dict(scale=scale, bias=bias, mean=mean, var=var).items():
        if t is not None and t.shape != (x.shape[axis],):
            raise ShapeError(
                f"{name} has shape {t.shape}, axis {axis} of {x} wants ({x.shape[axis]},)"
            )
        _same_dtype(name, t, x)
    count = size_product(s for i, s in enumerate(x.shape) if i != axis)
    if attrs["training"] is True and attrs["unbiased"] and count == 1:
        raise ShapeError(f"an unbiased variance wants more than one value a channel, got {x}")
    return x, mean, var


def _batch_norm_normal(x: Type, *_: Any, axis: int, **__: Any) -> dict[str, Any]:
    return {"axis": normalize_axes(axis, len(x.shape))[0]}


_PARAMS = (S(3, low=0.5, high=1.5), S(3), S(3), S(3, low=0.5, high=2))


@composite(
    rule=_batch_norm_rule, normal=_batch_norm_normal, axes=along, images=("x",),
    cases=[
        case(S(4, 3, 2, 2), *_PARAMS, training=True),
        case(S(4, 3, 2, 2), *_PARAMS, training=False, epsilon=1e-2),
        case(S(4, 2, 3), *_PARAMS, axis=-1, training=True, unbiased=False, momentum=0.3,
             epsilon=1e-3),
        case(S(4, 3), None, None, *_PARAMS[2:], training=True),
    ],
)  # fmt: skip
def batch_norm(x: Any, scale: Any, bias: Any, running_mean: Any, running_var: Any, *, training: Any,
               axis: int = 1, momentum: float = 0.1, epsilon: float = 1e-5,
               unbiased: bool = True) -> Any:  # fmt: skip
    """(x - mean) / sqrt(var + epsilon) * scale + bias, and the new running statistics.

    While training, mean and variance are the batch's, over all axes but ``axis``, and a running
    statistic becomes ``(1 - momentum) * old + momentum * batch`` (torch's momentum; Keras, MXNet
    and ONNX call 1 - momentum by that name). ``unbiased`` multiplies the batch variance by
    n / (n - 1) before it enters the running one: torch does, Keras and ONNX do not. Otherwise the
    running statistics are used and stay. ``scale`` and ``bias`` may be None.
    """
    reshape = OPS["reshape"]
    shape = tuple(s if i == axis else 1 for i, s in enumerate(x.shape))
    if training:
        axes = tuple(i for i in range(len(x.shape)) if i != axis)
        mean = OPS["mean"](x, axis=axes, keepdims=True)
        centered = x - mean
        var = OPS["mean"](centered * centered, axis=axes, keepdims=True)
        flat = OPS["stop_gradient"](reshape(mean, shape=running_mean.shape))
        spread = OPS["stop_gradient"](reshape(var, shape=running_var.shape))
        if unbiased:
            n = size_product(x.shape[a] for a in axes)
            number = OPS["full"](shape=(), value=n, dtype=x.dtype)
            spread = spread * (number / (number - 1))
        running_mean = running_mean * (1 - momentum) + flat * momentum
        running_var = running_var * (1 - momentum) + spread * momentum
    else:
        centered = x - reshape(running_mean, shape=shape)
        var = reshape(running_var, shape=shape)
    y = centered / OPS["sqrt"](var + epsilon)
    if scale is not None:
        y = y * reshape(scale, shape=shape)
    if bias is not None:
        y = y + reshape(bias, shape=shape)
    return y, running_mean, running_var


def _layer_norm_rule(
    x: Type, scale: Any = None, bias: Any = None, *, axes: int, epsilon: float
) -> Type:
    for name, t in dict(scale=scale, bias=bias).items():
        if t is not None and t.shape != x.shape[len(x.shape) - axes :]:
            raise ShapeError(f"{name} has shape {t.shape}, the last {axes} axes of {x} do not")
        _same_dtype(name, t, x)
    return x


@composite(
    rule=_layer_norm_rule,
    cases=[
        case(S(2, 5)),
        case(S(2, 3, 5), S(5), S(5), epsilon=1e-3),
        case(S(2, 3, 4), S(3, 4), S(3, 4), axes=2),
    ],
)
def layer_norm(
    x: Any, scale: Any = None, bias: Any = None, *, axes: int = 1, epsilon: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last ``axes`` axes.

    Epsilon defaults differ: torch and ONNX 1e-5, Keras 1e-3, Flax 1e-6.
    """
    last = tuple(range(len(x.shape) - axes, len(x.shape)))
    centered = x - OPS["mean"](x, axis=last, keepdims=True)
    var = OPS["mean"](centered * centered, axis=last, keepdims=True)
    y = centered / OPS["sqrt"](var + epsilon)
    if scale is not None:
        y = y * scale
    return y if bias is None else y + bias


def _norm_normal(x: Type, *, axis: Any, keepdims: bool, ord: float) -> dict[str, Any]:
    if float(ord) not in (1, 2, math.inf):
        raise ValueError(f"wants ord 1, 2 or inf, got {ord}: write it in sums and powers")
    return {"axis": normalize_axes(axis, len(x.shape)), "ord": float(ord)}


@composite(
    normal=_norm_normal,
    cases=[case(S(2, 3, 4)), case(S(2, 3, 4), axis=1, ord=1), case(S(2, 3), axis=-1, ord=math.inf),
           case(S(2, 3, 4), axis=(0, 2), keepdims=True)],
    torch="torch.linalg.vector_norm({x}, {ord}, {axis!axes|None}, keepdim={keepdims|False})",
)  # fmt: skip
def vector_norm(x: Any, *, axis: Any = None, keepdims: bool = False, ord: float = 2) -> Any:
    """The length along ``axis``: the root of the sum of squares, or for 1 the sum of sizes, for inf
    the largest. Its gradient at 0 is 0, as torch's is; TensorFlow and JAX have NaN there.
    """
    if ord != 2:
        name = "sum" if ord == 1 else "max"
        return OPS[name](OPS["abs"](x), axis=axis, keepdims=keepdims)
    squares = OPS["sum"](x * x, axis=axis, keepdims=keepdims)
    none, one = (OPS["full"](shape=(), value=v, dtype=x.dtype) for v in (0.0, 1.0))
    nothing = OPS["equal"](squares, none)
    return OPS["where"](nothing, none, OPS["sqrt"](OPS["where"](nothing, one, squares)))


@composite(
    normal=lambda x, *, axis, epsilon: {"axis": normalize_axes(axis, len(x.shape)),
                                        "epsilon": float(epsilon)},
    cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1, epsilon=1e-3)],
    torch="F.normalize({x}, dim={axis!axes}, eps={epsilon})",
)  # fmt: skip
def normalize(x: Any, *, axis: Any = -1, epsilon: float = 1e-12) -> Any:
    """x over its length along ``axis``, which counts as epsilon at least.

    TensorFlow and MXNet add epsilon to the squares, or bound these; torch's axis is 1.
    """
    return x / OPS["maximum"](vector_norm(x, axis=axis, keepdims=True), epsilon)
