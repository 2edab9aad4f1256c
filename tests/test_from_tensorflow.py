"""TensorFlow functions, written by hand, come in: read from their graphs, verified against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import UnsupportedError

tf = pytest.importorskip("tensorflow")


def numbers(*shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return rng.standard_normal(shape).astype(np.float32)


def weight(*shape: int, seed: int = 0, **more: Any) -> Any:
    return tf.Variable(numbers(*shape, seed=seed) * 0.5, **more)


class Linear(tf.Module):
    def __init__(self, inputs: int, outputs: int, activation: Any = tf.identity):
        super().__init__()
        self.w, self.b = weight(inputs, outputs), weight(outputs)
        self.activation = activation

    @tf.function
    def __call__(self, x: Any) -> Any:
        return self.activation(x @ self.w + self.b)


class MLP(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Linear(4, 6, tf.nn.gelu), Linear(6, 5, tf.nn.silu), Linear(5, 3)]

    @tf.function
    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return tf.nn.log_softmax(x)


class CNN(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = weight(3, 3, 2, 4), weight(4)
        self.head = Linear(5 * 5 * 4, 3)

    @tf.function
    def __call__(self, x: Any) -> Any:
        x = tf.nn.conv2d(x, self.kernel, strides=2, padding="SAME")
        x = tf.nn.relu(tf.nn.bias_add(x, self.bias))
        x = tf.nn.max_pool2d(x, 2, 1, "VALID")
        x = tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]]), 2, 1, "SAME")
        return self.head(tf.reshape(x, (tf.shape(x)[0], -1)))


class Elman(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh, self.b = weight(2, 3), weight(3, 3), weight(3)
        self.out = Linear(3, 2)

    @tf.function
    def __call__(self, x: Any) -> Any:
        h = tf.zeros((tf.shape(x)[0], 3))
        for t in range(x.shape[1]):
            h = tf.tanh(x[:, t] @ self.ih + h @ self.hh + self.b)
        return self.out(h)


class BatchNorm(tf.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gamma, self.beta = weight(channels), weight(channels)
        self.mean = weight(channels, trainable=False)
        self.variance = tf.Variable(np.abs(numbers(channels)) + 0.5, trainable=False)

    def __call__(self, x: Any, training: bool = False) -> Any:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
            self.variance.assign(0.9 * self.variance + 0.1 * variance)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, 1e-3)


class Block(tf.Module):
    def __init__(self, channels: int, seed: int):
        super().__init__()
        self.kernels = [weight(3, 3, channels, channels, seed=seed + i) for i in range(2)]
        self.norms = [BatchNorm(channels) for _ in range(2)]

    def __call__(self, x: Any, training: bool = False) -> Any:
        y = x
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            y = norm(tf.nn.conv2d(tf.nn.relu(y), kernel, 1, "SAME"), training)
        return x + y


class ResNet(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(2, 0), Block(2, 5)]
        self.head = Linear(2, 3)

    @tf.function
    def __call__(self, x: Any, training: bool = False) -> Any:
        for block in self.blocks:
            x = block(x, training)
        return {"out": self.head(tf.reduce_mean(x, (1, 2))), "largest": tf.reduce_max(x, [1, 2])}


MODELS: dict[str, Any] = {
    "linear": (lambda: Linear(4, 3), numbers(5, 4)),
    "logistic": (lambda: Linear(4, 1, tf.sigmoid), numbers(5, 4)),
    "mlp": (MLP, numbers(5, 4)),
    "cnn": (CNN, numbers(2, 10, 10, 2)),
    "elman": (Elman, numbers(2, 5, 2)),
    "resnet": (ResNet, numbers(3, 6, 6, 2)),
}


def same(module: Any, model: Any, x: Any) -> None:
    """At another batch: it is open."""
    larger = np.concatenate([x] * 3)
    want, found = tf.nest.flatten(model(larger)), module.eval()(larger)
    got = [found[k] for k in sorted(found)] if isinstance(found, dict) else [found]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_comes_in_verified(name: str) -> None:
    make, x = MODELS[name]
    model = make()
    module = tv.from_tensorflow(model, x)
    assert module.report.ok and any(r.kind == "gradient" for r in module.report.rows)
    same(module, model, x)
