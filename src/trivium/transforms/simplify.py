"""A Graph in its plainest form: what several frameworks write differently, written one way.

Every rule is exact: the numbers are the same bits. Importers bring idioms (a pad of its own before
a convolution, a reshape that is a flatten); two models that mean the same come out as one Graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trivium.graph import OPS, Graph, Node, Value
from trivium.shape import size_product
from trivium.traits import MOVEMENT, REDUCTION
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import prune, replay

Rule = Callable[[Graph, Node, list[Value | None]], Value | None]


def _one(new: Graph, node: Node, values: Sequence[Value | None], **changed: object) -> Value:
    """The node again, with other inputs and some attributes changed."""
    outputs: Sequence[Value] = OPS[node.op].append(new, values, node.attrs | changed, node.origin)
    return outputs[0]


def _merge_pad(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """What an op puts around its images itself, zeros or -inf, is its own padding."""
    x = values[0] if values else None
    around = OPS[node.op].around
    if around is None or x is None or x.node is None or x.node.op != "pad":
        return None
    a = x.node.attrs
    layout = node.attrs["layout"]
    spatial = [i for i, axis in enumerate(layout) if axis not in "NC"]
    others = [i for i in range(len(layout)) if i not in spatial]
    if (
        a["value"] != around
        or any(a["interior"])
        or any(a["low"][i] or a["high"][i] for i in others)
        or any(a["low"][i] < 0 or a["high"][i] < 0 for i in spatial)
    ):
        return None
    padding = tuple(
        (low + a["low"][i], high + a["high"][i])
        for (low, high), i in zip(node.attrs["padding"], spatial, strict=True)
    )
    inputs = [x.node.inputs[0], *values[1:]]
    return _one(new, node, inputs, padding=padding)


def _compose_transposes(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    x = values[0] if values else None
    if node.op != "transpose" or x is None:
        return None
    axes = node.attrs["axes"]
    if x.node is not None and x.node.op == "transpose":
        axes = tuple(x.node.attrs["axes"][a] for a in axes)
        x = x.node.inputs[0]
        assert x is not None
        if axes != tuple(range(len(axes))):
            return _one(new, node, [x], axes=axes)
    return x if axes == tuple(range(len(axes))) else None


def _flatten(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """A reshape that keeps the first axis and joins the rest is a flatten."""
    x = values[0] if values else None
    if node.op != "reshape" or x is None or len(x.shape) < 3 or len(node.attrs["shape"]) != 2:
        return None
    first, rest = node.attrs["shape"]
    if first != x.shape[0] or rest != size_product(x.shape[1:]):
        return None
    flat: Value = OPS["flatten"].append(new, [x], {"start": 1}, node.origin)[0]
    return flat


def _drop_kept(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """A reduction that keeps its axes at size 1, flattened, need not keep them."""
    x = values[0] if values else None
    if x is None or x.node is None or not _reshapes(node):
        return None
    inner = x.node
    if OPS[inner.op].family != REDUCTION or not inner.attrs.get("keepdims"):
        return None
    kept = tuple(s for i, s in enumerate(x.shape) if i not in inner.attrs["axis"])
    if node.outputs[0].shape != kept:
        return None
    outputs: Sequence[Value] = OPS[inner.op].append(
        new, inner.inputs, inner.attrs | {"keepdims": False}, inner.origin
    )
    return outputs[0]


def _reshapes(node: Node) -> bool:
    """Is it a reshape by any name?"""
    op = OPS[node.op]
    if not op.is_composite or op.family != MOVEMENT:
        return node.op == "reshape"
    body = op.body([None if v is None else v.type for v in node.inputs], node.attrs)
    return bool(body.nodes) and all(map(_reshapes, body.nodes))


def _keep(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """A reduction that is given its axes back, at size 1, keeps them."""
    x = values[0] if values else None
    if node.op != "reshape" or x is None or x.node is None:
        return None
    inner = x.node
    if OPS[inner.op].family != REDUCTION or inner.attrs.get("keepdims", True):
        return None
    before = inner.inputs[0]
    assert before is not None
    axes = inner.attrs["axis"]
    kept = tuple(1 if i in axes else s for i, s in enumerate(before.shape))
    if not axes or node.attrs["shape"] != kept:
        return None
    outputs: Sequence[Value] = OPS[inner.op].append(
        new, inner.inputs, inner.attrs | {"keepdims": True}, inner.origin
    )
    return outputs[0]


def _pick(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """One of several arrays that were only just stacked."""
    x = values[0] if values else None
    if node.op != "select" or x is None or x.node is None or x.node.op != "stack":
        return None
    if x.node.attrs["axis"] != node.attrs["axis"]:
        return None
    chosen: Value | None = x.node.inputs[node.attrs["index"]]
    return chosen


def _nothing(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """What leaves its input as it is."""
    x = values[0] if values else None
    if x is None:
        return None
    idle = OPS[node.op].idle
    types = [None if v is None else v.type for v in values]
    return x if idle is not None and idle(*types, **node.attrs) else None


def _times_one(new: Graph, node: Node, values: list[Value | None]) -> Value | None:
    """What is multiplied with one, or divided by it."""
    if node.op not in ("multiply", "divide"):
        return None
    for x, one in (values, values[::-1])[: 1 + (node.op == "multiply")]:
        if x is None or one is None or one.node is None or one.node.op != "full":
            continue
        alike = node.outputs[0].dtype == x.dtype and node.outputs[0].shape == x.shape
        if alike and one.node.attrs["value"] == 1:
            return x
    return None


RULES: Sequence[Rule] = (
    _merge_pad,
    _compose_transposes,
    _drop_kept,
    _keep,
    _pick,
    _flatten,
    _nothing,
    _times_one,
)


def simplify(graph: Graph) -> Graph:
    """``graph`` with every rule applied where it fits, and what nothing needs left out."""

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        for simpler in RULES if values else ():  # what reads nothing is as simple as it gets
            if (value := simpler(new, node, values)) is not None:
                return [value]
        return None

    return prune(replay(graph, rule)[0])


def canonical(graph: Graph) -> Graph:
    """Channels first, and simplified: the form in which two models are compared as Graphs."""
    return simplify(to_layout(graph, "NCHW"))
