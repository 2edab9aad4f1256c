"""Where two models, or a model and our reading of it, first part: a node, with its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import Graph, Node
from trivium.proof.witness import GraphRunner, Side, error, magnitude
from trivium.transforms.replay import replay

NEAR = 1e-4
"""Relative distance below which two intermediate results are taken for the same."""


def first_difference(
    a: Side, b: Side | None, inputs: Sequence[Any], training: bool, misread: Sequence[str]
) -> str | None:
    """The first place where they differ, in words; None where no node shows it."""
    try:
        for side in (a, b):
            if side is not None and side.name in misread:
                return where_misread(side, inputs, training)
        if b is None:
            return None
        if b.graph is a.graph and b.rebuild is not None:
            return _in_the_same_graph(a, b, inputs, training)
        return _between(a, b, inputs, training)
    except Exception:  # it is a help, never a reason to lose the report
        return None


def _in_the_same_graph(a: Side, b: Side, inputs: Sequence[Any], training: bool) -> str | None:
    """The first node that the target, built again with every node as an output, computes wrong."""
    assert b.rebuild is not None
    copy, nodes = with_every_output(a.graph)
    exact = GraphRunner(copy, a.values, dt.float64).outputs(inputs, training)
    runner = b.rebuild(copy)
    runner.load({n: v for n, v in (dict(b.values) | b.runner.values()).items()})
    for node, want, got in zip(nodes, exact, runner.outputs(inputs, training), strict=True):
        if error(got, want, 0.0) > NEAR:
            return place(node)
    return None


def _between(a: Side, b: Side, inputs: Sequence[Any], training: bool) -> str | None:
    """The first node of ``a`` whose numbers, in any order of axes, no node of ``b`` has."""
    theirs = [v for _, v in _values(b, inputs, training)]
    for node, value in _values(a, inputs, training):
        if not any(_alike(value, t, 1e-7) for t in theirs):
            return place(node)
    return None


def where_misread(side: Side, inputs: Sequence[Any], training: bool) -> str | None:
    """At which operation of the real model our reading parts from it.

    The framework tells its own intermediate results in the order they were computed. Ours that it
    has too, in any order of axes, are right, and so is what leads to one of them (a framework may
    do two of our nodes in one); the first of the others was misread.
    """
    tell = getattr(side.runner, "intermediates", None)
    if tell is None:
        return None
    real: list[tuple[str, Any]] = tell(inputs, training)
    ours = _values(side, inputs, training)
    met: dict[int, int] = {}  # our node -> the last real result that is the same
    for i, (_, array) in enumerate(real):
        met |= {j: i for j, (_, v) in enumerate(ours) if _alike(v, array, 1e-3)}
    right = _leading_to({ours[j][0] for j in met}, side.graph)
    wrong = next((j for j, (n, _) in enumerate(ours) if n not in right), None)
    last = max((i for j, i in met.items() if wrong is None or j < wrong), default=-1)
    there = real[last + 1][0] if last + 1 < len(real) else None
    words = [there, None if wrong is None else place(ours[wrong][0])]
    return " read as ".join(w for w in words if w) or None


def _leading_to(nodes: set[Node], graph: Graph) -> set[Node]:
    """These nodes and all that one of them needs."""
    found = set(nodes)
    wanted = {v for n in nodes for v in n.inputs}
    for node in reversed(graph.nodes):
        if any(v in wanted for v in node.outputs):
            found.add(node)
            wanted |= set(node.inputs)
    return found


def place(node: Node) -> str:
    """ "relu in layer1.0"."""
    return f"{node.op} in {node.scope or 'the top scope'}"


def _values(side: Side, inputs: Sequence[Any], training: bool) -> list[tuple[Node, Any]]:
    copy, nodes = with_every_output(side.graph)
    values = dict(side.values) | side.runner.values()
    found = GraphRunner(copy, values, dt.float64).outputs(inputs, training)
    return list(zip(nodes, found, strict=True))


def with_every_output(graph: Graph) -> tuple[Graph, list[Node]]:
    """A copy whose outputs are the first output of every node, and those nodes."""
    copy, env = replay(graph)
    nodes = [n for n in graph.nodes if n.outputs[0].dtype.is_floating and n.op != "full"]
    copy.outputs = [env[n.outputs[0]] for n in nodes]  # type: ignore[misc]
    return copy, nodes


def _alike(a: Any, b: Any, near: float) -> bool:
    if np.size(a) != np.size(b):
        return False
    a, b = (np.sort(np.asarray(x, np.float64), axis=None) for x in (a, b))
    sizes = np.abs(a[np.isfinite(a) & (a != 0)])
    usual = 100 * float(np.median(sizes)) if sizes.size else 0.0  # a mask's -1e9 hides the rest
    scale = min(magnitude([a]), usual)
    return bool(np.allclose(a, b, rtol=near, atol=near * scale, equal_nan=True))
