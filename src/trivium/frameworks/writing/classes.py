"""Bodies that one class stands for: what differs between them becomes its constructor's arguments.

Bodies of one class of the source are laid beside each other, statement by statement. A number that
is not the same in all is an argument (``stride``); a statement that some lack is one under a
condition (``skip``), where it takes what it gives instead: a line that may be left out. Bodies that
differ otherwise are classes of their own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trivium.frameworks.words import MISSING
from trivium.frameworks.writing.blocks import Block
from trivium.frameworks.writing.code import (
    Chain,
    Code,
    Later,
    Member,
    Size,
    Slot,
    Statement,
    Word,
)
from trivium.graph import Value
from trivium.shape import Dim


@dataclass(eq=False)
class Body:
    """What one block declares and does, before names."""

    block: Block
    members: dict[str, Code] = field(default_factory=dict)  # declaration of each layer or parameter
    statements: list[Statement] = field(default_factory=list)
    chain: list[str] | None = (
        None  # the members, in order, when the block is nothing but their chain
    )
    cls: Class | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of its class's constructor
    many: bool = False
    """It reads as many values as there are: ``*xs``."""

    def reads(self) -> list[Value]:
        """What goes in, each by its name."""
        return [] if self.many else self.block.inputs

    def inner(self) -> Iterator[Body]:
        """The bodies of the blocks inside."""
        for code in self.members.values():
            yield from (p.body for p in code if isinstance(p, (Later, Chain)))
        for s in self.statements:
            yield from (p.body for p in s.code if isinstance(p, Later))

    def slots(self) -> list[Slot]:
        """The literals of its declarations and statements."""
        codes = [*self.members.values(), *(s.code for s in self.statements)]
        return [p for code in codes for p in flat(code) if isinstance(p, Slot)]

    def here(self, name: str) -> str:
        """The name of a member as seen from this block."""
        path = self.block.path
        return name[len(path) + 1 :] if path and name.startswith(path + ".") else name


@dataclass(eq=False)
class Class:
    """Bodies of one class: its code, and what its constructor is given."""

    name: str
    bodies: list[Body]
    body: Body
    """What is written down."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """The constructor's arguments, each with its default, MISSING where it has none."""
    kept: list[str] = field(default_factory=list)
    """Those of them that a call reads."""
    optional: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Member -> the argument that asks for it; and if it is called all the same without."""

    def signature(self, literal: Callable[[Any], str]) -> list[str]:
        """``in_channels``, ``stride=1``."""
        return [p if d is MISSING else f"{p}={literal(d)}" for p, d in self.parameters.items()]


def flat(code: Any) -> Iterator[Any]:
    """The pieces of a declaration, those in chains and what inner blocks are given too."""
    for piece in code:
        if isinstance(piece, Chain):
            for item, times in piece.items:
                yield "["
                yield from flat(item)
                yield times
        else:
            yield piece
            if isinstance(piece, Later):
                yield from piece.slots


def outline(body: Body) -> Any:
    """Equal for bodies that differ only in slots, names of values and path."""
    numbers: dict[Value, int] = {v: i for i, v in enumerate(body.reads())}

    def plain(code: Code) -> tuple[Any, ...]:
        return tuple(
            ("v", numbers.setdefault(p, len(numbers))) if isinstance(p, Value) else mark(body, p)
            for p in flat(code)
        )

    statements = tuple(
        (
            plain(s.code),
            tuple(v if v is None else numbers.setdefault(v, len(numbers)) for v in s.outputs),
        )
        for s in body.statements
    )
    members = tuple((body.here(name), plain(code)) for name, code in body.members.items())
    return members, statements, _sizes(body), tuple(numbers.get(v) for v in body.block.outputs)


def mark(body: Body, piece: Any) -> Any:
    """What two pieces that stand at the same place have in common."""
    match piece:
        case Value():
            return "v"
        case Slot():
            return ("s", piece.name)
        case Size():
            return ("d", str(piece.dim))
        case Member():
            return (type(piece), body.here(piece.name))
        case Later():
            return ("c", id(piece.body.cls), type(piece))
    return piece if isinstance(piece, str) else (type(piece), str(piece), getattr(piece, "dim", ""))


def _sizes(body: Body) -> tuple[Any, ...]:
    """Where a size is read from is decided in the first block: the others must have it there."""
    if not any(hasattr(p, "dim") for s in body.statements for p in s.code):
        return ()
    made = [*body.reads(), *(v for s in body.statements for v in s.outputs)]
    return tuple(
        tuple((axis, str(s)) for axis, s in enumerate(v.shape) if isinstance(s, Dim))
        if v is not None
        else ()
        for v in made
    )


def signature(body: Body) -> Any:
    """Equal for two runs that one member, made once, stands for."""
    numbers = [(s.name, repr(s.value)) for s in body.slots()]
    return outline(body), numbers, [signature(b) for b in body.inner()]


@dataclass(eq=False)
class Line:
    """A statement, and the bodies that lack it."""

    s: Statement
    lacks: frozenset[int] = frozenset()
    new: bool = False
    """It is being asked whether one more body lacks it, or is the first that has it."""


@dataclass(eq=False)
class Run:
    """Lines under one condition: what they give, and what stands for it where they are not."""

    lines: list[Line]
    gives: Value
    takes: Value


class Merged:
    """Bodies laid beside each other: what they all do, with the lines that some of them lack."""

    def __init__(self, bodies: Sequence[Body], functions: bool = True):
        self.functions = functions  # may a function be an argument?
        first = bodies[0]
        self.block, self.chain, self.many = first.block, first.chain, first.many
        self.reads = first.reads()
        self.bodies = list(bodies)
        self.members = dict(first.members)
        self.lines = [Line(replace(s)) for s in first.statements]
        self.outputs = list(first.block.outputs)
        rows = [b.slots() for b in bodies]
        self.values: dict[Slot, list[Any]] = {
            s: [row[i].value for row in rows] for i, s in enumerate(rows[0])
        }
        self.without: dict[str, frozenset[int]] = {}  # member -> the bodies that lack it
        self.instead: dict[Value, Value] = {}  # what a line gives -> what stands for it without
        self.sizes = _sizes(first)

    def take(self, bodies: Sequence[Body]) -> bool:
        """Bodies of one outline too, if they can be; else nothing is changed."""
        beside = _Beside(self, bodies[0])
        if not beside.aligned() or runs(beside.lines, beside.outputs, beside.instead) is None:
            return False
        count = len(self.bodies)
        rows = [b.slots() for b in bodies]
        place = {s: i for i, s in enumerate(rows[0])}
        for mine, theirs in beside.activations:
            value = mine.value
            self.values[mine] = [value] * count
            beside.pairs[mine] = theirs
        for mine, values in self.values.items():
            theirs = beside.pairs.get(mine)  # type: ignore[assignment]
            i = place.pop(theirs, None) if theirs in place else None
            other = MISSING if theirs is None else theirs.value
            values += [other if i is None else row[i].value for row in rows]
        for theirs, i in place.items():
            self.values[theirs] = [MISSING] * count + [row[i].value for row in rows]
        old, new = frozenset(range(count)), frozenset(range(count, count + len(bodies)))
        for line in beside.lines:
            line.new = False
            line.lacks |= new if line in beside.mine else old if line in beside.theirs else set()
        for name in beside.members:
            if name not in bodies[0].members:
                self.without[name] = self.without.get(name, frozenset()) | new
            elif name not in self.members:
                self.without[name] = old
        self.members, self.lines, self.outputs = beside.members, beside.lines, beside.outputs
        self.instead = beside.instead
        self.bodies += bodies
        return True

    def groups(self) -> list[list[Slot]]:
        """Slots that differ between the bodies, those together that never differ from each other.

        A body that lacks a slot agrees with any.
        """
        found: dict[tuple[Any, ...], list[Slot]] = {}
        for slot, values in self.values.items():
            texts = tuple("" if v is MISSING else repr(v) for v in values)
            if len({*texts} - {""}) > 1 or "" in texts:
                found.setdefault(texts, []).append(slot)
        whole = [t for t in found if "" not in t]
        for texts in [t for t in found if "" in t]:
            agreeing = [
                t for t in whole if all(a in ("", b) for a, b in zip(texts, t, strict=True))
            ]
            for slot in list(found[texts]):
                for other in agreeing:
                    if any(slot.name == s.name or (slot.wide and s.wide) for s in found[other]):
                        found[other].append(slot)
                        found[texts].remove(slot)
                        break
            if len({*texts} - {""}) > 1 and found[texts]:
                whole.append(texts)
            else:
                del found[texts]
        return list(found.values())

    def value(self, slots: Sequence[Slot], i: int) -> Any:
        """What body ``i`` has there."""
        return next((v for s in slots if (v := self.values[s][i]) is not MISSING), MISSING)


def runs(
    lines: Sequence[Line], outputs: Sequence[Value], instead: Mapping[Value, Value]
) -> list[Run] | None:
    """The lines that stand under a condition; None where something else is read of them."""
    found: list[list[Line]] = []
    results = set(outputs)
    before: Line | None = None
    for line in lines:
        if line.lacks or line.new:
            same = before is not None and (before.lacks, before.new) == (line.lacks, line.new)
            found += [] if same else [[]]
            found[-1].append(line)
        before = line if line.lacks or line.new else None
    made: list[Run] = []
    for run in found:
        inside = {v for x in run for v in x.s.outputs if v is not None}
        mine = {id(x) for x in run}
        read = {p for x in lines if id(x) not in mine for p in x.s.code if isinstance(p, Value)}
        given = [v for v in inside if v in read or v in results]
        if len(given) != 1 or given[0] not in instead or instead[given[0]] in inside:
            return None
        made.append(Run(run, given[0], instead[given[0]]))
    return made


class _Beside:
    """One body laid beside what others have in common."""

    def __init__(self, merged: Merged, other: Body):
        self.merged, self.other = merged, other
        self.base = Body(merged.block, merged.members)
        self.pairs: dict[Slot, Slot] = {}
        self.activations: list[tuple[Slot, Slot]] = []
        self.stands: dict[Value, Value] = {}  # a value of the other -> the same of ours
        self.instead = dict(merged.instead)
        self.shared = set(merged.reads)  # values that both have
        self.lines: list[Line] = []
        self.mine: set[Line] = set()  # lines that the other lacks
        self.theirs: set[Line] = set()  # lines that we lack
        self.added: set[Value] = set()
        self.outputs: list[Value] = []
        self.members: dict[str, Code] = {}

    def aligned(self) -> bool:
        """Do they go together? Then this holds what both are."""
        merged, other = self.merged, self.other
        theirs = other.block
        if (
            len(merged.reads) != len(other.reads())
            or merged.many != other.many
            or len(merged.outputs) != len(theirs.outputs)
            or (merged.chain is None) != (other.chain is None)
            or merged.sizes != _sizes(other)
            or not self.declared()
        ):
            return False
        self.stands = dict(zip(other.reads(), merged.reads, strict=True))
        if not self.stated():
            return False
        for a, b in zip(merged.outputs, theirs.outputs, strict=True):
            if (v := self.either(a, b)) is None:
                return False
            self.outputs.append(v)
        return True

    def head(self, body: Body, s: Statement) -> Any:
        marks = [mark(body, p) for p in s.code]
        if self.merged.functions and activation(s.code):
            marks[0] = "activation"
        elif marks and marks[0] == ("s", "activation"):
            marks[:2] = ["activation"]
        return tuple(marks), len(s.outputs), s.effect, type(s)

    def stated(self) -> bool:
        mine, other = self.merged.lines, self.other.statements
        heads = (
            [self.head(self.base, x.s) for x in mine],
            [self.head(self.other, s) for s in other],
        )
        exact = (  # equal numbers first: of two factors the one that both have
            [(h, _scales(x.s)) for h, x in zip(heads[0], mine, strict=True)],
            [(h, _scales(s)) for h, s in zip(heads[1], other, strict=True)],
        )
        matcher = difflib.SequenceMatcher(None, *exact, autojunk=False)
        for _, i, j, k, m in matcher.get_opcodes():
            if heads[0][i:j] == heads[1][k:m]:
                for line, s in zip(mine[i:j], other[k:m], strict=True):
                    if (made := self.match(line.s, s)) is None:
                        return False
                    self.lines.append(Line(made, line.lacks))
                continue
            for line in mine[i:j]:
                self.lines.append(Line(line.s, line.lacks, new=True))
                self.mine.add(self.lines[-1])
            for s in other[k:m]:
                self.lines.append(Line(replace(s, code=[*map(self.moved, s.code)]), new=True))
                self.theirs.add(self.lines[-1])
                self.added |= {v for v in s.outputs if v is not None}
        return True

    def moved(self, piece: Any) -> Any:
        """A piece of the other's, said as seen from our block."""
        if isinstance(piece, Value):
            return self.stands.get(piece, piece)
        if isinstance(piece, Member) and (here := self.other.here(piece.name)) != piece.name:
            path = self.merged.block.path
            return replace(piece, name=f"{path}.{here}" if path else here)
        return piece

    def match(self, a: Statement, b: Statement) -> Statement | None:
        """The statement that both are."""
        code, theirs = list(a.code), list(b.code)
        if "activation" in self.head(self.base, a)[0] and code[0] is not theirs[0]:
            for c in (code, theirs):
                if isinstance(c[0], str):
                    c[:1] = [Slot("activation", Word(c[0][:-1])), "("]
            if isinstance(a.code[0], str):
                self.activations.append((code[0], theirs[0]))
            self.pairs[code[0]] = theirs[0]
        if len(code) != len(theirs):
            return None
        for i, (p, q) in enumerate(zip(code, theirs, strict=True)):
            if isinstance(p, Value) and isinstance(q, Value):
                if (v := self.either(p, q)) is None:
                    return None
                code[i] = v
            elif isinstance(p, Slot) and isinstance(q, Slot):
                self.pairs[p] = q
            elif isinstance(p, Later):
                self.pairs |= zip(p.slots, q.slots, strict=True)
        for v, w in zip(a.outputs, b.outputs, strict=True):
            if (v is None) != (w is None):
                return None
            if v is not None and w is not None:
                self.stands[w] = v
                self.shared.add(v)
        return replace(a, code=code)

    def either(self, a: Value, b: Value) -> Value | None:
        """The value that is ``a`` of ours and ``b`` of the other's."""
        b = self.stands.get(b, b)
        seen = a
        while seen not in self.shared and seen in self.instead:
            seen = self.instead[seen]
        if seen is b:
            return a
        if a.dtype != b.dtype or len(a.shape) != len(b.shape):
            return None
        if seen not in self.shared and b in self.shared:  # a line of ours that the other lacks
            self.instead[seen] = b
            return a
        if b in self.added and a in self.shared and self.instead.get(b, a) is a:
            self.instead[b] = a
            return b
        return None

    def declared(self) -> bool:
        """What both hold, and what one of them does."""
        theirs = dict(self.other.members)
        for name, code in self.merged.members.items():
            self.members[name] = code
            if name in theirs and not self.alike(code, theirs.pop(name)):
                return False
        self.members |= theirs
        order = [*self.other.members] if len(self.members) == len(self.other.members) else []
        self.members = {n: self.members[n] for n in order or self.members}
        return True

    def alike(self, a: Code, b: Code) -> bool:
        x, y = list(flat(a)), list(flat(b))
        if [mark(self.base, p) for p in x] != [mark(self.other, p) for p in y]:
            return False
        self.pairs |= {p: q for p, q in zip(x, y, strict=True) if isinstance(p, Slot)}
        return True


def _scales(s: Statement) -> tuple[str, ...]:
    return tuple(repr(p.value) for p in s.code if isinstance(p, Slot) and p.name == "scale")


def activation(code: Code) -> bool:
    """``F.relu(x)``: a function of one array, and nothing else."""
    match code:
        case [str(name), Value(), ")"]:
            return re.fullmatch(r"[\w.]+\(", name) is not None
    return False
