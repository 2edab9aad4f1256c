"""Where frameworks mean different things by the same word: the real ones side by side, and our op.

The numbers in the names are those of the table in docs/decisions.md.
"""

import os
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.frameworks.mxnet.load import load
from trivium.nn.layers import same_padding

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def need(*names: str) -> Any:
    """The frameworks, or a skip that says which is missing."""
    try:
        found = [load() if n == "mxnet" else pytest.importorskip(n) for n in names]
    except ImportError as error:
        pytest.skip(str(error))
    return found if len(found) > 1 else found[0]


def onnx_model(op: str, x: Any, opset: int = 21, **attrs: Any) -> Any:
    h = need("onnx").helper
    x_info, y_info = (h.make_tensor_value_info(n, 1, [None] * x.ndim) for n in "xy")
    graph = h.make_graph([h.make_node(op, ["x"], ["y"], **attrs)], "g", [x_info], [y_info])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=10)


def onnx_run(op: str, x: Any, opset: int = 21, **attrs: Any) -> Any:
    model = onnx_model(op, x, opset, **attrs).SerializeToString()
    session = need("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def same(*arrays: Any, tolerance: float = 1e-6) -> None:
    want, *others = (np.asarray(a) for a in arrays)
    for other in others:
        np.testing.assert_allclose(other, want, rtol=tolerance, atol=tolerance)


def last(x: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))  # channels last


def first(x: Any) -> Any:
    return np.moveaxis(np.asarray(x), -1, 1)  # channels first


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "size, kernel, stride, pads", [(224, 7, 2, (2, 3)), (224, 3, 2, (0, 1)), (5, 3, 2, (1, 1))]
)
def test_01_same_padding(size: int, kernel: int, stride: int, pads: Any, rng: Any) -> None:
    tf, keras = need("tensorflow", "keras")
    x, w = normal(rng, 1, 2, size, 1), normal(rng, 3, 2, kernel, 1)
    layer = keras.layers.Conv2D(3, (kernel, 1), (stride, 1), "same", use_bias=False)
    layer.build((None, size, 1, 2))
    layer.kernel.assign(w.transpose(2, 3, 1, 0))
    raw = tf.nn.conv2d(last(x), w.transpose(2, 3, 1, 0), (stride, 1), "SAME")
    assert same_padding(x, (kernel, 1), (stride, 1), 1, "NCHW") == (pads, (0, 0))
    ours = tv.conv(x, w, stride=(stride, 1), padding=(pads, (0, 0)))
    same(ours, first(raw), first(layer(last(x))), tolerance=1e-5)


def test_01_same_lower_swaps_the_odd_one(rng: Any) -> None:
    x = normal(rng, 1, 1, 4, 4)
    for word, pads in (("SAME_UPPER", (0, 1)), ("SAME_LOWER", (1, 0))):
        theirs = onnx_run("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad=word)
        same(tv.max_pool(x, kernel=3, stride=2, padding=(pads, pads)), theirs)


def test_02_max_pool_pads_with_minus_infinity() -> None:
    torch, tf, keras, mx, jax = need("torch", "tensorflow", "keras", "mxnet", "jax")
    x = -np.ones((1, 1, 3, 3), np.float32)
    window = dict(kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")
    same(
        -np.ones((1, 1, 2, 2)),
        tv.max_pool(x, kernel=3, stride=2, padding=1),
        torch.nn.functional.max_pool2d(torch.tensor(x), 3, 2, 1),
        first(tf.nn.max_pool2d(last(x), 3, 2, "SAME")),
        first(keras.layers.MaxPooling2D(3, 2, "same")(last(x))),
        mx.nd.Pooling(mx.nd.array(x), **window).asnumpy(),
        jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "SAME"),
        onnx_run("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    )


def test_03_average_pool_border() -> None:
    torch, tf, mx = need("torch", "tensorflow", "mxnet")
    x = np.ones((1, 1, 3, 3), np.float32)
    window = dict(kernel=3, stride=1, padding=1)
    inside, counted = (tv.avg_pool(x, **window, include_pad=i).numpy() for i in (False, True))
    same((1, 4 / 9), (inside[0, 0, 0, 0], counted[0, 0, 0, 0]))
    border = onnx_run("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
    same(inside, first(tf.nn.avg_pool2d(last(x), 3, 1, "SAME")), border)
    pooled = mx.nd.Pooling(mx.nd.array(x), kernel=(3, 3), pad=(1, 1), pool_type="avg").asnumpy()
    same(counted, torch.nn.functional.avg_pool2d(torch.tensor(x), 3, 1, 1), pooled)


def test_07_depthwise_kernels_lie_channel_by_multiplier(rng: Any) -> None:
    x = normal(rng, 1, 5, 6, 2)
    layer = need("keras").layers.DepthwiseConv2D((3, 2), depth_multiplier=3)
    theirs, kernel = layer(x), np.asarray(layer.kernel)
    assert kernel.shape == (3, 2, 2, 3)  # (h, w, channel, multiplier)
    w = kernel.transpose(2, 3, 0, 1).reshape(6, 1, 3, 2)
    same(tv.conv(x, w, groups=2, layout="NHWC"), theirs)


def test_08_flatten_and_dense(rng: Any) -> None:
    mx, torch, keras = need("mxnet", "torch", "keras")
    x = normal(rng, 2, 3, 4)
    dense = mx.gluon.nn.Dense(5)  # flattens, unless told flatten=False
    dense.initialize()
    theirs, weight = dense(mx.nd.array(x)).asnumpy(), dense.weight.data().asnumpy()
    assert theirs.shape == (2, 5) and weight.shape == (5, 12)
    same(tv.linear(tv.flatten(x, start=1), weight), theirs, tolerance=1e-5)
    assert keras.layers.Dense(5)(x).shape == torch.nn.Linear(4, 5)(torch.tensor(x)).shape
    # And the order in which images are flattened is their layout's.
    image, w = normal(rng, 2, 3, 4, 5), normal(rng, 6, 60)
    moved = w.reshape(6, 3, 4, 5).transpose(0, 2, 3, 1).reshape(6, 60)
    flat = np.asarray(keras.layers.Flatten()(last(image)))
    same(tv.linear(tv.flatten(image, start=1), w), tv.linear(flat, moved), tolerance=1e-5)


X = np.array([1, 2, 3, 4], np.float32).reshape(4, 1)
BIASED, UNBIASED = (0.025, 1.0025), (0.025, 1.0066667)


def test_09_momentum_and_11_running_variance() -> None:
    torch, tf, keras, mx = need("torch", "tensorflow", "keras", "mxnet")
    for unbiased, want in ((True, UNBIASED), (False, BIASED)):
        options = dict(training=True, momentum=0.01, unbiased=unbiased)
        _, mean, var = tv.batch_norm(X, ONE, ZERO, ZERO, ONE, **options)
        same(want, (mean.numpy()[0], var.numpy()[0]))
    t = torch.nn.BatchNorm1d(1, momentum=0.01)
    t(torch.tensor(X))
    same(UNBIASED, (float(t.running_mean), float(t.running_var)))
    k = keras.layers.BatchNormalization(momentum=0.99)
    k(X, training=True)
    same(BIASED, (k.moving_mean.numpy()[0], k.moving_variance.numpy()[0]))
    fused = tf.compat.v1.nn.fused_batch_norm  # TF's own kernel, other than Keras 3
    options = dict(is_training=True, exponential_avg_factor=0.01)
    same(UNBIASED[1], fused(X.reshape(4, 1, 1, 1), ONE, ZERO, ZERO, ONE, **options)[2][0])
    m = mx.gluon.nn.BatchNorm(momentum=0.99)
    m.initialize()
    with mx.autograd.record():
        out = m(mx.nd.array(X))
    same((0, 1), [v.data().asscalar() for v in (m.running_mean, m.running_var)])  # not yet:
    out.backward()  # MXNet updates its statistics on the way back
    same(BIASED, [v.data().asscalar() for v in (m.running_mean, m.running_var)])


def test_10_epsilon_defaults() -> None:
    torch, keras, mx, onnx = need("torch", "keras", "mxnet", "onnx")
    nn, layers = torch.nn, keras.layers
    assert layers.BatchNormalization().epsilon == layers.LayerNormalization().epsilon == 1e-3
    assert mx.gluon.nn.BatchNorm()._kwargs["eps"] == nn.BatchNorm1d(1).eps == 1e-5
    schema = onnx.defs.get_schema("BatchNormalization")
    same(schema.attributes["epsilon"].default_value.f, 1e-5, tolerance=1e-9)
    x = np.array([[1, 2, 4]], np.float32)
    arrays = map(mx.nd.array, (x, np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)))
    same(mx.nd.BatchNorm(*arrays).asnumpy(), x / np.sqrt(1 + 1e-3))  # not the layer's default
    model = keras.Sequential([keras.Input((3,)), layers.LayerNormalization()])
    same(tv.from_keras(model)(x), layers.LayerNormalization()(x))
    same(tv.layer_norm(x), nn.functional.layer_norm(torch.tensor(x), (3,)))


def test_12_mxnet_fix_gamma_overwrites_gamma() -> None:
    mx = need("mxnet")
    gamma, mean, var = mx.nd.array([3.0]), mx.nd.zeros(1), mx.nd.ones(1)
    gamma.attach_grad()
    with mx.autograd.record():
        out = mx.nd.BatchNorm(mx.nd.array(X), gamma, mx.nd.zeros(1), mean, var)
    out.backward(mx.nd.array(X))
    assert gamma.asscalar() == 1 and gamma.grad.asscalar() == 0  # the stored 3 is gone
    ours = tv.batch_norm(X, None, ZERO, ZERO, ONE, training=True, epsilon=1e-3, unbiased=False)
    same(ours[0], out.asnumpy())


def test_13_frozen_batch_norm() -> None:
    torch, keras = need("torch", "keras")
    layer = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.trainable = False
    model(X, training=True)
    assert layer.moving_mean.numpy()[0] == 0  # inference, whatever the mode
    read: Any = tv.from_keras(model)
    assert [n.attrs["training"] for n in read.graph.nodes if n.op == "batch_norm"] == [False]
    frozen = torch.nn.BatchNorm1d(1).requires_grad_(False)
    frozen(torch.tensor(X))
    assert float(frozen.running_mean) == 0.25  # torch goes on counting


def test_16_softmax_before_opset_13() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    for opset, value in ((11, 1 / 12), (12, 1 / 12), (13, 1 / 4)):
        ours = tv.from_onnx(onnx_model("Softmax", x, opset))(x)
        same(np.full(x.shape, value), onnx_run("Softmax", x, opset), ours)


def test_17_gelu_defaults() -> None:
    torch, tf, keras, jax = need("torch", "tensorflow", "keras", "jax")
    x = np.linspace(-6, 6, 12001).astype(np.float32)
    exact, tanh = tv.gelu(x).numpy(), tv.gelu(x, approximate="tanh").numpy()
    gap = np.abs(exact - tanh)
    assert 4.7e-4 < gap.max() < 4.8e-4 and abs(abs(x[gap.argmax()]) - 2.7) < 0.02
    theirs = keras.activations.gelu(x), torch.nn.functional.gelu(torch.tensor(x))
    same(exact, *theirs, tf.nn.gelu(x), onnx_run("Gelu", x), tolerance=3e-6)
    same(tanh, jax.nn.gelu(x), keras.ops.gelu(x), tolerance=3e-6)  # Keras has both defaults


def test_19_leaky_relu_slopes() -> None:
    torch, tf, keras, jax, mx = need("torch", "tensorflow", "keras", "jax", "mxnet")
    x, f = -ONE, torch.nn.functional.leaky_relu
    small = f(torch.tensor(x)), jax.nn.leaky_relu(x), onnx_run("LeakyRelu", x)
    same(tv.leaky_relu(x), [-0.01], *small)
    same(tv.leaky_relu(x, slope=0.2), tf.nn.leaky_relu(x), keras.ops.leaky_relu(x))
    same(tv.leaky_relu(x, slope=0.3), keras.layers.LeakyReLU()(x))  # the layer is not the function
    same(tv.leaky_relu(x, slope=0.25), mx.nd.LeakyReLU(mx.nd.array(x)).asnumpy())


def descend(optimizer: Any, gradients: Any, rates: Any) -> list[float]:
    keras, tf = need("keras", "tensorflow")
    ours = isinstance(optimizer, tv.optim.Optimizer)
    p, found = tv.nn.Parameter(ONE.copy(), "p") if ours else keras.Variable(ONE), []
    for g, lr in zip(gradients, rates, strict=True):
        if ours:
            p.grad, optimizer.lr = tv.asarray(g * ONE), lr
            optimizer.step([p])
        else:
            optimizer.learning_rate = lr
            optimizer.apply_gradients([(tf.constant(g * ONE), p)])
        found.append(float(p.numpy()[0]))
    return found


def descend_torch(name: str, gradients: Any, rates: Any, **options: Any) -> list[float]:
    torch = need("torch")
    p, found = torch.nn.Parameter(torch.ones(1)), []
    optimizer = getattr(torch.optim, name)([p], **options)
    for g, lr in zip(gradients, rates, strict=True):
        p.grad, optimizer.param_groups[0]["lr"] = torch.tensor([g]), lr
        optimizer.step()
        found.append(float(p.detach()))
    return found


def test_28_adam_epsilon() -> None:
    keras = need("keras")
    run, epsilon = ([1e-3, 2e-3, -1e-3], [0.1] * 3), 1e-3
    ours = descend(tv.optim.Adam(epsilon=epsilon), *run)
    same(ours, descend_torch("Adam", *run, eps=epsilon))
    before = descend(keras.optimizers.Adam(epsilon=epsilon), *run)
    # Before the correction epsilon counts 1 / sqrt(1 - beta2 ** t) times: 32 times at first.
    same(1 - before[0], 0.1 * 1e-3 / (1e-3 + epsilon / np.sqrt(1 - 0.999)), tolerance=1e-5)
    assert abs(ours[0] - before[0]) > 0.04


def test_30_momentum_when_the_rate_changes() -> None:
    keras = need("keras")
    for rates, part in (([0.1] * 3, False), ([0.1, 0.01, 0.01], True)):
        ours = descend(tv.optim.SGD(momentum=0.9), [1.0] * 3, rates)
        same(ours, descend_torch("SGD", [1.0] * 3, rates, momentum=0.9))
        theirs = descend(keras.optimizers.SGD(1.0, momentum=0.9), [1.0] * 3, rates)
        same(theirs, [0.9, 0.8, 0.7] if part else ours)


def test_35_initial_values() -> None:
    torch, keras = need("torch", "keras")
    ours, layer, theirs = tv.nn.Linear(100), keras.layers.Dense(100), torch.nn.Linear(400, 100)
    ours(np.zeros((1, 400), np.float32))
    layer.build((None, 400))
    for w, b in (ours.state_dict().values(), (layer.kernel.numpy(), layer.bias.numpy())):
        assert 0.99 < np.abs(w).max() / np.sqrt(6 / 500) <= 1 and not b.any()  # glorot
    for tensor in (theirs.weight, theirs.bias):
        assert 0.045 < float(tensor.detach().abs().max()) <= 1 / 20
    wide = keras.initializers.TruncatedNormal(stddev=1.0, seed=0)((100000,)).numpy()
    he = keras.initializers.HeNormal(seed=0)((200, 1000)).numpy() * np.sqrt(200 / 2)
    same((wide.std(), he.std()), (0.8796, 1), tolerance=0.01)  # only the scaled ones are corrected


def test_37_gather_out_of_bounds() -> None:
    torch, tf, jax, mx = need("torch", "tensorflow", "jax", "mxnet")
    x, at = np.array([10, 20, 30], np.float32), np.array([5])
    for take in (tv.take, lambda x, i: torch.tensor(x)[torch.tensor(i)], tf.gather):
        with pytest.raises((IndexError, tf.errors.InvalidArgumentError)):
            take(x, at)
    assert np.isnan(jax.numpy.take(x, at)).all() and jax.numpy.asarray(x)[at][0] == 30  # clipped
    assert mx.nd.take(mx.nd.array(x), mx.nd.array(at)).asscalar() == 30
