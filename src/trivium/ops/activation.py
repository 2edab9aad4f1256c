"""Activations with corners, which two frameworks have a name for."""

from __future__ import annotations

from typing import Any

from trivium.graph import OPS, Type
from trivium.op import By, S, case, composite, corner, elementwise
from trivium.ops.choice import where
from trivium.ops.elementwise import (
    abs,
    expm1,
    maximum,
    minimum,
    sigmoid,
    softplus,
    sqrt,
    tanh,
)
from trivium.shape import ShapeError, normalize_axes
from trivium.traits import along


def _clip_normal(x: Type, *, min: Any, max: Any, edge: str) -> dict[str, Any]:
    if not all(isinstance(v, (int, float)) for v in (min, max)):
        raise TypeError("wants two numbers; for one bound, or arrays, use maximum and minimum")
    number = float if x.dtype.is_floating else int
    if number is int and not all(v == int(v) for v in (min, max)):
        raise TypeError(f"{x} between {min} and {max}: cast it to floats first")
    words = {"edge": corner("edge", edge, ("inside", "outside"), x)}
    return {"min": number(min), "max": number(max)} | words


@composite(
    rule=elementwise, normal=_clip_normal,
    cases=[case(S(2, 3), min=-1.0, max=0.5), case(S(4, 3), min=-0.7, max=1.1, edge="outside"),
           case(S(5, dtype="int64", low=-4, high=4), min=-2, max=1)],
    torch=By("edge", inside="torch.clamp({x}, {min}, {max})",
             outside="F.hardtanh({x}, {min}, {max})"),
    keras=By("edge", inside="ops.clip({x}, {min}, {max})"),
    tensorflow=By("edge", inside="tf.clip_by_value({x}, {min}, {max})"),
    mxnet=By("edge", inside="F.clip({x}, {min}, {max})",
             outside="flat_clip(F, {x}, {min}, {max})"),
)  # fmt: skip
def clip(x: Any, *, min: float, max: float, edge: str = "inside") -> Any:
    """x, but at least ``min`` and at most ``max``, which are numbers.

    At the bounds themselves the gradient is 1, as inside (torch.clamp, TensorFlow, MXNet), or with
    ``edge="outside"`` 0, as beyond them (torch's hardtanh; ReLU6 everywhere). JAX's is 1/2.
    """
    if edge == "inside":
        return minimum(maximum(x, min), max)
    return minimum(max, maximum(min, x))  # a tie's gradient goes to what stands first


def hardtanh(x: Any, min: float = -1.0, max: float = 1.0) -> Any:
    """clip with a gradient of 0 at the bounds: torch's. (Keras's and JAX's is 1 there.)"""
    return clip(x, min=min, max=max, edge="outside")


@composite(
    cases=[case(S(2, 3)), case(S(4, low=-2, high=9))],
    torch="F.relu6({x})", keras="ops.relu6({x})", tensorflow="tf.nn.relu6({x})",
    jax="jax.nn.relu6({x})",
)  # fmt: skip
def relu6(x: Any) -> Any:
    """min(max(x, 0), 6); the gradient at 0 and at 6 is 0, as in every framework that has it."""
    return clip(x, min=0.0, max=6.0, edge="outside")


@composite(
    cases=[case(S(2, 3)), case(S(5, low=-4, high=4))],
    torch="F.hardsigmoid({x})", keras="ops.hard_sigmoid({x})", jax="jax.nn.hard_sigmoid({x})",
    mxnet="F.hard_sigmoid({x}, alpha=1 / 6)",
)  # fmt: skip
def hardsigmoid(x: Any) -> Any:
    """relu6(x + 3) / 6. (MXNet's and Keras 2's default is clip(x / 5 + 1 / 2, 0, 1).)"""
    return relu6(x + 3.0) / 6.0


@composite(
    cases=[case(S(2, 3)), case(S(5, low=-4, high=4))],
    torch="F.hardswish({x})", keras="ops.hard_silu({x})", jax="jax.nn.hard_silu({x})",
)  # fmt: skip
def hardswish(x: Any) -> Any:
    """x * hardsigmoid(x), also called hard SiLU; its gradient is 0 at -3 and 1 at 3."""
    return x * hardsigmoid(x)


@composite(
    normal=lambda x, *, alpha: {"alpha": float(alpha)},
    cases=[case(S(2, 3)), case(S(2, 3), alpha=0.5)],
    torch="F.elu({x}, {alpha})", keras="ops.elu({x}, {alpha})", jax="jax.nn.elu({x}, {alpha})",
    tensorflow=By("alpha", {1.0: "tf.nn.elu({x})"}),
    mxnet="F.LeakyReLU({x}, act_type='elu', slope={alpha})",
    onnx="Elu",
)  # fmt: skip
def elu(x: Any, *, alpha: float = 1.0) -> Any:
    """x where positive, alpha * (exp(x) - 1) elsewhere; the gradient at 0 is alpha."""
    return where(x > 0, x, expm1(minimum(x, 0.0)) * alpha)  # exp overflows where it is not used


@composite(cases=[case(S(2, 3))], torch="F.selu({x})", jax="jax.nn.selu({x})")
def selu(x: Any) -> Any:
    """scale * elu(x, alpha) with the numbers of Klambauer et al., 2017.

    The gradient at 0 is scale * alpha; TensorFlow's selu gives scale, and MXNet's is not that of
    its output, so there the body is written.
    """
    return elu(x, alpha=1.6732632423543772) * 1.0507009873554805


@composite(
    normal=lambda x, *, alpha: {"alpha": float(alpha)},
    cases=[case(S(2, 3)), case(S(2, 3), alpha=0.5)],
    torch="F.celu({x}, {alpha})", jax="jax.nn.celu({x}, {alpha})", onnx="Celu",
)  # fmt: skip
def celu(x: Any, *, alpha: float = 1.0) -> Any:
    """x where positive, alpha * (exp(x / alpha) - 1) elsewhere; smooth at 0 (Keras's is not)."""
    return where(x > 0, x, expm1(minimum(x, 0.0) / alpha) * alpha)


@composite(
    cases=[case(S(2, 3)), case(S(4, low=-30, high=30))],
    torch="F.mish({x})", jax="jax.nn.mish({x})", onnx="Mish",
)  # fmt: skip
def mish(x: Any) -> Any:
    """x * tanh(softplus(x)). Misra, 2019."""
    return x * tanh(softplus(x))


@composite(
    cases=[case(S(2, 3))],
    torch="F.softsign({x})", keras="ops.softsign({x})", tensorflow="tf.nn.softsign({x})",
    mxnet="F.softsign({x})", jax="jax.nn.soft_sign({x})", onnx="Softsign",
)  # fmt: skip
def softsign(x: Any) -> Any:
    """x / (1 + \\|x\\|)."""
    return x / (1.0 + abs(x))


@composite(
    cases=[case(S(2, 3)), case(S(4, low=-40, high=40))],
    torch="F.logsigmoid({x})", keras="ops.log_sigmoid({x})", tensorflow="tf.math.log_sigmoid({x})",
    jax="jax.nn.log_sigmoid({x})",
)  # fmt: skip
def log_sigmoid(x: Any) -> Any:
    """log(sigmoid(x)), never overflowing."""
    return -softplus(-x)


@composite(
    normal=lambda x, *, axis: {"axis": normalize_axes(axis, len(x.shape))[0]},
    cases=[case(S(2, 6)), case(S(4, 3), axis=0)], axes=along,
    torch="F.glu({x}, {axis})", keras="ops.glu({x}, axis={axis})", jax="jax.nn.glu({x}, {axis})",
)  # fmt: skip
def glu(x: Any, *, axis: int = -1) -> Any:
    """a * sigmoid(b) of the two halves a and b of x along ``axis``. Dauphin et al., 2017."""
    half = x.shape[axis] // 2
    if x.shape[axis] != half * 2:
        raise ShapeError(f"{x.shape} has no two halves along the axis {axis}")
    return OPS["slice_axis"](x, axis=axis, stop=half) * sigmoid(
        OPS["slice_axis"](x, axis=axis, start=half)
    )


@composite(
    cases=[case(S(2, 3, low=0.3, high=4)), case(S(4, low=-3, high=-0.5))],
    torch="torch.reciprocal({x})", keras="ops.reciprocal({x})",
    tensorflow="tf.math.reciprocal({x})", mxnet="F.reciprocal({x})", jax="jnp.reciprocal({x})",
    onnx="Reciprocal",
)  # fmt: skip
def reciprocal(x: Any) -> Any:
    """1 / x."""
    return 1.0 / x


@composite(
    cases=[case(S(2, 3, low=0.3, high=4))],
    torch="torch.rsqrt({x})", keras="ops.rsqrt({x})", tensorflow="tf.math.rsqrt({x})",
    mxnet="F.rsqrt({x})", jax="jax.lax.rsqrt({x})",
)  # fmt: skip
def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    return 1.0 / sqrt(x)


# -- cut off, or made small ------------------------------------------------------------------------
def _prelu_rule(x: Type, weight: Type) -> Type:
    if not x.shape or weight.shape not in ((), (1,), x.shape[1:2]):
        raise ShapeError(f"wants one weight, or one for each channel of {x.shape}: {weight.shape}")
    return x


@composite(
    rule=_prelu_rule,
    cases=[case(S(2, 3), S(1)), case(S(2, 3, 4), S(3)), case(S(4, 3), S(3, low=0.1))],
    torch="F.prelu({x}, {weight})", mxnet="F.LeakyReLU({x}, {weight}, act_type='prelu')",
)  # fmt: skip
def prelu(x: Any, weight: Any) -> Any:
    """x where positive, weight * x elsewhere: one weight, or one for each channel (axis 1).

    (Keras's layer has one for each element unless its axes are shared.)
    """
    if weight.shape == x.shape[1:2]:
        weight = OPS["reshape"](weight, shape=(*weight.shape, *(1,) * (len(x.shape) - 2)))
    return where(x > 0.0, x, x * weight)


@composite(
    normal=lambda x, *, threshold: {"threshold": float(threshold)},
    cases=[case(S(2, 3)), case(S(2, 3), threshold=0.9)],
    torch="F.hardshrink({x}, {threshold})",
)  # fmt: skip
def hardshrink(x: Any, *, threshold: float = 0.5) -> Any:
    """x, but 0 from -threshold to threshold. (Keras and ONNX make 0 of NaN as well.)"""
    return where(abs(x) <= threshold, OPS["full"](shape=(), value=0.0, dtype=x.dtype), x)


@composite(
    normal=lambda x, *, threshold: {"threshold": float(threshold)},
    cases=[case(S(2, 3)), case(S(2, 3), threshold=0.9)],
    torch="F.softshrink({x}, {threshold})",
)  # fmt: skip
def softshrink(x: Any, *, threshold: float = 0.5) -> Any:
    """x nearer to 0 by ``threshold``, and 0 where that is past it; of NaN as hardshrink."""
    beyond = where(x < -threshold, x + threshold, x * 0.0)
    return where(x > threshold, x - threshold, beyond)


@composite(cases=[case(S(2, 3))], torch="F.tanhshrink({x})", keras="ops.tanh_shrink({x})")
def tanhshrink(x: Any) -> Any:
    """x - tanh(x)."""
    return x - tanh(x)


@composite(
    normal=lambda x, **numbers: {k: float(v) for k, v in numbers.items()},
    cases=[case(S(2, 3), threshold=0.1, value=-3.0)],
    torch="F.threshold({x}, {threshold}, {value})",
)  # fmt: skip
def threshold(x: Any, *, threshold: float, value: float) -> Any:
    """x where it is above the threshold, ``value`` elsewhere. (Keras gives it for NaN, too.)"""
    return where(x <= threshold, OPS["full"](shape=(), value=value, dtype=x.dtype), x)


@composite(
    normal=lambda x, *, axis: {"axis": normalize_axes(axis, len(x.shape))[0]},
    cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1)],
    torch="F.softmin({x}, dim={axis})", mxnet="F.softmin({x}, axis={axis})",
)  # fmt: skip
def softmin(x: Any, *, axis: int = -1) -> Any:
    """softmax(-x)."""
    return OPS["softmax"](-x, axis=axis)
