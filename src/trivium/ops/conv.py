"""Convolution in any number of dimensions, and its two gradients, which are ops too.

The three are linear in each operand and each other's gradients, so every derivative of a
convolution, of any order, is again one of the three; and an engine needs just these.
Kernels are (out, in / groups, *kernel) whatever the layout of the images.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trivium.framework import everywhere
from trivium.graph import OPS, Type
from trivium.op import Refused, S, case, primitive
from trivium.ops.linalg import product
from trivium.shape import ShapeError, Size, possible
from trivium.traits import CONTRACTION

_GRADIENT = Refused("a gradient: the framework derives its own")
_LAYOUTS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def pairs(value: Any, n: int) -> tuple[tuple[Size, Size], ...]:
    """Padding as (low, high) per axis, from an int, one int per axis, or pairs."""
    if isinstance(value, int):
        return ((value, value),) * n
    found = tuple((v, v) if isinstance(v, int) else (v[0], v[1]) for v in value)
    return _as_many("padding", found, n)


def each(value: Any, n: int) -> tuple[int, ...]:
    """One int per axis."""
    return (value,) * n if isinstance(value, int) else _as_many("one each", tuple(value), n)


def _as_many(what: str, found: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    if len(found) != n:
        raise ShapeError(f"{what} of {n} axes, got {found}")
    return found


def spatial(rank: int, layout: str) -> tuple[int, ...]:
    """The axes of an image that a window moves along."""
    if layout not in _LAYOUTS.get(rank - 2, ()):
        raise ShapeError(f"layout {layout!r} does not fit an array of {rank} axes")
    return tuple(range(1, rank - 1)) if layout[-1] == "C" else tuple(range(2, rank))


def default_layout(rank: int, layout: str | None) -> str:
    """``layout``, or channels first for this rank."""
    return layout or _LAYOUTS.get(rank - 2, ("?",))[0]


def conv_attrs(x: Type, *_: Any, stride: Any, padding: Any, dilation: Any, groups: int, layout: Any,
               **__: Any) -> dict[str, Any]:  # fmt: skip
    n = len(x.shape) - 2
    if groups < 1:
        raise ShapeError(f"there is at least one group, got groups={groups}")
    return {"stride": each(stride, n), "padding": pairs(padding, n), "dilation": each(dilation, n),
            "groups": groups, "layout": default_layout(n + 2, layout)}  # fmt: skip


def window_size(
    size: Size, kernel: Any, stride: int, pad: tuple[Size, Size], dilation: int
) -> Size:
    """How many windows fit: floor((size + pads - dilation * (kernel - 1) - 1) / stride) + 1."""
    for number in (kernel, stride, dilation):
        if isinstance(number, int) and number < 1:
            raise ShapeError(f"kernel, stride and dilation are 1 or more, got {number}")
    count: Size = (size + pad[0] + pad[1] - dilation * (kernel - 1) - 1) // stride + 1
    if isinstance(count, int) and count < 1:
        raise ShapeError(f"a window of {dilation * (kernel - 1) + 1} is larger than {size} + {pad}")
    return count


def _conv_rule(x: Type, w: Type, b: Type | None = None, *, stride: Any, padding: Any, dilation: Any,
               groups: int, layout: str) -> Type:  # fmt: skip
    axes = spatial(len(x.shape), layout)
    channel = layout.index("C")
    if len(w.shape) != len(x.shape) or w.dtype != x.dtype:
        raise ShapeError(f"the kernel {w} does not fit the images {x}")
    if w.shape[1] * groups != x.shape[channel]:
        raise ShapeError(
            f"the kernel {w.shape} wants {w.shape[1] * groups} channels in {groups} group(s), "
            f"the images {x.shape} ({layout}) have {x.shape[channel]}"
        )
    if isinstance(w.shape[0], int) and w.shape[0] % groups:
        raise ShapeError(f"{w.shape[0]} output channels do not split into {groups} groups")
    if b is not None and b != Type(x.dtype, (w.shape[0],)):
        error = TypeError if b.dtype != x.dtype else ShapeError
        raise error(f"the bias is {b}, wants {Type(x.dtype, (w.shape[0],))}")
    if groups < 1:
        raise ShapeError(f"groups={groups}: there is one or more")
    _held(x, layout, padding)
    shape = list(x.shape)
    shape[channel] = w.shape[0]
    for i, axis in enumerate(axes):
        shape[axis] = window_size(x.shape[axis], w.shape[i + 2], stride[i], padding[i], dilation[i])
    return Type(x.dtype, tuple(shape))


def _held(x: Type, layout: str, padding: Any) -> None:
    """Images with their padding have to be possible, whatever the stride leaves of them."""
    shape = list(x.shape)
    for axis, (low, high) in zip(spatial(len(shape), layout), padding, strict=True):
        shape[axis] = low + shape[axis] + high
    possible(tuple(shape), x.dtype.itemsize)


def _channels_first(x: Any, layout: str) -> Any:
    return x if layout[1] == "C" else np.moveaxis(x, -1, 1)


def _channels_back(x: Any, layout: str) -> Any:
    return x if layout[1] == "C" else np.moveaxis(x, 1, -1)


def _padded(x: Any, padding: Any) -> Any:
    """Channels-first images with zeros around (a negative padding cuts)."""
    if any(p > 0 for pair in padding for p in pair):
        x = np.pad(x, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in padding)])
    cut = tuple(slice(max(-a, 0), b if b < 0 else None) for a, b in padding)
    return x[(..., *cut)]


def _windows(x: Any, kernel: Any, stride: Any, dilation: Any) -> Any:
    """A view (batch, channels, *out, *kernel) of padded channels-first images."""
    axes = tuple(range(2, x.ndim))
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(x, spans, axes)
    steps = (slice(None, None, s) for s in stride)
    return view[(slice(None), slice(None), *steps, *(slice(None, None, d) for d in dilation))]


_CASES = [
    case(S(2, 3, 6, 5), S(4, 3, 3, 2)),
    case(S(2, 4, 7, 6), S(6, 2, 3, 3), S(6), stride=(2, 1), padding=((1, 2), (0, 1)),
         dilation=(1, 2), groups=2),
    case(S(2, 6, 5, 3), S(4, 3, 3, 2), S(4), stride=2, padding=1, layout="NHWC"),
    case(S(1, 4, 5, 5), S(8, 1, 3, 3), groups=4, padding=1),
    case(S(2, 3, 8), S(4, 3, 3), stride=2, padding=((0, 1),)),
]  # fmt: skip


def _without_bias(x: Any, w: Any, b: Any, *, layout: str, **attrs: Any) -> Any:
    """A convolution's bias is an addition."""
    if b is None:
        return None
    shape = tuple(b.shape[0] if a == "C" else 1 for a in layout)
    return conv(x, w, layout=layout, **attrs) + OPS["reshape"](b, shape=shape)


_IN_GROUPS = Refused("in groups, with a kernel that is no layer's", lambda a: a["groups"] != 1)


@primitive(
    rule=_conv_rule, normal=conv_attrs, cases=_CASES, native=_without_bias, keras=_IN_GROUPS,
    family=CONTRACTION, images=("x",), around=0.0,
)  # fmt: skip
def conv(x: Any, w: Any, b: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
         groups: int = 1, layout: Any = None) -> Any:  # fmt: skip
    """The convolution (correlation) of images x with kernels w, plus bias b.

    x (batch, in, *size) or, with ``layout="NHWC"``, (batch, *size, in);
    w (out, in / groups, *kernel); b (out,) or None. ``padding`` is explicit, (low, high) per axis;
    sizes are floor((size + low + high - dilation * (kernel - 1) - 1) / stride) + 1.

    >>> import trivium as tv
    >>> x, w = tv.ones((1, 1, 4, 4)), tv.ones((2, 1, 3, 3))
    >>> tv.conv(x, w, stride=2, padding=((0, 1), (0, 1))).shape
    (1, 2, 2, 2)
    """
    x = _padded(_channels_first(x, layout), padding)
    n, c = x.shape[:2]
    view = _windows(x, w.shape[2:], stride, dilation)
    out = view.shape[2 : 2 + len(stride)]
    # (n, g, c/g, *out, *k) -> (g, n * out, c/g * k), one matrix product a group
    order = range(2, 2 + len(stride))
    view = view.reshape(n, groups, c // groups, *view.shape[2:])
    columns = view.transpose(
        1, 0, *(a + 1 for a in order), 2, *(a + 1 + len(stride) for a in order)
    )
    each = c // groups * math.prod(w.shape[2:])  # never -1: an axis may be 0
    columns = columns.reshape(groups, n * math.prod(out), each)
    kernels = w.reshape(groups, w.shape[0] // groups, each).transpose(0, 2, 1)
    y = product(columns, kernels).reshape(groups, n, *out, w.shape[0] // groups)
    y = np.moveaxis(y, 0, -2).reshape(n, *out, w.shape[0])
    if b is not None:
        y = y + b
    return y if layout[-1] == "C" else np.moveaxis(y, -1, 1)


@conv.vjp
def _conv_vjp(g: Any, out: Any, x: Any, w: Any, b: Any = None, **attrs: Any) -> Any:
    layout = attrs["layout"]
    gb = None if b is None else g.sum(axis=tuple(i for i, a in enumerate(layout) if a != "C"))
    sizes = tuple(x.shape[a] for a in spatial(len(x.shape), layout))
    return (
        conv_input_grad(g, w, size=sizes, **attrs),
        conv_weight_grad(x, g, kernel=w.shape[2:], **attrs),
        gb,
    )


def _transposed(result: Type, found: Type, wants: Type) -> Type:
    """``result``, if what it is the gradient of would give ``wants``."""
    if found != wants:
        raise ShapeError(f"the gradient {wants} belongs to no {result}: that would give {found}")
    return result


def _input_grad_rule(g: Type, w: Type, *, size: Any, **attrs: Any) -> Type:
    groups, layout = attrs["groups"], attrs["layout"]
    shape = list(g.shape)
    shape[layout.index("C")] = w.shape[1] * groups
    for axis, s in zip(spatial(len(g.shape), layout), size, strict=True):
        shape[axis] = s
    x = Type(g.dtype, tuple(shape))
    return _transposed(x, _conv_rule(x, w, **attrs), g)


_GRAD_CASES = [
    case(S(2, 4, 4, 4), S(4, 3, 3, 2), size=(6, 5)),
    case(S(2, 6, 4, 3), S(6, 2, 3, 3), size=(7, 6), stride=(2, 1), padding=((1, 2), (0, 1)),
         dilation=(1, 2), groups=2),
    case(S(2, 3, 3, 4), S(4, 3, 3, 2), size=(6, 5), stride=2, padding=1, layout="NHWC"),
]  # fmt: skip


@primitive(
    rule=_input_grad_rule, normal=conv_attrs, cases=_GRAD_CASES,
    family=CONTRACTION, images=("g",),
    **everywhere(_GRADIENT),
)  # fmt: skip
def conv_input_grad(g: Any, w: Any, *, size: Any, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1, groups: int = 1, layout: Any = None) -> Any:  # fmt: skip
    """The gradient of :func:`conv` with respect to its images, of spatial ``size``."""
    g = _channels_first(g, layout)
    n, out = g.shape[0], g.shape[2:]
    each = w.shape[0] // groups
    split = g.reshape(n, groups, each, math.prod(out)).transpose(1, 0, 3, 2)  # g, n, out, o/g
    rows = split.reshape(groups, n * math.prod(out), each)  # one product for the whole batch
    kernels = w.reshape(groups, each, math.prod(w.shape[1:]))  # g, o/g, c/g * k
    columns = product(rows, kernels)  # g, n * out, c/g * k
    columns = columns.reshape(groups, n, *out, w.shape[1], *w.shape[2:])
    full = [s + a + b for s, (a, b) in zip(size, padding, strict=True)]
    image: Any = np.zeros((groups, n, w.shape[1], *(max(f, 0) for f in full)), g.dtype)
    for tap in np.ndindex(*w.shape[2:]):
        where = tuple(slice(t * d, t * d + s * (o - 1) + 1, s)
                      for t, d, s, o in zip(tap, dilation, stride, out, strict=True))  # fmt: skip
        piece = columns[(..., *tap)]  # g, n, *out, c/g
        image[(..., *where)] += np.moveaxis(piece, -1, 2)
    image = np.moveaxis(image, 0, 1).reshape(n, groups * w.shape[1], *image.shape[3:])
    image = _padded(image, [(-a, -b) for a, b in padding])
    return _channels_back(image, layout)


@conv_input_grad.vjp
def _input_grad_vjp(t: Any, out: Any, g: Any, w: Any, *, size: Any, **attrs: Any) -> Any:
    return conv(t, w, **attrs), conv_weight_grad(t, g, kernel=w.shape[2:], **attrs)


def _weight_grad_rule(x: Type, g: Type, *, kernel: Any, **attrs: Any) -> Type:
    groups, c = attrs["groups"], attrs["layout"].find("C")
    if groups < 1 or len(g.shape) != len(x.shape) or not spatial(len(x.shape), attrs["layout"]):
        raise ShapeError(f"{x}, {g} and groups={groups} do not fit")
    w = Type(x.dtype, (g.shape[c], x.shape[c] // groups, *kernel))
    return _transposed(w, _conv_rule(x, w, **attrs), g)


@primitive(
    rule=_weight_grad_rule, normal=conv_attrs, family=CONTRACTION, images=("x", "g"),
    cases=[
        case(S(2, 3, 6, 5), S(2, 4, 4, 4), kernel=(3, 2)),
        case(S(2, 4, 7, 6), S(2, 6, 4, 3), kernel=(3, 3), stride=(2, 1), padding=((1, 2), (0, 1)),
             dilation=(1, 2), groups=2),
        case(S(2, 6, 5, 3), S(2, 3, 3, 4), kernel=(3, 2), stride=2, padding=1, layout="NHWC"),
    ],
    **everywhere(_GRADIENT),
)  # fmt: skip
def conv_weight_grad(x: Any, g: Any, *, kernel: Any, stride: Any = 1, padding: Any = 0,
                     dilation: Any = 1, groups: int = 1, layout: Any = None) -> Any:  # fmt: skip
    """The gradient of :func:`conv` with respect to its kernels, of spatial size ``kernel``."""
    x, g = _padded(_channels_first(x, layout), padding), _channels_first(g, layout)
    n, c = x.shape[:2]
    d = len(kernel)
    view = _windows(x, kernel, stride, dilation)
    # Windows beyond what g covers (a stride that leaves a remainder has none) are never read.
    view = view[(slice(None), slice(None), *(slice(o) for o in g.shape[2:]))]
    view = view.reshape(n, groups, c // groups, *view.shape[2:])
    spread = tuple(range(3, 3 + d))
    columns = view.transpose(1, 0, *spread, 2, *(a + d for a in spread))
    out, each = math.prod(g.shape[2:]), g.shape[1] // groups
    columns = columns.reshape(groups, n * out, c // groups * math.prod(kernel))
    rows = g.reshape(n, groups, each, out).transpose(1, 2, 0, 3).reshape(groups, each, n * out)
    return product(rows, columns).reshape(g.shape[1], c // groups, *kernel)


@conv_weight_grad.vjp
def _weight_grad_vjp(t: Any, out: Any, x: Any, g: Any, *, kernel: Any, **attrs: Any) -> Any:
    sizes = tuple(x.shape[a] for a in spatial(len(x.shape), attrs["layout"]))
    return conv_input_grad(g, t, size=sizes, **attrs), conv(x, t, **attrs)
