"""Batches, and the data that installed packages ship."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trivium.shape import ShapeError


def batches(
    *arrays: Any,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> Iterator[tuple[Any, ...]]:
    """Tuples of slices of arrays of one length; ``shuffle`` orders them anew by ``seed``.

    ValueError where there is nothing to slice, or the lengths or the ``batch_size`` cannot be.

    >>> [x.tolist() for (x,) in batches(np.arange(5), batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """
    count = row_count({f"array {i}": a for i, a in enumerate(arrays)}, batch_size)
    return _slices(arrays, count, batch_size, shuffle, seed, drop_last)


def whole(name: str, number: Any) -> None:
    """ValueError unless a number of batches, rows, epochs is a whole one from 1."""
    if isinstance(number, bool) or not hasattr(number, "__index__") or number < 1:
        raise ValueError(f"{name} is a whole number from 1, not {number!r}")


def row_count(arrays: Mapping[str, Any], batch_size: int) -> int:
    """How many rows these arrays all have, by their names; ValueError where they make no batches.

    >>> row_count({"x": np.zeros((3, 2)), "y": np.zeros(4)}, 32)
    Traceback (most recent call last):
    trivium.shape.ShapeError: x has 3 rows, y has 4 rows: they do not make batches together
    """
    whole("batch_size", batch_size)
    counts = {name: int(np.shape(a)[0]) if np.ndim(a) else None for name, a in arrays.items()}
    first = next(iter(counts.values()))
    if None in counts.values():
        scalar = next(name for name, n in counts.items() if n is None)
        raise ValueError(f"{scalar} is one number and has no rows")
    if any(n != first for n in counts.values()):
        found = ", ".join(f"{name} has {n} rows" for name, n in counts.items())
        raise ShapeError(f"{found}: they do not make batches together")
    if not first:
        raise ValueError(f"{', '.join(counts)}: no rows, so there is nothing to do")
    return first


def _slices(
    arrays: tuple[Any, ...], count: int, batch_size: int, shuffle: bool, seed: int, drop_last: bool
) -> Iterator[tuple[Any, ...]]:
    order = np.random.default_rng(seed).permutation(count) if shuffle else np.arange(count)
    for start in range(0, count, batch_size):
        chosen = order[start : start + batch_size]
        if drop_last and len(chosen) < batch_size:
            return
        yield tuple(np.asarray(a)[chosen] for a in arrays)


def digits(test: float = 0.2, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """The 1,797 handwritten digits of UCI that scikit-learn ships: x, y, x_test, y_test.

    Images are float32 (n, 1, 8, 8) in [0, 1], labels int64; ``test`` is the part held out.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(x))
    held = order[: int(len(x) * test)]
    kept = order[int(len(x) * test) :]
    return x[kept], y[kept], x[held], y[held]
