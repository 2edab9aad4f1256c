"""Control flow as structure: a node that holds Graphs. Tracing unrolls and bakes in nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import Graph, Type, UnsupportedError, current
from trivium.op import Refused, S, case, lift, primitive, run
from trivium.ops.elementwise import multiply, tanh
from trivium.shape import ShapeError


def subgraph(
    function: Callable[..., Any], types: Sequence[Type], name: str
) -> tuple[Graph, list[Any]]:
    """``function`` traced on inputs of these types; what it read from outside is more inputs."""
    graph, outer = Graph(name), current()
    graph.inner, graph.training = True, None if outer is None else outer.training
    with graph:
        inputs = [graph.input("data", *t, name=f"{name}_{i}") for i, t in enumerate(types)]
        result = function(*inputs)
        many = isinstance(result, (tuple, list))
        graph.outputs = [lift(graph, v, None) for v in (result if many else (result,))]
    if graph.of_kind("rng") or graph.updates:
        what = "draws random numbers" if graph.of_kind("rng") else "updates a state"
        remedy = "pass it through as a carry or do it outside"
        raise UnsupportedError(f"the body of a {name} {what}", graph.scope, remedy)
    outside = [item for item, value in graph.captured.values() if value.node is None]
    return graph, outside


def _types(xs: Sequence[Any]) -> list[Type]:
    return [Type(x.dtype, x.shape) for x in xs]


def _refused(what: str) -> dict[str, Any]:
    return {
        "torch": Refused(f"a {what} in a module's source"),
        "keras": Refused("a functional model is not saved with functions inside it"),
        "mxnet": Refused(f"a {what} in a block's source"),
    }


# -- cond ------------------------------------------------------------------------------------------
def _listed(items: Sequence[Any]) -> str:
    return f"({', '.join(map(str, items))})"


def _fits(what: str, body: Graph, given: Sequence[Type]) -> None:
    wants = [v.type for v in body.inputs]
    if wants != list(given):
        raise ShapeError(f"{what} takes {_listed(wants)}, got {_listed(given)}")


def _cond_rule(condition: Type, *operands: Type, then: Graph, otherwise: Graph) -> list[Type]:
    if condition != Type(dt.bool_, ()):
        raise TypeError(f"the condition is one bool, got {condition}")
    _fits("the branch 'then'", then, operands)
    _fits("the branch 'otherwise'", otherwise, operands)
    a, b = ([v.type for v in branch.outputs] for branch in (then, otherwise))
    if a != b:
        raise ShapeError(f"the two branches give {_listed(a)} and {_listed(b)}")
    return a


@primitive(name="cond", rule=_cond_rule, **_refused("branch"))
def _cond(condition: Any, *operands: Any, then: Graph, otherwise: Graph) -> Any:
    """One of two Graphs, applied to the operands."""
    return tuple(run(then if condition else otherwise, operands))


def cond(
    condition: Any, then: Callable[..., Any], otherwise: Callable[..., Any], *operands: Any
) -> Any:
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
    if min(carries, scanned) < 0 or carries + scanned > len(xs):
        raise ShapeError(f"{len(xs)} arrays are not {carries} carries and {scanned} to scan")
    along = xs[carries : carries + scanned]
    lengths = {x.shape[0] if x.shape else None for x in along}
    if len(lengths) != 1 or None in lengths:
        raise ShapeError(f"a scan goes along one length, got {_listed(along)}")
    steps = [Type(x.dtype, x.shape[1:]) for x in along]
    _fits("the step", body, [*xs[:carries], *steps, *xs[carries + scanned :]])
    length = along[0].shape[0]
    return [v.type for v in body.outputs[:carries]] + [
        Type(v.dtype, (length, *v.shape)) for v in body.outputs[carries:]
    ]


@primitive(name="scan", rule=_scan_rule, **_refused("loop"))
def _scan(*xs: Any, body: Graph, carries: int, scanned: int, reverse: bool = False) -> Any:
    """A Graph applied along the first axis: carries, then scanned arrays, then what stays."""
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

    ``carry`` and ``xs`` are arrays or tuples of arrays; the result is the last carry and the
    stacked ys. JAX's lax.scan.

    >>> import trivium as tv
    >>> xs = tv.asarray([1.0, 2.0, 3.0])
    >>> total, sums = tv.scan(lambda c, x: (c + x, c + x), tv.asarray(0.0), xs)
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
    out = _scan(
        *cs, *along, *outside, body=graph, carries=len(cs), scanned=len(along), reverse=reverse
    )
    out = out if isinstance(out, tuple) else (out,)
    new, ys = out[: len(cs)], out[len(cs) :]
    return (new[0] if single_c else new), (ys if shape[0] else ys[0])


def _example(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Graph:
    return subgraph(function, [Type(dt.float32, shape) for shape in shapes], "body")[0]


_cond.cases = [
    case(S(dtype="bool"), S(2, 3), S(3), then=_example(multiply, (2, 3), (3,)),
         otherwise=_example(lambda x, y: tanh(x), (2, 3), (3,))),
]  # fmt: skip


def _example_step(carry: Any, x: Any, weight: Any) -> Any:
    carry = tanh(carry * weight + x)
    return carry, carry * x


def _example_pair(a: Any, b: Any, x: Any, y: Any) -> Any:
    return tanh(a * x + b), b + y, a * b


_scan.cases = [
    case(S(2, 3), S(4, 2, 3), S(2, 1), body=_example(_example_step, (2, 3), (2, 3), (2, 1)),
         carries=1, scanned=1),
    case(S(3), S(3), S(4, 3), S(4, 3), body=_example(_example_pair, (3,), (3,), (3,), (3,)),
         carries=2, scanned=2, reverse=True),
]  # fmt: skip
