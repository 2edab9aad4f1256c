"""A Graph as text: what ``print(graph)`` writes, Python to the eye; read back, never run."""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType, as_dtype
from trivium.graph.check import lacks, words
from trivium.graph.core import KINDS, MODE, OPS, Graph, GraphError, Value
from trivium.shape import Dim, as_shape


# -- written ---------------------------------------------------------------------------------------
def identifier(name: str) -> str:
    """``name`` made into a Python identifier.

    >>> identifier("layer1.0.conv1"), identifier("class")
    ('layer1_0_conv1', 'class_')
    """
    word = re.sub(r"\W", "_", name, flags=re.ASCII) or "v"
    if word[0].isdigit():
        word = "_" + word
    return word + "_" if keyword.iskeyword(word) else word


def quoted(text: str) -> str:
    """``text`` as a Python string in double quotes, whatever is in it: names come from outside."""
    return json.dumps(text, ensure_ascii=False)  # every JSON string is a Python string


def literal(value: Any) -> str:
    """An attribute's value as Python source."""
    match value:
        case Dim():
            return f'"{value}"'
        case DType():
            return str(value)
        case str():
            return quoted(value)
        case tuple():
            return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
        case np.ndarray():
            return f"array({value.tolist()!r}, {as_dtype(value.dtype)}, {value.shape})"
    return repr(value)


def declaration(v: Value) -> str:
    """``param("w", float32, (3,))``: all that is said of an input."""
    frozen = "" if v.trainable else ", trainable=False"
    return f"{v.kind}({quoted(v.name)}, {v.dtype}, {literal(v.shape)}{frozen})"


def printed(graph: Graph, indent: str = "") -> Iterator[str]:
    """The lines of a Graph."""
    names: dict[Value | None, str] = {None: "None"}
    taken: set[str] = set()
    last: dict[str, int] = {}  # word -> the number that was last put behind it

    def name(value: Value, wish: str, numbered: bool) -> str:
        word = base = identifier(wish)
        while word in taken or numbered:
            numbered = False
            last[base] = last.get(base, 0) + 1
            word = f"{base}_{last[base]}"
        taken.add(word)
        names[value] = word
        return word

    inner = indent + "    "
    yield f"{indent}def {identifier(graph.name)}("
    for v in graph.inputs:
        word = name(v, v.name, numbered=False)
        yield f"{inner}{word}: {declaration(v)},"
    yield f"{indent}):"
    scope = ""
    for node in graph.nodes:
        if node.scope != scope:
            scope = node.scope
            if scope:
                yield f"{inner}with scope({quoted(scope)}):"
        here = inner + "    " * bool(scope)
        args = [names[v] for v in node.inputs]
        while args and args[-1] == "None":
            args.pop()
        for key, item in node.attrs.items():
            if isinstance(item, Graph):
                word = f"{node.op}_{key}"
                while word in taken:
                    word += "_"
                taken.add(word)
                body = list(printed(item, here))
                body[0] = f"{here}def {word}("
                yield from body
                args.append(f"{key}={word}")
            else:
                args.append(f"{key}={literal(item)}")
        if node.origin is not None:
            args.append(f"origin={literal(node.origin)}")
        left = ", ".join(name(v, v.name or node.op, numbered=not v.name) for v in node.outputs)
        yield f"{here}{left} = {node.op}({', '.join(args)})"
    for state, new in graph.updates.items():
        yield f"{inner}update({names[state]}, {names[new]})"
    yield f"{inner}return {', '.join(names[v] for v in graph.outputs) or 'None'}"


# -- read back -------------------------------------------------------------------------------------
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
