"""A Graph as Keras can say it: channels last, and other padding as a pad of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.frameworks.keras.exact import EXACT
from trivium.frameworks.keras.layers import FORMS, same_pad
from trivium.frameworks.ways import spatial
from trivium.graph import OPS, Graph, Node, Value
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import replay

ALL_FORMS = (*EXACT, *FORMS)


def prepared(graph: Graph) -> Graph:
    """The same Graph in ops and attributes that Keras has."""
    new, _ = replay(to_layout(graph, "NHWC"), _rule)
    new.updates = {state: v for state, v in new.updates.items() if v is not state}
    return new


def written(node: Node) -> bool:
    """Has some layer the words for all of a node's attributes?"""
    return any(f.op == node.op and f.write(node) is not None for f in ALL_FORMS)


def _rule(new: Graph, node: Node, values: list[Value | None]) -> Any:
    """One node made anew; None where Keras has it as it is."""
    a = node.attrs
    if node.op == "batch_norm" and a["training"] is False:
        out = OPS["batch_norm"].append(new, values, a, node.origin)[0]
        return [out, *values[3:]]  # the statistics stay
    if node.op == "pad" and any(p < 0 for p in (*a["low"], *a["high"])):
        return [_cut(values[0], a)]
    if node.op not in ("conv", "max_pool", "avg_pool") or written(node):
        return None
    x, *rest = values
    pads = a["padding"]
    n = len(pads)
    if any(p != (0, 0) for p in pads) and not (node.op == "conv" and _is_same(node)):
        low, high = ((0, *side, 0) for side in zip(*pads, strict=True))
        fill = float("-inf") if node.op == "max_pool" else 0.0
        x = OPS["pad"](x, low=low, high=high, value=fill)
        if node.op == "avg_pool" and not a["include_pad"]:
            return [_average_inside(new, x, values[0], low, high, node)]
        a = a | {
            "padding": ((0, 0),) * n,
            **({"include_pad": True} if node.op == "avg_pool" else {}),
        }
    if node.op == "conv" and max(a["stride"]) > 1 and max(a["dilation"]) > 1:
        # Keras refuses the two together: every position first, then each stride-th of them.
        (y,) = OPS["conv"].append(new, [x, *rest], a | {"stride": (1,) * n}, node.origin)
        for axis, step in enumerate(a["stride"], 1):
            y = OPS["slice_axis"](y, axis=axis, step=step)
        return [y]
    return OPS[node.op].append(new, [x, *rest], a, node.origin)


def _is_same(node: Node) -> bool:
    a = node.attrs
    w = node.inputs[1]
    x = node.inputs[0]
    assert w is not None and x is not None
    sizes = spatial(x.shape, a["layout"])
    kernel: Any = w.shape[2:]
    return bool(a["padding"] == tuple(map(same_pad, sizes, kernel, a["stride"], a["dilation"])))


def _cut(x: Any, a: Mapping[str, Any]) -> Any:
    """A pad whose negative sizes are slices."""
    for axis, (low, high) in enumerate(zip(a["low"], a["high"], strict=True)):
        if low < 0 or high < 0:
            stop = high if high < 0 else None
            x = OPS["slice_axis"](x, axis=axis, start=max(-low, 0), stop=stop)
    low, high = (tuple(max(p, 0) for p in a[side]) for side in ("low", "high"))
    if any((*low, *high, *a["interior"])):
        x = OPS["pad"](x, low=low, high=high, interior=a["interior"], value=a["value"])
    return x


def _average_inside(new: Graph, x: Any, original: Any, low: Any, high: Any, node: Node) -> Any:
    """The mean over what is no padding: the mean over all, divided by the mean of ones."""
    a = node.attrs | {"padding": ((0, 0),) * len(node.attrs["padding"]), "include_pad": True}
    ones = OPS["pad"](OPS["ones_like"](original), low=low, high=high)
    top, below = (OPS["avg_pool"].append(new, [v], a, node.origin)[0] for v in (x, ones))
    return top / below
