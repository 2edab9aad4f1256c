"""Many numbers in, fewer out: sums, means, extrema, along axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import OPS, Type
from trivium.op import By, S, case, composite, corner, primitive, zero_gradient
from trivium.shape import ShapeError, normalize_axes, size_product
from trivium.traits import REDUCTION, along, no_axis, reduced

max_of = max  # Python's, which the op of that name hides below
_CASES = [
    case(S(2, 3, 4)),
    case(S(2, 3, 4), axis=1),
    case(S(2, 3, 4), axis=(0, -1), keepdims=True),
]


def _axes(x: Type, *, axis: Any, keepdims: bool = False, **_: Any) -> dict[str, Any]:
    return {"axis": normalize_axes(axis, len(x.shape))}


def _reduced(x: Type, *, axis: tuple[int, ...], keepdims: bool, **_: Any) -> Type:
    if keepdims:
        return Type(x.dtype, tuple(1 if i in axis else s for i, s in enumerate(x.shape)))
    return Type(x.dtype, tuple(s for i, s in enumerate(x.shape) if i not in axis))


def spread(g: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    """What was reduced from ``x``, back in a shape that broadcasts with it."""
    if keepdims or not axis:
        return g
    shape = tuple(1 if i in axis else s for i, s in enumerate(x.shape))
    return OPS["reshape"](g, shape=shape)


def _sum_rule(x: Type, **attrs: Any) -> Type:
    if x.dtype == dt.bool_:
        raise TypeError("a sum of bools is a count in some frameworks, any() in others: cast first")
    return _reduced(x, **attrs)


@primitive(
    rule=_sum_rule, normal=_axes, cases=_CASES, family=REDUCTION, axes=reduced, idle=no_axis,
    torch="{x}.sum({axis!axes|None}, keepdim={keepdims|False})",
    keras="ops.sum({x}, axis={axis!axes}, keepdims={keepdims|False})",
    tensorflow="tf.reduce_sum({x}, {axis!axes}, keepdims={keepdims|False})",
    mxnet="F.sum({x}, axis={axis!axes}, keepdims={keepdims|False})",
)  # fmt: skip
def sum(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    """The sum along ``axis`` (an int, several, or None for all); the dtype stays.

    >>> import trivium as tv
    >>> tv.sum(tv.asarray([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    tensor([4., 6.])
    """
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


@sum.vjp
def _sum_vjp(g: Any, out: Any, x: Any, *, axis: Any, keepdims: bool) -> Any:
    return (OPS["broadcast_to"](spread(g, x, axis, keepdims), shape=x.shape),)


@composite(
    normal=_axes, cases=_CASES, family=REDUCTION, axes=reduced, idle=no_axis,
    numpy=lambda x, *, axis, keepdims: np.mean(x, axis, x.dtype, keepdims=keepdims),
    torch="{x}.mean({axis!axes|None}, keepdim={keepdims|False})",
    keras="ops.mean({x}, axis={axis!axes}, keepdims={keepdims|False})",
    tensorflow="tf.reduce_mean({x}, {axis!axes}, keepdims={keepdims|False})",
    mxnet="F.mean({x}, axis={axis!axes}, keepdims={keepdims|False})",
    jax="{x}.mean({axis!axes}, keepdims={keepdims|False})",
)  # fmt: skip
def mean(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
    """The arithmetic mean along ``axis``."""
    count = size_product(x.shape[a] for a in axis)
    return sum(x, axis=axis, keepdims=keepdims) / OPS["full"](shape=(), value=count, dtype=x.dtype)


def _spread_normal(x: Type, *, axis: Any, correction: float, keepdims: bool) -> dict[str, Any]:
    number = float(correction)
    return {"axis": normalize_axes(axis, len(x.shape)),
            "correction": int(number) if number.is_integer() else number}  # fmt: skip


_SPREADS = [case(S(2, 3, 4), axis=1), case(S(2, 3, 4), axis=(0, -1), correction=1, keepdims=True),
            case(S(2, 5), axis=1, correction=1.5)]  # fmt: skip


@composite(
    normal=_spread_normal, cases=_SPREADS, family=REDUCTION, axes=reduced,
    torch="{x}.var({axis!axes|None}, correction={correction|1}, keepdim={keepdims|False})",
    keras=By("correction", {0: "ops.var({x}, axis={axis!axes}, keepdims={keepdims|False})"}),
    tensorflow=By("correction", {
        0: "tf.math.reduce_variance({x}, axis={axis!axes}, keepdims={keepdims|False})"}),
    jax="{x}.var({axis!axes}, ddof={correction|0}, keepdims={keepdims|False})",
)  # fmt: skip
def var(x: Any, *, axis: Any = None, correction: float = 0, keepdims: bool = False) -> Any:
    """The variance along ``axis``: squares of what differs from the mean, over n - correction.

    Defaults of the correction differ: torch 1, the others 0.
    """
    centered = x - mean(x, axis=axis, keepdims=True)
    n = size_product(x.shape[a] for a in axis)
    count = OPS["full"](shape=(), value=n, dtype=x.dtype)
    if correction and isinstance(n, int):
        count = OPS["full"](shape=(), value=max_of(n - correction, 0), dtype=x.dtype)
    elif correction:
        count = OPS["maximum"](count - correction, OPS["full"](shape=(), value=0, dtype=x.dtype))
    return sum(centered * centered, axis=axis, keepdims=keepdims) / count


@composite(
    normal=_spread_normal, cases=_SPREADS, family=REDUCTION, axes=reduced,
    torch="{x}.std({axis!axes|None}, correction={correction|1}, keepdim={keepdims|False})",
)  # fmt: skip
def std(x: Any, *, axis: Any = None, correction: float = 0, keepdims: bool = False) -> Any:
    """The standard deviation, the root of :func:`var`. Its gradient at 0 is 0, as torch's is."""
    squares = var(x, axis=axis, correction=correction, keepdims=keepdims)
    none, one = (OPS["full"](shape=(), value=v, dtype=x.dtype) for v in (0, 1))
    nothing = OPS["equal"](squares, none)
    root = OPS["sqrt"](OPS["where"](nothing, one, squares))
    return OPS["where"](nothing, none, root)


# -- extrema -------------------------------------------------------------------------------------
_TIES = [*_CASES, case(S(2, 3, 4), axis=1, ties="first"),
         case(S(2, 3), axis=-1, keepdims=True, ties="each")]  # fmt: skip


def _some(x: Type, axis: tuple[int, ...]) -> None:
    if any(x.shape[a] == 0 for a in axis):
        raise ShapeError(f"nothing has no extremum: {x} along {axis}")


def _extremum_rule(x: Type, *, axis: tuple[int, ...], keepdims: bool, ties: str) -> Type:
    _some(x, axis)
    return _reduced(x, axis=axis, keepdims=keepdims)


def _extremum_normal(x: Type, *, axis: Any, keepdims: bool, ties: str) -> dict[str, Any]:
    axes = normalize_axes(axis, len(x.shape))
    ties = corner("ties", ties, ("share", "first", "each"), x)
    if ties == "first" and len(axes) != 1:
        raise TypeError("ties='first' is along one axis: reshape those of interest into one")
    return {"axis": axes, "ties": ties}


def _extremum_vjp(g: Any, out: Any, x: Any, *, axis: Any, keepdims: bool, ties: str) -> Any:
    hit = OPS["equal"](x, spread(out, x, axis, keepdims))
    g = spread(g, x, axis, keepdims)
    if ties == "first":
        hit = _first(hit.astype(x.dtype), axis[0])
    hit = hit.astype(x.dtype)
    return (hit * g / sum(hit, axis=axis, keepdims=True) if ties == "share" else hit * g,)


def _first(hit: Any, axis: int) -> Any:
    """The first of the ones along an axis, alone."""
    found = OPS["expand_dims"](argmax(hit, axis=axis), axis=axis)
    count = hit.shape[axis]
    shape = tuple(count if i == axis else 1 for i in range(len(hit.shape)))
    return OPS["equal"](OPS["reshape"](OPS["arange"](stop=count), shape=shape), found)


@primitive(
    rule=_extremum_rule, normal=_extremum_normal, cases=_TIES, vjp=_extremum_vjp,
    family=REDUCTION, axes=reduced, idle=no_axis,
    torch=By("ties", share="{x}.amax({axis!axes}, keepdim={keepdims|False})",
             first="{x}.max({axis!one}, keepdim={keepdims|False}).values",
             each="max_each({x}, {axis!axes}, keepdim={keepdims|False})"),
    keras=By("ties", share="ops.max({x}, axis={axis!axes}, keepdims={keepdims|False})",
             first="max_first({x}, {axis!one}, keepdims={keepdims|False})",
             each="max_each({x}, {axis!axes}, keepdims={keepdims|False})"),
)  # fmt: skip
def max(x: Any, *, axis: Any = None, keepdims: bool = False, ties: str = "share") -> Any:
    """The largest along ``axis``.

    Equal ones share the gradient (torch.amax, TensorFlow, Keras, JAX); with ``ties="first"`` the
    first gets all of it (torch.max along an axis), with "each" every one gets all of it (MXNet).
    """
    return np.max(x, axis=axis, keepdims=keepdims)


@primitive(
    rule=_extremum_rule, normal=_extremum_normal, cases=_TIES, vjp=_extremum_vjp,
    family=REDUCTION, axes=reduced, idle=no_axis,
    torch=By("ties", share="{x}.amin({axis!axes}, keepdim={keepdims|False})",
             first="{x}.min({axis!one}, keepdim={keepdims|False}).values",
             each="min_each({x}, {axis!axes}, keepdim={keepdims|False})"),
    keras=By("ties", share="ops.min({x}, axis={axis!axes}, keepdims={keepdims|False})",
             first="min_first({x}, {axis!one}, keepdims={keepdims|False})",
             each="min_each({x}, {axis!axes}, keepdims={keepdims|False})"),
)  # fmt: skip
def min(x: Any, *, axis: Any = None, keepdims: bool = False, ties: str = "share") -> Any:
    """The smallest along ``axis``; ``ties`` as in :func:`max`."""
    return np.min(x, axis=axis, keepdims=keepdims)


def _argmax_rule(x: Type, *, axis: int) -> Type:
    _some(x, (axis,))
    return Type(dt.int64, tuple(s for i, s in enumerate(x.shape) if i != axis))


@primitive(
    rule=_argmax_rule, normal=lambda x, *, axis: {"axis": normalize_axes(axis, len(x.shape))[0]},
    vjp=zero_gradient, cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1)],
    family=REDUCTION, axes=reduced, gives=lambda x, *, axis: (0, x.shape[axis]),
    torch="{x}.argmax({axis})", tensorflow="tf.argmax({x}, axis={axis})", jax="{x}.argmax({axis})",
    mxnet="F.cast(F.argmax({x}, axis={axis}), dtype='int64')",
)  # fmt: skip
def argmax(x: Any, *, axis: int = -1) -> Any:
    """The position of the largest along ``axis`` (the first of equal ones), int64."""
    return np.argmax(x, axis=axis).astype(np.int64)


@composite(
    normal=_axes, cases=[case(S(2, 3, 4), axis=1), case(S(2, 3), axis=-1, keepdims=True)],
    family=REDUCTION, axes=reduced,
    torch="torch.logsumexp({x}, {axis!axes}, keepdim={keepdims|False})",
    keras="ops.logsumexp({x}, axis={axis!axes}, keepdims={keepdims|False})",
    tensorflow="tf.reduce_logsumexp({x}, axis={axis!axes}, keepdims={keepdims|False})",
    jax="jax.nn.logsumexp({x}, {axis!axes}, keepdims={keepdims|False})",
)  # fmt: skip
def logsumexp(x: Any, *, axis: Any, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) along ``axis``, never overflowing."""
    top = OPS["stop_gradient"](max(x, axis=axis, keepdims=True))
    total = OPS["log"](sum(OPS["exp"](x - top), axis=axis, keepdims=True)) + top
    return total if keepdims else sum(total, axis=axis)  # the axes have size 1 by now


def _softmax_normal(x: Type, *, axis: int) -> dict[str, Any]:
    return {"axis": normalize_axes(axis, len(x.shape))[0]}


def _softmax(x: Any, *, axis: int) -> Any:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@composite(
    normal=_softmax_normal, cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1)], numpy=_softmax,
    axes=along,
    torch="F.softmax({x}, dim={axis})", keras="ops.softmax({x}, axis={axis})",
    tensorflow="tf.nn.softmax({x}, axis={axis})", mxnet="F.softmax({x}, axis={axis})",
    jax="jax.nn.softmax({x}, axis={axis})", onnx="Softmax",
)  # fmt: skip
def softmax(x: Any, *, axis: int = -1) -> Any:
    """exp(x), scaled to sum 1 along ``axis``."""
    e = OPS["exp"](x - OPS["stop_gradient"](max(x, axis=axis, keepdims=True)))
    return e / sum(e, axis=axis, keepdims=True)


@softmax.vjp
def _softmax_vjp(g: Any, out: Any, x: Any, *, axis: int) -> Any:
    return (out * (g - sum(g * out, axis=axis, keepdims=True)),)


def _log_softmax(x: Any, *, axis: int) -> Any:
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


@composite(
    normal=_softmax_normal, cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1)], numpy=_log_softmax,
    axes=along,
    torch="F.log_softmax({x}, dim={axis})", keras="ops.log_softmax({x}, axis={axis})",
    tensorflow="tf.nn.log_softmax({x}, axis={axis})", mxnet="F.log_softmax({x}, axis={axis})",
    jax="jax.nn.log_softmax({x}, axis={axis})", onnx="LogSoftmax",
)  # fmt: skip
def log_softmax(x: Any, *, axis: int = -1) -> Any:
    """log(softmax(x)), never overflowing."""
    return x - logsumexp(x, axis=axis, keepdims=True)


@log_softmax.vjp
def _log_softmax_vjp(g: Any, out: Any, x: Any, *, axis: int) -> Any:
    return (g - OPS["exp"](out) * sum(g, axis=axis, keepdims=True),)
