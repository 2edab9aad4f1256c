"""ONNX files and tensors, which may come from anyone: what is checked before they are believed."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from trivium.frameworks.onnx import from_onnx_dtype, package
from trivium.graph import GraphError, UnsupportedError


def load(source: Any) -> Any:
    """A checked ModelProto, from one or from a file, its own functions written out in full."""
    onnx = package()
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        contained(model, None)
    else:
        model = _file(Path(source))
    try:
        onnx.checker.check_model(model)
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        # Also operators that this version of onnx does not know.
        raise GraphError(f"this is no valid ONNX model: {error}") from None


def _file(path: Path) -> Any:
    onnx = package()
    # protobuf comes with onnx, and without types.
    decode_error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except decode_error as error:
        raise GraphError(f"{path} is no ONNX file, or a damaged one: {error}") from None
    if not model.HasField("graph"):
        raise GraphError(f"{path} is no ONNX file: there is no graph in it")
    contained(model, path.parent)
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise GraphError(f"the external data of {path} cannot be read: {error}") from None
    return model


def contained(model: Any, folder: Path | None) -> None:
    """Refuse external data that is in no file inside ``folder``, or longer than that file."""
    helper = package().external_data_helper
    for tensor in helper._get_all_tensors(model):
        if not helper.uses_external_data(tensor):
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        where = f"tensor {tensor.name!r}"
        if folder is None:
            raise UnsupportedError(
                "external data of a model that is not a file", where, "pass the path of the file"
            )
        location = said.get("location", "")
        file = (folder / location).resolve()
        if not location or not file.is_relative_to(folder.resolve()) or not file.is_file():
            raise UnsupportedError(
                f"external data at {location!r}", where, "it must lie beside the model"
            )
        try:
            end = int(said.get("offset", 0)) + int(said.get("length", 0))
        except ValueError:
            raise GraphError(f"{where}: its external offset and length are no numbers") from None
        if end > file.stat().st_size:
            raise GraphError(f"{where}: ends at byte {end}, {location!r} is shorter")


def array(tensor: Any) -> np.ndarray[Any, Any]:
    """The numbers of a TensorProto, as many as its shape says."""
    where = f"tensor {tensor.name!r}"
    dtype = from_onnx_dtype(tensor.data_type, where)
    shape = tuple(tensor.dims)
    if any(s < 0 for s in shape):
        raise GraphError(f"{where}: its shape is {shape}")
    count = math.prod(shape)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != count * dtype.itemsize:
        raise GraphError(
            f"{where}: {dtype}{list(shape)} is {count * dtype.itemsize} bytes, "
            f"it has {len(tensor.raw_data)}"
        )
    if tensor.HasField("raw_data"):  # always little-endian
        little = np.frombuffer(tensor.raw_data, dtype.numpy.newbyteorder("<"))
        return little.astype(dtype.numpy).reshape(shape)
    try:
        found: np.ndarray[Any, Any] = package().numpy_helper.to_array(tensor)
        return found.astype(dtype.numpy, copy=False).reshape(shape)
    except ValueError as error:
        raise GraphError(f"{where}: {error}") from None
