"""The training step as a Graph: loss, gradients, and what every parameter and slot becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.graph import MODE, OPS, Graph, GraphError, Node, Value
from trivium.op import lift
from trivium.transforms.grad import gradient
from trivium.transforms.replay import inline, replay, specialize

COUNT = "optimizer/count"
"""The state that counts the steps."""


@dataclass(frozen=True)
class Update:
    """What an optimizer does to one parameter, as a Graph on (p, g, *slots, count, lr).

    It is elementwise, so it serves parameters of every shape. ``slots`` start as zeros in the
    parameter's shape; ``count`` is this step's number, from 1.
    """

    graph: Graph
    slots: tuple[str, ...]


def update_of(rule: Callable[..., Any], slots: Sequence[str]) -> Update:
    """Trace ``rule(p, g, slots: dict, count, lr) -> (p, slots: dict)``."""
    graph = Graph("update")
    with graph:
        wide = [graph.input("data", dt.float32, ("n",), name) for name in ("p", "g", *slots)]
        count, lr = (
            graph.input("data", dt.float32, (), graph.unused(name)) for name in ("count", "lr")
        )
        p, new = rule(wide[0], wide[1], dict(zip(slots, wide[2:], strict=True)), count, lr)
        graph.outputs = [lift(graph, v, None) for v in (p, *(new[s] for s in slots))]
    return Update(graph, tuple(slots))


def typed(update: Update, dtype: DType) -> Graph:
    """The update of a parameter of ``dtype``; ``count`` and ``lr`` are float32 all the same.

    A narrow one is computed in float32 and rounded once, at the end.
    """
    if dtype == dt.float32:
        return specialize(update.graph)
    wide = dt.promote(dtype, dt.float32)
    inner, cast = specialize(update.graph, floating=wide), OPS["cast"]
    graph = Graph(update.graph.name)
    with graph:
        own = len(inner.inputs) - 2
        given = [
            graph.input("data", dtype if i < own else dt.float32, v.shape, v.name)
            for i, v in enumerate(inner.inputs)
        ]
        found = inline(inner, graph, [v if v.dtype == wide else cast(v, dtype=wide) for v in given])
        graph.outputs = [v if v.dtype == dtype else cast(v, dtype=dtype) for v in found]
    return graph


def by_dtype(update: Update, dtypes: Sequence[DType], make: Callable[[Graph], Any]) -> list[Any]:
    """For each parameter's dtype what ``make`` makes of its update, once for equal ones."""
    made = {d: make(typed(update, d)) for d in dict.fromkeys(dtypes)}
    return [made[d] for d in dtypes]


def trained(loss: Graph) -> list[str]:
    """The names of the parameters that a step changes; a GraphError where there are none."""
    names = [v.name for v in loss.trained()]
    if not names:
        frozen = bool(loss.of_kind("param"))
        why = "every parameter is frozen" if frozen else "the graph has no parameters"
        raise GraphError(f"there is nothing to train: {why}")
    return names


def training_step(loss: Graph, update: Update) -> Graph:
    """(the inputs of ``loss``, count, lr, slots) -> loss; everything that changes is an update.

    ``loss`` has the scalar loss as its first output. The learning rate is of the kind ``hyper``,
    count and slots are states; their names give way to the model's own. A frozen
    parameter is read and stays.
    """
    params = trained(loss)
    step = gradient(loss, params)
    step.name = f"{loss.name}_step"
    by_name = {v.name: v for v in step.inputs}
    value, *grads = step.outputs
    with step:
        count = step.input("state", dt.float32, (), step.unused(COUNT))
        lr = step.input("hyper", dt.float32, (), step.unused("lr"))
        now = OPS["add"](count, 1)
        step.updates[count] = now
        for name, g in zip(params, grads, strict=True):
            p = by_name[name]
            slots = [
                step.input("state", p.dtype, p.shape, step.unused(f"{name}/{s}"))
                for s in update.slots
            ]
            new = inline(typed(update, p.dtype), step, [p, g, *slots, now, lr])
            step.updates |= zip([p, *slots], new, strict=True)
    step.outputs = [value]
    return step


def count_name(slots: Iterable[str]) -> str:
    """What the count is called in what an optimizer keeps: it gives way to a parameter's name."""
    return next(name for name in slots if name.rstrip("_") == COUNT)


def by_mode(graph: Graph) -> Graph:
    """Norms and dropouts that are on while training, as layers that ask for the mode.

    A norm of which not every statistic is a state that becomes the new one is no layer.
    """
    kept = set(graph.updates.values())

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Any:
        if node.attrs.get("training") is not True or not kept.issuperset(node.outputs[1:]):
            return None
        return OPS[node.op].append(new, values, node.attrs | {"training": MODE}, node.origin)

    return replay(graph, rule)[0]


def initial_slots(step: Graph, loss: Graph) -> dict[str, Any]:
    """Zeros for what a training step keeps that its loss does not: the count, and every slot."""
    own = step.inputs[len(loss.inputs) :]
    return {v.name: np.zeros(v.shape, v.dtype.numpy) for v in own if v.kind == "state"}
