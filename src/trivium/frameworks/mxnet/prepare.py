"""A Graph made ready for MXNet: what its operators lack said in operators that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.frameworks.mxnet.cut import reached
from trivium.frameworks.mxnet.layers import applications
from trivium.frameworks.mxnet.params import DTYPES
from trivium.frameworks.ways import symmetric
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.interpret import Interpreter
from trivium.shape import Dim
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import prune, replay


def prepare(graph: Graph) -> tuple[Graph, dict[str, np.ndarray[Any, Any]]]:
    """Channels first, padding symmetric or a pad, and constants as states, with their values."""
    constants: dict[str, np.ndarray[Any, Any]] = {}
    if not graph.of_kind("data"):
        raise UnsupportedError(
            "MXNet source of a graph without inputs: a HybridBlock has at least one"
        )

    def held(new: Graph, scope: str, array: np.ndarray[Any, Any]) -> Value:
        name = ".".join(filter(None, (scope, f"constant_{len(constants)}")))
        constants[name] = array
        return new.input("state", array.dtype, array.shape, name=name)

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        if node.op == "constant":
            return [held(new, node.scope, node.attrs["value"])]
        if node.op in ("take", "embedding"):
            x, at = values
            known = None if at is None else _computed(at, constants)
            if known is not None and (known < 0).any():
                values = [x, held(new, node.scope, _from_the_start(known, node))]
            outputs: Sequence[Value] = OPS[node.op].append(new, values, node.attrs, node.origin)
            return outputs
        if node.op == "pad":
            return _cut_first(node, values)
        if node.op in ("conv", "max_pool", "avg_pool") and symmetric(node.attrs["padding"]) is None:
            return _padded_first(new, node, values)
        return None

    new, _ = replay(to_layout(graph, "NCHW"), rule)
    new = prune(new)
    for name in {v.name for v in new.unread()} & constants.keys():  # others were made of them
        del constants[name]
        new.inputs = [v for v in new.inputs if v.name != name]
    for v in [*new.inputs, *(v for n in new.nodes for v in n.outputs)]:
        if 0 in v.shape:
            raise UnsupportedError(f"MXNet source with an empty array, of shape {v.shape}", v.name)
    _check_statistics(new)
    return new, constants


def _from_the_start(at: np.ndarray[Any, Any], node: Node) -> np.ndarray[Any, Any]:
    """Indices that count from the end, which F.take refuses, counted from the start."""
    (x, *_), axis = node.inputs, node.attrs.get("axis", 0)
    size = None if x is None else x.shape[axis]
    if not isinstance(size, int):
        what = f"MXNet source of {node.op} with indices from the end of the open size {size}"
        raise UnsupportedError(what, node.scope or "the top scope", "trace with fixed sizes")
    return np.where(at < 0, at + size, at)


def _computed(value: Value, constants: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    """The numbers of what depends on constants alone, which may be written as a formula."""
    needed: set[Value | None] = {value}
    graph = Graph("constant")
    for node in reversed(value.graph.nodes):
        if needed.intersection(node.outputs):
            needed |= set(node.inputs)
            graph.nodes.insert(0, node)
    values = [v for v in needed if v is not None]
    graph.inputs, graph.outputs = [v for v in values if v.kind], [value]
    if any(isinstance(s, Dim) for v in values for s in v.shape):
        return None
    if any(v.name not in constants for v in graph.inputs):
        return None
    (array,) = Interpreter(graph)(*(constants[v.name] for v in graph.inputs))
    return np.asarray(array)


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


_PRODUCTS = ("matmul", "linear", "conv")


def check_dtypes(graph: Graph) -> None:
    """MXNet names more dtypes than it computes with: bfloat16 comes out as other numbers."""
    for v in [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]:
        where = v.name if v.node is None else v.node.scope or "the top scope"
        what = v.name if v.node is None else v.node.op
        if v.dtype not in DTYPES.values() and v.kind != "rng":
            what = f"MXNet source of {what} in {v.dtype}, which MXNet 1.9.1 has not"
            other = "float32" if v.dtype.is_floating else "int64"
            raise UnsupportedError(what, where, f"cast it to {other}")
        if v.dtype == dt.float16 and what in _PRODUCTS and v.node is not None:
            what = f"MXNet source of {what} in float16, which MXNet 1.9.1 has not on a CPU"
            raise UnsupportedError(
                what, where, "cast what it reads to float32, and the result back"
            )


def _check_statistics(graph: Graph) -> None:
    """MXNet collects batch statistics on the way back: what that does not reach, it never sees."""
    depends: set[Value | None] = set(graph.trained())
    for node in graph.nodes:
        if any(v in depends for v in node.inputs) and node.op != "stop_gradient":
            depends |= set(node.outputs)
    becoming = {v for s in graph.updates for n in applications(graph, s) for v in n.outputs[1:]}
    for node in graph.nodes:
        if becoming.intersection(node.inputs):
            what = f"MXNet source of {node.op} that reads statistics as a batch norm leaves them"
            remedy = "read them before it, or give each a layer of its own"
            raise UnsupportedError(what, node.scope or "the top scope", remedy)
    leads = reached(graph)
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
