"""Our ops as Keras layers.

Written forwards and read backwards: where a form has ``read``, the importer takes the layer's
arithmetic from here; a layer without one is read by following its ``call``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.frameworks.layer import LayerForm, Weight, given, permuted, square
from trivium.graph import MODE, Node, UnsupportedError, Value
from trivium.shape import Size

Arguments = Mapping[str, Any]
Pair = tuple[Size, Size]


class NotPlain(Exception):
    """The layer does more than its form says; what its ``call`` does is followed instead."""


LAST = ("NWC", "NHWC", "NDHWC")
FIRST = ("NCW", "NCHW", "NCDHW")


# -- helpers ---------------------------------------------------------------------------------------
def each(value: Any, n: int) -> tuple[int, ...]:
    """One number per axis, as Keras keeps an int, a list or a tuple."""
    return (value,) * n if isinstance(value, int) else tuple(value)


def layout_of(data_format: str | None, rank: int) -> str:
    """Keras's data format for images of ``rank`` axes, in our words."""
    return (FIRST if data_format == "channels_first" else LAST)[rank - 3]


def spatial(shape: tuple[Size, ...], layout: str) -> tuple[Size, ...]:
    """The sizes that a window moves along."""
    return shape[1:-1] if layout[-1] == "C" else shape[2:]


def same_pad(n: Size, k: int, s: int, d: int) -> Pair | None:
    """TF's SAME: what keeps ceil(n / s) windows, an odd one after; None where that needs n."""
    if s == 1:
        total: Size = (k - 1) * d
    elif isinstance(n, int):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
    else:
        return None
    return total // 2, total - total // 2


def window_padding(
    padding: str, sizes: tuple[Size, ...], kernel: Any, stride: Any, dilation: Any
) -> tuple[Pair, ...]:
    """Keras's padding ("valid", "same", "causal") as (low, high) per axis, for these sizes."""
    pads: list[Pair] = []
    for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        pair: Pair | None = (0, 0)
        if padding == "causal":
            pair = ((k - 1) * d, 0)
        elif padding == "same":
            pair = same_pad(n, k, s, d)
        if pair is None:
            raise UnsupportedError(
                f"padding='same' with stride {s} over an open size ({n}) depends on that size",
                remedy="give the model's Input a fixed height and width",
            )
        pads.append(pair)
    return tuple(pads)


def _window(node: Node, kernel: tuple[int, ...], stride: Any) -> dict[str, Any] | None:
    """What convolutions and pools share; None where Keras has no word for the padding."""
    a = node.attrs
    x = node.inputs[0]
    assert x is not None
    steps, dilation = a["stride"], a.get("dilation", (1,) * len(kernel))
    sizes = spatial(x.shape, a["layout"])
    same = tuple(map(same_pad, sizes, kernel, steps, dilation))
    causal = tuple(((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True))
    if all(p == (0, 0) for p in a["padding"]):
        padding = "valid"
    elif a["padding"] == same:
        padding = "same"
    elif a["padding"] == causal and node.op == "conv" and a["layout"] == "NWC":
        padding = "causal"
    else:
        return None
    first = "channels_first" if a["layout"][1] == "C" else "channels_last"
    return given(
        strides=(square(steps), stride),
        padding=(padding, "valid"),
        data_format=(first, "channels_last"),
    )


def _array(node: Node, index: int) -> Value | None:
    """An input of ``node`` that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


# -- layers with weights ---------------------------------------------------------------------------
_BIAS = Weight("b", "bias", "bias")


def _dense(node: Node) -> Arguments | None:
    x, w = node.inputs[:2]
    if x is None or w is None or len(x.shape) < 2:
        return None
    return {"units": w.shape[0]} | given(use_bias=(_array(node, 2) is not None, True))


def _read_conv(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    n = len(shape) - 2
    layout = layout_of(config["data_format"], len(shape))
    kernel, stride, dilation = (
        each(config[k], n) for k in ("kernel_size", "strides", "dilation_rate")
    )
    sizes = spatial(shape, layout)
    return {
        "stride": stride,
        "padding": window_padding(config["padding"], sizes, kernel, stride, dilation),
        "dilation": dilation,
        # A depthwise layer has no word for its groups: they are its channels.
        "groups": config.get("groups") or shape[layout.index("C")],
        "layout": layout,
    }


def _conv_arguments(node: Node, rank: int) -> dict[str, Any] | None:
    x, w = node.inputs[:2]
    a = node.attrs
    if x is None or w is None or len(x.shape) != rank + 2:
        return None
    if max(a["stride"]) > 1 and max(a["dilation"]) > 1:
        return None  # Keras refuses the two together
    kernel = tuple(w.shape[2:])
    window = _window(node, kernel, 1)  # type: ignore[arg-type]  # kernels have fixed sizes
    if window is None:
        return None
    return (
        {"kernel_size": square(kernel)} | window | given(dilation_rate=(square(a["dilation"]), 1))
    )


def _conv(rank: int) -> LayerForm:
    def write(node: Node) -> Arguments | None:
        arguments = _conv_arguments(node, rank)
        w = node.inputs[1]
        if arguments is None or w is None:
            return None
        bias = _array(node, 2) is not None
        return (
            {"filters": w.shape[0]}
            | arguments
            | given(groups=(node.attrs["groups"], 1), use_bias=(bias, True))
        )

    kernel = Weight("w", "weight", "kernel", **permuted(*range(2, rank + 2), 1, 0))
    return LayerForm("conv", f"layers.Conv{rank}D", write, _read_conv, (kernel, _BIAS))


def _depthwise(rank: int) -> LayerForm:
    def write(node: Node) -> Arguments | None:
        w, a = node.inputs[1], node.attrs
        arguments = _conv_arguments(node, rank)
        # A depth multiplier cannot be told from the array alone: Conv with groups says it exactly.
        # tf.nn.depthwise_conv2d wants one stride for both axes.
        if arguments is None or w is None or not (1 < a["groups"] == w.shape[0]):
            return None
        if w.shape[1] != 1 or len(set(a["stride"])) > 1:
            return None
        return arguments | given(use_bias=(_array(node, 2) is not None, True))

    axes = (*range(2, rank + 2), 0, 1)  # (C, 1, *k) -> (*k, C, 1)

    def back(a: Any) -> Any:  # (*k, C, M) -> (C*M, 1, *k): channel c*M + m
        a = a.transpose(rank, rank + 1, *range(rank))
        return a.reshape(-1, 1, *a.shape[2:])

    kernel = Weight("w", "weight", "kernel", to=lambda a: a.transpose(axes), back=back)
    return LayerForm("conv", f"layers.DepthwiseConv{rank}D", write, _read_conv, (kernel, _BIAS))


def _batch_norm(node: Node) -> Arguments | None:
    """Keras's running variance is the biased one; with ``trainable=False`` it always infers."""
    x, scale, bias = node.inputs[:3]
    a = node.attrs
    unbiased = a["unbiased"] and a["training"] is MODE  # without training there is no difference
    if x is None or unbiased or a["training"] is True:
        return None
    return given(
        axis=(a["axis"] - len(x.shape), -1),
        momentum=(round(1 - a["momentum"], 12), 0.99),
        epsilon=(a["epsilon"], 1e-3),
        center=(bias is not None, True),
        scale=(scale is not None, True),
        trainable=(a["training"] is MODE, True),
    )


def _read_batch_norm(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    if config.get("renorm"):
        raise UnsupportedError("BatchNormalization(renorm=True)", remedy="train it without renorm")
    return {
        "axis": config["axis"],
        "momentum": round(1 - config["momentum"], 12),
        "epsilon": config["epsilon"],
        "unbiased": False,
        "training": MODE if config["trainable"] else False,
    }


def _layer_norm(node: Node) -> Arguments | None:
    x = node.inputs[0]
    if x is None:
        return None
    rank, axes = len(x.shape), node.attrs["axes"]
    axis = -1 if axes == 1 else list(range(rank - axes, rank))
    return given(
        axis=(axis, -1),
        epsilon=(node.attrs["epsilon"], 1e-3),
        center=(_array(node, 2) is not None, True),
        scale=(_array(node, 1) is not None, True),
    )


def _read_layer_norm(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    axis = config["axis"]
    axes = sorted(a % len(shape) for a in ([axis] if isinstance(axis, int) else axis))
    if axes != list(range(len(shape) - len(axes), len(shape))):
        raise UnsupportedError(f"LayerNormalization(axis={axis}): only last axes are carried")
    if config.get("rms_scaling"):
        raise UnsupportedError("LayerNormalization(rms_scaling=True)")
    return {"axes": len(axes), "epsilon": config["epsilon"]}


def _embedding(node: Node) -> Arguments | None:
    w = node.inputs[0]
    return None if w is None else {"input_dim": w.shape[0], "output_dim": w.shape[1]}


def _read_embedding(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    if config["mask_zero"]:
        raise UnsupportedError(
            "Embedding(mask_zero=True): the mask it sends along is not carried",
            remedy="pass the lengths or a mask explicitly",
        )
    return {}


def _rnn(node: Node) -> Arguments | None:
    """Both outputs read: the layer returns ``(outputs, last)``; the last alone is its default."""
    w = node.inputs[1]
    if w is None or _array(node, 4) is not None:  # Keras keeps one bias
        return None
    graph = node.outputs[0].graph
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.results())
    sequences, last = (v in read for v in node.outputs)
    return {"units": w.shape[0]} | given(
        activation=(node.attrs["activation"], "tanh"),
        use_bias=(_array(node, 3) is not None, True),
        return_sequences=(sequences, False),
        return_state=(sequences and last, False),
    )


def _read_rnn(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    wrong = [k for k in ("stateful", "dropout", "recurrent_dropout", "zero_output_for_mask")
             if config.get(k)]  # fmt: skip
    if config["activation"] not in ("tanh", "relu"):
        wrong.append("activation")
    if wrong:
        raise UnsupportedError(f"SimpleRNN({wrong[0]}={config[wrong[0]]!r})")
    return {"activation": config["activation"]}


def _named(**theirs: str) -> tuple[Weight, ...]:
    return tuple(Weight(n, "weight" if n == "scale" else n, t) for n, t in theirs.items())


# -- layers without weights ------------------------------------------------------------------------
def _pool(op: str, name: str, rank: int) -> LayerForm:
    def write(node: Node) -> Arguments | None:
        a = node.attrs
        if len(a["kernel"]) != rank or any(d != 1 for d in a.get("dilation", ())):
            return None
        padded = any(p != (0, 0) for p in a["padding"])
        if a.get("include_pad") and padded:  # Keras leaves the pads out of the count
            return None
        window = _window(node, a["kernel"], square(a["kernel"]))
        return None if window is None else {"pool_size": square(a["kernel"])} | window

    def read(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
        layout = layout_of(config["data_format"], len(shape))
        kernel = each(config["pool_size"], rank)
        stride = each(config["strides"] or kernel, rank)
        sizes = spatial(shape, layout)
        pads = window_padding(config["padding"], sizes, kernel, stride, (1,) * rank)
        attrs: dict[str, Any] = {
            "kernel": kernel,
            "stride": stride,
            "padding": pads,
            "layout": layout,
        }
        if op == "avg_pool":  # without pads the two ways of counting are one
            attrs["include_pad"] = all(p == (0, 0) for p in pads)
        return attrs

    return LayerForm(op, f"layers.{name}Pooling{rank}D", write, read)


def _global_pool(op: str, name: str, rank: int) -> LayerForm:
    def write(node: Node) -> Arguments | None:
        x, axis = node.inputs[0], node.attrs["axis"]
        if x is None or len(x.shape) != rank + 2 or node.attrs.get("ties", "share") != "share":
            return None
        formats = {
            tuple(range(1, rank + 1)): "channels_last",
            tuple(range(2, rank + 2)): "channels_first",
        }
        if axis not in formats:
            return None
        return given(
            data_format=(formats[axis], "channels_last"),
            keepdims=(node.attrs["keepdims"], False),
        )

    return LayerForm(op, f"layers.Global{name}Pooling{rank}D", write)


def _zero_padding(rank: int) -> LayerForm:
    def write(node: Node) -> Arguments | None:
        a = node.attrs
        pads = tuple(zip(a["low"], a["high"], strict=True))
        if a["value"] != 0 or any(a["interior"]) or len(pads) != rank + 2:
            return None
        if any(p < 0 for pair in pads for p in pair) or pads[0] != (0, 0):
            return None
        if pads[-1] == (0, 0):
            moved, data_format = pads[1:-1], "channels_last"
        elif pads[1] == (0, 0):
            moved, data_format = pads[2:], "channels_first"
        else:
            return None
        plain: Any = moved[0] if rank == 1 else moved
        if all(low == high == moved[0][0] for low, high in moved):
            plain = moved[0][0]
        return {"padding": plain} | given(data_format=(data_format, "channels_last"))

    return LayerForm("pad", f"layers.ZeroPadding{rank}D", write)


def _dropout(node: Node) -> Arguments | None:
    return {"rate": node.attrs["rate"]} if node.attrs["training"] is MODE else None


def _permute(node: Node) -> Arguments | None:
    axes = node.attrs["axes"]
    return {"dims": axes[1:]} if axes[:1] == (0,) and len(axes) > 1 else None


def _reshape(node: Node) -> Arguments | None:
    x, shape = node.inputs[0], node.attrs["shape"]
    if x is None or not x.shape or not shape or shape[0] != x.shape[0]:
        return None
    return {"target_shape": shape[1:]} if all(isinstance(s, int) for s in shape[1:]) else None


def _read_reshape(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    return {"shape": (shape[0], *config["target_shape"])}


def _read_flatten(config: Arguments, shape: tuple[Any, ...]) -> Arguments:
    if len(shape) < 2 or config["data_format"] == "channels_first":
        raise NotPlain  # channels first: Keras moves the channels last before it flattens
    return {"start": 1}


def _softmax(node: Node) -> Arguments | None:
    x = node.inputs[0]
    return None if x is None else given(axis=(node.attrs["axis"] - len(x.shape), -1))


def _activation(op: str) -> LayerForm:
    def write(node: Node) -> Arguments | None:
        return {"activation": op} if node.attrs.get("approximate", "none") == "none" else None

    return LayerForm(op, "layers.Activation", write)


RANKS = (1, 2, 3)

FORMS: list[LayerForm] = [
    *(_depthwise(n) for n in (1, 2)),
    *(_conv(n) for n in RANKS),
    LayerForm("linear", "layers.Dense", _dense, lambda config, shape: {},
              (Weight("weight", "weight", "kernel", **permuted(1, 0)),
               Weight("bias", "bias", "bias"))),
    LayerForm("batch_norm", "layers.BatchNormalization", _batch_norm, _read_batch_norm,
              _named(scale="gamma", bias="beta", running_mean="moving_mean",
                     running_var="moving_variance")),
    LayerForm("layer_norm", "layers.LayerNormalization", _layer_norm, _read_layer_norm,
              _named(scale="gamma", bias="beta")),
    LayerForm("embedding", "layers.Embedding", _embedding, _read_embedding,
              (Weight("weight", "weight", "embeddings"),)),
    LayerForm("rnn", "layers.SimpleRNN", _rnn, _read_rnn, (
        Weight("weight_ih", "weight_ih", "cell.kernel", **permuted(1, 0)),
        Weight("weight_hh", "weight_hh", "cell.recurrent_kernel", **permuted(1, 0)),
        Weight("bias_ih", "bias_ih", "cell.bias"))),
    *(_pool("max_pool", "Max", n) for n in RANKS),
    *(_pool("avg_pool", "Average", n) for n in RANKS),
    *(_global_pool("mean", "Average", n) for n in RANKS),
    *(_global_pool("max", "Max", n) for n in RANKS),
    *(_zero_padding(n) for n in RANKS),
    LayerForm("dropout", "layers.Dropout", _dropout),
    LayerForm("flatten", "layers.Flatten",
              lambda node: {} if node.attrs["start"] == 1 else None, _read_flatten),
    LayerForm("reshape", "layers.Reshape", _reshape, _read_reshape),
    LayerForm("transpose", "layers.Permute", _permute),
    LayerForm("softmax", "layers.Softmax", _softmax),
    LayerForm("leaky_relu", "layers.LeakyReLU",
              lambda node: given(negative_slope=(node.attrs["slope"], 0.3))),
    LayerForm("relu", "layers.ReLU", lambda node: {}),
    *(_activation(op) for op in ("tanh", "sigmoid", "silu", "gelu", "softplus")),
]  # fmt: skip
