"""Where frameworks mean different things by the same word: the real ones side by side, and our op.

The numbers in the names are those of the table in docs/decisions.md. A framework that is not
installed is skipped, with its name as the reason.
"""

import importlib
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.nn.layers import same_padding

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _module(name: str) -> Callable[[], Any]:
    return pytest.fixture(scope="module", name=name)(lambda: pytest.importorskip(name))


torch, tensorflow, keras, jax = map(_module, ("torch", "tensorflow", "keras", "jax"))


@pytest.fixture(scope="module", name="mxnet")
def _mxnet() -> Any:
    try:
        return importlib.import_module("trivium.frameworks.mxnet.load").load()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", name="onnx")
def _onnx() -> Any:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper = onnx.helper

    def model(op: str, x: Any, opset: int = 21, **attrs: Any) -> Any:
        node = helper.make_node(op, ["x"], ["y"], **attrs)
        inputs = [helper.make_tensor_value_info("x", 1, x.shape)]
        graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
        opsets = [helper.make_opsetid("", opset)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnx.shape_inference.infer_shapes(proto)

    def run(op: str, x: Any, opset: int = 21, **attrs: Any) -> Any:
        proto = model(op, x, opset, **attrs).SerializeToString()
        return ort.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

    return SimpleNamespace(model=model, run=run, defs=onnx.defs)


def same(*arrays: Any, tolerance: float = 1e-6) -> None:
    first, *others = (np.asarray(a) for a in arrays)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=tolerance, atol=tolerance)


def last(x: Any) -> Any:
    """Channels last."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def first(x: Any) -> Any:
    """Channels first."""
    return np.moveaxis(np.asarray(x), -1, 1)


# -- convolution and pooling ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "size, kernel, stride, pads", [(224, 7, 2, (2, 3)), (224, 3, 2, (0, 1)), (5, 3, 2, (1, 1))]
)
def test_01_same_padding(size: int, kernel: int, stride: int, pads: Any, tensorflow: Any, keras: Any,
                         rng: np.random.Generator) -> None:  # fmt: skip
    x = rng.standard_normal((1, 2, size, 1)).astype(np.float32)
    w = rng.standard_normal((3, 2, kernel, 1)).astype(np.float32)
    theirs = tensorflow.nn.conv2d(last(x), w.transpose(2, 3, 1, 0), (stride, 1), "SAME")
    layer = keras.layers.Conv2D(3, (kernel, 1), (stride, 1), "same", use_bias=False)
    layer.build((None, size, 1, 2))
    layer.kernel.assign(w.transpose(2, 3, 1, 0))
    assert same_padding(x, (kernel, 1), (stride, 1), 1, "NCHW") == (pads, (0, 0))
    ours = tv.conv(x, w, stride=(stride, 1), padding=(pads, (0, 0)))
    same(ours, first(theirs), first(layer(last(x))), tolerance=1e-5)


def test_01_same_lower_swaps_the_odd_one(onnx: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 1, 4, 4)).astype(np.float32)
    for word, pads in (("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 0))):
        theirs = onnx.run("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad=word)
        same(tv.max_pool(x, kernel=3, stride=2, padding=(pads, pads)), theirs)


def test_02_max_pool_pads_with_minus_infinity(torch: Any, tensorflow: Any, keras: Any, mxnet: Any,
                                              jax: Any, onnx: Any) -> None:  # fmt: skip
    x = -np.ones((1, 1, 3, 3), np.float32)
    x_mx = mxnet.nd.Pooling(mxnet.nd.array(x), kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")
    x_jax = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "SAME")
    same(
        -np.ones((1, 1, 2, 2)),
        tv.max_pool(x, kernel=3, stride=2, padding=1),
        torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1),
        first(tensorflow.nn.max_pool2d(last(x), 3, 2, "SAME")),
        first(keras.layers.MaxPooling2D(3, 2, "same")(last(x))),
        x_mx.asnumpy(), x_jax,
        onnx.run("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    )  # fmt: skip


def test_03_average_pool_border(torch: Any, tensorflow: Any, mxnet: Any, onnx: Any) -> None:
    x = np.ones((1, 1, 3, 3), np.float32)
    inside = tv.avg_pool(x, kernel=3, stride=1, padding=1, include_pad=False)
    counted = tv.avg_pool(x, kernel=3, stride=1, padding=1, include_pad=True)
    assert inside.numpy()[0, 0, 0, 0] == 1 and np.isclose(counted.numpy()[0, 0, 0, 0], 4 / 9)
    same(
        inside,
        first(tensorflow.nn.avg_pool2d(last(x), 3, 1, "SAME")),
        onnx.run("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4),
    )
    theirs = mxnet.nd.Pooling(mxnet.nd.array(x), kernel=(3, 3), pad=(1, 1), pool_type="avg")
    same(counted, torch.nn.functional.avg_pool2d(torch.tensor(x), 3, 1, 1), theirs.asnumpy())


def test_07_depthwise_kernels_lie_channel_by_multiplier(keras: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 5, 6, 2)).astype(np.float32)
    layer = keras.layers.DepthwiseConv2D((3, 2), depth_multiplier=3)
    theirs = layer(x)
    kernel = np.asarray(layer.kernel)
    assert kernel.shape == (3, 2, 2, 3)  # (h, w, channel, multiplier)
    w = kernel.transpose(2, 3, 0, 1).reshape(6, 1, 3, 2)
    same(tv.conv(x, w, groups=2, layout="NHWC"), theirs)


def test_08_flatten_and_dense(mxnet: Any, torch: Any, keras: Any, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    dense = mxnet.gluon.nn.Dense(5)  # flattens, unless told flatten=False
    dense.initialize()
    theirs = dense(mxnet.nd.array(x)).asnumpy()
    weight = dense.weight.data().asnumpy()
    assert theirs.shape == (2, 5) and weight.shape == (5, 12)
    same(tv.linear(tv.flatten(x, start=1), weight), theirs, tolerance=1e-5)
    assert torch.nn.Linear(4, 5)(torch.tensor(x)).shape == (2, 3, 5) == keras.layers.Dense(5)(x).shape
    # And the order in which images are flattened is their layout's.
    image = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    w = rng.standard_normal((6, 60)).astype(np.float32)
    moved = w.reshape(6, 3, 4, 5).transpose(0, 2, 3, 1).reshape(6, 60)
    ours = tv.linear(tv.flatten(image, start=1), w)
    same(ours, tv.linear(keras.layers.Flatten()(last(image)).numpy(), moved), tolerance=1e-5)


# -- normalisation ---------------------------------------------------------------------------------------
_X = np.array([1, 2, 3, 4], np.float32).reshape(4, 1)


def _ours(momentum: float, unbiased: bool) -> tuple[Any, ...]:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    out = tv.batch_norm(_X, one, zero, zero, one, training=True, momentum=momentum, unbiased=unbiased)
    return tuple(float(o.numpy()[0]) for o in out[1:])


def _torch_statistics(torch: Any, momentum: float) -> tuple[float, float]:
    layer = torch.nn.BatchNorm1d(1, momentum=momentum)
    layer(torch.tensor(_X))
    return float(layer.running_mean), float(layer.running_var)


def _keras_statistics(keras: Any, momentum: float) -> tuple[float, float]:
    layer = keras.layers.BatchNormalization(momentum=momentum)
    layer(_X, training=True)
    return float(layer.moving_mean.numpy()[0]), float(layer.moving_variance.numpy()[0])


def test_09_momentum_and_11_running_variance(torch: Any, keras: Any, mxnet: Any) -> None:
    same(_ours(0.01, unbiased=True), _torch_statistics(torch, 0.01), (0.025, 1.0066667))
    same(_ours(0.01, unbiased=False), _keras_statistics(keras, 0.99), (0.025, 1.0025))
    layer = mxnet.gluon.nn.BatchNorm(momentum=0.99)
    layer.initialize()
    with mxnet.autograd.record():
        out = layer(mxnet.nd.array(_X))
    mean, var = layer.running_mean, layer.running_var
    same((mean.data().asscalar(), var.data().asscalar()), (0, 1))  # not yet: backward() updates them
    out.backward()
    same(_ours(0.01, unbiased=False), (mean.data().asscalar(), var.data().asscalar()))


def test_11_tensorflow_1_is_unbiased_where_keras_3_is_not(tensorflow: Any) -> None:
    one, zero, x = np.ones(1, np.float32), np.zeros(1, np.float32), _X.reshape(4, 1, 1, 1)
    fused = tensorflow.compat.v1.nn.fused_batch_norm
    out = fused(x, one, zero, zero, one, is_training=True, exponential_avg_factor=0.01)
    same(out[2], [_ours(0.01, unbiased=True)[1]])


def test_10_epsilon_defaults(torch: Any, keras: Any, mxnet: Any, onnx: Any) -> None:
    nn, layers, gluon = torch.nn, keras.layers, mxnet.gluon.nn
    assert nn.BatchNorm1d(1).eps == nn.LayerNorm(1).eps == 1e-5
    assert layers.BatchNormalization().epsilon == layers.LayerNormalization().epsilon == 1e-3
    assert gluon.BatchNorm()._kwargs["eps"] == 1e-5
    for op in ("BatchNormalization", "LayerNormalization"):
        same(onnx.defs.get_schema(op).attributes["epsilon"].default_value.f, 1e-5, tolerance=1e-9)
    x = np.array([[1, 2, 4]], np.float32)
    out = mxnet.nd.BatchNorm(*map(mxnet.nd.array, (x, np.ones(3), np.zeros(3), np.zeros(3), np.ones(3))))
    same(out.asnumpy(), x / np.sqrt(1 + 1e-3))  # the operator's default is not the layer's
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(), layers.LayerNormalization()])
    assert [n.attrs["epsilon"] for n in tv.from_keras(model).graph.nodes if "epsilon" in n.attrs] == [1e-3] * 2
    same(tv.layer_norm(x), nn.functional.layer_norm(torch.tensor(x), (3,)))
    same(tv.layer_norm(x, epsilon=1e-3), layers.LayerNormalization()(x))


def test_12_mxnet_fix_gamma_overwrites_gamma(mxnet: Any) -> None:
    gamma, mean, var = mxnet.nd.array([3.0]), mxnet.nd.zeros(1), mxnet.nd.ones(1)
    gamma.attach_grad()
    with mxnet.autograd.record():
        out = mxnet.nd.BatchNorm(mxnet.nd.array(_X), gamma, mxnet.nd.zeros(1), mean, var)
    out.backward(mxnet.nd.array(_X))
    assert gamma.asscalar() == 1 and gamma.grad.asscalar() == 0  # the stored 3 is gone
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    ours = tv.batch_norm(_X, None, zero, zero, one, training=True, epsilon=1e-3, unbiased=False)
    same(ours[0], out.asnumpy())


def test_13_frozen_batch_norm(torch: Any, keras: Any) -> None:
    layer = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.trainable = False
    model(_X, training=True)
    assert layer.moving_mean.numpy()[0] == 0  # inference, whatever the mode
    (node,) = (n for n in tv.from_keras(model).graph.nodes if n.op == "batch_norm")
    assert node.attrs["training"] is False
    frozen = torch.nn.BatchNorm1d(1).requires_grad_(False)
    frozen(torch.tensor(_X))
    assert float(frozen.running_mean) == 0.25  # torch goes on counting


# -- activations -------------------------------------------------------------------------------------------
def test_16_softmax_before_opset_13(onnx: Any) -> None:
    x = np.zeros((2, 3, 4), np.float32)
    for opset, value in ((11, 1 / 12), (12, 1 / 12), (13, 1 / 4)):
        theirs = onnx.run("Softmax", x, opset)
        same(theirs, np.full(x.shape, value), tv.from_onnx(onnx.model("Softmax", x, opset))(x))
    same(tv.softmax(x, axis=-1), np.full(x.shape, 1 / 4))


def test_17_gelu_defaults(torch: Any, tensorflow: Any, keras: Any, jax: Any, onnx: Any) -> None:
    x = np.linspace(-6, 6, 12001).astype(np.float32)
    exact, tanh = tv.gelu(x), tv.gelu(x, approximate="tanh")
    gap = np.abs(exact.numpy() - tanh.numpy())
    assert 4.7e-4 < gap.max() < 4.8e-4 and abs(abs(x[gap.argmax()]) - 2.7) < 0.02
    same(exact, torch.nn.functional.gelu(torch.tensor(x)), tensorflow.nn.gelu(x), onnx.run("Gelu", x),
         keras.activations.gelu(x), tolerance=3e-6)  # fmt: skip
    same(tanh, jax.nn.gelu(x), keras.ops.gelu(x), tolerance=3e-6)  # Keras has both defaults


def test_19_leaky_relu_slopes(torch: Any, tensorflow: Any, keras: Any, jax: Any, mxnet: Any, onnx: Any) -> None:
    x = -np.ones(1, np.float32)
    same(tv.leaky_relu(x), [-0.01], torch.nn.functional.leaky_relu(torch.tensor(x)), jax.nn.leaky_relu(x),
         onnx.run("LeakyRelu", x))  # fmt: skip
    same(tv.leaky_relu(x, slope=0.2), tensorflow.nn.leaky_relu(x), keras.ops.leaky_relu(x))
    same(tv.leaky_relu(x, slope=0.3), keras.layers.LeakyReLU()(x))  # the layer is not the function
    same(tv.leaky_relu(x, slope=0.25), mxnet.nd.LeakyReLU(mxnet.nd.array(x)).asnumpy())


# -- optimizers, initial values, indices -----------------------------------------------------------------------
def _descend(optimizer: Any, gradients: Any, rates: Any) -> list[float]:
    p = tv.nn.Parameter(np.ones(1, np.float32), "p")
    found = []
    for g, lr in zip(gradients, rates, strict=True):
        p.grad, optimizer.lr = tv.asarray(np.array([g], np.float32)), lr
        optimizer.step([p])
        found.append(float(p.numpy()[0]))
    return found


def _descend_torch(torch: Any, make: Any, gradients: Any, rates: Any) -> list[float]:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer, found = make([p]), []
    for g, lr in zip(gradients, rates, strict=True):
        p.grad, optimizer.param_groups[0]["lr"] = torch.tensor([g]), lr
        optimizer.step()
        found.append(float(p.detach()))
    return found


def _descend_keras(keras: Any, optimizer: Any, gradients: Any, rates: Any) -> list[float]:
    p, found = keras.Variable(np.ones(1, np.float32)), []
    for g, lr in zip(gradients, rates, strict=True):
        optimizer.learning_rate = lr
        optimizer.apply_gradients([(keras.ops.convert_to_tensor(np.array([g], np.float32)), p)])
        found.append(float(p.numpy()[0]))
    return found


def test_28_adam_epsilon(torch: Any, keras: Any) -> None:
    gradients, rates, epsilon = [1e-3, 2e-3, -1e-3], [0.1] * 3, 1e-3
    ours = _descend(tv.optim.Adam(epsilon=epsilon), gradients, rates)
    same(ours, _descend_torch(torch, lambda p: torch.optim.Adam(p, eps=epsilon), gradients, rates))
    before = _descend_keras(keras, keras.optimizers.Adam(epsilon=epsilon), gradients, rates)
    # Before the correction, epsilon counts 1 / sqrt(1 - beta2 ** t) times as much: 32 times at first.
    first_step = 0.1 * 1e-3 / (1e-3 + epsilon / np.sqrt(1 - 0.999))
    same(1 - before[0], first_step, tolerance=1e-5)
    assert abs(ours[0] - before[0]) > 0.04


def test_30_momentum_when_the_rate_changes(torch: Any, keras: Any) -> None:
    for rates, part in (([0.1] * 3, False), ([0.1, 0.01, 0.01], True)):
        ours = _descend(tv.optim.SGD(momentum=0.9), [1.0] * 3, rates)
        same(ours, _descend_torch(torch, lambda p: torch.optim.SGD(p, 1, momentum=0.9), [1.0] * 3, rates))
        theirs = _descend_keras(keras, keras.optimizers.SGD(1.0, momentum=0.9), [1.0] * 3, rates)
        same(theirs, [0.9, 0.8, 0.7] if part else ours)
        assert (abs(ours[-1] - theirs[-1]) > 0.1) is part


def test_35_initial_values(torch: Any, keras: Any) -> None:
    ours, layer = tv.nn.Linear(100), keras.layers.Dense(100)
    ours(np.zeros((1, 400), np.float32))
    layer.build((None, 400))
    glorot, values = np.sqrt(6 / 500), ours.state_dict()
    for weight, bias in ((values["weight"], values["bias"]), map(np.asarray, (layer.kernel, layer.bias))):
        assert 0.99 * glorot < np.abs(weight).max() <= glorot and not bias.any()
    theirs = torch.nn.Linear(400, 100)
    for tensor in (theirs.weight, theirs.bias):
        assert 0.045 < float(tensor.detach().abs().max()) <= 1 / 20
    wide = keras.initializers.TruncatedNormal(stddev=1.0, seed=0)((100000,)).numpy()
    he = keras.initializers.HeNormal(seed=0)((200, 1000)).numpy() * np.sqrt(200 / 2)
    same(wide.std(), 0.8796, tolerance=0.01)  # itself is not corrected ...
    same(he.std(), 1, tolerance=0.01)  # ... the scaled ones are


def test_37_gather_out_of_bounds(torch: Any, tensorflow: Any, jax: Any, mxnet: Any) -> None:
    x, at = np.array([10, 20, 30], np.float32), np.array([5])
    for take in (tv.take, lambda x, i: torch.tensor(x)[torch.tensor(i)], tensorflow.gather):
        with pytest.raises((IndexError, tensorflow.errors.InvalidArgumentError)):
            take(x, at)
    assert np.isnan(jax.numpy.take(x, at)).all() and jax.numpy.asarray(x)[at][0] == 30
    assert mxnet.nd.take(mxnet.nd.array(x), mxnet.nd.array(at)).asscalar() == 30
