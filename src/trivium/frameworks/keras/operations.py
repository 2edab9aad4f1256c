"""What keras.ops records in a model, as our ops: one entry for each class of operation.

A function gets the recorded operation (its attributes are the call's constants) and the call's
arguments, our Values in place of Keras's tensors. Python numbers stay numbers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trivium.dtype import as_dtype, bool_
from trivium.frameworks.keras.layers import layout_of, window_padding
from trivium.frameworks.ways import each, spatial
from trivium.frameworks.words import Call, Vocabulary
from trivium.graph import OPS, UnsupportedError, Value
from trivium.shape import Dim

Rule = Callable[..., Any]
OPERATIONS: dict[str, Rule] = {}
"""Our meaning of each class of ``keras.src.ops`` and ``keras.src.activations``."""


def operation(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function under the names of Keras's classes."""

    def enter(rule: Rule) -> Rule:
        OPERATIONS.update(dict.fromkeys(names, rule))
        return rule

    return enter


def refuse(op: Any, why: str) -> UnsupportedError:
    """An error that names the operation."""
    return UnsupportedError(f"keras.ops operation {type(op).__name__}: {why}")


_SIGNS = {
    "Add": "+", "Subtract": "-", "Multiply": "*", "Divide": "/", "TrueDivide": "/", "Power": "**",
    "Negative": "-x", "Less": "<", "LessEqual": "<=", "Greater": ">", "GreaterEqual": ">=",
    "Absolute": "Abs", "Amax": "Max", "Amin": "Min",
}  # fmt: skip
"""What Keras's classes call a sign, or has a second name for."""


@functools.cache
def words() -> Vocabulary:
    """All Keras lines, by the class that records a call: ops.leaky_relu is a LeakyRelu."""
    return Vocabulary("keras", _SIGNS, lambda name: "".join(map(str.capitalize, name.split("_"))))


def call_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """The call that was recorded: its arrays, then the constants that the class keeps."""
    arrays = inspect.signature(type(op).call)
    constants = dict(inspect.signature(type(op).__init__).parameters)
    kept = [n for n in constants if n not in ("self", "name") and hasattr(op, n)]
    given = dict(arrays.bind(op, *args, **kwargs).arguments) | {n: getattr(op, n) for n in kept}
    order = [n for n in (*arrays.parameters, *kept) if n != "self"]
    both = {**arrays.parameters, **constants}
    defaults = {n: both[n].default for n in order if both[n].default is not inspect.Parameter.empty}
    plain = {n: tuple(v) if type(v) is list else v for n, v in given.items() if n != "self"}
    return Call(type(op).__name__, plain, order, defaults)


def read(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A recorded operation in our ops."""
    if (rule := OPERATIONS.get(type(op).__name__)) is not None:
        return rule(op, *args, **kwargs)
    call = call_of(op, args, kwargs)
    if (result := words().translate(call, lambda value: None)) is None:
        odd = {k: v for k, v in call.given.items() if v != call.defaults.get(k)} if words().knows(
            call) else {}  # fmt: skip
        if words().why is not None:
            raise UnsupportedError(f"the keras.ops operation {call.name}: {words().why}")
        said = ", ".join(f"{k}={v}" for k, v in odd.items() if not isinstance(v, Value))
        raise UnsupportedError(
            f"the keras.ops operation {call.name}" + (f" with {said}" if said else "")
        )
    return result


# -- elementwise -----------------------------------------------------------------------------------
@operation("HardTanh")
def _hard_tanh(op: Any, x: Value) -> Any:
    return OPS["clip"](x, min=-1.0, max=1.0)  # its slope at 1 is 1, unlike torch's


@operation("ReLU")
def _relu(op: Any, x: Value) -> Any:
    if op.threshold:
        raise refuse(op, f"threshold={op.threshold}")
    slope, top = float(op.negative_slope), op.max_value
    if top is None:
        return OPS["leaky_relu"](x, slope=slope) if slope else OPS["relu"](x)
    y = OPS["relu6"](x) if top == 6 else OPS["minimum"](OPS["relu"](x), float(top))
    return y - OPS["relu"](-x) * slope if slope else y  # so the slope at 0 is 0, not ``slope``


@operation("Elu", "Celu")
def _elu(op: Any, x: Value) -> Any:
    if type(op).__name__ == "Elu":
        return OPS["elu"](x, alpha=op.alpha)
    # Two extrema, whose slopes at 0 add up: torch's celu has 1 there, this one 2.
    below = OPS["expm1"](OPS["minimum"](x, 0.0) / op.alpha) * op.alpha
    return OPS["maximum"](x, 0.0) + below


@operation("Selu")
def _selu(op: Any, x: Value) -> Any:
    # TensorFlow counts 0 to the upper side, where the slope is the scale: torch to the lower.
    below = OPS["expm1"](OPS["minimum"](x, 0.0)) * 1.6732632423543772
    return OPS["where"](x >= 0, x, below) * 1.0507009873554805  # Klambauer et al., 2017


# Two functions of keras.activations leave keras.ops before they record anything.
ACTIVATIONS = {"hard_silu": "hardswish", "mish": "mish"}


@operation("Normalize")
def _normalize(op: Any, x: Value) -> Any:
    """Keras bounds the norm from below; TF's l2_normalize bounds its square."""
    if op.order != 2:
        raise refuse(op, f"order={op.order}")
    import keras

    epsilon = keras.config.epsilon() if op.epsilon is None else op.epsilon
    norm = OPS["sqrt"](OPS["sum"](OPS["square"](x), axis=_axes(op.axis), keepdims=True))
    return x * OPS["minimum"](OPS["divide"](1.0, norm), 1.0 / epsilon)


@operation("Where")
def _where(op: Any, condition: Value, x: Any, y: Any) -> Any:
    if condition.dtype != bool_:
        condition = OPS["not_equal"](condition, 0)
    first = x if isinstance(x, Value) else y
    if not isinstance(first, Value):
        raise refuse(op, "of two numbers")
    x, y = (
        v if isinstance(v, Value) else OPS["full"](shape=(), value=v, dtype=first.dtype)
        for v in (x, y)
    )
    return OPS["where"](condition, x, y)


@operation("Cast")
def _cast(op: Any, x: Value) -> Any:
    return x if x.dtype == op.dtype else OPS["cast"](x, dtype=as_dtype(op.dtype))


@operation("ConvertToTensor", "Copy")
def _itself(op: Any, x: Value) -> Any:
    return x if getattr(op, "dtype", None) is None else _cast(op, x)


@operation("ZerosLike", "OnesLike")
def _like(op: Any, x: Value) -> Any:
    value = int(type(op).__name__ == "OnesLike")
    return OPS["full"](shape=x.shape, value=value, dtype=as_dtype(op.dtype or x.dtype))


# -- reductions ------------------------------------------------------------------------------------
def _axes(axis: Any) -> Any:
    return tuple(axis) if isinstance(axis, (list, tuple)) else axis


@operation("Std")
def _std(op: Any, x: Value) -> Any:
    return OPS["sqrt"](OPS["var"](x, axis=_axes(op.axis), keepdims=bool(op.keepdims)))


@operation("Argmax")
def _argmax(op: Any, x: Value) -> Any:
    if op.axis is None or op.keepdims:
        raise refuse(op, "axis=None or keepdims=True")
    return OPS["cast"](OPS["argmax"](x, axis=op.axis), dtype=as_dtype("int32"))


# -- shapes ----------------------------------------------------------------------------------------
def sizes(op: Any, x: Value, shape: Any) -> tuple[Any, ...]:
    """Keras's shape, in which None is a size that was open when the model was written down."""
    wanted = list(shape)
    if wanted.count(None) > 1 or not all(s is None or isinstance(s, int) for s in wanted):
        raise refuse(op, f"shape {tuple(shape)} with several open sizes")
    if None in wanted and -1 not in wanted:
        wanted[wanted.index(None)] = -1  # with one open size only one size fits
    elif None in wanted:
        open_sizes = [s for s in x.shape if isinstance(s, Dim)]
        if len(open_sizes) != 1:
            raise refuse(op, f"shape {tuple(shape)} of an array with several open sizes")
        wanted[wanted.index(None)] = open_sizes[0]
    return tuple(wanted)


@operation("Reshape")
def _reshape(op: Any, x: Value) -> Any:
    return OPS["reshape"](x, shape=sizes(op, x, op.newshape))


@operation("Ravel")
def _ravel(op: Any, x: Value) -> Any:
    return OPS["reshape"](x, shape=(-1,))


@operation("BroadcastTo")
def _broadcast_to(op: Any, x: Value) -> Any:
    if None in op.shape:
        raise refuse(op, f"shape {tuple(op.shape)} with open sizes")
    return OPS["broadcast_to"](x, shape=tuple(op.shape))


@operation("Split")
def _split(op: Any, x: Value) -> Any:
    at, size = op.indices_or_sections, x.shape[op.axis]
    sizes = at if isinstance(at, int) else tuple(b - a for a, b in pairwise([0, *at, size]))
    return OPS["split"](x, sizes=sizes, axis=op.axis)


@operation("Pad")
def _pad(op: Any, x: Value, constant_values: Any = None) -> Any:
    if op.mode != "constant" or not isinstance(constant_values or 0, (int, float)):
        raise refuse(op, f"mode={op.mode!r}")
    pads = [tuple(p) for p in op.pad_width]
    pads = pads * x.ndim if len(pads) == 1 else pads
    low, high = zip(*pads, strict=True)
    return OPS["pad"](x, low=low, high=high, value=float(constant_values or 0))


@operation("GetItem")
def _getitem(op: Any, x: Value, key: Any) -> Any:
    for k in key if isinstance(key, (list, tuple)) else [key]:
        if not (k is None or k is Ellipsis or isinstance(k, (int, slice))):
            raise refuse(op, f"index {k!r}")
        if isinstance(k, slice) and (k.step or 1) < 1:
            raise refuse(op, f"a step of {k.step}")
    return x[tuple(key) if isinstance(key, (list, tuple)) else key]


@operation("Take")
def _take(op: Any, x: Value, indices: Any) -> Any:
    if op.axis is None:
        raise refuse(op, "axis=None")
    if isinstance(indices, int):
        return OPS["select"](x, axis=op.axis, index=indices)
    return OPS["take"](x, indices, axis=op.axis)


@operation("SparseCategoricalCrossentropy")
def _cross_entropy(op: Any, target: Value, output: Value) -> Any:
    if not op.from_logits or op.axis not in (-1, output.ndim - 1):
        raise refuse(op, f"from_logits={op.from_logits}, axis={op.axis}")
    return OPS["cross_entropy"](output, target, reduction="none")


@operation("BatchNorm")
def _batch_norm(op: Any, x: Value, mean: Value, variance: Value, offset: Any = None,
                scale: Any = None) -> Any:  # fmt: skip
    """With statistics that are given: keras.ops.batch_normalization collects none."""
    return OPS["batch_norm"](x, scale, offset, mean, variance, training=False, axis=op.axis,
                             epsilon=op.epsilon, unbiased=False)[0]  # fmt: skip


@operation("OneHot")
def _one_hot(op: Any, x: Value) -> Any:
    if op.axis not in (-1, x.ndim) or op.sparse:
        raise refuse(op, f"axis={op.axis}, sparse={op.sparse}")
    return OPS["one_hot"](x, classes=op.num_classes, dtype=as_dtype(op.dtype or "float32"))


# -- windows ---------------------------------------------------------------------------------------
@operation("Conv", "DepthwiseConv")
def _conv(op: Any, x: Value, kernel: Value) -> Any:
    """A kernel that is a plain variable: its axes are put in our order in the Graph."""
    n = x.ndim - 2
    layout = layout_of(op.data_format, x.ndim)
    channels: Any = x.shape[layout.index("C")]
    size = kernel.shape[:n]
    stride, dilation = each(op.strides, n), each(op.dilation_rate, n)
    padding = window_padding(op.padding, spatial(x.shape, layout), size, stride, dilation)
    if type(op).__name__ == "Conv":
        groups = channels // kernel.shape[n]
        w = OPS["transpose"](kernel, axes=(n + 1, n, *range(n)))
    else:  # (*k, C, M): channel c * M + m
        groups = channels
        w = OPS["transpose"](kernel, axes=(n, n + 1, *range(n)))
        w = OPS["reshape"](w, shape=(-1, 1, *size))
    return OPS["conv"](x, w, stride=stride, padding=padding, dilation=dilation, groups=groups,
                       layout=layout)  # fmt: skip


@operation("MaxPool", "AveragePool")
def _pool(op: Any, x: Value) -> Any:
    n = x.ndim - 2
    layout = layout_of(op.data_format, x.ndim)
    kernel = each(op.pool_size, n)
    stride = each(op.strides or kernel, n)
    pads = window_padding(op.padding, spatial(x.shape, layout), kernel, stride, (1,) * n)
    attrs: dict[str, Any] = dict(kernel=kernel, stride=stride, padding=pads, layout=layout)
    if type(op).__name__ == "MaxPool":
        return OPS["max_pool"](x, **attrs)
    return OPS["avg_pool"](x, include_pad=all(p == (0, 0) for p in pads), **attrs)
