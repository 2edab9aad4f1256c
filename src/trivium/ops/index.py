"""Picking by index arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import Type
from trivium.op import Refused, S, case, composite, primitive
from trivium.shape import ShapeError, normalize_axes
from trivium.traits import MOVEMENT


def _take_rule(x: Type, indices: Type, *, axis: int) -> Type:
    if not indices.dtype.is_integer:
        raise TypeError(f"wants integer indices, got {indices.dtype}")
    return Type(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _axis(x: Type, *_: Any, axis: int, **__: Any) -> dict[str, Any]:
    return {"axis": normalize_axes(axis, len(x.shape))[0]}


def _along(x: Any, indices: Any, *, axis: int) -> tuple[int, Any, str]:
    size = x.shape[axis]
    return -size, size, f"an axis of size {size}"


def _rows(weight: Any, indices: Any) -> tuple[int, Any, str]:
    """Rows have numbers from 0: no framework's embedding counts them from the end."""
    return 0, weight.shape[0], f"a table of {weight.shape[0]} rows"


@primitive(
    rule=_take_rule, normal=_axis,
    cases=[
        case(S(5, 3), S(2, 4, dtype="int64", low=0, high=5)),
        case(S(2, 6, 3), S(4, dtype="int64", low=0, high=6), axis=1),
    ],
    family=MOVEMENT, cost=8, bounds={"indices": _along},
    keras="ops.take({x}, {indices}, axis={axis})",
    tensorflow="tf.gather({x}, {indices}, axis={axis})",
    mxnet="F.take({x}, {indices}, axis={axis}, mode='raise')",
    jax="jnp.take({x}, {indices}, axis={axis})", onnx="Gather",
)  # fmt: skip
def take(x: Any, indices: Any, *, axis: int = 0) -> Any:
    """The entries of x at ``indices`` along ``axis``; out of range is an error."""
    return np.take(x, indices, axis=axis)


@take.vjp
def _take_vjp(g: Any, out: Any, x: Any, indices: Any, *, axis: int) -> Any:
    return take_grad(g, indices, axis=axis, size=x.shape[axis]), None


def _take_grad_rule(g: Type, indices: Type, *, axis: int, size: Any) -> Type:
    if g.shape[axis : axis + len(indices.shape)] != indices.shape:
        raise ShapeError(f"{g} is not what {indices} took along axis {axis}")
    after = g.shape[axis + len(indices.shape) :]
    x = Type(g.dtype, (*g.shape[:axis], size, *after))
    if not 0 <= axis < len(x.shape) or _take_rule(x, indices, axis=axis) != g:
        raise ShapeError(f"the gradient {g} does not come from {indices} along axis {axis}")
    return x


def _grad_axis(g: Type, indices: Type, *, axis: int, size: Any) -> dict[str, Any]:
    return {"axis": normalize_axes(axis, len(g.shape) - len(indices.shape) + 1)[0]}


@primitive(
    rule=_take_grad_rule,
    normal=_grad_axis,
    vjp=lambda g, out, x, indices, *, axis, size: (take(g, indices, axis=axis), None),
    cases=[case(S(2, 4, 3), S(2, 4, dtype="int64", low=0, high=5), axis=0, size=5)],
    **dict.fromkeys(("torch", "keras", "mxnet"),
                    Refused("a gradient: the framework derives its own")),
    tensorflow=Refused("it scatters along the first axis alone", lambda a: a["axis"] != 0),
)  # fmt: skip
def take_grad(g: Any, indices: Any, *, axis: int, size: Any) -> Any:
    """The transpose of take: each slice of g added where ``indices`` took it from."""
    rank = indices.ndim
    moved = g.reshape(*g.shape[:axis], indices.size, *g.shape[axis + rank :])
    moved = np.moveaxis(moved, axis, 0)
    out = np.zeros((size, *moved.shape[1:]), g.dtype)
    np.add.at(out, indices.ravel(), moved)
    return np.moveaxis(out, 0, axis)


def _one_hot_rule(indices: Type, *, classes: Any, dtype: dt.DType) -> Type:
    if isinstance(classes, int) and classes < 1:
        raise ShapeError(f"wants at least one class, got {classes}")
    return Type(dtype, (*indices.shape, classes))


@primitive(
    rule=_one_hot_rule,
    vjp=lambda *_, **__: (None,),
    cases=[case(S(2, 3, dtype="int64", low=0, high=4), classes=4)],
    bounds={"indices": lambda indices, *, classes, **_: (0, classes, f"{classes} classes")},
    keras="ops.one_hot({indices}, {classes}, dtype={dtype})",
    tensorflow="tf.one_hot({indices}, {classes}, dtype={dtype})",
    mxnet="F.one_hot({indices}, {classes}, dtype={dtype})",
    jax="jax.nn.one_hot({indices}, {classes}, dtype={dtype})",
)  # fmt: skip
def one_hot(indices: Any, *, classes: int, dtype: dt.DType = dt.float32) -> Any:
    """1 at each index and 0 elsewhere, along a new last axis.

    An index out of range is an error, as in torch; TF and JAX would make a row of zeros of it.
    """
    return (indices[..., None] == np.arange(classes)).astype(dtype.numpy)


@composite(
    numpy=lambda weight, indices: np.take(weight, indices, axis=0),
    cases=[case(S(5, 3), S(2, 4, dtype="int64", low=0, high=5))],
    bounds={"indices": _rows},
    torch="F.embedding({indices}, {weight})",
)  # fmt: skip
def embedding(weight: Any, indices: Any) -> Any:
    """Rows of the table ``weight`` (count, width) at integer ``indices``."""
    if len(weight.shape) != 2:
        raise ShapeError(f"wants a table (count, width), got {weight.shape}; use take")
    return take(weight, indices, axis=0)
