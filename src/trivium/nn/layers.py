"""The usual layers. Input sizes are never declared: they are learnt from the first batch."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.graph import OPS, current
from trivium.nn.layer import Layer
from trivium.nn.module import Module, fresh_salt, random_key


def glorot(rng: np.random.Generator, shape: Any) -> Any:
    """Uniform within +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, 2010): Keras's default."""
    receptive = math.prod(shape[2:])
    limit = math.sqrt(6 / ((shape[0] + shape[1]) * receptive))
    return rng.uniform(-limit, limit, shape)


def he(rng: np.random.Generator, shape: Any) -> Any:
    """Normal with standard deviation sqrt(2 / fan_in) (He et al., 2015)."""
    return rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))


def normal(rng: np.random.Generator, shape: Any) -> Any:
    """Standard normal, as torch's Embedding."""
    return rng.standard_normal(shape)


def zeros(rng: np.random.Generator, shape: Any) -> Any:
    """Zeros."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: Any) -> Any:
    """Ones."""
    return np.ones(shape)


def orthogonal(rng: np.random.Generator, shape: Any) -> Any:
    """Orthogonal rows (Saxe et al., 2014): Keras's recurrent default."""
    q, r = np.linalg.qr(rng.standard_normal(shape))
    return q * np.sign(np.diag(r))


class Linear(Layer):
    """x @ weight.T + bias on the last axis: (..., in) -> (..., out)."""

    _owned = ("weight", "bias")

    def __init__(self, out: int, *, bias: bool = True, init: Callable[..., Any] = glorot):
        self.out, self.has_bias, self.init = out, bias, init

    def forward(self, x: Any) -> Any:
        """(..., in) -> (..., out)."""
        weight = self.param("weight", (self.out, x.shape[-1]), self.init)
        bias = self.param("bias", (self.out,), zeros) if self.has_bias else None
        return OPS["linear"](x, weight, bias)

    def __repr__(self) -> str:
        return f"Linear({self.out})"


def _pair(size: Any) -> tuple[int, ...]:
    """One size per axis of an image."""
    return (size, size) if isinstance(size, int) else tuple(size)


class Conv2d(Layer):
    """A convolution of images (batch, channels, height, width), or channels last with "NHWC".

    ``padding`` is an int, one per axis, (low, high) pairs, or "same" (size divided by the stride,
    rounded up, with what is odd after: TF's rule; the input's size must then be known).
    """

    _owned = ("weight", "bias")

    def __init__(self, out: int, kernel: Any, *, stride: Any = 1, padding: Any = 0,
                 dilation: Any = 1, groups: int = 1, bias: bool = True, layout: str = "NCHW",
                 init: Callable[..., Any] = glorot):  # fmt: skip
        self.out, self.kernel = out, _pair(kernel)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.has_bias, self.layout, self.init = groups, bias, layout, init

    def forward(self, x: Any) -> Any:
        """Images -> images."""
        if len(x.shape) != 4:
            raise ValueError(f"wants images of 4 axes, {self.layout}, got shape {x.shape}")
        channels = x.shape[self.layout.index("C")]
        kernel = _pair(self.kernel)  # it may have been set since
        weight = self.param("weight", (self.out, channels // self.groups, *kernel), self.init)
        bias = self.param("bias", (self.out,), zeros) if self.has_bias else None
        padding = self.padding
        if padding == "same":
            padding = same_padding(x, kernel, self.stride, self.dilation, self.layout)
        return OPS["conv"](
            x, weight, bias, stride=self.stride, padding=padding,
            dilation=self.dilation, groups=self.groups, layout=self.layout,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Conv2d({self.out}, {self.kernel})"


def same_padding(x: Any, kernel: Any, stride: Any, dilation: Any, layout: str) -> Any:
    """TF's SAME for images of this size: the total that keeps ceil(n / s) windows, odd last."""
    pads = []
    strides, dilations = (
        (v,) * len(kernel) if isinstance(v, int) else v for v in (stride, dilation)
    )
    axes = [i for i, a in enumerate(layout) if a not in "NC"]
    for axis, k, s, d in zip(axes, kernel, strides, dilations, strict=True):
        n = x.shape[axis]
        if s == 1:
            total: Any = (k - 1) * d
        elif isinstance(n, int):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        else:
            raise ValueError(
                f"padding 'same' with stride {s} depends on the size, which is open ({n})"
            )
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


class MaxPool2d(Layer):
    """The largest of each window; the stride is the kernel unless given."""

    def __init__(self, kernel: Any, *, stride: Any = None, padding: Any = 0, layout: str = "NCHW"):
        self.kernel, self.stride, self.padding, self.layout = kernel, stride, padding, layout

    def forward(self, x: Any) -> Any:
        """Images -> images."""
        return OPS["max_pool"](
            x, kernel=self.kernel, stride=self.stride, padding=self.padding, layout=self.layout
        )


class AvgPool2d(Layer):
    """The mean of each window; ``include_pad`` counts zeros around (torch) or not (TF, ONNX)."""

    def __init__(self, kernel: Any, *, stride: Any = None, padding: Any = 0,
                 include_pad: bool = True, layout: str = "NCHW"):  # fmt: skip
        self.kernel, self.stride, self.padding, self.layout = kernel, stride, padding, layout
        self.include_pad = include_pad

    def forward(self, x: Any) -> Any:
        """Images -> images."""
        return OPS["avg_pool"](
            x, kernel=self.kernel, stride=self.stride, padding=self.padding,
            include_pad=self.include_pad, layout=self.layout,
        )  # fmt: skip


class GlobalAvgPool2d(Layer):
    """The mean over height and width: (batch, channels, h, w) -> (batch, channels)."""

    def __init__(self, *, keepdims: bool = False, layout: str = "NCHW"):
        self.keepdims, self.layout = keepdims, layout

    def forward(self, x: Any) -> Any:
        """Images -> one vector each."""
        axes = (2, 3) if self.layout == "NCHW" else (1, 2)
        return OPS["mean"](x, axis=axes, keepdims=self.keepdims)


class Flatten(Layer):
    """Every axis but the first made into one."""

    def __init__(self) -> None:
        """Nothing to say."""

    def forward(self, x: Any) -> Any:
        """(batch, ...) -> (batch, n)."""
        return OPS["flatten"](x, start=1)


class Dropout(Layer):
    """While training, zero with probability ``rate``; what stays grows by 1 / (1 - rate)."""

    def __init__(self, rate: float = 0.5):
        self.rate = rate

    def forward(self, x: Any) -> Any:
        """The same shape."""
        training = self.training
        if training is False:
            return x
        # The salt tells this layer's mask from the others' under the same key.
        salt = fresh_salt(zlib.crc32(self._path.encode()))
        return OPS["dropout"](x, random_key(), rate=self.rate, training=training, salt=salt)

    def __repr__(self) -> str:
        return f"Dropout({self.rate})"


class BatchNorm(Layer):
    """Batch normalisation over all axes but ``axis``. See ``ops.batch_norm`` for the numbers."""

    _owned = ("weight", "bias", "running_mean", "running_var")

    def __init__(self, *, axis: int = 1, momentum: float = 0.1, epsilon: float = 1e-5,
                 unbiased: bool = True):  # fmt: skip
        self.axis, self.momentum, self.epsilon, self.unbiased = axis, momentum, epsilon, unbiased

    def forward(self, x: Any) -> Any:
        """The same shape."""
        shape = (x.shape[self.axis],)
        scale, bias = self.param("weight", shape, ones), self.param("bias", shape, zeros)
        mean = self.param("running_mean", shape, zeros, kind="state")
        var = self.param("running_var", shape, ones, kind="state")
        y, new_mean, new_var = OPS["batch_norm"](
            x, scale, bias, mean, var, training=self.training, axis=self.axis,
            momentum=self.momentum, epsilon=self.epsilon, unbiased=self.unbiased,
        )  # fmt: skip
        if self.training is not False:
            mean.assign(new_mean)
            var.assign(new_var)
        return y


class BatchNorm2d(BatchNorm):
    """Batch normalisation of images, one mean and variance per channel."""


class LayerNorm(Layer):
    """Normalisation of the last axis."""

    _owned = ("weight", "bias")

    def __init__(self, *, epsilon: float = 1e-5):
        self.epsilon = epsilon

    def forward(self, x: Any) -> Any:
        """The same shape."""
        shape = x.shape[-1:]
        return OPS["layer_norm"](
            x,
            self.param("weight", shape, ones),
            self.param("bias", shape, zeros),
            epsilon=self.epsilon,
        )


class Embedding(Layer):
    """Rows of a table (count, width) by integer index."""

    _owned = ("weight",)

    def __init__(self, count: int, width: int):
        self.count, self.width = count, width

    def forward(self, indices: Any) -> Any:
        """(...) integers -> (..., width)."""
        return OPS["embedding"](self.param("weight", (self.count, self.width), normal), indices)


class RNN(Layer):
    """An Elman network over (batch, time, in): its outputs, with ``last=True`` the last alone."""

    _owned = ("weight_ih", "weight_hh", "bias_ih")

    def __init__(self, hidden: int, *, activation: str = "tanh", last: bool = False):
        self.hidden, self.activation, self.last = hidden, activation, last

    def forward(self, x: Any) -> Any:
        """(batch, time, in) -> (batch, time, hidden), or (batch, hidden)."""
        weight_ih = self.param("weight_ih", (self.hidden, x.shape[-1]), glorot)
        weight_hh = self.param("weight_hh", (self.hidden, self.hidden), orthogonal)
        bias = self.param("bias_ih", (self.hidden,), zeros)
        outputs, last = OPS["rnn"](x, weight_ih, weight_hh, bias, activation=self.activation)
        return last if self.last else outputs


class ReLU(Layer):
    """max(x, 0)."""

    def __init__(self) -> None:
        """Nothing to say."""

    def forward(self, x: Any) -> Any:
        """The same shape."""
        return OPS["relu"](x)


class Tanh(Layer):
    """The hyperbolic tangent."""

    def __init__(self) -> None:
        """Nothing to say."""

    def forward(self, x: Any) -> Any:
        """The same shape."""
        return OPS["tanh"](x)


class Identity(Layer):
    """Its input."""

    def __init__(self) -> None:
        """Nothing to say."""

    def forward(self, x: Any) -> Any:
        """The same."""
        return x


class Sequential(Layer):
    """Modules and functions, one after the other; parameters are named by position."""

    def __init__(self, *layers: Any):
        if len(layers) == 1 and isinstance(layers[0], (list, tuple)):
            layers = tuple(layers[0])
        self.layers = layers

    @property
    def layers(self) -> tuple[Any, ...]:
        """What is in it, in order; set it whole to change it."""
        found: tuple[Any, ...] = self._layers
        return found

    @layers.setter
    def layers(self, layers: Any) -> None:
        self._layers = tuple(layers)

    def _attributes(self) -> dict[str, Any]:
        rest = super()._attributes()
        del rest["_layers"]  # its layers are named by position alone
        return {str(i): layer for i, layer in enumerate(self.layers)} | rest

    def forward(self, x: Any) -> Any:
        """Through all of them."""
        graph = current()
        for i, layer in enumerate(self.layers):
            if graph is None or isinstance(layer, Module):
                x = layer(x)
                continue
            with graph.within(f"{self._path}.{i}" if self._path else str(i)):
                x = layer(x)
        return x

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    def __len__(self) -> int:
        return len(self.layers)
