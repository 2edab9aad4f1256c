"""What each op means at one place: an expression of its inputs at other places.

The native counterpart of an op's NumPy body. What works on each place is the engine's instruction
of that name; views only change the place; a padding puts a condition around it. (``reductions.py``
has what is summed.) An op that is no instruction, has no entry here and says of itself nothing in
other ops (``native``) runs as a NumPy kernel inside the compiled step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.graph import OPS, Node, Type, Value
from trivium.native.expr import FOLDS, Condition, Const, Expr, Exprs, Load
from trivium.native.express import FUNCTIONS, INSTRUCTIONS, INTEGER
from trivium.native.index import ZERO, Index, Var
from trivium.op import Op
from trivium.traits import REDUCTION

At = tuple[Index, ...]
Read = Callable[[Value, At], Expr]  # an input of the node, at a place

TYPES = {dt.float32, dt.float64, dt.bool_, dt.int8, dt.int16, dt.int32, dt.int64,
         dt.uint8, dt.uint16, dt.uint32, dt.uint64}  # fmt: skip

Meaning = Callable[[Exprs, Node, At, Read], Expr]
Product = Callable[[Exprs, Node, At, Read], tuple[list[Var], Expr]]
"""What a sum of products multiplies at a place, and the variables it is summed over."""

_MEANINGS: dict[str, Meaning] = {}
PRODUCTS: dict[str, Product] = {}
SPREAD: set[str] = set()
"""Products of which a stride lies between places of the result, not of the image that is read."""
GATHERED: dict[str, tuple[int, ...]] = {}
"""Inputs that an op reads at places which are numbers themselves: they have to be in memory."""
JOINED: dict[str, Callable[[Node], list[tuple[Value, At]]]] = {}
"""Of ops that are stored piece by piece: each input, and where its first element goes."""


def meaning(*names: str, gathers: tuple[int, ...] = ()) -> Callable[[Meaning], Meaning]:
    """Register what ops mean at a place."""

    def add(function: Meaning) -> Meaning:
        _MEANINGS.update(dict.fromkeys(names, function))
        if gathers:
            GATHERED.update(dict.fromkeys(names, gathers))
        return function

    return add


def product(name: str, spread: bool = False) -> Callable[[Product], Product]:
    """Register what an op sums products of."""

    def add(function: Product) -> Product:
        PRODUCTS[name] = function
        SPREAD.update([name] if spread else ())
        return function

    return add


def op_of(node: Node) -> Op:
    """The declaration of the node's op."""
    op: Op = OPS[node.op]
    return op


def types_of(node: Node) -> list[Type | None]:
    """The types of a node's inputs."""
    return [None if v is None else v.type for v in node.inputs]


def is_elementwise(node: Node) -> bool:
    """Does it work on each place by itself?"""
    return op_of(node).elementwise(types_of(node), node.attrs)


def is_fold(node: Node) -> bool:
    """Is it a reduction that the engine has loops for?"""
    return op_of(node).family == REDUCTION and node.op in FOLDS


def is_product(node: Node) -> bool:
    """Is it a sum of products that the engine has loops for?"""
    return node.op in PRODUCTS


def is_view(node: Node) -> bool:
    """Is each of its elements one of its input's, for nothing?"""
    return len(node.inputs) == 1 and not op_of(node).cost


def is_image(node: Node) -> bool:
    """Is it a product of images whose channels are first?"""
    return is_product(node) and node.attrs.get("layout", "")[1:2] == "C"


def gives(node: Node | None) -> tuple[int, int] | None:
    """Between which integers its numbers are, if its op says so: the first, one after the last."""
    if node is None or (said := op_of(node).gives) is None:
        return None
    return said(*types_of(node), **node.attrs)


def _is_instruction(node: Node) -> bool:
    real = node.op not in FUNCTIONS - INTEGER or node.out.dtype.is_floating
    return node.op in INSTRUCTIONS and real and is_elementwise(node)


def is_native(node: Node) -> bool:
    """Can this node be written as loops?"""
    types = [v.dtype for v in (*node.inputs, *node.outputs) if v is not None]
    if any(t not in TYPES for t in types):
        return False
    known = node.op in _MEANINGS or is_fold(node) or is_product(node) or _is_instruction(node)
    return known and all(v is None or 0 not in v.shape for v in (*node.inputs, *node.outputs))


def expand(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    """The node's output at a place."""
    return _MEANINGS.get(node.op, _written_out if is_fold(node) else _each)(make, node, at, read)


def broadcast(at: At, shape: Sequence[Any]) -> At:
    """Where an array of this shape is read, when the result is wanted at ``at``."""
    late = at[len(at) - len(shape) :]
    return tuple(ZERO if s == 1 else i for i, s in zip(late, shape, strict=True))


def _each(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    args = [read(v, broadcast(at, v.shape)) for v in node.inputs if v is not None]
    return arithmetic(make, node.op, node.out.dtype, args)


def arithmetic(make: Exprs, op: str, dtype: DType, args: Sequence[Expr]) -> Expr:
    """An elementwise op on expressions, folded where all are constants."""
    numbers = [a.value for a in args if isinstance(a, Const)]
    if len(numbers) == len(args):
        values = list(map(np.asarray, numbers))
        attrs = {"dtype": dtype} if op == "cast" else {}
        with np.errstate(all="ignore"):
            return make.const(OPS[op].evaluate(values, attrs)[0], dtype)
    if op == "cast" and args[0].dtype == dtype:
        return args[0]
    zero = isinstance(args[-1], Const) and not args[-1].value
    if op == "greater" and zero and args[0].op == "cast" and args[0].args[0].dtype == dt.bool_:
        return args[0].args[0]  # a bool made a number, asked whether it is more than 0
    return make.apply(op, dtype, args)


@meaning("stop_gradient")
def _same(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    return read(first(node), at)


def first(node: Node) -> Value:
    """The node's first input."""
    v = node.inputs[0]
    assert v is not None
    return v


@meaning("constant")
def _constant(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    """One number; others are arrays in memory."""
    return make.const(node.attrs["value"].reshape(()), node.out.dtype)


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
    wide = make.iota(index, dt.int64)
    return wide if dtype == dt.int64 else make.apply("cast", dtype, [wide])


@meaning("one_hot")
def _one_hot(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    indices = first(node)
    chosen = read(indices, at[:-1])
    place = number(make, at[-1], dt.int64)
    if chosen.dtype != dt.int64:
        chosen = make.apply("cast", dt.int64, [chosen])
    hit = arithmetic(make, "equal", dt.bool_, [chosen, place])
    return arithmetic(make, "cast", node.out.dtype, [hit])


@meaning("take", gathers=(0,))
def _take(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x, indices = node.inputs[0], node.inputs[1]
    assert x is not None and indices is not None
    axis, rank = node.attrs["axis"], len(indices.shape)
    chosen = read(indices, at[axis : axis + rank])
    if chosen.dtype != dt.int64:
        chosen = make.apply("cast", dt.int64, [chosen])
    size = x.shape[axis]
    low, high = make.const(0, dt.int64), make.const(size, dt.int64)
    below = arithmetic(make, "less", dt.bool_, [chosen, low])
    wrapped = arithmetic(make, "add", dt.int64, [chosen, high])
    chosen = arithmetic(make, "where", dt.int64, [below, wrapped, chosen])
    source = read(x, (*at[:axis], ZERO, *at[axis + rank :]))
    if not isinstance(source, Load):
        raise TypeError("take reads an array in memory")
    places = tuple(None if i == axis else p for i, p in enumerate(source.at))
    return make.gather(source.buffer, places, chosen)


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
    return make.guard(tuple(real), value, other)


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


def _pieces(node: Node) -> list[tuple[Value, At]]:
    axis, start, found = node.attrs["axis"], 0, []
    for v in node.inputs:
        assert v is not None
        found.append((v, tuple(Index({}, start if i == axis else 0) for i in range(len(v.shape)))))
        start += v.shape[axis]
    return found


JOINED["concat"] = _pieces


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


# -- reductions ------------------------------------------------------------------------------------
def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes that a reduction goes over."""
    axis = node.attrs["axis"]
    return (axis,) if isinstance(axis, int) else axis


def unreduced(node: Node, at: At, over: Sequence[Index]) -> At:
    """The place in the reduction's input for a place in its output and in what is reduced."""
    axes, x = reduced_axes(node), first(node)
    if node.attrs.get("keepdims"):
        at = tuple(i for k, i in enumerate(at) if k not in axes)
    rest, inner = iter(at), iter(over)
    return tuple(next(inner) if k in axes else next(rest) for k in range(len(x.shape)))


def _written_out(make: Exprs, node: Node, at: At, read: Read) -> Expr:
    x = first(node)
    sizes = [x.shape[a] for a in reduced_axes(node)]
    items = [read(x, unreduced(node, at, [Index({}, i) for i in place]))
             for place in np.ndindex(*sizes)]  # fmt: skip
    op = FOLDS[node.op]
    if op is None:
        return _first_largest(make, items)
    out = items[0]
    for item in items[1:]:
        out = arithmetic(make, op, x.dtype, [out, item])
    return out


def _first_largest(make: Exprs, items: Sequence[Expr]) -> Expr:
    best = items[0]
    place: Expr = make.const(0, dt.int64)
    for k, item in enumerate(items[1:], 1):
        better = make.apply("beats", dt.bool_, [item, best])
        best = arithmetic(make, "where", best.dtype, [better, item, best])
        place = arithmetic(make, "where", dt.int64, [better, make.const(k, dt.int64), place])
    return place


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
