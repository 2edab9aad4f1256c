"""tf.Modules: running, differentiating and training them with a GradientTape."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from trivium.frameworks.layer import Weight
from trivium.frameworks.runner import Array, Pulled
from trivium.frameworks.source import execute
from trivium.frameworks.tensorflow.emit import emit
from trivium.graph import Graph
from trivium.transforms.replay import specialize
from trivium.transforms.step import Update

Weights = Mapping[str, tuple[str, Weight]]


def load_tensorflow() -> Any:
    """The tensorflow module, or an ImportError with the remedy."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it tells every process what the CPU can do
    try:
        import tensorflow
    except ImportError:
        raise ImportError("TensorFlow is not installed: pip install tensorflow-cpu") from None
    return tensorflow


def build(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    """The tf.Module that the Graph's source makes, with these numbers, and where each is."""
    load_tensorflow()
    emitted = emit(graph)
    module = execute(emitted, "tensorflow")()
    module.source = emitted.source
    TensorflowRunner(module, emitted.weights).load(values)
    return module, emitted.weights


def _find(module: Any, path: str) -> Any:
    """The variable at "layer1.0.conv1.kernel"."""
    found = module
    for part in path.split("."):
        if part.isdigit():
            found = found[int(part)] if hasattr(found, "layers") else getattr(found, f"layer_{part}")
        else:
            found = getattr(found, part)
    return found


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


class TensorflowRunner:
    """Any tf.Module. ``weights`` says where our parameters are in it."""

    def __init__(self, module: Any, weights: Weights):
        self.tf = load_tensorflow()
        self.module, self.weights = module, weights
        self.variables = {ours: _find(module, path) for ours, (path, _) in weights.items()}

    def _back(self, name: str, array: Any) -> Array:
        return np.array(self.weights[name][1].back(np.asarray(array)))

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        return {n: self._back(n, v.numpy()) for n, v in self.variables.items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        for name, variable in self.variables.items():
            variable.assign(np.asarray(self.weights[name][1].to(np.asarray(values[name]))))

    @contextmanager
    def _states_kept(self) -> Iterator[None]:
        kept = [(v, v.numpy()) for v in self.variables.values() if not v.trainable]
        try:
            yield
        finally:
            for v, array in kept:
                v.assign(array)

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        with self._states_kept():
            found = self.module(*(self.tf.constant(x) for x in inputs), training=training)
        return [y.numpy() for y in _listed(found)]

    def pull(self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False) -> Pulled:
        """Outputs and gradients by a GradientTape."""
        tf = self.tf
        xs = [tf.constant(x) for x in inputs]
        floats = [x for x in xs if x.dtype.is_floating]
        params = {n: v for n, v in self.variables.items() if v.trainable}
        with self._states_kept():
            with tf.GradientTape() as tape:
                tape.watch(floats)
                outputs = _listed(self.module(*xs, training=training))
            smooth = [y for y in outputs if y.dtype.is_floating]
            grads = [None] * (len(params) + len(floats))
            if smooth:
                heads = [tf.constant(c) for c in cotangents]
                grads = tape.gradient(smooth, [*params.values(), *floats], heads)
            states = {n: self._back(n, v.numpy()) for n, v in self.variables.items() if not v.trainable}
        arrays = [None if g is None else tf.convert_to_tensor(g).numpy() for g in grads]
        found = {
            n: self._back(n, np.zeros(v.shape, np.float32) if g is None else g)
            for (n, v), g in zip(params.items(), arrays, strict=False)
        }
        rest = iter(arrays[len(params) :])
        by_inputs = [next(rest) if x.dtype.is_floating else None for x in xs]
        return Pulled([y.numpy() for y in outputs], found, by_inputs, states)


class TensorflowTrainer:
    """The loss Graph as a tf.Module; loss, gradients and the optimizer's update in one tf.function."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], update: Update):
        self.tf = tf = load_tensorflow()
        self.module, weights = build(graph, values)
        self.runner = TensorflowRunner(self.module, weights)
        self.update = execute(emit(specialize(update.graph)), "tensorflow")()
        self.params = [v for v in self.runner.variables.values() if v.trainable]
        self.slots = [[tf.Variable(tf.zeros_like(p)) for _ in update.slots] for p in self.params]
        self.count = tf.Variable(0.0)
        self._step = tf.function(self._one_step, reduce_retracing=True)

    def _one_step(self, lr: Any, *inputs: Any) -> Any:
        with self.tf.GradientTape() as tape:
            loss = self.module(*inputs, training=True)
        grads = tape.gradient(loss, self.params)
        self.count.assign_add(1.0)
        for p, g, slots in zip(self.params, grads, self.slots, strict=True):
            g = self.tf.zeros_like(p) if g is None else self.tf.convert_to_tensor(g)
            new = self.update(p, g, *slots, self.count, lr)
            for variable, value in zip([p, *slots], _listed(new), strict=True):
                variable.assign(value)
        return loss

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        return float(self._step(self.tf.constant(lr, self.tf.float32), *map(self.tf.constant, inputs)))

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        return self.runner.values()

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""
        self.runner.load(values)
