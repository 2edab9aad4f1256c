"""Source becomes a model: what it has is counted against the Graph before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.frameworks.layer import Weight
from trivium.frameworks.source import Emitted
from trivium.graph import Graph, UnsupportedError

Weights = Mapping[str, tuple[str, Weight]]


@dataclass(frozen=True)
class Held:
    """An array of a model in a framework."""

    name: str
    key: Any
    """The same for the same array, wherever it was found."""
    shape: tuple[int, ...] | None
    """None while the framework waits for the first batch to learn it."""
    trained: bool


@contextmanager
def looking(name: str, path: str) -> Iterator[None]:
    """What is not found is said by our name and theirs."""
    try:
        yield
    except (AttributeError, IndexError, KeyError) as error:
        raise UnsupportedError(
            f"source that has no {path!r}, the place of the parameter {name!r}"
        ) from error


def furnished(
    runner: Callable[[Any, Weights], Any],
    model: Any,
    emitted: Emitted,
    graph: Graph,
    values: Mapping[str, Any],
) -> None:
    """Check that ``model`` has the parameters of ``graph``, and give it their numbers.

    Raises UnsupportedError, with the name, where it lacks one, has one more or one of another
    shape.
    """
    places = {n: (path, w) for n, (path, w, _) in emitted.constants.items()}
    filled = runner(model, emitted.weights | places)
    fixed = {n: array for n, (_, _, array) in emitted.constants.items()}
    _count(filled, emitted.weights | places, graph, fixed)
    filled.load({**values, **fixed})


def _count(runner: Any, weights: Weights, graph: Graph, fixed: Mapping[str, Any]) -> None:
    shapes = {v.name: v.shape for v in graph.of_kind("param", "state")}
    shapes |= {n: a.shape for n, a in fixed.items()}
    for name in shapes:
        if name not in weights:
            raise UnsupportedError(f"source that lacks the parameter {name!r}")
    ours: dict[Any, str] = {}
    for name, held in runner.held().items():
        if held.key in ours:
            raise UnsupportedError(
                f"source in which {ours[held.key]!r} and {name!r} are one array, {held.name}"
            )
        ours[held.key] = name
        sizes: Any = shapes[name]
        there = weights[name][1].to(np.broadcast_to(np.float32(0), sizes)).shape
        if held.shape is not None and held.shape != there:
            what = f"source in which {name!r} is {held.name} of shape {held.shape}, not {there}"
            raise UnsupportedError(what)
    beside = {held.name.rpartition(".")[0] for held in runner.held().values()}
    for extra in runner.declared():
        # What a layer keeps for itself stands beside ours: a count of batches, a fixed gamma.
        own = not extra.trained and extra.name.rpartition(".")[0] in beside
        if extra.key not in ours and not own:
            raise UnsupportedError(f"source with {extra.name!r}, a parameter the Graph has not")


__all__ = ["Held", "furnished", "looking"]
