"""The same numbers in another shape or order, and pieces of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trivium.dtype import holds
from trivium.graph import OPS, Type, UnsupportedError
from trivium.op import Refused, S, case, composite, primitive
from trivium.shape import (
    Dim,
    ShapeError,
    Size,
    as_shape,
    broadcast,
    normalize_axes,
    parse_size,
    possible,
    size_product,
)
from trivium.traits import MOVEMENT, along, each_axis, no_axis, reduced


def _reshape_normal(x: Type, *, shape: Any) -> dict[str, Any]:
    sizes = list((shape,) if isinstance(shape, (int, Dim)) else shape)
    open_at = [i for i, s in enumerate(sizes) if isinstance(s, int) and s == -1]
    if len(open_at) > 1:
        raise ShapeError(f"only one size may be -1, got {tuple(sizes)}")
    target = list(as_shape(sizes))
    count = size_product(x.shape)
    if open_at:
        rest = size_product(s for i, s in enumerate(target) if i != open_at[0])
        if isinstance(rest, int) and (rest == 0 or (isinstance(count, int) and count % rest)):
            raise ShapeError(f"{x.shape} does not reshape to {tuple(sizes)}")
        target[open_at[0]] = count // rest
    if size_product(target) != count:
        raise ShapeError(f"{x.shape} has {count} elements, {tuple(target)} {size_product(target)}")
    return {"shape": tuple(target)}


@primitive(
    rule=lambda x, *, shape: Type(x.dtype, shape), normal=_reshape_normal,
    family=MOVEMENT, cost=0, idle=lambda x, *, shape: bool(shape == x.shape),
    vjp=lambda g, out, x, *, shape: (OPS["reshape"](g, shape=x.shape),),
    cases=[case(S(2, 3, 4), shape=(4, 6)), case(S(2, 3), shape=(-1,)), case(S(), shape=(1, 1))],
    torch="{x}.reshape(*{shape})",
    tensorflow="tf.reshape({x}, {shape})",
)  # fmt: skip
def reshape(x: Any, *, shape: Any) -> Any:
    """The elements of x, row-major, in ``shape``; one size may be -1.

    >>> import trivium as tv
    >>> tv.reshape(tv.asarray([1.0, 2.0, 3.0, 4.0]), shape=(2, -1)).shape
    (2, 2)
    """
    return np.reshape(x, shape)


def _flatten_normal(x: Type, *, start: int) -> dict[str, Any]:
    return {"start": normalize_axes(start, len(x.shape))[0] if x.shape else 0}


@composite(
    normal=_flatten_normal, cases=[case(S(2, 3, 4)), case(S(2, 3, 4), start=1)],
    family=MOVEMENT, idle=lambda x, *, start: len(x.shape) - start == 1,
    torch="torch.flatten({x}, {start})",
)  # fmt: skip
def flatten(x: Any, *, start: int = 0) -> Any:
    """The axes from ``start`` on made into one."""
    return reshape(x, shape=(*x.shape[:start], size_product(x.shape[start:])))


def _transpose_normal(x: Type, *, axes: Any) -> dict[str, Any]:
    rank = len(x.shape)
    order = (
        tuple(reversed(range(rank))) if axes is None else tuple(a + rank * (a < 0) for a in axes)
    )
    if sorted(order) != list(range(rank)):
        raise ShapeError(f"axes {axes} do not order the {rank} axes of {x}")
    return {"axes": order}


@primitive(
    rule=lambda x, *, axes: Type(x.dtype, tuple(x.shape[a] for a in axes)),
    normal=_transpose_normal, cases=[case(S(2, 3)), case(S(2, 3, 4), axes=(1, 2, 0))],
    family=MOVEMENT, cost=0, idle=lambda x, *, axes: axes == tuple(range(len(axes))),
    torch="{x}.permute(*{axes})", keras="ops.transpose({x}, {axes})",
    tensorflow="tf.transpose({x}, {axes})", mxnet="F.transpose({x}, axes={axes})",
)  # fmt: skip
def transpose(x: Any, *, axes: Any = None) -> Any:
    """The axes in the order ``axes`` (None: reversed); the array API's permute_dims."""
    return np.transpose(x, axes)


@transpose.vjp
def _transpose_vjp(g: Any, out: Any, x: Any, *, axes: Any) -> Any:
    return (transpose(g, axes=tuple(axes.index(i) for i in range(len(axes)))),)


def _broadcast_rule(x: Type, *, shape: Any) -> Type:
    if broadcast(x.shape, shape) != shape:
        raise ShapeError(f"{x.shape} does not broadcast to {shape}")
    return Type(x.dtype, shape)


@primitive(
    rule=_broadcast_rule, normal=lambda x, *, shape: {"shape": as_shape(shape)},
    family=MOVEMENT, cost=0, idle=lambda x, *, shape: bool(shape == x.shape),
    vjp=lambda g, out, x, *, shape: (g,),  # summed back by the caller, like every broadcast
    cases=[case(S(3), shape=(2, 3)), case(S(2, 1, 4), shape=(2, 3, 4))],
    torch="{x}.expand(*{shape})", keras="ops.broadcast_to({x}, {shape})",
    tensorflow="tf.broadcast_to({x}, {shape})", mxnet="F.broadcast_to({x}, shape={shape})",
    jax="jnp.broadcast_to({x}, {shape})",
)  # fmt: skip
def broadcast_to(x: Any, *, shape: Any) -> Any:
    """x repeated to fill ``shape``."""
    return np.broadcast_to(x, shape)


@composite(
    normal=lambda x, *, axis: {"axis": normalize_axes(axis, len(x.shape) + 1)[0]},
    cases=[case(S(2, 3), axis=1), case(S(2, 3), axis=-1)], family=MOVEMENT,
    torch="{x}.unsqueeze({axis})", keras="ops.expand_dims({x}, {axis})",
    tensorflow="tf.expand_dims({x}, {axis})", mxnet="F.expand_dims({x}, axis={axis})",
    jax="jnp.expand_dims({x}, {axis})",
)  # fmt: skip
def expand_dims(x: Any, *, axis: int) -> Any:
    """A new axis of size 1 at ``axis``."""
    return reshape(x, shape=(*x.shape[:axis], 1, *x.shape[axis:]))


def _squeeze_normal(x: Type, *, axis: Any) -> dict[str, Any]:
    axes = normalize_axes(axis, len(x.shape))
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"axis {a} of {x.shape} has size {x.shape[a]}, only size 1 squeezes")
    return {"axis": axes}


@composite(
    normal=_squeeze_normal, cases=[case(S(2, 1, 3, 1), axis=1), case(S(2, 1, 3, 1), axis=(1, -1))],
    family=MOVEMENT, axes=reduced, idle=no_axis,
    torch="{x}.squeeze({axis!axes})", keras="ops.squeeze({x}, axis={axis!axes})",
    tensorflow="tf.squeeze({x}, axis={axis!axes})", mxnet="F.squeeze({x}, axis={axis!axes})",
    jax="{x}.squeeze({axis!axes})",
)  # fmt: skip
def squeeze(x: Any, *, axis: Any) -> Any:
    """The axes ``axis``, of size 1, left out. Always named: data never decides a shape."""
    return reshape(x, shape=tuple(s for i, s in enumerate(x.shape) if i not in axis))


def _joined(*xs: Type, new: int) -> int:
    """How many axes the result of joining ``xs`` has."""
    if not xs:
        raise ShapeError("there is nothing to join")
    return len(xs[0].shape) + new


def _concat_rule(*xs: Type, axis: int) -> Type:
    first = xs[0]
    for x in xs[1:]:
        if (
            x.dtype != first.dtype
            or len(x.shape) != len(first.shape)
            or any(
                a != b
                for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=True))
                if i != axis
            )
        ):
            raise ShapeError(f"{first} and {x} do not join along axis {axis}")
    total: Size = 0
    for x in xs:
        total = total + x.shape[axis]
    return Type(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :]))


@primitive(
    rule=_concat_rule, promotes=True, family=MOVEMENT, axes=along,
    normal=lambda *xs, axis: {"axis": normalize_axes(axis, _joined(*xs, new=0))[0]},
    cases=[case(S(2, 3), S(1, 3)), case(S(2, 3), S(2, 1), S(2, 4), axis=-1)],
    torch="torch.cat([{xs}], dim={axis})", keras="ops.concatenate([{xs}], axis={axis})",
    tensorflow="tf.concat([{xs}], axis={axis})", mxnet="F.concat({xs}, dim={axis})",
    jax="jnp.concatenate([{xs}], axis={axis})", onnx="Concat",
)  # fmt: skip
def concat(*xs: Any, axis: int = 0) -> Any:
    """Arrays joined along an axis they have."""
    return np.concatenate(xs, axis=axis)


@concat.vjp
def _concat_vjp(g: Any, out: Any, *xs: Any, axis: int) -> Any:
    grads, start = [], 0
    for x in xs:
        stop = start + x.shape[axis]
        grads.append(slice_axis(g, axis=axis, start=start, stop=stop))
        start = stop
    return tuple(grads)


@composite(
    normal=lambda *xs, axis: {"axis": normalize_axes(axis, _joined(*xs, new=1))[0]},
    cases=[case(S(2, 3), S(2, 3)), case(S(2, 3), S(2, 3), S(2, 3), axis=1)], family=MOVEMENT,
    torch="torch.stack([{xs}], dim={axis})", keras="ops.stack([{xs}], axis={axis})",
    tensorflow="tf.stack([{xs}], axis={axis})", mxnet="F.stack({xs}, axis={axis})",
    jax="jnp.stack([{xs}], axis={axis})",
)  # fmt: skip
def stack(*xs: Any, axis: int = 0) -> Any:
    """Arrays of one shape joined along a new axis."""
    return concat(*(expand_dims(x, axis=axis) for x in xs), axis=axis)


def _slice_normal(x: Type, *, axis: int, start: Any, stop: Any, step: int) -> dict[str, Any]:
    axis = normalize_axes(axis, len(x.shape))[0]
    size = x.shape[axis]

    def end(at: Any, default: Size) -> Size:
        if at is None:
            return default
        if isinstance(at, str):
            at = parse_size(at)
        if isinstance(at, int) and at < 0 and isinstance(size, int):
            return max(size + at, 0)
        if isinstance(at, int) and at < -1:  # where fewer are there, the slice is cut short
            what = (
                f"a slice bounded {-at} before the end of the open size {size}, which may be less"
            )
            raise UnsupportedError(what, remedy="fix the size")
        if isinstance(at, int) and at < 0:
            return size + at
        if isinstance(at, int) and isinstance(size, int):
            return min(at, size)
        return at  # type: ignore[no-any-return]

    if step < 1:
        raise ShapeError(f"a slice steps forward, got step={step}; use flip")
    return {"axis": axis, "start": end(start, 0), "stop": end(stop, size), "step": step}


def _slice_rule(x: Type, *, axis: int, start: Any, stop: Any, step: int) -> Type:
    count = -((start - stop) // step)
    if isinstance(count, int):
        count = max(count, 0)
    return Type(x.dtype, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


@primitive(
    rule=_slice_rule,
    normal=_slice_normal,
    family=MOVEMENT,
    cost=0,
    axes=along,
    cases=[
        case(S(5, 3), axis=0, start=1, stop=4),
        case(S(2, 7), axis=1, start=1, step=3),
        case(S(2, 4), axis=-1, start=-3, stop=-1),
    ],
)
def slice_axis(x: Any, *, axis: int, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    """``x[start:stop:step]`` along one axis; bounds may be Dims, negative ones are from the end."""
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


@slice_axis.vjp
def _slice_vjp(g: Any, out: Any, x: Any, *, axis: int, start: Any, stop: Any, step: int) -> Any:
    # Zeros between (interior), before and after put each piece back where it came from.
    size, count = x.shape[axis], g.shape[axis]
    low = [0] * len(x.shape)
    high, interior = list(low), list(low)
    low[axis], interior[axis] = start, step - 1
    if step == 1 or count == 0:
        high[axis] = size - start - count
    elif isinstance(count, int):
        high[axis] = size - start - (count - 1) * step - 1
    else:  # an open count may turn out to be 0: nothing has nothing between
        high[axis] = size
    back = pad(g, low=tuple(low), high=tuple(high), interior=tuple(interior))
    return (back if back.shape == x.shape else slice_axis(back, axis=axis, start=0, stop=size),)


@composite(
    normal=lambda x, *, axis, index: {"axis": normalize_axes(axis, len(x.shape))[0]},
    cases=[case(S(4, 3), axis=0, index=2), case(S(2, 4, 3), axis=1, index=-1)],
    family=MOVEMENT,
    axes=reduced,
)
def select(x: Any, *, axis: int, index: int) -> Any:
    """``x[index]`` along one axis, which goes."""
    stop = None if index == -1 else index + 1
    return squeeze(slice_axis(x, axis=axis, start=index, stop=stop), axis=axis)


def getitem(x: Any, key: Any) -> Any:
    """Basic indexing: ints, forward slices, ``...`` and None. Arrays of indices: use take."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [k for k in keys if k is Ellipsis]:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        used = len([k for k in keys if k is not None and k is not Ellipsis])
        keys[at : at + 1] = [slice(None)] * (len(x.shape) - used)
    axis = 0
    for k in keys:
        if k is None:
            x, axis = expand_dims(x, axis=axis), axis + 1
        elif isinstance(k, slice):
            if (k.start, k.stop, k.step) != (None, None, None):
                step = 1 if k.step is None else k.step
                x = slice_axis(x, axis=axis, start=k.start, stop=k.stop, step=step)
            axis += 1
        elif isinstance(k, (int, np.integer)) and not isinstance(k, bool):
            if axis >= len(x.shape):
                raise IndexError(f"{key!r} has more indices than {x.shape} has axes")
            size = x.shape[axis]
            if isinstance(size, int) and not -size <= k < size:
                raise IndexError(f"index {k} is out of range for axis {axis} of {x.shape}")
            x = select(x, axis=axis, index=int(k))
        else:
            raise TypeError(f"{k!r} is no basic index; trivium.take gathers with arrays")
    return x


OPS["getitem"] = getitem  # not an op: it becomes slice_axis, select and expand_dims


def _pad_normal(x: Type, *, low: Any, high: Any, interior: Any, value: float) -> dict[str, Any]:
    zeros = (0,) * len(x.shape)
    return {"low": tuple(low), "high": tuple(high), "interior": tuple(interior or zeros)}


def cut(size: Size) -> Size:
    """``size``, and no less than 0 where it is known."""
    return max(size, 0) if isinstance(size, int) else size


def _pad_rule(x: Type, *, low: Any, high: Any, interior: Any, value: float) -> Type:
    if not len(x.shape) == len(low) == len(high) == len(interior) or any(i < 0 for i in interior):
        raise ShapeError(f"low={low}, high={high} and interior={interior} do not fit {x}")
    holds(value, x.dtype)
    sizes = list(zip(x.shape, low, high, interior, strict=True))
    grown = (s + cut(a) + cut(b) + cut(s - 1) * i for s, a, b, i in sizes)
    possible(tuple(grown), x.dtype.itemsize)
    return Type(
        x.dtype,
        tuple(a + s + b + (s - 1) * i if i and s != 0 else a + s + b for s, a, b, i in sizes),
    )


def _between(a: Mapping[str, Any]) -> bool:
    return any(a["interior"])


def _cut(a: Mapping[str, Any]) -> bool:
    return any(isinstance(p, int) and p < 0 for p in (*a["low"], *a["high"]))


@primitive(
    rule=_pad_rule, normal=_pad_normal,
    family=MOVEMENT, axes=each_axis("low", "high", "interior"),
    idle=lambda x, *, low, high, interior, **_: not any((*low, *high, *interior)),
    cases=[
        case(S(2, 3), low=(1, 0), high=(0, 2)),
        case(S(2, 3), low=(0, 1), high=(2, 0), value=1.5),
        case(S(3, 2), low=(1, 0), high=(0, 0), interior=(2, 1)),
        case(S(3, 4), low=(0, -1), high=(-1, 2)),
    ],
    **dict.fromkeys(("torch", "keras", "mxnet"), Refused("padding between elements", _between)),
    tensorflow=Refused("padding that is negative or between elements",
                       lambda a: _between(a) or _cut(a), "slice instead"),
)  # fmt: skip
def pad(x: Any, *, low: Any, high: Any, interior: Any = None, value: float = 0.0) -> Any:
    """``low`` and ``high`` elements of ``value`` before and after each axis, ``interior`` between.

    Negative sizes cut off, as in XLA.
    """
    sizes = list(zip(x.shape, low, high, interior, strict=True))
    shape = [max(a, 0) + s + max(b, 0) + max(s - 1, 0) * i for s, a, b, i in sizes]
    out = np.full(shape, value, x.dtype)
    out[tuple(slice(max(a, 0), max(a, 0) + (s - 1) * (i + 1) + 1 if s else 0, i + 1)
              for s, a, _, i in sizes)] = x  # fmt: skip
    return out[
        tuple(
            slice(max(-a, 0), n - max(-b, 0)) for n, (_, a, b, _) in zip(shape, sizes, strict=True)
        )
    ]


@pad.vjp
def _pad_vjp(g: Any, out: Any, x: Any, *, low: Any, high: Any, interior: Any, value: float) -> Any:
    g = pad(g, low=tuple(-a for a in low), high=tuple(-b for b in high))
    for axis, i in enumerate(interior):
        if i:
            g = slice_axis(g, axis=axis, step=i + 1)
    return (g,)


@primitive(
    rule=lambda x, **_: x,
    normal=lambda x, *, axis: {"axis": normalize_axes(axis, len(x.shape))},
    family=MOVEMENT, cost=0, axes=along, idle=no_axis,
    vjp=lambda g, out, x, *, axis: (OPS["flip"](g, axis=axis),),
    cases=[case(S(2, 3), axis=1), case(S(2, 3, 4), axis=(0, 2))],
    torch="{x}.flip({axis})", keras="ops.flip({x}, axis={axis})",
    tensorflow="tf.reverse({x}, {axis})", mxnet="F.reverse({x}, axis={axis})",
    jax="jnp.flip({x}, {axis})",
)  # fmt: skip
def flip(x: Any, *, axis: Any) -> Any:
    """The order reversed along ``axis``."""
    return np.flip(x, axis)
