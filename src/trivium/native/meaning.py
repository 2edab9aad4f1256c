"""What each op means at one place: an expression of its inputs at other places.

The native counterpart of an op's NumPy body. Views only change the place; a padding puts a
condition around it; elementwise ops stay what they are. (``reductions.py`` has what is summed.) An
op without an entry here runs as a NumPy kernel inside the
compiled step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.graph import Node, Value
from trivium.native.index import ZERO, Index
from trivium.native.nest import Condition, Expr, Exprs
from trivium.native.vecmath import LIBRARY

At = tuple[Index, ...]
Read = Callable[[Value, At], Expr]  # an input of the node, at a place

ELEMENTWISE = {
    "add", "subtract", "multiply", "divide", "pow", "maximum", "minimum", "negative", "abs", "sign",
    "exp", "log", "log1p", "expm1", "sqrt", "tanh", "erf", "sigmoid", "relu", "where", "cast",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and",
    "logical_or", "logical_not", "floor", "ceil", "floor_divide", *LIBRARY,
}  # fmt: skip
REDUCTIONS = {"sum": "sum", "max": "max", "min": "min", "argmax": "argmax"}
PRODUCTS = {"matmul", "conv", "conv_input_grad", "conv_weight_grad"}
TYPES = {dt.float32, dt.float64, dt.bool_, dt.int8, dt.int16, dt.int32, dt.int64,
         dt.uint8, dt.uint16, dt.uint32, dt.uint64}  # fmt: skip

_MEANINGS: dict[str, Callable[[Exprs, Node, At, Read], Expr]] = {}


def meaning(*names: str) -> Callable[[Any], Any]:
    """Register what ops mean at a place."""

    def add(function: Any) -> Any:
        _MEANINGS.update(dict.fromkeys(names, function))
        return function

    return add


def is_native(node: Node) -> bool:
    """Can this node be written as loops?"""
    types = [v.dtype for v in (*node.inputs, *node.outputs) if v is not None]
    if any(t not in TYPES for t in types):
        return False
    if node.op == "pow" and not node.out.dtype.is_floating:
        return False
    known = (
        node.op == "constant"
        or node.op in _MEANINGS
        or node.op in REDUCTIONS
        or node.op in PRODUCTS
    )
    return known and all(v is None or 0 not in v.shape for v in (*node.inputs, *node.outputs))


def expand(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    """The node's output at a place."""
    return _MEANINGS[node.op](make, node, at, read)


def broadcast(at: At, shape: Sequence[Any]) -> At:
    """Where an array of this shape is read, when the result is wanted at ``at``."""
    late = at[len(at) - len(shape) :]
    return tuple(ZERO if s == 1 else i for i, s in zip(late, shape, strict=True))


@meaning(*ELEMENTWISE)
def _elementwise(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    args = [read(v, broadcast(at, v.shape)) for v in node.inputs if v is not None]
    return arithmetic(make, node.op, node.out.dtype, args)


def arithmetic(make: Exprs, op: str, dtype: DType, args: Sequence[Expr]) -> Expr:
    """An elementwise op on expressions, folded where all are constants."""
    if all(a.op == "const" for a in args):
        from trivium.graph import OPS

        values = [np.asarray(a.extra) for a in args]
        attrs = {"dtype": dtype} if op == "cast" else {}
        with np.errstate(all="ignore"):
            return make.const(OPS[op].evaluate(values, attrs)[0], dtype)
    if op == "cast" and args[0].dtype == dtype:
        return args[0]
    zero = args[-1].op == "const" and not args[-1].extra
    if op == "greater" and zero and args[0].op == "cast" and args[0].args[0].dtype == dt.bool_:
        return args[0].args[0]  # a bool made a number, asked whether it is more than 0
    return make.make(op, dtype, args)


@meaning("stop_gradient")
def _same(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    return read(first(node), at)


def first(node: Node) -> Value:
    """The node's first input."""
    v = node.inputs[0]
    assert v is not None
    return v


@meaning("full")
def _full(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    return make.const(node.attrs["value"], node.out.dtype)


@meaning("arange")
def _arange(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    place = at[0] * node.attrs["step"] + node.attrs["start"]
    return number(make, place, node.out.dtype)


def number(make: Exprs, index: Index, dtype: DType) -> Expr:
    """An Index as a number."""
    known = index.as_int()
    if known is not None:
        return make.const(known, dtype)
    wide = make.make("iota", dt.int64, (), index)
    return wide if dtype == dt.int64 else make.make("cast", dtype, [wide])


@meaning("one_hot")
def _one_hot(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    indices = first(node)
    chosen = read(indices, at[:-1])
    place = number(make, at[-1], dt.int64)
    if chosen.dtype != dt.int64:
        chosen = make.make("cast", dt.int64, [chosen])
    hit = arithmetic(make, "equal", dt.bool_, [chosen, place])
    return arithmetic(make, "cast", node.out.dtype, [hit])


@meaning("take")
def _take(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x, indices = node.inputs[0], node.inputs[1]
    assert x is not None and indices is not None
    axis, rank = node.attrs["axis"], len(indices.shape)
    chosen = read(indices, at[axis : axis + rank])
    if chosen.dtype != dt.int64:
        chosen = make.make("cast", dt.int64, [chosen])
    size = x.shape[axis]
    low, high = make.const(0, dt.int64), make.const(size, dt.int64)
    below = arithmetic(make, "less", dt.bool_, [chosen, low])
    wrapped = arithmetic(make, "add", dt.int64, [chosen, high])
    chosen = arithmetic(make, "where", dt.int64, [below, wrapped, chosen])
    source = read(x, (*at[:axis], ZERO, *at[axis + rank :]))
    if source.op != "load":
        raise TypeError("take reads an array in memory")
    buffer, place = source.extra
    places = tuple(None if i == axis else p for i, p in enumerate(place))
    return make.make("gather", x.dtype, [chosen], (buffer, places))


@meaning("transpose")
def _transpose(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    axes = node.attrs["axes"]
    return read(first(node), tuple(at[axes.index(i)] for i in range(len(axes))))


@meaning("broadcast_to")
def _broadcast_to(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x = first(node)
    return read(x, broadcast(at, x.shape))


@meaning("reshape")
def _reshape(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    return read(first(node), reshaped(at, node.out.shape, first(node).shape))


def reshaped(at: At, shape: Sequence[Any], source: Sequence[Any]) -> At:
    """Where the element ``at`` of an array of ``shape`` is when it lies in shape ``source``."""
    real = [(i, s) for i, s in zip(at, shape, strict=True) if s != 1]
    wanted = [s for s in source if s != 1]
    if [s for _, s in real] == wanted:  # only axes of size 1 come or go
        it = iter(i for i, _ in real)
        return tuple(ZERO if s == 1 else next(it) for s in source)
    flat, stride = ZERO, 1
    for i, s in zip(reversed(at), reversed(tuple(shape)), strict=True):
        flat, stride = flat + i * stride, stride * s
    out, stride = [], 1
    for k, s in enumerate(reversed(tuple(source))):
        part = flat // stride
        out.append(part if k == len(source) - 1 else part % s)
        stride *= s
    return tuple(ZERO if s == 1 else i for i, s in zip(reversed(out), source, strict=True))


@meaning("slice_axis")
def _slice_axis(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    axis, a = node.attrs["axis"], node.attrs
    place = at[axis] * a["step"] + a["start"]
    return read(first(node), (*at[:axis], place, *at[axis + 1 :]))


@meaning("flip")
def _flip(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x = first(node)
    place = (
        Index({}, x.shape[i] - 1) - p if i in node.attrs["axis"] else p for i, p in enumerate(at)
    )
    return read(x, tuple(place))


def guarded(make: Exprs, conditions: Sequence[Condition], value: Expr, other: Expr) -> Expr:
    """``value`` where all conditions hold, else ``other``; those that always hold are left out."""
    real = []
    for index, low, high in conditions:
        smallest, largest = index.bounds()
        if largest < low or smallest >= high:
            return other
        if smallest < low or largest >= high:
            real.append((index, low, high))
    if not real:
        return value
    return make.make("guard", value.dtype, [value, other], tuple(real))


@meaning("pad")
def _pad(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x, a = first(node), node.attrs
    place: list[Index] = []
    conditions: list[Condition] = []
    for p, size, low, interior in zip(at, x.shape, a["low"], a["interior"], strict=True):
        p = p - low
        if interior:
            conditions.append((p % (interior + 1), 0, 1))
            p = p // (interior + 1)
        conditions.append((p, 0, size))
        place.append(p.within(size))
    return guarded(make, conditions, read(x, tuple(place)), make.const(a["value"], x.dtype))


@meaning("concat")
def _concat(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    axis, start = node.attrs["axis"], 0
    out: Expr | None = None
    for v in node.inputs:
        assert v is not None
        p, size = at[axis] - start, v.shape[axis]
        here = read(v, (*at[:axis], p.within(size), *at[axis + 1 :]))
        other = make.const(0, v.dtype) if out is None else out
        out = guarded(make, [(p, 0, size)], here, other)
        start += size
    assert out is not None
    return out


# -- windows ---------------------------------------------------------------------------------------
def spatial(layout: str) -> list[int]:
    """The axes along which a window moves."""
    return [i for i, a in enumerate(layout) if a not in "NC"]


@meaning("windows")
def _windows(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x, a = first(node), node.attrs
    rank = len(x.shape)
    place: list[Index] = list(at[:rank])
    conditions: list[Condition] = []
    for k, axis in enumerate(spatial(a["layout"])):
        (low, _), tap = a["padding"][k], at[rank + k]
        p = at[axis] * a["stride"][k] + tap * a["dilation"][k] - low
        conditions.append((p, 0, x.shape[axis]))
        place[axis] = p.within(x.shape[axis])
    return guarded(make, conditions, read(x, tuple(place)), make.const(a["value"], x.dtype))


@meaning("fold")
def _fold(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    """Gathered, not scattered: every element asks which windows held it, in the taps' order."""
    g, a = first(node), node.attrs
    axes, d = spatial(a["layout"]), len(a["kernel"])
    zero = make.const(0, g.dtype)
    outs = [g.shape[i] for i in axes]
    # Where windows do not overlap there is one tap that can have held an element: no sum.
    windows = zip(a["stride"], a["dilation"], a["kernel"], strict=True)
    single = [s >= dil * (k - 1) + 1 and dil == 1 for s, dil, k in windows]
    choices = [[None] if one else range(k) for one, k in zip(single, a["kernel"], strict=True)]
    total: Expr | None = None
    for taps in itertools.product(*choices):
        place, conditions, tap_at = list(at), [], []
        for k, axis in enumerate(axes):
            p, stride = at[axis] + a["padding"][k][0], a["stride"][k]
            if taps[k] is None:
                tap = p % stride
                conditions.append((tap, 0, a["kernel"][k]))
                tap = tap.within(a["kernel"][k])
            else:
                tap = Index({}, taps[k])
                p = p - taps[k] * a["dilation"][k]
                if stride > 1:
                    conditions.append((p % stride, 0, 1))
            conditions.append((p // stride, 0, outs[k]))
            place[axis] = (p // stride).within(outs[k])
            tap_at.append(tap)
        term = guarded(make, conditions, read(g, (*place, *tap_at)), zero)
        total = term if total is None else arithmetic(make, "add", g.dtype, [total, term])
    assert total is not None and d == len(axes)
    return total
