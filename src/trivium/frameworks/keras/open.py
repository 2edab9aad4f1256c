"""A Keras model, or the one in a ``.keras`` file, and our reading of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trivium.frameworks.keras.files import open_file
from trivium.frameworks.keras.read import load, read
from trivium.nn.module import Module


def opened(model: Any, *examples: Any, **options: Any) -> tuple[Any, Module]:
    """The model itself and our reading of it."""
    if isinstance(model, (str, Path)):
        model = open_file(load(), model)
    return model, read(model, *examples, **options)
