"""Python's operators and the usual methods, on whatever an op can be applied to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.shape import Dim, Shape, Size, size_product

OPS: dict[str, Any] = {}
"""Every op by name; filled by ``op.py`` as the ops are declared."""


class Operators:
    """Python's operators and the usual methods, on anything an op can be applied to."""

    __slots__ = ()
    __array_priority__ = 1000.0  # so that ndarray + Value comes here and not to NumPy
    __array_ufunc__ = None

    dtype: DType
    shape: Shape

    # What _install(), below, gives them, for the type checker.
    __add__: Any
    __sub__: Any
    __mul__: Any
    __truediv__: Any
    __pow__: Any
    __matmul__: Any
    __radd__: Any
    __rsub__: Any
    __rmul__: Any
    __rtruediv__: Any
    __neg__: Any
    __gt__: Any
    __lt__: Any
    __ge__: Any
    __le__: Any
    sum: Any
    mean: Any

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> Size:
        """The number of elements."""
        return size_product(self.shape)

    @property
    def T(self) -> Any:
        """The transpose of a matrix."""
        return OPS["transpose"](self)

    @property
    def mT(self) -> Any:
        """The last two axes exchanged."""
        axes = (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)
        return OPS["transpose"](self, axes=axes)

    def __getitem__(self, key: Any) -> Any:
        return OPS["getitem"](self, key)

    def __len__(self) -> int:
        return self.shape[0]  # type: ignore[return-value]  # len() itself refuses a Dim

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __pos__(self) -> Any:
        return self

    def __hash__(self) -> int:
        return id(self)

    def astype(self, dtype: Any) -> Any:
        """The elements converted to ``dtype``."""
        return OPS["cast"](self, dtype=as_dtype(dtype))

    def reshape(self, *shape: Any) -> Any:
        """The same elements in another shape; one size may be -1."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return OPS["reshape"](self, shape=tuple(sizes))

    def permute(self, *axes: int) -> Any:
        """The axes in another order."""
        return OPS["transpose"](self, axes=axes)


def _install() -> None:
    """Give Operators one method for each Python operator and the unary and reducing ops."""

    def binary(name: str, swap: bool) -> Any:
        def method(self: Any, other: Any) -> Any:
            if not isinstance(other, (Operators, bool, int, float, Dim, np.ndarray, np.generic)):
                return NotImplemented
            return OPS[name](other, self) if swap else OPS[name](self, other)

        return method

    def unary(name: str) -> Any:
        def method(self: Any, *args: Any, **attrs: Any) -> Any:
            return OPS[name](self, *args, **attrs)

        method.__name__ = name
        method.__doc__ = f"See :func:`trivium.{name}`."
        return method

    both = dict(add="add", sub="subtract", mul="multiply", truediv="divide", pow="pow",
                matmul="matmul", floordiv="floor_divide", mod="remainder")  # fmt: skip
    for dunder, name in both.items():
        setattr(Operators, f"__{dunder}__", binary(name, False))
        setattr(Operators, f"__r{dunder}__", binary(name, True))
    once = dict(eq="equal", ne="not_equal", lt="less", le="less_equal", gt="greater",
                ge="greater_equal", and_="logical_and", or_="logical_or")  # fmt: skip
    for dunder, name in once.items():
        setattr(Operators, f"__{dunder.rstrip('_')}__", binary(name, False))
    for dunder, name in dict(neg="negative", abs="abs", invert="logical_not").items():
        setattr(Operators, f"__{dunder}__", unary(name))
    for name in ("sum", "mean", "max", "min", "argmax", "exp", "log", "tanh", "sqrt", "relu",
                 "sigmoid", "flatten"):  # fmt: skip
        setattr(Operators, name, unary(name))


_install()
