"""Engines by name: who computes. Each is imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.framework import FRAMEWORKS, Framework, installed
from trivium.frameworks.runner import Trainer
from trivium.graph import Graph
from trivium.interpret import Interpreter
from trivium.transforms.step import COUNT, Update, count_name, initial_slots, trained, training_step

DEFAULT = "native"


class NumpyTrainer:
    """The whole training step as one Graph, on NumPy."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], update: Update):
        step = training_step(graph, update)
        self._run = Interpreter(step, training=True)
        self._params = [v.name for v in graph.of_kind("param", "state")]
        self._values = dict(values) | initial_slots(step, graph)
        self._inputs = step.inputs
        self._updated = [v.name for v in step.updates]
        self._steps = 0

    def step(self, inputs: Sequence[Any], lr: float) -> float:
        """One step on a batch; the loss before it."""
        given = iter(inputs)
        own = {"rng": np.array([0, self._steps], np.uint64), "hyper": np.float32(lr)}
        arrays = [
            next(given) if v.kind == "data" else own[v.kind] if v.kind in own
            else self._values[v.name] for v in self._inputs
        ]  # fmt: skip
        loss, *new = self._run(*arrays)
        self._values |= zip(self._updated, new, strict=True)
        self._steps += 1
        return float(loss)

    def values(self) -> dict[str, Any]:
        """Every parameter and state, by name."""
        return {n: self._values[n] for n in self._params}

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""
        self._values |= {n: values[n] for n in self._params}

    def memory(self) -> dict[str, Any]:
        """What the optimizer keeps, its count of steps too."""
        kept = {n: np.array(a) for n, a in self._values.items() if n not in self._params}
        return kept | {COUNT: kept[count_name(kept)]}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Begin with what another trainer kept; what it did not starts anew."""
        own = self._values.keys() - set(self._params)
        self._values |= {n: a for n, a in memory.items() if n in own}
        self._steps = int(memory[COUNT])


Function = Callable[[Mapping[str, Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Engine:
    """One way to compute: what it needs, and how it trains."""

    name: str
    package: str  # the distribution whose version says that it is installed
    remedy: str
    trains: bool = True
    trainer_at: str = ""  # "module:class"
    runner_at: tuple[str, ...] = ()  # "module:build", "module:Runner"

    def version(self) -> str | None:
        """The installed version, or None."""
        return installed(self.package)

    def need(self) -> None:
        """Raise with the remedy unless installed."""
        if self.version() is None:
            raise ImportError(f"engine {self.name!r} is not installed: {self.remedy}")

    def trainer(
        self,
        graph: Graph,
        values: Mapping[str, Any],
        update: Update,
        threads: int | None = None,
    ) -> Trainer:
        """A training step of this loss Graph from these values."""
        self.need()
        if not self.trains:
            raise ValueError(f"engine {self.name!r} runs models, it does not train them")
        trained(graph)  # said here, in the same words on every engine
        if not self.trainer_at:
            return NumpyTrainer(graph, values, update)
        # Only the native engine has threads of its own to be told about.
        more = (threads,) if self.name == "native" else ()
        trainer: Trainer = _load(self.trainer_at)(graph, values, update, *more)
        return trainer

    def function(self, graph: Graph, threads: int | None = None) -> Function:
        """The Graph in inference: ``f(values, inputs) -> outputs``, NumPy in and out."""
        self.need()
        if self.name == "native":
            function: Function = _load("trivium.native.run:NativeFunction")(graph, threads)
            return function
        if self.runner_at:
            return _framework_function(graph, *(_load(at) for at in self.runner_at))
        if self.name == "onnxruntime":
            return _onnx(graph)
        run = Interpreter(graph, training=False)

        def call(values: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
            given = iter(inputs)
            arrays = [next(given) if v.kind == "data" else _held(v, values) for v in graph.inputs]
            return run(*arrays)[: len(graph.outputs)]

        return call


def _framework_function(graph: Graph, build: Any, runner: Any) -> Function:
    live: list[Any] = []

    def call(values: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
        if not live:
            live.append(runner(*build(graph, values)))
        else:
            live[0].load(values)  # they may have been trained since
        found: list[Any] = live[0].outputs(list(inputs), training=False)
        return found

    return call


def _onnx(graph: Graph) -> Function:
    from trivium.engines.onnxruntime import OnnxRuntime

    made: list[Any] = []

    def call(values: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
        # The numbers are part of an ONNX model: other numbers, another session.
        held = [values[v.name] for v in graph.of_kind("param", "state")]
        if not made or any(a is not b for a, b in zip(made[1], held, strict=True)):
            made[:] = [OnnxRuntime().function(graph, values), held]
        found: list[Any] = made[0](*inputs)
        return found

    return call


def _held(value: Any, values: Mapping[str, Any]) -> Any:
    return np.zeros(2, np.uint64) if value.kind == "rng" else values[value.name]


def _load(at: str) -> Any:
    module, _, name = at.partition(":")
    return getattr(importlib.import_module(module), name)


def _framework(f: Framework) -> Engine:
    at = f"trivium.frameworks.{f.name}.run"
    return Engine(
        f.name, f.package, f.remedy, True, f"{at}:{f.trainer}", (f"{at}:build", f"{at}:{f.runner}")
    )


ENGINES = {
    e.name: e
    for e in (
        Engine("native", "llvmlite", "pip install llvmlite",
               trainer_at="trivium.native.run:NativeTrainer"),
        Engine("numpy", "numpy", "pip install numpy"),
        Engine("onnxruntime", "onnxruntime", "pip install onnx onnxruntime", trains=False),
        *(_framework(f) for f in FRAMEWORKS.values() if f.trainer),
    )
}  # fmt: skip


def get(name: str | None) -> Engine:
    """The engine of this name; None is the default."""
    name = name or DEFAULT
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    return ENGINES[name]


def engines() -> dict[str, str | None]:
    """Every engine and its installed version; None where it is missing.

    >>> "numpy" in engines()
    True
    """
    return {name: e.version() for name, e in ENGINES.items()}
