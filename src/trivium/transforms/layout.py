"""Images in the other layout: every convolution and pool in the one a target wants.

Each Value of the new Graph carries a permutation: how its axes lie compared with the original.
Elementwise ops pass it on, so a transposition is written only where the model really needs one:
usually one at its entrance and one before the images are flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.graph import OPS, Graph, Node, Value
from trivium.transforms.replay import prune, replay

_LAYOUTS = {"NCHW": {3: "NCW", 4: "NCHW", 5: "NCDHW"}, "NHWC": {3: "NWC", 4: "NHWC", 5: "NDHWC"}}


def _elementwise(node: Node) -> bool:
    types = [None if v is None else v.type for v in node.inputs]
    return bool(OPS[node.op].elementwise(types, node.attrs))


def _differs(node: Node, layout: str) -> bool:
    """Does an op of images have their channels elsewhere?"""
    x = node.inputs[0] if OPS[node.op].images else None
    if x is None or len(x.shape) < 3:
        return False
    lies = node.attrs.get("layout")
    channel = lies.index("C") if lies else node.attrs["axis"]
    return bool(channel != (1 if layout == "NCHW" else len(x.shape) - 1))


def to_layout(graph: Graph, layout: str) -> Graph:
    """``graph`` with its images in ``layout`` ("NCHW" or "NHWC", for any number of image axes)."""
    if not any(_differs(n, layout) for n in graph.nodes):
        return graph
    lies: dict[
        Value, tuple[int, ...]
    ] = {}  # new value -> new axis i holds the original's axis lies[i]

    def order(v: Value) -> tuple[int, ...]:
        return lies.get(v, tuple(range(len(v.shape))))

    def lay(v: Value, wanted: tuple[int, ...]) -> Value:
        """``v`` with its axes lying as ``wanted``."""
        has = order(v)
        if has == wanted:
            return v
        # A transposition that only undoes another is not written twice.
        if v.node is not None and v.node.op == "transpose" and v.node.origin == "layout":
            source = v.node.inputs[0]
            assert source is not None
            if order(source) == wanted:
                return source
        key = (v, wanted)
        if key not in made:
            axes = tuple(has.index(a) for a in wanted)
            (made[key],) = OPS["transpose"].append(v.graph, [v], {"axes": axes}, "layout")
            lies[made[key]] = wanted
        return made[key]

    made: dict[tuple[Value, tuple[int, ...]], Value] = {}

    def plain(v: Value | None) -> Value | None:
        return None if v is None else lay(v, tuple(range(len(v.shape))))

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        x = values[0] if values else None
        op = OPS[node.op]
        if op.images and x is not None and "layout" in node.attrs:
            target = _LAYOUTS[layout][len(x.shape)]
            wanted = tuple(node.attrs["layout"].index(a) for a in target)
            laid = [
                lay(v, wanted) if v is not None and name in op.images else plain(v)
                for v, name in zip(values, op.names(values), strict=True)
            ]
            attrs = node.attrs | {"layout": target}
            out: Sequence[Value] = op.append(new, laid, attrs, node.origin)
            if not op.makes_kernel:  # windows have more axes, after the image's
                lies[out[0]] = (*wanted, *range(len(wanted), len(out[0].shape)))
            return out
        if node.op == "transpose" and x is not None:
            # Not written: the next op that cares will say how it wants its axes.
            lies_now = tuple(node.attrs["axes"].index(a) for a in order(x))
            (alias,) = OPS["stop_gradient"].append(new, [x], {}, "alias")
            alias_of[alias] = x
            lies[alias] = lies_now
            return [alias]
        if any(v is not None and order(v) != tuple(range(len(v.shape))) for v in values):
            passed = _passed(new, node, values, order, lay)
            if passed is not None:
                lies[passed[0][0]] = passed[1]
                return passed[0]
        made: Sequence[Value] = OPS[node.op].append(
            new, [plain(v) for v in values], node.attrs, node.origin
        )
        return made

    alias_of: dict[Value, Value] = {}
    new, _ = replay(graph, rule)
    with new:
        new.outputs = [plain(v) for v in new.outputs]  # type: ignore[misc]
    return _without_aliases(prune(new), alias_of)


def _passed(
    new: Graph, node: Node, values: list[Value | None], order: Any, lay: Any
) -> tuple[Sequence[Value], tuple[int, ...]] | None:
    """A node applied to Values as they lie, if its meaning allows; and how its output lies."""
    op, x = OPS[node.op], values[0]
    if _elementwise(node):
        x = next(v for v in values if v is not None and order(v) != tuple(range(len(v.shape))))
        at = order(x)
        rank = len(at)
        inputs = []
        for v, name in zip(values, op.names(values), strict=True):
            if v is None or v.shape == () or name == op.random:
                inputs.append(v)
                continue
            if len(v.shape) < rank:  # a vector that broadcasts: give it all its axes first
                v = OPS["reshape"](
                    lay(v, tuple(range(len(v.shape)))), shape=(1,) * (rank - len(v.shape)) + v.shape
                )
            if len(v.shape) != rank:
                return None
            inputs.append(lay(v, at))
        return op.append(new, inputs, node.attrs, node.origin), at
    if op.axes is None or x is None or order(x) == tuple(range(len(x.shape))):
        return None
    attrs, at = op.axes(node.attrs, order(x))
    rank = len(x.shape)
    laid = [
        v if v is None else lay(v, order(x) if len(v.shape) == rank else tuple(range(len(v.shape))))
        for v in values
    ]
    return op.append(new, laid, attrs, node.origin), at


def _without_aliases(graph: Graph, alias_of: dict[Value, Value]) -> Graph:
    def real(v: Value | None) -> Value | None:
        while v in alias_of:
            v = alias_of[v]
        return v

    for node in graph.nodes:
        node.inputs = tuple(real(v) for v in node.inputs)
    graph.outputs = [real(v) for v in graph.outputs]  # type: ignore[misc]
    graph.nodes = [n for n in graph.nodes if not any(v in alias_of for v in n.outputs)]
    return graph
