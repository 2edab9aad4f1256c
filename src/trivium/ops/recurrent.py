"""Recurrent networks, as scans."""

from __future__ import annotations

from typing import Any

from trivium.graph import OPS
from trivium.op import Refused, S, case, composite
from trivium.ops.control import scan


@composite(
    cases=[
        case(S(2, 4, 3), S(5, 3), S(5, 5, low=-0.5, high=0.5), S(5)),
        case(S(2, 4, 3), S(5, 3), S(5, 5, low=-0.5, high=0.5), S(5), S(5)),
        case(S(2, 4, 3), S(5, 3), S(5, 5, low=-0.5, high=0.5), activation="relu"),
    ],
    torch=Refused("a loop in a module's source, where its weights are no layer's"),
)
def rnn(x: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any = None, bias_hh: Any = None, *,
        activation: str = "tanh") -> Any:  # fmt: skip
    """An Elman network: h_t = tanh(x_t W_ih^T + b_ih + h_(t-1) W_hh^T + b_hh), from h = 0.

    x (batch, time, in), weight_ih (hidden, in), weight_hh (hidden, hidden), biases (hidden,) or
    None -> (batch, time, hidden) and the last (batch, hidden). torch and MXNet keep two biases,
    Keras one.
    """
    batch, hidden = x.shape[0], weight_hh.shape[0]
    start = OPS["full"](shape=(batch, hidden), value=0, dtype=x.dtype)
    inputs = OPS["transpose"](OPS["linear"](x, weight_ih, bias_ih), axes=(1, 0, 2))

    def step(h: Any, given: Any) -> Any:
        h = OPS[activation](given + OPS["linear"](h, weight_hh, bias_hh))
        return h, h

    last, outputs = scan(step, start, inputs)
    return OPS["transpose"](outputs, axes=(1, 0, 2)), last
