"""Models in Keras: run on any of its backends, differentiated and trained on TensorFlow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.keras.emit import emit, emit_function
from trivium.frameworks.keras.read import load
from trivium.frameworks.layer import Weight
from trivium.frameworks.made import Held, execute, furnished, looking
from trivium.frameworks.runner import Array, Names, Pulled, Slots, listed
from trivium.graph import Graph, UnsupportedError
from trivium.transforms.step import Update, by_dtype, by_mode

Weights = Mapping[str, tuple[str, Weight]]


def load_tensorflow() -> Any:
    """TensorFlow as Keras's backend, or an error with the remedy."""
    backend = load().config.backend()
    if backend != "tensorflow":
        raise UnsupportedError(
            f"gradients of a Keras model on the backend {backend!r}",
            remedy="set KERAS_BACKEND=tensorflow before keras is imported",
        )
    import tensorflow as tf

    return tf


def build(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    """The Keras model that the Graph's source makes, with these numbers, and where each is."""
    model, weights = _built(graph, values)
    norm = load().layers.BatchNormalization
    if norms := [layer.name for layer, _ in _frozen_alone(model) if isinstance(layer, norm)]:
        warnings.warn(
            f"weights of {', '.join(norms)} are frozen one by one, since a layer that is frozen "
            "collects no statistics: Keras's own save and clone_model do not keep that; save as "
            ".tv, or freeze them again afterwards, as the source does",
            stacklevel=5,
        )
    return model, weights


def _built(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    config = load().config
    settings = (config.image_data_format(), config.floatx(), config.dtype_policy().name)
    if settings != ("channels_last", "float32", "float32"):
        raise UnsupportedError(
            f"Keras set to {', '.join(settings)}",
            remedy="set image_data_format to channels_last, floatx and dtype_policy to float32",
        )
    emitted = emit(graph)
    model = execute(emitted, "keras")()
    model.source = emitted.source
    furnished(KerasRunner, model, emitted, graph, values)
    return model, emitted.weights


def foreign(model: Any, module: Any) -> KerasRunner:
    """A Keras model of the user's own; ``module`` is what reading it gave."""
    shapes = {v.path: tuple(v.shape) for v in model.weights}
    weights = {
        n: (at, _into(module.weight_maps[at], shapes[at])) for n, at in module.source_names.items()
    }
    return KerasRunner(model, weights)


def keep(model: Any, path: str) -> None:
    """Write a ``.keras`` file, in which a layer is trainable as a whole or not at all."""
    for layer, frozen in _frozen_alone(model):
        where = "it keeps no such flag: save as .tv, or "
        if len(frozen) < len(layer._trainable_variables):
            what = f"{frozen[0].path}, which is frozen by itself"
            remedy = where + "freeze the whole layer"
        else:
            what = f"the frozen layer {layer.name}, which goes on collecting statistics"
            remedy = (
                where + "let it infer by those it has (eval() in PyTorch, trainable=False in Keras)"
            )
        raise UnsupportedError(f"a .keras file with {what}", layer.name, remedy)
    model.save(path)


def _frozen_alone(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Layers that are trainable, each with its variables that are not: Keras's files keep none."""
    for layer in model._flatten_layers():
        held = layer._trainable_variables
        if frozen := [v for v in held if layer.trainable and not v.trainable]:
            yield layer, frozen


def _into(weight: Weight, shape: tuple[int, ...]) -> Weight:
    """The map with its way back in: a depth multiplier shows in the variable's shape alone."""
    probe = np.arange(math.prod(shape)).reshape(shape)
    there = weight.to(np.ascontiguousarray(weight.back(probe)))
    if there.shape == shape or not np.array_equal(there.reshape(shape), probe):
        return weight
    return replace(weight, to=lambda a: weight.to(a).reshape(shape))


class KerasRunner:
    """Any Keras model. ``weights`` says where our parameters are: "conv1.kernel", or a path."""

    def __init__(self, model: Any, weights: Weights):
        self.keras, self.model, self.weights = load(), model, weights
        self.structure: Names = None
        from keras.src.models.functional import Functional

        self.recorded = (Functional, self.keras.Sequential)
        self.variables = {}
        for ours, (theirs, _) in weights.items():
            with looking(ours, theirs):
                self.variables[ours] = self._find(theirs)
        fixed = [v for la in model._flatten_layers() for v in la._non_trainable_variables]
        states = {id(v) for v in fixed}
        self.states = {n for n, v in self.variables.items() if id(v) in states}
        trained = {id(v) for v in model.trainable_variables}
        self._trained = {n for n, v in self.variables.items() if id(v) in trained}

    def declared(self) -> list[Held]:
        """Every weight."""
        return [self._held(v) for v in self.model.weights]

    def held(self) -> dict[str, Held]:
        """Those that are ours, by our names."""
        return {ours: self._held(v) for ours, v in self.variables.items()}

    def _held(self, variable: Any) -> Held:
        name = variable.path.replace("/", ".")
        return Held(name, id(variable), tuple(variable.shape), variable.trainable)

    def _find(self, place: str) -> Any:
        for v in self.model.weights:
            if v.path == place:
                return v
        for dot in (i for i in range(len(place) - 1, 0, -1) if place[i] == "."):
            layer = next((la for la in self.model.layers if la.name == place[:dot]), None)
            if layer is not None:
                return attrgetter(place[dot + 1 :])(layer)
        raise KeyError(f"the model {self.model.name} has no weight {place}")

    def _numpy(self, value: Any) -> Array:
        return np.array(self.keras.ops.convert_to_numpy(value))

    def _ours(self, name: str, value: Any) -> Array:
        return np.array(self.weights[name][1].back(self._numpy(value)))

    def trained(self) -> dict[str, bool]:
        """Which parameters have gradients."""
        return {n: n in self._trained for n in self.variables}

    @contextmanager
    def quiet(self) -> Iterator[list[float]]:
        """Dropouts pass everything on while this is open; the list gets the rates they have."""
        rates: list[float] = []

        def passed(layer: Any, call: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(layer, (self.keras.layers.Dropout, BaseSpatialDropout)):
                return call(layer, inputs, *args, **kwargs)
            if layer.rate and kwargs.get("training", args[0] if args else True) is not False:
                rates.append(float(layer.rate))
            return inputs

        from keras.src.layers.regularization.spatial_dropout import BaseSpatialDropout

        with _calls_through(self.keras, passed):
            yield rates

    def intermediates(
        self, inputs: Sequence[Array], training: bool = False
    ) -> list[tuple[str, Array]]:
        """What every layer and operation computes, in order."""
        found: list[tuple[str, Array]] = []

        def told(item: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
            result = call(item, *args, **kwargs)
            for y in self.keras.tree.flatten(result)[:1]:
                if not isinstance(y, self.keras.KerasTensor):
                    found.append((f"{type(item).__name__} {item.name}", self._numpy(y)))
            return result

        with _calls_through(self.keras, told):
            self.outputs(inputs, training)
        return found

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        return {n: self._ours(n, v) for n, v in self.variables.items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        for name, variable in self.variables.items():
            variable.assign(np.array(self.weights[name][1].to(np.asarray(values[name]))))
        for layer in self.model._flatten_layers():
            if isinstance(layer, self.keras.layers.Normalization) and layer.input_mean is None:
                layer.finalize_state()  # it computes with copies of its statistics

    def _call(self, inputs: Sequence[Any], training: bool) -> list[Any]:
        """The outputs as a list; a functional model takes its inputs as it was given them."""
        if isinstance(self.model, self.recorded):
            # A Sequential that was never called has no input of its own, only its recording has.
            recorded = getattr(self.model, "_functional", None) or self.model
            inputs = [self.keras.tree.pack_sequence_as(recorded.input, list(inputs))]
        found = self.model(*inputs, training=training)
        outputs, self.structure = listed(found)
        return outputs

    def _kept(self) -> list[tuple[Any, Array]]:
        return [(v, self._numpy(v)) for v in self.model.non_trainable_weights]

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        kept = self._kept()
        xs = [self.keras.ops.convert_to_tensor(np.asarray(x)) for x in inputs]
        found = [self._numpy(y) for y in self._call(xs, training)]
        for variable, before in kept:
            variable.assign(before)
        return found

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by TensorFlow's tape."""
        tf = load_tensorflow()
        kept = self._kept()
        xs = [tf.convert_to_tensor(np.asarray(x)) for x in inputs]
        wanted = {n: v.value for n, v in self.variables.items() if n in self._trained}
        sources = [x for x in xs if x.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch([*wanted.values(), *sources])
            outputs = self._call(xs, training)
            smooth = [y for y in outputs if y.dtype.is_floating]
        seeds = [tf.cast(np.asarray(c), y.dtype) for c, y in zip(cotangents, smooth, strict=True)]
        grads = tape.gradient(smooth, [*wanted.values(), *sources], seeds)
        dense = [None if g is None else np.array(tf.convert_to_tensor(g)) for g in grads]
        params = {
            n: self._ours(n, np.zeros(v.shape, v.dtype.as_numpy_dtype) if g is None else g)
            for (n, v), g in zip(wanted.items(), dense, strict=False)
        }
        states = {n: self._ours(n, self.variables[n]) for n in self.states}
        for variable, before in kept:
            variable.assign(before)
        rest = iter(dense[len(wanted) :])
        by_input = [next(rest) if x.dtype.is_floating else None for x in xs]
        return Pulled([self._numpy(y) for y in outputs], params, by_input, states)


@contextmanager
def _calls_through(keras: Any, around: Callable[..., Any]) -> Iterator[None]:
    """Every layer and operation is called as ``around(it, its own __call__, ...)``."""
    kinds = (keras.Layer, keras.Operation)
    kept = [(k, k.__call__) for k in kinds if "__call__" in vars(k)]
    for kind, call in kept:
        kind.__call__ = lambda self, *a, _call=call, **k: around(self, _call, *a, **k)
    try:
        yield
    finally:
        for kind, call in kept:
            kind.__call__ = call


class KerasTrainer(Slots):
    """The loss Graph as a Keras model, the optimizer's update too; a step is one tf.function."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], update: Update):
        self.tf = tf = load_tensorflow()
        self.model, weights = _built(by_mode(graph), values)
        self.runner = KerasRunner(self.model, weights)
        self.names = [v.path for v in self.model.trainable_variables]
        self.params = [v.value for v in self.model.trainable_variables]
        kinds = [as_dtype(v.dtype) for v in self.model.trainable_variables]
        self.updates = by_dtype(update, kinds, lambda g: execute(emit_function(g), "keras"))
        self._slots = [[tf.Variable(tf.zeros_like(p)) for _ in update.slots] for p in self.params]
        self.count = tf.Variable(0.0)
        self._compiled = tf.function(self._step, autograph=False, reduce_retracing=True)

    def _step(self, inputs: Sequence[Any], lr: Any) -> Any:
        tf = self.tf
        with tf.GradientTape() as tape:
            loss = self.runner._call(inputs, True)[0]
        grads = tape.gradient(loss, self.params, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        self.count.assign_add(1.0)
        for p, g, slots, one in zip(self.params, grads, self._slots, self.updates, strict=True):
            new = one(p, tf.convert_to_tensor(g), *slots, self.count, lr)
            for variable, value in zip([p, *slots], new if slots else [new], strict=True):
                variable.assign(value)
        return loss

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        xs = [self.tf.convert_to_tensor(x) for x in inputs]
        return float(self._compiled(xs, self.tf.constant(lr, self.tf.float32)))

    def _in(self, array: Any, new: Array) -> Any:
        array.assign(new)  # the compiled step holds this very variable
        return array
