"""ATen operators that move, cut, fill, compare and reduce arrays."""

from __future__ import annotations

from typing import Any

from trivium.frameworks.torch.aten import Reader, aten
from trivium.graph import OPS, Value
from trivium.shape import Dim

_END = 2**63 - 1  # what torch writes for "to the end"


# -- the same numbers ------------------------------------------------------------------------------
@aten(
    "alias",
    "clone",
    "contiguous",
    "lift_fresh_copy",
    "lift_fresh",
    "positive",
    "resolve_conj",
    "identity",
    in_order=True,
)
def _same_value(at: Reader, self: Any) -> Any:
    return self


@aten("to", "_to_copy", "type_as", "to_dtype", in_order=True)
def _to(at: Reader, self: Any, dtype: Any = None, other: Any = None) -> Any:
    return at.cast(self, at.out.dtype)


@aten("copy_", "copy")
def _copy(at: Reader, self: Any, src: Any) -> Any:
    return OPS["broadcast_to"](at.cast(src, at.out.dtype), shape=at.out.shape)


@aten("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "unflatten", in_order=True)
def _reshape(at: Reader, self: Any, size: Any = None, shape: Any = None, other: Any = None,
             dim: Any = None, sizes: Any = None, dtype: Any = None) -> Any:  # fmt: skip
    at.require(dtype is None, "a view as another dtype")
    return OPS["reshape"](self, shape=at.out.shape)


@aten("flatten", in_order=True)
def _flatten(at: Reader, self: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    rank = len(self.shape)
    if rank and end_dim % rank == rank - 1:
        return OPS["flatten"](self, start=start_dim % rank)
    return OPS["reshape"](self, shape=at.out.shape)


@aten("t", "mT", "numpy_T")
def _turned(at: Reader, self: Any) -> Any:
    if str(at.node.target).startswith("aten.numpy_T"):
        return OPS["transpose"](self)
    return self if len(self.shape) < 2 else OPS["swapaxes"](self, axis1=-2, axis2=-1)


@aten("squeeze")
def _squeeze(at: Reader, self: Any, dim: Any = None) -> Any:
    rank = len(self.shape)
    axes = (
        range(rank)
        if dim is None
        else [d % rank for d in ([dim] if isinstance(dim, int) else dim) if rank]
    )
    at.require(
        not any(isinstance(self.shape[a], Dim) for a in axes),
        f"an open size in {self.shape}: it would go when that size is 1",
        "name the axis: squeeze(-1)",
    )
    ones = tuple(a for a in axes if self.shape[a] == 1)
    return OPS["squeeze"](self, axis=ones) if ones else self


@aten("expand", "expand_as", "broadcast_to", in_order=True)
def _expand(at: Reader, self: Any, size: Any = None, other: Any = None) -> Any:
    return self if self.shape == at.out.shape else OPS["broadcast_to"](self, shape=at.out.shape)


@aten("broadcast_tensors")
def _broadcast_tensors(at: Reader, tensors: Any) -> Any:
    shapes = [at.type_of(meta).shape for meta in at.node.meta["val"]]
    return [
        t if t.shape == s else OPS["broadcast_to"](t, shape=s)
        for t, s in zip(tensors, shapes, strict=True)
    ]


# -- pieces ----------------------------------------------------------------------------------------
def _cut(at: Reader, x: Any, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
    """``x[start:stop:step]`` along one axis, clipped as Python clips."""
    size = x.shape[axis]
    if isinstance(size, int):
        at.require(isinstance(start, int) and isinstance(stop, int), "open bounds on a fixed size")
        start, stop, _ = slice(start, None if stop >= _END else stop).indices(size)
    else:
        stop = size if isinstance(stop, int) and stop >= _END else stop
        start = size + start if isinstance(start, int) and start < 0 else start
        stop = size + stop if isinstance(stop, int) and stop < 0 else stop
    if (start, stop, step) == (0, size, 1):
        return x
    return OPS["slice_axis"](x, axis=axis, start=start, stop=stop, step=step)


@aten("slice")
def _slice(
    at: Reader, self: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    return _cut(at, self, dim % len(self.shape), start or 0, _END if end is None else end, step)


@aten("narrow")
def _narrow(at: Reader, self: Any, dim: int, start: Any, length: Any) -> Any:
    return _cut(at, self, dim % len(self.shape), start, start + length)


@aten("select")
def _select(at: Reader, self: Any, dim: int, index: Any) -> Any:
    at.require(isinstance(index, int), "an open index")
    return OPS["select"](self, axis=dim, index=index)


@aten("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def _split(at: Reader, self: Any, dim: int = 0, **_: Any) -> Any:
    # How many pieces there are, and how large, is decided by the size: that of the example.
    at.require(isinstance(self.shape[dim], int), "pieces of an open size", "fix the size")
    sizes = (at.type_of(meta).shape[dim] for meta in at.node.meta["val"])
    return OPS["split"](self, sizes=tuple(sizes), axis=dim)


@aten("index")
def _index(at: Reader, self: Any, indices: Any) -> Any:
    used = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    at.require(
        len(used) == 1 and used[0][1].dtype.is_integer,
        "a mask or several index arrays",
        "use torch.where for a mask",
    )
    return OPS["take"](self, used[0][1], axis=used[0][0])


@aten("index_select")
def _index_select(at: Reader, self: Any, dim: int, index: Any) -> Any:
    return OPS["take"](self, index, axis=dim)


@aten("flip")
def _flip(at: Reader, self: Any, dims: Any) -> Any:
    return OPS["flip"](self, axis=tuple(dims))


@aten("pad", "constant_pad_nd")
def _pad(at: Reader, self: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    at.require(mode == "constant", f"mode={mode!r}", "only constant padding has an op")
    rank = len(self.shape)
    low, high = [0] * rank, [0] * rank
    for i in range(len(pad) // 2):  # torch begins at the last axis
        low[rank - 1 - i], high[rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    return OPS["pad"](self, low=tuple(low), high=tuple(high), value=float(value or 0))


# -- arrays from nothing ---------------------------------------------------------------------------
def _filled(number: Any) -> Any:
    def handler(at: Reader, fill_value: Any = None, value: Any = None, **_: Any) -> Any:
        given = fill_value if value is None else value
        fill = number if number is not None else given
        if isinstance(fill, Value):
            return OPS["broadcast_to"](at.cast(fill, at.out.dtype), shape=at.out.shape)
        return at.full(at.out.shape, fill, at.out.dtype)

    return handler


aten("zeros", "zeros_like", "new_zeros", "zero_")(_filled(0))
aten("ones", "ones_like", "new_ones")(_filled(1))
aten("full", "full_like", "new_full", "fill_", "fill")(_filled(None))


@aten("scalar_tensor")
def _scalar_tensor(at: Reader, s: Any, dtype: Any = None) -> Any:
    return at.full((), s, at.out.dtype)


@aten("arange")
def _arange(at: Reader, end: Any, start: Any = 0, step: Any = 1, dtype: Any = None) -> Any:
    at.require(
        not any(isinstance(i, float) for i in (start, end, step)) and step > 0,
        "bounds that are no integers",
    )
    return OPS["arange"](start=start, stop=end, step=step, dtype=at.out.dtype)


# -- choice and logic ------------------------------------------------------------------------------
@aten("where")
def _where(at: Reader, condition: Any, self: Any, other: Any) -> Any:
    return OPS["where"](condition, *at.promoted(self, other, dtype=at.out.dtype))


@aten("masked_fill")
def _masked_fill(at: Reader, self: Any, mask: Any, value: Any) -> Any:
    if isinstance(value, Value):
        return OPS["where"](mask, at.cast(value, self.dtype), self)
    return OPS["masked_fill"](self, mask, value=value)


def _truth(at: Reader, x: Any) -> Any:
    return x if x.dtype == "bool" else OPS["not_equal"](x, at.full((), 0, x.dtype))


def _logical(name: str) -> Any:
    def handler(at: Reader, self: Any, other: Any) -> Any:
        x, y = (i if isinstance(i, Value) else at.cast(i, at.out.dtype) for i in (self, other))
        bitwise = str(at.node.target).startswith(("aten.bitwise", "aten.__"))
        at.require(not bitwise or x.dtype == y.dtype == "bool", "bits of integers")
        return OPS[name](_truth(at, x), _truth(at, y))

    return handler


aten("logical_and", "bitwise_and", "__and__")(_logical("logical_and"))
aten("logical_or", "bitwise_or", "__or__")(_logical("logical_or"))
aten("logical_xor", "bitwise_xor", "__xor__")(_logical("logical_xor"))


@aten("logical_not", "bitwise_not")
def _not(at: Reader, self: Any) -> Any:
    at.require(
        self.dtype == "bool" or str(at.node.target).startswith("aten.logical"), "bits of integers"
    )
    return OPS["logical_not"](_truth(at, self))
