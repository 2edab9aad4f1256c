"""Products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivium.graph import OPS, Type
from trivium.op import S, case, composite, primitive
from trivium.shape import ShapeError, broadcast
from trivium.traits import CONTRACTION


def _matmul_rule(x: Type, y: Type) -> Type:
    if not x.shape or not y.shape:
        raise ShapeError(f"wants arrays of rank 1 or more, got {x} and {y}")
    a = x.shape if len(x.shape) > 1 else (1, *x.shape)
    b = y.shape if len(y.shape) > 1 else (*y.shape, 1)
    if a[-1] != b[-2]:
        raise ShapeError(f"{x} and {y} do not multiply: {a[-1]} columns meet {b[-2]} rows")
    rows = a[-2:-1] if len(x.shape) > 1 else ()
    columns = b[-1:] if len(y.shape) > 1 else ()
    return Type(x.dtype, (*broadcast(a[:-2], b[:-2]), *rows, *columns))


def product(x: Any, y: Any) -> Any:
    """NumPy's matmul in the dtype of its operands: of two bfloat16 it makes a float32."""
    return np.matmul(x, y).astype(np.result_type(x, y), copy=False)


@primitive(
    rule=_matmul_rule, promotes=True, family=CONTRACTION,
    cases=[case(S(2, 3), S(3, 4)), case(S(5, 2, 3), S(3, 4)), case(S(2, 1, 2, 3), S(4, 3, 5)),
           case(S(3), S(3, 4)), case(S(2, 3), S(3))],
    torch="{x} @ {y}", keras="ops.matmul({x}, {y})", tensorflow="{x} @ {y}",
    jax="{x} @ {y}", onnx="MatMul",
)  # fmt: skip
def matmul(x: Any, y: Any) -> Any:
    """The matrix product over the last two axes, broadcasting the others; vectors as in NumPy.

    >>> import trivium as tv
    >>> tv.matmul(tv.asarray([[1.0, 2.0]]), tv.asarray([[3.0], [4.0]]))
    tensor([[11.]])
    """
    return product(x, y)


@matmul.vjp
def _matmul_vjp(g: Any, out: Any, x: Any, y: Any) -> Any:
    reshape, flat = OPS["reshape"], len(x.shape) == 1
    a = reshape(x, shape=(1, *x.shape)) if flat else x
    b = reshape(y, shape=(*y.shape, 1)) if len(y.shape) == 1 else y
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    g = reshape(g, shape=(*batch, a.shape[-2], b.shape[-1]))
    ga, gb = g @ b.mT, a.mT @ g
    # Vectors had an axis lent; batches that were broadcast are summed back by the caller.
    gx = reshape(ga, shape=(*ga.shape[:-2], *x.shape)) if flat else ga
    gy = reshape(gb, shape=(*gb.shape[:-2], *y.shape)) if len(y.shape) == 1 else gb
    return gx, gy


def _linear_numpy(x: Any, weight: Any, bias: Any = None) -> Any:
    y = product(x, weight.T)
    if bias is None:
        return y
    return np.add(y, bias, out=y) if bias.dtype == y.dtype else y + bias


def _linear_rule(x: Type, weight: Type, bias: Type | None = None) -> Type:
    if len(weight.shape) != 2:
        raise ShapeError(f"wants a weight (out, in), got {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"a weight {weight.shape} wants a bias {weight.shape[:1]}, got {bias.shape}"
        )
    return _matmul_rule(x, Type(weight.dtype, weight.shape[::-1]))


@composite(
    rule=_linear_rule,
    numpy=_linear_numpy,
    cases=[case(S(2, 3), S(4, 3)), case(S(2, 5, 3), S(4, 3), S(4))],
    torch="F.linear({x}, {weight}, {bias})",
)
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight.T + bias on the last axis.

    x (..., in), weight (out, in), bias (out,) or None -> (..., out).
    """
    y = matmul(x, weight.T)
    return y if bias is None else y + bias
