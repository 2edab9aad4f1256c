"""A Graph as tf.Modules and raw TensorFlow ops, in source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trivium.dtype import DType
from trivium.frameworks.layer import LayerForm
from trivium.frameworks.tensorflow.calls import FUNCTIONS
from trivium.frameworks.tensorflow.helpers import HELPERS
from trivium.frameworks.tensorflow.layers import FORMS, Name, owned
from trivium.frameworks.writing.blocks import Block, Layer
from trivium.frameworks.writing.classes import Body, Class
from trivium.frameworks.writing.code import Code, Flag, Keyword, Later, Member, Slot, Statement
from trivium.frameworks.writing.functional import (
    Calls,
    CallWriter,
    Own,
    either,
    passes,
    snake,
    tupled,
)
from trivium.frameworks.writing.source import Emitted, Emitter, with_sizes
from trivium.frameworks.writing.writer import Declared
from trivium.graph import MODE, OPS, Graph, Node, UnsupportedError, Value, identifier
from trivium.shape import Dim
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import replay

_MODULE = {
    "name", "name_scope", "submodules", "variables", "trainable_variables",
    "non_trainable_variables", "with_name_scope", "layers",
}  # fmt: skip


def attribute(part: str) -> str:
    """What a part of a path is as a Python attribute: ``layer_0`` for "0"."""
    if part.isdigit():
        return f"layer_{part}"
    return f"{part}_" if part in _MODULE else identifier(part)


class TensorFlow(Calls):
    """TensorFlow source: tf.Module classes."""

    name = "tensorflow"
    forms = FORMS
    helpers = HELPERS
    functions = FUNCTIONS
    sequential = True
    identity = "Sequential()"
    holds = True
    reserved = frozenset({"tf", "partial", "self", "training"})
    stepping = False

    def prepare(self, graph: Graph) -> Graph:
        """Channels last: TensorFlow convolves nothing else on a CPU."""

        def rule(new: Graph, node: Node, values: list[Value | None]) -> Any:
            x = values[0] if values else None
            if node.op == "conv" and any(
                p < 0 for pair in node.attrs["padding"] for p in pair if isinstance(p, int)
            ):
                raise UnsupportedError(
                    "TensorFlow has no negative padding", node.scope, "slice instead"
                )
            if node.op != "batch_norm" or x is None or node.attrs["axis"] == len(x.shape) - 1:
                return None
            axis, rank = node.attrs["axis"], len(x.shape)
            axes = (*(i for i in range(rank) if i != axis), axis)
            back = tuple(axes.index(i) for i in range(rank))
            moved = OPS["transpose"](x, axes=axes)
            y, *new_statistics = OPS["batch_norm"].append(
                new, [moved, *values[1:]], node.attrs | {"axis": rank - 1}, node.origin
            )
            return [OPS["transpose"](y, axes=back), *new_statistics]

        return replay(to_layout(graph, "NHWC"), rule)[0]

    def literal(self, value: Any) -> str:
        """Dtypes by name."""
        if isinstance(value, (DType, Name)):
            return f'"{value}"' if isinstance(value, DType) else str(value)
        return super().literal(value)

    def class_name(self, words: Sequence[str]) -> str:
        """Not the name of a layer that comes along; the steps of loops are functions."""
        if self.stepping:
            return snake(words)
        name = super().class_name(words)
        return f"{name}Model" if self.taken(name) else name

    def lowers(self, node: Node) -> bool:
        """A layer's op whose arrays are no layer's own is decomposed, unless it has a call form."""
        if node.op == "dropout":
            return node.attrs["training"] is not False
        if node.attrs.get("ignore_index") is not None:
            return False
        if node.op in self.functions or self.template(node) is not None:
            return True
        forms = [f for f in self.forms if f.op == node.op and f.write(node) is not None]
        return any(owned(f, node) for f in forms) or (
            node.op == "batch_norm" and node.attrs["training"] is MODE
        )

    def bare(self, node: Node, value: Value, infix: bool) -> bool:
        """A function takes its first argument for what Python's number is: float32 or int32."""
        if infix or value.dtype in ("float32", "int32", "bool"):
            return super().bare(node, value, infix)
        alike = [v for v in node.inputs if v is not None and v.dtype == value.dtype]
        return alike[0] is not value and super().bare(node, value, infix)

    def number(self, value: Value) -> Code:
        """Sizes are int32 tensors there."""
        assert value.node is not None
        code = super().number(value)
        if isinstance(code[0], str):
            return code
        return ["tf.cast(", *code, f", {self.literal(value.dtype)})"]

    def positional(self, form: LayerForm) -> int:
        """Conv2d(3, 64, 7), Dense(3, 4), partial(max_pool, kernel=3)."""
        if form.op == "conv":
            return 2 if form.layer == "DepthwiseConv2d" else 3
        two = ("linear", "rnn", "embedding")
        return 2 if form.op in two else 0 if form.op.endswith("_pool") else 1

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """Functions stand without a call; pools as functions with their numbers filled in."""
        code = super().constructor(form, arguments)
        if form.op.endswith("_pool"):
            first = [] if isinstance(code[2], Keyword) else [", "]
            return [f"partial({form.layer}", *first, *code[2:]]
        return code if "(" in form.line else [form.layer]

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """``self.bn1(x, training=training)``; an RNN gives all outputs and the last."""
        node = layer.node
        if node.op == "embedding":
            return [Statement([node.out], [member, "(", *self.array(node.inputs[1]), ")"])]
        if node.op == "rnn":
            return either(node.outputs, [member, "(", *self.array(node.inputs[0]), ")"])
        (statement,) = super().call(layer, member)
        mode = node.attrs.get("training", False)
        flag: Code = [Flag("training")] if mode is MODE else [", training=True"] if mode else []
        return [replace(statement, code=[*statement.code[:-1], *flag, ")"])]

    def parameter(self, value: Value) -> Code:
        """A variable of no layer."""
        kind = "" if value.dtype == "float32" else f", {self.literal(value.dtype)}"
        fixed = value.kind == "state" or not value.dtype.is_floating
        trained = ", trainable=False" if fixed else ""
        return ["tf.Variable(tf.zeros(", Slot("shape", value.shape), f"{kind}){trained})"]

    def inner(self, graph: Graph) -> Emitter:
        """An emitter for an inner Graph."""
        self.stepping = True
        try:
            return Modules(graph, self)
        finally:
            self.stepping = False

    def function(self, emitter: Emitter, cls: Class) -> str:
        """The step of a scan, a branch of a cond: a tuple of results."""
        writer = _Writer(emitter, cls)
        arguments = ", ".join(writer.argument_names())
        lines = writer.write()
        lines[-1] = tupled(lines[-1], len(cls.body.block.outputs))
        return f"def {cls.name}({arguments}):\n" + "\n".join("    " + line for line in lines)

    def render(self, emitter: Emitter) -> str:
        """Imports, then the classes, inner ones first."""
        emitter.settle()
        parts = [_class(emitter, cls) for cls in emitter.classes]
        body = "\n\n\n".join([*self.steps.values(), *parts])
        first = "from functools import partial\n\n" if "partial(" in body else ""
        return f"{first}import tensorflow as tf\n\n\n{body}"


class Modules(Emitter):
    """Blocks pass the mode on to the blocks inside that ask for it."""

    def body(self, block: Block) -> Body:
        """tf.nn.relu is an element of a Sequential; elsewhere it is called where it is needed."""
        if any(isinstance(item, Node) and item.op != "full" for item in block.items):
            block.items = [
                item.node if isinstance(item, Layer) and not item.form.weights else item
                for item in block.items
            ]
        return super().body(block)

    def sub_block(self, body: Body, block: Block) -> None:
        """``self.layer1(x, training=training)``."""
        super().sub_block(body, block)
        (later,) = [
            p
            for p in body.members[self.member_name(body.block, block.path)]
            if isinstance(p, Later)
        ]
        if any(passes(s.code, "training") for s in later.body.statements):
            last = body.statements[-1]
            body.statements[-1] = replace(
                last, code=[*last.code[:-1], Flag("training"), ")"], effect=True
            )

    def chain_of(self, body: Body) -> list[str] | None:
        """Sequential passes the mode on by itself."""
        plain = [
            replace(s, code=[p for p in s.code if not isinstance(p, Flag)]) for s in body.statements
        ]
        return super().chain_of(Body(body.block, body.members, plain))


class _Writer(CallWriter):
    def __init__(self, emitter: Emitter, cls: Class):
        super().__init__(emitter, cls)
        self.shapes = {v.name: v.shape for v in emitter.graph.inputs}

    def member(self, member: Member) -> str:
        """``self.conv1``."""
        name, path = member.name, self.body.block.path
        if not isinstance(member, Own):
            return ".".join(["self", *map(attribute, name.split("."))])
        if path and not name.startswith(path + "."):
            raise UnsupportedError(
                f"TensorFlow source that reads {name} in {path}, outside its own scope"
            )
        theirs, w = self.emitter.weights[name]  # perhaps a layer's, which may keep it turned
        inside = theirs[len(path) + 1 :] if path else theirs
        text = ".".join(["self", *map(attribute, inside.split("."))])
        turned = w.turned(len(self.shapes[name]))
        return f"tf.transpose({text}, {turned})" if turned else text

    def checks(self) -> list[str]:
        """Sizes may be known only when the graph runs, so TensorFlow has to ask."""
        if not list(self.foreign()):
            return []
        shapes = []
        for v in self.body.block.inputs:
            sizes = (
                f'"{s}"' if isinstance(s, Dim) and s == Dim(min(s.names())) else
                "None" if isinstance(s, Dim) else str(s) for s in v.shape
            )  # fmt: skip
            shapes.append(f"({self.names[v]}, ({', '.join(sizes)}{',' * (len(v.shape) == 1)}))")
        return [f"tf.debugging.assert_shapes([{', '.join(shapes)}])"]

    def size_of(self, name: str, axis: int) -> str:
        """Known when the graph runs."""
        return f"tf.shape({name})[{axis}]"

    def declarations(self) -> list[str]:
        """The lines of ``__init__``."""
        if self.body.chain:
            items = [_written(self.declared(code), 1) for code in self.body.members.values()]
            items = [f"    {line}," for line in items]
            return ["super().__init__(", *items, ")", *self.frozen()]
        lines = ["super().__init__()", *(f"self.{n} = {n}" for n in self.cls.kept)]
        seen: set[str] = set()
        fixed = self.emitter.fixed(self.body)
        for name, code in self.body.members.items():
            parts = ["self", *map(attribute, name.split("."))]
            for i in range(2, len(parts)):  # names that cross a scope which is no class of its own
                if (outer := ".".join(parts[:i])) not in seen:
                    seen.add(outer)
                    lines.append(f"{outer} = tf.Module()")
            if (where := ".".join(parts)) in seen:
                raise UnsupportedError(
                    f"two parts of the model that are both {where} in TensorFlow", name
                )
            seen.add(where)
            text = self.asked(name, _written(self.declared(code), 0))
            lines.append(f"{where} = {text[:-1]}, trainable=False)" if name in fixed else
                         f"{where} = {text}")  # fmt: skip
        return [*lines, *self.frozen()]

    def freeze(self, path: str, alone: bool) -> str:
        """See Writer."""
        where, parts = "self", path.split(".") if path else []
        for i, part in enumerate(parts):
            inner = ".".join(parts[:i]) in self.emitter.chains and part.isdigit()
            where += f".layers[{part}]" if inner else f".{attribute(part)}"
        return f"{where} = tf.Variable({where}, trainable=False)" if alone else f"freeze({where})"


def _written(item: Declared, depth: int) -> str:
    """A constructor call; a chain as a Sequential over several lines."""
    if isinstance(item, str):
        return item
    pad = "    " * depth
    parts = [f"            {pad}{_written(i, depth + 1)},\n" for i in item]
    return f"Sequential(\n{''.join(parts)}        {pad})"


def _class(emitter: Emitter, cls: Class) -> str:
    body = cls.body
    writer = _Writer(emitter, cls)
    lines = [f"class {cls.name}({'Sequential' if body.chain else 'tf.Module'}):"]
    if body.members:
        lines.append(f"    def __init__({', '.join(['self', *cls.signature(writer.literal)])}):")
        lines += ["        " + line for line in writer.declarations()]
    if not body.chain:
        lines += [""] * bool(body.members)
        lines.append(
            f"    def __call__({', '.join(['self', *writer.argument_names(), 'training=False'])}):"
        )
        lines += ["        " + line for line in writer.write()]
    return "\n".join(lines)


def emit(graph: Graph) -> Emitted:
    """The source of a tf.Module that means this Graph."""
    return with_sizes(lambda g: Modules(g, TensorFlow()).run(), graph)
