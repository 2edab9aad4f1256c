"""What an op is like, beside what it computes: said in its declaration, asked by everybody else.

Layout, simplification, fusion, the native engine and the proof keep no lists of ops. A new op that
says what it is like is treated so at once; one that says nothing is treated with care.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

REDUCTION = "reduction"
"""The numbers along the attribute ``axis`` become one; with ``keepdims`` the axes stay, of size 1.
"""
MOVEMENT = "movement"
"""Every element of the result is one of the arrays' elements, or the attribute ``value``."""
CONTRACTION = "contraction"
"""Sums of products of two arrays."""
FAMILIES = (REDUCTION, MOVEMENT, CONTRACTION)

Attrs = Mapping[str, Any]
Order = tuple[int, ...]
"""How the axes of an array lie: its axis ``i`` was the axis ``order[i]``."""
Follow = Callable[[Attrs, Order], tuple[dict[str, Any], Order]]
"""``follow(attrs, order)``: the attributes for arrays of which the axes lie otherwise, and how
those of the result lie then."""
Check = Callable[..., None]
"""``check(numbers, types, attrs)`` raises where one input cannot hold such numbers."""


def along(attrs: Attrs, order: Order) -> tuple[dict[str, Any], Order]:
    """``axis`` says along which axes, and the result has them all: softmax, concat.

    >>> along({"axis": 1}, (0, 2, 3, 1))
    ({'axis': 3}, (0, 2, 3, 1))
    """
    axis = attrs["axis"]
    one = isinstance(axis, int)
    moved = order.index(axis) if one else tuple(sorted(order.index(a) for a in axis))
    return {**attrs, "axis": moved}, order


def reduced(attrs: Attrs, order: Order) -> tuple[dict[str, Any], Order]:
    """``axis`` says which axes the result has no more, or with ``keepdims`` of size 1.

    >>> reduced({"axis": (2, 3)}, (0, 2, 3, 1))
    ({'axis': (1, 2)}, (0, 1))
    """
    axis = attrs["axis"]
    moved, _ = along(attrs, order)
    if attrs.get("keepdims"):
        return moved, order
    kept = [a for a in order if a != axis and (isinstance(axis, int) or a not in axis)]
    return moved, tuple(sorted(kept).index(a) for a in kept)


def each_axis(*names: str) -> Follow:
    """These attributes have an item for every axis: pad."""

    def follow(attrs: Attrs, order: Order) -> tuple[dict[str, Any], Order]:
        return {**attrs, **{n: tuple(attrs[n][a] for a in order) for n in names}}, order

    return follow


def no_axis(x: Any, *, axis: Any, **_: Any) -> bool:
    """Along no axis nothing is reduced, turned or left out: for ``idle``."""
    return bool(axis == ())


@dataclass(kw_only=True, eq=False)
class Traits:
    """What a declaration may say of its op, each in a keyword. Types come as to the type rule."""

    family: str = ""
    """One of FAMILIES. (That it works on each place by itself its type rule or its body says.)"""
    axes: Follow | None = None
    """What becomes of attributes and result when the axes of its arrays lie otherwise.

    Arrays with as many axes as the first lie as it does, all others stay. Without: nobody knows.
    """
    images: tuple[str, ...] = ()
    """Arrays that are images: they lie as the attribute ``layout`` says, or have channels at
    ``axis``. So does the result, but of two images comes a kernel."""
    around: float | None = None
    """The number that its attribute ``padding`` stands for."""
    cost: float = 1
    """What one element of the result takes, in additions; a primitive's. 0: it is only a view."""
    native: Callable[..., Any] | None = None
    """A primitive in other ops, for an engine that has no instruction for it; None: as it is."""
    idle: Callable[..., bool] | None = None
    """Does it leave its first array just as it is?"""
    bounds: Mapping[str, Callable[..., tuple[int, Any, str]]] = field(default_factory=dict)
    """For arrays of places the first, the one after the last, and in words what they point into."""
    gives: Callable[..., tuple[int, Any]] | None = None
    """Between which integers the numbers of the result are: the first, one after the last."""
    checks: Mapping[str, Check] = field(default_factory=dict)
    """By array what numbers it may hold, asked before any engine has them; more than ``bounds``."""
    random: str = ""
    """The array that is its key, if its numbers are drawn."""
    drops: str = ""
    """The attribute that says how often it makes a 0 of an element while ``training``."""

    @property
    def makes_kernel(self) -> bool:
        """Is its result the kernel that belongs to its images?"""
        return len(self.images) > 1
