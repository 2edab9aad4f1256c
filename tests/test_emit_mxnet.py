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
from trivium.nn.layers import normal
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
    given = dict(zip([v.name for v in graph.of_kind("data")], inputs, strict=True)) | values
    given |= {v.name: np.zeros(2, np.uint64) for v in graph.of_kind("rng")}
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
    _, grads = pulled(graph, {}, inputs, cotangents)
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
        table = self.table.param("weight", (11, 8), normal)
        return OPS["linear"](tv.gelu(x + y), table)


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


# -- training ----------------------------------------------------------------------------------------
class Loss(nn.Module):
    def __init__(self, model: nn.Module):
        self.model = model

    def forward(self, x: Any, labels: Any) -> Any:
        return OPS["cross_entropy"](self.model(x), labels)


def _named(names: Any, new: Any) -> Any:
    return new[0], dict(zip(names, new[1:], strict=True))


UPDATES = {
    "sgd": update_of(
        lambda p, g, s, count, lr: _named(("velocity",), sgd_update(p, g, s["velocity"], lr, momentum=0.9)),
        ["velocity"],
    ),
    "adam": update_of(
        lambda p, g, s, count, lr: _named("mv", adam_update(p, g, s["m"], s["v"], count, lr)), ["m", "v"]
    ),
}


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize("name", ["mlp", "resnet", "rnn, last state"])
def test_training_steps(name: str, optimizer: str, rng: np.random.Generator) -> None:
    make, specs = MODELS[name]
    update = UPDATES[optimizer]
    model = Loss(make())
    graph = tv.trace(model, *specs, ("int64", ("batch",)))
    values = shaken(model.state_dict(), rng)
    trainer = MxnetTrainer(graph, values, update)
    step = training_step(specialize(graph, training=True), update)
    oracle = Interpreter(step, tv.float64)
    held = {n: np.float64(v) for n, v in (values | initial_slots(values, update)).items()}
    for number in range(10):
        inputs = [*example(specs, 4 + number % 2, rng), rng.integers(0, 3, 4 + number % 2)]
        given = dict(zip([v.name for v in graph.of_kind("data")], inputs, strict=True)) | held | {"lr": 0.01}
        loss, *new = oracle(*(given[v.name] for v in step.inputs))
        held |= zip([v.name for v in step.updates], new, strict=True)
        near(trainer.step(inputs, 0.01), loss, 64, f"step {number}")
    # Adam divides by the root of a square: where a gradient is tiny, so is what both agree in.
    for n, got in trainer.values().items():
        near(got, held[n], 64 if optimizer == "sgd" else 2000, n)


def test_dropout_drops_while_training() -> None:
    graph = tv.trace(nn.Sequential(nn.Dropout(0.25)), ("float32", ("batch", 100)))
    block, weights = build(graph, {})
    runner, x = MxnetRunner(block, weights), np.ones((100, 100), np.float32)
    assert (runner.outputs([x])[0] == 1).all()
    y = runner.outputs([x], training=True)[0]
    assert set(np.unique(y)) == {np.float32(0), np.float32(4 / 3)} and abs((y == 0).mean() - 0.25) < 0.02
    always = tv.trace(lambda x: OPS["dropout"](x, _rng(x), rate=0.5, training=True), ("float32", ("batch", 9)))
    assert 'mode="always"' in emit(always).source


def _rng(x: Any) -> Any:
    return x.graph.input("rng", tv.uint64, (2,), "rng")


# -- what is particular to MXNet -----------------------------------------------------------------------
def run(function: Any, *arrays: Any, cotangents: Any = None, training: bool = False) -> Any:
    """A function of arrays traced with an open first size, emitted and run in Gluon."""
    specs = [(str(a.dtype), ("batch", *a.shape[1:])) if a.ndim else (str(a.dtype), ()) for a in arrays]
    graph = tv.trace(function, *specs)
    values = function.state_dict() if isinstance(function, nn.Module) else {}
    runner = MxnetRunner(*build(graph, values))
    found = runner.outputs(arrays, training)
    if cotangents is None:
        return found[0] if len(found) == 1 else found
    return runner.pull(arrays, cotangents, training)


def test_equal_extrema_share_the_gradient() -> None:
    x = np.array([[1, 3, 3], [2, 2, 2], [0, 1, 5]], np.float32)
    for op, want in ((tv.max, [[0, 0.5, 0.5], [1 / 3] * 3, [0, 0, 1]]), (tv.min, [[1, 0, 0], [1 / 3] * 3, [1, 0, 0]])):
        found = run(lambda x, op=op: op(x, axis=1), x, cotangents=[np.ones(3)])
        near(found.inputs[0], np.array(want))
        near(found.outputs[0], op(tv.asarray(x), axis=1).numpy())
    far = np.array([[-np.inf, 1], [-np.inf, -np.inf]], np.float32)
    assert (run(lambda x: tv.max(x, axis=1), far) == [1, -np.inf]).all()


def test_a_tie_with_a_number_goes_to_the_first() -> None:
    x, one = np.array([[0, 1, 2]], np.float32), [np.ones((1, 3))]
    assert run(lambda x: tv.maximum(x, 1.0), x, cotangents=one).inputs[0].tolist() == [[0, 1, 1]]
    assert run(lambda x: tv.maximum(1.0, x), x, cotangents=one).inputs[0].tolist() == [[0, 0, 1]]


def test_bools_are_numbers_of_what_was_compared(rng: np.random.Generator) -> None:
    x, n = rng.standard_normal((4, 3)).astype(np.float32), rng.integers(0, 3, (4, 3))

    def f(x: Any, n: Any) -> Any:
        both = tv.logical_and(n > 1, x > 0)  # carried as int64 and as float32
        return both.astype("float32") * x, tv.where(both | (n == 0), x, 2.0), ~both, (x > 0).astype("int64") * n

    for got, want in zip(run(f, x, n), f(tv.asarray(x), tv.asarray(n)), strict=True):
        assert got.dtype == want.dtype.numpy
        np.testing.assert_array_equal(got, np.asarray(want))


def test_arrays_without_axes(rng: np.random.Generator) -> None:
    x, s = rng.standard_normal((4, 3)).astype(np.float32), np.float32(1.5)

    class Scaled(nn.Module):
        def forward(self, x: Any, s: Any) -> Any:
            scale = self.param("scale", (), lambda rng, shape: np.full(shape, 0.5))
            total = tv.sum(x) * s + tv.asarray(np.float32(2))
            return total, tv.stack([total, s * scale]), x * scale - total, x[0, 1]

    model = Scaled()
    want = [np.asarray(v) for v in model(tv.asarray(x), tv.asarray(s))]
    for got, v in zip(run(model, x, np.asarray(s)), want, strict=True):
        near(got, v)
    found = run(model, x, np.asarray(s), cotangents=[np.ones(v.shape) for v in want])
    assert found.parameters["scale"].shape == () and found.inputs[1].shape == ()


def test_padding_of_any_axis(rng: np.random.Generator) -> None:
    for shape, low, high in (
        ((3, 4), (1, 0), (0, 2)), ((2, 3, 4), (0, 1, -1), (0, 0, 2)), ((2, 3, 4, 5), (0, 1, 0, 2), (0, 2, 0, 0)),
        ((2, 2, 3, 2, 3), (0, 0, 1, 0, 1), (0, 0, 0, 1, 0)),
    ):  # fmt: skip
        x = rng.standard_normal(shape).astype(np.float32)
        want = OPS["pad"](tv.asarray(x), low=low, high=high, value=-1.5).numpy()
        graph = tv.trace(lambda x, a=low, b=high: OPS["pad"](x, low=a, high=b, value=-1.5), ("float32", shape))
        np.testing.assert_array_equal(MxnetRunner(*build(graph, {})).outputs([x])[0], want)


def test_open_sizes_in_shapes(rng: np.random.Generator) -> None:
    graph = Graph("shapes")
    with graph:
        x = graph.input("data", "float32", ("batch", "time", 6), "x")
        joined = x.reshape(Dim("batch") * Dim("time"), 2, 3)
        heads = x.reshape(Dim("batch"), Dim("time"), 2, 3).permute(0, 2, 1, 3)
        graph.outputs = [joined, heads @ heads.mT, x[:, 1:-1], x[:, :, ::2], heads.permute(0, 2, 1, 3).reshape(
            Dim("batch"), Dim("time"), 6), tv.where(x[:, :1] > 0, x, 0.0)]  # fmt: skip
    runner = MxnetRunner(*build(check(graph), {}))
    for shape in ((2, 5, 6), (3, 4, 6)):
        a = rng.standard_normal(shape).astype(np.float32)
        for got, want in zip(runner.outputs([a]), Interpreter(graph, tv.float64)(a), strict=True):
            near(got, want)


@pytest.mark.parametrize("shape", ["4, 3", "batch, 3", "batch, time, 4", "batch, 4, h, w"])
def test_reshape_codes_mean_the_shape(shape: str) -> None:
    """Every code is tried in MXNet on every shape that it may be for."""
    from trivium.frameworks.mxnet.load import load

    mx = load()
    sizes = {"batch": 5, "time": 7, "h": 2, "w": 11}
    old = tuple(int(s) if s.isdigit() else Dim(s) for s in shape.split(", "))
    news: list[Any] = [old, (1, *old), (*old, 1), (*old[:-2], old[-2] * old[-1]), (old[0] * old[1], *old[2:])]
    news += [(*old[:i], 2, old[i] // 2, *old[i + 1 :]) for i in range(len(old)) if old[i] == 4]
    news += [(old[0], np.prod(old[1:], dtype=object)), (np.prod(old, dtype=object),)]

    def numbers(shape: Any) -> tuple[int, ...]:
        return tuple(eval(str(s), {}, dict(sizes)) for s in shape)  # noqa: S307  (our own Dims)

    for new in news:
        codes = reshape_codes(old, new)
        if codes is None:
            assert sum(isinstance(s, Dim) for s in new) > 1
            continue
        assert mx.nd.zeros(numbers(old)).reshape(codes).shape == numbers(new), (old, new, codes)


def test_statistics_of_a_silent_channel(rng: np.random.Generator) -> None:
    """Where a channel is constant its deviation is 0: a gradient through the root would be no number."""
    model = nn.Sequential(nn.BatchNorm2d())
    x = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    x[:, 1] = 0.5
    model.build(x)
    found = run(model, x, cotangents=[rng.standard_normal(x.shape)], training=True)
    assert all(np.isfinite(g).all() for g in (found.inputs[0], *found.parameters.values()))
    near(found.states["0.running_var"], 0.9 + 0.1 * x.var(axis=(0, 2, 3), ddof=1, dtype=np.float64))


def test_gradients_in_inference_mode(rng: np.random.Generator) -> None:
    """MXNet's own max pool loses them there."""
    x, c = rng.standard_normal((2, 3, 6, 6)).astype(np.float32), rng.standard_normal((2, 3, 3, 3))
    graph = tv.trace(nn.Sequential(nn.BatchNorm2d(), nn.MaxPool2d(2), nn.Dropout(0.9)), ("float32", x.shape))
    values = {v.name: np.ones(v.shape, np.float32) for v in graph.of_kind("param", "state")}
    params, inputs = pulled(graph, values, [x], [c])
    found = MxnetRunner(*build(graph, values)).pull([x], [c])
    near(found.inputs[0], inputs[0])
    assert all((near(found.parameters[n], g) is None) for n, g in params.items())


def test_checkpoints_have_the_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """What save_parameters writes is named as the model here, but for Gluon's own words for the leaves."""
    mx = pytest.importorskip("mxnet")
    model = ResNet()
    graph = tv.trace(model, *IMAGES)
    block, _ = build(graph, model.state_dict())
    block.save_parameters(str(tmp_path / "net.params"))
    saved = mx.nd.load(str(tmp_path / "net.params"))
    words = {"bn1.weight": "bn1.gamma", "bn1.bias": "bn1.beta"}
    assert {"layer2.0.conv1.weight", "layer2.0.down.0.weight", "layer1.1.bn2.running_var", "fc.bias",
            f"layer1.0.{words['bn1.weight']}"} <= saved.keys()  # fmt: skip
    assert len(saved) == len(model.state_dict())
    np.testing.assert_array_equal(saved["layer2.1.conv2.weight"].asnumpy(), model.state_dict()["layer2.1.conv2.weight"])


class Nested(nn.Module):
    """Chains in chains, a scope that is left and entered again, numbers that are no chain."""

    def __init__(self) -> None:
        self.features = nn.Sequential(nn.Linear(4), nn.Sequential(nn.Linear(5), tv.relu), nn.RNN(3))
        self.parts = [nn.Linear(3), nn.Linear(3)]

    def forward(self, x: Any) -> Any:
        x = self.features(x)
        return self.parts[1](self.parts[0](x) + x)


def test_nested_containers(rng: np.random.Generator) -> None:
    model, x = Nested(), rng.standard_normal((2, 3, 4)).astype(np.float32)
    near(run(model, x), model(tv.asarray(x)).numpy())
    source = emit(tv.trace(model, ("float32", ("batch", 3, 4)))).source
    assert 'self.features[2].l0_h2h_bias.grad_req = "null"' in source
    assert "self.parts[1](" in source or "self[1](" in source


REFUSALS = {
    "of the open sizes": lambda x: x * OPS["full"](shape=(), value=x.shape[0], dtype=tv.float32),
    "would repeat": lambda x: OPS["broadcast_to"](x[:1], shape=(x.shape[0], 4)),
    "more open sizes than Reshape": lambda x: (y := x @ x.mT).reshape(y.shape[0], 1, 1, y.shape[1]).reshape(
        y.shape[0], 1, y.shape[1], 1).permute(2, 1, 0, 3).reshape(1, y.shape[1], y.shape[0]),
    "an empty array": lambda x: x[:, 4:],
    "depends on an open size": lambda x: tv.concat([x, x])[: x.shape[0]],
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals(reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        emit(tv.trace(REFUSALS[reason], ("float32", ("batch", 4))))


def test_statistics_that_MXNet_would_not_collect() -> None:
    norm = nn.BatchNorm2d()

    def twice(x: Any) -> Any:
        return norm(norm(x))

    def alone(x: Any) -> Any:
        graph = x.graph
        mean, var = (graph.input("state", "float32", (3,), f"bn.running_{n}") for n in ("mean", "var"))
        y, *new = OPS["batch_norm"](x, None, None, mean, var, training=tv.graph.MODE)
        graph.updates |= zip((mean, var), new, strict=True)
        return y

    class Twice(nn.Module):
        def __init__(self) -> None:
            self.bn = norm

        def forward(self, x: Any) -> Any:
            return twice(x)

    for function, reason in ((Twice(), "applied twice"), (alone, "no gradient reaches")):
        with pytest.raises(UnsupportedError, match=reason):
            emit(tv.trace(function, ("float32", ("batch", 3, 4, 4))))


# -- goldens -----------------------------------------------------------------------------------------
class Residual(nn.Module):
    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(8, 3, stride=2, padding=((0, 1), (0, 1)))
        self.layer1 = nn.Sequential(Block(8), Block(16, 2))
        self.fc = nn.Linear(10)

    def forward(self, x: Any) -> Any:
        return self.fc(tv.mean(self.layer1(tv.relu(self.conv1(x))), axis=(2, 3)))


SOURCES = {
    "mlp": (nn.Sequential(nn.Linear(16), tv.relu, nn.Dropout(0.1), nn.Linear(10)), ("float32", ("batch", 8))),
    "residual": (Residual(), ("float32", ("batch", 3, 32, 32))),
    "rnn": (Recurrent(), ("float32", ("batch", 8, 8))),
}


@pytest.mark.parametrize("name", SOURCES)
def test_goldens(name: str) -> None:
    model, spec = SOURCES[name]
    assert emit(tv.trace(model, spec)).source == (GOLDENS / f"{name}.txt").read_text()
