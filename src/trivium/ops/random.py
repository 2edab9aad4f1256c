"""Randomness as part of the Graph: counter-based, so the same key gives the same numbers anywhere.

A key is two uint64: what was seeded, and how often it was advanced. Every random op has a ``salt``
of its own, so that one key serves a whole model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.framework import everywhere
from trivium.graph import MODE, OPS, Type
from trivium.op import (
    Refused,
    S,
    case,
    composite,
    each_place,
    elementwise,
    primitive,
    zero_gradient,
)
from trivium.shape import ShapeError, as_shape

_KEY = S(2, dtype="uint64", low=0, high=1000)


def _uniform_rule(key: Type, *, shape: Any, salt: int, dtype: dt.DType) -> Type:
    if key != Type(dt.uint64, (2,)) or not 0 <= salt < 1 << 64:
        raise ShapeError(f"wants two uint64 as key and one as salt, got {key} and salt={salt}")
    return Type(dtype, shape)


@primitive(
    rule=_uniform_rule,
    normal=lambda key, *, shape, salt, dtype: {"shape": as_shape(shape)},
    vjp=zero_gradient, random="key",
    cases=[case(_KEY, shape=(2, 3)), case(_KEY, shape=(4,), salt=7)],
    **everywhere(Refused("the framework's own generator has other bits", remedy="use a Dropout")),
)  # fmt: skip
def random_uniform(key: Any, *, shape: Any, salt: int = 0, dtype: dt.DType = dt.float32) -> Any:
    """Uniform numbers in [0, 1): the top 24 bits of Philox 4x64-10 (Salmon et al., 2011)."""
    words = np.random.Philox(key=key, counter=[0, 0, 0, salt]).random_raw(int(np.prod(shape)))
    return ((words >> np.uint64(40)) * 2.0**-24).astype(dtype.numpy).reshape(shape)


@each_place
def _rule(x: Type, key: Type | None, *, rate: float, **_: Any) -> Type:
    if not 0 <= rate < 1:
        raise ValueError(f"rate is in [0, 1), got {rate}")
    return elementwise(x)


@composite(
    rule=_rule, random="key", drops="rate",
    idle=lambda x, key, *, rate, training, **_: training is False or rate == 0,
    cases=[case(S(20, 5), _KEY, training=True, rate=0.3), case(S(4, 5), _KEY, training=False)],
)  # fmt: skip
def dropout(x: Any, key: Any, *, rate: float = 0.5, training: Any = MODE, salt: int = 0) -> Any:
    """While training each element is 0 with probability ``rate``, the others grow by 1/(1 - rate).

    A framework's own generator has the same distribution, not the same bits.
    """
    if not training or rate == 0:
        return x
    keep = random_uniform(key, shape=x.shape, salt=salt, dtype=x.dtype) >= rate
    nothing = OPS["full"](shape=(), value=0, dtype=x.dtype)
    return OPS["where"](keep, x * (1 / (1 - rate)), nothing)
