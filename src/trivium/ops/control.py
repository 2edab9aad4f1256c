"""Control flow as structure: a node that holds Graphs. Nothing is unrolled or baked in by tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trivium.graph import OPS, Graph, Type, current
from trivium.op import case, lift, primitive, run
from trivium.op import S as Sample_
from trivium.ops.elementwise import multiply
from trivium.shape import ShapeError


def subgraph(function: Callable[..., Any], types: Sequence[Type], name: str) -> tuple[Graph, list[Any]]:
    """``function`` traced on inputs of these types; and what it read from outside, as more inputs."""
    graph = Graph(name)
    with graph:
        inputs = [graph.input("data", *t, name=f"{name}_{i}") for i, t in enumerate(types)]
        result = function(*inputs)
        many = isinstance(result, (tuple, list))
        graph.outputs = [lift(graph, v, None) for v in (result if many else (result,))]
    outside = [item for item, value in graph.captured.values() if value.node is None]
    return graph, outside


def _types(xs: Sequence[Any]) -> list[Type]:
    return [Type(x.dtype, x.shape) for x in xs]


# -- cond ------------------------------------------------------------------------------------------
def _cond_rule(condition: Type, *operands: Type, then: Graph, otherwise: Graph) -> list[Type]:
    for a, b in zip(then.outputs, otherwise.outputs, strict=True):
        if a.type != b.type:
            raise ShapeError(f"the two branches give {a.type} and {b.type}")
    return [v.type for v in then.outputs]


def _double_graph(scale: float) -> Graph:
    graph = Graph("branch")
    x = graph.input("data", "float32", (2, 3), "branch_0")
    graph.outputs = [multiply(x, scale)]
    return graph


@primitive(name="cond", rule=_cond_rule)
def _cond(condition: Any, *operands: Any, then: Graph, otherwise: Graph) -> Any:
    """One of two Graphs, applied to the operands."""
    return tuple(run(then if condition else otherwise, operands))


def cond(condition: Any, then: Callable[..., Any], otherwise: Callable[..., Any], *operands: Any) -> Any:
    """``then(*operands)`` where the bool scalar ``condition`` holds, else ``otherwise(*operands)``.

    Both are traced; both give results of the same types.

    >>> import trivium as tv
    >>> tv.cond(tv.asarray(True), lambda x: x * 2, lambda x: x, tv.asarray([1.0]))
    tensor([2.])
    """
    if current() is None and not hasattr(condition, "graph"):
        return then(*operands) if bool(condition) else otherwise(*operands)
    a, outside_a = subgraph(then, _types(operands), "then")
    b, outside_b = subgraph(otherwise, _types(operands), "otherwise")
    for graph, others, first in ((a, outside_b, False), (b, outside_a, True)):
        own = graph.inputs[len(operands) :]
        extra = [graph.input("data", v.dtype, v.shape, f"unused_{i}") for i, v in enumerate(others)]
        graph.inputs[len(operands) :] = [*extra, *own] if first else [*own, *extra]
    return _cond(condition, *operands, *outside_a, *outside_b, then=a, otherwise=b)


# -- scan ------------------------------------------------------------------------------------------
def _scan_rule(*xs: Type, body: Graph, carries: int, scanned: int, reverse: bool) -> list[Type]:
    for a, b in zip(body.inputs[:carries], body.outputs[:carries], strict=True):
        if a.type != b.type:
            raise ShapeError(f"a carry enters the step as {a.type} and leaves it as {b.type}")
    length = xs[carries].shape[0]
    return [v.type for v in body.outputs[:carries]] + [
        Type(v.dtype, (length, *v.shape)) for v in body.outputs[carries:]
    ]


@primitive(name="scan", rule=_scan_rule)
def _scan(*xs: Any, body: Graph, carries: int, scanned: int, reverse: bool = False) -> Any:
    """A Graph applied along the first axis: carries, then scanned arrays, then what stays the same."""
    carry, along = list(xs[:carries]), xs[carries : carries + scanned]
    same = xs[carries + scanned :]
    length = along[0].shape[0]
    ys: list[list[Any]] = [[None] * length for _ in body.outputs[carries:]]
    for t in reversed(range(length)) if reverse else range(length):
        out = run(body, [*carry, *(x[t] for x in along), *same])
        carry = out[:carries]
        for column, y in zip(ys, out[carries:], strict=True):
            column[t] = y
    empty = [np.zeros((0, *v.shape), v.dtype.numpy) for v in body.outputs[carries:]]
    return (*carry, *(np.stack(y) if y else e for y, e in zip(ys, empty, strict=True)))


def scan(step: Callable[..., Any], carry: Any, xs: Any, *, reverse: bool = False) -> Any:
    """``carry, y = step(carry, x)`` for each x along the first axis of ``xs``.

    ``carry`` and ``xs`` are arrays or tuples of arrays; the result is the last carry and the stacked
    ys. JAX's lax.scan.

    >>> import trivium as tv
    >>> total, sums = tv.scan(lambda c, x: (c + x, c + x), tv.asarray(0.0), tv.asarray([1.0, 2.0, 3.0]))
    >>> sums
    tensor([1., 3., 6.])
    """
    cs, along = (list(v) if isinstance(v, (tuple, list)) else [v] for v in (carry, xs))
    single_c, single_x = not isinstance(carry, (tuple, list)), not isinstance(xs, (tuple, list))
    types = _types(cs) + [Type(x.dtype, x.shape[1:]) for x in along]
    shape: list[bool] = []

    def body(*args: Any) -> Any:
        c, x = args[: len(cs)], args[len(cs) :]
        new, y = step(c[0] if single_c else c, x[0] if single_x else x)
        shape.append(isinstance(y, (tuple, list)))
        return (*((new,) if single_c else new), *(y if shape[0] else (y,)))

    graph, outside = subgraph(body, types, "step")
    out = _scan(*cs, *along, *outside, body=graph, carries=len(cs), scanned=len(along), reverse=reverse)
    new, ys = out[: len(cs)], out[len(cs) :]
    return (new[0] if single_c else new), (ys if shape[0] else ys[0])


_EXAMPLE = Sample_(2, 3)
OPS["cond"].cases = [
    case(Sample_(dtype="bool"), _EXAMPLE, then=_double_graph(2.0), otherwise=_double_graph(-1.0))
]
