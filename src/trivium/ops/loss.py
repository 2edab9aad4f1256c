"""Losses: predictions first, targets second; the mean, unless ``reduction`` says otherwise."""

from __future__ import annotations

from typing import Any

from trivium.graph import OPS
from trivium.op import S, case, composite


def _reduce(values: Any, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    return values if reduction == "none" else OPS[reduction](values)


def _alike(x: Any, y: Any) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"wants equal shapes, got {x.shape} and {y.shape}: nothing is broadcast here"
        )


@composite(
    cases=[case(S(4, 3), S(4, 3)), case(S(4, 3), S(4, 3), reduction="sum")],
    torch="F.mse_loss({x}, {y}, reduction={reduction})",
)
def mse_loss(x: Any, y: Any, *, reduction: str = "mean") -> Any:
    """(x - y) ** 2, averaged. MXNet's L2Loss has a factor 1/2; this has none."""
    _alike(x, y)
    d = x - y
    return _reduce(d * d, reduction)


@composite(
    cases=[
        case(S(4, 3), S(4, dtype="int64", low=0, high=3)),
        case(S(2, 5, 3), S(2, 5, dtype="int64", low=0, high=3), reduction="sum"),
    ],
)
def cross_entropy(logits: Any, labels: Any, *, reduction: str = "mean") -> Any:
    """-log(softmax(logits))[label] over the last axis, averaged; labels are integers.

    logits (..., classes), labels (...). torch keeps classes on axis 1; here they are last.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {logits.shape} want labels {logits.shape[:-1]}, got {labels.shape}"
        )
    chosen = OPS["one_hot"](labels, classes=logits.shape[-1], dtype=logits.dtype)
    # where and not a product: a class ruled out by a logit of -inf would make 0 * -inf of it.
    nothing = OPS["full"](shape=(), value=0, dtype=logits.dtype)
    picked = OPS["where"](chosen > nothing, OPS["log_softmax"](logits, axis=-1), nothing)
    return _reduce(-picked.sum(axis=-1), reduction)


@composite(
    cases=[case(S(4, 3), S(4, 3, low=0, high=1))],
    torch="F.binary_cross_entropy_with_logits({x}, {y}, reduction={reduction})",
)
def binary_cross_entropy_with_logits(x: Any, y: Any, *, reduction: str = "mean") -> Any:
    """-(y * log(sigmoid(x)) + (1 - y) * log(sigmoid(-x))), averaged; never overflows."""
    _alike(x, y)
    return _reduce(OPS["softplus"](x) - x * y, reduction)
