"""Arithmetic on shapes while a model is read: Shape, Gather, Concat and so on, on known integers.

Exporters compute shapes with nodes. Here an array of known integers may hold open sizes (Dims), and
these nodes become the attributes they were meant to be.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.frameworks.onnx import from_onnx_dtype
from trivium.frameworks.onnx.read import Call
from trivium.shape import Dim, size_product

Known = np.ndarray[Any, Any]
MOST = 4096  # elements: a shape is short, and a hostile one must not take memory


def known(items: Any) -> Known:
    """An array of integers, or of objects when Dims are among them."""
    if isinstance(items, np.ndarray) and items.dtype != object:
        return items
    flat = np.asarray(items, object)
    if any(isinstance(i, Dim) for i in flat.flat):
        return flat
    return flat.astype(
        bool if all(isinstance(i, (bool, np.bool_)) for i in flat.flat) and flat.size else np.int64
    )


def fold(call: Call) -> Known | None:
    """What a node makes of known integers; None where it has others, or is another operator."""
    if call.op in ("Shape", "Size"):
        return _shape(call)
    if call.op not in FOLDS or call.node.domain or not len(call):
        return None
    kinds = "iubOf" if call.op == "Cast" else "iubO"  # no other arithmetic on floats is done here
    arrays = [call.constant(i) for i in range(len(call)) if call.has(i)]
    if any(a is None or a.dtype.kind not in kinds or a.size > MOST for a in arrays):
        return None
    result = FOLDS[call.op](call, *arrays)
    return None if result is None or result.size > MOST else known(result)


def _shape(call: Call) -> Known:
    fixed = call.constant(0)
    shape = fixed.shape if fixed is not None else call.value(0).shape
    if call.op == "Size":
        return known(np.array(size_product(shape), object))
    start, end = call.attr("start"), call.attr("end")
    part = np.empty(len(shape[slice(start, end)]), object)
    part[:] = shape[slice(start, end)]
    return known(part)


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[..., Known]:
    def apply(call: Call, *arrays: Known) -> Known:
        result = arrays[0]
        for other in arrays[1:]:
            result = np.asarray(np.frompyfunc(function, 2, 1)(result, other), object)
        return _as(result, arrays[0].dtype)

    return apply


def _as(result: Known, dtype: np.dtype[Any]) -> Known:
    """Python's integers back in the array's own type."""
    if dtype.kind == "O" or any(isinstance(i, Dim) for i in result.flat):
        return result
    return result.astype(dtype)


def _compare(function: Callable[[Any, Any], Any]) -> Callable[..., Known]:
    return lambda call, a, b: np.asarray(np.frompyfunc(function, 2, 1)(a, b), object).astype(bool)


def _divide(a: Any, b: Any) -> Any:
    """ONNX truncates, // floors: the same where nothing is negative, or nothing is left over."""
    if isinstance(a, Dim) or isinstance(b, Dim):
        terms = a.terms if isinstance(a, Dim) else (((), a),)
        if isinstance(b, int) and (b <= 0 or any(c < 0 and c % b for _, c in terms)):
            raise ValueError(f"{a} / {b} truncates, and may be negative")
        return a // b
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _mod(call: Call, a: Known, b: Known) -> Known | None:
    return None if call.attr("fmod") else _elementwise(operator.mod)(call, a, b)


def _axes(call: Call, *rest: Known) -> list[int] | None:
    said = rest[0].tolist() if rest else call.attr("axes")
    return None if said is None else [int(a) for a in said]


def _unsqueeze(call: Call, x: Known, *rest: Known) -> Known:
    return np.expand_dims(x, tuple(_axes(call, *rest) or ()))


def _squeeze(call: Call, x: Known, *rest: Known) -> Known:
    axes = _axes(call, *rest)
    return np.squeeze(x, None if axes is None else tuple(axes))


def _slice(call: Call, x: Known, *rest: Known) -> Known | None:
    if not rest:
        starts, ends, axes, steps = call.attr("starts"), call.attr("ends"), call.attr("axes"), None
    else:
        starts, ends, axes, steps = ([*map(_plain, rest), None, None])[:4]
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index: list[Any] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    part: Known = x[tuple(index)]
    return part


def _plain(x: Known) -> list[Any]:
    return x.tolist()  # type: ignore[no-any-return]


def _cast(call: Call, x: Known) -> Known | None:
    dtype = from_onnx_dtype(call.attr("to"))
    if x.dtype == object:
        return x if dtype == "int64" else None
    return x.astype(dtype.numpy)


def _where(call: Call, condition: Known, x: Known, y: Known) -> Known:
    return np.where(condition, x, y)


def _constant_of_shape(call: Call, shape: Known) -> Known | None:
    value = call.attr("value")
    if value is None or value.dtype.kind not in "iub" or shape.dtype == object or shape.size > 1:
        return None
    return None if np.prod(shape) > MOST else np.full(_plain(shape), value.reshape(-1)[0])


def _range(call: Call, start: Known, stop: Known, step: Known) -> Known | None:
    ends = [a.reshape(-1)[0] for a in (start, stop, step)]
    if any(isinstance(e, Dim) for e in ends) or abs((ends[1] - ends[0]) / ends[2]) > MOST:
        return None
    return np.arange(*ends, dtype=start.dtype)


def _expand(call: Call, x: Known, shape: Known) -> Known | None:
    if shape.dtype == object or np.prod(shape.astype(float)) > MOST:
        return None
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_plain(shape)))).copy()


def _reshape(call: Call, x: Known, shape: Known) -> Known | None:
    if shape.dtype == object or call.attr("allowzero"):
        return None
    return x.reshape([x.shape[i] if s == 0 else s for i, s in enumerate(_plain(shape))])


def _product(call: Call, x: Known, *rest: Known) -> Known | None:
    if x.ndim != 1:
        return None
    total = np.array(size_product(_plain(x)), object)
    return _as(total.reshape(1) if call.attr("keepdims") else total, x.dtype)


FOLDS: dict[str, Callable[..., Known | None]] = {
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _elementwise(_divide),
    "Mod": _mod,
    "Max": _elementwise(max),
    "Min": _elementwise(min),
    "Equal": _compare(operator.eq),
    "Less": _compare(operator.lt),
    "Greater": _compare(operator.gt),
    "Neg": lambda call, x: np.asarray(-x),
    "LessOrEqual": _compare(operator.le),
    "GreaterOrEqual": _compare(operator.ge),
    "And": _compare(lambda a, b: bool(a) and bool(b)),
    "Or": _compare(lambda a, b: bool(a) or bool(b)),
    "Not": lambda call, x: ~x.astype(bool),
    "Where": _where,
    "Cast": _cast,
    "Concat": lambda call, *xs: np.concatenate(xs, call.attr("axis")),
    "Gather": lambda call, x, at: np.asarray(np.take(x, at.astype(np.int64), call.attr("axis"))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Reshape": _reshape,
    "Expand": _expand,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "ReduceProd": _product,
}
