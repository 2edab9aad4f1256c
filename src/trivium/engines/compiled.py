"""A function or a module, compiled: traced once per shape and run by an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.demands import Demands
from trivium.engines import get as engine_named
from trivium.graph import Graph
from trivium.nn.held import changes
from trivium.nn.module import restructure, trace
from trivium.nn.parameter import captured
from trivium.recent import Recent
from trivium.tensor import Tensor


def source_of(engine: str, compiled: Any) -> str:
    if engine != "native":
        raise ValueError(f"engine {engine!r} compiles nothing that could be shown; 'native' does")
    if compiled is None:
        raise ValueError("nothing is compiled yet: the first call decides the sizes")
    text: str = compiled.source
    return text


class Compiled:
    """A function that an engine runs; see :func:`compile`."""

    def __init__(self, function: Callable[..., Any], engine: str | None, threads: int | None):
        self._function, self._engine, self._threads = function, engine_named(engine), threads
        self._made = Recent(64)
        self._last: Any = None

    def __call__(self, *args: Any) -> Any:
        arrays = [np.asarray(a) for a in args]
        key = tuple([(a.dtype.str, a.shape) for a in arrays])
        made = self._made.get(key, lambda: self._compiled(arrays))
        if made[0] != (now := changes()):  # an attribute of some module was set meanwhile
            graph = self._trace(arrays)
            made[:] = [now, graph, *made[2:]] if graph.same_as(made[1]) else self._compiled(arrays)
        _, graph, run, demands = made
        if demands.of_numbers:
            demands.numbers(arrays)
        self._last = run
        values = {name: p.data for name, p in captured(graph).items()}
        return restructure(graph, [Tensor(a) for a in run(values, arrays)])

    def _trace(self, arrays: list[Any]) -> Graph:
        return trace(self._function, *arrays, training=False)

    def _compiled(self, arrays: list[Any]) -> list[Any]:
        """What modules' attributes were at the time, the Graph, what runs it, and its demands."""
        now, graph = changes(), self._trace(arrays)
        demands = Demands(graph, [v.name for v in graph.of_kind("data")])
        return [now, graph, self._engine.function(graph, self._threads), demands]

    @property
    def source(self) -> str:
        """What the native engine ran last, as loops that can be read."""
        return source_of(self._engine.name, self._last)


def compile(
    function: Callable[..., Any], engine: str | None = None, threads: int | None = None
) -> Any:
    """``function`` (or a module) traced once per shape and run by an engine; same numbers as eager.

    On the native engine, the default, ``.source`` shows the loops that were compiled.

    >>> import trivium as tv
    >>> fast = tv.compile(lambda x: tv.tanh(x) * 2)
    >>> fast(tv.asarray([0.0, 1.0]))
    tensor([0.       , 1.5231884])
    >>> print(fast.source)
    # phase 0: one task
    # multiply: results in lanes along i
    for i in range(2):
        multiply_1[i] = tanh(x0[i]) * 2.0
    <BLANKLINE>
    """
    return Compiled(function, engine, threads)
