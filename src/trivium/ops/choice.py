"""Comparisons, choices between two arrays, and the same numbers in another dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype, bool_, float32, float64
from trivium.graph import OPS, Type
from trivium.op import (
    S,
    case,
    comparison,
    composite,
    each_place,
    elementwise,
    primitive,
    zero_gradient,
)


def _compare(name: str, symbol: str, numpy: Any, onnx: str, mxnet: str) -> Any:
    infix = f"{{x}} {symbol} {{y}}"

    def function(x: Any, y: Any) -> Any:
        return numpy(x, y)

    function.__doc__ = f"x {symbol} y, broadcasting; the result is bool."
    names = {} if not onnx else {"onnx": onnx}
    return primitive(
        name=name, rule=comparison, promotes=True, vjp=zero_gradient,
        cases=[case(S(2, 3), S(3)), case(S(5, dtype="int64", high=3), S(5, dtype="int64", high=3))],
        torch=infix,
        keras=infix if name not in ("equal", "not_equal") else f"ops.{name}({{x}}, {{y}})",
        tensorflow=infix if name not in ("equal", "not_equal") else f"tf.{name}({{x}}, {{y}})",
        mxnet=f"F.broadcast_{mxnet}({{x}}, {{y}})", jax=infix, **names,
    )(function)  # fmt: skip


equal = _compare("equal", "==", np.equal, "Equal", "equal")
not_equal = _compare("not_equal", "!=", np.not_equal, "", "not_equal")
less = _compare("less", "<", np.less, "Less", "lesser")
less_equal = _compare("less_equal", "<=", np.less_equal, "LessOrEqual", "lesser_equal")
greater = _compare("greater", ">", np.greater, "Greater", "greater")
greater_equal = _compare("greater_equal", ">=", np.greater_equal, "GreaterOrEqual", "greater_equal")


@each_place
def _logical(*types: Type) -> Type:
    if any(t.dtype != bool_ for t in types):
        # Some frameworks would take them bit by bit, others as "not zero".
        raise TypeError(f"wants bool arrays, got {', '.join(map(str, types))}")
    return elementwise(*types)


_BOOLS = [case(S(2, 3, dtype=bool_), S(3, dtype=bool_))]


@primitive(
    rule=_logical, vjp=zero_gradient, cases=_BOOLS,
    torch="{x} & {y}", keras="ops.logical_and({x}, {y})", tensorflow="{x} & {y}",
    mxnet="F.broadcast_logical_and({x}, {y})", jax="{x} & {y}", onnx="And",
)  # fmt: skip
def logical_and(x: Any, y: Any) -> Any:
    """Both true."""
    return np.logical_and(x, y)


@primitive(
    rule=_logical, vjp=zero_gradient, cases=_BOOLS,
    torch="{x} | {y}", keras="ops.logical_or({x}, {y})", tensorflow="{x} | {y}",
    mxnet="F.broadcast_logical_or({x}, {y})", jax="{x} | {y}", onnx="Or",
)  # fmt: skip
def logical_or(x: Any, y: Any) -> Any:
    """Either true."""
    return np.logical_or(x, y)


@primitive(
    rule=_logical, vjp=zero_gradient, cases=[case(S(2, 3, dtype=bool_))],
    torch="~{x}", keras="ops.logical_not({x})", tensorflow="~{x}",
    mxnet="F.logical_not({x})", jax="~{x}", onnx="Not",
)  # fmt: skip
def logical_not(x: Any) -> Any:
    """Not x."""
    return np.logical_not(x)


@each_place
def _where_rule(c: Type, x: Type, y: Type) -> Type:
    if c.dtype != bool_ or x.dtype != y.dtype:
        raise TypeError(f"wants a bool condition and two arrays of one dtype, got {c}, {x}, {y}")
    return Type(x.dtype, elementwise(c, x, y).shape)


@primitive(
    rule=_where_rule,
    cases=[case(S(2, 3, dtype=bool_), S(3), S(2, 1))],
    keras="ops.where({condition}, {x}, {y})",
    tensorflow="tf.where({condition}, {x}, {y})", jax="jnp.where({condition}, {x}, {y})",
    mxnet="F.where({condition}, {x}, {y})", onnx="Where",
)  # fmt: skip
def where(condition: Any, x: Any, y: Any) -> Any:
    """x where ``condition`` holds, y elsewhere, broadcasting."""
    return np.where(condition, x, y)


@where.vjp
def _where_vjp(g: Any, out: Any, condition: Any, x: Any, y: Any) -> Any:
    none = OPS["full"](shape=(), value=0, dtype=g.dtype)
    return None, where(condition, g, none), where(condition, none, g)


@each_place
def _cast_rule(x: Type, *, dtype: DType) -> Type:
    return Type(dtype, x.shape)


@primitive(
    rule=_cast_rule, idle=lambda x, *, dtype: bool(dtype == x.dtype),
    normal=lambda x, *, dtype: {"dtype": as_dtype(dtype)},
    cases=[case(S(2, 3, dtype="int64", high=5), dtype=float32),
           case(S(2, 3, dtype=bool_), dtype=float64)],
    torch="{x}.to({dtype})", keras="ops.cast({x}, {dtype})", tensorflow="tf.cast({x}, {dtype})",
    mxnet="F.cast({x}, dtype={dtype})", jax="{x}.astype({dtype})",
)  # fmt: skip
def cast(x: Any, *, dtype: DType) -> Any:
    """The elements converted to ``dtype``; floats become integers by truncation."""
    return x.astype(dtype.numpy)


@cast.vjp
def _cast_vjp(g: Any, out: Any, x: Any, *, dtype: DType) -> Any:
    return (cast(g, dtype=x.dtype) if x.dtype.is_floating and dtype.is_floating else None,)


@primitive(
    vjp=lambda g, out, x: (None,), cases=[case(S(2, 3))], cost=0,
    torch="{x}.detach()", keras="ops.stop_gradient({x})", tensorflow="tf.stop_gradient({x})",
    mxnet="F.BlockGrad({x})", jax="jax.lax.stop_gradient({x})",
)  # fmt: skip
def stop_gradient(x: Any) -> Any:
    """x, through which no gradient flows."""
    return x


@composite(
    normal=lambda x, mask, *, value: {"value": value if x.dtype.is_integer else float(value)},
    cases=[case(S(2, 3), S(2, 3, dtype=bool_), value=-1.5),
           case(S(2, 3), S(3, dtype=bool_), value=0.0)],
    torch="{x}.masked_fill({mask}, {value})",
)  # fmt: skip
def masked_fill(x: Any, mask: Any, *, value: float) -> Any:
    """x, but the number ``value`` where ``mask`` holds; the mask broadcasts to x."""
    return where(mask, OPS["full"](shape=(), value=value, dtype=x.dtype), x)
