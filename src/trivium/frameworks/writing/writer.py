"""Statements as lines: names for values as a person would give them, chains on one line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trivium.frameworks.writing.code import Code, Member, Size, Slot, Statement
from trivium.frameworks.writing.source import Class, Emitter, Later, flat
from trivium.graph import UnsupportedError, Value, quoted
from trivium.shape import Dim

WIDTH = 88
"""Longer lines are not chained further."""
Declared = Any  # the text of a constructor call, or a list of these: a chain


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
        sizes = (p for s in self.body.statements for p in s.code if isinstance(p, Size))
        self.sizes_left = Counter(name for p in sizes for name in p.dim.names())

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
        """A name that nothing has: no variable, argument, class, module or helper."""
        taken = {*self.names.values(), *self.slot_names.values(), *self.emitter.used_names}
        name, n = wish, 2
        while name in taken or self.target.taken(name):
            name, n = f"{wish}{n}", n + 1
        return name

    def literal_slot(self, slot: Slot) -> str:
        name = self.slot_names.get(self.slot)
        self.slot += 1
        return name or self.target.literal(slot.value)

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
                out += self.literal_slot(p)
            elif isinstance(p, Member):
                out += self.member(p)
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
        for v, name in reversed(self.names.items()):
            for axis, s in enumerate(v.shape):
                if not isinstance(s, Dim) or s.names() != {word} or self._latest(name) is not v:
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

    def _latest(self, name: str) -> Value:
        return [v for v, n in self.names.items() if n == name][-1]

    def write(self) -> list[str]:
        """The lines of the body, ``return`` included."""
        self.lines += self.checks()
        statements = self.body.statements
        for i, s in enumerate(statements):
            following = (
                statements[i + 1].code if i + 1 < len(statements) else list(self.body.block.outputs)
            )
            self.statement(s, following)
        outputs = self.body.block.outputs
        if lost := [v for v in outputs if v not in self.pending and v not in self.names]:
            raise self.unnamed(lost[0])
        parts = [self.pending[v][0] if v in self.pending else self.names[v] for v in outputs]
        self.lines.append(self.result(parts))
        return self.lines

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
        made_for = self.emitter.made_for if self.body is self.emitter.root else {}
        for v in self.body.block.inputs:
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
        if len(code) == 1 and isinstance(code[0], Later):
            body = code[0].body
            if body.cls is None:
                return [self.declared(body.members[n]) for n in body.chain or ()]
            inside = ", ".join(self.literal_slot(s) for s in body.arguments if isinstance(s, Slot))
            return f"{body.cls.name}({inside})"
        pieces = flat(code, self.emitter)
        return "".join(self.literal_slot(p) if isinstance(p, Slot) else str(p) for p in pieces)

    def frozen(self) -> list[str]:
        """What is not trained: a line for each part, at the end of the whole model."""
        if self.body is not self.emitter.root:
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
        names = self.emitter.graph.structure if self.body is self.emitter.root else None
        if isinstance(names, tuple):
            named = zip(names, parts, strict=True)
            return f"{{{', '.join(f'{quoted(n)}: {p}' for n, p in named)}}}"
        return f"[{', '.join(parts)}]" if names is list else ", ".join(parts)

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
        self.sizes_left.subtract(
            name for p in s.code if isinstance(p, Size) for name in p.dim.names()
        )
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
        for size in (Dim(n) for n, count in self.sizes_left.items() if count > 0):
            if not any(size in v.shape for v in (value, *live)):  # somebody has to be asked for it
                live |= set([v for v in self.names if size in v.shape][-1:])
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
