"""Gluon source for MXNet: every op, and models, against the float64 oracle and our own gradients."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn
from trivium.check import check
from trivium.graph import OPS, Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.op import Case, Op, Sample
from trivium.ops.update import adam_update, sgd_update
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize
from trivium.transforms.step import initial_slots, training_step, update_of

if importlib.util.find_spec("mxnet") is None:
    pytest.skip("MXNet is not installed", allow_module_level=True)

from trivium.frameworks.mxnet.emit import emit
from trivium.frameworks.mxnet.lower import reshape_codes
from trivium.frameworks.mxnet.run import MxnetRunner, MxnetTrainer, build
from trivium.shape import Dim

GOLDENS = Path(__file__).parent / "goldens" / "mxnet"
EPS = np.finfo(np.float32).eps

INSIDE = "the inside of a pool or of its gradient"
NO_INPUT = "a HybridBlock has at least one"
REFUSED = {
    "arange": NO_INPUT,
    "cond": "no exact form of cond",
    "constant": NO_INPUT,
    "conv_input_grad": "a gradient: the framework derives its own",
    "conv_weight_grad": "a gradient: the framework derives its own",
    "fold": INSIDE,
    "full": NO_INPUT,
    "max_pool-3": "with dilation (2, 2)",
    "pad-2": "between elements",
    "random_uniform": NO_INPUT,
    "rnn": "no exact form of scan",  # whose arrays are no layer's; the layer is tested below
    "scan": "no exact form of scan",
    "take_grad": "no exact form of take_grad",
    "windows": INSIDE,
}
"""Op, or op and number of the case -> a word of the reason why MXNet has no exact form of it."""

CASES = [
    pytest.param(op, i, id=f"{op.name}-{i}")
    for op in OPS.values()
    if isinstance(op, Op)
    for i in range(len(op.cases))
    if (op.name, i) != ("dropout", 0)  # random: see test_dropout
]


def _kind(sample: Sample) -> str:
    return "rng" if sample.dtype == tv.uint64 else "data"


def one_node(op: Op, case: Case) -> Graph:
    graph = Graph(op.name)
    with graph:
        values = [
            None if s is None else graph.input(_kind(s), s.dtype, s.shape, f"x{i}")
            for i, s in enumerate(case.arrays)
        ]
        graph.outputs = list(op.append(graph, *op.bind(values, case.attrs)))
    return check(graph)


def near(got: Any, exact: Any, factor: float = 32, what: str = "") -> None:
    """Equal up to a few roundings of float32, measured by the largest number of the array."""
    got, exact = np.asarray(got), np.asarray(exact)
    assert got.shape == exact.shape, what
    unit = EPS * max(1, np.abs(exact).max(initial=0))
    np.testing.assert_allclose(got, exact, rtol=0, atol=factor * unit, err_msg=what)


def pulled(graph: Graph, values: dict[str, Any], inputs: list[Any], cotangents: list[Any],
           training: bool = False) -> tuple[dict[str, Any], list[Any]]:  # fmt: skip
    """The gradients of parameters and floating inputs, by our own derivation in float64."""
    special = specialize(graph, training=training)
    wrt = [v.name for v in special.inputs if v.kind in ("param", "data") and v.dtype.is_floating]
    back = pullback(special, wrt)
    given = dict(zip([v.name for v in graph.of_kind("data", "rng")], inputs, strict=True)) | values
    seeds = iter(cotangents)
    arrays = [given[v.name] if v.name in given else next(seeds) for v in back.inputs]
    grads = Interpreter(back, tv.float64)(*arrays)[len(graph.outputs) :]
    found = dict(zip(wrt, grads, strict=False))
    params = {v.name: found[v.name] for v in special.of_kind("param")}
    return params, [found.get(v.name) for v in special.of_kind("data")]


@pytest.mark.parametrize(("op", "number"), CASES)
def test_every_op(op: Op, number: int, rng: np.random.Generator) -> None:
    case = op.cases[number]
    graph = one_node(op, case)
    arrays = [s.array(rng) for s in case.arrays if s is not None]
    reason = REFUSED.get(f"{op.name}-{number}", REFUSED.get(op.name))
    if reason is not None:
        with pytest.raises(UnsupportedError, match=re.escape(reason)):
            build(graph, {})
        return
    block, weights = build(graph, {})
    runner = MxnetRunner(block, weights)
    exact = Interpreter(graph, tv.float64)(*arrays)
    inputs = [a for a in arrays if a.dtype != np.uint64]
    for hybrid in (False, True):
        block.hybridize(hybrid, static_alloc=hybrid)
        for got, want, v in zip(runner.outputs(inputs), exact, graph.outputs, strict=True):
            assert got.dtype == v.dtype.numpy
            near(got, want, what=block.source)
    if not any(v.dtype.is_floating for v in graph.outputs) or op.name == "stop_gradient":
        return
    cotangents = [rng.standard_normal(v.shape).astype(np.float32) for v in graph.outputs if v.dtype.is_floating]
    _, grads = pulled(graph, {}, arrays, cotangents)
    for got, want in zip(runner.pull(inputs, cotangents).inputs, grads, strict=True):
        if want is not None:
            near(got, want, what=block.source)


# -- models ----------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, channels: int, stride: int = 1, unbiased: bool = True):
        norm: dict[str, Any] = dict(unbiased=unbiased, epsilon=1e-3, momentum=0.2)
        self.conv1 = nn.Conv2d(channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(**norm)
        self.conv2 = nn.Conv2d(channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(**norm)
        self.stride = stride
        if stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(channels, 1, stride=stride, bias=False), nn.BatchNorm2d(**norm)
            )

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(tv.relu(self.bn1(self.conv1(x)))))
        return tv.relu(y + (self.down(x) if self.stride > 1 else x))


class ResNet(nn.Module):
    def __init__(self, unbiased: bool = True):
        self.conv1 = nn.Conv2d(4, 3, padding=((0, 1), (1, 0)))
        self.pool = nn.MaxPool2d(3, stride=2, padding=((0, 1), (0, 1)))
        self.layer1 = nn.Sequential(Block(4, 1, unbiased), Block(4, 1, unbiased))
        self.layer2 = nn.Sequential(Block(8, 2, unbiased), Block(8, 1, unbiased))
        self.fc = nn.Linear(5)

    def forward(self, x: Any) -> Any:
        x = self.layer2(self.layer1(self.pool(tv.relu(self.conv1(x)))))
        return self.fc(tv.mean(x, axis=(2, 3)))


class Recurrent(nn.Module):
    def __init__(self, last: bool = True, activation: str = "tanh"):
        self.rnn = nn.RNN(6, last=last, activation=activation)
        self.head = nn.Linear(3)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x))


class Words(nn.Module):
    """Embedding, layer norm, attention with a mask, and the embedding once more as the last layer."""

    def __init__(self) -> None:
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(epsilon=1e-3)
        self.query, self.value = nn.Linear(8, bias=False), nn.Linear(8)

    def forward(self, words: Any) -> Any:
        x = self.norm(self.table(words))
        time = words.shape[1]
        q, v = (layer(x).reshape(-1, time, 2, 4).permute(0, 2, 1, 3) for layer in (self.query, self.value))
        scores = q @ q.mT * 0.5
        mask = tv.asarray(np.tril(np.ones((5, 5), bool)))
        scores = tv.where(mask, scores, float("-inf"))
        y = (tv.softmax(scores) @ v).permute(0, 2, 1, 3).reshape(-1, time, 8)
        return tv.nn.functional.linear(tv.gelu(x + y), self.table.param("weight", (11, 8), nn.layers.normal))


class Two(nn.Module):
    """Two inputs, one layer applied to both, two outputs."""

    def __init__(self) -> None:
        self.shared = nn.Linear(4)

    def forward(self, a: Any, b: Any) -> Any:
        a, b = tv.tanh(self.shared(a)), self.shared(b)
        return a * b, a - 2 * b


class Channels(nn.Module):
    """Channels last, an average pool that leaves pads out, windows that do not fit evenly."""

    def __init__(self) -> None:
        self.conv = nn.Conv2d(6, 3, stride=2, padding="same", layout="NHWC")
        self.bn = nn.BatchNorm2d(axis=-1, unbiased=False)
        self.pool = nn.AvgPool2d(3, stride=2, padding=((0, 1), (1, 1)), include_pad=False, layout="NHWC")

    def forward(self, x: Any) -> Any:
        x = self.pool(tv.leaky_relu(self.bn(self.conv(x)), slope=0.2))
        return tv.max(x, axis=(1, 2))


MLP = nn.Sequential(nn.Linear(7), tv.tanh, nn.Linear(6), nn.ReLU(), nn.Linear(3))
IMAGES = [("float32", ("batch", 3, 9, 9))]
MODELS = {
    "mlp": (lambda: MLP, [("float32", ("batch", 5))]),
    "resnet": (ResNet, IMAGES),
    "resnet, biased statistics": (lambda: ResNet(False), IMAGES),
    "rnn, last state": (Recurrent, [("float32", ("batch", 6, 4))]),
    "rnn, outputs": (lambda: Recurrent(False, "relu"), [("float32", ("batch", 6, 4))]),
    "words": (Words, [("int64", ("batch", 5))]),
    "two": (Two, [("float32", ("batch", 3)), ("float32", ("batch", 3))]),
    "channels last": (Channels, [("float32", ("batch", 10, 11, 3))]),
}


def example(specs: Any, batch: int, rng: np.random.Generator) -> list[Any]:
    shapes = [(dtype, (batch, *shape[1:])) for dtype, shape in specs]
    return [
        rng.integers(0, 11, shape) if dtype == "int64" else rng.standard_normal(shape).astype(np.float32)
        for dtype, shape in shapes
    ]


def shaken(values: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Biases and statistics that are neither 0 nor 1."""
    return {n: (v + rng.uniform(0.05, 0.3, v.shape)).astype(np.float32) for n, v in values.items()}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, rng: np.random.Generator) -> None:
    make, specs = MODELS[name]
    model = make()
    graph = tv.trace(model, *specs)
    values = shaken(model.state_dict(), rng)
    block, weights = build(graph, values)
    runner = MxnetRunner(block, weights)
    assert runner.values().keys() == values.keys()
    for batch, hybrid in ((3, False), (1, True), (5, True)):
        block.hybridize(hybrid, static_alloc=True)
        inputs = example(specs, batch, rng)
        for training in (False, True) if batch > 1 else (False,):
            given = dict(zip([v.name for v in graph.of_kind("data")], inputs, strict=True)) | values
            arrays = [given[v.name] for v in graph.inputs]
            exact = Interpreter(graph, tv.float64, training)(*arrays)
            outputs, after = exact[: len(graph.outputs)], exact[len(graph.outputs) :]
            for got, want in zip(runner.outputs(inputs, training), outputs, strict=True):
                near(got, want)
            cotangents = [rng.standard_normal(o.shape).astype(np.float32) for o in outputs]
            params, xs = pulled(graph, values, inputs, cotangents, training)
            found = runner.pull(inputs, cotangents, training)
            for got, want in zip(found.outputs, outputs, strict=True):
                near(got, want)
            assert found.parameters.keys() == params.keys()
            for n, g in params.items():
                near(found.parameters[n], g, 256, n)
            for got, want in zip(found.inputs, xs, strict=True):
                assert (got is None) == (want is None)
                if want is not None:
                    near(got, want, 256)
            states = dict(zip([v.name for v in graph.updates], after, strict=True)) if training else {}
            assert found.states.keys() == {v.name for v in graph.of_kind("state")}
            for n in found.states:
                near(found.states[n], states.get(n, values[n]), what=n)
            assert all((runner.values()[n] == values[n]).all() for n in values), "states are put back"
