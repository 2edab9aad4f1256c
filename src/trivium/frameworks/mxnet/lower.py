"""How ops are called in ``hybrid_forward``, where a line in the op's declaration cannot say it.

A Symbol has no shape to ask for, there is no bool, and no array without axes. So an open size is
written in Reshape's codes or taken from another array, a bool is 0 or 1 in the dtype of what was
compared (:func:`carrier`), and an array without axes has one, of size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.frameworks.mxnet.layers import bias_alone
from trivium.frameworks.ways import symmetric
from trivium.frameworks.writing.code import Code, Target, number
from trivium.graph import MODE, Node, UnsupportedError, Value
from trivium.shape import Dim, Shape, broadcast


@dataclass(frozen=True)
class Like:
    """A variable with an open size, and on which axis it has it; ``axis``: on which axis what is
    repeated to it shall have it.
    """

    dim: Dim
    axis: int | None = None


Lowering = Callable[[Any, Node], Code]


def _inputs(node: Node, count: int) -> list[Any]:
    """The first ``count`` inputs, None where one was left out."""
    return [*node.inputs, None, None, None][:count]


def call(name: str, *arguments: Code, **words: Any) -> Code:
    """``F.name(arguments, key=value)``."""
    code: Code = [f"F.{name}("]
    for i, argument in enumerate(arguments):
        code += [", "] * bool(i) + argument
    for key, value in words.items():
        code.append(f"{', ' if len(code) > 1 else ''}{key}={literal(value)}")
    return [*code, ")"]


def literal(value: Any) -> str:
    """A number, word, tuple or dtype as source."""
    return f'"{value}"' if isinstance(value, DType) else Target().literal(value)


def _refuse(node: Node, what: str, remedy: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"MXNet source of {node.op} {what}", node.scope or "the top scope", remedy
    )


def carrier(value: Value) -> DType:
    """The dtype in which a bool is 0 or 1 over there; any other Value's own dtype."""
    if value.dtype != dt.bool_:
        return value.dtype
    node = value.node
    if node is None or node.op in ("full", "constant"):
        return dt.float32
    read = [v for v in node.inputs if v is not None]
    return carrier(read[1] if node.op == "where" else read[0])


# -- elementwise -----------------------------------------------------------------------------------
def _binary(sign: str, name: str, number_first: bool = True) -> Lowering:
    """Python's sign between equal shapes or with a number, a broadcasting function elsewhere."""

    def lower(target: Any, node: Node) -> Code:
        x, y = _inputs(node, 2)
        a, b = number(target, x), number(target, y)
        if a and b:
            a = b = []  # Python would compute a number that no operator of MXNet reads
        alike = x.shape == y.shape and carrier(x) == carrier(y)
        if alike and not (a or b) and name == "add" and target.often & {x, y}:
            alike = False
        if b or (a and number_first) or alike:
            return [*(a or target.array(x)), f" {sign} ", *(b or target.array(y))]
        return call(f"broadcast_{name}", target.array(x), _as(target, y, carrier(x)))

    return lower


def _as(target: Target, value: Value, dtype: DType) -> Code:
    """``value`` in ``dtype``: two bools may be carried differently."""
    code = target.array(value)
    return code if carrier(value) == dtype else call("cast", code, dtype=dtype)


def _extremum(name: str) -> Lowering:
    def lower(target: Target, node: Node) -> Code:
        x, y = _inputs(node, 2)
        b = number(target, y)
        if node.attrs["ties"] == "share":
            return target.by_line(node)
        if b and not number(target, x):  # the other way round a tie would have another gradient
            return call(name, target.array(x), b)
        return call(f"broadcast_{name}", target.array(x), target.array(y))

    return lower


def _logical(name: str) -> Lowering:
    def lower(target: Target, node: Node) -> Code:
        x, y = _inputs(node, 2)
        return call(f"broadcast_{name}", target.array(x), _as(target, y, carrier(x)))

    return lower


def _cast(target: Target, node: Node) -> Code:
    (x,), dtype = _inputs(node, 1), node.attrs["dtype"]
    if dtype == dt.bool_ and x.dtype != dt.bool_:
        return [*target.array(x), " != 0"]
    if dtype == dt.bool_ or (x.dtype == dt.bool_ and carrier(x) == dtype):
        return target.array(x)  # it is 0 or 1 in this dtype already
    return call("cast", target.array(x), dtype=dtype)


def _where(target: Target, node: Node) -> Code:
    condition, x, y = _inputs(node, 3)
    shape = node.out.shape
    numbers = {v: number(target, v) for v in (x, y)}
    arrays = [v for v in (condition, x, y) if not numbers.get(v)]
    like = next((v for v in (x, y) if not numbers[v]), None)
    model = spread(target, node, condition if like is None else like, shape, arrays)
    if like is None and carrier(condition) != x.dtype:
        model = call("cast", model, dtype=x.dtype)

    def branch(v: Value) -> Code:
        if not numbers[v]:
            return spread(target, node, v, shape, arrays)
        if v.node is not None and v.node.attrs["value"] == 0:
            return call("zeros_like", model)
        return [*call("ones_like", model), " * ", *numbers[v]]

    return call("where", spread(target, node, condition, shape, arrays), branch(x), branch(y))


def _dropout(target: Target, node: Node) -> Code:
    x, training = target.array(node.inputs[0]), node.attrs["training"]
    if training is False or node.attrs["rate"] == 0:
        return x
    if training is MODE:
        return call("Dropout", x, p=node.attrs["rate"])
    return call("Dropout", x, p=node.attrs["rate"], mode="always")


# -- shapes ----------------------------------------------------------------------------------------
def spread(target: Target, node: Node, value: Value, shape: Shape, models: Sequence[Value]) -> Code:
    """``value`` repeated to ``shape``; sizes that are open are those of ``models``."""
    has: list[Any] = list(value.shape)
    code = target.array(value)
    lead = len(shape) - len(has)
    if lead > 1 or (lead and has):  # an array without axes has one already
        code = expanded(code, lead if has else lead - 1)
    has = [1] * lead + has
    for m in models:
        if m is value or len(m.shape) != len(shape):
            continue
        axes = tuple(i for i, s in enumerate(shape) if has[i] != s and m.shape[i] == s)
        if axes and m.shape == shape:
            code = call("broadcast_like", code, target.array(m))
        elif axes:
            code = call("broadcast_like", code, target.array(m), lhs_axes=axes, rhs_axes=axes)
        for i in axes:
            has[i] = shape[i]
    rest = tuple(0 if a == b else b for a, b in zip(has, shape, strict=True))
    if all(type(s) is int and s == 0 for s in rest):
        return code
    return _opened(_known(code, rest), rest)


def _known(code: Code, sizes: Sequence[Any]) -> Code:
    """``code`` repeated along the axes whose size is a number; 0: not along this one."""
    numbers = tuple(0 if isinstance(s, Dim) else s for s in sizes)
    return call("broadcast_to", code, shape=numbers) if any(numbers) else code


def _opened(code: Code, sizes: Sequence[Any]) -> Code:
    """``code`` repeated along the axes whose size is open, as some variable has it."""
    for axis, size in enumerate(sizes):
        if isinstance(size, Dim):
            like: Any = Like(size, axis)
            code = ["F.broadcast_like(", *code, ", ", like, ")"]
    return code


def expanded(code: Code, axes: int) -> Code:
    """``code`` with new first axes."""
    for _ in range(axes):
        code = call("expand_dims", code, axis=0)
    return code


def _broadcast_to(target: Target, node: Node) -> Code:
    return spread(target, node, _inputs(node, 1)[0], node.attrs["shape"], ())


def reshape_codes(old: Shape, new: Shape) -> tuple[int, ...] | None:
    """Reshape's codes for ``old`` to ``new``: 0 copies a size, -1 is what is left, -3 joins two,
    -4 splits one, -2 copies all that follow. None where the open sizes need more than that.

    >>> batch = Dim("batch")
    >>> reshape_codes((batch, 3, 4), (batch, 12)), reshape_codes((batch, 3, 4), (3 * batch, 4))
    ((0, -1), (-1, 4))
    """
    old, new = old or (1,), new or (1,)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    codes = [0 if isinstance(s, Dim) else s for s in new[:start]]
    rest = new[start:]
    unknown = [s for s in rest if isinstance(s, Dim)]
    if len(rest) == 1 and len(old) > start and codes:
        return (*codes, -1)
    if len(unknown) <= 1:
        return (*codes, *(-1 if isinstance(s, Dim) else s for s in rest))
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    tail = [-2] if end else []
    if len(before) == 2 and len(after) == 1:
        return (*codes, -3, *tail)
    if len(before) == 1 and len(after) == 2 and sum(isinstance(s, Dim) for s in after) <= 1:
        return (*codes, -4, *(-1 if isinstance(s, Dim) else s for s in after), *tail)
    return None


def _reshape(target: Target, node: Node) -> Code:
    (x,), shape = _inputs(node, 1), node.out.shape
    codes = reshape_codes(x.shape, shape)
    if codes is None:
        what = f"from {x.shape} to {shape} has more open sizes than Reshape has codes for"
        raise _refuse(node, what, "trace with fixed sizes")
    if (x.shape or (1,)) == codes:
        return target.array(x)
    return call("reshape", target.array(x), shape=codes)


def _transpose(target: Target, node: Node) -> Code:
    axes = node.attrs["axes"]
    x = target.array(node.inputs[0])
    return x if axes == tuple(range(len(axes))) else call("transpose", x, axes=axes)


def _squeeze(target: Target, node: Node) -> Code:
    axis = node.attrs["axis"]
    words = {"axis": axis[0] if len(axis) == 1 else axis}
    return call("squeeze", target.array(node.inputs[0]), **words)


def _slice(target: Target, node: Node) -> Code:
    (x,), a = _inputs(node, 1), node.attrs
    axis, size = a["axis"], x.shape[a["axis"]]

    def position(at: Any) -> Any:
        """An int as it is; an open size as its distance from the end."""
        if isinstance(at, int):
            return at
        distance = at - size
        if not isinstance(distance, int) or distance >= 0:
            raise _refuse(
                node, f"at {at} of {size} depends on an open size", "trace with fixed sizes"
            )
        return distance

    begin = None if a["start"] == 0 else position(a["start"])
    end = None if a["stop"] == size else position(a["stop"])
    if a["step"] == 1:
        return call("slice_axis", target.array(x), axis=axis, begin=begin or 0, end=end)
    skip = (None,) * axis
    return call(
        "slice", target.array(x), begin=(*skip, begin), end=(*skip, end), step=(*skip, a["step"])
    )


def _pad(target: Target, node: Node) -> Code:
    """F.pad takes images, 4 or 5 axes of which the first two stay: others get axes lent."""
    (x,), a = _inputs(node, 1), node.attrs
    padded = [i for i, pair in enumerate(zip(a["low"], a["high"], strict=True)) if pair != (0, 0)]
    rank = len(x.shape)
    if not padded:
        return target.array(x)
    lead = next((n - rank for n in (4, 5) if n >= rank and padded[0] + n - rank >= 2), None)
    if lead is None or not x.dtype.is_floating:
        raise _refuse(
            node, f"on axis {padded[0]} of {x.type}", "pad floats, and no first axis of images"
        )
    edges = [n for pair in zip(a["low"], a["high"], strict=True) for n in pair]
    words: dict[str, Any] = {"mode": "constant", "pad_width": (0, 0) * lead + tuple(edges)}
    if a["value"]:
        words["constant_value"] = float(a["value"])
    code = call("pad", expanded(target.array(x), lead), **words)
    return call("squeeze", code, axis=tuple(range(lead))) if lead else code


# -- reductions ------------------------------------------------------------------------------------
def _reduction(name: str) -> Lowering:
    def lower(target: Target, node: Node) -> Code:
        (x,), axis = _inputs(node, 1), node.attrs["axis"]
        if not axis:
            return target.array(x)
        words: dict[str, Any] = {"axis": axis[0] if len(axis) == 1 else axis}
        ties = "each" if x.dtype.is_integer or _cut_off(node) else node.attrs.get("ties", "each")
        if ties != "each":
            words |= {"keepdims": True} if node.attrs["keepdims"] else {}
            word = "shared" if ties == "share" else ties
            return [f"{name}_{word}(F, ", *call("", target.array(x), **words)[1:]]
        if len(axis) == len(x.shape) and not node.attrs["keepdims"]:
            return call(name, target.array(x))
        if node.attrs["keepdims"]:
            words["keepdims"] = True
        return call(name, target.array(x), **words)

    return lower


def _cut_off(node: Node) -> bool:
    """Does no gradient come back here? Then it does not matter who of equal extrema gets it."""
    graph = node.out.graph
    readers = graph.uses().get(node.out, [])
    is_result = any(v is node.out for v in graph.outputs)
    return not is_result and all(n.op in ("stop_gradient", "argmax") for n in readers)


# -- products and indices --------------------------------------------------------------------------
def _matmul(target: Target, node: Node) -> Code:
    x, y = _inputs(node, 2)
    if len(y.shape) <= 2:
        return call("dot", target.array(x), target.array(y))
    if len(x.shape) == 1:
        raise _refuse(node, f"of a vector with {y.shape}", "give the vector a second axis")
    shape = broadcast(x.shape[:-2], y.shape[:-2])
    a, b = (spread(target, node, v, (*shape, *v.shape[-2:]), (x, y)) for v in (x, y))
    return call("batch_dot", a, b)


def _linear(target: Target, node: Node) -> Code:
    x, weight, bias = _inputs(node, 3)
    words: dict[str, Any] = {"num_hidden": weight.shape[0]}
    words |= {"flatten": False} if len(x.shape) != 2 else {}
    words |= {"no_bias": True} if bias is None else {}
    arrays = [target.array(v) for v in (x, weight, bias) if v is not None]
    return call("FullyConnected", *arrays, **words)


def _take(target: Target, node: Node) -> Code:
    # mode: an index out of range stays an error; MXNet's default takes the nearest in range.
    x, indices = _inputs(node, 2)
    if node.op == "embedding":
        return call("take", target.array(x), target.array(indices), mode="raise")
    if indices.shape == ():
        raise _refuse(node, "by one index without axes", "use select")
    words: dict[str, Any] = {"axis": node.attrs["axis"]} if node.attrs["axis"] else {}
    return call("take", target.array(x), target.array(indices), **words, mode="raise")


def _log_softmax(target: Target, node: Node) -> Code:
    (x,), axis = _inputs(node, 1), node.attrs["axis"]
    last = axis == len(x.shape) - 1
    return ["log_softmax(F, ", *target.array(x), ")" if last else f", axis={axis})"]


def _cross_entropy(target: Target, node: Node) -> Code:
    logits, labels = _inputs(node, 2)
    picked = call("pick", ["log_softmax(F, ", *target.array(logits), ")"], target.array(labels))
    reduction = node.attrs["reduction"]
    return ["-", *(picked if reduction == "none" else call(reduction, picked))]


# -- windows ---------------------------------------------------------------------------------------
def _conv(target: Target, node: Node) -> Code:
    x, w, b = _inputs(node, 3)
    a = node.attrs
    n = len(a["stride"])
    words: dict[str, Any] = {"kernel": w.shape[2:], "num_filter": w.shape[0]}
    for key, value, default in (
        ("stride", a["stride"], (1,) * n), ("pad", symmetric(a["padding"]), (0,) * n),
        ("dilate", a["dilation"], (1,) * n), ("num_group", a["groups"], 1),
        ("no_bias", b is None, False),
    ):  # fmt: skip
        if value != default:
            words[key] = value
    return call("Convolution", *(target.array(v) for v in (x, w, b) if v is not None), **words)


def _pool(target: Target, node: Node) -> Code:
    a = node.attrs
    kind = node.op.partition("_")[0]
    words: dict[str, Any] = {"kernel": a["kernel"], "stride": a["stride"]}
    pad = symmetric(a["padding"])
    assert pad is not None  # see prepare()
    if any(pad):
        words["pad"] = pad
    words["pool_type"] = kind
    if any(pad) and not a.get("include_pad", True):
        words["count_include_pad"] = False
    return call("Pooling", target.array(node.inputs[0]), **words)


def _layer_norm(target: Target, node: Node) -> Code:
    x, scale, bias = _inputs(node, 3)
    shift = call("zeros_like", target.array(scale)) if bias is None else target.array(bias)
    words = {"eps": node.attrs["epsilon"]} if node.attrs["epsilon"] != 1e-5 else {}
    return call("LayerNorm", target.array(x), target.array(scale), shift, **words)


# -- from nothing ----------------------------------------------------------------------------------
def _full(target: Target, node: Node) -> Code:
    a = node.attrs
    if isinstance(a["value"], Dim):
        what = f"with the open size {a['value']}: a Symbol has no shape to read"
        raise _refuse(node, what, "trace with fixed sizes")
    words = {} if carrier(node.out) == dt.float32 else {"dtype": a["dtype"]}
    value = float(a["value"]) if carrier(node.out).is_floating else a["value"]
    known = tuple(1 if isinstance(s, Dim) else s for s in a["shape"]) or (1,)
    return _opened(call("full", [literal(known)], [literal(value)], **words), a["shape"])


def _arange(target: Target, node: Node) -> Code:
    a = node.attrs
    (count,) = node.out.shape
    words = {} if a["step"] == 1 else {"step": a["step"]}
    if isinstance(a["start"], int) and isinstance(count, int):
        return target.by_line(node)
    if not isinstance(a["start"], int):
        raise _refuse(node, f"from the open {a['start']}", "trace with fixed sizes")
    like: Any = Like(count)  # type: ignore[arg-type]
    words |= {"start": a["start"]} if a["start"] else {}
    return call("cast", call("contrib.arange_like", [like], **words), dtype=a["dtype"])


FUNCTIONS: dict[str, Lowering] = {
    "add": _binary("+", "add"), "subtract": _binary("-", "sub"), "multiply": _binary("*", "mul"),
    "divide": _binary("/", "div"), "pow": _binary("**", "power", number_first=False),
    "equal": _binary("==", "equal"), "not_equal": _binary("!=", "not_equal"),
    "less": _binary("<", "lesser"), "less_equal": _binary("<=", "lesser_equal"),
    "greater": _binary(">", "greater"), "greater_equal": _binary(">=", "greater_equal"),
    "maximum": _extremum("maximum"), "minimum": _extremum("minimum"),
    "logical_and": _logical("logical_and"), "logical_or": _logical("logical_or"),
    "cast": _cast, "where": _where, "dropout": _dropout, "broadcast_to": _broadcast_to,
    "reshape": _reshape, "transpose": _transpose, "squeeze": _squeeze, "slice_axis": _slice,
    "pad": _pad,
    **{name: _reduction(name) for name in ("sum", "mean", "max", "min")},
    "matmul": _matmul, "linear": _linear, "take": _take, "embedding": _take,
    "log_softmax": _log_softmax, "cross_entropy": _cross_entropy, "conv": _conv,
    "max_pool": _pool, "avg_pool": _pool, "layer_norm": _layer_norm,
    "full": _full, "arange": _arange,
    "flatten": lambda target, node: call("flatten", target.array(node.inputs[0])),
    "silu": lambda target, node: [
        *target.array(node.inputs[0]), " * ", *call("sigmoid", target.array(node.inputs[0]))
    ],
    "gelu": lambda target, node: call("LeakyReLU", target.array(node.inputs[0]), act_type="gelu"),
    "zeros_like": lambda target, node: call("zeros_like", target.array(node.inputs[0])),
    "ones_like": lambda target, node: call("ones_like", target.array(node.inputs[0])),
}  # fmt: skip


def _owned(node: Node) -> bool:
    """Are all arrays but the first a layer's?"""
    rest = node.inputs[1:]
    return all(v is None or (v.kind in ("param", "state") and "." in v.name) for v in rest)


def _with_axes(node: Node) -> bool:
    return all(v is None or v.shape != () for v in (*node.inputs, *node.outputs))


IF: dict[str, Callable[[Node], bool]] = {
    "batch_norm": lambda node: _owned(node) and node.attrs["training"] is not True,
    "rnn": _owned,
    "expand_dims": _with_axes, "squeeze": _with_axes, "stack": _with_axes,
    "cross_entropy": lambda node: (
        _inputs(node, 2)[1].shape != () and node.attrs["ignore_index"] is None
    ),
    "gelu": lambda node: node.attrs["approximate"] == "none",
    "flatten": lambda node: node.attrs["start"] == 1,
    "linear": lambda node: len(_inputs(node, 1)[0].shape) > 1 and not bias_alone(node),
    "layer_norm": lambda node: node.attrs["axes"] == 1 and _inputs(node, 2)[1] is not None,
    "select": lambda node: False,
}  # fmt: skip
"""What MXNet has a form of only under a condition; elsewhere the op's body is written."""
