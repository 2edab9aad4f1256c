"""Attention: what is asked for, weighed by how near its key is to a query."""

from __future__ import annotations

import math
from typing import Any

from trivium.graph import OPS, Type
from trivium.op import S, case, composite
from trivium.ops.choice import equal, where
from trivium.ops.linalg import matmul
from trivium.ops.moved import known, triangle
from trivium.ops.reduce import max, softmax


def attention_weights(query: Any, key: Any, mask: Any, *, causal: bool, scale: float | None) -> Any:
    """How much of each value (S) a query (L) gets: softmax(query @ key.mT * scale), masked."""
    if scale is None:
        scale = (known(query, -1, "attention over vectors") or 1) ** -0.5
    scores = matmul(query, key.mT) * scale
    zero, least = (OPS["full"](shape=(), value=v, dtype=scores.dtype) for v in (0.0, -math.inf))
    if causal:
        seen = triangle(scores.shape[-2], scores.shape[-1], 0)
        return softmax(where(seen, scores, least), axis=-1)
    if mask is None:
        return softmax(scores, axis=-1)
    scores = where(mask, scores, least) if mask.dtype == "bool" else scores + mask
    # Who sees nothing gets nothing, where a softmax alone is no number.
    none = equal(max(scores, axis=-1, keepdims=True), least)
    return where(none, zero, softmax(where(none, zero, scores), axis=-1))


def _normal(query: Type, key: Type, value: Type, mask: Any = None, *, causal: bool,
            scale: Any) -> dict[str, Any]:  # fmt: skip
    if causal and mask is not None:
        raise TypeError("wants a mask or causal=True, not both")
    return {"causal": bool(causal), "scale": None if scale is None else float(scale)}


_ARRAYS = (S(2, 3, 4), S(2, 5, 4), S(2, 5, 6))


@composite(
    normal=_normal,
    cases=[case(*_ARRAYS), case(*_ARRAYS, scale=0.3), case(*_ARRAYS, causal=True),
           case(*_ARRAYS, S(3, 5)), case(*_ARRAYS, S(2, 3, 5, dtype="bool"))],
    torch="F.scaled_dot_product_attention({query}, {key}, {value}, attn_mask={mask|None}, "
          "is_causal={causal|False}, scale={scale|None})",
)  # fmt: skip
def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, mask: Any = None, *, causal: bool = False, scale: Any = None
) -> Any:
    """softmax(query @ key.mT * scale) @ value. Vaswani et al., 2017.

    query (..., L, E), key (..., S, E), value (..., S, V) -> (..., L, V). A bool ``mask``
    (..., L, S) is true where a query sees a key, a float one is added to the scores; ``causal``:
    each sees those up to its own place. ``scale`` is 1/sqrt(E) where it is left out. Who sees
    nothing gets 0, as in torch; Keras and JAX give the mean of all values.
    """
    return matmul(attention_weights(query, key, mask, causal=causal, scale=scale), value)
