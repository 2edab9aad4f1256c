"""Layers that Keras lacks, as short subclasses which emitted source brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium.frameworks.keras.layers import FORMS
from trivium.frameworks.layer import LayerForm, Weight, given, permuted
from trivium.graph import Node

UNBIASED = '''
@keras.saving.register_keras_serializable(package="trivium")
class UnbiasedBatchNormalization(layers.BatchNormalization):
    """Its moving variance takes n / (n - 1) times the batch's variance, as PyTorch's does."""

    def call(self, inputs, training=None, mask=None):
        if not training:
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

    def __init__(self, shape, kind="float32", **kwargs):
        super().__init__(**kwargs)
        self.shape, self.kind = tuple(shape), kind

    def build(self, input_shape):
        self.value = self.add_weight(
            shape=self.shape, dtype=self.kind, initializer="zeros", name="value",
            trainable=self.trainable,
        )

    def call(self, inputs):
        return ops.convert_to_tensor(self.value)

    def get_config(self):
        return super().get_config() | {"shape": self.shape, "kind": self.kind}
'''

LIKE_BATCH = '''
@keras.saving.register_keras_serializable(package="trivium")
class LikeBatch(layers.Layer):
    """The first input, repeated for every element of the second one's batch."""

    def call(self, inputs):
        x, like = inputs
        return ops.broadcast_to(x, (ops.shape(like)[0], *x.shape[1:]))
'''

HELPERS = {"UnbiasedBatchNormalization": UNBIASED, "FrozenBatchNormalization": FROZEN,
           "TwoBiasRNNCell": TWO_BIASES, "Weight": WEIGHT, "LikeBatch": LIKE_BATCH}  # fmt: skip


def _batch_norm(name: str, frozen: bool) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        x, scale, bias = node.inputs[:3]
        a = node.attrs
        trained = any(v is not None and v.kind == "param" for v in (scale, bias))
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
]  # fmt: skip
