"""A JAX function with its parameters, and our reading of it."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.jax.read import read
from trivium.nn.module import Module


def opened(model: Any, *examples: Any) -> tuple[Any, Module]:
    """``(function, params)`` itself and our reading of it."""
    function, params = model
    return (function, params), read(function, params, *examples)
