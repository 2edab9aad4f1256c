"""Element types and their promotion, after the Python array API standard (2024.12)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

_NUMPY = {
    "bool": np.dtype(np.bool_),
    **{f"{s}int{n}": np.dtype(f"{s}int{n}") for s in ("", "u") for n in (8, 16, 32, 64)},
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


class DType(str):
    """The name of an element type, with what the rest of the house asks of it.

    It is a string so that it prints, compares and hashes as one.

    >>> float32.is_floating, int64.itemsize, float32 == "float32"
    (True, 8, True)
    """

    __slots__ = ()

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's type for it."""
        kind: np.dtype[Any] = _NUMPY[self]
        return kind

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize

    @property
    def is_floating(self) -> bool:
        return "float" in self

    @property
    def is_integer(self) -> bool:
        return "int" in self


def as_dtype(spec: Any) -> DType:
    """The DType that a name, a NumPy dtype or a NumPy scalar type means.

    >>> as_dtype("float32"), as_dtype(np.int64)
    ('float32', 'int64')
    """
    if isinstance(spec, DType):
        return spec
    name = spec if isinstance(spec, str) else np.dtype(spec).name
    if name not in _NUMPY:
        raise TypeError(f"{spec!r} is no Trivium dtype; there are {', '.join(_NUMPY)}")
    return DType(name)


bool_ = DType("bool")
int8, int16, int32, int64 = (DType(f"int{n}") for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (DType(f"uint{n}") for n in (8, 16, 32, 64))
float16, bfloat16, float32, float64 = map(DType, ("float16", "bfloat16", "float32", "float64"))
ALL = tuple(map(DType, _NUMPY))


def eps(dtype: DType) -> float:
    """The distance from 1 to the next number of a floating dtype.

    >>> eps(bfloat16)
    0.0078125
    """
    info: Any = ml_dtypes.finfo
    return float(info(dtype.numpy).eps)


def promote(*dtypes: DType) -> DType:
    """The dtype that a mixture becomes. Kinds mix only where the array API says how.

    >>> promote(float32, float64), promote(int8, uint8)
    ('float64', 'int16')
    """
    result = dtypes[0]
    for other in dtypes[1:]:
        if other == result:
            continue
        if (result.is_floating != other.is_floating) or ((result == bool_) != (other == bool_)):
            raise TypeError(
                f"{result} and {other} do not mix: the array API leaves it open and frameworks "
                f"answer differently; cast one with astype()"
            )
        if {result, other} == {float16, bfloat16}:
            result = float32  # neither holds the other; torch and JAX say so too
            continue
        common = as_dtype(np.promote_types(result.numpy, other.numpy))
        if common.is_floating != result.is_floating:  # uint64 and int64, in NumPy
            raise TypeError(f"{result} and {other} do not mix: no integer type holds both")
        result = common
    return result


def holds(value: Any, dtype: DType) -> None:
    """A TypeError for a number that no element of this dtype can be (-1 as uint8, nan as int64)."""
    try:
        with np.errstate(all="ignore"):
            np.array(value, dtype.numpy)
    except (OverflowError, ValueError, TypeError) as error:
        raise TypeError(f"{value!r} is no {dtype}") from error


def of_scalar(value: bool | int | float, like: DType | None) -> DType:
    """The dtype a Python scalar takes beside an array of dtype ``like`` (None: on its own)."""
    if isinstance(value, bool):
        return bool_
    if isinstance(value, int):
        return like if like is not None and like != bool_ else int64
    return like if like is not None and like.is_floating else float32
