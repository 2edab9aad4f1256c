"""The inside of a tiled sum of products: a block of results in registers.

Every step of the reduction loads ``width`` vectors of B, broadcasts one number of A for each row
and does ``rows x width`` multiply-adds. Rows and columns that are left over get tiles of their own
size; rows for which A lies outside the image (padding) are left out where they are known to.
"""

from __future__ import annotations

import contextlib
import itertools

from trivium.native.contract import Factor, factors
from trivium.native.expr import Condition
from trivium.native.express import Place, memory_type
from trivium.native.function import Env, NestFunction
from trivium.native.index import Index, Var
from trivium.native.ir import Function, V, type_of, vector

Kind = tuple[V | None, int, bool]
UNROLL = 16  # multiply-adds that a step of the innermost loop should have at least
LONG = 12  # the cost from which an epilogue is a loop


class Tiles:
    """All tiles of one plan."""

    def __init__(self, writer: NestFunction):
        self.w, self.b, self.plan, self.nest = writer, writer.b, writer.plan, writer.nest
        pair = factors(self.nest.body)
        assert pair is not None and self.plan.vec is not None
        self.a, self.f = pair[::-1] if self.plan.swapped else pair
        self.conditions = [*self.a.conditions, *self.f.conditions]
        self.rowwise = [c for c in self.conditions if self._by_row(c)]
        self.plain = [c for c in self.conditions if not self._by_row(c)]

    def _by_row(self, c: Condition) -> bool:
        return any(v in c[0].vars() for v in self.plan.rows)

    def write(self, env: Env) -> None:
        """Which tile this is, and its code."""
        p = self.plan
        assert p.vec is not None and p.down is not None and p.across is not None
        last = p.rows[-1].extent if p.rows else 1
        vectors = -(-p.vec.extent // p.lanes)
        ragged = p.vec.extent % p.lanes
        for wide, width, masked in self._kinds(p.across, env, vectors, bool(ragged)):
            with self._if(wide):
                for tall, height, start in self._heights(env, last):
                    with self._if(tall):
                        self._one(env, height, width, ragged if masked else 0, start)

    def _if(self, condition: V | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if condition is None else self.b.when(condition)

    def _kinds(self, across: Var, env: Env, vectors: int, ragged: bool) -> list[Kind]:
        """Tiles by width: (which they are, vectors, is the last of them not full?)."""
        width = self.plan.width
        rest = vectors - (across.extent - 1) * width
        if across.extent == 1:
            return [(None, rest, ragged)]
        if rest == width and not ragged:
            return [(None, width, False)]
        at, end = env[across], V("i64", str(across.extent - 1))
        assert isinstance(at, V)
        return [
            (self.b.compare("icmp", "slt", at, end), width, False),
            (self.b.compare("icmp", "eq", at, end), rest, ragged),
        ]

    def _heights(self, env: Env, last: int) -> list[tuple[V | None, int, int | None]]:
        """(condition, rows, first row where it has to be known)."""
        p, b = self.plan, self.b
        assert p.down is not None
        count, height = p.down.extent, p.height
        rest = last - (count - 1) * height
        if count == 1:
            return [(None, rest, 0)]
        at = env[p.down]
        assert isinstance(at, V)
        if self.rowwise:  # every position has its own pattern of rows that are read
            here = [b.compare("icmp", "eq", at, V("i64", str(k))) for k in range(count)]
            heights = [height] * (count - 1) + [rest]
            return [(c, heights[k], k * height) for k, c in enumerate(here)]
        if rest == height:
            return [(None, height, None)]
        end = V("i64", str(count - 1))
        return [(b.compare("icmp", "slt", at, end), height, None),
                (b.compare("icmp", "eq", at, end), rest, None)]  # fmt: skip

    # -- one tile --------------------------------------------------------------------------------
    def _one(self, env: Env, height: int, width: int, ragged: int, start: int | None) -> None:
        p, b = self.plan, self.b
        assert p.vec is not None and p.across is not None and p.down is not None
        first = env[p.across]
        column = V("i64", "0")
        if isinstance(first, V):
            column = b.op("mul nsw", first, V("i64", str(p.width * p.lanes)))
        if start is None:
            at = env[p.down]
            assert isinstance(at, V)
            top: V | int = b.op("mul nsw", at, V("i64", str(p.height)))
        else:
            top = start
        tile = Tile(self, env, height, width, ragged, top, column)
        accs = tile.run()
        tile.store(accs)


class Tile:
    """One size of tile: its rows, its columns, its code."""

    def __init__(self, tiles: Tiles, env: Env, height: int, width: int, ragged: int,
                 top: V | int, column: V):  # fmt: skip
        self.t, self.b, self.env = tiles, tiles.b, dict(env)
        self.width, self.ragged, self.top, self.column = width, ragged, top, column
        p = tiles.plan
        self.lanes, self.vec = p.lanes, p.vec
        choices = [range(v.extent) for v in p.rows[:-1]] + ([range(height)] if p.rows else [])
        self.rows = list(itertools.product(*choices))
        assert tiles.nest.body is not None and self.vec is not None
        self.dtype = tiles.nest.body.dtype
        self.type = vector(type_of(self.dtype), self.lanes)
        self.env[self.vec] = column
        self.static: dict[Var, int] = {}

    def _row_env(self, row: tuple[int, ...]) -> Env:
        """The rows' variables for one row."""
        p = self.t.plan
        out: Env = dict(zip(p.rows[:-1], row[:-1], strict=True)) if p.rows else {}
        if p.rows:
            top = self.top
            if isinstance(top, int):
                out[p.rows[-1]] = top + row[-1]
            else:
                offset = V("i64", str(row[-1]))
                out[p.rows[-1]] = top if row[-1] == 0 else self.b.op("add nsw", top, offset)
        return out

    def run(self) -> list[V]:
        """The whole reduction."""
        t, nest = self.t, self.t.nest
        accs = self._start()
        order = [*(v for v in nest.reduce if v not in t.plan.unrolled)]
        inner = order[-1:] if order else []
        order = [*order[:-1], *(v for v in nest.reduce if v in t.plan.unrolled), *inner]
        return self._checked(set(), order, accs)

    def _start(self) -> list[V]:
        nest = self.t.nest
        count = len(self.rows) * self.width
        if not nest.partial:
            return [Function.const(self.type, 0)] * count
        out = []
        for row, j in itertools.product(self.rows, range(self.width)):
            out.append(self.t.w.start(self.lanes, self._spot(row, j, None)))
        return out

    def _bound(self, c: Condition, bound: set[Var]) -> bool:
        return (c[0].vars() & set(self.t.nest.reduce)) <= bound

    def _checked(self, before: set[Var], order: list[Var], accs: list[V],
                 now: Var | None = None) -> list[V]:  # fmt: skip
        """What follows, if the conditions that are decided by now hold."""
        bound = before | ({now} if now is not None else set())
        fresh = [c for c in self.t.plain if self._bound(c, bound)
                 and (now is None or not self._bound(c, before))]  # fmt: skip
        if not fresh:
            return self._levels(bound, order, accs)
        spot = Place(self.b, self.t.w.pointers, self.env)
        holds = spot.holds(tuple(fresh))
        return self.b.choose(holds, accs, lambda: self._levels(bound, order, accs))

    def _levels(self, bound: set[Var], order: list[Var], accs: list[V]) -> list[V]:
        if not order:
            return self._multiply(accs)
        var, rest = order[0], order[1:]
        if var in self.t.plan.unrolled:
            for k in range(var.extent):
                self.env[var], self.static[var] = k, k
                if self._alive(bound | {var}):
                    accs = self._checked(bound, rest, accs, var)
            del self.static[var]
            return accs
        step = 1 if rest else -(-UNROLL // max(len(accs), 1))
        if not rest and var.extent <= max(2 * step, 4):
            return self._straight(bound, var, V("i64", "0"), var.extent, accs)
        whole = var.extent // step * step

        def one(i: V, now: list[V]) -> list[V]:
            if step == 1:
                self.env[var] = i
                return self._checked(bound, rest, now, var)
            return self._straight(bound, var, i, step, now)

        accs = self.b.loop(V("i64", "0"), V("i64", str(whole)), step, accs, one, True)
        return self._straight(bound, var, V("i64", str(whole)), var.extent - whole, accs)

    def _straight(self, bound: set[Var], var: Var, base: V, count: int, accs: list[V]) -> list[V]:
        for k in range(count):
            if base.ref[0] != "%":
                self.env[var] = int(base.ref) + k
            else:
                self.env[var] = base if k == 0 else self.b.op("add nsw", base, V("i64", str(k)))
            accs = self._checked(bound, [], accs, var)
        return accs

    def _alive(self, bound: set[Var]) -> bool:
        """Is there a row that is read?"""
        return any(self._reads(row, bound) for row in self.rows)

    def _reads(self, row: tuple[int, ...], bound: set[Var] | None = None) -> bool:
        """Does this row read A here? What is not decided yet may."""
        here = {v: x for v, x in self._row_env(row).items() if isinstance(x, int)} | self.static
        for index, low, high in self.t.rowwise:
            if index.vars() <= here.keys():
                value = index.replace({v: Index({}, x) for v, x in here.items()}).as_int()
                assert value is not None
                if not low <= value < high:
                    return False
            else:
                assert bound is not None, "a condition on rows was not decided"
        return True

    def _multiply(self, accs: list[V]) -> list[V]:
        b, t = self.b, self.t
        rows = [(k, row) for k, row in enumerate(self.rows) if self._reads(row)]
        if not rows:
            return accs
        columns = [self._column(j) for j in range(self.width)]
        base, first = self._address(t.a, rows[0][1])
        out = list(accs)
        kind = memory_type(self.dtype)
        flat = t.a.flat()
        size = self.dtype.itemsize
        for k, row in rows:
            moves = zip(t.plan.rows, row, first, strict=True)
            step = sum(flat.coefficient(v) * (x - y) for v, x, y in moves)
            at = base if step == 0 else b.gep(kind, base, V("i64", str(step)))
            if t.plan.vec not in t.a.vars():
                x = [b.splat(b.load(kind, at, size), self.lanes)] * self.width
            else:
                x = [self._vector(kind, at, j) for j in range(self.width)]
            for j, column in enumerate(columns):
                out[k * self.width + j] = b.fma(x[j], column, out[k * self.width + j])
        return out

    def _vector(self, kind: str, at: V, j: int) -> V:
        """The vector number j of those that begin here."""
        b, size, mask = self.b, self.dtype.itemsize, self._mask(j)
        at = b.gep(kind, at, V("i64", str(j * self.lanes))) if j else at
        if mask is None:
            return b.load(self.type, at, size)
        return b.masked_load(self.type, at, size, mask, V(self.type, "zeroinitializer"))

    def _address(self, f: Factor, row: tuple[int, ...]) -> tuple[V, tuple[int, ...]]:
        spot = Place(self.b, self.t.w.pointers, self.env | self._row_env(row))
        kind, (pointer, flat) = memory_type(f.buffer.dtype), spot.where(f.buffer, f.load.at)
        return self.b.gep(kind, pointer, spot.scalar(flat)), row

    def _column(self, j: int) -> V:
        """One vector of B."""
        f, spot = self.t.f, Place(self.b, self.t.w.pointers, self.env)
        kind, (start, flat) = memory_type(f.buffer.dtype), spot.where(f.buffer, f.load.at)
        return self._vector(kind, self.b.gep(kind, start, spot.scalar(flat)), j)

    def _mask(self, j: int) -> V | None:
        if j < self.width - 1 or not self.ragged:
            return None
        return self.b.lanes_of("i1", [k < self.ragged for k in range(self.lanes)])

    def _spot(self, row: tuple[int, ...] | None, j: int, acc: V | None) -> Place:
        assert self.vec is not None
        at = self.column
        if j:
            at = self.b.op("add nsw", at, V("i64", str(j * self.lanes)))
        env = self.env | ({} if row is None else self._row_env(row)) | {self.vec: at}
        return Place(self.b, self.t.w.pointers, env, self.vec, self.lanes, self._mask(j), acc)

    def store(self, accs: list[V]) -> None:
        """Epilogue and stores, vector by vector; a long epilogue is written once, as a loop."""
        places = list(itertools.product(self.rows, range(self.width)))
        long = sum(s.value.cost for s in self.t.nest.stores) > LONG and len(self.t.plan.rows) == 1
        if not long or len(self.rows) == 1:
            for (row, j), acc in zip(places, accs, strict=True):
                self.t.w.store(self._spot(row, j, acc))
            return
        b, kind = self.b, type_of(self.dtype)
        size = self.lanes * self.dtype.itemsize
        scratch = self.t.w.scratch(len(accs), self.type)
        for k, acc in enumerate(accs):
            at = b.gep(kind, scratch, V("i64", str(k * self.lanes)))
            b.store(acc, at, size)

        def one(i: V, _: list[V]) -> list[V]:
            top = V("i64", str(self.top)) if isinstance(self.top, int) else self.top
            self.env[self.t.plan.rows[0]] = b.op("add nsw", top, i)
            for j in range(self.width):
                k = b.op("mul nsw", i, V("i64", str(self.width * self.lanes)))
                k = b.op("add nsw", k, V("i64", str(j * self.lanes)))
                acc = b.load(self.type, b.gep(kind, scratch, k), size)
                self.t.w.store(self._spot(None, j, acc))
            return []

        b.loop(V("i64", "0"), V("i64", str(len(self.rows))), 1, [], one, True)
