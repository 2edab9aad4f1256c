"""The shared emitter: nested blocks become classes (or functions) of readable source.

A target (``frameworks/<name>/emit.py``) says how its ops, layers and literals look (``code.py``);
here blocks of one structure become one class whose varying numbers are constructor arguments;
``writer.py`` names the variables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trivium.dtype import DType
from trivium.frameworks.layer import LayerForm, Weight
from trivium.frameworks.writing.blocks import (
    Block,
    Layer,
    as_layers,
    blocks,
    find_layers,
    holders,
    in_order,
    inside,
    leaf,
    parent,
)
from trivium.frameworks.writing.classes import Body, Class, signature
from trivium.frameworks.writing.code import (
    Code,
    Later,
    Member,
    Optional,
    Statement,
    Target,
    factors,
    is_infix,
    joined,
)
from trivium.frameworks.writing.ready import arrays_written, in_turn, numbers_where_used
from trivium.frameworks.writing.settle import settled
from trivium.graph import OPS, Graph, Node, UnsupportedError, Value
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import specialize
from trivium.transforms.simplify import simplify
from trivium.transforms.sizes import silent_axes
from trivium.transforms.unroll import unrolled, unrolls

HELD = ("param", "state")
"""The kinds of what a model holds."""


class Apart(Exception):
    """Two runs of one scope that are not one call made twice."""

    def __init__(self, path: str):
        super().__init__(f"{path} is called twice and is not the same each time")
        self.path = path


@dataclass
class Emitted:
    """The source of a model, the name of its class or function, and where its parameters went."""

    source: str
    entry: str
    weights: dict[str, tuple[str, Weight]]
    """Our parameter's name -> its path over there, and the map of its array."""
    constants: dict[str, tuple[str, Weight, np.ndarray[Any, Any]]] = field(default_factory=dict)
    """The same for arrays that the source has a place for but does not hold; and their numbers."""


class Emitter:
    """One emission: a Graph through a Target to source."""

    def __init__(self, graph: Graph, target: Target):
        self.target = target
        plain = simplify(graph)
        self.made_for: dict[str, list[int]] = {}  # data input -> axes whose size has to be checked
        for v, axis in [] if graph.inner else silent_axes(plain):
            self.made_for.setdefault(v.name, []).append(axis)
        graph, self.constants = arrays_written(in_turn(plain))
        graph = target.prepare(graph)
        self.holders = holders(graph)
        self.renamed = as_layers(graph, OPS.__getitem__, self.forms)
        unread = {v.name for v in graph.unread()}

        def kept(node: Node) -> bool:
            return target.lowers(node) and not self.spoiled(node, unread)

        self.graph = graph = numbers_where_used(decompose(graph, keep=kept))
        target.ones = frozenset(factors(graph))
        self.unread = dict.fromkeys(graph.unread())
        self.bodies: list[Body]  # inner ones first
        self.classes: list[Class]
        self.weights: dict[str, tuple[str, Weight]]
        self.used_names: set[str]
        self.chains: set[str]  # the paths of blocks that are nothing but a Sequential
        self.free: set[str]  # the parameters of no layer
        self.root = self.nested()

    def nested(self) -> Body:
        """All of the Graph. A scope that turns out to be no call is none when it starts again."""
        apart: set[str] = set()
        while True:
            self.bodies, self.classes, self.weights, self.used_names = [], [], {}, set()
            self.chains, self.free = set(), set()
            layers = find_layers(self.graph, OPS.__getitem__, self.forms)
            self.implied = {v for la in layers.values() for v in la.node.outputs}
            for state, new in self.graph.updates.items():
                if new not in self.implied:
                    raise UnsupportedError(
                        f"{self.target.name} source that updates {state.name} outside a layer"
                    )
            whole = blocks(self.graph, layers, apart, self.target.repeats)
            self.scopes = set(whole.paths())
            self.unread_in: dict[str, list[Value]] = {}
            for v in self.unread:
                self.unread_in.setdefault(self.around(v), []).append(v)
            if shared := self.read_outside(layers) - apart:
                apart |= shared
                continue
            try:
                return self.body(whole)
            except Apart as found:
                if found.path in apart:
                    raise
                apart.add(found.path)

    def around(self, value: Value) -> str:
        """The innermost block that a parameter is in, by its name."""
        path = parent(value.name)
        while path not in self.scopes:
            path = parent(path)
        return path

    def read_outside(self, layers: Mapping[Node, Layer]) -> set[str]:
        """Blocks with a parameter of no layer that something outside of them reads."""
        reads = [(v, n.scope) for n in self.graph.nodes if n not in layers
                 for v in n.inputs if v is not None and v.kind in HELD]  # fmt: skip
        return {at for v, scope in reads if not inside(scope, at := self.around(v))}

    def spoiled(self, node: Node, unread: Collection[str]) -> bool:
        """Is its layer another: of another dtype, or with a parameter that nothing reads?"""
        if not self.target.makes(_floats(node)):
            return True
        paths = {parent(v.name) for v in node.inputs if v is not None and v.kind in HELD}
        words = {w.ours for f in self.target.forms if f.op == node.op for w in f.weights}
        return any(f"{p}.{w}" in unread for p in paths for w in words) if unread else False

    def forms(self, node: Node) -> list[LayerForm]:
        """The layer forms that are exact for this node."""
        if not self.target.makes(_floats(node)):
            return []
        return [f for f in self.target.forms if f.op == node.op and f.write(node) is not None]

    def run(self) -> Emitted:
        """The source."""
        source = self.target.render(self)
        first = source.find("\n\n\n") + 3
        used = "".join(h.strip("\n") + "\n\n\n" for h in self.helpers(source))
        source = source[:first] + used + source[first:]
        assert self.root.cls is not None
        weights = {
            ours: (".".join(map(self.target.part, theirs.split("."))), w)
            for ours, (theirs, w) in self.weights.items()
        }
        weights = {self.renamed.get(ours, ours): at for ours, at in weights.items()}
        constants = {n: (*weights.pop(n), a) for n, a in self.constants.items() if n in weights}
        source = "".join(f"# {line}\n" for line in self.absent(constants)) + source.rstrip() + "\n"
        return Emitted(source, self.root.cls.name, weights, constants)

    def absent(self, constants: Mapping[str, Any]) -> list[str]:
        """What the source says about the numbers that it does not hold."""
        lines = [f"{path}: {a.dtype} of shape {a.shape}" for path, _, a in constants.values()]
        where = f"trivium.to_{self.target.name}(...) makes the model with them."
        head = f"The numbers of these arrays are not in the source: {where}"
        return [head, *lines] if lines else []

    def helpers(self, source: str) -> list[str]:
        """The helpers that the source calls, and those that they call."""
        found: dict[str, str] = {}
        left = [source]
        while left:
            text = re.sub(r'""".*?"""|#[^\n]*', "", left.pop(), flags=re.DOTALL)
            for name, helper in self.target.helpers.items():
                if name not in found and re.search(rf"(?<![.\w\"]){name}\b(?!\")", text):
                    found[name] = helper
                    left.append(helper)
        return [h for name, h in self.target.helpers.items() if name in found]

    # -- blocks to bodies --------------------------------------------------------------------------
    def body(self, block: Block) -> Body:
        """What a block declares and does; blocks inside first."""
        body = Body(block)
        names: dict[str, Member] = {}
        for item in block.items:
            if isinstance(item, Layer):
                name = self.member_name(block, item.path)
                if name not in body.members:
                    arguments = _arguments(item)
                    if item.form.weights and (wide := _floats(item.node) - {"float32"}):
                        arguments |= self.target.of_dtype(*wide)
                    body.members[name] = self.target.constructor(item.form, arguments)
                    self.note(item)
                body.statements += self.target.call(item, Member(name))
                names[name] = Member(name)
            elif isinstance(item, Block):
                self.sub_block(body, item)
            else:
                self.node(body, item)
        block.outputs = [self.handed_on(body, v) for v in block.outputs]
        self.drop_unused(body)
        self.unbind(body)
        for v in self.unread_in.get(block.path, ()):
            self.declare(body, v)
        body.members = in_order(body.members)
        body.chain = self.chain_of(body)
        if body.chain:
            self.chains.add(block.path)
        self.bodies.append(body)
        return body

    def member_name(self, block: Block, path: str) -> str:
        return path[len(block.path) + 1 :] if block.path else path

    def note(self, layer: Layer) -> None:
        arrays = dict(zip(OPS[layer.node.op].arrays, layer.node.inputs, strict=False))
        for w in layer.form.weights:
            if (v := arrays.get(w.array)) is not None:
                self.weights[v.name] = (f"{layer.path}.{w.theirs}" if w.theirs else layer.path, w)

    def sub_block(self, body: Body, block: Block) -> None:
        start = len(self.bodies)
        inner = self.body(block)
        name = self.member_name(body.block, block.path)
        code: Code = [Member(name), "(", *joined([[v] for v in block.inputs]), ")"]
        before = body.members.get(name)
        if before and signature(before[0].body) != signature(inner):
            raise Apart(block.path)
        if before:
            del self.bodies[start:]
        body.members[name] = before or [Later(inner)]
        body.statements.append(Statement(list(block.outputs), code))

    def node(self, body: Body, node: Node) -> None:
        for v in node.inputs:
            if v is not None and v.kind in HELD and inside(parent(v.name), body.block.path):
                self.declare(body, v)
        code, results = self.target.expression(node), self.target.results(node)
        wishes = self.wishes(body, results) if len(results) == 3 else ()
        body.statements.append(Statement(results, code, is_infix(code), wishes=wishes))

    def wishes(self, body: Body, values: Sequence[Value | None]) -> tuple[str, ...]:
        """Three arrays in a block that attends are queries, keys and values."""
        attends = {"matmul", "scaled_dot_product_attention"} & {n.op for n in body.block.nodes()}
        return tuple("qkv") if len(values) == 3 and attends else ()

    def handed_on(self, body: Body, value: Value) -> Value:
        """An output; one that is a parameter as it stands is read in a line like another's."""
        if value.kind not in HELD:
            return value
        self.declare(body, value)
        read = Value(self.graph, value.type, None, 0, leaf(value.name))
        body.statements.append(Statement([read], self.target.use(value)))
        return read

    def declare(self, body: Body, value: Value) -> None:
        """A parameter of no layer is a member of its block."""
        if value.name not in self.weights:
            name = self.member_name(body.block, value.name)
            body.members[name] = self.target.parameter(value)
            self.free.add(value.name)
            self.weights[value.name] = (value.name, Weight("", leaf(value.name), leaf(value.name)))

    def frozen(self) -> list[str]:
        """The shortest paths, over there, at or below which every parameter is frozen.

        "" is the whole model. What is no floating array cannot be trained anyway.
        """
        held = {
            self.weights[v.name][0]: v.trainable
            for v in self.graph.of_kind("param")
            if v.dtype.is_floating and v.name in self.weights
        }
        moving = {p for path, trained in held.items() if trained for p in _prefixes(path)}
        found = (
            next(p for p in _prefixes(path) if p not in moving)
            for path, trained in held.items()
            if not trained
        )
        return list(dict.fromkeys(found))

    def fixed(self, body: Body) -> set[str]:
        """The whole model's free parameters that are frozen by themselves: declared as that."""
        here = self.free & body.members.keys() if not body.block.path else set()
        return here.intersection(self.frozen()) if here else here

    def drop_unused(self, body: Body) -> None:
        """Numbers that were written into expressions need no line of their own."""
        read = {p for s in body.statements for p in s.code if isinstance(p, Value)}
        read |= set(body.block.outputs)
        body.statements = [
            s for s in body.statements if s.effect or any(v in read for v in s.outputs)
        ]

    def unbind(self, body: Body) -> None:
        """``q, k, v = x.unbind(0)`` for ``x[0]``, ``x[1]`` and ``x[2]``."""
        parts: dict[tuple[Value, int], dict[int, Statement]] = {}
        for s in body.statements:
            node = s.outputs[0].node if len(s.outputs) == 1 and s.outputs[0] is not None else None
            if node is not None and node.op == "select" and (x := node.inputs[0]) is not None:
                parts.setdefault((x, node.attrs["axis"]), {})[node.attrs["index"]] = s
        for (x, axis), found in parts.items() if parts else ():
            code = self.target.unbound(x, axis)
            if not code or len(found) < 2 or sorted(found) != list(range(len(found))):
                continue
            if x.shape[axis] != len(found):
                continue
            parts_of = [found[i].outputs[0] for i in range(len(found))]
            whole = Statement(parts_of, code, wishes=self.wishes(body, parts_of))
            gone = {id(s) for s in found.values()}
            first = next(i for i, s in enumerate(body.statements) if id(s) in gone)
            rest = [s for s in body.statements[first:] if id(s) not in gone]
            body.statements[first:] = [whole, *rest]

    def chain_of(self, body: Body) -> list[str] | None:
        """The members in order, if the block is Sequential: numbered, each feeding the next."""
        block = body.block
        if not block.path and self.made_for:
            return None  # it has something to say
        if not self.target.sequential or len(block.inputs) != 1 or len(block.outputs) != 1:
            return None
        order = []
        uses = Counter(p for s in body.statements for p in s.code if isinstance(p, Value))
        x: Value | None = block.inputs[0]
        for s in body.statements:
            match s.code:
                case [Member(name), "(", Value() as v, ")"] if v is x and len(s.outputs) == 1:
                    order.append(name)
                    x = s.outputs[0]
                case _:
                    return None
            if x is None or uses[x] > 1:
                return None
        if len(order) < len(body.members):
            return None
        if x is not block.outputs[0] or order != [str(i) for i in range(len(order))] or not order:
            return None
        if set(order) != set(body.members):  # it holds a parameter that nothing reads
            return None
        return order

    # -- one class for blocks of one structure -----------------------------------------------------
    def inlined(self, body: Body) -> bool:
        """Has it no class, but stands in the code of the block around it?"""
        return bool(body.chain and body.block.path)

    def settle(self) -> None:
        """Decide which bodies are one class, and each class's constructor arguments."""
        self.classes = settled(self)

    def wish(self, path: str) -> str:
        """What the class of a block wants to be called."""
        words = self.graph.classes.get(path) or (leaf(path) if path else self.graph.name)
        if words.isdigit():
            words = leaf(parent(path)) + "_block"
        name = self.target.class_name(re.split(r"\W|_", words)) or self.target.class_name(["model"])
        return name if name[0].isalpha() else self.target.class_name(["model", name])

    def class_name(self, wish: str) -> str:
        """A name that no class has."""
        name, n = wish, 2
        while name in self.used_names or self.target.taken(name):
            name, n = f"{wish}{'_' * wish[-1].isdigit()}{n}", n + 1
        self.used_names.add(name)
        return name


def _prefixes(path: str) -> list[str]:
    """ "", "layer1", "layer1.0", ... down to the path itself."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def _arguments(layer: Layer) -> dict[str, Any]:
    """What a layer's constructor is given, and what it is not because that is the default."""
    said = layer.form.write(layer.node)
    assert said is not None  # else it were no layer
    first = {k: v for k, v in said.items() if k not in said.all}
    return first | {k: Optional(v, d) for k, (v, d) in said.all.items()}


def _floats(node: Node) -> set[DType]:
    """The floating dtypes of the parameters that a node reads."""
    held = (v.dtype for v in node.inputs if v is not None and v.kind in HELD)
    return {d for d in held if d.is_floating}


def with_sizes(write: Callable[[Graph], Emitted], graph: Graph) -> Emitted:
    """The source of a Graph; a target that cannot say an open size gets the example's sizes.

    One that cannot say a loop gets its steps, where their number is known.
    """
    try:
        return write(graph)
    except UnsupportedError:
        if graph.sizes:
            fixed = specialize(graph, graph.sizes)
            fixed.sizes = {}
            return with_sizes(write, fixed)
        if any(map(unrolls, graph.nodes)):
            return with_sizes(write, unrolled(graph))
        raise
