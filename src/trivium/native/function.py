"""The function of one nest: its arguments, where a reduction starts, how results are stored."""

from __future__ import annotations

import math

from trivium.native.expr import Buffer, Load
from trivium.native.express import Place, neutral
from trivium.native.index import ZERO, Index, Var
from trivium.native.ir import Function, Module, V, type_of, vector
from trivium.native.nest import Nest
from trivium.native.schedule import Plan

Env = dict[Var, V | int]


def arrays(nest: Nest) -> dict[Buffer, int]:
    """The arrays that a nest touches: its function's pointers, in this order.

    With each the element that its pointer points to, the first that is touched if that is known:
    so the nests of steps or layers that differ in nothing else are one function.
    """
    found: dict[Buffer, int] = {}
    loads = ((e.buffer, e.at) for e in nest.reads())
    for buffer, at in [*((s.buffer, s.at) for s in nest.stores), *loads]:
        start = buffer.flat([i or ZERO for i in at]).const
        inside = 0 <= start < math.prod(buffer.shape)
        found[buffer] = min(found.get(buffer, start), start) if inside else 0
    return found


class NestFunction:
    """A plan's function, as far as it is the same for all plans."""

    def __init__(self, module: Module, plan: Plan, name: str):
        self.plan, self.nest = plan, plan.nest
        starts = arrays(plan.nest)
        pointers = [
            f"ptr noalias {'' if self._stored(x) else 'readonly '}captures(none)" for x in starts
        ]
        self.b = Function(module, name, [*pointers, "i64", "i64"], attributes="nounwind noinline")
        self.pointers = {x: (at, starts[x]) for x, at in zip(starts, self.b.args, strict=False)}

    def _stored(self, buffer: Buffer) -> bool:
        return any(s.buffer is buffer for s in self.nest.stores)

    def scratch(self, count: int, type: str) -> V:
        """Room on the stack for so many values, reserved once where the function begins."""
        return self.b.reserve(f"[{count} x {type}]", 64)

    def store(self, spot: Place) -> None:
        """All results of this place."""
        values = [(s, spot.emit(s.value)) for s in self.nest.stores]
        for s, x in values:
            spot.store(s.buffer, s.at, x, s.value.dtype)

    def start(self, lanes: int, spot: Place) -> V:
        """What the reduction starts from: nothing, or the partial sum so far."""
        nest = self.nest
        assert nest.body is not None
        type = vector(type_of(nest.body.dtype), lanes)
        start = Function.const(type, neutral(nest.kind, nest.body.dtype))
        if not nest.partial:
            return start
        assert nest.batch is not None
        b = self.b
        n = spot.scalar(Index.of(nest.batch) % nest.partial)
        first = b.compare("icmp", "eq", n, V("i64", "0"))
        store = nest.stores[0]
        so_far = spot.emit(Load(nest.body.dtype, (), store.buffer, store.at))
        return b.select(first, start, b.splat(so_far, lanes))
