"""What MXNet's operators are in ours: one function for each, found by its name in the Symbol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trivium.dtype import as_dtype
from trivium.frameworks.mxnet.lines import IDLE, truth
from trivium.frameworks.mxnet.symbol import Symbol, SymbolNode, plain
from trivium.graph import OPS, Graph, UnsupportedError, Value
from trivium.shape import Size


@dataclass
class Call:
    """One operator of a Symbol on Values: its attributes, each asked for by its kind."""

    node: SymbolNode
    symbol: Symbol
    graph: Graph
    variable: Callable[[SymbolNode], Value]
    """The input of the Graph that a variable of the Symbol is."""
    frozen: Callable[[Value, float], bool]
    """Is this an input that is never trained and is this number everywhere?"""
    asked: set[str] = field(default_factory=set)

    def refuse(self, what: str, remedy: str = "") -> UnsupportedError:
        """The error that says that this operator cannot be carried."""
        where = f"node {self.node.name!r}"
        return UnsupportedError(f"MXNet's {self.node.op} {what}", where, remedy)

    def _text(self, key: str) -> str | None:
        self.asked.add(key)
        text = self.node.attrs.get(key)
        return None if text in (None, "None") else text

    def _parsed(self, key: str, kinds: tuple[type, ...]) -> Any:
        text = self._text(key)
        if text is None:
            return None
        try:
            value = plain(text)
        except ValueError:
            value = plain  # of no kind that is asked for
        items = value if isinstance(value, (tuple, list)) and tuple in kinds else (value,)
        if not all(type(i) in kinds or i is None for i in items):
            raise self.refuse(f"has {key}={text[:80]!r}, which cannot be read", "export it again")
        return value

    def whole(self, key: str, default: Any = None) -> Any:
        """An int, or ``default`` where it is left out or None."""
        value = self._parsed(key, (int,))
        return default if value is None else value

    def number(self, key: str, default: Any = None) -> Any:
        """An int or float."""
        value = self._parsed(key, (int, float))
        return default if value is None else value

    def sizes(self, key: str, default: Any = None) -> Any:
        """A tuple of ints (or None, where a slice has an open end); an int is a tuple of one."""
        value = self._parsed(key, (int, tuple))
        value = (value,) if isinstance(value, int) else value
        return default if value is None else value

    def word(self, key: str, default: str) -> str:
        """A word."""
        return self._text(key) or default

    def flag(self, key: str, default: bool = False) -> bool:
        """True or False, in every spelling that MXNet reads."""
        text = self._text(key)
        return default if text is None else text.lower() in ("true", "1")

    def only(self, key: str, *allowed: str) -> None:
        """Refuse any other value of this attribute; the first is the default."""
        if (text := self._text(key) or "None") not in allowed and key in self.node.attrs:
            raise self.refuse(f"with {key}={text} is not carried")

    def finish(self) -> None:
        """Refuse an attribute that nobody asked for: overlooked, it would be silently wrong."""
        for key in self.node.attrs.keys() - self.asked - IDLE:
            if not key.startswith("__"):
                raise self.refuse(f"has an attribute {key!r} that is not known here")


Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
"""Operator name -> ``handler(call, *inputs)``, which gives the output or the tuple of outputs."""
UNREAD: dict[str, tuple[int, ...]] = {}
"""Inputs that a handler does not want as Values (a label, a flat parameter vector)."""


def operator(*names: str, unread: Sequence[int] = ()) -> Callable[[Handler], Handler]:
    """Declare how these operators are carried."""

    def declare(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
            UNREAD[name] = tuple(unread)
        return handler

    return declare


# -- arithmetic ----------------------------------------------------------------------------------
@operator("zeros_like", "ones_like")
def _like(call: Call, x: Any) -> Any:
    return OPS[call.node.op](x)


@operator("add_n", "ElementWiseSum")
def _add_n(call: Call, first: Any, *rest: Any) -> Any:
    for x in rest:
        first = first + x
    return first


@operator("_copy", "identity")
def _identity(call: Call, x: Any) -> Any:
    return x


@operator("hard_sigmoid")
def _hard_sigmoid(call: Call, x: Any) -> Any:
    alpha, beta = call.number("alpha", 0.2), call.number("beta", 0.5)
    if abs(alpha * 6 - 1) < 1e-6 and beta == 0.5:  # float32, and as few digits as it was said in
        return OPS["hardsigmoid"](x)
    return OPS["clip"](x * alpha + beta, min=0.0, max=1.0, edge="outside")


@operator("where")
def _where(call: Call, condition: Any, x: Any, y: Any) -> Any:
    if condition.shape != x.shape:
        raise call.refuse(f"with a condition {condition.shape} for {x.shape} is not carried")
    return OPS["where"](truth(condition), x, y)


@operator("dot", "batch_dot")
def _dot(call: Call, x: Any, y: Any) -> Any:
    call.only("forward_stype", "None", "default")
    several = y.ndim > 2 or (x.ndim > 2 and call.flag("transpose_a"))
    if call.node.op == "dot" and several:  # it sums along y's first axis
        raise call.refuse("is carried for vectors and matrices only", "use batch_dot")
    x = x.mT if call.flag("transpose_a") else x
    return OPS["matmul"](x, y.mT if call.flag("transpose_b") else y)


# -- reductions ----------------------------------------------------------------------------------
@operator("sum", "sum_axis", "mean", "max", "max_axis", "min", "min_axis")
def _reduce(call: Call, x: Any) -> Any:
    axes = call.sizes("axis", ()) or tuple(range(x.ndim))
    if call.flag("exclude"):
        if not call.sizes("axis", ()):
            raise call.refuse("with exclude wants axes")
        axes = tuple(i for i in range(x.ndim) if i not in {a % x.ndim for a in axes})
    op = OPS[call.node.op.removesuffix("_axis")]
    ties = {"ties": "each"} if "ties" in op.defaults else {}  # each of equal ones gets it all
    return op(x, axis=axes, keepdims=call.flag("keepdims"), **ties)


@operator("argmax", "argmin")
def _place(call: Call, x: Any) -> Any:
    if (axis := call.whole("axis")) is None:
        raise call.refuse("without an axis is not carried", "name the axis")
    y = OPS[call.node.op](x, axis=axis)
    y = OPS["expand_dims"](y, axis=axis % x.ndim) if call.flag("keepdims") else y
    return y.astype("float32")  # MXNet counts in floats


@operator("softmax", "log_softmax", "Softmax")
def _softmax(call: Call, x: Any, *more: Any) -> Any:
    call.only("dtype", "None")
    if more or call.flag("use_length"):
        raise call.refuse("with use_length is not carried", "mask its input with where()")
    if (temperature := call.number("temperature")) is not None:
        x = x / temperature
    return OPS[call.node.op.lower()](x, axis=call.whole("axis", -1))


@operator("SoftmaxActivation")
def _softmax_activation(call: Call, x: Any) -> Any:
    if call.word("mode", "instance") == "instance" and x.ndim != 2:
        raise call.refuse(f"of {x.ndim} axes goes along the last and its gradient along the second",
                          "use softmax")  # fmt: skip
    return OPS["softmax"](x, axis=1)


@operator("SoftmaxOutput", unread=(1,))
def _softmax_output(call: Call, x: Any, label: None) -> Any:
    # Its own gradient is that of the cross entropy with the label, whatever gradient comes in. What
    # is carried is what it computes; the loss is left to the one who trains.
    call.asked |= {"grad_scale", "ignore_label", "use_ignore", "normalization", "out_grad",
                   "smooth_alpha"}  # fmt: skip
    per_pixel, keep = call.flag("multi_output"), call.flag("preserve_shape")
    if x.ndim > 2 and not per_pixel and not keep:
        raise call.refuse("over all axes but the first is not carried", "set preserve_shape")
    return OPS["softmax"](x, axis=1 if per_pixel else -1)


@operator("LinearRegressionOutput", "MAERegressionOutput", "LogisticRegressionOutput", unread=(1,))
def _regression_output(call: Call, x: Any, label: None) -> Any:
    call.number("grad_scale")
    return OPS["sigmoid"](x) if call.node.op.startswith("Logistic") else x


# -- shapes --------------------------------------------------------------------------------------
def _matrix(x: Any) -> Any:
    return x if x.ndim == 2 else OPS["flatten"](x, start=1)


@operator("Flatten", "flatten")
def _flatten(call: Call, x: Any) -> Any:
    return _matrix(x)


def special_shape(shape: Sequence[Size], codes: Sequence[int]) -> tuple[Size, ...]:
    """The sizes that Reshape's codes mean for an array of ``shape``.

    0 copies a size, -1 is what is left, -2 copies all that follow, -3 multiplies two, -4 splits one
    into the two codes after it (of which one may be -1).

    >>> special_shape((2, 3, 4, 10), (-3, 0, -4, 2, -1))
    (6, 4, 2, 5)
    """
    left, wanted, result = list(shape), list(codes), list[Size]()
    while wanted:
        code = wanted.pop(0)
        if code == -2:
            result += left
            left = []
        elif code == -3:
            result.append(left.pop(0) * left.pop(0))
        elif code == -4:
            whole, a, b = left.pop(0), wanted.pop(0), wanted.pop(0)
            result += [whole // b if a == -1 else a, whole // a if b == -1 else b]
        elif code == 0:
            result.append(left.pop(0))
        elif code < -4:
            raise IndexError
        else:  # a given size, or -1: either stands for one size of the source while there is one
            result.append(code)
            left = left[1:]
    return tuple(result)


@operator("Reshape", "reshape")
def _reshape(call: Call, x: Any) -> Any:
    codes = call.sizes("shape", ())
    if call.flag("reverse") or call.sizes("target_shape") or call.flag("keep_highest") or not codes:
        raise call.refuse("is carried with shape= alone", "write the target shape from the left")
    try:
        return x.reshape(special_shape(x.shape, codes))
    except IndexError:
        raise call.refuse(f"to {codes} does not fit {x.shape}") from None


def transpose(x: Any, axes: tuple[int, ...]) -> Any:
    """The transpose, where two that undo each other leave nothing behind."""
    node = x.node
    if node is not None and node.op == "transpose":
        before = node.attrs["axes"]
        if all(before[a] == i for i, a in enumerate(axes)):
            return node.inputs[0]
    return OPS["transpose"](x, axes=axes)


@operator("transpose")
def _transpose(call: Call, x: Any) -> Any:
    axes = call.sizes("axes", ()) or tuple(reversed(range(x.ndim)))
    return transpose(x, tuple(a % x.ndim for a in axes))


@operator("SwapAxis", "swapaxes")
def _swap_axis(call: Call, x: Any) -> Any:
    a, b = call.whole("dim1", 0) % x.ndim, call.whole("dim2", 0) % x.ndim
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return transpose(x, tuple(order))


@operator("expand_dims")
def _expand_dims(call: Call, x: Any) -> Any:
    return OPS["expand_dims"](x, axis=call.whole("axis"))


@operator("squeeze")
def _squeeze(call: Call, x: Any) -> Any:
    if (axes := call.sizes("axis")) is None:
        raise call.refuse("without an axis would depend on the sizes", "name the axis")
    return OPS["squeeze"](x, axis=axes)


@operator("broadcast_to")
def _broadcast_to(call: Call, x: Any) -> Any:
    sizes = zip(call.sizes("shape", ()), x.shape, strict=True)
    return OPS["broadcast_to"](x, shape=tuple(old if new == 0 else new for new, old in sizes))


@operator("broadcast_like")
def _broadcast_like(call: Call, x: Any, like: Any) -> Any:
    shape, axes = list(like.shape), call.sizes("lhs_axes")
    if theirs := call.sizes("rhs_axes"):
        shape = list(x.shape)
        for mine, there in zip(axes or (), theirs, strict=True):
            shape[mine] = like.shape[there]
    return OPS["broadcast_to"](x, shape=tuple(shape))


@operator("_arange")
def _arange(call: Call) -> Any:
    start, stop, step = call.number("start", 0), call.number("stop"), call.number("step", 1)
    call.only("repeat", "1")
    call.only("infer_range", "False")
    if stop is None:
        start, stop = 0, start
    kind, whole = as_dtype(call.word("dtype", "float32")), [start, stop, step]
    whole = [int(n) if float(n).is_integer() else n for n in whole]
    return OPS["arange"](start=whole[0], stop=whole[1], step=whole[2], dtype=kind)


@operator("slice_axis")
def _slice_axis(call: Call, x: Any) -> Any:
    start, stop = call.whole("begin"), call.whole("end")
    return OPS["slice_axis"](x, axis=call.whole("axis"), start=start, stop=stop)


@operator("slice", "crop")
def _slice(call: Call, x: Any) -> Any:
    begin, end = call.sizes("begin", ()), call.sizes("end", ())
    steps = call.sizes("step", ()) or (None,) * len(begin)
    for axis, (start, stop, step) in enumerate(zip(begin, end, steps, strict=True)):
        if (start, stop, step) != (None, None, None):
            x = OPS["slice_axis"](x, axis=axis, start=start, stop=stop, step=step or 1)
    return x


@operator("SliceChannel", "split")
def _split(call: Call, x: Any) -> Any:
    parts, axis = call.whole("num_outputs"), call.whole("axis", 1) % x.ndim
    if call.flag("squeeze_axis"):
        if x.shape[axis] != parts:
            raise call.refuse(f"of a size {x.shape[axis]} into {parts} leaves nothing to squeeze")
        return OPS["unstack"](x, axis=axis)
    return OPS["split"](x, sizes=parts, axis=axis)


@operator("reverse", "flip")
def _flip(call: Call, x: Any) -> Any:
    return OPS["flip"](x, axis=call.sizes("axis"))


@operator("Pad", "pad")
def _pad(call: Call, x: Any) -> Any:
    call.only("mode", "constant")
    width = call.sizes("pad_width", ())
    value = float(call.number("constant_value", 0))
    return OPS["pad"](x, low=width[::2], high=width[1::2], value=value)


# -- indices -------------------------------------------------------------------------------------
def _indices(call: Call, indices: Any, size: Size, mode: str) -> Any:
    """Integers in range: MXNet takes floats, cuts them off, and beyond the ends takes the ends."""
    if indices.dtype not in ("int32", "int64"):
        indices = indices.astype("int64")
    if mode != "clip":
        raise call.refuse(f"with mode={mode!r} is not carried", "use the default, clip")
    return OPS["minimum"](OPS["maximum"](indices, 0), size - 1)


@operator("take")
def _take(call: Call, x: Any, indices: Any) -> Any:
    axis = call.whole("axis", 0)
    indices = _indices(call, indices, x.shape[axis], call.word("mode", "clip"))
    return OPS["take"](x, indices, axis=axis)


@operator("pick")
def _pick(call: Call, x: Any, indices: Any) -> Any:
    axis = call.whole("axis", -1) % x.ndim
    kept = indices.ndim == x.ndim
    indices = indices if kept else OPS["expand_dims"](indices, axis=axis)
    indices = _indices(call, indices, x.shape[axis], call.word("mode", "clip"))
    y = OPS["take_along_axis"](x, indices, axis=axis)
    return y if call.flag("keepdims") else OPS["squeeze"](y, axis=(axis,))


@operator("Embedding")
def _embedding(call: Call, indices: Any, weight: Any) -> Any:
    call.word("dtype", "")
    return OPS["embedding"](weight, _indices(call, indices, weight.shape[0], "clip"))


@operator("one_hot")
def _one_hot(call: Call, indices: Any) -> Any:
    on, off = call.number("on_value", 1), call.number("off_value", 0)
    if (on, off) != (1, 0):
        raise call.refuse("with values other than 1 and 0 is not carried")
    indices = indices.astype("int64") if indices.dtype.is_floating else indices
    dtype = as_dtype(call.word("dtype", "float32"))
    return OPS["one_hot"](indices, classes=call.whole("depth"), dtype=dtype)
