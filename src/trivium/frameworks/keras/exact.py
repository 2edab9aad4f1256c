"""Layers that Keras lacks, as short subclasses which emitted source brings along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivium.frameworks.keras.layers import FORMS
from trivium.frameworks.layer import LayerForm, Weight, given, permuted
from trivium.graph import Node

UNBIASED = '''
@keras.saving.register_keras_serializable(package="trivium")
class UnbiasedBatchNormalization(layers.BatchNormalization):
    """Its moving variance takes n / (n - 1) times the batch's variance, as PyTorch's does."""

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        kept = self.moving_variance * self.momentum
        outputs = super().call(inputs, training=True, mask=mask)
        n = ops.cast(ops.size(inputs), "float32") / inputs.shape[self.axis]
        self.moving_variance.assign(kept + (self.moving_variance - kept) * (n / (n - 1)))
        return outputs
'''

FROZEN = '''
@keras.saving.register_keras_serializable(package="trivium")
class FrozenBatchNormalization(layers.BatchNormalization):
    """Always by its moving statistics; scale and offset go on learning."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)
'''

TWO_BIASES = '''
@keras.saving.register_keras_serializable(package="trivium")
class TwoBiasRNNCell(layers.SimpleRNNCell):
    """With a second bias, on the state, as PyTorch has: two biases learn twice as fast as one."""

    def build(self, input_shape):
        super().build(input_shape)
        self.recurrent_bias = self.add_weight(
            shape=(self.units,), initializer="zeros", name="recurrent_bias"
        )

    def call(self, sequence, states, training=False):
        state = states[0] if isinstance(states, (list, tuple)) else states
        y = ops.matmul(sequence, self.kernel) + self.bias
        y = self.activation(y + ops.matmul(state, self.recurrent_kernel) + self.recurrent_bias)
        return y, [y] if isinstance(states, (list, tuple)) else y
'''

WEIGHT = '''
@keras.saving.register_keras_serializable(package="trivium")
class Weight(layers.Layer):
    """A weight by itself. What it is called on only makes it part of the model."""

    def __init__(self, shape, of="float32", state=False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.shape, self.of, self.state = tuple(shape), of, state

    def build(self, input_shape):
        fixed = dict(dtype=self.of, trainable=not self.state, autocast=False)
        self.value = self.add_weight(self.shape, "zeros", name="value", **fixed)

    def call(self, inputs):
        return ops.copy(self.value)

    def get_config(self):
        return super().get_config() | {"shape": self.shape, "of": self.of, "state": self.state}
'''

KEPT = '''
@keras.saving.register_keras_serializable(package="trivium")
class Kept(Weight):
    """A weight that nothing reads: it is kept, and what comes in goes out."""

    def call(self, inputs):
        return inputs
'''

ROWS = '''
@keras.saving.register_keras_serializable(package="trivium")
class Rows(layers.Layer):
    """What comes in goes out, if it has the rows that the model was made for: Keras looks at every
    other size itself.
    """

    def __init__(self, rows, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.rows = rows

    def call(self, inputs):
        if inputs.shape[0] not in (None, self.rows):
            raise ValueError(f"made for {self.rows} rows, got shape {tuple(inputs.shape)}")
        return inputs

    def get_config(self):
        return super().get_config() | {"rows": self.rows}
'''

LIKE_BATCH = '''
@keras.saving.register_keras_serializable(package="trivium")
class LikeBatch(layers.Layer):
    """The first input, repeated for every element of the second one's batch."""

    def call(self, inputs):
        x, like = inputs
        return ops.broadcast_to(x, (ops.shape(like)[0], *x.shape[1:]))
'''

CONSTANT = '''
@keras.saving.register_keras_serializable(package="trivium")
class Constant(layers.Layer):
    """An output that no input decides. The second input only makes it part of the model."""

    def call(self, inputs):
        return inputs[0]
'''

FIRST_POOL = '''
@keras.saving.register_keras_serializable(package="trivium")
class FirstMaxPooling3D(layers.MaxPooling3D):
    """Pooled in planes, then along the first axis: so a tie's gradient goes to the first, where
    TensorFlow's own pooling of volumes gives the whole to each of the equal ones.
    """

    def call(self, inputs):
        first, *plane = zip(self.pool_size, self.strides)
        _, d, h, w, c = ops.shape(inputs)
        y = ops.max_pool(ops.reshape(inputs, (-1, h, w, c)), *zip(*plane), self.padding)
        _, h, w, _ = ops.shape(y)
        y = ops.reshape(y, (-1, d, h * w, c))
        y = ops.max_pool(y, (first[0], 1), (first[1], 1), self.padding)
        return ops.reshape(y, (-1, ops.shape(y)[1], h, w, c))
'''

SHARED = '''
def shared_{name}(x, y):
    """ops.{name}, but the two share the gradient of a tie: TensorFlow gives it all to x."""
    return ops.{name}(x, y) / 2 + ops.{name}(y, x) / 2
'''

FIRST = '''
def {name}_first(x, axis, keepdims=False):
    """ops.{name}, but a tie's gradient goes to the first: TensorFlow shares it out."""
    top = ops.{name}(x, axis, keepdims=True)
    hit = ops.cast(ops.equal(x, top), "int32")  # not of x itself: Keras puts -0.0 below 0.0
    y = ops.take_along_axis(x, ops.expand_dims(ops.argmax(hit, axis), axis), axis)
    return y if keepdims else ops.squeeze(y, axis)
'''

EACH = '''
def {name}_each(x, axis, keepdims=False):
    """ops.{name}, but equal ones get the whole gradient each: TensorFlow shares it out."""
    top = ops.stop_gradient(ops.{name}(x, axis, keepdims=True))
    gap = x - top  # NaN where both are infinite: no gradient there
    y = top + ops.sum(ops.where(ops.equal(gap, 0), gap, 0), axis, keepdims=True)
    return y if keepdims else ops.squeeze(y, axis)
'''

HELPERS = {
    "UnbiasedBatchNormalization": UNBIASED, "FrozenBatchNormalization": FROZEN,
    "TwoBiasRNNCell": TWO_BIASES, "Weight": WEIGHT, "Kept": KEPT,
    "Rows": ROWS, "LikeBatch": LIKE_BATCH, "Constant": CONSTANT,
    "FirstMaxPooling3D": FIRST_POOL,
    **{f"shared_{n}": SHARED.format(name=n) for n in ("maximum", "minimum")},
    **{f"{n}_first": FIRST.format(name=n) for n in ("max", "min")},
    **{f"{n}_each": EACH.format(name=n) for n in ("max", "min")},
}  # fmt: skip


def _batch_norm(name: str, frozen: bool) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        x, scale, bias = node.inputs[:3]
        a = node.attrs
        held = (v for v in (scale, bias) if v is not None and v.kind == "param")
        trained = any(v.trainable for v in held)
        if x is None or a["training"] is True:
            return None
        if frozen != (a["training"] is False) or (not trained if frozen else not a["unbiased"]):
            return None
        return given(
            axis=(a["axis"] - len(x.shape), -1),
            momentum=(round(1 - a["momentum"], 12), 0.99),
            epsilon=(a["epsilon"], 1e-3),
            center=(bias is not None, True),
            scale=(scale is not None, True),
        )

    plain = next(f for f in FORMS if f.op == "batch_norm")

    def read(config: Mapping[str, Any], shape: tuple[Any, ...]) -> Mapping[str, Any]:
        assert plain.read is not None
        attrs = plain.read(config, shape)
        return {**attrs, "training": False} if frozen else {**attrs, "unbiased": True}

    return LayerForm("batch_norm", name, write, read, plain.weights)


def _two_biases(node: Node) -> Mapping[str, Any] | None:
    graph = node.outputs[0].graph
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.results())
    sequences, last = (v in read for v in node.outputs)
    if len(node.inputs) < 5 or None in node.inputs:
        return None
    assert node.inputs[1] is not None
    return {"units": node.inputs[1].shape[0]} | given(
        activation=(node.attrs["activation"], "tanh"),
        return_sequences=(sequences, False),
        return_state=(sequences and last, False),
    )


def _read_two_biases(config: Mapping[str, Any], shape: tuple[Any, ...]) -> Mapping[str, Any]:
    plain = next(f for f in FORMS if f.op == "rnn")
    assert plain.read is not None
    return plain.read({**config, **config["cell"]["config"]}, shape)


EXACT = [
    _batch_norm("UnbiasedBatchNormalization", frozen=False),
    _batch_norm("FrozenBatchNormalization", frozen=True),
    LayerForm("rnn", "TwoBiasRNNCell", _two_biases, _read_two_biases, (
        Weight("weight_ih", "weight_ih", "cell.kernel", **permuted(1, 0)),
        Weight("weight_hh", "weight_hh", "cell.recurrent_kernel", **permuted(1, 0)),
        Weight("bias_ih", "bias_ih", "cell.bias"),
        Weight("bias_hh", "bias_hh", "cell.recurrent_bias"))),
    replace(next(f for f in FORMS if f.layer == "layers.MaxPooling3D"), layer="FirstMaxPooling3D"),
]  # fmt: skip


def registered(keras: Any) -> None:
    """Make the layers above known to Keras, so that a file that has them can be opened anywhere."""
    known = keras.saving.get_custom_objects()
    own = {n: source for n, source in HELPERS.items() if "register_keras_serializable" in source}
    scope = {"keras": keras, "layers": keras.layers, "ops": keras.ops}
    for name, source in own.items() if any(f"trivium>{n}" not in known for n in own) else ():
        exec(compile(source, f"<trivium>/{name}.py", "exec"), scope)
