"""Our ops as the small tf.Module layers of :mod:`helpers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trivium.frameworks.layer import LayerForm, Weight, given, permuted, square
from trivium.frameworks.writing.blocks import leaf, parent
from trivium.frameworks.writing.functional import plain_padding
from trivium.graph import MODE, OPS, Graph, Node

Write = Callable[[Node], Mapping[str, Any] | None]


def owned(form: LayerForm, node: Node) -> bool:
    """Are the arrays of the node float32 parameters of one layer, under our names for them?"""
    arrays = dict(zip(OPS[node.op].arrays, node.inputs, strict=False))
    held = {w.ours: v for w in form.weights if (v := arrays.get(w.array)) is not None}
    named = all(v.kind in ("param", "state") and leaf(v.name) == ours for ours, v in held.items())
    paths = {parent(v.name) for v in held.values()}
    return (
        named
        and "" not in paths
        and len(paths) <= 1
        and all(v.dtype == "float32" for v in held.values())
    )


def _plainly(node: Node) -> bool:
    """Two axes of images, not spread and in one group: tf.nn.conv2d itself."""
    a = node.attrs
    return len(a["stride"]) == 2 and square(a["dilation"]) == 1 and a["groups"] == 1


def _depthwise(node: Node) -> bool:
    w, a = node.inputs[1], node.attrs
    assert w is not None
    once = w.shape[:2] == (a["groups"], 1) and a["groups"] > 1
    # TF has depthwise kernels for equal strides alone.
    return (
        once and len(set(a["stride"])) == 1 == len(a["stride"]) - 1 and square(a["dilation"]) == 1
    )


def _conv(node: Node) -> Mapping[str, Any] | None:
    _, w, b = (*node.inputs, None)[:3]
    a = node.attrs
    assert w is not None
    arguments: dict[str, Any] = {"in_channels": w.shape[1] * a["groups"], "channels": w.shape[0]}
    settings = given(
        stride=(square(a["stride"]), 1),
        padding=(plain_padding(a["padding"]), 0),
        bias=(b is not None, True),
    )
    if _plainly(node):
        return arguments | {"kernel_size": square(w.shape[2:])} | settings
    more = given(dilation=(square(a["dilation"]), 1), groups=(a["groups"], 1))
    return arguments | {"kernel_size": w.shape[2:]} | settings | more


def _conv_depthwise(node: Node) -> Mapping[str, Any] | None:
    if not _depthwise(node):
        return None
    arguments = dict(_conv(node) or {})
    del arguments["in_channels"], arguments["groups"]
    return arguments | {"kernel_size": square(arguments["kernel_size"])}


def _conv_of(name: str, rank: int, fits: Callable[[Node], bool]) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        return _conv(node) if len(node.attrs["stride"]) == rank and fits(node) else None

    axes = (*range(2, rank + 2), 1, 0)
    return LayerForm(
        "conv", name, write, weights=(Weight("w", "weight", "kernel", **permuted(*axes)), _BIAS)
    )


def _dense(node: Node) -> Mapping[str, Any]:
    w = node.inputs[1]
    assert w is not None
    bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return {"inputs": w.shape[1], "units": w.shape[0]} | given(bias=(bias, True))


def _batch_norm(node: Node) -> Mapping[str, Any] | None:
    x, scale, bias, mean, _ = node.inputs
    a = node.attrs
    if x is None or mean is None or mean.kind != "state" or a["axis"] != len(x.shape) - 1:
        return None
    return {"channels": x.shape[-1]} | given(
        decay=(round(1 - a["momentum"], 12), 0.9), epsilon=(a["epsilon"], 1e-5),
        unbiased=(a["unbiased"], True),
        scale=(scale is not None, True), center=(bias is not None, True),
    )  # fmt: skip


def _layer_norm(node: Node) -> Mapping[str, Any] | None:
    x, scale, bias = (*node.inputs, None, None)[:3]
    if x is None or scale is None:
        return None
    shape = scale.shape[0] if len(scale.shape) == 1 else scale.shape
    return {"shape": shape} | given(
        epsilon=(node.attrs["epsilon"], 1e-5), center=(bias is not None, True)
    )


def _embedding(node: Node) -> Mapping[str, Any] | None:
    w = node.inputs[0]
    return None if w is None else {"count": w.shape[0], "width": w.shape[1]}


class Name(str):
    """Text that stands in source as it is: ``tf.nn.relu``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


ACTIVATIONS = {
    "relu": "tf.nn.relu", "tanh": "tf.tanh", "sigmoid": "tf.sigmoid", "silu": "tf.nn.silu",
    "softplus": "tf.nn.softplus",
}  # fmt: skip


def _rnn(node: Node) -> Mapping[str, Any] | None:
    w, bias_ih, bias_hh = node.inputs[1], *(*node.inputs, None, None)[3:5]
    name = ACTIVATIONS.get(node.attrs["activation"])
    if w is None or name is None:
        return None
    return {"inputs": w.shape[1], "units": w.shape[0]} | given(
        activation=(Name(name), "tf.tanh"), bias=(bias_ih is not None, True),
        recurrent_bias=(bias_hh is not None, False),
    )  # fmt: skip


def pool_arguments(node: Node) -> dict[str, Any]:
    """kernel, stride and what is not plain."""
    a = node.attrs
    padding = plain_padding(a["padding"])
    return {"kernel": square(a["kernel"]), "stride": square(a["stride"])} | given(
        padding=(padding, 0), dilation=(square(a.get("dilation", (1,))), 1),
        include_pad=(a.get("include_pad", True) or padding == 0, True),
    )  # fmt: skip


def in_volumes(node: Node) -> bool:
    """Is it a max pool along three axes, whose ties TensorFlow treats unlike others?"""
    return node.op == "max_pool" and len(node.attrs["kernel"]) == 3


def _volumes(node: Node) -> Mapping[str, Any] | None:
    arguments = pool_arguments(node)
    return arguments if in_volumes(node) and "dilation" not in arguments else None


def _only(exact: bool) -> Mapping[str, Any] | None:
    return {} if exact else None


def _dropout(node: Node) -> Mapping[str, Any] | None:
    return {"rate": node.attrs["rate"]} if node.attrs["training"] is MODE else None


_BIAS = Weight("b", "bias", "bias")
_TABLE = Weight("weight", "weight", "embeddings")
_NORM = (Weight("scale", "weight", "gamma"), Weight("bias", "bias", "beta"))
_MOVING = (
    Weight("running_mean", "running_mean", "moving_mean"),
    Weight("running_var", "running_var", "moving_variance"),
)
_TURNED = permuted(1, 0)
_RNN = (
    Weight("weight_ih", "weight_ih", "kernel", **_TURNED),
    Weight("weight_hh", "weight_hh", "recurrent_kernel", **_TURNED),
    Weight("bias_ih", "bias_ih", "bias"),
    Weight("bias_hh", "bias_hh", "recurrent_bias"),
)

FORMS = [
    LayerForm(
        "conv", "DepthwiseConv2d", _conv_depthwise,
        weights=(Weight("w", "weight", "kernel", **permuted(2, 3, 0, 1)), _BIAS),
    ),
    _conv_of("Conv2d", 2, lambda node: _plainly(node)),
    _conv_of("Conv", 2, lambda node: not _plainly(node) and not _depthwise(node)),
    _conv_of("Conv", 1, lambda node: True),
    _conv_of("Conv", 3, lambda node: True),
    LayerForm(
        "linear", "Dense", _dense,
        weights=(Weight("weight", "weight", "kernel", **_TURNED), Weight("bias", "bias", "bias")),
    ),
    LayerForm("batch_norm", "BatchNorm", _batch_norm, weights=(*_NORM, *_MOVING)),
    LayerForm("layer_norm", "LayerNorm", _layer_norm, weights=_NORM),
    LayerForm("embedding", "Embedding", _embedding, weights=(_TABLE,)),
    LayerForm("rnn", "RNN", _rnn, weights=_RNN),
    *(LayerForm(op, name, lambda node: {}) for op, name in ACTIVATIONS.items()),
    LayerForm("gelu", "tf.nn.gelu", lambda node: _only(node.attrs["approximate"] == "none")),
    LayerForm("flatten", "flatten", lambda node: _only(node.attrs["start"] == 1)),
    LayerForm("dropout", "Dropout", _dropout),
    LayerForm("max_pool", "partial(max_pool3d", _volumes),
    LayerForm("max_pool", "partial(max_pool",
              lambda node: None if in_volumes(node) else pool_arguments(node)),
    LayerForm("avg_pool", "partial(avg_pool", pool_arguments),
]  # fmt: skip


def named(graph: Graph) -> dict[str, str]:
    """Call the parameters of what is a layer as ours are: those new names, to those before."""
    uses, before = graph.uses(), dict[str, str]()
    for node in graph.nodes:
        form = next((f for f in FORMS if f.op == node.op and f.weights), None)
        arrays = dict(zip(OPS[node.op].arrays, node.inputs, strict=False))
        weights = form.weights if form else ()
        held = {w.ours: v for w in weights if (v := arrays.get(w.array)) is not None}
        if any(v.kind not in ("param", "state") or uses[v] != [node] for v in held.values()):
            continue
        paths = {parent(v.name) for v in held.values()}
        path = paths.pop() if len(paths) == 1 and "" not in paths else node.op
        others = {v.name for v in set(graph.inputs) - set(held.values())}
        while any(f"{path}.{ours}" in others for ours in held):
            path += "_"
        for ours, v in held.items():
            before[f"{path}.{ours}"], v.name = v.name, f"{path}.{ours}"
    return before
