"""ONNX models in ONNX Runtime, on the CPU: they have outputs, and no gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.frameworks.onnx import package
from trivium.frameworks.runner import Array, Pulled
from trivium.graph import UnsupportedError


def session(model: Any, threads: int | None = None, plain: bool = False) -> Any:
    """An InferenceSession of a ModelProto; ``plain``: every operator as it is written.

    The default optimisations fuse and re-order: a ResNet50V2 was 9e-4 off with them, which is no
    witness. No library of custom operators is ever registered.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("this needs ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own rewriting
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        words = str(error).rpartition("NOT_IMPLEMENTED : ")[2]
        raise UnsupportedError(
            f"ONNX Runtime: {words}",
            remedy="it lacks many operators in float64: make the model float32; with verify=False "
            "the file is written, for another runtime",
        ) from error


def foreign(model: Any, module: Any) -> OnnxRunner:
    """A ModelProto of the user's own; ``module`` is what reading it gave."""
    return OnnxRunner(model)


class OnnxRunner:
    """An ONNX model, as the proofs see it."""

    def __init__(self, model: Any):
        self.model, self.session = model, session(model, plain=True)
        self.inputs = [(i.name, i.type) for i in self.session.get_inputs()]

    def values(self) -> dict[str, Array]:
        """None: its numbers are part of it."""
        return {}

    def load(self, values: Mapping[str, Any]) -> None:
        """Refused: a session cannot change its numbers."""
        raise UnsupportedError("an ONNX model in ONNX Runtime cannot be trained")

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs in inference."""
        found: list[Array] = self.session.run(None, self._feed(inputs))
        return found

    def _feed(self, inputs: Sequence[Array]) -> dict[str, Array]:
        return {n: np.asarray(x) for (n, _), x in zip(self.inputs, inputs, strict=True)}

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Refused: ONNX Runtime does not differentiate here."""
        raise UnsupportedError("an ONNX model in ONNX Runtime has no gradients")

    def intermediates(
        self, inputs: Sequence[Array], training: bool = False
    ) -> list[tuple[str, Array]]:
        """What every node computes, in order."""
        onnx = package()
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        nodes = [n for n in model.graph.node if n.output and n.output[0]]
        del model.graph.output[:]
        for node in nodes:
            model.graph.output.add().name = node.output[0]
        found = session(model, plain=True).run(None, self._feed(inputs))
        labels = [f"{n.op_type} {n.name or n.output[0]}" for n in nodes]
        return list(zip(labels, found, strict=True))
