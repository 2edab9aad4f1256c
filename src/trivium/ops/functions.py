"""Angles, roundings and the other functions of one number or two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trivium.dtype import bool_
from trivium.graph import OPS, Type
from trivium.op import (
    Op,
    Refused,
    S,
    Sample,
    case,
    comparison,
    composite,
    each_place,
    primitive,
    zero_gradient,
)
from trivium.ops.choice import equal, less, logical_not, not_equal, where
from trivium.ops.elementwise import _floating, abs, arithmetic, erf, exp, log, pow, sqrt

_TWO_OVER_ROOT_PI = 1.1283791670955126


# -- angles ----------------------------------------------------------------------------------------
def _function(name: str, numpy: Any, slope: Any, sample: Sample) -> Op:
    """``slope(x, y)`` at x, where the function is y. Where one says asin, another says arcsin."""
    long = f"arc{name[1:]}" if name.startswith("a") else name

    def function(x: Any) -> Any:
        return numpy(x)

    function.__doc__ = f"{name}(x), of radians and in them."
    op: Op = primitive(
        name=name, rule=_floating, cost=40, cases=[case(sample)],
        vjp=lambda g, y, x: (g * slope(x, y),),
        torch=f"torch.{name}({{x}})", keras=f"ops.{long}({{x}})", tensorflow=f"tf.{name}({{x}})",
        mxnet=f"F.{long}({{x}})", jax=f"jnp.{long}({{x}})", onnx=name.capitalize(),
    )(function)  # fmt: skip
    return op


_INSIDE = S(2, 3, low=-0.9, high=0.9)
sin: Op = _function("sin", np.sin, lambda x, y: cos(x), S(2, 3, low=-7, high=7))
cos: Op = _function("cos", np.cos, lambda x, y: -sin(x), S(2, 3, low=-7, high=7))
tan: Op = _function("tan", np.tan, lambda x, y: 1 + y * y, S(2, 3, low=-1.2, high=1.2))
asin: Op = _function("asin", np.arcsin, lambda x, y: 1 / sqrt(1 - x * x), _INSIDE)
acos: Op = _function("acos", np.arccos, lambda x, y: -1 / sqrt(1 - x * x), _INSIDE)
atan: Op = _function("atan", np.arctan, lambda x, y: 1 / (1 + x * x), S(2, 3, low=-4, high=4))
sinh: Op = _function("sinh", np.sinh, lambda x, y: cosh(x), S(2, 3))
cosh: Op = _function("cosh", np.cosh, lambda x, y: sinh(x), S(2, 3))
asinh: Op = _function(
    "asinh", np.arcsinh, lambda x, y: 1 / sqrt(x * x + 1), S(2, 3, low=-4, high=4)
)
acosh: Op = _function(
    "acosh", np.arccosh, lambda x, y: 1 / sqrt(x * x - 1), S(2, 3, low=1.2, high=4)
)
atanh: Op = _function("atanh", np.arctanh, lambda x, y: 1 / (1 - x * x), _INSIDE)


@primitive(
    rule=_floating, promotes=True, cost=40,
    vjp=lambda g, out, x, y: (g * y / (x * x + y * y), -g * x / (x * x + y * y)),
    cases=[case(S(2, 3), S(3))],
    torch="torch.atan2({x}, {y})", keras="ops.arctan2({x}, {y})",
    tensorflow="tf.atan2({x}, {y})", jax="jnp.arctan2({x}, {y})",
    mxnet=Refused("it has arctan alone"), onnx=Refused("it has Atan alone"),
)  # fmt: skip
def atan2(x: Any, y: Any) -> Any:
    """The angle, between -pi and pi, of the point that is y to the right and x up."""
    return np.arctan2(x, y)


# -- logarithms and powers -------------------------------------------------------------------------
@composite(
    numpy=np.exp2, cases=[case(S(2, 3, low=-4, high=4))],
    torch="torch.exp2({x})", jax="jnp.exp2({x})", keras="ops.exp2({x})",
)  # fmt: skip
def exp2(x: Any) -> Any:
    """2 to the x."""
    return pow(2.0, x)


@composite(
    numpy=np.log2, cases=[case(S(2, 3, low=0.3, high=9))],
    torch="torch.log2({x})", keras="ops.log2({x})", mxnet="F.log2({x})", jax="jnp.log2({x})",
)  # fmt: skip
def log2(x: Any) -> Any:
    """The logarithm to the base 2."""
    return log(x) / math.log(2)


@composite(
    numpy=np.log10, cases=[case(S(2, 3, low=0.3, high=9))],
    torch="torch.log10({x})", keras="ops.log10({x})", mxnet="F.log10({x})", jax="jnp.log10({x})",
)  # fmt: skip
def log10(x: Any) -> Any:
    """The logarithm to the base 10."""
    return log(x) / math.log(10)


def _erfc(x: Any) -> Any:
    try:
        from scipy.special import erfc as each
    except ImportError:
        each = np.frompyfunc(math.erfc, 1, 1)
    return np.asarray(each(x)).astype(x.dtype)


@composite(
    numpy=_erfc, vjp=lambda g, out, x: (-g * _TWO_OVER_ROOT_PI * exp(-x * x),),
    cases=[case(S(2, 3))],
    torch="torch.erfc({x})", tensorflow="tf.math.erfc({x})", jax="jax.lax.erfc({x})",
)  # fmt: skip
def erfc(x: Any) -> Any:
    """1 - erf(x)."""
    return 1.0 - erf(x)


# -- roundings -------------------------------------------------------------------------------------
_STEPS = [case(S(2, 3, low=-4, high=4))]


@primitive(
    rule=_floating, vjp=zero_gradient, cases=_STEPS,
    torch="torch.floor({x})", keras="ops.floor({x})", tensorflow="tf.floor({x})",
    mxnet="F.floor({x})", jax="jnp.floor({x})", onnx="Floor",
)  # fmt: skip
def floor(x: Any) -> Any:
    """The largest whole number that is not above x."""
    return np.floor(x)


@primitive(
    rule=_floating, vjp=zero_gradient, cases=_STEPS,
    torch="torch.ceil({x})", keras="ops.ceil({x})", tensorflow="tf.math.ceil({x})",
    mxnet="F.ceil({x})", jax="jnp.ceil({x})", onnx="Ceil",
)  # fmt: skip
def ceil(x: Any) -> Any:
    """The smallest whole number that is not below x."""
    return np.ceil(x)


@composite(
    rule=_floating, numpy=np.trunc, vjp=zero_gradient, cases=_STEPS,
    torch="torch.trunc({x})", keras="ops.trunc({x})", mxnet="F.trunc({x})", jax="jnp.trunc({x})",
)  # fmt: skip
def trunc(x: Any) -> Any:
    """x without what follows the point."""
    return where(x < 0.0, ceil(x), floor(x))


@composite(
    rule=_floating, numpy=np.rint, vjp=zero_gradient, cases=_STEPS,
    torch="torch.round({x})", keras="ops.round({x})", tensorflow="tf.round({x})",
    jax="jnp.round({x})", onnx="Round",
)  # fmt: skip
def round(x: Any) -> Any:
    """The nearest whole number, and of two the even one. (MXNet's rounds half away from 0.)"""
    low = floor(x)
    part, even = x - low, equal(low, 2.0 * floor(low * 0.5))
    return where((part < 0.5) | (equal(part, 0.5) & even), low, low + 1.0)


# -- whole quotients -------------------------------------------------------------------------------
@each_place
def _whole(*types: Type) -> Type:
    out = arithmetic(*types)
    if out.dtype.is_floating:  # 1 // 0.1 is 9 in Python, torch and JAX, and 10 in TensorFlow
        raise TypeError(f"wants integers, got {out.dtype}: write floor(x / y)")
    return out


def _signed(numpy: Any) -> Any:
    def quiet(x: Any, y: Any) -> Any:
        with np.errstate(all="ignore"):  # a division by zero gives 0
            return numpy(x, y)

    return quiet


_INTEGERS = [case(S(4, 3, dtype="int64", low=-9, high=9), S(3, dtype="int64", low=1, high=5)),
             case(S(5, dtype="int64", low=-9), S(5, dtype="int64", low=-7, high=0))]  # fmt: skip
_RESTS = [case(S(2, 3, low=-7, high=7), S(3, low=1, high=3)),
          case(S(4, low=-7, high=7), S(4, low=-3, high=-1))]  # fmt: skip


@primitive(
    rule=_whole, promotes=True, vjp=zero_gradient, cases=_INTEGERS, cost=40,
    numpy=_signed(np.floor_divide),
    torch="torch.floor_divide({x}, {y})", keras="ops.floor_divide({x}, {y})",
    tensorflow="tf.math.floordiv({x}, {y})", jax="jnp.floor_divide({x}, {y})",
    mxnet=Refused("a quotient of integers that is rounded down"),
)  # fmt: skip
def floor_divide(x: Any, y: Any) -> Any:
    """x // y of integers: the quotient, rounded down."""


@primitive(
    rule=arithmetic, promotes=True, numpy=_signed(np.fmod), cases=[*_INTEGERS, *_RESTS], cost=40,
    vjp=lambda g, out, x, y: (g, -g * trunc(x / y)),
    torch="torch.fmod({x}, {y})", keras="ops.fmod({x}, {y})",
    tensorflow=Refused("its truncatemod has no gradient"), jax="jnp.fmod({x}, {y})",
    mxnet=Refused("it has the remainder with the divisor's sign alone"),
    onnx="Mod({x}, {y}, fmod=1)",
)  # fmt: skip
def fmod(x: Any, y: Any) -> Any:
    """What is left of x after a whole number of y, with the sign of x, as in C."""


@composite(
    rule=arithmetic, promotes=True, numpy=_signed(np.remainder), cases=[*_INTEGERS, *_RESTS],
    torch="torch.remainder({x}, {y})", keras="ops.mod({x}, {y})",
    tensorflow="tf.math.floormod({x}, {y})", mxnet="F.broadcast_mod({x}, {y})",
    jax="jnp.remainder({x}, {y})", onnx="Mod",
)  # fmt: skip
def remainder(x: Any, y: Any) -> Any:
    """What is left of x after a whole number of y, with the sign of y, as Python's %."""
    rest = fmod(x, y)
    none = OPS["full"](shape=(), value=0, dtype=x.dtype)
    across = not_equal(rest, none) & logical_xor(rest < none, y < none)
    return where(across, rest + y, rest)


# -- questions -------------------------------------------------------------------------------------
@each_place
def _asked(x: Type) -> Type:
    return comparison(_floating(x))


@composite(
    rule=_asked, numpy=np.isnan, cases=[case(S(2, 3))],
    torch="torch.isnan({x})", keras="ops.isnan({x})", tensorflow="tf.math.is_nan({x})",
    jax="jnp.isnan({x})", onnx="IsNaN",
)  # fmt: skip
def isnan(x: Any) -> Any:
    """Is it no number?"""
    return not_equal(x, x)


@composite(
    rule=_asked, numpy=np.isinf, cases=[case(S(2, 3))],
    torch="torch.isinf({x})", keras="ops.isinf({x})", tensorflow="tf.math.is_inf({x})",
    jax="jnp.isinf({x})",
)  # fmt: skip
def isinf(x: Any) -> Any:
    """Is it infinite?"""
    return equal(abs(x), math.inf)


@composite(
    rule=_asked, numpy=np.isfinite, cases=[case(S(2, 3))],
    torch="torch.isfinite({x})", keras="ops.isfinite({x})", tensorflow="tf.math.is_finite({x})",
    jax="jnp.isfinite({x})",
)  # fmt: skip
def isfinite(x: Any) -> Any:
    """Is it a number, and not infinite?"""
    return less(abs(x), math.inf)


@composite(
    rule=logical_not.rule, vjp=zero_gradient,
    cases=[case(S(2, 3, dtype=bool_), S(3, dtype=bool_))],
    torch="torch.logical_xor({x}, {y})", keras="ops.logical_xor({x}, {y})",
    tensorflow="tf.math.logical_xor({x}, {y})", mxnet="F.broadcast_logical_xor({x}, {y})",
    jax="jnp.logical_xor({x}, {y})", onnx="Xor",
)  # fmt: skip
def logical_xor(x: Any, y: Any) -> Any:
    """One true, the other not."""
    return not_equal(x, y)
