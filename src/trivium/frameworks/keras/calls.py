"""Ops as calls of keras.ops, where that takes more than one line of a declaration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.frameworks.ways import square
from trivium.frameworks.writing.code import Code, Target, array_source, number
from trivium.graph import Node, UnsupportedError, Value
from trivium.shape import Dim


def autocast(value: Value | None) -> bool:
    """Would a Keras layer cast this array, unasked, to float32?"""
    return value is not None and value.dtype.is_floating and value.dtype != "float32"


def _call(target: Target, name: str, *arrays: Value | None, **arguments: Any) -> Code:
    code: Code = [name, "("]
    for i, v in enumerate(arrays):
        code += [", "] * bool(i) + target.array(v)
    for key, value in arguments.items():
        code += [f", {key}=", *target.attribute(value)]
    return [*code, ")"]


def _conv(target: Target, node: Node) -> Code:
    x, w, b = (*node.inputs, None)[:3]
    a = node.attrs
    n = len(a["stride"])
    padding = "valid" if all(p == (0, 0) for p in a["padding"]) else "same"
    words = (("strides", square(a["stride"]), 1), ("padding", padding, "valid"),
             ("dilation_rate", square(a["dilation"]), 1))  # fmt: skip
    kernel: Code = ["ops.transpose(", *target.array(w), f", {(*range(2, n + 2), 1, 0)})"]
    code: Code = ["ops.conv(", *target.array(x), ", ", *kernel]
    code += [f", {key}={target.literal(v)}" for key, v, default in words if v != default]
    return [*code, ")"] + ([" + ", *target.array(b)] if b is not None else [])


def _add(target: Target, node: Node) -> Code:
    """Keras takes a second operand with one axis for a bias: (3, 1) is added along the last axis.

    With the operands in the other order it is added where it belongs.
    """
    x, y = node.inputs
    assert x is not None and y is not None
    long = [i for i, s in enumerate(y.shape) if s != 1]
    if len(long) != 1 or long[0] == len(y.shape) - 1 or number(target, x):
        return target.by_line(node)
    swapped = Node(node.op, [y, x], node.attrs)
    swapped.outputs, swapped.scope = node.outputs, node.scope
    return target.by_line(swapped)


_WIDENED = ("bool", "int8", "int16", "uint8", "uint16")


def _as_narrow(target: Target, node: Node) -> Code:
    """By its own line; but of these dtypes Keras makes wider ones, where ours stay."""
    code, dtype = target.by_line(node), node.out.dtype
    return ["ops.cast(", *code, f', "{dtype}")'] if dtype in _WIDENED else code


def _pool(target: Target, node: Node) -> Code:
    """A pool that is no layer: of float64, which a layer would cast."""
    a, volume = node.attrs, len(node.attrs["kernel"]) == 3
    if node.op == "max_pool" and volume:
        what = f"keras.ops.max_pool of {node.out.dtype} volumes, whose ties have another gradient"
        raise UnsupportedError(what, node.scope, "make the model float32")
    name = {"max_pool": "ops.max_pool", "avg_pool": "ops.average_pool"}[node.op]
    return _call(target, name, node.inputs[0], pool_size=a["kernel"], strides=a["stride"])


def _argmax(target: Target, node: Node) -> Code:
    """Of equal ones the first: Keras puts -0.0 below 0.0."""
    (x,) = node.inputs
    assert x is not None
    code = target.array(x)
    if x.dtype.is_floating:
        code = ["ops.where(ops.equal(", *code, ", 0), ops.zeros_like(", *code, "), ", *code, ")"]
    axis = target.attribute(node.attrs["axis"])
    return ["ops.cast(ops.argmax(", *code, ", axis=", *axis, '), "int64")']


def _pad(target: Target, node: Node) -> Code:
    a = node.attrs
    widths = tuple(zip(a["low"], a["high"], strict=True))
    code: Code = ["ops.pad(", *target.array(node.inputs[0]), ", ", target.literal(widths)]
    return [*code, f", constant_values={target.literal(a['value'])})" if a["value"] else ")"]


def _slice(target: Target, node: Node) -> Code:
    x, a = node.inputs[0], node.attrs
    assert x is not None
    size = x.shape[a["axis"]]

    def end(at: Any) -> Code:
        behind = at - size if isinstance(at, Dim) else at  # an open end counts from behind
        return target.attribute(behind if isinstance(behind, int) and behind < 0 else at)

    code: Code = [*target.array(x), "[", ":, " * a["axis"]]
    code += [] if a["start"] == 0 else end(a["start"])
    code.append(":")
    code += [] if a["stop"] == size else end(a["stop"])
    code.append(f":{a['step']}" if a["step"] != 1 else "")
    # A symbolic tensor takes no slice by itself, only a tuple of them.
    return [*code, "]" if a["axis"] else ",]" if len(x.shape) == 1 else ", :]"]


def _select(target: Target, node: Node) -> Code:
    return [*target.array(node.inputs[0]), f"[{':, ' * node.attrs['axis']}{node.attrs['index']}]"]


def _reshape(target: Target, node: Node) -> Code:
    x, shape = node.inputs[0], node.attrs["shape"]
    assert x is not None
    known = tuple(-1 if isinstance(s, Dim) else s for s in shape)
    rows = bool(x.shape and shape) and x.shape[0] == shape[0]
    if rows and known[1:].count(-1) == 1 and not autocast(x):
        return [f"layers.Reshape({known[1:]})(", *target.array(x), ")"]
    shape = known if known.count(-1) == 1 else shape
    return ["ops.reshape(", *target.array(node.inputs[0]), ", ", *target.attribute(shape), ")"]


def _cross_entropy(target: Target, node: Node) -> Code:
    logits, labels = node.inputs
    name = "ops.sparse_categorical_crossentropy"
    code = _call(target, name, labels, logits, from_logits=True)
    reduction = node.attrs["reduction"]
    return code if reduction == "none" else [f"ops.{reduction}(", *code, ")"]


def _mse_loss(target: Target, node: Node) -> Code:
    x, y = node.inputs
    code: Code = ["ops.square(", *target.array(x), " - ", *target.array(y), ")"]
    reduction = node.attrs["reduction"]
    return code if reduction == "none" else [f"ops.{reduction}(", *code, ")"]


def _batch_norm(target: Target, node: Node) -> Code:
    x, scale, bias, mean, var = node.inputs
    a = node.attrs
    if a["training"] is not False:
        what = "Keras source of a batch_norm that may train and whose weights are no layer's"
        raise UnsupportedError(what, node.scope, "trace it with training=True or training=False")
    more = {"offset": bias, "scale": scale}
    code = _call(target, "ops.batch_normalization", x, mean, var, axis=a["axis"])[:-1]
    for key, v in more.items():
        code += [f", {key}=", *target.array(v)] if v is not None else []
    return [*code, f", epsilon={a['epsilon']})"]


def _constant(target: Target, node: Node) -> Code:
    array = node.attrs["value"]
    return [f'ops.convert_to_tensor({array_source(array)}, dtype="{array.dtype}")']


@dataclass(frozen=True)
class Like:
    """Some variable whose first size is this one."""

    dim: Dim


def _broadcast_to(target: Target, node: Node) -> Code:
    x, shape = node.inputs[0], node.attrs["shape"]
    assert x is not None
    one = _one(x, shape)
    if one is not None and len(x.shape) == len(shape) and x.shape[0] == shape[0]:
        kind = "" if x.dtype == "float32" else f', dtype="{x.dtype}"'
        ones = f"ops.ones({one}{kind})"  # the batch is there already
        if x.dtype == "bool":
            return ["ops.logical_and(", *target.array(x), f", {ones})"]
        return [*target.array(x), f" * {ones}"]
    if one is None:
        return target.by_line(node)
    row: Code = target.array(x)
    if x.shape != one:
        row = ["ops.broadcast_to(", *row, f", {one})"]
    return ["LikeBatch()([", *row, ", ", Like(shape[0]), "])"]


def _full(target: Target, node: Node) -> Code:
    a = node.attrs
    one = _one(node.out, a["shape"])
    if one is None:
        return target.by_line(node)
    end: Code = [", ", *target.attribute(a["value"]), f', dtype="{a["dtype"]}")']
    return [f"LikeBatch()([ops.full({one}", *end, ", ", Like(a["shape"][0]), "])"]


def _one(value: Value, shape: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape for one element of an open batch, where only the batch is open."""
    opened = [isinstance(s, Dim) for s in shape]
    if not opened or not opened[0] or any(opened[1:]) or autocast(value):
        return None
    return (1, *shape[1:])


FUNCTIONS: dict[str, Callable[..., Code]] = {
    "add": _add, "argmax": _argmax, "conv": _conv, "max_pool": _pool, "avg_pool": _pool,
    "pad": _pad, "slice_axis": _slice, "select": _select, "reshape": _reshape,
    "broadcast_to": _broadcast_to, "full": _full, "constant": _constant,
    "batch_norm": _batch_norm, "cross_entropy": _cross_entropy,
    "mse_loss": _mse_loss, "sum": _as_narrow, "square": _as_narrow,
}  # fmt: skip
