"""A Graph as a functional Keras model, in source.

A module becomes a function that takes values, its varying numbers and its name; layers carry the
whole path of the original ("layer1.0.conv1"), so weights keep their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.frameworks.blocks import Block, Layer, leaf, parent
from trivium.frameworks.keras.exact import EXACT, HELPERS
from trivium.frameworks.keras.layers import FORMS, each, given, same_pad, spatial, square
from trivium.frameworks.layer import LayerForm, Weight
from trivium.frameworks.source import (
    Body,
    Class,
    Code,
    Emitted,
    Emitter,
    Member,
    Slot,
    Statement,
    Target,
    Writer,
    _Later,
    array_source,
    flat,
)
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value, quoted
from trivium.shape import Dim
from trivium.transforms.layout import to_layout
from trivium.transforms.replay import replay

LINE = 100
"""Longer lines are broken."""


# -- call forms that are no one-liners ---------------------------------------------------------------
def _call(target: Target, name: str, *arrays: Value | None, **arguments: Any) -> Code:
    code: Code = [name, "("]
    for i, v in enumerate(arrays):
        code += [", "] * bool(i) + target.array(v)
    for key, value in arguments.items():
        code += [f", {key}=", *target.attribute(value)]
    return [*code, ")"]


def _conv(target: Target, node: Node) -> Code:
    x, w, b = (*node.inputs, None)[:3]
    a = node.attrs
    n = len(a["stride"])
    if a["layout"][1] == "C":
        raise UnsupportedError("TensorFlow convolves channels last on a CPU", node.scope)
    arguments = given(
        strides=(square(a["stride"]), 1),
        padding=("valid" if all(p == (0, 0) for p in a["padding"]) else "same", "valid"),
        dilation_rate=(square(a["dilation"]), 1),
    )
    kernel: Code = ["ops.transpose(", *target.array(w), f", {(*range(2, n + 2), 1, 0)})"]
    code: Code = ["ops.conv(", *target.array(x), ", ", *kernel]
    for key, value in arguments.items():
        code.append(f", {key}={target.literal(value)}")
    return [*code, ")"] + ([" + ", *target.array(b)] if b is not None else [])


def _pool(target: Target, node: Node) -> Code:
    raise UnsupportedError(f"Keras has no {node.op} with {node.attrs}", node.scope)


def _pad(target: Target, node: Node) -> Code:
    a = node.attrs
    if any(a["interior"]):
        raise UnsupportedError("Keras has no padding between elements", node.scope)
    widths = tuple(zip(a["low"], a["high"], strict=True))
    more = {"constant_values": a["value"]} if a["value"] else {}
    return _call(target, "ops.pad", node.inputs[0], pad_width=widths, **more)


def _slice(target: Target, node: Node) -> Code:
    x, a = node.inputs[0], node.attrs
    assert x is not None
    size = x.shape[a["axis"]]

    def end(at: Any) -> Code:
        behind = at - size if isinstance(at, Dim) else at  # an open end counts from behind
        return target.attribute(behind if isinstance(behind, int) and behind < 0 else at)

    code: Code = [*target.array(x), "[", ":, " * a["axis"]]
    code += [] if a["start"] == 0 else end(a["start"])
    code.append(":")
    code += [] if a["stop"] == size else end(a["stop"])
    return [*code, f":{a['step']}]" if a["step"] != 1 else "]"]


def _select(target: Target, node: Node) -> Code:
    return [*target.array(node.inputs[0]), f"[{':, ' * node.attrs['axis']}{node.attrs['index']}]"]


def _reshape(target: Target, node: Node) -> Code:
    shape = node.attrs["shape"]
    if sum(isinstance(s, Dim) for s in shape) == 1:  # a functional model does not know it: -1
        shape = tuple(-1 if isinstance(s, Dim) else s for s in shape)
    return ["ops.reshape(", *target.array(node.inputs[0]), ", ", *target.attribute(shape), ")"]


def _cross_entropy(target: Target, node: Node) -> Code:
    logits, labels = node.inputs
    name = "ops.sparse_categorical_crossentropy"
    code = _call(target, name, labels, logits, from_logits=True)
    reduction = node.attrs["reduction"]
    return code if reduction == "none" else [f"ops.{reduction}(", *code, ")"]


def _mse_loss(target: Target, node: Node) -> Code:
    x, y = node.inputs
    code: Code = ["ops.square(", *target.array(x), " - ", *target.array(y), ")"]
    reduction = node.attrs["reduction"]
    return code if reduction == "none" else [f"ops.{reduction}(", *code, ")"]


def _batch_norm(target: Target, node: Node) -> Code:
    x, scale, bias, mean, var = node.inputs
    a = node.attrs
    more = {"offset": bias, "scale": scale}
    code = _call(target, "ops.batch_normalization", x, mean, var, axis=a["axis"])[:-1]
    for key, v in more.items():
        code += [f", {key}=", *target.array(v)] if v is not None else []
    return [*code, f", epsilon={a['epsilon']})"]


def _constant(target: Target, node: Node) -> Code:
    array = node.attrs["value"]
    return [f'ops.convert_to_tensor({array_source(array)}, dtype="{array.dtype}")']


@dataclass(frozen=True)
class _Free(Member):
    """A parameter of no layer, by its whole name."""


@dataclass(frozen=True)
class _Rest(Member):
    """What a block's function gets besides values: its numbers and its name."""


class Keras(Target):
    """Keras 3 source: functions that build a functional model."""

    name = "keras"
    forms = (*EXACT, *FORMS)
    helpers = HELPERS
    bare_numbers = True
    functions = {  # noqa: RUF012
        "conv": _conv, "max_pool": _pool, "avg_pool": _pool, "pad": _pad, "slice_axis": _slice,
        "select": _select, "reshape": _reshape, "cross_entropy": _cross_entropy,
        "mse_loss": _mse_loss, "batch_norm": _batch_norm, "constant": _constant,
    }  # fmt: skip

    def literal(self, value: Any) -> str:
        """``1e-5``, not Python's 1e-05."""
        text = super().literal(value)
        return re.sub(r"e([+-])0", r"e\1", text) if isinstance(value, float) else text

    def prepare(self, graph: Graph) -> Graph:
        """Channels last; padding that Keras has no word for as a pad of its own."""
        return replay(to_layout(graph, "NHWC"), self.padded)[0]

    def padded(self, new: Graph, node: Node, values: list[Value | None]) -> Any:
        """The rule of :meth:`prepare`."""
        a = node.attrs
        if node.op == "pad" and any(p < 0 for p in (*a["low"], *a["high"])):
            return [_cut(values[0], a)]
        if node.op not in ("conv", "max_pool", "avg_pool") or self.written(node):
            return None
        x, *rest = values
        pads = a["padding"]
        n = len(pads)
        if any(p != (0, 0) for p in pads) and not (node.op == "conv" and _is_same(node)):
            low, high = ((0, *side, 0) for side in zip(*pads, strict=True))
            fill = float("-inf") if node.op == "max_pool" else 0.0
            x = OPS["pad"](x, low=low, high=high, value=fill)
            if node.op == "avg_pool" and not a["include_pad"]:
                return [_average_inside(new, x, values[0], low, high, node)]
            a = a | {
                "padding": ((0, 0),) * n,
                **({"include_pad": True} if node.op == "avg_pool" else {}),
            }
        if node.op == "conv" and max(a["stride"]) > 1 and max(a["dilation"]) > 1:
            # Keras refuses the two together: every position first, then each stride-th of them.
            (y,) = OPS["conv"].append(new, [x, *rest], a | {"stride": (1,) * n}, node.origin)
            for axis, step in enumerate(a["stride"], 1):
                y = OPS["slice_axis"](y, axis=axis, step=step)
            return [y]
        return OPS[node.op].append(new, [x, *rest], a, node.origin)

    def written(self, node: Node) -> bool:
        """Has some layer the words for all of a node's attributes?"""
        return any(f.op == node.op and f.write(node) is not None for f in self.forms)

    def plain(self, node: Node) -> Code | None:
        """A layer without weights on the spot: ``layers.ReLU()(x)``."""
        x = node.inputs[0] if node.inputs else None
        if x is None or not x.shape or any(_autocast(v) for v in node.inputs):
            return None
        for form in self.forms:
            arguments = form.write(node) if form.op == node.op and not form.weights else None
            if arguments is None or ("data_format" in arguments and self.calls(node)):
                continue
            return [*self.constructor(form, dict(arguments)), "(", *self.array(x), ")"]
        return None

    def calls(self, node: Node) -> bool:
        """Has the node a form in keras.ops?"""
        return node.op in self.functions or isinstance(OPS[node.op].lowerings.get(self.name), str)

    def lowers(self, node: Node) -> bool:
        """A layer's op whose arrays are no layer's weights is decomposed, if keras.ops lacks it."""
        if node.op == "batch_norm":
            return node.attrs["training"] is False or _owned(node)
        if node.op in ("max_pool", "avg_pool"):
            return True
        if node.op in ("cross_entropy", "mse_loss"):
            return not any(_autocast(v) for v in node.inputs)
        return (
            self.calls(node)
            or self.plain(node) is not None
            or (_owned(node) and self.written(node))
        )

    def expression(self, node: Node) -> Code:
        """A plain layer where Keras has one, else keras.ops."""
        return self.plain(node) or super().expression(node)

    def positional(self, form: LayerForm) -> int:
        """layers.Conv2D(64, 3), layers.Dense(10), layers.Dropout(0.5)."""
        return {"conv": 2 - ("Depthwise" in form.layer), "embedding": 2, "batch_norm": 0, "layer_norm": 0,
                "softmax": 0, "leaky_relu": 0, "mean": 0, "max": 0}.get(form.op, 1)  # fmt: skip

    def constructor(self, form: LayerForm, arguments: dict[str, Any]) -> Code:
        """A recurrent cell of its own goes into layers.RNN."""
        if form.layer != "TwoBiasRNNCell":
            return super().constructor(form, arguments)
        outer = {
            k: arguments.pop(k) for k in ("return_sequences", "return_state") if k in arguments
        }
        code: Code = ["layers.RNN(", *super().constructor(form, arguments)]
        for key, value in outer.items():
            code += [f", {key}=", Slot(key, value)]
        return [*code, ")"]

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """An RNN gives what its constructor says; an Embedding takes indices."""
        node = layer.node
        if any(_autocast(v) for v in node.inputs):
            raise UnsupportedError(
                "Keras layers compute in float32", layer.path, "cast before and after"
            )
        if node.op == "embedding":
            return [Statement([node.out], [member, "(", *self.array(node.inputs[1]), ")"])]
        if node.op != "rnn":
            return super().call(layer, member)
        said = dict(layer.form.write(node) or {})
        outputs, last = node.outputs
        both: list[Value | None] = [outputs, last]
        kept = both if "return_state" in said else [outputs if "return_sequences" in said else last]
        return [Statement(kept, [member, "(", *self.array(node.inputs[0]), ")"])]

    def parameter(self, value: Value) -> Code:
        """A weight of no layer."""
        code: Code = ["Weight(", Slot("shape", value.shape)]
        return [*code, ")"] if value.kind == "param" else [*code, ", trainable=False)"]

    def use(self, value: Value) -> Code:
        """A weight of no layer, inside an expression."""
        return [_Free(value.name)]

    def class_name(self, words: Sequence[str]) -> str:
        """``basic_block``, ``resnet``."""
        parts = [re.sub(r"(?<=[a-z0-9])(?=[A-Z](?!et\b))", "_", w).lower() for w in words if w]
        name = "_".join(parts)
        return name + "_block" if name in RESERVED else name

    def render(self, emitter: Emitter) -> str:
        """Imports, then the functions, inner ones first."""
        emitter.settle()
        parts = [_Writer(emitter, cls).function() for cls in emitter.classes]
        return _imports(emitter, "\n\n\n".join(parts))


RESERVED = {"keras", "layers", "ops", "name", "inputs"}


def _imports(emitter: Emitter, source: str) -> str:
    text = source + "".join(emitter.helpers(source))
    used = [n for n in ("layers", "ops") if re.search(rf"\b{n}\.", text)]
    lines = ["import keras"] * ("keras." in text)
    lines += [f"from keras import {', '.join(used)}"] * bool(used)
    return "\n".join(lines) + "\n\n\n" + source


def _autocast(value: Value | None) -> bool:
    """Would a Keras layer cast this array, unasked, to float32?"""
    return value is not None and value.dtype.is_floating and value.dtype != "float32"


def _owned(node: Node) -> bool:
    """Are all arrays of the node but the first data the weights of one layer?"""
    held = [v for v in node.inputs if v is not None and v.kind in ("param", "state")]
    paths = {parent(v.name) for v in held}
    data = [v for v in node.inputs if v is not None and v.kind not in ("param", "state")]
    return len(paths) == 1 and "" not in paths and len(data) == 1


def _is_same(node: Node) -> bool:
    a = node.attrs
    w = node.inputs[1]
    x = node.inputs[0]
    assert w is not None and x is not None
    sizes = spatial(x.shape, a["layout"])
    return a["padding"] == tuple(map(same_pad, sizes, w.shape[2:], a["stride"], a["dilation"]))  # type: ignore[arg-type]


def _cut(x: Any, a: Mapping[str, Any]) -> Any:
    """A pad whose negative sizes are slices."""
    for axis, (low, high) in enumerate(zip(a["low"], a["high"], strict=True)):
        if low < 0 or high < 0:
            stop = high if high < 0 else None
            x = OPS["slice_axis"](x, axis=axis, start=max(-low, 0), stop=stop)
    low, high = (tuple(max(p, 0) for p in a[side]) for side in ("low", "high"))
    if any((*low, *high, *a["interior"])):
        x = OPS["pad"](x, low=low, high=high, interior=a["interior"], value=a["value"])
    return x


def _average_inside(new: Graph, x: Any, original: Any, low: Any, high: Any, node: Node) -> Any:
    """The mean over what is no padding: the mean over all, divided by the mean of ones."""
    a = node.attrs | {"padding": ((0, 0),) * len(node.attrs["padding"]), "include_pad": True}
    ones = OPS["pad"](OPS["ones_like"](original), low=low, high=high)
    top, below = (OPS["avg_pool"].append(new, [v], a, node.origin)[0] for v in (x, ones))
    return top / below


# -- functions -----------------------------------------------------------------------------------------
class _Emitter(Emitter):
    """A run of numbered children (a Sequential, a ModuleList) is no function: its lines stand where it is."""

    def classify(self, body: Body) -> None:
        numbered = all(name.partition(".")[0].isdigit() for name in body.members)
        if not (body.block.path and body.members and numbered):
            super().classify(body)

    def sub_block(self, body: Body, block: Block) -> None:
        inner = self.body(block)
        name = self.member_name(body.block, block.path)
        if inner.cls is not None:
            code: Code = [Member(name), "("]
            for v in block.inputs:
                code += [v, ", "]
            body.members[name] = [_Later(inner)]  # type: ignore[list-item]
            body.statements.append(Statement(list(block.outputs), [*code, _Rest(name), ")"]))
            return

        def moved(piece: Any) -> Any:
            if not isinstance(piece, Member) or isinstance(piece, _Free):
                return piece
            return type(piece)(f"{name}.{piece.name}")

        body.members |= {f"{name}.{n}": code for n, code in inner.members.items()}
        for s in inner.statements:
            body.statements.append(Statement(s.outputs, [*map(moved, s.code)], s.infix, s.effect))

    def note(self, layer: Layer) -> None:
        """Every weight has one place."""
        for v in layer.node.inputs:
            if v is not None and v.kind in ("param", "state") and v.name in self.weights:
                raise _tied(v, self.weights[v.name][0])
        super().note(layer)

    def node(self, body: Body, node: Node) -> None:
        """A free parameter is the weight of a layer made for it."""
        before = set(self.weights)
        super().node(body, node)
        for name in self.weights.keys() - before:
            self.weights[name] = (f"{name}.value", Weight("", leaf(name), "value"))
        for v in node.inputs:
            if v is not None and v.kind in ("param", "state"):
                if self.weights.get(v.name, ("",))[0] != f"{v.name}.value":
                    raise _tied(v, node.scope)


def _tied(value: Value, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"Keras source in which the parameter {value.name} is a layer's and used besides", where,
        "give each use a parameter of its own",
    )  # fmt: skip


class _Writer(Writer):
    def __init__(self, emitter: Emitter, cls: Class):
        super().__init__(emitter, cls)
        self.cls, self.root = cls, self.body is emitter.root
        self.at: dict[str, int] = {}  # member: its first slot
        for name, code in self.body.members.items():
            self.at[name] = self.slot
            self.slot += sum(isinstance(p, Slot) for p in flat(code, emitter))
        used = [p.name for s in self.body.statements for p in s.code if type(p) is Member]
        self.shared = {n for n in used if used.count(n) > 1}
        self.made: dict[str, str] = {}  # member: the variable that holds it

    def function(self) -> str:
        """The function of this class."""
        names = self.argument_names()
        if self.root:
            head, first = f"def {self.cls.name}():", self.model_inputs(names)
        else:
            arguments = ", ".join([*names, *self.cls.parameters, "*", "name"])
            head, first = f"def {self.cls.name}({arguments}):", []
        for name, code in self.body.members.items():
            if str(code[0]).startswith("Weight("):
                self.make(name, f"({self.first_argument(names)})")
        body = [wrapped("    " + line) for line in [*first, *self.write()]]
        return "\n".join([head, *body])

    def first_argument(self, names: Sequence[str]) -> str:
        if not names:
            where = self.body.block.path or "the model"
            raise UnsupportedError("Keras source of a part that has parameters but no input", where)
        return names[0]

    def model_inputs(self, names: Sequence[str]) -> list[str]:
        values = self.body.block.inputs
        if not values:
            raise UnsupportedError("a functional Keras model without an input")
        made = [_input(v) for v in values]
        if len(made) == 1:
            return [f"{names[0]} = inputs = {made[0]}"]
        return ["inputs = [", *(f"    {m}," for m in made), "]", f"{', '.join(names)} = inputs"]

    def result(self, parts: Sequence[str]) -> str:
        if not self.root:
            return super().result(parts)
        outputs = parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
        return f"return keras.Model(inputs, {outputs}, name={quoted(self.emitter.graph.name)})"

    def joins(self, s: Statement, text: str, last: bool) -> bool:
        """A layer has a line of its own."""
        made = isinstance(s.code[0], Member) or str(s.code[0]).startswith("layers.")
        return super().joins(s, text, last) and not (self.root and last) and (last or not made)

    def fresh(self, wish: str) -> str:
        functions = {c.name for c in self.emitter.classes}
        wish = "x" if wish in RESERVED else wish
        return super().fresh(f"{wish}_1" if wish in functions else wish)

    # -- layers ------------------------------------------------------------------------------------
    def member(self, member: Member) -> str:
        """``layers.Conv2D(64, 3, name="conv1")``, or the variable of a layer that is called twice."""
        name, path = member.name, self.body.block.path
        if isinstance(member, _Free):
            name = name[len(path) + 1 :] if path else name
            if name not in self.made:
                raise UnsupportedError(f"the parameter {member.name} outside its module", path)
            return self.made[name]
        code = self.body.members[name]
        if isinstance(code[0], _Later):
            return self.block(code[0].body, name, isinstance(member, _Rest))
        if name in self.shared:
            return self.made[name] if name in self.made else self.make(name)
        return self.layer(name)

    def make(self, name: str, call: str = "") -> str:
        """Put a layer into a variable."""
        words = [w for w in name.split(".") if not w.isdigit()] or ["layer"]
        self.made[name] = variable = self.fresh(re.sub(r"\W", "_", words[-1]) or "layer")
        self.reserve(variable)
        self.lines.append(f"{variable} = {self.layer(name)}{call}")
        return variable

    def reserve(self, variable: str) -> None:
        self.slot_names[-1 - len(self.made)] = (
            variable  # no slot has this number: only the name counts
        )

    def layer(self, name: str) -> str:
        """The constructor, with the layer's name."""
        text = self.declared(self.body.members[name]).removesuffix(")")
        return f"{text}{'' if text.endswith('(') else ', '}name={self.path(name)})"

    def declared(self, code: Any) -> str:
        name = next(n for n, c in self.body.members.items() if c is code)
        before, self.slot = self.slot, self.at[name]
        text = "".join(
            self.literal_slot(p) if isinstance(p, Slot) else str(p)
            for p in flat(code, self.emitter)
        )
        self.slot = before
        return text

    def block(self, body: Body, name: str, rest: bool) -> str:
        assert body.cls is not None
        if not rest:
            return body.cls.name
        before, self.slot = self.slot, self.at[name]
        numbers = [self.literal_slot(s) for s in body.arguments if isinstance(s, Slot)]
        self.slot = before
        return ", ".join([*numbers, f"name={self.path(name)}"])

    def path(self, name: str) -> str:
        """The name of a layer, as source."""
        if not re.fullmatch(r"[\w.-]+", name):
            raise UnsupportedError(f"a Keras layer of the name {name!r}", self.body.block.path)
        return f'"{name}"' if self.root else f'f"{{name}}.{name}"'


def _input(value: Value) -> str:
    sizes = [None if isinstance(s, Dim) else s for s in value.shape]
    kind = "" if value.dtype == "float32" else f', dtype="{value.dtype}"'
    if sizes and sizes[0] is None:
        return f"keras.Input({tuple(sizes[1:])}{kind}, name={quoted(value.name)})"
    return f"keras.Input(batch_shape={tuple(sizes)}{kind}, name={quoted(value.name)})"


def wrapped(line: str) -> str:
    """A long call of a layer with its arguments on a line of their own."""
    if len(line) <= LINE or not (found := re.match(r"( *)([^(]*\()(.*)(\)\([^()]*\))$", line)):
        return line
    indent, head, inside, tail = found.groups()
    return f"{indent}{head}\n{indent}    {inside}\n{indent}{tail}"


# -- a function on arrays --------------------------------------------------------------------------------
class _Function(Keras):
    """Source of a plain function of keras.ops, for Graphs without parameters: an optimizer's update."""

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
    for v in graph.of_kind("param", "state"):
        if v.dtype != "float32":
            raise UnsupportedError(f"Keras source with the {v.dtype} parameter {v.name}",
                                   remedy="make the model float32")  # fmt: skip
    return _Emitter(graph, Keras()).run()


def emit_function(graph: Graph) -> Emitted:
    """The source of a function of keras.ops that computes this Graph, which has no parameters."""
    return _Emitter(graph, _Function()).run()
