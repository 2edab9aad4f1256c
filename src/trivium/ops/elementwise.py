"""One number in, one number out, broadcasting. The plainest declarations: read these first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trivium.dtype import bool_
from trivium.graph import OPS, Type
from trivium.op import (
    By,
    S,
    case,
    composite,
    corner,
    each_place,
    elementwise,
    primitive,
    zero_gradient,
)
from trivium.ops.choice import equal, where

_TWO = [case(S(2, 3, low=0.5), S(3, low=0.5)), case(S(2, 1, 3), S(4, 1, low=0.5, high=3))]
_ONE = [case(S(2, 3)), case(S(4, low=-6, high=6)), case(S())]
_POSITIVE = [case(S(2, 3, low=0.3, high=4))]


@each_place
def arithmetic(*types: Type) -> Type:
    """Type rule: the arrays broadcast, the dtype stays, and is no bool."""
    if any(t.dtype == bool_ for t in types):
        raise TypeError("bools are not subtracted, negated or raised: cast first")
    return elementwise(*types)


# -- arithmetic ------------------------------------------------------------------------------------
@primitive(
    promotes=True,
    vjp=lambda g, out, x, y: (g, g),
    cases=_TWO,
    torch="{x} + {y}", keras="{x} + {y}", tensorflow="{x} + {y}",
    mxnet="F.broadcast_add({x}, {y})", jax="{x} + {y}", onnx="Add",
)  # fmt: skip
def add(x: Any, y: Any) -> Any:
    """x + y, broadcasting.

    >>> import trivium as tv
    >>> tv.add(tv.asarray([1.0, 2.0]), 3.0)
    tensor([4., 5.])
    """
    return np.add(x, y)


@primitive(
    rule=arithmetic,
    promotes=True,
    vjp=lambda g, out, x, y: (g, -g),
    cases=_TWO,
    torch="{x} - {y}", keras="{x} - {y}", tensorflow="{x} - {y}",
    mxnet="F.broadcast_sub({x}, {y})", jax="{x} - {y}", onnx="Sub",
)  # fmt: skip
def subtract(x: Any, y: Any) -> Any:
    """x - y, broadcasting."""
    return np.subtract(x, y)


@primitive(
    promotes=True,
    vjp=lambda g, out, x, y: (g * y, g * x),
    cases=_TWO,
    torch="{x} * {y}", keras="{x} * {y}", tensorflow="{x} * {y}",
    mxnet="F.broadcast_mul({x}, {y})", jax="{x} * {y}", onnx="Mul",
)  # fmt: skip
def multiply(x: Any, y: Any) -> Any:
    """x * y, broadcasting."""
    return np.multiply(x, y)


@each_place
def _floating(*types: Type) -> Type:
    out = elementwise(*types)
    if not out.dtype.is_floating:
        raise TypeError(f"wants floating arrays, got {out.dtype}: cast with astype()")
    return out


@primitive(
    rule=_floating,
    promotes=True,
    cost=4,
    vjp=lambda g, out, x, y: (g / y, -g * out / y),
    cases=_TWO,
    torch="{x} / {y}", keras="{x} / {y}", tensorflow="{x} / {y}",
    mxnet="F.broadcast_div({x}, {y})", jax="{x} / {y}", onnx="Div",
)  # fmt: skip
def divide(x: Any, y: Any) -> Any:
    """x / y for floating arrays, broadcasting. Integers are refused: frameworks differ there."""
    return np.divide(x, y)


@primitive(
    rule=arithmetic,
    promotes=True,
    cost=40,
    cases=[case(S(2, 3, low=0.5, high=3), S(3)), case(S(2, 3, low=0.5), S(2, 1, low=1, high=3))],
    torch="{x} ** {y}", keras="{x} ** {y}", tensorflow="{x} ** {y}",
    mxnet="F.broadcast_power({x}, {y})", jax="{x} ** {y}", onnx="Pow",
)  # fmt: skip
def pow(x: Any, y: Any) -> Any:
    """x to the power y, broadcasting."""
    return np.power(x, y)


@pow.vjp
def _pow_vjp(g: Any, out: Any, x: Any, y: Any) -> Any:
    return g * y * pow(x, y - 1), g * out * log(where(x > 0, x, _one(x)))


def _one(x: Any) -> Any:
    return OPS["full"](shape=(), value=1, dtype=x.dtype)


_EXTREMA = [case(S(2, 3), S(3)), case(S(4, 1), S(3, low=-1.7, high=1.9)),
            case(S(2, 3), S(3), ties="share")]  # fmt: skip


def _normal_ties(x: Type, y: Type, *, ties: str) -> dict[str, Any]:
    return {"ties": corner("ties", ties, ("first", "share"), x)}


@primitive(
    promotes=True, normal=_normal_ties, cases=_EXTREMA,
    torch=By("ties", first="torch.clamp({x}, min={y})", share="torch.maximum({x}, {y})"),
    keras=By("ties", first="ops.maximum({x}, {y})", share="shared_maximum({x}, {y})"),
    tensorflow=By("ties", first="tf.maximum({x}, {y})", share="shared_maximum({x}, {y})"),
    mxnet=By("ties", first="F.broadcast_maximum({x}, {y})", share="shared_maximum(F, {x}, {y})"),
    jax=By("ties", first="first_maximum({x}, {y})", share="jnp.maximum({x}, {y})"),
    onnx="Max",
)  # fmt: skip
def maximum(x: Any, y: Any, *, ties: str = "first") -> Any:
    """The larger of x and y, broadcasting.

    The gradient of a tie goes to x (TensorFlow, Keras, MXNet), or with ``ties="share"`` half to
    each (torch, JAX).
    """
    return np.maximum(x, y)


@maximum.vjp
def _maximum_vjp(g: Any, out: Any, x: Any, y: Any, *, ties: str) -> Any:
    if ties == "share":
        return g * _won(x > y, x, y, g), g * _won(x < y, x, y, g)
    return g * (x >= y).astype(g.dtype), g * (x < y).astype(g.dtype)


def _won(alone: Any, x: Any, y: Any, g: Any) -> Any:
    """1 where one of the two is the extremum alone, a half where both are."""
    return alone.astype(g.dtype) + equal(x, y).astype(g.dtype) * 0.5


@primitive(
    promotes=True, normal=_normal_ties, cases=_EXTREMA,
    torch=By("ties", first="torch.clamp({x}, max={y})", share="torch.minimum({x}, {y})"),
    keras=By("ties", first="ops.minimum({x}, {y})", share="shared_minimum({x}, {y})"),
    tensorflow=By("ties", first="tf.minimum({x}, {y})", share="shared_minimum({x}, {y})"),
    mxnet=By("ties", first="F.broadcast_minimum({x}, {y})", share="shared_minimum(F, {x}, {y})"),
    jax=By("ties", first="first_minimum({x}, {y})", share="jnp.minimum({x}, {y})"),
    onnx="Min",
)  # fmt: skip
def minimum(x: Any, y: Any, *, ties: str = "first") -> Any:
    """The smaller of x and y, broadcasting; ``ties`` as in :func:`maximum`."""
    return np.minimum(x, y)


@minimum.vjp
def _minimum_vjp(g: Any, out: Any, x: Any, y: Any, *, ties: str) -> Any:
    if ties == "share":
        return g * _won(x < y, x, y, g), g * _won(x > y, x, y, g)
    return g * (x <= y).astype(g.dtype), g * (x > y).astype(g.dtype)


@primitive(
    rule=arithmetic,
    vjp=lambda g, out, x: (-g,), cases=_ONE,
    torch="-{x}", keras="-{x}", tensorflow="-{x}", mxnet="-{x}", jax="-{x}", onnx="Neg",
)  # fmt: skip
def negative(x: Any) -> Any:
    """-x."""
    return np.negative(x)


@primitive(
    vjp=lambda g, out, x: (g * OPS["sign"](x),), cases=[case(S(2, 3))],
    torch="torch.abs({x})", keras="ops.abs({x})", tensorflow="tf.abs({x})",
    mxnet="F.abs({x})", jax="absolute({x})", onnx="Abs",
)  # fmt: skip
def abs(x: Any) -> Any:
    """The absolute value; its gradient at 0 is 0 (JAX's is 1)."""
    return np.abs(x)


@primitive(
    rule=arithmetic,
    vjp=zero_gradient, cases=[case(S(2, 3))],
    torch="torch.sign({x})", keras="ops.sign({x})", tensorflow="tf.sign({x})",
    mxnet="F.sign({x})", jax="jnp.sign({x})", onnx="Sign",
)  # fmt: skip
def sign(x: Any) -> Any:
    """-1, 0 or 1."""
    return np.sign(x)


# -- functions -------------------------------------------------------------------------------------
@primitive(
    rule=_floating, cost=12, vjp=lambda g, out, x: (g * out,), cases=[case(S(2, 3))],
    torch="torch.exp({x})", keras="ops.exp({x})", tensorflow="tf.exp({x})",
    mxnet="F.exp({x})", jax="jnp.exp({x})", onnx="Exp",
)  # fmt: skip
def exp(x: Any) -> Any:
    """e to the x."""
    return np.exp(x)


@primitive(
    rule=_floating, cost=14, vjp=lambda g, out, x: (g / x,), cases=_POSITIVE,
    torch="torch.log({x})", keras="ops.log({x})", tensorflow="tf.math.log({x})",
    mxnet="F.log({x})", jax="jnp.log({x})", onnx="Log",
)  # fmt: skip
def log(x: Any) -> Any:
    """The natural logarithm."""
    return np.log(x)


@primitive(
    rule=_floating, cost=20, vjp=lambda g, out, x: (g / (1 + x),),
    cases=[case(S(2, 3, low=-0.8, high=3))],
    torch="torch.log1p({x})", keras="ops.log1p({x})", tensorflow="tf.math.log1p({x})",
    mxnet="F.log1p({x})", jax="jnp.log1p({x})",
)  # fmt: skip
def log1p(x: Any) -> Any:
    """log(1 + x), exact near zero."""
    return np.log1p(x)


@primitive(
    rule=_floating, cost=18, vjp=lambda g, out, x: (g * (out + 1),), cases=[case(S(2, 3))],
    torch="torch.expm1({x})", keras="ops.expm1({x})", tensorflow="tf.math.expm1({x})",
    mxnet="F.expm1({x})", jax="jnp.expm1({x})",
)  # fmt: skip
def expm1(x: Any) -> Any:
    """exp(x) - 1, exact near zero."""
    return np.expm1(x)


@primitive(
    rule=_floating, cost=6, vjp=lambda g, out, x: (g * 0.5 / out,), cases=_POSITIVE,
    torch="torch.sqrt({x})", keras="ops.sqrt({x})", tensorflow="tf.sqrt({x})",
    mxnet="F.sqrt({x})", jax="jnp.sqrt({x})", onnx="Sqrt",
)  # fmt: skip
def sqrt(x: Any) -> Any:
    """The square root."""
    return np.sqrt(x)


@primitive(
    rule=_floating, cost=16, vjp=lambda g, out, x: (g * (1 - out * out),), cases=_ONE,
    torch="torch.tanh({x})", keras="ops.tanh({x})", tensorflow="tf.tanh({x})",
    mxnet="F.tanh({x})", jax="jnp.tanh({x})", onnx="Tanh",
)  # fmt: skip
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return np.tanh(x)


def _erf(x: Any) -> Any:
    try:  # late: scipy costs more to import than numpy, and is no requirement
        from scipy.special import erf as each
    except ImportError:
        each = np.frompyfunc(math.erf, 1, 1)
    return np.asarray(each(x)).astype(x.dtype)


@primitive(
    rule=_floating, cost=24, numpy=_erf,
    vjp=lambda g, out, x: (g * 1.1283791670955126 * exp(-x * x),),  # 2 / sqrt(pi)
    cases=_ONE,
    torch="torch.erf({x})", keras="ops.erf({x})", tensorflow="tf.math.erf({x})",
    mxnet="F.erf({x})", jax="jax.lax.erf({x})", onnx="Erf",
)  # fmt: skip
def erf(x: Any) -> Any:
    """The error function, 2/sqrt(pi) times the integral of exp(-t*t) from 0 to x."""
    return _erf(x)


def _sigmoid(x: Any) -> Any:
    # exp of a negative number only: never overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


@primitive(
    rule=_floating, cost=16, vjp=lambda g, out, x: (g * out * (1 - out),), cases=_ONE,
    torch="torch.sigmoid({x})", keras="ops.sigmoid({x})", tensorflow="tf.sigmoid({x})",
    mxnet="F.sigmoid({x})", jax="jax.nn.sigmoid({x})", onnx="Sigmoid",
)  # fmt: skip
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _sigmoid(x)


@primitive(
    rule=arithmetic,
    vjp=lambda g, out, x: (g * (x > 0).astype(g.dtype),), cases=_ONE,
    torch="F.relu({x})", keras="ops.relu({x})", tensorflow="tf.nn.relu({x})",
    mxnet="F.relu({x})", jax="jax.nn.relu({x})", onnx="Relu",
)  # fmt: skip
def relu(x: Any) -> Any:
    """max(x, 0); the gradient at 0 is 0, as in every framework."""
    return np.maximum(x, 0)


@composite(
    cases=_ONE,
    torch="F.softplus({x})", keras="ops.softplus({x})", tensorflow="tf.nn.softplus({x})",
    mxnet="softplus(F, {x})", jax="jax.nn.softplus({x})", onnx="Softplus",
)  # fmt: skip
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), never overflowing."""
    return relu(x) + log1p(exp(-abs(x)))


@softplus.vjp
def _softplus_vjp(g: Any, out: Any, x: Any) -> Any:
    return (g * sigmoid(x),)  # the body's pieces have a kink at 0 that their sum does not have


@composite(
    cases=_ONE,
    torch="F.silu({x})", keras="ops.silu({x})", tensorflow="tf.nn.silu({x})",
    jax="jax.nn.silu({x})",
)  # fmt: skip
def silu(x: Any) -> Any:
    """x * sigmoid(x), also called swish."""
    return x * sigmoid(x)


@composite(
    cases=[case(S(2, 3)), case(S(4), approximate="tanh")],
    torch="F.gelu({x}, approximate={approximate|'none'})",
    keras="ops.gelu({x}, approximate={approximate!is_tanh})",
    tensorflow="tf.nn.gelu({x}, approximate={approximate!is_tanh})",
    jax="jax.nn.gelu({x}, approximate={approximate!is_tanh})",
)
def gelu(x: Any, *, approximate: str = "none") -> Any:
    """x times the normal distribution function of x; ``approximate="tanh"`` is its tanh form.

    The two differ by up to 4.7e-4 near \\|x\\| = 2.7: JAX's default is the tanh form.
    """
    if approximate == "tanh":
        return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * 0.7071067811865476))


@composite(
    cases=[case(S(2, 3)), case(S(2, 3), slope=0.2)],
    torch="F.leaky_relu({x}, {slope})", keras="ops.leaky_relu({x}, {slope})",
    tensorflow="tf.nn.leaky_relu({x}, {slope})", mxnet="F.LeakyReLU({x}, slope={slope})",
    onnx="LeakyRelu({x}, alpha={slope})",
)  # fmt: skip
def leaky_relu(x: Any, *, slope: float = 0.01) -> Any:
    """x where positive, slope * x elsewhere. Defaults differ: torch .01, tf.nn .2, MXNet .25.

    Its gradient at 0 is the slope; jax.nn's is 1, so for JAX the body is written.
    """
    return where(x > 0, x, x * slope)


@composite(cases=[case(S(2, 3))], torch="{x} ** 2", keras="ops.square({x})",
           tensorflow="tf.square({x})", mxnet="F.square({x})", jax="jnp.square({x})")  # fmt: skip
def square(x: Any) -> Any:
    """x * x."""
    return x * x
