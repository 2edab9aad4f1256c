"""What is measured: training steps and single contractions, and the work in each.

Another workload is one more entry of TRAINING, and a line per framework in peers.py for each new
kind of layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

FLOAT = 4  # bytes
SLOTS = {"sgd": 0, "adam": 2}  # numbers an optimizer keeps beside each parameter
RATES = {"sgd": 0.01, "adam": 0.001}


class Layer(NamedTuple):
    """One layer where it stands: its kind and numbers, and what goes in and comes out."""

    kind: str
    args: tuple[int, ...]
    takes: tuple[int, ...]  # shapes without the batch; images are (channels, height, width)
    gives: tuple[int, ...]

    @property
    def weights(self) -> int:
        """How many numbers its weight has; each output adds a bias."""
        if self.kind == "dense":
            return self.takes[0] * self.gives[0]
        if self.kind == "conv":
            return self.takes[0] * self.gives[0] * self.args[1] ** 2
        if self.kind == "rnn":
            return (self.takes[1] + self.gives[0]) * self.gives[0]
        return 0

    @property
    def parameters(self) -> int:
        """Weight and bias."""
        return self.weights + self.gives[0] if self.weights else 0

    @property
    def forward(self) -> int:
        """Floating-point operations for one example, a multiply-add counted as two."""
        times = self.takes[0] if self.kind == "rnn" else math.prod(self.gives[1:])
        return 2 * self.weights * times

    @property
    def first(self) -> int:
        """Those of them that meet the input: of the model's first layer, it needs no gradient."""
        if self.kind == "rnn":
            return 2 * math.prod(self.takes) * self.gives[0]
        return self.forward


def after(kind: str, args: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a layer makes of ``shape``: no padding, no overlap, the last state."""
    if kind in ("dense", "rnn"):
        return args
    if kind == "flatten":
        return (math.prod(shape),)
    if kind == "conv":
        return (args[0], *(s - args[1] + 1 for s in shape[1:]))
    if kind == "pool":
        return (shape[0], *(s // args[0] for s in shape[1:]))
    return shape  # relu


@dataclass(frozen=True)
class Training:
    """A training step: a chain of layers, its loss and optimizer, and a batch."""

    name: str
    title: str
    shape: tuple[int, ...]
    batch: int
    optimizer: str
    chain: tuple[tuple[Any, ...], ...]
    classes: int | None = None  # None: a regression, with the mean squared error

    def layers(self) -> Iterator[Layer]:
        """The layers with their shapes."""
        shape = self.shape
        for kind, *args in self.chain:
            gives = after(kind, tuple(args), shape)
            yield Layer(kind, tuple(args), shape, gives)
            shape = gives

    @property
    def images(self) -> bool:
        """Whether there is a layout to choose."""
        return len(self.shape) == 3

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(layer.parameters for layer in self.layers())

    @property
    def flops(self) -> int:
        """Multiply-adds of a step times two: forward, and twice as much backward.

        What is not a contraction (activations, pools, the loss, the update) is not counted: the
        limit is a lower one.
        """
        work = [layer for layer in self.layers() if layer.weights]
        return self.batch * (3 * sum(layer.forward for layer in work) - work[0].first)

    @property
    def bytes(self) -> int:
        """What a step cannot avoid to move: the batch in, parameters and slots in and out."""
        kept = self.parameters * (1 + SLOTS[self.optimizer])
        return FLOAT * (self.batch * math.prod(self.shape) + 2 * kept)

    def data(self) -> list[tuple[Any, Any]]:
        """Four batches to take in turn, images as (batch, channels, height, width)."""
        rng = np.random.default_rng(0)
        batches = []
        for _ in range(4):
            x = rng.random((self.batch, *self.shape), dtype=np.float32)
            labels = self.classes and rng.integers(0, self.classes, self.batch)
            batches.append((x, 3 * x + 2 if self.classes is None else labels))
        return batches


@dataclass(frozen=True)
class Contraction:
    """One op on two arrays, by its name in the registry."""

    name: str
    title: str
    op: str
    x: tuple[int, ...]
    y: tuple[int, ...]
    flops: int
    result: int  # numbers that come out
    attrs: dict[str, Any] = field(default_factory=dict)
    parameters = 0

    @property
    def bytes(self) -> int:
        """Both arrays in, the result out."""
        return FLOAT * (math.prod(self.x) + math.prod(self.y) + self.result)

    def data(self) -> list[tuple[Any, Any]]:
        """One pair of arrays."""
        rng = np.random.default_rng(0)
        x, y = (rng.standard_normal(shape, np.float32) for shape in (self.x, self.y))
        return [(x, y)]


Workload = Training | Contraction

TRAINING = {
    w.name: w
    for w in (
        Training("linreg", "linear regression, batch 100, SGD", (1,), 100, "sgd", (("dense", 1),)),
        Training(
            "mlp", "784-128-10, batch 128, Adam", (784,), 128, "adam",
            (("dense", 128), ("relu",), ("dense", 10)), 10,
        ),
        Training(
            "cnn", "conv 32, conv 64, dense 128, 10 on 28x28, batch 32, SGD",
            (1, 28, 28), 32, "sgd",
            (("conv", 32, 3), ("relu",), ("pool", 2), ("conv", 64, 3), ("relu",), ("pool", 2),
             ("flatten",), ("dense", 128), ("relu",), ("dense", 10)), 10,
        ),
        Training(
            "rnn", "Elman network of 64 over 8 rows of 8, batch 64, Adam", (8, 8), 64, "adam",
            (("rnn", 64), ("dense", 10)), 10,
        ),
    )
}  # fmt: skip

# The second convolution of the CNN: 32 images, 32 channels to 64, 13x13 to 11x11, kernel 3x3.
_X, _W, _Y = (32, 32, 13, 13), (64, 32, 3, 3), (32, 64, 11, 11)
_FLOPS = 2 * math.prod(_W) * 32 * 11 * 11

CONTRACTIONS = {
    c.name: c
    for c in (
        Contraction("matmul", "1024 x 1024 x 1024", "matmul", (1024, 1024), (1024, 1024),
                    2 * 1024**3, 1024**2),
        Contraction("conv", "the CNN's second convolution", "conv", _X, _W, _FLOPS, math.prod(_Y)),
        Contraction("conv_input_grad", "its gradient by the images", "conv_input_grad", _Y, _W,
                    _FLOPS, math.prod(_X), {"size": (13, 13)}),
        Contraction("conv_weight_grad", "its gradient by the kernels", "conv_weight_grad", _X, _Y,
                    _FLOPS, math.prod(_W), {"kernel": (3, 3)}),
    )
}  # fmt: skip

WORKLOADS: dict[str, Workload] = {**TRAINING, **CONTRACTIONS}
