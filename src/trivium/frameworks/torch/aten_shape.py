"""ATen operators that move, cut, fill, compare and reduce arrays."""

from __future__ import annotations

from typing import Any

from trivium.dtype import int64
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


@aten("transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T")
def _transpose(
    at: Reader, self: Any, dim0: int = 0, dim1: int = 1, axis0: Any = None, axis1: Any = None
) -> Any:
    rank = len(self.shape)
    if str(at.node.target).startswith(("aten.numpy_T",)):
        return OPS["transpose"](self)
    if str(at.node.target).startswith("aten.mT"):
        dim0, dim1 = -1, -2
    a, b = (dim0 if axis0 is None else axis0), (dim1 if axis1 is None else axis1)
    if rank < 2:
        return self
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return OPS["transpose"](self, axes=tuple(order))


@aten("movedim", "moveaxis")
def _movedim(at: Reader, self: Any, source: Any, destination: Any) -> Any:
    rank = len(self.shape)
    source, destination = ([s] if isinstance(s, int) else s for s in (source, destination))
    placed = {d % rank: s % rank for s, d in zip(source, destination, strict=True)}
    rest = iter(a for a in range(rank) if a not in placed.values())
    return OPS["transpose"](
        self, axes=tuple(placed[i] if i in placed else next(rest) for i in range(rank))
    )


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


@aten("repeat", "tile")
def _repeat(at: Reader, self: Any, repeats: Any = None, dims: Any = None) -> Any:
    times = list(repeats if dims is None else dims)
    rank = max(len(times), len(self.shape))
    times = [1] * (rank - len(times)) + times
    shape = (1,) * (rank - len(self.shape)) + tuple(self.shape)
    # (a, b) -> (1, a, 1, b) -> (times, a, times, b) -> joined
    apart = OPS["reshape"](self, shape=tuple(s for size in shape for s in (1, size)))
    full = OPS["broadcast_to"](
        apart, shape=tuple(s for t, n in zip(times, shape, strict=True) for s in (t, n))
    )
    return OPS["reshape"](full, shape=at.out.shape)


@aten("repeat_interleave")
def _repeat_interleave(at: Reader, self: Any, repeats: Any, dim: Any = None) -> Any:
    at.require(not isinstance(repeats, Value), "a tensor of repeats")
    x = self if dim is not None else OPS["flatten"](self)
    axis = 0 if dim is None else dim % len(x.shape)
    apart = OPS["expand_dims"](x, axis=axis + 1)
    shape = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    return OPS["reshape"](OPS["broadcast_to"](apart, shape=shape), shape=at.out.shape)


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
def _split(at: Reader, self: Any, dim: int = 0, split_size: Any = None, split_sizes: Any = None,
           chunks: Any = None, sections: Any = None, indices: Any = None) -> Any:  # fmt: skip
    axis, pieces = dim % len(self.shape), []
    # How many pieces there are, and how large, is decided by the size: that of the example.
    at.require(isinstance(self.shape[axis], int), "pieces of an open size", "fix the size")
    start: Any = 0
    for meta in at.node.meta["val"]:
        size = at.type_of(meta).shape[axis]
        pieces.append(_cut(at, self, axis, start, start + size))
        start = start + size
    return pieces


@aten("unbind")
def _unbind(at: Reader, self: Any, dim: int = 0) -> Any:
    return [OPS["select"](self, axis=dim, index=i) for i in range(self.shape[dim])]


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


@aten("gather")
def _gather(at: Reader, self: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    axis = dim % len(self.shape)
    others = [s for i, s in enumerate(self.shape) if i != axis]
    at.require(
        [s for i, s in enumerate(index.shape) if i != axis] == others,
        f"an index of shape {index.shape} for {self.shape}",
        "expand it to the sizes of what it picks from, but for that axis",
    )
    last = [i for i in range(len(self.shape)) if i != axis] + [axis]
    x, where = OPS["transpose"](self, axes=last), OPS["transpose"](index, axes=last)
    nothing = at.full((), 0, x.dtype)
    chosen = OPS["one_hot"](where, classes=x.shape[-1], dtype=x.dtype) > nothing
    # where and not a product: an infinity that is not asked for would make nan of it.
    picked = OPS["sum"](OPS["where"](chosen, OPS["expand_dims"](x, axis=-2), nothing), axis=-1)
    return OPS["transpose"](picked, axes=[last.index(i) for i in range(len(last))])


@aten("flip")
def _flip(at: Reader, self: Any, dims: Any) -> Any:
    return OPS["flip"](self, axis=tuple(dims))


@aten("roll")
def _roll(at: Reader, self: Any, shifts: Any, dims: Any) -> Any:
    at.require(len(shifts) == len(dims), "no axes")
    x = self
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % len(x.shape)
        size = x.shape[axis]
        at.require(isinstance(size, int), "an open size")
        if cut := -shift % size:
            x = OPS["concat"](_cut(at, x, axis, cut, size), _cut(at, x, axis, 0, cut), axis=axis)
    return x


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


def triangle(rows: Any, columns: Any, diagonal: int) -> Any:
    """The bool matrix that is true up to ``diagonal`` places right of the diagonal."""
    row = OPS["expand_dims"](OPS["arange"](stop=rows, dtype=int64), axis=1)
    return OPS["arange"](stop=columns, dtype=int64) <= row + diagonal


@aten("tril", "triu")
def _tri(at: Reader, self: Any, diagonal: int = 0) -> Any:
    lower = str(at.node.target).startswith("aten.tril")
    rows, columns = self.shape[-2:]
    inside = triangle(rows, columns, diagonal if lower else diagonal - 1)
    nothing = at.full((), False if self.dtype == "bool" else 0, self.dtype)
    return OPS["where"](inside, *((self, nothing) if lower else (nothing, self)))


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
aten("logical_xor", "bitwise_xor", "__xor__")(_logical("not_equal"))


@aten("logical_not", "bitwise_not")
def _not(at: Reader, self: Any) -> Any:
    at.require(
        self.dtype == "bool" or str(at.node.target).startswith("aten.logical"), "bits of integers"
    )
    return OPS["logical_not"](_truth(at, self))
