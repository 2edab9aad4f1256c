"""Graphs copied and pickled, as lists: followed from Value to Node, a deep one has no end to it."""

from __future__ import annotations

import copyreg
from typing import Any

from trivium.graph.core import Graph, Node, Type, Value

_PLAIN = ("name", "scope", "training", "inner", "classes", "structure", "sizes")


def flat(graph: Graph) -> tuple[Any, ...]:
    """What ``copy.deepcopy`` and ``pickle`` make a Graph of."""
    values = [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]
    at: dict[Value | None, int | None] = {None: None} | {v: k for k, v in enumerate(values)}
    nodes = [
        (n.op, [at[v] for v in n.inputs], n.attrs, n.scope, n.origin,
         [(v.dtype, v.shape, v.name) for v in n.outputs])
        for n in graph.nodes
    ]  # fmt: skip
    return rebuilt, (
        {name: getattr(graph, name) for name in _PLAIN},
        [(v.kind, v.dtype, v.shape, v.name, v.trainable) for v in graph.inputs],
        nodes,
        [at[v] for v in graph.outputs],
        [(at[k], at[v]) for k, v in graph.updates.items()],
        [(item, at[v]) for item, v in graph.captured.values() if v in at],
    )


def rebuilt(
    plain: dict[str, Any], inputs: Any, nodes: Any, outputs: Any, updates: Any, captured: Any
) -> Graph:
    """The Graph that :func:`flat` took apart."""
    graph = Graph()
    vars(graph).update(plain)
    for kind, dtype, shape, name, trainable in inputs:
        graph.input(kind, dtype, shape, name, trainable)
    values: list[Any] = list(graph.inputs)
    for op, places, attrs, scope, origin, types in nodes:
        node = Node(op, [None if k is None else values[k] for k in places], attrs)
        node.scope, node.origin = scope, origin
        node.outputs = tuple(
            Value(graph, Type(d, s), node, i, n) for i, (d, s, n) in enumerate(types)
        )
        graph.nodes.append(node)
        values += node.outputs
    graph.outputs = [values[k] for k in outputs]
    graph.updates = {values[k]: values[v] for k, v in updates}
    graph.captured = {id(item): (item, values[k]) for item, k in captured}
    return graph


copyreg.pickle(Graph, flat)
