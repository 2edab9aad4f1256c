"""``.keras`` files: a configuration (JSON) and weights (HDF5) in one archive. None of it is run."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from trivium.frameworks.keras.exact import registered
from trivium.graph import UnsupportedError

MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}
_SLACK = 1 << 20


def open_file(keras: Any, path: Any) -> Any:
    """The model in a ``.keras`` file: its structure is read and weighed first, then its weights."""
    file = Path(path)
    if file.suffix != ".keras" or not file.is_file():
        raise FileNotFoundError(f"{file} is no .keras file")
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {i.filename: i.file_size for i in archive.infolist()}
            if extra := [n for n in sizes if n not in MEMBERS and not n.startswith("assets/")]:
                raise UnsupportedError(f"the file holds {extra[0]!r}", file.name)
            if sizes.get("config.json", 0) > file.stat().st_size * 100:
                raise UnsupportedError("config.json is far larger than the file", file.name)
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        if isinstance(error, UnsupportedError):
            raise
        raise UnsupportedError(f"this is no .keras file ({error})", file.name) from error
    registered(keras)
    try:
        _weigh(keras, config, sizes.get("model.weights.h5", 0), file.name)
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except UnsupportedError:
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UnsupportedError(
            f"Keras cannot load it without running foreign code ({line})", file.name,
            "register its custom layers with keras.saving.register_keras_serializable first; "
            "Lambda layers cannot be loaded safely",
        ) from error  # fmt: skip


def _weigh(keras: Any, config: dict[str, Any], stored: int, name: str) -> None:
    """Refuse a model whose variables are larger than the weights that come with it.

    In a stateless scope variables are declared but not made.
    """
    from keras.src.backend.common import global_state

    structure = {k: v for k, v in config.items() if k != "compile_config"}
    key = "uninitialized_variables"
    before = list(global_state.get_global_attribute(key) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(structure, safe_mode=True)
            wanted = sum(
                math.prod(v.shape) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize
                for v in model.weights
            )
    finally:
        global_state.set_global_attribute(key, before)
    if wanted > stored + _SLACK:
        raise UnsupportedError(
            f"the model wants {wanted} bytes of weights, the file holds {stored}", name
        )
