"""Where no gradient comes back, and how MXNet's source says it.

Called imperatively, MXNet 1.9.1 dies of a segmentation fault where two operators in a row get a
gradient that is zero by form: ``F.BlockGrad(F.relu(x))`` in front of a trained layer is enough, and
so is ``F.relu(x) > 0``, where nothing else reads what is inside. There the array is taken out of
what autograd has recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.frameworks.writing.code import Code
from trivium.graph import OPS, Graph, Node, Value
from trivium.transforms.replay import replay

_FLAT = frozenset({"stop_gradient", "sign", "zeros_like", "ones_like"})
"""Ops on floats that give no gradient back."""


def passes(node: Node) -> bool:
    """Does a gradient of what it computes become one of what it reads?"""
    return node.op not in _FLAT and any(v.dtype.is_floating for v in node.outputs)


def reached(graph: Graph) -> set[Value | None]:
    """What a gradient of the outputs comes back to."""
    found: set[Value | None] = {v for v in graph.outputs if v.dtype.is_floating}
    for node in reversed(graph.nodes):
        if passes(node) and any(v in found for v in node.outputs):
            found |= {v for v in node.inputs if v is not None and v.dtype.is_floating}
    return found


def _computed(graph: Graph) -> set[Value | None]:
    """What is computed of arrays whose gradient may be asked for."""
    found: set[Value | None] = set(graph.trained())
    found |= {v for v in graph.of_kind("data") if v.dtype.is_floating}
    leaves = set(found)
    for node in graph.nodes:
        if passes(node) and any(v in found for v in node.inputs):
            found |= set(node.outputs)
    return found - leaves


def cut(graph: Graph) -> tuple[Graph, set[Node]]:
    """A stop_gradient wherever a gradient ends that only ends; all those that are written so."""
    ends = _computed(graph) - reached(graph)

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        if passes(node) or node.op == "stop_gradient" or not ends.intersection(node.inputs):
            return None
        read = [
            OPS["stop_gradient"](v) if old in ends else v
            for old, v in zip(node.inputs, values, strict=True)
        ]
        outputs: Sequence[Value] = OPS[node.op].append(new, read, node.attrs, node.origin)
        for old, fresh in zip(node.outputs, outputs, strict=True):
            fresh.name = old.name
        return outputs

    others = [n for n in graph.nodes if not passes(n) and n.op != "stop_gradient"]
    if any(ends.intersection(n.inputs) for n in others):
        graph, _ = replay(graph, rule)
        ends = _computed(graph) - reached(graph)
    stops = (n for n in graph.nodes if n.op == "stop_gradient")
    return graph, {n for n in stops if n.inputs[0] in ends}


def stopped(target: Any, node: Node) -> Code:
    """``F.BlockGrad(x)``, or ``detached(F, x)`` where MXNet would not survive it."""
    name = "detached(F, " if node in target.cut else "F.BlockGrad("
    return [name, *target.array(node.inputs[0]), ")"]


DETACHED = '''
def detached(F, x):
    """F.BlockGrad, but an array is detached: the way back through what only a BlockGrad reads is a
    segmentation fault in MXNet 1.9.1. Trainer.step wants ignore_stale_grad=True then.
    """
    return x.detach() if F is mx.nd else F.BlockGrad(x)
'''
