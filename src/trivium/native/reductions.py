"""Reductions and products at one place: their body, and the variables it is reduced over.

A matrix product, a convolution and its two gradients are all sums of products; ``contract.py``
makes tiles of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from trivium.graph import Graph, Node, Value
from trivium.native.expr import Condition, Expr, Exprs
from trivium.native.index import Index, Var
from trivium.native.meaning import (
    PRODUCTS,
    SPREAD,
    At,
    Read,
    broadcast,
    first,
    guarded,
    is_elementwise,
    is_fold,
    is_view,
    op_of,
    product,
    reduced_axes,
    spatial,
    unreduced,
)
from trivium.traits import MOVEMENT

SMALL = 9  # a reduction over so few is written out where it is read


# -- reductions ------------------------------------------------------------------------------------
def short(graph: Graph) -> set[Node]:
    """Reductions within the few elements of a window: written out where they are read."""
    of_windows: set[Value | None] = set()
    found = set()
    for node in graph.nodes:
        op = op_of(node)
        opens = op.family == MOVEMENT and bool(op.images)
        stays = is_elementwise(node) or is_view(node) or bool(op.bounds or op.gives)
        if opens or (stays and any(v in of_windows for v in node.inputs)):
            of_windows |= set(node.outputs)
        if is_fold(node) and first(node) in of_windows:
            count = 1
            for a in reduced_axes(node):
                count *= first(node).shape[a]  # type: ignore[assignment]
            if count <= SMALL:
                found.add(node)
            else:
                of_windows -= set(node.outputs)
    return found


def reduction(make: Exprs, node: Node, at: At, read: Read) -> tuple[str, list[Var], Expr]:
    """(kind, reduced variables, body) of a reduction or a product at a place."""
    if is_fold(node):
        x = first(node)
        over = [Var(f"r{i}", x.shape[a]) for i, a in enumerate(reduced_axes(node))]
        body = read(x, unreduced(node, at, [Index.of(v) for v in over]))
        return node.op, over, body
    over, body = PRODUCTS[node.op](make, node, at, read)
    return "sum", over, body


def _times(make: Exprs, x: Expr, y: Expr) -> Expr:
    return make.apply("multiply", x.dtype, [x, y])


@product("matmul")
def _matmul(make: Exprs, node: Node, at: At, read: Read) -> tuple[list[Var], Expr]:
    x, y = node.inputs[0], node.inputs[1]
    assert x is not None and y is not None
    k = Var("k", x.shape[-1])
    rest = list(at)
    column = [rest.pop()] if len(y.shape) > 1 else []
    row = [rest.pop()] if len(x.shape) > 1 else []
    a = (*broadcast(tuple(rest), x.shape[:-2]), *row, Index.of(k))
    b = (*broadcast(tuple(rest), y.shape[:-2]), Index.of(k), *column)
    return [k], _times(make, read(x, a), read(y, b))


def _image(layout: str, n: Index, c: Index, places: Sequence[Index]) -> At:
    it = iter(places)
    return tuple({"N": n, "C": c}.get(a) or next(it) for a in layout)


@product("conv")
def _conv(make: Exprs, node: Node, at: At, read: Read) -> tuple[list[Var], Expr]:
    x, w, a = node.inputs[0], node.inputs[1], node.attrs
    assert x is not None and w is not None
    layout, axes = a["layout"], spatial(a["layout"])
    n, o = at[layout.index("N")], at[layout.index("C")]
    taps = [Var(f"k{'dhw'[-len(axes) :][i]}", s) for i, s in enumerate(w.shape[2:])]
    c = Var("c", w.shape[1])
    group = o // (w.shape[0] // a["groups"])
    places: list[Index] = []
    conditions: list[Condition] = []
    for i, axis in enumerate(axes):
        p = at[axis] * a["stride"][i] + Index.of(taps[i]) * a["dilation"][i] - a["padding"][i][0]
        conditions.append((p, 0, x.shape[axis]))
        places.append(p)
    image = read(x, _image(layout, n, group * w.shape[1] + c, places))
    image = guarded(make, conditions, image, make.const(0, x.dtype))
    kernel = read(w, (o, Index.of(c), *map(Index.of, taps)))
    return [*taps, c], _times(make, image, kernel)


@product("conv_input_grad", spread=True)
def _conv_input_grad(make: Exprs, node: Node, at: At, read: Read) -> tuple[list[Var], Expr]:
    g, w, a = node.inputs[0], node.inputs[1], node.attrs
    assert g is not None and w is not None
    layout, axes = a["layout"], spatial(a["layout"])
    n, c = at[layout.index("N")], at[layout.index("C")]
    taps = [Var(f"k{'dhw'[-len(axes) :][i]}", s) for i, s in enumerate(w.shape[2:])]
    each = w.shape[0] // a["groups"]
    o = Var("o", each)
    group = c // w.shape[1]
    places: list[Index] = []
    reached: list[Index] = []
    conditions: list[Condition] = []
    for i, axis in enumerate(axes):
        p = at[axis] + a["padding"][i][0]
        first, step, count = _taps(p, a["stride"][i], a["dilation"][i], w.shape[2 + i])
        taps[i].extent = count
        tap = Index.of(taps[i]) * step + first
        reached.append(tap)
        p = (p - tap * a["dilation"][i]) // a["stride"][i]
        conditions.append((p, 0, g.shape[axis]))
        places.append(p)
    image = read(g, _image(layout, n, group * each + o, places))
    image = guarded(make, conditions, image, make.const(0, g.dtype))
    kernel = read(w, (group * each + o, c % w.shape[1], *reached))
    return [*taps, o], _times(make, image, kernel)


def _taps(place: Index, stride: int, dilation: int, size: Any) -> tuple[int, int, int]:
    """(first, step, count) of the taps of a strided convolution that can have read ``place``.

    The place has to be known modulo the stride: see :func:`pieces`.
    """
    residue = (place % stride).as_int()
    assert residue is not None
    hits = [t for t in range(size) if (residue - t * dilation) % stride == 0]
    if not hits:
        return 0, 1, 0
    return hits[0], hits[1] - hits[0] if len(hits) > 1 else 1, len(hits)


def pieces(node: Node, shape: Sequence[Any]) -> list[tuple[list[Var], At]]:
    """Loops that together meet every place of ``shape`` once, and the places they stand at.

    One set of loops, but for the gradient of a strided convolution: places with other remainders
    were reached by other taps.
    """
    strides = [1] * len(shape)
    if node.op in SPREAD:
        for axis, stride in zip(spatial(node.attrs["layout"]), node.attrs["stride"], strict=True):
            strides[axis] = stride
    out = []
    for start in itertools.product(
        *[range(min(s, n)) for s, n in zip(strides, shape, strict=True)]
    ):
        loops, at = [], []
        for k, (s, n, r) in enumerate(zip(strides, shape, start, strict=True)):
            count = -(-(n - r) // s)
            if count > 1:
                loops.append(Var("ijklmnpq"[k % 8], count))
                at.append(Index.of(loops[-1]) * s + r)
            else:
                at.append(Index({}, r))
        out.append((loops, tuple(at)))
    return out


@product("conv_weight_grad")
def _conv_weight_grad(make: Exprs, node: Node, at: At, read: Read) -> tuple[list[Var], Expr]:
    x, g, a = node.inputs[0], node.inputs[1], node.attrs
    assert x is not None and g is not None
    layout, axes = a["layout"], spatial(a["layout"])
    channel = layout.index("C")
    o, c, taps = at[0], at[1], at[2:]
    n = Var("n", x.shape[layout.index("N")])
    outs = [Var(f"{'dhw'[-len(axes) :][i]}", g.shape[axis]) for i, axis in enumerate(axes)]
    group = o // (g.shape[channel] // a["groups"])
    places: list[Index] = []
    conditions: list[Condition] = []
    for i, axis in enumerate(axes):
        p = Index.of(outs[i]) * a["stride"][i] + taps[i] * a["dilation"][i] - a["padding"][i][0]
        conditions.append((p, 0, x.shape[axis]))
        places.append(p)
    width = x.shape[channel] // a["groups"]
    image = read(x, _image(layout, Index.of(n), group * width + c, places))
    image = guarded(make, conditions, image, make.const(0, x.dtype))
    grad = read(g, _image(layout, Index.of(n), o, [Index.of(v) for v in outs]))
    return [n, *outs], _times(make, image, grad)
