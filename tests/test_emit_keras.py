"""Graphs as Keras models: what is particular to Keras, saved and read back too."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from emit_suite import MODELS, UPDATES, near, sample, shaken
from trivium import nn
from trivium.frameworks.keras.emit import emit, emit_function
from trivium.frameworks.keras.open import read
from trivium.frameworks.keras.run import KerasRunner, build, foreign
from trivium.frameworks.made import execute
from trivium.graph import OPS, Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
if keras.config.backend() != "tensorflow":
    pytest.skip("gradients are TensorFlow's", allow_module_level=True)


def agree(graph: Graph, values: dict[str, Any], inputs: list[Any], training: bool) -> Any:
    """Outputs, gradients and new states against the float64 oracle; the model compared."""
    model, weights = build(graph, values)
    runner = KerasRunner(model, weights)
    special = specialize(graph, training=training)
    data = iter(inputs)
    arrays = [values[v.name] if v.name in values else next(data) for v in graph.inputs]
    exact = Interpreter(special, tv.float64)(*arrays)
    outputs = exact[: len(graph.outputs)]
    for got, want, v in zip(runner.outputs(inputs, training), outputs, graph.outputs, strict=True):
        assert got.dtype == v.dtype.numpy
        near(got, want, 128)
    rng = np.random.default_rng(5)
    cts = [
        rng.standard_normal(o.shape).astype(v.dtype.numpy)
        for o, v in zip(outputs, graph.outputs, strict=True) if v.dtype.is_floating
    ]  # fmt: skip
    wrt = [v.name for v in graph.inputs if v.dtype.is_floating and v.kind in ("data", "param")]
    before = runner.values()
    pulled = runner.pull(inputs, cts, training)
    for n, v in runner.values().items():
        np.testing.assert_array_equal(v, before[n], err_msg=f"{n} was not put back")
    results = Interpreter(pullback(special, wrt), tv.float64)(*arrays, *cts)
    names = [v.name for v in graph.of_kind("data")]
    slopes = results[len(outputs) : len(outputs) + len(wrt)]  # then what states become
    for name, want in zip(wrt, slopes, strict=True):
        got = pulled.parameters[name] if name in values else pulled.inputs[names.index(name)]
        near(np.zeros_like(want, np.float32) if got is None else got, want, 1024, name)
    for state, want in zip(graph.updates, exact[len(outputs) :], strict=True):
        near(pulled.states[state.name], want, 128, state.name)
    return model


# -- what is Keras's alone -------------------------------------------------------------------------
class Borders(nn.Module):
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


def images(n: int, *shape: int) -> Any:
    return np.random.default_rng(n).standard_normal((n, *shape)).astype(np.float32)


F32 = "float32"
OWN: dict[str, Any] = {
    "borders": lambda: (Borders(), [(F32, ("batch", 4, 11, 9))]),
    "text": lambda: (Text(), [("int64", ("batch", 7))]),
    "two": lambda: (Two(), [(F32, ("batch", 3)), (F32, ("batch", 3))]),
    "siamese": lambda: (Siamese(), [(F32, ("batch", 3)), (F32, ("batch", 3))]),
}


@pytest.mark.parametrize("name", OWN)
def test_own_model(name: str) -> None:
    module, specs = OWN[name]()
    graph = tv.trace(module, *specs)
    for n, training in ((3, True), (1, False), (5, False)):
        agree(graph, shaken(module), [sample(s, n, i) for i, s in enumerate(specs)], training)


@pytest.mark.parametrize("name", [*MODELS, *OWN])
def test_saves_and_reads_back(name: str, tmp_path: Path) -> None:
    module, specs, *_ = (MODELS | OWN)[name]()
    graph = tv.trace(module, *specs)
    model, weights = build(graph, shaken(module))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    batch = [sample(s, 2, i) for i, s in enumerate(specs)]
    outputs = [KerasRunner(m, weights).outputs(batch) for m in (model, again)]
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_array_equal(a, b)

    back = read(again)
    kinds = [{v.name: v.kind for v in g.of_kind("param", "state")} for g in (graph, back.graph)]
    assert kinds[0] == kinds[1]
    layers = [{n.scope for n in g.nodes if n.op == "linear"} for g in (graph, back.graph)]
    assert layers[0] == layers[1]
    runner, held = foreign(again, back), back.state_dict()
    assert runner.values().keys() == held.keys()
    for n, v in runner.values().items():
        np.testing.assert_array_equal(v, np.asarray(held[n]))
    special = Interpreter(specialize(back.graph, training=False), tv.float64)
    data = iter(batch)
    arrays = [np.asarray(held[v.name]) if v.name in held else next(data) for v in back.graph.inputs]
    wanted = special(*arrays)[: len(back.graph.outputs)]
    for got, want in zip(runner.outputs(batch), wanted, strict=True):
        near(got, want, 128)


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
    values = shaken(module)
    for n in (1, 3):
        model = agree(graph, values, [images(n, 5, 3)], training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert again(images(4, 5, 3)).shape == (4, 8, 4)
    assert foreign(again, read(again)).outputs([images(4, 5, 3)])[0].shape == (4, 8, 4)


def test_a_fixed_batch_stays_fixed() -> None:
    module = nn.Sequential(nn.Linear(3))
    graph = tv.trace(module, ("float32", (4, 5)))
    model = agree(graph, shaken(module), [images(4, 5)], training=False)
    assert model.input_shape == (4, 5)


def test_a_parameter_in_two_roles_is_a_weight_of_its_own() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            self.embed = nn.Embedding(5, 3)

        def forward(self, x: Any) -> Any:
            y = self.embed(x)
            return y @ self.embed.param("weight", (5, 3), nn.layers.zeros).T

    module = Tied()
    graph = tv.trace(module, ("int64", ("batch", 4)))
    assert 'Weight((5, 3), name="embed.weight")' in emit(graph).source
    agree(graph, shaken(module), [np.arange(8).reshape(2, 4) % 5], training=True)


def test_float64_is_never_cast_unasked() -> None:
    graph = tv.trace(lambda x: tv.relu(tv.softmax(x)), ("float64", ("batch", 3)))
    agree(graph, {}, [np.linspace(-1, 1, 6).reshape(2, 3)], training=False)
    module = nn.Sequential(nn.Linear(3))
    wide = specialize(tv.trace(module, ("float32", ("batch", 5))), floating=tv.float64)
    assert 'Weight((3, 5), "float64"' in emit(wide).source


def test_settings_that_change_what_the_source_means() -> None:
    graph = tv.trace(tv.tanh, ("float32", ("batch", 3)))
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UnsupportedError, match="channels_first"):
            build(graph, {})
    finally:
        keras.config.set_image_data_format("channels_last")


def test_update_is_a_plain_function() -> None:
    emitted = emit_function(specialize(UPDATES["sgd"]().graph))
    p, v = execute(emitted, "keras")(
        *map(keras.ops.convert_to_tensor, ([1.0], [2.0], [3.0], 1.0, 0.5))
    )
    assert float(v[0]) == pytest.approx(4.71) and float(p[0]) == pytest.approx(-2.1245)


@pytest.mark.parametrize("shapes", [((3, 3), (3, 1)), ((3, 3, 2), (1, 3, 1)), ((3, 3), (3,))])
def test_what_broadcasts_is_no_bias(shapes: Any) -> None:
    """Keras adds an operand with one axis along the axis of the channels, if the size fits."""
    x, y = (np.random.default_rng(0).standard_normal(s).astype("f") for s in shapes)
    graph = tv.trace(lambda x, y: x + y, *[tv.Spec("float32", s) for s in shapes])
    runner = KerasRunner(*build(graph, {}))
    np.testing.assert_array_equal(runner.outputs([x, y])[0], x + y)


def test_a_model_without_an_input_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="without an input"):
        emit(tv.trace(lambda: tv.zeros((2, 3))))
