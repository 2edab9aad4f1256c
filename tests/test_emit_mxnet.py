"""Gluon source for MXNet: what is particular to it, imperatively and hybridized."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import emit_suite
import trivium as tv
from emit_suite import bound, near, sample, shaken
from trivium import nn
from trivium.graph import MODE, OPS, Graph, UnsupportedError
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.nn.layers import normal
from trivium.shape import Dim

if importlib.util.find_spec("mxnet") is None:
    pytest.skip("MXNet is not installed", allow_module_level=True)

from trivium.frameworks.mxnet.emit import emit
from trivium.frameworks.mxnet.lower import reshape_codes
from trivium.frameworks.mxnet.run import MxnetRunner, build

HYBRID = {"imperative": False, "hybridized": True}
each_way = pytest.mark.parametrize("way", HYBRID)
MXNET = bound("mxnet")


def test_dropout_that_never_rests() -> None:
    graph = Graph("always")
    with graph:
        x = graph.input("data", "float32", ("n",), "x")
        key = graph.input("rng", "uint64", (2,), "rng")
        graph.outputs = [OPS["dropout"](x, key, rate=0.5, training=True)]
    assert 'mode="always"' in emit(graph).source


# -- models ----------------------------------------------------------------------------------------
class Recurrent(nn.Module):
    """All outputs, and no bias at all."""

    def __init__(self) -> None:
        self.first, self.head = nn.RNN(5), nn.Linear(3)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        weights = (
            self.param("rnn.weight_ih", (6, 5), normal),
            self.param("rnn.weight_hh", (6, 6), normal),
        )
        return self.head(OPS["rnn"](x, *weights, activation="relu")[0] / 8)


class Words(nn.Module):
    """Embedding, layer norm, attention with a mask, and the embedding again as the last layer."""

    def __init__(self) -> None:
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(epsilon=1e-3)
        self.query, self.value = nn.Linear(8, bias=False), nn.Linear(8)

    def forward(self, words: Any) -> Any:
        x = self.norm(self.table(words))
        time = words.shape[1]
        q, v = (
            layer(x).reshape(-1, time, 2, 4).permute(0, 2, 1, 3)
            for layer in (self.query, self.value)
        )
        scores = q @ q.mT * 0.5
        mask = tv.asarray(np.tril(np.ones((5, 5), bool)))
        scores = tv.where(mask, scores, float("-inf"))
        y = (tv.softmax(scores) @ v).permute(0, 2, 1, 3).reshape(-1, time, 8)
        table = self.table.param("weight", (11, 8), normal)
        return OPS["linear"](tv.gelu(x + y), table)


class Channels(nn.Module):
    """Channels last, an average pool that leaves pads out, windows that do not fit evenly."""

    def __init__(self) -> None:
        self.conv = nn.Conv2d(6, 3, stride=2, padding="same", layout="NHWC")
        self.bn = nn.BatchNorm2d(axis=-1, unbiased=False)
        self.pool = nn.AvgPool2d(
            3, stride=2, padding=((0, 1), (1, 1)), include_pad=False, layout="NHWC"
        )

    def forward(self, x: Any) -> Any:
        x = self.pool(tv.leaky_relu(self.bn(self.conv(x)), slope=0.2))
        return tv.max(x, axis=(1, 2))


MODELS: dict[str, Any] = {
    "rnn, outputs": (Recurrent, ("float32", ("batch", 6, 4))),
    "attention": (Words, ("int64", ("batch", 5))),
    "channels last": (Channels, ("float32", ("batch", 10, 11, 3))),
}


@each_way
@pytest.mark.parametrize("name", MODELS)
def test_more_models(name: str, way: str) -> None:
    make, spec = MODELS[name]
    model = make()
    graph = tv.trace(model, spec)
    values = shaken(model)
    block, weights = build(graph, values)
    block.hybridize(HYBRID[way], static_alloc=HYBRID[way])
    for batch in (3, 1):
        MXNET.both_modes(graph, MxnetRunner(block, weights), values, [sample(spec, batch)])


# -- what is particular to MXNet -------------------------------------------------------------------
def run(function: Any, *arrays: Any, cotangents: Any = None, training: bool = False) -> Any:
    """A function of arrays traced with an open first size, emitted and run in Gluon."""
    specs = [
        (str(a.dtype), ("batch", *a.shape[1:])) if a.ndim else (str(a.dtype), ()) for a in arrays
    ]
    graph = tv.trace(function, *specs)
    values = function.state_dict() if isinstance(function, nn.Module) else {}
    runner = MxnetRunner(*build(graph, values))
    found = runner.outputs(arrays, training)
    if cotangents is None:
        return found[0] if len(found) == 1 else found
    return runner.pull(arrays, cotangents, training)


def test_equal_extrema_share_the_gradient() -> None:
    x = np.array([[1, 3, 3], [2, 2, 2], [0, 1, 5]], np.float32)
    for op, want in (
        (tv.max, [[0, 0.5, 0.5], [1 / 3] * 3, [0, 0, 1]]),
        (tv.min, [[1, 0, 0], [1 / 3] * 3, [1, 0, 0]]),
    ):
        found = run(lambda x, op=op: op(x, axis=1), x, cotangents=[np.ones(3)])
        near(found.inputs[0], np.array(want))
        near(found.outputs[0], op(tv.asarray(x), axis=1).numpy())
    far = np.array([[-np.inf, 1], [-np.inf, -np.inf]], np.float32)
    assert (run(lambda x: tv.max(x, axis=1), far) == [1, -np.inf]).all()


def test_log_softmax_to_the_last_digits(rng: np.random.Generator) -> None:
    """oneDNN's, which MXNet would take, is off by some thirty roundings in its gradient."""
    x = (3 * rng.standard_normal((64, 10))).astype(np.float32)
    c = rng.standard_normal((64, 10)).astype(np.float32)
    p = np.exp(np.float64(x)) / np.exp(np.float64(x)).sum(axis=1, keepdims=True)
    found = run(lambda x: OPS["log_softmax"](x), x, cotangents=[c])
    near(found.outputs[0], np.log(p), 2)
    near(found.inputs[0], c - p * c.sum(axis=1, keepdims=True, dtype=np.float64), 8)


def test_a_tie_with_a_number_goes_to_the_first() -> None:
    x, one = np.array([[0, 1, 2]], np.float32), [np.ones((1, 3))]
    assert run(lambda x: tv.maximum(x, 1.0), x, cotangents=one).inputs[0].tolist() == [[0, 1, 1]]
    assert run(lambda x: tv.maximum(1.0, x), x, cotangents=one).inputs[0].tolist() == [[0, 0, 1]]


def test_bools_are_numbers_of_what_was_compared(rng: np.random.Generator) -> None:
    x, n = rng.standard_normal((4, 3)).astype(np.float32), rng.integers(0, 3, (4, 3))

    def f(x: Any, n: Any) -> Any:
        both = tv.logical_and(n > 1, x > 0)  # carried as int64 and as float32
        return (
            both.astype("float32") * x,
            tv.where(both | (n == 0), x, 2.0),
            ~both,
            (x > 0).astype("int64") * n,
        )

    for got, want in zip(run(f, x, n), f(tv.asarray(x), tv.asarray(n)), strict=True):
        assert got.dtype == want.dtype.numpy
        np.testing.assert_array_equal(got, np.asarray(want))


def test_arrays_without_axes(rng: np.random.Generator) -> None:
    x, s = rng.standard_normal((4, 3)).astype(np.float32), np.float32(1.5)

    class Scaled(nn.Module):
        def forward(self, x: Any, s: Any) -> Any:
            scale = self.param("scale", (), lambda rng, shape: np.full(shape, 0.5))
            total = tv.sum(x) * s + tv.asarray(np.float32(2))
            return total, tv.stack([total, s * scale]), x * scale - total, x[0, 1]

    model = Scaled()
    want = [np.asarray(v) for v in model(tv.asarray(x), tv.asarray(s))]
    for got, v in zip(run(model, x, np.asarray(s)), want, strict=True):
        near(got, v)
    found = run(model, x, np.asarray(s), cotangents=[np.ones(v.shape) for v in want])
    assert found.parameters["scale"].shape == () and found.inputs[1].shape == ()


def test_padding_of_any_axis(rng: np.random.Generator) -> None:
    for shape, low, high in (
        ((3, 4), (1, 0), (0, 2)), ((2, 3, 4), (0, 1, -1), (0, 0, 2)),
        ((2, 3, 4, 5), (0, 1, 0, 2), (0, 2, 0, 0)),
        ((2, 2, 3, 2, 3), (0, 0, 1, 0, 1), (0, 0, 0, 1, 0)),
    ):  # fmt: skip
        x = rng.standard_normal(shape).astype(np.float32)
        want = OPS["pad"](tv.asarray(x), low=low, high=high, value=-1.5).numpy()
        graph = tv.trace(
            lambda x, a=low, b=high: OPS["pad"](x, low=a, high=b, value=-1.5), ("float32", shape)
        )
        np.testing.assert_array_equal(MxnetRunner(*build(graph, {})).outputs([x])[0], want)


def test_open_sizes_in_shapes(rng: np.random.Generator) -> None:
    graph = Graph("shapes")
    with graph:
        x = graph.input("data", "float32", ("batch", "time", 6), "x")
        joined = x.reshape(Dim("batch") * Dim("time"), 2, 3)
        heads = x.reshape(Dim("batch"), Dim("time"), 2, 3).permute(0, 2, 1, 3)
        back = heads.permute(0, 2, 1, 3).reshape(Dim("batch"), Dim("time"), 6)
        chosen = tv.where(x[:, :1] > 0, x, 0.0)
        graph.outputs = [joined, heads @ heads.mT, x[:, 1:-1], x[:, :, ::2], back, chosen]
        one = tv.asarray(np.arange(6, dtype=np.float32)).reshape(1, 1, 6)
        token = OPS["broadcast_to"](one, shape=(Dim("batch"), 1, 6))
        places = OPS["arange"](start=2, stop=Dim("time") + 2, step=1).astype("float32")
        full = OPS["full"](shape=(Dim("time"), 3), value=2, dtype=tv.int64)
        graph.outputs += [tv.concat([token, x], axis=1) * 2, x + places.reshape(-1, 1), full]
    runner = MxnetRunner(*build(check(graph), {}))
    for shape in ((2, 5, 6), (3, 4, 6)):
        a = rng.standard_normal(shape).astype(np.float32)
        for got, want in zip(runner.outputs([a]), Interpreter(graph, tv.float64)(a), strict=True):
            near(got, want)


@pytest.mark.parametrize("shape", ["4, 3", "batch, 3", "batch, time, 4", "batch, 4, h, w"])
def test_reshape_codes_mean_the_shape(shape: str) -> None:
    """Every code is tried in MXNet on every shape that it may be for."""
    from trivium.frameworks.mxnet.load import load

    mx = load()
    sizes = {"batch": 5, "time": 7, "h": 2, "w": 11}
    old = tuple(int(s) if s.isdigit() else Dim(s) for s in shape.split(", "))
    news: list[Any] = [
        old,
        (1, *old),
        (*old, 1),
        (*old[:-2], old[-2] * old[-1]),
        (old[0] * old[1], *old[2:]),
    ]
    news += [(*old[:i], 2, old[i] // 2, *old[i + 1 :]) for i in range(len(old)) if old[i] == 4]
    news += [(old[0], np.prod(old[1:], dtype=object)), (np.prod(old, dtype=object),)]

    def numbers(shape: Any) -> tuple[int, ...]:
        return tuple(eval(str(s), {}, dict(sizes)) for s in shape)

    for new in news:
        codes = reshape_codes(old, new)
        if codes is None:
            assert sum(isinstance(s, Dim) for s in new) > 1
            continue
        assert mx.nd.zeros(numbers(old)).reshape(codes).shape == numbers(new), (old, new, codes)


def test_statistics_of_a_silent_channel(rng: np.random.Generator) -> None:
    """A constant channel deviates by 0: a gradient through that root would be no number."""
    model = nn.Sequential(nn.BatchNorm2d())
    x = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    x[:, 1] = 0.5
    model.build(x)
    found = run(model, x, cotangents=[rng.standard_normal(x.shape)], training=True)
    assert all(np.isfinite(g).all() for g in (found.inputs[0], *found.parameters.values()))
    near(found.states["0.running_var"], 0.9 + 0.1 * x.var(axis=(0, 2, 3), ddof=1, dtype=np.float64))


def test_gradients_in_inference_mode(rng: np.random.Generator) -> None:
    """MXNet's own max pool sends them to the wrong elements there."""
    model = nn.Sequential(nn.BatchNorm2d(), nn.MaxPool2d(2), nn.Dropout(0.9))
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    model.build(x)
    top = x.reshape(2, 3, 3, 2, 3, 2).max((3, 5)).repeat(2, 2).repeat(2, 3) == x
    g = run(model, x, cotangents=[np.ones((2, 3, 3, 3))]).inputs[0]
    near(g, top / np.sqrt(1 + 1e-5))


def test_checkpoints_have_the_names(tmp_path: Path) -> None:
    """What save_parameters writes is named as the model here, but for Gluon's words for leaves."""
    import mxnet as mx

    module, specs, _ = emit_suite.MODELS["residual"]()
    graph = tv.trace(module, *specs)
    values = shaken(module)
    block, weights = build(graph, values)
    block.save_parameters(str(tmp_path / "net.params"))
    saved = mx.nd.load(str(tmp_path / "net.params"))
    assert saved.keys() == {theirs for theirs, _ in weights.values()} and len(saved) == len(values)
    assert {
        "layer2.0.down.0.weight",
        "layer1.2.bn1.gamma",
        "layer2.1.bn2.running_var",
        "fc.bias",
    } <= saved.keys()
    np.testing.assert_array_equal(
        saved["layer2.1.conv2.weight"].asnumpy(), values["layer2.1.conv2.weight"]
    )


class Nested(nn.Module):
    """Chains in chains, a scope that is left and entered again, numbers that are no chain."""

    def __init__(self) -> None:
        self.features = nn.Sequential(nn.Linear(4), nn.Sequential(nn.Linear(5), tv.relu), nn.RNN(3))
        self.parts = [nn.Linear(3), nn.Linear(3)]

    def forward(self, x: Any) -> Any:
        x = self.features(x)
        return self.parts[1](self.parts[0](x) + x)


def test_nested_containers(rng: np.random.Generator) -> None:
    model, x = Nested(), rng.standard_normal((2, 3, 4)).astype(np.float32)
    near(run(model, x), model(tv.asarray(x)).numpy())
    source = emit(tv.trace(model, ("float32", ("batch", 3, 4)))).source
    assert 'self.features[2].l0_h2h_bias.grad_req = "null"' in source
    assert "self.parts[1](" in source or "self[1](" in source


REFUSALS = {
    "with the open size batch": lambda x: (
        x * OPS["full"](shape=(), value=x.shape[0], dtype=tv.float32)
    ),
    "which no variable here has": lambda x: OPS["broadcast_to"](x[:1], shape=(x.shape[0] + 1, 4)),
    "more open sizes than Reshape": lambda x: (x @ x.mT).reshape(1, x.shape[0], x.shape[0]),
    "an empty array": lambda x: x[:, 4:],
    "depends on an open size": lambda x: tv.concat([x, x])[: x.shape[0]],
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals(reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        emit(tv.trace(REFUSALS[reason], ("float32", ("batch", 4))))


def test_statistics_that_MXNet_would_not_collect() -> None:
    def alone(x: Any) -> Any:
        graph = x.graph
        mean, var = (
            graph.input("state", "float32", (3,), f"bn.running_{n}") for n in ("mean", "var")
        )
        y, *new = OPS["batch_norm"](x, None, None, mean, var, training=MODE)
        graph.updates |= zip((mean, var), new, strict=True)
        return y

    with pytest.raises(UnsupportedError, match="no gradient reaches"):
        emit(tv.trace(alone, ("float32", ("batch", 3, 4, 4))))


def test_a_model_without_an_input_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a HybridBlock has at least one"):
        emit(tv.trace(lambda: tv.zeros((2, 3))))
