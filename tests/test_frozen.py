"""Frozen is a word of the Graph: read from every framework, honoured everywhere, written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.convert import OUT, SOURCES
from trivium.engines import ENGINES as ENGINES_KNOWN
from trivium.graph import GraphError, UnsupportedError
from trivium.graph.check import check
from trivium.transforms.grad import gradient

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

TRAINS = [name for name, engine in ENGINES_KNOWN.items() if engine.trains]
INSTALLED = [e for e, version in tv.engines().items() if version]
ENGINES = [pytest.param(e, marks=() if e in INSTALLED else pytest.mark.skip) for e in TRAINS]
TARGETS = [
    pytest.param(t, marks=() if t in INSTALLED or t == "onnx" else pytest.mark.skip)
    for t in SOURCES
]


class Net(nn.Module):
    """A frozen trunk, a head of which the bias is frozen, and parameters of no layer."""

    def __init__(self, norm: bool = False):
        super().__init__()
        norms = [nn.BatchNorm2d(4)] if norm else []
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.ReLU(), nn.Conv2d(4, 5, 3))
        self.head = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(3) + 0.1, requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(3))
        self.register_buffer("offset", torch.arange(3.0))
        self.trunk.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.head(self.trunk(x).mean((2, 3))) * self.scale + self.shift + self.offset


def net(norm: bool = False) -> Any:
    torch.manual_seed(0)
    return Net(norm)


FROZEN = {"scale", "trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias", "head.bias"}
X = np.random.default_rng(0).standard_normal((6, 1, 7, 7)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)


def flags(model: Any) -> dict[str, bool]:
    return {n: p.requires_grad for n, p in model.named_parameters()}


def trained_by_torch(model: Any, steps: int, lr: float = 0.05) -> dict[str, Any]:
    """What torch's own autograd and Adam make of it."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        optimizer.step()
    return {n: t.detach().numpy().copy() for n, t in model.state_dict().items()}


def adam(lr: float = 0.05) -> Any:
    return tv.optim.Adam(lr, weight_decay=0.1)


def close(
    got: dict[str, Any], want: dict[str, Any], frozen: set[str], start: dict[str, Any]
) -> None:
    for name, array in got.items():
        if name in frozen:
            assert np.array_equal(array, start[name]), name
        else:
            np.testing.assert_allclose(array, want[name], atol=2e-5, err_msg=name)


# -- the Graph -------------------------------------------------------------------------------------
def test_torch_says_it_and_the_text_keeps_it() -> None:
    model = tv.from_torch(net(), X)
    graph = model.graph
    assert {v.name for v in graph.of_kind("param") if not v.trainable} == FROZEN
    assert [v.name for v in graph.of_kind("state")] == ["offset"]
    assert [v.name for v in graph.trained()] == ["shift", "head.weight"]
    assert 'scale: param("scale", float32, (3,), trainable=False)' in str(graph)
    again = check(tv.parse(str(graph)))
    assert again.same_as(graph) and str(again) == str(graph)


def test_a_frozen_parameter_is_a_difference() -> None:
    module = net()
    first = tv.from_torch(module, X).graph
    module.scale.requires_grad_(True)
    difference = first.difference(tv.from_torch(module, X).graph)
    assert difference is not None and "scale" in difference and "trainable=False" in difference


def test_the_text_says_nothing_else_of_an_input() -> None:
    text = 'def f(\n    w: param("w", float32, (3,), WORD),\n):\n    return w'
    assert not tv.parse(text.replace("WORD", "trainable=False")).inputs[0].trainable
    for word in ("trainable=1", "frozen=True", "trainable=False, x=1"):
        with pytest.raises(GraphError, match="trainable=False"):
            tv.parse(text.replace("WORD", word))
    with pytest.raises(GraphError, match="only a param"):
        tv.parse(text.replace("param", "state", 1).replace("WORD", "trainable=False"))


def test_a_gradient_is_by_what_is_trained() -> None:
    model = tv.from_torch(net(), X)
    loss = tv.trace(lambda x: tv.sum(model(x)), X)
    assert len(gradient(loss).outputs) == 1 + 2
    assert len(gradient(loss, ["scale"]).outputs) == 1 + 1  # asked for by name it is had


# -- eager, optimizers, modules --------------------------------------------------------------------
def test_eager_leaves_frozen_parameters_alone() -> None:
    module = net()
    model = tv.from_torch(module, X)
    start = {n: a.copy() for n, a in model.state_dict().items()}
    optimizer = tv.optim.Adam(model.parameters(), 0.05, weight_decay=0.1)
    model.train()
    for _ in range(3):
        model.zero_grad()
        tv.mse_loss(model(tv.asarray(X)), tv.asarray(Y)).backward()
        optimizer.step()
    assert all((p.grad is None) == (n in FROZEN) for n, p in model.named_parameters())
    close(model.state_dict(), trained_by_torch(module, 3), FROZEN, start)


def test_an_old_gradient_does_not_move_what_was_frozen_since() -> None:
    w = tv.nn.Parameter(np.float32([1.0]), "w")
    (w * w).sum().backward()
    w.requires_grad = False
    tv.optim.SGD([w], 0.1).step()
    assert w.numpy().tolist() == [1.0]
    with pytest.raises(ValueError, match="nothing wants a gradient"):
        (w * w).sum().backward()
    state = tv.nn.Parameter(np.float32([1.0]), "s", "state")
    with pytest.raises(ValueError, match="s is a state"):
        state.requires_grad = True
    with pytest.raises(TypeError, match="int64"):
        tv.nn.Parameter(np.arange(3), "i", requires_grad=False).requires_grad_(True)


def test_a_module_is_frozen_before_it_has_parameters() -> None:
    body = tv.nn.Sequential(tv.nn.Linear(4), tv.nn.relu, tv.nn.BatchNorm())
    model = tv.nn.Sequential(body.requires_grad_(False), tv.nn.Linear(3))
    assert model(tv.ones((2, 5))).shape == (2, 3)
    assert {n for n, flag in flags(model).items() if flag} == {"1.weight", "1.bias"}
    assert len(model.parameters()) == 6  # all of them, as in torch
    assert "15 trained parameters" in model.summary()
    assert all(flags(model.requires_grad_(True)).values())
    assert not any(p.requires_grad for _, p in model.named_parameters("state"))


def test_the_graph_of_a_model_follows_its_flags() -> None:
    model = tv.from_torch(net(), X)
    model.requires_grad_(True)
    assert all(v.trainable for v in model.graph.of_kind("param"))
    dict(model.named_parameters())["scale"].requires_grad = False
    assert [v.name for v in model.graph.of_kind("param") if not v.trainable] == ["scale"]
    assert "requires_grad=False" in tv.emit(model, "torch")


def test_a_file_keeps_it(tmp_path: Path) -> None:
    model = tv.from_torch(net(), X)
    tv.save(model, tmp_path / "net.tv")
    again = tv.load(tmp_path / "net.tv")
    assert flags(again) == flags(model) and again.graph.same_as(model.graph)  # type: ignore[attr-defined]
    tv.save(model, tmp_path / "net.onnx")
    assert flags(tv.load(tmp_path / "net.onnx")) == flags(model)


# -- engines ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ENGINES)
def test_three_steps_are_those_of_torch(engine: str) -> None:
    module = net()
    model = tv.from_torch(module, X)
    start = {n: a.copy() for n, a in model.state_dict().items()}
    step = tv.TrainStep(model, "mse", adam(), engine=engine)
    for _ in range(3):
        step(X, Y)
    close(model.state_dict(), trained_by_torch(module, 3), FROZEN, start)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_statistics_are_still_collected(engine: str) -> None:
    """torch: requires_grad says nothing of a batch norm's mode."""
    module = net(norm=True)
    model = tv.from_torch(module, X)
    start = {n: a.copy() for n, a in model.state_dict().items()}
    step = tv.TrainStep(model, "mse", adam(), engine=engine)
    if engine == "mxnet":
        with pytest.raises(UnsupportedError, match="no gradient reaches"):
            step(X, Y)
        return
    for _ in range(3):
        step(X, Y)
    frozen = {n for n, flag in flags(module).items() if not flag}
    assert not np.array_equal(model.state_dict()["trunk.1.running_mean"], np.zeros(4))
    close(model.state_dict(), trained_by_torch(module, 3), frozen, start)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_frozen_or_trained_later_is_so_from_the_next_step(engine: str) -> None:
    """With the optimizer's memory of what stays: torch's own state does the same."""
    module = net()
    model = tv.from_torch(module, X)
    start = {n: a.copy() for n, a in model.state_dict().items()}
    step = tv.TrainStep(model, "mse", tv.optim.SGD(0.1, momentum=0.9), engine=engine)
    named = dict(model.named_parameters())
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for k in range(6):
        if k in (2, 4):
            named["head.weight"].requires_grad = k == 4
            named["head.bias"].requires_grad = True
            module.head.weight.requires_grad_(k == 4)
            module.head.bias.requires_grad_(True)
        step(X, Y)
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(module(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        optimizer.step()
    want = {n: t.detach().numpy() for n, t in module.state_dict().items()}
    close(model.state_dict(), want, FROZEN - {"head.bias"}, start)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_train_is_said_in_the_same_words(engine: str) -> None:
    model = tv.nn.Linear(3).requires_grad_(False)
    with pytest.raises(GraphError, match="nothing to train: every parameter is frozen"):
        tv.TrainStep(model, "mse", "sgd", engine=engine)(X.reshape(6, -1), Y)
    with pytest.raises(GraphError, match="nothing to train: the graph has no parameters"):
        tv.TrainStep(tv.nn.Sequential(tv.relu), "mse", "sgd", engine=engine)(Y, Y)


@pytest.mark.parametrize("engine", ENGINES)
def test_fit_leaves_frozen_layers_alone(engine: str) -> None:
    body, head = tv.nn.Linear(4), tv.nn.Linear(3)
    model = tv.nn.Sequential(body.requires_grad_(False), tv.relu, head)
    model(tv.asarray(X.reshape(6, -1)))
    start = {n: a.copy() for n, a in model.state_dict().items()}
    model.compile(optimizer=adam(), loss="mse", engine=engine)
    model.fit(X.reshape(6, -1), Y, epochs=2, batch_size=3, verbose=False)
    same = {n for n, a in model.state_dict().items() if np.array_equal(a, start[n])}
    assert same == {"0.weight", "0.bias"}


@pytest.mark.parametrize("engine", ENGINES)
def test_minimize_leaves_a_fixed_variable_alone(engine: str) -> None:
    with tv.Graph() as g:
        x = tv.placeholder("float32", ("batch",), name="x")
        w, c = tv.variable(2.0, "w"), tv.variable(3.0, "c", trainable=False)
        loss = tv.mean((w * x - c) ** 2)
        train = adam().minimize(loss)
    session = tv.Session(g, engine=engine)
    for _ in range(3):
        session.run(train, feed_dict={x: np.float32([1, 2])})
    w_now, c_now = session.run([w, c])
    assert c_now == 3.0 and w_now != 2.0


# -- out, and back ---------------------------------------------------------------------------------
def test_it_is_written_as_one_would_write_it() -> None:
    source = tv.emit(net(), "torch", X)
    assert "nn.Parameter(torch.ones(3), requires_grad=False)" in source
    assert "        self.trunk.requires_grad_(False)\n        self.head.bias.requires_grad_(False)\n" in source  # noqa: E501  # fmt: skip
    assert source.count("requires_grad") == 3
    whole = tv.emit(net().requires_grad_(False), "torch", X)
    assert "        self.requires_grad_(False)\n" in whole and whole.count("requires_grad") == 1
    one = net().requires_grad_(True)
    one.trunk[2].weight.requires_grad_(False)
    assert 'self.get_parameter("trunk.2.weight").requires_grad_(False)' in tv.emit(one, "torch", X)
    source = tv.emit(net(), "tensorflow", X)
    assert "        freeze(self.trunk)\n" in source
    assert "self.head.bias = tf.Variable(self.head.bias, trainable=False)" in source
    source = tv.emit(net(), "keras", X)
    assert (
        '        if layer.name.startswith("trunk."):\n            layer.trainable = False' in source
    )
    assert 'model.get_layer("head").bias.trainable = False' in source
    source = tv.emit(net(), "mxnet", X)
    assert 'self.trunk.collect_params().setattr("grad_req", "null")' in source
    assert 'self.head.bias.grad_req = "null"' in source
    assert 'params = frozen(params, "scale", "trunk", "head.bias")' in tv.emit(net(), "jax", X)


def trained_there(target: str, carried: Any) -> set[str]:
    """The names that the target's own words call trained."""
    if target == "torch":
        return {n for n, p in carried.named_parameters() if p.requires_grad}
    if target == "keras":
        return {v.path.replace("/", ".") for v in carried.trainable_variables}
    if target == "mxnet":
        named = carried._collect_params_with_prefix()
        return {n for n, p in named.items() if p.grad_req != "null"}
    assert target == "tensorflow"
    shapes = {tuple(v.shape): v.name for v in carried.trainable_variables}
    return {"shift" if s == (3,) else "head.weight" for s in shapes}


@pytest.mark.parametrize("target", TARGETS)
def test_out_and_verified(target: str) -> None:
    carried = OUT[target](net(), X)
    if target == "jax":
        import jax

        function, params = carried
        grads = jax.grad(lambda p: function(p, X).sum())(params)
        zero = {"scale", "head.bias", "trunk.0.weight"}
        for name in zero | {"head.weight", "shift"}:
            found: Any = grads
            for part in name.split("."):
                found = found[part]
            assert (np.abs(found).max() == 0) == (name in zero), name
        return
    want = {"shift", "head.weight"}
    want = {"shift.value", "head.kernel"} if target == "keras" else want
    assert trained_there(target, carried) == want


def test_torch_and_back() -> None:
    module = net(norm=True)
    carried = tv.to_torch(module, X)
    assert flags(carried) == flags(module)
    assert [n for n, _ in carried.named_buffers()] == [n for n, _ in module.named_buffers()]
    assert tv.from_torch(carried, X).graph.same_as(tv.from_torch(module, X).graph)


def test_a_table_of_integers_is_a_frozen_parameter() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.tensor([2**40, 1]), requires_grad=False)
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x: Any) -> Any:
            return torch.where(self.at == 2**40, x, x * self.w)

    module = Table()
    x = np.ones((4, 2), np.float32)
    model = tv.from_torch(module, x)
    assert [v.trainable for v in model.graph.of_kind("param")] == [False, True]
    carried = tv.to_torch(model, x)
    assert carried.at.dtype is torch.int64 and carried.at[0] == 2**40
    assert not carried.at.requires_grad
    tv.TrainStep(model, "mse", "adam")(x, x)
    assert model.state_dict()["at"].tolist() == [2**40, 1]
    assert model.state_dict()["at"].dtype == np.int64


# -- Keras: a layer that is not trainable --------------------------------------------------------
def keras_net() -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((7, 7, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(5, activation="relu", name="middle")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def test_keras_layers_and_models_say_it() -> None:
    model = keras_net()
    for name in ("conv", "norm"):
        model.get_layer(name).trainable = False
    model.get_layer("middle").bias.trainable = False
    module = tv.from_keras(model)
    frozen = {n for n, flag in flags(module).items() if not flag}
    assert frozen == {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "middle.bias"}
    (norm,) = [n for n in module.graph.nodes if n.op == "batch_norm"]  # type: ignore[attr-defined]
    assert norm.attrs["training"] is False  # a frozen one infers, Keras says
    back = tv.to_keras(model)
    assert {v.path for v in back.trainable_variables} == {v.path for v in model.trainable_variables}
    assert not back.get_layer("norm").trainable
    to_torch = tv.to_torch(model, np.zeros((2, 7, 7, 1), np.float32))
    assert {n for n, flag in flags(to_torch).items() if not flag} == frozen
    model.trainable = False
    assert not any(flags(tv.from_keras(model)).values())


def test_a_keras_file_keeps_what_is_frozen_or_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    module = net()
    module.head.bias.requires_grad_(True)
    tv.save(tv.from_torch(module, X), tmp_path / "m.keras")
    assert flags(tv.load(tmp_path / "m.keras")) == flags(module)
    with pytest.raises(UnsupportedError, match=r"head/bias, which is frozen by itself"):
        tv.save(tv.from_torch(net(), X), tmp_path / "n.keras")
    assert not (tmp_path / "n.keras").exists()


def test_steps_of_a_frozen_keras_model() -> None:
    keras = pytest.importorskip("keras")
    model = keras_net()
    model.get_layer("norm").trainable = False
    model.get_layer("conv").trainable = False
    module = tv.from_keras(model)
    x = X.transpose(0, 2, 3, 1)
    step = tv.TrainStep(module, "mse", tv.optim.SGD(0.1, momentum=0.9))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    for _ in range(3):
        step(x, Y)
        model.train_on_batch(x, Y)
    names = module.source_names  # type: ignore[attr-defined]
    now = module.state_dict()
    paths = {v.path: v for v in model.weights}
    for ours in ("head.bias", "middle.bias", "norm.weight", "norm.running_mean", "conv.bias"):
        np.testing.assert_allclose(now[ours], np.array(paths[names[ours]]), atol=2e-5, err_msg=ours)


def test_a_frozen_model_written_by_us_infers_as_well() -> None:
    """UnbiasedBatchNormalization, set to trainable=False, leaves its statistics alone."""
    carried = tv.to_keras(net(norm=True).requires_grad_(True), X)
    carried.trainable = False
    before = [np.array(v) for v in carried.weights]
    carried(X, training=True)
    assert all(np.array_equal(a, np.array(v)) for a, v in zip(before, carried.weights, strict=True))


# -- Gluon: grad_req -------------------------------------------------------------------------------
def test_gluon_says_it_by_grad_req() -> None:
    pytest.importorskip("mxnet")
    from trivium.frameworks.mxnet.load import load

    mx = load()
    block = mx.gluon.nn.HybridSequential()
    block.add(mx.gluon.nn.Dense(4), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(3))
    block.initialize(mx.init.Normal(0.5))
    x = X.reshape(6, -1)
    block(mx.nd.array(x))
    block[0].bias.grad_req = "null"
    block[1].collect_params().setattr("grad_req", "null")
    module = tv.from_mxnet(block, x)
    assert {n for n, flag in flags(module).items() if not flag} == {"0.bias", "1.weight", "1.bias"}
    assert [n for n, _ in module.named_parameters("state")] == ["1.running_mean", "1.running_var"]
    back = tv.from_mxnet(tv.to_mxnet(block, x), x)
    assert back.graph.same_as(module.graph)  # type: ignore[attr-defined]
    torched = tv.to_torch(block, x)
    assert flags(torched) == flags(module)


# -- kept under their names, though nothing reads them --------------------------------------------
class Pooled(nn.Module):
    """A pooler without a use, as BERT has; a bias that its layer does not read; a table."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.pooler = nn.Module()
        self.pooler.dense = nn.Linear(3, 2)
        self.pooler.dense.bias.requires_grad_(False)
        self.narrow = nn.Linear(3, 3)
        self.register_buffer("position_ids", torch.arange(5))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Any) -> Any:
        return F.linear(torch.relu(self.body(x)), self.narrow.weight)


def pooled() -> Any:
    torch.manual_seed(0)
    return Pooled()


P = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def test_what_nothing_reads_comes_in() -> None:
    module = pooled()
    model = tv.from_torch(module, P)
    state = model.state_dict()
    assert state.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert np.array_equal(state[name], tensor.numpy()) and state[name].dtype == (
            tensor.numpy().dtype
        )
    assert flags(model) == flags(module)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_nothing_reads_is_no_hindrance_to_training(engine: str) -> None:
    model = tv.from_torch(pooled(), P)
    before = {n: a.copy() for n, a in model.state_dict().items()}
    tv.TrainStep(model, "mse", adam(), engine=engine)(P, Y)
    after = model.state_dict()
    moved = {n for n, a in after.items() if not np.array_equal(a, before[n])}
    assert moved == {"body.weight", "body.bias", "narrow.weight"}
    assert all(after[n].dtype == before[n].dtype for n in after)


@pytest.mark.parametrize("target", TARGETS)
def test_what_nothing_reads_goes_out(target: str) -> None:
    module = pooled()
    carried = OUT[target](module, P)
    if target == "torch":
        assert carried.state_dict().keys() == module.state_dict().keys()
        assert flags(carried) == flags(module)
        assert all(torch.equal(t, carried.state_dict()[n]) for n, t in module.state_dict().items())
    elif target == "jax":
        params = carried[1]
        np.testing.assert_array_equal(
            params["pooler"]["dense"]["weight"], module.pooler.dense.weight.detach().numpy()
        )
    else:
        source = OUT[target](tv.from_torch(module, P), P, verify=False)
        read = {"keras": tv.from_keras, "mxnet": lambda b: tv.from_mxnet(b, P)}.get(target)
        if read is None:
            np.testing.assert_array_equal(
                source.pooler.dense.weight, module.pooler.dense.weight.detach()
            )
            np.testing.assert_array_equal(source.position_ids, module.position_ids)
            return
        again = read(source)
        assert again.state_dict().keys() == module.state_dict().keys()
        for name, tensor in module.state_dict().items():
            assert np.array_equal(again.state_dict()[name], tensor.numpy()), name


def test_what_nothing_reads_goes_through_onnx(tmp_path: Path) -> None:
    module = pooled()
    tv.save(tv.from_torch(module, P), tmp_path / "p.onnx")
    again = tv.load(tmp_path / "p.onnx")
    assert again.state_dict().keys() == module.state_dict().keys()
    assert flags(again) == flags(module)
