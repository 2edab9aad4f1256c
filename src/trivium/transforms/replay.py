"""Rebuilding a Graph node by node, changing some on the way: what every transform is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.graph import MODE, OPS, Graph, Node, Value
from trivium.shape import Dim, Size, subs

Rule = Callable[[Graph, Node, list[Value | None]], Sequence[Value] | None]


def replay(
    graph: Graph,
    rule: Rule | None = None,
    *,
    into: Graph | None = None,
    inputs: Mapping[Value, Value] | None = None,
    attr: Callable[[Any], Any] | None = None,
    dtype: Callable[[DType], DType] = lambda d: d,
    size: Callable[[Size], Size] = lambda s: s,
) -> tuple[Graph, dict[Value | None, Value | None]]:
    """A copy of ``graph``, and which new Value stands for which old one.

    ``rule(new, node, values)`` may make a node's outputs itself; None leaves it as it is.
    ``inputs`` says what stands for the inputs when the copy goes ``into`` an existing graph.
    """
    new = Graph(graph.name) if into is None else into
    env: dict[Value | None, Value | None] = {None: None}
    for v in graph.inputs:
        if inputs is not None and v in inputs:
            env[v] = inputs[v]
        else:
            shape = tuple(size(s) for s in v.shape)
            env[v] = new.input(v.kind or "data", dtype(v.dtype), shape, v.name, v.trainable)
    with new:
        for node in graph.nodes:
            values = [env[v] for v in node.inputs]
            outputs: Sequence[Value] | None = None
            with new.within(node.scope if into is None else _join(new.scope, node.scope)):
                if rule is not None:
                    outputs = rule(new, node, values)
                if outputs is None:
                    attrs = {k: attr(a) if attr else a for k, a in node.attrs.items()}
                    outputs = OPS[node.op].append(new, values, attrs, node.origin)
                    for old, fresh in zip(node.outputs, outputs, strict=True):
                        fresh.name = old.name
            env |= zip(node.outputs, outputs, strict=True)
    if into is None:
        new.outputs = [env[v] for v in graph.outputs]  # type: ignore[misc]
        new.updates = {env[k]: env[v] for k, v in graph.updates.items()}  # type: ignore[misc]
        new.structure, new.classes, new.sizes = graph.structure, graph.classes, graph.sizes
    return new, env


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner else outer or inner


def specialize(
    graph: Graph,
    dims: Mapping[str, int] | None = None,
    training: bool | None = None,
    floating: DType | None = None,
) -> Graph:
    """The same Graph with sizes, mode or floating dtype decided."""
    env: dict[str, Size] = dict(dims or {})

    def kind(d: DType) -> DType:
        return floating if floating is not None and d.is_floating else d

    def attr(item: Any) -> Any:
        if isinstance(item, Dim):
            return subs(item, env)
        if isinstance(item, DType):
            return kind(item)
        if isinstance(item, tuple):
            return tuple(map(attr, item))
        if item is MODE and training is not None:
            return training
        if isinstance(item, Graph):
            return specialize(item, dims, training, floating)
        if isinstance(item, np.ndarray) and floating is not None:
            return item.astype(kind(dt.as_dtype(item.dtype)).numpy)
        return item

    new, _ = replay(graph, attr=attr, dtype=kind, size=lambda s: subs(s, env))
    return new


def freeze(graph: Graph, names: Collection[str]) -> Graph:
    """The same Graph in which the parameters of these names are frozen, and no others."""
    new, _ = replay(graph)
    for v in new.of_kind("param"):
        v.trainable = v.name not in names
    return new


def inline(graph: Graph, into: Graph, values: Sequence[Value]) -> list[Value]:
    """``graph`` applied to ``values`` inside another graph; its outputs there."""
    _, env = replay(graph, into=into, inputs=dict(zip(graph.inputs, values, strict=True)))
    return [env[v] for v in graph.outputs]  # type: ignore[misc]


def prune(graph: Graph) -> Graph:
    """Drop, in place, the nodes that no result needs."""
    needed = set(graph.results())
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(v in needed for v in node.outputs):
            kept.append(node)
            needed |= {v for v in node.inputs if v is not None}
    graph.nodes = kept[::-1]
    return graph
