"""Numbers at places in arrays: what a loop nest loads, computes and stores.

A :class:`Buffer` is an array and how it lies in memory. An :class:`Expr` is a number at a place: a
load, a constant, a condition around another number, an instruction on several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from trivium.dtype import DType
from trivium.graph import OPS
from trivium.native.index import ZERO, Index, Var


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

    __slots__ = ("args", "cost", "dtype", "loads", "small")
    own_cost: float = 1
    reads = False
    op = ""  # the instruction, of what is one

    def __init__(self, dtype: DType, args: tuple[Expr, ...]):
        self.dtype, self.args = dtype, args
        self.cost: float = self.own_cost + sum(a.cost for a in args)
        self.loads: int = self.reads + sum(a.loads for a in args)
        # An int64 that surely fits in 32 bits is computed in 32: lanes are precious.
        self.small = dtype.numpy == np.int64 and self._fits()

    def own(self) -> tuple[Any, ...]:
        """What it has beside its arguments, in the order that its class takes it."""
        return ()

    def moved(self, change: Callable[[Index], Index]) -> tuple[Any, ...]:
        """As :meth:`own`, with every Index changed."""
        return self.own()

    def indices(self, flat: bool) -> Iterable[Index]:
        """The Indices in it; not ``flat``: positions in logical axes."""
        return ()

    def _fits(self) -> bool:
        return False


class Const(Expr):
    """A number of NumPy's."""

    __slots__ = ("value",)
    own_cost = 0

    def __init__(self, dtype: DType, args: tuple[Expr, ...], value: Any):
        self.value = value
        super().__init__(dtype, args)

    def own(self) -> tuple[Any, ...]:
        return (self.value,)

    def _fits(self) -> bool:
        return bool(abs(self.value) < 2**30)


class Acc(Expr):
    """What the nest reduces."""

    __slots__ = ()
    own_cost = 0


class Read(Expr):
    """An element of an array."""

    __slots__ = ("at", "buffer")
    reads = True

    def __init__(self, dtype: DType, args: tuple[Expr, ...], buffer: Buffer, at: Any):
        self.buffer, self.at = buffer, at
        super().__init__(dtype, args)

    def own(self) -> tuple[Any, ...]:
        return self.buffer, self.at

    def moved(self, change: Callable[[Index], Index]) -> tuple[Any, ...]:
        return self.buffer, tuple(i if i is None else change(i) for i in self.at)


class Load(Read):
    """The element at a place."""

    __slots__ = ()

    def indices(self, flat: bool) -> Iterable[Index]:
        return [self.buffer.flat(self.at)] if flat else self.at

    def _fits(self) -> bool:
        return bool(self.buffer.dtype != "int64")


class Gather(Read):
    """The element at a place of which one index, None in ``at``, is the argument."""

    __slots__ = ()
    own_cost = 8

    def indices(self, flat: bool) -> Iterable[Index]:
        return [i for i in self.at if i is not None]  # never joined: one is unknown


class Iota(Expr):
    """An Index as a number."""

    __slots__ = ("index",)

    def __init__(self, dtype: DType, args: tuple[Expr, ...], index: Index):
        self.index = index
        super().__init__(dtype, args)

    def own(self) -> tuple[Any, ...]:
        return (self.index,)

    def moved(self, change: Callable[[Index], Index]) -> tuple[Any, ...]:
        return (change(self.index),)

    def indices(self, flat: bool) -> Iterable[Index]:
        return [self.index]

    def _fits(self) -> bool:
        low, high = self.index.bounds()
        return low > -(2**30) and high < 2**30


class Guard(Expr):
    """The first argument where all conditions hold, else the second."""

    __slots__ = ("conditions",)
    own_cost = 2

    def __init__(self, dtype: DType, args: tuple[Expr, ...], conditions: tuple[Condition, ...]):
        self.conditions = conditions
        super().__init__(dtype, args)

    def own(self) -> tuple[Any, ...]:
        return (self.conditions,)

    def moved(self, change: Callable[[Index], Index]) -> tuple[Any, ...]:
        return (tuple((change(i), low, high) for i, low, high in self.conditions),)

    def indices(self, flat: bool) -> Iterable[Index]:
        return [i for i, _, _ in self.conditions]

    def _fits(self) -> bool:
        return all(a.small for a in self.args)


class Apply(Expr):
    """An instruction on the arguments."""

    __slots__ = ("op",)

    def __init__(self, dtype: DType, args: tuple[Expr, ...], op: str):
        self.op = op
        super().__init__(dtype, args)

    @property
    def own_cost(self) -> float:  # type: ignore[override]
        """As its op says."""
        return OPS[self.op].cost if self.op in OPS else 1

    def own(self) -> tuple[Any, ...]:
        return (self.op,)

    def _fits(self) -> bool:
        return self.op == "where" and self.args[1].small and self.args[2].small


E = TypeVar("E", bound=Expr)
FOLDS: dict[str, str | None] = {"sum": "add", "max": "maximum", "min": "minimum", "argmax": None}
"""The kinds of reduction, each the op that it is, and the instruction that joins two of them."""


class Exprs:
    """Makes expressions, one object for equal ones."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def _one(self, kind: type[E], dtype: DType, args: Sequence[Expr], *own: Any) -> E:
        key = (kind, str(dtype), tuple(map(id, args)), *map(_hashable, own))
        if key not in self._made:
            self._made[key] = kind(dtype, tuple(args), *own)
        made: E = self._made[key]
        return made

    def apply(self, op: str, dtype: DType, args: Sequence[Expr]) -> Apply:
        """An instruction on these arguments."""
        return self._one(Apply, dtype, args, op)

    def const(self, value: Any, dtype: DType) -> Const:
        """A number."""
        return self._one(Const, dtype, (), dtype.numpy.type(value))

    def acc(self, dtype: DType) -> Acc:
        """What the nest reduces."""
        return self._one(Acc, dtype, ())

    def load(self, buffer: Buffer, at: tuple[Index, ...], dtype: DType | None = None) -> Load:
        """An element; ``dtype`` where it is kept in a narrower one."""
        return self._one(Load, dtype or buffer.dtype, (), buffer, at)

    def gather(self, buffer: Buffer, at: tuple[Index | None, ...], chosen: Expr) -> Gather:
        """An element at a place of which one index is a number."""
        return self._one(Gather, buffer.dtype, (chosen,), buffer, at)

    def iota(self, index: Index, dtype: DType) -> Iota:
        """An Index as a number."""
        return self._one(Iota, dtype, (), index)

    def guard(self, conditions: tuple[Condition, ...], value: Expr, other: Expr) -> Guard:
        """``value`` where all conditions hold, else ``other``."""
        return self._one(Guard, value.dtype, (value, other), conditions)

    def rewrite(self, e: Expr, change: Callable[[Expr], Expr | None],
                done: dict[int, Expr] | None = None) -> Expr:  # fmt: skip
        """``e`` with every part for which ``change`` gives something replaced by that."""
        done = {} if done is None else done
        if id(e) not in done:
            new = change(e)
            if new is None:
                args = [self.rewrite(a, change, done) for a in e.args]
                same = all(a is b for a, b in zip(args, e.args, strict=True))
                new = e if same else self._one(type(e), e.dtype, args, *e.own())
            done[id(e)] = new
        return done[id(e)]

    def map_indices(self, e: Expr, change: Callable[[Index], Index],
                    done: dict[int, Expr]) -> Expr:  # fmt: skip
        """``e`` with every Index in it changed."""
        if id(e) not in done:
            args = [self.map_indices(a, change, done) for a in e.args]
            done[id(e)] = self._one(type(e), e.dtype, args, *e.moved(change))
        return done[id(e)]


def _hashable(item: Any) -> Any:
    return item.tobytes() if isinstance(item, np.generic) else item  # nan is nan, 0.0 not -0.0


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
