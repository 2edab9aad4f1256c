"""A Graph made ready for MXNet: what its operators lack said in operators that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trivium.frameworks.mxnet.forms import applications, symmetric
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import replay


def prepare(graph: Graph) -> tuple[Graph, dict[str, np.ndarray[Any, Any]]]:
    """Channels first, padding symmetric or a pad, and constants as states, with their values."""
    constants: dict[str, np.ndarray[Any, Any]] = {}
    if not graph.of_kind("data"):
        raise UnsupportedError(
            "MXNet source of a graph without inputs: a HybridBlock has at least one"
        )

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        if node.op == "constant":
            name = ".".join(filter(None, (node.scope, f"constant_{len(constants)}")))
            constants[name] = node.attrs["value"]
            return [new.input("state", *node.out.type, name=name)]
        if node.op == "pad":
            return _cut_first(node, values)
        if node.op in ("conv", "max_pool", "avg_pool") and symmetric(node.attrs["padding"]) is None:
            return _padded_first(new, node, values)
        return None

    new, _ = replay(to_layout(graph, "NCHW"), rule)
    for v in [*new.inputs, *(v for n in new.nodes for v in n.outputs)]:
        if 0 in v.shape:
            raise UnsupportedError(f"MXNet source with an empty array, of shape {v.shape}", v.name)
    _check_statistics(new)
    return new, constants


def _cut_first(node: Node, values: list[Value | None]) -> Sequence[Value] | None:
    """A negative padding is a slice."""
    low, high = node.attrs["low"], node.attrs["high"]
    if any(node.attrs["interior"]) or min((*low, *high), default=0) >= 0:
        return None
    x: Any = values[0]
    for axis, (a, b) in enumerate(zip(low, high, strict=True)):
        if a < 0 or b < 0:
            x = OPS["slice_axis"](x, axis=axis, start=max(-a, 0), stop=x.shape[axis] + min(b, 0))
    low, high = (tuple(max(n, 0) for n in edge) for edge in (low, high))
    return [OPS["pad"](x, low=low, high=high, value=node.attrs["value"])]


def _padded_first(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value]:
    """Padding that differs before and after: MXNet's windows take one number for both."""
    low, high = zip(*node.attrs["padding"], strict=True)
    edges = {"low": (0, 0, *low), "high": (0, 0, *high)}
    attrs = node.attrs | {"padding": ((0, 0),) * len(low)}
    x = OPS["pad"](values[0], **edges, value=float("-inf") if node.op == "max_pool" else 0.0)
    if attrs.get("include_pad", True):
        outputs: Sequence[Value] = OPS[node.op].append(new, [x, *values[1:]], attrs, node.origin)
        return outputs
    attrs["include_pad"] = True  # the mean with the zeros, divided by the share that is not padding
    share = OPS["avg_pool"](OPS["pad"](OPS["ones_like"](values[0]), **edges), **attrs)
    return [OPS["avg_pool"](x, **attrs) / share]


def _check_statistics(graph: Graph) -> None:
    """MXNet collects batch statistics on the way back: what that does not reach, it never sees."""
    depends: set[Value | None] = set(graph.trained())
    for node in graph.nodes:
        if any(v in depends for v in node.inputs) and node.op != "stop_gradient":
            depends |= set(node.outputs)
    leads: set[Value | None] = {v for v in graph.outputs if v.dtype.is_floating}
    for node in reversed(graph.nodes):
        if any(v in leads for v in node.outputs):
            leads |= {v for v in node.inputs if v is not None and v.dtype.is_floating}
    for state in graph.updates:
        calls = applications(graph, state)  # the last collects for all
        if not calls:
            continue
        remedy = ""
        if not any(depends.intersection(n.inputs[:3]) for n in calls):
            remedy = "train its scale or bias, or read the model in inference mode"
        elif calls[-1].outputs[0] not in leads:
            remedy = "leave that call out, or read the model in inference mode"
        if remedy:
            what = "that no gradient reaches: MXNet collects statistics on the way back"
            place = calls[-1].scope
            raise UnsupportedError(f"MXNet source of a batch norm {what}", place, remedy)
