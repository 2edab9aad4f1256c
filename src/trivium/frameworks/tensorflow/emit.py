"""A Graph as tf.Module classes, in source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trivium.dtype import DType
from trivium.frameworks.blocks import Layer
from trivium.frameworks.code import Code, Member, Slot, Statement, Target, array_source, joined
from trivium.frameworks.functional import (
    Calls,
    CallWriter,
    Flag,
    Own,
    keywords,
    new_shape,
    plain_padding,
    select,
    slice_axis,
    square,
)
from trivium.frameworks.layer import LayerForm, Weight, permuted
from trivium.frameworks.source import Class, Emitted, Emitter, Later, flat
from trivium.frameworks.tensorflow.helpers import HELPERS
from trivium.graph import MODE, Graph, Node, UnsupportedError, Value
from trivium.transforms.layout import to_layout


# -- layers ------------------------------------------------------------------------------------------
def _given(**arguments: tuple[Any, Any]) -> dict[str, Any]:
    return {k: v for k, (v, default) in arguments.items() if v != default}


def _conv(rank: int) -> LayerForm:
    def write(node: Node) -> Mapping[str, Any] | None:
        x, w, b = (*node.inputs, None)[:3]
        a = node.attrs
        if x is None or w is None or len(x.shape) != rank + 2 or a["layout"][-1] != "C":
            return None
        return {"in_channels": w.shape[1] * a["groups"], "filters": w.shape[0], "kernel_size": w.shape[2:]} | _given(
            strides=(square(a["stride"]), 1), padding=(plain_padding(a["padding"]), 0),
            dilations=(square(a["dilation"]), 1), groups=(a["groups"], 1), use_bias=(b is not None, True),
        )  # fmt: skip

    order = (*range(2, rank + 2), 1, 0)
    weights = (Weight("w", "weight", "kernel", **permuted(*order)), Weight("b", "bias", "bias"))
    return LayerForm("conv", "Conv", write, weights=weights)


def _linear(node: Node) -> Mapping[str, Any] | None:
    w, b = (*node.inputs, None)[1:3]
    if w is None:
        return None
    return {"in_features": w.shape[1], "units": w.shape[0]} | _given(use_bias=(b is not None, True))


def _batch_norm(node: Node) -> Mapping[str, Any] | None:
    x, scale, bias, mean, _ = node.inputs
    a = node.attrs
    if x is None or mean is None or mean.kind != "state":
        return None
    axis = -1 if a["axis"] == len(x.shape) - 1 else a["axis"]
    return {"features": x.shape[a["axis"]]} | _given(
        axis=(axis, -1), momentum=(a["momentum"], 0.1), epsilon=(a["epsilon"], 1e-5),
        unbiased=(a["unbiased"], True), scale=(scale is not None, True), center=(bias is not None, True),
    )  # fmt: skip


def _layer_norm(node: Node) -> Mapping[str, Any] | None:
    x, scale, bias = (*node.inputs, None, None)[:3]
    if x is None or scale is None:
        return None
    return {"shape": scale.shape} | _given(epsilon=(node.attrs["epsilon"], 1e-5), center=(bias is not None, True))


def _rnn(node: Node) -> Mapping[str, Any] | None:
    w, bias = node.inputs[1], (*node.inputs, None, None)[3:5]
    if w is None or (bias[0] is None and bias[1] is not None):
        return None
    count = sum(b is not None for b in bias)
    return {"in_features": w.shape[1], "units": w.shape[0]} | _given(
        activation=(Symbol(f"tf.nn.{node.attrs['activation']}"), Symbol("tf.nn.tanh")), biases=(count, 1)
    )


class Symbol(str):
    """A name in the source, not a string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _plain(op: str, function: str) -> LayerForm:
    return LayerForm(op, function, lambda node: {})


FORMS = [
    *(_conv(n) for n in (1, 2, 3)),
    LayerForm("linear", "Dense", _linear,
              weights=(Weight("weight", "weight", "kernel", **permuted(1, 0)), Weight("bias", "bias", "bias"))),
    LayerForm("batch_norm", "BatchNorm", _batch_norm, weights=(
        Weight("scale", "weight", "gamma"), Weight("bias", "bias", "beta"),
        Weight("running_mean", "running_mean", "moving_mean"),
        Weight("running_var", "running_var", "moving_variance"))),
    LayerForm("layer_norm", "LayerNorm", _layer_norm,
              weights=(Weight("scale", "weight", "gamma"), Weight("bias", "bias", "beta"))),
    LayerForm("embedding", "Embedding",
              lambda node: None if node.inputs[0] is None else
              {"count": node.inputs[0].shape[0], "width": node.inputs[0].shape[1]},
              weights=(Weight("weight", "weight", "table"),)),
    LayerForm("rnn", "RNN", _rnn, weights=(
        Weight("weight_ih", "weight_ih", "kernel", **permuted(1, 0)),
        Weight("weight_hh", "weight_hh", "recurrent_kernel", **permuted(1, 0)),
        Weight("bias_ih", "bias_ih", "bias"), Weight("bias_hh", "bias_hh", "recurrent_bias"))),
    _plain("relu", "tf.nn.relu"), _plain("tanh", "tf.nn.tanh"), _plain("sigmoid", "tf.nn.sigmoid"),
    _plain("silu", "tf.nn.silu"), _plain("softplus", "tf.nn.softplus"),
]  # fmt: skip


# -- calls -------------------------------------------------------------------------------------------
def _convolution(target: Target, node: Node) -> Code:
    x, w, b = (*node.inputs, None)[:3]
    assert w is not None
    a = node.attrs
    order = (*range(2, len(w.shape)), 1, 0)
    code: Code = ["convolution(", *target.array(x), ", tf.transpose(", *target.array(w), f", {order})"]
    code += keywords({
        "strides": (square(a["stride"]), 1), "padding": (plain_padding(a["padding"]), 0),
        "dilations": (square(a["dilation"]), 1), "groups": (a["groups"], 1),
    })  # fmt: skip
    return [*code, ")"] if b is None else [*code, ") + ", *target.array(b)]


def _pool(target: Target, node: Node) -> Code:
    a = node.attrs
    if any(d > 1 for d in a.get("dilation", ())) and any(s > 1 for s in a["stride"]):
        raise UnsupportedError("TensorFlow has no dilated max pool with a stride", node.scope)
    more = {"strides": (square(a["stride"]), square(a["kernel"])), "padding": (plain_padding(a["padding"]), 0)}
    if node.op == "max_pool":
        more["dilations"] = (square(a["dilation"]), 1)
    else:
        counted = a["include_pad"] or plain_padding(a["padding"]) == 0
        more["include_pad"] = (counted, True)
    return [f"{node.op}(", *target.array(node.inputs[0]), f", {square(a['kernel'])}", *keywords(more), ")"]


def _dropout(target: Target, node: Node) -> Code:
    mode: Code = [Flag("training")] if node.attrs["training"] is MODE else [", training=True"]
    return ["dropout(", *target.array(node.inputs[0]), f", {node.attrs['rate']}", *mode, ")"]


def _linear_call(target: Target, node: Node) -> Code:
    x, w, b = (*node.inputs, None)[:3]
    code: Code = ["tf.matmul(", *target.array(x), ", ", *target.array(w), ", transpose_b=True)"]
    if x is not None and len(x.shape) != 2:
        code = ["tf.tensordot(", *target.array(x), ", ", *target.array(w), ", [[-1], [1]])"]
    return code if b is None else [*code, " + ", *target.array(b)]


def _matmul(target: Target, node: Node) -> Code:
    x, y = node.inputs
    assert x is not None and y is not None
    if len(x.shape) > 1 and len(y.shape) > 1:
        return [*target.array(x), " @ ", *target.array(y)]
    return ["tf.tensordot(", *target.array(x), ", ", *target.array(y), ", 1)"]


def _reshape(target: Target, node: Node) -> Code:
    sizes = joined(new_shape(target, node.attrs["shape"]))
    return ["tf.reshape(", *target.array(node.inputs[0]), ", (", *sizes, ",))" if len(node.attrs["shape"]) == 1 else "))"]


def _flatten(target: Target, node: Node) -> Code:
    return ["tf.reshape(", *target.array(node.inputs[0]), ", (", *joined(new_shape(target, node.out.shape)),
            ",))" if len(node.out.shape) == 1 else "))"]  # fmt: skip


def _pad(target: Target, node: Node) -> Code:
    a = node.attrs
    if any(a["interior"]) or any(p < 0 for p in (*a["low"], *a["high"])):
        raise UnsupportedError("TensorFlow pads neither between elements nor negatively", node.scope)
    pairs = tuple(zip(a["low"], a["high"], strict=True))
    tail = f", constant_values={target.literal(a['value'])})" if a["value"] else ")"
    return ["tf.pad(", *target.array(node.inputs[0]), f", {pairs}{tail}"]


def _constant(target: Target, node: Node) -> Code:
    array = node.attrs["value"]
    source = array_source(array).replace("inf", 'float("inf")').replace("nan", 'float("nan")')
    return [f"tf.constant({source}, tf.{array.dtype}, {array.shape})"]




class Tensorflow(Calls):
    """TensorFlow source: tf.Module classes."""

    name = "tensorflow"
    forms = FORMS
    helpers = HELPERS
    sequential = True
    functions = {  # noqa: RUF012
        "conv": _convolution, "max_pool": _pool, "avg_pool": _pool, "dropout": _dropout,
        "linear": _linear_call, "matmul": _matmul, "reshape": _reshape, "flatten": _flatten,
        "pad": _pad, "constant": _constant, "slice_axis": slice_axis, "select": select,
    }  # fmt: skip
    reserved = frozenset({"tf", "training", "self"})

    def prepare(self, graph: Graph) -> Graph:
        """Channels last: TensorFlow convolves no other way on a CPU."""
        return to_layout(graph, "NHWC")

    def lowers(self, node: Node) -> bool:
        """Dropout that is off, and norms without own statistics, are written out."""
        if node.op == "dropout" and node.attrs["training"] is False:
            return False
        if node.op in ("rnn", "embedding", "layer_norm", "batch_norm"):
            form = next(f for f in self.forms if f.op == node.op)
            held = [v for v in node.inputs[1:] if v is not None]
            if node.op == "embedding":
                held = [v for v in node.inputs[:1] if v is not None]
            return form.write(node) is not None and bool(held) and all(v.kind in ("param", "state") for v in held)
        return super().lowers(node)

    def literal(self, value: Any) -> str:
        """Dtypes are TensorFlow's own."""
        return f"tf.{value}" if isinstance(value, DType) else str(value) if isinstance(value, Symbol) else super().literal(value)

    def positional(self, form: LayerForm) -> int:
        """Conv(3, 64, (3, 3)), Dense(3, 4)."""
        return {"conv": 3, "linear": 2, "rnn": 2, "embedding": 2}.get(form.op, 1)

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """A function is its own constructor."""
        return [form.layer] if not form.weights else super().constructor(form, arguments)

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """``self.bn1(x, training=training)``."""
        node = layer.node
        x = node.inputs[1] if node.op == "embedding" else node.inputs[0]
        code: Code = [member, "(", *self.array(x)]
        if node.op == "rnn":
            first, last = node.outputs
            return [Statement([first], [*code, ")[0]"]), Statement([last], [*code, ")[1]"])]
        if node.op == "batch_norm":
            training = node.attrs["training"]
            code += [Flag("training")] if training is MODE else [", training=True"] if training else []  # type: ignore[list-item]
            return [Statement([node.outputs[0]], [*code, ")"], effect=training is not False)]
        return [Statement([node.outputs[0]], [*code, ")"])]

    def parameter(self, value: Value) -> Code:
        """A free parameter."""
        tail = "" if value.kind == "param" else ", trainable=False"
        return [f"tf.Variable(tf.zeros({self.literal(value.shape)}, tf.{value.dtype}){tail})"]

    def render(self, emitter: Emitter) -> str:
        """The import, then the classes, inner ones first."""
        emitter.settle()
        return "import tensorflow as tf\n\n\n" + "\n\n\n".join(_class(emitter, cls) for cls in emitter.classes)


class Modules(Emitter):
    """Calls of inner blocks pass the mode on."""

    def sub_block(self, body: Any, block: Any) -> None:
        """``self.layer1(x, training=training)``."""
        super().sub_block(body, block)
        call = body.statements[-1].code
        inner = body.members[self.member_name(body.block, block.path)][0].body
        if inner.cls is None or any(isinstance(p, Flag) for s in inner.statements for p in s.code):
            call.insert(len(call) - 1, Flag("training"))

    def chain_of(self, body: Any) -> list[str] | None:
        """A chain may pass the mode on."""
        kept = [s.code for s in body.statements]
        for s in body.statements:
            s.code = [p for p in s.code if not isinstance(p, Flag)]
        try:
            return super().chain_of(body)
        finally:
            for s, code in zip(body.statements, kept, strict=True):
                s.code = code


class _Writer(CallWriter):
    def member(self, member: Member) -> str:
        """``self.conv1``, ``self.layers[0]``."""
        name, path = member.name, self.body.block.path
        if isinstance(member, Own) or name.startswith(path + "."):
            if path and not name.startswith(path + "."):
                raise UnsupportedError(f"TensorFlow source that reads {name} in {path}, outside its own scope")
            name = name[len(path) + 1 :] if path else name
        return "self" + "".join(f".{_attribute(p)}" for p in name.split("."))

    def declarations(self) -> list[str]:
        """The lines of ``__init__``."""
        lines = ["super().__init__()"]
        holders: set[str] = set()
        for name, code in self.body.members.items():
            *path, last = [_attribute(p) for p in name.split(".")]
            for i in range(len(path)):
                if (outer := ".".join(path[: i + 1])) not in holders:
                    holders.add(outer)
                    lines.append(f"self.{outer} = tf.Module()")
            lines.append(f"{'.'.join(['self', *path, last])} = {self.declaration(code, 0)}")
        return lines

    def declaration(self, code: Any, depth: int) -> str:
        """A constructor call; a chain inside as a Sequential over several lines."""
        if len(code) == 1 and isinstance(code[0], Later):
            body = code[0].body
            if body.cls is not None:
                inside = ", ".join(self.literal_slot(s) for s in body.arguments if isinstance(s, Slot))
                return f"{body.cls.name}({inside})"
            pad = "    " * (depth + 1)
            items = [self.declaration(body.members[n], depth + 1) for n in body.chain or ()]
            return "Sequential(\n" + "".join(f"        {pad}{i},\n" for i in items) + f"        {pad[4:]})"
        return "".join(self.literal_slot(p) if isinstance(p, Slot) else str(p) for p in flat(code, self.emitter))


def _attribute(name: str) -> str:
    """A numbered child that is in no Sequential."""
    return f"layer_{name}" if name.isdigit() else name


def _class(emitter: Emitter, cls: Class) -> str:
    writer = _Writer(emitter, cls)
    body = cls.bodies[0]
    lines = [f"class {cls.name}(tf.Module):"]
    if body.members:
        arguments = "".join(f", {p}" for p in cls.parameters)
        lines.append(f"    def __init__(self{arguments}):")
        lines += ["        " + line for line in writer.declarations()]
        lines.append("")
    lines.append(f"    def __call__(self, {', '.join([*writer.argument_names(), 'training=False'])}):")
    lines += ["        " + line for line in writer.write()]
    return "\n".join(lines)


def emit(graph: Graph) -> Emitted:
    """The source of a tf.Module that means this Graph."""
    return Modules(graph, Tensorflow()).run()


__all__: Sequence[str] = ["FORMS", "Tensorflow", "emit"]
