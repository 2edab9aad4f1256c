"""What a framework is to the house: a record. Whoever needs "all of them" iterates these.

A framework's room is ``trivium/frameworks/<name>/``; it is entered only when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Framework:
    """One framework, and what of it there is here."""

    name: str
    package: str
    """The distributions, with a bar between them, of which one says that it is installed."""
    remedy: str
    runner: str
    """The class in its ``run.py`` that runs any of its models."""
    trainer: str = ""
    """The class that trains there; none where models are only run."""
    source: bool = True
    """Are models carried there as source?"""
    kinds: tuple[str, ...] = ()
    """What a model of it is, as "module:class"; none where models are not read."""
    endings: tuple[str, ...] = ()
    """Of files that are read."""
    runtime: str = ""
    """Who runs its models, where not itself."""

    def at(self, part: str) -> Any:
        """A module of its room."""
        return importlib.import_module(f"trivium.frameworks.{self.name}.{part}")

    def version(self) -> str | None:
        """The installed version; None where it is missing."""
        return installed(self.package)

    def owns(self, model: Any) -> bool:
        """Is this a model of it? Nothing is imported that is not there yet."""
        for kind in self.kinds:
            module, _, path = kind.partition(":")
            cls: Any = sys.modules.get(module)
            for part in path.split("."):
                cls = getattr(cls, part, None)
            if isinstance(cls, type) and isinstance(model, cls):
                return True
        return False

    def built(self, graph: Any, values: Any) -> tuple[Any, Any]:
        """A Graph made a model there, with these numbers; and its runner."""
        run = self.at("run")
        native, weights = run.build(graph, values)
        return native, getattr(run, self.runner)(native, weights)


def installed(packages: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in packages.split("|"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


FRAMEWORKS = {
    f.name: f
    for f in (
        Framework("torch", "torch", "pip install torch", "TorchRunner", "TorchTrainer",
                  kinds=("torch:nn.Module",)),
        Framework("keras", "keras", "pip install keras tensorflow-cpu", "KerasRunner",
                  "KerasTrainer", kinds=("keras:Layer",), endings=(".keras",)),
        Framework("tensorflow", "tensorflow|tensorflow-cpu|tensorflow_cpu",
                  "pip install tensorflow-cpu", "TensorflowRunner", "TensorflowTrainer",
                  kinds=("tensorflow:__internal__.tracking.AutoTrackable",
                         "tensorflow:types.experimental.GenericFunction"), endings=(".pb",)),
        Framework("mxnet", "mxnet", "pip install --no-deps mxnet==1.9.1 && pip install requests",
                  "MxnetRunner", "MxnetTrainer", kinds=("mxnet.gluon:Block",),
                  endings=(".json", ".params")),
        Framework("jax", "jax", "pip install jax", "JaxRunner", "JaxTrainer",
                  kinds=("flax.nnx:Module",)),
        Framework("onnx", "onnx", "pip install onnx onnxruntime", "OnnxRunner", source=False,
                  kinds=("onnx:ModelProto",), endings=(".onnx",), runtime="onnxruntime"),
    )
}  # fmt: skip


def everywhere(form: Any) -> dict[str, Any]:
    """The same of every framework: ``**everywhere(Refused("a gradient"))``."""
    return dict.fromkeys(FRAMEWORKS, form)
