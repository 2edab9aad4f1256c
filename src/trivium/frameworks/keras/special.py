"""Keras layers that are neither one op nor followed by their call, because it leaves keras.ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium.dtype import float32
from trivium.frameworks.keras.layers import FORMS
from trivium.frameworks.keras.read import Reader, Special
from trivium.frameworks.layer import Weight
from trivium.graph import OPS, UnsupportedError, Value


def separable(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """A depthwise convolution and a pointwise one, each under a name of its own."""
    n = len(x.shape) - 2
    forms = {f.layer: f for f in FORMS}
    depthwise, pointwise = forms[f"layers.DepthwiseConv{n}D"], forms[f"layers.Conv{n}D"]
    first, second = f"{path}.depthwise", f"{path}.pointwise"
    with reader.graph.within(first):
        w = reader.weight(layer.depthwise_kernel, first, depthwise.weights[0])
        config = layer.get_config()
        said = {k: config[k] for k in depthwise.words if k != "use_bias"}
        down = depthwise.read(said, {}, {"x": x, "w": w})
        (x,) = OPS["conv"].append(reader.graph, [x, w, None], down)
    with reader.graph.within(second):
        w = reader.weight(layer.pointwise_kernel, second, pointwise.weights[0])
        b = reader.weight(layer.bias, second, pointwise.weights[1]) if layer.use_bias else None
        attrs = {**down, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        (x,) = OPS["conv"].append(reader.graph, [x, w, b], attrs)
    return reader.activated(layer, x, path)


def _as_float(x: Value) -> Any:
    return x if x.dtype == float32 else OPS["cast"](x, dtype=float32)


def rescaling(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """x * scale + offset; numbers, or one for each channel."""
    scale, offset = (np.asarray(v, np.float32) for v in (layer.scale, layer.offset))
    if (scale.ndim or offset.ndim) and reader.keras.config.image_data_format() == "channels_first":
        raise UnsupportedError("Rescaling by channel with channels_first", path)

    def number(a: Any) -> Any:
        return a if a.ndim else float(a)

    return _as_float(x) * number(scale) + number(offset)


def normalization(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """(x - mean) / max(sqrt(variance), 1e-7), with numbers that were given or adapted to data."""
    numbers = [
        np.asarray(reader.keras.ops.convert_to_numpy(v)) for v in (layer.mean, layer.variance)
    ]
    mean, variance = numbers
    if layer.input_mean is None:
        weights = (layer.adapt_mean, layer.adapt_variance)
        held = [reader.weight(v, path, Weight("", n, n), state=True)
                for v, n in zip(weights, ("mean", "variance"), strict=True)]  # fmt: skip
        if any(not np.array_equal(reader.arrays[v.name].ravel(), a.ravel())
               for v, a in zip(held, numbers, strict=True)):  # fmt: skip
            raise UnsupportedError(
                "its statistics were not finalized", path, "call finalize_state()"
            )
        mean, variance = (
            OPS["reshape"](v, shape=a.shape) for v, a in zip(held, numbers, strict=True)
        )
        reader.claimed[id(layer.count)] = (
            held[0],
            Weight("", "count", "count"),
        )  # nothing computes with it
    else:
        mean, variance = (OPS["constant"].trace(reader.graph, [], {"value": a}) for a in numbers)
    spread = OPS["maximum"](OPS["sqrt"](variance), reader.keras.config.epsilon())
    x = _as_float(x)
    return mean + x * spread if layer.invert else (x - mean) / spread


def activation(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """An activation that is a layer."""
    return reader.activated(layer, x, path)


def dropout(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """A key of its own for every dropout; by ``noise_shape`` many elements share one draw."""
    if layer.rate == 0:
        return x
    if layer.rate == 1:
        raise UnsupportedError("a dropout of everything", path)
    key = reader.graph.key()
    salt = sum(n.op == "dropout" for n in reader.graph.nodes)
    attrs = {"rate": float(layer.rate), "training": training, "salt": salt}
    noise = getattr(layer, "noise_shape", None)
    if type(layer).__name__.startswith("Spatial"):
        middle = (1,) * (x.ndim - 2)
        first = getattr(layer, "data_format", None) == "channels_first"
        noise = (None, None, *middle) if first else (None, *middle, None)
    if noise is None or all(n is None for n in noise):
        return OPS["dropout"](x, key, **attrs)
    shape = tuple(s if n is None else n for n, s in zip(noise, x.shape, strict=True))
    return x * OPS["dropout"](OPS["full"](shape=shape, value=1, dtype=x.dtype), key, **attrs)


def like_batch(reader: Reader, layer: Any, inputs: Any, path: str, training: bool) -> Any:
    """Of emitted source: the first input, repeated for every element of the second one's batch."""
    x, like = inputs
    return OPS["broadcast_to"](x, shape=(like.shape[0], *x.shape[1:]))


def constant(reader: Reader, layer: Any, inputs: Any, path: str, training: bool) -> Any:
    """Of emitted source: an output that no input decides."""
    return inputs[0]


def free_weight(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """Of emitted source: a layer that is but a weight; its path is the weight's whole name."""
    scope, _, leaf = path.rpartition(".")
    return reader.weight(layer.value, scope, Weight("", leaf, "value"), layer.state)


def kept_weight(reader: Reader, layer: Any, x: Value, path: str, training: bool) -> Any:
    """Of emitted source: a weight that nothing reads."""
    free_weight(reader, layer, x, path, training)
    return x


SPECIAL: dict[str, Special] = {
    "Activation": activation,
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"), dropout
    ),
    "SeparableConv1D": separable,
    "SeparableConv2D": separable,
    "Rescaling": rescaling,
    "Normalization": normalization,
    "trivium>LikeBatch": like_batch,
    "trivium>Constant": constant,
    "trivium>Weight": free_weight,
    "trivium>Kept": kept_weight,
}
