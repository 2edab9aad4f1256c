"""Whole numbers that depend on loop variables: linear in them, and in quotients and remainders.

Every position in memory, every condition around a padding is one. They simplify as they are made,
from the bounds of their variables: that is how a reshape of a transposition of a slice ends as a
plain stride.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

_serial = itertools.count()


class Var:
    """A loop variable: 0, 1, ... extent - 1."""

    __slots__ = ("extent", "name", "serial")

    def __init__(self, name: str, extent: Any):
        self.name, self.serial = name, next(_serial)
        self.extent: int = extent

    def __repr__(self) -> str:
        return self.name


class Part:
    """Something made of an Index that is no longer linear in it.

    ``kind`` is "//" (floor quotient), "%" (remainder) or "in": the Index itself, of which a
    condition around says that it is at least 0 and below ``number``.
    """

    __slots__ = ("inner", "kind", "number", "serial")

    def __init__(self, kind: str, inner: Index, number: int):
        self.kind, self.inner, self.number = kind, inner, number
        self.serial = (kind, inner.key, number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.serial == other.serial

    def __hash__(self) -> int:
        return hash(self.serial)

    def bounds(self) -> tuple[int, int]:
        low, high = self.inner.bounds()
        if self.kind == "//":
            return low // self.number, high // self.number
        if self.kind == "%":
            return 0, self.number - 1
        return max(low, 0), min(high, self.number - 1)

    def replace(self, inner: Index) -> Index:
        """The same of another Index."""
        if self.kind == "//":
            return inner // self.number
        return inner % self.number if self.kind == "%" else inner

    def __repr__(self) -> str:
        if self.kind == "in":
            return str(self.inner)
        inner = str(self.inner)
        return f"{inner if inner.isalnum() else f'({inner})'}{self.kind}{self.number}"


Atom = Var | Part


class Index:
    """``const + sum(coefficient * atom)``; an atom is a Var or a Part. Immutable."""

    __slots__ = ("const", "key", "terms")

    def __init__(self, terms: Mapping[Atom, int], const: Any = 0):
        self.terms = {a: c for a, c in terms.items() if c}
        self.const: int = const
        self.key: tuple[Any, ...] = (
            const, *sorted(((str(a.serial), c) for a, c in self.terms.items()))
        )  # fmt: skip

    @staticmethod
    def of(item: Index | Var | int) -> Index:
        """An Index from a variable or a number."""
        if isinstance(item, Index):
            return item
        return Index({}, item) if isinstance(item, int) else Index({item: 1})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __add__(self, other: Index | Var | int) -> Index:
        other = Index.of(other)
        terms = dict(self.terms)
        for a, c in other.terms.items():
            terms[a] = terms.get(a, 0) + c
        return Index(terms, self.const + other.const)._joined()

    def _joined(self) -> Index:
        """Parts of one number put together: x // n * n + x % n is x."""
        for a, c in self.terms.items():
            if not isinstance(a, Part) or a.kind != "%":
                continue
            rest = a.inner // a.number
            for b, d in self.terms.items():
                if b is a or d != c * a.number:
                    continue
                whole = None
                if rest == Index({b: 1}):
                    whole = a.inner
                elif isinstance(b, Part) and b.kind == "%" and b.inner == rest:
                    whole = a.inner % (a.number * b.number)
                if whole is not None:
                    left = {k: v for k, v in self.terms.items() if k is not a and k is not b}
                    return Index(left, self.const) + whole * c
        return self

    def __mul__(self, factor: int) -> Index:
        return Index({a: c * factor for a, c in self.terms.items()}, self.const * factor)

    def __sub__(self, other: Index | Var | int) -> Index:
        return self + Index.of(other) * -1

    def _split(self, divisor: int) -> tuple[Index, Index]:
        """Whole multiples of the divisor, divided; and what is left."""
        whole = {a: c // divisor for a, c in self.terms.items() if c % divisor == 0}
        rest = {a: c for a, c in self.terms.items() if c % divisor}
        q, r = divmod(self.const, divisor)
        left = Index(rest, r)
        low, high = left.bounds()
        if low // divisor == high // divisor:
            return Index(whole, q + low // divisor), left - low // divisor * divisor
        return Index(whole, q), left

    def __floordiv__(self, divisor: int) -> Index:
        whole, left = self._split(divisor)
        low, high = left.bounds()
        if low >= 0 and high < divisor:
            return whole
        if len(left.terms) == 1 and not left.const:
            ((atom, c),) = left.terms.items()
            if isinstance(atom, Part) and atom.kind == "//" and c == 1:  # x // n // m
                return whole + atom.inner // (atom.number * divisor)
        return whole + Index({Part("//", left, divisor): 1})

    def __mod__(self, divisor: int) -> Index:
        _, left = self._split(divisor)
        low, high = left.bounds()
        if low >= 0 and high < divisor:
            return left
        return Index({Part("%", left, divisor): 1})

    def within(self, size: int) -> Index:
        """Itself, known (by a condition around) to be at least 0 and below ``size``."""
        low, high = self.bounds()
        return self if low >= 0 and high < size else Index({Part("in", self, size): 1})

    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest value that it can have, or wider."""
        low = high = self.const
        for a, c in self.terms.items():
            first, last = (0, max(a.extent - 1, 0)) if isinstance(a, Var) else a.bounds()
            low += min(c * first, c * last)
            high += max(c * first, c * last)
        return low, high

    def vars(self) -> set[Var]:
        """The variables that it depends on."""
        out: set[Var] = set()
        for a in self.terms:
            out |= {a} if isinstance(a, Var) else a.inner.vars()
        return out

    def affine_in(self, var: Var) -> bool:
        """Is the variable outside all quotients and remainders?"""
        return all(isinstance(a, Var) or var not in a.inner.vars() for a in self.terms)

    def coefficient(self, var: Var) -> int:
        """How far one step of the variable moves it (where affine)."""
        return self.terms.get(var, 0)

    def replace(self, env: Mapping[Var, Index]) -> Index:
        """With other Indices for some variables, simplified again."""
        if not any(v in env for v in self.vars()):
            return self
        out = Index({}, self.const)
        for a, c in self.terms.items():
            if isinstance(a, Var):
                out += env[a] * c if a in env else Index({a: c})
            else:
                out += a.replace(a.inner.replace(env)) * c
        return out

    def bare(self) -> Index:
        """Without what conditions around say of it."""
        if all(isinstance(a, Var) for a in self.terms):
            return self
        out = Index({}, self.const)
        for a, c in self.terms.items():
            out += Index({a: c}) if isinstance(a, Var) else a.replace(a.inner.bare()) * c
        return out

    def as_int(self) -> int | None:
        """Its value, if it depends on nothing."""
        return None if self.terms else self.const

    def __repr__(self) -> str:
        parts = []
        for a, c in self.terms.items():
            one = str(a) if isinstance(a, Var) or c == 1 else f"({a})"
            parts.append(one if c == 1 else f"-{one}" if c == -1 else f"{c}*{one}")
        if self.const or not parts:
            parts.append(str(self.const))
        return "+".join(parts).replace("+-", "-")


ZERO = Index({})
