"""A model that lives in a framework, as the proofs and the training engines see it: NumPy to NumPy.

Every framework's ``run.py`` has two classes: a Runner (any model there, ours or foreign) and a
Trainer (a loss Graph emitted, with an optimizer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from trivium.transforms.step import COUNT

Array = np.ndarray[Any, Any]


class Pulled(NamedTuple):
    """Outputs, and the gradients of sum(output * cotangent) by parameter name and by input."""

    outputs: list[Array]
    parameters: dict[str, Array]
    inputs: list[Array | None]
    states: dict[str, Array]
    """What the states (batch statistics) have become."""


class Runner(Protocol):
    """A model somewhere. Names and arrays are ours: its ``weights`` map does the translation."""

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients, by the framework's own means; states stay as they are."""


class Trainer(Protocol):
    """A training step in a framework."""

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""

    def memory(self) -> dict[str, Any]:
        """What the optimizer keeps, by parameter, and its count of steps; NumPy arrays."""

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Begin with what another trainer on this engine kept; what it did not starts anew."""


Names = tuple[str, ...] | None


def listed(outputs: Any) -> tuple[list[Any], Names]:
    """Outputs as a list, and their names where they have any."""
    if isinstance(outputs, Mapping):
        return list(outputs.values()), tuple(map(str, outputs))
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs], None


class Slots:
    """What trainers share whose model lives in a runner: its numbers, the optimizer's by parameter.

    A trainer says how one of its arrays goes out and comes in.
    """

    runner: Any
    names: list[str]
    _slots: list[list[Any]]
    count: Any

    def _out(self, array: Any) -> Array:
        """An array of the framework's as NumPy's."""
        return np.array(array)

    def _in(self, array: Any, new: Array) -> Any:
        """What stands for ``array`` once it has these numbers."""
        raise NotImplementedError

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        found: dict[str, Array] = self.runner.values()
        return found

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""
        self.runner.load(values)

    def memory(self) -> dict[str, Any]:
        """What the optimizer keeps, by parameter, and its count of steps; NumPy arrays."""
        held = zip(self.names, self._slots, strict=True)
        return {COUNT: self._out(self.count)} | {n: list(map(self._out, s)) for n, s in held}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Begin with what another trainer on this engine kept; what it did not starts anew."""
        self.count = self._in(self.count, memory[COUNT])
        self._slots = [
            list(map(self._in, slots, memory[name])) if name in memory else slots
            for name, slots in zip(self.names, self._slots, strict=True)
        ]
