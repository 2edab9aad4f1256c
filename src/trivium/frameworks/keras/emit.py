"""A Graph as a functional Keras model, in source.

A module becomes a function that takes values, its varying numbers and its name; layers carry the
whole path of the original ("layer1.0.conv1"), so weights keep their names.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

from trivium.frameworks.keras.calls import FUNCTIONS, autocast
from trivium.frameworks.keras.exact import HELPERS
from trivium.frameworks.keras.functions import RESERVED, Free, FunctionEmitter, FunctionWriter
from trivium.frameworks.keras.prepare import ALL_FORMS, prepared
from trivium.frameworks.layer import LayerForm
from trivium.frameworks.writing.blocks import Layer, place
from trivium.frameworks.writing.code import Code, Keyword, Member, Optional, Slot, Statement, Target
from trivium.frameworks.writing.source import Emitted, Emitter, with_sizes
from trivium.frameworks.writing.writer import Writer
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value


class Keras(Target):
    """Keras 3 source: functions that build a functional model."""

    name = "keras"
    forms = ALL_FORMS
    helpers = HELPERS
    bare_numbers = True
    holds = False
    repeats = False  # a function called twice would make its layers twice
    functions = FUNCTIONS

    def literal(self, value: Any) -> str:
        """``1e-5``, not Python's 1e-05."""
        text = super().literal(value)
        return re.sub(r"e([+-])0", r"e\1", text) if isinstance(value, float) else text

    def prepare(self, graph: Graph) -> Graph:
        """Channels last; padding that Keras has no word for as a pad of its own."""
        return prepared(graph)

    def plain(self, node: Node) -> Code | None:
        """A layer without weights on the spot: ``layers.ReLU()(x)``."""
        x = node.inputs[0] if node.inputs else None
        if x is None or not x.shape or any(autocast(v) for v in node.inputs):
            return None
        for form in self.forms:
            arguments = form.write(node) if form.op == node.op and not form.weights else None
            if arguments is None or ("data_format" in arguments and self.calls(node)):
                continue
            return [*self.constructor(form, dict(arguments)), "(", *self.array(x), ")"]
        return None

    def calls(self, node: Node) -> bool:
        """Has the node a form in keras.ops?"""
        return node.op in self.functions or self.template(node) is not None

    def lowers(self, node: Node) -> bool:
        """A layer's op whose arrays are no layer's weights is decomposed, if keras.ops lacks it."""
        if node.op == "batch_norm":
            return node.attrs["training"] is not True
        if node.op in ("max_pool", "avg_pool"):
            return True
        if node.attrs.get("ignore_index") is not None:
            return False
        if node.op in ("cross_entropy", "mse_loss"):
            return not any(autocast(v) for v in node.inputs)
        return self.calls(node) or self.plain(node) is not None or _owned(node)

    def expression(self, node: Node) -> Code:
        """A plain layer where Keras has one, else keras.ops."""
        return self.plain(node) or super().expression(node)

    def positional(self, form: LayerForm) -> int:
        """layers.Conv2D(64, 3), layers.Dense(10), layers.Dropout(0.5)."""
        if form.op == "conv":
            return 1 if "Depthwise" in form.layer else 2
        named = ("batch_norm", "layer_norm", "softmax", "leaky_relu", "mean", "max")
        return 2 if form.op == "embedding" else 0 if form.op in named else 1

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """A recurrent cell of its own goes into layers.RNN."""
        if form.layer != "TwoBiasRNNCell":
            return super().constructor(form, arguments)
        outer = {
            k: arguments.pop(k) for k in ("return_sequences", "return_state") if k in arguments
        }
        code: Code = ["layers.RNN(", *super().constructor(form, arguments)]
        said = [(k, v) for k, v in outer.items() if isinstance(v, Optional)]
        return [*code, *(Keyword(k, v.value, v.default) for k, v in said), ")"]

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """An RNN gives what its constructor says; an Embedding takes indices."""
        node = layer.node
        if node.op == "embedding":
            return [Statement([node.out], [member, "(", *self.array(node.inputs[1]), ")"])]
        if node.op != "rnn":
            return super().call(layer, member)
        said = dict(layer.form.write(node) or {})
        outputs, last = node.outputs
        both: list[Value | None] = [outputs, last]
        if "return_state" not in said:
            both = [outputs if "return_sequences" in said else last]
        return [Statement(both, [member, "(", *self.array(node.inputs[0]), ")"])]

    def parameter(self, value: Value) -> Code:
        """A weight of no layer."""
        code: Code = ["Weight(", Slot("shape", value.shape)]
        code += [f', "{value.dtype}"'] if value.dtype != "float32" else []
        return [*code, ")"] if value.kind == "param" else [*code, ", state=True)"]

    def use(self, value: Value) -> Code:
        """A weight of no layer, inside an expression."""
        return [Free(value.name)]

    def class_name(self, words: Sequence[str]) -> str:
        """``basic_block``; but ResNet and ConvNeXt are one word each."""
        starts = r"(?<=[a-z0-9])(?=[A-Z](?!et(?![a-z])|eXt|t\b))"
        parts = [re.sub(starts, "_", w).lower() for w in words if w]
        name = "_".join(parts)
        return f"{name}_block" if name in RESERVED or keyword.iskeyword(name) else name

    def render(self, emitter: Any) -> str:
        """Imports, then the functions, inner ones first."""
        emitter.settle()
        parts = [FunctionWriter(emitter, cls).function() for cls in emitter.classes]
        return _imports(emitter, "\n\n\n".join(parts))


def _imports(emitter: Emitter, source: str) -> str:
    text = source + "".join(emitter.helpers(source))
    used = [n for n in ("layers", "ops") if re.search(rf"\b{n}\.", text)]
    lines = ["import keras"] * ("keras." in text)
    lines += [f"from keras import {', '.join(used)}"] * bool(used)
    return "\n".join(lines) + "\n\n\n" + source


def _owned(node: Node) -> bool:
    """Has some layer the words for a node's attributes, and its weights the names of its arrays?"""
    arrays = dict(zip(OPS[node.op].arrays, node.inputs, strict=False))
    forms = [f for f in ALL_FORMS if f.op == node.op and f.write(node) is not None]
    return any(place(f, arrays) for f in forms)


class _Function(Keras):
    """A plain function of keras.ops, for Graphs without parameters: an optimizer's update."""

    forms = ()

    def plain(self, node: Node) -> Code | None:
        """No layers."""
        return None

    def render(self, emitter: Emitter) -> str:
        """One function."""
        emitter.settle()
        writer = Writer(emitter, emitter.classes[0])
        head = f"def {emitter.classes[0].name}({', '.join(writer.argument_names())}):"
        lines = "\n".join([head, *("    " + line for line in writer.write())])
        return _imports(emitter, lines)


def emit(graph: Graph) -> Emitted:
    """The source of a function that builds the Keras model this Graph means."""
    return with_sizes(_emit, graph)


def _emit(graph: Graph) -> Emitted:
    emitter = FunctionEmitter(graph, Keras())
    for v in graph.of_kind("param", "state"):
        if v.dtype != "float32" and v.name not in emitter.free:
            raise UnsupportedError(f"a Keras layer with the {v.dtype} parameter {v.name}",
                                   remedy="make the model float32")  # fmt: skip
    return emitter.run()


def emit_function(graph: Graph) -> Emitted:
    """The source of a function of keras.ops that computes this Graph, which has no parameters."""
    return FunctionEmitter(graph, _Function()).run()
