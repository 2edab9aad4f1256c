"""The verifier: is this Graph well formed? Every importer and transform may ask.

What it lets through can run: attributes are of the kinds that the op's own cases show, what a
composite's body makes is what its rule says, every open size is learned from an input, and no
value is larger than the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.graph.core import KINDS, MODE, OPS, Graph, GraphError, Node, Type, Value
from trivium.shape import Dim, possible

_Kinds = Mapping[str, frozenset[Any]]


def check(graph: Graph, named: frozenset[str] = frozenset()) -> Graph:
    """``graph`` itself, or a GraphError that names the first node that is wrong.

    ``named`` are open sizes that are known from outside, for a Graph inside another.
    """
    known: set[Value] = set(graph.inputs)
    for value in graph.inputs:
        if value.kind not in KINDS or value.graph is not graph:
            raise GraphError(f"{value!r}, {value.name!r}, is no input of this graph")
        _possible(f"the input {value.name!r}", value.type)
    called = {v.name: v for v in graph.inputs}
    for value in graph.inputs:
        if called[value.name] is not value:
            raise GraphError(f"two inputs are called {value.name!r}")
    sizes = named | {str(s) for v in graph.inputs for s in v.shape if isinstance(s, Dim)}
    for i, node in enumerate(graph.nodes):
        where = f"node {i}, {node!r}"
        if node.op not in OPS:
            raise GraphError(f"{where}: there is no op {node.op!r}")
        for read in node.inputs:
            if read is not None and read not in known:
                raise GraphError(f"{where}: reads {read!r}, which nothing before it makes")
        _check_node(node, where, sizes)
        for value in node.outputs:
            if value.node is not node or value.graph is not graph or value in known:
                raise GraphError(f"{where}: {value!r} is made elsewhere too")
            known.add(value)
    for value in graph.results():
        if value not in known:
            raise GraphError(f"the result {value!r} is made by no node of this graph")
    for state, new in graph.updates.items():
        if not any(state is v for v in graph.of_kind("state", "param")) or state.type != new.type:
            raise GraphError(f"{state!r} cannot become {new!r}")
    return graph


def _check_node(node: Node, where: str, sizes: frozenset[str]) -> None:
    op, attrs = OPS[node.op], node.attrs
    if wrong := attrs.keys() ^ op.defaults.keys():
        raise GraphError(f"{where}: has or lacks the attribute {min(wrong)}")
    if lacks(op, node.inputs):
        raise GraphError(f"{where}: an array is missing")
    for name, item in attrs.items():
        if not _fits(item, _kinds(op).get(name, frozenset())):
            raise GraphError(f"{where}: {name}={item!r} is no {name} of {node.op}")
        if isinstance(item, Graph):
            check(item, sizes)
    types = [None if v is None else v.type for v in node.inputs]
    given = [t for t in types if t is not None]
    if op.promotes and len({t.dtype for t in given}) > 1:
        raise GraphError(f"{where}: takes one dtype, got {', '.join(map(str, given))}")
    inferred = _inferred(op, types, attrs, where)
    has = [v.type for v in node.outputs]
    if inferred != has:
        said = ", ".join(map(str, has))
        raise GraphError(f"{where}: says {said}, is {', '.join(map(str, inferred))}")
    for t in inferred:
        _possible(where, t)
    if unknown := {n for item in (attrs, has) for n in _open(item)} - sizes:
        raise GraphError(f"{where}: no input says what the size {min(unknown)!r} is")
    if op.is_composite and op.rule is not None:
        for training in (True, False) if attrs.get("training") is MODE else (None,):
            mode = {} if training is None else {"training": training}
            body = _body(op, types, attrs | mode, where)
            for inner in body.nodes:  # the other ops said their types when the body was made
                if OPS[inner.op].is_composite and OPS[inner.op].rule is not None:
                    _check_node(inner, f"{where}, {inner!r}", sizes)
            if (makes := [v.type for v in body.outputs]) != has:
                raise GraphError(f"{where}: says {has}, its body makes {makes}")


def _inferred(op: Any, types: list[Type | None], attrs: dict[str, Any], where: str) -> list[Type]:
    try:
        found: list[Type] = op.infer(types, attrs)
    except Exception as error:  # a rule meets what nobody thought of: that is wrong, too
        raise GraphError(f"{where}: {words(error)}") from error
    return found


def _body(op: Any, types: list[Type | None], attrs: dict[str, Any], where: str) -> Graph:
    try:
        body: Graph = op.body(types, attrs)
    except Exception as error:
        raise GraphError(f"{where}: {words(error)}") from error
    return body


def words(error: Exception) -> str:
    """What an error says, for somebody who has not read the code that raised it."""
    if isinstance(error, (ValueError, TypeError)) and str(error):
        return str(error)
    return f"its inputs and attributes do not fit each other ({type(error).__name__}: {error})"


def _possible(where: str, type_: Type) -> None:
    if not isinstance(type_.dtype, DType):
        raise GraphError(f"{where}: {type_.dtype!r} is no dtype")
    try:
        possible(type_.shape, type_.dtype.itemsize)
    except ValueError as error:
        raise GraphError(f"{where}: {error}") from None


def _open(item: Any) -> set[str]:
    """The names of open sizes anywhere in an attribute or a list of types."""
    if isinstance(item, Dim):
        return item.names()
    if isinstance(item, Mapping):
        item = tuple(item.values())
    return {n for i in item for n in _open(i)} if isinstance(item, (tuple, list)) else set()


# -- what an attribute may be ----------------------------------------------------------------------
def _kind(item: Any) -> Any:
    """What sort of thing an attribute is; of a tuple, what its items are."""
    match item:
        case bool() | np.bool_():
            return "flag"
        case int() | np.integer() | Dim():
            return "size"
        case float() | np.floating():
            return "number"
        case DType():
            return "dtype"
        case tuple():
            return frozenset(map(_kind, item))
    return "flag" if item is MODE else type(item).__name__


def _fits(item: Any, kinds: frozenset[Any]) -> bool:
    kind = _kind(item)
    if isinstance(kind, frozenset):
        inside = [k for k in kinds if isinstance(k, frozenset)]
        return bool(inside) and all(_fits(i, frozenset().union(*inside)) for i in item)
    return kind in kinds or (kind == "size" and "number" in kinds)


def lacks(op: Any, inputs: Sequence[Any]) -> bool:
    """Is an array missing that may not be left out? A default says so, or a case without it."""

    def optional(at: int) -> bool:
        shown = any(at < len(c.arrays) and c.arrays[at] is None for c in op.cases)
        return shown or op.required <= at < len(op.arrays)

    absent = [i for i, v in enumerate(inputs) if v is None]
    return len(inputs) < op.required or not all(map(optional, absent))


def _kinds(op: Any) -> _Kinds:
    """For each attribute the kinds it has, spelled out, in the cases that the op declares."""
    if op not in _learned:
        found: dict[str, set[Any]] = {name: set() for name in op.defaults}
        for one in op.cases:
            types = [None if a is None else Type(a.dtype, a.shape) for a in one.arrays]
            for name, item in op.normalize(types, one.attrs).items():
                found[name].add(_kind(item))
        _learned[op] = {name: frozenset(kinds) for name, kinds in found.items()}
    return _learned[op]


_learned: dict[Any, _Kinds] = {}
