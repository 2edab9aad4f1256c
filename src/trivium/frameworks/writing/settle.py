"""All bodies of a model sorted into classes, inner ones first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trivium.frameworks.words import MISSING
from trivium.frameworks.writing.classes import Body, Class, Merged, flat, outline
from trivium.frameworks.writing.code import Chain, Code, Keyword, Later, Many, Slot
from trivium.frameworks.writing.naming import named
from trivium.graph import Value

TRIES = 8
"""With so many other classes of the same name a body is compared, before it is one more."""


def settled(emitter: Any) -> list[Class]:
    """The classes of a model's bodies, inner ones first."""
    left = [b for b in emitter.bodies if not emitter.inlined(b)]
    waiting = {b: {c for c in _classed(b, emitter)} for b in left}
    groups: dict[str, list[Body]] = {}
    for b in left:
        groups.setdefault(_kind(emitter, b), []).append(b)
    done: set[Body] = set()
    while groups:
        ready = {k: g for k, g in groups.items() if all(waiting[b] <= done for b in g)}
        if not ready:  # a class inside of itself
            kind, group = next(
                (k, g) for k, g in groups.items() if any(waiting[b] <= done for b in g)
            )
            ready = {kind: [b for b in group if waiting[b] <= done]}
        for kind, group in ready.items():
            groups[kind] = [b for b in groups[kind] if b not in set(group)]
            if not groups[kind]:
                del groups[kind]
            _classify(emitter, group)
            done.update(group)
    return _in_order(emitter)


def _classed(body: Body, emitter: Any) -> Iterator[Body]:
    """The bodies inside that have classes."""
    for inner in body.inner():
        if emitter.inlined(inner):
            yield from _classed(inner, emitter)
        else:
            yield inner


def _kind(emitter: Any, body: Body) -> str:
    """What the bodies that may be one class have in common: a word."""
    path = body.block.path
    wish: str = emitter.wish(path)
    return wish if path in emitter.graph.classes else re.sub(r"\d+", "", wish)


def _classify(emitter: Any, bodies: Sequence[Body]) -> None:
    if len({len(b.block.inputs) for b in bodies}) > 1:
        _gather(bodies)
    variants: dict[Any, list[Body]] = {}
    for body in bodies:
        fill(body, emitter)
        variants.setdefault(outline(body), []).append(body)
    found: list[Merged] = []
    known = bodies[0].block.path in emitter.graph.classes  # no two of a guessed name are one
    for group in variants.values():
        merged = next((m for m in found[:TRIES] if m.take(group)), None) if known else None
        if merged is None:
            found.append(Merged(group, emitter.target.passed))
    for merged in found:
        named(merged, emitter)


def _gather(bodies: Sequence[Body]) -> None:
    """Bodies that read more or fewer values, each all of them in one list and nowhere else."""
    found = []
    for body in bodies:
        inputs = body.block.inputs
        lines = [s for s in body.statements if any(p is v for p in s.code for v in inputs[:1])]
        places = [i for s in lines[:1] for i, p in enumerate(s.code) if isinstance(p, Value)]
        read = Counter(p for s in body.statements for p in s.code if isinstance(p, Value))
        together = len(lines) == 1 and all(
            a is b for a, b in zip((lines[0].code[i] for i in places), inputs, strict=False)
        )
        if not (
            together
            and len(places) == len(inputs)
            and all(read[v] == 1 for v in inputs)
            and not {*inputs} & {*body.block.outputs}
            and all(p == ", " for p in lines[0].code[places[0] : places[-1]][1::2])
        ):
            return
        found.append((body, lines[0], places[0], places[-1]))
    for body, line, first, last in found:
        before, after = line.code[first - 1], line.code[last + 1]
        many: list[Any] = [before, Many(), after]
        if str(before).endswith("[") and str(after).startswith("]"):
            many = [before[:-1], Many("xs"), after[1:]]
        line.code = [*line.code[: first - 1], *many, *line.code[last + 2 :]]
        body.many = True


def fill(body: Body, emitter: Any) -> None:
    """Put in what the blocks inside are made of, now that their classes are settled."""
    codes = [*body.members.values(), *(s.code for s in body.statements)]
    for code in codes:
        for i, piece in enumerate(code):
            if not isinstance(piece, Later):
                continue
            inner = piece.body
            if inner.cls is not None:
                piece.slots = made(inner)
            else:
                fill(inner, emitter)
                code[i] = Chain(_rows([inner.members[n] for n in inner.chain or ()]), inner)


def made(body: Body) -> list[Slot]:
    """What a class's constructor is given for one of its bodies."""
    assert body.cls is not None
    return [
        Slot(name, body.arguments[name]) if default is MISSING
        else Keyword(name, body.arguments[name], default)
        for name, default in body.cls.parameters.items()
    ]  # fmt: skip


def _rows(codes: Sequence[Code]) -> list[tuple[Code, Slot]]:
    """A Sequential's members, the same ones in a row together."""
    found: list[tuple[Code, Slot]] = []
    last: Any = None
    for code in codes:
        pieces = [p for p in flat(code) if not isinstance(p, Slot)]
        now = [id(p.body.cls) if isinstance(p, Later) else p for p in pieces]
        now = [now, [(p.name, repr(p.value)) for p in flat(code) if isinstance(p, Slot)]]
        if now == last and not isinstance(code[0], Chain):
            found[-1][1].value += 1
        else:
            found.append((code, Keyword("depth", 1, 1)))
        last = now
    return found


def _in_order(emitter: Any) -> list[Class]:
    found: dict[Class, None] = {}

    def visit(body: Body) -> None:
        left: list[tuple[Body, Iterator[Body]]] = [(body, body.inner())]
        while left:
            at, inner = left[-1]
            step = next(inner, None)
            if step is not None:
                left.append((step, step.inner()))
                continue
            left.pop()
            if at.cls is not None:
                found.setdefault(at.cls)

    visit(emitter.root)
    return list(found)
