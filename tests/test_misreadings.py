"""A reader that is wrong is found out: each misreading is planted in what a real reader gave.

The model is the framework's own and runs there. What stands in for a faulty reader changes the
Graph after an honest one: another op, another default, swapped inputs, another axis, a dropped
branch. Every such model has to be refused, as *misread*, by ``to_*``, and where outputs show it
by ``from_*`` too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trivium as tv
from conftest import Plant
from trivium.graph import OPS, Graph, Node
from trivium.nn.module import GraphModule
from trivium.transforms.replay import prune

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 2, 6, 8)).astype(np.float32)
ROWS = RNG.standard_normal((3, 5, 6)).astype(np.float32)

Misreading = Callable[[Graph, dict[str, Any]], None]


def nodes(graph: Graph, op: str) -> list[Node]:
    found = [n for n in graph.nodes if n.op == op]
    assert found, f"the model has no {op}: {sorted({n.op for n in graph.nodes})}"
    return found


def another_op(op: str, other: str, **attrs: Any) -> Misreading:
    def misread(graph: Graph, values: dict[str, Any]) -> None:
        node = nodes(graph, op)[0]
        node.op = other
        types = [None if v is None else v.type for v in node.inputs]
        node.attrs = OPS[other].normalize(types, attrs)

    return misread


def another(op: str, at: int = 0, **attrs: Any) -> Misreading:
    """Another value of an attribute; a function is given the one that was read."""

    def misread(graph: Graph, values: dict[str, Any]) -> None:
        node = nodes(graph, op)[at]
        for key, value in attrs.items():
            new = value(node.attrs[key]) if callable(value) else value
            assert repr(new) != repr(node.attrs[key]), f"{op} has {key}={new!r} already"
            node.attrs[key] = new

    return misread


def swapped(op: str, i: int = 0, j: int = 1) -> Misreading:
    def misread(graph: Graph, values: dict[str, Any]) -> None:
        node = next(n for n in nodes(graph, op) if n.inputs[i] is not n.inputs[j])
        inputs = list(node.inputs)
        inputs[i], inputs[j] = inputs[j], inputs[i]
        node.inputs = tuple(inputs)

    return misread


def bypassed(op: str, which: int = 0, at: int = 0) -> Misreading:
    """The node gives way to one of its inputs: a branch, an activation, a bias is lost."""

    def misread(graph: Graph, values: dict[str, Any]) -> None:
        node = nodes(graph, op)[at]
        stand_in = node.inputs[which]
        for n in graph.nodes:
            n.inputs = tuple(stand_in if v is node.outputs[0] else v for v in n.inputs)
        graph.outputs = [stand_in if v is node.outputs[0] else v for v in graph.outputs]  # type: ignore[misc]
        prune(graph)

    return misread


def without(op: str, which: int) -> Misreading:
    """An optional array, such as a bias, is lost."""

    def misread(graph: Graph, values: dict[str, Any]) -> None:
        node = nodes(graph, op)[0]
        node.inputs = tuple(None if i == which else v for i, v in enumerate(node.inputs))

    return misread


def changed(suffix: str, how: Callable[[Any], Any]) -> Misreading:
    """The numbers of a parameter."""

    def misread(graph: Graph, values: dict[str, Any]) -> None:
        name = next(n for n in values if n.endswith(suffix))
        values[name] = np.ascontiguousarray(how(values[name])).reshape(values[name].shape)

    return misread


def outputs_swapped(graph: Graph, values: dict[str, Any]) -> None:
    graph.outputs = graph.outputs[::-1]


def no_updates(graph: Graph, values: dict[str, Any]) -> None:
    assert graph.updates
    graph.updates = {}


def frozen_norm(graph: Graph, values: dict[str, Any]) -> None:
    nodes(graph, "batch_norm")[0].attrs["training"] = False
    graph.updates = {}


def untied(graph: Graph, values: dict[str, Any]) -> None:
    """A shared layer read as two: the second gets a parameter of its own."""
    first, second = nodes(graph, "linear")[:2]
    assert first.inputs[1] is second.inputs[1]
    old = first.inputs[1]
    assert old is not None
    new = graph.input("param", old.dtype, old.shape, old.name + "_2")
    values[new.name] = values[old.name].copy()
    second.inputs = (second.inputs[0], new, *second.inputs[2:])


def constant(graph: Graph, values: dict[str, Any]) -> None:
    """A constant folded wrongly."""
    node = next(n for n in graph.nodes if n.op in ("constant", "full"))
    node.attrs["value"] = node.attrs["value"] + 1


# -- models: small, each with what can be misread in it; no size twice -----------------------------
def torch_images() -> Any:
    import torch
    from torch import nn

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, padding=(1, 1))
            self.bn = nn.BatchNorm2d(4)
            self.strided = nn.Conv2d(4, 4, 3, stride=(1, 2), padding=1, groups=2)
            self.pool = nn.MaxPool2d(2, ceil_mode=False)
            self.avg = nn.AvgPool2d(3, stride=1, padding=1)
            self.drop = nn.Dropout(0.25)
            self.fc = nn.Linear(4 * 3 * 2, 5)

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.bn(self.conv(x)))
            y = self.strided(y - 0.5 * torch.sigmoid(y))
            y = y + self.avg(y)
            y = self.pool(y)
            y = torch.flatten(y, 1)
            return self.fc(self.drop(y))

    torch.manual_seed(0)
    model = Images()
    with torch.no_grad():
        model.bn.running_mean.normal_(std=0.3)
        model.bn.running_var.uniform_(0.5, 2)
        model.bn.bias.normal_(std=0.3)
    return model


def torch_rows() -> Any:
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
            self.out = nn.Linear(6, 4)
            self.register_buffer("mask", torch.tril(torch.ones(5, 5)))

        def forward(self, x: Any) -> Any:
            y = self.norm(x)
            q, k, v = self.q(y), self.k(y), self.v(y)
            scores = q @ k.transpose(1, 2) / 6**0.5
            scores = scores.masked_fill(self.mask == 0, -1e9)
            y = x + F.softmax(scores, dim=-1) @ v
            y = F.gelu(y)
            y = torch.cat([y, torch.tanh(v)], 1)
            y = self.out(F.leaky_relu(y, 0.2))
            return y[:, :4].mean(1), torch.clamp(y[:, 3:].amax(1), -0.5, 0.5)

    torch.manual_seed(1)
    return Rows()


def torch_shared() -> Any:
    import torch
    from torch import nn

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Any) -> Any:
            return self.fc(torch.tanh(self.fc(x)))

    torch.manual_seed(2)
    return Shared()


def torch_recurrent() -> Any:
    import torch

    torch.manual_seed(3)

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.RNN(6, 4, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.rnn(x)[0]

    return Recurrent()


def keras_images() -> Any:
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = inputs = layers.Input((6, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    y = layers.ReLU(name="act")(x)
    y = layers.Conv2D(4, 3, strides=1, padding="same", dilation_rate=2, name="wide")(y)
    x = layers.Subtract(name="minus")([x, y])
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.LeakyReLU(0.3, name="leaky")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dropout(0.25, name="drop")(x)
    model = keras.Model(inputs, layers.Dense(5, activation="softmax", name="fc")(x))
    for w in model.get_layer("bn").weights:
        w.assign(np.random.default_rng(1).uniform(0.5, 1.5, w.shape))
    return model


def gluon_images() -> Any:
    from trivium.frameworks.mxnet.load import load

    mx = load()
    mx.random.seed(0)
    nn = mx.gluon.nn

    class Images(mx.gluon.HybridBlock):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.conv = nn.Conv2D(4, 3, padding=1, in_channels=2)
                self.bn = nn.BatchNorm(in_channels=4)
                self.pool = nn.AvgPool2D(3, 1, 1)
                self.drop = nn.Dropout(0.25)
                self.fc = nn.Dense(5, in_units=192)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            x = self.bn(self.conv(x))
            x = F.concat(F.relu(x) - F.tanh(x), dim=1)
            x = self.pool(x) + x
            return F.softmax(self.fc(self.drop(x)))

    block = Images()
    block.initialize(mx.init.Normal(0.3))
    for name in ("running_mean", "running_var", "beta"):
        p = getattr(block.bn, name)
        p.set_data(mx.nd.array(np.random.default_rng(1).uniform(0.5, 1.5, p.shape)))
    return block


def onnx_images() -> Any:
    return tv.to_onnx(tv.from_torch(torch_images(), IMAGES), IMAGES)


MODELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "torch_images": (torch_images, IMAGES),
    "torch_rows": (torch_rows, ROWS),
    "torch_shared": (torch_shared, ROWS),
    "torch_recurrent": (torch_recurrent, ROWS),
    "keras_images": (keras_images, np.ascontiguousarray(np.moveaxis(IMAGES, 1, 3))),
    "gluon_images": (gluon_images, IMAGES),
    "onnx_images": (onnx_images, None),
}

# (model, what is misread, how, do outputs in inference show it?)
PLANTED: list[tuple[str, str, Misreading, bool]] = [
    ("torch_images", "relu for gelu", another_op("relu", "gelu"), True),
    ("torch_images", "relu for softplus's like", another_op("relu", "sigmoid"), True),
    ("torch_images", "sigmoid for tanh", another_op("sigmoid", "tanh"), True),
    ("torch_images", "batch norm's epsilon", another("batch_norm", epsilon=1e-3), True),
    ("torch_images", "batch norm's momentum", another("batch_norm", momentum=0.9), False),
    ("torch_images", "biased variance", another("batch_norm", unbiased=False), False),
    ("torch_images", "a frozen batch norm", frozen_norm, False),
    ("torch_images", "statistics that stay", no_updates, False),
    ("torch_images", "mean and variance", swapped("batch_norm", 3, 4), True),
    ("torch_images", "scale and bias", swapped("batch_norm", 1, 2), True),
    ("torch_images", "a bias lost", without("conv", 2), True),
    ("torch_images", "padding before for after",
     another("conv", padding=((0, 2), (1, 1))), True),
    ("torch_images", "strides exchanged",
     another("conv", 1, stride=(2, 1), padding=((2, 3), (0, 0))), True),
    ("torch_images", "a kernel turned",
     changed("conv.weight", lambda w: w.transpose(0, 1, 3, 2)), True),
    ("torch_images", "a kernel flipped", changed("conv.weight", lambda w: w[:, :, ::-1]), True),
    ("torch_images", "channels in another order",
     changed("strided.weight", lambda w: w[::-1]), True),
    ("torch_images", "the border of a mean", another("avg_pool", include_pad=False), True),
    ("torch_images", "mean for maximum", another_op("max_pool", "avg_pool", kernel=2), True),
    ("torch_images", "swapped operands", swapped("subtract"), True),
    ("torch_images", "add for subtract", another_op("subtract", "add"), True),
    ("torch_images", "a branch lost", bypassed("add"), True),
    ("torch_images", "a dropout lost", bypassed("dropout"), False),
    ("torch_images", "dropout's rate", another("dropout", rate=0.75), False),
    ("torch_images", "a number folded wrongly", constant, True),
    ("torch_rows", "softmax's axis", another("softmax", axis=1), True),
    ("torch_rows", "layer norm's epsilon", another("layer_norm", epsilon=1e-3), True),
    ("torch_rows", "gelu's form", another("gelu", approximate="tanh"), True),
    ("torch_rows", "leaky relu's slope", another("leaky_relu", slope=0.01), True),
    ("torch_rows", "concat in another order", swapped("concat"), True),
    ("torch_rows", "outputs in another order", outputs_swapped, True),
    ("torch_rows", "max for mean", another_op("max", "mean", axis=(1,)), True),
    ("torch_rows", "a branch lost", bypassed("add"), True),
    ("torch_rows", "a weight turned", changed("q.weight", lambda w: w.T), True),
    ("torch_rows", "two weights exchanged",
     changed("k.weight", lambda w: w[:, ::-1]), True),
    ("torch_rows", "another filling", another("masked_fill", value=0.0), True),
    ("torch_rows", "tanh lost", bypassed("tanh"), True),
    ("torch_shared", "a shared layer read as two", untied, False),
    ("torch_shared", "tanh for sigmoid", another_op("tanh", "sigmoid"), True),
    ("torch_recurrent", "relu for tanh", another("rnn", activation="relu"), True),
    ("torch_recurrent", "recurrent weight turned",
     changed("weight_hh", lambda w: w.T), True),
    ("torch_recurrent", "gates in another order", changed("weight_ih", lambda w: w[::-1]), True),
    ("keras_images", "batch norm's epsilon", another("batch_norm", epsilon=1e-5), True),
    ("keras_images", "batch norm's momentum", another("batch_norm", momentum=0.99), False),
    ("keras_images", "unbiased variance", another("batch_norm", unbiased=True), False),
    ("keras_images", "leaky relu's slope", another("leaky_relu", slope=0.2), True),
    ("keras_images", "swapped operands", swapped("subtract"), True),
    ("keras_images", "dilation lost",
     another("conv", 1, dilation=(1, 1), padding=((1, 1), (1, 1))), True),
    ("keras_images", "a kernel turned",
     changed("conv.weight", lambda w: w.transpose(0, 1, 3, 2)), True),
    ("keras_images", "relu lost", bypassed("relu"), True),
    ("keras_images", "dropout's rate", another("dropout", rate=0.5), False),
    ("keras_images", "a bias lost", without("linear", 2), True),
    ("gluon_images", "batch norm's momentum", another("batch_norm", momentum=0.9), False),
    ("gluon_images", "batch norm's epsilon", another("batch_norm", epsilon=1e-3), True),
    ("gluon_images", "the border of a mean", another("avg_pool", include_pad=False), True),
    ("gluon_images", "swapped operands", swapped("subtract"), True),
    ("gluon_images", "softmax for sigmoid", another_op("softmax", "sigmoid"), True),
    ("gluon_images", "a branch lost", bypassed("add", 1), True),
    ("gluon_images", "dropout's rate", another("dropout", rate=0.5), False),
    ("onnx_images", "relu for tanh", another_op("relu", "tanh"), True),
    ("onnx_images", "batch norm's epsilon", another("batch_norm", epsilon=1e-3), True),
    ("onnx_images", "swapped operands", swapped("subtract"), True),
    ("onnx_images", "the border of a mean", another("avg_pool", include_pad=False), True),
    ("onnx_images", "a branch lost", bypassed("add"), True),
    ("onnx_images", "a kernel turned",
     changed("conv.weight", lambda w: w.transpose(0, 1, 3, 2)), True),
]  # fmt: skip


def mistaken(misreading: Misreading) -> Callable[[GraphModule], GraphModule]:
    """What a reader gives that makes this mistake."""

    def misread(module: GraphModule) -> GraphModule:
        values = copy.deepcopy(module.state_dict())
        misreading(module.graph, values)
        wrong = GraphModule(module.graph, values, module.source_names)
        wrong.weight_maps = module.weight_maps
        return wrong

    return misread


@pytest.mark.parametrize(
    ("model", "what", "misreading", "seen"),
    PLANTED,
    ids=[f"{m}: {w}" for m, w, *_ in PLANTED],
)
def test_a_misreading_is_found_out(
    model: str, what: str, misreading: Misreading, seen: bool, plant: Plant
) -> None:
    framework = model.partition("_")[0].replace("gluon", "mxnet")
    pytest.importorskip(framework if framework != "mxnet" else "numpy")
    make, x = MODELS[model]
    source, examples = make(), [] if x is None else [x]
    plant(framework, mistaken(misreading))
    with pytest.raises(tv.VerificationError, match="was misread") as caught:
        tv.to_torch(source, *examples)
    assert caught.value.report.misread
    assert caught.value.report.first_divergence
    if seen:
        with pytest.raises(tv.VerificationError, match="was misread"):
            getattr(tv, f"from_{framework}")(source, *examples)


@pytest.mark.parametrize("model", MODELS)
def test_an_honest_reading_passes(model: str) -> None:
    make, x = MODELS[model]
    source, examples = make(), [] if x is None else [x]
    framework = model.partition("_")[0].replace("gluon", "mxnet")
    read = getattr(tv, f"from_{framework}")(source, *examples)
    assert read.report.ok
    assert tv.to_torch(source, *examples).report.ok
    assert len({m for m, *_ in PLANTED}) == len(MODELS)
