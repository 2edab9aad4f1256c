"""ATen operators of neural networks: convolution, pools, norms, activations, attention, losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trivium.dtype import float64
from trivium.frameworks.torch.aten import HANDLERS, Reader, aten
from trivium.frameworks.ways import each
from trivium.graph import MODE, OPS
from trivium.ops.attention import attention_weights


# -- convolution and pools -------------------------------------------------------------------------
@aten("conv1d", "conv2d", "conv3d")
def _conv(at: Reader, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
          dilation: Any = 1, groups: int = 1) -> Any:  # fmt: skip
    n = len(weight.shape) - 2
    at.require(len(input.shape) == n + 2, "images without a batch", "unsqueeze them first")
    dilation = each(dilation, n)
    if padding == "same":  # an odd total leaves one more after than before
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        pads = tuple((p, p) for p in each(0 if padding == "valid" else padding, n))
    return OPS["conv"](
        input, weight, bias, stride=each(stride, n), padding=pads, dilation=dilation, groups=groups
    )


def _window(at: Reader, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any,
            ceil: bool) -> tuple[dict[str, Any], bool]:  # fmt: skip
    """Kernel, stride and explicit padding of a pool; and whether ceil_mode added to the padding."""
    n = {"1": 1, "2": 2, "3": 3}[str(at.node.target).split("pool")[1][0]]
    at.require(len(x.shape) == n + 2, "images without a batch", "unsqueeze them first")
    kernel, padding, dilation = (each(i, n) for i in (kernel, padding, dilation))
    stride = each(stride or kernel, n)
    highs = []
    for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True):
        high = p
        if ceil:
            at.require(isinstance(size, int), "ceil_mode on an open size")
            left = (size + 2 * p - d * (k - 1) - 1) % s
            windows = (size + 2 * p - d * (k - 1) - 1) // s + 1
            # One more window over what is left, unless it would begin in the padding.
            if left and windows * s < size + p:
                high = p + s - left
        highs.append(high)
    pads = tuple(zip(padding, highs, strict=True))
    return {"kernel": kernel, "stride": stride, "padding": pads}, tuple(highs) != padding


@aten("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(at: Reader, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0,
              dilation: Any = 1, ceil_mode: bool = False) -> Any:  # fmt: skip
    attrs, _ = _window(at, self, kernel_size, stride, padding, dilation, ceil_mode)
    return OPS["max_pool"](self, dilation=each(dilation, len(attrs["kernel"])), **attrs)


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(at: Reader, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0,
              ceil_mode: bool = False, count_include_pad: bool = True) -> Any:  # fmt: skip
    attrs, added = _window(at, self, kernel_size, stride, padding, 1, ceil_mode)
    if added and count_include_pad:
        # torch counts its own padding and not what ceil_mode added: the same as counting neither
        # where it has no padding of its own.
        at.require(
            not any(each(padding, len(attrs["kernel"]))),
            "ceil_mode beside counted padding",
            "count_include_pad=False",
        )
        count_include_pad = False
    return OPS["avg_pool"](self, include_pad=count_include_pad, **attrs)


@aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_avg_pool(at: Reader, self: Any, output_size: Any) -> Any:
    output = tuple(output_size)
    n = len(output)
    at.require(len(self.shape) == n + 2, "images without a batch", "unsqueeze them first")
    if set(output) == {1}:
        return OPS["mean"](self, axis=tuple(range(2, n + 2)), keepdims=True)
    kernel = _even(at, self, output)
    return self if set(kernel) == {1} else OPS["avg_pool"](self, kernel=kernel, stride=kernel)


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(at: Reader, self: Any, output_size: Any) -> Any:
    at.require(not any(u.args[1] == 1 and u.users for u in at.node.users), "its indices")
    kernel = _even(at, self, tuple(output_size))
    return OPS["max_pool"](self, kernel=kernel, stride=kernel), None


def _even(at: Reader, x: Any, output: tuple[int, ...]) -> tuple[int, ...]:
    sizes = x.shape[2:]
    at.require(
        all(isinstance(s, int) and s % o == 0 for s, o in zip(sizes, output, strict=True)),
        f"windows of unequal size: {sizes} into {output}",
        "choose an image size that the output divides",
    )
    return tuple(s // o for s, o in zip(sizes, output, strict=True))


@aten("pixel_shuffle")
def _pixel_shuffle(at: Reader, self: Any, upscale_factor: int) -> Any:
    n, _, h, w = self.shape
    r, c = upscale_factor, at.out.shape[1]
    x = OPS["reshape"](self, shape=(n, c, r, r, h, w))
    return OPS["reshape"](OPS["transpose"](x, axes=(0, 1, 4, 2, 5, 3)), shape=at.out.shape)


# -- norms -----------------------------------------------------------------------------------------
@aten("batch_norm")
def _batch_norm(at: Reader, input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any,
                training: bool, momentum: float, eps: float,
                cudnn_enabled: bool = True) -> Any:  # fmt: skip
    flag = at.flag(training)
    kept = running_mean is not None
    if not kept:  # no statistics are kept: those of the batch serve in both modes
        running_mean, running_var = (at.full((input.shape[1],), v, input.dtype) for v in (0, 1))
    y, mean, var = OPS["batch_norm"](
        input,
        weight,
        bias,
        running_mean,
        running_var,
        training=flag,
        momentum=momentum,
        epsilon=eps,
    )
    if kept and flag is not False:
        at.require(
            flag is MODE or not at.both,
            "statistics that are updated in evaluation too",
            "call eval() on the module that holds them",
        )
        for node, new in zip(at.node.args[3:5], (mean, var), strict=True):
            at.update(node, new)
    return y


@aten("group_norm")
def _group_norm(at: Reader, input: Any, num_groups: int, weight: Any = None, bias: Any = None,
                eps: float = 1e-5, cudnn_enabled: bool = True) -> Any:  # fmt: skip
    grouped = OPS["reshape"](input, shape=(input.shape[0], num_groups, -1))
    y = OPS["reshape"](OPS["layer_norm"](grouped, epsilon=eps), shape=input.shape)
    shape = (-1, *(1,) * (len(input.shape) - 2))
    if weight is not None:
        y = y * OPS["reshape"](weight, shape=shape)
    return y if bias is None else y + OPS["reshape"](bias, shape=shape)


@aten("instance_norm")
def _instance_norm(at: Reader, input: Any, weight: Any, bias: Any, running_mean: Any,
                   running_var: Any, use_input_stats: bool, momentum: float, eps: float,
                   cudnn_enabled: bool = True) -> Any:  # fmt: skip
    at.require(running_mean is None and at.flag(use_input_stats) is True, "running statistics")
    return _group_norm(at, input, input.shape[1], weight, bias, eps)


@aten("layer_norm")
def _layer_norm(at: Reader, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
                eps: float = 1e-5, cudnn_enable: bool = True) -> Any:  # fmt: skip
    return OPS["layer_norm"](input, weight, bias, axes=len(normalized_shape), epsilon=eps)


@aten("rms_norm")
def _rms_norm(
    at: Reader, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Any:
    if eps is None:  # torch's default is the dtype's own
        eps = float(np.finfo(input.dtype.numpy).eps)
    axes = tuple(range(len(input.shape) - len(normalized_shape), len(input.shape)))
    y = input / OPS["sqrt"](OPS["mean"](OPS["square"](input), axis=axes, keepdims=True) + eps)
    return y if weight is None else y * weight


# -- activations -----------------------------------------------------------------------------------
@aten("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(at: Reader, self: Any, min: Any = None, max: Any = None) -> Any:
    x = at.cast(self, at.out.dtype)
    if all(isinstance(v, (int, float)) for v in (min, max)):
        return OPS["clip"](x, min=min, max=max)
    if min is not None:
        x = OPS["maximum"](x, at.cast(min, x.dtype))
    return x if max is None else OPS["minimum"](x, at.cast(max, x.dtype))


@aten("hardtanh")
def _hardtanh(at: Reader, self: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    if min_val == 0 and max_val == 6:  # what nn.ReLU6 calls
        return OPS["relu6"](self)
    return OPS["clip"](self, min=float(min_val), max=float(max_val), edge="outside")


@aten("softplus")
def _softplus(at: Reader, self: Any, beta: float = 1, threshold: float = 20) -> Any:
    x = self if beta == 1 else self * float(beta)
    y = OPS["softplus"](x) if beta == 1 else OPS["softplus"](x) / float(beta)
    # Above the threshold torch returns x itself, which is what softplus rounds to in float32.
    rounding = 2.0**-52 if self.dtype == float64 else 2.0**-23
    if math.exp(-min(threshold, 700.0)) < rounding * threshold / 2:
        return y
    return OPS["where"](x > float(threshold), self, y)


@aten("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(
    at: Reader, self: Any, dim: int, dtype: Any = None, half_to_float: bool = False
) -> Any:
    name = "log_softmax" if "log_softmax" in str(at.node.target) else "softmax"
    return OPS[name](at.cast(self, at.out.dtype), axis=dim)


# -- randomness ------------------------------------------------------------------------------------
@aten("dropout")
def _dropout(at: Reader, input: Any, p: float, train: bool) -> Any:
    always = at.both and train and p and at.flag(train) is True
    at.require(not always, "training=True in evaluation too", "pass training=self.training")
    return at.dropped(input, p, at.flag(train))


# -- products, tables, recurrence ------------------------------------------------------------------
@aten("embedding")
def _embedding(at: Reader, weight: Any, indices: Any, padding_idx: int = -1,
               scale_grad_by_freq: bool = False) -> Any:  # fmt: skip
    at.require(
        padding_idx == -1,
        f"padding_idx={padding_idx}",
        "that row would get a gradient; leave it out",
    )
    at.require(not scale_grad_by_freq, "scale_grad_by_freq")
    return OPS["embedding"](weight, indices)


@aten("one_hot")
def _one_hot(at: Reader, self: Any, num_classes: int = -1) -> Any:
    counted = isinstance(num_classes, int) and num_classes > 0
    at.require(counted, "a number of classes that the data says", "give num_classes")
    return OPS["one_hot"](self, classes=num_classes, dtype=at.out.dtype)


HANDLERS["embedding_bag"] = lambda at, **_: at.require(False, "bags", "use nn.Embedding and a sum")


@aten("rnn_tanh", "rnn_relu")
def _rnn(at: Reader, input: Any, hx: Any, params: Any, has_biases: bool, num_layers: int,
         dropout: float, train: bool, bidirectional: bool, batch_first: bool) -> Any:  # fmt: skip
    at.require(not bidirectional, "two directions", "flip and concatenate two nn.RNN by hand")
    start = hx.node
    at.require(
        start is not None and start.op == "full" and start.attrs["value"] == 0,
        "an initial state",
        "our rnn begins at zero; leave the state out",
    )
    activation = "tanh" if "tanh" in str(at.node.target) else "relu"
    x = input if batch_first else OPS["transpose"](input, axes=(1, 0, 2))
    each, last = 4 if has_biases else 2, []
    for layer in range(num_layers):
        if layer:
            x = at.dropped(x, dropout, at.flag(train))
        x, h = OPS["rnn"](x, *params[layer * each : (layer + 1) * each], activation=activation)
        last.append(h)
    y = x if batch_first else OPS["transpose"](x, axes=(1, 0, 2))
    return y, OPS["stack"](*last, axis=0)


def _parts(x: Any, count: int) -> list[Any]:
    """``x`` in equal parts along its last axis."""
    size = x.shape[-1] // count
    return [
        OPS["slice_axis"](x, axis=-1, start=i * size, stop=(i + 1) * size) for i in range(count)
    ]


@aten("lstm_cell")
def _lstm_cell(
    at: Reader, input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    h, c = hx
    gates = OPS["linear"](input, w_ih, b_ih) + OPS["linear"](h, w_hh, b_hh)
    i, f, g, o = _parts(gates, 4)
    c = OPS["sigmoid"](f) * c + OPS["sigmoid"](i) * OPS["tanh"](g)
    return OPS["sigmoid"](o) * OPS["tanh"](c), c


@aten("gru_cell")
def _gru_cell(
    at: Reader, input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    given = _parts(OPS["linear"](input, w_ih, b_ih), 3)
    r, z, n = _parts(OPS["linear"](hx, w_hh, b_hh), 3)  # torch's order: reset, update, new
    r, z = OPS["sigmoid"](given[0] + r), OPS["sigmoid"](given[1] + z)
    n = OPS["tanh"](given[2] + r * n)
    return (hx - n) * z + n


@aten("lstm", "gru")
def _gated(at: Reader, **_: Any) -> Any:
    kind = "LSTM" if "lstm" in str(at.node.target) else "GRU"
    raise at.unsupported(
        f"{at.node.target} (nn.{kind}), for which there is no op yet",
        f"apply an nn.{kind}Cell to one moment after another in a Python loop, which is carried "
        "for the length of the example, or use nn.RNN",
    )


@aten("scaled_dot_product_attention")
def _attention(at: Reader, query: Any, key: Any, value: Any, attn_mask: Any = None,
               dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None,
               enable_gqa: bool = False) -> Any:  # fmt: skip
    at.require(not enable_gqa, "enable_gqa", "repeat the keys and values of a group")
    asked = {"causal": is_causal, "scale": scale}
    if not dropout_p:
        return OPS["scaled_dot_product_attention"](query, key, value, attn_mask, **asked)
    weights = attention_weights(query, key, attn_mask, **asked)
    return OPS["matmul"](at.dropped(weights, dropout_p, at.flag(True)), value)


# -- losses ----------------------------------------------------------------------------------------
_REDUCTIONS = ("none", "mean", "sum")


@aten("mse_loss")
def _mse_loss(at: Reader, self: Any, target: Any, reduction: int = 1) -> Any:
    x, y = at.promoted(self, target)
    at.require(x.shape == y.shape, f"shapes {x.shape} and {y.shape}", "reshape them to one shape")
    return OPS["mse_loss"](x, y, reduction=_REDUCTIONS[reduction])


def _reduced(values: Any, reduction: int) -> Any:
    return values if reduction == 0 else OPS[_REDUCTIONS[reduction]](values)


@aten("l1_loss")
def _l1_loss(at: Reader, self: Any, target: Any, reduction: int = 1) -> Any:
    x, y = at.promoted(self, target)
    return _reduced(OPS["abs"](x - y), reduction)


@aten("binary_cross_entropy_with_logits")
def _bce_with_logits(at: Reader, self: Any, target: Any, reduction: int = 1) -> Any:
    x, y = at.promoted(self, target)
    return OPS["binary_cross_entropy_with_logits"](x, y, reduction=_REDUCTIONS[reduction])


@aten("cross_entropy_loss")
def _cross_entropy(
    at: Reader, self: Any, target: Any, reduction: int = 1, ignore_index: Any = -100
) -> Any:
    at.require(target.dtype.is_integer, "targets that are probabilities", "give class numbers")
    rank = len(self.shape)
    logits = self if rank <= 2 else OPS["transpose"](self, axes=(0, *range(2, rank), 1))
    word = _REDUCTIONS[reduction]
    return OPS["cross_entropy"](logits, target, reduction=word, ignore_index=ignore_index)
