"""Who owns parameters while an engine trains them."""

from __future__ import annotations

from typing import Any

from trivium.engines import Engine
from trivium.graph import Graph
from trivium.nn.parameter import Parameter, take_over


class EngineOwner:
    """Parameters in an engine's hands: fetched when they are read, loaded when they were set.

    What the optimizer keeps of every parameter outlives the engine's trainer.
    """

    def __init__(self, engine: Engine, threads: int | None = None):
        self.engine, self.threads = engine, threads
        self._params: dict[str, Parameter] = {}
        self._trainer: Any = None
        self._memory: dict[str, Any] = {}  # the optimizer's, of trainers before this one
        self._behind = self._outdated = False

    def _hand_over(self, graph: Graph, update: Any) -> None:
        """Have the engine make what trains the parameters on this Graph."""
        values = {name: p.data for name, p in self._params.items()}
        self._trainer = self.engine.trainer(graph, values, update, self.threads)
        if self._memory:
            self._trainer.remember(self._memory)
        self._outdated = False
        take_over(self._params.values(), self)

    def _load(self) -> None:
        """Give the engine the numbers that parameters were set to."""
        self._trainer.load({name: p.data for name, p in self._params.items()})
        take_over(self._params.values(), self)
        self._outdated = False

    def fetch(self) -> None:
        """Bring the parameters up to date; they ask for it when they are read."""
        if self._behind:
            self._behind = False
            for name, array in self._trainer.values().items():
                self._params[name].fetched(array)

    def changed(self) -> None:
        """A parameter was given other numbers; the next step starts from them."""
        self.fetch()
        self._outdated = True

    def refrozen(self) -> None:
        """A parameter was frozen or is trained again: the next step is made for that."""
        self.fetch()
        if self._trainer is not None:
            self._memory |= self._trainer.memory()
            self._trainer = None
