"""Our ops as Keras layers: lines that emission writes and the importer reads backwards."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.layer import (
    SPATIAL,
    TURNED,
    Weight,
    by_rank,
    permuted,
    weights,
)
from trivium.frameworks.layer import LayerForm as Form
from trivium.frameworks.ways import FIRST, LAST, WAYS, At, NotTheirs, Several, Way
from trivium.graph import Node, UnsupportedError
from trivium.shape import Size

Pair = tuple[Size, Size]


# -- Keras's words ---------------------------------------------------------------------------------
def layout_of(data_format: str | None, rank: int) -> str:
    """Keras's data format for images of ``rank`` axes, in our words."""
    return (FIRST if data_format == "channels_first" else LAST)[rank - 3]


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


def _border(padding: Any, at: At) -> str:
    """Keras's word for a padding; NotTheirs where it has none."""
    kernel, stride = at.kernel, at.attrs["stride"]
    dilation = at.attrs.get("dilation", (1,) * len(kernel))
    if all(p == (0, 0) for p in padding):
        return "valid"
    if padding == tuple(map(same_pad, at.sizes, kernel, stride, dilation)):
        return "same"
    causal = tuple(((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True))
    if padding == causal and at.op.name == "conv" and at.attrs["layout"] == "NWC":
        return "causal"
    raise NotTheirs(f"padding {padding}")


def _unbordered(word: str, at: At) -> Any:
    dilation = at.attrs["dilation"] if "dilation" in at.op.defaults else (1,) * at.n
    return window_padding(word, at.sizes, at.kernel, at.attrs["stride"], dilation)


def _batch(at: At) -> tuple[Any, ...]:
    return tuple(at.x.shape[:1]) if at.op.name == "reshape" else (0,)


def _behind(items: Any, at: At) -> Any:
    """All but the first, which is the batch: its size, or its place."""
    fixed = all(isinstance(s, int) for s in items[1:])
    if not at.x.shape or items[:1] != _batch(at) or not fixed or items == (0,):
        raise NotTheirs(f"{items}, which moves the batch")
    return items[1:]


def _axes(count: int, at: At) -> Any:
    rank = len(at.x.shape)
    return -1 if count == 1 else list(range(rank - count, rank))


def _count(axis: Any, at: At) -> int:
    rank = len(at.x.shape)
    axes = sorted(a % rank for a in ([axis] if isinstance(axis, int) else axis))
    if axes != list(range(rank - len(axes), rank)):
        raise NotTheirs(f"axis={axis}: only last axes are carried")
    return len(axes)


def _images(axis: Any, at: At) -> str:
    formats = {tuple(range(1, at.n + 1)): "channels_last", tuple(range(2, at.n + 2)):
               "channels_first"}  # fmt: skip
    if axis not in formats:
        raise NotTheirs(f"axis={axis}")
    return formats[axis]


def _around(first: bool) -> Way:
    """The pads of images whose channels come first, or last; the batch and they get none."""

    def to(low: Any, at: At) -> Any:
        pads = tuple(zip(low, at.attrs["high"], strict=True))
        moved, others = (pads[2:], pads[:2]) if first else (pads[1:-1], (pads[0], pads[-1]))
        if any(p < 0 for pair in moved for p in pair) or set(others) != {(0, 0)}:
            raise NotTheirs(f"padding {pads}")
        if all(pair == (moved[0][0],) * 2 for pair in moved):
            return moved[0][0]
        return moved[0] if len(moved) == 1 else moved

    def back(word: Any, at: At) -> Several:
        each = (word,) * at.n if isinstance(word, int) else (word,) if at.n == 1 else word
        moved = [(p, p) if isinstance(p, int) else tuple(p) for p in each]
        pads = [(0, 0), (0, 0), *moved] if first else [(0, 0), *moved, (0, 0)]
        low, high = zip(*pads, strict=True)
        return Several(low=low, high=high)

    return Way(to, back)


WAYS |= {
    "format": Way(lambda v, at: "channels_first" if v[1] == "C" else "channels_last",
                  lambda v, at: layout_of(v, at.n + 2)),
    "border": Way(_border, _unbordered),
    "behind": Way(_behind, lambda v, at: (*_batch(at), *v)),
    "lasts": Way(_axes, _count),
    "images": Way(_images, lambda v, at: tuple(range(1, at.n + 1)) if v == "channels_last" else
                  tuple(range(2, at.n + 2))),
    "around": _around(first=False),
    "around_last": _around(first=True),
}  # fmt: skip


# -- lines -----------------------------------------------------------------------------------------
_WINDOW = ("strides={stride!%s}, padding={padding!border|'valid'}, "
           "data_format={layout!format|'channels_last'}")  # fmt: skip
_STEPS, _MOVED = _WINDOW % "steps|None", _WINDOW % "each|1"
_CONV = f"kernel_size={{w.kernel!each}}, {_MOVED}, dilation_rate={{dilation!each|1}}"
_LEARNED = "epsilon={epsilon|1e-3}, center={bias!there|True}, scale={scale!there|True}"
NORM = f"axis={{axis!end|-1}}, momentum={{momentum!rest|0.99}}, {_LEARNED}"
STATISTICS = weights(scale="gamma", bias="beta", running_mean="moving_mean",
                     running_var="moving_variance")  # fmt: skip
CELL = (Weight("weight_ih", "weight_ih", "cell.kernel", **TURNED),
        Weight("weight_hh", "weight_hh", "cell.recurrent_kernel", **TURNED),
        *weights(bias_ih="cell.bias"))  # fmt: skip


def _movable(node: Node) -> bool:
    """Keras refuses strides and dilations together."""
    return 1 in (max(node.attrs["stride"]), max(node.attrs["dilation"]))


def _depthwise(node: Node) -> bool:
    # A depth multiplier cannot be told from the array alone: Conv with groups says it exactly.
    # tf.nn.depthwise_conv2d wants one stride for both axes.
    w, a = node.inputs[1], node.attrs
    assert w is not None
    once = 1 < a["groups"] == w.shape[0] and w.shape[1] == 1
    return bool(once and _movable(node) and len(set(a["stride"])) == 1)


def _conv(n: int) -> list[Form]:
    kernel = Weight("w", "weight", "kernel", **permuted(*range(2, n + 2), 1, 0))
    line = f"(filters={{w.0}}, {_CONV}, groups={{groups|1}}, use_bias={{b!there|True}})"
    return by_rank("conv", f"layers.Conv#D{line}", {n: SPATIAL[n]}, weights=(kernel, *weights("b")),
                   when=_movable)  # fmt: skip


def _depthwise_conv(n: int) -> list[Form]:
    axes = (*range(2, n + 2), 0, 1)  # (C, 1, *k) -> (*k, C, 1)

    def back(a: Any) -> Any:  # (*k, C, M) -> (C*M, 1, *k): channel c*M + m
        a = a.transpose(n, n + 1, *range(n))
        return a.reshape(-1, 1, *a.shape[2:])

    kernel = Weight("w", "weight", "kernel", to=lambda a: a.transpose(axes), back=back)
    line = f"({_CONV}, use_bias={{b!there|True}}, depth_multiplier={{w.multiple|1}})"
    return by_rank("conv", f"layers.DepthwiseConv#D{line}", {n: SPATIAL[n]}, when=_depthwise,
                   weights=(kernel, *weights("b")), fixed={"groups": _channels})  # fmt: skip


def _channels(at: At) -> Any:
    """A depthwise layer has no word for its groups: they are its channels."""
    return at.x.shape[at.attrs["layout"].index("C")]


def _infers(node: Node) -> bool:
    """Keras's running variance is the biased one; without training there is no difference."""
    return node.attrs["training"] is False or not node.attrs["unbiased"]


def outputs_read(node: Node) -> dict[str, tuple[bool, bool]]:
    """Both outputs read: the layer returns ``(outputs, last)``; the last alone is its default."""
    graph = node.outputs[0].graph
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.results())
    sequences, last = (v in read for v in node.outputs)
    return {"return_sequences": (sequences, False), "return_state": (sequences and last, False)}


def _pools(op: str, name: str) -> list[Form]:
    line = f"layers.{name}Pooling#D(pool_size={{kernel!each}}, {_STEPS})"
    if op == "max_pool":
        return by_rank(op, line, SPATIAL, fixed={"dilation": lambda at: (1,) * at.n})
    # Keras leaves the pads out of the count; without pads the two ways of counting are one.
    return by_rank(op, line, SPATIAL, when=_uncounted,
                   settled={"include_pad": lambda at: not padded(at.attrs["padding"])})  # fmt: skip


def _uncounted(node: Node) -> bool:
    return not (node.attrs["include_pad"] and padded(node.attrs["padding"]))


def padded(padding: Any) -> bool:
    """Are there any pads?"""
    return any(p != (0, 0) for p in padding)


def _global_pools(op: str, name: str) -> list[Form]:
    words = "data_format={axis!images|'channels_last'}, keepdims={keepdims|False}"
    return by_rank(op, f"layers.Global{name}Pooling#D({words})", SPATIAL,
                   fixed={"ties": "share"} if op == "max" else {})  # fmt: skip


def _zero_padding(way: str, more: str = "") -> list[Form]:
    line = f"layers.ZeroPadding#D(padding={{low!{way}}}{more})"
    return by_rank("pad", line, SPATIAL, settled={"high": lambda at: at.attrs["high"]},
                   fixed={"interior": lambda at: (0,) * (at.n + 2)})  # fmt: skip


def _activation(op: str) -> Form:
    return Form(op, f"layers.Activation(activation='{op}')")


FORMS: list[Form] = [
    *(f for n in (1, 2) for f in _depthwise_conv(n)),
    *(f for n in SPATIAL for f in _conv(n)),
    Form("linear", "layers.Dense(units={weight.0}, use_bias={bias!there|True})",
         (Weight("weight", "weight", "kernel", **TURNED), *weights("bias")),
         when=lambda node: node.inputs[0] is not None and len(node.inputs[0].shape) > 1),
    Form("batch_norm", f"layers.BatchNormalization({NORM}, trainable={{training!learns|True}})",
         STATISTICS, when=_infers, settled={"unbiased": False}),
    Form("layer_norm", "layers.LayerNormalization(axis={axes!lasts|-1}, "
         f"{_LEARNED})", weights(scale="gamma", bias="beta")),
    Form("embedding", "layers.Embedding(input_dim={weight.0}, output_dim={weight.1})",
         weights(weight="embeddings")),
    Form("rnn", "layers.SimpleRNN(units={weight_ih.0}, activation={activation!gate|'tanh'}, "
         "use_bias={bias_ih!there|True})", CELL, beside=outputs_read,
         when=lambda node: len(node.inputs) < 5 or node.inputs[4] is None),  # Keras keeps one bias
    *_pools("max_pool", "Max"), *_pools("avg_pool", "Average"),
    *_global_pools("mean", "Average"), *_global_pools("max", "Max"),
    *_zero_padding("around"), *_zero_padding("around_last", ", data_format='channels_first'"),
    Form("dropout", "layers.Dropout(rate={rate})"),
    Form("flatten", "layers.Flatten()", fixed={"start": 1}),
    Form("reshape", "layers.Reshape(target_shape={shape!behind})"),
    Form("transpose", "layers.Permute(dims={axes!behind})"),
    Form("softmax", "layers.Softmax(axis={axis!end|-1})"),
    Form("leaky_relu", "layers.LeakyReLU(negative_slope={slope|0.3})"),
    Form("relu", "layers.ReLU()"),
    *map(_activation, ("tanh", "sigmoid", "silu", "gelu", "softplus")),
]  # fmt: skip
