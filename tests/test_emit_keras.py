"""Graphs as Keras models: every op, whole models, gradients, statistics and training steps."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn
from trivium.check import check
from trivium.frameworks.keras.emit import emit, emit_function
from trivium.frameworks.keras.read import read
from trivium.frameworks.keras.run import KerasRunner, KerasTrainer, build, foreign
from trivium.frameworks.source import execute
from trivium.graph import OPS, Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.op import Case, Op
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize
from trivium.transforms.step import Update, initial_slots, training_step, update_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
if keras.config.backend() != "tensorflow":
    pytest.skip("gradients are TensorFlow's", allow_module_level=True)

GOLDENS = Path(__file__).parent / "goldens" / "keras"

_NO_INPUT = "without an input"
_GRADIENT = "a gradient"
_INSIDE = "the inside of a pool"
_CLOSURE = "not saved with functions inside"
_RANDOM = "other bits"
REFUSED = {
    "full": _NO_INPUT, "constant": _NO_INPUT, "arange": _NO_INPUT,
    "conv_input_grad": _GRADIENT, "conv_weight_grad": _GRADIENT, "take_grad": _GRADIENT,
    "windows": _INSIDE, "fold": _INSIDE,
    "cond": _CLOSURE, "scan": _CLOSURE,
    "rnn": _CLOSURE,  # of weights that are no layer's; tested as layers below
    "random_uniform": _RANDOM, "dropout-0": _RANDOM,
    "conv-1": "in groups", "conv-3": "in groups",  # of kernels that are no layer's
    "max_pool-3": "dilation",
    "pad-2": "between elements",
}  # fmt: skip
"""op or op-case: why Keras has no exact form."""

ALL = [op for op in OPS.values() if isinstance(op, Op)]
CASES = [pytest.param(op, c, i, id=f"{op.name}-{i}") for op in ALL for i, c in enumerate(op.cases)]


def one_node(op: Op, case: Case) -> Graph:
    graph = Graph(op.name)
    with graph:
        values = [
            None if s is None else graph.input("data", s.dtype, s.shape, f"x{i}")
            for i, s in enumerate(case.arrays)
        ]
        graph.outputs = list(op.append(graph, *op.bind(values, case.attrs)))
    return check(graph)


def close(got: Any, exact: Any, what: str = "", times: float = 64) -> None:
    """Equal but for float32 rounding."""
    exact = np.asarray(exact)
    assert got.shape == exact.shape, what
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, exact, err_msg=what)
        return
    unit = np.finfo(np.float32).eps * max(1, np.abs(exact).max(initial=0))
    np.testing.assert_allclose(got, exact, rtol=0, atol=times * unit, err_msg=what)


def agree(
    graph: Graph, values: dict[str, Any], inputs: list[Any], training: bool, times: float = 64
) -> Any:
    """Outputs, gradients and new states against the float64 oracle; the model compared."""
    model, weights = build(graph, values)
    runner = KerasRunner(model, weights)
    rng = np.random.default_rng(5)
    special = specialize(graph, training=training)
    data = iter(inputs)
    key = np.zeros(2, np.uint64)
    known = values | {v.name: key for v in graph.of_kind("rng")}
    arrays = [known[v.name] if v.name in known else next(data) for v in graph.inputs]
    exact = Interpreter(special, tv.float64)(*arrays)
    outputs = exact[: len(graph.outputs)]
    for got, want, v in zip(runner.outputs(inputs, training), outputs, graph.outputs, strict=True):
        assert got.dtype == v.dtype.numpy
        close(got, want, "output", times)
    cts = [
        rng.standard_normal(o.shape).astype(v.dtype.numpy)
        for o, v in zip(outputs, graph.outputs, strict=True) if v.dtype.is_floating
    ]  # fmt: skip
    wrt = [v.name for v in graph.inputs if v.dtype.is_floating and v.kind in ("data", "param")]
    before = runner.values()
    pulled = runner.pull(inputs, cts, training)
    assert all(np.array_equal(before[n], v) for n, v in runner.values().items()), (
        "states were not restored"
    )
    back = pullback(special, wrt)
    results = Interpreter(back, tv.float64)(*arrays, *cts)
    grads = dict(zip(wrt, results[len(outputs) : len(outputs) + len(wrt)], strict=True))
    names = [v.name for v in graph.of_kind("data")]
    for name, want in grads.items():
        got = pulled.parameters[name] if name in values else pulled.inputs[names.index(name)]
        close(
            np.zeros_like(want, np.float32) if got is None else got,
            want,
            f"gradient of {name}",
            times,
        )
    assert set(pulled.parameters) >= {v.name for v in graph.of_kind("param")}
    updated = {k.name: v for k, v in zip(graph.updates, exact[len(outputs) :], strict=True)}
    for name, want in updated.items():
        close(pulled.states[name], want, name, times)
    return model


# -- ops -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("op", "case", "i"), CASES)
def test_op(op: Op, case: Case, i: int) -> None:
    graph = one_node(op, case)
    rng = np.random.default_rng(0)
    arrays = [s.array(rng) for s in case.arrays if s is not None]
    reason = REFUSED.get(f"{op.name}-{i}", REFUSED.get(op.name))
    if reason is not None:
        with pytest.raises(UnsupportedError, match=reason):
            build(graph, {})
        return
    agree(graph, {}, arrays, training=False)


# -- models ----------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, c: int, stride: int = 1, **norm: Any):
        self.conv1 = nn.Conv2d(c, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(**norm)
        self.conv2 = nn.Conv2d(c, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(**norm)
        if stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(c, 1, stride=stride, bias=False), nn.BatchNorm2d(**norm)
            )
        self.stride = stride

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(tv.relu(self.bn1(self.conv1(x)))))
        return tv.relu(y + (self.down(x) if self.stride > 1 else x))


class ResNet(nn.Module):
    def __init__(self, **norm: Any):
        self.conv1 = nn.Conv2d(4, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(**norm)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(4, **norm), Block(4, **norm))
        self.layer2 = nn.Sequential(Block(6, 2, **norm), Block(6, **norm))
        self.fc = nn.Linear(5)

    def forward(self, x: Any) -> Any:
        x = self.pool(tv.relu(self.bn1(self.conv1(x))))
        return self.fc(tv.mean(self.layer2(self.layer1(x)), axis=(2, 3)))


class CNN(nn.Module):
    """Asymmetric and dilated padding, groups, both pools with borders, NCHW flattened."""

    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(6, 3, stride=2, padding=((1, 0), (0, 2)))
        self.conv2 = nn.Conv2d(6, 3, padding=2, dilation=2, groups=6)
        self.conv3 = nn.Conv2d(4, (3, 2), padding=1, groups=2)
        self.pool = nn.MaxPool2d(2, stride=1, padding=((1, 0), (0, 1)))
        self.mean = nn.AvgPool2d(3, stride=2, padding=1, include_pad=False)
        self.mean2 = nn.AvgPool2d(2, padding=1)
        self.flatten, self.fc = nn.Flatten(), nn.Linear(3)

    def forward(self, x: Any) -> Any:
        x = tv.tanh(self.conv2(self.conv1(x)))
        return self.fc(self.flatten(self.mean2(self.mean(self.pool(self.conv3(x))))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        self.rnn, self.head = nn.RNN(12, last=True), nn.Linear(10)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x))


class Text(nn.Module):
    def __init__(self) -> None:
        self.embed, self.norm, self.fc = nn.Embedding(11, 6), nn.LayerNorm(), nn.Linear(4)
        self.rnn = nn.RNN(5, activation="relu")

    def forward(self, x: Any) -> Any:
        return self.fc(self.rnn(self.norm(self.embed(x))))


class Two(nn.Module):
    """Two inputs through one layer, a free parameter, and two outputs."""

    def __init__(self) -> None:
        self.fc, self.out = nn.Linear(4), nn.Linear(2)

    def forward(self, a: Any, b: Any) -> Any:
        scale = self.param("scale", (4,), nn.layers.ones)
        a, b = tv.tanh(self.fc(a)), tv.tanh(self.fc(b))
        return self.out(a * scale - b), a[:, 1:-1]


class Siamese(nn.Module):
    """Layers called twice, one of them with statistics."""

    def __init__(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(4), tv.relu, nn.BatchNorm(unbiased=False))
        self.out = nn.Linear(3)

    def forward(self, a: Any, b: Any) -> Any:
        return self.out(self.encoder(a) * 2 + self.encoder(b))


def randomized(module: nn.Module) -> dict[str, Any]:
    """Parameters and statistics away from 0 and 1."""
    rng = np.random.default_rng(1)
    return {
        n: (rng.uniform(0.5, 1.5, v.shape) if n.endswith(("var", "bn1.weight")) else
            np.asarray(v) + 0.1 * rng.standard_normal(v.shape)).astype(np.float32)
        for n, v in module.state_dict().items()
    }  # fmt: skip


def images(n: int, *shape: int) -> Any:
    return np.random.default_rng(n).standard_normal((n, *shape)).astype(np.float32)


MODELS: dict[str, tuple[Any, list[Any], list[tuple[int, ...]]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(16), tv.relu, nn.Linear(10)), ["float32"], [(8,)]),
    "cnn": (CNN, ["float32"], [(4, 11, 9)]),
    "residual": (ResNet, ["float32"], [(3, 16, 16)]),
    "biased": (lambda: ResNet(unbiased=False), ["float32"], [(3, 16, 16)]),
    "rnn": (Recurrent, ["float32"], [(7, 3)]),
    "text": (Text, ["int64"], [(7,)]),
    "two": (Two, ["float32", "float32"], [(3,), (3,)]),
    "siamese": (Siamese, ["float32", "float32"], [(3,), (3,)]),
}  # fmt: skip


def traced(name: str) -> tuple[Graph, dict[str, Any], Any]:
    make, dtypes, shapes = MODELS[name]
    module = make()
    graph = tv.trace(module, *((d, ("batch", *s)) for d, s in zip(dtypes, shapes, strict=True)))

    def batch(n: int) -> list[Any]:
        return [
            images(n, *s) * (i + 1)
            if d == "float32"
            else np.random.default_rng(n).integers(0, 11, (n, *s))
            for i, (d, s) in enumerate(zip(dtypes, shapes, strict=True))
        ]

    return graph, randomized(module), batch


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    graph, values, batch = traced(name)
    for n, training in ((3, True), (1, False), (5, False)):
        agree(graph, values, batch(n), training, times=512)


@pytest.mark.parametrize("name", ["mlp", "residual", "rnn"])
def test_source_reads_as_a_person_would_write_it(name: str) -> None:
    source = emit(traced(name)[0]).source
    assert source == (GOLDENS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_saves_and_reads_back(name: str, tmp_path: Path) -> None:
    graph, values, batch = traced(name)
    model, weights = build(graph, values)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for a, b in zip(KerasRunner(model, weights).outputs(batch(2)),
                    KerasRunner(again, weights).outputs(batch(2)), strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    module = read(again)
    scopes = {
        n.scope for n in graph.nodes if any(v is not None and v.kind == "param" for v in n.inputs)
    }
    assert scopes <= {n.scope for n in module.graph.nodes} | {""}
    assert module.state_dict().keys() == values.keys()
    assert {v.name: v.kind for v in graph.of_kind("param", "state")} == {
        v.name: v.kind for v in module.graph.of_kind("param", "state")
    }
    runner = foreign(again, module)
    for n, v in module.state_dict().items():
        np.testing.assert_array_equal(runner.values()[n], np.asarray(v))
    special = Interpreter(specialize(module.graph, training=False), tv.float64)
    data = iter(batch(2))
    held = module.state_dict()
    arrays = [
        np.asarray(held[v.name]) if v.name in held else next(data) for v in module.graph.inputs
    ]
    for got, want in zip(runner.outputs(batch(2)), special(*arrays), strict=False):
        close(got, want, times=512)


# -- single layers ---------------------------------------------------------------------------------
def layer(
    name: str, op: str, x: Any, arrays: dict[str, Any], states: Any = (), **attrs: Any
) -> Any:
    """A graph of one op with the parameters of a layer called ``name``, and their values."""
    graph, values = Graph("One"), {}
    with graph:
        data = graph.input("data", x.dtype, ("batch", *x.shape[1:]), "x")
        own = []
        for n, a in arrays.items():
            values[f"{name}.{n}"] = a
            own.append(
                graph.input("state" if n in states else "param", a.dtype, a.shape, f"{name}.{n}")
            )
        with graph.within(name):
            outputs = OPS[op].append(graph, [data, *own], attrs)
        graph.outputs = list(outputs)
    return graph, values


def test_two_biases_of_an_rnn() -> None:
    x, r = images(3, 5, 2), np.random.default_rng(3)
    shapes = {"weight_ih": (4, 2), "weight_hh": (4, 4), "bias_ih": (4,), "bias_hh": (4,)}
    arrays = {n: (r.standard_normal(s) / 2).astype("f") for n, s in shapes.items()}
    graph, values = layer("rnn", "rnn", x, arrays, activation="relu")
    model = agree(graph, values, [x], training=True)
    assert "TwoBiasRNNCell(4, activation=" in model.source and "return_state=True" in model.source
    assert [n.op for n in read(model).graph.nodes] == ["rnn"]
    graph.outputs = graph.outputs[1:]
    model = agree(graph, values, [x], training=True)
    assert "return_" not in model.source


@pytest.mark.parametrize("kind", ["param", "state"])
def test_frozen_batch_norm(kind: str) -> None:
    x, r = images(4, 3, 2), np.random.default_rng(3)
    names = ("weight", "bias", "running_mean", "running_var")
    arrays = {n: r.uniform(0.5, 1.5, 2).astype("f") for n in names}
    states = names[2:] if kind == "param" else names
    graph, values = layer(
        "bn", "batch_norm", x, arrays, states, axis=2, training=False, epsilon=0.01
    )
    graph.outputs = graph.outputs[:1]
    model = agree(graph, values, [x], training=True)
    assert ("FrozenBatchNormalization" in model.source) == (kind == "param")
    assert [n.attrs["training"] for n in read(model).graph.nodes] == [False]


def test_dropout_is_the_frameworks_own() -> None:
    model = nn.Sequential(nn.Linear(64), nn.Dropout(0.25))
    graph, values = tv.trace(model, ("float32", ("batch", 8))), randomized(model)
    runner = KerasRunner(*build(graph, values))
    x = images(50, 8)
    plain, (dropped,) = runner.outputs([x], False)[0], runner.outputs([x], True)
    kept = dropped != 0
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(dropped[kept], plain[kept] / 0.75, rtol=1e-5)


def test_open_sizes() -> None:
    def split(x: Any) -> Any:
        b, t, d = x.shape
        return x.reshape(b, t, 2, d // 2).permute(0, 2, 1, 3).reshape(-1, d // 2)

    for sizes in (("batch", "time", 6), ("batch", 4, 6)):
        graph = tv.trace(split, ("float32", sizes))
        agree(graph, {}, [images(3, 4, 6)], training=False)
    graph = tv.trace(
        lambda x: OPS["arange"](stop=x.shape[0]) + tv.sum(x, axis=1), ("int64", ("batch", 3))
    )
    with pytest.raises(UnsupportedError, match="open size 'batch'"):
        emit(graph)


class Token(nn.Module):
    """A class token and a padding of zeros, once for each element of the batch."""

    def __init__(self) -> None:
        self.fc = nn.Linear(4)

    def forward(self, x: Any) -> Any:
        token = self.param("token", (1, 1, 4), nn.layers.ones)
        token = tv.broadcast_to(token, (x.shape[0], 2, 4))
        zeros = OPS["full"](shape=(x.shape[0], 1, 4), value=0.5)
        return tv.concat(token, self.fc(x), zeros, axis=1)


def test_a_token_for_every_element_of_an_open_batch(tmp_path: Path) -> None:
    module = Token()
    graph = tv.trace(module, ("float32", ("batch", 5, 3)))
    values = randomized(module)
    for n in (1, 3):
        model = agree(graph, values, [images(n, 5, 3)], training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert again(images(4, 5, 3)).shape == (4, 8, 4)
    assert foreign(again, read(again)).outputs([images(4, 5, 3)])[0].shape == (4, 8, 4)


def test_a_fixed_batch_stays_fixed() -> None:
    module = nn.Sequential(nn.Linear(3))
    graph = tv.trace(module, ("float32", (4, 5)))
    model = agree(graph, randomized(module), [images(4, 5)], training=False)
    assert model.input_shape == (4, 5)


def test_a_parameter_in_two_roles_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.embed = nn.Embedding(5, 3)

        def forward(self, x: Any) -> Any:
            y = self.embed(x)
            return y @ self.embed.param("weight", (5, 3), nn.layers.zeros).T

    with pytest.raises(UnsupportedError, match=r"embed.weight is a layer's and used besides"):
        emit(tv.trace(Tied(), ("int64", ("batch", 4))))


def test_float64_is_never_cast_unasked() -> None:
    graph = tv.trace(lambda x: tv.relu(tv.softmax(x)), ("float64", ("batch", 3)))
    agree(graph, {}, [np.linspace(-1, 1, 6).reshape(2, 3)], training=False, times=1e-6)
    module = nn.Sequential(nn.Linear(3))
    with pytest.raises(UnsupportedError, match="float64"):
        emit(specialize(tv.trace(module, ("float32", ("batch", 5))), floating=tv.float64))


def test_settings_that_change_what_the_source_means() -> None:
    graph = tv.trace(tv.tanh, ("float32", ("batch", 3)))
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UnsupportedError, match="channels_first"):
            build(graph, {})
    finally:
        keras.config.set_image_data_format("channels_last")


# -- training --------------------------------------------------------------------------------------
def _sgd(p: Any, g: Any, slots: dict[str, Any], count: Any, lr: Any) -> Any:
    p, v = OPS["sgd_update"](p, g, slots["v"], lr, momentum=0.9)
    return p, {"v": v}


def _adam(p: Any, g: Any, slots: dict[str, Any], count: Any, lr: Any) -> Any:
    p, m, v = OPS["adam_update"](p, g, slots["m"], slots["v"], count, lr)
    return p, {"m": m, "v": v}


UPDATES: dict[str, Update] = {"sgd": update_of(_sgd, ["v"]), "adam": update_of(_adam, ["m", "v"])}


@pytest.mark.parametrize("optimizer", UPDATES)
def test_ten_training_steps(optimizer: str) -> None:
    module = ResNet()
    loss = tv.trace(
        lambda x, y: OPS["cross_entropy"](module(x), y),
        ("float32", ("batch", 3, 16, 16)), ("int64", ("batch",)),
    )  # fmt: skip
    values, update = randomized(module), UPDATES[optimizer]
    trainer = KerasTrainer(loss, values, update)
    step = training_step(specialize(loss, training=True), update)
    params = {v.name: values[v.name] for v in loss.of_kind("param")}
    exact = {n: v.astype("f8") for n, v in (values | initial_slots(params, update)).items()}
    oracle = Interpreter(step, tv.float64)
    for i in range(10):
        n = (6, 4)[i % 2]
        x, y = images(n, 3, 16, 16) + i, np.random.default_rng(i).integers(0, 5, n)
        named = exact | {"lr": np.float64(0.01)}
        data = iter((x, y))
        arrays = [named[v.name] if v.name in named else next(data) for v in step.inputs]
        want, *new = oracle(*arrays)
        exact |= {s.name: v for s, v in zip(step.updates, new, strict=True)}
        assert abs(trainer.step([x, y], 0.01) - want) < 1e-5 * max(1, abs(want))
    for name, got in trainer.values().items():
        close(got, exact[name], name, times=256)


def test_update_is_a_plain_function() -> None:
    emitted = emit_function(specialize(UPDATES["sgd"].graph))
    p, v = execute(emitted, "keras")(
        *map(keras.ops.convert_to_tensor, ([1.0], [2.0], [3.0], 1.0, 0.5))
    )
    assert float(v[0]) == pytest.approx(4.7) and float(p[0]) == pytest.approx(-1.35)
