"""A torch module, read."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.torch.read import read
from trivium.nn.module import Module


def opened(model: Any, *examples: Any, **options: Any) -> tuple[Any, Module]:
    """The module itself and our reading of it."""
    return model, read(model, *examples, **options)
