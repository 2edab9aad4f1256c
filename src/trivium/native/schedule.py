"""How each nest runs: loop order, which variable goes into vector lanes, what is one task.

Five ways. ``map``: one result per place, lanes along the array; ``transpose``: a copy with other
neighbours. ``rows``: a reduction with results
in the lanes. ``lanes``: a reduction along the lanes, folded at the end. ``tile``: a sum of products
with a block of results in registers (``contract.py`` plans those).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trivium.native.expr import Buffer, Exprs, Load
from trivium.native.index import Index, Part, Var
from trivium.native.nest import Nest
from trivium.native.target import Target

PIECES = 16  # a loop that cannot be shared out into so many pieces is divided


@dataclass
class Plan:
    """A nest with everything decided. The outermost ``levels`` are what tasks are made of."""

    nest: Nest
    how: str  # "map", "transpose", "rows", "lanes" or "tile"
    levels: list[Var]  # all loops outside the vector or tile, outermost first
    vec: Var | None
    lanes: int
    tasks: int = 1  # how many of the levels are shared out
    # tiles only:
    rows: list[Var] = field(default_factory=list)  # the variables of a tile's rows
    height: int = 1  # how many values of the last row variable are one tile
    width: int = 1  # how many vectors wide a tile is
    down: Var | None = None  # counts tiles along the last row variable
    across: Var | None = None  # counts tiles along ``vec``
    unrolled: set[Var] = field(default_factory=set)  # reduced variables written out
    swapped: bool = False  # the body's second factor is the one that is broadcast

    @property
    def outer(self) -> list[Var]:
        """The levels that tasks share."""
        return self.levels[: self.tasks]

    def described(self) -> str:
        """In a few words."""
        if self.how == "tile":
            rows = self.height * int(np.prod([v.extent for v in self.rows[:-1]]))
            return f"tiles of {rows} x {self.width * self.lanes} in registers"
        if self.how == "transpose":
            return f"squares of {self.lanes} x {self.lanes} turned in registers"
        if self.vec is None:
            return "one number at a time"
        along = "results" if self.how != "lanes" else "what is reduced"
        return f"{along} in lanes along {self.vec}"

    @property
    def count(self) -> int:
        """How many iterations the shared levels have together."""
        return int(np.prod([v.extent for v in self.outer], dtype=np.int64))


def split_parts(nest: Nest, make: Exprs, wanted: Sequence[Var]) -> None:
    """Write variables as sums of several, so that quotients and remainders of them disappear."""
    for var in wanted:
        sizes = _chain(nest, var)
        if not sizes:
            continue
        # k with k // 25, k // 5 % 5, k % 5 becomes 25 a + 5 b + c.
        bounds = [1, *sizes, var.extent]
        parts = [Var(var.name, high // low) for low, high in itertools.pairwise(bounds)]
        total = Index({})
        for part, stride in zip(parts, bounds, strict=False):
            total += Index.of(part) * stride
        fresh = parts[::-1]
        loops = [x for v in nest.loops for x in (fresh if v is var else [v])]
        reduce = [x for v in nest.reduce for x in (fresh if v is var else [v])]
        nest.substitute(make, {var: total}, loops, reduce)


def _chain(nest: Nest, var: Var) -> list[int]:
    """The divisors, each dividing the next and the extent, by which a variable is split."""
    found: set[int] = set()

    def visit(index: Index) -> int | None:
        """The divisor so far when the Index is var or quotients of it."""
        if index.terms == {var: 1} and not index.const:
            return 1
        if len(index.terms) == 1 and not index.const:
            ((atom, c),) = index.terms.items()
            if c == 1 and isinstance(atom, Part):
                inner = visit(atom.inner)
                if inner is None:
                    return None
                found.add(inner * atom.number)
                return inner * atom.number if atom.kind == "//" else None
        if len(index.terms) > 1 or index.const:
            for atom in index.terms:
                visit(Index({atom: 1}))
        return None

    for index in nest.indices(flat=False):
        visit(index)
    sizes = sorted(n for n in found if 1 < n < var.extent)
    ok = all(b % a == 0 for a, b in zip(sizes, [*sizes[1:], var.extent], strict=False))
    return sizes if ok else []


def collapse(nest: Nest, make: Exprs, order: list[Var], group: str) -> list[Var]:
    """Neighbouring loops that walk through memory as one become one. -> the new order."""
    k = 0
    while k + 1 < len(order):
        out, inn = order[k], order[k + 1]
        joined = all(
            i.affine_in(out)
            and i.affine_in(inn)
            and i.coefficient(out) == i.coefficient(inn) * inn.extent
            for i in nest.indices()
        )
        if not joined:
            k += 1
            continue
        one = Var(inn.name, out.extent * inn.extent)
        env = {out: Index.of(one) // inn.extent, inn: Index.of(one) % inn.extent}
        order[k : k + 2] = [one]
        old = nest.loops if group == "loops" else nest.reduce
        new = [v for v in old if v is not out and v is not inn] + [one]
        loops, reduce = (new, nest.reduce) if group == "loops" else (nest.loops, new)
        nest.substitute(make, env, loops, reduce)
        k = max(k - 1, 0)
    return order


def by_stride(buffer_index: Index, loops: Sequence[Var], first: Var | None = None) -> list[Var]:
    """Loops with the ones that move farthest in memory outside; ``first`` outside all."""

    def far(v: Var) -> int:
        if v is first:
            return 2**62
        if buffer_index.affine_in(v):
            return abs(buffer_index.coefficient(v))
        return min((a.number for a in buffer_index.terms if isinstance(a, Part)), default=1)

    return sorted(loops, key=lambda v: -far(v))


def plan(nest: Nest, make: Exprs, target: Target) -> Plan:
    """A map or a general reduction, ordered for memory."""

    def where() -> Index:
        return nest.stores[0].buffer.flat(nest.stores[0].at)

    def innermost(order: list[Var]) -> Var | None:
        if not order or order[-1] is nest.batch or where().coefficient(order[-1]) != 1:
            return None
        return order[-1]

    lanes = target.lanes(nest.stores[0].buffer.dtype)
    order = by_stride(where(), nest.loops, nest.batch)
    if (along := innermost(order)) is not None:
        split_parts(nest, make, [along])
        order = by_stride(where(), nest.loops, nest.batch)
    fixed = 1 if nest.batch is not None and order and order[0] is nest.batch else 0
    order = order[:fixed] + collapse(nest, make, order[fixed:], "loops")
    if ones := {v: Index({}) for v in nest.reduce if v.extent == 1}:
        nest.substitute(make, ones, nest.loops, [v for v in nest.reduce if v.extent > 1])
    if nest.kind != "map":
        nest.reduce = collapse(nest, make, list(nest.reduce), "reduce")
    vec = innermost(order)
    if nest.kind != "map":
        return _reduction(nest, order, vec, target)
    levels = order[:-1] if vec is not None else order
    if vec is not None and vec.extent >= 4096 and _few(levels):
        outer, vec = _divided(nest, make, vec, lanes, 4)
        levels += outer
    turned = _turned(nest, vec, lanes)
    if turned is not None and turned is not nest.batch:
        levels = [v for v in levels if v is not turned]
        if nest.iterations >= 2**16 and _few(levels):
            pieces = min(PIECES, turned.extent // lanes)
            outer, turned = _divided(nest, make, turned, lanes, pieces)
            levels[fixed:fixed] = outer
        return Plan(nest, "transpose", levels, vec, lanes, rows=[turned])
    return Plan(nest, "map", levels, vec, lanes if vec is not None else 0)


def _few(levels: Sequence[Var]) -> bool:
    return int(np.prod([v.extent for v in levels])) < PIECES


def _divided(nest: Nest, make: Exprs, var: Var, lanes: int, least: int) -> tuple[list[Var], Var]:
    """A loop as a loop over at least so many pieces, so that threads can share them."""
    most = min(1024, var.extent // least)
    sizes = [n for n in range(lanes, most + 1, lanes) if var.extent % n == 0]
    if not sizes:
        return [], var
    outer, inner = Var(f"{var.name}_piece", var.extent // sizes[-1]), Var(var.name, sizes[-1])
    loops = [x for v in nest.loops for x in ((outer, inner) if v is var else (v,))]
    nest.substitute(make, {var: Index.of(outer) * inner.extent + inner}, loops, nest.reduce)
    return [outer], inner


def _turned(nest: Nest, vec: Var | None, lanes: int) -> Var | None:
    """In a copy whose source is contiguous along another variable than its result: that one."""
    (first, *more) = nest.stores
    e = first.value
    if vec is None or more or not isinstance(e, Load) or vec.extent < lanes:
        return None
    flat = e.buffer.flat(e.at)
    if flat.coefficient(vec) in (0, 1) or not all(flat.affine_in(v) for v in nest.loops):
        return None
    if sum(v.extent for v in nest.loops) < 4 * lanes:
        return None
    if e.buffer.dtype.numpy.itemsize < 4 or e.dtype != first.buffer.dtype:
        return None
    found = [v for v in nest.loops if flat.coefficient(v) == 1 and v.extent >= lanes]
    return found[0] if found else None


def _reduction(nest: Nest, order: list[Var], vec: Var | None, target: Target) -> Plan:
    assert nest.body is not None
    flats = [e.buffer.flat(e.at) for e in nest.reads() if isinstance(e, Load)]
    lanes = target.lanes(nest.body.dtype)

    def score(v: Var) -> int:
        return sum(1 if i.affine_in(v) and abs(i.coefficient(v)) <= 1 else -1 for i in flats)

    # The lanes go along what is contiguous: results if they are, else what is reduced.
    inner = max(nest.reduce, key=lambda v: (score(v), v.extent), default=None)
    good = vec is not None and (inner is None or score(vec) >= score(inner)) and vec.extent >= 4
    if good or nest.kind == "argmax" or inner is None:
        use = vec if good else None
        levels = order[:-1] if use is not None else order
        return Plan(nest, "rows", levels, use, lanes if use is not None else 0)
    nest.reduce = [v for v in nest.reduce if v is not inner] + [inner]
    return Plan(nest, "lanes", order, inner, lanes)


def lay_alike(nest: Nest) -> None:
    """Arrays whose layout is still open follow the nest's first settled store, or the default."""
    settled = next((s.buffer for s in nest.stores if s.buffer.axes is not None), None)
    loads = [e.buffer for e in nest.reads()]
    if settled is None:
        shape = nest.stores[0].buffer.shape
        settled = next((b for b in loads if b.axes is not None and b.shape == shape
                        and b.place != "input"), None)  # fmt: skip
    for buffer in [*(s.buffer for s in nest.stores), *loads]:
        if buffer.axes is not None:
            continue
        if settled is not None and buffer.shape == settled.shape and _own(nest, buffer):
            buffer.axes = settled.axes
        else:
            buffer.lie()


def _own(nest: Nest, buffer: Buffer) -> bool:
    """Is the buffer met element by element, as the store is?"""
    return buffer.place == "held" or any(s.buffer is buffer for s in nest.stores)
