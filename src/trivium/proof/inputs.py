"""Inputs for comparing models: random and adversarial, in every open size; and dropout masks."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import OPS, Graph, Node, Value
from trivium.shape import Dim, bind, subs
from trivium.transforms.replay import replay

WIDE = 1_000_000
"""Integers are drawn up to here, unless they point into something, or their dtype ends before."""
Range = tuple[int, int]
"""The smallest integer and one more than the largest."""
Ask = Callable[[Sequence[Any]], Any]
"""Computes a model; raises where these inputs make no sense to it."""


def reach(graph: Graph, dims: Mapping[str, int], ask: Ask | None) -> dict[str, Range]:
    """The widest range of integers that each input may hold, found by asking the model.

    Class numbers and places in a table may come from an input by any way. What is tried first is
    the sizes of whatever stands beside an integer somewhere.
    """
    whole = [v for v in graph.of_kind("data") if v.dtype.is_integer]
    found: dict[str, Range] = {v.name: (0, 2) for v in whole}
    if ask is None:
        return found
    sizes = {
        size - 1
        for n in graph.nodes
        if any(v is not None and v.dtype.is_integer for v in n.inputs)
        for size in (*(s for v in n.inputs if v is not None for s in v.shape), *n.attrs.values())
        if type(size) is int and 1 < size < WIDE
    }
    for v in whole:
        takes = functools.cache(functools.partial(_takes, graph, dims, ask, found, v))
        ends = np.iinfo(v.dtype.numpy)
        low, high = max(-WIDE, int(ends.min)), min(WIDE, int(ends.max))
        start = next((n for n in (0, 1, *sorted(sizes)) if takes(n)), None)
        if start is not None:
            up = _furthest(takes, start, high, sorted(sizes, reverse=True)[:12])
            found[v.name] = (_furthest(takes, start, low, ()), up + 1)
    return found


def _furthest(takes: Callable[[int], bool], start: int, end: int, likely: Sequence[int]) -> int:
    """The integer nearest to ``end`` that is taken, as all from ``start`` up to it are."""
    good, bad = start, end
    for n in (end, *likely):
        if abs(n - end) > abs(good - end):
            break
        if takes(n):
            good = n
            break
        bad = n
    step = 1 if end > start else -1
    while good != end and good + step != bad and takes(good + step):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if takes(middle) else (good + step, middle)
    return good


def _takes(graph: Graph, dims: Mapping[str, int], ask: Ask, found: Mapping[str, Range],
           value: Value, number: int) -> bool:  # fmt: skip
    """Can the model compute with this number everywhere in one input?"""
    inputs = draw(graph, dims, "zeros", ranges=found)
    at = next(i for i, v in enumerate(graph.of_kind("data")) if v is value)  # == makes a node
    inputs[at] = np.full_like(inputs[at], number)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ask(inputs)
    except Exception:
        return False
    return True


def _integers(rng: np.random.Generator, how: str, ends: Range, shape: tuple[int, ...]) -> Any:
    """From the whole of a table; else small ones, but for the large."""
    low, high = ends
    near = {"zeros": (0, 1)} if high <= 2**17 and low == 0 else {
        "normal": (-10, 11), "negative": (-10, 1), "positive": (0, 11), "zeros": (0, 1),
    }  # fmt: skip
    a, b = near.get(how, ends)
    return rng.integers(max(low, a), max(min(high, b), max(low, a) + 1), shape)


def draw(
    graph: Graph, dims: Mapping[str, int], how: str = "normal", seed: int = 0,
    ranges: Mapping[str, Range] | None = None,
) -> list[Any]:  # fmt: skip
    """Inputs for a Graph: ``how`` is "normal", "negative", "positive", "large" or "zeros"."""
    rng = np.random.default_rng(seed)
    arrays = []
    for v in graph.of_kind("data"):
        shape = tuple(int(subs(s, dims)) for s in v.shape)
        if v.dtype.is_floating:
            x = rng.standard_normal(shape)
            sorts = {"normal": x, "negative": -np.abs(x), "positive": np.abs(x)}
            x = (sorts | {"large": 30 * x, "zeros": 0 * x})[how]
            arrays.append(x.astype(v.dtype.numpy))
        elif v.dtype == dt.bool_:
            arrays.append(rng.random(shape) < 0.5)
        else:
            ends = (ranges or {}).get(v.name, (0, 2))
            arrays.append(_integers(rng, how, ends, shape).astype(v.dtype.numpy))
    return arrays


def dims_of(graph: Graph, batch: int, examples: Sequence[Any]) -> dict[str, int]:
    env = dict.fromkeys(graph.dims(), 8) | graph.sizes | {"batch": batch}
    for v, x in zip(graph.of_kind("data"), examples, strict=False):
        for size, actual in zip(v.shape, np.shape(x), strict=True):
            if (
                isinstance(size, Dim)
                and size != Dim("batch")
                and size == Dim(n := min(size.names()))
            ):
                env[n] = actual
    return env


def feed_masks(graph: Graph) -> Graph:
    """Everything that drops as ``x * mask``, the masks as last data inputs."""

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        x = values[0] if values else None
        if not OPS[node.op].drops or x is None:
            return None
        name = new.unused(f"mask_{len(new.of_kind('data'))}")
        mask = new.input("data", x.dtype, x.shape, name)
        outputs: Sequence[Value] = OPS["multiply"].append(new, [x, mask], {}, node.origin)
        return outputs

    new, _ = replay(graph, rule)
    new.inputs = [v for v in new.inputs if v.kind != "rng"]
    return new


def draw_masks(masked: Graph, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Masks as our own dropout draws them."""
    dims: dict[str, int] = {}
    for v, x in zip(graph.of_kind("data"), inputs, strict=True):
        bind(v.shape, x.shape, dims, v.name)
    rates = [n.attrs[of] for n in graph.nodes if (of := OPS[n.op].drops)]
    rng = np.random.default_rng(3)
    masks = []
    for v, rate in zip(masked.of_kind("data")[len(inputs) :], rates, strict=True):
        shape = tuple(int(subs(s, dims)) for s in v.shape)
        masks.append(((rng.random(shape) >= rate) / (1 - rate)).astype(v.dtype.numpy))
    return masks


class Points:
    """Where two models are compared: examples, and inputs drawn at random in several sizes.

    ``other`` is the second model's Graph; a size that is open here and fixed there is fixed.
    ``ask`` computes the model: integers are drawn from what it takes.
    """

    def __init__(self, graph: Graph, examples: Sequence[Any] = (), other: Graph | None = None,
                 ask: Ask | None = None):  # fmt: skip
        self.graph, self.examples = graph, [np.asarray(x) for x in examples]
        self.fixed: dict[str, int] = {}
        pairs = zip(graph.of_kind("data"), (other or graph).of_kind("data"), strict=False)
        for v, w in pairs:
            for mine, theirs in zip(v.shape, w.shape, strict=False):
                if isinstance(mine, Dim) and isinstance(theirs, int):
                    self.fixed |= {n: theirs for n in mine.names() if mine == Dim(n)}
        self.has_batch = "batch" in graph.dims() - self.fixed.keys()
        self.ranges = reach(graph, dims_of(graph, 2, self.examples) | self.fixed, ask)

    def drawn(self, how: str, batch: int, seed: int = 0) -> list[Any]:
        """Inputs of one kind."""
        dims = dims_of(self.graph, batch, self.examples) | self.fixed
        return draw(self.graph, dims, how, seed, self.ranges)

    def longer(self) -> list[Any] | None:
        """Inputs whose open sizes, but the batch, are others than the examples'; None without any.

        Sequences become much longer, for a window is not seen by what fits into it.
        """
        dims = dims_of(self.graph, 2, self.examples) | self.fixed
        others = dims.keys() & self.graph.dims() - {"batch"} - self.fixed.keys()
        if not others:
            return None
        far = dims | {n: 37 for n in others}
        count = sum(
            math.prod(int(subs(s, far)) for s in v.shape) for v in self.graph.of_kind("data")
        )
        if count > 20_000:
            far = dims | {n: dims[n] + dims[n] // 4 + 1 for n in others}
        return draw(self.graph, far, "normal", 5, self.ranges)

    def named(self, kinds: Iterable[tuple[str, int]]) -> list[tuple[str, list[Any]]]:
        """The examples and inputs of these kinds and batches, each with what it is called."""
        sets = [("given", list(self.examples))] if self.examples else []
        for how, batch in kinds:
            if self.has_batch or batch != 3 or not self.examples:
                label = f"{how}, batch {batch}" if self.has_batch else how
                sets.append((label, self.drawn(how, batch)))
        return sets

    def stream(
        self, batch: int, given: bool = False, start: int = 1, masked: Graph | None = None
    ) -> Iterator[list[Any]]:
        """One point after another, the examples first if ``given``; with masks for ``masked``."""
        for seed in itertools.count(start):
            first = given and self.examples and seed == start
            x = list(self.examples) if first else self.drawn("normal", batch, seed)
            yield x + (draw_masks(masked, self.graph, x) if masked else [])
