"""A JAX function with its parameters, or an nnx module, and our reading of it."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.jax.flax import Taken, read_flax
from trivium.frameworks.jax.read import read
from trivium.nn.module import Module


def opened(model: Any, *examples: Any, training: bool | None = None) -> tuple[Any, Module]:
    """``(function, params)``, or a module taken apart, and our reading of it."""
    if not isinstance(model, tuple):
        taken = Taken(model, training)
        return taken, read_flax(taken, *examples)
    if training is not None:
        raise ValueError("a function has one mode: training= is for nnx modules")
    function, params = model
    return (function, params), read(function, params, *examples)
