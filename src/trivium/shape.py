"""Shapes: tuples of ints and named Dims, with exact arithmetic on the named ones.

A :class:`Dim` is a polynomial with integer coefficients over names (``batch``) and floor quotients
(``(h-3)//2``), kept in a normal form, so that equal sizes compare equal. A size that turns out to
be a constant *is* an int: Dims never hide one.
"""

from __future__ import annotations

import ast
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

Size = Union[int, "Dim"]
Shape = tuple[Size, ...]


class ShapeError(ValueError):
    """Shapes do not fit; the message says which and where."""


@dataclass(frozen=True)
class Quotient:
    """The floor quotient ``numerator // divisor`` as an indivisible part of a Dim."""

    numerator: Dim
    divisor: int

    def __str__(self) -> str:
        return f"({self.numerator})//{self.divisor}"


Atom = str | Quotient
_MOST_TERMS = 1000  # a product of sums grows without end, and no model has such a size
Monomial = tuple[Atom, ...]


class Dim:
    """A size with a name, known when the Graph runs.

    >>> batch = Dim("batch")
    >>> str(batch * 4 + 1), (batch * 4 + 2) // 2
    ('4*batch+1', 2*batch+1)
    >>> batch - batch
    0
    """

    __slots__ = ("terms",)
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, name: str):
        if not name.isidentifier():
            raise ShapeError(f"a Dim is named by an identifier, not {name!r}")
        self.terms = (((name,), 1),)

    # -- arithmetic ----------------------------------------------------------------------------
    def __add__(self, other: Size) -> Size:
        total = dict(self.terms)
        for mono, coefficient in _terms(other):
            total[mono] = total.get(mono, 0) + coefficient
        return _dim(total)

    def __mul__(self, other: Size) -> Size:
        total: dict[Monomial, int] = {}
        others = tuple(_terms(other))
        if len(self.terms) * len(others) > _MOST_TERMS:
            raise ShapeError(f"a size of more than {_MOST_TERMS} terms")
        for mono, coefficient in self.terms:
            for mono2, coefficient2 in others:
                key = tuple(sorted(mono + mono2, key=str))
                total[key] = total.get(key, 0) + coefficient * coefficient2
        return _dim(total)

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + (-other)

    def __rsub__(self, other: Size) -> Size:
        return (-self) + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        if isinstance(other, Dim):
            return _exact_quotient(self, other)
        if other == 0:
            raise ShapeError(f"'{self}' is divided by zero")
        # (k*q + r) // k == q + r // k: the divisible terms leave the quotient.
        whole = {m: c // other for m, c in self.terms if c % other == 0}
        rest = {m: c for m, c in self.terms if c % other}
        left = _dim(rest)
        if isinstance(left, int):
            return _dim(whole) + left // other
        if () in rest:  # the constant keeps only its remainder, so equal quotients look equal
            whole[()] = rest[()] // other
            rest[()] %= other
            left = _dim(rest)
        return _dim(whole) + _dim({(Quotient(left, other),): 1})  # type: ignore[arg-type]

    def __rfloordiv__(self, other: int) -> Size:
        return _exact_quotient(other, self)

    def __mod__(self, other: int) -> Size:
        return self - (self // other) * other

    # -- identity ------------------------------------------------------------------------------
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __str__(self) -> str:
        parts = []
        for mono, coefficient in self.terms:
            factors = [str(a) for a in mono]
            if coefficient != 1 or len(mono) > 1:  # 2*(h)//2 would be read as (2*h)//2
                factors = [f"({a})" if isinstance(a, Quotient) else a for a in mono]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            parts.append(("-" if coefficient < 0 else "+") + "*".join(factors))
        return "".join(parts).removeprefix("+")

    __repr__ = __str__

    def _undecided(self, what: str) -> ShapeError:
        return ShapeError(
            f"{what} would bake the size '{self}' in: it is known only when the graph runs. "
            f"Trace with a fixed size, or use ops that take sizes (reshape, full, ...)"
        )

    def __bool__(self) -> bool:
        raise self._undecided("a test of its truth")

    def __lt__(self, other: Any) -> bool:
        raise self._undecided(f"a comparison with {other}")

    __le__ = __gt__ = __ge__ = __lt__

    def __index__(self) -> int:
        raise self._undecided("a use as a Python int")

    # -- evaluation ----------------------------------------------------------------------------
    def names(self) -> set[str]:
        """The names this size depends on."""
        found: set[str] = set()
        for mono, _ in self.terms:
            for atom in mono:
                found |= {atom} if isinstance(atom, str) else atom.numerator.names()
        return found

    def subs(self, env: Mapping[str, Size]) -> Size:
        """This size with names replaced."""
        total: Size = 0
        for mono, coefficient in self.terms:
            product: Size = coefficient
            for atom in mono:
                if isinstance(atom, str):
                    product = product * env.get(atom, Dim(atom))
                else:
                    product = product * (atom.numerator.subs(env) // atom.divisor)
            total = total + product
        return total


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    return size.terms if isinstance(size, Dim) else (((), size),)


def _dim(terms: Mapping[Monomial, int]) -> Size:
    """The Size with these terms: an int when nothing named is left."""
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    new = object.__new__(Dim)
    new.terms = tuple(sorted(kept.items(), key=lambda t: (-len(t[0]), str(t[0]))))
    return new


def _exact_quotient(a: Size, b: Dim) -> Size:
    """a // b for a monomial b that divides every term of a."""
    if isinstance(a, int) and a == 0:
        return 0
    if len(b.terms) == 1:
        divisor, k = b.terms[0]
        total: dict[Monomial, int] = {}
        for mono, coefficient in _terms(a):
            left = list(mono)
            if coefficient % k or any(atom not in left for atom in divisor):
                break
            for atom in divisor:
                left.remove(atom)
            total[tuple(left)] = coefficient // k
        else:
            return _dim(total)
    if a == b:
        return 1
    raise ShapeError(f"{a} // {b} is not known to be a whole size")


def size_product(sizes: Iterable[Size]) -> Size:
    """The number of elements of a shape."""
    product: Size = 1
    for size in sizes:
        product = product * size
    return product


def _memory() -> int:
    """Bytes of this machine's memory; 1 TiB where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


MEMORY = _memory()


def possible(shape: Shape, itemsize: int) -> None:
    """A ShapeError for a shape that no array here can have, before anybody tries to make one.

    ``itemsize`` in bytes. Open sizes count as 1.
    """
    least = [s.subs(dict.fromkeys(s.names(), 1)) if isinstance(s, Dim) else s for s in shape]
    for size, low in zip(shape, least, strict=True):
        if not isinstance(size, Dim) and low < 0:
            raise ShapeError(f"the shape {shape} has a negative size")
    count = size_product(s for s in least if s > 0)
    if 0 not in shape and count * itemsize > MEMORY:
        raise ShapeError(
            f"the shape {shape} is {count * itemsize:,} bytes or more, this machine has {MEMORY:,}"
        )


def subs(size: Size, env: Mapping[str, Size]) -> Size:
    """``size`` with names replaced."""
    return size.subs(env) if isinstance(size, Dim) else size


def _zero(spec: str) -> int:
    raise ShapeError(f"{spec!r} divides by zero")


def parse_size(spec: int | str | Dim) -> Size:
    """A size from an int, a name, or an expression like ``"(h-3)//2+1"`` (read by ast, never run).

    >>> parse_size("2*batch+1")
    2*batch+1
    """
    if not isinstance(spec, str):
        return spec

    def walk(node: ast.expr) -> Size:
        match node:
            case ast.Name(id):
                return Dim(id)
            case ast.Constant(int(value)):
                return value
            case ast.UnaryOp(ast.USub(), operand):
                return -walk(operand)
            case ast.BinOp(left, ast.Add(), right):
                return walk(left) + walk(right)
            case ast.BinOp(left, ast.Sub(), right):
                return walk(left) - walk(right)
            case ast.BinOp(left, ast.Mult(), right):
                return walk(left) * walk(right)
            case ast.BinOp(left, ast.FloorDiv(), right):
                return walk(left) // (walk(right) or _zero(spec))
        raise ShapeError(f"{spec!r} is no size: names, integers, + - * // only")

    try:
        return walk(ast.parse(spec, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: depth
        if isinstance(error, ShapeError):
            raise
        raise ShapeError(f"{spec[:60]!r} is no size: {error}") from None


def as_shape(spec: Any) -> Shape:
    """A shape from ints, names and Dims."""
    if isinstance(spec, (int, str, Dim)):
        spec = (spec,)
    if not isinstance(spec, Iterable):
        raise ShapeError(f"a shape is sizes in a tuple, not {spec!r}")
    return tuple(map(_size, spec))


def _size(spec: Any) -> Size:
    if isinstance(spec, (str, Dim)):
        return parse_size(spec)
    try:
        return operator.index(spec)
    except TypeError:
        raise ShapeError(f"a size is an int or a name, not {spec!r}") from None


def broadcast(*shapes: Shape) -> Shape:
    """The shape that several broadcast to.

    >>> broadcast((Dim("batch"), 3), (1,), (3,))
    (batch, 3)
    """
    rank = max(map(len, shapes), default=0)
    result: list[Size] = []
    for axis in range(rank):
        size: Size = 1
        for shape in shapes:
            i = axis - rank + len(shape)
            if i < 0 or shape[i] == 1 or shape[i] == size:
                continue
            if size != 1:
                raise ShapeError(
                    f"shapes {', '.join(map(str, shapes))} do not broadcast: "
                    f"{size} meets {shape[i]} on axis {axis - rank}"
                )
            size = shape[i]
        result.append(size)
    return tuple(result)


def normalize_axes(axis: int | tuple[int, ...] | None, rank: int) -> tuple[int, ...]:
    """Axes as sorted non-negative ints; None means all."""
    if axis is None:
        return tuple(range(rank))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if not -rank <= a < rank:
            raise ShapeError(f"axis {a} is out of range for rank {rank}")
    result = tuple(sorted(a % rank for a in axes))
    if len(set(result)) != len(result):
        raise ShapeError(f"axes {axes} name one axis twice")
    return result


def axis_name(axis: int, rank: int) -> str:
    """What an open axis of an array of this rank is called.

    >>> [axis_name(i, 4) for i in range(4)]
    ['batch', 'channels', 'height', 'width']
    """
    if axis == 0:
        return "batch"
    images = {3: ("length", "features"), 4: ("channels", "height", "width"),
              5: ("channels", "depth", "height", "width")}  # fmt: skip
    return images.get(rank, ("length", *(f"axis_{i}" for i in range(2, rank))))[axis - 1]


def bind(shape: Shape, actual: tuple[int, ...], env: dict[str, int], where: str) -> None:
    """Learn from an array's actual shape what the names in ``shape`` stand for, into ``env``."""
    if len(shape) != len(actual):
        raise ShapeError(f"{where} wants shape {shape}, got {actual}")
    later = []
    for want, got in zip(shape, actual, strict=True):
        if isinstance(want, int):
            if want != got:
                raise ShapeError(f"{where} wants shape {shape}, got {actual}")
        elif want == Dim(name := next(iter(want.names()))):
            if env.setdefault(name, got) != got:
                raise ShapeError(
                    f"{where} has shape {actual}, but '{want}' is already {env[name]} elsewhere"
                )
        else:
            later.append((want, got))
    for want, got in later:
        if want.names() <= env.keys() and want.subs(env) != got:
            raise ShapeError(f"{where} wants shape {shape}, got {actual} with {env}")
