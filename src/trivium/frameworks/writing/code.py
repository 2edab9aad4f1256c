"""Pieces of source, and what a target says about its own: ops, layers, literals.

Code is a list of pieces: text, a Value (its variable), a :class:`Slot` (a number or word that may
become a constructor argument), a :class:`Member` (a layer or parameter of this block) or a
:class:`Size` (an open size, read from a variable's shape).
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.frameworks.layer import LayerForm
from trivium.frameworks.ways import At
from trivium.frameworks.words import MISSING, pieces
from trivium.frameworks.writing.blocks import Layer
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.op import Refused
from trivium.shape import Dim, size_product


@dataclass(eq=False)
class Slot:
    """A literal that may differ between blocks of one class."""

    name: str
    value: Any
    parameter: str = field(default="", kw_only=True)
    """The constructor's argument that holds it, where it does differ."""

    @property
    def wide(self) -> bool:
        """Is it a number of channels or features: what a layer has to be told?"""
        asked = not isinstance(self, Keyword) or self.default is MISSING
        return asked and isinstance(self.value, int) and not self.name.startswith("kernel")


@dataclass(eq=False)
class Keyword(Slot):
    """``, name=value``, left out where it is the default in every block of the class."""

    default: Any = MISSING


@dataclass(eq=False)
class Rest(Slot):
    """A size that may be written as -1, as what the others leave."""


class Word(str):
    """A literal that stands in source as it is: ``F.relu``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Later:
    """Stands for an inner block, whose class is settled first; ``slots``: what it is given."""

    def __init__(self, body: Any):
        self.body = body
        self.slots: list[Slot] = []


@dataclass(eq=False)
class Chain:
    """The members of a Sequential, each with how often it stands there in a row."""

    items: list[tuple[Code, Slot]]
    body: Any = None
    """The block that it was."""


@dataclass(eq=False)
class Guard:
    """Statements under a condition, of which the others see one value: without, another is it."""

    test: str
    """The member, or the constructor's argument, that is there or true."""
    member: bool
    gives: Value
    takes: Value


@dataclass(frozen=True)
class Member:
    """A layer or parameter of the block, by its name in it."""

    name: str


@dataclass(frozen=True)
class Many:
    """All that a block reads, however much that is: ``*xs``, or ``xs`` where a list is wanted."""

    name: str = "*xs"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Size:
    """An open size."""

    dim: Dim


@dataclass(frozen=True)
class Flag:
    """``, training=training`` or ``, rng=rng``: what a call passes on."""

    name: str

    def __str__(self) -> str:
        return f", {self.name}="


Piece = Any  # str | Value | Slot | Member | Size | Flag | Later | Chain
Code = list[Piece]


@dataclass
class Statement:
    """``outputs = code``. ``infix``: needs brackets inside a larger expression."""

    outputs: list[Value | None]
    code: Code
    infix: bool = False
    effect: bool = False
    """It changes a state, so it stays even if nobody reads its outputs."""
    guard: Guard | None = None
    wishes: tuple[str, ...] = ()
    """What its outputs are called, where that is known."""


@dataclass(frozen=True)
class Optional:
    """An argument that is left out where it is the default."""

    value: Any
    default: Any

    def left_out(self) -> bool:
        """Does it go without saying?"""
        return bool(self.value == self.default)


class Target:
    """What a framework's source looks like. Subclassed once per framework."""

    name = ""
    forms: Sequence[LayerForm] = ()
    functions: dict[str, Callable[..., Code]] = {}  # noqa: RUF012  (one table per class is meant)
    helpers: dict[str, str] = {}  # noqa: RUF012  (name used in the source -> the source that defines it)
    sequential = True  # numbered children in a chain are the framework's own Sequential
    repeats = True  # one member may be called several times
    reserved: frozenset[str] = frozenset()  # what emitted source itself calls something
    identity = ""  # the layer that gives what it gets; a function has none
    passed = True  # a function of the framework may be an argument of a constructor
    holds = True  # a block is an object, whose members may be asked for
    ones: frozenset[str] = frozenset()  # the parameters of no layer that begin as ones
    lacks: frozenset[str] = frozenset()  # dtypes of which there are no arrays in its source
    bare_numbers = False  # a Python number may stand for an array beside another, in any function

    # -- to be said by each target ---------------------------------------------------------------
    def prepare(self, graph: Graph) -> Graph:
        """The Graph with what the target lacks replaced by what it has."""
        return graph

    def literal(self, value: Any) -> str:
        """A number, tuple, dtype ... as source."""
        if isinstance(value, tuple):
            return f"({', '.join(map(self.literal, value))}{',' * (len(value) == 1)})"
        if isinstance(value, DType):
            return f'"{value}"'
        if isinstance(value, float) and (value in (float("inf"), float("-inf")) or value != value):
            return f'float("{value}")'
        if isinstance(value, str):
            return f'"{value}"'
        return repr(value)

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """``nn.Conv2d(3, 64, kernel_size=7)``: the first arguments of a layer go without a name."""
        code: Code = [form.layer, "("]
        for i, (key, value) in enumerate(arguments.items()):
            if isinstance(value, Optional):
                code.append(Keyword(key, value.value, value.default))
            elif i < self.positional(form):
                code += [", "] * bool(i) + [Slot(key, value)]
            else:
                code.append(Keyword(key, value))
        return [*code, ")"]

    def makes(self, dtypes: set[DType]) -> bool:
        """Has the framework layers whose parameters are of these floating dtypes?"""
        return dtypes <= {"float32"}

    def of_dtype(self, dtype: DType) -> dict[str, Any]:
        """The constructor's argument for a layer of a dtype that is not float32."""
        return {}

    def part(self, name: str) -> str:
        """What a part of a path is called there."""
        return name

    def taken(self, name: str) -> bool:
        """May no class or variable have this name?"""
        return name in self.reserved or name in self.helpers or keyword.iskeyword(name)

    def positional(self, form: LayerForm) -> int:
        """How many constructor arguments are usually written without their names."""
        return 0

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """The statements that apply a layer."""
        x = next(v for v in layer.node.inputs if v is not None)
        outputs: list[Value | None] = [layer.node.outputs[0]]
        effect = layer.node.op == "batch_norm"
        return [Statement(outputs, [member, "(", x, ")"], effect=effect)]

    def results(self, node: Node) -> list[Value | None]:
        """What the call form of a node gives: all outputs, unless the target says otherwise."""
        return list(node.outputs)

    def parameter(self, value: Value) -> Code:
        """The declaration of a parameter that belongs to no layer."""
        raise UnsupportedError(f"{self.name} source with the free parameter {value.name}")

    def use(self, value: Value) -> Code:
        """A parameter inside an expression."""
        return [Member(value.name)]

    def render(self, emitter: Any) -> str:
        """The whole source."""
        raise NotImplementedError

    def class_name(self, words: Sequence[str]) -> str:
        """What a class (or function) is called: ``BasicBlock``."""
        return "".join(w[:1].upper() + w[1:] for w in words)

    def unbound(self, value: Value, axis: int) -> Code:
        """All parts of a value along an axis, side by side; nothing where there is no such call."""
        return []

    # -- lowering a node ---------------------------------------------------------------------------
    def lowers(self, node: Node) -> bool:
        """Has the target a form of its own for this node?"""
        if node.op in self.functions or self.template(node) is not None:
            return True
        return any(f.op == node.op and f.write(node) is not None for f in self.forms)

    def template(self, node: Node) -> str | None:
        """The declaration's line for this node, if it has one."""
        line = OPS[node.op].lowering(self.name, node.attrs)
        return line if isinstance(line, str) else None

    def expression(self, node: Node) -> Code:
        """The call form of a node."""
        form = OPS[node.op].lowering(self.name, node.attrs)
        why, remedy = "", ""
        if isinstance(form, Refused):
            why, remedy = f": {form.reason}", form.remedy
        elif node.op in self.functions:
            return self.functions[node.op](self, node)
        elif form is not None:
            return self.fill(form, node)
        raise UnsupportedError(
            f"{self.name} has no exact form of {node.op}{why}",
            node.scope or "the top scope",
            remedy
            or f"write this part with ops that {self.name} has (docs/coverage.md), or carry the "
            "model to another framework",
        )

    def by_line(self, node: Node) -> Code:
        """As the declaration's line says it: for functions that have more to say of some nodes."""
        line = self.template(node)
        assert line is not None, f"{node.op} has no line for {self.name}"
        return self.fill(line, node)

    def fill(self, template: str, node: Node) -> Code:
        """A one-line template with its placeholders replaced by pieces."""
        op = OPS[node.op]
        arrays: dict[str, Any] = dict(zip(op.arrays, node.inputs, strict=False))
        code: Code = []
        infix = is_infix([re.sub(r"\{.*?\}", "v", template)])
        for piece in pieces(template):
            if isinstance(piece, str):
                code.append(piece)
            elif piece.name == op.variadic:
                for i, v in enumerate(node.inputs):
                    code += [", "] * bool(i) + self.array(v)
            elif piece.operand(op):
                value = arrays.get(piece.name)
                if value is None and piece.default is None:
                    continue
                code += [piece.before] if piece.before else []
                bare = value is not None and self.bare(node, value, infix)
                code += number(self, value) or self.array(value) if bare else self.array(value)
            elif (said := piece.said(At.node(op, node))) is not MISSING:
                said = said if piece.star else (said,)
                parts = [self.attribute(s, piece.name) for s in said]
                if node.op == "reshape" and size_product(node.out.shape) != 0:
                    parts = [
                        [Rest(p.name, p.value) if isinstance(p, Slot) else p for p in part]
                        for part in parts
                    ]
                code += [piece.before, *joined(parts)]
        return _without_trailing_none(code)

    def bare(self, node: Node, value: Value, infix: bool) -> bool:
        """May this operand, if it is a number, stand there as Python's?

        Beside a sign that asks for one array among the operands; a function asks for arrays, unless
        the target says ``bare_numbers``.
        """
        if infix:
            return value is not node.inputs[0] or not all(map(_is_full, node.inputs))
        return self.bare_numbers and beside_array(node, value)

    def array(self, value: Value | None) -> Code:
        """An operand."""
        if value is None:
            return ["None"]
        return self.use(value) if value.kind in ("param", "state") else [value]

    def number(self, value: Value) -> Code:
        """The number that a ``full`` without axes is, as Python's operators take it."""
        assert value.node is not None
        return self.attribute(value.node.attrs["value"], "scale")

    def attribute(self, value: Any, name: str = "") -> Code:
        """An attribute's value; what has a name may be another in another block of the class."""
        if isinstance(value, Dim):
            return [Size(value)]
        if isinstance(value, tuple) and any(isinstance(v, Dim) for v in value):
            inside = joined([self.attribute(v, name) for v in value])
            return ["(", *inside, ",)" if len(value) == 1 else ")"]
        return [Slot(name, value)] if name else [self.literal(value)]


def _is_full(value: Value | None) -> bool:
    return value is not None and value.node is not None and value.node.op == "full"


def beside_array(node: Node, value: Value | None) -> bool:
    """Does another operand, which is no number, have this one's dtype? Then it decides."""
    return any(
        v is not None and value is not None and v.dtype == value.dtype and not _is_full(v)
        for v in node.inputs
    )  # fmt: skip


def number(target: Target, value: Value | None) -> Code:
    """The literal a Value is, if it is one number: Python's operators take it as it stands."""
    if value is None or value.node is None or value.node.op != "full" or value.shape != ():
        return []
    return target.number(value)


def factors(graph: Graph) -> set[str]:
    """The parameters and states that something is multiplied with or divided by.

    They begin as ones, as the scale of a norm does; what is added begins as zeros.
    """
    found: set[str] = set()
    turned: dict[Value, str] = {v: v.name for v in graph.of_kind("param", "state")}
    for node in graph.nodes:
        held = [turned[v] for v in node.inputs if v is not None and v in turned]
        if node.op in ("multiply", "divide"):
            found.update(held)
        elif held and len(node.inputs) == 1 == len(node.outputs):  # the same numbers, or their root
            turned[node.out] = held[0]
    return found


def joined(parts: Sequence[Code]) -> Code:
    code: Code = []
    for i, part in enumerate(parts):
        code += [", "] * bool(i) + part
    return code


def _without_trailing_none(code: Code) -> Code:
    while len(code) >= 3 and code[-1] == ")" and code[-2] == "None" and code[-3] == ", ":
        code = [*code[:-3], ")"]
    return code


def is_infix(code: Code) -> bool:
    """Does an expression need brackets inside a larger one?"""
    depth = 0
    for piece in code:
        if not isinstance(piece, str):
            continue
        for i, c in enumerate(piece):
            depth += c in "([{"
            depth -= c in ")]}"
            if depth == 0 and (c == " " or (c in "-~" and i == 0 and piece is code[0])):
                return True
    return False


def array_source(array: np.ndarray[Any, Any]) -> str:
    """A small constant as nested lists; a large one does not belong into source."""
    if array.size > 1000:
        raise UnsupportedError(
            f"a constant of {array.size} numbers in source",
            remedy="make it a parameter or state of the model",
        )
    # Spelled so that a target with words of its own for "nan" and "inf" finds none to replace.
    words = {"nan": 'float("NaN")', "inf": 'float("Infinity")'}
    return re.sub(r"\b(nan|inf)\b", lambda found: words[found[0]], repr(array.tolist()))
