"""MXNet's ``.params`` files: named arrays, read without MXNet and without trust.

The format is that of ``mxnet.nd.save``: magic number, arrays, names. Every size in the file is
compared with what is left of the file before anything of that size is made.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import UnsupportedError

DTYPES = dict(enumerate(
    (dt.float32, dt.float64, dt.float16, dt.uint8, dt.int32, dt.int8, dt.int64, dt.bool_)
))  # fmt: skip
"""Element types by MXNet's number for them, in files and in ``__dtype__``."""

_LIST = 0x112
_ARRAY = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}  # magic number -> version of the format


class _Cursor:
    """A position in the bytes of a file."""

    def __init__(self, data: memoryview, where: str):
        self.data, self.at, self.where = data, 0, where

    def wrong(self, what: str) -> UnsupportedError:
        remedy = "save the parameters again, with MXNet 1.9.1"
        return UnsupportedError(f"a damaged or foreign .params file: {what}",
                                f"{self.where}, byte {self.at}", remedy)  # fmt: skip

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= len(self.data) - self.at:
            raise self.wrong(f"{count} bytes are announced, {len(self.data) - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize(code)))
        return int(value)

    def count(self, least: int) -> int:
        """How many things of at least ``least`` bytes each follow."""
        number = self.number("Q")
        if number * least > len(self.data) - self.at:
            raise self.wrong(f"{number} entries are announced, the file is too short for them")
        return number


def read_params(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a ``.params`` file under their names there ("arg:conv0_weight")."""
    cursor = _Cursor(memoryview(path.read_bytes()), str(path))
    if cursor.number("Q") != _LIST:
        raise cursor.wrong("it does not begin as mxnet.nd.save begins")
    cursor.number("Q")  # reserved
    arrays = [_array(cursor) for _ in range(cursor.count(least=8))]
    names = [_name(cursor) for _ in range(cursor.count(least=8))]
    if len(names) != len(arrays):
        raise cursor.wrong(f"{len(arrays)} arrays and {len(names)} names")
    if len(set(names)) != len(names):
        raise cursor.wrong("two arrays have one name")
    return dict(zip(names, arrays, strict=True))


def _name(cursor: _Cursor) -> str:
    raw = cursor.take(cursor.number("Q"))
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        raise cursor.wrong("a name is not UTF-8") from None


def _array(cursor: _Cursor) -> np.ndarray[Any, Any]:
    magic = cursor.number("I")
    version = _ARRAY.get(magic)
    if version is None:
        raise cursor.wrong(f"no array begins with {magic:#x}")
    # Storage type 0 is dense; V1 knew no other.
    if version > 1 and (storage := cursor.number("i")) != 0:
        raise cursor.wrong(f"an array is sparse (storage type {storage})")
    rank = cursor.number("i")
    if not 0 <= rank <= 32 or (rank == 0 and version < 3):
        raise cursor.wrong(f"an array has {rank} axes (an array without numbers is saved so)")
    shape = tuple(cursor.number("q") for _ in range(rank))
    cursor.take(8)  # the device it was on
    code = cursor.number("i")
    if code not in DTYPES:
        raise cursor.wrong(f"element type {code} is not known")
    if min(shape, default=0) < 0:
        raise cursor.wrong(f"an array has the shape {shape}")
    dtype = DTYPES[code].numpy.newbyteorder("<")
    size = dtype.itemsize
    for length in shape:
        size *= length
    return np.frombuffer(cursor.take(size), dtype).reshape(shape)
