"""Where a function has a corner its gradient is a choice: the one of the source, in every target.

The judges are the real frameworks: one differentiates the model that was written in it, another the
model that was carried to it, both exactly at the corner. ``docs/decisions.md`` has the table.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import trivium as tv
from trivium.convert import SOURCES
from trivium.framework import FRAMEWORKS
from trivium.graph import Graph
from trivium.graph.check import check
from trivium.interpret import Interpreter, bound_dims
from trivium.native.run import NativeFunction
from trivium.proof.sources import source_of
from trivium.transforms.grad import pullback
from trivium.transforms.replay import specialize

Arrays = list[Any]


def f32(*numbers: Any) -> Any:
    return np.array(numbers, np.float32)


X = f32([-3.0, -2.5, -1.0, -0.5, 0.0, 0.5], [1.0, 1.5, 2.5, 3.0, 6.0, 7.0])
"""Every bound and bend of the functions here, and places beside them."""
TIES = f32([1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 0.0])
PAIR = [f32([1.0, 0.0, -1.0, 2.0]), f32([1.0, 0.0, -2.0, 3.0])]
IMAGE = np.repeat(np.repeat(f32(0, 1, 0, 2, 0, 0, 0, 0).reshape(1, 1, 2, 4), 2, 2), 3, 1)
VIDEO = np.zeros((1, 1, 2, 2, 4), np.float32)


def weights_for(outputs: Arrays) -> Arrays:
    """A cotangent in which no two numbers are the same."""
    return [np.linspace(0.5, 1.5, y.size, dtype=np.float32).reshape(y.shape) for y in outputs]


# -- the two sides -----------------------------------------------------------------------------
def everywhere(graph: Graph, arrays: Arrays) -> Iterator[tuple[str, Arrays]]:
    """The gradients of a Graph at a point: our engines, then every framework that is installed."""
    names = [v.name for v in graph.inputs]
    fixed = specialize(graph, bound_dims(graph, arrays), False)
    gs = weights_for(Interpreter(fixed)(*arrays))
    back = check(pullback(fixed, names))
    yield "numpy", Interpreter(back)(*arrays, *gs)[len(gs) :]
    yield "native", NativeFunction(back)({}, [*arrays, *gs])[len(gs) :]
    inputs = [tv.asarray(a, requires_grad=True) for a in arrays]
    result = tv.nn.GraphModule(fixed, {})(*inputs)
    results = result if isinstance(result, tuple) else (result,)
    total: Any = sum((r * tv.asarray(g)).sum() for r, g in zip(results, gs, strict=True))
    total.backward()
    yield "eager", [None if t.grad is None else t.grad.numpy() for t in inputs]
    for name in SOURCES:
        try:
            runner = FRAMEWORKS[name].built(graph, {})[1]
        except ImportError:
            continue
        yield name, runner.pull(arrays, gs).inputs


def hold(graph: Graph, arrays: Arrays, outputs: Arrays, want: Arrays) -> None:
    """The Graph has these outputs and gradients in every engine and framework."""
    for got, exact in zip(Interpreter(graph)(*arrays), outputs, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)
    for name, found in everywhere(graph, arrays):
        for got, exact in zip(found, want, strict=True):
            got = np.zeros_like(exact) if got is None else got
            np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6, err_msg=name)


# -- written here --------------------------------------------------------------------------------
OURS: dict[str, tuple[Callable[..., Any], Arrays, Arrays]] = {  # function, point, slopes there
    "relu": (tv.relu, [f32(0)], [f32(0)]),
    "abs": (tv.abs, [f32(-1, 0, 1)], [f32(-1, 0, 1)]),
    "sign": (tv.sign, [f32(0)], [f32(0)]),
    "leaky_relu": (lambda x: tv.leaky_relu(x, slope=0.1), [f32(0)], [f32(0.1)]),
    "softplus": (tv.softplus, [f32(0)], [f32(0.5)]),
    "maximum": (tv.maximum, [f32(1), f32(1)], [f32(1), f32(0)]),
    "minimum": (tv.minimum, [f32(1), f32(1)], [f32(1), f32(0)]),
    "maximum of a number": (lambda x: tv.maximum(x, 1.0), [f32(1)], [f32(1)]),
    "maximum, the number first": (lambda x: tv.maximum(1.0, x), [f32(1)], [f32(0)]),
    "maximum, shared": (
        lambda x, y: tv.maximum(x, y, ties="share"), [f32(1, 2), f32(1, 3)],
        [f32(0.5, 0), f32(0.5, 1)],
    ),
    "minimum, shared, a number": (
        lambda x: tv.minimum(x, 1.0, ties="share"), [f32(0, 1)], [f32(1, 0.5)],
    ),
    "clip": (lambda x: tv.clip(x, -1, 1), [f32(-2, -1, 0, 1, 2)], [f32(0, 1, 1, 1, 0)]),
    "clip, flat at its bounds": (
        lambda x: tv.clip(x, -1, 1, edge="outside"), [f32(-2, -1, 0, 1, 2)], [f32(0, 0, 1, 0, 0)],
    ),
    "relu6": (tv.nn.relu6, [f32(-1, 0, 1, 6, 7)], [f32(0, 0, 1, 0, 0)]),
    "hardsigmoid": (tv.nn.hardsigmoid, [f32(-3, 0, 3)], [f32(0, 1 / 6, 0)]),
    "hardswish": (tv.nn.hardswish, [f32(-3, 0, 3)], [f32(0, 0.5, 1)]),
    "elu": (lambda x: tv.nn.elu(x, alpha=0.5), [f32(0)], [f32(0.5)]),
    "elu 1": (tv.nn.elu, [f32(0, 200)], [f32(1, 1)]),
    "selu": (tv.nn.selu, [f32(0)], [f32(1.7580993)]),
    "celu": (lambda x: tv.nn.celu(x, alpha=0.5), [f32(0, 200)], [f32(1, 1)]),
    "max": (lambda x: tv.max(x, axis=1), [f32([1, 2, 2])], [f32([0, 0.5, 0.5])]),
    "max to the first": (
        lambda x: tv.max(x, axis=0, ties="first"), [f32([2, 1], [2, 3], [0, 3])],
        [f32([1, 0], [0, 1], [0, 0])],
    ),
    "min to each": (
        lambda x: tv.min(x, axis=1, keepdims=True, ties="each"), [f32([1, 1, 2])],
        [f32([1, 1, 0])],
    ),
    "where": (lambda x: tv.where(x > 0, x, x * 3), [f32(0)], [f32(3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_what_was_written_here(name: str) -> None:
    function, arrays, slopes = OURS[name]
    graph = tv.trace(function, *[tv.Spec("float32", ("batch", *a.shape[1:])) for a in arrays])
    outputs = [np.asarray(function(*map(tv.asarray, arrays)))]
    (g,) = weights_for(outputs)
    if slopes[0].shape == g.shape or g.ndim == slopes[0].ndim:
        want = [s * g for s in slopes]
    else:  # a reduction
        axis = next(i for i, n in enumerate(arrays[0].shape) if (*g.shape, 0)[i] != n)
        want = [s * np.expand_dims(g, axis) for s in slopes]
    hold(graph, arrays, outputs, want)


@pytest.mark.parametrize("op", ["max", "min", "maximum", "minimum", "clip"])
def test_a_word_that_is_none(op: str) -> None:
    wrong = {"edge": "on"} if op == "clip" else {"ties": "last"}
    more = {"clip": [0, 1], "max": [], "min": []}.get(op, [0.0])
    with pytest.raises(TypeError, match="is not one of"):
        getattr(tv, op)(tv.asarray([1.0]), *more, **wrong)


def test_the_first_is_along_one_axis() -> None:
    with pytest.raises(TypeError, match="one axis"):
        tv.max(tv.asarray([[1.0]]), ties="first")


def test_whole_numbers_have_no_ties() -> None:
    """They have no gradient either, so there is one way to write them."""
    graph = tv.trace(lambda x: tv.max(x, axis=0, ties="first"), tv.Spec("int64", (3,)))
    assert graph.nodes[0].attrs["ties"] == "share"


# -- torch -----------------------------------------------------------------------------------------
def _torch_functions() -> dict[str, tuple[Callable[..., Any], Arrays]]:
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    return {
        "relu": (F.relu, [X]), "relu6": (F.relu6, [X]), "hardtanh": (F.hardtanh, [X]),
        "hardtanh of its own": (lambda x: F.hardtanh(x, -0.5, 2.5), [X]),
        "hardsigmoid": (F.hardsigmoid, [X]), "hardswish": (F.hardswish, [X]),
        "clamp": (lambda x: torch.clamp(x, -1, 1), [X]),
        "clamp from below": (lambda x: x.clamp(min=0.5), [X]),
        "clamp from above": (lambda x: x.clamp(max=2.5), [X]),
        "clamp by an array": (lambda x, y: torch.clamp(x, min=y), PAIR),
        "elu": (F.elu, [X]), "elu .5": (lambda x: F.elu(x, 0.5), [X]), "selu": (F.selu, [X]),
        "celu": (lambda x: F.celu(x, 0.5), [X]), "leaky_relu": (F.leaky_relu, [X]),
        "prelu": (F.prelu, [X, f32(0.25)]), "threshold": (lambda x: F.threshold(x, 0.5, 0.1), [X]),
        "softplus": (F.softplus, [X]), "softsign": (F.softsign, [X]),
        "abs": (torch.abs, [X]), "sign": (lambda x: torch.sign(x) * x, [X]),
        "l1_loss": (F.l1_loss, PAIR), "maximum": (torch.maximum, PAIR),
        "minimum": (torch.minimum, PAIR), "max of two": (torch.max, PAIR),
        "amax": (lambda x: x.amax(1), [TIES]), "amin": (lambda x: x.amin(0, True), [TIES]),
        "max": (lambda x: x.max(), [TIES]), "max along": (lambda x: x.max(1).values, [TIES]),
        "min along": (lambda x: x.min(0, keepdim=True).values, [TIES]),
        "max_pool": (lambda x: F.max_pool2d(x, 2), [IMAGE]),
        "max_pool, overlapping": (lambda x: F.max_pool2d(x, 3, 1, 1), [IMAGE]),
        "max_pool, 1 axis": (lambda x: F.max_pool1d(x, 2), [IMAGE[0]]),
        "max_pool, 3 axes": (lambda x: F.max_pool3d(x, 2), [VIDEO]),
        "global max": (lambda x: F.adaptive_max_pool2d(x, 1), [IMAGE]),
        "norm": (lambda x: torch.linalg.vector_norm(x, dim=1), [TIES]),
        "p-norm": (lambda x: x.norm(p=1, dim=1), [TIES]),
        "std": (lambda x: x.std(dim=1), [TIES]),
        "normalize": (lambda x: F.normalize(x, eps=1e-3), [TIES]),
        "square": (lambda x: x**2, [X]), "cube": (lambda x: x**3, [X]),
        "where": (lambda x: torch.where(x > 0, x, x * x), [X]),
        "zero residual": (lambda x: F.relu(x + x.amax(1, keepdim=True) * 0), [TIES * 0]),
    }  # fmt: skip


TORCH = [
    "relu", "relu6", "hardtanh", "hardtanh of its own", "hardsigmoid", "hardswish", "clamp",
    "clamp from below", "clamp from above", "clamp by an array", "elu", "elu .5", "selu", "celu",
    "leaky_relu", "prelu", "threshold", "softplus", "softsign", "abs", "sign", "l1_loss", "maximum",
    "minimum", "max of two", "amax", "amin", "max", "max along", "min along", "max_pool",
    "max_pool, overlapping", "max_pool, 1 axis", "max_pool, 3 axes", "global max", "norm", "p-norm",
    "std", "normalize", "square", "cube", "where", "zero residual",
]  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_from_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    from trivium.frameworks.torch.read import read

    function, arrays = _torch_functions()[name]

    class Applies(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, *xs: Any) -> Any:
            return function(*xs)

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = function(*tensors)
    (g,) = weights_for([y.detach().numpy()])
    y.backward(torch.tensor(g))
    want = [t.grad.detach().numpy() for t in tensors]
    graph = read(Applies(), *[torch.tensor(a) for a in arrays], training=False).graph
    hold(graph, arrays, [y.detach().numpy()], want)


BENDS = {  # second derivatives at the corners: ours, and JAX's function where it has our slopes
    "relu6": "relu6", "hardsigmoid": "hard_sigmoid", "hardswish": "hard_silu", "elu": "elu",
    "selu": "selu", "softplus": "softplus", "relu": "relu", "silu": "silu",
}  # fmt: skip


@pytest.mark.parametrize("name", BENDS)
def test_the_second_derivative(name: str) -> None:
    """JAX is the judge: torch has 0 for elu's at 0, where neither side of 0 has it."""
    jax = pytest.importorskip("jax")
    theirs = jax.grad(lambda x: jax.grad(lambda x: getattr(jax.nn, BENDS[name])(x).sum())(x).sum())
    graph = tv.trace(getattr(tv.nn, name), tv.Spec("float32", X.shape))
    first = pullback(graph, ["x0"])
    first.outputs = first.outputs[1:]
    second = check(pullback(first, ["x0"]))
    ones = np.ones_like(X)
    want = np.asarray(theirs(X))
    for run in (Interpreter(second), lambda *xs: NativeFunction(second)({}, xs)):
        found = run(X, ones, ones)[1]
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


# -- Keras -----------------------------------------------------------------------------------------
def _keras_functions() -> dict[str, tuple[Callable[..., Any], Arrays]]:
    keras = pytest.importorskip("keras")
    L, ops = keras.layers, keras.ops
    image = IMAGE.transpose(0, 2, 3, 1)
    return {
        "relu": (ops.relu, [X]), "relu6": (ops.relu6, [X]), "ReLU(6)": (L.ReLU(6), [X]),
        "ReLU(2.5)": (L.ReLU(2.5), [X]), "ReLU(negative_slope)": (L.ReLU(negative_slope=0.1), [X]),
        "ReLU(6, slope)": (L.ReLU(6, negative_slope=0.1), [X]),
        "clip": (lambda x: ops.clip(x, -1.0, 1.0), [X]),
        "hard_tanh": (ops.hard_tanh, [X]), "hard_sigmoid": (ops.hard_sigmoid, [X]),
        "hard_silu": (ops.hard_silu, [X]), "Activation": (L.Activation("hard_silu"), [X]),
        "elu": (ops.elu, [X]), "ELU(.5)": (L.ELU(0.5), [X]), "selu": (ops.selu, [X]),
        "celu": (lambda x: ops.celu(x, 0.5), [X]), "leaky_relu": (ops.leaky_relu, [X]),
        "LeakyReLU": (L.LeakyReLU(0.1), [X]), "softplus": (ops.softplus, [X]),
        "softsign": (ops.softsign, [X]), "abs": (ops.abs, [X]), "sign": (ops.sign, [X]),
        "maximum": (ops.maximum, PAIR), "minimum": (ops.minimum, PAIR),
        "Maximum": (lambda x, y: L.Maximum()([x, y]), PAIR),
        "maximum of a number": (lambda x: ops.maximum(x, 1.0), [X]),
        "a number first": (lambda x: ops.maximum(1.0, x), [X]),
        "max": (lambda x: ops.max(x, axis=1), [TIES]),
        "amin": (lambda x: ops.amin(x, axis=1), [TIES]),
        "MaxPooling2D": (L.MaxPooling2D(2), [image]),
        "MaxPooling2D, same": (L.MaxPooling2D(3, 1, "same"), [image]),
        "GlobalMaxPooling2D": (L.GlobalMaxPooling2D(), [image]),
        "square": (ops.square, [X]), "where": (lambda x: ops.where(x > 0, x, x * x), [X]),
    }  # fmt: skip


KERAS = [
    "relu", "relu6", "ReLU(6)", "ReLU(2.5)", "ReLU(negative_slope)", "ReLU(6, slope)", "clip",
    "hard_tanh", "hard_sigmoid", "hard_silu", "Activation", "elu", "ELU(.5)", "selu", "celu",
    "leaky_relu", "LeakyReLU", "softplus", "softsign", "abs", "sign", "maximum", "minimum",
    "Maximum", "maximum of a number", "a number first", "max", "amin", "MaxPooling2D",
    "MaxPooling2D, same", "GlobalMaxPooling2D", "square", "where",
]  # fmt: skip


@pytest.mark.parametrize("name", KERAS)
def test_from_keras(name: str) -> None:
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    from trivium.frameworks.keras.open import read

    function, arrays = _keras_functions()[name]
    inputs = [keras.Input(a.shape[1:], name=f"x{i}") for i, a in enumerate(arrays)]
    at = [tf.constant(a) for a in arrays]
    model = keras.Model(inputs, function(*inputs))
    with tf.GradientTape() as tape:
        tape.watch(at)
        y = model(at if len(at) > 1 else at[0])
    (g,) = weights_for([y.numpy()])
    slopes = tape.gradient(y, at, tf.constant(g), unconnected_gradients="zero")
    hold(read(model).graph, arrays, [y.numpy()], [s.numpy() for s in slopes])


# -- MXNet -----------------------------------------------------------------------------------------
def _mxnet_functions() -> dict[str, tuple[Callable[..., Any], Arrays]]:
    pool = dict(kernel=(2, 2), stride=(2, 2), pool_type="max")
    return {
        "relu": (lambda F, x: F.relu(x), [X]), "clip": (lambda F, x: F.clip(x, 0, 6), [X]),
        "hard_sigmoid": (lambda F, x: F.hard_sigmoid(x), [X]),
        "hard_sigmoid 1/6": (lambda F, x: F.hard_sigmoid(x, alpha=1 / 6), [X]),
        "leaky": (lambda F, x: F.LeakyReLU(x, slope=0.1), [X]),
        "elu": (lambda F, x: F.LeakyReLU(x, act_type="elu", slope=0.5), [X]),
        "prelu": (lambda F, x, w: F.LeakyReLU(x, w, act_type="prelu"), [X, f32(0.25)]),
        "softrelu": (lambda F, x: F.Activation(x, act_type="softrelu"), [X]),
        "softsign": (lambda F, x: F.softsign(x), [X]), "abs": (lambda F, x: F.abs(x), [X]),
        "sign": (lambda F, x: F.sign(x) * x, [X]),
        "maximum": (lambda F, x, y: F.broadcast_maximum(x, y), PAIR),
        "minimum": (lambda F, x, y: F.broadcast_minimum(x, y), PAIR),
        "maximum of a number": (lambda F, x: F.maximum(x, 1.0), [X]),
        "max": (lambda F, x: F.max(x, axis=1), [TIES]),
        "max of all": (lambda F, x: F.max(x), [TIES]),
        "min": (lambda F, x: F.min(x, axis=0, keepdims=True), [TIES]),
        "Pooling": (lambda F, x: F.Pooling(x, **pool), [IMAGE]),
        "global": (lambda F, x: F.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="max"),
                   [IMAGE]),
        "square": (lambda F, x: F.square(x), [X]),
    }  # fmt: skip


@pytest.mark.parametrize("name", _mxnet_functions())
def test_from_mxnet(name: str) -> None:
    pytest.importorskip("requests")
    from trivium.frameworks.mxnet.load import load
    from trivium.frameworks.mxnet.read import read

    mx = load()
    function, arrays = _mxnet_functions()[name]

    class Applies(mx.gluon.HybridBlock):  # type: ignore[misc, name-defined]
        def hybrid_forward(self, F: Any, *xs: Any) -> Any:
            return function(F, *xs)

    at = [mx.nd.array(a) for a in arrays]
    for a in at:
        a.attach_grad()
    with mx.autograd.record():
        y = function(mx.nd, *at)
    (g,) = weights_for([y.asnumpy()])
    y.backward(mx.nd.array(g))
    graph = read(Applies(), *[a.copy() for a in at]).graph
    hold(graph, arrays, [y.asnumpy().reshape(graph.outputs[0].shape if not y.ndim else y.shape)],
         [a.grad.asnumpy() for a in at])  # fmt: skip


# -- what is written plainly -----------------------------------------------------------------------
PLAIN = {  # our function: what it is called there
    "relu6": {"torch": "F.relu6(", "keras": "ops.relu6(", "tensorflow": "tf.nn.relu6(",
              "jax": "jax.nn.relu6("},
    "hardswish": {"torch": "F.hardswish(", "keras": "ops.hard_silu(", "jax": "jax.nn.hard_silu("},
    "hardsigmoid": {"torch": "F.hardsigmoid(", "keras": "ops.hard_sigmoid(",
                    "mxnet": "F.hard_sigmoid(", "jax": "jax.nn.hard_sigmoid("},
    "elu": {"torch": "F.elu(", "keras": "ops.elu(", "tensorflow": "tf.nn.elu(",
            "mxnet": "F.LeakyReLU(", "jax": "jax.nn.elu("},
    "selu": {"torch": "F.selu(", "jax": "jax.nn.selu("},
    "celu": {"torch": "F.celu(", "jax": "jax.nn.celu("},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "target", "call"), [(n, t, c) for n, calls in PLAIN.items() for t, c in calls.items()]
)
def test_plain_where_it_is_exact(name: str, target: str, call: str) -> None:
    pytest.importorskip("requests" if target == "mxnet" else target)
    graph = tv.trace(getattr(tv.nn, name), tv.Spec("float32", ("batch", 3)))
    source = tv.emit(tv.nn.GraphModule(graph, {}), target)
    assert call in source, source


# -- whole models ----------------------------------------------------------------------------------
def _torch_model() -> Any:
    """Residual, as it is initialised in practice: gamma and the head are zero."""
    torch = pytest.importorskip("torch")
    nn, F = torch.nn, torch.nn.functional

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(5, 5, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(5)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: Any) -> Any:
            return F.relu6(x + F.hardtanh(self.norm(self.conv(x)), 0.0, 1.0))

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(2, 5, 3, padding=1), Block()
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(5, 6)
            for p in (self.stem.bias, *self.head.parameters()):
                nn.init.zeros_(p)

        def forward(self, x: Any) -> Any:
            x = self.pool(self.block(F.relu(self.stem(x))))
            x = x.flatten(2).max(2).values
            y = self.head(x)
            return F.hardswish(y - 3.0) + torch.maximum(y, y * 2) + x.amax(1, keepdim=True)

    torch.manual_seed(0)
    return Net()


def _keras_model() -> Any:
    keras = pytest.importorskip("keras")
    L, ops = keras.layers, keras.ops
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    x = L.Conv2D(5, 3, padding="same", activation="relu", name="stem")(inputs)
    y = L.Conv2D(5, 3, padding="same", use_bias=False, name="conv")(x)
    y = L.BatchNormalization(gamma_initializer="zeros", name="norm")(y)
    x = L.MaxPooling2D(2)(L.ReLU(6)(x + ops.clip(y, 0.0, 1.0)))
    y = L.Dense(6, kernel_initializer="zeros", name="head")(L.GlobalMaxPooling2D()(x))
    y = ops.selu(y) + ops.maximum(y, 2 * y) + ops.hard_silu(y - 3.0) + ops.abs(y)
    return keras.Model(inputs, y + ops.max(y, axis=1, keepdims=True))


def _mxnet_model() -> Any:
    pytest.importorskip("requests")
    from trivium.frameworks.mxnet.load import load

    mx = load()
    nn = mx.gluon.nn

    class Net(mx.gluon.HybridBlock):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2D(5, 3, padding=1, activation="relu", in_channels=2)
            self.conv = nn.Conv2D(5, 3, padding=1, use_bias=False, in_channels=5)
            self.norm = nn.BatchNorm(gamma_initializer="zeros", in_channels=5)
            self.pool = nn.MaxPool2D(2)
            self.head = nn.Dense(6, weight_initializer="zeros", in_units=20)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            x = self.stem(x)
            x = self.pool(F.clip(x + F.clip(self.norm(self.conv(x)), 0, 1), 0, 6))
            y = self.head(x)
            y = F.broadcast_maximum(y, y * 2) + F.LeakyReLU(y, slope=0.1) + F.abs(y)
            return F.broadcast_add(y, F.max(y, axis=1, keepdims=True))

    mx.random.seed(0)
    net = Net()
    net.initialize()
    return net


MODELS = {"torch": _torch_model, "keras": _keras_model, "mxnet": _mxnet_model}
IMAGES = np.random.default_rng(0).integers(-2, 3, (3, 2, 4, 4)).astype("f")
IMAGES[0] = 0


@pytest.mark.parametrize("target", SOURCES)
@pytest.mark.parametrize("source", MODELS)
def test_a_residual_network_that_starts_at_zero(source: str, target: str) -> None:
    """On an image of zeros and two of whole numbers: ties and corners in every layer.

    No two sizes are the same: Keras would add (3, 1) to (3, 3) as a bias, along the last axis.
    """
    pytest.importorskip("requests" if target == "mxnet" else target)
    x = IMAGES.transpose(0, 2, 3, 1) if source == "keras" else IMAGES
    model = MODELS[source]()
    side = source_of(model, *[] if source == "keras" else [x]).side()
    gs = weights_for(side.runner.outputs([x]))
    there = FRAMEWORKS[target].built(side.graph, side.values)[1]
    want, got = (r.pull([x], gs, training=True) for r in (side.runner, there))
    assert got.parameters.keys() == want.parameters.keys() != set()
    for name, g in [*want.parameters.items(), ("x", want.inputs[0])]:
        found = got.inputs[0] if name == "x" else got.parameters[name]
        np.testing.assert_allclose(found, g, rtol=1e-4, atol=1e-4, err_msg=name)
