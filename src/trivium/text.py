"""Reading back what ``print(graph)`` wrote: Python to the eye, parsed and never run."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.check import lacks, words
from trivium.graph import KINDS, MODE, OPS, Graph, GraphError, Value
from trivium.shape import as_shape

_SPECIAL_FLOATS = {"inf": float("inf"), "nan": float("nan")}


def parse(text: str) -> Graph:
    """The Graph that this text prints.

    >>> import trivium as tv
    >>> g = tv.trace(lambda x: tv.tanh(x) + 1, tv.Spec("float32", ("batch", 3)))
    >>> str(parse(str(g))) == str(g)
    True
    """
    try:
        (definition,) = ast.parse(text).body
        if not isinstance(definition, ast.FunctionDef):
            raise GraphError("this is no printed Graph: it does not begin with 'def'")
        return _Reader().graph(definition, {})
    except GraphError:
        raise
    except Exception as error:  # the text is anybody's, and depth ends in a MemoryError
        raise GraphError(f"this is no printed Graph: {words(error)}") from None


def _fail(node: ast.AST, why: str) -> GraphError:
    line = ast.unparse(node)
    shown = line if len(line) <= 200 else f"{line[:200]} ..."
    return GraphError(f"line {getattr(node, 'lineno', '?')}: {why}: {shown}")


class _Names(dict[str, Value | None]):
    """What each name stands for, and per op the first number that is free."""

    def __init__(self) -> None:
        super().__init__({"None": None})
        self.free: dict[str, int] = {}

    def numbered(self, op: str) -> str:
        """The name that the next result of ``op`` has when it has none of its own."""
        number = self.free.get(op, 1)
        while f"{op}_{number}" in self:
            number += 1
        self.free[op] = number
        return f"{op}_{number}"


class _Reader:
    def graph(self, definition: ast.FunctionDef, outer: dict[str, Graph]) -> Graph:
        graph = Graph(definition.name)
        names = _Names()
        for arg in definition.args.args:
            match arg.annotation:
                case ast.Call(
                    ast.Name(kind), [ast.Constant(str(name)), ast.Name(dtype), shape], words
                ) if kind in KINDS and dtype in dt.ALL:
                    sizes = as_shape(self.value(shape, {}))
                    trainable = self.trainable(arg, words)
                    names[arg.arg] = graph.input(kind, dtype, sizes, name, trainable)
                case _:
                    raise _fail(arg, "an input is kind(name, dtype, shape)")
        self.block(definition.body, graph, names, dict(outer))
        return graph

    def trainable(self, where: ast.arg, words: list[ast.keyword]) -> bool:
        """What an input says beside its type: nothing, or that it is frozen."""
        match words:
            case []:
                return True
            case [ast.keyword("trainable", ast.Constant(bool(flag)))]:
                return flag
        raise _fail(where, "an input may say trainable=False, and nothing else")

    def block(
        self,
        body: list[ast.stmt],
        graph: Graph,
        names: _Names,
        inner: dict[str, Graph],
    ) -> None:
        for statement in body:
            match statement:
                case ast.With(
                    [ast.withitem(ast.Call(ast.Name("scope"), [ast.Constant(str(scope))]))], lines
                ):
                    with graph.within(scope):
                        self.block(lines, graph, names, inner)
                case ast.FunctionDef(name=name):
                    inner[name] = self.graph(statement, inner)
                case ast.Assign([target], ast.Call(ast.Name(op), args, keywords)):
                    self.node(statement, graph, names, inner, target, op, args, keywords)
                case ast.Expr(ast.Call(ast.Name("update"), [ast.Name(state), ast.Name(new)])):
                    old, becomes = (
                        self.look(statement, names, state),
                        self.look(statement, names, new),
                    )
                    if old is not None and becomes is not None:
                        graph.updates[old] = becomes
                case ast.Return(value):
                    items = value.elts if isinstance(value, ast.Tuple) else [value]
                    if not isinstance(value, ast.Constant):  # "return None": no outputs
                        found = [self.look(statement, names, getattr(i, "id", "?")) for i in items]
                        graph.outputs = [v for v in found if v is not None]
                case _:
                    raise _fail(statement, "not a line of a printed Graph")

    def look(self, where: ast.AST, names: _Names, name: str) -> Value | None:
        if name not in names:
            raise _fail(where, f"{name!r} is not defined above")
        return names[name]

    def node(
        self, line: ast.Assign, graph: Graph, names: _Names,
        inner: dict[str, Graph], target: ast.expr, op: str, args: list[ast.expr],
        keywords: list[ast.keyword],
    ) -> None:  # fmt: skip
        if op not in OPS or not hasattr(OPS[op], "append"):
            raise _fail(line, f"there is no op {op!r}")
        inputs = [
            None
            if getattr(a, "value", "?") is None
            else self.look(line, names, getattr(a, "id", "?"))
            for a in args
        ]
        inputs += [None] * (len(OPS[op].arrays) - len(inputs))
        if lacks(OPS[op], inputs):
            raise _fail(line, f"{op}: an array is missing")
        attrs = {k.arg or "": self.value(k.value, inner) for k in keywords}
        origin = attrs.pop("origin", None)
        try:
            _, attrs = OPS[op].bind(inputs, attrs)
            outputs = OPS[op].append(graph, inputs, attrs, origin)
        except Exception as error:
            raise _fail(line, words(error)) from None
        lefts = target.elts if isinstance(target, ast.Tuple) else [target]
        if len(lefts) != len(outputs):
            raise _fail(line, f"{op} gives {len(outputs)} results")
        for left, value in zip(lefts, outputs, strict=True):
            name = getattr(left, "id", "")
            value.name = "" if name == names.numbered(op) else name  # "": numbered when printed
            names[name] = value

    def value(self, node: ast.expr, inner: dict[str, Graph]) -> Any:
        match node:
            case ast.Name(id) if id in inner:
                return inner[id]
            case ast.Name("MODE"):
                return MODE
            case ast.Name(id) if id in dt.ALL:
                return dt.as_dtype(id)
            case ast.Name(id) if id in _SPECIAL_FLOATS:
                return _SPECIAL_FLOATS[id]
            case ast.Constant(value):
                return value
            case ast.UnaryOp(ast.USub(), operand):
                return -self.value(operand, inner)
            case ast.Tuple(items) | ast.List(items):
                return tuple(self.value(i, inner) for i in items)
            case ast.Call(ast.Name("array"), [data, ast.Name(dtype), shape]):
                numbers = np.array(self.value(data, inner), dt.as_dtype(dtype).numpy)
                return numbers.reshape(self.value(shape, inner))
        raise _fail(node, "not an attribute")
