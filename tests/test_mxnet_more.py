"""What MXNet's own operators get wrong or cannot do, and how its source says it all the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn

if importlib.util.find_spec("mxnet") is None:
    pytest.skip("MXNet is not installed", allow_module_level=True)

from emit_suite import Bound, shaken
from trivium.frameworks.mxnet.emit import emit
from trivium.frameworks.mxnet.load import load
from trivium.frameworks.mxnet.run import MxnetRunner, build
from trivium.graph import OPS, UnsupportedError
from trivium.interpret import Interpreter
from trivium.nn.layers import ones
from trivium.transforms.grad import pullback

ways = pytest.mark.parametrize("hybrid", [False, True], ids=["imperative", "hybridized"])


def running(graph: tv.Graph, values: dict[str, Any], hybrid: bool) -> MxnetRunner:
    block, weights = build(graph, values)
    if hybrid:
        block.hybridize(static_alloc=True)
    return MxnetRunner(block, weights)


# -- digits ----------------------------------------------------------------------------------------
LOGARITHMS = {
    "softplus": tv.softplus,
    "log_sigmoid": lambda x: -tv.softplus(-x),
    "mish": lambda x: x * tv.tanh(tv.softplus(x)),
}


@ways
@pytest.mark.parametrize("name", LOGARITHMS)
def test_what_is_small_keeps_its_digits(name: str, hybrid: bool) -> None:
    """Each number by itself, to a few units in its last place: value and gradient."""
    x = np.array([-80, -45, -30, -20, -17.5, -16, -12, -8, -3, -0.7, -1e-4, 0, 1e-4], np.float32)
    x = np.concatenate([x, -x])
    graph = tv.trace(LOGARITHMS[name], ("float32", x.shape))
    pulled = running(graph, {}, hybrid).pull([x], [np.ones_like(x)])
    (exact,) = Interpreter(graph, tv.float64)(x)
    back = pullback(graph, [graph.inputs[0].name])
    slope = Interpreter(back, tv.float64)(x, np.ones_like(x))[-1]
    for got, want in ((pulled.outputs[0], exact), (pulled.inputs[0], slope)):
        np.testing.assert_allclose(got, want, rtol=16 * np.finfo(np.float32).eps, atol=0)


def test_softplus_in_a_chain_is_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3), tv.softplus, nn.Linear(2))
    source = emit(tv.trace(model, ("float32", ("batch", 4)))).source
    assert '"softrelu"' not in source and "Softplus(), nn.Dense(2))" in source


@ways
def test_softplus_at_the_ends(hybrid: bool) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0], np.float32)
    graph = tv.trace(tv.softplus, ("float32", x.shape))
    (y,) = running(graph, {}, hybrid).outputs([x])
    np.testing.assert_array_equal(y[:5], np.array([np.inf, 0, np.nan, 3e38, 0], np.float32))


# -- a batch norm that is called several times -----------------------------------------------------
class Bare(nn.BatchNorm):
    """Without scale and offset."""

    def forward(self, x: Any) -> Any:
        mean, var = (self.param(f"running_{n}", (x.shape[1],), ones, kind="state")
                     for n in ("mean", "var"))  # fmt: skip
        said = {k: getattr(self, k) for k in ("axis", "momentum", "epsilon", "unbiased")}
        y, *new = tv.batch_norm(x, None, None, mean, var, training=self.training, **said)
        if self.training is not False:
            mean.assign(new[0])
            var.assign(new[1])
        return y


class Chained(nn.Module):
    """One call after the other."""

    def __init__(self, calls: int = 2, norm: Any = nn.BatchNorm, **words: Any) -> None:
        self.calls, self.lin, self.bn = calls, nn.Linear(4), norm(**words)

    def forward(self, x: Any) -> Any:
        for _ in range(self.calls):
            x = tv.tanh(self.bn(self.lin(x)) + x)
        return x


class Beside(nn.Module):
    """Calls none of which reads what another gave, on batches of several sizes and ranks."""

    def __init__(self, norm: Any = nn.BatchNorm) -> None:
        self.lin, self.bn = nn.Linear(16), norm()

    def forward(self, x: Any) -> Any:
        x = self.lin(x)
        image = x.reshape(-1, 4, 2, 2)
        last, first = self.bn(image), self.bn(x[:, :4] * 3 + 1)
        third = self.bn(x[:, 4:8] * x[:, :4])
        return third * first + tv.mean(last, axis=(2, 3))


class Inner(nn.Module):
    def __init__(self) -> None:
        self.lin, self.bn = nn.Linear(4), nn.BatchNorm()

    def forward(self, x: Any) -> Any:
        return tv.relu(self.bn(self.lin(x)))


class Blocks(nn.Module):
    """A block that is called three times, with a call of its norm alone between."""

    def __init__(self) -> None:
        self.block = Inner()

    def forward(self, x: Any) -> Any:
        return self.block(self.block(self.block.bn(self.block(x))) + x)


REPEATED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "twice": (Chained, (4,)),
    "three times": (lambda: Chained(3, momentum=0.3), (4,)),
    "five times, biased": (lambda: Chained(5, unbiased=False), (4,)),
    "bare": (lambda: Chained(2, Bare), (4,)),
    "all of the new": (lambda: Chained(2, momentum=1.0), (4,)),
    "none of the new": (lambda: Chained(2, momentum=0.0), (4,)),
    "side by side": (Beside, (16,)),
    "side by side, bare": (lambda: Beside(Bare), (16,)),
    "blocks": (Blocks, (4,)),
}


@ways
@pytest.mark.parametrize("name", REPEATED)
def test_a_batch_norm_that_is_called_again(name: str, hybrid: bool) -> None:
    """Outputs, gradients and statistics in both modes, beside the float64 oracle."""
    make, shape = REPEATED[name]
    module = make()
    graph = tv.trace(module, ("float32", ("batch", *shape)))
    x = np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float32)
    values = shaken(module)
    framework = Bound("mxnet", emit, build, MxnetRunner, None)
    framework.both_modes(graph, running(graph, values, hybrid), values, [x])


class Dead(nn.Module):
    """A call that nothing is made of: torch collects there all the same."""

    def __init__(self, last: bool) -> None:
        self.last, self.lin, self.bn, self.other = (
            last,
            nn.Linear(4),
            nn.BatchNorm(),
            nn.BatchNorm(),
        )

    def forward(self, x: Any) -> Any:
        x = self.lin(x)
        (self.bn if self.last else self.other)(self.bn(x) if self.last else x)
        return x if self.last else self.bn(x)


@pytest.mark.parametrize("last", [False, True])
def test_a_batch_norm_that_nothing_reads_is_refused(last: bool) -> None:
    graph = tv.trace(Dead(last), ("float32", ("batch", 4)))
    with pytest.raises(UnsupportedError, match=r"no gradient reaches.*leave that call out"):
        emit(graph)


@ways
@pytest.mark.parametrize("calls", [2, 3])
def test_two_steps_beside_torch(calls: int, hybrid: bool) -> None:
    """Gluon's own Trainer beside torch's optimizer, from fresh statistics."""
    torch = pytest.importorskip("torch")

    class Repeated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.bn = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)

        def forward(self, x: Any) -> Any:
            for _ in range(calls):
                x = torch.tanh(self.bn(self.lin(x))) + x
            return x

    mx = load()
    torch.manual_seed(0)
    theirs = Repeated()
    xs = torch.randn(2, 8, 4)
    net = tv.to_mxnet(theirs, xs[0])
    if hybrid:
        net.hybridize()
    slow = torch.optim.SGD(theirs.parameters(), 0.5)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5})
    for x in xs:
        slow.zero_grad()
        (theirs(x) ** 2).mean().backward()
        slow.step()
        with mx.autograd.record():
            loss = (net(mx.nd.array(x.numpy())) ** 2).mean()
        loss.backward()
        trainer.step(1)
    found = {n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items()}
    for name, theirs_name in {
        "lin.weight": "lin.weight", "lin.bias": "lin.bias", "bn.gamma": "bn.weight",
        "bn.beta": "bn.bias", "bn.running_mean": "bn.running_mean",
        "bn.running_var": "bn.running_var",
    }.items():  # fmt: skip
        want = theirs.state_dict()[theirs_name].numpy()
        np.testing.assert_allclose(found[name], want, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_repeated_batch_norm_is_traced_with_the_block_around_it() -> None:
    module = Chained()
    graph = tv.trace(module, ("float32", ("batch", 4)))
    runner = running(graph, shaken(module), hybrid=False)
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    (before,) = runner.outputs([x], training=True)
    runner.block.bn.hybridize()
    np.testing.assert_array_equal(runner.outputs([x], training=True)[0], before)


# -- an array that is read many times --------------------------------------------------------------
def test_many_gradients_of_one_array() -> None:
    """Random sums and products over one array: nnvm lost its way in a tenth of them."""
    rng = np.random.default_rng(0)
    x = np.array([[-1, 0.2, 0.5]], np.float32)

    def made(words: list[int], numbers: list[float]) -> Any:
        def function(x: Any) -> Any:
            x = tv.tanh(x)
            y = x
            for word, c in zip(words, numbers, strict=True):
                z = (x, c * x, tv.exp(x), tv.softplus(x) * c)[word % 4]
                y = (y + z, z + y, y - z, y * z)[word // 4 % 4] if word < 16 else z + tv.tanh(y)
            return y

        return function

    lost = [0] * 4 + [1] * 7  # (x + x) + c x + ...
    for words in [lost, [1] * 9, *rng.integers(0, 20, (40, 12)).tolist()]:
        graph = tv.trace(
            made(words, rng.uniform(0.1, 0.9, len(words)).tolist()), ("float32", (1, 3))
        )
        found = running(graph, {}, hybrid=True).pull([x], [np.ones_like(x)], training=True)
        exact = Interpreter(pullback(graph, [graph.inputs[0].name]), tv.float64)(x, np.ones_like(x))
        np.testing.assert_allclose(found.inputs[0], exact[-1], rtol=1e-4, atol=1e-4)


# -- dtypes ----------------------------------------------------------------------------------------
def halved(make: Any, dtype: str) -> Any:
    return lambda x: tv.cast(make(tv.cast(x, dtype=dtype)), dtype="float32")


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int16", "uint32"])
def test_a_dtype_that_MXNet_has_not_is_refused_by_name(dtype: str, where: str) -> None:
    function: Any = halved(lambda x: x * 2, dtype) if where == "inside" else lambda x: x * 2
    graph = tv.trace(function, ("float32" if where == "inside" else dtype, ("batch", 4)))
    with pytest.raises(UnsupportedError, match=rf" in {dtype}, which MXNet .*; cast it to "):
        emit(graph)


@pytest.mark.parametrize("op", ["matmul", "linear", "conv"])
def test_a_product_in_float16_is_refused_by_name(op: str) -> None:
    def product(x: Any) -> Any:
        if op == "conv":
            image = x.reshape(-1, 1, 4, 4)
            return tv.conv(image, image[:1, :, :2, :2])
        return OPS[op](x, x if op == "linear" else x.mT)

    graph = tv.trace(halved(product, "float16"), ("float32", (4, 16)))
    with pytest.raises(UnsupportedError, match=f"{op}.*float16.*cast"):
        emit(graph)


@ways
def test_float16_beside_products_is_carried(hybrid: bool) -> None:
    function = halved(
        lambda x: tv.tanh(x * 2 + 1) / 3 + tv.sum(x, axis=1, keepdims=True), "float16"
    )
    graph = tv.trace(function, ("float32", ("batch", 4)))
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    runner = running(graph, {}, hybrid)
    exact = Interpreter(graph, tv.float64)(x)
    np.testing.assert_allclose(runner.outputs([x])[0], exact[0], atol=1e-2)
    assert runner.pull([x], [np.ones_like(x)]).inputs[0].dtype == np.float32


# -- indices from the end --------------------------------------------------------------------------
INDICES = {
    "last": [-1], "both ends": [0, -1, 2], "of two axes": [[1, -2], [-3, 0]],
    "a formula": list(range(-1, -5, -1)) * 12,
}  # fmt: skip


@ways
@pytest.mark.parametrize("name", INDICES)
def test_constant_indices_from_the_end(name: str, hybrid: bool) -> None:
    at = np.array(INDICES[name])

    def function(x: Any) -> Any:
        return tv.take(x, tv.stop_gradient(tv.asarray(at)), axis=1) * 2

    graph = tv.trace(function, ("float32", ("batch", 4, 3)))
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    pulled = running(graph, {}, hybrid).pull([x], [np.ones(x.take(at, 1).shape, "f")])
    assert emit(graph).source.count("get_constant") == 1
    np.testing.assert_array_equal(pulled.outputs[0], x.take(at, 1) * 2)
    count = [2.0 * (at % 4 == i).sum() for i in range(4)]
    np.testing.assert_array_equal(pulled.inputs[0][0, :, 0], count)


def test_an_index_from_the_end_of_a_table_leaves_other_readers_alone() -> None:
    table, at = nn.Embedding(5, 3), np.array([1, -2])

    def function(x: Any) -> Any:
        i = tv.asarray(at)
        return table(i) * x + tv.cast(tv.expand_dims(i, axis=1), dtype="float32")

    graph = tv.trace(function, ("float32", (2, 3)))
    x = np.ones((2, 3), np.float32)
    values = {v.name: np.arange(15, dtype="f").reshape(5, 3) for v in graph.of_kind("param")}
    (weight,) = values.values()
    (y,) = running(graph, values, hybrid=False).outputs([x])
    np.testing.assert_array_equal(y, weight[at] + at[:, None])


def test_gather_of_onnx_from_the_end(tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    made = onnx.helper
    kind = onnx.TensorProto.FLOAT
    graph = made.make_graph(
        [made.make_node("Gather", ["x", "i"], ["y"], axis=1)], "g",
        [made.make_tensor_value_info("x", kind, [2, 4, 3])],
        [made.make_tensor_value_info("y", kind, [2, 2, 3])],
        [onnx.numpy_helper.from_array(np.array([0, -1]), "i")],
    )  # fmt: skip
    file = tmp_path / "gather.onnx"
    onnx.save(made.make_model(graph, opset_imports=[made.make_opsetid("", 17)], ir_version=8), file)
    assert tv.to_mxnet(tv.load(file), np.ones((2, 4, 3), np.float32)).report.rows


def test_indices_from_the_end_of_an_open_size_are_refused() -> None:
    graph = tv.trace(lambda x: tv.take(x, tv.asarray(np.array([-1]))), ("float32", ("batch", 4)))
    with pytest.raises(UnsupportedError, match="take with indices from the end of the open size"):
        emit(graph)


def test_statistics_that_are_read_as_they_become_are_refused() -> None:
    """After a call that collects, the same norm with the statistics as they are then."""

    class Reading(nn.Module):
        def __init__(self) -> None:
            self.lin, self.bn = nn.Linear(4), nn.BatchNorm()

        def forward(self, x: Any) -> Any:
            x = self.bn(self.lin(x))
            mean, var = (
                self.bn.param(f"running_{n}", (4,), ones, "state") for n in ("mean", "var")
            )
            return tv.batch_norm(x, None, None, mean, var, training=False)[0]

    with pytest.raises(UnsupportedError, match="that reads statistics as a batch norm leaves them"):
        emit(tv.trace(Reading(), ("float32", ("batch", 4))))


def test_a_call_at_rest_before_one_that_collects_is_refused() -> None:
    """One nn.BatchNorm is not both."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            self.lin, self.bn = nn.Linear(4), nn.BatchNorm()

        def forward(self, x: Any) -> Any:
            x = self.lin(x)
            mean, var = (
                self.bn.param(f"running_{n}", (4,), ones, "state") for n in ("mean", "var")
            )
            rest = tv.batch_norm(x, None, None, mean, var, training=False)[0]
            return rest * self.bn(x)

    graph = tv.trace(Twice(), ("float32", ("batch", 4)))
    with pytest.raises(UnsupportedError, match=r"updates bn\.running_mean outside a layer"):
        emit(graph)


class Stopped(nn.Module):
    """A batch norm whose output is detached: torch collects there all the same."""

    def __init__(self) -> None:
        self.lin, self.bn, self.head = nn.Linear(4), nn.BatchNorm(), nn.Linear(2)

    def forward(self, x: Any) -> Any:
        return self.head(tv.stop_gradient(tv.relu(self.bn(self.lin(x)))))


def test_a_batch_norm_that_is_detached_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"batch norm that no gradient reaches.*at bn"):
        emit(tv.trace(Stopped(), ("float32", ("batch", 4))))


REFUSED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "of a vector with": (lambda x: x[0, 0] @ x.mT, ("batch", 3, 4)),
    "by one index without axes": (lambda x: tv.take(x, tv.asarray(np.array(1)), axis=1), (3, 4)),
    "a window with a dilation": (
        lambda x: tv.max_pool(x, kernel=(2, 2), stride=(1, 1), dilation=(2, 2)), (2, 3, 8, 8)
    ),
    "without inputs": (lambda: tv.full(shape=(2,), value=1.0), ()),
    "from the open": (
        lambda x: x[:, 0] * tv.cast(
            tv.arange(start=x.shape[0], stop=2 * x.shape[0], step=1, dtype=tv.int64),
            dtype="float32",
        ), ("batch", 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused_by_name(reason: str) -> None:
    function, shape = REFUSED[reason]
    with pytest.raises(UnsupportedError, match=reason):
        emit(tv.trace(function, *([("float32", shape)] if shape else [])))


def test_a_dense_layer_in_float64_is_written_out() -> None:
    graph = tv.Graph("g")
    with graph:
        x = graph.input("data", "float64", ("batch", 4), "x")
        w = graph.input("param", "float64", (2, 4), "fc.weight")
        graph.outputs = [OPS["linear"](x, w, None)]
    source = emit(graph).source
    assert 'dtype="float64"' in source


def test_gradients_of_a_plain_block_in_inference_mode_are_refused() -> None:
    gluon = load().gluon.nn
    net = gluon.Sequential()
    net.add(gluon.Dense(2))
    net.initialize()
    x = np.ones((1, 3), np.float32)
    with pytest.raises(UnsupportedError, match="inference mode of a Block that is no HybridBlock"):
        MxnetRunner(net, {}).pull([x], [np.ones((1, 2), np.float32)])


# -- what no gradient comes back to ----------------------------------------------------------------
ENDS: dict[str, Any] = {
    "detached": tv.stop_gradient,
    "detached twice": lambda x: tv.stop_gradient(tv.exp(tv.stop_gradient(x))),
    "sign": tv.sign,
    "compared": lambda x: tv.cast(x > 0.1, dtype="float32"),
    "argmax": lambda x: tv.one_hot(tv.argmax(x, axis=1), classes=4),
    "like": lambda x: tv.ones_like(x) + tv.zeros_like(x),
    "condition": lambda x: tv.where(x > 0.2, 1.0, 2.0),
    "integers": lambda x: tv.cast(tv.cast(x * 3, dtype="int32"), dtype="float32"),
}


class Ended(nn.Module):
    """A trained layer, what has no gradient, and a layer or nothing after it."""

    def __init__(self, end: Any, head: bool = True, beside: bool = False) -> None:
        self.end, self.beside = end, beside
        self.lin = nn.Linear(4)
        self.head = nn.Linear(4) if head else None

    def forward(self, x: Any) -> Any:
        x = tv.tanh(tv.relu(self.lin(x)))
        y = self.end(x) + x if self.beside else self.end(x)
        return y if self.head is None else self.head(y)


@ways
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
@pytest.mark.parametrize("name", ENDS)
def test_where_no_gradient_comes_back(name: str, beside: bool, hybrid: bool) -> None:
    """Imperatively, MXNet died of a segmentation fault in the way back."""
    module = Ended(ENDS[name], beside=beside)
    graph = tv.trace(module, ("float32", (6, 4)))
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    values = shaken(module)
    framework = Bound("mxnet", emit, build, MxnetRunner, None)
    framework.both_modes(graph, running(graph, values, hybrid), values, [x])


@ways
def test_an_output_that_no_gradient_comes_back_to(hybrid: bool) -> None:
    module = Ended(tv.stop_gradient, head=False)
    graph = tv.trace(module, ("float32", (6, 4)))
    x = np.ones((6, 4), np.float32)
    pulled = running(graph, shaken(module), hybrid).pull([x], [x], training=True)
    assert not np.any(pulled.inputs[0]) and not any(map(np.any, pulled.parameters.values()))


def test_a_detached_trunk_of_torch() -> None:
    torch = pytest.importorskip("torch")

    class Trunk(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.head(torch.relu(self.trunk(x)).detach())

    net = tv.to_mxnet(Trunk(), torch.randn(3, 4))
    assert net.report.ok and "detached(F, " in net.source
    assert "detached" not in tv.emit(nn.Sequential(nn.Linear(3), tv.relu), "mxnet", np.ones((2, 4)))


def test_a_gluon_block_that_detaches() -> None:
    """Its gradients are asked for of its symbol: imperatively MXNet would not survive it."""
    mx = load()

    class Detaching(mx.gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = mx.gluon.nn.Dense(4), mx.gluon.nn.Dense(2)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            return self.head(F.BlockGrad(F.relu(self.trunk(x))))

    net = Detaching()
    net.initialize()
    x = mx.nd.ones((3, 4))
    net(x)
    assert tv.to_torch(net, x).report.ok


# -- bools -----------------------------------------------------------------------------------------
def test_bools_that_a_model_holds() -> None:
    """MXNet has none: they are 0 and 1 there, and bools again when they are read."""
    torch = pytest.importorskip("torch")

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(3, 3)
            self.register_buffer("mask", torch.ones(3, 3).tril().bool())
            self.register_buffer("on", torch.tensor(True))

        def forward(self, x: Any) -> Any:
            x = self.lin(x)
            x = torch.where(self.mask, x, torch.zeros(())) + x.masked_fill(~self.mask, -1.0)
            return torch.where(self.on, x, -x) * (self.mask == self.on)

    net = tv.to_mxnet(Masked(), torch.randn(2, 3, 3))
    assert net.report.ok
    graph = tv.trace(tv.from_torch(Masked(), torch.randn(2, 3, 3)), ("float32", (2, 3, 3)))
    held = {v.name: np.ones(v.shape, v.dtype.numpy) for v in graph.of_kind("param", "state")}
    held["mask"] = np.eye(3, dtype=bool)
    runner = running(graph, held, hybrid=False)
    assert {n: a.dtype for n, a in runner.values().items()} == {n: a.dtype for n, a in held.items()}
    np.testing.assert_array_equal(runner.values()["mask"], held["mask"])
    runner.load(held | {"mask": ~held["mask"]})
    np.testing.assert_array_equal(runner.values()["mask"], ~held["mask"])
    assert runner.values()["on"].shape == ()


# -- names -----------------------------------------------------------------------------------------
NAMES = ["onnx::Add_12", "onnx__Add_12", "12", "a-b", "log_softmax", "float", "lambda", "weight"]


@ways
@pytest.mark.parametrize("scope", ["", "part.", "a/b."])
def test_names_that_are_no_identifiers(scope: str, hybrid: bool) -> None:
    graph = tv.Graph("g")
    with graph:
        x = graph.input("data", "float32", ("batch", 4), "x")
        y = x
        for name in NAMES:
            with graph.within(scope.rstrip(".")):
                y = tv.log_softmax(y + graph.input("param", "float32", (4,), scope + name), axis=1)
        graph.outputs = [y]
    rng = np.random.default_rng(0)
    values = {scope + n: rng.standard_normal(4).astype(np.float32) for n in NAMES}
    emitted = emit(graph)
    compile(emitted.source, "source", "exec")
    assert emitted.weights.keys() == values.keys()
    runner = running(graph, values, hybrid)
    for name, array in runner.values().items():
        np.testing.assert_array_equal(array, values[name])
    a = rng.standard_normal((2, 4)).astype(np.float32)
    exact = Interpreter(graph, tv.float64)(a, *values.values())
    np.testing.assert_allclose(runner.outputs([a])[0], exact[0], rtol=1e-5)


def test_a_list_of_parameters() -> None:
    torch = pytest.importorskip("torch")

    class Listed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ps = torch.nn.ParameterList(torch.randn(4) for _ in range(2))

        def forward(self, x: Any) -> Any:
            return x * self.ps[0] + self.ps[1]

    assert tv.to_mxnet(Listed(), torch.randn(3, 4)).report.ok


def test_a_block_that_reads_nothing_is_none() -> None:
    """A table of positions that is read at constant places."""

    class Table(nn.Module):
        def __init__(self) -> None:
            self.table = nn.Embedding(6, 4)

        def forward(self) -> Any:
            return self.table(tv.asarray(np.array([3, 1, 4]))) * 2

    class Placed(nn.Module):
        def __init__(self) -> None:
            self.pos, self.head = Table(), nn.Linear(2)

        def forward(self, x: Any) -> Any:
            return self.head(x + self.pos())

    net = tv.to_mxnet(Placed(), np.ones((2, 3, 4), np.float32))
    assert net.report.ok and "def hybrid_forward(self, F, )" not in net.source


# -- inputs and outputs ----------------------------------------------------------------------------
def test_indices_of_an_embedding_that_are_floats() -> None:
    """What mx.nd.array gives: MXNet raises where their gradient is asked for."""
    nd, gluon = load().nd, load().gluon.nn
    net = gluon.HybridSequential()
    net.add(gluon.Embedding(11, 4), gluon.Dense(3, flatten=False))
    net.initialize()
    x = nd.array(np.random.default_rng(0).integers(0, 11, (3, 5)))
    net(x)
    assert tv.to_torch(net, x).report.ok
    runner = MxnetRunner(net, {})
    found = runner.pull([x.asnumpy()], [np.ones((3, 5, 3), np.float32)], training=True)
    assert found.inputs == [None]


def test_another_error_of_MXNet_stays_one() -> None:
    MXNetError = load().MXNetError
    graph = tv.trace(lambda x: tv.tanh(x), ("float32", (2, 3)))
    runner = running(graph, {}, hybrid=False)

    def fails(*_: Any) -> Any:
        raise MXNetError("no such thing")

    runner._training = fails
    with pytest.raises(MXNetError, match="no such thing"):
        runner.pull([np.ones((2, 3), "f")], [np.ones((2, 3), "f")], training=True)


def test_names_of_outputs_are_said() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            self.lin, self.drop = nn.Linear(3), nn.Dropout(0.5)

        def forward(self, x: Any) -> Any:
            x = self.drop(self.lin(x))
            return {"hidden": tv.tanh(x), "out": x}

    x = np.ones((2, 4), np.float32)
    model = Two()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net = tv.to_mxnet(model, x)
    (one,) = said
    assert "MXNet gives a list: hidden, out, in this order" in str(one.message) and net.report.ok
    assert list(tv.compile(model, engine="mxnet")(x)) == ["hidden", "out"]  # and says nothing
    hidden, out = net(load().nd.array(x))
    np.testing.assert_allclose(hidden.asnumpy(), np.tanh(out.asnumpy()), rtol=1e-5)


def test_the_line_that_imports_MXNet() -> None:
    """The one that the README has; a plain import works after it."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    line = "from trivium.frameworks.mxnet.load import load; mx = load()"
    assert f"`{line}`" in readme
    after = f"{line}\nimport mxnet\nfrom mxnet import gluon\nassert mxnet is mx"
    subprocess.run([sys.executable, "-c", after], check=True)
