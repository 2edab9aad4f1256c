"""What the targets share that write calls, not layers: JAX functions, TensorFlow's raw ops.

A call names its numbers (``conv(params["conv1"], x, stride=2)``), the mode is an argument that is
passed on (``training``), and Graphs inside a node (the step of a scan) become functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.frameworks.writing.blocks import leaf
from trivium.frameworks.writing.classes import Class
from trivium.frameworks.writing.code import (
    Code,
    Flag,
    Keyword,
    Later,
    Member,
    Statement,
    Target,
    joined,
)
from trivium.frameworks.writing.source import Emitter
from trivium.frameworks.writing.writer import Writer
from trivium.graph import Graph, Node, UnsupportedError, Value
from trivium.shape import Dim, size_product
from trivium.transforms.replay import replay

WIDTH = 96


class Called(Later):
    """The function of an inner block, by its name."""


class Arguments(Later):
    """The keyword arguments of an inner block's call."""

    def __str__(self) -> str:
        return ", "


@dataclass(frozen=True)
class Own(Member):
    """A parameter by its full name, where a Member is named below the block."""


@dataclass
class Stateful(Statement):
    """A statement that also gives the new state of a member (JAX has no assignment)."""

    state: Member = Member("")  # noqa: RUF009  (frozen)


def keywords(arguments: Mapping[str, tuple[Any, Any]]) -> Code:
    """``name=(value, default)`` as what follows the arrays of a call."""
    return [Keyword(name, value, default) for name, (value, default) in arguments.items()]


def snake(words: Sequence[str]) -> str:
    """``basic_block``."""
    parts = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", w) for w in words if w]
    return "_".join(parts).lower()


def plain_padding(padding: Any) -> Any:
    """``1`` for ((1, 1), (1, 1)); pairs where they differ."""
    if any(isinstance(p, Dim) for pair in padding for p in pair):
        raise UnsupportedError(
            f"padding {padding} that depends on an open size", remedy="trace with a fixed size"
        )
    low, high = padding[0]
    return low if len(set(padding)) == 1 and low == high else padding


def either(outputs: Sequence[Value], code: Code) -> list[Statement]:
    """Of two results the one that is read, by its index; both where both are."""
    graph = outputs[0].graph
    read_by, results = graph.uses(), set(graph.results())
    read = [i for i, v in enumerate(outputs) if v in read_by or v in results]
    if len(read) == 1:
        return [Statement([outputs[read[0]]], [*code, f"[{read[0]}]"])]
    return [Statement(list(outputs), code)]


def passes(code: Code, name: str) -> int:
    """How often a piece of code passes a flag on."""
    return sum(isinstance(p, Flag) and p.name == name for p in code)


def flagged(cls: Class, name: str) -> int:
    """How often the statements of a class pass a flag on."""
    return sum(passes(s.code, name) for s in cls.body.statements)


# -- expressions that are written alike ------------------------------------------------------------
def linear(target: Target, node: Node) -> Code:
    """``x @ w.T + b``."""
    x, w, b = (*node.inputs, None)[:3]
    product: Code = [*target.array(x), " @ ", *target.array(w), ".T"]
    return product if b is None else [*product, " + ", *target.array(b)]


def slice_axis(target: Target, node: Node) -> Code:
    """``x[:, 1:4]``."""
    x, a = node.inputs[0], node.attrs
    assert x is not None
    code: Code = [*target.array(x), "[", ":, " * a["axis"]]
    code += [] if a["start"] == 0 else target.attribute(a["start"])
    code.append(":")
    code += [] if a["stop"] == x.shape[a["axis"]] else target.attribute(a["stop"])
    return [*code, f":{a['step']}]" if a["step"] != 1 else "]"]


def select(target: Target, node: Node) -> Code:
    """``x[:, -1]``."""
    return [*target.array(node.inputs[0]), f"[{':, ' * node.attrs['axis']}{node.attrs['index']}]"]


def new_shape(target: Target, shape: Sequence[Any]) -> list[Code]:
    """The sizes of a reshape; the only open one is -1."""
    sizes = list(shape)
    open_at = [i for i, s in enumerate(sizes) if isinstance(s, Dim)]
    if len(open_at) == 1 and size_product(s for s in sizes if isinstance(s, int)) != 0:
        sizes[open_at[0]] = -1
    return [target.attribute(s) for s in sizes]


class Calls(Target):
    """Call style: keywords for numbers, Graphs inside nodes as functions."""

    sequential = False
    bare_numbers = True

    def __init__(self) -> None:
        self.steps: dict[str, str] = {}  # functions made of inner Graphs: name -> source

    def use(self, value: Value) -> Code:
        """A parameter inside an expression."""
        return [Own(value.name)]

    def step(self, graph: Graph, wish: str) -> str:
        """The name of a function that means this inner Graph."""
        copy = Graph(wish)
        arguments = {v: copy.input("data", v.dtype, v.shape, v.name) for v in graph.inputs}
        _, env = replay(graph, into=copy, inputs=arguments)
        copy.outputs = [env[v] for v in graph.outputs]  # type: ignore[misc]
        copy.inner = True
        inner = self.inner(copy)
        inner.settle()
        source = "\n\n\n".join(self.function(inner, cls) for cls in inner.classes)
        name = inner.classes[-1].name
        for other, text in self.steps.items():
            if text == source.replace(f"def {name}(", f"def {other}("):
                return other
        self.steps[name] = source
        return name

    def inner(self, graph: Graph) -> Emitter:
        """An emitter for an inner Graph."""
        return Emitter(graph, self)

    def function(self, emitter: Emitter, cls: Class) -> str:
        """The source of one function that has no parameters."""
        raise NotImplementedError

    def taken(self, name: str) -> bool:
        """May no class or variable have this name?"""
        return super().taken(name) or name in self.steps


def scan(target: Calls, node: Node) -> Code:
    """``scan(step, (h,), (xs,), (w,))``, with the helper of that name."""
    a = node.attrs
    name = target.step(a["body"], f"{leaf(node.scope) or 'scan'}_step")
    values = [target.array(v) for v in node.inputs]
    carries, along = values[: a["carries"]], values[a["carries"] : a["carries"] + a["scanned"]]
    code: Code = [f"scan({name}"]
    for group in (carries, along, values[a["carries"] + a["scanned"] :]):
        code += [", [", *joined(group), "]"]
    return [*code, ", reverse=True)" if a["reverse"] else ")", "[0]" * (len(node.outputs) == 1)]


class CallWriter(Writer):
    """Flags, and the calls of inner blocks."""

    def piece(self, piece: Any) -> str:
        """Flags, and the function and the arguments of an inner block."""
        if isinstance(piece, Flag):
            return f", {piece.name}={self.flag(piece)}"
        if isinstance(piece, Called):
            return str(piece.body.cls.name)
        if isinstance(piece, Arguments):
            said = [(s, self.slot(s)) for s in piece.slots]
            return "".join(t if isinstance(s, Keyword) else f", {s.name}={t}" for s, t in said)
        return str(piece)

    def joins(self, s: Statement, text: str, last: bool) -> bool:
        """The last statement has the line of the return to itself."""
        return len(text) < 80 if last else super().joins(s, text, last)

    def flag(self, flag: Flag) -> str:
        """What is passed on."""
        return flag.name


def tupled(line: str, count: int) -> str:
    """``return (y,)``: the one result of an inner function is a tuple too."""
    return f"return ({line.removeprefix('return ')}{',' * (count == 1)})"


def looped(lines: Sequence[str]) -> list[str]:
    """Three and more lines that differ in a running number alone, ``["1"]``, as a loop over it."""
    found: list[str] = []
    i = 0
    while i < len(lines):
        first = re.search(r'\["(\d+)"\]', lines[i])
        run = 1
        if first:
            start = int(first[1])
            pattern = lines[i].replace(f'["{start}"]', "[str(i)]")
            while (
                i + run < len(lines)
                and pattern.replace("[str(i)]", f'["{start + run}"]') == lines[i + run]
            ):
                run += 1
        if run >= 3:
            found += [
                f"for i in range({f'{start}, ' if start else ''}{start + run}):",
                f"    {pattern}",
            ]
        else:
            found += lines[i : i + run]
        i += run
    return found


def nested(targets: Sequence[str]) -> str:
    """``{"layer1": {}}``: the dicts that assignments to dotted names need."""
    tree: dict[str, Any] = {}
    for name in targets:
        branch = tree
        for key in name.split(".")[:-1]:
            branch = branch.setdefault(key, {})
    return repr(tree).replace("'", '"')
