"""A Graph as a PyTorch module, in source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trivium.dtype import DType
from trivium.frameworks.layer import LayerForm
from trivium.frameworks.torch.classes import attribute, class_source
from trivium.frameworks.torch.layers import FORMS, HELPERS
from trivium.frameworks.ways import square, symmetric
from trivium.frameworks.writing.blocks import Layer
from trivium.frameworks.writing.code import (
    Code,
    Keyword,
    Member,
    Slot,
    Statement,
    Target,
    array_source,
    beside_array,
    joined,
    number,
)
from trivium.frameworks.writing.functional import select, slice_axis
from trivium.frameworks.writing.source import Emitted, Emitter, with_sizes
from trivium.graph import MODE, OPS, Graph, Node, UnsupportedError, Value
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import replay

HEADER = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"


def _pads(low: Sequence[Any], high: Sequence[Any]) -> tuple[Any, ...]:
    """F.pad's order: the last axis first, axes that get none left out."""
    pairs = list(zip(low, high, strict=True))
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    return tuple(p for pair in reversed(pairs) for p in pair)


def _pad(target: Target, node: Node) -> Code:
    a = node.attrs
    code: Code = [
        "F.pad(",
        *target.array(node.inputs[0]),
        ", ",
        Slot("padding", _pads(a["low"], a["high"])),
    ]
    return [*code, f", value={target.literal(a['value'])})" if a["value"] else ")"]


def _one_hot(target: Target, node: Node) -> Code:
    """F.one_hot takes int64 alone."""
    (indices,), a = node.inputs, node.attrs
    assert indices is not None
    wide = ".long()" * (indices.dtype != "int64")
    count = target.attribute(a["classes"])
    kind = target.literal(a["dtype"])
    return ["F.one_hot(", *target.array(indices), f"{wide}, ", *count, f").to({kind})"]


def _sum(target: Target, node: Node) -> Code:
    """Torch sums small integers as int64 unless told otherwise."""
    code, kind = target.by_line(node), node.out.dtype
    wide = kind.is_floating or kind == "int64"
    return code if wide else [*code[:-1], f"{code[-1]}"[:-1], f", dtype=torch.{kind})"]


def _extremum(target: Target, node: Node) -> Code:
    """A bound may stay a number where the tie's gradient is the array's."""
    x, y = node.inputs
    b = number(target, y)
    if node.attrs["ties"] == "share" or not b or number(target, x):
        return target.by_line(node)
    word = "min" if node.op == "maximum" else "max"
    return ["torch.clamp(", *target.array(x), f", {word}=", *b, ")"]


def _filled(node: Node, kernels: Value | None = None) -> None:
    """Torch takes a batch of no images, but no image or kernel that is empty."""
    (x, *_) = node.inputs
    assert x is not None
    if 0 in x.shape[1:] or (kernels is not None and 0 in kernels.shape):
        what = f"{x.shape}" + (f" and {kernels.shape}" if kernels is not None else "")
        raise UnsupportedError(f"torch has no {node.op} of what is empty, {what}", node.scope)


def _conv(target: Target, node: Node) -> Code:
    x, w, b = (*node.inputs, None)[:3]
    a = node.attrs
    _filled(node, w)
    code: Code = [f"F.conv{len(a['stride'])}d("]
    for i, v in enumerate((x, w, b)):
        if v is not None:
            code += [", "] * bool(i) + target.array(v)
    for key, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        value = symmetric(a[key]) if key == "padding" else a[key]
        value = square(value) if isinstance(value, tuple) else value
        code.append(Keyword(key, value, default))
    return [*code, ")"]


def _wide(node: Node) -> bool:
    """More padding around a pooling than torch allows: half a window."""
    a = node.attrs
    kernel = a.get("kernel", ())  # a convolution's is an array, and may be padded as it likes
    sizes = [d * (k - 1) + 1 for k, d in zip(kernel, a.get("dilation", (1, 1, 1)), strict=False)]
    return any(2 * max(p) > n for p, n in zip(a["padding"], sizes, strict=False))


def _pool(target: Target, node: Node) -> Code:
    _filled(node)
    a = node.attrs
    n = len(a["kernel"])
    word = "max" if node.op == "max_pool" else "avg"
    padded = any(p != (0, 0) for p in a["padding"])
    return [
        f"F.{word}_pool{n}d(", *target.array(node.inputs[0]),
        ", ", Slot("kernel_size", square(a["kernel"])),
        Keyword("stride", square(a["stride"]), square(a["kernel"])),
        Keyword("padding", square(symmetric(a["padding"])), 0),
        Keyword("count_include_pad", not padded or a.get("include_pad", True), True),
        Keyword("dilation", square(a.get("dilation", (1,))), 1), ")",
    ]  # fmt: skip


def _cross_entropy(target: Target, node: Node) -> Code:
    logits, labels = node.inputs
    assert logits is not None and labels is not None
    reduction, ignored = node.attrs["reduction"], node.attrs["ignore_index"]
    index = [*target.array(labels), ".long()" * (labels.dtype != "int64")]
    if ignored is None:  # F.cross_entropy ignores -100 unless told to ignore something else
        tail = "" if reduction == "none" else f".{reduction}()"
        return ["-F.log_softmax(", *target.array(logits), ", -1).gather(-1, ", *index,
                f".unsqueeze(-1)).squeeze(-1){tail}"]  # fmt: skip
    tail = "" if reduction == "mean" else f', reduction="{reduction}"'
    tail += "" if ignored == -100 else f", ignore_index={ignored}"
    first = [*target.array(logits), ".movedim(-1, 1)" * (len(logits.shape) > 2)]
    return ["F.cross_entropy(", *first, ", ", *index, f"{tail})"]


def _where(target: Target, node: Node) -> Code:
    condition, *branches = node.inputs
    code: Code = ["torch.where(", *target.array(condition)]
    for v in branches:  # a number takes the dtype of the array beside it
        bare = number(target, v) if beside_array(node, v) else []
        code += [", ", *(bare or target.array(v))]
    return [*code, ")"]


def _take(target: Target, node: Node) -> Code:
    x, indices = node.inputs
    axis = node.attrs["axis"]
    assert x is not None and indices is not None
    before = ", ".join([":"] * axis)
    return [*target.array(x), "[", before + ", " if axis else "", *target.array(indices), "]"]


def _batch_norm(target: Target, node: Node) -> Code:
    x, scale, bias, mean, var = node.inputs
    a = node.attrs
    if a["training"] is not False or a["axis"] != 1:
        raise UnsupportedError(f"torch has no batch norm with {a}", node.scope)
    code: Code = ["F.batch_norm("]
    for i, v in enumerate((x, mean, var, scale, bias)):
        code += [", "] * bool(i) + target.array(v)
    return [*code, f", eps={a['epsilon']})"]


def _layer_norm(target: Target, node: Node) -> Code:
    x, *rest = node.inputs
    assert x is not None
    shape = x.shape[len(x.shape) - node.attrs["axes"] :]
    code: Code = ["F.layer_norm(", *target.array(x), ", ", *target.attribute(shape)]
    for v in rest:
        code += [", ", *target.array(v)]
    return [*code, f", eps={node.attrs['epsilon']})"]


def _dropout(target: Target, node: Node) -> Code:
    mode = ", training=self.training" if node.attrs["training"] is MODE else ""
    return ["F.dropout(", *target.array(node.inputs[0]), f", {node.attrs['rate']}{mode})"]


def _constant(target: Target, node: Node) -> Code:
    array = node.attrs["value"]
    return [f"torch.tensor({array_source(array)}, dtype=torch.{array.dtype})"]


class Torch(Target):
    """PyTorch source: nn.Module classes."""

    name = "torch"
    forms = FORMS
    helpers = HELPERS
    identity = "nn.Identity()"
    reserved = frozenset({"torch", "nn", "F", "self"})
    functions = {  # noqa: RUF012
        "pad": _pad, "conv": _conv, "max_pool": _pool, "avg_pool": _pool,
        "cross_entropy": _cross_entropy, "take": _take, "slice_axis": slice_axis, "select": select,
        "batch_norm": _batch_norm, "dropout": _dropout, "layer_norm": _layer_norm,
        "constant": _constant, "maximum": _extremum, "minimum": _extremum, "where": _where,
        "sum": _sum, "cumsum": _sum, "one_hot": _one_hot,
    }  # fmt: skip

    def prepare(self, graph: Graph) -> Graph:
        """Channels first; asymmetric padding as a pad of its own."""

        def rule(new: Graph, node: Node, values: list[Value | None]) -> Any:
            if node.op == "batch_norm" and node.attrs["training"] is False:
                out = OPS["batch_norm"].append(new, values, node.attrs, node.origin)
                return [out[0], values[3], values[4]]  # what it leaves as it was
            if node.op not in ("conv", "max_pool", "avg_pool") or (
                symmetric(node.attrs["padding"]) is not None and not _wide(node)
            ):
                return None
            low, high = zip(*node.attrs["padding"], strict=True)

            def padded(x: Any) -> Any:
                fill = float("-inf") if node.op == "max_pool" else 0.0
                around = OPS["pad"](x, low=(0, 0, *low), high=(0, 0, *high), value=fill)
                attrs = node.attrs | {"padding": ((0, 0),) * len(low)}
                return OPS[node.op].append(new, [around, *values[1:]], attrs, node.origin)[0]

            if node.op == "avg_pool" and not node.attrs["include_pad"]:
                x = values[0]
                return [OPS["divide"](padded(x), padded(OPS["ones_like"](x)))]
            return [padded(values[0])]

        return replay(to_layout(graph, "NCHW"), rule)[0]

    def unbound(self, value: Value, axis: int) -> Code:
        """``x.unbind(0)``."""
        return [*self.array(value), f".unbind({axis})"]

    def results(self, node: Node) -> list[Value | None]:
        """F.batch_norm gives the normalised alone."""
        return [node.outputs[0]] if node.op == "batch_norm" else list(node.outputs)

    def literal(self, value: Any) -> str:
        """Dtypes are torch's own."""
        return f"torch.{value}" if isinstance(value, DType) else super().literal(value)

    def makes(self, dtypes: set[DType]) -> bool:
        """Layers of any one dtype."""
        return len(dtypes) <= 1

    def of_dtype(self, dtype: DType) -> dict[str, Any]:
        """nn.Linear(3, 4, dtype=torch.float64)."""
        return {"dtype": dtype}

    def part(self, name: str) -> str:
        """nn.Module has words of its own."""
        return attribute(name)

    def positional(self, form: LayerForm) -> int:
        """nn.Conv2d(3, 64, 7), nn.Linear(3, 4), nn.RNN(3, 4)."""
        return {"conv": 3, "linear": 2, "rnn": 2, "embedding": 2}.get(form.op, 1)

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """nn.RNN gives outputs and, layers first, the last states; nn.Embedding takes indices."""
        node = layer.node
        if node.op == "embedding":
            return [Statement([node.out], [member, "(", *self.array(node.inputs[1]), ")"])]
        if node.op != "rnn":
            return super().call(layer, member)
        outputs, last = node.outputs
        call: Code = [member, "(", *self.array(node.inputs[0]), ")"]
        return [Statement([outputs], [*call, "[0]"]), Statement([last], [*call, "[1][0]"])]

    def parameter(self, value: Value) -> Code:
        """A free parameter or buffer."""
        kind = "" if value.dtype == "float32" else f", dtype={self.literal(value.dtype)}"
        shape = joined([[Slot("size", s)] for s in value.shape]) or ["()"]
        zeros: Code = [
            f"torch.{'ones' if value.name in self.ones else 'zeros'}(",
            *shape,
            f"{kind})",
        ]
        if value.kind != "param":
            return zeros
        fixed = "" if value.dtype.is_floating else ", requires_grad=False"
        return ["nn.Parameter(", *zeros, f"{fixed})"]

    def lowers(self, node: Node) -> bool:
        """A batch norm that torch would not differentiate, or would change, is written out."""
        if node.op == "batch_norm":
            mean, training = node.inputs[3], node.attrs["training"]
            if training is True or mean is None or mean.kind != "state":
                return False
        return super().lowers(node)

    def render(self, emitter: Emitter) -> str:
        """Imports, then the classes, inner ones first."""
        emitter.settle()
        parts = [class_source(emitter, cls) for cls in emitter.classes]
        return HEADER + "\n\n\n".join(parts)


def emit(graph: Graph) -> Emitted:
    """The source of a torch module that means this Graph."""
    return with_sizes(lambda g: Emitter(g, Torch()).run(), graph)
