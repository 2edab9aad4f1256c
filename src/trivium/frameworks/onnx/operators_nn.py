"""What the ONNX operators with weights and windows are in our ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trivium.frameworks.onnx import UNBIASED
from trivium.frameworks.onnx.lower import ACTIVATIONS
from trivium.frameworks.onnx.operators import OP, OPERATORS, is_all, reads
from trivium.frameworks.onnx.operators_shape import squeezed, transposed
from trivium.frameworks.onnx.read import Call
from trivium.graph import Value
from trivium.shape import Dim, Size

__all__ = ["OPERATORS"]  # now complete: this module imports the others that fill it

_TURN = (1, 0)


def _turned(a: Any) -> Any:
    return transposed(a, _TURN) if isinstance(a, Value) else a.T


# -- products ----------------------------------------------------------------------------------
@reads("Gemm")
def _gemm(call: Call) -> Any:
    alpha, beta = call.attr("alpha"), call.attr("beta")
    x = call.value(0)
    if not x.dtype.is_floating:
        raise call.refuse("a Gemm of integers", "cast to float around it")
    x = transposed(x, _TURN) if call.attr("transA") else x
    weight = call.weight(1, "weight", change=None if call.attr("transB") else _turned)
    bias = call.weight(2, "bias") if call.has(2) else None
    if alpha == beta == 1 and (bias is None or bias.shape == weight.shape[:1]):
        return OP["linear"](x, weight, bias)
    y = OP["linear"](x, weight)
    y = y if alpha == 1 else y * alpha
    if bias is None or beta == 0:
        return y
    return y + (bias if beta == 1 else bias * beta)


@reads("MatMul")
def _matmul(call: Call) -> Any:
    x, name = call.value(0), call.node.input[1]
    table = call.reader.initializer(name)
    if table is not None and len(table.dims) == 2 and x.ndim > 1 and x.dtype.is_floating:
        return OP["linear"](x, call.weight(1, "weight", change=_turned))
    y = call.value(1)
    if x.dtype != y.dtype:
        raise call.refuse(f"MatMul of {x.dtype} and {y.dtype}")
    turned = transposed(y, _TURN) if y.ndim == 2 and _is_turned(y) else None
    if turned is not None and turned.kind == "param" and x.dtype.is_floating:
        return OP["linear"](x, turned)
    return OP["matmul"](x, y)


def _is_turned(y: Value) -> bool:
    return y.node is not None and y.node.op == "transpose"


@reads("Add")
def _add(call: Call) -> Any:
    x, y = call.value(0), call.value(1)
    if x.dtype != y.dtype:
        raise call.refuse(f"Add of {x.dtype} and {y.dtype}", "insert a Cast")
    for product, bias, name in ((x, y, call.node.input[0]), (y, x, call.node.input[1])):
        made = product.node
        if (
            made is not None
            and made.op == "linear"
            and made.inputs[2] is None
            and call.reader.uses[name] == 1
            and bias.kind == "param"
            and made.inputs[1].shape[:1] == bias.shape
        ):  # a linear layer on three axes or more is a MatMul and an Add
            return OP["linear"](*made.inputs[:2], bias)
    return OP["add"](x, y)


# -- windows -----------------------------------------------------------------------------------
def _window(call: Call, x: Any, kernel: tuple[Size, ...]) -> dict[str, Any]:
    """stride, dilation and explicit padding of a convolution or pool."""
    n = len(kernel)
    stride = call.attr("strides") or (1,) * n
    dilation = call.attr("dilations") or (1,) * n
    mode = call.attr("auto_pad") or "NOTSET"
    pads = call.attr("pads") or (0,) * (2 * n)
    if len(pads) != 2 * n or len(stride) != n or len(dilation) != n or x.ndim != n + 2:
        raise call.refuse(f"strides {stride}, pads {pads} for a window {kernel} over {x.shape}")
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        padding = [
            _same(call, size, k, s) for size, k, s in zip(x.shape[2:], spans, stride, strict=True)
        ]
    elif mode == "VALID":
        padding = [(0, 0)] * n
    else:
        padding = list(zip(pads[:n], pads[n:], strict=True))
    if call.attr("ceil_mode"):
        padding = [
            _ceil(call, *one) for one in zip(x.shape[2:], padding, spans, stride, strict=True)
        ]
    return {"stride": tuple(stride), "dilation": tuple(dilation), "padding": tuple(padding)}


def _same(call: Call, size: Size, span: int, stride: int) -> tuple[Size, Size]:
    total = (-((-size) // stride) - 1) * stride + span - size
    if isinstance(total, int):
        total = max(total, 0)
    elif stride > span:
        raise call.refuse(f"{call.attr('auto_pad')} over the open size {size}", "fix the size")
    less = total // 2
    return (less, total - less) if call.attr("auto_pad") == "SAME_UPPER" else (total - less, less)


def _ceil(
    call: Call, size: Size, pad: tuple[Size, Size], span: int, stride: int
) -> tuple[Size, Size]:
    """The padding that lets a last, partly filled window in, unless it starts in the high pad."""
    low, high = pad
    over = (size + low + high - span) % stride
    extra = 0 if over == 0 else stride - over
    if isinstance(over, Dim):
        raise call.refuse(f"ceil_mode over the open size {size}", "fix the size")
    last = (size + low + high + extra - span) // stride * stride
    if extra and last >= size + low:
        return pad
    return low, high + extra


@reads("Conv")
def _conv(call: Call) -> Any:
    x, weight = call.value(0), call.weight(1, "weight")
    bias = call.weight(2, "bias") if call.has(2) else None
    kernel = weight.shape[2:]
    said = call.attr("kernel_shape")
    if said is not None and tuple(said) != kernel:
        raise call.refuse(f"kernel_shape {said} with kernels of shape {weight.shape}")
    return OP["conv"](x, weight, bias, groups=call.attr("group"), **_window(call, x, kernel))


@reads("MaxPool")
def _max_pool(call: Call) -> Any:
    x, kernel = call.value(0), tuple(call.attr("kernel_shape"))
    if call.outputs > 1 or not x.dtype.is_floating:
        raise call.refuse("a MaxPool that also gives indices, or of integers")
    return OP["max_pool"](x, kernel=kernel, **_window(call, x, kernel))


@reads("AveragePool")
def _avg_pool(call: Call) -> Any:
    x, kernel = call.value(0), tuple(call.attr("kernel_shape"))
    attrs = _window(call, x, kernel)
    if set(attrs.pop("dilation")) != {1}:
        raise call.refuse("an AveragePool with dilations", "write it as a convolution")
    include = bool(call.attr("count_include_pad"))
    if include and _rounds_up(call, attrs["padding"]):
        raise call.refuse(
            "an AveragePool with ceil_mode that counts its pads: what it divides by differs "
            "between versions", "export with ceil_mode=0",
        )  # fmt: skip
    if not any(p for pair in attrs["padding"] for p in pair):
        include = True  # the same where there is nothing to count, and our default
    return OP["avg_pool"](x, kernel=kernel, include_pad=include, **attrs)


def _rounds_up(call: Call, padding: Any) -> bool:
    """Whether ceil_mode let in more than the pads that the node names."""
    n = len(padding)
    pads = call.attr("pads") or (0,) * (2 * n)
    return bool(call.attr("ceil_mode")) and padding != tuple(zip(pads[:n], pads[n:], strict=True))


@reads("GlobalAveragePool", "GlobalMaxPool")
def _global(call: Call) -> Any:
    x = call.value(0)
    op = OP["mean" if call.op == "GlobalAveragePool" else "max"]
    return op(x, axis=tuple(range(2, x.ndim)), keepdims=True)


# -- norms -------------------------------------------------------------------------------------
@reads("BatchNormalization")
def _batch_norm(call: Call) -> Any:
    x = call.value(0)
    scale, bias = call.weight(1, "weight"), call.weight(2, "bias")
    mean = call.weight(3, "running_mean", "state")
    var = call.weight(4, "running_var", "state")
    training = bool(call.attr("training_mode")) if call.opset >= 14 else False
    if call.opset < 14 and call.outputs > 1:
        raise call.refuse("a BatchNormalization of an older opset in training mode")
    # Without training the statistics stay, and unbiased has no meaning: our default unless noted.
    unbiased = not training and call.meta(UNBIASED) != "False"
    if call.attr("spatial") == 0:
        raise call.refuse("a BatchNormalization per element", "export with spatial=1")
    return OP["batch_norm"](
        x, None if is_all(scale, 1) else scale, None if is_all(bias, 0) else bias, mean, var,
        training=training, momentum=round(1 - call.attr("momentum"), 12),
        epsilon=call.attr("epsilon"), unbiased=unbiased,
    )  # fmt: skip


@reads("LayerNormalization")
def _layer_norm(call: Call) -> Any:
    x = call.value(0)
    scale = call.weight(1, "weight")
    bias = call.weight(2, "bias") if call.has(2) else None
    axis = call.attr("axis")
    count = -axis if axis < 0 else x.ndim - axis
    shape = x.shape[x.ndim - count :]
    attrs = {"axes": count, "epsilon": call.attr("epsilon")}
    bias = None if bias is None or is_all(bias, 0) else bias
    if is_all(scale, 1):
        scale = None
    if all(v is None or v.shape == shape for v in (scale, bias)):
        y = OP["layer_norm"](x, scale, bias, **attrs)
    else:  # weights that broadcast
        y = OP["layer_norm"](x, **attrs)
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
    return (y, *_statistics(x, count, attrs["epsilon"])) if call.outputs > 1 else y


def _statistics(x: Any, axes: int, epsilon: float) -> Any:
    """The mean and the inverse standard deviation over the last axes."""
    last = tuple(range(x.ndim - axes, x.ndim))
    mean = OP["mean"](x, axis=last, keepdims=True)
    spread = OP["mean"]((x - mean) * (x - mean), axis=last, keepdims=True)
    return mean, 1.0 / OP["sqrt"](spread + epsilon)


@reads("InstanceNormalization")
def _instance_norm(call: Call) -> Any:
    x = call.value(0)
    y = OP["layer_norm"](x, axes=x.ndim - 2, epsilon=call.attr("epsilon"))
    return _per_channel(y, call.weight(1, "weight"), call.weight(2, "bias"))


@reads("GroupNormalization")
def _group_norm(call: Call) -> Any:
    x, groups = call.value(0), call.attr("num_groups")
    if call.opset < 21:
        raise call.refuse("a GroupNormalization with a scale per group", "export with opset 21")
    split = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    y = OP["layer_norm"](split, axes=split.ndim - 2, epsilon=call.attr("epsilon"))
    return _per_channel(y.reshape(*x.shape), call.weight(1, "weight"), call.weight(2, "bias"))


def _per_channel(x: Any, scale: Any, bias: Any) -> Any:
    shape = (-1, *(1,) * (x.ndim - 2))
    return x * scale.reshape(*shape) + bias.reshape(*shape)


# -- recurrent ---------------------------------------------------------------------------------
@reads("RNN")
def _rnn(call: Call) -> Any:
    direction, clip = call.attr("direction"), call.attr("clip")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    names = call.attr("activations") or ("Tanh",) * len(backwards)
    known = {theirs.lower(): ours for ours, theirs in ACTIVATIONS.items()}
    if clip is not None or any(n.lower() not in known for n in names):
        raise call.refuse(f"an RNN with activations {names} and clip {clip}")
    if call.has(4):
        raise call.refuse("an RNN with lengths", "pass sequences of one length")
    if call.has(5) and not is_all(call.value(5), 0):
        raise call.refuse("an RNN that starts from a state", "start it from zeros")
    first = not call.attr("layout")
    x = transposed(call.value(0), (1, 0, 2)) if first else call.value(0)
    outs, lasts = [], []
    for i, back in enumerate(backwards):
        weights = _rnn_weights(call, i, len(backwards))
        y, last = OP["rnn"](
            OP["flip"](x, axis=1) if back else x, *weights, activation=known[names[i].lower()]
        )
        outs.append(OP["flip"](y, axis=1) if back else y)
        lasts.append(last)
    if first:  # (time, directions, batch, hidden) and (directions, batch, hidden)
        pieces = [OP["expand_dims"](transposed(y, (1, 0, 2)), axis=1) for y in outs]
        ends = [OP["expand_dims"](h, axis=0) for h in lasts]
    else:
        pieces = [OP["expand_dims"](y, axis=2) for y in outs]
        ends = [OP["expand_dims"](h, axis=1) for h in lasts]
    if len(outs) == 1:
        return pieces[0], ends[0]
    return OP["concat"](*pieces, axis=1 if first else 2), OP["concat"](
        *ends, axis=0 if first else 1
    )


def _rnn_weights(call: Call, i: int, directions: int) -> list[Any]:
    """weight_ih, weight_hh, bias_ih and bias_hh of one direction."""
    if directions == 1:
        w, r = (call.weight(k, f"weight_{n}", change=_first) for k, n in ((1, "ih"), (2, "hh")))
    else:
        w, r = (OP["select"](call.value(k), axis=0, index=i) for k in (1, 2))
    if not call.has(3):
        return [w, r, None, None]
    hidden = r.shape[0]
    if directions == 1 and call.reader.once(call.node.input[3]):
        name = call.node.input[3]
        pieces = [
            call.reader.parameter(name, f"bias_{end}", change=_part(s, hidden), part=f"_{end}")
            for end, s in (("ih", 0), ("hh", hidden))
        ]
    else:
        b = call.value(3)
        b = squeezed(b, (0,)) if directions == 1 else OP["select"](b, axis=0, index=i)
        if (
            b.node is not None
            and b.node.op == "concat"
            and [v.shape for v in b.node.inputs] == [(hidden,)] * 2
        ):
            pieces = list(b.node.inputs)
        else:
            pieces = [OP["slice_axis"](b, axis=0, start=s, stop=s + hidden) for s in (0, hidden)]
    return [w, r, *(None if is_all(p, 0) else p for p in pieces)]


def _part(start: int, count: int) -> Callable[[Any], Any]:
    return lambda b: b[0, start : start + count]


def _first(a: Any) -> Any:
    return squeezed(a, (0,)) if isinstance(a, Value) else a[0]
