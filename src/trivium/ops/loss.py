"""Losses: predictions first, targets second; the mean, unless ``reduction`` says otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.graph import OPS, Type
from trivium.op import S, case, composite
from trivium.shape import ShapeError


def _reduce(values: Any, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    return values if reduction == "none" else OPS[reduction](values)


def _alike(x: Any, y: Any) -> None:
    if x.shape != y.shape:
        raise ShapeError(
            f"wants equal shapes, got {x.shape} and {y.shape}: nothing is broadcast here; "
            f"reshape one of them"
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


def _classes(labels: Any, types: Sequence[Type], attrs: Mapping[str, Any]) -> None:
    """Every label is one of the classes, or the one that is ignored."""
    size, ignored = types[0].shape[-1], attrs["ignore_index"]
    if not labels.size or labels.view(f"u{labels.itemsize}").max() < size:
        return  # one pass: below 0 is far above as a number without a sign
    outside = (labels < 0) | (labels >= size)
    if ignored is not None:
        outside &= labels != ignored
    if outside.any():
        at = tuple(map(int, np.argwhere(outside)[0]))
        raise IndexError(
            f"cross_entropy: label {labels[at]} is out of range for {size} classes, 0 to "
            f"{size - 1} (at {list(at)} of the labels); ignore_index says which label is left out"
        )


@composite(
    cases=[
        case(S(4, 3), S(4, dtype="int64", low=0, high=3)),
        case(S(2, 5, 3), S(2, 5, dtype="int64", low=0, high=3), reduction="sum"),
        *(
            case(S(6, 3), S(6, dtype="int64", low=0, high=3), reduction=r, ignore_index=1)
            for r in ("mean", "sum", "none")
        ),
        case(S(2, 5, 3), S(2, 5, dtype="int64", low=0, high=3), ignore_index=-100),
    ],
    checks={"labels": _classes},
)
def cross_entropy(
    logits: Any, labels: Any, *, reduction: str = "mean", ignore_index: int | None = None
) -> Any:
    """-log(softmax(logits))[label] over the last axis, averaged; labels are integers.

    logits (..., classes), labels (...). torch keeps classes on axis 1; here they are last. Where
    a label is ``ignore_index`` there is no loss, and the mean is over the others. torch's own loss
    ignores -100 unasked; here every label is a class unless ``ignore_index`` says otherwise.
    """
    if not labels.dtype.is_integer:
        raise TypeError(
            f"wants labels that are class numbers, of an integer dtype, got {labels.dtype}; "
            f'y.astype("int64") if they are whole numbers, np.argmax(y, -1) if they are one-hot'
        )
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {logits.shape} want labels {logits.shape[:-1]}, got {labels.shape}"
        )
    nothing = OPS["full"](shape=(), value=0, dtype=logits.dtype)
    counts = None
    limits = np.iinfo(labels.dtype.numpy)
    if ignore_index is not None and limits.min <= ignore_index <= limits.max:
        counts = labels != ignore_index
        labels = OPS["where"](counts, labels, OPS["zeros_like"](labels))
    chosen = OPS["one_hot"](labels, classes=logits.shape[-1], dtype=logits.dtype)
    # where and not a product: a class ruled out by a logit of -inf would make 0 * -inf of it.
    picked = OPS["where"](chosen > nothing, OPS["log_softmax"](logits, axis=-1), nothing)
    losses = -picked.sum(axis=-1)
    if counts is None:
        return _reduce(losses, reduction)
    losses = OPS["where"](counts, losses, nothing)
    if reduction != "mean":
        return _reduce(losses, reduction)
    return losses.sum() / OPS["cast"](counts, dtype=logits.dtype).sum()


def _probabilities(y: Any, types: Sequence[Type], attrs: Mapping[str, Any]) -> None:
    """Every target is in [0, 1]."""
    if y.size and not (y.min() >= 0 and y.max() <= 1):
        at = tuple(map(int, np.argwhere(~((y >= 0) & (y <= 1)))[0]))
        raise ValueError(
            f"binary_cross_entropy_with_logits: target {y[at]} is not in [0, 1] (at {list(at)}); "
            f"the two classes are 0 and 1, or the probability of the second"
        )


@composite(
    cases=[case(S(4, 3), S(4, 3, low=0, high=1))],
    checks={"y": _probabilities},
    torch="F.binary_cross_entropy_with_logits({x}, {y}, reduction={reduction})",
)
def binary_cross_entropy_with_logits(x: Any, y: Any, *, reduction: str = "mean") -> Any:
    """-(y * log(sigmoid(x)) + (1 - y) * log(sigmoid(-x))), averaged; never overflows."""
    _alike(x, y)
    return _reduce(OPS["softplus"](x) - x * y, reduction)
