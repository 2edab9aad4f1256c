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
_WITH_LAYOUT = ("conv", "max_pool", "avg_pool")


def _elementwise(node: Node) -> bool:
    types = [None if v is None else v.type for v in node.inputs]
    return bool(OPS[node.op].elementwise(types, node.attrs))


def to_layout(graph: Graph, layout: str) -> Graph:
    """``graph`` with its images in ``layout`` ("NCHW" or "NHWC", for any number of image axes)."""
    if not any(
        n.attrs.get("layout") not in (None, *_LAYOUTS[layout].values()) for n in graph.nodes
    ) and not (
        any(n.op == "batch_norm" and n.attrs["axis"] != _channel(layout, n) for n in graph.nodes)
    ):
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
        if node.op in _WITH_LAYOUT and x is not None:
            rank = len(x.shape)
            target = _LAYOUTS[layout][rank]
            wanted = tuple(node.attrs["layout"].index(a) for a in target)
            rest = [plain(v) for v in values[1:]]
            attrs = node.attrs | {"layout": target}
            out: Sequence[Value] = OPS[node.op].append(
                new, [lay(x, wanted), *rest], attrs, node.origin
            )
            lies[out[0]] = wanted
            return out
        if node.op == "transpose" and x is not None:
            # Not written: the next op that cares will say how it wants its axes.
            lies_now = tuple(node.attrs["axes"].index(a) for a in order(x))
            (alias,) = OPS["stop_gradient"].append(new, [x], {}, "alias")
            alias_of[alias] = x
            lies[alias] = lies_now
            return [alias]
        if x is not None and order(x) != tuple(range(len(x.shape))):
            passed = _passed(new, node, values, order, lay)
            if passed is not None:
                out, at = passed
                lies[out[0]] = at
                return out
        if _elementwise(node):
            moved = [v for v in values if v is not None and order(v) != tuple(range(len(v.shape)))]
            if moved:
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


def _channel(layout: str, node: Node) -> int:
    x = node.inputs[0]
    assert x is not None
    return node.attrs["axis"] if len(x.shape) < 3 else 1 if layout == "NCHW" else len(x.shape) - 1


def _passed(
    new: Graph, node: Node, values: list[Value | None], order: Any, lay: Any
) -> tuple[Sequence[Value], tuple[int, ...]] | None:
    """A node applied to Values as they lie, if its meaning allows; and how its output lies."""
    x = next(v for v in values if v is not None and order(v) != tuple(range(len(v.shape))))
    at = order(x)
    rank = len(at)
    if _elementwise(node):
        inputs = []
        for v in values:
            if v is None or v.shape == () or (node.op == "dropout" and v is not values[0]):
                inputs.append(v)
                continue
            if len(v.shape) < rank:  # a vector that broadcasts: give it all its axes first
                v = OPS["reshape"](
                    lay(v, tuple(range(len(v.shape)))), shape=(1,) * (rank - len(v.shape)) + v.shape
                )
            if len(v.shape) != rank:
                return None
            inputs.append(lay(v, at))
        return OPS[node.op].append(new, inputs, node.attrs, node.origin), at
    if node.op == "batch_norm":
        attrs = node.attrs | {"axis": at.index(node.attrs["axis"])}
        return OPS[node.op].append(new, values, attrs, node.origin), at
    if node.op == "pad":
        attrs = dict(node.attrs)
        for key in ("low", "high", "interior"):
            attrs[key] = tuple(node.attrs[key][a] for a in at)
        return OPS[node.op].append(new, values, attrs, node.origin), at
    if node.op in ("sum", "mean", "max", "min"):
        axes = tuple(sorted(at.index(a) for a in node.attrs["axis"]))
        out = OPS[node.op].append(new, values, node.attrs | {"axis": axes}, node.origin)
        if node.attrs["keepdims"]:
            return out, at
        kept = [a for a in at if a not in node.attrs["axis"]]
        return out, tuple(sorted(kept).index(a) for a in kept)
    if node.op == "concat":
        axis = at.index(node.attrs["axis"])
        inputs = [lay(v, at) for v in values]
        return OPS[node.op].append(new, inputs, node.attrs | {"axis": axis}, node.origin), at
    return None


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
