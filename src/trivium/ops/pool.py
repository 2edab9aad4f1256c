"""Windows over images, and what pools make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trivium.dtype import holds
from trivium.framework import everywhere
from trivium.graph import OPS, Type
from trivium.op import Refused, S, case, composite, primitive
from trivium.ops.conv import (
    _channels_back,
    _channels_first,
    _held,
    _padded,
    _transposed,
    _windows,
    default_layout,
    each,
    pairs,
    spatial,
    window_size,
)
from trivium.traits import MOVEMENT

_INSIDE = everywhere(
    Refused("the inside of a pool or of its gradient: the framework has the whole")
)


def _normal(x: Type, *, kernel: Any, stride: Any, padding: Any, dilation: Any = 1, layout: Any,
            **_: Any) -> dict[str, Any]:  # fmt: skip
    n = len(x.shape) - 2
    attrs = {"kernel": each(kernel, n), "stride": each(kernel if stride is None else stride, n),
             "padding": pairs(padding, n), "dilation": each(dilation, n),
             "layout": default_layout(n + 2, layout)}  # fmt: skip
    return attrs


def _normal_plain(x: Type, **attrs: Any) -> dict[str, Any]:
    out = _normal(x, **attrs)
    del out["dilation"]
    return out


def _fold_normal(g: Type, *, size: Any, **attrs: Any) -> dict[str, Any]:
    n = len(attrs["kernel"])
    return _normal(Type(g.dtype, g.shape[: len(g.shape) - n]), **attrs)


def _pool_rule(x: Type, *, kernel: Any, stride: Any, padding: Any, layout: str,
               dilation: Any = None, **_: Any) -> Type:  # fmt: skip
    shape = list(x.shape)
    dilation = dilation or (1,) * len(kernel)
    _held(x, layout, padding)
    for i, axis in enumerate(spatial(len(x.shape), layout)):
        shape[axis] = window_size(x.shape[axis], kernel[i], stride[i], padding[i], dilation[i])
    return Type(x.dtype, tuple(shape))


def _windows_rule(x: Type, *, kernel: Any, **attrs: Any) -> Type:
    if any(p for pair in attrs["padding"] for p in pair):
        holds(attrs.get("value", 0.0), x.dtype)
    return Type(x.dtype, (*_pool_rule(x, kernel=kernel, **attrs).shape, *kernel))


def _filled(x: Any, padding: Any, value: float) -> Any:
    if value == 0:
        return _padded(x, padding)
    return np.pad(x, [(0, 0), (0, 0), *padding], constant_values=value)


@primitive(
    rule=_windows_rule, normal=_normal, family=MOVEMENT, images=("x",), **_INSIDE,
    cases=[
        case(S(2, 3, 5, 4), kernel=(3, 2)),
        case(S(2, 5, 6, 3), kernel=2, stride=(2, 1), padding=((1, 0), (0, 1)), dilation=(1, 2),
             layout="NHWC"),
    ],
)  # fmt: skip
def windows(x: Any, *, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            value: float = 0.0, layout: Any = None) -> Any:  # fmt: skip
    """Every window of images x, its elements along new last axes: (..., *kernel)."""
    view = _windows(_filled(_channels_first(x, layout), padding, value), kernel, stride, dilation)
    if layout[-1] == "C":
        view = np.moveaxis(view, 1, 1 + len(kernel))
    return np.ascontiguousarray(view)


@windows.vjp
def _windows_vjp(g: Any, out: Any, x: Any, *, value: float, **attrs: Any) -> Any:
    sizes = tuple(x.shape[a] for a in spatial(len(x.shape), attrs["layout"]))
    return (fold(g, size=sizes, **attrs),)


def _fold_rule(g: Type, *, size: Any, **attrs: Any) -> Type:
    shape = list(g.shape[: -len(attrs["kernel"])])
    for axis, s in zip(spatial(len(shape), attrs["layout"]), size, strict=True):
        shape[axis] = s
    x = Type(g.dtype, tuple(shape))
    return _transposed(x, _windows_rule(x, **attrs), g)


@primitive(
    rule=_fold_rule, normal=_fold_normal, **_INSIDE,
    cases=[case(S(2, 3, 2, 2, 3, 2), size=(5, 4), kernel=(3, 2), stride=(2, 2),
                padding=((0, 0), (0, 0)), dilation=(1, 1), layout="NCHW")],
)  # fmt: skip
def fold(
    g: Any, *, size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, layout: str
) -> Any:
    """The transpose of windows: every element of a window added where it came from."""
    d = len(kernel)
    if layout[-1] == "C":
        g = np.moveaxis(g, 1 + d, 1)
    out = g.shape[2 : 2 + d]
    full = [s + a + b for s, (a, b) in zip(size, padding, strict=True)]
    image: Any = np.zeros((*g.shape[:2], *full), g.dtype)
    for tap in np.ndindex(*kernel):
        where = tuple(slice(t * di, t * di + s * (o - 1) + 1, s)
                      for t, di, s, o in zip(tap, dilation, stride, out, strict=True))  # fmt: skip
        image[(..., *where)] += g[(..., *tap)]
    return _channels_back(_padded(image, [(-a, -b) for a, b in padding]), layout)


@fold.vjp
def _fold_vjp(t: Any, out: Any, g: Any, *, size: Any, **attrs: Any) -> Any:
    return (windows(t, **attrs),)


def _max_pool_numpy(
    x: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, layout: str
) -> Any:
    x = _channels_first(x, layout)
    if any(p for pair in padding for p in pair):
        x = _filled(x, padding, -np.inf)
    out: Any = None
    for tap in np.ndindex(*kernel):
        last = [n - d * (k - 1) for n, d, k in zip(x.shape[2:], dilation, kernel, strict=True)]
        where = tuple(slice(t * d, t * d + n, s)
                      for t, d, n, s in zip(tap, dilation, last, stride, strict=True))  # fmt: skip
        piece = x[(..., *where)]
        out = piece if out is None else np.maximum(out, piece)
    return np.ascontiguousarray(_channels_back(out, layout))


def _dilated(a: Mapping[str, Any]) -> bool:
    return any(d != 1 for d in a["dilation"])


@composite(
    rule=_pool_rule, normal=_normal, numpy=_max_pool_numpy, images=("x",), around=float("-inf"),
    cases=[
        case(S(2, 3, 6, 5), kernel=2),
        case(S(2, 3, 7, 6, low=-3, high=-1), kernel=(3, 2), stride=(2, 1),
             padding=((1, 1), (0, 1))),
        case(S(2, 5, 6, 3), kernel=3, stride=2, padding=1, layout="NHWC"),
        case(S(2, 3, 7, 6), kernel=2, stride=1, dilation=2),
    ],
    **dict.fromkeys(("keras", "mxnet"), Refused("a window with a dilation", _dilated,
                                                "pool without a dilation")),
)  # fmt: skip
def max_pool(x: Any, *, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             layout: Any = None) -> Any:  # fmt: skip
    """The largest of each window; pads count as -inf, a tie's gradient goes to the first.

    ``stride`` is the kernel unless given; sizes as in :func:`conv`.
    """
    view = windows(x, kernel=kernel, stride=stride, padding=padding, dilation=dilation,
                   value=float("-inf"), layout=layout)  # fmt: skip
    count = int(np.prod(kernel))
    flat = OPS["reshape"](view, shape=(*view.shape[: -len(kernel)], count))
    first = OPS["one_hot"](OPS["argmax"](flat, axis=-1), classes=count, dtype=x.dtype) > 0
    nothing = OPS["full"](shape=(), value=0, dtype=x.dtype)
    return OPS["where"](first, flat, nothing).sum(axis=-1)


def _avg_pool_numpy(
    x: Any, *, kernel: Any, stride: Any, padding: Any, include_pad: bool, layout: str
) -> Any:
    ones = (1,) * len(kernel)
    sizes = tuple(x.shape[a] for a in spatial(x.ndim, layout))
    view = windows.function(
        x, kernel=kernel, stride=stride, padding=padding, dilation=ones, layout=layout
    )
    total = view.sum(axis=tuple(range(-len(kernel), 0)), dtype=x.dtype)
    if include_pad or not any(p for pair in padding for p in pair):
        return total / x.dtype.type(np.prod(kernel))
    real = np.ones((1, 1, *sizes) if layout[1] == "C" else (1, *sizes, 1), x.dtype)
    counts = windows.function(
        real, kernel=kernel, stride=stride, padding=padding, dilation=ones, layout=layout
    )
    return total / counts.sum(axis=tuple(range(-len(kernel), 0)))


@composite(
    rule=_pool_rule, normal=_normal_plain, numpy=_avg_pool_numpy, images=("x",),
    cases=[
        case(S(2, 3, 6, 5), kernel=2),
        case(S(2, 3, 7, 6), kernel=(3, 2), stride=(2, 1), padding=1),
        case(S(2, 3, 7, 6), kernel=3, stride=2, padding=1, include_pad=False),
        case(S(2, 5, 6, 3), kernel=3, stride=2, padding=((0, 1), (1, 1)), include_pad=False,
             layout="NHWC"),
    ],
)  # fmt: skip
def avg_pool(x: Any, *, kernel: Any, stride: Any = None, padding: Any = 0, include_pad: bool = True,
             layout: Any = None) -> Any:  # fmt: skip
    """The mean of each window; ``include_pad`` counts zeros around (torch) or not (TF, ONNX)."""
    n = len(kernel)
    last = tuple(range(-n, 0))
    attrs = dict(kernel=kernel, stride=stride, padding=padding, layout=layout)
    total = windows(x, **attrs).sum(axis=last)
    if include_pad:
        return total / OPS["full"](shape=(), value=int(np.prod(kernel)), dtype=x.dtype)
    sizes = tuple(x.shape[a] for a in spatial(len(x.shape), layout))
    shape = (1, 1, *sizes) if layout[1] == "C" else (1, *sizes, 1)
    ones = OPS["full"](shape=shape, value=1, dtype=x.dtype)
    return total / windows(ones, **attrs).sum(axis=last)
