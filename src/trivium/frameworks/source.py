"""The shared emitter: nested blocks become classes (or functions), statements and names.

A target (``frameworks/<name>/emit.py``) says how its ops, layers and literals look; everything else
about readable source is here: blocks of one structure become one class whose varying numbers are
constructor arguments, chains become one line, variables are named as a person would.

Code is a list of pieces: text, a Value (its variable), a :class:`Slot` (a number or word that may
become a constructor argument), a :class:`Member` (a layer or parameter of this block) or a
:class:`Size` (an open size, read from a variable's shape).
"""

from __future__ import annotations

import itertools
import keyword
import linecache
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

import numpy as np

from trivium.dtype import DType
from trivium.frameworks.blocks import Block, Layer, blocks, find_layers, inside, leaf, parent
from trivium.frameworks.layer import LayerForm, Weight
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.op import Refused
from trivium.shape import Dim
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import prune, replay
from trivium.transforms.simplify import simplify

WIDTH = 88
"""Longer lines are not chained further."""


@dataclass(frozen=True)
class Slot:
    """A literal that may differ between blocks of one structure."""

    name: str
    value: Any


@dataclass(frozen=True)
class Member:
    """A layer or parameter of the block, by its name in it."""

    name: str


@dataclass(frozen=True)
class Size:
    """An open size."""

    dim: Dim


Piece = Union[str, Value, Slot, Member, Size]
Code = list[Piece]


@dataclass
class Statement:
    """``outputs = code``. ``infix``: needs brackets inside a larger expression."""

    outputs: list[Value | None]
    code: Code
    infix: bool = False
    effect: bool = False
    """It changes a state, so it stays even if nobody reads its outputs."""


@dataclass(eq=False)
class Body:
    """What one block declares and does, before names."""

    block: Block
    members: dict[str, Code] = field(default_factory=dict)  # declaration of each layer or parameter
    statements: list[Statement] = field(default_factory=list)
    chain: list[str] | None = None  # the members, in order, when the block is nothing but their chain
    cls: Class | None = None
    arguments: Code = field(default_factory=list)


@dataclass(eq=False)
class Class:
    """Blocks of one structure."""

    name: str
    bodies: list[Body]
    parameters: dict[str, list[int]] = field(default_factory=dict)  # constructor argument -> slots


@dataclass
class Emitted:
    """The source of a model, the name of its class or function, and what became of its parameters."""

    source: str
    entry: str
    weights: dict[str, tuple[str, Weight]]
    """Our parameter's name -> its path over there, and the map of its array."""


class Target:
    """What a framework's source looks like. Subclassed once per framework."""

    name = ""
    forms: Sequence[LayerForm] = ()
    functions: dict[str, Callable[..., Code]] = {}  # noqa: RUF012  (one table per class is meant)
    helpers: dict[str, str] = {}  # noqa: RUF012  (name used in the source -> the source that defines it)
    list_prefix = ""  # how a numbered child is reached when it is no element of a chain
    sequential = True  # numbered children in a chain are the framework's own Sequential
    dotted = True  # members keep their dotted paths below the block
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
            return repr(str(value))
        if isinstance(value, float) and (value in (float("inf"), float("-inf")) or value != value):
            return f'float("{value}")'
        if isinstance(value, str):
            return f'"{value}"'
        return repr(value)

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """``nn.Conv2d(3, 64, kernel_size=7)``: the first arguments of a layer go without a name."""
        code: Code = [form.layer, "("]
        for i, (key, value) in enumerate(arguments.items()):
            code += [", "] * bool(i) + ([f"{key}="] if i >= self.positional(form) else [])
            code.append(Slot(key, value))
        return [*code, ")"]

    def positional(self, form: LayerForm) -> int:
        """How many constructor arguments are usually written without their names."""
        return 0

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """The statements that apply a layer."""
        x = next(v for v in layer.node.inputs if v is not None)
        outputs: list[Value | None] = [layer.node.outputs[0]]
        effect = layer.node.op == "batch_norm"
        return [Statement(outputs, [member, "(", x, ")"], effect=effect)]

    def parameter(self, value: Value) -> Code:
        """The declaration of a parameter that belongs to no layer."""
        raise UnsupportedError(f"{self.name} source with the free parameter {value.name}")

    def use(self, value: Value) -> Code:
        """A parameter inside an expression."""
        return [Member(value.name)]

    def render(self, emitter: Emitter) -> str:
        """The whole source."""
        raise NotImplementedError

    def class_name(self, words: Sequence[str]) -> str:
        """What a class (or function) is called: ``BasicBlock``."""
        return "".join(w[:1].upper() + w[1:] for w in words)

    # -- lowering a node ---------------------------------------------------------------------------
    def lowers(self, node: Node) -> bool:
        """Has the target a form of its own for this node?"""
        op = OPS[node.op]
        if node.op in self.functions or isinstance(op.lowerings.get(self.name), str):
            return True
        return any(f.op == node.op and f.write(node) is not None for f in self.forms)

    def expression(self, node: Node) -> Code:
        """The call form of a node."""
        if node.op in self.functions:
            return self.functions[node.op](self, node)
        template = OPS[node.op].lowerings.get(self.name)
        if not isinstance(template, str):
            reason = f": {template.reason}" if isinstance(template, Refused) else ""
            raise UnsupportedError(
                f"{self.name} has no exact form of {node.op}{reason}", node.scope or "the top scope"
            )
        return self.fill(template, node)

    def fill(self, template: str, node: Node) -> Code:
        """A one-line template with its placeholders replaced by pieces."""
        op = OPS[node.op]
        arrays: dict[str, Any] = dict(zip(op.arrays, node.inputs, strict=False))
        code: Code = []
        infix = is_infix([re.sub(r"\{.*?\}", "v", template)])
        for text, hole in _holes(template):
            code.append(text)
            name, _, how = hole.partition("!")
            if not hole:
                continue
            if name == op.variadic:
                for i, v in enumerate(node.inputs):
                    code += [", "] * bool(i) + self.array(v)
            elif name in op.arrays:
                value = arrays.get(name)
                bare = infix or (self.bare_numbers and beside_array(node, value))
                code += number(self, value) or self.array(value) if bare else self.array(value)
            else:
                code += self.attribute(node.attrs[name], how)
        return _without_trailing_none(code)

    def array(self, value: Value | None) -> Code:
        """An operand."""
        if value is None:
            return ["None"]
        return self.use(value) if value.kind in ("param", "state") else [value]

    def number(self, value: Value) -> Code:
        """The number that a ``full`` without axes is, as Python's operators take it."""
        assert value.node is not None
        return self.attribute(value.node.attrs["value"])

    def attribute(self, value: Any, how: str = "") -> Code:
        """An attribute's value; ``how`` is the conversion after ``!`` in the template."""
        if how == "args":
            return _joined([self.attribute(v) for v in value])
        if how == "flag":
            return [", True"] if value else []
        if how == "flag_keepdims":
            return [", keepdims=True"] if value else []
        if how == "is_tanh":
            return [repr(value == "tanh")]
        if isinstance(value, Dim):
            return [Size(value)]
        if isinstance(value, tuple) and any(isinstance(v, Dim) for v in value):
            return ["(", *_joined([self.attribute(v) for v in value]), ",)" if len(value) == 1 else ")"]
        if isinstance(value, tuple) and len(value) == 1 and not how:
            return [self.literal(value[0])] if isinstance(value[0], int) and how else [self.literal(value)]
        return [self.literal(value)]


def beside_array(node: Node, value: Value | None) -> bool:
    """Does another operand, which is no number, have this one's dtype? Then it decides."""
    return any(
        v is not None and value is not None and v.dtype == value.dtype
        and (v.node is None or v.node.op != "full")
        for v in node.inputs
    )  # fmt: skip


def number(target: Target, value: Value | None) -> Code:
    """The literal a Value is, if it is one number: Python's operators take it as it stands."""
    if value is None or value.node is None or value.node.op != "full" or value.shape != ():
        return []
    return target.number(value)


def _joined(parts: Sequence[Code]) -> Code:
    code: Code = []
    for i, part in enumerate(parts):
        code += [", "] * bool(i) + part
    return code


def _holes(template: str) -> Iterator[tuple[str, str]]:
    parts = re.split(r"\{([^}]*)\}", template)
    for i in range(0, len(parts), 2):
        yield parts[i], parts[i + 1] if i + 1 < len(parts) else ""


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


class Emitter:
    """One emission: a Graph through a Target to source."""

    def __init__(self, graph: Graph, target: Target):
        self.target = target
        graph = _numbers_where_used(decompose(target.prepare(simplify(graph)), keep=target.lowers))
        self.graph = graph
        self.classes: list[Class] = []
        self.weights: dict[str, tuple[str, Weight]] = {}
        self.used_names: set[str] = set()
        layers = find_layers(graph, OPS.__getitem__, self.forms)
        self.implied = {v for la in layers.values() for v in la.node.outputs}
        for state, new in graph.updates.items():
            if new not in self.implied:
                raise UnsupportedError(f"{target.name} source that updates {state.name} outside a layer")
        self.root = self.body(blocks(graph, layers))

    def forms(self, node: Node) -> list[LayerForm]:
        """The layer forms that are exact for this node."""
        return [f for f in self.target.forms if f.op == node.op and f.write(node) is not None]

    def run(self) -> Emitted:
        """The source."""
        source = self.target.render(self)
        first = source.find("\n\n\n") + 3
        used = "".join(h.strip("\n") + "\n\n\n" for h in self.helpers(source))
        source = source[:first] + used + source[first:]
        assert self.root.cls is not None
        return Emitted(source.rstrip() + "\n", self.root.cls.name, self.weights)

    def helpers(self, source: str) -> list[str]:
        """The helpers that the source calls, and those that they call."""
        found: dict[str, str] = {}
        left = [source]
        while left:
            text = left.pop()
            for name, helper in self.target.helpers.items():
                if name not in found and re.search(rf"(?<![.\w\"]){name}\b(?!\")", text):
                    found[name] = helper
                    left.append(helper)
        return [h for name, h in self.target.helpers.items() if name in found]

    # -- blocks to bodies ----------------------------------------------------------------------------
    def body(self, block: Block) -> Body:
        """What a block declares and does; blocks inside first."""
        body = Body(block)
        names: dict[str, Member] = {}
        for item in block.items:
            if isinstance(item, Layer):
                name = self.member_name(block, item.path)
                if name not in body.members:
                    arguments = dict(item.form.write(item.node) or {})
                    body.members[name] = self.target.constructor(item.form, arguments)
                    self.note(item)
                body.statements += self.target.call(item, Member(name))
                names[name] = Member(name)
            elif isinstance(item, Block):
                self.sub_block(body, item)
            else:
                self.node(body, item)
        self.drop_unused(body)
        body.chain = self.chain_of(body)
        self.classify(body)
        return body

    def member_name(self, block: Block, path: str) -> str:
        rest = path[len(block.path) + 1 :] if block.path else path
        return rest if self.target.dotted or "." not in rest else rest.replace(".", "_")

    def note(self, layer: Layer) -> None:
        arrays = dict(zip(OPS[layer.node.op].arrays, layer.node.inputs, strict=False))
        for w in layer.form.weights:
            if (v := arrays.get(w.array)) is not None:
                self.weights[v.name] = (f"{layer.path}.{w.theirs}" if w.theirs else layer.path, w)

    def sub_block(self, body: Body, block: Block) -> None:
        inner = self.body(block)
        name = self.member_name(body.block, block.path)
        code: Code = [Member(name), "(", *_joined([[v] for v in block.inputs]), ")"]
        body.members[name] = [_Later(inner)]  # type: ignore[list-item]
        body.statements.append(Statement(list(block.outputs), code))

    def node(self, body: Body, node: Node) -> None:
        for v in node.inputs:
            if v is not None and v.kind in ("param", "state") and inside(parent(v.name), body.block.path):
                name = self.member_name(body.block, v.name)
                if v.name not in self.weights:
                    body.members[name] = self.target.parameter(v)
                    self.weights[v.name] = (v.name, Weight("", leaf(v.name), leaf(v.name)))
        code = self.target.expression(node)
        body.statements.append(Statement(list(node.outputs), code, is_infix(code)))

    def drop_unused(self, body: Body) -> None:
        """Numbers that were written into expressions need no line of their own."""
        read = {p for s in body.statements for p in s.code if isinstance(p, Value)}
        read |= set(body.block.outputs)
        body.statements = [
            s
            for s in body.statements
            if s.effect or any(v in read for v in s.outputs)
        ]

    def chain_of(self, body: Body) -> list[str] | None:
        """The members in order, if the block is Sequential: numbered, each fed by the one before."""
        block = body.block
        if not self.target.sequential or len(block.inputs) != 1 or len(block.outputs) != 1:
            return None
        order = []
        x: Value | None = block.inputs[0]
        for s in body.statements:
            match s.code:
                case [Member(name), "(", Value() as v, ")"] if v is x and len(s.outputs) == 1:
                    order.append(name)
                    x = s.outputs[0]
                case _:
                    return None
            if sum(p is x for t in body.statements for p in t.code) > 1:
                return None
        if x is not block.outputs[0] or order != [str(i) for i in range(len(order))] or not order:
            return None
        return order

    # -- one class for blocks of one structure ---------------------------------------------------------
    def classify(self, body: Body) -> None:
        if body.chain and body.block.path:
            return
        key = self.key(body)
        for cls in self.classes:
            if self.key(cls.bodies[0]) == key:
                cls.bodies.append(body)
                body.cls = cls
                return
        body.cls = Class(self.class_name(body.block.path), [body])
        self.classes.append(body.cls)

    def class_name(self, path: str) -> str:
        words = self.graph.classes.get(path) or (leaf(path) if path else self.graph.name)
        if words.isdigit():
            words = leaf(parent(path)) + "_block"
        name = self.target.class_name(re.split(r"\W|_", words)) or self.target.class_name(["model"])
        name = name if name[0].isalpha() else self.target.class_name(["model", name])
        base, n = name, 2
        while name in self.used_names or name in self.target.helpers:
            name, n = f"{base}{n}", n + 1
        self.used_names.add(name)
        return name

    def key(self, body: Body) -> Any:
        """Equal for blocks that differ only in slots, names of values and path."""
        numbers: dict[Value, int] = {v: i for i, v in enumerate(body.block.inputs)}

        def plain(code: Code) -> tuple[Any, ...]:
            out: list[Any] = []
            for p in flat(code, self):
                if isinstance(p, Value):
                    out.append(("v", numbers.setdefault(p, len(numbers))))
                elif isinstance(p, Slot):
                    out.append(("s", p.name))
                elif isinstance(p, Size):
                    out.append(("d", str(p.dim)))
                elif isinstance(p, Member):
                    rest = p.name[len(body.block.path) + 1 :] if inside(p.name, body.block.path) else p.name
                    out.append(("m", rest if body.block.path and inside(p.name, body.block.path) else p.name))
                else:
                    out.append(p)
            return tuple(out)

        statements = tuple(
            (plain(s.code), tuple(v if v is None else numbers.setdefault(v, len(numbers)) for v in s.outputs))
            for s in body.statements
        )
        members = tuple((name, plain(code)) for name, code in body.members.items())
        return members, statements, tuple(numbers.get(v) for v in body.block.outputs)

    def settle(self) -> None:
        """Decide each class's constructor arguments: what differs between its blocks."""
        for cls in self.classes:  # inner classes come first
            rows = [[p for p in self.slots(b)] for b in cls.bodies]
            columns = list(zip(*rows, strict=True))
            vectors: dict[tuple[str, ...], list[int]] = {}
            for i, column in enumerate(columns):
                vector = tuple(repr(s.value) for s in column)
                if len(set(vector)) > 1:
                    vectors.setdefault(vector, []).append(i)
            for at in vectors.values():
                wish = _common_name([columns[i][0].name for i in at])
                name, n = wish, 2
                while name in cls.parameters or keyword.iskeyword(name):
                    name, n = f"{wish}_{n}", n + 1
                cls.parameters[name] = at
            for body, row in zip(cls.bodies, rows, strict=True):
                body.arguments = [
                    Slot(name, row[at[0]].value) for name, at in cls.parameters.items()
                ]

    def slots(self, body: Body) -> list[Slot]:
        """The slots of a body, in the order of its declarations and statements."""
        found = [p for code in body.members.values() for p in flat(code, self) if isinstance(p, Slot)]
        return found + [p for s in body.statements for p in flat(s.code, self) if isinstance(p, Slot)]

    def names_of_slots(self, cls: Class) -> dict[int, str]:
        """Slot number -> constructor argument that holds it."""
        return {i: name for name, at in cls.parameters.items() for i in at}


def _numbers_where_used(graph: Graph) -> Graph:
    """Every number made anew beside each node that reads it, in that node's scope."""

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        def fresh(v: Value | None) -> Value | None:
            if v is None or v.node is None or v.node.op != "full" or v.shape != ():
                return v
            return OPS["full"].append(new, (), v.node.attrs)[0]

        if node.op == "full":
            return None
        return OPS[node.op].append(new, [fresh(v) for v in values], node.attrs, node.origin)

    new, _ = replay(graph, rule)
    return prune(new)


def _common_name(names: Sequence[str]) -> str:
    """``channels`` for a number that is both in_channels and out_channels."""
    kinds = {n.partition("_")[0] for n in names} & {"in", "out"}
    return names[0].partition("_")[2] if len(kinds) == 2 else names[0]


class _Later:
    """Stands for the declaration of an inner block, whose class is settled first."""

    def __init__(self, body: Body):
        self.body = body


def flat(code: Any, emitter: Emitter) -> Iterator[Any]:
    """The pieces of a declaration, inner blocks spelled out."""
    for piece in code:
        if not isinstance(piece, _Later):
            yield piece
        elif piece.body.cls is None:  # a chain: its members are the arguments of a Sequential
            yield "Sequential("
            for name in piece.body.chain or ():
                yield from flat(piece.body.members[name], emitter)
                yield ","
            yield ")"
        else:
            yield id(piece.body.cls)
            yield from piece.body.arguments


class Writer:
    """Statements of one body as lines: names for values, chains on one line."""

    def __init__(self, emitter: Emitter, cls: Class, slot_at: int = 0):
        self.emitter, self.target = emitter, emitter.target
        self.body = cls.bodies[0]
        self.slot_names = emitter.names_of_slots(cls)
        self.slot = slot_at
        self.lines: list[str] = []
        self.names: dict[Value, str] = {}
        self.pending: dict[Value, tuple[str, bool, int]] = {}
        self.left = self._uses()

    def _uses(self) -> dict[Value, int]:
        count: dict[Value, int] = {}
        for s in self.body.statements:
            for p in s.code:
                if isinstance(p, Value):
                    count[p] = count.get(p, 0) + 1
        for v in self.body.block.outputs:
            count[v] = count.get(v, 0) + 1
        return count

    def argument_names(self) -> list[str]:
        """Names for what the block reads."""
        inputs = self.body.block.inputs
        for i, v in enumerate(inputs):
            wish = v.name if v.kind == "data" and v.name.isidentifier() else ""
            if not wish or re.fullmatch(r"x\d+", wish):
                wish = "x" if len(inputs) == 1 else f"x{i + 1}"
            self.names[v] = self.fresh(wish)
        return [self.names[v] for v in inputs]

    def fresh(self, wish: str) -> str:
        taken = set(self.names.values()) | set(self.slot_names.values())
        name, n = wish, 2
        while name in taken or keyword.iskeyword(name):
            name, n = f"{wish}{n}", n + 1
        return name

    def literal_slot(self, slot: Slot) -> str:
        name = self.slot_names.get(self.slot)
        self.slot += 1
        return name or self.target.literal(slot.value)

    def text(self, code: Code) -> tuple[str, int]:
        """An expression with what is pending put in; and how deep it nests."""
        out, depth = "", 0
        for i, p in enumerate(code):
            if isinstance(p, Value) and p in self.pending:
                inner, infix, below = self.pending[p]
                before = code[i - 1] if i else ""
                alone = isinstance(before, str) and before.endswith(("(", ", ", "[")) and (
                    i + 1 < len(code) and str(code[i + 1]).startswith((")", ","))
                )
                out += f"({inner})" if infix and not alone else inner
                depth = max(depth, below + 1)
            elif isinstance(p, Value):
                out += self.names[p]
            elif isinstance(p, Slot):
                out += self.literal_slot(p)
            elif isinstance(p, Member):
                out += self.member(p)
            elif isinstance(p, Size):
                out += self.size(p.dim)
            else:
                out += self.piece(p)
        return out, depth

    def piece(self, piece: Any) -> str:
        """Anything else in an expression: text as it stands."""
        return str(piece)

    def member(self, member: Member) -> str:
        """A layer or parameter of this block."""
        name = member.name
        path = self.body.block.path
        if path and name.startswith(path + "."):
            name = name[len(path) + 1 :]
        return "self." + re.sub(r"\.(\d+)", r"[\1]", name)

    def size(self, dim: Dim) -> str:
        """An open size, from the shape of a variable that has it."""
        def known(d: Dim) -> str | None:
            for v, name in reversed(self.names.items()):
                if list(self.names.values()).count(name) > 1 and self._latest(name) is not v:
                    continue
                for axis, s in enumerate(v.shape):
                    if s == d:
                        return self.size_of(name, axis)
            return None

        whole = known(dim)
        if whole:
            return whole
        text = str(dim)
        for name in sorted(dim.names(), key=len, reverse=True):
            part = known(Dim(name))
            if part is None:
                raise UnsupportedError(f"the open size '{dim}' in {self.body.block.path or 'the model'}, "
                                       f"where no variable has the size '{name}'")  # fmt: skip
            text = re.sub(rf"\b{name}\b", part, text)
        return text

    def size_of(self, name: str, axis: int) -> str:
        """The size of a variable along one axis."""
        return f"{name}.shape[{axis}]"

    def _latest(self, name: str) -> Value:
        return [v for v, n in self.names.items() if n == name][-1]

    def write(self) -> list[str]:
        """The lines of the body, ``return`` included."""
        statements = self.body.statements
        for i, s in enumerate(statements):
            following = statements[i + 1].code if i + 1 < len(statements) else list(self.body.block.outputs)
            self.statement(s, following)
        outputs = self.body.block.outputs
        parts = [self.pending[v][0] if v in self.pending else self.names[v] for v in outputs]
        self.lines.append(self.result(parts))
        return self.lines

    def result(self, parts: Sequence[str]) -> str:
        """The last line of a body."""
        return f"return {', '.join(parts)}"

    def joins(self, s: Statement, text: str, last: bool) -> bool:
        """May a statement be written inside the next one (or, the ``last``, inside the result)?"""
        return len(text) < WIDTH - 20

    def statement(self, s: Statement, following: Sequence[Any]) -> None:
        start = self.slot
        text, depth = self.text(s.code)
        used = [p for p in s.code if isinstance(p, Value)]
        if self.pending and (len(text) > WIDTH - 16 or depth > 3):
            self.slot = start
            self.flush(used)
            text, depth = self.text(s.code)
        for p in used:
            self.pending.pop(p, None)
            self.left[p] -= 1
        only = s.outputs[0] if len(s.outputs) == 1 else None
        next_uses = sum(1 for p in following if p is only)
        last = s is self.body.statements[-1]
        once = only is not None and self.left.get(only) == 1 and next_uses == 1
        if only is not None and once and self.joins(s, text, last):
            self.pending[only] = (text, s.infix, depth)
            return
        kept = [v if v is not None and self.left.get(v) else None for v in s.outputs]
        names = [self.name_for(v, used, s) if v is not None else "_" for v in kept]
        self.lines.append(f"{', '.join(names)} = {text}")

    def flush(self, values: Sequence[Value]) -> None:
        for v in values:
            if v in self.pending:
                text, _, _ = self.pending.pop(v)
                self.lines.append(f"{self.name_for(v, (), None)} = {text}")

    def name_for(self, value: Value, used: Sequence[Value], s: Statement | None) -> str:
        """``x`` again when the x before is no longer needed; else a new name."""
        live = {v for v, n in self.left.items() if n > 0 and v in self.names}
        candidates = [self.names[v] for v in self.names if v not in live]
        busy = {self.names[v] for v in live}
        for v in [*used, *reversed(self.names)]:
            if v in self.names and self.names[v] in candidates and self.names[v] not in busy:
                self.names.pop(value, None)
                self.names[value] = self.names[v]
                return self.names[v]
        wish = value.name if value.name.isidentifier() else ""
        for name in filter(None, (wish, "y", "z", "u", "v", "w")):
            if name not in self.names.values():
                self.names[value] = self.fresh(name)
                return self.names[value]
        self.names[value] = self.fresh(value.node.op if value.node else "t")
        return self.names[value]


def array_source(array: np.ndarray[Any, Any]) -> str:
    """A small constant as nested lists; a large one does not belong into source."""
    if array.size > 1000:
        raise UnsupportedError(
            f"a constant of {array.size} numbers in source", remedy="make it a parameter or state of the model"
        )
    return repr(array.tolist())


def execute(emitted: Emitted, name: str) -> Any:
    """Run emitted source and return the class or function it is about.

    The source is known to ``inspect`` and to tracebacks under ``<trivium NAME>``.
    """
    filename = f"<trivium {name} {next(_count)}>"
    lines = emitted.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(emitted.source), None, lines, filename)
    module = types.ModuleType(f"trivium_{name}_{emitted.entry}")
    module.__file__ = filename
    sys.modules[module.__name__] = module  # so that inspect finds the classes' source
    exec(compile(emitted.source, filename, "exec"), module.__dict__)
    return module.__dict__[emitted.entry]


_count = itertools.count(1)

__all__ = ["Body", "Class", "Code", "Emitted", "Emitter", "Member", "Size", "Slot", "Statement",
           "Target", "Weight", "Writer", "array_source", "execute", "flat", "is_infix"]  # fmt: skip
