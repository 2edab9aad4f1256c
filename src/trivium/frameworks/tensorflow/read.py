"""TensorFlow functions -> Graph: a traced function, read operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.tensorflow.lines import alike, match, traced, words
from trivium.frameworks.tensorflow.operators import HANDLERS
from trivium.frameworks.tensorflow.run import load_tensorflow
from trivium.frameworks.tensorflow.sizes import Held
from trivium.frameworks.tensorflow.walk import Walk, told
from trivium.frameworks.words import Call
from trivium.graph import OPS, Graph, Type, UnsupportedError, Value
from trivium.op import Op
from trivium.shape import Dim, Size, axis_name
from trivium.transforms.replay import prune


def read(function: Callable[..., Any], variables: Mapping[str, Any], *examples: Any,
         name: str = "model") -> tuple[Graph, dict[str, Any]]:  # fmt: skip
    """``function(*examples)`` as a Graph, and the variables that it reads, by their names.

    The first size of the examples is open where the function takes any. ``variables`` has names for
    those that hang on the function's object; others are called as they call themselves. One that
    is not trainable is frozen.
    """
    tf = load_tensorflow()
    kinds = [(tuple(x.shape), x.dtype) for x in examples]
    first = next((shape[0] for shape, _ in kinds if shape), None)
    opened = [(None, *shape[1:]) if shape and shape[0] == first else shape for shape, _ in kinds]
    for shapes in (opened, [shape for shape, _ in kinds]):
        specs = [tf.TensorSpec(s, dtype) for s, (_, dtype) in zip(shapes, kinds, strict=True)]
        try:
            return _read(tf, _concrete(tf, function, specs), variables, name)
        except UnsupportedError as error:  # perhaps a size that it asks about
            refused = error
    raise refused


def _read(
    tf: Any, concrete: Any, variables: Mapping[str, Any], name: str
) -> tuple[Graph, dict[str, Any]]:
    graph, inside = Graph(name), concrete.graph
    captured = concrete.captured_inputs
    reader = Reader(graph)
    arguments = inside.inputs[: len(inside.inputs) - len(captured)]
    data = [graph.input("data", reader.dtype(t), _shape(t), f"x{i}" if len(arguments) > 1 else "x")
            for i, t in enumerate(arguments)]  # fmt: skip
    names = {id(v.handle): (n, v) for n, v in variables.items()}
    names |= {id(v.handle): (v.name.partition(":")[0].replace("/", "."), v)
              for v in inside.variables if id(v.handle) not in names}  # fmt: skip
    held: dict[int, Held] = {}
    for handle in captured:
        if handle.dtype == tf.resource and id(handle) not in held:
            held[id(handle)] = Held(*_declared(graph, *names.get(id(handle), ("", None))))
    items = [*data, *(held.get(id(c)) or np.asarray(c.numpy()) for c in captured)]
    with graph:
        graph.outputs = [reader.value(v) for v in reader.run(inside, items)]
    _nested(graph, inside.structured_outputs)
    graph.updates = dict(reader.became)
    prune(graph)
    reader.settled()
    return graph, {h.value.name: h.variable for h in held.values()}


def _nested(graph: Graph, structure: Any) -> None:
    """How the outputs are nested; a dict's are flattened by name, and come as it has them."""
    if isinstance(structure, Mapping):
        names = sorted(structure)
        graph.outputs = [graph.outputs[names.index(n)] for n in structure]
        graph.structure = tuple(structure)
    elif isinstance(structure, (tuple, list)):
        graph.structure = list if isinstance(structure, list) else tuple
    parts = structure.values() if isinstance(structure, Mapping) else structure
    if graph.structure and not all(hasattr(p, "op") for p in parts):
        raise UnsupportedError("outputs nested in outputs", graph.name, "give them side by side")


def _declared(graph: Graph, name: str, variable: Any) -> tuple[Value, Any]:
    """A variable as an input: frozen where it is not trainable, a state where it is no float."""
    if variable is None:
        raise UnsupportedError("a resource that is no variable: a table, an iterator", graph.name)
    kind = as_dtype(variable.dtype.name)
    train = bool(variable.trainable) or not kind.is_floating
    return graph.input("param" if kind.is_floating else "state", kind, tuple(variable.shape),
                       graph.unused(name), train), variable  # fmt: skip


def _concrete(tf: Any, function: Any, specs: Sequence[Any]) -> Any:
    try:
        return tf.function(lambda *xs: function(*xs)).get_concrete_function(*specs)
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        remedy = "examples are what tf.function takes, one for each input"
        what = f"a function that TensorFlow cannot trace: {line}"
        raise UnsupportedError(what, remedy=remedy) from error


def _shape(tensor: Any) -> tuple[Size, ...]:
    rank = len(tensor.shape)
    return tuple(Dim(axis_name(i, rank)) if s is None else int(s)
                 for i, s in enumerate(tensor.shape))  # fmt: skip


class Reader(Walk):
    """A traced function on its way into a Graph; handlers get it as ``at``."""

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.unknown: dict[Value, UnsupportedError] = {}
        self.became: dict[Value, Value] = {}

    def translate(self, call: Call, given: list[Any], attrs: dict[str, Any]) -> Sequence[Any]:
        """What a handler or a line says; else Values that what reads them may make sense of."""
        said = told(self.op, attrs)
        result = self.by_line(call)
        if result is None and (handler := HANDLERS.get(call.name)) is not None:
            result = handler(self, *given, **said)
        if result is not None:
            return list(result) if isinstance(result, (tuple, list)) else [result]
        error = self.refuse(f"the operator {call.name} with {said}")
        if not self.op.outputs or any(isinstance(g, Held) for g in given):
            raise error
        made = self.nobody()
        self.unknown |= dict.fromkeys(made, error)
        return made

    def settled(self) -> None:
        """Raise where a result needs what nobody made sense of."""
        read = [v for node in self.graph.nodes for v in node.inputs] + self.graph.results()
        for value in read:
            if value in self.unknown:
                raise self.unknown[value]

    def value(self, item: Any) -> Value:
        """What stands for a tensor, as a Value."""
        if isinstance(item, Value):
            return item
        if isinstance(item, Held):
            raise self.refuse(f"the variable {item.value.name} itself as an operand")
        made: Any
        flat, kind = item.reshape(-1), "int32" if item.dtype == object else item.dtype.name
        if item.dtype == object and item.ndim:
            made = OPS["stack"](*map(self.value, item), axis=0)
        elif item.ndim == 0 or (flat.size > 1 and (flat == flat[0]).all()):
            number = flat[0] if item.dtype == object else _said(flat[:1].reshape(()))
            made = OPS["full"](shape=item.shape, value=number, dtype=as_dtype(kind))
        else:
            made = OPS["constant"](value=item)
        value: Value = made
        return value

    # -- the lines, backwards ------------------------------------------------------------------
    def by_line(self, call: Call) -> Any:
        """The op whose line ends in this call, with all that it is made of."""
        for line in words().get(call.name, ()):
            found: dict[str, Any] = {}
            if not match(line.call, call, self.calls, found):
                continue
            op, attrs = line.op, line.fixed | {
                k: _said(v) for k, v in found.items() if k in line.op.defaults
            }  # fmt: skip
            arrays = {a: found[a] for a in op.arrays if a in found}
            kinds = tuple(_type(arrays[a]) if a in arrays else None for a in op.arrays)
            if not line.plain and not self.confirmed(line, attrs, kinds, call, arrays):
                continue
            try:
                attrs, _ = op.settle(kinds, attrs)
            except (TypeError, ValueError):
                continue
            result = op(*self.operands(op, arrays), **attrs)
            return result[0] if isinstance(result, tuple) else result
        return None

    def confirmed(self, line: Any, attrs: Any, kinds: Any, call: Call, arrays: Any) -> bool:
        """Is the line, traced on these very types, this very call?"""
        again: dict[str, Any] = {}
        wanted = traced(line.op, line.text, attrs, kinds)
        same = wanted is not None and match(wanted, call, self.calls, again)
        return same and all(alike(a, arrays[n]) for n, a in again.items())

    def operands(self, op: Op, arrays: Mapping[str, Any]) -> list[Any]:
        """A number stays one beside an array, so that it is written as one."""
        beside = op.promotes and any(isinstance(a, Value) for a in arrays.values())
        return [
            None if n not in arrays
            else _said(arrays[n]) if beside and _is_number(arrays[n]) else self.value(arrays[n])
            for n in op.arrays
        ]  # fmt: skip


def _is_number(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.ndim == 0 and item.dtype.kind in "if"


def _said(item: Any) -> Any:
    """An attribute as Python says it; float32's digits."""
    if not isinstance(item, np.ndarray):
        return item
    if item.dtype.kind == "f" and item.ndim == 0:
        return float(str(item))
    return item.item() if item.ndim == 0 else tuple(item.reshape(-1).tolist())


def _type(item: Any) -> Type:
    if isinstance(item, Value):
        return item.type
    return Type(as_dtype("int32" if item.dtype == object else item.dtype), item.shape)
