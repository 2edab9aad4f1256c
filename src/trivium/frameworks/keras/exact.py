"""Layers that Keras lacks, as short subclasses which emitted source brings along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trivium.frameworks.keras.layers import CELL, FORMS, NORM, STATISTICS, outputs_read
from trivium.frameworks.layer import LayerForm, weights
from trivium.graph import MODE, Node

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


def _unbiased(node: Node) -> bool:
    return bool(node.attrs["unbiased"])


def _frozen(node: Node) -> bool:
    """Is something in it trained all the same? ``trainable=False`` would freeze that too."""
    held = (v for v in node.inputs[1:3] if v is not None and v.kind == "param")
    return any(v.trainable for v in held)


EXACT = [
    LayerForm("batch_norm", f"UnbiasedBatchNormalization({NORM})", STATISTICS,
              {"training": MODE, "unbiased": True}),
    LayerForm("batch_norm", f"FrozenBatchNormalization({NORM})", STATISTICS,
              {"training": False}, when=_frozen, settled={"unbiased": False}),
    LayerForm("rnn", "TwoBiasRNNCell(units={weight_ih.0}, activation={activation!gate|'tanh'})",
              (*CELL, *weights(bias_hh="cell.recurrent_bias")), beside=outputs_read,
              when=lambda node: len(node.inputs) == 5 and all(v is not None for v in node.inputs)),
    replace(next(f for f in FORMS if f.layer == "layers.MaxPooling3D"),
            line=next(f.line for f in FORMS if f.layer == "layers.MaxPooling3D").replace(
                "layers.Max", "FirstMax")),
]  # fmt: skip


def registered(keras: Any) -> None:
    """Make the layers above known to Keras, so that a file that has them can be opened anywhere."""
    known = keras.saving.get_custom_objects()
    own = {n: source for n, source in HELPERS.items() if "register_keras_serializable" in source}
    scope = {"keras": keras, "layers": keras.layers, "ops": keras.ops}
    for name, source in own.items() if any(f"trivium>{n}" not in known for n in own) else ():
        exec(compile(source, f"<trivium>/{name}.py", "exec"), scope)
