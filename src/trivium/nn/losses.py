"""Losses by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trivium.graph import OPS

LOSSES = {
    "mse": "mse_loss",
    "cross_entropy": "cross_entropy",
    "binary_cross_entropy": "binary_cross_entropy_with_logits",
}


def loss_function(spec: str | Callable[..., Any]) -> Callable[..., Any]:
    """The loss that a name means, ``loss(prediction, target)``; or the one given."""
    if callable(spec):
        return spec
    if spec not in LOSSES:
        raise ValueError(f"no loss {spec!r}; there are {', '.join(LOSSES)}")
    function: Callable[..., Any] = OPS[LOSSES[spec]]
    return function
