"""Our ops as TensorFlow calls, where one line of a declaration does not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.frameworks.tensorflow.layers import FORMS
from trivium.frameworks.ways import square
from trivium.frameworks.writing.blocks import leaf
from trivium.frameworks.writing.code import (
    Code,
    Flag,
    Keyword,
    Target,
    array_source,
    joined,
)
from trivium.frameworks.writing.functional import (
    keywords,
    new_shape,
    plain_padding,
    scan,
    select,
    slice_axis,
)
from trivium.graph import MODE, Node, UnsupportedError
from trivium.shape import Dim


def call(name: str, *parts: Code) -> Code:
    """``name(part, part)``."""
    return [f"{name}(", *joined(parts), ")"]


def conv(target: Target, node: Node) -> Code:
    """A kernel that is no layer's own is turned on the spot."""
    x, w, b = (*node.inputs, None)[:3]
    a = node.attrs
    n = len(a["stride"])
    settings = keywords({
        "stride": (square(a["stride"]), 1), "padding": (plain_padding(a["padding"]), 0),
        "dilation": (square(a["dilation"]), 1), "groups": (a["groups"], 1),
    })  # fmt: skip
    kernel = call("tf.transpose", target.array(w), [str((*range(2, n + 2), 1, 0))])
    code: Code = ["convolution(", *target.array(x), ", ", *kernel, *settings, ")"]
    return code if b is None else [*code, " + ", *target.array(b)]


def pool(target: Target, node: Node) -> Code:
    """``tf.nn.max_pool2d`` where there is nothing to pad."""
    form = next((f for f in FORMS if f.op == node.op and f.write(node) is not None), None)
    if form is None:
        what = "TensorFlow source of a dilated max_pool of volumes, with other ties"
        raise UnsupportedError(what, node.scope)
    name, arguments = form.layer, dict(form.write(node) or {})
    sizes: list[Code] = [[target.literal(arguments.pop(k))] for k in ("kernel", "stride")]
    x = target.array(node.inputs[0])
    if not arguments and name == node.op:
        return call(f"tf.nn.{node.op}{len(node.attrs['kernel'])}d", x, *sizes, ['"VALID"'])
    more: Code = [Keyword(k, v) for k, v in arguments.items()]
    return [*call(name, x, *sizes)[:-1], *more, ")"]


def dropout(target: Target, node: Node) -> Code:
    """``dropout(x, 0.1, training=training)``."""
    mode: Code = [Flag("training")] if node.attrs["training"] is MODE else [", training=True"]
    return ["dropout(", *target.array(node.inputs[0]), f", {node.attrs['rate']}", *mode, ")"]


def reduce(target: Target, node: Node) -> Code:
    """``tf.reduce_mean(x)`` where all axes go; equal extrema share in TensorFlow."""
    x, a = node.inputs[0], node.attrs
    assert x is not None
    whole, plain = len(a["axis"]) == len(x.shape), a.get("ties", "share") == "share"
    if not whole and target.template(node) is not None:
        return target.by_line(node)
    parts = [target.array(x)]
    if not whole:
        parts.append([target.literal(a["axis"][0] if len(a["axis"]) == 1 else a["axis"])])
    if a["keepdims"]:
        parts.append(["keepdims=True"])
    return call(f"tf.reduce_{node.op}" if plain else f"{node.op}_{a['ties']}", *parts)


def transpose(target: Target, node: Node) -> Code:
    """``tf.transpose(x)`` turns all axes round."""
    axes = node.attrs["axes"]
    turned = axes == tuple(reversed(range(len(axes))))
    return call("tf.transpose", target.array(node.inputs[0])) if turned else target.by_line(node)


def reshape(target: Target, node: Node) -> Code:
    """``tf.reshape(x, (-1, 12))``."""
    shape = node.attrs["shape"]
    if not any(isinstance(s, Dim) for s in shape):
        return target.by_line(node)
    return call("tf.reshape", target.array(node.inputs[0]), _tuple(new_shape(target, shape)))


def _tuple(parts: Sequence[Code]) -> Code:
    return ["(", *joined(parts), ",)" if len(parts) == 1 else ")"]


def flatten(target: Target, node: Node) -> Code:
    """``flatten(x)``."""
    start = node.attrs["start"]
    more: list[Code] = [] if start == 1 else [[str(start)]]
    return call("flatten", target.array(node.inputs[0]), *more)


def pad(target: Target, node: Node) -> Code:
    """``tf.pad``, which neither cuts nor pads between."""
    a = node.attrs
    pairs = _tuple(
        [_tuple([target.attribute(v) for v in p]) for p in zip(a["low"], a["high"], strict=True)]
    )
    tail = [[f"constant_values={target.literal(a['value'])}"]] if a["value"] else []
    return call("tf.pad", target.array(node.inputs[0]), pairs, *tail)


def matmul(target: Target, node: Node) -> Code:
    """TF's @ wants matrices; vectors have names of their own."""
    x, y = node.inputs
    assert x is not None and y is not None
    a, b = target.array(x), target.array(y)
    match len(x.shape), len(y.shape):
        case 1, 1:
            return call("tf.tensordot", a, b, ["1"])
        case 1, _:
            return call("tf.linalg.matvec", b, a, ["transpose_a=True"])
        case _, 1:
            return call("tf.linalg.matvec", a, b)
    return target.by_line(node)


def linear(target: Target, node: Node) -> Code:
    """``tf.matmul(x, w, transpose_b=True) + b``."""
    x, w, b = (*node.inputs, None)[:3]
    assert x is not None
    product = call("tf.matmul", target.array(x), target.array(w), ["transpose_b=True"])
    if len(x.shape) == 1:
        product = call("tf.linalg.matvec", target.array(w), target.array(x))
    return product if b is None else [*product, " + ", *target.array(b)]


def constant(target: Target, node: Node) -> Code:
    """``tf.constant([[1.0, 2.0]], "float32")``."""
    source = array_source(node.attrs["value"])
    source = source.replace("nan", 'float("nan")').replace("inf", 'float("inf")')
    return call("tf.constant", [source], [target.literal(node.out.dtype)])


def full(target: Target, node: Node) -> Code:
    """``tf.zeros((2, 3), "float32")``."""
    a = node.attrs
    kind, value = target.literal(a["dtype"]), a["value"]
    one = call("tf.cast", target.attribute(value), [kind]) if isinstance(value, Dim) else (
        call("tf.constant", [target.literal(value)], [kind]))  # fmt: skip
    if a["shape"] == ():
        return one
    if not isinstance(value, Dim) and value in (0, 1) and a["dtype"] != "bool":
        return call("tf.ones" if value else "tf.zeros", target.attribute(a["shape"]), [kind])
    if isinstance(value, Dim):
        return call("tf.fill", target.attribute(a["shape"]), one)
    return target.by_line(node)


def arange(target: Target, node: Node) -> Code:
    """``tf.range(0, 5, 1, dtype="int64")``; open sizes are int32 there."""
    a = node.attrs
    kind, steps = target.literal(a["dtype"]), (a["start"], a["stop"], a["step"])
    if not any(isinstance(v, Dim) for v in steps):
        return target.by_line(node)
    ends = [
        call("tf.cast", target.attribute(v), [kind]) if isinstance(v, Dim) else target.attribute(v)
        for v in steps
    ]
    return call("tf.range", *ends, [f"dtype={kind}"])


def take_grad(target: Target, node: Node) -> Code:
    """``tf.scatter_nd``, which adds where indices repeat."""
    g, indices = node.inputs
    at = call("tf.expand_dims", target.array(indices), ["-1"])
    return call("tf.scatter_nd", at, target.array(g), target.attribute(node.out.shape))


def _reduced(code: Code, reduction: str) -> Code:
    return code if reduction == "none" else call(f"tf.reduce_{reduction}", code)


def cross_entropy(target: Target, node: Node) -> Code:
    """TF's own, which gives one loss for each label, of two dtypes alone."""
    logits, labels = node.inputs
    assert labels is not None
    index = target.array(labels)
    if labels.dtype not in ("int32", "int64"):
        index = call("tf.cast", index, ['"int64"'])
    code: Code = ["tf.nn.sparse_softmax_cross_entropy_with_logits(labels=", *index,
                  ", logits=", *target.array(logits), ")"]  # fmt: skip
    return _reduced(code, node.attrs["reduction"])


def binary_cross_entropy(target: Target, node: Node) -> Code:
    """TF's own."""
    x, y = node.inputs
    code: Code = ["tf.nn.sigmoid_cross_entropy_with_logits(labels=", *target.array(y), ", logits=",
                  *target.array(x), ")"]  # fmt: skip
    return _reduced(code, node.attrs["reduction"])


def cond(target: Any, node: Node) -> Code:
    """``tf.cond(c, lambda: then(x), lambda: otherwise(x))``."""
    names = [
        target.step(node.attrs[k], f"{leaf(node.scope) or 'cond'}_{k}")
        for k in ("then", "otherwise")
    ]
    condition, *operands = [target.array(v) for v in node.inputs]
    branches: list[Code] = [["lambda: ", *call(name, *operands)] for name in names]
    return [*call("tf.cond", condition, *branches), "[0]" * (len(node.outputs) == 1)]


FUNCTIONS = {
    "conv": conv, "max_pool": pool, "avg_pool": pool, "dropout": dropout, "sum": reduce,
    "mean": reduce, "max": reduce, "min": reduce, "transpose": transpose, "reshape": reshape,
    "flatten": flatten, "pad": pad, "matmul": matmul, "linear": linear, "constant": constant,
    "full": full, "arange": arange, "take_grad": take_grad, "cross_entropy": cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy, "cond": cond, "scan": scan,
    "select": select, "slice_axis": slice_axis,
}  # fmt: skip
