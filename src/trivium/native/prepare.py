"""A Graph made ready for the native engine: sizes known, composites written out, loops unrolled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trivium.graph import OPS, Graph, Node, Value
from trivium.native.expr import FOLDS
from trivium.native.meaning import is_fold, is_image
from trivium.op import Op
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import prune, replay
from trivium.transforms.unroll import unrolled, unrolls


def prepared(graph: Graph, held: bool = True) -> Graph:
    """``graph`` (without open sizes) in the ops that ``meaning`` knows.

    Not ``held``: its results go to arrays of the caller.
    """
    graph = _written(graph)
    while any(map(unrolls, graph.nodes)):
        graph = _written(unrolled(graph))
    return prune(_share(_channels_last(replay(graph, _simpler)[0], held)))


def _written(graph: Graph) -> Graph:
    """Composites as their bodies, primitives as what they are in ops that are instructions."""

    def body(op: Op) -> Callable[..., Any] | None:
        return op.function if op.is_composite else op.native

    return decompose(graph, lambda node: False, body)


def _simpler(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
    """Is relu's input positive? ask its output instead.

    What is reduced over one element is that element, and the place of the largest is the first.
    """
    op = OPS[node.op]
    if is_fold(node) and values[0] is not None:
        x, out = values[0], node.out
        if x.size == out.size:
            if FOLDS[node.op] is None:
                return [OPS["full"](shape=out.shape, value=0, dtype=out.dtype)]
            return [OPS["reshape"](x, shape=out.shape)]
    if node.op == "greater" and _is_zero(values[1]) and values[0] is not None:
        x = values[0]
        for other in new.nodes:  # exact: relu(x) > 0 where x > 0, nan included
            if other.op == "relu" and other.inputs[0] is x:
                (y,) = op.append(new, [other.out, values[1]], node.attrs, node.origin)
                return [y]
    return None


def is_relaid(node: Node) -> bool:
    """A copy whose only purpose is that its axes lie otherwise."""
    return bool(node.origin == "layout")


def _relaid(v: Value) -> Value:
    made: Sequence[Value] = OPS["stop_gradient"].append(v.graph, [v], {}, "layout")
    return made[0]


def _channels_last(graph: Graph, held: bool) -> Graph:
    """Images that come or go channels first are copied at the door: inside, channels are last."""
    entered: dict[Value, Value] = {}
    ranks: set[int] = set()

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        if not is_image(node):
            return None
        ranks.add(len(node.attrs["layout"]))
        op = OPS[node.op]
        for k, (v, name) in enumerate(zip(values, op.names(values), strict=True)):
            if v is not None and name in op.images and v.kind == "data" and v.shape[1] != 1:
                if v not in entered:
                    entered[v] = _relaid(v)
                values[k] = entered[v]
        return op.append(new, values, node.attrs, node.origin)  # type: ignore[no-any-return]

    graph, _ = replay(graph, rule)
    if not held:
        graph.outputs = [
            _relaid(v)
            if v.node is not None and (len(v.shape) in ranks or OPS[v.node.op].makes_kernel)
            else v
            for v in graph.outputs
        ]
    return graph


def _is_zero(v: Value | None) -> bool:
    return (
        v is not None and v.node is not None and v.node.op == "full" and not v.node.attrs["value"]
    )


def _share(graph: Graph) -> Graph:
    """Nodes that compute the same once."""
    seen: dict[Any, tuple[Value, ...]] = {}
    env: dict[Value | None, Value | None] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node.inputs = tuple(env.get(v, v) for v in node.inputs)
        attrs = tuple(
            sorted((k, id(a) if _by_identity(a) else repr(a)) for k, a in node.attrs.items())
        )
        key = (node.op, tuple(map(id, node.inputs)), attrs)
        if key in seen:
            env |= zip(node.outputs, seen[key], strict=True)
        else:
            seen[key] = node.outputs
            kept.append(node)
    graph.nodes = kept
    graph.outputs = [env.get(v, v) for v in graph.outputs]  # type: ignore[misc]
    graph.updates = {k: env.get(v, v) for k, v in graph.updates.items()}  # type: ignore[misc]
    return graph


def _by_identity(a: Any) -> bool:
    return isinstance(a, Graph) or hasattr(a, "__array_interface__")
