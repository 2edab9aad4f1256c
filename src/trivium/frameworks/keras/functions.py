"""Blocks as functions that call layers by name: how a functional model is written down."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.frameworks.keras.calls import Like, autocast
from trivium.frameworks.layer import LayerForm, Weight
from trivium.frameworks.writing.blocks import Block, Layer, held, inside, leaf, parent
from trivium.frameworks.writing.classes import Body, Class
from trivium.frameworks.writing.code import Code, Keyword, Later, Member, Statement
from trivium.frameworks.writing.source import Apart, Emitter
from trivium.frameworks.writing.writer import Writer
from trivium.graph import Graph, Node, UnsupportedError, Value, identifier, quoted
from trivium.shape import Dim

LINE = 100
"""Longer lines are broken."""

RESERVED = {"keras", "layers", "ops", "name", "inputs", "model", "layer", "weight"}
"""Names that emitted source uses itself."""


@dataclass(frozen=True)
class Free(Member):
    """A parameter of no layer, by its whole name."""


@dataclass(frozen=True)
class Rest(Member):
    """What a block's function gets besides values: its numbers and its name."""


class FunctionEmitter(Emitter):
    """Numbered children (of a Sequential, a ModuleList) are no function: lines stand in place."""

    _seen: tuple[Any, int, dict[Value, list[Node]], set[Value]] = (None, 0, {}, set())

    def forms(self, node: Node) -> list[LayerForm]:
        """None where a layer would cast what it reads, unasked, to float32."""
        cast = any(autocast(v) for v in node.inputs)
        return [] if cast or self.tied(node) else super().forms(node)

    def spoiled(self, node: Node, unread: Collection[str]) -> bool:
        """A layer whose weight is read besides is no layer, and none of its readers is one."""
        return super().spoiled(node, unread) or self.tied(node)

    def seen(self, graph: Graph) -> tuple[dict[Value, list[Node]], set[Value]]:
        """Who reads each value of a Graph, and which values no input reaches."""
        if self._seen[0] is not graph or self._seen[1] != len(graph.nodes):
            fixed: set[Value] = set()
            for node in graph.nodes:
                if all(v is None or v in fixed for v in node.inputs):
                    fixed.update(node.outputs)
            self._seen = graph, len(graph.nodes), graph.uses(), fixed
        return self._seen[2], self._seen[3]

    def tied(self, node: Node) -> bool:
        """Is a weight of this node read by another that is not the same layer once more?

        A Keras weight is one layer's. Such a weight is a layer by itself, and what reads it is
        written in keras.ops.
        """
        graph = node.outputs[0].graph
        readers, fixed = self.seen(graph)
        results = set(graph.outputs)
        weights = [v for v in node.inputs if v is not None and v.kind in ("param", "state")]
        data = [v for v in node.inputs if v is not None and v.kind not in ("param", "state")]
        if weights and data and fixed.issuperset(data):
            return True  # a layer that no input reaches is no part of a functional model
        return any(
            v in results
            or parent(v.name) in self.holders
            or not all(_once_more(node, other) for other in readers.get(v, ()))
            for v in weights
        )

    def inlined(self, body: Body) -> bool:
        """So is a list of parts."""
        numbered = all(name.partition(".")[0].isdigit() for name in body.members)
        return bool(body.block.path and body.members and numbered) or super().inlined(body)

    def sub_block(self, body: Body, block: Block) -> None:
        if self.seen(self.graph)[1].issuperset(block.inputs):
            raise Apart(block.path)  # its weights have nothing to hang on
        inner = self.body(block)
        name = self.member_name(body.block, block.path)
        if not self.inlined(inner):
            code: Code = [Member(name), "("]
            for v in block.inputs:
                code += [v, ", "]
            body.members[name] = [Later(inner)]
            body.statements.append(Statement(list(block.outputs), [*code, Rest(name), ")"]))
            return

        def moved(piece: Any) -> Any:
            if not isinstance(piece, Member) or isinstance(piece, Free):
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
        """A weight that is a layer's has no second place; one that two parts read is in neither."""
        for name in held(node):
            self.within(body, name)
        super().node(body, node)
        if node.op == "batch_norm":  # by its statistics, which stay as they are
            body.statements[-1].outputs = [node.outputs[0]]
        for v in node.inputs:
            if v is None or v.kind not in ("param", "state"):
                continue
            if self.weights.get(v.name, ("",))[0] != f"{v.name}.value":
                raise _tied(v, node.scope)

    def within(self, body: Body, name: str) -> None:
        """A weight is no part of a function outside of which it is read."""
        around = max((p for p in self.scopes if inside(parent(name), p)), key=len)
        if not inside(body.block.path, around):
            raise Apart(around)

    def handed_on(self, body: Body, value: Value) -> Value:
        """An output that is a weight as it stands."""
        if value.kind in ("param", "state"):
            self.within(body, value.name)
        return super().handed_on(body, value)

    def declare(self, body: Body, value: Value) -> None:
        """A free parameter is the weight of a layer made for it."""
        if value.name in self.weights:
            return
        super().declare(body, value)
        self.weights[value.name] = (f"{value.name}.value", Weight("", leaf(value.name), "value"))
        if value in self.unread:
            name = self.member_name(body.block, value.name)
            body.members[name] = ["Kept(", *body.members[name][1:]]

    def freezing(self) -> list[str]:
        """The lines that freeze what is not trained.

        Layers, as Keras has it and keeps it in files; but a BatchNormalization that is not
        trainable would collect no statistics, so where one does, its weights.
        """
        layers: dict[str, dict[str, bool]] = {}  # path of each layer: is each weight trained?
        for v in self.graph.of_kind("param"):
            place, w = self.weights[v.name]
            layers.setdefault(place.removesuffix(f".{w.theirs}"), {})[w.theirs] = v.trainable
        live = {parent(v.name) for v in self.graph.updates}
        lines: list[str] = []
        for path in self.frozen():
            below = [p for p in layers if inside(p, path)]
            if not below or (len(below) == 1 and live.issuperset(below)):
                names = [(p, w) for p in layers for w in layers[p] if inside(f"{p}.{w}", path)]
                lines += [f'model.get_layer("{p}").{w}.trainable = False' for p, w in names]
            else:
                lines += _frozen(path, below, any(inside(p, path) for p in live))
        return lines


def _frozen(path: str, layers: Sequence[str], live: bool) -> list[str]:
    """Layers and all that they hold; ``live``: there are some among them that collect."""
    if not path and not live:
        return ["model.trainable = False"]
    if list(layers) == [path] and not live:
        return [f'model.get_layer("{path}").trainable = False']
    lines = ["layer.trainable = False"]
    if live:
        lines = [
            "if isinstance(layer, layers.BatchNormalization):  # it goes on collecting statistics",
            "    for weight in layer.trainable_weights:",
            "        weight.trainable = False",
            "else:",
            "    layer.trainable = False",
        ]
    if path:
        lines = [f'if layer.name.startswith("{path}."):', *("    " + line for line in lines)]
    return ["for layer in model.layers:", *("    " + line for line in lines)]


def _tied(value: Value, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"Keras source in which the parameter {value.name} is a layer's and used besides", where,
        "give each use a parameter of its own",
    )  # fmt: skip


class FunctionWriter(Writer):
    emitter: FunctionEmitter

    def __init__(self, emitter: FunctionEmitter, cls: Class):
        super().__init__(emitter, cls)
        used = [p.name for s in self.body.statements for p in s.code if type(p) is Member]
        self.shared = {n for n in used if used.count(n) > 1}
        self.variables: dict[str, str] = {}  # member: the variable that holds it

    def function(self) -> str:
        """The function of this class."""
        names = self.argument_names()
        if self.root:
            head, first = f"def {self.cls.name}():", self.model_inputs(names)
        else:
            arguments = ", ".join([*names, *self.cls.signature(self.literal), "*", "name"])
            head, first = f"def {self.cls.name}({arguments}):", []
        for name, code in self.body.members.items():
            if str(code[0]).startswith("Weight("):
                self.make(name, f"({self.first_argument(names)})")
            elif str(code[0]).startswith("Kept("):
                x = self.first_argument(names)
                self.lines.append(f"{x} = {self.layer(name)}({x})")
        lines = self.write()
        if self.root and (freezing := self.emitter.freezing()):
            model = lines.pop().replace("return ", "model = ", 1)
            lines += [model, *freezing, "return model"]
        body = [wrapped("    " + line) for line in [*first, *lines]]
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
        taken = {parent(place) for place, _ in self.emitter.weights.values()}
        made = [_input(v, v.name + "_" if v.name in taken else v.name) for v in values]
        if len(made) == 1:
            return [f"{names[0]} = inputs = {made[0]}"]
        return ["inputs = [", *(f"    {m}," for m in made), "]", f"{', '.join(names)} = inputs"]

    def checks(self) -> list[str]:
        """A functional model holds what it is given against its own inputs, but for the batch."""
        lines = []
        for v in self.body.block.inputs if self.root else ():
            if 0 in self.emitter.made_for.get(v.name, ()) and isinstance(v.shape[0], int):
                lines.append(f"{self.names[v]} = Rows({v.shape[0]})({self.names[v]})")
        return lines

    def result(self, parts: Sequence[str]) -> str:
        if not self.root:
            return super().result(parts)
        graph = self.emitter.graph
        fixed = self.emitter.seen(graph)[1]
        first = "inputs" if len(self.body.block.inputs) == 1 else "inputs[0]"
        parts = [  # what a functional model gives hangs on its inputs
            f"Constant()([{part}, {first}])" if v in fixed else part
            for part, v in zip(parts, self.body.block.outputs, strict=True)
        ]
        outputs = parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
        if isinstance(graph.structure, tuple):  # names: Keras keeps their order, in files too
            named = zip(graph.structure, parts, strict=True)
            outputs = f"{{{', '.join(f'{_key(n)}: {part}' for n, part in named)}}}"
        return f"return keras.Model(inputs, {outputs}, name={quoted(graph.name)})"

    def joins(self, s: Statement, text: str, last: bool) -> bool:
        """A layer has a line of its own."""
        made = isinstance(s.code[0], Member) or str(s.code[0]).startswith("layers.")
        return super().joins(s, text, last) and not (self.root and last) and (last or not made)

    def fresh(self, wish: str) -> str:
        functions = {c.name for c in self.emitter.classes}
        wish = "x" if wish in RESERVED else wish
        return super().fresh(f"{wish}_1" if wish in functions else wish)

    def piece(self, piece: Any) -> str:
        """A variable with the batch of another value."""
        if not isinstance(piece, Like):
            return super().piece(piece)
        for v, name in self.known():
            if v.shape[:1] == (piece.dim,):
                return name
        return self.size(piece.dim)

    def size(self, dim: Dim) -> str:
        """A functional model knows no open size while it is built."""
        where = self.body.block.path or "the model"
        raise UnsupportedError(f"Keras source that reads the open size '{dim}'", where,
                               "give the model's inputs fixed sizes")  # fmt: skip

    # -- layers ------------------------------------------------------------------------------------
    def member(self, member: Member) -> str:
        """``layers.Conv2D(64, 3, name="conv1")``, or the variable of a layer called twice."""
        name, path = member.name, self.body.block.path
        if isinstance(member, Free):
            name = name[len(path) + 1 :] if path else name
            if name not in self.variables:
                raise UnsupportedError(f"the parameter {member.name} outside its module", path)
            return self.variables[name]
        code = self.body.members[name]
        if isinstance(code[0], Later):
            return self.block(code[0], name, isinstance(member, Rest))
        if name in self.shared:
            return self.variables[name] if name in self.variables else self.make(name)
        return self.layer(name)

    def make(self, name: str, call: str = "") -> str:
        """Put a layer into a variable."""
        # "fc" of "head.fc", "encoder_2" of "encoder.2"
        words = re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name)
        self.variables[name] = variable = self.fresh(
            identifier(words[0] if words else f"layer_{name}")
        )
        self.reserved.add(variable)
        self.lines.append(f"{variable} = {self.layer(name)}{call}")
        return variable

    def layer(self, name: str) -> str:
        """The constructor, with the layer's name."""
        text = self.declared(self.body.members[name]).removesuffix(")")
        return f"{text}{'' if text.endswith('(') else ', '}name={self.path(name)})"

    def block(self, later: Later, name: str, rest: bool) -> str:
        """The function of a block; or the ``rest`` of what it is called with."""
        if not rest:
            return str(later.body.cls.name)
        said = [(s, self.slot(s)) for s in later.slots]
        text = "".join(t if isinstance(s, Keyword) else f", {t}" for s, t in said)
        return f"{text.removeprefix(', ')}, name={self.path(name)}".removeprefix(", ")

    def path(self, name: str) -> str:
        """The name of a layer, as source."""
        if not re.fullmatch(r"[\w.-]+", name):
            what, where = f"a Keras layer of the name {name!r}", self.body.block.path
            raise UnsupportedError(what, where, "rename that parameter in the source")
        return f'"{name}"' if self.root else f'f"{{name}}.{name}"'


def _once_more(node: Node, other: Node) -> bool:
    """May two nodes be one layer, called twice?"""
    same = other.op == node.op and held(other) == held(node)
    return other is node or (same and other.attrs == node.attrs)


def _key(name: Any) -> str:
    """The name of an output, as source."""
    if not isinstance(name, str):
        raise UnsupportedError(
            f"a Keras model with an output that is called {name!r}",
            remedy="its files keep words only: return a dict whose keys are strings",
        )
    return quoted(name)


def _input(value: Value, name: str) -> str:
    sizes = [None if isinstance(s, Dim) else s for s in value.shape]
    kind = "" if value.dtype == "float32" else f', dtype="{value.dtype}"'
    shape = tuple(sizes[1:]) if sizes and sizes[0] is None else f"batch_shape={tuple(sizes)}"
    return f"keras.Input({shape}{kind}, name={quoted(name)})"


def wrapped(line: str) -> str:
    """A long call of a layer with its arguments on a line of their own."""
    if len(line) <= LINE or not (found := re.match(r"( *)([^(]*\()(.*)(\)\([^()]*\))$", line)):
        return line
    indent, head, inside, tail = found.groups()
    return f"{indent}{head}\n{indent}    {inside}\n{indent}{tail}"
