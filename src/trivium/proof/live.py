"""A Trivium module as it runs eagerly: what tracing made of it is judged by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from trivium.frameworks.runner import Array, Names, Pulled, listed
from trivium.graph import Graph
from trivium.nn.module import Module
from trivium.nn.parameter import Parameter
from trivium.tensor import Tensor, asarray, no_grad


class ModuleRunner:
    """A module of the user's own, called as the user calls it."""

    def __init__(self, module: Module, graph: Graph):
        self.module = module
        self.takes = [v.dtype for v in graph.of_kind("data")]
        self.structure: Names = None

    def _held(self) -> dict[str, Parameter]:
        return dict(self.module.named_parameters("param", "state"))

    def values(self) -> dict[str, Array]:
        """Every parameter and state."""
        return {n: np.array(p.data) for n, p in self._held().items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        for name, p in self._held().items():
            if name in values:
                p.data = np.array(values[name], p.data.dtype)

    @contextmanager
    def _as_it_was(self, training: bool) -> Iterator[None]:
        """In this mode; modes, states and gradients are put back afterwards."""
        held = self._held().values()
        kept = [(p, p.data, p.grad) for p in held]
        modes = [(m, m._training) for m in self.module.modules()]
        if self.module._training != training:  # else as it is: a part may be set to eval()
            self.module.train(training)
        try:
            yield
        finally:
            for p, data, grad in kept:
                p.grad = grad
                if p.kind == "state":
                    p.data = data
            for m, mode in modes:
                m._training = mode

    def _call(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        found, self.structure = listed(self.module(*inputs))
        return found

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        with self._as_it_was(training), no_grad():
            return [np.asarray(y) for y in self._call([asarray(x) for x in inputs])]

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by ``backward()``."""
        xs = [
            asarray(x, requires_grad=t.is_floating) for x, t in zip(inputs, self.takes, strict=True)
        ]
        with self._as_it_was(training):
            held = self._held()
            for p in held.values():
                p.grad = None
            outputs = [asarray(y) for y in self._call(xs)]
            floating = [y for y in outputs if y.dtype.is_floating]
            for y, c in zip(floating, cotangents, strict=True):
                if y.requires_grad:
                    y.backward(c)
            trained = {n: p for n, p in held.items() if p.requires_grad}
            return Pulled(
                [np.array(y) for y in outputs],
                {n: np.zeros_like(p.data) if p.grad is None else np.array(p.grad)
                 for n, p in trained.items()},
                [(np.zeros_like(x.data) if x.grad is None else np.array(x.grad))
                 if x.requires_grad else None for x in xs],
                {n: np.array(p.data) for n, p in held.items() if p.kind == "state"},
            )  # fmt: skip
