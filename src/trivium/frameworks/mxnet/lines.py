"""MXNet's operators that an op's line is the word for, read backwards.

A Symbol names its operators as ``F`` does, or by an older name; it keeps what was given, as text,
and says nothing of defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from trivium.frameworks.mxnet.symbol import SymbolNode, plain
from trivium.frameworks.words import Call, Vocabulary
from trivium.graph import OPS, Value
from trivium.op import Op

# Attributes without influence on the numbers, or said again by the shapes of the weights.
IDLE = {
    "workspace", "cudnn_tune", "cudnn_off", "ctx", "sparse_grad", "num_args", "num_filter",
    "num_hidden", "input_dim", "output_dim",
}  # fmt: skip

_ALSO = {
    word: name
    for name, words in {
        "broadcast_add": "elemwise_add broadcast_plus _plus _add _Plus _plus_scalar _PlusScalar",
        "broadcast_sub": "elemwise_sub broadcast_minus _minus _sub _Minus _minus_scalar "
                         "_MinusScalar _rminus_scalar _RMinusScalar",
        "broadcast_mul": "elemwise_mul _mul _Mul _mul_scalar _MulScalar",
        "broadcast_div": "elemwise_div _div _Div _div_scalar _DivScalar _rdiv_scalar _RDivScalar",
        "broadcast_power": "_power _Power _power_scalar _PowerScalar _rpower_scalar _RPowerScalar",
        "broadcast_maximum": "_maximum _Maximum _maximum_scalar _MaximumScalar",
        "broadcast_minimum": "_minimum _Minimum _minimum_scalar _MinimumScalar",
        "broadcast_equal": "_equal _equal_scalar",
        "broadcast_not_equal": "_not_equal _not_equal_scalar",
        "broadcast_lesser": "_lesser _lesser_scalar",
        "broadcast_lesser_equal": "_lesser_equal _lesser_equal_scalar",
        "broadcast_greater": "_greater _greater_scalar",
        "broadcast_greater_equal": "_greater_equal _greater_equal_scalar",
        "-x": "negative _np_negative", "BlockGrad": "stop_gradient", "concat": "Concat",
        "cast": "Cast", "sum": "sum_axis", "cumsum": "_np_cumsum",
    }.items()
    for word in words.split()
}  # fmt: skip
_ORDER = {"clip": ("a_min", "a_max")}
"""Attributes that a line gives without their names."""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LeakyReLU": {"act_type": "leaky", "slope": 0.25}, "hard_sigmoid": {"alpha": 0.2, "beta": 0.5},
    "softmax": {"axis": -1}, "log_softmax": {"axis": -1}, "concat": {"dim": 1},
    "stack": {"axis": 0}, "sum": {"axis": None, "keepdims": False, "exclude": False},
    "mean": {"axis": None, "keepdims": False, "exclude": False},
    "repeat": {"axis": None},
    "take": {"axis": 0, "mode": "clip"}, "transpose": {"axes": None}, "argmax": {"keepdims": False},
    "argmin": {"keepdims": False},
}  # fmt: skip
"""What MXNet 1.9 takes where an attribute is left out."""


@functools.cache
def words() -> Vocabulary:
    """All MXNet lines."""
    return Vocabulary("mxnet", _ALSO)


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return plain(text)
    except ValueError:
        return text


def call_of(node: SymbolNode, inputs: Sequence[Any]) -> Call:
    """The call that a node of a Symbol is."""
    attrs = {k: _plain(v) for k, v in node.attrs.items()
             if k not in IDLE | {"is_int"} and not k.startswith("__")}  # fmt: skip
    given: list[Any] = list(inputs)
    if "scalar" in attrs:
        number = attrs.pop("scalar")
        if number == -1 and _ALSO.get(node.op) == "broadcast_mul" and inputs[0].dtype.is_floating:
            return Call("-x", {"0": inputs[0]}, ("0",))  # what MXNet makes of -x
        given = [number, *given] if node.op[:2] in ("_r", "_R") else [*given, number]
    arrays = {str(i): x for i, x in enumerate(given)}
    name = _ALSO.get(node.op, node.op)
    return Call(node.op, arrays | attrs, (*arrays, *_ORDER.get(name, ())), _DEFAULTS.get(name, {}))


def truth(x: Value) -> Any:
    """Where a number is not 0; a bool that was made a number is that bool."""
    made = x.node
    before = made.inputs[0] if made is not None and made.op == "cast" else None
    if before is not None and before.dtype == "bool":
        return before
    return x if x.dtype == "bool" else OPS["not_equal"](x, 0)


def _suited(op: Op, values: list[Any], attrs: Mapping[str, Any]) -> Sequence[Any]:
    """MXNet has no bool: what is asked for truth is a number there."""
    logical = op.rule is OPS["logical_not"].rule
    if op.name == "where":
        return [truth(values[0]), *values[1:]] if values[0].shape == values[1].shape else values
    return [truth(v) for v in values] if logical else values


def by_its_line(call: Call, inputs: Sequence[Any], made: Mapping[int, Call]) -> Any:
    """What a line makes of a node; None where none does. A comparison is 0 or 1, as a number."""
    if any(x is None for x in inputs):
        return None
    y = words().translate(call, lambda value: made.get(id(value)), _suited)
    if not isinstance(y, Value) or y.dtype != "bool" or inputs[0].dtype == "bool":
        return y
    return y.astype(inputs[0].dtype)
