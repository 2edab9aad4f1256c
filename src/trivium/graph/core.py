"""The one Graph: Values made by Nodes, in order, pure. Everything else reads or writes one.

A Graph is in SSA form. Its inputs are tagged: ``data`` (what a call passes), ``param`` (what
training changes by gradient; not where it is frozen, ``trainable=False``), ``state`` (what training
changes otherwise: batch-norm statistics, optimizer slots), ``rng`` (a key) and ``hyper`` (the
learning rate). A Graph never assigns: what a state becomes is an entry of ``updates``.

This module knows no op. Ops enter their names into :data:`OPS`; ``Node.op`` is one of them.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.operators import OPS as OPS
from trivium.operators import Operators as Operators
from trivium.shape import Dim, Shape, as_shape

KINDS = ("data", "param", "state", "rng", "hyper")


class _Mode:
    """The value of a ``training`` attribute that the Graph leaves open: the caller decides."""

    def __repr__(self) -> str:
        return "MODE"

    def __reduce__(self) -> str:
        return "MODE"

    def __bool__(self) -> bool:
        raise GraphError(
            "the model asks in Python whether it is training, so one Graph cannot serve both "
            "modes; trace it with training=True or training=False"
        )


MODE = _Mode()


class GraphError(ValueError):
    """The Graph is not what it has to be; the message names the node."""


class UnsupportedError(ValueError):
    """Something cannot be carried exactly, and so is not carried: what, where, and what to do."""

    def __init__(self, what: str, where: str = "", remedy: str = ""):
        place = f" (at {where})" if where else ""
        super().__init__(f"{what}{place}" + (f"; {remedy}" if remedy else ""))
        self.what, self.where, self.remedy = what, where, remedy


class Type(NamedTuple):
    """What is known of a Value before it runs."""

    dtype: DType
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Value(Operators):
    """One edge of a Graph: an input, or what a Node makes."""

    __slots__ = ("dtype", "graph", "index", "kind", "name", "node", "shape", "trainable")

    def __init__(self, graph: Graph, type: Type, node: Node | None, index: int, name: str = ""):
        self.graph, self.node, self.index, self.name = graph, node, index, name
        self.dtype, self.shape = type
        self.kind: str | None = None  # one of KINDS for an input of the Graph
        self.trainable = True  # False: a param that training passes through unchanged

    @property
    def type(self) -> Type:
        """Its dtype and shape."""
        return Type(self.dtype, self.shape)

    def __repr__(self) -> str:
        return f"<{self.name or (self.node.op if self.node else self.kind)}: {self.type}>"

    def __bool__(self) -> bool:
        raise GraphError(
            f"{self!r} is traced and has no number yet, so Python cannot branch on it; "
            f"use trivium.where or trivium.cond"
        )

    __float__ = __int__ = __index__ = __bool__

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise GraphError(f"{self!r} is traced and has no numbers yet; use trivium's own functions")


class Node:
    """One application of an op."""

    __slots__ = ("attrs", "inputs", "op", "origin", "outputs", "scope")

    def __init__(self, op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]):
        self.op = op
        self.inputs = tuple(inputs)  # None where an optional array was left out
        self.attrs = dict(attrs)
        self.outputs: tuple[Value, ...] = ()
        self.scope = ""  # the path of the module it belongs to: "layer1.0.conv1"
        self.origin: Any = None  # what the source framework called it, where that matters

    @property
    def out(self) -> Value:
        """Its only output."""
        (value,) = self.outputs
        return value

    def __repr__(self) -> str:
        return f"<{self.op} in {self.scope or 'the top scope'}>"


_current: contextvars.ContextVar[Graph | None] = contextvars.ContextVar("graph", default=None)


def current() -> Graph | None:
    """The Graph that is being built here, if one is."""
    return _current.get()


class Graph:
    """A pure function on arrays, as data.

    >>> import trivium as tv
    >>> with tv.Graph() as g:
    ...     x = tv.placeholder("float32", ("batch", 3), name="x")
    ...     g.outputs = [tv.tanh(x)]
    >>> print(g)
    def graph(
        x: data("x", float32, ("batch", 3)),
    ):
        tanh_1 = tanh(x)
        return tanh_1
    """

    def __init__(self, name: str = "graph"):
        self.name = name
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.outputs: list[Value] = []
        self.updates: dict[Value, Value] = {}  # state input -> what it becomes
        self.captured: dict[int, tuple[Any, Value]] = {}  # eager arrays met while tracing, by id
        self.scope = ""
        self.training: Any = MODE  # what modules traced into this Graph answer; None: as outside
        self.inner = False  # inside a control-flow node: what it reads from outside is an input
        self.classes: dict[str, str] = {}  # scope -> what the source called the module's class
        self.structure: Any = None  # how the outputs were nested, when that was more than one
        self.sizes: dict[str, int] = {}
        """What open sizes were in the example that this was read from, the batch apart."""
        self._tokens: list[contextvars.Token[Graph | None]] = []
        self._named: dict[str, Value] = {}  # name -> the input that was made with it

    # -- building ------------------------------------------------------------------------------
    def __enter__(self) -> Graph:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    @contextlib.contextmanager
    def within(self, scope: str) -> Iterator[None]:
        """Nodes made in this context belong to ``scope``."""
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before

    def input(self, kind: str, dtype: Any, shape: Any, name: str, trainable: bool = True) -> Value:
        """A new input of this kind; a ``param`` may be frozen, ``trainable=False``."""
        if kind not in KINDS:
            raise GraphError(f"an input is one of {', '.join(KINDS)}, not {kind!r}")
        if not trainable and kind != "param":
            raise GraphError(f"{name!r} is {kind}: only a param is trainable or not")
        known = self._named.get(name)
        if known is not None and known.name == name and any(v is known for v in self.inputs):
            raise GraphError(f"the graph already has an input {name!r}")
        value = Value(self, Type(as_dtype(dtype), as_shape(shape)), None, len(self.inputs), name)
        value.kind, value.trainable = kind, trainable
        self.inputs.append(value)
        self._named[name] = value
        return value

    def rename(self, value: Value, name: str) -> None:
        """Call an input something else."""
        value.name = name
        self._named[name] = value

    def key(self) -> Value:
        """The input that everything random here draws from, made when it is first asked for."""
        found = self.of_kind("rng")
        return found[0] if found else self.input("rng", "uint64", (2,), self.unused("rng"))

    def unused(self, wish: str) -> str:
        """``wish``, with underscores behind it where an input is called that already."""
        while any(v.name == wish for v in self.inputs):
            wish += "_"
        return wish

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Any],
        types: Sequence[Type],
        origin: Any = None,
    ) -> tuple[Value, ...]:
        """Append a node whose outputs have ``types``. Op.__call__ is the usual way here."""
        for value in inputs:
            if value is not None and value.graph is not self:
                raise GraphError(f"{value!r} belongs to another graph than this {op}")
        node = Node(op, inputs, attrs)
        node.scope, node.origin = self.scope, origin
        node.outputs = tuple(Value(self, t, node, i) for i, t in enumerate(types))
        self.nodes.append(node)
        return node.outputs

    # -- reading -------------------------------------------------------------------------------
    def of_kind(self, *kinds: str) -> list[Value]:
        """The inputs of these kinds, in order."""
        return [v for v in self.inputs if v.kind in kinds]

    def trained(self) -> list[Value]:
        """The parameters that training changes: all that are not frozen."""
        return [v for v in self.of_kind("param") if v.trainable]

    def dims(self) -> set[str]:
        """The names of the sizes that are open."""
        return {n for v in self.inputs for s in v.shape if isinstance(s, Dim) for n in s.names()}

    def results(self) -> list[Value]:
        """Outputs, then what the states become: all that has to be computed."""
        return [*self.outputs, *self.updates.values()]

    def unread(self) -> list[Value]:
        """The parameters and states that nothing reads: they are kept, under their names."""
        read = {v for node in self.nodes for v in node.inputs} | set(self.results())
        read |= set(self.updates)
        return [v for v in self.of_kind("param", "state") if v not in read]

    def uses(self) -> dict[Value, list[Node]]:
        """For each Value the nodes that read it."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None:
                    found.setdefault(value, []).append(node)
        return found

    def __str__(self) -> str:
        from trivium.graph.text import printed

        return "\n".join(printed(self))

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.inputs)} inputs, {len(self.nodes)} nodes>"

    def same_as(self, other: Graph) -> bool:
        """Equal in inputs, nodes, attributes and wiring. Scopes and value names do not count."""
        return self.difference(other) is None

    def difference(self, other: Graph) -> str | None:
        """The first thing in which two Graphs differ, in words; None when they are the same."""
        from trivium.graph.text import declaration

        pairs: dict[Value | None, Value | None] = {None: None}
        data = [g.of_kind("data", "rng", "hyper") for g in (self, other)]
        if [(v.kind, v.type) for v in data[0]] != [(v.kind, v.type) for v in data[1]]:
            return f"inputs: {data[0]} against {data[1]}"
        pairs |= zip(*data, strict=True)  # arguments go by position, parameters by name
        held = [g.of_kind("param", "state") for g in (self, other)]
        mine, theirs = (set(map(declaration, h)) for h in held)
        if mine != theirs:
            left, right = mine - theirs, theirs - mine
            return f"parameters: {', '.join(sorted(left))} against {', '.join(sorted(right))}"
        by_name = {v.name: v for v in held[1]}
        pairs |= {v: by_name[v.name] for v in held[0]}
        for i, (a, b) in enumerate(zip(self.nodes, other.nodes, strict=False)):
            if a.op != b.op or not _identical([pairs.get(v) for v in a.inputs], b.inputs):
                return f"node {i}: {a!r} against {b!r}, or other inputs"
            if (key := _differing_attr(a.attrs, b.attrs)) is not None:
                return f"node {i}, {a!r}: {key}={a.attrs.get(key)!r} against {b.attrs.get(key)!r}"
            pairs |= zip(a.outputs, b.outputs, strict=True)
        if len(self.nodes) != len(other.nodes):
            return f"{len(self.nodes)} nodes against {len(other.nodes)}"
        if not _identical([pairs[v] for v in self.outputs], other.outputs):
            return "other outputs"
        new = {pairs[k]: pairs[v] for k, v in self.updates.items()}
        if new.keys() != other.updates.keys() or any(
            new[k] is not v for k, v in other.updates.items()
        ):
            return "other updates of states"
        return None


def _identical(a: Sequence[Any], b: Sequence[Any]) -> bool:
    # Never ==: on Values that would build a comparison.
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _differing_attr(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if isinstance(x, Graph) and isinstance(y, Graph):
            same = x.same_as(y)
        elif isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            same = (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        else:  # by repr, because nan != nan, 0.0 == -0.0 and 1 == True
            same = repr(x) == repr(y)
        if not same:
            return key
    return None
