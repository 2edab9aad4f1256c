"""Which sizes of its inputs a Graph was made for, where nothing in it would complain of others.

``x.sum(1) / 5.0`` computes a number for every length of ``x`` and means it for one. An axis is of
this kind when the Graph's own type rules accept another size there: then no weight fixes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from trivium.graph import OPS, Graph, Type, Value
from trivium.shape import Dim, ShapeError, Size

OTHER = Dim("another_size")


def silent_axes(graph: Graph) -> list[tuple[Value, int]]:
    """The axes of data inputs at which a foreign size would give numbers without a word.

    An axis with a fixed size is one, and an axis that shares its open size with an earlier one,
    where the Graph computes with that size.
    """
    computed = {name for node in graph.nodes for item in node.attrs.values() for name in _in(item)}
    found, known = [], set[str]()
    for value in graph.of_kind("data"):
        for axis, size in enumerate(value.shape):
            names = size.names() if isinstance(size, Dim) else set()
            told = names <= known and (not names or bool(names & computed))
            if told and any(_accepts(graph, value, axis, s) for s in _foreign(graph, size)):
                found.append((value, axis))
            known |= names
    return found


def _in(item: object) -> Iterator[str]:
    """The names of open sizes in an attribute."""
    if isinstance(item, Dim):
        yield from item.names()
    elif isinstance(item, tuple):
        for part in item:
            yield from _in(part)


def _foreign(graph: Graph, size: Size) -> Iterator[Size]:
    """Sizes to try: any other, one, which broadcasts, and for one what it is broadcast to."""
    yield OTHER
    if size != 1:
        yield 1
        return
    sizes = {s for v in graph.inputs for s in v.shape} | {
        s for n in graph.nodes for v in n.outputs for s in v.shape
    }
    yield from sorted(s for s in sizes if isinstance(s, int) and s > 1)


def _accepts(graph: Graph, changed: Value, axis: int, size: Size) -> bool:
    """Do the type rules of all ops still fit when one axis of an input has another size?

    Where an op has sizes among its attributes (a reshape), it is taken to accept it: they may be
    written as ``-1``.
    """
    types: dict[Value | None, Type] = {}
    shape = (*changed.shape[:axis], size, *changed.shape[axis + 1 :])
    types[changed] = Type(changed.dtype, shape)
    for node in graph.nodes:
        if not any(v in types for v in node.inputs):
            continue
        given = [None if v is None else types.get(v, v.type) for v in node.inputs]
        try:
            inferred = zip(node.outputs, OPS[node.op].infer(given, node.attrs), strict=True)
            types |= {v: t for v, t in inferred if v.type != t}
        except (ShapeError, TypeError, ValueError, LookupError):
            return "shape" in node.attrs or any(isinstance(a, Graph) for a in node.attrs.values())
    return True
