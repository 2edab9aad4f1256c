"""Models in TensorFlow: running, differentiating and training them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.layer import Weight
from trivium.frameworks.made import Held, execute, furnished, looking
from trivium.frameworks.runner import Array, Names, Pulled, Slots, listed
from trivium.frameworks.tensorflow.emit import attribute, emit
from trivium.graph import Graph
from trivium.transforms.step import Update, by_dtype


def load_tensorflow() -> Any:
    """The tensorflow module, or an ImportError with the remedy."""
    try:
        import tensorflow as tf
    except ImportError:
        raise ImportError("TensorFlow is not installed: pip install tensorflow-cpu") from None
    return tf


def build(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    """The tf.Module that the Graph's source makes, with these numbers, and where each is."""
    load_tensorflow()
    emitted = emit(graph)
    module = execute(emitted, "tensorflow")()
    module.source = emitted.source
    furnished(TensorflowRunner, module, emitted, graph, values)
    return module, emitted.weights


class Foreign:
    """A function of the user's own, and the variables that it reads, by our names for them."""

    def __init__(self, function: Any, held: Mapping[str, Any]):
        self.function, self.held = function, held
        self.variables = tuple(held.values())
        self.__signature__ = inspect.signature(function)  # whether it asks if it trains

    def __call__(self, *inputs: Any, **mode: bool) -> Any:
        return self.function(*inputs, **mode)


def foreign(model: Foreign, module: Any) -> TensorflowRunner:
    """A function of the user's own; ``module`` is what reading it gave."""
    return TensorflowRunner(model, {n: (n, Weight("", n, n)) for n in model.held})


def variable(module: Any, path: str) -> Any:
    """The variable at "layer1.0.conv1.kernel": attributes, and positions in a Sequential."""
    if isinstance(module, Foreign):
        return module.held[path]
    for part in path.split("."):
        layers = getattr(module, "layers", None)
        if part.isdigit() and isinstance(layers, (list, tuple)):
            module = layers[int(part)]
        else:
            module = getattr(module, attribute(part))
    return module


class TensorflowRunner:
    """Any tf.Module. ``weights`` says where our parameters are in it."""

    structure: Names = None

    def __init__(self, module: Any, weights: Mapping[str, tuple[str, Weight]]):
        self.tf = load_tensorflow()
        self.module, self.weights = module, weights
        self.variables = {}
        for ours, (path, _) in weights.items():
            with looking(ours, path):
                self.variables[ours] = variable(module, path)
        self._call = self.tf.function(self._called)
        self._pull = self.tf.function(self._pulled)

    def trained(self) -> dict[str, bool]:
        """Which variables are trainable."""
        return {n: bool(v.trainable) for n, v in self.variables.items()}

    def declared(self) -> list[Held]:
        """Every variable."""
        return [self._held(v.name, v) for v in self.module.variables]

    def held(self) -> dict[str, Held]:
        """Those that are ours, by our names."""
        return {n: self._held(self.weights[n][0], v) for n, v in self.variables.items()}

    def _held(self, name: str, variable: Any) -> Held:
        return Held(name, id(variable), tuple(variable.shape), variable.trainable)

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        return {n: np.array(self.weights[n][1].back(v.numpy())) for n, v in self.variables.items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        for n, v in self.variables.items():
            v.assign(self.weights[n][1].to(np.asarray(values[n])))

    def _called(self, inputs: Sequence[Any], training: bool) -> list[Any]:
        accepted = inspect.signature(self.module).parameters
        given = {"training": training} if "training" in accepted else {}
        found, self.structure = listed(self.module(*inputs, **given))
        return found

    def _pulled(self, inputs: Sequence[Any], cotangents: Sequence[Any], training: bool) -> Any:
        tf = self.tf
        params = [v for v in self.variables.values() if v.trainable]
        floats = [x for x in inputs if x.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            outputs = self._called(inputs, training)
            smooth = [y for y in outputs if y.dtype.is_floating]
        heads = [tf.cast(c, y.dtype) for c, y in zip(cotangents, smooth, strict=True)]
        grads = tape.gradient(smooth, [*params, *floats], output_gradients=heads)
        grads = [None if g is None else tf.convert_to_tensor(g) for g in grads]
        states = [tf.identity(v) for v in self.variables.values() if not v.trainable]
        return outputs, grads[: len(params)], grads[len(params) :], states

    def _kept(self) -> list[tuple[Any, Any]]:
        """The states as they are, to be put back."""
        return [(v, v.numpy()) for v in self.module.variables if not v.trainable]

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        kept = self._kept()
        found = self._call([self.tf.constant(x) for x in inputs], training)
        for v, number in kept:
            v.assign(number)
        return [y.numpy() for y in found]

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by tf.GradientTape."""
        kept = self._kept()
        xs, gs = ([self.tf.constant(a) for a in arrays] for arrays in (inputs, cotangents))
        outputs, by_params, by_inputs, became = self._pull(xs, gs, training)
        for v, number in kept:
            v.assign(number)
        trained = [n for n, v in self.variables.items() if v.trainable]
        states = [n for n, v in self.variables.items() if not v.trainable]

        def back(name: str, array: Any) -> Array:
            v = self.variables[name]
            array = np.zeros(v.shape, v.dtype.as_numpy_dtype) if array is None else array.numpy()
            return np.array(self.weights[name][1].back(array))

        rest = iter(by_inputs)
        found = [next(rest) if x.dtype.is_floating else None for x in xs]
        return Pulled(
            [y.numpy() for y in outputs],
            {n: back(n, g) for n, g in zip(trained, by_params, strict=True)},
            [None if g is None else g.numpy() for g in found],
            {n: back(n, v) for n, v in zip(states, became, strict=True)},
        )


class TensorflowTrainer(Slots):
    """The loss Graph as a tf.Module; loss, gradients and update in one tf.function."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], update: Update):
        tf = self.tf = load_tensorflow()
        module, weights = build(graph, values)
        self.runner = TensorflowRunner(module, weights)
        trained = {n: v for n, v in self.runner.variables.items() if v.trainable}
        self.names, self.params = list(trained), list(trained.values())
        kinds = [as_dtype(p.dtype.name) for p in self.params]
        self.updates = by_dtype(update, kinds, lambda g: execute(emit(g), "tensorflow")())
        self._slots = [[tf.Variable(tf.zeros_like(p)) for _ in update.slots] for p in self.params]
        self.count = tf.Variable(0.0)
        self._step = tf.function(self._one_step, reduce_retracing=True)

    def _one_step(self, inputs: Sequence[Any], lr: Any) -> Any:
        with self.tf.GradientTape() as tape:
            loss = self.runner._called(inputs, True)[0]
        grads = tape.gradient(loss, self.params, unconnected_gradients="zero")
        self.count.assign_add(1.0)
        for p, g, slots, one in zip(self.params, grads, self._slots, self.updates, strict=True):
            new, _ = listed(one(p, self.tf.convert_to_tensor(g), *slots, self.count, lr))
            for v, number in zip([p, *slots], new, strict=True):
                v.assign(number)
        return loss

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        xs = [self.tf.convert_to_tensor(x) for x in inputs]
        return float(self._step(xs, self.tf.constant(lr, "float32")))

    def _in(self, array: Any, new: Array) -> Any:
        array.assign(new)  # the compiled step holds this very variable
        return array
