"""Any model, an object of any framework or a file: what we read of it, and itself, running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trivium.engines import ENGINES, Engine
from trivium.framework import FRAMEWORKS
from trivium.graph import Graph, UnsupportedError
from trivium.nn.module import GraphModule, Module
from trivium.nn.opening import open_trace
from trivium.proof.facts import rates
from trivium.proof.live import ModuleRunner
from trivium.proof.witness import GraphRunner, Side
from trivium.shape import Dim
from trivium.tensor import Spec, asarray

READ = "read, not run"

_OWN = (".tv", ".safetensors")


def framework_of(model: Any) -> str:
    """Which framework a model, or the file at a path, belongs to."""
    if isinstance(model, Module):
        return "trivium"
    if isinstance(model, (str, Path)):
        folder = Path(model, "saved_model.pb")
        ending = (folder if folder.exists() else Path(model)).suffix
        if ending in _OWN:
            return "trivium"
        for framework in FRAMEWORKS.values():
            if ending in framework.endings:
                return framework.name
        raise ValueError(
            f"no format for the ending {ending!r}: .tv, .onnx, .keras and -symbol.json are read"
        )
    for framework in FRAMEWORKS.values():
        if framework.owns(model):
            return framework.name
    raise UnsupportedError(
        f"a {type(model).__name__} is no model Trivium knows",
        remedy="it reads trivium, torch, keras, gluon and ONNX models, and their files",
    )


@dataclass
class Source:
    """A model and what we read of it. ``itself`` is None where nothing here can run it."""

    framework: str
    name: str
    module: Module
    itself: Any
    examples: list[Any]
    training: bool = False
    """It was read as it trains, and not as it infers."""

    @property
    def graph(self) -> Graph:
        """The reading."""
        return graph_of(self.module, *self.examples)

    def side(self) -> Side:
        """Ready to be compared."""
        graph, values = self.graph, self.module.state_dict()
        if self.framework == "trivium":
            return self._own(graph, values)
        builder = builder_of(self.framework, values)
        trains = bool(FRAMEWORKS[self.framework].trainer)
        if self.itself is None:
            runner: Any = GraphRunner(graph, values)
            return Side(self.name, graph, values, runner, READ, trains, builder)
        runner = FRAMEWORKS[self.framework].at("run").foreign(self.itself, self.module)
        return Side(self.name, graph, values, runner, ran_by(self.framework), trains, builder)

    def _own(self, graph: Graph, values: Mapping[str, Any]) -> Side:
        """A Trivium module runs eagerly; a Graph, or a module that drops at random, on NumPy."""
        runner: Any = GraphRunner(graph, values)
        if not isinstance(self.module, GraphModule) and not rates(graph):
            runner = ModuleRunner(self.module, graph)
        return Side(self.name, graph, values, runner,
                    rebuild=lambda g: GraphRunner(g, values))  # fmt: skip


def source_of(model: Any, *examples: Any, framework: str | None = None, **options: Any) -> Source:
    """Read a model, or the file at a path; the model itself is kept to be run."""
    framework, given = framework or framework_of(model), arrays_or_specs(examples)
    if framework == "trivium":
        return Source("trivium", "trivium", model, None, given)
    name = Path(model).name if isinstance(model, (str, Path)) else framework
    itself, module = FRAMEWORKS[framework].at("open").opened(model, *given, **options)
    if engine_of(framework).version() is None:
        itself = None
    return Source(framework, name, module, itself, given, bool(options.get("training")))


def engine_of(framework: str) -> Engine:
    """The engine that runs a framework's models."""
    return ENGINES[FRAMEWORKS[framework].runtime or framework]


def ran_by(framework: str) -> str:
    """ "torch 2.13.0" """
    engine = engine_of(framework)
    return f"{engine.name} {engine.version()}"


def graph_of(model: Module, *examples: Any) -> Graph:
    """A module's Graph, its mode open, and every size that the module leaves open.

    A model that has not seen data yet needs ``examples`` (arrays or Specs); one that was called,
    built or fitted remembers what it was given.
    """
    if isinstance(model, GraphModule):
        return model.graph
    given = list(examples) or [_as_seen(s) for s in model.inputs_seen]
    if not given:
        raise ValueError(
            "this model learns its sizes from data: pass an example input or a tv.Spec, or call it"
        )
    return open_trace(model, *given, name=type(model).__name__)


def _as_seen(spec: Spec) -> Any:
    """An example of what a model was given before; its batch is the one size known to be open."""
    sizes = [2 if s == Dim("batch") else s for s in spec.shape]
    return np.zeros(sizes, spec.dtype.numpy) if all(isinstance(s, int) for s in sizes) else spec


def arrays_or_specs(examples: Sequence[Any]) -> list[Any]:
    """Examples of any framework as NumPy arrays; Specs, and pairs that mean one, as they are."""
    return [
        x if isinstance(x, Spec) or _is_spec(x) else _array(x)
        for x in examples
    ]  # fmt: skip


def _is_spec(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)


def _array(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    if hasattr(x, "asnumpy"):
        return x.asnumpy()
    if hasattr(x, "detach") and hasattr(x, "cpu"):
        x = x.detach().cpu()
    return np.asarray(asarray(x))


def arrays(examples: Sequence[Any]) -> list[Any]:
    """Those examples that are numbers."""
    return [x for x in examples if isinstance(x, np.ndarray)]


def builder_of(framework: str, values: Any) -> Callable[[Graph], Any] | None:
    """Graphs with these parameters, built and run in a framework; None where none are trained."""
    record = FRAMEWORKS[framework]
    return (lambda graph: record.built(graph, values)[1]) if record.trainer else None


__all__ = ["READ", "Source", "arrays", "builder_of", "framework_of", "graph_of", "ran_by",
           "source_of"]  # fmt: skip
