"""From a Graph to loop nests: what is kept in memory, what is computed where it is read.

A reduction or product takes along the elementwise work that follows it (its epilogue); several
results of one such group are stored by one nest. Everything else is written out where it is read,
unless computing it again would cost more than keeping it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.graph import Graph, Node, Value, identifier
from trivium.native import meaning, reductions
from trivium.native.groups import Groups
from trivium.native.index import ZERO, Index, Var
from trivium.native.nest import Axis, Buffer, Expr, Exprs, Nest, Store, parts
from trivium.native.prepare import is_relaid
from trivium.native.vecmath import LIBRARY

VIEWS = {"reshape", "transpose", "broadcast_to", "stop_gradient", "slice_axis", "flip"}
TWICE: meaning.At = (Index({}, -1),)  # a reduction's result that is read at two places
_KEEPS_SIZE = meaning.ELEMENTWISE | {"reshape", "transpose", "stop_gradient"}


@dataclass
class Kernel:
    """A node that runs as its NumPy body: inputs and outputs are whole arrays in memory."""

    node: Node
    reads: list[Buffer]
    writes: list[Buffer]
    stale: set[Buffer] = field(default_factory=set)  # read as they were before being updated


@dataclass
class Fused:
    """What ``fuse`` gives: work in an order that is right, and the arrays it is about."""

    work: list[Nest | Kernel]
    inputs: list[Buffer]  # in the Graph's order
    outputs: list[Buffer]
    updates: dict[Buffer, Buffer]  # state -> its new value; the same buffer where in place
    constants: list[tuple[Buffer, Any]]
    checks: list[str]  # what is wrong when element i of the buffer "errors" is not 0
    errors: Buffer
    make: Exprs


class Fusion:
    """One Graph on its way to nests. ``held``: parameters and states live in the arena."""

    def __init__(self, graph: Graph, held: bool, layouts: Mapping[str, tuple[Axis, ...]]):
        self.graph, self.held, self.layouts = graph, held, layouts
        self.make = Exprs()
        self.buffers: dict[Value, Buffer] = {}
        self.work: list[Nest | Kernel] = []
        self.constants: list[tuple[Buffer, Any]] = []
        self.checks: list[str] = []
        self.named: dict[str, int] = {}
        self.uses = graph.uses()
        self.short = reductions.short(graph)
        self.results = set(graph.results())
        self.images = {
            len(n.attrs["layout"])
            for n in graph.nodes
            if n.op in meaning.PRODUCTS and n.attrs.get("layout", "")[1:2] == "C"
        }
        self.acc: Value | None = None  # what the nest being written reduces,
        self.acc_at: meaning.At | None = None  # at which place,
        self.fresh: set[Value] = set()  # and what it stores
        self.realised: set[Value] = set()
        self.cost: dict[Value, int] = {}

    # -- what is kept ----------------------------------------------------------------------------
    def heavy(self, node: Node) -> bool:
        """Is it a reduction or a product, with loops of its own?"""
        if node.op in meaning.PRODUCTS:
            return True
        return node.op in meaning.REDUCTIONS and node not in self.short

    def run(self) -> Fused:
        """The whole way."""
        inputs = [self._input(v) for v in self.graph.inputs]
        self._require()
        for node in self.graph.nodes:
            self._decide(node)
        self._groups()
        self.errors = Buffer("errors", dt.int32, (max(len(self._checked()), 1),), "arena")
        for node in self.graph.nodes:
            self._check(node)
            self._emit(node)
        updates = {self.buffers[s]: self._stored(v) for s, v in self.graph.updates.items()}
        outputs = [self._output(v) for v in self.graph.outputs]
        for w in self.work:
            if isinstance(w, Nest):
                w.bare(self.make)
        return Fused(self.work, inputs, outputs, updates, self.constants, self.checks, self.errors,
                     self.make)  # fmt: skip

    def _input(self, v: Value) -> Buffer:
        arena = self.held and v.kind in ("param", "state")
        place = "held" if arena else "input"
        buffer = Buffer(identifier(v.name), v.dtype, v.shape, place)
        if not arena:
            buffer.lie()
        else:
            buffer.axes = self.layouts.get(v.name)
        self.buffers[v] = buffer
        return buffer

    def _base(self, v: Value) -> Value:
        while v.node is not None and v.node.op in VIEWS and not is_relaid(v.node):
            (v,) = (x for x in v.node.inputs if x is not None)
        return v

    def _require(self) -> None:
        """What has to be in memory whatever it costs."""
        required = set(self.results)
        for node in self.graph.nodes:
            if not meaning.is_native(node):
                required |= {v for v in (*node.inputs, *node.outputs) if v is not None}
            elif node.op in meaning.PRODUCTS:
                required |= {self._base(v) for v in node.inputs if v is not None}
            elif node.op == "take" and node.inputs[0] is not None:
                required.add(node.inputs[0])
            elif node.op == "concat" or is_relaid(node):
                required.add(node.out)
        self.required = required

    def _decide(self, node: Node) -> None:
        if not meaning.is_native(node):
            self.realised |= set(node.outputs)
            self.cost |= dict.fromkeys(node.outputs, 1)
            return
        v = node.out
        own = {"pow": 40, "exp": 12, "log": 14, "tanh": 16, "erf": 24, "sigmoid": 16, "expm1": 18,
               "log1p": 20, "divide": 4, "sqrt": 6, "take": 8,
               **dict.fromkeys(LIBRARY, 40)}.get(node.op, 1)  # fmt: skip
        inner = sum(self.cost.get(x, 1) for x in node.inputs if x is not None)
        if node.op in meaning.REDUCTIONS and not self.heavy(node):
            inner *= max(1, _size(node.inputs[0]) // max(_size(v), 1))
        cost = 0 if node.op == "full" else inner if node.op in VIEWS else own + inner
        if v in self.required or self.heavy(node):
            keep = True
        else:
            readers = self.uses.get(v, [])
            again = sum(max(1, _reads(n, v) // max(_size(v), 1)) for n in readers)
            keep = again > 1 and cost > (16 if again == len(readers) else 6)
        if keep and not (self.heavy(node) and v not in self.required):
            self.realised.add(v)
        self.cost[v] = 1 if keep else cost

    def _groups(self) -> None:
        """What the nest of each reduction or product stores."""

        def follows(node: Node) -> bool:
            return node.op in _KEEPS_SIZE and not is_relaid(node)

        made = Groups(self.graph, self.realised, self.heavy, follows)
        self.roots, self.owner = made.roots, made.owner

    # -- nests -----------------------------------------------------------------------------------
    def _emit(self, node: Node) -> None:
        """The work that puts this node's outputs into memory, if they belong there."""
        if any(v in self.buffers for v in node.outputs):
            return
        if not meaning.is_native(node):
            reads = [self._stored(v) for v in node.inputs if v is not None]
            for v in node.outputs:
                self._new(v).lie()
            self.work.append(Kernel(node, reads, [self.buffers[v] for v in node.outputs]))
            return
        v = node.out
        if v not in self.realised and v not in self.owner:
            return
        # This may be asked for while an expression for another group is being written.
        outer = self.acc, self.acc_at, self.fresh
        self.acc, self.acc_at, self.fresh = None, None, set()
        if v in self.owner:
            self._emit_group(self.owner[v])
        elif node.op == "constant":
            self._constant(v)
        elif node.op == "concat":
            self._emit_concat(v)
        else:
            self._emit_map(v)
        self.acc, self.acc_at, self.fresh = outer

    def _stored(self, v: Value) -> Buffer:
        if v not in self.buffers:
            assert v.node is not None
            self._emit(v.node)
        return self.buffers[v]

    def _new(self, v: Value) -> Buffer:
        node = v.node
        short = node is not None and node.op == "argmax" and node in self.short
        kept = dt.int8 if short and v not in self.results else v.dtype  # a place among a few
        label = _label(v)
        self.named[label] = self.named.get(label, 0) + 1
        buffer = Buffer(f"{label}_{self.named[label]}", kept, v.shape, "arena")
        if not self.held and any(v is o for o in self.graph.outputs):
            buffer.lie()  # the caller's array lies as NumPy's do
        rank = len(v.shape)
        while rank and v.shape[rank - 1] == 1:  # (n, c, h, w, 1) is images too
            rank -= 1
        if node is not None and node.op == "conv_weight_grad":
            rank = len(v.shape)
            self.images = self.images | {rank}  # a kernel lies as images do
        if buffer.axes is None and any(r in self.images for r in (rank, len(v.shape))):
            buffer.lie([0, *range(2, len(v.shape)), 1])
        self.buffers[v] = buffer
        return buffer

    def _constant(self, v: Value) -> None:
        assert v.node is not None
        buffer = Buffer(f"constant{len(self.constants)}", v.dtype, v.shape, "constant")
        buffer.lie()
        self.buffers[v] = buffer
        self.constants.append((buffer, v.node.attrs["value"]))

    def _emit_map(self, v: Value) -> None:
        loops, at = _places(v)
        value = self.expand(v, at)
        self.work.append(Nest(_label(v), loops, [Store(self._new(v), at, value)], unit=_unit(v)))

    def _emit_concat(self, v: Value) -> None:
        """Every piece is stored where it belongs."""
        assert v.node is not None
        buffer, start, axis = self._new(v), 0, v.node.attrs["axis"]
        for x in v.node.inputs:
            assert x is not None
            loops, at = _places(x)
            place = (*at[:axis], at[axis] + start, *at[axis + 1 :])
            store = Store(buffer, place, self.read(x, at))
            self.work.append(Nest(_label(v), loops, [store], unit=_unit(v)))
            start += x.shape[axis]

    def _emit_group(self, heavy: Value) -> None:
        """The nests of a reduction: its roots are stored, or itself where that cannot be."""
        roots = self.roots[heavy]
        assert heavy.node is not None
        made: list[Any] = []
        for loops, at in reductions.pieces(heavy.node, roots[0].shape):
            self.acc, self.acc_at, self.fresh = heavy, None, set(roots)
            stores = [(r, at, self.expand(r, at)) for r in roots]
            place, self.acc, self.fresh = self.acc_at, None, set()
            if (
                place is None
                or place is TWICE
                or not (place == at or _bijective(place, heavy.shape, loops))
            ):
                self._emit_alone(heavy, roots)
                return
            made.append((loops, place, stores))
        buffers = {r: self._new(r) for r in roots}
        for loops, place, stores in made:
            final = [Store(buffers[r], at, e) for r, at, e in stores]
            self._reduction(heavy, loops, place, final)

    def _reduction(
        self, heavy: Value, loops: list[Var], place: meaning.At, stores: list[Store]
    ) -> None:
        assert heavy.node is not None
        kind, over, body = reductions.reduction(self.make, heavy.node, place, self.read)
        unit = _unit(heavy)
        if any(v.extent == 0 for v in over):  # no tap reaches these places: an empty sum
            zero = self.make.const(0, heavy.dtype)
            for s in stores:
                s.value = self.make.rewrite(s.value, lambda e: zero if e.op == "acc" else None)
            self.work.append(Nest(_label(heavy), loops, stores, unit=unit))
            return
        self.work.append(Nest(_label(heavy), loops, stores, kind, over, body, unit=unit))

    def _emit_alone(self, heavy: Value, roots: Sequence[Value]) -> None:
        """The reduction by itself, then its followers as maps."""
        assert heavy.node is not None
        buffer, acc = self._new(heavy), self.make.make("acc", heavy.dtype)
        for loops, at in reductions.pieces(heavy.node, heavy.shape):
            self._reduction(heavy, loops, at, [Store(buffer, at, acc)])
        for r in roots:
            if r is not heavy:
                self._emit_map(r)

    # -- expressions -----------------------------------------------------------------------------
    def read(self, v: Value, at: meaning.At) -> Expr:
        """``v`` at a place: from memory if it is there, else written out."""
        stored = v in self.buffers or v in self.realised or v in self.owner
        if stored and v not in self.fresh:
            return self.make.make("load", v.dtype, (), (self._stored(v), at))
        return self.expand(v, at)

    def expand(self, v: Value, at: meaning.At) -> Expr:
        """``v`` at a place, told by its node."""
        if v is self.acc:
            if self.acc_at not in (None, at):
                self.acc_at = TWICE
            else:
                self.acc_at = at
            return self.make.make("acc", v.dtype)
        node = v.node
        assert node is not None, v
        if node.op == "constant":
            value = node.attrs["value"]
            if value.size == 1:
                return self.make.const(value.reshape(()), v.dtype)
            self._constant(v)
            return self.read(v, at)
        return meaning.expand(self.make, node, at, self.read)

    def _output(self, v: Value) -> Buffer:
        """Where a result is found: in the arena, or (``held`` is off) in an array of the caller."""
        buffer = self._stored(v)
        if self.held:
            return buffer
        if buffer.place == "arena":
            buffer.place = "output"
            return buffer
        copy = Buffer(f"output{len(self.work)}", v.dtype, v.shape, "output")  # an input, or again
        copy.lie()
        loops, at = _places(v)
        self.work.append(Nest("copy", loops, [Store(copy, at, self.read(v, at))]))
        return copy

    # -- indices out of range --------------------------------------------------------------------
    def _checked(self) -> list[Node]:
        return [n for n in self.graph.nodes if n.op in ("one_hot", "take") and meaning.is_native(n)]

    def _check(self, node: Node) -> None:
        """Before an op that picks by index: are all its indices in range?"""
        if node.op not in ("one_hot", "take") or not meaning.is_native(node):
            return
        picks = node.op == "take"
        indices, x = node.inputs[1 if picks else 0], node.inputs[0]
        assert indices is not None and x is not None
        if indices.node is not None and indices.node.op == "argmax":
            return  # in range by what it is
        high = x.shape[node.attrs["axis"]] if picks else node.attrs["classes"]
        low = -high if picks else 0
        where = f" in {node.scope}" if node.scope else ""
        self.checks.append(f"{node.op}{where}: an index is out of range for {high} entries")
        over = [Var(f"r{k}", s) for k, s in enumerate(indices.shape)]
        value = self.read(indices, tuple(map(Index.of, over)))
        make, const = self.make.make, self.make.const
        wide = value if value.dtype == dt.int64 else make("cast", dt.int64, [value])
        below = make("less", dt.bool_, [wide, const(low, dt.int64)])
        above = make("greater_equal", dt.bool_, [wide, const(high, dt.int64)])
        body = make("cast", dt.int32, [make("logical_or", dt.bool_, [below, above])])
        at = (Index({}, len(self.checks) - 1),)
        store = Store(self.errors, at, make("acc", dt.int32))
        self.work.append(Nest(f"check_{node.op}", [], [store], "max", over, body))


def _size(v: Any) -> int:
    return int(np.prod(v.shape, dtype=np.int64))


def _reads(node: Node, v: Value) -> int:
    """How many elements of ``v`` a node reads, counting again those that it reads again."""
    if node.op in meaning.PRODUCTS or node.op in meaning.REDUCTIONS or not meaning.is_native(node):
        return _size(v)
    if node.op in ("slice_axis", "take", "concat"):
        return min(_size(v), _size(node.out))
    return _size(node.out)


def _places(v: Value) -> tuple[list[Var], meaning.At]:
    """Loops over an array, and the place that they stand at: 0 on axes of size 1."""
    loops = {i: Var("ijklmnpq"[i % 8], s) for i, s in enumerate(v.shape) if s != 1}
    at = tuple(Index.of(loops[i]) if i in loops else ZERO for i in range(len(v.shape)))
    return list(loops.values()), at


def _label(v: Value) -> str:
    if v.node is None:
        return "value"
    return "relaid" if is_relaid(v.node) else v.node.op


def _unit(v: Value) -> str:
    assert v.node is not None
    return v.node.scope


def _bijective(at: Sequence[Index], shape: Sequence[Any], loops: Sequence[Var]) -> bool:
    """Is every element of ``shape`` met exactly once when the loops run?"""
    plain = Buffer("", dt.float32, shape, "")
    plain.axes = tuple(Axis(i, 1, s) for i, s in enumerate(shape))
    flat = plain.flat(at)
    stride = 1
    if flat.const or any(not isinstance(a, Var) for a in flat.terms):
        return False
    for a, c in sorted(flat.terms.items(), key=lambda item: item[1]):
        if c != stride:
            return False
        stride *= a.extent  # type: ignore[union-attr]
    return stride == plain.size == int(np.prod([v.extent for v in loops], dtype=np.int64))


__all__ = ["Fused", "Fusion", "Kernel", "parts"]
