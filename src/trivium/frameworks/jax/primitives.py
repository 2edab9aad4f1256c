"""What JAX's primitives are in our ops: those that no line of a declaration says.

A handler gets the reader, the operands and the primitive's parameters by their names; what it does
not name is at rest, or the primitive is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.ways import FIRST, LAST
from trivium.graph import OPS, Value
from trivium.ops.control import cond as cond_op
from trivium.ops.control import scan as scan_op
from trivium.shape import Dim, parse_size, size_product
from trivium.transforms.unroll import UNROLLED

HANDLERS: dict[str, Callable[..., Any]] = {}
IDLE = {
    "sharding", "out_sharding", "accuracy", "weak_type", "num_consts", "jvp_jaxpr_fun",
    "symbolic_zeros", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees", "keep_unused",
    "inline", "donated_invars", "in_shardings", "out_shardings", "in_layouts", "out_layouts",
    "resource_env", "ctx_mesh", "compiler_options_kvs", "dimensions", "unroll", "_split_transpose",
    "linear", "is_tree", "mesh_axes",
}  # fmt: skip
"""Parameters that say where numbers lie or how they are computed, never which."""


REMEDIES = {
    "while": "lax.fori_loop and lax.scan with a number of steps that is known are read",
    "scatter": "jnp.where and jnp.concatenate are read, .at[...].set is not",
    "reduce_window": "lax.max and lax.add are read, from -inf and from 0",
}
"""What to write instead of a primitive that is not read."""


def primitive(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The decorated function reads these primitives."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return enter


def sizes(shape: Any) -> tuple[Any, ...]:
    """A shape of JAX's in ours."""
    return tuple(int(s) if isinstance(s, (int, np.integer)) else parse_size(str(s)) for s in shape)


def number_of(x: Value) -> Any:
    """The number, or the open size, that a Value is; None where it is computed."""
    known = x.node is not None and x.node.op == "full" and x.shape == ()
    return x.node.attrs["value"] if known and x.node is not None else None


def _shape(at: Any) -> tuple[Any, ...]:
    return sizes(at.eqn.outvars[0].aval.shape)


def _require(at: Any, holds: bool, what: str) -> None:
    if not holds:
        raise at.refuse(f"the primitive {at.eqn.primitive.name} with {what}")


# -- the same numbers, elsewhere -------------------------------------------------------------------
@primitive("broadcast_in_dim")
def _broadcast(at: Any, x: Value, shape: Any, broadcast_dimensions: Any) -> Any:
    wanted = sizes(shape)
    if len(wanted) == len(x.shape):
        return x if tuple(x.shape) == wanted else OPS["broadcast_to"](x, shape=wanted)
    spread = tuple(
        x.shape[broadcast_dimensions.index(i)] if i in broadcast_dimensions else 1
        for i in range(len(wanted))
    )
    y = OPS["reshape"](x, shape=spread) if x.shape else x
    return y if tuple(y.shape) == wanted else OPS["broadcast_to"](y, shape=wanted)


@primitive("reshape")
def _reshape(at: Any, x: Value, new_sizes: Any) -> Any:
    return OPS["reshape"](x, shape=sizes(new_sizes))


@primitive("transpose")
def _transpose(at: Any, x: Value, permutation: Any) -> Any:
    return OPS["transpose"](x, axes=tuple(permutation))


@primitive("squeeze", "expand_dims")
def _squeeze(at: Any, x: Value, **_: Any) -> Any:
    return OPS["reshape"](x, shape=_shape(at))


@primitive("convert_element_type")
def _convert(at: Any, x: Value, new_dtype: Any) -> Any:
    kind = as_dtype(new_dtype)
    if x.dtype == kind:
        return x
    if isinstance(size := number_of(x), Dim):
        return OPS["full"](shape=(), value=size, dtype=kind)
    return OPS["cast"](x, dtype=kind)


@primitive("copy", "copy_p", "optimization_barrier")
def _copy(at: Any, *xs: Value) -> Any:
    return list(xs)


@primitive("stop_gradient")
def _stop(at: Any, x: Value) -> Any:
    return OPS["stop_gradient"](x)


@primitive("concatenate")
def _concatenate(at: Any, *xs: Value, dimension: int) -> Any:
    return OPS["concat"](*xs, axis=int(dimension))


@primitive("slice")
def _slice(at: Any, x: Value, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    y = x
    steps = strides or (1,) * len(start_indices)
    ends = zip(sizes(start_indices), sizes(limit_indices), steps, strict=True)
    for axis, (start, stop, step) in enumerate(ends):
        if (start, stop, step) != (0, x.shape[axis], 1):
            y = OPS["slice_axis"](y, axis=axis, start=start, stop=stop, step=step)
    return y


@primitive("split")
def _split(at: Any, x: Value, sizes: Any, axis: int) -> Any:
    return OPS["split"](x, sizes=tuple(sizes), axis=axis)


@primitive("gather")
def _gather(at: Any, x: Value, indices: Value, dimension_numbers: Any, slice_sizes: Any, mode: Any,
            **_: Any) -> Any:  # fmt: skip
    """What is picked along one axis: by a number, or by an array of numbers."""
    d, shape = dimension_numbers, sizes(slice_sizes)
    what = "a place of its own for each (take_along_axis), or several axes: pick by one_hot instead"
    _require(at, not d.operand_batching_dims, what)
    starts = _numbers(indices)
    if starts is not None and len(starts) == len(d.start_index_map):
        for axis, start in zip(d.start_index_map, starts, strict=True):
            if shape[axis] != x.shape[axis]:
                _require(at, 0 <= start <= x.shape[axis] - shape[axis], "a place outside")
                x = OPS["slice_axis"](x, axis=axis, start=start, stop=start + shape[axis])
        return _shaped(x, _shape(at))
    _require(at, len(d.start_index_map) == 1 and shape[d.start_index_map[0]] == 1, what)
    axis, ids = d.start_index_map[0], OPS["reshape"](indices, shape=tuple(indices.shape[:-1]))
    _require(at, tuple(d.collapsed_slice_dims) == (axis,), "a size of 1 that stays")
    _require(at, "CLIP" not in str(mode), 'mode="clip": use mode="fill"')
    # ours are (before, indices, after); theirs has what is not picked at offset_dims
    y, many = OPS["take"](x, ids, axis=axis), len(ids.shape)
    places = iter([*range(axis), *range(axis + many, len(y.shape))])
    inner = iter(range(axis, axis + many))
    return _ordered(y, [next(places if i in d.offset_dims else inner) for i in range(len(y.shape))])


@primitive("dynamic_slice")
def _dynamic_slice(at: Any, x: Value, *starts: Value, slice_sizes: Any) -> Any:
    """Where it starts is known by now: the counter of a loop that is written out."""
    for axis, (start, count) in enumerate(zip(starts, sizes(slice_sizes), strict=True)):
        if (size := x.shape[axis]) != count:
            first = number_of(start)
            _require(at, isinstance(first, int) and isinstance(size, int), "a computed start")
            first = min(max(first, 0), size - count)
            x = OPS["slice_axis"](x, axis=axis, start=first, stop=first + count)
    return x


def _numbers(x: Value) -> list[Any] | None:
    """The numbers in a vector that is made of numbers; None where one is computed."""
    if (number := number_of(x)) is not None:
        return [number]
    if x.node is None or x.node.op not in ("reshape", "broadcast_to", "concat") or x.size == 0:
        return None
    parts = [_numbers(v) for v in x.node.inputs if v is not None]
    found = [n for part in parts if part is not None for n in part]
    return found if None not in parts and len(found) == x.size else None


@primitive("rev")
def _rev(at: Any, x: Value) -> Any:
    return OPS["flip"](x, axis=tuple(at.eqn.params["dimensions"]))


@primitive("pad")
def _pad(at: Any, x: Value, value: Value, padding_config: Any) -> Any:
    number = number_of(value)
    _require(at, number is not None, "a value that is computed")
    low, high, interior = zip(*padding_config, strict=True)
    return OPS["pad"](x, low=low, high=high, interior=interior, value=number)


@primitive("iota")
def _iota(at: Any, dtype: Any, shape: Any, dimension: int) -> Any:
    wanted = sizes(shape)
    line = OPS["arange"](stop=wanted[dimension], dtype=as_dtype(dtype))
    ones = tuple(s if i == dimension else 1 for i, s in enumerate(wanted))
    return OPS["broadcast_to"](OPS["reshape"](line, shape=ones), shape=wanted)


@primitive("dim_as_value")
def _size(at: Any, dim: Any) -> Any:
    return OPS["full"](shape=(), value=parse_size(str(dim)), dtype=_dtype_of(at))


def _dtype_of(at: Any) -> Any:
    return as_dtype(at.eqn.outvars[0].aval.dtype)


# -- one number at a time --------------------------------------------------------------------------
@primitive("integer_pow")
def _integer_pow(at: Any, x: Value, y: int) -> Any:
    if y == 2:
        return OPS["square"](x)
    _require(at, y != 0, "the exponent 0")
    return OPS["reciprocal"](x) if y == -1 else OPS["pow"](x, float(y))


@primitive("abs")
def _abs(at: Any, x: Value) -> Any:
    return OPS["where"](OPS["greater_equal"](x, _filled(0, x)), x, -x)  # its slope at 0 is 1


def _filled(number: float, like: Value) -> Any:
    return OPS["full"](shape=(), value=number, dtype=like.dtype)


@primitive("select_n")
def _select(at: Any, which: Value, *cases: Value) -> Any:
    _require(at, len(cases) == 2 and which.dtype == "bool", "more than two cases")
    if (known := number_of(which)) is not None:
        return cases[bool(known)]
    return OPS["where"](which, cases[1], cases[0])


@primitive("max", "min")
def _extremum(at: Any, x: Value, y: Value) -> Any:
    name = {"max": "maximum", "min": "minimum"}[at.eqn.primitive.name]
    return OPS[name](x, y, ties="share")


@primitive("clamp")
def _clamp(at: Any, low: Value, x: Value, high: Value) -> Any:
    y = OPS["maximum"](x, low, ties="share")
    return OPS["minimum"](y, high, ties="share")


# -- many numbers at a time ------------------------------------------------------------------------
@primitive("reduce_sum", "reduce_max", "reduce_min")
def _reduce(at: Any, x: Value, axes: Any) -> Any:
    name = at.eqn.primitive.name.removeprefix("reduce_")
    return OPS[name](x, axis=tuple(map(int, axes))) if axes else x


@primitive("argmax", "argmin")
def _place(at: Any, x: Value, axes: Any, index_dtype: Any) -> Any:
    found = OPS[at.eqn.primitive.name](x, axis=axes[0])
    return OPS["cast"](found, dtype=as_dtype(index_dtype))


@primitive("dot_general")
def _dot(at: Any, x: Value, y: Value, dimension_numbers: Any, precision: Any = None,
         preferred_element_type: Any = None) -> Any:  # fmt: skip
    """Batch axes first, then what stays of x, then what stays of y."""
    wide = preferred_element_type is None or as_dtype(preferred_element_type) == x.dtype
    _require(at, wide, f"preferred_element_type={preferred_element_type}")
    (xc, yc), (xb, yb) = dimension_numbers
    x_free = [a for a in range(len(x.shape)) if a not in (*xc, *xb)]
    y_free = [a for a in range(len(y.shape)) if a not in (*yc, *yb)]
    batch, free, summed, others = (
        tuple(v.shape[i] for i in axes) for v, axes in ((x, xb), (x, x_free), (x, xc), (y, y_free))
    )
    rows = (size_product(free),) if batch else free
    columns = (size_product(others),) if batch or others else ()
    a = _shaped(_ordered(x, (*xb, *x_free, *xc)), (*batch, *rows, size_product(summed)))
    b = _shaped(_ordered(y, (*yb, *yc, *y_free)), (*batch, size_product(summed), *columns))
    return _shaped(OPS["matmul"](a, b), _shape(at))


def _shaped(x: Any, shape: Any) -> Any:
    return x if tuple(x.shape) == tuple(shape) else OPS["reshape"](x, shape=tuple(shape))


def _ordered(x: Value, axes: Any) -> Any:
    same = tuple(axes) == tuple(range(len(axes)))
    return x if same else OPS["transpose"](x, axes=tuple(axes))


@primitive("conv_general_dilated")
def _conv(at: Any, x: Value, w: Value, window_strides: Any, padding: Any, lhs_dilation: Any,
          rhs_dilation: Any, dimension_numbers: Any, feature_group_count: int,
          batch_group_count: int, precision: Any = None,
          preferred_element_type: Any = None) -> Any:  # fmt: skip
    n = len(window_strides)
    _require(at, batch_group_count == 1, "groups of the batch")
    spec = dimension_numbers
    last = tuple(spec.lhs_spec) == (0, n + 1, *range(1, n + 1)) == tuple(spec.out_spec)
    first = tuple(spec.lhs_spec) == tuple(range(n + 2)) == tuple(spec.out_spec)
    _require(at, first or last, f"the layout {spec}")
    layout = (FIRST if first else LAST)[n - 1]
    kernel = _ordered(w, tuple(spec.rhs_spec))
    if set(lhs_dilation) != {1}:  # a transposed convolution is one over images with gaps
        gaps = tuple(d - 1 for d in lhs_dilation)
        inside = (0, 0, *gaps) if first else (0, *gaps, 0)
        none = (0,) * (n + 2)
        x = OPS["pad"](x, low=none, high=none, interior=inside, value=0.0)
    attrs = {"stride": tuple(window_strides), "dilation": tuple(rhs_dilation), "layout": layout}
    pads = tuple(map(tuple, padding))
    return OPS["conv"](x, kernel, padding=pads, groups=feature_group_count, **attrs)


@primitive("reduce_window_max", "reduce_window_sum")
def _window(at: Any, x: Value, window_dimensions: Any, window_strides: Any, padding: Any,
            base_dilation: Any, window_dilation: Any) -> Any:  # fmt: skip
    n = len(window_dimensions) - 2
    _require(at, {*base_dilation, *window_dilation} == {1}, "a dilation")
    last = window_dimensions[-1] == 1
    inner = slice(1, -1) if last else slice(2, None)
    outer = (window_dimensions[0], window_dimensions[-1 if last else 1])
    pads = tuple(map(tuple, padding))
    around = (pads[0], pads[-1 if last else 1])
    _require(at, n > 0 and outer == (1, 1) and around == ((0, 0), (0, 0)), "a window over channels")
    attrs: dict[str, Any] = {
        "kernel": tuple(window_dimensions[inner]), "stride": tuple(window_strides[inner]),
        "padding": pads[inner], "layout": (LAST if last else FIRST)[n - 1],
    }  # fmt: skip
    if at.eqn.primitive.name == "reduce_window_max":
        return OPS["max_pool"](x, **attrs)
    count = float(np.prod(attrs["kernel"]))
    return OPS["avg_pool"](x, include_pad=True, **attrs) * count


@primitive("cond")
def _cond(at: Any, which: Value, *operands: Value, branches: Any) -> Any:
    _require(at, len(branches) == 2, "more than two branches (lax.switch)")
    otherwise, then = (
        lambda *xs, b=branch: tuple(at.run(b.jaxpr, b.consts, xs)) for branch in branches
    )
    return cond_op(OPS["not_equal"](which, _filled(0, which)), then, otherwise, *operands)


# -- loops -----------------------------------------------------------------------------------------
@primitive("scan")
def _scan(at: Any, *values: Value, jaxpr: Any, num_carry: int, length: Any,
          reverse: bool) -> Any:  # fmt: skip
    held = at.eqn.params["num_consts"]
    consts, carry = values[:held], values[held : held + num_carry]
    along = values[held + num_carry :]
    if not along:  # fori_loop: its counter is no number that a loop of ours would know
        _require(at, isinstance(length, int) and length <= UNROLLED, f"{length} steps")
        for _ in range(length):
            carry = at.run(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry])
        return carry

    def step(state: Any, x: Any) -> Any:
        found = at.run(jaxpr.jaxpr, jaxpr.consts, [*consts, *state, *x])
        return tuple(found[:num_carry]), tuple(found[num_carry:])

    last, ys = scan_op(step, tuple(carry), tuple(along), reverse=reverse)
    return [*last, *ys]
