"""What each ONNX operator is in our ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.onnx import from_onnx_dtype, words
from trivium.frameworks.onnx.read import Call
from trivium.frameworks.onnx.sizes import MOST
from trivium.graph import OPS, Value
from trivium.ops.control import cond, scan
from trivium.shape import Dim, size_product

OPERATORS: dict[str, Callable[[Call], Any]] = {}
"""ONNX operator -> a function that gives the Value(s), or the known numbers, that it makes."""

OP = OPS  # short, for the formulas below


def reads(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """This function reads these operators."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return enter


def by_its_line(call: Call) -> Any:
    """A node that an op's line is the word for; None where there is none."""
    if call.op not in words().lines:
        return None
    _alike(call, call.values())
    return words().translate(call.bound(), lambda value: None)


def _alike(call: Call, values: list[Value]) -> list[Value]:
    # Our ops would cast one to the other; ONNX never does, so the file is wrong.
    kinds = {v.dtype for v in values}
    if len(kinds) > 1 and call.op not in ("Where", "Gather", "GatherElements"):
        raise call.refuse(f"{call.op} of {' and '.join(sorted(kinds))}", "insert a Cast")
    return values


# -- numbers -----------------------------------------------------------------------------------
@reads("Constant")
def _constant(call: Call) -> Any:
    kinds = {"value": None, "value_float": "f4", "value_floats": "f4", "value_int": "i8"}
    for key, dtype in (kinds | {"value_ints": "i8"}).items():
        if (found := call.attr(key)) is not None:
            return np.asarray(found, dtype)
    raise call.refuse("a constant that is no dense array of numbers")


@reads("ConstantOfShape")
def _constant_of_shape(call: Call) -> Any:
    value = call.attr("value")
    number = np.float32(0) if value is None else value.reshape(-1)[0]
    shape = tuple(call.ints(0, "a shape"))
    plain = number.item() if number.dtype.kind in "iub" else float(str(number))
    return OP["full"](shape=shape, value=plain, dtype=as_dtype(number.dtype))


@reads("Range")
def _range(call: Call) -> Any:
    ends = [call.known(i, "the end of a Range").reshape(-1)[0] for i in range(3)]
    dtype = as_dtype("int64" if any(isinstance(e, Dim) for e in ends) else ends[0].dtype)
    if dtype.is_floating:
        if not abs((ends[1] - ends[0]) / ends[2]) < MOST:
            raise call.refuse(f"a Range of floats from {ends[0]} to {ends[1]}", "use integers")
        return np.arange(*ends, dtype=dtype.numpy)
    start, stop, step = (e if isinstance(e, Dim) else int(e) for e in ends)
    if not isinstance(step, int) or step < 1:
        raise call.refuse("a Range that does not step forward")
    return OP["arange"](stop=stop, start=start, step=step, dtype=dtype)


@reads("Cast")
def _cast(call: Call) -> Any:
    return OP["cast"](call.value(0), dtype=from_onnx_dtype(call.attr("to"), call.where))


@reads("CastLike")
def _cast_like(call: Call) -> Any:
    dtype, fixed = call.value(1).dtype, call.constant(0)
    if fixed is not None and fixed.dtype != object:
        return fixed.astype(dtype.numpy)
    return OP["cast"](call.value(0), dtype=dtype)


@reads("Dropout")
def _dropout(call: Call) -> Any:
    if call.has(2) and call.known(2, "the training mode").any():
        raise call.refuse("a Dropout in training mode", "export the model in inference mode")
    x = call.value(0)
    return (x, OP["full"](shape=x.shape, value=True, dtype="bool")) if call.outputs > 1 else x


@reads("Div")
def _div(call: Call) -> Any:
    x, y = _alike(call, call.values())
    # Of integers it cuts off what follows the point.
    return x / y if x.dtype.is_floating else (x - OP["fmod"](x, y)) // y


@reads("Pow")
def _pow(call: Call) -> Any:
    x, y = call.values()
    if y.dtype != x.dtype:
        if not x.dtype.is_floating:
            raise call.refuse(f"{x.dtype} to the power of {y.dtype}", "cast both to float")
        y = y.astype(x.dtype)
    return OP["pow"](x, y)


@reads("Sum", "Max", "Min", "Mean")
def _several(call: Call) -> Any:
    name = {"Sum": "add", "Mean": "add", "Max": "maximum", "Min": "minimum"}[call.op]
    values = _alike(call, call.values())
    total = reduce(lambda a, b: OP[name](a, b), values)
    return total / len(values) if call.op == "Mean" else total


@reads("Not")
def _not(call: Call) -> Any:
    x = call.value(0)
    if x.node is not None and x.node.op == "equal":  # how not_equal is written
        return OP["not_equal"](*x.node.inputs)
    return OP["logical_not"](x)


# -- activations -------------------------------------------------------------------------------
@reads("Clip")
def _clip(call: Call) -> Any:
    x = call.value(0)
    if call.opset < 11:
        low, high = call.attr("min"), call.attr("max")
        low, high = (None if abs(v) > 3e38 else v for v in (low, high))  # float32's ends: no bound
    else:
        low, high = call.optional(1), call.optional(2)
    x = x if low is None else OP["maximum"](x, low)
    return x if high is None else OP["minimum"](x, high)


@reads("HardSigmoid")
def _hard_sigmoid(call: Call) -> Any:
    alpha, beta = call.attr("alpha"), call.attr("beta")
    if abs(alpha * 6 - 1) < 1e-6 and beta == 0.5:
        return OP["hardsigmoid"](call.value(0))
    return OP["clip"](call.value(0) * alpha + beta, min=0.0, max=1.0, edge="outside")


@reads("HardSwish")
def _hard_swish(call: Call) -> Any:
    return OP["hardswish"](call.value(0))


@reads("Elu", "Selu", "Celu")
def _elu(call: Call) -> Any:
    x, alpha = call.value(0), call.attr("alpha")
    if call.op == "Celu":
        return OP["celu"](x, alpha=alpha)
    y = OP["elu"](x, alpha=alpha)
    return y * call.attr("gamma") if call.op == "Selu" else y


@reads("PRelu")
def _prelu(call: Call) -> Any:
    x, slope = call.value(0), call.weight(1, "weight")
    if not x.dtype.is_floating:
        raise call.refuse("a PRelu of integers")
    return OP["where"](x > 0, x, x * slope)


@reads("ThresholdedRelu")
def _thresholded(call: Call) -> Any:
    x = call.value(0)
    return OP["where"](x > call.attr("alpha"), x, 0.0 * OP["ones_like"](x))


@reads("Swish")
def _swish(call: Call) -> Any:
    x, alpha = call.value(0), call.attr("alpha")
    return OP["silu"](x) if alpha == 1 else x * OP["sigmoid"](x * alpha)


@reads("Gelu")
def _gelu(call: Call) -> Any:
    return OP["gelu"](call.value(0), approximate=call.attr("approximate"))


@reads("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Any:
    op = OP["softmax" if call.op == "Softmax" else "log_softmax"]
    x, axis = call.value(0), call.attr("axis")
    if call.opset >= 13 or axis in (-1, x.ndim - 1):
        return op(x, axis=axis)
    # Before opset 13 everything from this axis on was one axis.
    flat = x.reshape(*x.shape[:axis], size_product(x.shape[axis:]))
    return op(flat, axis=-1).reshape(*x.shape)


# -- reductions --------------------------------------------------------------------------------
_REDUCTIONS: dict[str, tuple[Callable[[Any], Any], str, Callable[[Any], Any]]] = {
    # before, the reduction, after
    "ReduceSum": (lambda x: x, "sum", lambda y: y),
    "ReduceMean": (lambda x: x, "mean", lambda y: y),
    "ReduceMax": (lambda x: x, "max", lambda y: y),
    "ReduceMin": (lambda x: x, "min", lambda y: y),
    "ReduceLogSumExp": (lambda x: x, "logsumexp", lambda y: y),
    "ReduceLogSum": (lambda x: x, "sum", lambda y: OPS["log"](y)),
    "ReduceL1": (abs, "sum", lambda y: y),
    "ReduceL2": (lambda x: x * x, "sum", lambda y: OPS["sqrt"](y)),
    "ReduceSumSquare": (lambda x: x * x, "sum", lambda y: y),
}


@reads(*_REDUCTIONS)
def _reduce(call: Call) -> Any:
    x = call.value(0)
    axes = call.ints(1, "the axes of a reduction") if call.has(1) else call.attr("axes")
    before, name, after = _REDUCTIONS[call.op]
    if not axes:  # all of them, or none, which still squares and takes roots
        axes = [] if call.attr("noop_with_empty_axes") else None
    attrs = {"axis": None if axes is None else tuple(axes), "keepdims": bool(call.attr("keepdims"))}
    if 0 in x.shape and name not in ("sum", "mean"):
        raise call.refuse(f"{call.op} of nothing: {x.shape}")
    if x.dtype == "bool":
        return OP[name](x.astype("int32"), **attrs).astype("bool")
    return after(OP[name](before(x), **attrs))


@reads("ArgMax", "ArgMin")
def _place(call: Call) -> Any:
    x, axis, op = call.value(0), call.attr("axis"), OP[call.op.lower()]
    if call.attr("select_last_index"):
        y = x.shape[axis] - 1 - op(OP["flip"](x, axis=axis), axis=axis)
    else:
        y = op(x, axis=axis)
    return OP["expand_dims"](y, axis=axis % x.ndim) if call.attr("keepdims") else y


@reads("CumSum")
def _cumsum(call: Call) -> Any:
    if call.attr("exclusive"):
        raise call.refuse("an exclusive CumSum", "subtract what is summed")
    x, (axis,) = call.value(0), call.ints(1, "the axis of a CumSum")
    if call.attr("reverse"):
        return OP["flip"](OP["cumsum"](OP["flip"](x, axis=axis), axis=axis), axis=axis)
    return OP["cumsum"](x, axis=axis)


# -- control flow ------------------------------------------------------------------------------
@reads("If")
def _if(call: Call) -> Any:
    def then() -> Any:
        return _inside(call, call.attr("then_branch"), ())

    def otherwise() -> Any:
        return _inside(call, call.attr("else_branch"), ())

    if (known := call.constant(0)) is not None:  # what it says of shapes stays known
        return _inside(call, call.attr("then_branch" if known.all() else "else_branch"), (), True)
    return cond(call.value(0).reshape(), then, otherwise)


def _inside(call: Call, proto: Any, given: tuple[Any, ...], fixed: bool = False) -> tuple[Any, ...]:
    """The outputs of a subgraph; it reads outer names as they are."""
    reader = call.reader
    if proto.initializer:
        raise call.refuse("a subgraph with initializers of its own", "use Constant nodes there")
    outer, aliases = dict(reader.env), dict(reader.alias)
    reader.env |= zip((i.name for i in proto.input), given, strict=True)
    reader.nodes(proto)
    numbers = [reader.constant(o.name) if fixed else None for o in proto.output]
    results = tuple(
        reader.value(o.name) if n is None else n for o, n in zip(proto.output, numbers, strict=True)
    )
    # Parameters met inside belong to the whole Graph; other names end here.
    inputs = set(reader.graph.inputs)
    parameters = {k: v for k, v in reader.env.items() if isinstance(v, Value) and v in inputs}
    reader.env, reader.alias = {**outer, **parameters}, aliases
    return results


@reads("Scan")
def _scan(call: Call) -> Any:
    if call.opset < 9:
        raise call.refuse("a Scan of opset 8, which has a batch", "export with opset 9 or later")
    body, scanned = call.attr("body"), call.attr("num_scan_inputs")
    xs = call.values()
    carries = len(xs) - scanned
    ways = {
        *(call.attr("scan_input_directions") or ()),
        *(call.attr("scan_output_directions") or ()),
    }
    axes = {*(call.attr("scan_input_axes") or ()), *(call.attr("scan_output_axes") or ())}
    if len(ways) > 1 or axes - {0}:
        raise call.refuse("a Scan in several directions or along other axes than the first")
    if not carries:
        raise call.refuse("a Scan that carries nothing")

    def step(carry: tuple[Any, ...], x: tuple[Any, ...]) -> Any:
        out = _inside(call, body, (*carry, *x))
        return out[:carries], out[carries:]

    last, ys = scan(step, tuple(xs[:carries]), tuple(xs[carries:]), reverse=ways == {1})
    return (*last, *ys)


def is_all(value: Any, number: float) -> bool:
    """Whether a Value is a constant with this number everywhere."""
    if not isinstance(value, Value) or value.node is None:
        return False
    node = value.node
    match node.op:
        case "full":
            return not isinstance(node.attrs["value"], Dim) and node.attrs["value"] == number
        case "constant":
            return bool(np.all(node.attrs["value"] == number))
        case "broadcast_to" | "expand_dims" | "reshape" | "transpose" | "cast":
            return is_all(node.inputs[0], number)
    return False
