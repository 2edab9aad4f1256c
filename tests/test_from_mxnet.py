"""MXNet's operators, layers, models and files, read and run beside MXNet itself."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trivium.frameworks.mxnet.load import load
from trivium.frameworks.mxnet.operators import special_shape
from trivium.frameworks.mxnet.params import read_params
from trivium.frameworks.mxnet.read import read
from trivium.graph import MODE, UnsupportedError
from trivium.interpret import Interpreter
from trivium.nn.module import GraphModule
from trivium.shape import Dim
from trivium.tensor import Spec
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize

mx = load()
nn, rnn = mx.gluon.nn, mx.gluon.rnn


def numbers(*shape: int, low: float = -2, high: float = 2, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def started(block: Any, *arrays: Any) -> Any:
    """A block with seeded weights, and statistics that are not those of the start."""
    block.initialize(mx.init.Uniform(0.4))
    block(*map(mx.nd.array, arrays))
    rng = np.random.default_rng(1)
    for p in sorted(block.collect_params().values(), key=lambda p: p.name):
        spread = (0.5, 1.5) if p.name.endswith(("running_var", "gamma")) else (-0.4, 0.4)
        p.set_data(mx.nd.array(rng.uniform(*spread, p.shape)))
    return block


def inputs(model: GraphModule, arrays: Any) -> list[Any]:
    """What the Graph of ``model`` wants, in its order."""
    values = model.state_dict()
    data = iter(arrays)
    key = np.array([1, 2], np.uint64)
    return [
        next(data) if v.kind == "data" else key if v.kind == "rng" else values[v.name]
        for v in model.graph.inputs
    ]


def ours(
    model: GraphModule, *arrays: Any, training: bool = False, floating: Any = None
) -> list[Any]:
    run = Interpreter(model.graph, training=training, floating=floating)
    return run(*inputs(model, arrays))


def close(a: Any, b: Any, what: str = "", error: float = 2e-5) -> None:
    assert a.shape == b.shape, what
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    assert np.abs(a.astype("float64") - b).max(initial=0) <= error * scale, what


def leaves(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def same(block: Any, *arrays: Any, training: bool = True, gradients: bool = True) -> GraphModule:
    """Assert that ``block`` and what is read from it agree: outputs, gradients, statistics."""
    model = read(block, *arrays)
    theirs = leaves(block(*map(mx.nd.array, arrays)))
    found = ours(model, *arrays)[: len(model.graph.outputs)]  # then what states become
    for a, b in zip(found, theirs, strict=True):
        close(a, b.asnumpy(), "inference")
    if gradients:
        agree_in_gradients(block, model, arrays, training)
    return model


def agree_in_gradients(block: Any, model: GraphModule, arrays: Any, training: bool) -> None:
    given = [mx.nd.array(a) for a in arrays]
    for a in given if not isinstance(block, nn.Embedding) else ():
        a.attach_grad()
    before = inputs(model, arrays)  # MXNet is about to change the statistics
    with mx.autograd.record(train_mode=training):
        results = leaves(block(*given))
    heads = [numbers(*r.shape, seed=9 + i) for i, r in enumerate(results)]
    mx.autograd.backward(results, [mx.nd.array(h) for h in heads], train_mode=training)

    graph = specialize(model.graph, training=training)
    data = [v.name for v in graph.of_kind("data") if not isinstance(block, nn.Embedding)]
    params = [v.name for v in graph.trained()]
    back = pullback(graph, data + params)
    found = Interpreter(back)(*before, *heads)
    count = len(graph.outputs)
    for a, b in zip(found[:count], results, strict=True):
        close(a, b.asnumpy(), "outputs")
    theirs = {p.name: p for p in block.collect_params().values()}
    grads = [a.grad for a in given if a.grad is not None]
    grads += [theirs[model.source_names[n]].grad() for n in params]
    slopes = found[count : count + len(grads)]  # then what states become
    for name, a, b in zip(data + params, slopes, grads, strict=True):
        close(a, b.asnumpy(), f"the gradient of {name}", 5e-5)
    updates = [state.name for state in back.updates]
    mx.nd.waitall()
    for name, new in zip(updates, found[count + len(grads) :], strict=True):
        if training:
            close(new, theirs[model.source_names[name]].data().asnumpy(), name)


def lambda_block(function: Callable[..., Any]) -> Any:
    return nn.HybridLambda(lambda F, *xs: function(F, *xs))


X, Y = numbers(3, 5, 7), numbers(3, 5, 7, seed=2)
P = numbers(3, 5, 7, low=0.4, high=3)

OPERATORS: list[tuple[Callable[..., Any], Any]] = [
    (lambda F, x, y: x + y * x - y, (X, Y)),
    (lambda F, x, y: x / y, (X, P)),
    (lambda F, x, y: F.broadcast_add(x, y) * F.broadcast_mul(x, y), (X, numbers(1, 5, 1))),
    (lambda F, x, y: F.broadcast_div(x, y) - F.broadcast_sub(x, y), (X, P[:1])),
    (lambda F, x, y: F.broadcast_maximum(x, y) + F.broadcast_minimum(x, y) * 2, (X, Y)),
    (lambda F, x, y: F.broadcast_power(x, y), (P, Y)),
    (lambda F, x, y: F.broadcast_greater(x, y) + F.broadcast_lesser_equal(x, y) * x, (X, Y)),
    (lambda F, x: (1 - x) * 3 + x / 2 - (x - 4), (X,)),
    (lambda F, x: 2 / x + x**3 + 2**x, (P,)),
    (lambda F, x: (x > 0.3) * x + (x <= 0.1), (X,)),
    (lambda F, x: F.maximum(x, 0.3) + F.minimum(x, -0.2), (X,)),
    (lambda F, x, y: F.where(x > 0, x, y), (X, Y)),
    (lambda F, x, y: F.add_n(x, y, x), (X, Y)),
    (lambda F, x: F.exp(x) + F.erf(x) + F.square(x) + F.abs(x) + F.sign(x) + F.expm1(-x), (X,)),
    (lambda F, x: F.log(x) + F.sqrt(x) + F.rsqrt(x) + F.reciprocal(x) + F.log1p(x), (P,)),
    (lambda F, x: F.relu(x) + F.sigmoid(x) + F.tanh(x) + F.softsign(x), (X,)),
    (lambda F, x: F.Activation(x, act_type="relu") + F.Activation(x, act_type="sigmoid"), (X,)),
    (lambda F, x: F.Activation(x, act_type="tanh") + F.Activation(x, act_type="softrelu"), (X,)),
    (lambda F, x: F.Activation(x * 40, act_type="softrelu"), (X,)),
    (lambda F, x: F.Activation(x, act_type="softsign"), (X,)),
    (lambda F, x: F.hard_sigmoid(x) + F.hard_sigmoid(x, alpha=0.3, beta=0.4), (X,)),
    (lambda F, x: F.LeakyReLU(x) + F.LeakyReLU(x, slope=0.1), (X,)),
    (lambda F, x: F.LeakyReLU(x * 60, act_type="elu", slope=0.7), (X,)),
    (lambda F, x: F.LeakyReLU(x, act_type="gelu"), (X,)),
    (lambda F, x: F.clip(x, -0.5, 0.75), (X,)),
    (lambda F, x: F.BlockGrad(x) * x + F.identity(x), (X,)),
    (lambda F, x: F.mean(x) + F.sum(x, axis=1, keepdims=True) - F.max(x, axis=(0, 2)).sum(), (X,)),
    (lambda F, x: F.mean(x, axis=1, exclude=True), (X,)),
    (lambda F, x: F.sum(x, axis=(-1, 0), exclude=True) + F.min(x), (X,)),
    (lambda F, x: F.softmax(x) + F.softmax(x, axis=1, temperature=2.5), (X,)),
    (lambda F, x: F.log_softmax(x, axis=1) + F.SoftmaxActivation(x, mode="channel"), (X,)),
    (lambda F, x: F.SoftmaxActivation(x), (X[0],)),
    (lambda F, x: F.flatten(x) + F.Flatten(x), (X,)),
    (lambda F, x: F.reshape(x, (0, -1)), (X,)),
    (lambda F, x: F.reshape(x, (-3, 0)), (X,)),
    (lambda F, x: F.reshape(x, (-1, 5, 7, 1)), (X,)),
    (lambda F, x: F.reshape(x, (0, 0, -4, -1, 2, 0)), (numbers(3, 5, 6, 7),)),
    (lambda F, x: F.reshape(x, (0, -4, 3, -1, -2)), (numbers(3, 6, 5, 7),)),
    (lambda F, x: x.transpose() + F.transpose(x, (2, 1, 0)), (X,)),
    (lambda F, x: F.transpose(x, (1, 2, 0)), (X,)),
    (lambda F, x: F.swapaxes(x, 1, 2), (X,)),
    (lambda F, x: F.transpose(F.transpose(x, (1, 2, 0)), (1, 2, 0)), (X,)),
    (lambda F, x: F.transpose(F.transpose(x, (1, 2, 0)), (2, 0, 1)), (X,)),
    (lambda F, x, w: F.FullyConnected(x, w, no_bias=True, num_hidden=4), (X, numbers(4, 35))),
    (lambda F, x, y: F.concat(x, y) + F.concat(y, x, dim=1), (X, Y)),
    (lambda F, x, y: F.concat(x, y, x, dim=-1), (X, Y)),
    (lambda F, x, y: F.stack(x, y) * F.stack(y, y, axis=0), (X, Y)),
    (lambda F, x, y: F.stack(x, y, axis=-1), (X, Y)),
    (lambda F, x: F.squeeze(F.expand_dims(x, 2), axis=2), (X,)),
    (lambda F, x: F.slice_axis(x, axis=1, begin=1, end=-1), (X,)),
    (lambda F, x: F.slice_axis(x, axis=2, begin=2, end=None), (X,)),
    (lambda F, x: F.slice(x, begin=(None, 1), end=(None, 4)), (X,)),
    (lambda F, x: F.slice(x, begin=(None, 1, 0), end=(None, None, 7), step=(1, 2, 3)), (X,)),
    (lambda F, x: sum(p * (i + 1) for i, p in enumerate(F.split(x, 3, axis=2))),
     (numbers(3, 5, 6),)),
    (lambda F, x: F.split(x, 5, axis=1, squeeze_axis=True), (X,)),
    (lambda F, x: F.flip(x, axis=2), (X,)),
    (lambda F, x: F.broadcast_to(x, shape=(0, 5, 0)), (numbers(3, 1, 7),)),
    (lambda F, x: F.pad(x, mode="constant", pad_width=(0, 0, 0, 0, 1, 2, 3, 0), constant_value=1.5),
     (numbers(2, 3, 5, 7),)),
    (lambda F, x, y: F.dot(F.flatten(x), y), (X, numbers(35, 4))),
    (lambda F, x, y: F.dot(F.flatten(x), y, transpose_b=True), (X, numbers(4, 35))),
    (lambda F, x, y: F.batch_dot(x, y, transpose_a=True), (X, Y)),
    (lambda F, x: F.argmax(x, axis=1) + F.argmax(x, axis=2, keepdims=True).mean(), (X,)),
    (lambda F, x: F.one_hot(F.argmax(x, axis=1), depth=5), (X,)),
    (lambda F, x: F.cast(x, dtype="float64"), (X,)),
    (lambda F, x: F.LinearRegressionOutput(x, F.zeros_like(x)), (X,)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OPERATORS)))
def test_operators(number: int) -> None:
    function, arrays = OPERATORS[number]
    blocking = number == len(OPERATORS) - 1  # a loss layer has a gradient of its own
    model = same(lambda_block(function), *arrays, gradients=not blocking)
    assert model.graph.inputs[0].shape[0] == Dim("batch")


def test_indices() -> None:
    """MXNet's indices are floats; they are cut off, and clipped at both ends."""
    wanted = np.array([[-3, 0, 1.7], [4, 5, 99]], np.float32)
    table = started(nn.Embedding(5, 3), wanted)
    model = same(table, wanted)
    assert [n.op for n in model.graph.nodes if n.scope == ""][-1] == "embedding"
    same(lambda_block(lambda F, x, i: F.take(x, i)), numbers(5, 3), wanted, gradients=False)
    same(lambda_block(lambda F, x, i: F.take(x, i, axis=1)), X, wanted, gradients=False)
    wrapping = lambda_block(lambda F, x, i: F.take(x, i, mode="wrap"))
    with pytest.raises(UnsupportedError, match="mode='wrap'"):
        read(wrapping, X, wanted)


POOLS: list[dict[str, Any]] = [
    {"kernel": (3, 2), "pool_type": kind, "stride": stride, "pad": pad,
     "pooling_convention": convention, "count_include_pad": counts}
    for kind, counts in (("max", True), ("avg", True), ("avg", False))
    for stride, pad, convention in (
        ((1, 1), (0, 0), "valid"), ((2, 1), (1, 0), "valid"), ((2, 2), (1, 1), "valid"),
        ((2, 2), (0, 0), "full"), ((2, 1), (1, 1), "full"), ((3, 2), (0, 0), "full"),
        ((2, 1), (1, 0), "full"),
    )
]  # fmt: skip


@pytest.mark.parametrize("attrs", POOLS, ids=str)
@pytest.mark.parametrize("size", [(6, 7), (7, 8), (9, 5)])
def test_pooling(attrs: dict[str, Any], size: tuple[int, int]) -> None:
    x = -1 - numbers(2, 3, *size, low=0, high=3)  # negative, so that a zero from a border shows
    block = lambda_block(lambda F, x: F.Pooling(x, **attrs))
    rest = any((n + 2 * p - k) % s for n, p, k, s in zip(
        size, attrs["pad"], attrs["kernel"], attrs["stride"], strict=True))  # fmt: skip
    full = attrs["pooling_convention"] == "full"
    if rest and full and attrs["pool_type"] == "avg" and attrs["count_include_pad"]:
        with pytest.raises(UnsupportedError, match="count_include_pad=False"):
            read(block, x)
    else:
        same(block, x)


def test_pooling_otherwise() -> None:
    x = numbers(2, 3, 5, 7)
    for kind in ("max", "avg"):  # the stride is 1 unless given; a global pool ignores its kernel
        same(lambda_block(lambda F, x, k=kind: F.Pooling(
            x, kernel=(2, 3), pad=(1, 1), pool_type=k)), x)  # fmt: skip
        same(lambda_block(lambda F, x, k=kind: F.Pooling(
            x, kernel=(2, 3), pad=(1, 1), global_pool=True, pool_type=k)), x)  # fmt: skip
    same(nn.AvgPool1D(3, 2, 1), numbers(2, 3, 8))
    same(nn.MaxPool3D(2), numbers(2, 3, 4, 5, 6))
    same(nn.GlobalMaxPool2D(), np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(UnsupportedError, match="touch no element"):
        read(nn.AvgPool2D(2, 3, 1, ceil_mode=True), numbers(1, 1, 7, 7))
    with pytest.raises(UnsupportedError, match="pool_type='sum'"):
        read(lambda_block(lambda F, x: F.Pooling(x, kernel=(2, 2), pool_type="sum")), x)


LAYERS: list[tuple[Callable[[], Any], Any]] = [
    (lambda: nn.Dense(4), numbers(3, 5, 7)),
    (lambda: nn.Dense(4, flatten=False), numbers(3, 5, 7)),
    (lambda: nn.Dense(4, use_bias=False, activation="tanh"), numbers(3, 5)),
    (lambda: nn.Conv2D(6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2), numbers(2, 4, 7, 9)),
    (lambda: nn.Conv2D(5, 3, use_bias=False, activation="sigmoid"), numbers(2, 3, 7, 5)),
    (lambda: nn.Conv1D(5, 3, padding=1, strides=2), numbers(2, 3, 8)),
    (lambda: nn.Conv3D(2, 2), numbers(2, 3, 3, 4, 5)),
    (lambda: nn.LayerNorm(), numbers(3, 5, 7)),
    (lambda: nn.LayerNorm(axis=1, epsilon=1e-3), numbers(3, 5, 7)),
    (lambda: nn.PReLU(), numbers(3, 5, 7)),
    (lambda: nn.PReLU(in_channels=5), numbers(3, 5, 7)),
    (lambda: nn.GELU(), X),
    (lambda: nn.Swish(), X),
    (lambda: nn.ELU(0.6), X),
    (lambda: rnn.RNN(4, activation="tanh", layout="NTC"), numbers(3, 5, 7)),
    (lambda: rnn.RNN(4, activation="relu", layout="TNC"), numbers(5, 3, 7)),
]


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers(number: int) -> None:
    make, x = LAYERS[number]
    same(started(make(), x), x)


NORMS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.7, "epsilon": 1e-2},
    {"axis": -1},
    {"axis": 2, "scale": False},
    {"center": False},
    {"use_global_stats": True},
]


@pytest.mark.parametrize("attrs", NORMS, ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (6, 3, 5)])
def test_batch_norm(attrs: dict[str, Any], shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    block = started(nn.BatchNorm(**attrs), x)
    if not attrs.get("center", True):
        block.beta.set_data(mx.nd.zeros_like(block.beta.data()))
    model = same(block, x)
    names = {v.name for v in model.graph.inputs}
    assert ("weight" in names) == attrs.get("scale", True)  # fix_gamma: the stored gamma is ignored
    assert ("bias" in names) == attrs.get("center", True)
    frozen = attrs.get("use_global_stats", False)
    (node,) = [n for n in model.graph.nodes if n.op == "batch_norm"]
    assert node.attrs["training"] is (False if frozen else MODE)
    assert bool(model.graph.updates) == (not frozen)


def test_batch_norm_collects_the_biased_variance_when_it_goes_backwards() -> None:
    x = mx.nd.array([[1], [2], [3], [4]])
    block = nn.BatchNorm(momentum=0.99)
    block.initialize()
    with mx.autograd.record():
        y = block(x)
    assert block.running_var.data().asscalar() == 1
    y.backward()
    assert abs(block.running_var.data().asscalar() - 1.0025) < 1e-6

    twice = nn.HybridLambda(lambda F, x: block(block(x)))
    twice.register_child(block)
    with pytest.raises(UnsupportedError, match="applied twice"):
        read(twice, x)


def test_batch_norm_of_a_symbol_has_other_defaults(tmp_path: Path) -> None:
    x = numbers(4, 3, 5, 2)
    symbol = mx.sym.BatchNorm(mx.sym.var("data"), name="norm")
    values = {n: numbers(3, low=0.5, high=1.5, seed=i) for i, n in enumerate("abcd")}
    names = ["arg:norm_gamma", "arg:norm_beta", "aux:norm_moving_mean", "aux:norm_moving_var"]
    symbol.save(str(tmp_path / "m-symbol.json"))
    stored = {n: mx.nd.array(v) for n, v in zip(names, values.values(), strict=True)}
    mx.nd.save(str(tmp_path / "m-0003.params"), stored)
    model = read(tmp_path / "m-symbol.json", x)
    (node,) = model.graph.nodes
    assert (node.attrs["epsilon"], node.attrs["momentum"], node.scope) == (1e-3, 0.1, "norm")
    assert list(model.source_names) == ["norm.bias", "norm.running_mean", "norm.running_var"]
    given = [mx.nd.array(v) for v in (x, *values.values())]
    close(ours(model, x)[0], mx.nd.BatchNorm(*given).asnumpy())


def test_dropout() -> None:
    block = nn.HybridSequential()
    block.add(nn.Dropout(0.3), nn.Dropout(0.4))
    model = read(block, X)
    (np.testing.assert_array_equal)(ours(model, X)[0], X)
    nodes = [n for n in model.graph.nodes if n.op == "dropout"]
    assert [(n.scope, n.attrs["rate"], n.attrs["salt"]) for n in nodes] == [
        ("0", 0.3, 0),
        ("1", 0.4, 1),
    ]
    assert nodes[0].attrs["training"] is MODE
    assert [(v.kind, v.name) for v in model.graph.inputs] == [("data", "data"), ("rng", "rng")]
    kept = ours(model, np.ones((50, 40), np.float32).reshape(50, 5, 8)[..., :7], training=True)[0]
    assert 0.36 < (kept > 0).mean() < 0.48
    always = lambda_block(lambda F, x: F.Dropout(x, p=0.2, mode="always"))
    assert read(always, X).graph.nodes[0].attrs["training"] is True
    with pytest.raises(UnsupportedError, match="one mask along several axes"):
        read(nn.Dropout(0.3, axes=(1,)), X)


def mxnet_slope(function: Callable[..., Any], x: Any, head: Any) -> Any:
    """MXNet's own gradient of sum(function(x) * head)."""
    given = mx.nd.array(x)
    given.attach_grad()
    with mx.autograd.record():
        y = function(given)
    y.backward(mx.nd.array(head))
    return y.asnumpy(), given.grad.asnumpy()


def test_where_the_gradient_of_mxnet_is_not_that_of_its_output() -> None:
    """Three operators are refused for it: when this fails, MXNet has changed."""
    x = numbers(2, 3, 6, 7)
    pool = nn.AvgPool2D((3, 2), (2, 2), ceil_mode=True)
    y, slope = mxnet_slope(pool, x, h := numbers(2, 3, 3, 4))
    assert abs((y * h).sum() - (slope * x).sum()) > 0.1  # equal, for a linear function
    with pytest.raises(UnsupportedError, match=r"counts its padding.*count_include_pad=False"):
        read(pool, x)

    x = -np.ones((1, 1), np.float32)
    y, slope = mxnet_slope(nn.SELU(), x, x)
    assert abs(slope + y + 1.0507 * 1.67326) > 0.01  # the slope of a (exp(x) - 1) is y + a
    with pytest.raises(UnsupportedError, match="selu"):
        read(nn.SELU(), x)

    y, slope = mxnet_slope(mx.nd.SoftmaxActivation, X, Y)
    close(y, mx.nd.softmax(mx.nd.array(X), axis=-1).asnumpy())
    close(slope, y * (Y - (Y * y).sum(1, keepdims=True)))
    with pytest.raises(UnsupportedError, match="along the second"):
        read(lambda_block(lambda F, x: F.SoftmaxActivation(x)), X)


def mlp() -> Any:
    block = nn.HybridSequential()
    block.add(nn.Dense(6, activation="relu"), nn.Dense(4), nn.LayerNorm())
    return block


class Cnn(nn.HybridSequential):
    """A small network with everything that usual ones have, and names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.HybridSequential()
        self.stem.add(
            nn.Conv2D(4, 3, padding=1, use_bias=False), nn.BatchNorm(), nn.Activation("relu")
        )
        self.pool = nn.MaxPool2D(3, 2, 1)
        self.branch = nn.Conv2D(4, 1)
        self.head = nn.Dense(5)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        x = self.pool(self.stem(x))
        return self.head(F.relu(x + self.branch(x) * 0.5))


def test_mlp() -> None:
    x = numbers(3, 5, 7)
    model = same(started(mlp(), x), x)
    assert [(n.op, n.scope) for n in model.graph.nodes] == [
        ("flatten", ""), ("linear", "0"), ("relu", ""), ("linear", "1"), ("layer_norm", "2"),
    ]  # fmt: skip
    assert list(model.source_names) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"
    ]  # fmt: skip


def test_cnn() -> None:
    x = numbers(3, 2, 9, 7)
    block = started(Cnn(), x)
    close(ours(read(block, x), x[:1])[0], block(mx.nd.array(x[:1])).asnumpy())
    model = same(block, x)
    assert [(n.op, n.scope) for n in model.graph.nodes] == [
        ("conv", "stem.0"), ("batch_norm", "stem.1"), ("relu", "stem.2"), ("max_pool", "pool"),
        ("conv", "branch"), ("full", ""), ("multiply", ""), ("add", ""), ("relu", ""),
        ("flatten", ""), ("linear", "head"),
    ]  # fmt: skip
    assert model.source_names["stem.1.running_var"] == block.stem[1].running_var.name


def test_rnn_in_a_network() -> None:
    x = numbers(3, 5, 7)
    block = nn.HybridSequential()
    block.add(rnn.RNN(4, layout="NTC", input_size=7), nn.Dense(3, flatten=False))
    model = same(started(block, x), x)
    assert [(n.op, n.scope) for n in model.graph.nodes] == [("rnn", "0"), ("linear", "1")]
    assert list(model.source_names.items())[:4] == [
        (f"0.{ours}", f"{block[0].prefix}l0_{theirs}")
        for ours, theirs in (("weight_ih", "i2h_weight"), ("weight_hh", "h2h_weight"),
                             ("bias_ih", "i2h_bias"), ("bias_hh", "h2h_bias"))
    ]  # fmt: skip


def test_the_module_runs_and_trains() -> None:
    x = numbers(3, 2, 9, 7)
    block = started(Cnn(), x)
    model = read(block, x).eval()
    close(model(x).numpy(), block(mx.nd.array(x)).asnumpy())
    with mx.autograd.record():
        y = block(mx.nd.array(x))
    y.backward()
    mx.nd.waitall()
    close(model.train()(x).numpy(), y.asnumpy())
    state = model.state_dict()["stem.1.running_var"]
    close(state, block.stem[1].running_var.data().asnumpy())


def test_several_inputs_and_outputs() -> None:
    block = lambda_block(lambda F, x, y: (x * y, [x + 1, y]))
    model = same(block.__class__(lambda F, x, y: (x * y, x + 1)), X, Y)
    assert [v.name for v in model.graph.inputs] == ["data0", "data1"]
    assert isinstance(model(X, Y), tuple)
    assert len(read(block, X, Y).graph.outputs) == 3
    fixed = read(block, Spec("float32", (3, 5, "width")), Spec("float32", (3, 5, "width")))
    assert fixed.graph.outputs[0].shape == (3, 5, Dim("width"))


def test_a_layer_used_twice_keeps_one_parameter() -> None:
    inner = nn.Dense(5, in_units=5)
    block = nn.HybridLambda(lambda F, x: inner(F.relu(inner(x))))
    block.register_child(inner, "inner")
    model = same(started(block, numbers(3, 5)), numbers(3, 5))
    assert list(model.source_names) == ["inner.weight", "inner.bias"]
    assert [n.scope for n in model.graph.nodes] == ["inner", "", "inner"]


def test_a_frozen_parameter_is_a_parameter() -> None:
    block = started(nn.Dense(4), numbers(3, 5))
    block.weight.grad_req = "null"
    model = read(block)
    assert [(v.kind, v.name, v.trainable) for v in model.graph.inputs] == [
        ("data", "data", True), ("param", "weight", False), ("param", "bias", True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def resnet() -> Any:
    mx.random.seed(3)
    block = mx.gluon.model_zoo.vision.resnet18_v1(classes=10)
    block.initialize(mx.init.Xavier())
    block(mx.nd.zeros((1, 3, 64, 64)))
    rng = np.random.default_rng(5)
    for name, p in block.collect_params().items():
        if "batchnorm" in name:
            low = 0.5 if name.endswith(("gamma", "var")) else -0.3
            p.set_data(mx.nd.array(rng.uniform(low, low + 0.7, p.shape)))
    return block


def test_resnet18(resnet: Any) -> None:
    model = read(resnet, Spec("float32", ("batch", 3, 64, 64)))
    for batch in (1, 3):
        x = numbers(batch, 3, 64, 64, seed=batch)
        exact = ours(model, x, floating="float64")[0]
        theirs = np.abs(resnet(mx.nd.array(x)).asnumpy() - exact).max()
        mine = np.abs(ours(model, x)[0] - exact).max()
        scale = np.abs(exact).max()
        assert theirs < 1e-5 * scale, "the oracle is not what MXNet computes"
        assert mine < 4 * theirs + 1e-6 * scale
    wanted = set(resnet._collect_params_with_prefix())
    leaf = {"gamma": "weight", "beta": "bias"}
    renamed = {
        ".".join([*n.split(".")[:-1], leaf.get(n.split(".")[-1], n.split(".")[-1])]) for n in wanted
    }
    assert set(model.source_names) == renamed
    assert "features.4.0.body.0.weight" in renamed
    assert {n.scope for n in model.graph.nodes} >= {
        "features.4.0",
        "features.5.0.downsample.1",
        "output",
    }


def test_resnet18_says_itself_what_it_takes(resnet: Any) -> None:
    model = read(resnet)
    assert model.graph.of_kind("data")[0].shape == (Dim("batch"), 3, Dim("height"), Dim("width"))
    x = numbers(2, 3, 64, 64)
    close(ours(model, x)[0], resnet(mx.nd.array(x)).asnumpy())


# -- files ---------------------------------------------------------------------------------------
@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Any, Any]:
    x = numbers(3, 2, 9, 7)
    block = started(Cnn(), x)
    block.hybridize()
    block(mx.nd.array(x))
    block.export(str(tmp_path / "small"))
    return tmp_path / "small-symbol.json", block, x


def test_export_and_back(exported: tuple[Path, Any, Any]) -> None:
    path, block, x = exported
    model = read(path, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        symbolic = mx.gluon.SymbolBlock.imports(
            str(path), ["data"], str(path.with_name("small-0000.params"))
        )
    agree_in_gradients(symbolic, model, [x], training=True)
    convolution = block.stem[0].name
    assert f"{convolution}.weight" in model.source_names
    assert model.graph.nodes[0].scope == convolution
    assert (
        model.source_names[f"{block.stem[1].name}.running_mean"] == block.stem[1].running_mean.name
    )
    again = read(str(path.with_name("small-0000.params")), x)
    assert again.graph.same_as(model.graph)
    assert read(symbolic, x).graph.same_as(model.graph)


def test_parameters_as_mxnet_saves_them(tmp_path: Path) -> None:
    arrays = {
        dtype: np.arange(6).reshape(2, 3).astype(dtype)
        for dtype in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
    }
    mx.nd.save(str(tmp_path / "p"), {n: mx.nd.array(a, dtype=a.dtype) for n, a in arrays.items()})
    found = read_params(tmp_path / "p")
    for name, a in arrays.items():
        np.testing.assert_array_equal(found[name], a)
        assert found[name].dtype == a.dtype


def test_a_file_is_read_without_mxnet(exported: tuple[Path, Any, Any]) -> None:
    path, _, x = exported
    program = (
        "import sys; sys.modules['mxnet'] = None\n"
        "import numpy as np; from trivium.frameworks.mxnet.read import read\n"
        f"print(len(read({str(path)!r}, np.zeros({x.shape}, 'float32')).source_names))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("9", "")


def test_older_spellings(exported: tuple[Path, Any, Any]) -> None:
    path, _, x = exported
    model = read(path, x)
    data = json.loads(path.read_text())
    for key in ("attr", "param"):
        for node in data["nodes"]:
            attrs = node.pop("attrs", None) or node.pop("attr", None) or {}
            node[key] = {k: v.replace("3)", "3L)").replace("True", "1") for k, v in attrs.items()}
        path.write_text(json.dumps(data))
        assert read(path, x).graph.same_as(model.graph)


def test_several_epochs_and_none(exported: tuple[Path, Any, Any]) -> None:
    path, _, x = exported
    first = path.with_name("small-0000.params")
    path.with_name("small-0012.params").write_bytes(first.read_bytes())
    with pytest.raises(UnsupportedError, match=r"found: small-0000\.params, small-0012\.params"):
        read(path, x)
    read(first, x)
    for p in path.parent.glob("*.params"):
        p.unlink()
    with pytest.raises(UnsupportedError, match="found: none"):
        read(path, x)
    with pytest.raises(UnsupportedError, match=r"NAME-symbol.json"):
        read("model.onnx", x)


DAMAGES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda d: [], "no list of nodes"),
    (lambda d: d["nodes"][3].pop("inputs"), "node 3"),
    (lambda d: d["nodes"][2].update(op=7), "node 2"),
    (lambda d: d["nodes"][2].update(attrs={"kernel": 3}), "node 2"),
    (lambda d: d["nodes"][2].update(inputs=[[2, 0, 0]]), "not come before it .at .*node 2"),
    (lambda d: d["nodes"][2].update(inputs=[[-1, 0, 0]]), "node 2"),
    (lambda d: d["nodes"][2].update(inputs=["x"]), "node 2"),
    (lambda d: d.update(heads=[[99, 0, 0]]), "heads"),
    (lambda d: d.update(heads=[]), "no outputs"),
    (lambda d: d.update(heads=[[2, 5, 0]]), "output 5"),
    (lambda d: d["nodes"][2]["attrs"].update(kernel="__import__('os').abort()"), "cannot be read"),
    (lambda d: d["nodes"][2]["attrs"].update(kernel="(" * 3000), "cannot be read"),
    (lambda d: d["nodes"][2]["attrs"].update(kernel="3" * 9999), "cannot be read"),
    (lambda d: d["nodes"][2]["attrs"].update(kernel="(5, 5)"), "another kernel"),
    (lambda d: d["nodes"][2]["attrs"].update(stride="(1, 1, 1)"), "along 2 axes"),
    (lambda d: d["nodes"][2]["attrs"].update(surprise="1"), "'surprise'"),
    (lambda d: d["nodes"][2].update(op="Custom"), "Custom"),
    (lambda d: d["nodes"][0].update(name='x"); import os; ("'), "is no name"),
    (lambda d: d["nodes"][1].update(name="elsewhere_weight"), "no numbers for elsewhere_weight"),
    (lambda d: d["nodes"][2].update(inputs=[]), "reads 0 inputs"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_damaged_symbols(number: int, exported: tuple[Path, Any, Any]) -> None:
    path, _, x = exported
    data = json.loads(path.read_text())
    assert data["nodes"][2]["op"] == "Convolution"
    damage, place = DAMAGES[number]
    result = damage(data)
    path.write_text(json.dumps(result if number == 0 else data))
    with pytest.raises(UnsupportedError, match=place):
        read(path, x)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100000, b"\xff\xfe", b"null", b'{"nodes": 3}'])
def test_no_symbols(text: bytes, exported: tuple[Path, Any, Any]) -> None:
    path, _, x = exported
    path.write_bytes(text)
    with pytest.raises(UnsupportedError, match="no MXNet symbol"):
        read(path, x)


def test_damaged_parameters(exported: tuple[Path, Any, Any]) -> None:
    path, _, x = exported
    stored = path.with_name("small-0000.params")
    good = stored.read_bytes()
    array = 24  # where the first array begins: magic, storage type, rank, sizes
    harms = [good[:n] for n in (0, 7, 8, 30, 60, len(good) // 2, len(good) - 1)]
    harms += [good[:at] + struct.pack("<q", 2**62) + good[at + 8 :] for at in (0, 16, array + 12)]
    (rank,) = struct.unpack_from("<i", good, array + 8)
    dtype = array + 12 + 8 * rank + 8  # after the sizes and the device
    wrong = ((array, 1), (array + 4, 1), (array + 8, 77), (array + 8, -1), (dtype, 99))
    harms += [good[:at] + struct.pack("<i", v) + good[at + 4 :] for at, v in wrong]
    for harm in harms:
        stored.write_bytes(harm)
        with pytest.raises(
            UnsupportedError, match=r"damaged or foreign.*small-0000\.params, byte \d+"
        ):
            read(path, x)


def test_symbolic_output_layers(tmp_path: Path) -> None:
    data = mx.sym.var("data")
    net = mx.sym.FullyConnected(data, num_hidden=4, name="fc")
    net = mx.sym.SoftmaxOutput(net, name="softmax")
    net.save(str(tmp_path / "old-symbol.json"))
    weight, bias, x = numbers(4, 5), numbers(4), numbers(3, 5)
    mx.nd.save(str(tmp_path / "old-0000.params"), {"arg:fc_weight": mx.nd.array(weight),
                                                   "arg:fc_bias": mx.nd.array(bias)})  # fmt: skip
    model = read(
        tmp_path / "old-symbol.json"
    )  # FullyConnected says what it takes; no label is asked for
    assert [v.name for v in model.graph.inputs] == ["data", "fc.weight", "fc.bias"]
    scores = mx.nd.array(x @ weight.T + bias)
    close(ours(model, x)[0], mx.nd.softmax(scores).asnumpy())


# -- what is said when it does not go ------------------------------------------------------------
def test_blocks_without_numbers() -> None:
    block = nn.Dense(3)
    with pytest.raises(UnsupportedError, match="initialize"):
        read(block, numbers(2, 5))
    block.initialize()
    with pytest.raises(UnsupportedError, match="give an example input"):
        read(block)
    assert read(block, numbers(2, 5)).state_dict()["weight"].shape == (3, 5)
    with pytest.raises(UnsupportedError, match="reads 1 inputs"):
        read(lambda_block(lambda F, x, *_: x + 1), X, Y)
    with pytest.raises(UnsupportedError, match="the shape of the input 'data' is not known"):
        read(lambda_block(lambda F, x: x + 1))
    with pytest.raises(UnsupportedError, match="is no Gluon block"):
        read(3)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (rnn.LSTM(3, input_size=7, layout="NTC"), "mode='lstm'"),
        (rnn.GRU(3, input_size=7, layout="NTC"), "mode='gru'"),
        (rnn.RNN(3, 2, input_size=7, layout="NTC"), "one layer"),
        (rnn.RNN(3, bidirectional=True, input_size=7, layout="NTC"), "one direction"),
        (nn.Conv2DTranspose(3, 2, in_channels=5), "Deconvolution"),
        (lambda_block(lambda F, x: F.LeakyReLU(x, act_type="rrelu")), "rrelu"),
        (lambda_block(lambda F, x: F.squeeze(x)), "name the axis"),
        (lambda_block(lambda F, x: F.reshape(x, (-1, 2), reverse=True)), "shape= alone"),
        (lambda_block(lambda F, x: F.softmax(x, dtype="float64")), "dtype=float64"),
        (lambda_block(lambda F, x: x.asnumpy()), "cannot be traced"),
        (lambda_block(lambda F, x: F.topk(x)), "topk is not carried .at node .*_topk0"),
    ],
)
def test_refusals(block: Any, message: str) -> None:
    block.initialize()
    with pytest.raises(UnsupportedError, match=message):
        read(
            block,
            numbers(3, 5, 7) if "Transpose" not in type(block).__name__ else numbers(2, 5, 4, 4),
        )


def test_tracing_leaves_the_block_as_it_was() -> None:
    block = started(Cnn(), x := numbers(1, 2, 9, 7))
    with pytest.raises(UnsupportedError):
        read(block, numbers(1, 3, 9, 7))
    read(block, x)
    assert not block.stem._forward_hooks and not block.stem._forward_pre_hooks
    assert "__scope__" not in block(mx.sym.var("data")).tojson()
    outer = nn.HybridSequential()
    outer.add(nn.Dense(3, in_units=5))  # no size is deferred, so nothing was traced before
    outer.initialize()
    read(outer)
    assert "__scope__" not in outer(mx.sym.var("data")).tojson()


def test_reshape_codes() -> None:
    batch = Dim("batch")
    assert special_shape((2, 3, 4), (4, 0, 2)) == (4, 3, 2)
    assert special_shape((batch, 3, 4), (0, -1)) == (batch, -1)
    assert special_shape((batch, 3, 4, 5), (-3, -2)) == (batch * 3, 4, 5)
    assert special_shape((batch, 6), (0, -4, -1, 2)) == (batch, 3, 2)
