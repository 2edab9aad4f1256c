"""What TensorFlow's operators are in our ops: those that no line of a declaration says.

A handler gets the reader, the operands and the operator's attributes by their names; what it does
not name is at its default, or the operator is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.tensorflow.sizes import Held, index
from trivium.graph import OPS, Value
from trivium.shape import Dim

HANDLERS: dict[str, Callable[..., Any]] = {}


def operator(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function reads these operators."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return enter


def _require(at: Any, holds: bool, what: str) -> None:
    if not holds:
        raise at.refuse(f"the operator {at.op.type} with {what}")


def _sizes(at: Any, item: Any) -> Any:
    """Sizes or places that are known, as Python's integers and Dims."""
    _require(at, isinstance(item, np.ndarray), "sizes or places that are computed")
    return item.tolist()


# -- variables -------------------------------------------------------------------------------------
@operator("ReadVariableOp")
def _read(at: Any, variable: Held, dtype: Any) -> Any:
    return at.became.get(variable.value, variable.value)


@operator("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
def _assign(at: Any, variable: Held, item: Any) -> Any:
    old, new = at.became.get(variable.value, variable.value), at.value(item)
    by = {"AssignAddVariableOp": "add", "AssignSubVariableOp": "subtract"}.get(at.op.type)
    at.became[variable.value] = OPS[by](old, new) if by else new
    return []


@operator("ResourceGather")
def _gather(at: Any, variable: Held, rows: Any, dtype: Any) -> Any:
    table = at.became.get(variable.value, variable.value)
    op = OPS["embedding"] if len(table.shape) == 2 else OPS["take"]
    return op(table, at.value(rows))


# -- the same numbers, elsewhere -------------------------------------------------------------------
@operator("Cast")
def _cast(at: Any, x: Any, DstT: Any) -> Any:
    if isinstance(x, Value):
        return x if x.dtype == DstT else OPS["cast"](x, dtype=as_dtype(DstT))
    _require(at, x.ndim == 0, f"the sizes {x}")
    return OPS["full"](shape=(), value=x.item(), dtype=as_dtype(DstT))


@operator("Fill")
def _fill(at: Any, shape: Any, item: Any) -> Any:
    value = at.value(item)
    sizes = tuple(_sizes(at, shape))
    if isinstance(item, Value):
        return OPS["broadcast_to"](value, shape=sizes)
    return OPS["full"](shape=sizes, value=item.item(), dtype=value.dtype)


@operator("ZerosLike", "OnesLike")
def _like(at: Any, x: Any) -> Any:
    return OPS["zeros_like" if at.op.type == "ZerosLike" else "ones_like"](at.value(x))


@operator("Range")
def _range(at: Any, start: Any, stop: Any, step: Any) -> Any:
    start, stop, step = (_sizes(at, e) for e in (start, stop, step))
    kind = as_dtype(at.op.outputs[0].dtype.name)
    return OPS["arange"](start=start, stop=stop, step=step, dtype=kind)


@operator("ConcatV2")
def _concat(at: Any, *items: Any) -> Any:
    return OPS["concat"](*map(at.value, items[:-1]), axis=_sizes(at, items[-1]))


@operator("Pack")
def _pack(at: Any, *items: Any, axis: int = 0) -> Any:
    return OPS["stack"](*map(at.value, items), axis=axis)


@operator("Unpack")
def _unpack(at: Any, x: Value, num: int, axis: int = 0) -> Any:
    return OPS["unstack"](x, axis=axis)


@operator("Split", "SplitV")
def _split(at: Any, *items: Any, num_split: int) -> Any:
    x, axis = (items[1], items[0]) if at.op.type == "Split" else (items[0], items[2])
    place = _sizes(at, axis) % len(x.shape)
    size = x.shape[place]
    parts = [size // num_split] * num_split if at.op.type == "Split" else _sizes(at, items[1])
    _require(at, sum(parts) == size, f"parts of {parts}")
    return OPS["split"](x, sizes=tuple(parts), axis=place)


@operator("StridedSlice")
def _strided(at: Any, x: Value, begin: Any, end: Any, strides: Any, **masks: int) -> Any:
    parts = index(len(x.shape), *(_sizes(at, e) for e in (begin, end, strides)), **masks)
    y, axis = x, 0
    for part in parts:
        if part is None:
            y = OPS["expand_dims"](y, axis=axis)
        elif isinstance(part, slice):
            y = _cut(at, y, axis, part)
        else:
            y = OPS["select"](y, axis=axis, index=part)
            continue
        axis += 1
    return y


def _cut(at: Any, x: Value, axis: int, part: slice) -> Any:
    size, start, stop, step = x.shape[axis], part.start, part.stop, part.step or 1
    if step == -1 and start in (None, -1) and stop is None:
        return OPS["flip"](x, axis=(axis,))
    _require(at, step > 0, f"the step {step}")
    if isinstance(size, int) and not isinstance(start, Dim) and not isinstance(stop, Dim):
        start, stop, _ = part.indices(size)
    if start in (0, None) and (stop is None or stop == size) and step == 1:
        return x
    return OPS["slice_axis"](x, axis=axis, start=start or 0, stop=stop, step=step)


@operator("Slice")
def _slice(at: Any, x: Value, begin: Any, size: Any) -> Any:
    for axis, (a, n) in enumerate(zip(_sizes(at, begin), _sizes(at, size), strict=True)):
        stop = None if isinstance(n, int) and n == -1 else a + n
        x = _cut(at, x, axis, slice(a, stop, 1))
    return x


@operator("Pad", "PadV2")
def _pad(at: Any, x: Value, pads: Any, value: Any = None) -> Any:
    low, high = zip(*_sizes(at, pads), strict=True)
    number = 0.0 if value is None else _sizes(at, value)
    return OPS["pad"](x, low=tuple(low), high=tuple(high), value=number)


# -- many numbers at a time ------------------------------------------------------------------------
@operator("MatMul", "BatchMatMulV2")
def _matmul(at: Any, x: Any, y: Any, **turned: bool) -> Any:
    wanted = [turned.pop(k, False) for k in ("transpose_a", "adj_x", "transpose_b", "adj_y")]
    _require(at, not turned, str(turned))
    x, y = at.value(x), at.value(y)
    return OPS["matmul"](_turned(x, any(wanted[:2])), _turned(y, any(wanted[2:])))


def _turned(x: Value, turn: bool) -> Any:
    n = len(x.shape)
    return OPS["transpose"](x, axes=(*range(n - 2), n - 1, n - 2)) if turn else x


@operator("BiasAdd")
def _bias(at: Any, x: Value, bias: Any, data_format: str = "NHWC") -> Any:
    _require(at, data_format == "NHWC" or len(x.shape) == 2, f"data_format={data_format!r}")
    return x + at.value(bias)


@operator("AddN")
def _add_n(at: Any, *items: Any) -> Any:
    return reduce(OPS["add"], map(at.value, items))


@operator("SquaredDifference")
def _squared(at: Any, x: Any, y: Any) -> Any:
    return OPS["square"](OPS["subtract"](at.value(x), at.value(y)))


@operator("Max", "Min")
def _extremum(at: Any, x: Value, axes: Any, keep_dims: bool = False) -> Any:
    name = at.op.type.lower()
    axis = tuple(np.ravel(_sizes(at, axes)).tolist())
    return OPS[name](x, axis=axis, keepdims=keep_dims, ties="share") if axis else x


# -- images ----------------------------------------------------------------------------------------
def _window(at: Any, x: Value, kernel: Any, strides: Any, padding: str, dilations: Any,
            explicit_paddings: Any, layout: str) -> dict[str, Any]:  # fmt: skip
    """Stride, dilation and (low, high) per axis; SAME is as large as the sizes make it."""
    first = layout.index("C") == 1
    inner = slice(2, None) if first else slice(1, -1)
    n = len(x.shape) - 2
    dilations = dilations or (1,) * (n + 2)
    outer = [strides[i] for i in (0, 1 if first else -1)]
    _require(at, outer == [1, 1], f"strides={strides}")
    stride, dilation, sizes = (tuple(s[inner]) for s in (strides, dilations, x.shape))
    pads = [(0, 0)] * n
    if padding == "EXPLICIT":
        pads = list(zip(explicit_paddings[::2], explicit_paddings[1::2], strict=True))[inner]
    if padding == "SAME":
        spread = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        known = all(s == 1 or isinstance(z, int) for s, z in zip(stride, sizes, strict=True))
        _require(at, known, 'padding="SAME", a stride and an open size')
        totals = [k - s if isinstance(z, Dim) or z % s == 0 else k - z % s
                  for k, s, z in zip(spread, stride, sizes, strict=True)]  # fmt: skip
        pads = [(max(t, 0) // 2, max(t, 0) - max(t, 0) // 2) for t in totals]
    return {"stride": stride, "dilation": dilation, "padding": tuple(pads), "layout": layout}


@operator("Conv2D", "Conv3D")
def _conv(at: Any, x: Value, w: Any, strides: Any, padding: str, dilations: Any = (),
          explicit_paddings: Any = (), data_format: str = "") -> Any:  # fmt: skip
    kernel, n = at.value(w), len(x.shape) - 2
    layout = data_format or ("NHWC" if n == 2 else "NDHWC")
    attrs = _window(at, x, kernel.shape[:n], strides, padding, dilations, explicit_paddings, layout)
    groups = x.shape[layout.index("C")] // kernel.shape[n]
    turned = OPS["transpose"](kernel, axes=(n + 1, n, *range(n)))
    return OPS["conv"](x, turned, groups=groups, **attrs)


@operator("DepthwiseConv2dNative")
def _depthwise(at: Any, x: Value, w: Any, strides: Any, padding: str, dilations: Any = (),
               explicit_paddings: Any = (), data_format: str = "NHWC") -> Any:  # fmt: skip
    kernel = at.value(w)
    height, width, channels, times = kernel.shape
    attrs = _window(at, x, (height, width), strides, padding, dilations, explicit_paddings,
                    data_format)  # fmt: skip
    turned = OPS["transpose"](kernel, axes=(2, 3, 0, 1))
    if times != 1:
        turned = OPS["reshape"](turned, shape=(channels * times, 1, height, width))
    return OPS["conv"](x, turned, groups=channels, **attrs)


@operator("MaxPool", "AvgPool", "AvgPool3D")
def _pool(at: Any, x: Value, ksize: Any, strides: Any, padding: str, explicit_paddings: Any = (),
          data_format: str = "") -> Any:  # fmt: skip
    layout = data_format or ("NHWC" if len(x.shape) == 4 else "NDHWC")
    inner = slice(2, None) if layout[1] == "C" else slice(1, -1)
    _require(at, ksize[0] == ksize[layout.index("C")] == 1, f"ksize={ksize}")
    attrs = _window(at, x, ksize[inner], strides, padding, (), explicit_paddings, layout)
    if at.op.type == "MaxPool":
        return OPS["max_pool"](x, kernel=ksize[inner], **attrs)
    del attrs["dilation"]
    return OPS["avg_pool"](x, kernel=ksize[inner], include_pad=False, **attrs)


@operator("FusedBatchNormV3")
def _batch_norm(at: Any, x: Value, scale: Any, offset: Any, mean: Any, variance: Any,
                epsilon: float = 1e-4, data_format: str = "NHWC", is_training: bool = True,
                exponential_avg_factor: float = 1.0) -> Any:  # fmt: skip
    attrs = {"training": is_training, "axis": data_format.index("C"), "epsilon": epsilon}
    held = [at.value(v) for v in (scale, offset)]
    if is_training:  # what it says of the batch is what running statistics of no memory become
        _require(at, exponential_avg_factor == 1, f"{exponential_avg_factor=}")
        none = OPS["full"](shape=held[0].shape, value=0.0, dtype=x.dtype)
        found = OPS["batch_norm"](x, *held, none, none, momentum=1.0, unbiased=True, **attrs)
    else:
        found = OPS["batch_norm"](x, *held, at.value(mean), at.value(variance), **attrs)
    return [*found, *at.nobody()[3:]]
