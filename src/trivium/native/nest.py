"""Loop nests as data: what ``fuse`` makes of a Graph, ``schedule`` orders and ``codegen`` writes.

A :class:`Nest` is a loop nest: for every value of its loops, what to reduce and what to store.
Printing one gives loops that can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trivium.native.expr import (
    Acc,
    Apply,
    Buffer,
    Condition,
    Const,
    Expr,
    Exprs,
    Gather,
    Guard,
    Iota,
    Load,
    Read,
    parts,
)
from trivium.native.index import Index, Var


@dataclass
class Store:
    """``buffer[at] = value``."""

    buffer: Buffer
    at: tuple[Index, ...]
    value: Expr


@dataclass
class Nest:
    """For every value of ``loops``: reduce ``body`` over ``reduce``, then do the stores.

    In the stores' values the reduction's result is the expression ``acc``. ``kind`` is "map" (no
    reduction), "sum", "max", "min" or "argmax".
    """

    name: str
    loops: list[Var]
    stores: list[Store]
    kind: str = "map"
    reduce: list[Var] = field(default_factory=list)
    body: Expr | None = None
    batch: Var | None = None  # the variable that tasks and neighbours share, once scheduled
    partial: int = 0  # > 0: sums over ``batch`` go to partial sums of so many images each
    unit: str = ""
    stale: set[Buffer] = field(default_factory=set)  # read as they were before being updated
    watches: bool = False  # it only looks for indices out of range, before anything is changed

    def exprs(self) -> list[Expr]:
        """Everything that is computed."""
        return [s.value for s in self.stores] + ([self.body] if self.body is not None else [])

    def reads(self) -> list[Read]:
        """Every load (and gather), each once."""
        found = {id(p): p for e in self.exprs() for p in parts(e) if isinstance(p, Read)}
        return list(found.values())

    def indices(self, flat: bool = True) -> list[Index]:
        """Every Index that occurs: positions in memory, conditions, numbers made of variables.

        Not ``flat``: positions in logical axes, for arrays whose layout is still open.
        """
        out = [i for s in self.stores for i in ([s.buffer.flat(s.at)] if flat else s.at)]
        for e in {id(p): p for x in self.exprs() for p in parts(x)}.values():
            out += e.indices(flat)
        return out

    def bare(self, make: Exprs) -> None:
        """Forget what was known of indices through conditions: expressions are final now."""
        done: dict[int, Expr] = {}
        for s in self.stores:
            s.value = make.map_indices(s.value, Index.bare, done)
        if self.body is not None:
            self.body = make.map_indices(self.body, Index.bare, done)

    def substitute(self, make: Exprs, env: Mapping[Var, Index], loops: list[Var],
                   reduce: list[Var]) -> None:  # fmt: skip
        """Other variables for some of the old ones, everywhere."""
        done: dict[int, Expr] = {}

        def change(i: Index) -> Index:
            return i.replace(env)

        self.stores = [
            Store(s.buffer, tuple(map(change, s.at)), make.map_indices(s.value, change, done))
            for s in self.stores
        ]
        if self.body is not None:
            self.body = make.map_indices(self.body, change, done)
        self.loops, self.reduce = loops, reduce

    @property
    def iterations(self) -> int:
        """How often the body is computed."""
        return int(np.prod([v.extent for v in (*self.loops, *self.reduce)], dtype=np.int64))

    @property
    def work(self) -> float:
        """About how many cycles of one core's scalar unit it takes."""
        inner = self.body.cost + 1 if self.body is not None else 0
        outs = int(np.prod([v.extent for v in self.loops], dtype=np.int64))
        return self.iterations * inner + outs * sum(s.value.cost + 1 for s in self.stores)


# -- reading them --------------------------------------------------------------------------------
_INFIX = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "equal": "==",
          "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">",
          "greater_equal": ">=", "logical_and": "&", "logical_or": "|"}  # fmt: skip
_LEAVES = (Const, Load, Iota, Acc)


class _Printer:
    """Expressions as Python would write them; what is used twice gets a name."""

    def __init__(self, exprs: Sequence[Expr]):
        uses: dict[int, int] = {}
        for e in {id(p): p for x in exprs for p in parts(x)}.values():
            for a in e.args:
                uses[id(a)] = uses.get(id(a), 0) + 1
        for e in exprs:
            uses[id(e)] = uses.get(id(e), 0) + 1
        self.twice = {k for k, n in uses.items() if n > 1}
        self.names: dict[int, str] = {}
        self.lines: list[str] = []

    def show(self, e: Expr) -> str:
        """The expression, or the name that it was given."""
        if isinstance(e, _LEAVES) or id(e) not in self.twice:
            return self._text(e)
        if id(e) not in self.names:
            text = self._text(e)
            self.names[id(e)] = f"v{len(self.names)}"
            self.lines.append(f"{self.names[id(e)]} = {_bare(text)}")
        return self.names[id(e)]

    def _text(self, e: Expr) -> str:
        match e:
            case Const():
                return f"{e.value}"
            case Load():
                return f"{e.buffer}[{', '.join(map(str, e.at)) or '()'}]"
            case Iota():
                return f"({e.index})"
            case Guard():
                tests = " and ".join(map(_test, e.conditions))
                return f"({self.show(e.args[0])} if {tests} else {self.show(e.args[1])})"
            case Gather():
                (place,) = map(self.show, e.args)
                at = ", ".join(place if i is None else str(i) for i in e.at)
                return f"{e.buffer}[{at}]"
            case Apply():
                args = [self.show(a) for a in e.args]
                if e.op in _INFIX and len(args) == 2:
                    return f"({args[0]} {_INFIX[e.op]} {args[1]})"
                name = e.dtype if e.op == "cast" else e.op
                return f"{name}({', '.join(map(_bare, args))})"
        return "acc"


def _bare(text: str) -> str:
    """Without parentheses around the whole."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for k, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and k < len(text) - 1:
            return text
    return text[1:-1]


def _test(condition: Condition) -> str:
    index, low, high = condition
    smallest, largest = index.bounds()
    below = f"{low} <= " if smallest < low else ""
    above = f" < {high}" if largest >= high else ""
    return f"{below}{index}{above}"


def printed(nest: Nest) -> str:
    """The nest as loops in Python."""
    taken: set[str] = set()
    for v in (*nest.loops, *nest.reduce):
        name, number = v.name.rstrip("0123456789"), 1
        v.name = name
        while v.name in taken:
            number += 1
            v.name = f"{name}{number}"
        taken.add(v.name)
    lines, at = [], ""
    for v in nest.loops:
        lines.append(f"{at}for {v} in range({v.extent}):")
        at += "    "
    if nest.kind != "map":
        assert nest.body is not None
        start = {"sum": "0", "max": "-inf", "min": "inf", "argmax": "-inf"}[nest.kind]
        lines.append(f"{at}acc = {start}")
        inner = at
        for v in nest.reduce:
            lines.append(f"{inner}for {v} in range({v.extent}):")
            inner += "    "
        how = {"sum": "acc += {}", "max": "acc = max(acc, {})", "min": "acc = min(acc, {})",
               "argmax": "acc = first_largest(acc, {})"}[nest.kind]  # fmt: skip
        printer = _Printer([nest.body])
        text = how.format(_bare(printer.show(nest.body)))
        lines += [inner + line for line in (*printer.lines, text)]
    printer = _Printer([s.value for s in nest.stores])
    sign = "+=" if nest.partial else "="
    for s in nest.stores:
        text = _bare(printer.show(s.value))
        lines += [at + line for line in printer.lines]
        printer.lines.clear()
        lines.append(f"{at}{s.buffer}[{', '.join(map(str, s.at)) or '()'}] {sign} {text}")
    return "\n".join(lines)
