"""Sixty random models (``make fuzz`` has more of them), and what they once found, made small."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest

import fuzz
import trivium as tv
from random_models import Model, draw
from trivium.engines import ENGINES
from trivium.graph import GraphError, Value
from trivium.nn.parameter import captured
from trivium.op import S
from trivium.shape import ShapeError

HERE = [name for name in fuzz.ENGINES if ENGINES[name].version() is not None]


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", "")


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:(std|var)\\(\\):UserWarning")  # of a single number
@pytest.mark.parametrize("seed", range(60))
def test_a_random_model(seed: int) -> None:
    """The seed is in the test's name: ``python tests/fuzz.py --first SEED --count 1``."""
    model = draw(seed)
    wrong = [fuzz.failure(model, name, training) for name in HERE for training in (False, True)]
    assert not any(wrong), f"seed {seed}: {wrong}\n{model}"


def test_a_wrong_number_is_found() -> None:
    """The judge itself: a tenth of a percent in one number of one result."""
    model = draw(0)
    assert model.outputs is not None
    found = [np.array(x) for x, _ in model.outputs]
    fuzz.compared(found, model.outputs, "output")
    k = next(i for i, x in enumerate(found) if x.dtype.kind == "f" and x.size)
    found[k].flat[0] += 1e-3 * max(1.0, np.abs(found[k]).max())
    with pytest.raises(AssertionError, match=f"output {k} is off by"):
        fuzz.compared(found, model.outputs, "output")


# -- what they found -------------------------------------------------------------------------------
FOUND = {
    "a product of two parameters": """
        def model(
            x: data("x", float32, (4, 6)),
            a: param("a", float32, (6, 2)),
            b: param("b", float32, (2, 5)),
        ):
            ab = matmul(a, b)
            y = matmul(x, ab)
            return y""",
    "parameters that each enter the other's gradient": """
        def model(
            x: data("x", float32, (2, 3)),
            a: param("a", float32, (3,)),
            b: param("b", float32, (3,)),
        ):
            y = multiply(x, a)
            z = multiply(y, b)
            return z""",
    "a largest that scales what it came from": """
        def model(
            c: param("c", float32, (3,)),
            a: param("a", float32, (5,)),
        ):
            top = max(a, axis=(0,))
            y = multiply(c, top)
            return y""",
    "two reductions, each scaled by the other": """
        def model(
            a: param("a", float32, (4, 3)),
            b: param("b", float32, (4, 5)),
        ):
            s = sum(a, axis=(1,))
            t = sum(b, axis=(1,))
            y = multiply(s, t)
            u = exp(s)
            z = add(u, t)
            v = tanh(t)
            w = multiply(v, s)
            return y, z, w""",
    "a loss beside a difference of what it reads": """
        def model(
            a: param("a", float32, (1, 1, 1)),
            b: param("b", float32, (1,)),
            i: data("i", int64, (1, 1)),
        ):
            x = select(a, axis=1, index=-1)
            y = stop_gradient(x)
            d = subtract(y, b)
            loss = cross_entropy(a, i, reduction="sum")
            return d, loss""",
    "a result that two layers share": """
        def model(
            x: param("x", float32, (2, 2, 7)),
            w: param("w", float32, (2, 7)),
            b: data("b", float32, (2,)),
            u: param("u", float32, (2, 2)),
            i: data("i", int64, (2, 2)),
        ):
            y = linear(x, w, b)
            h, last = rnn(x, w, u, b, b, activation="tanh")
            loss = cross_entropy(h, i, reduction="sum")
            return y, loss""",
    "argmax over one element": """
        def model(
            x: data("x", float32, (5, 1, 7)),
            p: param("p", float32, (2,)),
        ):
            i = argmax(x, axis=1)
            q = tanh(p)
            return i, q""",
    "sums over one element": """
        def model(
            x: param("x", float32, (5, 1, 7)),
        ):
            a = sum(x, axis=(1,))
            b = max(x, axis=(1,), keepdims=True)
            c = min(x, axis=(1,))
            return a, b, c""",
    "a parameter with an axis of size zero": """
        def model(
            p: param("p", float32, (3, 0, 2)),
            q: param("q", float32, (2,)),
        ):
            y = multiply(p, q)
            s = sum(y, axis=(1,))
            return s""",
    "rows added up where there are none": """
        def model(
            p: param("p", float32, (3, 0, 0)),
            i: data("i", int64, (3, 0)),
        ):
            y = take_grad(p, i, axis=0, size=2)
            return y""",
    "a strided convolution of a parameter": """
        def model(
            p: param("p", float32, (3, 1, 7)),
            w: param("w", float32, (3, 1, 1)),
        ):
            y = conv(p, w, stride=(2,), padding=((4, 1),), layout="NCW")
            z = minimum(w, y)
            return z""",
    "a convolution of nothing": """
        def model(
            p: param("p", float32, (1, 1, 3, 0)),
            w: param("w", float32, (2, 0, 1, 1)),
            b: param("b", float32, (2,)),
        ):
            y = conv(p, w, b, padding=((1, 1), (1, 1)), layout="NHWC")
            return y""",
    "a branch of which one gradient is wanted": """
        def model(
            c: data("c", bool, ()),
            x: data("x", float32, (2, 3)),
            p: param("p", float32, (3,)),
            q: param("q", float32, (3,)),
        ):
            def then(a: data("a", float32, (2, 3)), b: data("b", float32, (3,))):
                y = multiply(a, b)
                return y
            def otherwise(a: data("a", float32, (2, 3)), b: data("b", float32, (3,))):
                y = tanh(a)
                return y
            y = cond(c, x, p, then=then, otherwise=otherwise)
            z = subtract(y, q)
            return z""",
    "a slice of nothing in steps": """
        def model(
            p: param("p", float32, (0, 3)),
            q: param("q", float32, (3,)),
        ):
            y = slice_axis(p, axis=0, step=2)
            z = add(y, q)
            return z""",
    "a range without numbers": """
        def model(
            p: param("p", float32, (3,)),
        ):
            n = arange(stop=-1, dtype=float32)
            y = tanh(p)
            return y, n""",
    "a sum along no axis": """
        def model(
            p: param("p", float32, (2, 3)),
        ):
            y = tanh(p)
            z = sum(y, axis=())
            u = exp(z)
            return u""",
    "more padding around a pooling than half its window": """
        def model(
            p: param("p", float32, (1, 2, 4, 4)),
        ):
            y = avg_pool(p, kernel=(3, 3), stride=(1, 1), padding=((3, 3), (3, 3)))
            return y""",
    "a loss that no parameter enters": """
        def model(
            p: param("p", float32, (3,)),
            x: data("x", float32, (3,)),
        ):
            q = stop_gradient(p)
            y = multiply(q, x)
            return y""",
}


def found(text: str, optimizer: Any) -> Model:
    """The model of a text, with numbers."""
    graph = tv.parse(textwrap.dedent(text))
    rng = np.random.default_rng(0)

    def array(v: Value) -> Any:
        low = -2 if v.dtype.is_floating else 0
        return S(*v.shape, dtype=v.dtype, low=low, high=min((2, *v.shape[-1:]))).array(rng)

    values = {v.name: array(v) for v in graph.of_kind("param")}
    return Model(graph, values, [array(v) for v in graph.of_kind("data")], optimizer)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str, engine: str, training: bool) -> None:
    for optimizer in (tv.optim.SGD(0.05), tv.optim.Adam(0.05, epsilon=0.1)):
        model = found(FOUND[name], optimizer)
        assert model.outputs is not None and model.steps is not None
        assert fuzz.failure(model, engine, training) is None


# -- names -----------------------------------------------------------------------------------------
NAMES = ["lr", "count", "optimizer/count", "lr/m", "lr/velocity", "x0", "x1", "rng", "p", "g"]


@pytest.mark.parametrize("engine", ["native", "numpy"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_parameter_may_have_any_name(engine: str, optimizer: str) -> None:
    """What training adds to a Graph is known by its kind, and gives way in its name."""
    made = tv.optim.SGD(0.05, momentum=0.9) if optimizer == "sgd" else tv.optim.Adam(0.05)
    results = []
    for names in (NAMES, [f"w{k}" for k in range(len(NAMES))]):
        values = [np.float32([k + 1, -k, 0.5]) for k in range(len(names))]
        params = [tv.nn.Parameter(a, n) for a, n in zip(values, names, strict=True)]

        def loss(x: Any, y: Any, params: Any = params) -> Any:
            dropped = tv.nn.Dropout(0.5)(x)
            for k, p in enumerate(params):
                dropped = tv.tanh(dropped * p + p * k)
            return tv.mse_loss(dropped, y)

        graph = tv.trace(loss, ("float32", (2, 3)), ("float32", (2, 3)), training=True)
        assert [v.name for v in graph.of_kind("param")] == names
        held = {name: p.data for name, p in captured(graph).items()}
        trainer = ENGINES[engine].trainer(graph, held, made.update())
        x, y = np.float32([[1, 2, 3], [4, 5, 6]]), np.zeros((2, 3), np.float32)
        losses = [trainer.step([x, y], 0.05 / (i + 1)) for i in range(4)]
        results.append((losses, [trainer.values()[n].tolist() for n in names]))
    assert results[0] == results[1]
    assert results[0][0][0] != results[0][0][-1]


# -- what is no call of an op is refused by its own rule -------------------------------------------
REFUSED = {
    "a linear layer without rows": (lambda x: tv.linear(x, x[0]), "weight .out, in."),
    "another bias than the weight's": (lambda x: tv.linear(x, x, x[0, :1]), "wants a bias .2,."),
    "an embedding that is no table": (
        lambda x: tv.embedding(x[0], tv.argmax(x)), r"a table \(count, width\)"),
    "a loss of unlike shapes": (
        lambda x: tv.binary_cross_entropy_with_logits(x, x[:, :1]), "wants equal shapes"),
    "classes that are none": (lambda x: tv.one_hot(tv.argmax(x), 0), "at least one class"),
    "less than nothing": (lambda x: tv.pad(x, low=(-3, 0), high=(0, 0)), "a negative size"),
    "a window of nothing": (
        lambda x: tv.max_pool(x.reshape(1, 2, 3), kernel=0, stride=1), "are 1 or more"),
    "a window that does not move": (
        lambda x: tv.max_pool(x.reshape(1, 2, 3), kernel=1, stride=-1), "are 1 or more"),
    "a range that does not step": (lambda x: x.sum() + tv.arange(5, step=0), "step on"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises((ShapeError, ValueError), match=why) as caught:
        tv.trace(make, ("float32", (2, 3)))
    assert not isinstance(caught.value, GraphError)
