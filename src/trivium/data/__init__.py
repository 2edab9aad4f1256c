"""Batches, and the data that installed packages ship."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def batches(
    *arrays: Any,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> Iterator[tuple[Any, ...]]:
    """Tuples of slices of arrays of one length; ``shuffle`` orders them anew by ``seed``.

    >>> [x.tolist() for (x,) in batches(np.arange(5), batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """
    count = len(arrays[0])
    if any(len(a) != count for a in arrays):
        raise ValueError(
            f"arrays of lengths {[len(a) for a in arrays]} do not make batches together"
        )
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
