"""Layer forms: our op beside a framework's own layer, one line read in both directions.

    nn.Linear(in_features={weight.1}, out_features={weight.0}, bias={bias!there|True})

An exporter reads it forwards (attributes to constructor arguments, our arrays to the layer's
weights), an importer backwards. The words are those of :mod:`words`: what no word names is at our
default, or goes without saying (``fixed``); what an importer meets and nobody names is at theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from trivium.frameworks.ways import FIRST, At, NotTheirs
from trivium.frameworks.words import MISSING, Hole, Pattern, pattern, resolve, same
from trivium.graph import OPS, Node
from trivium.op import CORNERS, Op

Array = np.ndarray[Any, Any]


def alike(a: Array) -> Array:
    """The map of a weight that both sides keep alike."""
    return a


class Given(dict[str, Any]):
    """Arguments that are said; ``all``: value and default of each that may be left out."""

    def __init__(self, said: Mapping[str, Any], all: Mapping[str, tuple[Any, Any]]):
        super().__init__(said)
        self.all = dict(all)


@dataclass(frozen=True)
class Weight:
    """One array of an op and what the layer calls it: ``to`` makes it theirs, ``back`` ours."""

    array: str  # the parameter's name in our op's signature: "w"
    ours: str  # the last part of its name with us: "weight"
    theirs: str  # the last part of its name there: "kernel"
    to: Callable[[Array], Array] = alike
    back: Callable[[Array], Array] = alike

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


Fixed = Mapping[str, Any]
"""Attributes of ours that go without saying: a value, or what makes it of where it stands (At)."""


@dataclass(frozen=True)
class LayerForm:
    """How an op that owns parameters (or is a plain module there) is a layer of a framework."""

    op: str
    line: str
    """``nn.Softmax(dim={axis})``; ``conv(...)`` where calls say all there is to say."""
    weights: tuple[Weight, ...] = ()
    fixed: Fixed = field(default_factory=dict)
    when: Callable[[Node], bool] = lambda node: True
    """What else has to be so for it to be exact."""
    rank: int | None = None
    """Of its first array."""
    settled: Fixed = field(default_factory=dict)
    """What such a layer has where it makes no difference, as ``when`` sees to: read, not asked."""
    beside: Callable[[Node], Mapping[str, tuple[Any, Any]]] = lambda node: {}
    """Words that say nothing of the op, but of what is read of it: each with its default."""

    @cached_property
    def layer(self) -> str:
        """The class as emitted source spells it: "layers.Conv2D"."""
        return self.line.partition("(")[0]

    @cached_property
    def words(self) -> Mapping[str, Any]:
        """Its constructor's arguments: holes, and what is the same in every such layer."""
        called = self.line.endswith(")") and not self.line.endswith("(...)")
        found = pattern(self.line) if called else Pattern(self.line)
        assert found is not None and not found.positional
        return found.keywords

    @cached_property
    def said_of(self) -> set[str]:
        """The attributes and arrays of ours that its words are about."""
        return {w.of for w in self.words.values() if isinstance(w, Hole)}

    def write(self, node: Node) -> Given | None:
        """The constructor's keyword arguments, defaults left out.

        None where the layer would mean something else, so that another form, or the call form, is
        taken.
        """
        op: Op = OPS[node.op]
        at = At.node(op, node)
        fits = self.rank is None or (at.x is not None and len(at.x.shape) == self.rank)
        if not fits or not self.when(node):
            return None
        if self.line.endswith("(...)"):
            return Given({}, {})
        try:
            said = {k: w.full(at) if isinstance(w, Hole) else w for k, w in self.words.items()}
        except NotTheirs:
            return None
        for name, value in node.attrs.items():
            if (
                name in self.said_of
                or name in self.settled
                or (name in FREE and name not in self.fixed)
            ):
                continue
            wanted = self.fixed.get(name, op.defaults[name])
            wanted = wanted(at) if callable(wanted) else wanted
            if value is not wanted and value != wanted:
                return None
        free = {
            k: (said[k], w.default)
            for k, w in self.words.items()
            if isinstance(w, Hole) and w.default is not MISSING
        } | dict(self.beside(node))
        must = {k: v for k, v in said.items() if k not in free}
        return Given(must | {k: v for k, (v, default) in free.items() if v != default}, free)

    def read(
        self, said: Mapping[str, Any], defaults: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Our attributes, from a layer's arguments; NotTheirs where it is more than this form says.

        ``arrays`` has our op's arrays, None where the layer has none, as far as they are known.
        """
        op: Op = OPS[self.op]
        for name in said.keys() - self.words.keys():
            if name not in defaults or not same(said[name], defaults[name]):
                raise NotTheirs(f"{self.layer}({name}={said[name]!r})")
        stands = []
        for name, word in self.words.items():
            if not isinstance(word, Hole):
                if not same(said.get(name), word):
                    raise NotTheirs(f"{self.layer}({name}={said.get(name)!r})")
            elif name in said or word.of in op.defaults:
                item = said.get(name, word.default)
                stands.append((word, tuple(item) if isinstance(item, list) else item))
        return resolve(op, stands, arrays, {**self.fixed, **self.settled})


FREE = (*CORNERS, "salt")
"""What no layer says: whose gradient a tie is, unless it is fixed; which random numbers."""


def by_rank(
    op: str, line: str, ranks: Mapping[int, tuple[int, ...]], **more: Any
) -> list[LayerForm]:
    """A form for each number of axes: the sign # in its line."""
    return [LayerForm(op, line.replace("#", str(n)), rank=r, **more)
            for n, each in ranks.items() for r in each]  # fmt: skip


SPATIAL = {1: (3,), 2: (4,), 3: (5,)}
"""Ranks of images along so many axes."""
CHANNELS_FIRST = {"layout": lambda at: FIRST[at.n - 1]}
TURNED = permuted(1, 0)


def weights(*names: str, **theirs: str) -> tuple[Weight, ...]:
    """Weights that both sides keep alike; ``scale`` is called "weight" with us."""
    ours = {"scale": "weight", "w": "weight", "b": "bias"}
    both = dict.fromkeys(names, "") | theirs
    return tuple(Weight(a, ours.get(a, a), t or ours.get(a, a)) for a, t in both.items())
