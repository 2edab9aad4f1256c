"""Reverse-mode differentiation, Graph to Graph: every op's VJP, walked backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.graph import OPS, Graph, GraphError, Node, Type, Value
from trivium.op import Op
from trivium.ops.control import subgraph
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import inline, prune, replay


def has_vjp(node: Node) -> bool:
    """Does the op of this node bring a gradient of its own?"""
    return OPS[node.op].gradient is not None


def unbroadcast(g: Any, shape: Any) -> Any:
    """``g`` summed over what was broadcast, down to ``shape``. The one place where this is done."""
    if g.shape == shape:
        return g
    extra = len(g.shape) - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, s in enumerate(shape) if s == 1 and g.shape[i + extra] != 1
    )
    if axes:
        g = OPS["sum"](g, axis=axes, keepdims=True)
    return g if g.shape == shape else OPS["reshape"](g, shape=shape)


def vjp_of(op: Op, g: Any, y: Any, inputs: Sequence[Any], attrs: Any) -> list[Any]:
    """One gradient (or None) per input of one application of ``op``, each in its input's shape."""
    if op.gradient is None:
        raise GraphError(f"{op.name} has no gradient")
    result = op.gradient(g, y, *inputs, **attrs)
    grads = [None] * len(inputs) if result is None else list(result)
    return [
        None if d is None or x is None or not x.dtype.is_floating else unbroadcast(d, x.shape)
        for d, x in zip(grads, inputs, strict=True)
    ]


def backward(graph: Graph, seeds: dict[Value, Value], wrt: Sequence[Value]) -> list[Value | None]:
    """Append to ``graph`` the gradients of its Values ``wrt``, from cotangents ``seeds``."""
    grads: dict[Value, Any] = dict(seeds)
    reach: set[Value | None] = set(wrt)
    forward = list(graph.nodes)
    for node in forward:
        if any(v in reach for v in node.inputs):
            reach |= set(node.outputs)
    with graph:
        for node in reversed(forward):
            if not any(v in grads for v in node.outputs) or not any(
                v in reach for v in node.inputs
            ):
                continue
            g = tuple(grads[v] if v in grads else OPS["zeros_like"](v) for v in node.outputs)
            many = len(node.outputs) > 1
            with graph.within(node.scope):
                try:
                    result = vjp_of(
                        OPS[node.op], g if many else g[0], node.outputs if many else node.out,
                        node.inputs, node.attrs,
                    )  # fmt: skip
                except GraphError as error:
                    raise GraphError(f"{error}, in {node.scope or 'the top scope'}") from None
                for value, d in zip(node.inputs, result, strict=True):
                    if value is not None and d is not None and value in reach:
                        grads[value] = grads[value] + d if value in grads else d
    return [grads.get(v) for v in wrt]


def differentiable(graph: Graph) -> Graph:
    """A copy in which every node has a VJP: composites without one are replaced by their bodies."""
    return decompose(graph, keep=has_vjp)


def gradient(graph: Graph, wrt: Sequence[str] | None = None, output: int = 0) -> Graph:
    """A Graph that returns the scalar output and then its gradient for each input named in ``wrt``.

    None means all parameters that are not frozen. Updates of states stay.
    """
    new = differentiable(graph)
    inputs = {v.name: v for v in new.inputs}
    names = [v.name for v in new.trained()] if wrt is None else list(wrt)
    if missing := [n for n in names if n not in inputs]:
        raise GraphError(f"there is no input {missing[0]!r} to differentiate by")
    loss = new.outputs[output]
    if loss.shape != ():
        raise GraphError(f"a gradient is of a scalar; output {output} has shape {loss.shape}")
    with new:
        seed = OPS["full"](shape=(), value=1, dtype=loss.dtype)
        found = backward(new, {loss: seed}, [inputs[n] for n in names])
        zeros = OPS["zeros_like"]
        new.outputs = [
            loss,
            *(zeros(inputs[n]) if g is None else g for n, g in zip(names, found, strict=True)),
        ]
    return prune(new)


def pullback(graph: Graph, wrt: Sequence[str]) -> Graph:
    """Inputs, then one cotangent per output -> the outputs, then the gradients of ``wrt``."""
    new = differentiable(graph)
    inputs = {v.name: v for v in new.inputs}
    seeds: dict[Value, Any] = {}
    with new:
        for i, v in enumerate(new.outputs):
            if v.dtype.is_floating:
                name = f"cotangent_{i}"
                while name in inputs:  # a gradient of a gradient has cotangents already
                    name += "_"
                g = new.input("data", v.dtype, v.shape, name)
                seeds[v] = seeds[v] + g if v in seeds else g  # one Value may be two outputs
        found = backward(new, seeds, [inputs[n] for n in wrt])
        zeros = OPS["zeros_like"]
        new.outputs += [
            zeros(inputs[n]) if g is None else g for n, g in zip(wrt, found, strict=True)
        ]
    return prune(new)


# -- control flow: the gradient of a Graph inside a node is the gradient of that Graph -------------
def _branch_pullback(branch: Graph) -> Graph:
    floating = [v.name for v in branch.inputs if v.dtype.is_floating]
    back = pullback(branch, floating)
    back.outputs = back.outputs[len(branch.outputs) :]
    return prune(back)


@OPS["cond"].vjp  # type: ignore[untyped-decorator]
def _cond_vjp(
    g: Any, out: Any, condition: Any, *operands: Any, then: Graph, otherwise: Graph
) -> Any:
    gs = [v for v in (g if isinstance(g, tuple) else (g,)) if v.dtype.is_floating]
    result = OPS["cond"](
        condition,
        *operands,
        *gs,
        then=_branch_pullback(then),
        otherwise=_branch_pullback(otherwise),
    )
    grads = iter(result if isinstance(result, tuple) else (result,))
    return (None, *(next(grads) if x.dtype.is_floating else None for x in operands))


@OPS["scan"].vjp  # type: ignore[untyped-decorator]
def _scan_vjp(
    g: Any, out: Any, *xs: Any, body: Graph, carries: int, scanned: int, reverse: bool
) -> Any:
    gs = list(g) if isinstance(g, tuple) else [g]
    along, same = xs[carries : carries + scanned], xs[carries + scanned :]
    wanted = [i for i, v in enumerate(body.inputs) if v.dtype.is_floating]
    if any(i not in wanted for i in range(carries)):
        raise GraphError("the gradient of a scan with an integer carry is not defined here")

    # Forward once more, keeping every carry as it entered a step.
    keeping, _ = replay(body)
    keeping.outputs = keeping.outputs[:carries] + keeping.inputs[:carries]
    kept = OPS["scan"](*xs, body=keeping, carries=carries, scanned=scanned, reverse=reverse)[
        carries:
    ]

    back = pullback(body, [body.inputs[i].name for i in wanted])
    back.outputs = back.outputs[len(body.outputs) :]
    floating_same = [i for i in wanted if i >= carries + scanned]

    def step(*args: Any) -> Any:
        """One step back: (gradients of carries, of the same) x (carries, scanned, g of ys)."""
        it = iter(args)
        g_carry = [next(it) for _ in range(carries)]
        g_same = [next(it) for _ in floating_same]
        c, x = [next(it) for _ in range(carries)], [next(it) for _ in range(scanned)]
        g_y = [next(it) for _ in range(len(body.outputs) - carries)]
        s = list(it)
        ct = [v for v in (*g_carry, *g_y) if v.dtype.is_floating]
        grads = dict(zip(wanted, inline(back, args[0].graph, [*c, *x, *s, *ct]), strict=True))
        totals = [a + grads[i] for a, i in zip(g_same, floating_same, strict=True)]
        return (*(grads[i] for i in range(carries)), *totals,
                *(grads[i] for i in range(carries, carries + scanned) if i in grads))  # fmt: skip

    zeros = [OPS["zeros_like"](xs[i]) for i in floating_same]
    start, over = [*gs[:carries], *zeros], [*kept, *along, *gs[carries:]]
    graph, _ = subgraph(
        step,
        [_type(v) for v in start]
        + [_type(v)._replace(shape=v.shape[1:]) for v in over]
        + [_type(v) for v in same],
        "back",
    )
    result = OPS["scan"](
        *start, *over, *same, body=graph, carries=len(start), scanned=len(over), reverse=not reverse
    )
    found = dict(zip(range(carries), result, strict=False))
    found |= dict(zip(floating_same, result[carries : len(start)], strict=True))
    rest = (i for i in wanted if carries <= i < carries + scanned)
    found |= dict(zip(rest, result[len(start) :], strict=True))
    return tuple(found.get(i) for i in range(len(xs)))


def _type(v: Any) -> Type:
    return Type(v.dtype, v.shape)
