"""The training step runs on every engine: ten steps stay with the float64 oracle, and together."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.engines import ENGINES
from trivium.interpret import Interpreter
from trivium.transforms.step import initial_slots, training_step

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
MODELS = ["linear_regression", "logistic_regression", "mlp", "cnn", "rnn"]
TRAINING = [name for name, e in ENGINES.items() if e.trains]
STEPS = 10


def batches(example: Any) -> list[tuple[Any, Any]]:
    x, y = example.data()
    return list(tv.data.batches(x, y, batch_size=32))[:STEPS]


def optimizer(name: str) -> Any:
    return tv.optim.Adam(0.01) if name in ("mlp", "rnn") else tv.optim.SGD(0.05, momentum=0.9)


def trained(engine: str, name: str) -> tuple[list[float], dict[str, Any]]:
    example = importlib.import_module(name)
    tv.seed(0)
    model = example.make()
    step = tv.TrainStep(model, example.loss, optimizer(name), engine=engine)
    losses = [step(x, y) for x, y in batches(example)]
    return losses, model.state_dict()


def oracle(name: str) -> tuple[list[float], dict[str, Any]]:
    """The same ten steps in float64, by the interpreter."""
    example = importlib.import_module(name)
    tv.seed(0)
    model = example.make()
    todo = batches(example)
    specs = [tv.Spec(str(a.dtype), ("batch", *a.shape[1:])) for a in todo[0]]
    graph = tv.trace(lambda x, y: example.loss(model(x), y), *specs, training=True)
    update = optimizer(name).update()
    step = training_step(graph, update)
    held: dict[str, Any] = {n: np.asarray(a, np.float64) for n, a in model.state_dict().items()}
    params = [v.name for v in graph.of_kind("param")]
    held |= initial_slots(step, graph)
    run = Interpreter(step, tv.float64)
    losses = []
    for x, y in todo:
        given = iter([x, y, np.float64(optimizer(name).lr)])
        passed = ("data", "hyper")
        arrays = (next(given) if v.kind in passed else held[v.name] for v in step.inputs)
        loss, *new = run(*arrays)
        held |= zip((v.name for v in step.updates), new, strict=True)
        losses.append(float(loss))
    return losses, {n: held[n] for n in params}


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", TRAINING)
def test_ten_steps_stay_with_the_oracle(engine: str, name: str, judged: dict[str, Any]) -> None:
    if ENGINES[engine].version() is None:
        pytest.skip(f"{engine} is not installed: {ENGINES[engine].remedy}")
    if name not in judged:
        judged[name] = oracle(name)
    want_losses, want = judged[name]
    losses, values = trained(engine, name)
    assert values.keys() == want.keys()
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5, atol=1e-6)
    for key, exact in want.items():
        # Ten steps of rounding: a few dozen units in the last place of the largest number.
        np.testing.assert_allclose(
            values[key], exact, rtol=0, atol=2e-5 * max(1.0, np.abs(exact).max())
        )


@pytest.mark.parametrize("engine", TRAINING)
def test_fit_on_every_engine(engine: str) -> None:
    if ENGINES[engine].version() is None:
        pytest.skip(f"{engine} is not installed: {ENGINES[engine].remedy}")
    mlp = importlib.import_module("mlp")
    x, y = mlp.data()
    tv.seed(1)
    model = mlp.make()
    model.compile(
        optimizer=tv.optim.Adam(0.01), loss="cross_entropy", metrics=["accuracy"], engine=engine
    )
    before = tv.trace(model, x[:2])  # a Graph made before training still sees what training did
    history = model.fit(
        x, y, epochs=2, batch_size=64, validation_data=(x[:200], y[:200]), verbose=False
    )
    assert history.history["loss"][1] < history.history["loss"][0]
    assert history.history["val_accuracy"][1] > 0.8
    # Eager use after training sees the engine's numbers, and new numbers reach the engine.
    np.testing.assert_allclose(model.predict(x[:5]), np.asarray(model(x[:5])), rtol=1e-6, atol=1e-6)
    values = {n: np.zeros_like(a) for n, a in model.state_dict().items()}
    model.load_state_dict(values)
    loss = model.training_setup(x[:64], y[:64])
    assert loss == pytest.approx(np.log(10), rel=1e-5)  # ten equal scores
    assert before.of_kind("param")


def test_an_engine_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="no engine 'cuda'; there are native, numpy"):
        tv.compile(lambda x: x, engine="cuda")


@pytest.mark.parametrize("engine", [n for n in ENGINES])
def test_compile_gives_the_same_numbers_as_eager(engine: str) -> None:
    if ENGINES[engine].version() is None:
        pytest.skip(f"{engine} is not installed: {ENGINES[engine].remedy}")
    cnn = importlib.import_module("cnn")
    tv.seed(2)
    model = cnn.make().eval()
    fast = tv.compile(model, engine=engine)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        x = rng.standard_normal((batch, 1, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(np.asarray(fast(x)), np.asarray(model(x)), rtol=1e-5, atol=1e-5)
    model.load_state_dict({n: a * 0 for n, a in model.state_dict().items()})
    assert not np.asarray(fast(x)).any()  # it sees the parameters as they are now
