"""ONNX: a Graph as a ModelProto (``emit``), and ModelProtos and files as Graphs (``read``)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.frameworks.words import Vocabulary
from trivium.graph import UnsupportedError

OPSET = 21  # Gelu is in 20, Shape with a range in 15, ReduceX with axes as inputs in 18
IR_VERSION = 10  # the first with metadata_props; any onnxruntime since 1.18 reads it

KIND = "trivium.kind"  # on an initializer: which of our kinds it is, since ONNX has only one
FROZEN = "trivium.trainable"  # on an initializer, "false": a parameter that is not trained
OUTPUTS = "trivium.outputs"  # on the model, "named": its outputs were a dict
UNBIASED = "trivium.unbiased"  # on a BatchNormalization: ONNX has no word for torch's n / (n - 1)


def package() -> Any:
    """The onnx package, or an ImportError that says how to get it."""
    try:
        import onnx
        import onnx.checker
        import onnx.external_data_helper
        import onnx.inliner
        import onnx.shape_inference
    except ImportError as error:
        raise ImportError("ONNX files need the onnx package: pip install onnx") from error
    return onnx


@functools.cache
def words() -> Vocabulary:
    """The lines of the declarations: an ONNX operator each."""
    return Vocabulary("onnx")


def to_onnx_dtype(dtype: DType) -> int:
    """The number ONNX gives an element type."""
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    number: int = package().TensorProto.DataType.Value(names.get(dtype, dtype.upper()))
    return number


def from_onnx_dtype(number: int, where: str = "") -> DType:
    """The element type that ONNX's number means."""
    name = package().TensorProto.DataType.Name(number).lower()
    try:
        return as_dtype({"float": "float32", "double": "float64"}.get(name, name))
    except TypeError:
        raise UnsupportedError(
            f"elements of type {name}", where, "cast them to a type that NumPy has before exporting"
        ) from None


def decimal(number: Any) -> float:
    """The shortest decimal that rounds to this float: 0.1, where float32 widened is 0.10000000149.

    Numbers of an ONNX model are float32. Within float32 both mean the same; this one is what people
    wrote, so a Graph that was written comes back as it was.
    """
    return float(str(number)) if isinstance(number, np.floating) else float(number)
