"""Moves and pieces that two frameworks have a name for: written in transpose, slices and joins."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium.dtype import bool_, int64
from trivium.graph import OPS, Type, UnsupportedError
from trivium.op import S, case, composite, primitive
from trivium.ops.choice import where
from trivium.ops.index import one_hot
from trivium.ops.reduce import sum
from trivium.ops.shape import (
    broadcast_to,
    concat,
    expand_dims,
    flip,
    reshape,
    select,
    slice_axis,
    transpose,
)
from trivium.shape import Dim, ShapeError, normalize_axes
from trivium.traits import along


def _one_axis(x: Type, *, axis: int, **_: Any) -> dict[str, Any]:
    return {"axis": normalize_axes(axis, len(x.shape))[0]}


def known(x: Any, axis: int, what: str) -> int:
    """A size that is a number."""
    size = x.shape[axis]
    if isinstance(size, Dim):
        raise UnsupportedError(f"{what} of the open size {size}", remedy="fix the size")
    return int(size)


def _pair(*axes: int, rank: int) -> tuple[int, ...]:
    return tuple(normalize_axes(a, rank)[0] for a in axes)


# -- the axes in another order ---------------------------------------------------------------------
def _swapped(x: Type, *, axis1: int, axis2: int) -> dict[str, Any]:
    return dict(zip(("axis1", "axis2"), _pair(axis1, axis2, rank=len(x.shape)), strict=True))


@composite(
    normal=_swapped, cases=[case(S(2, 3, 4), axis1=1, axis2=2), case(S(2, 3), axis1=0, axis2=-1)],
    torch="{x}.transpose({axis1}, {axis2})", keras="ops.swapaxes({x}, {axis1}, {axis2})",
    jax="{x}.swapaxes({axis1}, {axis2})",
)  # fmt: skip
def swapaxes(x: Any, *, axis1: int, axis2: int) -> Any:
    """Two axes in each other's place."""
    axes = list(range(len(x.shape)))
    axes[axis1], axes[axis2] = axis2, axis1
    return transpose(x, axes=tuple(axes))


def _moved(x: Type, *, source: Any, destination: Any) -> dict[str, Any]:
    rank = len(x.shape)
    given = {"source": source, "destination": destination}
    axes = {k: _pair(*((v,) if isinstance(v, int) else v), rank=rank) for k, v in given.items()}
    if len(axes["source"]) != len(axes["destination"]) or any(
        len({*v}) != len(v) for v in axes.values()
    ):
        raise ShapeError(f"the axes {source} of {x} do not go to {destination}")
    return axes


@composite(
    normal=_moved,
    cases=[case(S(2, 3, 4), source=0, destination=-1),
           case(S(2, 3, 4, 5), source=(0, 2), destination=(3, 0))],
    torch="torch.movedim({x}, {source}, {destination})",
    keras="ops.moveaxis({x}, {source}, {destination})",
    jax="jnp.moveaxis({x}, {source}, {destination})",
)  # fmt: skip
def moveaxis(x: Any, *, source: Any, destination: Any) -> Any:
    """The axes ``source`` at the places ``destination``; the others keep their order."""
    placed = dict(zip(destination, source, strict=True))
    rest = iter(a for a in range(len(x.shape)) if a not in source)
    axes = (placed[i] if i in placed else next(rest) for i in range(len(x.shape)))
    return transpose(x, axes=tuple(axes))


# -- the same numbers, again or elsewhere ----------------------------------------------------------
def _rolled(x: Type, *, shift: Any, axis: Any) -> dict[str, Any]:
    shifts, axes = ((v,) if isinstance(v, int) else tuple(v) for v in (shift, axis))
    if len(shifts) != len(axes):
        raise ShapeError(f"{len(shifts)} shifts along {len(axes)} axes")
    axes = _pair(*axes, rank=len(x.shape))
    for axis in axes:
        known(x, axis, "a roll")
    return {"shift": shifts, "axis": axes}


@composite(
    rule=lambda x, **_: x, normal=_rolled,
    cases=[case(S(2, 5), shift=2, axis=1), case(S(3, 4), shift=(-1, 5), axis=(0, 1))],
    torch="torch.roll({x}, {shift}, {axis})", keras="ops.roll({x}, {shift}, {axis})",
    tensorflow="tf.roll({x}, {shift}, {axis})", jax="jnp.roll({x}, {shift}, {axis})",
)  # fmt: skip
def roll(x: Any, *, shift: Any, axis: Any) -> Any:
    """Each number ``shift`` places further along ``axis``; what falls off comes in in front."""
    for s, a in zip(shift, axis, strict=True):
        size = x.shape[a]
        if cut := -s % size if size else 0:
            x = concat(slice_axis(x, axis=a, start=cut), slice_axis(x, axis=a, stop=cut), axis=a)
    return x


def _tiled(x: Type, *, repeats: Any) -> dict[str, Any]:
    times = (repeats,) if isinstance(repeats, (int, Dim)) else tuple(repeats)
    return {"repeats": (1,) * (len(x.shape) - len(times)) + times}


@composite(
    normal=_tiled, cases=[case(S(2, 3), repeats=(3, 2)), case(S(3), repeats=(2, 2))],
    torch="{x}.repeat({repeats})", keras="ops.tile({x}, {repeats})",
    mxnet="F.tile({x}, reps={repeats})", jax="jnp.tile({x}, {repeats})",
)  # fmt: skip
def tile(x: Any, *, repeats: Any) -> Any:
    """x side by side, so many times along each axis; further axes come in front."""
    shape = (1,) * (len(repeats) - len(x.shape)) + tuple(x.shape)
    pairs = list(zip(repeats, shape, strict=True))
    # (a, b) -> (1, a, 1, b) -> (times, a, times, b) -> joined
    apart = reshape(x, shape=tuple(s for size in shape for s in (1, size)))
    full = broadcast_to(apart, shape=tuple(s for pair in pairs for s in pair))
    return reshape(full, shape=tuple(t * s for t, s in pairs))


@composite(
    normal=lambda x, *, repeats, axis: {} if axis is None else _one_axis(x, axis=axis),
    cases=[case(S(2, 3), repeats=2, axis=1), case(S(2, 3), repeats=3)],
    torch="torch.repeat_interleave({x}, {repeats}, {axis|None})",
    keras="ops.repeat({x}, {repeats}, {axis|None})",
    tensorflow="tf.repeat({x}, {repeats}, {axis|None})",
    mxnet="F.repeat({x}, repeats={repeats}, axis={axis|None})",
    jax="jnp.repeat({x}, {repeats}, {axis|None})",
)  # fmt: skip
def repeat(x: Any, *, repeats: int, axis: int | None = None) -> Any:
    """Each number ``repeats`` times, one beside the other; None: of all numbers in one row."""
    if axis is None:
        return repeat(reshape(x, shape=(-1,)), repeats=repeats, axis=0)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    apart = broadcast_to(expand_dims(x, axis=axis + 1), shape=(*before, size, repeats, *after))
    return reshape(apart, shape=(*before, size * repeats, *after))


def triangle(rows: Any, columns: Any, diagonal: int) -> Any:
    """The bool matrix that is true up to ``diagonal`` places right of the diagonal."""
    row = expand_dims(OPS["arange"](stop=rows, dtype=int64), axis=1)
    return OPS["arange"](stop=columns, dtype=int64) <= row + diagonal


def _inside(x: Any, diagonal: int) -> tuple[Any, Any]:
    if len(x.shape) < 2:
        raise ShapeError(f"wants matrices, got {x.shape}")
    value: Any = False if x.dtype == bool_ else 0
    rows, columns = x.shape[-2:]
    return triangle(rows, columns, diagonal), OPS["full"](shape=(), value=value, dtype=x.dtype)


_MATRICES = [case(S(3, 4)), case(S(2, 4, 3), diagonal=-1), case(S(3, 3), diagonal=1)]


@composite(
    cases=_MATRICES,
    torch="torch.tril({x}, {diagonal|0})",
    keras="ops.tril({x}, {diagonal|0})",
    jax="jnp.tril({x}, {diagonal|0})",
)
def tril(x: Any, *, diagonal: int = 0) -> Any:
    """The matrix x up to ``diagonal`` places right of its diagonal, and 0 beyond."""
    inside, nothing = _inside(x, diagonal)
    return where(inside, x, nothing)


@composite(
    cases=_MATRICES,
    torch="torch.triu({x}, {diagonal|0})",
    keras="ops.triu({x}, {diagonal|0})",
    jax="jnp.triu({x}, {diagonal|0})",
)
def triu(x: Any, *, diagonal: int = 0) -> Any:
    """The matrix x from ``diagonal`` places right of its diagonal on, and 0 before."""
    inside, nothing = _inside(x, diagonal - 1)
    return where(inside, nothing, x)


# -- pieces ----------------------------------------------------------------------------------------
def _split_normal(x: Type, *, sizes: Any, axis: int) -> dict[str, Any]:
    (axis,) = normalize_axes(axis, len(x.shape))
    if isinstance(sizes, int):
        total = known(x, axis, "pieces")
        if sizes < 1 or total % sizes:
            raise ShapeError(f"{total} places are not cut into {sizes} equal pieces")
        sizes = (total // sizes,) * sizes
    total = 0
    for s in sizes:
        total = total + s
    if total != x.shape[axis]:
        raise ShapeError(f"pieces of {tuple(sizes)} are not the {x.shape[axis]} places there are")
    return {"sizes": tuple(sizes), "axis": axis}


@composite(
    several=True, normal=_split_normal,
    cases=[case(S(6, 2), sizes=3), case(S(2, 5), sizes=(1, 3, 1), axis=-1)],
    torch="{x}.split({sizes}, {axis})", tensorflow="tf.split({x}, {sizes}, {axis})",
)  # fmt: skip
def split(x: Any, *, sizes: Any, axis: int = 0) -> Any:
    """x cut along ``axis`` into pieces of these sizes; an int: into so many equal pieces.

    >>> import trivium as tv
    >>> [piece.shape for piece in tv.split(tv.zeros((6, 2)), 3)]
    [(2, 2), (2, 2), (2, 2)]
    """
    pieces, start = [], 0
    for size in sizes:
        pieces.append(slice_axis(x, axis=axis, start=start, stop=start + size))
        start = start + size
    return tuple(pieces)


def chunk(x: Any, chunks: int, axis: int = 0) -> Any:
    """At most so many pieces of one size, of which the last may be smaller; torch's chunk."""
    total = known(x, axis, "pieces")
    size = max(-(-total // chunks), 1)
    sizes = [min(size, total - start) for start in range(0, total, size)]
    return split(x, sizes=tuple(sizes), axis=axis)


@composite(
    several=True, normal=_one_axis, cases=[case(S(2, 3)), case(S(2, 3), axis=-1)],
    torch="{x}.unbind({axis})", keras="ops.unstack({x}, axis={axis})",
    tensorflow="tf.unstack({x}, axis={axis})", jax="jnp.unstack({x}, axis={axis})",
)  # fmt: skip
def unstack(x: Any, *, axis: int = 0) -> Any:
    """What lies along ``axis``, one by one; torch's unbind."""
    return tuple(select(x, axis=axis, index=i) for i in range(known(x, axis, "pieces")))


def _picked_rule(x: Type, indices: Type, *, axis: int) -> Type:
    others = [tuple(s for i, s in enumerate(t.shape) if i != axis) for t in (x, indices)]
    if not indices.dtype.is_integer:
        raise TypeError(f"wants integer indices, got {indices.dtype}")
    if len(x.shape) != len(indices.shape) or others[0] != others[1]:
        raise ShapeError(f"indices {indices.shape} for {x.shape}: they differ along {axis} alone")
    return Type(x.dtype, indices.shape)


def _in_range(indices: Any, types: Any, attrs: Any) -> None:
    size = types[0].shape[attrs["axis"]]
    if indices.size and (indices.min() < -size or indices.max() >= size):
        wrong = indices[(indices < -size) | (indices >= size)].ravel()[0]
        raise IndexError(f"take_along_axis: index {wrong} is out of range for a size of {size}")


def _picked(x: Any, indices: Any, *, axis: int) -> Any:
    _in_range(indices, [x], {"axis": axis})
    return np.take_along_axis(x, indices, axis)


@composite(
    rule=_picked_rule, numpy=_picked, checks={"indices": _in_range},
    normal=lambda x, indices, *, axis: _one_axis(x, axis=axis),
    cases=[case(S(2, 5), S(2, 3, dtype="int64", low=0, high=5)),
           case(S(4, 2, 3), S(5, 2, 3, dtype="int64", low=0, high=4), axis=0)],
    torch="{x}.gather({axis}, {indices})",
    keras="ops.take_along_axis({x}, {indices}, axis={axis})",
    jax="jnp.take_along_axis({x}, {indices}, axis={axis})",
    onnx="GatherElements({x}, {indices}, axis={axis})",
)  # fmt: skip
def take_along_axis(x: Any, indices: Any, *, axis: int = -1) -> Any:
    """Along ``axis`` the entries that ``indices`` say, place by place; out of range is an error.

    Negative ones count from the end, which torch refuses.
    """
    indices = where(indices < 0, indices + x.shape[axis], indices)
    last = [i for i in range(len(x.shape)) if i != axis] + [axis]
    rows, at = transpose(x, axes=last), transpose(indices, axes=last)
    chosen = one_hot(at, classes=rows.shape[-1], dtype=int64) > 0
    # where and not a product: an infinity that is not asked for would make nan of it.
    none = OPS["full"](shape=(), value=0, dtype=x.dtype)
    picked = sum(where(chosen, expand_dims(rows, axis=-2), none), axis=-1)
    return transpose(picked, axes=[last.index(i) for i in range(len(last))])


# -- along an axis ---------------------------------------------------------------------------------
def _cumsum_rule(x: Type, *, axis: int) -> Type:
    if x.dtype == bool_:
        raise TypeError("a sum of bools is a count in some frameworks, any() in others: cast first")
    return x


@primitive(
    rule=_cumsum_rule, normal=_one_axis, axes=along,
    cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1)],
    torch="{x}.cumsum({axis})", keras="ops.cumsum({x}, {axis})",
    tensorflow="tf.cumsum({x}, {axis})", mxnet="F.cumsum({x}, axis={axis})",
    jax="{x}.cumsum({axis})",
)  # fmt: skip
def cumsum(x: Any, *, axis: int = -1) -> Any:
    """At each place the sum of all up to it along ``axis``; the array API's cumulative_sum."""
    return np.cumsum(x, axis=axis, dtype=x.dtype)


@cumsum.vjp
def _cumsum_vjp(g: Any, out: Any, x: Any, *, axis: int) -> Any:
    return (flip(cumsum(flip(g, axis=axis), axis=axis), axis=axis),)


@composite(
    normal=_one_axis, numpy=lambda x, *, axis: np.argmin(x, axis=axis).astype(np.int64),
    cases=[case(S(2, 3)), case(S(2, 3, 4), axis=1), case(S(5, dtype="int64", low=-9), axis=0)],
    torch="{x}.argmin({axis})", tensorflow="tf.argmin({x}, axis={axis})", jax="{x}.argmin({axis})",
    mxnet="F.cast(F.argmin({x}, axis={axis}), dtype='int64')",
)  # fmt: skip
def argmin(x: Any, *, axis: int = -1) -> Any:
    """The position of the smallest along ``axis`` (the first of equal ones), int64."""
    # -1 - x falls as x grows, and no integer overflows there.
    return OPS["argmax"](-x if x.dtype.is_floating else -1 - x, axis=axis)
