"""Source becomes a model: what it has is counted against the Graph before anything is computed."""

from __future__ import annotations

import itertools
import linecache
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.frameworks.layer import Weight
from trivium.frameworks.writing.source import Emitted
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


def execute(emitted: Emitted, name: str) -> Any:
    """Run emitted source and return the class or function it is about.

    The source is known to ``inspect`` and to tracebacks under ``<trivium>/NAME_1.py``.
    """
    filename = f"<trivium>/{name}_{next(_made)}.py"
    lines = emitted.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(emitted.source), None, lines, filename)
    module = types.ModuleType(f"trivium_{name}_{emitted.entry}")
    module.__file__ = filename
    # Who empties linecache, as AutoGraph does, asks the loader again.
    module.__loader__ = _Source(emitted.source)  # type: ignore[assignment]
    sys.modules[module.__name__] = module  # so that inspect finds the classes' source
    exec(compile(emitted.source, filename, "exec"), module.__dict__)
    return module.__dict__[emitted.entry]


class _Source:
    """What ``linecache`` wants of a loader."""

    def __init__(self, source: str):
        self.source = source

    def get_source(self, name: str) -> str:
        """The source, whatever the name."""
        return self.source


_made = itertools.count(1)


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


__all__ = ["Held", "execute", "furnished", "looking"]
