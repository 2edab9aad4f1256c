"""Our ops as the small tf.Module layers of :mod:`helpers`."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.layer import TURNED, LayerForm, Weight, permuted, weights
from trivium.frameworks.ways import LAST, WAYS, NotTheirs, Way, each, square
from trivium.frameworks.writing.blocks import leaf, parent
from trivium.frameworks.writing.functional import plain_padding
from trivium.graph import MODE, OPS, Graph, Node


class Name(str):
    """Text that stands in source as it is: ``tf.nn.relu``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


ACTIVATIONS = {
    "relu": "tf.nn.relu", "tanh": "tf.tanh", "sigmoid": "tf.sigmoid", "silu": "tf.nn.silu",
    "softplus": "tf.nn.softplus",
}  # fmt: skip


def _function(name: str) -> Name:
    if name not in ACTIVATIONS:
        raise NotTheirs(name)
    return Name(ACTIVATIONS[name])


def _pairs(value: Any, n: int) -> Any:
    return tuple((p, p) for p in each(value, n)) if isinstance(value, int) else value


WAYS |= {
    "function": Way(lambda v, at: _function(v),
                    lambda v, at: next(k for k, f in ACTIVATIONS.items() if f == v)),
    "plainly": Way(lambda v, at: plain_padding(v), lambda v, at: _pairs(v, at.n)),
}  # fmt: skip


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


def in_volumes(node: Node) -> bool:
    """Is it a max pool along three axes, whose ties TensorFlow treats unlike others?"""
    return node.op == "max_pool" and len(node.attrs["kernel"]) == 3


def _kernel(*axes: int) -> tuple[Weight, ...]:
    return Weight("w", "weight", "kernel", **permuted(*axes)), *weights("b")


def _stated(node: Node) -> bool:
    """Are the statistics states of the model?"""
    mean = node.inputs[3]
    return mean is not None and mean.kind == "state"


_LAST = {"layout": lambda at: LAST[at.n - 1]}
_ONE = {"dilation": lambda at: (1,) * at.n}
_MOVED = "stride={stride!each|1}, padding={padding!plainly|0}, bias={b!there|True}"
_CONV = ("Conv(in_channels={w.in}, channels={w.0}, kernel_size={w.kernel}, "
         f"{_MOVED}, dilation={{dilation!each|1}}, groups={{groups|1}})")  # fmt: skip
_POOL = "kernel={kernel!each}, stride={stride!each}, padding={padding!plainly|0}"
NORM = weights(scale="gamma", bias="beta")

FORMS = [
    LayerForm("conv", f"DepthwiseConv2d(channels={{w.0}}, kernel_size={{w.kernel!each}}, {_MOVED})",
              _kernel(2, 3, 0, 1), _LAST | _ONE | {"groups": lambda at: at.x.shape[-1]},
              when=_depthwise, rank=4),
    LayerForm("conv", "Conv2d(in_channels={w.in}, channels={w.0}, kernel_size={w.kernel!each}, "
              f"{_MOVED})", _kernel(2, 3, 1, 0), _LAST | _ONE | {"groups": 1}, when=_plainly,
              rank=4),
    LayerForm("conv", _CONV, _kernel(2, 3, 1, 0), _LAST, rank=4,
              when=lambda node: not _plainly(node) and not _depthwise(node)),
    LayerForm("conv", _CONV, _kernel(2, 1, 0), _LAST, rank=3),
    LayerForm("conv", _CONV, _kernel(2, 3, 4, 1, 0), _LAST, rank=5),
    LayerForm("linear", "Dense(inputs={weight.1}, units={weight.0}, bias={bias!there|True})",
              (Weight("weight", "weight", "kernel", **TURNED), *weights("bias"))),
    LayerForm("batch_norm", "BatchNorm(channels={x.last}, decay={momentum!rest|0.9}, "
              "epsilon={epsilon|1e-5}, unbiased={unbiased|True}, scale={scale!there|True}, "
              "center={bias!there|True})",
              (*NORM, *weights(running_mean="moving_mean", running_var="moving_variance")),
              {"axis": lambda at: len(at.x.shape) - 1}, settled={"training": MODE}, when=_stated),
    LayerForm("layer_norm", "LayerNorm(shape={scale.shape!square}, epsilon={epsilon|1e-5}, "
              "center={bias!there|True})", NORM, {"axes": lambda at: len(at.arrays["scale"].shape)},
              when=lambda node: len(node.inputs) > 1 and node.inputs[1] is not None),
    LayerForm("embedding", "Embedding(count={weight.0}, width={weight.1})",
              weights(weight="embeddings")),
    LayerForm("rnn", "RNN(inputs={weight_ih.1}, units={weight_ih.0}, "
              "activation={activation!function|'tf.tanh'}, bias={bias_ih!there|True}, "
              "recurrent_bias={bias_hh!there|False})",
              (Weight("weight_ih", "weight_ih", "kernel", **TURNED),
               Weight("weight_hh", "weight_hh", "recurrent_kernel", **TURNED),
               *weights(bias_ih="bias", bias_hh="recurrent_bias"))),
    *(LayerForm(op, name) for op, name in ACTIVATIONS.items()),
    LayerForm("gelu", "tf.nn.gelu"),
    LayerForm("flatten", "flatten", fixed={"start": 1}),
    LayerForm("dropout", "Dropout(rate={rate})"),
    LayerForm("max_pool", f"max_pool3d({_POOL})", fixed=_LAST | _ONE, when=in_volumes),
    LayerForm("max_pool", f"max_pool({_POOL}, dilation={{dilation!each|1}})", fixed=_LAST,
              when=lambda node: not in_volumes(node)),
    LayerForm("avg_pool", f"avg_pool({_POOL}, include_pad={{include_pad!counted|True}})",
              fixed=_LAST),
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
