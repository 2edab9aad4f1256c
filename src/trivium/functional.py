"""Gradients of functions: JAX's habits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trivium.dtype import as_dtype
from trivium.graph import GraphError, current
from trivium.interpret import Interpreter
from trivium.nn.module import Parameter, trace_once
from trivium.op import lift
from trivium.tensor import Tensor, asarray
from trivium.transforms.grad import gradient
from trivium.transforms.replay import inline


def value_and_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0
) -> Callable[..., Any]:
    """A function that returns ``function(*args)``, a scalar, and its gradient by chosen arguments.

    It works inside another Graph too, so gradients of gradients are had by applying it twice.

    >>> import trivium as tv
    >>> value_and_grad(lambda x: (x * x).sum())(tv.asarray([1.0, 2.0]))
    (tensor(5.), tensor([2., 4.]))
    """
    which = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def call(*args: Any) -> Any:
        arrays = [asarray(a) for a in args]
        for i in which:
            if not as_dtype(arrays[i].dtype).is_floating:
                raise TypeError(
                    f"argument {i} is {arrays[i].dtype}: gradients are of floating arrays"
                )
        graph = trace_once(function, [(a.dtype, a.shape) for a in arrays], training=True)
        if len(graph.outputs) != 1:
            raise GraphError("a gradient is of a function with one scalar result")
        back = gradient(graph, [graph.of_kind("data")[i].name for i in which])
        held = {v.name: p for p, v in graph.captured.values() if isinstance(p, Parameter)}
        inputs = iter(arrays)
        given = [next(inputs) if v.kind == "data" else held[v.name] for v in back.inputs]
        outer = current() or next((a.graph for a in arrays if hasattr(a, "graph")), None)
        if outer is not None:
            found: list[Any] = list(inline(back, outer, [lift(outer, v, None) for v in given]))
        else:
            found = [Tensor(a) for a in Interpreter(back)(*(t.data for t in given))]
        value, *grads = found[: 1 + len(which)]
        return value, grads[0] if isinstance(argnums, int) else tuple(grads)

    return call


def grad(function: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The gradient of a scalar function by the chosen arguments.

    >>> import trivium as tv
    >>> cube = lambda x: x * x * x
    >>> grad(grad(cube))(tv.asarray(2.0))
    tensor(12.)
    """
    both = value_and_grad(function, argnums)
    return lambda *args: both(*args)[1]
