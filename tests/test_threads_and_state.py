"""Several threads at once, what is kept and how long, and models that are copied and pickled."""

import contextvars
import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.engines import ENGINES
from trivium.graph import OPS
from trivium.interpret import Interpreter
from trivium.recent import Recent

THREADS = 8


def together(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """``work(k)`` in so many threads, begun at the same moment; their results, or their error."""
    barrier = threading.Barrier(threads)
    results: list[Any] = [None] * threads
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            barrier.wait()
            results[k] = work(k)
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=run, args=(k,)) for k in range(threads)]
    often, before = 1e-5, sys.getswitchinterval()
    sys.setswitchinterval(often)  # so that they meet in the middle of things
    try:
        for t in started:
            t.start()
        for t in started:
            t.join()
    finally:
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]
    return results


class Net(tv.nn.Module):
    def __init__(self, width: int = 6):
        self.first, self.second = tv.nn.Linear(width), tv.nn.Linear(width)
        self.norm = tv.nn.BatchNorm()
        self.drop = tv.nn.Dropout(0.5)
        self.head = tv.nn.Linear(3)

    def forward(self, x: Any) -> Any:
        x = tv.relu(self.second(tv.relu(self.first(x))))
        return self.head(self.drop(self.norm(x)))


NAMES = [f"{p}.{n}" for p in ("first", "second") for n in ("weight", "bias")] + [
    "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "head.weight", "head.bias",
]  # fmt: skip


def data(n: int = 12, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 5)).astype("f"), rng.integers(0, 3, n)


# -- threads ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["call", "build", "trace"])
def test_models_made_in_several_threads_have_names_and_the_same_numbers(how: str) -> None:
    x, _ = data()
    alone = Net().build(x).state_dict()

    def work(k: int) -> Any:
        net = Net()
        if how == "call":
            net.eval()(x)
        elif how == "build":
            net.build(x)
        else:
            graph = tv.trace(net, x, training=False)
            assert sorted(v.name for v in graph.of_kind("param", "state")) == sorted(NAMES)
        return {name: p.name for name, p in net.named_parameters("param", "state")}, net

    for _ in range(20):
        for names, net in together(work):
            assert names == {n: n for n in NAMES}
            for name, value in net.state_dict().items():
                np.testing.assert_array_equal(value, alone[name])


def test_one_model_first_called_by_several_threads_has_one_set_of_parameters() -> None:
    x, _ = data()
    expected = Net().eval()(x).numpy()
    for _ in range(30):
        net = Net().eval()
        graphs = together(lambda k, net=net: (tv.trace(net, x, training=False), net(x).numpy()))
        held = {id(p) for _, p in net.named_parameters("param", "state")}
        for graph, y in graphs:
            assert {id(p) for p, v in graph.captured.values()} == held
            np.testing.assert_array_equal(y, expected)


def test_a_layer_that_two_models_share_has_the_name_it_has_in_each() -> None:
    x, _ = data()
    shared = tv.nn.Linear(4)

    class Holder(tv.nn.Module):
        def __init__(self, name: str):
            setattr(self, name, shared)
            self.name, self.head = name, tv.nn.Linear(2)

        def forward(self, x: Any) -> Any:
            return self.head(getattr(self, self.name)(x))

    models = [Holder(f"part{k}") for k in range(THREADS)]

    def work(k: int) -> list[str]:
        graphs = [tv.trace(models[k], x) for _ in range(20)]
        return sorted({v.name for g in graphs for v in g.of_kind("param")})

    for k, names in enumerate(together(work)):
        assert names == ["head.bias", "head.weight", f"part{k}.bias", f"part{k}.weight"]


@pytest.mark.parametrize("engine", ["native", "numpy", "torch"])
def test_training_in_several_threads_is_training_alone(engine: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch")

    def train(k: int) -> dict[str, Any]:
        x, y = data(seed=k)
        net = tv.nn.Sequential(tv.nn.Linear(4 + k), tv.nn.tanh, tv.nn.BatchNorm(), tv.nn.Linear(3))
        step = tv.TrainStep(net, "cross_entropy", tv.optim.Adam(0.01), engine=engine, threads=1)
        for _ in range(5):
            step(x, y)
        return net.state_dict()

    alone = [train(k) for k in range(4)]
    for _ in range(3):
        for got, wanted in zip(together(train, 4), alone, strict=True):
            for name, value in wanted.items():
                # Torch's products have other last digits when their operands lie elsewhere.
                np.testing.assert_allclose(
                    got[name],
                    value,
                    1e-5 * (engine == "torch"),
                    1e-6 * (engine == "torch"),
                    err_msg=name,
                )


def test_a_model_is_asked_by_several_threads_while_it_stays_in_training_mode() -> None:
    x, _ = data(64)
    net = Net()
    net(x)  # statistics of a batch, and dropout: training mode makes other numbers
    net.first.eval()  # a part that its owner has set otherwise stays as it was set
    before = net.state_dict()
    expected = net.predict(x)
    for _ in range(20):
        for y in together(lambda k: net.predict(x, batch_size=8)):
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert net.training is True and net.first.training is False
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("engine", ["native", "numpy", "torch"])
def test_a_compiled_function_is_called_by_several_threads(engine: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    x, _ = data()
    net = Net().eval()
    expected = net(x).numpy()
    for _ in range(5):
        fast = tv.compile(net, engine=engine)
        for parts in together(lambda k, f=fast: [f(x[: 12 - i % 3]).numpy() for i in range(6)]):
            for i, y in enumerate(parts):
                np.testing.assert_allclose(y, expected[: 12 - i % 3], rtol=1e-4, atol=1e-5)


def test_no_two_threads_draw_the_same_mask() -> None:
    def draw(k: int) -> list[bytes]:
        keys = [tv.nn.module.random_key().numpy().tobytes() for _ in range(500)]
        return keys

    keys = [key for found in together(draw) for key in found]
    assert len(set(keys)) == len(keys)


def test_a_context_of_its_own_is_a_call_of_its_own() -> None:
    """What a task runner does: work is begun in a copy of the context of the one who asks."""
    x, _ = data()
    inside: list[str] = []

    class Outer(tv.nn.Module):
        def __init__(self) -> None:
            self.layer = tv.nn.Linear(2)

        def forward(self, x: Any) -> Any:
            y = contextvars.copy_context().run(self.layer, x)
            inside.append(self.layer.param("bias", (2,), tv.nn.layers.zeros).name)
            return y

    Outer()(x)
    assert inside == ["layer.bias"]


# -- what is kept ----------------------------------------------------------------------------------
def test_bodies_of_composites_do_not_pile_up() -> None:
    assert OPS["mean"].is_composite and OPS["mean"].rule is None  # its types are its body's
    for n in range(1, 400):
        tv.mean(tv.asarray(np.ones((n, 2), "f")))
    assert 1 < len(OPS["mean"]._bodies) <= 64


def test_a_body_is_found_by_what_it_is_and_not_by_where_it_lay() -> None:
    from trivium.op import _key

    assert len({_key(v) for v in (1, 1.0, True, 0.0, -0.0)}) == 5
    assert _key((1, 2.0)) != _key((1, 2)) and _key(float("nan")) == _key(float("nan"))
    a, b = np.float32([1, 2]), np.float32([1, 3])
    assert _key(a) == _key(a.copy()) and _key(a) != _key(b) and _key(a) != _key(a.astype("d"))
    keys = Recent(3)
    graph = tv.Graph("kept")
    keys.get(graph, lambda: "made for it")
    seen = weakref.ref(graph)
    del graph
    gc.collect()
    assert seen() is not None  # so nothing else can have its id


def test_specialisations_and_compiled_functions_do_not_pile_up() -> None:
    graph = tv.trace(lambda x: tv.tanh(x) * 2, ("float32", ("n",)))
    run = Interpreter(graph)
    fast = tv.compile(lambda x: tv.tanh(x) * 2, engine="numpy")
    for n in range(1, 200):
        assert run(np.ones(n, "f"))[0].shape == (n,)
        assert fast(np.ones(n, "f")).shape == (n,)
    assert len(run._special) <= 64 and len(fast._made) <= 64


def test_the_most_recent_are_kept() -> None:
    made: list[int] = []
    recent = Recent(2)
    for n in (1, 2, 1, 3, 1, 2):
        assert recent.get(n, lambda n=n: made.append(n) or -n) == -n
    assert made == [1, 2, 3, 2] and list(recent) == [1, 2] and recent.last() == -2
    busy = Recent(5)
    for found in together(lambda k: [busy.get(n % 11, lambda n=n: n % 11) for n in range(2000)]):
        assert found == [n % 11 for n in range(2000)]
    assert len(busy) == 5


# -- copies ----------------------------------------------------------------------------------------
def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


COPIES = [copy.deepcopy, pickled]
INSTALLED = [name for name, e in ENGINES.items() if e.trains and e.version() is not None]


def made(how: str, tmp_path: Any) -> tuple[Any, Any]:
    """A model after a call, fit, a TrainStep or loading; and what has to stay alive with it."""
    x, y = data()
    net = Net()
    if how == "call":
        net(x)
        return net, None
    if how == "fit":
        net.compile(tv.optim.Adam(0.01), "cross_entropy", metrics=["accuracy"])
        net.fit(x, y, epochs=2, verbose=False)
        return net, None
    step = tv.TrainStep(net, "cross_entropy", "sgd")
    step(x, y)
    if how == "loaded":
        tv.save(net, tmp_path / "net.tv", x)
        return tv.load(tmp_path / "net.tv"), None
    return net, step


@pytest.mark.parametrize("how", ["call", "fit", "step", "loaded"])
@pytest.mark.parametrize("clone", COPIES)
def test_a_model_is_copied_whole_and_apart(clone: Any, how: str, tmp_path: Any) -> None:
    x, y = data()
    net, step = made(how, tmp_path)
    twin = clone(net)
    before = net.state_dict()
    assert list(twin.state_dict()) == list(before)
    np.testing.assert_array_equal(twin.predict(x), net.predict(x))
    twin.compile("sgd", "cross_entropy").fit(x, y, epochs=1, verbose=False)
    assert any((twin.state_dict()[n] != a).any() for n, a in before.items())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    if step is not None:  # it goes on training the one that it was made for
        trained = twin.state_dict()
        step(x, y)
        assert (net.state_dict()["head.weight"] != before["head.weight"]).any()
        for name, value in twin.state_dict().items():
            np.testing.assert_array_equal(value, trained[name])


@pytest.mark.parametrize("engine", INSTALLED)
@pytest.mark.parametrize("clone", COPIES)
def test_a_copy_goes_on_training_where_the_model_was(clone: Any, engine: str) -> None:
    x, y = data()
    net = tv.nn.Sequential(tv.nn.Linear(4), tv.nn.tanh, tv.nn.Linear(3))
    net.compile(tv.optim.Adam(0.05), "cross_entropy", engine=engine)
    net.fit(x, y, epochs=3, verbose=False)
    twin = clone(net)
    last = [m.fit(x, y, epochs=3, verbose=False).history["batch_loss"] for m in (net, twin)]
    np.testing.assert_allclose(last[1], last[0], rtol=1e-6)
    again = clone(clone(twin))  # one that has not trained yet still knows
    last = [m.fit(x, y, epochs=1, verbose=False).history["batch_loss"] for m in (net, again)]
    np.testing.assert_allclose(last[1], last[0], rtol=1e-6)


@pytest.mark.parametrize("clone", COPIES)
def test_an_eager_optimizer_is_copied_with_its_model(clone: Any) -> None:
    x, y = data()

    def train(model: Any, optimizer: Any, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            loss = tv.cross_entropy(model(tv.asarray(x)), tv.asarray(y))
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        return losses

    net = tv.nn.Linear(3).build(x)
    optimizer = tv.optim.Adam(net.parameters(), 0.1)
    train(net, optimizer, 3)
    twin, its = clone((net, optimizer))
    assert its.parameters[0] is twin.parameters()[0] is not net.parameters()[0]
    assert train(twin, its, 3) == train(net, optimizer, 3)


@pytest.mark.parametrize("clone", COPIES)
def test_a_graph_of_any_depth_is_copied(clone: Any) -> None:
    def deep(x: Any) -> Any:
        for _ in range(3000):
            x = tv.tanh(x)
        return {"y": tv.scan(lambda c, x: (c + x, c * x), x[0], x)[1], "x": x}

    graph = tv.trace(deep, ("float32", ("batch", 2)), training=None)
    twin = clone(graph)
    assert twin.same_as(graph) and str(twin) == str(graph) and twin.structure == graph.structure
    model = tv.nn.Sequential(Net(), Net())
    graph = tv.trace(model, ("float32", ("batch", 5)))
    twin = clone(graph)
    assert twin.same_as(graph) and twin.classes == graph.classes and twin.captured
    assert [n.scope for n in twin.nodes] == [n.scope for n in graph.nodes]


@pytest.mark.parametrize("clone", COPIES)
def test_tensors_and_ops_are_copied(clone: Any) -> None:
    assert clone(tv.relu) is tv.relu and clone(tv.MODE) is tv.MODE
    w = tv.asarray([1.0, 2.0], requires_grad=True)
    (w * w).sum().backward()
    twin, made_of_it = clone((w, w * 2))
    assert twin.requires_grad and twin.grad.tolist() == [2, 4] and twin.tolist() == [1, 2]
    assert not made_of_it.requires_grad and made_of_it.tolist() == [2, 4]
    shared = tv.nn.Linear(2)
    model = clone(tv.nn.Sequential(shared, shared).build(("float32", (1, 2))))
    assert model[0] is model[1] and len(model.parameters()) == 2
