"""What the ONNX operators that move, cut and pick elements are in our ops."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.onnx.operators import OP, is_all, reads
from trivium.frameworks.onnx.read import Call
from trivium.graph import Value
from trivium.shape import Dim, Size, broadcast, size_product


@reads("Reshape")
def _reshape(call: Call) -> Any:
    x = call.value(0)
    said = list(call.attr("shape")) if call.opset < 5 else call.ints(1, "a shape")
    zero = call.attr("allowzero")
    shape = [x.shape[i] if s == 0 and not zero else s for i, s in enumerate(said)]
    return x.reshape(*shape)


@reads("Flatten")
def _flatten(call: Call) -> Any:
    x = call.value(0)
    axis = call.attr("axis") + (x.ndim if call.attr("axis") < 0 else 0)
    if axis == 1 and x.ndim >= 2:
        return OP["flatten"](x, start=1)
    return x.reshape(size_product(x.shape[:axis]), size_product(x.shape[axis:]))


@reads("Transpose")
def _transpose(call: Call) -> Any:
    return transposed(call.value(0), call.attr("perm"))


def transposed(x: Any, axes: Any) -> Any:
    """x.permute(axes), except that a permutation undone is what was permuted."""
    order = tuple(axes) if axes is not None else tuple(reversed(range(x.ndim)))
    if isinstance(x, Value) and x.node is not None and x.node.op == "transpose":
        before = x.node.attrs["axes"]
        if [before[a] for a in order] == list(range(x.ndim)):
            return x.node.inputs[0]
    return OP["transpose"](x, axes=order)


@reads("Unsqueeze")
def _unsqueeze(call: Call) -> Any:
    x = call.value(0)
    axes = call.ints(1, "the axes") if call.has(1) else list(call.attr("axes"))
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = OP["expand_dims"](x, axis=axis)
    return x


@reads("Squeeze")
def _squeeze(call: Call) -> Any:
    x = call.value(0)
    axes = call.ints(1, "the axes") if call.has(1) else call.attr("axes")
    if axes is None:
        if any(isinstance(s, Dim) for s in x.shape):
            raise call.refuse(f"squeezing whatever has size 1 of {x.shape}", "name the axes")
        axes = [i for i, s in enumerate(x.shape) if s == 1]
    return squeezed(x, tuple(axes))


def squeezed(x: Any, axes: tuple[int, ...]) -> Any:
    """x without these axes, except that an axis just made is unmade."""
    made = x.node if isinstance(x, Value) else None
    if made and made.op == "expand_dims" and [a % x.ndim for a in axes] == [made.attrs["axis"]]:
        return made.inputs[0]
    return OP["squeeze"](x, axis=axes) if axes else x


@reads("Expand")
def _expand(call: Call) -> Any:
    x = call.value(0)
    return OP["broadcast_to"](x, shape=broadcast(x.shape, tuple(call.ints(1, "a shape"))))


@reads("Tile")
def _tile(call: Call) -> Any:
    times = call.ints(1, "the repeats")
    if any(isinstance(t, Dim) or t > 1024 for t in times):
        raise call.refuse(f"tiling {times} times", "use Expand")
    return OP["tile"](call.value(0), repeats=tuple(times))


@reads("Trilu")
def _trilu(call: Call) -> Any:
    k = call.ints(1, "the diagonal of a Trilu") if call.has(1) else [0]
    return OP["triu" if call.attr("upper") else "tril"](call.value(0), diagonal=k[0])


@reads("Gather")
def _gather(call: Call) -> Any:
    axis = call.attr("axis")
    at = call.constant(1)
    if at is not None and at.ndim == 0:
        return OP["select"](call.value(0), axis=axis, index=int(at))
    table = call.weight(0, "weight")
    from_end = at is not None and (at < 0).any()  # which only take counts
    if table.kind == "param" and axis == 0 and table.ndim == 2 and not from_end:
        return OP["embedding"](table, call.value(1))
    return OP["take"](table, call.value(1), axis=axis)


@reads("ScatterND")
def _scatter(call: Call) -> Any:
    data, indices, g = call.values()
    if call.attr("reduction") != "add" or not is_all(data, 0) or indices.shape[-1] != 1:
        raise call.refuse("a ScatterND other than rows added to zeros", "use Gather or Where")
    at = squeezed(indices, (indices.ndim - 1,))
    return OP["take_grad"](g, at, axis=0, size=data.shape[0])


@reads("Split")
def _split(call: Call) -> Any:
    x, axis, count = call.value(0), call.attr("axis"), call.outputs
    size = x.shape[axis]
    parts: Any = call.attr("split") or (
        call.ints(1, "the sizes of a Split") if call.has(1) else None
    )
    if parts is None:
        each = -(-size // count)
        parts = [each] * (count - 1) + [size - each * (count - 1)]
    return OP["split"](x, sizes=tuple(parts), axis=axis)


@reads("Slice")
def _slice(call: Call) -> Any:
    x = call.value(0)
    if call.opset < 10:
        lists = [call.attr("starts"), call.attr("ends"), call.attr("axes"), None]
    else:
        lists = [call.ints(i, "the ends of a Slice") if call.has(i) else None for i in range(1, 5)]
    starts, ends, axes, steps = lists
    axes = range(len(starts)) if axes is None else axes
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip((a % x.ndim for a in axes), starts, ends, steps, strict=True):
        x = _sliced(call, x, axis, start, end, step)
    flips = [a % x.ndim for a, s in zip(axes, steps, strict=True) if s < 0]
    return OP["flip"](x, axis=tuple(flips)) if flips else x


def _sliced(call: Call, x: Any, axis: int, start: Any, end: Any, step: int) -> Any:
    """One axis of a Slice; with a negative step what it takes, still in order."""
    size = x.shape[axis]
    if step < 0:
        if isinstance(size, Dim) or isinstance(start, Dim) or isinstance(end, Dim):
            if step == -1 and start == -1 and not isinstance(end, Dim) and end < -(1 << 30):
                return x
            raise call.refuse(f"a backward Slice of the open size {size}", "fix the size")
        taken = range(size)[slice(start, None if end < -size else end, step)]
        if not len(taken):
            return OP["slice_axis"](x, axis=axis, start=0, stop=0)
        if len(taken) == size:
            return x
        return OP["slice_axis"](x, axis=axis, start=taken[-1], stop=taken[0] + 1, step=-step)
    if isinstance(end, int) and end > 1 << 30:
        end = None
    if isinstance(size, int) and isinstance(start, int) and (end is None or isinstance(end, int)):
        start, end = slice(start, end, step).indices(size)[:2]
        if start >= end:
            start = end = 0
    if start == 0 and step == 1 and (end is None or end == size):
        return x
    return OP["slice_axis"](x, axis=axis, start=start, stop=end, step=step)


@reads("Pad")
def _pad(call: Call) -> Any:
    x, mode = call.value(0), call.attr("mode")
    if mode != "constant":
        raise call.refuse(f"padding in the mode {mode!r}", "pad with constants")
    old = call.opset < 11
    pads = (
        list(call.attr("pads" if call.opset > 1 else "paddings"))
        if old
        else call.ints(1, "the pads")
    )
    number: Any = call.attr("value") if old else 0
    if not old and call.has(2):
        number = call.known(2, "the value of a Pad").reshape(-1)[0]
        number = number.item() if number.dtype.kind in "iub" else float(str(number))
    axes = call.ints(3, "the axes of a Pad") if call.has(3) else list(range(x.ndim))
    low: list[Size] = [0] * x.ndim
    high: list[Size] = [0] * x.ndim
    for i, axis in enumerate(axes):
        low[axis], high[axis] = pads[i], pads[i + len(axes)]
    value = float(number) if x.dtype.is_floating else number
    return OP["pad"](x, low=tuple(low), high=tuple(high), value=value)


@reads("OneHot")
def _one_hot(call: Call) -> Any:
    indices, axis = call.value(0), call.attr("axis")
    (depth,) = call.ints(1, "the depth of a OneHot")
    if not indices.dtype.is_integer:
        indices = indices.astype("int64")  # as the operator says
    off, on = (call.known(2, "the values of a OneHot")[i : i + 1].reshape(()) for i in (0, 1))
    from_end = OP["where"](indices < 0, indices + depth, indices)  # ONNX counts these from the end
    # Not our one_hot: there an index out of range is an error, here it is no class.
    classes = OP["arange"](stop=depth, dtype=from_end.dtype)
    hot = OP["equal"](OP["expand_dims"](from_end, axis=from_end.ndim), classes)
    order = list(range(indices.ndim))
    order.insert(axis % (indices.ndim + 1), indices.ndim)
    lift = [OP["full"](shape=(), value=v.item(), dtype=v.dtype.name) for v in (on, off)]
    return transposed(OP["where"](hot, *lift), order)


@reads("DepthToSpace", "SpaceToDepth")
def _depth(call: Call) -> Any:
    x, b = call.value(0), call.attr("blocksize")
    n, c, h, w = x.shape
    if call.op == "SpaceToDepth":
        split = x.reshape(n, c, h // b, b, w // b, b)
        order = (0, 1, 3, 5, 2, 4) if call.attr("mode") == "CRD" else (0, 3, 5, 1, 2, 4)
        return split.permute(*order).reshape(n, c * b * b, h // b, w // b)
    if call.attr("mode") == "CRD":
        split = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        split = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(n, c // (b * b), h * b, w * b)
