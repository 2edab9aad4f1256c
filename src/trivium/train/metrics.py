"""Metrics: one number from all predictions and targets, both NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.graph import OPS
from trivium.shape import ShapeError


def _compared(metric: str, prediction: Any, target: Any, wanted: Any) -> Any:
    """The target as an array, of the shape that a metric wants it in."""
    target = np.asarray(target)
    if target.shape != wanted:
        raise ShapeError(
            f"{metric} of predictions {np.shape(prediction)} wants targets {wanted}, got "
            f"{target.shape}: nothing is broadcast here; reshape one of them"
        )
    return target


def accuracy(prediction: Any, target: Any) -> float:
    """The part of rows whose largest score is at the target: scores (..., classes), targets (...).

    With the loss "binary_cross_entropy" the word means :func:`binary_accuracy`.
    """
    if np.ndim(prediction) and np.shape(prediction)[-1] == 1:
        raise ShapeError(
            f"accuracy of predictions {np.shape(prediction)}: one score has no largest; "
            f"'binary_accuracy' asks whether it is above 0"
        )
    target = _compared("accuracy", prediction, target, np.shape(prediction)[:-1])
    return float(np.mean(np.argmax(prediction, axis=-1) == target))


def binary_accuracy(prediction: Any, target: Any) -> float:
    """The part of scores (before a sigmoid) above 0 where the target is 1, and not where it is 0.

    Targets have the shape of the scores; a probability counts as what is likelier.
    """
    target = _compared("binary_accuracy", prediction, target, np.shape(prediction))
    return float(np.mean((np.asarray(prediction) > 0) == (target > 0.5)))


def mean_absolute_error(prediction: Any, target: Any) -> float:
    """The mean of the absolute differences, of predictions and targets of one shape."""
    target = _compared("mae", prediction, target, np.shape(prediction))
    return float(np.mean(np.abs(np.asarray(prediction) - target)))


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy, "binary_accuracy": binary_accuracy, "mae": mean_absolute_error,
}  # fmt: skip


def metric_function(spec: str | Callable[..., float], loss: Any) -> Callable[..., float]:
    """The metric that a name means beside this loss; or the one given."""
    if callable(spec):
        return spec
    if spec not in METRICS:
        raise ValueError(f"no metric {spec!r}; there are {', '.join(METRICS)}")
    binary = loss is OPS["binary_cross_entropy_with_logits"]
    return binary_accuracy if spec == "accuracy" and binary else METRICS[spec]
