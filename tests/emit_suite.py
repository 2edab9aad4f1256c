"""What every target of the emitter is asked: ops one by one, whole models, training steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn
from trivium.framework import FRAMEWORKS
from trivium.graph import MODE, OPS, Graph
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.op import Case, Op, S
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize
from trivium.transforms.step import Update, initial_slots, training_step, update_of

GOLDENS = Path(__file__).parent / "goldens"
BESIDE = (2, 3)  # the shape of an input beside ops that read none
FLAT = {"batch_norm": {1, 2}}  # outputs that are state: nothing flows through them
CASES = [(op, i, c) for op in OPS.values() if isinstance(op, Op) for i, c in enumerate(op.cases)]


def one_node(op: Op, case: Case) -> Graph:
    graph = Graph(op.name)
    with graph:
        values = [
            None
            if s is None
            else graph.input(
                "rng" if op.random and s.dtype == "uint64" else "data", s.dtype, s.shape, f"x{i}"
            )
            for i, s in enumerate(case.arrays)
        ]
        graph.outputs = list(op.append(graph, *op.bind(values, case.attrs)))
    return check(graph)


def draw(graph: Graph, case: Case) -> list[Any]:
    """Arrays for all inputs: the case's, and one beside them."""
    rng = np.random.default_rng(0)
    samples = [s for s in case.arrays if s is not None]
    beside = [S(*BESIDE)] * (len(graph.inputs) - len(samples))
    return [s.array(rng) for s in (*samples, *beside)]


def near(got: Any, exact: Any, units: float = 64, what: str = "") -> None:
    """Within a few float32 roundings of the largest number there."""
    exact = np.asarray(exact)
    assert got.shape == exact.shape, f"{what}: {got.shape}, not {exact.shape}"
    unit = np.finfo(np.float32).eps * max(1.0, np.abs(exact).max(initial=0))
    np.testing.assert_allclose(got, exact, rtol=0, atol=units * unit, err_msg=what)


@dataclass
class Bound:
    """The framework under test."""

    name: str
    emit: Any
    build: Any
    runner: Any
    trainer: Any

    # -- ops -----------------------------------------------------------------------------------
    def op(self, graph: Graph, case: Case) -> None:
        """One node: outputs against the float64 oracle, gradients against our own."""
        arrays = draw(graph, case)
        exact = Interpreter(graph, tv.float64)(*arrays)
        keyless = [a for a, v in zip(arrays, graph.inputs, strict=True) if v.kind == "data"]
        runner = self.runner(*self.build(graph, {}))
        found = runner.outputs(keyless)
        assert len(found) == len(exact)
        for got, want in zip(found, exact, strict=True):
            assert got.dtype.kind == want.dtype.kind
            near(got, want)
        flat = FLAT.get(graph.nodes[0].op, set())
        smooth = [v.dtype.is_floating for v in graph.outputs]
        wrt = [v.name for v in graph.inputs if v.dtype.is_floating]
        if not any(smooth) or not wrt:
            return
        rng = np.random.default_rng(1)
        gs = [
            np.zeros(v.shape, "f") if i in flat else rng.standard_normal(v.shape).astype("f")
            for i, v in enumerate(graph.outputs)
            if v.dtype.is_floating
        ]
        pulled = runner.pull(keyless, gs)
        want = Interpreter(pullback(graph, wrt), tv.float64)(*arrays, *gs)[len(exact) :]
        for name, w in zip(wrt, want, strict=True):
            g = pulled.inputs[self.place(graph, name)]
            near(np.zeros_like(w) if g is None else g, w, what=f"d/d {name}")

    def dropout(self) -> None:
        """Its own mask: each element zero or grown, about as many as said."""
        op = OPS["dropout"]
        graph = Graph("drop")
        with graph:
            x = graph.input("data", "float32", ("n",), "x")
            key = graph.input("rng", "uint64", (2,), "rng")
            graph.outputs = [op(x, key, rate=0.3, training=MODE)]
        runner = self.runner(*self.build(graph, {}))
        x = np.arange(1, 4001, dtype=np.float32)
        (y,) = runner.outputs([x], training=True)
        assert abs((y == 0).mean() - 0.3) < 0.04
        near(y[y != 0], (x / np.float32(0.7))[y != 0])
        (y,) = runner.outputs([x])
        np.testing.assert_array_equal(y, x)
        pulled = runner.pull([x], [np.ones_like(x)], training=True)
        np.testing.assert_allclose(pulled.inputs[0], pulled.outputs[0] / x, rtol=1e-5)

    # -- models --------------------------------------------------------------------------------
    def model(self, name: str) -> None:
        """Outputs, all gradients and updated statistics, in both modes, at several batch sizes."""
        module, specs, _ = (MODELS | WIDER)[name]()
        graph = tv.trace(module, *specs)
        values = shaken(module)
        runner = self.runner(*self.build(graph, values))
        again = runner.values()
        assert again.keys() == values.keys()
        for n, v in values.items():
            np.testing.assert_array_equal(again[n], v)
        self.both_modes(graph, runner, values, [sample(s, 3) for s in specs])
        for batch in (1, 5):  # no size is baked in
            arrays = [sample(s, batch) for s in specs]
            given = iter(arrays)
            inputs = [values[v.name] if v.name in values else next(given) for v in graph.inputs]
            exact = Interpreter(specialize(graph, training=False), tv.float64)(*inputs)
            outputs = exact[: len(graph.outputs)]
            for got, want in zip(runner.outputs(arrays), outputs, strict=True):
                near(got, want, 128)
        fresh = {n: v + np.float32(0.1) for n, v in values.items()}
        runner.load(fresh)
        for n, v in runner.values().items():
            np.testing.assert_array_equal(v, fresh[n])

    def both_modes(self, graph: Graph, runner: Any, values: Any, arrays: list[Any]) -> None:
        held = {v.name: values[v.name] for v in graph.of_kind("param", "state")}
        names = [v.name for v in graph.inputs]
        given = iter(arrays)
        inputs = [held[v.name] if v.name in held else next(given) for v in graph.inputs]
        for training in (False, True):
            special = specialize(graph, training=training)
            exact = Interpreter(special, tv.float64)(*inputs)
            outputs = exact[: len(graph.outputs)]
            for got, want in zip(runner.outputs(arrays, training), outputs, strict=True):
                near(got, want, 128)
            rng = np.random.default_rng(2)
            gs = [rng.standard_normal(y.shape).astype("f") for y in outputs]
            pulled = runner.pull(arrays, gs, training)
            wrt = [v.name for v in special.inputs if v.kind != "state" and v.dtype.is_floating]
            back = pullback(special, wrt)
            back.updates = {}
            want = dict(
                zip(wrt, Interpreter(back, tv.float64)(*inputs, *gs)[len(gs) :], strict=True)
            )
            params = {v.name for v in graph.of_kind("param")}
            assert pulled.parameters.keys() == params
            for n, w in want.items():
                got = pulled.parameters[n] if n in params else pulled.inputs[self.place(graph, n)]
                near(got, w, 1024, n)
            states = {v.name: held[v.name] for v in graph.of_kind("state")}
            if training:
                new = zip(special.updates, exact[len(outputs) :], strict=True)
                states |= {s.name: v for s, v in new}
            assert pulled.states.keys() == states.keys()
            for n, w in states.items():
                near(pulled.states[n], w, 128, n)
            for n, v in runner.values().items():
                np.testing.assert_array_equal(v, held[n], err_msg=f"{n} was changed; {names}")

    @staticmethod
    def place(graph: Graph, name: str) -> int:
        return [v.name for v in graph.of_kind("data")].index(name)

    # -- training ------------------------------------------------------------------------------
    def trains(self, optimizer: str) -> None:
        """Ten steps, beside the float64 oracle's ten."""
        module, specs, _ = MODELS["residual"]()
        module.build(*specs)
        loss = tv.trace(
            lambda x, y: tv.cross_entropy(module(x), y),
            *specs,
            ("int64", ("batch",)),
            training=True,
        )
        values, update = shaken(module), UPDATES[optimizer]()
        trainer = self.trainer(loss, values, update)
        step = training_step(loss, update)
        exact = dict(values) | initial_slots(step, loss)
        run = Interpreter(step, tv.float64)
        rng = np.random.default_rng(3)
        for i in range(10):
            lr = 0.05 / (i + 1)
            batch = [sample(specs[0], 4, i), rng.integers(0, 5, 4)]
            got = trainer.step(batch, lr)
            given = iter([*batch, np.float32(lr)])
            passed = ("data", "hyper")
            out = run(*(next(given) if v.kind in passed else exact[v.name] for v in step.inputs))
            exact |= zip([v.name for v in step.updates], out[1:], strict=True)
            assert abs(got - out[0]) < 2e-4 * max(1, abs(out[0])), f"step {i}"
        for n, v in trainer.values().items():
            np.testing.assert_allclose(
                v, exact[n], rtol=0, atol=2e-3 * max(1, np.abs(exact[n]).max()), err_msg=n
            )
        trainer.load(values)
        for n, v in trainer.values().items():
            np.testing.assert_array_equal(v, values[n])

    def golden(self, name: str) -> None:
        """The source, as it was reviewed by reading."""
        module, specs, _ = MODELS[name]()
        source = self.emit(tv.trace(module, *specs, name=name)).source
        path = GOLDENS / self.name / f"{name}.txt"
        assert path.exists(), f"write {path} and read it:\n{source}"
        assert source == path.read_text()


def bound(name: str) -> Bound:
    """A framework as its record has it; the test is skipped where it is not installed."""
    record = FRAMEWORKS[name]
    if record.version() is None:
        pytest.skip(f"not installed: {record.remedy}")
    emit, run = record.at("emit"), record.at("run")
    if name == "keras" and run.load().config.backend() != "tensorflow":
        pytest.skip("gradients are TensorFlow's")
    runner, trainer = getattr(run, record.runner), getattr(run, record.trainer)
    return Bound(name, emit.emit, run.build, runner, trainer)


# -- models ----------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, channels: int, stride: int = 1):
        self.conv1 = nn.Conv2d(channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d()
        self.conv2 = nn.Conv2d(channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(momentum=0.2, epsilon=1e-3)
        self.stride = stride
        if stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(channels, 1, stride=stride, bias=False), nn.BatchNorm2d()
            )

    def forward(self, x: Any) -> Any:
        y = tv.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return tv.relu(y + (self.down(x) if self.stride > 1 else x))


class Residual(nn.Module):
    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(4, 3, padding=((1, 2), (0, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(unbiased=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=((0, 1), (0, 1)))
        self.layer1 = nn.Sequential(Block(4), Block(4), Block(4))
        self.layer2 = nn.Sequential(Block(6, 2), Block(6))
        self.fc = nn.Linear(5)

    def forward(self, x: Any) -> Any:
        x = self.pool(tv.relu(self.bn1(self.conv1(x))))
        return self.fc(tv.mean(self.layer2(self.layer1(x)), axis=(2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        self.first, self.second = nn.RNN(6), nn.RNN(5, activation="relu", last=True)
        self.head = nn.Linear(3)

    def forward(self, x: Any) -> Any:
        return self.head(self.second(self.first(x)))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        self.features = nn.Sequential(
            nn.Conv2d(6, (3, 2), stride=(2, 1), dilation=(1, 2)), nn.ReLU(),
            nn.AvgPool2d(2, padding=1),
            nn.Conv2d(12, 3, padding=1, groups=3), tv.gelu, nn.MaxPool2d(2),
        )  # fmt: skip
        self.depthwise = nn.Conv2d(12, 3, padding=1, groups=12)
        self.pool = nn.AvgPool2d(2, stride=1, padding=1, include_pad=False)
        self.flat, self.head = nn.Flatten(), nn.Linear(4)

    def forward(self, x: Any) -> Any:
        x = self.features(x)
        x = self.pool(self.depthwise(x))
        return self.head(self.flat(x))


class Words(nn.Module):
    def __init__(self) -> None:
        self.embedding, self.norm, self.head = (
            nn.Embedding(9, 6),
            nn.LayerNorm(epsilon=1e-3),
            nn.Linear(3),
        )

    def forward(self, ids: Any) -> Any:
        x = self.norm(self.embedding(ids))
        return self.head(tv.tanh(x)), tv.softmax(tv.sum(x, axis=-1), axis=1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        self.left, self.right = nn.Linear(4), nn.Linear(4, bias=False)

    def forward(self, x: Any, y: Any) -> Any:
        z = tv.concat(self.left(x), self.right(y), axis=1)
        return z * 2 + 1 - tv.maximum(z, 0.5), tv.mean(tv.exp(z[:, 1:3]))


class Shared(nn.Module):
    def __init__(self) -> None:
        self.same, self.head = nn.Linear(7), nn.Linear(2)

    def forward(self, x: Any) -> Any:
        return self.head(tv.sigmoid(self.same(tv.tanh(self.same(x)))))


def _shape(*shape: Any, dtype: str = "float32") -> Any:
    return (dtype, ("batch", *shape))


MODELS: dict[str, Any] = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(16), nn.ReLU(), nn.Linear(16), nn.Tanh(), nn.Linear(5)),
        [_shape(7)],
        None,
    ),
    "residual": lambda: (Residual(), [_shape(3, 11, 10)], None),
    "rnn": lambda: (Recurrent(), [_shape(4, 5)], None),
    "cnn": lambda: (Convolutional(), [_shape(3, 13, 12)], None),
    "words": lambda: (Words(), [_shape(4, dtype="int64")], None),
    "two_inputs": lambda: (TwoInputs(), [_shape(3), _shape(2)], None),
    "shared": lambda: (Shared(), [_shape(7)], None),
    "channels_last": lambda: (
        nn.Sequential(
            nn.Conv2d(4, 3, layout="NHWC", padding=1), nn.BatchNorm(axis=-1), nn.ReLU(),
            nn.MaxPool2d(2, layout="NHWC"), nn.Flatten(), nn.Linear(3),
        ),
        [_shape(6, 7, 2)],
        None,
    ),
}  # fmt: skip


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        self.norm, self.head = nn.BatchNorm(axis=-1), nn.Linear(4)

    def forward(self, x: Any) -> Any:
        return self.norm(tv.tanh(self.head(self.norm(x))) + x)


class Tied(nn.Module):
    def __init__(self) -> None:
        self.table, self.inner = nn.Embedding(9, 6), nn.Sequential(nn.Linear(6), tv.relu)
        self.head = nn.Linear(6, bias=False)

    def forward(self, ids: Any) -> Any:
        x = self.head(self.inner(self.table(ids)))
        x = tv.matmul(x, self.head.param("weight", (6, 6), nn.layers.zeros))
        return tv.linear(x, self.table.param("weight", (9, 6), nn.layers.zeros))


class Loop(nn.Module):
    def __init__(self) -> None:
        self.cell, self.head = nn.Linear(4), nn.Linear(2)

    def forward(self, x: Any) -> Any:
        w = self.param("w", (4, 4), nn.layers.glorot)
        given = self.cell(x)

        def step(h: Any, g: Any) -> Any:
            h = tv.tanh(g + tv.matmul(h, w))
            return h, h * 2

        last, all_h = tv.scan(step, tv.sum(given, axis=1), tv.transpose(given, axes=(1, 0, 2)))
        return self.head(last), tv.mean(all_h, axis=0)


class Branch(nn.Module):
    def __init__(self) -> None:
        self.head = nn.Linear(4)

    def forward(self, x: Any) -> Any:
        y = self.head(x)
        return tv.cond(tv.sum(y) > 0, lambda v: v * 2, lambda v: tv.tanh(v), y)


class Names(nn.Module):
    """Parts that are called what emitted source calls something else."""

    def __init__(self) -> None:
        self.conv, self.max_pool = nn.Conv2d(4, 3), nn.MaxPool2d(2)
        for name in ("linear", "params", "name", "jax", "tf", "variables", "lambda"):
            setattr(self, name, nn.Linear(3))
        self.state = nn.Sequential(nn.Linear(3), nn.BatchNorm(axis=-1))

    def forward(self, x: Any) -> Any:
        x = tv.mean(self.max_pool(self.conv(x)), axis=(2, 3))
        for name in ("linear", "params", "name", "jax", "tf", "variables", "lambda", "state"):
            x = getattr(self, name)(x)
        return x


class Free(nn.Module):
    def __init__(self) -> None:
        self.head = nn.Linear(4)

    def forward(self, x: Any) -> Any:
        scale = self.param("scale", (4,), nn.layers.ones)
        return self.head(x) * scale + self.param("shift", (4,), nn.layers.zeros)


WIDER: dict[str, Any] = {
    "shared_norm": lambda: (SharedNorm(), [_shape(4)], None),
    "tied": lambda: (Tied(), [_shape(5, dtype="int64")], None),
    "loop": lambda: (Loop(), [_shape(5, 3)], None),
    "branch": lambda: (Branch(), [_shape(3)], None),
    "names": lambda: (Names(), [_shape(3, 7, 6)], None),
    "free": lambda: (nn.Sequential(Free(), Free(), Free(), nn.Linear(3)), [_shape(4)], None),
    "norm_of_rank_3": lambda: (
        nn.Sequential(nn.BatchNorm(), nn.ReLU(), nn.BatchNorm()), [_shape(3, 4)], None
    ),
    "multiplied_depthwise": lambda: (
        nn.Sequential(
            nn.Conv2d(8, 3, groups=4, stride=(1, 2)), nn.Conv2d(8, 3, groups=8, stride=(2, 1))
        ),
        [_shape(4, 9, 9)],
        None,
    ),
}  # fmt: skip
"""Models that not every target has words for."""


def shaken(module: nn.Module) -> dict[str, Any]:
    """Values that hide nothing: no zero bias, no statistic of 0 and 1."""
    rng = np.random.default_rng(5)
    return {
        n: (v + rng.uniform(0.1, 0.4, v.shape)).astype(np.float32)
        for n, v in module.state_dict().items()
    }


def sample(spec: Any, batch: int, seed: int = 0) -> Any:
    dtype, (_, *shape) = spec
    rng = np.random.default_rng([seed, batch])
    if dtype == "int64":
        return rng.integers(0, 9, (batch, *shape))
    return rng.standard_normal((batch, *shape)).astype(np.float32)


def _sgd(p: Any, g: Any, slots: Any, count: Any, lr: Any) -> Any:
    p, v = OPS["sgd_update"](
        p, g, slots["velocity"], lr, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    return p, {"velocity": v}


def _adam(p: Any, g: Any, slots: Any, count: Any, lr: Any) -> Any:
    p, m, v = OPS["adam_update"](p, g, slots["m"], slots["v"], count, lr)
    return p, {"m": m, "v": v}


UPDATES: dict[str, Any] = {
    "sgd": lambda: update_of(_sgd, ["velocity"]),
    "adam": lambda: update_of(_adam, ["m", "v"]),
}

__all__ = ["CASES", "MODELS", "UPDATES", "Bound", "Update"]
