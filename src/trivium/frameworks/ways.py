"""How a framework says an attribute: pairs of functions, ours to theirs and back.

A way knows where it stands (:class:`At`): a window's padding goes by the sizes it moves along. What
it cannot say raises :class:`NotTheirs`. Ways of one framework alone are entered in its own room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.graph import MODE, Node
from trivium.op import Op
from trivium.shape import Size


class NotTheirs(ValueError):
    """This value has no such form there, so the line does not serve."""


class Several(dict[str, Any]):
    """What one word of theirs says of more than one attribute of ours."""


@dataclass
class At:
    """An op's arrays (Values, or None where they are left out) and attributes, as far as known."""

    op: Op
    arrays: Mapping[str, Any]
    attrs: Mapping[str, Any]

    @classmethod
    def node(cls, op: Op, node: Node) -> At:
        """Where a node's words stand."""
        arrays = dict.fromkeys(op.arrays) | dict(zip(op.arrays, node.inputs, strict=False))
        return cls(op, arrays, node.attrs)

    @property
    def x(self) -> Any:
        """The first array."""
        return self.arrays[self.op.arrays[0]]

    @property
    def n(self) -> int:
        """Along how many axes windows move over ``x``: batch and channels are two more."""
        return len(self.x.shape) - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """The window: a pool's attribute, or what a convolution's array says."""
        found: Any = self.attrs["kernel"] if "w" not in self.arrays else self.arrays["w"].shape[2:]
        return tuple(found)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes that a window moves along."""
        return spatial(self.x.shape, self.attrs["layout"])


@dataclass(frozen=True)
class Way:
    """How a framework says an attribute: ours to theirs, and back."""

    to: Callable[[Any, At], Any]
    back: Callable[[Any, At], Any]


# -- helpers ---------------------------------------------------------------------------------------
FIRST, LAST = ("NCW", "NCHW", "NCDHW"), ("NWC", "NHWC", "NDHWC")
"""Channels first and last, by the axes that windows move along: one, two, three."""


def spatial(shape: tuple[Size, ...], layout: str) -> tuple[Size, ...]:
    """The sizes that a window moves along."""
    return shape[1:-1] if layout[-1] == "C" else shape[2:]


def square(sizes: tuple[Any, ...]) -> Any:
    """``3`` for ``(3, 3)``: as one writes it.

    >>> square((3, 3)), square((3, 2))
    (3, (3, 2))
    """
    return sizes[0] if all(s == sizes[0] for s in sizes) else sizes


def each(value: Any, n: int) -> tuple[Any, ...]:
    """One number for each of ``n`` axes, from one number, a list of one or a tuple.

    >>> each(3, 2), each([1, 2], 2)
    ((3, 3), (1, 2))
    """
    found = (value,) if isinstance(value, int) else tuple(value)
    found = found * n if len(found) == 1 else found
    if len(found) != n:
        raise NotTheirs(f"{value} for {n} axes")
    return found


def symmetric(padding: Any) -> Any:
    """(low, high) pairs as one number per axis; None where low and high differ."""
    return tuple(a for a, _ in padding) if all(a == b for a, b in padding) else None


def _one(axes: Any) -> Any:
    if len(axes) != 1:
        raise NotTheirs(f"one axis, not {axes}")
    return axes[0]


def _symmetric(padding: Any, at: At) -> Any:
    found = symmetric(padding)
    if found is None:
        raise NotTheirs(f"padding {padding} that differs at its ends")
    return square(found)


def _pairs(value: Any, at: At) -> Any:
    return tuple((p, p) for p in each(value, at.n))


def _learns(training: Any, at: At) -> bool:
    if training is not MODE and training is not False:
        raise NotTheirs(f"training={training}")
    return training is MODE


def _gate(name: str, at: At) -> str:
    """What recurrent layers everywhere have."""
    if name not in ("tanh", "relu"):
        raise NotTheirs(f"activation={name!r}")
    return name


def _told(value: Any, at: At) -> Any:
    raise NotTheirs("an array, which says it itself")


def array(to: Callable[[Any, At], Any]) -> Way:
    """What an array says of itself, once more in words."""
    return Way(to, _told)


PARTS: dict[str, Callable[[Any, At], Any]] = {
    "in": lambda w, at: w.shape[1] * at.attrs["groups"],
    "kernel": lambda w, at: w.shape[2:],
    "shape": lambda a, at: a.shape,
    "last": lambda a, at: a.shape[-1],
    "multiple": lambda w, at: w.shape[0] // at.attrs["groups"],
}
"""What ``{w.kernel}`` is; ``{w.0}`` is a size of it."""

WAYS: dict[str, Way] = {
    "": Way(lambda v, at: v, lambda v, at: v),
    "axes": Way(lambda v, at: v[0] if len(v) == 1 else v, lambda v, at: v if v != () else None),
    "one": Way(lambda v, at: _one(v), lambda v, at: (v,)),
    "is_tanh": Way(lambda v, at: v == "tanh", lambda v, at: "tanh" if v else "none"),
    "each": Way(lambda v, at: square(v), lambda v, at: each(v, at.n)),
    "square": Way(lambda v, at: v[0] if len(v) == 1 else v, lambda v, at: tuple(v)),
    "steps": Way(lambda v, at: None if v == at.kernel else square(v),
                 lambda v, at: at.kernel if v is None else each(v, at.n)),
    "symmetric": Way(_symmetric, _pairs),
    "counted": Way(lambda v, at: v or not any(map(any, at.attrs["padding"])), lambda v, at: v),
    "rest": Way(lambda v, at: round(1 - v, 12), lambda v, at: round(1 - v, 12)),
    "end": Way(lambda v, at: v - len(at.x.shape), lambda v, at: v % len(at.x.shape)),
    "there": array(lambda v, at: v is not None),
    "gate": Way(_gate, _gate),
    "learns": Way(_learns, lambda v, at: MODE if v else False),
    "frozen": Way(lambda v, at: not _learns(v, at), lambda v, at: False if v else MODE),
}  # fmt: skip
