"""Plans as LLVM functions. One nest is one function on the arrays that it touches.

``void nest(ptr noalias array0, ..., i64 first, i64 last)`` runs the iterations ``first`` to
``last - 1`` of the levels that tasks share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trivium.dtype import DType
from trivium.native.expr import FOLDS
from trivium.native.express import Place, neutral, operate
from trivium.native.function import Env, NestFunction, arrays
from trivium.native.index import Var
from trivium.native.ir import Module, V, type_of, vector
from trivium.native.microkernel import Tiles
from trivium.native.schedule import Plan


def power_of_two(n: int, most: int) -> int:
    """Enough lanes for ``n`` numbers, ``most`` at most."""
    lanes = 1
    while lanes < n and lanes < most:
        lanes *= 2
    return lanes


class Writer(NestFunction):
    """Writes one plan's function."""

    def write(self) -> str:
        """The whole function, and its name."""
        b, plan = self.b, self.plan
        first, last = b.args[-2:]
        inner = plan.levels[plan.tasks :]
        body = {
            "map": self._map,
            "transpose": self._transpose,
            "rows": self._rows,
            "lanes": self._lanes,
            "tile": self._tile,
        }

        def iteration(it: V, _: list[V]) -> Sequence[V]:
            env: Env = {}
            for level in reversed(plan.outer):
                if level is plan.outer[0]:
                    env[level] = it
                else:
                    env[level] = b.op("urem", it, V("i64", str(level.extent)))
                    it = b.op("udiv", it, V("i64", str(level.extent)))
            self._loops(inner, env, body[plan.how])
            return []

        if plan.outer:
            b.loop(first, last, 1, [], iteration)
        else:
            iteration(V("i64", "0"), [])
        return b.share()

    def _loops(self, levels: Sequence[Var], env: Env, body: Callable[[Env], None]) -> None:
        if not levels:
            body(env)
            return

        def one(i: V, _: list[V]) -> Sequence[V]:
            self._loops(levels[1:], env | {levels[0]: i}, body)
            return []

        if levels[0].extent == 1:
            self._loops(levels[1:], env | {levels[0]: 0}, body)
        else:
            self.b.loop(V("i64", "0"), V("i64", str(levels[0].extent)), 1, [], one)

    def _along(self, var: Var, lanes: int, group: int,
               body: Callable[[V | int, int, int | None], None]) -> None:  # fmt: skip
        """``body(base, vectors, rest)`` over a spread variable; ``rest``: lanes of a last piece."""
        b, full = self.b, var.extent // lanes
        group = max(1, min(group, full))
        whole = full // group * group
        step = group * lanes
        if whole == group:
            body(0, group, None)
        elif whole:

            def one(i: V, _: list[V]) -> Sequence[V]:
                body(i, group, None)
                return []

            b.loop(V("i64", "0"), V("i64", str(whole * lanes)), step, [], one)
        if full > whole:
            body(whole * lanes, full - whole, None)
        if rest := var.extent - full * lanes:
            body(full * lanes, 1, rest)

    def _mask(self, lanes: int, rest: int | None) -> V | None:
        return None if rest is None else self.b.lanes_of("i1", [k < rest for k in range(lanes)])

    def _spot(self, env: Env, lanes: int, mask: V | None = None, acc: V | None = None) -> Place:
        vec = self.plan.vec if lanes else None
        return Place(self.b, self.pointers, env, vec, lanes, mask, acc)

    # -- maps ------------------------------------------------------------------------------------
    def _map(self, env: Env) -> None:
        vec = self.plan.vec
        if vec is None:
            self.store(self._spot(env, 0))
            return
        lanes = power_of_two(vec.extent, self.plan.lanes)

        def body(base: V | int, count: int, rest: int | None) -> None:
            at = base if isinstance(base, V) else V("i64", str(base))
            self.store(self._spot(env | {vec: at}, lanes, self._mask(lanes, rest)))

        self._along(vec, lanes, 1, body)

    def _transpose(self, env: Env) -> None:
        """A copy whose lanes lie along ``vec`` there and along another variable here."""
        plan, b, store = self.plan, self.b, self.nest.stores[0]
        vec, other, n = plan.vec, plan.rows[0], plan.lanes
        assert vec is not None

        def square(v: V | int, u: V | int, vs: int, us: int) -> None:
            base = {vec: v if isinstance(v, V) else V("i64", str(v)),
                    other: u if isinstance(u, V) else V("i64", str(u))}  # fmt: skip
            rows = []
            for k in range(n):  # row k: vec + k fixed, lanes along the other
                here = env | base | {vec: b.op("add", base[vec], V("i64", str(min(k, vs - 1))))}
                mask = self._mask(n, us if us < n else None)
                rows.append(Place(b, self.pointers, here, other, n, mask).emit(store.value))
            d = n // 2
            while d:
                rows = self._exchanged(rows, d)
                d //= 2
            for k in range(us):
                here = env | base | {other: b.op("add", base[other], V("i64", str(k)))}
                mask = self._mask(n, vs if vs < n else None)
                Place(b, self.pointers, here, vec, n, mask).store(store.buffer, store.at, rows[k],
                                                                  store.value.dtype)  # fmt: skip

        def along(v: V | int, _: int, vs: int | None) -> None:
            self._along(other, n, 1, lambda u, _, us: square(v, u, vs or n, us or n))

        self._along(vec, n, 1, along)

    def _exchanged(self, rows: list[V], d: int) -> list[V]:
        """One step of a transposition: blocks of d x d off the diagonal change places."""
        out, n = list(rows), len(rows)
        for k in range(n):
            if k & d:
                continue
            x, y = rows[k], rows[k + d]
            first = [n + i - d if i & d else i for i in range(n)]
            second = [n + i if i & d else i + d for i in range(n)]
            for at, index in ((k, first), (k + d, second)):
                mask = ", ".join(f"i32 {i}" for i in index)
                out[at] = self.b.value(x.type, f"shufflevector {x}, {y}, <{n} x i32> <{mask}>")
        return out

    # -- reductions ------------------------------------------------------------------------------
    def _reduced(self, variables: Sequence[Var], env: Env, carried: list[V],
                 body: Callable[[Env, list[V]], list[V]]) -> list[V]:  # fmt: skip
        """Loops over reduced variables with carried values."""
        if not variables:
            return body(env, carried)

        def one(i: V, now: list[V]) -> list[V]:
            return self._reduced(variables[1:], env | {variables[0]: i}, now, body)

        return self.b.loop(V("i64", "0"), V("i64", str(variables[0].extent)), 1, carried, one, True)

    def _rows(self, env: Env) -> None:
        """Results in the lanes, several vectors at once: their additions overlap."""
        vec = self.plan.vec
        if self.nest.kind == "argmax":
            self._argmax(env)
            return
        if vec is None:
            self._group(env, None, 1, 0, None)
            return
        lanes = power_of_two(vec.extent, self.plan.lanes)
        self._along(
            vec, lanes, 4, lambda base, count, rest: self._group(env, base, count, lanes, rest)
        )

    def _group(
        self, env: Env, base: V | int | None, count: int, lanes: int, rest: int | None
    ) -> None:
        nest, vec, mask = self.nest, self.plan.vec, self._mask(lanes, rest)
        body = nest.body
        assert body is not None
        places = [env]
        if base is not None and vec is not None:
            at = base if isinstance(base, V) else V("i64", str(base))
            starts = [
                at,
                *(self.b.op("add", at, V("i64", str(k * lanes))) for k in range(1, count)),
            ]
            places = [env | {vec: s} for s in starts]

        def step(inner: Env, carried: list[V]) -> list[V]:
            out = []
            for place, acc in zip(places, carried, strict=True):
                x = self._spot(place | inner, lanes, mask).wide(body, None)
                out.append(self._join(acc, x, body.dtype))
            return out

        first = [self.start(lanes, self._spot(p, lanes, mask)) for p in places]
        accs = self._reduced(nest.reduce, {}, first, step)
        for place, acc in zip(places, accs, strict=True):
            self.store(self._spot(place, lanes, mask, acc))

    def _argmax(self, env: Env) -> None:
        vec, nest, b = self.plan.vec, self.nest, self.b
        body = nest.body
        assert body is not None
        lanes = power_of_two(vec.extent, self.plan.lanes) if vec is not None else 0

        def run(base: V | int | None, count: int, rest: int | None) -> None:
            mask, here = self._mask(lanes, rest), dict(env)
            if base is not None and vec is not None:
                here[vec] = base if isinstance(base, V) else V("i64", str(base))

            def step(inner: Env, carried: list[V]) -> list[V]:
                x = self._spot(here | inner, lanes, mask).wide(body, None)
                better = operate(b, "beats", [x, carried[0]], body.dtype, body.dtype)
                i = inner[nest.reduce[0]]
                assert isinstance(i, V)
                return [b.select(better, x, carried[0]),
                        b.select(better, b.splat(i, lanes), carried[1])]  # fmt: skip

            start = here | {nest.reduce[0]: 0}
            first = self._spot(start, lanes, mask).wide(body, None)
            zero = self.b.const(vector("i64", lanes), 0)
            found = self._reduced(nest.reduce, {}, [first, zero], step)
            self.store(self._spot(here, lanes, mask, found[1]))

        if vec is None:
            run(None, 1, None)
        else:
            self._along(vec, lanes, 1, run)

    def _lanes(self, env: Env) -> None:
        """Four vectors of partial results along what is reduced, folded in a fixed order."""
        nest, b, vec = self.nest, self.b, self.plan.vec
        body = nest.body
        assert body is not None and vec is not None
        lanes = power_of_two(vec.extent, self.plan.lanes)
        start = self.b.const(vector(type_of(body.dtype), lanes), neutral(nest.kind, body.dtype))
        accs = [start] * (4 if vec.extent >= 4 * lanes else 1)

        def value(place: Env, base: V, k: int, rest: int | None) -> V:
            at = base if k == 0 else b.op("add", base, V("i64", str(k * lanes)))
            mask = self._mask(lanes, rest)
            x = self._spot(place | {vec: at}, lanes, mask).wide(body, None)
            return x if mask is None else b.select(mask, x, start)

        def outer(inner: Env, carried: list[V]) -> list[V]:
            now = list(carried)
            place = env | inner
            n = len(now)
            whole = vec.extent // (n * lanes) * n * lanes

            def one(i: V, held: list[V]) -> list[V]:
                return [
                    self._join(a, value(place, i, k, None), body.dtype) for k, a in enumerate(held)
                ]

            if whole:
                now = b.loop(V("i64", "0"), V("i64", str(whole)), n * lanes, now, one, True)
            for k, at in enumerate(range(whole, vec.extent, lanes)):
                left = vec.extent - at
                x = value(place, V("i64", str(at)), 0, left if left < lanes else None)
                now[k % n] = self._join(now[k % n], x, body.dtype)
            return now

        accs = self._reduced(nest.reduce[:-1], {}, accs, outer)
        while len(accs) > 1:
            accs = [
                self._join(x, y, body.dtype) for x, y in zip(accs[::2], accs[1::2], strict=True)
            ]
        total = self._fold(accs[0], body.dtype)
        spot = self._spot(env, 0, None, total)
        if nest.partial:
            spot.acc = self._join(self.start(0, self._spot(env, 0)), total, body.dtype)
        self.store(spot)

    def _join(self, x: V, y: V, dtype: DType) -> V:
        op = FOLDS[self.nest.kind]
        assert op is not None
        if dtype == "bool":
            return self.b.op("or" if self.nest.kind == "max" else "and", x, y)
        return operate(self.b, op, [x, y], dtype, dtype)

    def _fold(self, x: V, dtype: DType) -> V:
        """All lanes into one number, halves onto halves."""
        b = self.b
        n = x.lanes
        while n > 1:
            n //= 2
            index = ", ".join(f"i32 {k + n if k < n else 0}" for k in range(x.lanes))
            text = f"shufflevector {x}, {x.type} poison, <{x.lanes} x i32> <{index}>"
            x = self._join(x, b.value(x.type, text), dtype)
        return b.value(x.element, f"extractelement {x}, i64 0")

    def _tile(self, env: Env) -> None:
        Tiles(self).write(env)


def write(module: Module, plan: Plan, name: str) -> str:
    """Have the plan's function in the module; ``name`` is for a new one. Under which name it is."""
    return Writer(module, plan, name).write()


__all__ = ["arrays", "write"]
