"""Inputs for comparing models: random and adversarial, in every open size; and dropout masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import OPS, Graph, Node, Value
from trivium.shape import Dim, bind, subs
from trivium.transforms.replay import replay


def _limit_of(graph: Graph, value: Value) -> int:
    """One more than the largest integer that makes sense for an input."""
    for node in graph.nodes:
        if value in {v for v in node.inputs[1:] if v is not None} and node.op in (
            "embedding",
            "take",
        ):
            table = node.inputs[0]
            assert table is not None
            size = table.shape[node.attrs.get("axis", 0)]
            return size if isinstance(size, int) else 2
        if node.op in ("one_hot", "cross_entropy") and value in {
            v for v in node.inputs if v is not None
        }:
            first = node.inputs[0]
            assert first is not None
            size = node.attrs.get("classes", first.shape[-1] if first.shape else 2)
            return size if isinstance(size, int) else 2
        if node.op == "cast" and node.inputs[0] is value and node.out.dtype.is_integer:
            return _limit_of(graph, node.out)
    return 2


def draw(graph: Graph, dims: Mapping[str, int], how: str = "normal", seed: int = 0) -> list[Any]:
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
            arrays.append(rng.integers(0, _limit_of(graph, v), shape).astype(v.dtype.numpy))
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
    """Every dropout that is on while training as ``x * mask``, the masks as last data inputs."""

    def rule(new: Graph, node: Node, values: list[Value | None]) -> Sequence[Value] | None:
        x = values[0] if values else None
        if node.op != "dropout" or x is None:
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
    rates = [n.attrs["rate"] for n in graph.nodes if n.op == "dropout"]
    rng = np.random.default_rng(3)
    masks = []
    for v, rate in zip(masked.of_kind("data")[len(inputs) :], rates, strict=True):
        shape = tuple(int(subs(s, dims)) for s in v.shape)
        masks.append(((rng.random(shape) >= rate) / (1 - rate)).astype(v.dtype.numpy))
    return masks


class Points:
    """Where two models are compared: examples, and inputs drawn at random in several sizes.

    ``other`` is the second model's Graph; a size that is open here and fixed there is fixed.
    """

    def __init__(self, graph: Graph, examples: Sequence[Any] = (), other: Graph | None = None):
        self.graph, self.examples = graph, [np.asarray(x) for x in examples]
        self.fixed: dict[str, int] = {}
        pairs = zip(graph.of_kind("data"), (other or graph).of_kind("data"), strict=False)
        for v, w in pairs:
            for mine, theirs in zip(v.shape, w.shape, strict=False):
                if isinstance(mine, Dim) and isinstance(theirs, int):
                    self.fixed |= {n: theirs for n in mine.names() if mine == Dim(n)}
        self.has_batch = "batch" in graph.dims() - self.fixed.keys()

    def drawn(self, how: str, batch: int, seed: int = 0) -> list[Any]:
        """Inputs of one kind."""
        dims = dims_of(self.graph, batch, self.examples) | self.fixed
        return draw(self.graph, dims, how, seed)

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
