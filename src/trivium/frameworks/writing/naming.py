"""What a class's constructor takes, and what that is called: by its role."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trivium.frameworks.words import MISSING
from trivium.frameworks.writing.classes import Body, Class, Merged, Run, flat, runs
from trivium.frameworks.writing.code import Flag, Guard, Member, Rest, Size, Slot
from trivium.graph import Value


def named(merged: Merged, emitter: Any) -> Class:
    """The class that bodies are, with its arguments."""
    return _Naming(merged, emitter).made()


class _Naming:
    def __init__(self, merged: Merged, emitter: Any):
        self.merged, self.emitter, self.target = merged, emitter, emitter.target
        block = merged.block
        self.body = Body(block, merged.members, [], merged.chain, many=merged.many)
        self.at: dict[Slot, str] = {}  # where in the class: the member that it is an argument of
        for name, code in merged.members.items():
            self.at |= {p: name for p in flat(code) if isinstance(p, Slot)}
        for line in merged.lines:
            for p in flat(line.s.code):
                if isinstance(p, Slot):
                    self.at.setdefault(p, "")
        self.taken: set[str] = set()
        parts = {name.partition(".")[0] for name in merged.members}
        self.parts = parts if self.target.holds else set()  # what is kept stands beside them

    def made(self) -> Class:
        merged = self.merged
        first = merged.bodies[0].block.path
        name = self.emitter.class_name(self.emitter.wish(first))
        cls = Class(name, merged.bodies, self.body)
        groups = merged.groups()
        groups = self.left_open(groups)
        names = self.names(groups)
        order = {s: i for i, s in enumerate(self.at)}
        defaults = {n: self.default(g) for n, g in zip(names, groups, strict=True)}
        place = {n: min(order[s] for s in g) for n, g in zip(names, groups, strict=True)}
        for slots, parameter in zip(groups, names, strict=True):
            for slot in slots:
                slot.parameter = parameter
        for group, parameter in zip(groups, names, strict=True):
            for i, body in enumerate(merged.bodies):
                value = merged.value(group, i)
                default = defaults[parameter]
                body.arguments[parameter] = default if value is MISSING else value
            if any(not self.at[s] for s in group):
                cls.kept.append(parameter)
        for slot, values in merged.values.items():  # the same wherever it is
            if not slot.parameter:
                slot.value = next(v for v in values if v is not MISSING)
        cls.parameters = {
            n: defaults[n]
            for n in sorted(names, key=lambda n: (defaults[n] is not MISSING, place[n]))
        }
        self.conditions(cls, dict(zip(names, groups, strict=True)))
        for body in merged.bodies:
            body.cls = cls
        return cls

    def left_open(self, groups: list[list[Slot]]) -> list[list[Slot]]:
        """``reshape(1, -1, 1, 1)``: of the sizes of a reshape one need not be said."""
        varying = {s: g for g in groups for s in g}
        for line in self.merged.lines:
            code = line.s.code
            sizes = [p for p in code if isinstance(p, Rest) and p in varying]
            alone = [p for p in sizes if all(isinstance(q, Rest) for q in varying[p])]
            if not sizes or any(isinstance(p, Size) for p in code):
                continue
            if not alone and len(sizes) > 1:
                continue
            chosen = (alone or sizes)[0]
            varying[chosen].remove(chosen)
            self.merged.values[chosen] = [-1] * len(self.merged.bodies)
        return [g for g in groups if g]

    # -- conditions --------------------------------------------------------------------------------
    def conditions(self, cls: Class, groups: dict[str, list[Slot]]) -> None:
        """Which lines and members are asked for by which argument."""
        merged = self.merged
        found = runs(merged.lines, merged.outputs, merged.instead) or []
        flags: dict[frozenset[int], str] = {}
        of_line: dict[int, Guard | None] = {}
        for run in sorted(found, key=lambda r: not _members(r)):
            lacks = run.lines[0].lacks
            flag = flags.get(lacks, "")
            if not flag or (flag in self.parts and not _members(run)):
                flag = self.flag(cls, lacks, run, groups)  # one that is no part's name
            flags.setdefault(lacks, flag)
            guard = self.guard(cls, flag, run)
            of_line |= {id(x): guard for x in run.lines}
        for name, lacks in merged.without.items():
            if lacks:
                flag = flags.get(lacks) or self.flag(cls, lacks, None, groups, name)
                flags[lacks] = flag
                cls.optional.setdefault(name, (flag, False))
        for line in merged.lines:
            line.s.guard = of_line.get(id(line))
            self.body.statements.append(line.s)
        self.body.block = _block(merged)

    def guard(self, cls: Class, flag: str, run: Run) -> Guard | None:
        """The condition of a run; none where a member that does nothing will do."""
        members = list(dict.fromkeys(
            p.name for x in run.lines for p in x.s.code if type(p) is Member
            and p.name in self.merged.without
        ))  # fmt: skip
        match [x.s.code for x in run.lines]:
            case [[Member(name), "(", v, *flags, ")"]] if v is run.takes and self.target.identity:
                if name in self.merged.without and all(isinstance(p, Flag) for p in flags):
                    cls.optional[name] = (flag, True)
                    return None
        if members and self.target.holds:
            return Guard(members[0], True, run.gives, run.takes)
        if flag not in cls.kept:
            cls.kept.append(flag)
        return Guard(flag, False, run.gives, run.takes)

    def flag(
        self, cls: Class, lacks: frozenset[int], run: Run | None,
        groups: dict[str, list[Slot]], member: str = "",
    ) -> str:  # fmt: skip
        """The argument that is true where the lines are there."""
        merged = self.merged
        for name, slots in groups.items():
            values = [merged.value(slots, i) for i in range(len(merged.bodies))]
            gone = {i for i, v in enumerate(values) if v is MISSING}
            if gone == lacks and all(v is MISSING or v for v in values):
                return name
        wish = member.partition(".")[0]
        if run is not None:
            members = _members(run)
            enters = set(merged.reads)
            added = any(
                len([p for p in x.s.code if isinstance(p, Value)]) > 1
                and any(isinstance(p, Value) and p in enters for p in x.s.code)
                for x in run.lines
            )
            node = run.gives.node
            wish = (
                members[0].partition(".")[0]
                if members
                else "skip"
                if added
                else node.op
                if node
                else "more"
            )
        word = self.word(wish)
        besides = {*cls.parameters} | (set() if member or (run and _members(run)) else self.parts)
        name = self.free([word, f"with_{word}"], besides)
        there = [i not in lacks for i in range(len(merged.bodies))]
        cls.parameters[name] = Counter(there).most_common(1)[0][0]
        for body, yes in zip(merged.bodies, there, strict=True):
            body.arguments[name] = yes
        return name

    # -- numbers -----------------------------------------------------------------------------------
    def wide(self, slots: Sequence[Slot]) -> bool:
        """Is it a number of channels or features: what a layer has to be told?"""
        return any(self.at[s] and s.wide for s in slots)

    def default(self, slots: Sequence[Slot]) -> Any:
        values = [self.merged.value(slots, i) for i in range(len(self.merged.bodies))]
        if any(v is MISSING for v in values):
            return None
        if self.wide(slots):
            return MISSING
        common = Counter(map(repr, values)).most_common(1)[0][0]
        return next(v for v in values if repr(v) == common)

    def names(self, groups: Sequence[Sequence[Slot]]) -> list[str]:
        """One for each group, by its role."""
        wide = [g for g in groups if self.wide(g)]
        nouns = Counter(n for g in wide for s in g if (n := _noun(s.name)))
        common = nouns.most_common(1)[0][0] if nouns else "size"
        hidden = [g for g in wide if not any(self.role(g))]
        entering = any(self.role(g)[0] for g in wide)
        found = []
        for group in groups:
            at = next((self.at[s] for s in group if self.at[s]), "")
            member = self.word(at.partition(".")[0]) if at else ""
            own = group[0].name or "number"
            if group not in wide:
                several = member and sum(own == s.name for g in groups for s in g[:1]) > 1
                wishes = [f"{member}_{own}"] * bool(several) + [own]
                wishes += [f"{member}_{own}"] * bool(member)
            else:
                enters, leaves = self.role(group)
                noun = next((n for s in group if (n := _noun(s.name))), common)
                if leaves and (enters or not entering):
                    wishes = [noun]
                elif enters or leaves:
                    wishes = [f"in_{noun}" if enters else f"out_{noun}"]
                else:
                    wishes = [f"hidden_{noun}"] if group is hidden[0] else []
                    wishes = [own] if len(wide) == 1 else wishes
                wishes.append(f"{member}_{noun}" if member else noun)
                wishes += [f"{member}_{own}"] * bool(member)
            found.append(self.free(wishes, self.parts))
        return found

    def role(self, slots: Sequence[Slot]) -> tuple[bool, bool]:
        """Is it a size of what goes in, and of what comes out, in every body?"""
        sizes = [self.merged.value(slots, i) for i in range(len(self.merged.bodies))]

        def on(shapes: Sequence[Sequence[Any]]) -> bool:
            """Is there one axis on which they are?"""
            rank = min(map(len, shapes), default=0)
            return any(
                all(v is MISSING or (isinstance(s[a], int) and s[a] == v)
                    for v, s in zip(sizes, shapes, strict=True))
                for a in range(rank)
            )  # fmt: skip

        blocks = [b.block for b in self.merged.bodies]
        return tuple(  # type: ignore[return-value]
            any(on([v.shape for v in side]) for side in zip(*sides, strict=False))
            for sides in ([b.inputs for b in blocks], [b.outputs for b in blocks])
        )

    def word(self, name: str) -> str:
        """A name that may be an argument."""
        word = re.sub(r"\W", "_", name)
        return word if word.isidentifier() else f"part_{word}"

    def free(self, wishes: Sequence[str], besides: Any) -> str:
        """The first of these that nothing is called."""

        def busy(name: str) -> bool:
            return (
                name in self.taken or name in besides or keyword.iskeyword(name)
                or self.target.taken(name) or name in self.emitter.used_names
            )  # fmt: skip

        name = next((w for w in wishes if not busy(w)), "")
        base, n = wishes[-1], 2
        while not name or busy(name):
            name, n = f"{base}_{n}", n + 1
        self.taken.add(name)
        return name


def _noun(name: str) -> str:
    """``channels`` of ``in_channels``, ``num_features`` alone is ``features``."""
    found = re.fullmatch(r"(?:in|out|num|hidden)_(\w+)", name)
    return (
        found[1] if found else name if name.endswith(("s", "size")) and "shape" not in name else ""
    )


def _block(merged: Merged) -> Any:
    """The block with what the lines under a condition give in place of what they take."""
    block = merged.block
    copy = type(block)(block.path, block.items, block.inputs, merged.outputs)
    return copy


def _members(run: Run) -> list[str]:
    """The parts that lines under a condition call."""
    return [p.name for x in run.lines for p in x.s.code if isinstance(p, Member)]
