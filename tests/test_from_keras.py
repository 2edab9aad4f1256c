"""Keras models read as Graphs: the same outputs, gradients and statistics as Keras itself."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

import trivium as tv  # noqa: E402
from trivium.frameworks.keras.layers import FORMS, same_pad  # noqa: E402
from trivium.frameworks.keras.open import opened, read  # noqa: E402
from trivium.graph import MODE, OPS, Graph, UnsupportedError  # noqa: E402
from trivium.interpret import Interpreter  # noqa: E402
from trivium.nn.module import GraphModule, Spec  # noqa: E402
from trivium.op import Op  # noqa: E402
from trivium.transforms.grad import gradient  # noqa: E402

if keras.backend.backend() != "tensorflow":
    pytest.skip("Keras runs on another backend here", allow_module_level=True)

L, ops = keras.layers, keras.ops
Layer, Model, Input = keras.Layer, keras.Model, keras.Input


# -- how two sides are compared --------------------------------------------------------------------
def randomise(model: Any, seed: int = 0) -> Any:
    """Every weight its own number, variances positive."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        low, high = (0.5, 1.5) if "variance" in v.name or "gamma" in v.name else (-0.5, 0.5)
        if "float" in v.dtype:
            v.assign(rng.uniform(low, high, v.shape))
    return model


def draw(shape: tuple[int, ...], dtype: str = "float32", seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 5, shape).astype(dtype)
        if "int" in dtype
        else rng.standard_normal(shape, "f")
    )


def run(module: GraphModule, *data: Any, training: bool = False) -> list[Any]:
    """Outputs, then what the states become, in float64."""
    given = iter(data)
    arrays = [
        next(given) if v.kind == "data"
        else np.array([1, 2], np.uint64) if v.kind == "rng"
        else module.state_dict()[v.name]
        for v in module.graph.inputs
    ]  # fmt: skip
    return Interpreter(module.graph, tv.float64, training=training)(*arrays)


def agree(
    model: Any, *data: Any, module: GraphModule | None = None, tolerance: float = 2e-5
) -> GraphModule:
    """The model read, and compared with what Keras computes for ``data``."""
    module = module or read(model)
    assert str(tv.parse(str(module.graph))) == str(module.graph)
    result = model(data[0] if len(data) == 1 else list(data), training=False)
    if isinstance(result, dict):
        result = [result[name] for name in module.graph.structure]
    theirs = result if isinstance(result, list) else [result]
    ours = run(module, *data)[: len(theirs)]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=tolerance, atol=tolerance)
    assert set(module.source_names) == {v.name for v in module.graph.of_kind("param", "state")}
    return module


def one(layer: Any, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return randomise(keras.Sequential([Input(shape, dtype=dtype), layer]))


# -- every layer, by itself ------------------------------------------------------------------------
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Dense": (lambda: L.Dense(4), (5,)),
    "Dense-3d": (lambda: L.Dense(4, use_bias=False, activation="tanh"), (3, 5)),
    "Conv1D": (lambda: L.Conv1D(4, 3), (9, 2)),
    "Conv1D-causal": (lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2), (9, 2)),
    "Conv2D": (lambda: L.Conv2D(4, (3, 2)), (7, 6, 3)),
    "Conv2D-same": (
        lambda: L.Conv2D(4, 3, strides=2, padding="same", activation="relu"), (8, 7, 3)),
    "Conv2D-same-7": (lambda: L.Conv2D(2, 7, strides=2, padding="same"), (12, 9, 3)),
    "Conv2D-rest": (
        lambda: L.Conv2D(
            6, (2, 3), dilation_rate=(2, 1), groups=2, use_bias=False, padding="same"), (7, 5, 4)),
    "Conv2D-first": (
        lambda: L.Conv2D(4, (3, 2), strides=(1, 2), data_format="channels_first"), (3, 7, 6)),
    "Conv3D": (lambda: L.Conv3D(4, (1, 2, 3), padding="same"), (3, 5, 4, 2)),
    "DepthwiseConv1D": (lambda: L.DepthwiseConv1D(3, depth_multiplier=2), (9, 4)),
    "DepthwiseConv2D": (lambda: L.DepthwiseConv2D(3, padding="same", strides=2), (7, 6, 3)),
    "DepthwiseConv2D-M": (lambda: L.DepthwiseConv2D((2, 3), depth_multiplier=3), (7, 6, 2)),
    "SeparableConv1D": (lambda: L.SeparableConv1D(4, 3, activation="relu"), (9, 3)),
    "SeparableConv2D": (
        lambda: L.SeparableConv2D(5, 3, depth_multiplier=2, padding="same"), (7, 6, 3)),
    "BatchNormalization": (lambda: L.BatchNormalization(), (5, 4, 3)),
    "BatchNormalization-rest": (
        lambda: L.BatchNormalization(axis=1, momentum=0.8, epsilon=0.1, scale=False), (5, 4, 3)),
    "LayerNormalization": (lambda: L.LayerNormalization(), (4, 5)),
    "LayerNormalization-rest": (
        lambda: L.LayerNormalization(axis=[2, 3], epsilon=0.1, center=False), (2, 4, 5)),
    "Embedding": (lambda: L.Embedding(5, 3), (4,)),
    "SimpleRNN": (lambda: L.SimpleRNN(4), (6, 3)),
    "SimpleRNN-sequences": (
        lambda: L.SimpleRNN(4, return_sequences=True, activation="relu", use_bias=False), (6, 3)),
    "SimpleRNN-backwards": (
        lambda: L.SimpleRNN(4, return_sequences=True, go_backwards=True), (6, 3)),
    "MaxPooling1D": (lambda: L.MaxPooling1D(2), (7, 3)),
    "MaxPooling2D": (lambda: L.MaxPooling2D((2, 3), strides=2, padding="same"), (7, 6, 3)),
    "MaxPooling3D": (lambda: L.MaxPooling3D(2), (4, 5, 6, 2)),
    "AveragePooling1D": (lambda: L.AveragePooling1D(3, strides=2, padding="same"), (8, 3)),
    "AveragePooling2D": (lambda: L.AveragePooling2D(2), (7, 6, 3)),
    "AveragePooling2D-same": (
        lambda: L.AveragePooling2D(3, strides=1, padding="same"), (5, 4, 3)),
    "AveragePooling2D-first": (
        lambda: L.AveragePooling2D((3, 2), padding="same", data_format="channels_first"),
        (3, 5, 7)),
    "GlobalAveragePooling2D": (lambda: L.GlobalAveragePooling2D(), (5, 4, 3)),
    "GlobalAveragePooling1D": (lambda: L.GlobalAveragePooling1D(keepdims=True), (5, 4)),
    "GlobalMaxPooling2D": (lambda: L.GlobalMaxPooling2D(data_format="channels_first"), (5, 4, 3)),
    "ReLU": (lambda: L.ReLU(), (4,)),
    "ReLU-6": (lambda: L.ReLU(max_value=1.5, negative_slope=0.1), (40,)),
    "LeakyReLU": (lambda: L.LeakyReLU(), (4,)),
    "PReLU": (lambda: L.PReLU(shared_axes=[1, 2]), (5, 4, 3)),
    "PReLU-each": (lambda: L.PReLU(), (4,)),
    "ELU": (lambda: L.ELU(alpha=0.7), (4,)),
    "Softmax": (lambda: L.Softmax(axis=1), (3, 4)),
    "Flatten": (lambda: L.Flatten(), (3, 4, 2)),
    "Flatten-first": (lambda: L.Flatten(data_format="channels_first"), (3, 4, 2)),
    "ZeroPadding1D": (lambda: L.ZeroPadding1D((1, 2)), (3, 4)),
    "ZeroPadding2D": (lambda: L.ZeroPadding2D(((1, 0), (2, 3))), (3, 4, 2)),
    "ZeroPadding2D-first": (lambda: L.ZeroPadding2D(1, data_format="channels_first"), (3, 4, 2)),
    "Cropping2D": (lambda: L.Cropping2D(((1, 0), (2, 1))), (5, 6, 2)),
    "UpSampling2D": (lambda: L.UpSampling2D((2, 3)), (3, 4, 2)),
    "Dropout": (lambda: L.Dropout(0.3), (5,)),
    "SpatialDropout2D": (lambda: L.SpatialDropout2D(0.3), (3, 4, 2)),
    "Permute": (lambda: L.Permute((3, 1, 2)), (3, 4, 2)),
    "Reshape": (lambda: L.Reshape((4, -1)), (3, 4, 2)),
    "RepeatVector": (lambda: L.RepeatVector(3), (4,)),
    "Rescaling": (lambda: L.Rescaling([0.1, 0.2, 0.3], offset=-1.0), (5, 4, 3)),
    "Normalization": (
        lambda: L.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 2.0]), (5, 3)),
    "UnitNormalization": (lambda: L.UnitNormalization(), (5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    make, shape = LAYERS[name]
    dtype = "int32" if name == "Embedding" else "float32"
    model = one(make(), shape, dtype)
    module = agree(model, draw((3, *shape), dtype))
    agree(model, draw((1, *shape), dtype), module=module)


ACTIVATIONS = [
    "relu", "relu6", "leaky_relu", "elu", "selu", "sigmoid", "tanh", "silu", "gelu", "softplus",
    "softsign", "exponential", "hard_sigmoid", "hard_silu", "mish", "softmax", "log_softmax",
    "log_sigmoid", "linear",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    x = np.linspace(-7, 7, 21, dtype="f").reshape(3, 7)
    agree(one(L.Activation(name), (7,)), x)
    agree(one(L.Dense(5, activation=name), (7,)), x)


def test_activation_scope() -> None:
    module = read(keras.Sequential([Input((3,)), L.Dense(2, activation="relu", name="fc")]))
    assert [(n.op, n.scope) for n in module.graph.nodes] == [("linear", "fc"), ("relu", "fc")]


# -- forms written ---------------------------------------------------------------------------------
def cases() -> list[Any]:
    found = []
    for form in FORMS:
        op = OPS[form.op]
        assert isinstance(op, Op)
        found += [pytest.param(form, c, id=f"{form.layer}-{i}") for i, c in enumerate(op.cases)]
    return found


@pytest.mark.parametrize("form, case", cases())
def test_written_layer_is_exact(form: Any, case: Any) -> None:
    """Wherever a form agrees to be a layer, that layer computes what the op does."""
    op = OPS[form.op]
    rng = np.random.default_rng(0)
    arrays = [None if s is None else s.array(rng) for s in case.arrays]
    graph = Graph()
    with graph:
        values = [None if a is None else graph.input("data", a.dtype, a.shape, f"x{i}")
                  for i, a in enumerate(arrays)]  # fmt: skip
        attrs = case.attrs | ({"training": MODE} if "training" in op.defaults else {})
        out = op.trace(graph, *op.bind(values, attrs))
        graph.outputs = [out[0] if isinstance(out, tuple) else out]
    node = graph.nodes[-1]
    kwargs = form.write(node)
    if kwargs is None:
        return
    layer = getattr(L, form.layer.removeprefix("layers."))(**kwargs)
    names = {w.array for w in form.weights}
    data = next(a for n, a in zip(op.arrays[: len(arrays)], arrays, strict=True) if n not in names)
    layer.build(data.shape)
    for w in form.weights:
        array = arrays[op.arrays.index(w.array)] if op.arrays.index(w.array) < len(arrays) else None
        if array is not None:
            holder, _, leaf = w.theirs.rpartition(".")
            variable = getattr(getattr(layer, holder) if holder else layer, leaf)
            variable.assign(w.to(array))
            np.testing.assert_array_equal(w.back(np.asarray(variable)), array)
    inputs = [a for a in arrays if a is not None]
    expected = Interpreter(graph, tv.float64, training=False)(*inputs)[0]
    np.testing.assert_allclose(np.asarray(layer(data)), expected, rtol=2e-5, atol=2e-5)


def written(op: str, *shapes: Any, **attrs: Any) -> list[str]:
    """The layers that agree to be this op."""
    graph = Graph()
    with graph:
        values = [None if s is None else graph.input("data", "float32", s, f"x{i}")
                  for i, s in enumerate(shapes)]  # fmt: skip
        out = OPS[op](*values, **attrs)
        graph.outputs = list(out) if isinstance(out, tuple) else [out]
    return [f.layer for f in FORMS if f.op == op and f.write(graph.nodes[-1]) is not None]


def test_not_written_when_inexact() -> None:
    image, c = ("batch", 8, 8, 3), (3,)
    kernel = (4, 3, 3, 3)
    assert written("batch_norm", image, c, c, c, c, axis=3, training=MODE) == []  # unbiased
    assert written("batch_norm", image, c, c, c, c, axis=3, training=MODE, unbiased=False)
    assert (
        written("conv", image, kernel, stride=2, padding=1, layout="NHWC") == []
    )  # SAME is (0, 1)
    same = dict(stride=2, padding=((0, 1), (0, 1)), layout="NHWC")
    assert written("conv", image, kernel, **same) == ["layers.Conv2D"]
    assert written("conv", ("batch", "h", "w", 3), kernel, **same) == []  # SAME depends on h and w
    assert written("conv", image, kernel, stride=2, dilation=2, layout="NHWC") == []
    assert written("avg_pool", image, kernel=3, stride=1, padding=1, layout="NHWC") == []
    assert written(
        "avg_pool", image, kernel=3, stride=1, padding=1, layout="NHWC", include_pad=False
    )
    assert written("max_pool", image, kernel=2, dilation=2, layout="NHWC") == []
    assert written("rnn", ("batch", 4, 3), (5, 3), (5, 5), (5,), (5,)) == []  # two biases


# -- models ----------------------------------------------------------------------------------------
def cnn() -> Any:
    x = inputs = Input((9, 7, 3), name="image")
    x = L.Conv2D(4, 3, strides=2, padding="same", name="layer1.0.conv1")(x)
    y = x = L.BatchNormalization(momentum=0.9, name="layer1.0.bn1")(x)
    x = L.DepthwiseConv2D(3, padding="same", activation="relu", name="layer1.0.conv2")(x)
    x = L.Add(name="sum")([x, y])
    x = L.AveragePooling2D(2, padding="same")(x)
    x = L.Flatten()(x)
    return randomise(Model(inputs, L.Dense(3, activation="softmax", name="fc")(x)))


def test_names_and_open_batch() -> None:
    module = agree(cnn(), draw((3, 9, 7, 3)))
    agree(cnn(), draw((1, 9, 7, 3)), module=module)
    assert str(module.graph.inputs[0].shape[0]) == "batch"
    names = {v.name: module.source_names[v.name] for v in module.graph.of_kind("param")}
    assert names["layer1.0.conv1.weight"] == "layer1.0.conv1/kernel"
    assert names["layer1.0.bn1.bias"] == "layer1.0.bn1/beta"
    assert module.graph.nodes[0].scope == "layer1.0.conv1"


def test_gradients() -> None:
    model, x, y = cnn(), draw((3, 9, 7, 3)), draw((3, 3), seed=2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    theirs = dict(zip((v.path for v in model.trainable_variables),
                      tape.gradient(loss, model.trainable_variables), strict=True))  # fmt: skip
    module = read(model)

    def objective(x: Any, y: Any) -> Any:
        return tv.mse_loss(module(x), y)

    graph = gradient(tv.trace(objective, Spec("float32", ("batch", 9, 7, 3)),
                              Spec("float32", ("batch", 3)), training=True))  # fmt: skip
    state = module.state_dict()
    arrays = [{"x0": x, "x1": y}.get(v.name, state.get(v.name)) for v in graph.inputs]
    results = Interpreter(graph, tv.float64)(*arrays)
    assert results[0] == pytest.approx(float(loss), rel=1e-5)
    params = graph.of_kind("param")
    assert len(params) == len(theirs) == 8
    by_name = {f"{f.layer.removeprefix('layers.')}.{w.theirs}": w for f in FORMS for w in f.weights}
    kinds = {la.name: type(la).__name__ for la in model.layers}
    for value, ours in zip(params, results[1 : 1 + len(params)], strict=True):
        path = module.source_names[value.name]
        layer, _, leaf = path.rpartition("/")
        back = by_name[f"{kinds[layer]}.{leaf}"].back
        np.testing.assert_allclose(
            ours, back(theirs[path].numpy()), rtol=1e-4, atol=1e-6, err_msg=path
        )


@pytest.mark.parametrize("axis", [-1, 1])
def test_statistics_while_training(axis: int) -> None:
    shared = L.BatchNormalization(axis=axis, momentum=0.7, name="bn")
    inputs = Input((5, 4, 3))
    model = randomise(Model(inputs, shared(ops.exp(shared(inputs)))))
    module, x = read(model), draw((2, 5, 4, 3))
    y, mean, variance = run(module, x, training=True)
    np.testing.assert_allclose(y, np.asarray(model(x, training=True)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, np.asarray(shared.moving_mean), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, np.asarray(shared.moving_variance), rtol=1e-5, atol=1e-6)


def test_running_variance_is_the_biased_one() -> None:
    model = keras.Sequential([Input((1,)), L.BatchNormalization()])
    x = np.array([[1.0], [2.0], [3.0], [4.0]], "f")
    variance = run(read(model), x, training=True)[2]
    model(x, training=True)
    assert variance[0] == pytest.approx(1.0025)
    assert float(model.layers[0].moving_variance[0]) == pytest.approx(1.0025)


def test_frozen_batch_norm_infers() -> None:
    layer = L.BatchNormalization(trainable=False)
    model = one(layer, (3,))
    layer.trainable = False
    module, x = read(model), draw((4, 3))
    assert not module.graph.updates
    theirs = np.asarray(model(x, training=True))
    np.testing.assert_allclose(run(module, x, training=True)[0], theirs, rtol=1e-5, atol=1e-6)


def test_functional_overrules_training_false() -> None:
    """In Keras 3 a functional model's mode wins over the mode its layers were called with."""
    inputs = Input((3,))
    model = randomise(Model(inputs, L.BatchNormalization()(inputs, training=False)))
    module, x = read(model), draw((4, 3))
    theirs = np.asarray(model(x, training=True))
    np.testing.assert_allclose(run(module, x, training=True)[0], theirs, rtol=1e-4, atol=1e-5)
    assert module.graph.nodes[0].attrs["training"] is MODE


def test_same_padding() -> None:
    assert [same_pad(*a) for a in ((224, 7, 2, 1), (224, 3, 2, 1), (5, 3, 2, 1))] == [
        (2, 3), (0, 1), (1, 1)
    ]  # fmt: skip
    for n in range(4, 11):
        for k, s, d in ((3, 2, 1), (2, 3, 1), (5, 2, 1), (3, 1, 2), (1, 2, 1)):
            model = one(L.Conv1D(2, k, strides=s, dilation_rate=d, padding="same"), (n, 2))
            agree(model, draw((1, n, 2)))


def test_max_pool_pads_with_minus_infinity() -> None:
    model = one(L.MaxPooling2D(3, strides=1, padding="same"), (4, 5, 2))
    agree(model, -1 - np.abs(draw((2, 4, 5, 2))))


def test_gradients_where_they_jump() -> None:
    """At ties and corners TensorFlow makes choices of its own; the ops make the same."""
    x = np.array([[-1, 0, 0, 1.5], [1.5, 1.5, 6, 6], [6, 7, 6, 7], [0, 0, 6, 1]], "f")[
        None, ..., None
    ]
    layers = [L.MaxPooling2D(2), L.ReLU(), L.ReLU(6), L.ReLU(1.5), L.ReLU(negative_slope=0.3),
              L.GlobalMaxPooling2D(), L.ELU(), L.LeakyReLU()]  # fmt: skip
    for layer in layers:
        model, at = one(layer, (4, 4, 1)), tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(at)
            total = tf.reduce_sum(model(at))
        module = read(model)
        graph = tv.trace(lambda x, m=module: tv.sum(m(x)), Spec("float32", ("batch", 4, 4, 1)))
        ours = Interpreter(gradient(graph, ["x0"]))(x)[1]
        np.testing.assert_allclose(ours, tape.gradient(total, at), err_msg=repr(layer))


def test_normalize_bounds_the_norm() -> None:
    """Keras's L2 normalisation; tf.nn.l2_normalize bounds the square and gives a tenth of it."""
    x = np.array([[3e-8, 4e-8], [3.0, 4.0]], "f")
    inputs = Input((2,))
    model = Model(inputs, ops.normalize(inputs, axis=-1))
    np.testing.assert_allclose(run(read(model), x)[0], [[0.3, 0.4], [0.6, 0.8]], rtol=1e-5)
    agree(model, x)


def test_average_pool_leaves_pads_out() -> None:
    model = one(L.AveragePooling2D(3, strides=1, padding="same"), (3, 3, 1))
    assert run(read(model), np.ones((1, 3, 3, 1), "f"))[0][0, 0, 0, 0] == 1


def test_open_spatial_size() -> None:
    module = agree(one(L.Conv2D(2, 3, padding="same"), (None, None, 3)), draw((2, 7, 5, 3)))
    assert [str(s) for s in module.graph.inputs[0].shape] == ["batch", "dim1", "dim2", "3"]
    with pytest.raises(UnsupportedError, match="open size"):
        read(one(L.Conv2D(2, 3, strides=2, padding="same"), (None, None, 3)))


def test_nested_shared_and_many() -> None:
    a, b = Input((4,), name="a"), Input((4,), name="b")
    inner_in = Input((4,))
    inner = Model(inner_in, L.Dense(3, activation="tanh", name="fc")(inner_in), name="tower")
    x, y = inner(a), inner(b)
    z = L.Concatenate(name="both")([x, y])
    outer = Model([a, b], {"sum": L.Dense(2, name="head")(z), "gap": x - y})
    module = agree(randomise(outer), draw((3, 4)), draw((3, 4), seed=2))
    assert sorted(module.source_names) == [
        "head.bias",
        "head.weight",
        "tower.fc.bias",
        "tower.fc.weight",
    ]
    assert [v.name for v in module.graph.of_kind("data")] == ["a", "b"]
    assert [n.scope for n in module.graph.nodes].count("tower.fc") == 4
    result = module(draw((3, 4)), draw((3, 4), seed=2))
    assert set(result) == {"sum", "gap"}


def test_operations() -> None:
    a, b = Input((4, 6)), Input((6,))
    y = ops.matmul(a, ops.transpose(a, (0, 2, 1))) / 3.0
    z = ops.where(y > 0, ops.sqrt(ops.abs(y) + 1), -(y**2))
    parts = ops.split(ops.concatenate([a, a * 2], axis=-1), 3, axis=-1)
    more = ops.stack([parts[0], ops.flip(parts[1], axis=1)], axis=1)
    outputs = [
        ops.softmax(z, axis=1), ops.mean(more, axis=(1, 2)),
        ops.max(parts[2], axis=1, keepdims=True),
        1 - b, ops.clip(b, -0.5, 0.5), ops.expand_dims(b, 1) + a, a[:, 1:, ::2], a[:, -1],
        ops.reshape(a, (-1, 3, 8)), ops.squeeze(ops.expand_dims(a, 2), 2), ops.swapaxes(a, 1, 2),
        ops.moveaxis(a, 1, -1), ops.repeat(a, 2, axis=1), ops.pad(a, ((0, 0), (1, 0), (0, 2))),
        ops.argmax(a, axis=-1), ops.cast(ops.argmax(b, axis=-1), "float32"), ops.var(a, axis=-1),
        ops.logsumexp(a, axis=1), ops.rsqrt(ops.exp(b)), ops.one_hot(ops.argmax(b, axis=-1), 6),
        ops.std(a, axis=(1, 2)), ops.maximum(b, 0.1), ops.take(a, 2, axis=1), ops.leaky_relu(b),
        ops.sum(ops.log1p(ops.square(a))), ops.gelu(b), ops.gelu(b, approximate=False),
        ops.average_pool(a, 2, 1, "same"), ops.max_pool(a, 2), ops.stop_gradient(b),
    ]  # fmt: skip
    agree(Model([a, b], outputs), draw((3, 4, 6)), draw((3, 6), seed=2))


def test_sequential_built_by_a_batch() -> None:
    model = keras.Sequential([L.Dense(4), L.Dense(2)])
    model(draw((5, 3)))
    agree(randomise(model), draw((2, 3)))


# -- subclassed ------------------------------------------------------------------------------------
@keras.saving.register_keras_serializable("test")
class Scale(Layer):
    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        self.count = self.add_weight(shape=(), name="count", trainable=False)

    def call(self, x: Any) -> Any:
        return x * self.gamma + self.count


class Block(Layer):
    def __init__(self, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense, self.norm = L.Dense(width, name="dense"), L.BatchNormalization(name="norm")
        self.drop, self.scale = L.Dropout(0.2, name="drop"), Scale(name="scale")

    def call(self, x: Any, training: Any = None) -> Any:
        y = self.norm(self.dense(x), training=training)
        return x + self.scale(ops.relu(self.drop(y)))


class Net(Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(4, name=f"block{i}") for i in range(2)]
        self.head = keras.Sequential([L.Dense(3, name="fc"), L.Softmax()], name="head")

    def call(self, x: Any, training: Any = None) -> Any:
        for block in self.blocks:
            x = block(x, training=training)
        return {"logits": self.head(x), "features": x}


def test_subclassed() -> None:
    model = Net()
    x = draw((5, 4))
    module = read(model, x)
    randomise(model)
    module = agree(model, x)
    assert {
        "block0.dense.weight",
        "block1.scale.gamma",
        "block0.norm.running_mean",
        "head.fc.bias",
    } <= set(module.source_names)
    assert module.source_names["block1.scale.gamma"] == "net/block1/scale/gamma"
    assert set(module.graph.structure) == {"logits", "features"}
    modes = {n.op: n.attrs["training"] for n in module.graph.nodes if "training" in n.attrs}
    assert modes == {"batch_norm": MODE, "dropout": MODE}
    assert len(module.graph.updates) == 4
    kinds = {v.name: v.kind for v in module.graph.inputs}
    assert kinds["block0.scale.count"] == "state" and kinds["block0.scale.gamma"] == "param"


def test_following_leaves_no_trace() -> None:
    model = Net()
    model(draw((5, 4)))
    layers = [la for la in model._flatten_layers()]
    before = [(len(la._inbound_nodes), len(la._outbound_nodes)) for la in layers]
    weights = [np.array(v) for v in model.weights]
    read(model)
    assert [(len(la._inbound_nodes), len(la._outbound_nodes)) for la in layers] == before
    for a, b in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


# -- refusals --------------------------------------------------------------------------------------
class Bakes(Layer):
    """Computes with a weight before it meets the input."""

    def build(self, shape: Any) -> None:
        self.s = self.add_weight(shape=(), name="s")

    def call(self, x: Any) -> Any:
        return x * ops.exp(self.s) + self.s


class Noisy(Layer):
    def call(self, x: Any) -> Any:
        return x + keras.random.normal((3,))


class Counts(Layer):
    def build(self, shape: Any) -> None:
        self.n = self.add_weight(shape=(), name="n", trainable=False)

    def call(self, x: Any) -> Any:
        self.n.assign(self.n * 0 + 1)
        return x + 0


class Branches(Layer):
    def call(self, x: Any, training: Any = None) -> Any:
        return x * 2 if training else x


class Loses(Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(ops.sum(x))
        return x + 0


class Borrows(Layer):
    """Computes with a weight of a layer that is not its own."""

    def call(self, x: Any) -> Any:
        return x * ops.exp(self.lent[0]().bias)


def borrowed() -> Any:
    lender, borrower = L.Dense(3, name="lender"), Borrows(name="borrower")
    borrower.lent = (lambda: lender,)
    x = Input((3,))
    lender.build((None, 3))
    return Model(x, borrower(lender(x)))


REFUSALS: dict[str, tuple[Any, str]] = {
    "Lambda": (lambda: L.Lambda(lambda x: x + 1), "Lambda"),
    "Masking": (lambda: L.Masking(), "Masking"),
    "LSTM": (lambda: L.LSTM(2), "LSTM"),
    "Bidirectional": (lambda: L.Bidirectional(L.SimpleRNN(2)), "Bidirectional"),
    "stateful": (lambda: L.SimpleRNN(2, dropout=0.5), "dropout"),
    "rnn-activation": (lambda: L.SimpleRNN(2, activation="sigmoid"), "activation"),
    "renorm": (lambda: L.BatchNormalization(renorm=True), "renorm"),
    "noise": (lambda: L.GaussianNoise(0.1), "GaussianNoise"),
    "bakes": (lambda: Bakes(name="bad"), "Bakes.*at bad"),
    "noisy": (lambda: Noisy(), "draws random"),
    "counts": (lambda: Counts(), "Counts"),
    "branches": (lambda: Branches(), "while training"),
    "loses": (lambda: Loses(), "add_loss"),
    "float16": (lambda: L.Dense(2, dtype="mixed_float16"), "mixed_float16"),
    "transposed": (lambda: L.Conv1DTranspose(2, 3), "Conv1DTranspose"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str) -> None:
    make, match = REFUSALS[name]
    with pytest.raises(UnsupportedError, match=match):
        read(keras.Sequential([Input((4, 3), batch_size=2), make()]))


def test_more_refusals() -> None:
    words = Input((4,), dtype="int32")
    with pytest.raises(UnsupportedError, match="mask_zero"):
        read(Model(words, L.Embedding(5, 3, mask_zero=True)(words)))
    with pytest.raises(UnsupportedError, match="at borrower"):
        read(borrowed())
    x = Input((4,))
    with pytest.raises(UnsupportedError, match="training=True"):
        read(Model(x, L.Dropout(0.5)(x, training=True)))
    with pytest.raises(UnsupportedError, match="not built"):
        read(Net())
    assert len(read(one(Branches(), (3,)), training=False).graph.nodes) == 0


def test_a_layer_without_a_use_is_kept() -> None:
    x = Input((4,))
    model = Model(x, L.Dense(2, name="head")(x))
    model.extra = L.Dense(3, name="extra")
    model.extra.build((None, 4))
    held = {n: a.shape for n, a in read(model).state_dict().items()}
    assert held.pop("extra.kernel") == (4, 3) and held.pop("extra.bias") == (3,)
    assert set(held) == {"head.weight", "head.bias"}


# -- files -----------------------------------------------------------------------------------------
def test_file(tmp_path: Path) -> None:
    model = cnn()
    model.save(tmp_path / "m.keras")
    agree(model, draw((2, 9, 7, 3)), module=opened(tmp_path / "m.keras")[1])
    for suffix in ("m.h5", "none.keras"):
        with pytest.raises(FileNotFoundError):
            opened(tmp_path / suffix)


def test_hostile_files(tmp_path: Path) -> None:
    file = tmp_path / "m.keras"
    keras.Sequential([Input((3,)), L.Lambda(lambda x: x)]).save(file)
    with pytest.raises(UnsupportedError, match="foreign code"):
        opened(file)

    keras.Sequential([Input((3,)), Scale()]).save(file)
    opened(file)
    with zipfile.ZipFile(file) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}

    def rewritten(**changed: bytes) -> Path:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in (
                members | {k.replace("__", "."): v for k, v in changed.items()}
            ).items():
                archive.writestr(name, data)
        return file

    config = members["config.json"]
    with pytest.raises(UnsupportedError, match="foreign code"):
        opened(
            rewritten(
                config__json=config.replace(b"test>Scale", b"test>Other").replace(
                    b'"Scale"', b'"Other"'
                )
            )
        )
    with pytest.raises(UnsupportedError, match="bytes of weights"):
        opened(rewritten(config__json=config.replace(b"[null, 3]", b"[null, 3000000000]")))
    with pytest.raises(UnsupportedError, match=r"holds 'evil\.py'"):
        opened(rewritten(evil__py=b"import os"))
    file.write_bytes(b"no archive")
    with pytest.raises(UnsupportedError, match=r"no \.keras file"):
        opened(file)


# -- a network of the usual size -------------------------------------------------------------------
def test_resnet50() -> None:
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(rng.uniform(-0.3, 0.3, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_mean.shape))
    module = read(model)
    state = module.state_dict()
    for batch in (1, 3):
        x = draw((batch, 64, 64, 3))
        arrays = [x if v.kind == "data" else state[v.name] for v in module.graph.inputs]
        exact = run(module, x)[0]
        ours = Interpreter(module.graph, training=False)(*arrays)[0]
        theirs = np.asarray(model(x, training=False))
        floor = 4 * np.finfo("f").eps
        assert np.abs(ours - exact).max() <= 4 * np.abs(theirs - exact).max() + floor
        assert np.abs(theirs - exact).max() < 1e-5
