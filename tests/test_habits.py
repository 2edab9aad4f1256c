"""Lines as they are written elsewhere: they work here, or say what is written instead."""

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import GraphError
from trivium.nn.module import Parameter
from trivium.shape import ShapeError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 4)).astype("f")
Y = RNG.integers(0, 3, 16)
IMAGES = RNG.standard_normal((3, 4, 6, 6)).astype("f")
SEQUENCES = RNG.standard_normal((3, 5, 4)).astype("f")


def said(error: Any, call: Any) -> str:
    with pytest.raises(error) as raised:
        call()
    return str(raised.value)


# -- attributes that are set after a layer was made --------------------------------------------
LAYERS: dict[str, tuple[dict[str, Any], Any]] = {
    "Linear": ({"out": 3}, X),
    "Conv2d": ({"out": 2, "kernel": 3}, IMAGES),
    "MaxPool2d": ({"kernel": 2}, IMAGES),
    "AvgPool2d": ({"kernel": 2, "padding": 1}, IMAGES),
    "GlobalAvgPool2d": ({}, IMAGES),
    "Flatten": ({}, IMAGES),
    "Dropout": ({"rate": 0.5}, X),
    "BatchNorm": ({}, IMAGES),
    "BatchNorm2d": ({}, IMAGES),
    "LayerNorm": ({}, X),
    "Embedding": ({"count": 7, "width": 3}, Y),
    "RNN": ({"hidden": 3}, SEQUENCES),
    "ReLU": ({}, X), "Tanh": ({}, X), "Identity": ({}, X),
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "out": 4, "has_bias": False, "init": tv.nn.layers.zeros, "kernel": 4, "stride": 3,
    "padding": 1, "dilation": 2, "groups": 2, "layout": "NHWC", "include_pad": False,
    "keepdims": True, "rate": 0.0, "axis": 2, "momentum": 0.7, "epsilon": 1.0, "unbiased": False,
    "count": 9, "width": 5, "hidden": 6, "activation": "relu", "last": True,
}  # fmt: skip
ARGUMENT = {"has_bias": "bias"}
KINDS = [
    name for name, c in vars(tv.nn).items()
    if isinstance(c, type) and c.__module__ == "trivium.nn.layers" and name != "Sequential"
]  # fmt: skip


class Around(tv.nn.Module):
    def __init__(self, layer: Any) -> None:
        self.layer, self.gain = layer, tv.nn.Parameter(np.float32(1.5))

    def forward(self, x: Any) -> Any:
        return self.layer(x) * self.gain


def eager(model: Any, x: Any) -> Any:
    return lambda: model(x).numpy()


def compiled(model: Any, x: Any) -> Any:
    fast = tv.compile(model, engine="numpy")
    return lambda: fast(x).numpy()


def trained(model: Any, x: Any) -> Any:
    step = tv.TrainStep(model, lambda y, _: tv.mean(y * y), tv.optim.SGD(0.1), engine="numpy")
    return lambda: np.float32([step(x, np.zeros(len(x), "f"))])


def attributes(kind: str) -> list[str]:
    return [n for n in vars(getattr(tv.nn, kind)(**LAYERS[kind][0])) if n[0] != "_"]


def test_every_layer_is_here() -> None:
    assert set(KINDS) == set(LAYERS)


@pytest.mark.parametrize("way", [eager, compiled, trained])
@pytest.mark.parametrize("kind, name", [(k, n) for k in KINDS for n in attributes(k)])
def test_an_attribute_is_honoured_at_the_next_call_or_refused(
    kind: str, name: str, way: Any
) -> None:
    args, x = LAYERS[kind]
    model = Around(getattr(tv.nn, kind)(**args))
    model(x)
    call = way(model, x)
    call()
    before = model.state_dict()
    new = OTHERS[name] if OTHERS[name] != getattr(model.layer, name) else 0
    try:
        setattr(model.layer, name, new)
    except AttributeError:
        for k, v in before.items():
            np.testing.assert_array_equal(model.state_dict()[k], v)
        return
    other = Around(getattr(tv.nn, kind)(**args | {ARGUMENT.get(name, name): new}))
    try:
        other(x)
        other.load_state_dict({k: before[k] for k in other.state_dict()})
        want = way(other, x)()
    except (ShapeError, KeyError):  # other parameters than those that are made
        with pytest.raises(ShapeError):
            call()
        return
    got = call()
    np.testing.assert_array_equal(got, want)
    assert model.state_dict().keys() == other.state_dict().keys()
    for k, v in other.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[k], v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["p", "eps", "anything", "weight", "bias"])
def test_what_a_layer_does_not_read_is_refused(kind: str, name: str) -> None:
    args, x = LAYERS[kind]
    layer = getattr(tv.nn, kind)(**args)
    for _ in range(2):
        with pytest.raises(AttributeError):
            setattr(layer, name, np.zeros(3, "f"))
        copy.deepcopy(pickle.loads(pickle.dumps(layer)))
        layer(x)


def test_the_words() -> None:
    words = said(AttributeError, lambda: setattr(tv.nn.Dropout(), "p", 0))
    assert words == (
        "Dropout has no p, so setting it would change nothing; it has rate (p is called rate here)"
    )
    words = said(AttributeError, lambda: setattr(tv.nn.Linear(3), "bias", None))
    assert "has_bias=False leaves it out" in words
    with pytest.raises(AttributeError, match="has layers"):
        tv.nn.Sequential(tv.nn.Linear(3)).extra = tv.nn.Linear(2)
    with pytest.raises(AttributeError, match="append"):
        tv.nn.Sequential(tv.nn.Linear(3)).layers.append(tv.nn.ReLU())


def test_a_users_own_layer_has_what_its_author_gives_it() -> None:
    class Mine(tv.nn.Linear):
        pass

    layer = Mine(3)
    layer.note = "anything"
    assert layer(X).shape == (16, 3)


def test_layers_of_a_sequential_and_parts_of_a_model_may_be_set() -> None:
    model = tv.nn.Sequential(tv.nn.Linear(3), tv.relu)
    model.compile("sgd", "mse", engine="numpy")
    model.fit(X, X[:, :3], verbose=False)
    fast = tv.compile(model, engine="numpy")
    fast(X)
    model.layers = [*model.layers, tv.nn.Linear(2)]
    assert fast(X).shape == (16, 2)
    model.fit(X, X[:, :2], verbose=False)
    before = model.state_dict()
    model.layers = [model[0], tv.nn.Linear(2)]  # same names, same shapes, another layer
    assert not np.array_equal(fast(X).numpy(), 0)
    model.fit(X, X[:, :2], verbose=False)
    assert not np.array_equal(model.state_dict()["0.weight"], before["0.weight"])
    np.testing.assert_allclose(fast(X).numpy(), model(X).numpy(), rtol=1e-6)


def test_a_models_own_number_is_seen_by_what_was_compiled() -> None:
    class Scaled(tv.nn.Module):
        def __init__(self) -> None:
            self.scale, self.layer = 1.0, tv.nn.Linear(2)

        def forward(self, x: Any) -> Any:
            return self.layer(x) * self.scale

    model = Scaled()
    fast = tv.compile(model)
    step = tv.TrainStep(model, lambda y, _: tv.mean(y * y), tv.optim.Adam(0.0))
    loss, y = step(X, Y), fast(X).numpy()
    model.scale = 2.0
    assert step(X, Y) == pytest.approx(4 * loss, rel=1e-5)
    np.testing.assert_allclose(fast(X).numpy(), 2 * y, rtol=1e-5)


# -- the first lines of a port -------------------------------------------------------------------
@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: tv.nn.Linear(4, 8),
            "if 4 is one, write Linear(8); what comes after * is given by name",
        ),
        (lambda: tv.nn.Conv2d(3, 16, 3), "if 3 is one, write Conv2d(16, 3)"),
        (lambda: tv.nn.Conv2d(3, 16, kernel_size=3), "kernel_size is called kernel here"),
        (
            lambda: tv.nn.BatchNorm2d(4),
            "learnt from the first batch, not declared: if 4 is one, write BatchNorm2d()",
        ),
        (lambda: tv.nn.LayerNorm(8), "it is LayerNorm(*, epsilon=1e-05)"),
        (lambda: tv.nn.Dropout(p=0.1), "p is called rate here; it is Dropout(rate=0.5)"),
        (lambda: tv.nn.ReLU(inplace=True), "it has no inplace; it is ReLU()"),
        (lambda: tv.nn.Linear(in_features=4, out_features=8), "leave in_features out; out_feat"),
        (lambda: tv.nn.Linear(), "missing a required argument: 'out'"),
        (lambda: tv.nn.Embedding(3, 4, 5), "it has 2 arguments"),
    ],
)
def test_arguments_of_elsewhere(call: Any, words: str) -> None:
    assert words in said(TypeError, call)


def test_signatures_can_be_asked_for() -> None:
    assert list(inspect.signature(tv.nn.Linear).parameters) == ["out", "bias", "init"]


def test_a_parameter_is_named_by_its_module() -> None:
    class Model(tv.nn.Module):
        def __init__(self) -> None:
            self.scale = tv.nn.Parameter([1.0, 2.0])

        def forward(self, x: Any) -> Any:
            return x * self.scale

    model = Model()
    model(X[:, :2])
    assert list(model.state_dict()) == ["scale"] and model.scale.dtype == "float32"
    assert "numbers come first" in said(TypeError, lambda: tv.nn.Parameter("w", np.ones(2)))
    with tv.Graph(), pytest.raises(ValueError, match="wants a name in a Graph"):
        tv.asarray([1.0]) * tv.nn.Parameter([1.0])


def test_parameters_are_attributes_once_they_are_made() -> None:
    layer, other = tv.nn.Linear(4), tv.nn.Linear(4)
    words = said(AttributeError, lambda: layer.weight)
    assert "made by the first call" in words and "ties two layers" in words
    assert not hasattr(tv.nn.Linear(4, bias=False), "bias")
    layer(X)
    other.weight = layer.weight
    other(X)
    assert isinstance(layer.weight, Parameter) and other.weight is layer.weight
    assert "bias" not in said(AttributeError, lambda: layer.nothing)[:40]
    layer.weight.data = np.ones((4, 4))
    assert layer(X).dtype == "float32" and other(X).numpy()[0, 0] == pytest.approx(X[0].sum())
    with pytest.raises(ShapeError, match="has shape"):
        layer.weight.data = np.ones((3, 4))


def test_whole_quotients_are_of_integers() -> None:
    with tv.Graph():
        traced = tv.placeholder("float32", ("batch",))
    for x in (tv.asarray(X), traced):
        assert "write floor(x / y)" in said(TypeError, lambda x=x: x // 2)
    assert (tv.asarray([7, -7]) // 2).numpy().tolist() == [3, -4]
    assert (5 % tv.asarray([3, -3])).numpy().tolist() == [2, -1]


def test_a_list_of_numbers_is_an_array() -> None:
    layer = tv.nn.Linear(2)
    assert layer([[1.0, 2.0]]).shape == (1, 2)
    np.testing.assert_array_equal(layer([[1.0, 2.0]]).numpy(), layer(np.float32([[1, 2]])).numpy())

    class Many(tv.nn.Module):
        def forward(self, xs: Any, axes: Any) -> Any:
            assert isinstance(xs, list) and axes == [1, 0]
            return xs[0]

    Many()([tv.asarray(X)], [1, 0])


# -- sessions --------------------------------------------------------------------------------------
def defined(*layers: Any, engine: str = "numpy") -> Any:
    model = tv.nn.Sequential(tv.nn.Linear(8), *layers, tv.nn.Linear(3))
    with tv.Graph() as g:
        x = tv.placeholder("float32", ("batch", 4), name="x")
        y = tv.placeholder("int64", ("batch",), name="y")
        scores = model(x)
        loss = tv.cross_entropy(scores, y)
        train = tv.optim.SGD(0.5).minimize(loss)
    return model, tv.Session(g, engine=engine), scores, loss, train


@pytest.mark.parametrize("engine", ["native", "numpy"])
def test_a_session_trains_what_train_step_trains(engine: str) -> None:
    """Also with dropout and batch norm: the same masks, the same statistics."""
    layers = lambda: (tv.nn.BatchNorm(), tv.relu, tv.nn.Dropout(0.3))  # noqa: E731
    model, session, scores, loss, train = defined(*layers(), engine=engine)
    other = tv.nn.Sequential(tv.nn.Linear(8), *layers(), tv.nn.Linear(3))
    step = tv.TrainStep(other, "cross_entropy", tv.optim.SGD(0.5), engine=engine)
    feed = {"x": X, "y": Y}
    for _ in range(4):
        again, taken = session.run([loss, train], feed)
        assert again == taken
        assert float(taken) == pytest.approx(step(X, Y), rel=1e-6)
    assert model.state_dict().keys() == other.state_dict().keys()
    for k, v in other.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[k], v, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.run(scores, feed), model.eval()(X).numpy(), rtol=1e-5)


def test_the_mode_follows_what_is_fetched_unless_it_is_said() -> None:
    model, session, scores, loss, train = defined(tv.nn.Dropout(0.5), tv.nn.BatchNorm())
    feed = {"x": X, "y": Y}
    still = session.run(scores, feed)
    assert (still == session.run(scores, feed)).all()
    dropped = session.run(scores, feed, training=True)
    assert not np.allclose(dropped, still)
    assert not np.allclose(dropped, session.run(scores, feed, training=True))  # drawn anew
    assert (model.state_dict()["2.running_mean"] == 0).all()  # only a train op changes anything
    seen, taken = session.run([scores, train], feed)  # with the masks of the step itself
    assert float(tv.cross_entropy(seen, Y)) == pytest.approx(float(taken), rel=1e-6)
    moved = model.state_dict()["2.running_mean"]
    assert (moved != 0).any()
    plain = session.run(loss, feed)
    assert session.run(train, feed, training=False) == pytest.approx(float(plain), rel=1e-6)
    assert (model.state_dict()["2.running_mean"] == moved).all()


def test_what_a_session_trained_is_what_the_model_is() -> None:
    model, session, _, loss, train = defined(tv.relu, engine="native")
    feed = {"x": X, "y": Y}
    before = session.run(loss, feed)
    for _ in range(20):
        session.run(train, feed)
    after = float(session.run(loss, feed))
    assert after < before
    assert float(tv.cross_entropy(model(X), tv.asarray(Y))) == pytest.approx(after, rel=1e-5)
    for name, value in session.values.items():
        assert (model.state_dict()[name] == value).all()
    second = tv.Session(session.graph, engine="numpy")  # one Graph, one set of numbers
    assert float(second.run(train, feed)) == pytest.approx(after, rel=1e-5)
    assert float(session.run(train, feed)) < after
    assert tv.emit(model, "jax")  # its inputs are remembered
    with pytest.raises(TypeError):
        session.values["0.weight"] = 0


def test_what_a_session_trained_is_carried() -> None:
    torch = pytest.importorskip("torch")
    model, session, _, loss, train = defined(tv.nn.BatchNorm(), engine="native")
    for _ in range(5):
        session.run(train, {"x": X, "y": Y})
    net = tv.to_torch(model, X)
    got = torch.nn.functional.cross_entropy(net.eval()(torch.tensor(X)), torch.tensor(Y)).item()
    assert got == pytest.approx(float(session.run(loss, {"x": X, "y": Y})), rel=1e-5)


def test_two_train_ops_and_a_train_step_train_one_model() -> None:
    model, session, _, loss, train = defined(tv.relu)
    with session.graph:
        also = tv.optim.SGD(0.1).minimize(loss)
    step = tv.TrainStep(model, "cross_entropy", tv.optim.SGD(0.1), engine="numpy")
    other = tv.nn.Sequential(tv.nn.Linear(8), tv.relu, tv.nn.Linear(3))
    rates = [0.5, 0.1, 0.1, 0.5, 0.1, 0.1]
    sgd = tv.optim.SGD(0.5)
    alone = tv.TrainStep(other, "cross_entropy", sgd, engine="numpy")
    feed = {"x": X, "y": Y}
    for i, rate in enumerate(rates):
        sgd.lr = rate
        want = alone(X, Y)
        got = step(X, Y) if i % 3 == 2 else session.run((train, also)[i % 3], feed)
        assert float(got) == pytest.approx(want, rel=1e-5), i
    for k, v in other.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[k], v, rtol=1e-5, atol=1e-6)


def test_freezing_is_seen_by_a_session() -> None:
    model, session, _, _, train = defined(tv.relu)
    feed = {"x": X, "y": Y}
    session.run(train, feed)
    model[0].requires_grad_(False)
    before = model.state_dict()
    session.run(train, feed)
    changed = [k for k, v in model.state_dict().items() if not np.array_equal(v, before[k])]
    assert changed == ["2.weight", "2.bias"]


def test_another_models_statistics_stay() -> None:
    a, b = tv.nn.BatchNorm(), tv.nn.BatchNorm()
    with tv.Graph() as g:
        x = tv.placeholder("float32", ("batch", 4), name="x")
        one, two = tv.mean(a(x) ** 2), tv.mean(tv.nn.Sequential(b)(x) ** 2)
        train = tv.optim.SGD(0.1).minimize(one)
    assert two.shape == ()
    tv.Session(g, engine="numpy").run(train, {"x": X})
    assert (a.state_dict()["running_mean"] != 0).all()
    assert (b.state_dict()["running_mean"] == 0).all()


def test_names_dicts_and_with() -> None:
    _, session, scores, loss, train = defined(tv.relu)
    with session as s:
        found = s.run({"l": loss, "both": [train, scores]}, {"x": X.tolist(), "y": Y})
        assert found["l"] == found["both"][0] and found["both"][1].shape == (16, 3)
        assert s.run("0.weight").shape == (8, 4)
        assert (s.run("x", {"x": X}) == X).all()
    assert "there are x, y, 0.weight" in said(KeyError, lambda: session.run("z", {"x": X}))
    assert "is nothing that a Session knows" in said(TypeError, lambda: session.run(None))
    assert "no placeholder" in said(GraphError, lambda: session.run(loss, {scores: X}))


def test_what_is_fed_is_looked_at() -> None:
    _, session, _, loss, train = defined(tv.relu)
    for fetch in (loss, train):
        with pytest.raises(TypeError, match="'y' is int64 and was fed float32"):
            session.run(fetch, {"x": X, "y": Y.astype("f")})
        with pytest.raises(IndexError, match="label -1 is out of range"):
            session.run(fetch, {"x": X, "y": Y - 1})
        with pytest.raises(ShapeError, match=r"x.*wants shape"):
            session.run(fetch, {"x": X[:, :2], "y": Y})
        with pytest.raises(GraphError, match="lacks the placeholder 'y'"):
            session.run(fetch, {"x": X})


# -- fit -------------------------------------------------------------------------------------------
def test_history_has_what_it_says() -> None:
    model = tv.nn.Sequential(tv.nn.Linear(3))
    model.compile("sgd", "cross_entropy", metrics=["accuracy"], engine="numpy")
    assert set(model.fit(X, Y, verbose=False).history) == {"loss", "batch_loss"}
    both = model.fit(X, Y, validation_data=(X, Y), verbose=False).history
    assert set(both) == {"loss", "batch_loss", "val_loss", "val_accuracy"}
    assert "on\n    the training data none is computed" in (tv.History.__doc__ or "")
