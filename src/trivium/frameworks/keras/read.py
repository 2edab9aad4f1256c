"""Keras models -> Graph: functional and sequential ones as recorded, others by their call.

A layer in the table of ``layers.py`` becomes its op; a ``keras.ops`` operation becomes ours; every
other layer, Keras's own or a user's, is called on symbolic tensors and what that records is read in
turn.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.frameworks.keras import operations
from trivium.frameworks.keras.exact import EXACT
from trivium.frameworks.keras.layers import FORMS
from trivium.frameworks.keras.operations import ACTIVATIONS
from trivium.frameworks.keras.symbolic import behind, called
from trivium.frameworks.layer import LayerForm, Weight
from trivium.frameworks.ways import NotTheirs
from trivium.graph import MODE, OPS, Graph, GraphError, Node, UnsupportedError, Value, identifier
from trivium.nn.module import Spec
from trivium.op import lift
from trivium.shape import Dim, ShapeError

PLAIN, BROUGHT = (
    {name: [f for f in forms if f.layer == f"{room}{name}"]
     for name in dict.fromkeys(f.layer.removeprefix(room) for f in forms)}
    for forms, room in ((FORMS, "layers."), (EXACT, ""))
)  # fmt: skip
"""The forms by the class of the layer: Keras's own, and what emitted source brings along."""

IDLE = re.compile(
    "name|dtype|trainable|activation|cell|seed|synchronized|unroll|go_backwards|return_.*|"
    ".*_(initializer|regularizer|constraint)"
)
"""Words that are no part of the arithmetic, or that are read beside it."""
REMEDIES = {"Embedding": "pass the lengths or a mask explicitly"}


class NotPlain(Exception):
    """The layer does more than its form says; what its ``call`` does is followed instead."""


REFUSED = {
    "Lambda": "write a Layer whose call uses keras.ops in its place",
    "RNN": "of the recurrent layers SimpleRNN alone is carried",
    "Bidirectional": "of the recurrent layers SimpleRNN alone is carried",
    "Masking": "pass the lengths or a mask explicitly and apply it with keras.ops.where",
}
"""Layers that say by their class alone that they cannot be carried, and what to do."""


def load() -> Any:
    """The ``keras`` module, version 3."""
    try:
        import keras
    except ImportError as error:
        raise ImportError(
            "Keras models need Keras 3 and a backend: pip install keras tensorflow-cpu"
        ) from error
    if not hasattr(keras, "StatelessScope"):
        raise ImportError(f"Keras {keras.__version__} is not supported: pip install 'keras>=3.8'")
    return keras


Special = Callable[["Reader", Any, Value, str, bool], Any]
"""``(reader, layer, x, path, training)``: what a layer with a reading of its own makes."""


class Reader:
    """One reading of a model, in one mode."""

    def __init__(
        self,
        keras: Any,
        model: Any,
        examples: Sequence[Any],
        training: bool,
        special: Mapping[str, Special],
    ):
        from keras.src.models.functional import Functional

        self.special = special
        self.keras, self.functional_call = keras, Functional.call
        named = self.recorded(model) is not None
        self.graph = Graph(model.name if named else type(model).__name__)
        self.arrays: dict[str, Any] = {}
        self.source_names: dict[str, str] = {}
        self.claimed: dict[int, tuple[Value, Weight]] = {}  # by id of Keras's variable
        self.trained = {id(v) for v in model.trainable_variables}
        self.statistics: dict[
            Value, tuple[Value, list[Node]]
        ] = {}  # state: as it is now, its nodes
        self.paths: dict[int, str] = {}  # by id of the layer
        self.owners: dict[str, Any] = {}
        self.symbols = [(keras.KerasTensor(v.shape, v.dtype), v) for v in model.variables]
        is_model = isinstance(model, keras.Model)
        self.paths[id(model)] = "" if is_model else model.name
        with self.graph:
            args = self.inputs(model, examples)
            self.outputs(self.layer(model, args, {}, "", training))

    # -- inputs and outputs ------------------------------------------------------------------------
    def inputs(self, model: Any, examples: Sequence[Any]) -> tuple[Any, ...]:
        """One data input for each of the model's, nested as its call wants them."""
        tree = self.keras.tree
        if (recorded := self.recorded(model)) is not None:
            # Sequential takes its first batch's size for its own; any other works as well.
            free = isinstance(model, self.keras.Sequential)
            many = len(recorded.inputs) > 1
            values = []
            for tensor in recorded.inputs:
                name = tensor._keras_history.operation.name
                shape = (None, *tensor.shape[1:]) if free else tensor.shape
                values.append(
                    self.input(name, tensor, shape, f"{identifier(name)}_" if many else "")
                )
            return (tree.pack_sequence_as(recorded.input, values),)
        if not examples:
            shapes = list((model._build_shapes_dict or {}).values())
            if len(shapes) != 1 or not all(s is None or isinstance(s, int) for s in shapes[0]):
                raise UnsupportedError(
                    "the inputs of this model are not known", model.name, "pass an example of each"
                )
            examples = [Spec(model.input_dtype, ("batch", *(s or f"dim{i}" for i, s in
                             enumerate(shapes[0][1:], 1))))]  # fmt: skip
        count = iter(range(10_000))

        def value(example: Any) -> Value:
            if isinstance(example, Spec):
                dtype, shape = example.dtype, example.shape
            else:
                array = np.asarray(example)
                dtype, shape = as_dtype(array.dtype), (Dim("batch"), *array.shape[1:])
            return self.graph.input("data", dtype, shape, f"x{next(count)}")

        return tuple(tree.map_structure(value, e) for e in examples)

    def input(self, name: str, tensor: Any, shape: Sequence[Any], prefix: str) -> Value:
        """A data input for one of Keras's, its None sizes open."""
        if tensor.sparse or getattr(tensor, "ragged", False):
            raise UnsupportedError("a sparse or ragged input", name, "make it dense")
        sizes = [f"{prefix}dim{i}" if s is None else s for i, s in enumerate(shape)]
        if shape and shape[0] is None:
            sizes[0] = "batch"
        return self.graph.input("data", _dtype(tensor.dtype, name), sizes, name)

    def outputs(self, result: Any) -> None:
        """Make ``result`` what the Graph returns."""
        graph = self.graph
        if isinstance(result, Mapping):
            graph.structure, items = tuple(result), list(result.values())
            if wrong := [name for name in result if not isinstance(name, str)]:
                raise UnsupportedError(
                    f"an output that is called {wrong[0]!r}",
                    remedy="return a dict whose keys are strings",
                )
        elif isinstance(result, (list, tuple)):
            graph.structure, items = type(result), list(result)
        else:
            items = [result]
        if not all(isinstance(v, Value) for v in items):
            raise UnsupportedError("outputs nested more than once", remedy="return one flat list")
        graph.outputs = items

    # -- weights -----------------------------------------------------------------------------------
    def weight(self, variable: Any, path: str, weight: Weight, state: bool = False) -> Value:
        """The Graph's input for one of Keras's variables; the same one on every use."""
        if not isinstance(variable, self.keras.Variable):
            raise UnsupportedError(
                f"the {weight.theirs} is computed, not stored (LoRA, quantization)", path,
                "merge it into the layer first",
            )  # fmt: skip
        if id(variable) in self.claimed:
            value, before = self.claimed[id(variable)]
            if before.back is not weight.back:
                raise UnsupportedError(f"{variable.path} is read by a layer and besides", path)
            return value
        name = f"{path}.{weight.ours}" if path else weight.ours
        if name in self.arrays:
            raise UnsupportedError(f"two weights are called {name!r}", path, "name layers apart")
        array = weight.back(np.asarray(self.keras.ops.convert_to_numpy(variable)))
        kind, frozen = "state" if state else "param", not state and id(variable) not in self.trained
        dtype = _dtype(variable.dtype, name)
        value = self.graph.input(kind, dtype, array.shape, name, trainable=not frozen)
        self.arrays[name], self.source_names[name] = np.array(array, order="C"), variable.path
        self.claimed[id(variable)] = value, weight
        return value

    def variable(self, variable: Any, path: str, layer: Any, name: str = "") -> Value:
        """A variable that an operation reads directly."""
        leaf = Weight("", name or variable.name, variable.name)
        fixed = any(
            v is variable for la in layer._flatten_layers() for v in la._non_trainable_variables
        )
        return self.weight(variable, path, leaf, state=fixed)

    def update_states(self) -> None:
        """Say what the statistics become, where any batch norm may be training."""
        for state, (new, nodes) in self.statistics.items():
            if any(n.attrs["training"] is not False for n in nodes):
                self.graph.updates[state] = new

    # -- structure ---------------------------------------------------------------------------------
    def recorded(self, layer: Any) -> Any:
        """The functional model that says what ``layer`` does, if one does."""
        if isinstance(layer, self.keras.Sequential):
            plain = type(layer).call is self.keras.Sequential.call
            return layer._functional if plain else None
        return layer if type(layer).call is self.functional_call else None

    def path(self, layer: Any, scope: str) -> str:
        """Where a layer is: names from outside in, joined by dots; a shared one where first met."""
        if id(layer) not in self.paths:
            path = f"{scope}.{layer.name}" if scope else layer.name
            if path in self.owners:
                raise UnsupportedError(f"two layers are called {path!r}", remedy="name them apart")
            self.paths[id(layer)], self.owners[path] = path, layer
        return self.paths[id(layer)]

    def layer(self, layer: Any, args: Any, kwargs: Any, scope: str, training: bool) -> Any:
        """What calling ``layer`` gives."""
        path, kind = self.path(layer, scope), type(layer).__name__
        if any(v is not None for k, v in kwargs.items() if k.endswith("mask")):
            raise UnsupportedError(
                "a mask passed to a layer", path, "apply it with keras.ops.where"
            )
        kwargs = {k: v for k, v in kwargs.items() if not k.endswith("mask")}
        if (recorded := self.recorded(layer)) is not None:
            return self.functional(recorded, args, kwargs, path, training)
        if layer.dtype_policy.name != "float32":
            raise UnsupportedError(
                f"the dtype policy {layer.dtype_policy.name!r}", path, "make the model float32"
            )
        if layer.autocast:
            args = self.keras.tree.map_structure(_as_float32, args)
        own = getattr(self.keras.layers, kind, None) is type(layer)
        with self.graph.within(path), _placed(path, kind):
            name = kind if own else self.keras.saving.get_registered_name(type(layer))
            special = self.special.get(name)
            if special or forms_of(self.keras, layer):
                if len(args) != 1 or any(v is not None for v in kwargs.values()):
                    raise UnsupportedError("further arguments of its call", path)
                with contextlib.suppress(NotPlain):
                    return (special or Reader.plain)(self, layer, args[0], path, training)
            self.refuse(layer, path, own)
            return self.followed(layer, layer.call, args, kwargs, path, training)

    def refuse(self, layer: Any, path: str, own: bool) -> None:
        """Stop at a layer that cannot be followed by its call."""
        kind = type(layer).__name__
        for refused, remedy in REFUSED.items():
            if isinstance(layer, getattr(self.keras.layers, refused)):
                raise UnsupportedError(f"the layer {kind}", path, remedy)
        masks = type(layer).compute_mask is not self.keras.Layer.compute_mask
        if masks and not own and not isinstance(layer, self.keras.Model):
            raise UnsupportedError(f"{kind} makes a mask (compute_mask)", path, REFUSED["Masking"])

    def functional(self, model: Any, args: Any, kwargs: Any, path: str, training: bool) -> Any:
        """A functional model applied to ``args``."""
        tree = self.keras.tree
        given = args[0] if args else kwargs["inputs"]
        if isinstance(given, Mapping) and not isinstance(model.input, Mapping):
            given = [given[t._keras_history.operation.name] for t in model.inputs]
        env = {}
        for tensor, value in zip(model.inputs, tree.flatten(given), strict=True):
            dtype = _dtype(tensor.dtype, path)
            env[id(tensor)] = value if value.dtype == dtype else OPS["cast"](value, dtype=dtype)
        depths = sorted(model._nodes_by_depth, reverse=True)
        for node in (n for d in depths for n in model._nodes_by_depth[d]):
            if node.is_input:
                continue
            args, kwargs = self.filled(node, env, path, model)
            if kwargs.pop("training", None) is True:
                raise UnsupportedError(
                    f"{node.operation.name}(..., training=True) in a functional model", path,
                    "Keras heeds it in model(x) and overrules it in predict(); leave it out",
                )  # fmt: skip
            self.apply(node, args, kwargs, env, path, training)
        return tree.map_structure(lambda t: env[id(t)], model.output)

    def followed(
        self, layer: Any, call: Any, args: Any, kwargs: Any, path: str, training: bool
    ) -> Any:
        """What ``call``, a part of ``layer``, gives: called on symbolic tensors, then read."""
        tree, keras = self.keras.tree, self.keras
        env: dict[int, Any] = {}
        kept = []  # so that no id is used again

        def symbol(value: Any) -> Any:
            if not isinstance(value, Value):
                return value
            shape = tuple(s if isinstance(s, int) else None for s in value.shape)
            kept.append(keras.KerasTensor(shape, value.dtype))
            env[id(kept[-1])] = value
            return kept[-1]

        args, kwargs = tree.map_structure(symbol, args), tree.map_structure(symbol, kwargs)
        if "training" in inspect.signature(call).parameters:
            kwargs["training"] = training
        outputs = called(keras, layer, call, args, kwargs, path=path, training=training,
                         symbols=self.symbols)  # fmt: skip
        env.update({id(t): v for t, v in self.symbols})
        for node in behind(tree.flatten(outputs), env, self.keras):
            args, kwargs = self.filled(node, env, path, layer)
            flag = kwargs.pop("training", None)
            self.apply(node, args, kwargs, env, path, training if flag is None else bool(flag))
        return tree.map_structure(lambda t: self.value(t, env, path, layer), outputs)

    def filled(self, node: Any, env: Any, path: str, layer: Any) -> tuple[Any, Any]:
        """The arguments of a recorded call, our Values in them."""
        both = (node.arguments.args, node.arguments.kwargs)
        args, kwargs = self.keras.tree.map_structure(
            lambda x: self.value(x, env, path, layer), both
        )
        return args, dict(kwargs)

    def value(self, item: Any, env: Any, path: str, layer: Any) -> Any:
        """What stands for one leaf of a recorded call's arguments."""
        if isinstance(item, self.keras.KerasTensor):
            item = env[id(item)]
        if isinstance(item, self.keras.Variable):
            return self.variable(item, path, layer)
        if isinstance(item, np.ndarray) or self.keras.ops.is_tensor(item):
            return lift(self.graph, self.keras.ops.convert_to_numpy(item), None)
        return item

    def apply(
        self, node: Any, args: Any, kwargs: Any, env: Any, scope: str, training: bool
    ) -> None:
        """Read one recorded call; its outputs go into ``env``."""
        op = node.operation
        if isinstance(op, self.keras.Layer):
            result = self.layer(op, args, kwargs, scope, training)
        else:
            known = type(op).__module__.startswith(("keras.src.ops.", "keras.src.activations."))
            if not known:
                raise UnsupportedError(f"the keras.ops operation {type(op).__name__}", scope)
            with self.graph.within(scope), _placed(scope, type(op).__name__):
                result = operations.read(op, args, kwargs)
        flat = self.keras.tree.flatten(result)
        for tensor, value in zip(node.outputs, flat, strict=True):
            _agree(tensor, value, f"{scope}.{op.name}" if scope else op.name)
            env[id(tensor)] = value

    # -- layers ------------------------------------------------------------------------------------
    def plain(self, layer: Any, x: Value, path: str, training: bool) -> Any:
        """A layer of the table: one node, then its activation."""
        forms, config = forms_of(self.keras, layer), layer.get_config()
        form = forms[0]
        if form.op == "embedding" and x.dtype not in ("int32", "int64"):
            x = OPS["cast"](x, dtype=as_dtype("int32"))
        if form.op == "rnn" and config["go_backwards"]:
            x = OPS["flip"](x, axis=1)
        values = self.operands(form, layer, x, path)
        attrs = self.words(forms, layer, dict(zip(OPS[form.op].arrays, values, strict=True)))
        if attrs.get("training") is MODE:
            attrs["training"] = training
        if form.op == "batch_norm":
            return self.batch_norm(values, attrs)
        origin = config["padding"] if config.get("padding") == "same" else None
        outputs = OPS[form.op].append(self.graph, values, attrs, origin)
        if form.op == "rnn":
            result = outputs[0] if config["return_sequences"] else outputs[1]
            return (result, outputs[1]) if config["return_state"] else result
        return self.activated(layer, outputs[0], path)

    def words(self, forms: list[LayerForm], layer: Any, arrays: Mapping[str, Any]) -> Any:
        """Our attributes of a layer, from its configuration."""
        parts = (layer, layer.cell) if type(layer) is self.keras.layers.RNN else (layer,)
        said = {k: v for part in parts for k, v in part.get_config().items()}
        named = set().union(*(f.words for f in forms))
        said = {k: v for k, v in said.items() if k in named or not IDLE.fullmatch(k)}
        defaults: dict[str, Any] = {}
        for part in parts if said.keys() - named else ():  # what nobody names is held to these
            defaults |= _untold(part).get_config()
        for form in forms:
            try:
                return form.read(said, defaults, arrays)
            except NotTheirs as error:
                why = error
        if not forms[0].weights:
            raise NotPlain from why
        raise UnsupportedError(str(why), remedy=REMEDIES.get(type(layer).__name__, ""))

    def operands(self, form: LayerForm, layer: Any, x: Value, path: str) -> list[Value | None]:
        """The arrays of the op, in the order of its signature."""
        weights = {w.array: w for w in form.weights}
        found: list[Value | None] = []
        data = iter([x])
        for name in OPS[form.op].arrays:
            if name not in weights:
                found.append(next(data, None))
                continue
            held = attrgetter(weights[name].theirs)(layer)
            state = name.startswith("running_")
            found.append(None if held is None else self.weight(held, path, weights[name], state))
        return found

    def activated(self, layer: Any, y: Value, path: str) -> Any:
        """``y`` through the layer's activation, if it has one."""
        activation = getattr(layer, "activation", None)
        if activation is None or activation is self.keras.activations.linear:
            return y
        for name, ours in ACTIVATIONS.items():
            if activation is getattr(self.keras.activations, name, None):
                return OPS[ours](y)
        return self.followed(layer, activation, (y,), {}, path, training=False)

    def batch_norm(self, values: list[Value | None], attrs: dict[str, Any]) -> Value:
        """A shared layer starts from the statistics that its last call left."""
        states = [v for v in values[3:] if v is not None]
        now = [self.statistics[s][0] if s in self.statistics else s for s in states]
        y, *new = OPS["batch_norm"].append(self.graph, [*values[:3], *now], attrs)
        assert y.node is not None
        for state, value in zip(states, new, strict=True):
            before = self.statistics.get(state, (value, []))[1]
            self.statistics[state] = value, [*before, y.node]
        return y  # type: ignore[no-any-return]


def forms_of(keras: Any, layer: Any) -> list[LayerForm]:
    """The forms by which a layer is read: Keras's own, or one that emitted source brings along."""
    kind = type(layer)
    if kind is keras.layers.RNN:
        kind = type(layer.cell)
    elif getattr(keras.layers, kind.__name__, None) is kind:
        return PLAIN.get(kind.__name__, [])
    return BROUGHT.get(keras.saving.get_registered_name(kind).removeprefix("trivium>"), [])


def _untold(layer: Any) -> Any:
    """A layer of its kind that is told no more than it must be: what it says is the default.

    Its initializers draw seeds of their own from Python's chance, which is put back.
    """
    chance, wanted = random.getstate(), inspect.signature(type(layer)).parameters.items()
    must = {k: getattr(layer, k) for k, p in wanted
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}  # fmt: skip
    try:
        return type(layer)(**must, name=layer.name)
    finally:
        random.setstate(chance)


# -- helpers ---------------------------------------------------------------------------------------
def _dtype(name: Any, where: str) -> DType:
    try:
        return as_dtype(str(name))
    except TypeError:
        raise UnsupportedError(f"the dtype {name}", where) from None


def _as_float32(value: Any) -> Any:
    """Keras's autocast: floating inputs of a layer take its dtype."""
    if isinstance(value, Value) and value.dtype.is_floating and value.dtype != "float32":
        return OPS["cast"](value, dtype=as_dtype("float32"))
    return value


@contextlib.contextmanager
def _placed(path: str, kind: str) -> Iterator[None]:
    """Errors of the ops, as refusals that say where in the model."""
    try:
        yield
    except UnsupportedError as error:
        if error.where:
            raise
        raise UnsupportedError(error.what, path, error.remedy) from error
    except (TypeError, ShapeError, GraphError, IndexError, KeyError) as error:
        raise UnsupportedError(f"{kind}: {error}", path) from error


def _agree(tensor: Any, value: Any, where: str) -> None:
    """Is ``value`` what Keras says its ``tensor`` is? A check on everything above."""
    if not isinstance(value, Value):
        raise UnsupportedError("an output that is no tensor", where)
    sizes = zip(value.shape, tensor.shape, strict=False)
    fits = len(value.shape) == len(tensor.shape) and all(
        a == b for a, b in sizes if isinstance(a, int) and b is not None
    )
    if not fits or value.dtype != tensor.dtype:
        raise UnsupportedError(
            f"Keras says {tensor.dtype}{list(tensor.shape)}, here it would be {value.type}",
            where,
            "cast explicitly",
        )
