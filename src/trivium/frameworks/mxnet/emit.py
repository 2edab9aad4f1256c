"""A Graph as Gluon source for MXNet: HybridBlocks, which run imperatively and hybridized alike."""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.frameworks.layer import LayerForm, Weight
from trivium.frameworks.mxnet.cut import cut, stopped
from trivium.frameworks.mxnet.layers import FORMS, HELPERS, applications, often
from trivium.frameworks.mxnet.lower import FUNCTIONS, IF, Like, call, literal
from trivium.frameworks.mxnet.prepare import check_dtypes, prepare
from trivium.frameworks.writing.blocks import Block, Layer, inside, numbered
from trivium.frameworks.writing.classes import Body, Class
from trivium.frameworks.writing.code import (
    Chain,
    Code,
    Later,
    Member,
    Statement,
    Target,
    array_source,
    joined,
)
from trivium.frameworks.writing.source import Apart, Emitted, Emitter, with_sizes
from trivium.frameworks.writing.writer import Declared, Writer
from trivium.graph import Graph, Node, UnsupportedError, Value
from trivium.shape import Dim
from trivium.transforms.replay import replay

IMPORTS = {
    "mx": "import mxnet as mx",
    "gluon": "from mxnet import gluon",
    "nn": "from mxnet.gluon import nn",
}
_TAKEN = frozenset(
    """
    F self float mx gluon nn name params prefix apply cast collect_params export forward
    hybrid_forward
    hybridize infer_shape infer_type initialize load_parameters load_params name_scope optimize_for
    register_child register_forward_hook register_forward_pre_hook register_op_hook save_parameters
    save_params summary
    """.split()  # noqa: SIM905
)  # what a block has already, or its source calls something else


def attribute(name: str) -> str:
    """A name as a block lets it be used: ``name_`` for "name", and so on for "name_"."""
    base = name.rstrip("_")
    taken = base in _TAKEN or base in HELPERS or keyword.iskeyword(base)
    return f"{name}_" if taken else name


def _identified(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The Graph with parameters whose names are identifiers, and those of others by these.

    ``hybrid_forward`` has them as its arguments. "onnx::Add_12" is ``onnx__Add_12``, and what is 0
    in a list ``param_0``.
    """
    names = [v.name for v in graph.of_kind("param", "state")]
    paths = {_parted(name) for name in names}
    wrong = {n for n in names if not _parted(n)[1].isidentifier()}
    if not wrong:
        return graph, {}
    graph, _ = replay(graph)
    renamed: dict[str, str] = {}
    for v in graph.of_kind("param", "state"):
        if v.name in wrong:
            path, last = _parted(v.name)
            base = re.sub(r"\W", "_", last)
            base = base if base.isidentifier() else f"param_{base}"
            word, n = base, 2
            while (path, word) in paths:
                word, n = f"{base}_{n}", n + 1
            paths.add((path, word))
            ours = v.name
            graph.rename(v, f"{path}.{word}" if path else word)
            renamed[v.name] = ours
    return graph, renamed


def _parted(name: str) -> tuple[str, str]:
    path, _, last = name.rpartition(".")
    return path, last


class MXNet(Target):
    """Gluon source: HybridBlock classes."""

    name = "mxnet"
    forms = FORMS
    functions = FUNCTIONS | {"stop_gradient": stopped}
    helpers = HELPERS
    passed = False  # F is an argument itself
    identity = "nn.HybridSequential()"  # of nothing
    reserved = frozenset(
        {"F", "self", "mx", "nn", "gluon", "float", "isinstance", "super", "tuple"}
    )

    def __init__(self) -> None:
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.cut: set[Node] = set()  # the ends of what autograd must not have recorded
        self.often: set[Value | None] = set()  # what is read in many places

    def prepare(self, graph: Graph) -> Graph:
        """See :func:`trivium.frameworks.mxnet.prepare.prepare`."""
        graph, self.constants = prepare(graph)
        return graph

    def literal(self, value: Any) -> str:
        """A dtype is its name."""
        return literal(value)

    def fill(self, template: str, node: Node) -> Code:
        """In double quotes, as everything here."""
        return super().fill(template.replace("'", '"'), node)

    def lowers(self, node: Node) -> bool:
        """Some forms are MXNet's only under a condition."""
        return (node.op not in IF or IF[node.op](node)) and super().lowers(node)

    def part(self, name: str) -> str:
        """A Block has words of its own."""
        return attribute(name)

    def positional(self, form: LayerForm) -> int:
        """nn.Conv2D(64, 3), nn.Embedding(100, 8), nn.Dense(10)."""
        return 2 if form.op in ("conv", "embedding") else 0 if "norm" in form.op else 1

    def call(self, layer: Layer, member: Member) -> list[Statement]:
        """nn.Embedding takes indices; the last state of gluon.rnn.RNN is its last output."""
        node = layer.node
        if node.op == "embedding":
            return [Statement([node.out], [member, "(", *self.array(node.inputs[1]), ")"])]
        if node.op == "batch_norm" and (earlier := node.inputs[5:]):
            arrays = joined([[v] for v in (node.inputs[0], *earlier) if v is not None])
            return [Statement([node.outputs[0]], [member, "(", *arrays, ")"], effect=True)]
        if node.op != "rnn":
            return super().call(layer, member)
        outputs, last = node.outputs
        run = Statement([outputs], [member, "(", *self.array(node.inputs[0]), ")"])
        # Not F.SequenceLast: along axis 1 its gradient is wrong, and writes where it must not.
        cut = call("slice_axis", [outputs], axis=1, begin=-1, end=None)
        return [run, Statement([last], call("squeeze", cut, axis=1))]

    def parameter(self, value: Value) -> Code:
        """A parameter of the block itself, which ``hybrid_forward`` gets as an argument."""
        name = attribute(value.name.rpartition(".")[2])
        if value.name in self.constants:
            return [f'self.params.get_constant("{name}", {_constant(self.constants[value.name])})']
        words = f"shape={literal(value.shape or (1,))}"
        if value.dtype not in (dt.float32, dt.bool_):  # what is bool is 0 or 1
            words += f', dtype="{value.dtype}", init="zeros"'  # it draws float32 alone
        if value.kind == "state":
            words += ", differentiable=False"
        elif not value.dtype.is_floating:
            words += ', grad_req="null"'
        return [f'self.params.get("{name}", {words})']

    def render(self, emitter: Emitter) -> str:
        """Imports, then the classes, inner ones first."""
        emitter.settle()
        source = "\n\n\n".join(class_source(emitter, c) for c in emitter.classes)
        text = source + "".join(t for n, t in HELPERS.items() if re.search(rf"\b{n}\b", source))
        lines = [line for word, line in IMPORTS.items() if re.search(rf"\b{word}\.", text)]
        return "\n".join(lines) + "\n\n\n" + source


def _constant(array: np.ndarray[Any, Any]) -> str:
    numbers = array.astype(np.float32) if array.dtype == bool else array
    values = array_source(numbers.reshape(array.shape or (1,)))
    if numbers.dtype == np.float32:
        return values  # what a list becomes
    return f'mx.nd.array({values}, dtype="{array.dtype}")'


def class_source(emitter: Emitter, cls: Class) -> str:
    """One class."""
    writer = _Writer(emitter, cls)
    body = cls.body
    lines = [f"class {cls.name}({writer.base}):"]
    if body.members:
        arguments = ", ".join(["self", *cls.signature(writer.literal), "**kwargs"])
        lines.append(f"    def __init__({arguments}):")
        lines.append("        super().__init__(**kwargs)")
        lines += ["        " + line for line in writer.declarations()]
    if not body.chain:
        lines += [""] * bool(body.members)
        names = writer.argument_names()
        own = [n for n in writer.own if "." not in n]
        lines += ["    " + line if line else "" for line in writer.entrance(names)]
        lines.append(f"    def hybrid_forward(self, F, {', '.join([*names, *own])}):")
        lines += ["        " + line for line in writer.write()]
    return "\n".join(lines)


class _Writer(Writer):
    """Gluon's declarations, and parameters as arguments of ``hybrid_forward``."""

    def __init__(self, emitter: Emitter, cls: Class):
        super().__init__(emitter, cls)
        body = self.body
        self.members = {self.inner(name): code for name, code in body.members.items()}
        free = [n for n, c in self.members.items() if str(c[0]).startswith("self.params.")]
        self.own = [n for n in free if "." not in n]
        self.below = {n for n in free if "." in n}  # in containers that run nothing
        self.base = "nn.HybridSequential" if numbered(self.members) else "gluon.HybridBlock"

    # -- __init__ ----------------------------------------------------------------------------------
    def declarations(self) -> list[str]:
        """The lines after ``super().__init__``."""
        items = {name: self.declared(code) for name, code in self.members.items()}
        lines = [f"self.{n} = {n}" for n in self.cls.kept]
        made: set[str] = set()
        fixed = self.emitter.fixed(self.body)
        if self.base == "nn.HybridSequential":
            added = _added("self", list(items.values()))
            return [*added, *self.corrections(), *self.frozen()]
        for name, item in items.items():
            *path, last = name.split(".")
            for i in range(len(path)):  # names that cross a scope which is no class of its own
                outer = ".".join(path[: i + 1])
                if outer not in made | items.keys():
                    made.add(outer)
                    kind = "nn.HybridSequential" if self.listed(outer) else "gluon.HybridBlock"
                    lines.append(self.held(".".join(path[:i]), path[i], f"{kind}()"))
            text = self.asked(name, item) if isinstance(item, str) else "nn.HybridSequential()"
            text = f'{text[:-1]}, grad_req="null")' if name in fixed else text
            lines.append(self.held(".".join(path), last, text))
            if not isinstance(item, str):
                flag, _ = self.cls.optional.get(name, ("", False))
                inside = _added(self.place(name), item)
                lines += [f"if {flag}:", *("    " + x for x in inside)] if flag else inside
        return [*lines, *self.corrections(), *self.frozen()]

    def freeze(self, path: str, alone: bool) -> str:
        """See Writer."""
        where = self.place(path.replace("._unfused.0.", ".l0_"))
        one = f'{where}.grad_req = "null"'
        return one if alone else f'{where}.collect_params().setattr("grad_req", "null")'

    def held(self, path: str, name: str, text: str) -> str:
        """The line that puts something into the container ``path`` under a name."""
        where = self.place(path)
        text = text.replace("self.params.", f"{where}.params.", 1)
        if self.listed(path):
            return f"{where}.add({text})"
        if not name.isidentifier():
            return f'{where}.register_child({text}, "{name}")'
        return f"{where}.{name} = {text}"

    def listed(self, path: str) -> bool:
        """Is the container ``path`` a HybridSequential?"""
        if not path:
            return self.base == "nn.HybridSequential"
        prefix = path + "."
        below = [n[len(prefix) :] for n in self.members if n.startswith(prefix)]
        return numbered(dict.fromkeys(n.partition(".")[0] for n in below))

    def place(self, path: str) -> str:
        """``self.layer1[0].conv1`` for the path ``layer1.0.conv1``."""
        text, parts = "self", path.split(".") if path else []
        for i, part in enumerate(parts):
            if part.isidentifier():
                text += f".{part}"
            else:
                text += f"[{part}]" if self.listed(".".join(parts[:i])) else f'._children["{part}"]'
        return text

    def corrections(self) -> list[str]:
        """gluon.rnn.RNN has two biases; those that ours has not stay zero and are not trained."""
        lines = []
        start = "self" if self.base == "nn.HybridSequential" else ""
        for layer, where in self.layers(self.body, start):
            biases = (*layer.node.inputs, None, None)[3:5]
            missing = [n for n, b in zip(("i2h", "h2h"), biases, strict=False) if b is None]
            for name in missing if layer.node.op == "rnn" else ():
                why = f"{'one' if len(missing) == 1 else 'no'} bias, as the original"
                lines.append(f'{where}.l0_{name}_bias.grad_req = "null"  # {why}')
        return lines

    def layers(self, body: Body, where: str) -> Iterator[tuple[Layer, str]]:
        """The layers that this class declares, those in chains too, and how each is reached."""
        items: list[Layer | Node | Block] = body.block.items
        later = {c[0].body.block: (n, c[0].body) for n, c in body.members.items()
                 if isinstance(c[0], (Later, Chain))}  # fmt: skip
        for item in items:
            if isinstance(item, Layer):
                name = item.path[len(body.block.path) + 1 :] if body.block.path else item.path
                yield item, f"{where}[{name}]" if where else self.place(name)
            elif isinstance(item, Block) and item in later and later[item][1].cls is None:
                name, inner = later[item]
                name = name if where else self.inner(name)
                yield from self.layers(inner, f"{where}[{name}]" if where else self.place(name))

    # -- forward and hybrid_forward ----------------------------------------------------------------
    def entrance(self, names: list[str]) -> list[str]:
        """``forward`` with the checks: what it passes on may be a Symbol, which has no shape."""
        arguments = ", ".join(names)
        inside = [*super().checks(), f"return super().forward({arguments})"]
        lines = [f"def forward(self, {arguments}):", *("    " + line for line in inside), ""]
        return lines if len(inside) > 1 else []

    def checks(self) -> list[str]:
        """They stand in :meth:`entrance`."""
        return []

    def nested(self, parts: Sequence[str]) -> str:
        """Outputs with names too: a HybridBlock gives no dict."""
        names = self.emitter.graph.structure if self.root else None
        return f"[{', '.join(parts)}]" if isinstance(names, tuple) else super().nested(parts)

    def foreign(self) -> Iterator[tuple[Value, str]]:
        """Inside of another block that is hybridized the inputs are Symbols."""
        for v, condition in super().foreign():
            either = f"({condition})" if " or " in condition else condition
            yield v, f"isinstance({self.names[v]}, mx.nd.NDArray) and {either}"

    def member(self, member: Member) -> str:
        """A layer inside, or a parameter: by its argument where it is this block's own."""
        name = self.inner(member.name)
        if name in self.own:
            return name
        if name in self.below:
            return f"array_of(F, {self.place(name)})"
        if name in self.members:
            return self.place(name)
        path = self.body.block.path
        theirs, _ = self.emitter.weights.get(member.name, ("", None))
        layer = self.inner(member.name.rpartition(".")[0])
        if layer in self.members and "_unfused" not in theirs and inside(member.name, path):
            return f"array_of(F, {self.place(layer)}.{theirs.rpartition('.')[2]})"
        what = f"MXNet source that uses {member.name} where it does not belong to"
        raise UnsupportedError(what, path or "the model")

    def fresh(self, wish: str) -> str:
        """A name that is none of the block's own parameters'."""
        name, n = super().fresh(wish), 2
        while name in self.own:
            name, n = super().fresh(f"{wish}{n}"), n + 1
        return name

    def piece(self, piece: Any) -> str:
        """A variable with an open size: ``x, lhs_axes=(0,), rhs_axes=(0,)`` or ``x, axis=0``."""
        if not isinstance(piece, Like):
            return super().piece(piece)
        for v, name in self.known():
            if piece.dim in v.shape:
                self.left[v] = self.left.get(v, 0) + 1  # it keeps its name
                axis = v.shape.index(piece.dim)
                if piece.axis is None:
                    return f"{name}, axis={axis}"
                return f"{name}, lhs_axes=({piece.axis},), rhs_axes=({axis},)"
        return self.size(piece.dim)

    def size(self, dim: Dim) -> str:
        """There is none to read."""
        what = f"MXNet source with the open size '{dim}', which no variable here has"
        where = self.body.block.path or "the model"
        raise UnsupportedError(what, where, "trace with fixed sizes")


def _added(where: str, items: list[Declared]) -> list[str]:
    """The lines that fill a HybridSequential."""
    if not all(isinstance(item, str) for item in items):
        lines = []
        for i, item in enumerate(items):
            text = item if isinstance(item, str) else "nn.HybridSequential()"
            lines.append(f"{where}.add({text})")
            lines += [] if isinstance(item, str) else _added(f"{where}[{i}]", item)
        return lines
    line = f"{where}.add({', '.join(items)})"
    return [line] if len(line) < 72 else [f"{where}.add(", *(f"    {item}," for item in items), ")"]


class _Emitter(Emitter):
    target: MXNet

    def nested(self) -> Body:
        """The last call of a batch norm reads what the earlier ones read: it collects for all."""
        check_dtypes(self.graph)
        for state in self.graph.updates:
            calls = applications(self.graph, state)
            if len(calls) > 1:
                last = calls[-1]
                last.inputs = (*last.inputs[:5], *(n.inputs[0] for n in calls[:-1]))
        self.graph, self.target.cut = cut(self.graph)
        self.unread = dict.fromkeys(self.graph.unread())
        self.target.often = often(self.graph)
        return super().nested()

    def sub_block(self, body: Body, block: Block) -> None:
        """A block that reads nothing from outside is none: a HybridBlock has at least one input."""
        if not block.inputs:
            raise Apart(block.path)
        super().sub_block(body, block)


def emit(graph: Graph) -> Emitted:
    """The source of a HybridBlock that means this Graph."""
    return with_sizes(_emit, graph)


def _emit(graph: Graph) -> Emitted:
    target = MXNet()
    graph, renamed = _identified(graph)
    emitter = _Emitter(graph, target)
    for v in graph.of_kind("param", "state"):
        if v.dtype != dt.float32 and v.name not in emitter.free:
            what = f"MXNet source with parameters of dtype {v.dtype}"
            raise UnsupportedError(what, renamed.get(v.name, v.name), "use float32")
    emitted = emitter.run()
    for name in target.constants:
        emitted.weights.pop(name, None)
    for v in graph.of_kind("param", "state"):
        if v.name in emitted.weights:
            path, weight = emitted.weights[v.name]
            emitted.weights[v.name] = (path, _held(v, weight))
    emitted.weights = {renamed.get(n, n): at for n, at in emitted.weights.items()}
    return emitted


def _held(value: Value, weight: Weight) -> Weight:
    """How an array goes in and out where MXNet has none such: without axes, or of bools."""

    def to(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = weight.to(array)
        array = array.astype(np.float32) if value.dtype == dt.bool_ else array
        return array if value.shape else array.reshape(1)

    def back(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = array if value.shape else array.reshape(())
        return weight.back(array != 0 if value.dtype == dt.bool_ else array)

    same = value.shape and value.dtype != dt.bool_
    return weight if same else dataclasses.replace(weight, to=to, back=back)
