"""An ONNX model, or the one in a file, and our reading of it."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.onnx.load import load
from trivium.frameworks.onnx.read import read
from trivium.nn.module import Module


def opened(model: Any, *examples: Any, **options: Any) -> tuple[Any, Module]:
    """The checked ModelProto and our reading of it."""
    proto = load(model)
    return proto, read(proto, **options)
