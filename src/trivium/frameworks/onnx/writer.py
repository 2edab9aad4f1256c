"""The ONNX nodes of a Graph while they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.frameworks.onnx import FROZEN, KIND, package, to_onnx_dtype, words
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.op import Refused
from trivium.shape import Dim, Quotient, Size
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import prune

FORMS: dict[str, Callable[..., Any]] = {}
"""Our op -> ``form(writer, node, *inputs)``, which gives the name(s) of what it made."""

ONLY_WHEN: dict[str, Callable[[Node], bool]] = {}
"""Composites whose form fits only then; otherwise their body is written."""


def form(
    *names: str, when: Callable[[Node], bool] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """This function writes these ops; composites only ``when`` that is so of the node."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        FORMS.update(dict.fromkeys(names, function))
        if when is not None:
            ONLY_WHEN.update(dict.fromkeys(names, when))
        return function

    return enter


def prepared(graph: Graph) -> Graph:
    """Only what the outputs need; composites without a form of their own become their bodies."""
    return prune(decompose(prune(graph), _kept))


def _kept(node: Node) -> bool:
    if node.op in ONLY_WHEN:
        return ONLY_WHEN[node.op](node)
    return node.op in FORMS or words().says(OPS[node.op], node.attrs) is not None


class Writer:
    """The ONNX nodes of a Graph so far, and what its Values are called there."""

    def __init__(self, graph: Graph):
        self.onnx = package()
        self.nodes: list[Any] = []
        self.names: dict[Value | None, str] = {None: ""} | {v: v.name for v in graph.inputs}
        self.taken = set(self.names.values())
        self.known: dict[Any, str] = {}  # sizes and constant integers that already have a name
        self.count = 0
        self.scope = ""
        self.axes: dict[str, tuple[str, int]] = {}  # where to read an open size
        for v in graph.of_kind("data"):
            for axis, size in enumerate(v.shape):
                if isinstance(size, Dim) and size == Dim(name := min(size.names())):
                    self.axes.setdefault(name, (v.name, axis))

    # -- pieces --------------------------------------------------------------------------------
    def fresh(self, word: str) -> str:
        """A name that no tensor has yet, in the current scope."""
        while True:
            self.count += 1
            name = f"{self.scope}/{word}_{self.count}" if self.scope else f"{word}_{self.count}"
            if name not in self.taken:
                self.taken.add(name)
                return name

    def emit(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """Add a node; the name of its output."""
        return self.many(kind, 1, *inputs, **attrs)[0]

    def many(self, kind: str, outputs: int, *inputs: str, **attrs: Any) -> list[str]:
        """Add a node with this number of outputs; their names."""
        name = self.fresh(kind)
        made = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        path = name if self.scope else f"/{name}"  # before the slash is the scope, here none
        node = self.onnx.helper.make_node(kind, given, made, name=path)
        for key, item in attrs.items():
            if item is not None:
                node.attribute.append(self._attribute(key, item))
        self.nodes.append(node)
        return made

    def _attribute(self, key: str, item: Any) -> Any:
        if isinstance(item, (tuple, list)) and not item:
            kind = self.onnx.AttributeProto.INTS
            return self.onnx.helper.make_attribute(key, [], attr_type=kind)
        return self.onnx.helper.make_attribute(key, item)

    def tensor(self, array: np.ndarray[Any, Any], dtype: DType, name: str = "") -> Any:
        """A TensorProto."""
        data = np.ascontiguousarray(array.astype(dtype.numpy, copy=False))
        kind = to_onnx_dtype(dtype)
        return self.onnx.helper.make_tensor(name, kind, array.shape, data.tobytes(), raw=True)

    def number(self, array: Any, dtype: DType) -> str:
        """A constant that is part of the graph; initializers are the parameters alone."""
        return self.emit("Constant", value=self.tensor(np.asarray(array), dtype))

    def ints(self, *items: int) -> str:
        """A constant vector of integers."""
        if items not in self.known:
            self.known[items] = self.number(np.array(items, np.int64), DType("int64"))
        return self.known[items]

    def size(self, size: Size) -> str:
        """A vector of one size, computed from the shapes of the inputs where it is open."""
        if isinstance(size, int):
            return self.ints(size)
        if size not in self.known:
            self.known[size] = reduce(lambda a, b: self.emit("Add", a, b), self._terms(size))
        return self.known[size]

    def _terms(self, size: Dim) -> Iterator[str]:
        for factors, coefficient in size.terms:
            parts = [self._atom(f) for f in factors]
            if coefficient != 1 or not parts:
                parts.append(self.ints(coefficient))
            yield reduce(lambda a, b: self.emit("Mul", a, b), parts)

    def _atom(self, atom: str | Quotient) -> str:
        if isinstance(atom, str):
            if atom not in self.axes:
                raise UnsupportedError(
                    f"the size '{atom}' stands alone in the shape of no input, so nothing in ONNX "
                    f"gives it", self.scope, "fix this size, or pass an input that has it",
                )  # fmt: skip
            if atom not in self.known:
                name, axis = self.axes[atom]
                self.known[atom] = self.emit("Shape", name, start=axis, end=axis + 1)
            return self.known[atom]
        top, bottom = self.size(atom.numerator), self.ints(atom.divisor)
        # Div truncates, // floors: without the remainder the two are the same.
        return self.emit("Div", self.emit("Sub", top, self.emit("Mod", top, bottom)), bottom)

    def sizes(self, shape: Sequence[Size]) -> str:
        """A shape as a vector."""
        if all(isinstance(s, int) for s in shape):
            return self.ints(*shape)  # type: ignore[arg-type]
        parts = [self.size(s) for s in shape]
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=0)

    def info(self, value: Value, name: str) -> Any:
        """What ONNX wants to know of an input or output."""
        shape = [s if isinstance(s, int) else str(s) for s in value.shape]
        return self.onnx.helper.make_tensor_value_info(name, to_onnx_dtype(value.dtype), shape)

    def parameter(self, value: Value, values: Mapping[str, Any]) -> Any:
        """The initializer of a parameter."""
        if value.name not in values:
            raise UnsupportedError(f"parameter {value.name!r} has no values", "", "pass them all")
        array = np.asarray(values[value.name])
        if array.shape != value.shape:
            raise UnsupportedError(f"{value.name!r} has shape {value.shape}, got {array.shape}")
        tensor = self.tensor(array, value.dtype, value.name)
        tensor.metadata_props.add(key=KIND, value=value.kind)
        if not value.trainable:
            tensor.metadata_props.add(key=FROZEN, value="false")
        return tensor

    # -- graphs --------------------------------------------------------------------------------
    def write(self, graph: Graph) -> None:
        """Add the nodes of ``graph``, whose inputs have names by now."""
        base = self.scope
        for node in graph.nodes:
            self.scope = ".".join(filter(None, (base, node.scope)))
            made = self.node(node, [self.names[v] for v in node.inputs])
            made = (made,) if isinstance(made, str) else made
            self.names |= zip(node.outputs, made, strict=True)
        self.scope = base

    def node(self, node: Node, inputs: list[str]) -> str | Sequence[str]:
        """Add what one of our nodes is in ONNX; the names of its outputs."""
        if node.op in FORMS:
            made: str | Sequence[str] = FORMS[node.op](self, node, *inputs)
            return made
        if (said := words().says(OPS[node.op], node.attrs)) is not None:
            return self.emit(said.name, *inputs, **said.keywords)
        refused = OPS[node.op].lowering("onnx", node.attrs)
        why = refused.reason if isinstance(refused, Refused) else "no ONNX operator means the same"
        raise UnsupportedError(f"{node.op} cannot be exported to ONNX: {why}", self.scope, _REMEDY)

    def results(self, graph: Graph) -> list[str]:
        """Make the outputs tensors of their own and give them plain names."""
        keys = graph.structure if isinstance(graph.structure, tuple) else ()
        many = len(graph.outputs) > 1
        wishes = list(keys) or [
            f"output_{i}" if many else "output" for i in range(len(graph.outputs))
        ]
        made = self.own(graph)
        renamed = {m: w for m, w in zip(made, wishes, strict=True) if w not in self.taken}
        _rename(self.nodes, renamed)
        return [renamed.get(m, m) for m in made]

    def own(self, graph: Graph) -> list[str]:
        """The names of the outputs, each made by a node of its own: ONNX wants that."""
        made = {name for node in self.nodes for name in node.output}
        names: list[str] = []
        for value in graph.outputs:
            name = self.names[value]
            fresh = name in made and name not in names
            names.append(name if fresh else self.emit("Identity", name))
        return names

    def body(self, graph: Graph, outer: Sequence[str], own: int = 0) -> Any:
        """A Graph inside a node: its first ``own`` inputs are its own, the others outer names."""
        graph = prepared(graph)
        saved, self.nodes = self.nodes, []
        known, self.known = self.known, dict(self.known)
        for v in graph.inputs[:own]:
            self.names[v] = self.fresh("given")
        self.names |= zip(graph.inputs[own:], outer, strict=True)
        self.write(graph)
        inputs = [self.info(v, self.names[v]) for v in graph.inputs[:own]]
        outputs = [self.info(v, n) for v, n in zip(graph.outputs, self.own(graph), strict=True)]
        proto = self.onnx.helper.make_graph(self.nodes, graph.name, inputs, outputs)
        self.nodes, self.known = saved, known
        return proto


def _rename(nodes: Sequence[Any], names: Mapping[str, str]) -> None:
    for node in nodes:
        for field in (node.input, node.output):
            field[:] = [names.get(n, n) for n in field]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g.node, names)


_REMEDY = "leave this op out of the exported part, or write it in other ops"
