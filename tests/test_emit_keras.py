"""Graphs as Keras models: every op, whole models, their gradients, statistics and training steps."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import trivium as tv
from trivium import nn
from trivium.check import check
from trivium.graph import MODE, OPS, Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.op import Case, Op
from trivium.shape import Dim
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize
from trivium.transforms.step import Update, initial_slots, training_step, update_of

keras = pytest.importorskip("keras")
if keras.config.backend() != "tensorflow":
    pytest.skip("gradients are TensorFlow's", allow_module_level=True)

from trivium.frameworks.keras.emit import emit, emit_function
from trivium.frameworks.keras.read import read
from trivium.frameworks.keras.run import KerasRunner, KerasTrainer, build, foreign
from trivium.frameworks.source import execute

GOLDENS = Path(__file__).parent / "goldens" / "keras"

REFUSED: dict[str, str] = {}
"""op, or op-case: why Keras has no exact form."""

NO_GRADIENT: dict[str, str] = {}

ALL = [op for op in OPS.values() if isinstance(op, Op)]
CASES = [pytest.param(op, c, i, id=f"{op.name}-{i}") for op in ALL for i, c in enumerate(op.cases)]


@pytest.fixture(autouse=True)
def clear() -> Iterator[None]:
    yield
    keras.backend.clear_session()


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


def agree(graph: Graph, values: dict[str, Any], inputs: list[Any], training: bool, times: float = 64) -> Any:
    """Outputs, all gradients and new states against the float64 oracle; the model that was compared."""
    model, weights = build(graph, values)
    runner = KerasRunner(model, weights)
    rng = np.random.default_rng(5)
    special = specialize(graph, training=training)
    data = iter(inputs)
    arrays = [values[v.name] if v.name in values else
              np.zeros(2, np.uint64) if v.kind == "rng" else next(data) for v in graph.inputs]  # fmt: skip
    exact = Interpreter(special, tv.float64)(*arrays)
    outputs = exact[: len(graph.outputs)]
    for got, want, v in zip(runner.outputs(inputs, training), outputs, graph.outputs, strict=True):
        assert got.dtype == v.dtype.numpy
        close(got, want, "output", times)
    cts = [rng.standard_normal(o.shape).astype("f") for o in outputs if o.dtype.kind == "f"]
    wrt = [v.name for v in graph.inputs if v.dtype.is_floating and v.kind in ("data", "param")]
    before = runner.values()
    pulled = runner.pull(inputs, cts, training)
    assert all(np.array_equal(before[n], v) for n, v in runner.values().items()), "states were not restored"
    back = pullback(special, wrt)
    results = Interpreter(back, tv.float64)(*arrays, *cts)
    grads = dict(zip(wrt, results[len(outputs) : len(outputs) + len(wrt)], strict=True))
    names = [v.name for v in graph.of_kind("data")]
    for name, want in grads.items():
        got = pulled.parameters[name] if name in values else pulled.inputs[names.index(name)]
        close(np.zeros_like(want, np.float32) if got is None else got, want, f"gradient of {name}", times)
    assert set(pulled.parameters) == {v.name for v in graph.of_kind("param")}
    updated = {k.name: v for k, v in zip(graph.updates, exact[len(outputs) :], strict=True)}
    for name, want in updated.items():
        close(pulled.states[name], want, name, times)
    return model


# -- ops ---------------------------------------------------------------------------------------------
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
