"""Wrong use is said, in the same words on every engine, before anything has changed."""

import random
import threading
import warnings
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.engines import ENGINES
from trivium.shape import ShapeError
from trivium.train.metrics import accuracy, binary_accuracy, mean_absolute_error

TRAINING = [name for name, e in ENGINES.items() if e.trains and e.version() is not None]
X = np.random.default_rng(0).standard_normal((6, 4)).astype("f")
Y = np.array([0, 1, 2, 0, 1, 2])


def classifier() -> Any:
    return tv.nn.Sequential(tv.nn.Linear(5), tv.nn.tanh, tv.nn.Linear(3))


def said(error: Any, call: Any) -> str:
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


# -- labels ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [-100, -1, 3, 2**40])
@pytest.mark.parametrize("engine", TRAINING)
def test_a_label_that_is_no_class_is_refused_before_the_engine_has_it(
    engine: str, wrong: int
) -> None:
    words = f"cross_entropy: label {wrong} is out of range for 3 classes"
    labels = np.where(np.arange(6) == 4, wrong, Y)
    model = classifier()
    step = tv.TrainStep(model, "cross_entropy", "sgd", engine=engine)
    step(X, Y)
    before = model.state_dict()
    found = {said(IndexError, lambda: step(X, labels))}
    model.compile("sgd", "cross_entropy", engine=engine)
    found.add(said(IndexError, lambda: model.fit(X, labels, verbose=False, batch_size=2)))
    found.add(said(IndexError, lambda: model.evaluate(X, labels)))
    found.add(said(IndexError, lambda: tv.cross_entropy(model(X), tv.asarray(labels))))
    (only,) = found  # one sentence, wherever it is said
    assert only.startswith(words) and "(at [4] of the labels)" in only
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("engine", TRAINING)
def test_labels_that_are_computed_from_the_data_are_looked_at_too(engine: str) -> None:
    def loss(scores: Any, y: Any) -> Any:
        return tv.cross_entropy(scores, y[:, 1] - 1)

    pairs = np.stack([Y, Y + 1], 1)
    step = tv.TrainStep(classifier(), loss, "sgd", engine=engine)
    step(X, pairs)
    with pytest.raises(IndexError, match="label 3 is out of range for 3 classes"):
        step(X, pairs + 1)


@pytest.mark.parametrize("kind", ["int32", "uint8", "int8"])
@pytest.mark.parametrize("engine", TRAINING)
def test_labels_of_any_integer_dtype_are_labels(engine: str, kind: str) -> None:
    wanted = tv.TrainStep(classifier(), "cross_entropy", "sgd", engine="numpy")(X, Y)
    step = tv.TrainStep(classifier(), "cross_entropy", "sgd", engine=engine)
    assert step(X, Y.astype(kind)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("engine", TRAINING)
def test_fractional_labels_are_refused(engine: str) -> None:
    model = classifier().build(X).compile("sgd", "cross_entropy", engine=engine)
    found = {
        said(TypeError, lambda: model.fit(X, Y + 0.5, verbose=False)),
        said(TypeError, lambda: tv.TrainStep(model, "cross_entropy", "sgd", engine)(X, Y + 0.5)),
        said(TypeError, lambda: model.evaluate(X, Y + 0.5)),
    }
    (only,) = found
    assert only.startswith("cross_entropy: wants labels that are class numbers")
    assert 'y.astype("int64")' in only


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [-100, 1, 255])
def test_only_what_is_said_to_be_ignored_is_ignored_as_in_torch(
    ignored: int, reduction: str
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for shape in ((6, 3), (2, 3, 3)):
        scores = rng.standard_normal(shape).astype("f")
        labels = np.where(np.arange(6) % 3 == 1, ignored, Y).reshape(shape[:-1])
        ours = tv.asarray(scores, requires_grad=True)
        loss = tv.cross_entropy(ours, tv.asarray(labels), reduction=reduction, ignore_index=ignored)
        theirs = torch.tensor(scores, requires_grad=True)
        wanted = torch.nn.functional.cross_entropy(
            theirs.movedim(-1, 1), torch.tensor(labels), reduction=reduction, ignore_index=ignored
        )
        np.testing.assert_allclose(loss.numpy(), wanted.detach(), rtol=1e-5, atol=1e-6)
        loss.sum().backward()
        wanted.sum().backward()
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", TRAINING)
def test_every_engine_ignores_what_is_to_be_ignored_and_nothing_else(engine: str) -> None:
    def ignoring(scores: Any, y: Any) -> Any:
        return tv.cross_entropy(scores, y, ignore_index=-100)

    labels = np.where(np.arange(6) % 3 == 1, -100, Y)
    losses = []
    for name in (engine, "numpy"):
        model = classifier()
        step = tv.TrainStep(model, ignoring, tv.optim.SGD(0.1), engine=name)
        losses.append([step(X, labels) for _ in range(3)])
        with pytest.raises(IndexError, match="label -1 is out of range"):
            step(X, np.where(labels < 0, -1, labels))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_loss_carried_to_torch_ignores_nothing_that_it_was_not_told_to() -> None:
    torch = pytest.importorskip("torch")
    from trivium.frameworks.torch.emit import emit
    from trivium.frameworks.torch.run import build

    specs = ("float32", ("batch", 3)), ("int64", ("batch",))
    module, _ = build(tv.trace(lambda x, y: tv.cross_entropy(x, y), *specs), {})
    scores = torch.tensor(X[:, :3])
    wanted = float(tv.cross_entropy(tv.asarray(X[:, :3]), tv.asarray(Y)))
    assert float(module(scores, torch.tensor(Y))) == pytest.approx(wanted, rel=1e-6)
    for wrong in (-100, -1, 3, -(2**63)):
        with pytest.raises((IndexError, RuntimeError)):
            module(scores, torch.tensor(np.where(Y == 1, wrong, Y)))
    told = tv.trace(lambda x, y: tv.cross_entropy(x, y, ignore_index=-100), *specs)
    assert "F.cross_entropy(x1, x2)" in emit(told).source  # torch's own default, and its own word


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_torch_loss_brings_its_ignore_index(reduction: str) -> None:
    torch = pytest.importorskip("torch")

    class Loss(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return torch.nn.functional.cross_entropy(x, y, reduction=reduction)

    labels = np.where(Y == 1, -100, Y)
    carried = tv.from_torch(Loss(), torch.tensor(X[:, :3]), torch.tensor(labels))
    (node,) = (n for n in carried.graph.nodes if n.op == "cross_entropy")
    assert node.attrs["ignore_index"] == -100
    wanted = Loss()(torch.tensor(X[:, :3]), torch.tensor(labels))
    np.testing.assert_allclose(carried(X[:, :3], labels).numpy(), wanted, rtol=1e-6)


def test_a_row_of_an_embedding_that_is_not_there_is_refused_on_every_engine() -> None:
    class Bag(tv.nn.Module):
        def __init__(self) -> None:
            self.table, self.head = tv.nn.Embedding(7, 4), tv.nn.Linear(3)

        def forward(self, i: Any) -> Any:
            return self.head(tv.mean(self.table(i), axis=1))

    i = np.random.default_rng(0).integers(0, 7, (6, 2))
    found = set()
    for engine in TRAINING:
        step = tv.TrainStep(Bag(), "cross_entropy", "sgd", engine=engine)
        step(i, Y)
        found.add(said(IndexError, lambda step=step: step(i + 5, Y)))
    (only,) = found
    assert only.startswith("embedding: index ")


# -- shapes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
@pytest.mark.parametrize("engine", TRAINING)
def test_a_loss_broadcasts_nothing(engine: str, loss: str) -> None:
    y = (Y > 0).astype("f")
    model = tv.nn.Linear(1).build(X).compile("sgd", loss, engine=engine)
    for call in (lambda: model.fit(X, y, verbose=False), lambda: model.evaluate(X, y)):
        words = said(ShapeError, call)
        assert "wants equal shapes" in words and "nothing is broadcast" in words
    model.fit(X, y[:, None], verbose=False)


def test_a_target_that_is_no_probability_is_refused_on_every_engine() -> None:
    y = (Y > 0).astype("f")[:, None]
    for engine in TRAINING:
        step = tv.TrainStep(tv.nn.Linear(1), "binary_cross_entropy", "sgd", engine=engine)
        step(X, y)
        for wrong in (2 * y, 2 * y - 1, y * np.float32("nan")):
            with pytest.raises(ValueError, match=r"target .* is not in \[0, 1\]"):
                step(X, wrong)


def test_metrics_compare_what_belongs_together() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(200).astype("f")
    target = (scores > 0).astype("f")
    target[:2] = 1 - target[:2]
    for p, t in ((scores, target), (scores[:, None], target[:, None])):
        assert binary_accuracy(p, t) == pytest.approx(0.99)
        assert mean_absolute_error(p, p) == 0
    for p, t in ((scores, target[:, None]), (scores[:, None], target)):
        for metric in (mean_absolute_error, binary_accuracy, accuracy):
            with pytest.raises(ShapeError):
                metric(p, t)
    with pytest.raises(ShapeError, match="binary_accuracy"):
        accuracy(scores[:, None], target[:, None])
    assert accuracy(np.eye(3), np.arange(3)) == 1
    with pytest.raises(ShapeError, match="accuracy"):
        accuracy(np.eye(3), np.eye(3))


def test_accuracy_beside_a_binary_loss_is_binary() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 2)).astype("f")
    y = (x[:, :1] > 0).astype("f")
    model = tv.nn.Linear(1)
    model.compile(tv.optim.Adam(0.1), "binary_cross_entropy", metrics=["accuracy", "mae"])
    model.fit(x, y, epochs=20, verbose=False)
    found = model.evaluate(x, y)
    assert found["accuracy"] == np.mean((model.predict(x) > 0) == (y > 0.5)) > 0.97
    with pytest.raises(ValueError, match="no metric 'acc'; there are accuracy"):
        model.compile(metrics=["acc"])


@pytest.mark.parametrize("engine", TRAINING)
def test_a_batch_that_does_not_fit_is_refused_in_one_way(engine: str) -> None:
    step = tv.TrainStep(classifier(), "cross_entropy", "sgd", engine=engine)
    for _ in range(2):  # at the first step, and once the step is made
        assert "x has 5 rows, y has 6 rows" in said(ShapeError, lambda: step(X[:5], Y))
        assert "no rows" in said(ValueError, lambda: step(X[:0], Y[:0]))
        said(TypeError, lambda: step((X, X), Y))
        step(X, Y)
    assert said(TypeError, lambda: step((X, X), Y)) == "wants 2 arrays (x, y), got 3"
    assert said(ShapeError, lambda: step(X[:, :3], Y)) == "x wants shape (batch, 4), got (6, 3)"
    assert said(TypeError, lambda: step(X, Y.astype("f"))) == "y wants int64, got float32"
    assert np.isfinite(step(X[:3], Y[:3]))


def test_fit_predict_and_evaluate_say_what_is_wrong_with_their_data() -> None:
    model = classifier().compile("sgd", "cross_entropy", metrics=["accuracy"])
    for call in (
        lambda **more: model.fit(X, Y, verbose=False, **more),
        lambda **more: model.evaluate(X, Y, **more),
        lambda **more: model.predict(X, **more),
        lambda **more: tv.data.batches(X, Y, **more),
    ):
        for wrong in (0, -3, 1.5, True, None):
            with pytest.raises(ValueError, match="batch_size is a whole number from 1, not"):
                call(batch_size=wrong)
    for call in (lambda x, y: model.fit(x, y, verbose=False), model.evaluate, tv.data.batches):
        with pytest.raises(ShapeError, match="has 5 rows"):
            call(X[:5], Y)
        with pytest.raises(ValueError, match="no rows"):
            call(X[:0], Y[:0])
    with pytest.raises(ValueError, match="x: no rows"):
        model.predict(X[:0])
    with pytest.raises(ShapeError, match="x has 2 rows, y has 3 rows"):
        model.fit(X, Y, verbose=False, validation_data=(X[:2], Y[:3]))
    with pytest.raises(TypeError, match="got 2 inputs"):
        model.fit((X, X), Y, verbose=False)
    with pytest.raises(TypeError, match="got 2 inputs"):
        model.predict((X, X))


def test_several_inputs_are_a_tuple() -> None:
    class Two(tv.nn.Module):
        def __init__(self) -> None:
            self.a, self.b = tv.nn.Linear(3), tv.nn.Linear(3)

        def forward(self, x: Any, z: Any) -> Any:
            return self.a(x) + self.b(z)

    model = Two().compile("sgd", "cross_entropy")
    history = model.fit((X, X[:, :2]), Y, epochs=2, verbose=False, batch_size=4).history
    assert len(history["loss"]) == 2
    assert model.predict((X, X[:, :2])).shape == (6, 3)
    assert "loss" in model.evaluate((X, X[:, :2]), Y)
    with pytest.raises(TypeError, match="got 1 inputs"):
        model.predict(X)


# -- optimizers ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [tv.optim.SGD, tv.optim.Adam, tv.optim.AdamW])
def test_an_optimizer_of_nothing_is_refused(kind: Any) -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"given no parameters.*model\.build"):
        kind(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="has no parameters to change"):
        kind(0.1).step()
    model.build(X)
    with pytest.raises(ValueError, match="one parameter twice"):
        kind([*model.parameters(), *model.parameters()], 0.1)
    kind(model.parameters(), 0.1).step()


# -- what a model holds ----------------------------------------------------------------------------
class Holds(tv.nn.Module):
    """Layers and parameters in every container."""

    def __init__(self) -> None:
        self.heads = {"a": tv.nn.Linear(3), "b": [tv.nn.Linear(3), tv.tanh]}
        self.mixed = [tv.nn.Linear(4), tv.relu, (tv.nn.Linear(4),)]
        self.shift = tv.nn.Parameter(np.zeros(3, "f"), "anything")
        self.scales = {"one": tv.nn.Parameter(np.ones(3, "f"), "anything")}

    def forward(self, x: Any) -> Any:
        first, relu, (second,) = self.mixed
        x = second(relu(first(x)))
        b, tanh = self.heads["b"]
        return (self.heads["a"](x) + tanh(b(x))) * self.scales["one"] + self.shift


def test_what_is_in_lists_dicts_and_attributes_is_held_trained_and_saved(tmp_path: Any) -> None:
    model = Holds().compile(tv.optim.Adam(0.1), "cross_entropy")
    model.fit(X, Y, epochs=2, verbose=False)
    names = ["heads.a", "heads.b.0", "mixed.0", "mixed.2.0"]
    expected = {f"{n}.{leaf}" for n in names for leaf in ("weight", "bias")}
    state = model.state_dict()
    assert set(state) == expected | {"shift", "scales.one"}
    assert (state["shift"] != 0).any() and (state["scales.one"] != 1).any()
    again = Holds().build(X).load_state_dict(state)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    tv.save(model, tmp_path / "m.tv", X)
    np.testing.assert_allclose(tv.load(tmp_path / "m.tv").predict(X), model.predict(X), rtol=1e-6)


OUTSIDE = tv.nn.Linear(3)
WEIGHT = tv.nn.Parameter(np.ones((4, 3), "f"), "outside")


class Closure(tv.nn.Module):
    def forward(self, x: Any) -> Any:
        return OUTSIDE(x)


class OneTime(tv.nn.Module):
    def forward(self, x: Any) -> Any:
        return tv.nn.Linear(3)(x)


class Global(tv.nn.Module):
    def forward(self, x: Any) -> Any:
        return x @ WEIGHT


class Hidden(tv.nn.Module):
    def __init__(self) -> None:
        self.layers = {tv.nn.Linear(3)}  # a set has no order to name by

    def forward(self, x: Any) -> Any:
        (layer,) = self.layers
        return layer(x)


@pytest.mark.parametrize("kind", [Closure, OneTime, Global, Hidden])
def test_what_a_model_does_not_hold_is_refused_at_its_first_call(kind: Any) -> None:
    model = kind()
    for call in (
        lambda: model(X),
        lambda: model.build(X),
        lambda: tv.trace(model, X),
        lambda: tv.TrainStep(model, "cross_entropy", "sgd")(X, Y),
    ):
        with pytest.raises(ValueError, match=f"{kind.__name__}.*does not hold it.*attribute"):
            call()


def test_a_layer_that_is_made_anew_in_every_call_is_refused() -> None:
    class Anew(tv.nn.Module):
        def forward(self, x: Any) -> Any:
            self.layer = tv.nn.Linear(3)
            return self.layer(x)

    class Once(tv.nn.Module):
        def forward(self, x: Any) -> Any:
            if not hasattr(self, "layer"):
                self.layer = tv.nn.Linear(3)
            return self.layer(x)

    model = Anew()
    model(X)
    with pytest.raises(ValueError, match="'layer' is made anew in every call"):
        model(X)
    model = Once()
    assert (model(X).numpy() == model(X).numpy()).all()
    assert list(model.state_dict()) == ["layer.weight", "layer.bias"]
    model.layer = tv.nn.Linear(3)  # between the calls: its owner wants another
    model(X)


def test_layers_without_parameters_may_be_made_in_forward_and_follow_the_mode() -> None:
    class Model(tv.nn.Module):
        def __init__(self) -> None:
            self.layer = tv.nn.Linear(50)

        def forward(self, x: Any) -> Any:
            return tv.nn.Dropout(0.5)(tv.nn.ReLU()(self.layer(x)))

    model = Model()
    model.build(X)
    model.eval()
    np.testing.assert_array_equal(model(X).numpy(), np.maximum(model.layer(X).numpy(), 0))
    model.train()
    assert (model(X).numpy() != np.maximum(model.layer(X).numpy(), 0)).any()
    np.testing.assert_array_equal(model.predict(X), np.maximum(model.layer(X).numpy(), 0))


# -- chance ----------------------------------------------------------------------------------------
RNG = np.random.default_rng(0)


class Noisy(tv.nn.Module):
    def __init__(self, draw: Any):
        self.layer, self.draw = tv.nn.Linear(3), draw

    def forward(self, x: Any) -> Any:
        return self.layer(x) + self.draw()


class OwnGenerator(tv.nn.Module):
    def __init__(self) -> None:
        self.layer, self.rng = tv.nn.Linear(3), np.random.default_rng(0)

    def forward(self, x: Any) -> Any:
        return self.layer(x) + self.rng.standard_normal(3).astype("f")


DRAWS = {
    "numpy": lambda: Noisy(lambda: np.random.randn(3).astype("f")),
    "number": lambda: Noisy(lambda: float(np.random.rand())),
    "python": lambda: Noisy(lambda: random.random()),
    "its own": OwnGenerator,
    "a global": lambda: Noisy(lambda: RNG.standard_normal(3).astype("f")),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_number_drawn_while_tracing_is_refused(draw: str) -> None:
    model = DRAWS[draw]()
    model(X)  # eagerly it is a number like another
    for call in (
        lambda: tv.trace(model, X),
        lambda: tv.TrainStep(model, "cross_entropy", "sgd")(X, Y),
        lambda: tv.compile(model)(X),
    ):
        with pytest.raises(ValueError, match=r"draws random numbers.*tv\.nn\.Dropout"):
            call()


def test_a_branch_by_chance_is_said() -> None:
    def sometimes(x: Any) -> Any:
        return x * 2 if np.random.rand() < 1.5 else x  # as good as always: no trace differs

    with pytest.warns(RuntimeWarning, match="whenever sometimes is traced"):
        tv.trace(sometimes, X)


def test_initial_values_and_other_threads_may_draw() -> None:
    class Own(tv.nn.Module):
        def forward(self, x: Any) -> Any:
            return x @ self.param("w", (4, 3), lambda rng, shape: np.random.randn(*shape))

    tv.trace(Own(), X)
    assert np.isfinite(tv.TrainStep(Own(), "cross_entropy", "sgd")(X, Y))
    assert tv.grad(lambda x: (x * float(np.random.rand())).sum())(tv.asarray(X)).shape == X.shape
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            np.random.rand()

    other = threading.Thread(target=draw)
    other.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for _ in range(20):
                tv.trace(classifier(), X)
    finally:
        stop.set()
        other.join()


# -- losses that are no number ---------------------------------------------------------------------
@pytest.mark.parametrize("engine", TRAINING)
def test_a_loss_that_is_not_finite_is_one_warning(engine: str) -> None:
    model = tv.nn.Sequential(tv.nn.Linear(3), tv.nn.Linear(1))
    step = tv.TrainStep(model, "mse", tv.optim.SGD(1e30), engine=engine)
    y = np.ones((6, 1), "f")
    with pytest.warns(RuntimeWarning) as seen:
        for _ in range(6):
            step(X, y)
    (warning,) = (w for w in seen if w.category is RuntimeWarning)  # Keras has one of its own
    assert "the first parameter that is not finite is '0.weight'" in str(warning.message)
    assert "loss of step " in str(warning.message) and "batch" not in str(warning.message)
    assert warning.filename == __file__


def test_a_batch_that_is_not_finite_is_named() -> None:
    step = tv.TrainStep(tv.nn.Linear(1), "mse", "sgd", engine="numpy")
    with pytest.warns(RuntimeWarning, match="neither is x, the batch itself"):
        step(X * np.float32("inf"), np.ones((6, 1), "f"))


def test_terminate_on_nan_stops_at_once() -> None:
    seen: list[int] = []

    class Sees(tv.Callback):
        def on_batch_end(self, batch: int, logs: Any) -> None:
            seen.append(batch)

    x, y = np.tile(X, (10, 1)), np.ones((60, 1), "f")
    model = tv.nn.Linear(1).compile(tv.optim.SGD(1e25), "mse")
    with pytest.warns(RuntimeWarning, match="loss of step"):
        history = model.fit(
            x, y, epochs=3, batch_size=2, verbose=False, callbacks=[tv.TerminateOnNaN(), Sees()]
        )
    losses = history.history["batch_loss"]
    assert np.isfinite(losses[:-1]).all() and not np.isfinite(losses[-1])
    assert len(losses) == len(seen) < 30 and len(history.history["loss"]) == 1
