"""What MXNet's own operators get wrong or cannot do, and how its source says it all the same."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn

if importlib.util.find_spec("mxnet") is None:
    pytest.skip("MXNet is not installed", allow_module_level=True)

from emit_suite import Bound, shaken
from trivium.frameworks.mxnet.emit import emit
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
        y, *new = tv.batch_norm(x, None, None, mean, var, training=self.training, **self.attrs)
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
    from trivium.frameworks.mxnet.load import load

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
