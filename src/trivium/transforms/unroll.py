"""Loops whose number of steps is known, written out step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.graph import OPS, Graph, Node, Value
from trivium.transforms.replay import inline, replay

UNROLLED = 128
"""A scan of at most so many steps is written out."""


def unrolls(node: Node) -> bool:
    """Is it a loop that is written out?"""
    if node.op != "scan":
        return False
    along = node.inputs[node.attrs["carries"]]
    assert along is not None
    return isinstance(along.shape[0], int) and 0 < along.shape[0] <= UNROLLED


def unrolled(graph: Graph) -> Graph:
    """The same Graph, its short loops written out; those inside them are still loops."""
    return replay(graph, _unroll)[0]


def _unroll(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
    if not unrolls(node):
        return None
    a, body = node.attrs, node.attrs["body"]
    carries, scanned = a["carries"], a["scanned"]
    carry: list[Any] = values[:carries]
    along: list[Any] = values[carries : carries + scanned]
    same: list[Any] = values[carries + scanned :]
    length = along[0].shape[0]
    ys: list[list[Any]] = [[None] * length for _ in body.outputs[carries:]]
    for t in reversed(range(length)) if a["reverse"] else range(length):
        now = [OPS["select"](x, axis=0, index=t) for x in along]
        out = inline(body, new, [*carry, *now, *same])
        carry = out[:carries]
        for column, y in zip(ys, out[carries:], strict=True):
            column[t] = y
    return [*carry, *(OPS["stack"](*column, axis=0) for column in ys)]
