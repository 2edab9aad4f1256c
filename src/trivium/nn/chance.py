"""Random numbers that Python or NumPy draw while a function is traced: they would be baked in."""

from __future__ import annotations

import contextlib
import inspect
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.graph import Graph, GraphError

_REMEDY = (
    "the numbers would be the same in every step; use tv.nn.Dropout, or draw them outside and "
    "pass them as an input"
)
TRIES = 4


def _generators(function: Any) -> list[Any]:
    """The generators that a function or module can reach: attributes, closures and globals."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    todo = [function]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (np.random.Generator, np.random.RandomState, random.Random)):
            found[id(item)] = item
        elif inspect.isfunction(item):
            with contextlib.suppress(ValueError):  # a name that has no value yet
                near = inspect.getclosurevars(item)
                todo += [
                    v
                    for v in (*near.nonlocals.values(), *near.globals.values())
                    if not inspect.isfunction(v) or v.__module__ == item.__module__
                ]
        elif not isinstance(item, type) and hasattr(item, "named_parameters"):  # a Module
            for module in item.modules():
                todo += [*vars(module).values(), type(module).forward]
    return list(found.values())


def _state(generator: Any) -> str:
    if isinstance(generator, random.Random):
        return repr(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return repr([np.asarray(part).tobytes() for part in generator.get_state()])
    return repr(generator.bit_generator.state)


def _states(generators: list[Any]) -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    return [random.getstate(), (kind, np.asarray(keys).tobytes(), *rest), *map(_state, generators)]


def settled(make: Callable[[], Graph], function: Any, name: str) -> Graph:
    """The Graph that ``make`` traces from ``function``, unless it was decided by chance.

    Random numbers were drawn where a generator has moved: the global ones, and those within the
    function's reach. Another thread may have moved it, or the first call may only have
    made initial values, so the function is traced again: an error where the Graph is another one
    then, a warning where it is the same but numbers are drawn every time.
    """
    generators = _generators(function)
    before = _states(generators)
    graph = make()
    for _ in range(TRIES):
        after = _states(generators)
        if after == before:
            return graph
        before = after
        if (difference := graph.difference(make())) is not None:
            raise GraphError(
                f"{name} draws random numbers with NumPy or Python while it is traced "
                f"({difference}); {_REMEDY}"
            )
    warnings.warn(
        f"random numbers are drawn with NumPy or Python whenever {name} is traced; if it is what "
        f"draws them, {_REMEDY}",
        RuntimeWarning,
        4,
    )
    return graph
