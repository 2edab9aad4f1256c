"""ONNX Runtime: runs the ONNX that ``frameworks/onnx`` writes, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.frameworks.onnx.emit import write
from trivium.frameworks.runner import Pulled
from trivium.graph import Graph, UnsupportedError

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
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("this engine needs ONNX Runtime: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about its own rewriting
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

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


class OnnxRunner:
    """An ONNX model, as the proofs see it: it has outputs, and no gradients."""

    def __init__(self, model: Any):
        self.session = OnnxRuntime().session(model)
        self.inputs = [(i.name, i.type) for i in self.session.get_inputs()]

    def values(self) -> dict[str, Array]:
        """None: its numbers are part of it."""
        return {}

    def load(self, values: Mapping[str, Any]) -> None:
        """Refused: a session cannot change its numbers."""
        raise UnsupportedError("an ONNX model in ONNX Runtime cannot be trained")

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs in inference."""
        feed = {n: np.asarray(x) for (n, _), x in zip(self.inputs, inputs, strict=True)}
        found: list[Array] = self.session.run(None, feed)
        return found

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Refused: ONNX Runtime does not differentiate here."""
        raise UnsupportedError("an ONNX model in ONNX Runtime has no gradients")
