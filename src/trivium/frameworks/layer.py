"""Layer forms: our op beside a framework's own layer, written once and read in both directions.

An exporter reads a form forwards (attributes to constructor arguments, our arrays to the layer's
weights), an importer backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.graph import Node

Array = np.ndarray[Any, Any]


def same(a: Array) -> Array:
    """The map of a weight that both sides keep alike."""
    return a


def given(**arguments: tuple[Any, Any]) -> dict[str, Any]:
    """Those arguments that differ from their defaults.

    >>> given(stride=(2, 1), padding=(0, 0))
    {'stride': 2}
    """
    return Given({k: v for k, (v, default) in arguments.items() if v != default}, arguments)


class Given(dict[str, Any]):
    """Arguments that are said; and the defaults of all that may be, in their order."""

    def __init__(self, said: Mapping[str, Any], all: Mapping[str, tuple[Any, Any]]):
        super().__init__(said)
        self.all = dict(all)

    def __or__(self, other: Any) -> Given:  # type: ignore[override]
        return Given({**self, **other}, self.all | getattr(other, "all", {}))

    def __ror__(self, other: Any) -> Given:  # type: ignore[override]
        return Given({**other, **self}, self.all)


def square(sizes: tuple[Any, ...]) -> Any:
    """``3`` for ``(3, 3)``: as one writes it.

    >>> square((3, 3)), square((3, 2))
    (3, (3, 2))
    """
    return sizes[0] if all(s == sizes[0] for s in sizes) else sizes


@dataclass(frozen=True)
class Weight:
    """One array of an op and what the layer calls it: ``to`` makes it theirs, ``back`` ours."""

    array: str  # the parameter's name in our op's signature: "w"
    ours: str  # the last part of its name with us: "weight"
    theirs: str  # the last part of its name there: "kernel"
    to: Callable[[Array], Array] = same
    back: Callable[[Array], Array] = same

    def turned(self, rank: int) -> tuple[int, ...] | None:
        """The transposition that makes ours of theirs; None where both are alike."""
        probe = np.zeros(range(2, rank + 2), np.bool_)
        axes = tuple(s - 2 for s in self.back(probe).shape)
        return None if axes == tuple(range(rank)) else axes


def permuted(*axes: int) -> dict[str, Callable[[Array], Array]]:
    """``to`` and ``back`` of a weight whose axes the framework keeps in another order."""
    order = tuple(axes)
    inverse = tuple(order.index(i) for i in range(len(order)))
    return {"to": lambda a: a.transpose(order), "back": lambda a: a.transpose(inverse)}


@dataclass(frozen=True)
class LayerForm:
    """How an op that owns parameters (or is a plain module there) is a layer of a framework."""

    op: str
    layer: str  # the class as emitted source spells it: "layers.Conv2D"
    write: Callable[[Node], Mapping[str, Any] | None]
    """Our node -> the constructor's keyword arguments, defaults left out; None when the layer would
    mean something else, so that another form, or the call form, is taken."""
    read: Callable[[Mapping[str, Any], tuple[int, ...]], Mapping[str, Any]] | None = None
    """The layer's configuration and its input's shape -> our attributes."""
    weights: tuple[Weight, ...] = ()
