"""Arrays from nothing: constants, filled arrays, ranges. Their sizes may be Dims."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType, as_dtype, holds
from trivium.graph import Type
from trivium.op import S, case, composite, primitive, zero_gradient
from trivium.shape import Dim, ShapeError, Size, as_shape, parse_size, possible


def _full_normal(*, shape: Any, value: Any, dtype: Any) -> dict[str, Any]:
    value = parse_size(value) if isinstance(value, str) else value
    if dtype is None:
        dtype = dt.of_scalar(value, None) if isinstance(value, (bool, int, float)) else dt.int64
    return {"shape": as_shape(shape), "value": value, "dtype": as_dtype(dtype)}


def _full_rule(*, shape: Any, value: Any, dtype: DType) -> Type:
    if not isinstance(value, Dim):
        holds(value, dtype)
    return Type(dtype, as_shape(shape))


@primitive(
    rule=_full_rule,
    cost=0,
    normal=_full_normal,
    vjp=zero_gradient,
    cases=[
        case(shape=(2, 3), value=1.5, dtype=dt.float32),
        case(shape=(), value=2, dtype=dt.int64),
        case(shape=(2,), value=True, dtype=dt.bool_),
    ],
    torch="torch.full({shape}, {value}, dtype={dtype})",
    keras="ops.full({shape}, {value}, dtype={dtype})",
    tensorflow="tf.fill({shape}, tf.constant({value}, {dtype}))",
    jax="jnp.full({shape}, {value}, {dtype})",
)
def full(*, shape: Any, value: Any, dtype: Any = None) -> Any:
    """An array of this shape with ``value`` everywhere; a number in the Graph is ``shape=()``.

    >>> import trivium as tv
    >>> tv.full(shape=(2,), value=1.5)
    tensor([1.5, 1.5])
    """
    return np.full(shape, value, dtype.numpy)


@primitive(
    rule=lambda *, value: Type(as_dtype(value.dtype), value.shape),
    vjp=zero_gradient,
    cases=[case(value=np.array([[1.0, 2.0, 3.0]], np.float32))],
)
def constant(*, value: Any) -> Any:
    """An array of numbers that is part of the Graph."""
    return value


def _arange_normal(*, stop: Any, start: Any, step: Any, dtype: Any) -> dict[str, Any]:
    if step == 0:
        raise ShapeError("a range has to step on, got step=0")
    stop, start = parse_size(stop), parse_size(start)
    for end in (stop, start):
        if isinstance(end, int):
            holds(end, dt.int64)
    return {
        "stop": start if _count(stop, start, step) == 0 else stop,  # torch and TF refuse (0, -1)
        "start": start,
        "step": step,
        "dtype": as_dtype(dtype),
    }


def _count(stop: Any, start: Any, step: Any) -> Size:
    count: Size = -((start - stop) // step)
    return max(count, 0) if isinstance(count, int) else count


def _arange_rule(*, stop: Any, start: Any, step: Any, dtype: DType) -> Type:
    shape = (_count(stop, start, step),)
    possible(shape, dt.int64.itemsize)  # it is counted in integers first
    return Type(dtype, shape)


@primitive(
    rule=_arange_rule,
    normal=_arange_normal,
    vjp=zero_gradient,
    cases=[case(stop=5), case(stop=11, start=2, step=3, dtype=dt.float32)],
    torch="torch.arange({start}, {stop}, {step}, dtype={dtype})",
    keras="ops.arange({start}, {stop}, {step}, dtype={dtype})",
    tensorflow="tf.range({start}, {stop}, {step}, dtype={dtype})",
    mxnet="F.arange({start}, {stop}, step={step|1}, dtype={dtype})",
    jax="jnp.arange({start}, {stop}, {step}, dtype={dtype})",
)
def arange(*, stop: Any, start: Any = 0, step: int = 1, dtype: Any = dt.int64) -> Any:
    """``start, start + step, ...`` before ``stop``; sizes may be Dims."""
    return np.arange(start, stop, step).astype(dtype.numpy)


@composite(
    cases=[case(S(2, 3)), case(S(2, dtype="int64", low=0, high=5))],
    keras="ops.zeros_like({x})",
)
def zeros_like(x: Any) -> Any:
    """Zeros in the shape and dtype of ``x``."""
    return full(shape=x.shape, value=0, dtype=x.dtype)


@composite(cases=[case(S(2, 3))], keras="ops.ones_like({x})")
def ones_like(x: Any) -> Any:
    """Ones in the shape and dtype of ``x``."""
    return full(shape=x.shape, value=1, dtype=x.dtype)
