"""Loop nests as data: what ``fuse`` makes of a Graph, ``schedule`` orders and ``codegen`` writes.

An :class:`Expr` is a number at a place: loads, constants, arithmetic. A
:class:`Nest` is a loop nest: for every value of its loops, what to reduce and what to store.
Printing one gives loops that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.native.index import ZERO, Index, Var
from trivium.native.vecmath import LIBRARY


@dataclass(frozen=True)
class Axis:
    """One physical axis of a buffer: part of a logical axis, ``(index // divisor) % extent``.

    ``spare`` places follow its ``extent`` and stay empty: rows whose distance is a large power of
    two would all compete for the same few lines of the cache.
    """

    axis: int
    divisor: int
    extent: int
    spare: int = 0

    @property
    def room(self) -> int:
        """How many places it takes."""
        return self.extent + self.spare


class Buffer:
    """A realised array: its logical shape and how its axes lie in memory, outermost first."""

    def __init__(self, name: str, dtype: DType, shape: Sequence[Any], place: str):
        self.name, self.dtype, self.shape, self.place = name, dtype, tuple(shape), place
        self.axes: tuple[Axis, ...] | None = None  # None: not decided yet
        self.offset = -1  # bytes from the start of the arena, once planned
        self.slot = -1  # which argument of the program it is, for place "input" and "output"

    @property
    def size(self) -> int:
        """How many numbers."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self.size * self.dtype.numpy.itemsize

    def lie(self, order: Sequence[int] | None = None) -> None:
        """Decide the order of the axes, outermost first; as they are by default."""
        order = range(len(self.shape)) if order is None else order
        self.axes = tuple(Axis(a, 1, self.shape[a]) for a in order)

    def walk(self) -> tuple[list[Var], tuple[Index, ...]]:
        """Loops over all elements, one per physical axis, and the place that they stand at."""
        loops: list[Var] = []
        at = [ZERO] * len(self.shape)
        for a in self.axes or ():
            if a.extent > 1:
                loops.append(Var("ijklmnpq"[len(loops) % 8], a.extent))
                at[a.axis] += Index.of(loops[-1]) * a.divisor
        return loops, tuple(at)

    def flat(self, at: Sequence[Index]) -> Index:
        """The position in memory, in numbers, of the element ``at``."""
        if self.axes is None:
            self.lie()
        assert self.axes is not None
        out, stride = ZERO, 1
        largest = {a.axis: a.divisor for a in sorted(self.axes, key=lambda a: a.divisor)}
        for a in reversed(self.axes):
            if a.extent != 1:
                part = at[a.axis] // a.divisor
                if a.divisor != largest[a.axis]:  # the outermost part needs no remainder
                    part = part % a.extent
                out += part * stride
            stride *= a.room
        return out

    def __repr__(self) -> str:
        return self.name


Condition = tuple[Index, int, Any]  # low <= index < high


class Expr:
    """A number at a place. Equal ones are one object: made by :class:`Exprs` only."""

    __slots__ = ("args", "cost", "dtype", "extra", "loads", "op", "small")

    def __init__(self, op: str, dtype: DType, args: tuple[Expr, ...], extra: Any):
        self.op, self.dtype, self.args, self.extra = op, dtype, args, extra
        self.cost: int = _COST.get(op, 1) + sum(a.cost for a in args)
        self.loads: int = (op in ("load", "gather")) + sum(a.loads for a in args)
        # An int64 that surely fits in 32 bits is computed in 32: lanes are precious.
        self.small = _is_small(self)


_COST = {"load": 1, "const": 0, "iota": 1, "acc": 0, "exp": 12, "log": 14, "log1p": 20, "tanh": 16,
         "expm1": 18, "erf": 24, "sigmoid": 16, "pow": 40, "divide": 4, "sqrt": 6, "gather": 8,
         "cast": 1, "guard": 2, "philox": 200,
         **dict.fromkeys((*LIBRARY, "floor_divide"), 40)}  # fmt: skip


def _is_small(e: Expr) -> bool:
    if e.dtype.numpy != np.int64:
        return False
    if e.op == "const":
        return bool(abs(e.extra) < 2**30)
    if e.op == "iota":
        low, high = e.extra.bounds()
        return bool(low > -(2**30) and high < 2**30)
    if e.op == "load":
        return bool(e.extra[0].dtype != "int64")
    if e.op == "where":
        return e.args[1].small and e.args[2].small
    return e.op == "guard" and all(a.small for a in e.args)


class Exprs:
    """Makes expressions, one object for equal ones, and folds constants."""

    def __init__(self) -> None:
        self._made: dict[Any, Expr] = {}

    def make(self, op: str, dtype: DType, args: Sequence[Expr] = (), extra: Any = None) -> Expr:
        """The expression of this operator on these arguments."""
        key = (op, str(dtype), tuple(map(id, args)), _hashable(extra))
        if key not in self._made:
            self._made[key] = Expr(op, dtype, tuple(args), extra)
        return self._made[key]

    def const(self, value: Any, dtype: DType) -> Expr:
        """A number."""
        exact = dtype.numpy.type(value)
        return self.make("const", dtype, (), exact)

    def rewrite(self, e: Expr, change: Callable[[Expr], Expr | None],
                done: dict[int, Expr] | None = None) -> Expr:  # fmt: skip
        """``e`` with every part for which ``change`` gives something replaced by that."""
        done = {} if done is None else done
        if id(e) not in done:
            new = change(e)
            if new is None:
                args = [self.rewrite(a, change, done) for a in e.args]
                same = all(a is b for a, b in zip(args, e.args, strict=True))
                new = e if same else self.make(e.op, e.dtype, args, e.extra)
            done[id(e)] = new
        return done[id(e)]

    def map_indices(self, e: Expr, change: Callable[[Index], Index],
                    done: dict[int, Expr]) -> Expr:  # fmt: skip
        """``e`` with every Index in it changed."""
        if id(e) not in done:
            args = [self.map_indices(a, change, done) for a in e.args]
            done[id(e)] = self.make(e.op, e.dtype, args, _mapped(e.extra, change))
        return done[id(e)]


def _mapped(extra: Any, change: Callable[[Index], Index]) -> Any:
    if isinstance(extra, Index):
        return change(extra)
    if isinstance(extra, tuple):
        return tuple(_mapped(x, change) for x in extra)
    return extra


def _hashable(extra: Any) -> Any:
    if isinstance(extra, np.generic):
        return extra.tobytes()  # nan is nan, and 0.0 is not -0.0
    if isinstance(extra, tuple):
        return tuple(map(_hashable, extra))
    return id(extra) if isinstance(extra, Buffer) else extra


def parts(e: Expr) -> Iterable[Expr]:
    """``e`` and everything below it, each once."""
    seen: set[int] = set()
    todo = [e]
    while todo:
        x = todo.pop()
        if id(x) not in seen:
            seen.add(id(x))
            yield x
            todo += x.args


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

    def exprs(self) -> list[Expr]:
        """Everything that is computed."""
        return [s.value for s in self.stores] + ([self.body] if self.body is not None else [])

    def reads(self) -> list[Expr]:
        """Every load (and gather), each once."""
        found = {id(p): p for e in self.exprs() for p in parts(e) if p.op in ("load", "gather")}
        return list(found.values())

    def indices(self, flat: bool = True) -> list[Index]:
        """Every Index that occurs: positions in memory, conditions, numbers made of variables.

        Not ``flat``: positions in logical axes, for arrays whose layout is still open.
        """
        out = [i for s in self.stores for i in ([s.buffer.flat(s.at)] if flat else s.at)]
        for e in {id(p): p for x in self.exprs() for p in parts(x)}.values():
            if e.op == "load":
                out += [e.extra[0].flat(e.extra[1])] if flat else e.extra[1]
            elif e.op == "iota":
                out.append(e.extra)
            elif e.op == "guard":
                out += [c[0] for c in e.extra]
            elif e.op == "gather":
                out += [i for i in e.extra[1] if i is not None]  # never joined: one is unknown
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
    def work(self) -> int:
        """About how many cycles of one core's scalar unit it takes."""
        inner = self.body.cost + 1 if self.body is not None else 0
        outs = int(np.prod([v.extent for v in self.loops], dtype=np.int64))
        return self.iterations * inner + outs * sum(s.value.cost + 1 for s in self.stores)


# -- reading them --------------------------------------------------------------------------------
_INFIX = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "equal": "==",
          "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">",
          "greater_equal": ">=", "logical_and": "&", "logical_or": "|"}  # fmt: skip
_LEAVES = ("const", "load", "iota", "acc")


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
        if e.op in _LEAVES or id(e) not in self.twice:
            return self._text(e)
        if id(e) not in self.names:
            text = self._text(e)
            self.names[id(e)] = f"v{len(self.names)}"
            self.lines.append(f"{self.names[id(e)]} = {_bare(text)}")
        return self.names[id(e)]

    def _text(self, e: Expr) -> str:
        match e.op:
            case "const":
                return f"{e.extra}"
            case "load":
                place = ", ".join(map(str, e.extra[1])) or "()"
                return f"{e.extra[0]}[{place}]"
            case "iota":
                return f"({e.extra})"
            case "acc":
                return "acc"
            case "guard":
                tests = " and ".join(map(_test, e.extra))
                return f"({self.show(e.args[0])} if {tests} else {self.show(e.args[1])})"
        args = [self.show(a) for a in e.args]
        if e.op in _INFIX and len(args) == 2:
            return f"({args[0]} {_INFIX[e.op]} {args[1]})"
        if e.op == "gather":
            places = iter(args)
            at = ", ".join(str(i) if i is not None else next(places) for i in e.extra[1])
            return f"{e.extra[0]}[{at}]"
        name = e.dtype if e.op == "cast" else e.op
        return f"{name}({', '.join(map(_bare, args))})"


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
