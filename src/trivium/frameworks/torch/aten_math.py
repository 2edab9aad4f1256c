"""ATen operators that compute: sums and extrema, products, arithmetic."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.torch.aten import Reader, aten
from trivium.frameworks.torch.exported import name_of
from trivium.graph import OPS, Value

_END = 2**63 - 1  # what torch writes for "to the end"


# -- sums and extrema ------------------------------------------------------------------------------
@aten("max", "min")
def _extremum(
    at: Reader, self: Any, dim: Any = None, keepdim: bool = False, other: Any = None
) -> Any:
    largest = str(at.node.target).startswith("aten.max")
    if other is not None:
        return OPS["maximum" if largest else "minimum"](*at.promoted(self, other), ties="share")
    # The whole array's largest shares its gradient; along an axis the position found has it all.
    ties = "share" if dim is None else "first"
    values = OPS["max" if largest else "min"](self, axis=dim, keepdims=keepdim, ties=ties)
    if dim is None:
        return values
    read = any(u.args[1] == 1 and u.users for u in at.node.users)
    return values, _place(at, self, dim, keepdim) if read else None


@aten("argmax", "argmin")
def _place(at: Reader, self: Any, dim: Any = None, keepdim: bool = False) -> Any:
    x, axis = (OPS["flatten"](self), 0) if dim is None else (self, dim)
    found = OPS[f"arg{name_of(at.node).removeprefix('arg')}"](x, axis=axis)
    return (
        OPS["expand_dims"](found, axis=dim % len(self.shape))
        if keepdim and dim is not None
        else found
    )


@aten("var", "std")
def _var(at: Reader, self: Any, dim: Any = None, correction: Any = 1, unbiased: bool = True,
         keepdim: bool = False) -> Any:  # fmt: skip
    less = 0 if not unbiased else 1 if correction is None else correction
    axis = tuple(dim) if dim else None
    return OPS[name_of(at.node)](self, axis=axis, correction=less, keepdims=keepdim)


@aten("norm")
def _norm(at: Reader, self: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    x, axis = at.cast(self, at.out.dtype), tuple(dim) if dim else None
    return OPS["vector_norm"](x, axis=axis, keepdims=keepdim, ord=2 if p is None else p)


# -- products --------------------------------------------------------------------------------------
@aten("matmul", "mm", "bmm", "mv", "dot")
def _matmul(
    at: Reader, self: Any, other: Any = None, mat2: Any = None, vec: Any = None, tensor: Any = None
) -> Any:
    return OPS["matmul"](self, next(t for t in (other, mat2, vec, tensor) if t is not None))


@aten("addmm", "baddbmm")
def _addmm(at: Reader, self: Any, mat1: Any = None, mat2: Any = None, batch1: Any = None,
           batch2: Any = None, beta: Any = 1, alpha: Any = 1) -> Any:  # fmt: skip
    product = OPS["matmul"](mat1 if batch1 is None else batch1, mat2 if batch2 is None else batch2)
    product = product if alpha == 1 else product * alpha
    if beta == 0:  # torch does not even read it
        return product
    return (self if beta == 1 else self * beta) + product


# -- arithmetic -----------------------------------------------------------------------------------
@aten("add", "sub")
def _sum_of_two(at: Reader, self: Any, other: Any, alpha: Any = 1) -> Any:
    """With a factor; without one, the line of the op says it."""
    if alpha == 1:
        return at.by_its_line(at.node)
    x, y = at.promoted(self, other)
    return OPS["add" if name_of(at.node).startswith("add") else "subtract"](x, y * alpha)


@aten("rsub")
def _rsub(at: Reader, self: Any, other: Any, alpha: Any = 1) -> Any:
    x, y = at.promoted(self, other)
    return y - (x if alpha == 1 else x * alpha)


@aten("pow", "square")
def _pow(at: Reader, self: Any, exponent: Any = 2) -> Any:
    if isinstance(self, Value) and isinstance(exponent, (int, float)):
        x = at.cast(self, at.out.dtype)
        if exponent in (1, 2):
            return x if exponent == 1 else OPS["square"](x)
        if abs(exponent) == 0.5:  # so torch computes it: below 0 it is NaN, at -0.0 infinite
            root = OPS["sqrt"](x)
            return root if exponent > 0 else at.full((), 1, x.dtype) / root
        at.require(exponent != 0, "the exponent 0")
        return OPS["pow"](x, at.full((), exponent, x.dtype))
    return OPS["pow"](*at.promoted(self, exponent))
