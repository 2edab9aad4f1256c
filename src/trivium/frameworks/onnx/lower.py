"""How our ops are written where ONNX has no operator with the same inputs and attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.frameworks.onnx import UNBIASED, to_onnx_dtype
from trivium.frameworks.onnx.writer import ONLY_WHEN, Writer, form, prepared
from trivium.graph import Node, UnsupportedError
from trivium.shape import Dim, Size

__all__ = ["Writer", "prepared"]  # who writes, now that it knows all forms below

END = int(np.iinfo(np.int64).max)  # a Slice up to here goes to the end of the axis
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}  # of a recurrent network


def _x(node: Node) -> Any:
    return node.inputs[0]


ONLY_WHEN["remainder"] = lambda n: n.out.dtype.is_integer  # of floats Mod is C's fmod


# -- numbers -----------------------------------------------------------------------------------
@form("full")
def _full(w: Writer, node: Node) -> str:
    shape, value, dtype = (node.attrs[k] for k in ("shape", "value", "dtype"))
    if isinstance(value, Dim):
        number = w.emit("Cast", w.size(value), to=to_onnx_dtype(dtype))
        # A size is a vector of one: the empty shape makes it a number.
        number = w.emit("Reshape", number, w.ints())
        return w.emit("Expand", number, w.sizes(shape)) if shape else number
    if not shape:
        return w.number(value, dtype)
    one = w.tensor(np.array([value]), dtype)
    return w.emit("ConstantOfShape", w.sizes(shape), value=one)


@form("constant")
def _constant(w: Writer, node: Node) -> str:
    return w.number(node.attrs["value"], node.outputs[0].dtype)


@form("arange")
def _arange(w: Writer, node: Node) -> str:
    ends = [node.attrs[k] for k in ("start", "stop", "step")]
    dtype = node.attrs["dtype"]
    if any(isinstance(e, float) for e in ends):
        if any(isinstance(e, Dim) for e in ends):
            raise UnsupportedError("an arange over floats up to an open size", w.scope)
        return w.number(np.arange(*ends), dtype)
    numbers = [
        w.emit("Squeeze", w.size(e)) if isinstance(e, Dim) else w.number(e, DType("int64"))
        for e in ends
    ]
    made = w.emit("Range", *numbers)
    return made if dtype == "int64" else w.emit("Cast", made, to=to_onnx_dtype(dtype))


@form("cast")
def _cast(w: Writer, node: Node, x: str) -> str:
    return w.emit("Cast", x, to=to_onnx_dtype(node.attrs["dtype"]))


@form("stop_gradient")
def _same(w: Writer, node: Node, x: str) -> str:
    return x


@form("not_equal")
def _not_equal(w: Writer, node: Node, x: str, y: str) -> str:
    return w.emit("Not", w.emit("Equal", x, y))


@form("log1p")
def _log1p(w: Writer, node: Node, x: str) -> str:
    # log(u) * x / (u - 1) with u = 1 + x rounded (Kahan): exact near 0, where log(1 + x) is not.
    # Where u is 1 the result is x, and where 1 no longer counts, log(x).
    one = w.number(1, _x(node).dtype)
    u = w.emit("Add", x, one)
    log = w.emit("Log", u)
    near = w.emit("Mul", log, w.emit("Div", x, w.emit("Sub", u, one)))
    some = w.emit("Where", w.emit("Equal", u, x), log, near)
    return w.emit("Where", w.emit("Equal", u, one), x, some)


@form("expm1")
def _expm1(w: Writer, node: Node, x: str) -> str:
    # tanh(x / 2) * (exp(x) + 1): no cancellation anywhere.
    dtype = _x(node).dtype
    half = w.emit("Tanh", w.emit("Mul", x, w.number(0.5, dtype)))
    return w.emit("Mul", half, w.emit("Add", w.emit("Exp", x), w.number(1, dtype)))


@form("floor_divide")
def _floor_divide(w: Writer, node: Node, x: str, y: str) -> str:
    # Div cuts off what follows the point. Without the rest, which has the sign of y, nothing does.
    return w.emit("Div", w.emit("Sub", x, w.emit("Mod", x, y)), y)


@form("gelu")
def _gelu(w: Writer, node: Node, x: str) -> str:
    return w.emit("Gelu", x, approximate=node.attrs["approximate"])


@form("hardsigmoid")
def _hardsigmoid(w: Writer, node: Node, x: str) -> str:
    return w.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@form("hardswish")
def _hardswish(w: Writer, node: Node, x: str) -> str:
    return w.emit("HardSwish", x)


@form("clip")
def _clip(w: Writer, node: Node, x: str) -> str:
    bounds = [w.number(node.attrs[k], node.out.dtype) for k in ("min", "max")]
    return w.emit("Clip", x, *bounds)


# -- reductions --------------------------------------------------------------------------------
_REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin",
               "logsumexp": "ReduceLogSumExp"}  # fmt: skip


@form(*_REDUCTIONS)
def _reduce(w: Writer, node: Node, x: str) -> str:
    axes = node.attrs["axis"]
    # No axes: nothing is reduced here, but everything in ONNX unless it is told otherwise.
    return w.emit(
        _REDUCTIONS[node.op], x, w.ints(*axes), keepdims=int(node.attrs["keepdims"]),
        noop_with_empty_axes=None if axes else 1,
    )  # fmt: skip


@form("argmax", "argmin")
def _place(w: Writer, node: Node, x: str) -> str:
    word = "ArgMax" if node.op == "argmax" else "ArgMin"
    return w.emit(word, x, axis=node.attrs["axis"], keepdims=0)


@form("cumsum")
def _cumsum(w: Writer, node: Node, x: str) -> str:
    return w.emit("CumSum", x, w.number(node.attrs["axis"], DType("int64")))


# -- shapes ------------------------------------------------------------------------------------
@form("reshape")
def _reshape(w: Writer, node: Node, x: str) -> str:
    return _to_shape(w, x, node.attrs["shape"])


def _to_shape(w: Writer, x: str, shape: tuple[Size, ...]) -> str:
    opened = [isinstance(s, Dim) for s in shape]
    if sum(opened) == 1 and 0 not in shape:
        target = w.sizes([-1 if isinstance(s, Dim) else s for s in shape])
        return w.emit("Reshape", x, target)
    # A size may be 0 now or when it runs: without allowzero that would copy the input's.
    zero = 1 if any(opened) or 0 in shape else None
    return w.emit("Reshape", x, w.sizes(shape), allowzero=zero)


@form("flatten", when=lambda n: n.attrs["start"] == 1 and _x(n).ndim >= 2)
def _flatten(w: Writer, node: Node, x: str) -> str:
    return w.emit("Flatten", x, axis=1)


@form("transpose")
def _transpose(w: Writer, node: Node, x: str) -> str:
    return w.emit("Transpose", x, perm=node.attrs["axes"])


@form("expand_dims")
def _expand_dims(w: Writer, node: Node, x: str) -> str:
    return w.emit("Unsqueeze", x, w.ints(node.attrs["axis"]))


@form("squeeze")
def _squeeze(w: Writer, node: Node, x: str) -> str:
    axes = node.attrs["axis"]
    return w.emit("Squeeze", x, w.ints(*axes)) if axes else x


@form("broadcast_to")
def _broadcast_to(w: Writer, node: Node, x: str) -> str:
    return w.emit("Expand", x, w.sizes(node.attrs["shape"]))


@form("slice_axis")
def _slice_axis(w: Writer, node: Node, x: str) -> str:
    axis, start, stop, step = (node.attrs[k] for k in ("axis", "start", "stop", "step"))
    end = w.ints(END) if stop == _x(node).shape[axis] else w.size(stop)
    return w.emit("Slice", x, w.size(start), end, w.ints(axis), w.ints(step))


@form("flip")
def _flip(w: Writer, node: Node, x: str) -> str:
    axes = node.attrs["axis"]
    back = w.ints(*[-1] * len(axes))
    return w.emit("Slice", x, back, w.ints(*[-END] * len(axes)), w.ints(*axes), back)


@form("tile", when=lambda n: len(n.attrs["repeats"]) == _x(n).ndim)
def _tile(w: Writer, node: Node, x: str) -> str:
    return w.emit("Tile", x, w.sizes(node.attrs["repeats"]))


@form("tril", "triu")
def _triangle(w: Writer, node: Node, x: str) -> str:
    at = w.number(node.attrs["diagonal"], DType("int64"))
    return w.emit("Trilu", x, at, upper=int(node.op == "triu"))


@form("split")
def _split(w: Writer, node: Node, x: str) -> list[str]:
    sizes = node.attrs["sizes"]
    return w.many("Split", len(sizes), x, w.sizes(sizes), axis=node.attrs["axis"])


@form("select")
def _select(w: Writer, node: Node, x: str) -> str:
    at = w.number(node.attrs["index"], DType("int64"))
    return w.emit("Gather", x, at, axis=node.attrs["axis"])


@form("pad")
def _pad(w: Writer, node: Node, x: str) -> str:
    low, high, interior = (list(node.attrs[k]) for k in ("low", "high", "interior"))
    value = w.number(node.attrs["value"], _x(node).dtype)
    shape = list(_x(node).shape)
    for axis, between in enumerate(interior):
        if between:  # every element followed by some of the value; the last one's go again
            wide = w.emit("Unsqueeze", x, w.ints(axis + 1))
            after = [0] * (2 * len(shape) + 2)
            after[len(shape) + 1 + axis + 1] = between
            wide = w.emit("Pad", wide, w.ints(*after), value)
            shape[axis] = shape[axis] * (between + 1)
            x = _to_shape(w, wide, tuple(shape))
            high[axis] = high[axis] - between
    return w.emit("Pad", x, w.sizes([*low, *high]), value)


# -- indices -----------------------------------------------------------------------------------
@form("embedding")
def _embedding(w: Writer, node: Node, weight: str, indices: str) -> str:
    return w.emit("Gather", weight, indices, axis=0)


@form("one_hot")
def _one_hot(w: Writer, node: Node, indices: str) -> str:
    # Not OneHot: there a negative index counts from the end, here it is no class.
    dtype = _x(node).dtype
    if isinstance(node.attrs["classes"], Dim):
        what = f"one_hot with an open number of classes ({node.attrs['classes']})"
        raise UnsupportedError(what, node.scope, "give the number of classes as a fixed size")
    classes = w.number(np.arange(node.attrs["classes"]), dtype)
    hit = w.emit("Equal", w.emit("Unsqueeze", indices, w.ints(-1)), classes)
    return w.emit("Cast", hit, to=to_onnx_dtype(node.attrs["dtype"]))


@form("take_grad")
def _take_grad(w: Writer, node: Node, g: str, indices: str) -> str:
    axis, rank = node.attrs["axis"], node.inputs[1].ndim  # type: ignore[union-attr]
    count, shape = _x(node).ndim, node.outputs[0].shape
    order = [*range(axis, axis + rank), *range(axis), *range(axis + rank, count)]
    rest = [s for i, s in enumerate(shape) if i != axis]
    zeros = w.emit(
        "ConstantOfShape",
        w.sizes([shape[axis], *rest]),
        value=w.tensor(np.zeros(1), _x(node).dtype),
    )
    wide = w.emit(
        "Unsqueeze", w.emit("Cast", indices, to=to_onnx_dtype(DType("int64"))), w.ints(-1)
    )
    made = w.emit("ScatterND", zeros, wide, w.emit("Transpose", g, perm=order), reduction="add")
    back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return w.emit("Transpose", made, perm=back)


# -- layers ------------------------------------------------------------------------------------
@form("linear", when=lambda n: bool(_x(n).dtype.is_floating))
def _linear(w: Writer, node: Node, x: str, weight: str, bias: str = "") -> str:
    if _x(node).ndim == 2:
        return w.emit("Gemm", x, weight, bias, transB=1)
    y = w.emit("MatMul", x, w.emit("Transpose", weight, perm=(1, 0)))
    return w.emit("Add", y, bias) if bias else y


def _plain(padding: Any, kernel: Any) -> bool:
    """Whether an operator can have these pads as its attribute."""
    largest = [float("inf")] * len(padding) if kernel is None else kernel
    return all(isinstance(p, int) and 0 <= p < k
               for k, pair in zip(largest, padding, strict=True) for p in pair)  # fmt: skip


def _image(w: Writer, node: Node, x: str, pad_value: float, kernel: Any,
           apply: Callable[[str, tuple[int, ...]], str]) -> str:  # fmt: skip
    """``apply(x, pads)`` channels first; pads that the operator cannot have are made by a Pad.

    onnxruntime refuses pools with pads as wide as the ``kernel`` (None: any).
    """
    rank, layout, padding = _x(node).ndim, node.attrs["layout"], node.attrs["padding"]
    last = layout[-1] == "C"
    if last:
        x = w.emit("Transpose", x, perm=(0, rank - 1, *range(1, rank - 1)))
    flat = (*(a for a, _ in padding), *(b for _, b in padding))
    if not _plain(padding, kernel):
        n = len(padding)
        amounts = w.sizes((0, 0, *flat[:n], 0, 0, *flat[n:]))
        x = w.emit("Pad", x, amounts, w.number(pad_value, _x(node).dtype))
        flat = (0,) * len(flat)
    y = apply(x, flat)
    return w.emit("Transpose", y, perm=(0, *range(2, rank), 1)) if last else y


@form("conv")
def _conv(w: Writer, node: Node, x: str, weight: str, bias: str = "") -> str:
    a = node.attrs
    kernel = node.inputs[1].shape[2:]  # type: ignore[union-attr]

    def apply(x: str, pads: tuple[int, ...]) -> str:
        return w.emit("Conv", x, weight, bias, kernel_shape=kernel, strides=a["stride"], pads=pads,
                      dilations=a["dilation"], group=a["groups"])  # fmt: skip

    return _image(w, node, x, 0, None, apply)


@form("max_pool")
def _max_pool(w: Writer, node: Node, x: str) -> str:
    a = node.attrs

    def apply(x: str, pads: tuple[int, ...]) -> str:
        return w.emit("MaxPool", x, kernel_shape=a["kernel"], strides=a["stride"], pads=pads,
                      dilations=a["dilation"])  # fmt: skip

    return _image(w, node, x, float("-inf"), a["kernel"], apply)


@form("avg_pool")
def _avg_pool(w: Writer, node: Node, x: str) -> str:
    a = node.attrs

    def apply(x: str, pads: tuple[int, ...]) -> str:
        return w.emit("AveragePool", x, kernel_shape=a["kernel"], strides=a["stride"], pads=pads,
                      count_include_pad=int(a["include_pad"]))  # fmt: skip

    if not a["include_pad"] and not _plain(a["padding"], a["kernel"]):
        raise UnsupportedError(
            f"avg_pool with padding {a['padding']} that does not count and is not smaller than the "
            f"kernel, or open", w.scope, "fix the image's size, or pad before the pool",
        )  # fmt: skip
    return _image(w, node, x, 0, a["kernel"], apply)


@form("batch_norm", when=lambda n: not n.attrs["training"] and _x(n).ndim >= 2)
def _batch_norm(w: Writer, node: Node, x: str, scale: str, bias: str, mean: str, var: str) -> Any:
    a, rank = node.attrs, _x(node).ndim
    axis = a["axis"]
    dtype, count = node.inputs[3].dtype, node.inputs[3].shape  # type: ignore[union-attr]
    scale = scale or w.emit("ConstantOfShape", w.sizes(count), value=w.tensor(np.ones(1), dtype))
    bias = bias or w.emit("ConstantOfShape", w.sizes(count), value=w.tensor(np.zeros(1), dtype))
    others = [i for i in range(rank) if i != axis]
    order = [others[0], axis, *others[1:]]
    if axis != 1:
        x = w.emit("Transpose", x, perm=order)
    y = w.emit("BatchNormalization", x, scale, bias, mean, var, epsilon=a["epsilon"],
               momentum=round(1 - a["momentum"], 12))  # fmt: skip
    w.nodes[-1].metadata_props.add(key=UNBIASED, value=str(a["unbiased"]))
    if axis != 1:
        y = w.emit("Transpose", y, perm=[order.index(i) for i in range(rank)])
    return y, mean, var


@form(
    "layer_norm",
    when=lambda n: all(isinstance(s, int) for s in _x(n).shape[-n.attrs["axes"] :]),
)
def _layer_norm(w: Writer, node: Node, x: str, scale: str = "", bias: str = "") -> str:
    axes = node.attrs["axes"]
    shape = _x(node).shape[-axes:]
    one = w.tensor(np.ones(1), _x(node).dtype)
    scale = scale or w.emit("ConstantOfShape", w.sizes(shape), value=one)
    return w.emit("LayerNormalization", x, scale, bias, axis=-axes, epsilon=node.attrs["epsilon"])


@form("rnn", when=lambda n: n.attrs["activation"] in ACTIVATIONS)
def _rnn(w: Writer, node: Node, x: str, weight_ih: str, weight_hh: str, bias_ih: str = "",
         bias_hh: str = "") -> tuple[str, str]:  # fmt: skip
    hidden = node.inputs[2].shape[0]  # type: ignore[union-attr]
    zeros = ""
    if bool(bias_ih) != bool(bias_hh):
        zero = w.tensor(np.zeros(1), _x(node).dtype)
        zeros = w.emit("ConstantOfShape", w.size(hidden), value=zero)
    first = w.ints(0)
    bias = ""
    if bias_ih or bias_hh:
        both = w.emit("Concat", bias_ih or zeros, bias_hh or zeros, axis=0)
        bias = w.emit("Unsqueeze", both, first)
    # Time first and an axis for the directions; onnxruntime has no layout=1.
    y, last = w.many(
        "RNN", 2, w.emit("Transpose", x, perm=(1, 0, 2)), w.emit("Unsqueeze", weight_ih, first),
        w.emit("Unsqueeze", weight_hh, first), bias, hidden_size=hidden,
        activations=[ACTIVATIONS[node.attrs["activation"]]],
    )  # fmt: skip
    y = w.emit("Transpose", w.emit("Squeeze", y, w.ints(1)), perm=(1, 0, 2))
    return y, w.emit("Squeeze", last, first)


# -- control flow ------------------------------------------------------------------------------
@form("cond")
def _cond(w: Writer, node: Node, condition: str, *operands: str) -> Any:
    branches = [w.body(node.attrs[k], operands) for k in ("then", "otherwise")]
    return w.many("If", len(node.outputs), condition, then_branch=branches[0],
                  else_branch=branches[1])  # fmt: skip


@form("scan")
def _scan(w: Writer, node: Node, *xs: str) -> Any:
    carries, scanned = node.attrs["carries"], node.attrs["scanned"]
    own = carries + scanned
    body = w.body(node.attrs["body"], xs[own:], own)
    back = int(node.attrs["reverse"])
    return w.many(
        "Scan", len(node.outputs), *xs[:own], body=body, num_scan_inputs=scanned,
        scan_input_directions=[back] * scanned,
        scan_output_directions=[back] * (len(node.outputs) - carries),
    )  # fmt: skip
