"""ONNX Runtime: runs the ONNX that ``frameworks/onnx`` writes, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trivium.frameworks.onnx.emit import write
from trivium.frameworks.onnx.run import session
from trivium.graph import Graph

Array = np.ndarray[Any, Any]


class OnnxRuntime:
    """Inference in ONNX Runtime, with so many threads (None: as many as it likes)."""

    name = "onnxruntime"

    def __init__(self, threads: int | None = None):
        self.threads = threads

    @staticmethod
    def available() -> bool:
        """Whether the packages it needs are installed."""
        return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))

    def session(self, model: Any) -> Any:
        """An InferenceSession of a ModelProto."""
        return session(model, self.threads)

    def function(self, graph: Graph, values: Mapping[str, Any]) -> Callable[..., list[Array]]:
        """``graph`` in inference mode with these parameters, as a function of its data inputs.

        What ONNX cannot say exactly is an UnsupportedError here, not when it runs.
        """
        session = self.session(write(graph, values))
        wanted = {v.name: v.dtype.numpy for v in graph.of_kind("data")}

        def run(*inputs: Any) -> list[Array]:
            if len(inputs) != len(wanted):
                raise TypeError(f"{graph.name} takes {len(wanted)} inputs, got {len(inputs)}")
            feed = {
                name: np.asarray(array, dtype)
                for (name, dtype), array in zip(wanted.items(), inputs, strict=True)
            }
            found: list[Array] = session.run(None, feed)
            return found

        return run
