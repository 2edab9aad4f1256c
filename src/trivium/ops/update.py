"""What an optimizer does to one parameter, as ops: each engine runs the same arithmetic."""

from __future__ import annotations

import math
from typing import Any

from trivium.graph import OPS
from trivium.op import S, case, composite


@composite(
    cases=[
        case(S(3), S(3), None, S(low=0.1)),
        case(S(3), S(3), S(3), S(low=0.1), momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
)
def sgd_update(p: Any, g: Any, velocity: Any, lr: Any, *, momentum: float = 0.0,
               nesterov: bool = False, weight_decay: float = 0.0) -> Any:  # fmt: skip
    """torch.optim.SGD: v = momentum * v + g; p - lr * v. -> p, or (p, velocity) with momentum.

    Keras and MXNet scale by lr before the velocity: they part from this when lr changes.
    """
    if weight_decay:
        g = g + p * weight_decay
    if velocity is None:
        return p - lr * g
    velocity = velocity * momentum + g
    step = g + velocity * momentum if nesterov else velocity
    return p - lr * step, velocity


_COUNT = S(low=3, high=4)


@composite(
    cases=[
        case(S(3), S(3), S(3), S(3, low=0.1), _COUNT, S(low=0.1)),
        case(S(3), S(3), S(3), S(3, low=0.1), _COUNT, S(low=0.1), weight_decay=0.1, decoupled=True),
    ],
)
def adam_update(p: Any, g: Any, m: Any, v: Any, count: Any, lr: Any, *, beta1: float = 0.9,
                beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0,
                decoupled: bool = False) -> Any:  # fmt: skip
    """torch.optim.Adam (AdamW when ``decoupled``): -> (p, m, v); ``count`` is the step, from 1.

    Epsilon is added after the bias correction, as torch and Optax do (Kingma & Ba, 2015, section
    2); Keras, TF1 and MXNet add it before.
    """
    if weight_decay:
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + p * weight_decay
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    # 1 - beta ** count, exact in float32 too: 1 - 0.999 would lose four digits.
    correction1 = -OPS["expm1"](count * math.log(beta1))
    correction2 = -OPS["expm1"](count * math.log(beta2))
    step = (m / correction1) / (OPS["sqrt"](v / correction2) + epsilon)
    return p - lr * step, m, v
