"""Sums of products: one tile of results in registers, loops around it.

Matrix products in all transposes, convolutions and both their gradients are one kind of nest:
``sum of A[...] * B[...]``. One variable of the results, on which only B depends, lies along the
vector lanes; others, on which only A depends, are the rows of a tile, each a number of A broadcast
to all lanes. In a depthwise convolution A depends on the lanes too, the channels: there a row of it
is a vector. Everything else is a loop (batch-reduce GEMM: Georganas et al., "High-Performance Deep
Learning via a Single Building Block", 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trivium.native.expr import Axis, Buffer, Condition, Const, Expr, Exprs, Guard, Load
from trivium.native.index import Index, Var
from trivium.native.nest import Nest, Store
from trivium.native.schedule import Plan, by_stride, collapse, split_parts
from trivium.native.target import Target

# What lies so many bytes apart competes for the same lines of a first-level cache (64 sets of 64
# bytes), and so many of them always find room (8 ways; 12 on newer cores).
APART, WAYS = 4096, 8


@dataclass
class Factor:
    """One of the two factors: a load, and the conditions under which it is not zero."""

    load: Load
    conditions: tuple[Condition, ...]

    @property
    def buffer(self) -> Buffer:
        """Where it is read."""
        return self.load.buffer

    def flat(self) -> Index:
        """Its position in memory."""
        return self.buffer.flat(self.load.at)

    def vars(self) -> set[Var]:
        """The variables it depends on."""
        found: set[Var] = set()
        for index in (*self.load.at, *(c[0] for c in self.conditions)):
            found |= index.vars()
        return found


def factors(body: Expr | None) -> tuple[Factor, Factor] | None:
    """The two factors of a sum of products that can be tiled."""
    if body is None or body.op != "multiply":
        return None
    out = []
    for e in body.args:
        conditions: tuple[Condition, ...] = ()
        if isinstance(e, Guard) and isinstance(zero := e.args[1], Const) and zero.value == 0:
            conditions, e = e.conditions, e.args[0]
        if not isinstance(e, Load):
            return None
        out.append(Factor(e, conditions))
    return out[0], out[1]


def is_product(nest: Nest) -> bool:
    """Could this nest be tiled?"""
    return (
        nest.kind == "sum"
        and nest.body is not None
        and nest.body.dtype.is_floating
        and factors(nest.body) is not None
    )


def tile(nest: Nest, make: Exprs, target: Target) -> tuple[Plan, list[Nest]] | None:
    """A plan for a sum of products, and the copies it wants made before. None: not this way.

    The plan's nest is a copy of ``nest`` that reads those; ``nest`` itself goes on reading what
    it did.
    """
    if not is_product(nest) or not nest.loops:
        return None
    _lay_out(nest)
    split_parts(nest, make, [v for v in (*nest.reduce, *nest.loops) if v is not nest.batch])
    ones = {v: Index({}) for v in nest.reduce if v.extent == 1}
    if ones:
        nest.substitute(make, ones, nest.loops, [v for v in nest.reduce if v.extent > 1])
    where = nest.stores[0].buffer.flat(nest.stores[0].at)
    order = by_stride(where, nest.loops, nest.batch)
    if not order or where.coefficient(order[-1]) != 1 or order[-1] is nest.batch:
        return None
    vec = order[-1]
    pair = factors(nest.body)
    assert pair is not None
    a, b = pair
    swapped = _spread(a, b, vec, nest)
    if swapped:
        a, b = b, a
    if vec not in b.vars() or any(vec in c[0].vars() for c in (*a.conditions, *b.conditions)):
        return None
    if vec in a.vars() and (a.buffer.axes is None or not _in_line(a, vec)):
        return None
    copies: list[Nest] = []
    _open_layout(nest, a, b, vec)
    nest = replace(nest)
    if not _in_line(b, vec):
        made = _relaid(nest, make, b, vec)
        if made is None:
            return None
        copies.append(made)
        pair = factors(nest.body)
        assert pair is not None
        a, b = pair[::-1] if swapped else pair
    # Reduced variables: as they lie in A, farthest outside.
    nest.reduce = by_stride(a.flat(), nest.reduce)
    nest.reduce = collapse(nest, make, nest.reduce, "reduce")
    pair = factors(nest.body)
    assert pair is not None
    a, b = pair[::-1] if swapped else pair
    made_plan = _shape(nest, a, b, vec, order, target, swapped)
    if made_plan is None:
        padded = _padded(nest, make, a)
        again = tile(nest, make, target) if padded is not None else None
        if padded is None or again is None:
            return None
        return again[0], [*copies, padded, *again[1]]
    copies += _packed(nest, make, made_plan, a, b, {c.stores[0].buffer for c in copies})
    return made_plan, copies


def _spread(x: Factor, y: Factor, vec: Var, nest: Nest) -> bool:
    """Is the first factor the one whose numbers lie along the lanes (B)?"""
    if (vec in x.vars()) != (vec in y.vars()):
        return vec in x.vars()
    own = [f.vars() & set(nest.loops) for f in (x, y)]  # the rows are the other's
    return len(own[0]) < len(own[1])


def _in_line(f: Factor, vec: Var) -> bool:
    return f.flat().coefficient(vec) == 1 and f.flat().affine_in(vec)


def _lay_out(nest: Nest) -> None:
    for s in nest.stores:
        if s.buffer.axes is None and s.buffer.place != "held":
            s.buffer.lie()
    pair = factors(nest.body)
    assert pair is not None
    for f in pair:
        if f.buffer.axes is None and f.buffer.place != "held":
            f.buffer.lie()
    for s in nest.stores:
        if s.buffer.axes is None:
            same = [
                t.buffer for t in nest.stores if t.buffer.axes and t.buffer.shape == s.buffer.shape
            ]
            s.buffer.axes = same[0].axes if same else None
        if s.buffer.axes is None:
            s.buffer.lie()


def _open_layout(nest: Nest, a: Factor, b: Factor, vec: Var) -> None:
    """Parameters whose layout is open lie as their first product wants them."""
    for f in (a, b):
        if f.buffer.axes is not None:
            continue
        f.buffer.lie()
        if f is not b:
            continue
        axes: list[Axis] = []
        at = b.load.at
        inner = [*by_stride(a.flat(), nest.reduce), vec]
        for v in [*(v for v in nest.loops if v not in inner), *inner]:
            for axis, index in enumerate(at):
                if c := index.coefficient(v):
                    axes.append(Axis(axis, c, v.extent))
        sizes = [1] * len(at)
        for x in axes:
            sizes[x.axis] *= x.extent
        if tuple(sizes) == b.buffer.shape:
            b.buffer.axes = tuple(axes)


def _relaid(nest: Nest, make: Exprs, b: Factor, vec: Var) -> Nest | None:
    """A copy of B in which ``vec`` is contiguous; the nest reads the copy from now on."""
    at = b.load.at
    axis = next((i for i, index in enumerate(at) if index.coefficient(vec)), None)
    if axis is None or nest.iterations < 8 * b.buffer.size:
        return None
    stride = at[axis].coefficient(vec)
    if stride != 1 and b.buffer.shape[axis] != stride * vec.extent:
        return None
    axes = [x for x in b.buffer.axes or () if x.axis != axis]
    if stride > 1:
        axes.append(Axis(axis, 1, stride))
    inner = b.buffer.shape[axis] // stride
    return _copied(nest, make, b, (*axes, Axis(axis, stride, inner)))


def _copied(nest: Nest, make: Exprs, f: Factor, axes: tuple[Axis, ...]) -> Nest:
    """A copy of a factor that lies as ``axes`` say; the nest reads the copy from now on."""
    old, source = f.load, f.buffer
    copy = Buffer(f"{source.name}_", source.dtype, source.shape, "arena")
    copy.axes = axes

    def change(e: Expr) -> Expr | None:
        return make.load(copy, old.at) if e is old else None

    assert nest.body is not None
    nest.body = make.rewrite(nest.body, change)
    finer = max(source, copy, key=lambda x: len(x.axes or ()))
    loops, place = finer.walk()
    load = make.load(source, place)
    stale = nest.stale & {source}
    return Nest("copy", loops, [Store(copy, place, load)], unit=nest.unit, stale=stale)


def _padded(nest: Nest, make: Exprs, f: Factor) -> Nest | None:
    """A copy of a factor with the zeros around it that its conditions stand for."""
    at, source = f.load.at, f.buffer
    low, size = [0] * len(at), list(source.shape)
    for index, start, stop in f.conditions:
        axis = next((k for k, i in enumerate(at) if i == index), None)
        if axis is None or (start, stop) != (0, source.shape[axis]):
            return None
        first, last = index.bounds()
        low[axis] = min(first, 0)
        size[axis] = max(last + 1, stop) - low[axis]
    if not f.conditions or math.prod(size) > 4 * source.size:
        return None
    if nest.iterations < 4 * math.prod(size):
        return None
    axes = source.axes or ()
    if any(x.divisor != 1 or x.extent != source.shape[x.axis] for x in axes):
        return None
    copy = Buffer(f"{source.name}_padded", source.dtype, tuple(size), "arena")
    copy.axes = tuple(Axis(x.axis, 1, size[x.axis]) for x in axes)
    old, zero = f.load, make.const(0, source.dtype)

    def change(e: Expr) -> Expr | None:
        if isinstance(e, Guard) and e.args[0] is old:
            return make.load(copy, tuple(i - least for i, least in zip(at, low, strict=True)))
        return None

    assert nest.body is not None
    nest.body = make.rewrite(nest.body, change)
    loops, place = copy.walk()
    here = tuple(i + least for i, least in zip(place, low, strict=True))
    inside = tuple((i, 0, n) for i, n, m in zip(here, source.shape, size, strict=True) if n != m)
    value = make.guard(inside, make.load(source, here), zero)
    batch = loops[0] if nest.batch is not None and at[0] == Index.of(nest.batch) else None
    return Nest("pad", loops, [Store(copy, place, value)], batch=batch, unit=nest.unit,
                stale=nest.stale & {source})  # fmt: skip


def _packed(nest: Nest, make: Exprs, plan: Plan, a: Factor, b: Factor,
            own: set[Buffer]) -> list[Nest]:  # fmt: skip
    """Copies of factors whose rows compete for the same lines of the cache.

    Those in ``own`` are copies already: they are only laid out with room between.
    """
    copies: list[Nest] = []
    length = 1
    for v in nest.reduce:
        length *= v.extent
    for f, along in ((b, nest.reduce), (a, [*nest.reduce, *plan.rows[:-1]])):
        if length < 256 or nest.iterations < 256 * f.buffer.size:
            continue
        flat, axes, size = f.flat(), f.buffer.axes or (), f.buffer.dtype.itemsize
        strides = [flat.coefficient(v) * size for v in along]
        if not any(s and s % 2048 == 0 for s in strides) or any(x.spare for x in axes):
            continue
        *outer, last = axes
        if f.buffer in own:
            f.buffer.axes = (*outer, replace(last, spare=16))
            continue
        copies.append(_copied(nest, make, f, (*outer, replace(last, spare=16))))
        pair = factors(nest.body)
        assert pair is not None
        a, b = pair[::-1] if plan.swapped else pair
    return copies


def _shape(nest: Nest, a: Factor, b: Factor, vec: Var, order: list[Var], target: Target,
           swapped: bool) -> Plan | None:  # fmt: skip
    """Rows, height and width of the tile."""
    assert nest.body is not None
    lanes, size = target.lanes(nest.body.dtype), a.buffer.dtype.itemsize
    flat, depends = a.flat(), b.vars()
    free = [v for v in order if v is not vec and v is not nest.batch and v not in depends]
    free = [v for v in free if v in a.vars() and flat.affine_in(v)]
    if not all(flat.affine_in(v) for v in nest.reduce) or not all(
        b.flat().affine_in(v) for v in (*nest.reduce, vec)
    ):
        return None
    vectors = -(-vec.extent // lanes)
    best: tuple[float, list[Var], int, int] | None = None
    for rows in _row_choices(free, a):
        last = rows[-1].extent if rows else 1
        fixed = 1
        for v in rows[:-1]:
            fixed *= v.extent
        for width in range(1, min(vectors, 4) + 1):
            most = (target.registers - 1 - width) // width // fixed
            if rows and flat.coefficient(rows[-1]) * size % APART == 0:
                most = min(most, WAYS // fixed)
            if most < 1:
                continue
            count = -(-last // min(most, last))
            height = -(-last // count)
            cost = _cost(fixed * height, width, last * fixed, vectors) / (last * fixed)
            if any(_watches(c, rows) for c in a.conditions) and count > 8:
                continue
            # Rows that lie side by side in A share its cache lines.
            cost *= 1.0 if not rows or abs(flat.coefficient(rows[-1])) <= 64 else 1.02
            if best is None or cost < best[0]:
                best = (cost, rows, height, width)
    if best is None:
        return None
    _, rows, height, width = best
    if vec in a.vars() and not rows:
        return None  # nothing that B could be kept in registers for
    unrolled = _unrolled(nest, a, rows)
    if unrolled is None:
        return None
    last = rows[-1].extent if rows else 1
    across = Var(f"{vec.name}_tile", -(-vectors // width))
    down = Var(f"{rows[-1].name}_tile" if rows else "tile", -(-last // height))
    others = [v for v in order if v is not vec and v not in rows and v is not nest.batch]
    levels = [*([nest.batch] if nest.batch in order else []), across, *others, down]
    return Plan(nest, "tile", levels, vec, lanes, 1, rows, height, width, down, across, unrolled,
                swapped)  # fmt: skip


def _row_choices(free: list[Var], a: Factor) -> list[list[Var]]:
    choices: list[list[Var]] = [[v] for v in free]
    for i, v in enumerate(free):
        for w in free[i + 1 :]:
            if v.extent * w.extent <= 28:
                choices.append([v, w] if v.extent <= w.extent else [w, v])
    return choices or [[]]


def _cost(height: int, width: int, rows: int, vectors: int) -> float:
    """Cycles for all tiles per step of the reduction: multiply-adds, or loads where they are more.

    Two vector multiply-adds and two loads a cycle, a latency of four: the figures of current x86
    cores (Fog, instruction tables).
    """
    tiles = -(-rows // height) * -(-vectors // width)
    return tiles * max(height * width / 2, (height + width) / 2, 4.0) * (1 + 0.15 / height)


def _watches(condition: Condition, rows: list[Var]) -> bool:
    return any(v in condition[0].vars() for v in rows)


def _unrolled(nest: Nest, a: Factor, rows: list[Var]) -> set[Var] | None:
    """Reduced variables that decide, together with rows, whether A is read: written out."""
    found: set[Var] = set()
    for c in a.conditions:
        if _watches(c, rows):
            others = c[0].vars() - set(rows)
            if not others <= set(nest.reduce):
                return None
            found |= others
    size = 1
    for v in found:
        size *= v.extent
    return found if size <= 16 else None
