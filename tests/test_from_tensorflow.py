"""TensorFlow functions, written by hand, come in: read from their graphs, verified against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import UnsupportedError

tf = pytest.importorskip("tensorflow")


def numbers(*shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return rng.standard_normal(shape).astype(np.float32)


def weight(*shape: int, seed: int = 0, **more: Any) -> Any:
    return tf.Variable(numbers(*shape, seed=seed) * 0.5, **more)


class Linear(tf.Module):
    def __init__(self, inputs: int, outputs: int, activation: Any = tf.identity):
        super().__init__()
        self.w, self.b = weight(inputs, outputs), weight(outputs)
        self.activation = activation

    @tf.function
    def __call__(self, x: Any) -> Any:
        return self.activation(x @ self.w + self.b)


class MLP(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Linear(4, 6, tf.nn.gelu), Linear(6, 5, tf.nn.silu), Linear(5, 3)]

    @tf.function
    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return tf.nn.log_softmax(x)


class CNN(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = weight(3, 3, 2, 4), weight(4)
        self.head = Linear(5 * 5 * 4, 3)

    @tf.function
    def __call__(self, x: Any) -> Any:
        x = tf.nn.conv2d(x, self.kernel, strides=2, padding="SAME")
        x = tf.nn.relu(tf.nn.bias_add(x, self.bias))
        x = tf.nn.max_pool2d(x, 2, 1, "VALID")
        x = tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]]), 2, 1, "SAME")
        return self.head(tf.reshape(x, (tf.shape(x)[0], -1)))


class Elman(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh, self.b = weight(2, 3), weight(3, 3), weight(3)
        self.out = Linear(3, 2)

    @tf.function
    def __call__(self, x: Any) -> Any:
        h = tf.zeros((tf.shape(x)[0], 3))
        for t in range(x.shape[1]):
            h = tf.tanh(x[:, t] @ self.ih + h @ self.hh + self.b)
        return self.out(h)


class BatchNorm(tf.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gamma, self.beta = weight(channels), weight(channels)
        self.mean = weight(channels, trainable=False)
        self.variance = tf.Variable(np.abs(numbers(channels)) + 0.5, trainable=False)

    def __call__(self, x: Any, training: bool = False) -> Any:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = tf.nn.moments(x, list(range(len(x.shape) - 1)))
            self.mean.assign(0.9 * self.mean + 0.1 * mean)
            self.variance.assign(0.9 * self.variance + 0.1 * variance)
        return tf.nn.batch_normalization(x, mean, variance, self.beta, self.gamma, 1e-3)


class Block(tf.Module):
    def __init__(self, channels: int, seed: int):
        super().__init__()
        self.kernels = [weight(3, 3, channels, channels, seed=seed + i) for i in range(2)]
        self.norms = [BatchNorm(channels) for _ in range(2)]

    def __call__(self, x: Any, training: bool = False) -> Any:
        y = x
        for kernel, norm in zip(self.kernels, self.norms, strict=True):
            y = norm(tf.nn.conv2d(tf.nn.relu(y), kernel, 1, "SAME"), training)
        return x + y


class ResNet(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(2, 0), Block(2, 5)]
        self.head = Linear(2, 3)

    @tf.function
    def __call__(self, x: Any, training: bool = False) -> Any:
        for block in self.blocks:
            x = block(x, training)
        return {"largest": tf.reduce_max(x, [1, 2]), "out": self.head(tf.reduce_mean(x, (1, 2)))}


MODELS: dict[str, Any] = {
    "linear": (lambda: Linear(4, 3), numbers(5, 4)),
    "logistic": (lambda: Linear(4, 1, tf.sigmoid), numbers(5, 4)),
    "mlp": (MLP, numbers(5, 4)),
    "cnn": (CNN, numbers(2, 10, 10, 2)),
    "elman": (Elman, numbers(2, 5, 2)),
    "resnet": (ResNet, numbers(3, 6, 6, 2)),
}


def same(module: Any, model: Any, x: Any) -> None:
    """At another batch: it is open."""
    larger = np.concatenate([x] * 3)
    want, found = tf.nest.flatten(model(larger)), module.eval()(larger)
    got = [found[k] for k in sorted(found)] if isinstance(found, dict) else [found]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_comes_in_verified(name: str) -> None:
    make, x = MODELS[name]
    model = make()
    module = tv.from_tensorflow(model, x)
    assert module.report.ok and any(r.kind == "gradient" for r in module.report.rows)
    same(module, model, x)


@pytest.mark.parametrize("target", ["torch", "keras", "mxnet"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:MXNet gives a list")
def test_goes_on(name: str, target: str) -> None:
    pytest.importorskip({"mxnet": "requests"}.get(target, target))
    make, x = MODELS[name]
    assert getattr(tv, f"to_{target}")(tv.from_tensorflow(make(), x)).report.ok


def test_a_folder_comes_in_the_same(tmp_path: Path) -> None:
    model, (_, x) = ResNet(), MODELS["resnet"]
    module = tv.from_tensorflow(model, x)
    model(x, training=True)
    model(x)  # a SavedModel has what was called
    values = {n: np.array(a) for n, a in tv.from_tensorflow(model, x).state_dict().items()}
    tf.saved_model.save(model, tmp_path)
    back = tv.from_tensorflow(tmp_path, x)
    assert back.report.ok and back.graph.same_as(module.graph)
    for name, array in back.state_dict().items():
        np.testing.assert_array_equal(array, values[name])
    same(back, model, x)


def test_what_is_assigned_while_training_is_a_state() -> None:
    model, (_, x) = ResNet(), MODELS["resnet"]
    module = tv.from_tensorflow(model, x)
    states = {v.name for v in module.graph.of_kind("state")}
    assert states == {f"blocks.{i}.norms.{j}.{n}" for i in (0, 1) for j in (0, 1)
                      for n in ("running_mean", "running_var")}  # fmt: skip
    assert {n.attrs["momentum"] for n in module.graph.nodes if n.op == "batch_norm"} == {0.1}
    module.train()
    found, want = module(x), model(x, training=True)
    np.testing.assert_allclose(np.asarray(found["out"]), want["out"], rtol=1e-4, atol=1e-5)
    ours = module.state_dict()["blocks.1.norms.1.running_var"]
    np.testing.assert_allclose(ours, model.blocks[1].norms[1].variance, rtol=1e-4)


class Fused(tf.Module):
    """The operator that TensorFlow's own layers use, its variance corrected."""

    def __init__(self, rate: float = 0.25):
        super().__init__()
        self.gamma, self.beta, self.rate = weight(2), weight(2), rate
        self.mean = tf.Variable(numbers(2), trainable=False)
        self.variance = tf.Variable([0.5, 2.0], trainable=False)

    @tf.function
    def __call__(self, x: Any, training: bool = False) -> Any:
        given = {} if training else {"mean": self.mean, "variance": self.variance}
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gamma, self.beta, is_training=training, **given
        )
        if training:
            self.mean.assign_add((mean - self.mean) * self.rate)
            self.variance.assign_sub((self.variance - variance) * self.rate)
        return y


def test_a_fused_batch_norm_in_both_modes() -> None:
    module = tv.from_tensorflow(Fused(), numbers(2, 4, 4, 2))
    (norm,) = module.graph.nodes
    assert (norm.attrs["momentum"], norm.attrs["unbiased"]) == (0.25, True)
    assert tv.to_keras(module).report.ok


def test_a_plain_function_with_what_it_closes_over() -> None:
    w, fixed, scale = weight(4, 3, name="w"), weight(3, trainable=False), tf.constant([1.0, 2, 3])
    module = tv.from_tensorflow(lambda x: (x @ w + fixed, tf.exp(x) * 2), numbers(2, 4))
    assert {v.name: v.trainable for v in module.graph.of_kind("param")} == {
        "w": True, "Variable": False,
    }  # fmt: skip
    both = tv.from_tensorflow(lambda x, y: {"b": x * scale, "a": y}, numbers(2, 3), numbers(2))
    assert both.report.ok and both.graph.structure == ("b", "a")


def test_sizes_are_open() -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, None, 4))])
    def model(x: Any) -> Any:
        n, t = tf.shape(x)[0], tf.shape(x)[1]
        flat = tf.reshape(x, tf.stack([n * t, 4]))
        return tf.reshape(flat, (n, t, 2, 2)) / tf.cast(t, "float32"), tf.zeros([n, 3])

    module = tv.from_tensorflow(model)  # its signature says the sizes
    assert module.report.ok and len(module.graph.dims()) == 2


LINES: dict[str, Any] = {
    "gelu": (lambda x: tf.nn.gelu(x), {"approximate": "none"}),
    "silu": (lambda x: tf.nn.silu(x), {}),
    "log_sigmoid": (lambda x: tf.math.log_sigmoid(x), {}),
    "softmax": (lambda x: tf.nn.softmax(x, axis=1), {"axis": 1}),
    "logsumexp": (lambda x: tf.reduce_logsumexp(x, -1), {"axis": (2,), "keepdims": False}),
    "clip": (lambda x: tf.clip_by_value(x, -0.5, 2.0), {"min": -0.5, "max": 2.0, "edge": "inside"}),
    "leaky_relu": (lambda x: tf.nn.leaky_relu(x, 0.3), {"slope": 0.3}),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_many_operators_is_an_op(name: str) -> None:
    function, attrs = LINES[name]
    (node,) = tv.from_tensorflow(function, numbers(2, 3, 4)).graph.nodes
    assert (node.op, node.attrs) == (name, attrs)


def test_what_only_looks_like_a_line_is_its_parts() -> None:
    """Half of the numbers of gelu are others: it is no gelu."""
    function = lambda x: 0.5 * x * tf.math.erfc(-x * 0.7)  # noqa: E731
    ops = {n.op for n in tv.from_tensorflow(function, numbers(2, 3)).graph.nodes}
    assert "gelu" not in ops and "erfc" in ops


class Signed(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight(4, 3)

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def double(self, x: Any) -> Any:
        return {"twice": x @ self.w * 2}

    @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((None, 3))])
    def both(self, x: Any, y: Any) -> Any:
        return {"sum": x @ self.w + y}


def test_a_signature_is_named(tmp_path: Path) -> None:
    model = Signed()
    tf.saved_model.save(model, tmp_path, {"double": model.double, "both": model.both})
    module = tv.from_tensorflow(tmp_path, signature="both")
    assert module.report.ok and module.graph.structure == ("sum",)
    with pytest.raises(UnsupportedError, match=r"both, double.*signature="):
        tv.from_tensorflow(tmp_path)
    with pytest.raises(UnsupportedError, match=r"no signature 'none'.*both, double"):
        tv.from_tensorflow(tmp_path, signature="none")
    tf.saved_model.save(model, tmp_path / "one", model.double)
    assert tv.from_tensorflow(tmp_path / "one").report.ok
    assert tv.verify(tmp_path / "one", tv.from_tensorflow(tmp_path / "one"))
    tf.saved_model.save(tf.Module(), tmp_path / "none")
    with pytest.raises(UnsupportedError, match="cannot be called, without a signature"):
        tv.from_tensorflow(tmp_path / "none")
    with pytest.raises(UnsupportedError, match=r"nowhere without a saved_model\.pb"):
        tv.from_tensorflow(tmp_path / "nowhere" / "saved_model.pb")


def python(x: Any) -> Any:
    return tf.py_function(lambda a: a * 2, [x], tf.float32)


counter = tf.Variable(0.0)
REFUSED: dict[str, Any] = {
    r"Cumprod .*at lambda, here/Cumprod": lambda x: tf.math.cumprod(x, name="here/Cumprod"),
    "EagerPyFunc": python,
    "RandomStandardNormal": lambda x: x + tf.random.normal([3]),
    "While": lambda x: tf.while_loop(lambda v: tf.reduce_sum(v) < 9, lambda v: [v + 1], [x])[0],
    "dtype string": lambda x: tf.strings.as_string(x),
    "a call assigns": lambda x: x + counter.assign_add(1.0),
    "TensorFlow cannot trace": lambda x: tf.reshape(x, (5, 5)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        tv.from_tensorflow(REFUSED[what], numbers(2, 3))


def test_a_string_is_refused() -> None:
    function = tf.function(lambda x: x, input_signature=[tf.TensorSpec((None,), tf.string)])
    with pytest.raises(UnsupportedError, match="dtype string"):
        tv.from_tensorflow(function)
    with pytest.raises(ValueError, match="pass one example of each"):
        tv.from_tensorflow(lambda x: x)


def test_a_file_that_calls_python_is_refused_unloaded(tmp_path: Path) -> None:
    class Calls(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((2,))])
        def __call__(self, x: Any) -> Any:
            return python(x)

    tf.saved_model.save(Calls(), tmp_path)
    with pytest.raises(UnsupportedError, match=r"EagerPyFunc in .*saved_model"):
        tv.from_tensorflow(tmp_path)
    file = tmp_path / "saved_model.pb"
    file.write_bytes(file.read_bytes().replace(b"EagerPyFunc", b"OwnOperator"))
    with pytest.raises(UnsupportedError, match=r"OwnOperator in .*saved_model"):
        tv.from_tensorflow(tmp_path)
    file.write_bytes(b"nothing")
    with pytest.raises(UnsupportedError, match="no SavedModel"):
        tv.from_tensorflow(tmp_path)


def test_a_gradient_of_its_own_is_no_part_of_what_is_read() -> None:
    @tf.custom_gradient
    def relu(x: Any) -> Any:
        return tf.nn.relu(x), lambda g: 7 * g

    w = weight(3, 3)
    with pytest.raises(tv.VerificationError, match="misread"):
        tv.from_tensorflow(lambda x: relu(x @ w), numbers(2, 3))


def test_what_differs_while_training_is_refused() -> None:
    def model(x: Any, training: bool = False) -> Any:
        return x * 2 if training else x

    with pytest.raises(UnsupportedError, match="more than batch norm"):
        tv.from_tensorflow(model, numbers(2, 3))
    assert tv.from_tensorflow(lambda x: model(x), numbers(2, 3)).report.ok
