"""Ops replaced by what they are in other ops: composites by their bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trivium.graph import OPS, Graph, Node, Value
from trivium.op import Op
from trivium.transforms.replay import replay

Written = Callable[[Op], Callable[..., Any] | None]


def _body(op: Op) -> Callable[..., Any] | None:
    return op.function if op.is_composite else None


def decompose(graph: Graph, keep: Callable[[Node], bool], written: Written = _body) -> Graph:
    """``graph`` with every op that ``keep`` does not keep written out in others, repeatedly.

    ``written`` gives what an op is in others: a composite's body; None where it stays.
    """

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        op = OPS[node.op]
        if any(isinstance(a, Graph) for a in node.attrs.values()):
            attrs = {
                k: decompose(a, keep, written) if isinstance(a, Graph) else a
                for k, a in node.attrs.items()
            }
            return op.append(new, values, attrs, node.origin)  # type: ignore[no-any-return]
        body = written(op)
        if body is None or keep(node):
            return None
        before = len(new.nodes)
        result = body(*values, **node.attrs)  # with ``new`` current, this adds its nodes
        if result is None:
            return None
        outputs = list(result) if isinstance(result, tuple) else [result]
        # What the body made may be composite too.
        fresh, new.nodes[before:] = new.nodes[before:], []
        env: dict[Value | None, Value | None] = {None: None}
        for inner in fresh:
            inputs = [env.get(v, v) for v in inner.inputs]
            made = rule(new, _with_inputs(inner, inputs), inputs)
            if made is None:
                made = OPS[inner.op].append(new, inputs, inner.attrs, inner.origin)
            env |= zip(inner.outputs, made, strict=True)
        return [env.get(v, v) for v in outputs]  # type: ignore[misc]

    new, _ = replay(graph, rule)
    return new


def _with_inputs(node: Node, inputs: Sequence[Value | None]) -> Node:
    copy = Node(node.op, inputs, node.attrs)
    copy.outputs, copy.scope, copy.origin = node.outputs, node.scope, node.origin
    return copy
