"""Arithmetic on sizes while a function is read: Shape, Pack, StridedSlice on known integers.

An array of known integers may hold open sizes (Dims); these operators become the attributes that
they were meant to be.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.graph import Value
from trivium.shape import Dim, size_product

MOST = 4096  # elements: a shape is short, and a hostile one must not take memory


@dataclass(frozen=True, eq=False)
class Held:
    """A variable, as an operand of what reads and assigns it."""

    value: Value
    variable: Any


def fold(name: str, given: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """What an operator makes of known integers; None where it has others, or is another one."""
    if name == "Const":
        from tensorflow import make_ndarray

        array = np.asarray(make_ndarray(attrs["value"]))
        return array.astype("S") if array.dtype == object else array
    if name == "Shape" and not isinstance(given[0], Held):
        return known([*given[0].shape])
    few = all(isinstance(g, np.ndarray) and g.dtype.kind in "iubO" and g.size <= MOST
              for g in given)  # fmt: skip
    if name not in _FOLDS or not few:
        return None
    found = _FOLDS[name](*given, **attrs)
    return None if found is None else known(found)


def known(items: Any) -> Any:
    """An array of integers, or of objects where Dims are among them."""
    array = np.asarray(items)
    if array.dtype != object:
        return array
    return array if any(isinstance(i, Dim) for i in array.flat) else array.astype(np.int64)


def index(rank: int, begin: Any, end: Any, strides: Any, begin_mask: int = 0, end_mask: int = 0,
          ellipsis_mask: int = 0, new_axis_mask: int = 0,
          shrink_axis_mask: int = 0) -> list[Any]:  # fmt: skip
    """What a StridedSlice takes, as Python writes it between brackets: slices, places, None."""
    parts: list[Any] = []
    places = range(len(begin))
    for i in places:
        bit = 1 << i
        if ellipsis_mask & bit:
            own = sum(not (new_axis_mask | ellipsis_mask) >> j & 1 for j in places)
            parts += [slice(None)] * (rank - own)
        elif new_axis_mask & bit:
            parts.append(None)
        elif shrink_axis_mask & bit:
            parts.append(begin[i])
        else:
            ends = None if begin_mask & bit else begin[i], None if end_mask & bit else end[i]
            parts.append(slice(*ends, strides[i]))
    return parts


def _sliced(x: Any, begin: Any, end: Any, strides: Any, **masks: Any) -> Any:
    return x[tuple(index(x.ndim, begin.tolist(), end.tolist(), strides.tolist(), **masks))]


def _cast(x: Any, DstT: str, **_: Any) -> Any:
    if x.dtype == object:
        return x if "int" in DstT else None
    return x.astype(DstT)


def _range(*ends: Any) -> Any:
    return None if any(e.dtype == object for e in ends) else np.arange(*ends)


def _product(x: Any, axes: Any, keep_dims: bool) -> Any:
    if x.ndim != 1 or not np.size(axes):
        return None
    total = np.asarray(size_product(x.tolist()))
    return total.reshape(1) if keep_dims else total


_FOLDS: dict[str, Callable[..., Any]] = {
    "AddV2": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod,
    "Neg": operator.neg,
    "Cast": _cast,
    "Pack": lambda *xs, axis: np.stack(xs, axis),
    "ConcatV2": lambda *xs: np.concatenate(xs[:-1], int(xs[-1])),
    "GatherV2": lambda x, at, axis, batch_dims: np.take(x, at, int(axis)),
    "StridedSlice": _sliced,
    "Range": _range,
    "Prod": _product,
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
    "Squeeze": lambda x, squeeze_dims: np.squeeze(x, squeeze_dims or None),
    "Reshape": lambda x, shape: x.reshape(shape.tolist()),
}
