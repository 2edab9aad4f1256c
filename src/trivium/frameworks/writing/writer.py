"""Statements as lines: names for values as a person would give them, chains on one line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trivium.frameworks.writing.blocks import leaf
from trivium.frameworks.writing.classes import Class
from trivium.frameworks.writing.code import (
    Chain,
    Code,
    Guard,
    Keyword,
    Later,
    Member,
    Size,
    Slot,
    Statement,
    Word,
)
from trivium.frameworks.writing.source import Emitter
from trivium.graph import UnsupportedError, Value, quoted
from trivium.shape import Dim

SHORT = ("x", "y")
"""The first names beside those of the arguments."""
MANY = 4
"""So many equal members of a chain are made in a loop."""
WIDTH = 88
"""Longer lines are not chained further."""
Declared = Any  # the text of a constructor call, or a list of these: a chain


class Writer:
    """Statements of one body as lines: names for values, chains on one line."""

    def __init__(self, emitter: Emitter, cls: Class):
        self.emitter, self.target, self.cls = emitter, emitter.target, cls
        self.body = cls.body
        self.root = emitter.root in cls.bodies[:1]
        self.declaring = False  # or calling: then the constructor's arguments are members
        self.lines: list[str] = []
        self.names: dict[Value, str] = {}
        self.owner: dict[str, Value] = {}  # name -> the value that it stands for now
        self.reserved: set[str] = {*cls.parameters}
        self.numbers: dict[str, int] = {}
        self.plain = [*SHORT]  # names that say nothing: any value may have them
        self.pending: dict[Value, tuple[str, bool, int]] = {}
        self.left = self._uses()
        sizes = (p for s in self.body.statements for p in s.code if isinstance(p, Size))
        self.sizes_left = Counter(name for p in sizes for name in p.dim.names())

    def _uses(self) -> dict[Value, int]:
        count: dict[Value, int] = {}
        guards: set[Guard] = set()
        for s in self.body.statements:
            read = [p for p in s.code if isinstance(p, Value)]
            if s.guard is not None and s.guard not in guards:
                guards.add(s.guard)
                read.append(s.guard.takes)
            for p in read:
                count[p] = count.get(p, 0) + 1
        for v in self.body.block.outputs:
            count[v] = count.get(v, 0) + 1
        return count

    def call(self, value: Value, name: str) -> str:
        """From here on this is what a value is called."""
        self.names[value], self.owner[name] = name, value
        return name

    def known(self) -> Iterator[tuple[Value, str]]:
        """The values that have names here, the latest first."""
        for name, v in reversed(self.owner.items()):
            yield v, name

    def argument_names(self) -> list[str]:
        """Names for what the block reads."""
        inputs = self.body.reads()
        if self.body.many:
            self.reserved.add("xs")
            return ["*xs"]
        for i, v in enumerate(inputs):
            wish = v.name if v.kind == "data" and v.name.isidentifier() else ""
            if not wish or re.fullmatch(r"x\d+", wish):
                wish = "x" if len(inputs) == 1 else f"x{i + 1}"
            name = self.call(v, self.fresh(wish))
            if re.fullmatch(r"x\d*", name):
                self.plain.insert(i, name)
        return [self.names[v] for v in inputs]

    def fresh(self, wish: str) -> str:
        """A name that nothing has: no variable, argument, class, module or helper."""
        name = wish
        while (
            name in self.owner
            or name in self.reserved
            or name in self.emitter.used_names
            or self.target.taken(name)
        ):
            self.numbers[wish] = self.numbers.get(wish, 1) + 1
            name = f"{wish}{'_' * wish[-1].isdigit()}{self.numbers[wish]}"
        return name

    def slot(self, slot: Slot) -> str:
        """A literal, or the constructor's argument that holds it; nothing where it goes unsaid."""
        text = self.argument(slot.parameter) if slot.parameter else self.literal(slot.value)
        if not isinstance(slot, Keyword):
            return text
        left_out = not slot.parameter and bool(slot.value == slot.default)
        return "" if left_out else f", {slot.name}={text}"

    def literal(self, value: Any) -> str:
        """A number, word, tuple, dtype as source."""
        return str(value) if isinstance(value, Word) else self.target.literal(value)

    def argument(self, name: str) -> str:
        """An argument of the constructor, which a call finds among the members."""
        return name if self.declaring or not self.target.holds else f"self.{name}"

    def text(self, code: Code) -> tuple[str, int]:
        """An expression with what is pending put in; and how deep it nests."""
        out, depth = "", 0

        def alone(i: int) -> bool:
            """Is this piece an argument by itself, where no operator is beside it?"""
            before = code[i - 1] if i else ""
            return (
                isinstance(before, str)
                and before.endswith(("(", ", ", "["))
                and (i + 1 < len(code) and str(code[i + 1]).startswith((")", ",")))
            )

        for i, p in enumerate(code):
            if isinstance(p, Value) and p in self.pending:
                inner, infix, below = self.pending[p]
                out += f"({inner})" if infix and not alone(i) else inner
                depth = max(depth, below + 1)
            elif isinstance(p, Value):
                if p not in self.names:
                    raise self.unnamed(p)
                out += self.names[p]
            elif isinstance(p, Slot):
                text = self.slot(p)
                out += text[2:] if out.endswith("(") and text.startswith(", ") else text
            elif isinstance(p, Member):
                out += self.member(p)
            elif type(p) is Later:
                out += self.constructed(p)
            elif isinstance(p, Size):
                size = self.size(p.dim)  # a sum or a product is no factor as it stands
                out += f"({size})" if re.search(r"[-+*/]", size) and not alone(i) else size
            else:
                out += self.piece(p)
        return out, depth

    def unnamed(self, value: Value) -> UnsupportedError:
        """No variable is called this: a statistic that is read after it was collected."""
        what = f"a new state of {value.node.op if value.node else 'the model'} that is read again"
        where = self.body.block.path or "the model"
        return UnsupportedError(what, where, "return it from a call of its own")

    def piece(self, piece: Any) -> str:
        """Anything else in an expression: text as it stands."""
        return str(piece)

    def member(self, member: Member) -> str:
        """A layer or parameter of this block."""
        raise NotImplementedError

    def size(self, dim: Dim) -> str:
        """An open size, from the shape of a variable that has it."""

        def known(d: Dim) -> str | None:
            for v, name in self.known():
                for axis, s in enumerate(v.shape):
                    if s == d:
                        return self.size_of(name, axis)
            return None

        whole = known(dim)
        if whole:
            return whole
        text = str(dim)
        for name in sorted(dim.names(), key=len, reverse=True):
            part = known(Dim(name)) or self.solved(Dim(name))
            if part is None:
                where = self.body.block.path or "the model"
                raise UnsupportedError(
                    f"the open size '{dim}' in {where}, where no variable has the size '{name}'"
                )
            text = re.sub(rf"\b{name}\b", part, text)
        return text

    def solved(self, dim: Dim) -> str | None:
        """``x.shape[0] // 16``: a size from that of a variable which is a multiple of it."""
        (word,) = dim.names()
        for v, name in self.known():
            for axis, s in enumerate(v.shape):
                if not isinstance(s, Dim) or s.names() != {word}:
                    continue
                offset, factor = s.subs({word: 0}), s.subs({word: 1}) - s.subs({word: 0})
                if isinstance(factor, int) and factor > 0 and dim * factor + offset == s:
                    less = f" - {offset}" if offset else ""
                    size = self.size_of(name, axis)
                    return f"(({size}{less}) // {factor})" if less else f"({size} // {factor})"
        return None

    def size_of(self, name: str, axis: int) -> str:
        """The size of a variable along one axis."""
        return f"{name}.shape[{axis}]"

    def write(self) -> list[str]:
        """The lines of the body, ``return`` included."""
        self.lines += self.checks()
        statements = self.body.statements
        within: Guard | None = None
        before: list[str] = []
        for i, s in enumerate(statements):
            last = i + 1 == len(statements)
            following = list(self.body.block.outputs) if last else statements[i + 1].code
            if s.guard is not within and s.guard is not None:
                self.flush([*self.pending])
                before, self.lines = self.lines, []
            within = s.guard
            self.statement(s, following)
            if s.guard is not None and (last or statements[i + 1].guard is not s.guard):
                self.lines = [*before, *self.guarded(s.guard)]
        outputs = self.body.block.outputs
        if lost := [v for v in outputs if v not in self.pending and v not in self.names]:
            raise self.unnamed(lost[0])
        parts = [self.pending[v][0] if v in self.pending else self.names[v] for v in outputs]
        self.lines.append(self.result(parts))
        return self.lines

    def guarded(self, guard: Guard) -> list[str]:
        """The lines that were just written, under their condition."""
        test = f"{self.argument(guard.test)}{' is not None' * guard.member}"
        self.flush([guard.gives])
        takes, gives = self.names[guard.takes], self.names[guard.gives]
        inside = ["    " + line for line in self.lines]
        if takes == gives:
            return [f"if {test}:", *inside]
        if len(self.lines) == 1 and len(self.lines[0]) + len(test) < WIDTH - 14:
            return [f"{self.lines[0]} if {test} else {takes}"]
        return [f"if {test}:", *inside, "else:", f"    {gives} = {takes}"]

    def checks(self) -> list[str]:
        """What the model says when it meets a size that it was not made for."""
        lines = []
        for v, condition in self.foreign():
            made, name = ", ".join(map(str, v.shape)) + "," * (len(v.shape) == 1), self.names[v]
            lines += [
                f"if {condition}:",
                f'    raise ValueError(f"made for {name} of shape ({made}), '
                f'got {{tuple({name}.shape)}}")',
            ]
        return lines

    def foreign(self) -> Iterator[tuple[Value, str]]:
        """Inputs of the model, each with what is true of a shape that it was not made for."""
        made_for = self.emitter.made_for if self.root else {}
        for v in self.body.reads():
            axes = made_for.get(v.name, [])
            first, name = min(axes, default=0), self.names[v]
            if (
                len(axes) > 1
                and all(isinstance(v.shape[a], int) for a in axes)
                and (axes == list(range(first, len(v.shape))))
            ):
                yield v, f"{name}.shape[{first}:] != {tuple(v.shape[first:])}"
            elif axes:
                yield (
                    v,
                    " or ".join(f"{name}.shape[{a}] != {self.source(v.shape[a])}" for a in axes),
                )

    def source(self, size: Any) -> str:
        """A size of an input, open ones read from the first input that has them."""
        text = str(size)
        for word in sorted(size.names(), key=len, reverse=True) if isinstance(size, Dim) else ():
            v = next(v for v in self.body.block.inputs if Dim(word) in v.shape)
            at = f"{self.names[v]}.shape[{v.shape.index(Dim(word))}]"
            text = re.sub(rf"\b{word}\b", at, text)
        return text

    def inner(self, name: str) -> str:
        """A path as seen from this block, in words that the target leaves free."""
        path = self.body.block.path
        name = name[len(path) + 1 :] if path and name.startswith(path + ".") else name
        return ".".join(map(self.target.part, name.split(".")))

    def declared(self, code: Any) -> Declared:
        """A constructor call, or the list of those in a chain."""
        if isinstance(code[0], Chain):
            return [text for item, times in code[0].items for text in self.repeated(item, times)]
        before, self.declaring = self.declaring, True
        try:
            text, _ = self.text(code)
        finally:
            self.declaring = before
        return text

    def repeated(self, code: Code, times: Slot) -> list[Declared]:
        """A member of a chain, as often as it is there."""
        item = self.declared(code)
        if not isinstance(item, str) or (not times.parameter and times.value < MANY):
            return [item] * times.value
        count = times.parameter or str(times.value)
        return [f"*({item} for _ in range({count}))"]

    def constructed(self, later: Later) -> str:
        """``Block(64, stride=2)``."""
        inside = "".join(
            (", " if not isinstance(slot, Keyword) else "") + self.slot(slot)
            for slot in later.slots
        )
        return f"{later.body.cls.name}({inside.removeprefix(', ')})"

    def asked(self, name: str, text: str) -> str:
        """A member's declaration, where an argument may ask for none."""
        flag, called = self.cls.optional.get(name, ("", False))
        return f"{text} if {flag} else {self.target.identity if called else None}" if flag else text

    def frozen(self) -> list[str]:
        """What is not trained: a line for each part, at the end of the whole model."""
        if not self.root:
            return []
        at = {path for path, _ in self.emitter.weights.values()}
        fixed = self.emitter.fixed(self.body)
        return [self.freeze(p, p in at) for p in self.emitter.frozen() if p not in fixed]

    def freeze(self, path: str, alone: bool) -> str:
        """The line that keeps a parameter (``alone``), or all of a part's, from being trained."""
        raise NotImplementedError

    def result(self, parts: Sequence[str]) -> str:
        """The last line of a body."""
        return f"return {self.nested(parts)}"

    def nested(self, parts: Sequence[str]) -> str:
        """What a body gives, put together: by names where the model's outputs have any."""
        names = self.emitter.graph.structure if self.root else None
        if isinstance(names, tuple):
            named = zip(names, parts, strict=True)
            return f"{{{', '.join(f'{quoted(n)}: {p}' for n, p in named)}}}"
        return f"[{', '.join(parts)}]" if names is list else ", ".join(parts)

    def joins(self, s: Statement, text: str, last: bool) -> bool:
        """May a statement be written inside the next one (or, the ``last``, inside the result)?"""
        return len(text) < WIDTH - 20

    def statement(self, s: Statement, following: Sequence[Any]) -> None:
        text, depth = self.text(s.code)
        used = [p for p in s.code if isinstance(p, Value)]
        if self.pending and (len(text) > WIDTH - 16 or depth > 3):
            self.flush(used)
            text, depth = self.text(s.code)
        for p in used:
            self.pending.pop(p, None)
            self.left[p] -= 1
        self.sizes_left.subtract(
            name for p in s.code if isinstance(p, Size) for name in p.dim.names()
        )
        only = s.outputs[0] if len(s.outputs) == 1 else None
        next_uses = sum(1 for p in following if p is only)
        last = s is self.body.statements[-1]
        ends = s.guard is not None and only is s.guard.gives
        once = only is not None and self.left.get(only) == 1 and next_uses == 1 and not ends
        if only is not None and once and self.joins(s, text, last):
            self.pending[only] = (text, s.infix, depth)
            return
        used = self.ending(s, used)
        kept = [v if v is not None and self.left.get(v) else None for v in s.outputs]
        if s.wishes:
            self.lines.append(f"{', '.join(self.wished(s, kept))} = {text}")
            return
        names = [self.name_for(v, used, s) if v is not None else "_" for v in kept]
        self.lines.append(f"{', '.join(names)} = {text}")

    def ending(self, s: Statement, used: list[Value]) -> list[Value]:
        """Whose names are free for what a statement gives: under a condition, what it replaces."""
        if s.guard is None or not any(v is s.guard.gives for v in s.outputs):
            return used
        self.left[s.guard.takes] -= 1
        return [s.guard.takes]

    def wished(self, s: Statement, kept: Sequence[Value | None]) -> list[str]:
        """The names that a statement asks for."""
        pairs = zip(s.wishes, kept, strict=True)
        return ["_" if v is None else self.call(v, self.fresh(wish)) for wish, v in pairs]

    def flush(self, values: Sequence[Value]) -> None:
        for v in values:
            if v in self.pending:
                text, _, _ = self.pending.pop(v)
                self.lines.append(f"{self.name_for(v, (), None)} = {text}")

    def name_for(self, value: Value, used: Sequence[Value], s: Statement | None) -> str:
        """``x`` again when the x before is no longer needed; else a name by its role."""
        wanted = {Dim(n) for n, count in self.sizes_left.items() if count > 0}
        for v in (*used, *(self.owner[n] for n in self.plain if n in self.owner)):
            if self.spent(v, value, wanted):
                return self.call(value, self.names[v])
        for short in SHORT:
            if short not in self.owner:
                return self.call(value, self.fresh(short))
        wish = self.role(value, s)
        old = self.owner.get(wish)
        if old is not None and self.spent(old, value, wanted):
            return self.call(value, wish)
        return self.call(value, self.fresh(wish))

    def spent(self, v: Value, value: Value, wanted: set[Dim]) -> bool:
        """Is the name of ``v`` free, for ``value``? Somebody has to be asked for an open size."""
        name = self.names.get(v, "")
        if self.left.get(v, 0) > 0 or self.owner.get(name) is not v:
            return False
        lost = {size for size in wanted if size in v.shape and size not in value.shape}
        for other in self.owner.values() if lost else ():
            if other is not v:
                lost -= {*other.shape}
        return not lost

    def role(self, value: Value, s: Statement | None) -> str:
        """What a value is: by its own name, the part that makes it, or the operation."""
        if value.name.isidentifier():
            return value.name
        node, path = value.node, self.body.block.path
        if node is None:
            return "value"
        inner = leaf(node.scope) if node.scope != path else ""
        made = [p for p in s.code[:1] if isinstance(p, Member)] if s is not None else []
        member = leaf(self.inner(made[0].name)) if made else ""
        for name in (member, inner, node.op):
            if name.isidentifier() and not self.target.taken(name):
                return name
        return node.op
