"""The order of the work, and what runs together: phases of independent tasks.

A phase is what the threads do between two points where they wait for each other. Nests that go
over the same batch run together, image by image, while what one wrote is still in the cache of the
core that the next runs on. Small nests run one after the other on one thread. What the tasks are
depends on shapes only, never on how many threads there are: so the bits are always the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trivium import dtype as dt
from trivium.native import contract
from trivium.native.expr import Axis, Buffer, Expr, Gather, Load, Read, parts
from trivium.native.fuse import Fused, Kernel
from trivium.native.index import Index, Var
from trivium.native.nest import Nest, Store
from trivium.native.schedule import Plan, lay_alike, plan
from trivium.native.target import Target

GRAIN = 20_000  # cycles that are worth waking another thread for
GROUPS = 8  # partial sums of a batch
SHARES = 16  # tasks of a phase, about

Work = Nest | Kernel


@dataclass
class Phase:
    """Plans that run together. ``batch`` is the size of the batch that its tasks divide."""

    plans: list[Plan] = field(default_factory=list)
    kernel: Kernel | None = None
    batch: int = 0
    tasks: int = 1
    chunk: int = 0  # how many iterations of the shared levels are one task

    @property
    def checks(self) -> bool:
        """Does it only look for indices out of range?"""
        return bool(self.plans) and self.plans[0].nest.watches

    def buffers(self) -> set[Buffer]:
        """Every array that it touches."""
        if self.kernel is not None:
            return {*self.kernel.reads, *self.kernel.writes}
        found: set[Buffer] = set()
        for p in self.plans:
            found |= {s.buffer for s in p.nest.stores} | {e.buffer for e in p.nest.reads()}
        return found


def reads(w: Work) -> set[Buffer]:
    """The arrays that it reads."""
    return set(w.reads) if isinstance(w, Kernel) else {e.buffer for e in w.reads()}


def writes(w: Work) -> set[Buffer]:
    """The arrays that it writes."""
    return set(w.writes) if isinstance(w, Kernel) else {s.buffer for s in w.stores}


def arrange(fused: Fused, target: Target) -> list[Phase]:
    """The whole work as phases."""
    work = _merged(fused)
    _update_in_place(fused, work)
    planned: list[tuple[Work, Plan | None]] = []
    for w in work:
        if isinstance(w, Kernel):
            planned.append((w, None))
            continue
        if any(v.extent == 0 for v in w.loops):
            continue  # nothing to do
        for nest in _in_groups(fused, w):
            nest.batch = _batch(nest)
            tiled = contract.tile(nest, fused.make, target)
            if tiled is None:
                lay_alike(nest)
                planned.append((nest, plan(nest, fused.make, target)))
                continue
            tiles, copies = tiled
            planned += [(copy, plan(copy, fused.make, target)) for copy in copies]
            planned.append((tiles.nest, tiles))
    return _phases(planned)


# -- what follows on what --------------------------------------------------------------------------
def _merged(fused: Fused) -> list[Work]:
    """Maps over the same places become one nest, when nothing between them minds."""
    out: list[Work] = []
    for w in fused.work:
        home = None
        if isinstance(w, Nest) and w.kind == "map":
            for k in range(len(out) - 1, max(len(out) - 4, -1), -1):
                other = out[k]
                if isinstance(other, Nest) and _joins(other, w):
                    home = other
                    break
                if writes(other) & (reads(w) | writes(w)):
                    break
        if home is None or not isinstance(w, Nest):
            out.append(w)
        else:
            _join(fused, home, w)
    return out


def _joins(a: Nest, b: Nest) -> bool:
    if a.kind != "map" or [v.extent for v in a.loops] != [v.extent for v in b.loops]:
        return False
    if len(a.stores) + len(b.stores) > 6 or not (reads(a) | writes(a)) & reads(b):
        return False
    if any(s.buffer.axes != b.stores[0].buffer.axes for s in a.stores):
        return False
    env = dict(zip(b.loops, map(Index.of, a.loops), strict=True))
    for e in b.reads():
        if e.buffer in writes(a):
            if not isinstance(e, Load):
                return False
            at = tuple(i.replace(env) for i in e.at)
            if not any(s.buffer is e.buffer and s.at == at for s in a.stores):
                return False
    return not writes(b) & (reads(a) | writes(a))


def _join(fused: Fused, a: Nest, b: Nest) -> None:
    env = dict(zip(b.loops, map(Index.of, a.loops), strict=True))
    b.substitute(fused.make, env, a.loops, [])
    a.stale |= b.stale
    stored = {(s.buffer, s.at): s.value for s in a.stores}
    done: dict[int, Expr] = {}

    def change(e: Expr) -> Expr | None:
        return stored.get((e.buffer, e.at)) if isinstance(e, Load) else None

    for s in b.stores:
        a.stores.append(Store(s.buffer, s.at, fused.make.rewrite(s.value, change, done)))
    a.name = b.name


def _update_in_place(fused: Fused, work: list[Work]) -> None:
    """New values of parameters and states go where the old ones are, or are copied there."""
    writers: dict[Buffer, list[Work]] = {}
    for w in work:
        for b in writes(w):
            writers.setdefault(b, []).append(w)
    outputs, held = set(fused.outputs), set(fused.updates)
    readers: dict[Buffer, list[Work]] = {}
    for w in work:
        for b in reads(w):
            readers.setdefault(b, []).append(w)
        w.stale |= held & reads(w)
    placed: dict[Buffer, Work] = {}  # states written where they are: who writes them
    for state, new in list(fused.updates.items()):
        if new is state:
            continue
        owner, *others = writers.get(new, [None])
        if (
            isinstance(owner, Nest)
            and not others
            and new not in outputs
            and list(fused.updates.values()).count(new) == 1
            and _in_step(owner, state, new)
            and not _reaches(owner, readers.get(state, []), readers, placed)
        ):
            _rename(fused, work, new, state)
            readers.setdefault(state, []).extend(readers.get(new, ()))
            fused.updates[state] = state
            placed[state] = owner
            continue
        if new in held:  # one state becomes what another was: by way of a copy
            kept = Buffer(f"{new}_before", new.dtype, new.shape, "arena")
            work.append(_copying(fused, new, kept))
            work[-1].stale.add(new)
            new = kept
        work.append(_copying(fused, new, state))


def _copying(fused: Fused, source: Buffer, to: Buffer) -> Nest:
    loops = [Var("ijklmnpq"[i % 8], s) for i, s in enumerate(to.shape)]
    at = tuple(map(Index.of, loops))
    return Nest("update", loops, [Store(to, at, fused.make.load(source, at))])


def _in_step(nest: Nest, state: Buffer, new: Buffer) -> bool:
    """Does the nest read the state only where it writes its new value?"""
    (store,) = (s for s in nest.stores if s.buffer is new)
    if len({id(s.buffer) for s in nest.stores}) != len(nest.stores):
        return False
    if nest.body is not None and state in _read_in(nest.body):
        return False
    return all(e.at == store.at for e in nest.reads() if e.buffer is state)


def _reaches(start: Work, goals: Sequence[Work], readers: Mapping[Buffer, Sequence[Work]],
             placed: Mapping[Buffer, Work]) -> bool:  # fmt: skip
    """Does one of the goals have to come after ``start``?

    It has to when it reads what ``start`` writes, or writes where ``start`` reads the old value.
    """
    wanted, seen, todo = {id(g) for g in goals} - {id(start)}, {id(start)}, [start]
    while todo:
        w = todo.pop()
        later = [r for b in writes(w) for r in readers.get(b, ()) if b not in r.stale]
        for after in (*later, *(placed[s] for s in w.stale if s in placed)):
            if id(after) in wanted:
                return True
            if id(after) not in seen:
                seen.add(id(after))
                todo.append(after)
    return False


def _rename(fused: Fused, work: list[Work], old: Buffer, new: Buffer) -> None:
    done: dict[int, Expr] = {}

    def change(e: Expr) -> Expr | None:
        if not isinstance(e, Read) or e.buffer is not old:
            return None
        if isinstance(e, Load):
            return fused.make.load(new, e.at, e.dtype)
        return fused.make.gather(new, e.at, fused.make.rewrite(e.args[0], change, done))

    for w in work:
        if isinstance(w, Kernel):
            w.reads = [new if b is old else b for b in w.reads]
            w.writes = [new if b is old else b for b in w.writes]
            continue
        for s in w.stores:
            s.buffer = new if s.buffer is old else s.buffer
            s.value = fused.make.rewrite(s.value, change, done)
        if w.body is not None:
            w.body = fused.make.rewrite(w.body, change, done)


# -- batches ---------------------------------------------------------------------------------------
def _batch(nest: Nest) -> Var | None:
    """The variable over the batch: the first axis of all that the nest stores."""
    if nest.batch is not None:
        return nest.batch
    first = nest.stores[0].at[0] if nest.stores[0].at else None
    v = next(iter(first.terms), None) if first is not None and len(first.terms) == 1 else None
    if not isinstance(v, Var) or first != Index.of(v) or v.extent < 4:
        return None
    if any(s.at[0] != first for s in nest.stores if s.at):
        return None
    if len(nest.loops) < 2 and not _by_rows(nest, v):
        return None
    if any(s.buffer.place == "held" for s in nest.stores):
        return None  # parameters lie as products want them
    if contract.is_product(nest) and len(nest.loops) > 1:
        pair = contract.factors(nest.body)
        assert pair is not None
        x, y = (f.vars() & set(nest.loops) - {v} for f in pair)
        if not (x ^ y if x & y else x and y):
            return None  # without the batch there is nothing to put into a tile's rows
    return v


def _by_rows(nest: Nest, v: Var) -> bool:
    """Is a row of what is read reduced to one number?"""
    if nest.body is None:
        return False
    reads = [e for e in nest.reads() if not isinstance(e, Load) or v in _vars(e)]
    return all(isinstance(e, Load) and e.at[0] == Index.of(v) for e in reads)


def _vars(load: Load) -> set[Var]:
    return {v for i in load.at for v in i.vars()}


def _loads(body: Expr) -> list[Load]:
    return [e for e in parts(body) if isinstance(e, Load)]


def _in_groups(fused: Fused, w: Nest) -> list[Nest]:
    """A long sum over a batch is made in groups of images, and the groups added up in order."""
    group = _group_size(w)
    if not group:
        return [w]
    n = _summed(w)
    assert n is not None and w.body is not None
    groups = -(-n.extent // group)
    part = Buffer(f"partial_{w.stores[0].buffer}", w.body.dtype,
                  (groups, *(v.extent for v in w.loops)), "arena")  # fmt: skip
    # An optimizer's slots have no layout yet: they will lie as the parameter does.
    settled = next((s for s in w.stores if s.buffer.axes is not None), w.stores[0])
    order = sorted(range(len(w.loops)), key=lambda k: _position(settled, w.loops[k]))
    # What lies side by side in a factor, most of all, lies so in the sums: then they are vectors.
    along = [k for k in order if _in_line(w.body, w.loops[k])]
    if along:
        longest = max(along, key=lambda k: w.loops[k].extent)
        order = [*(k for k in order if k != longest), longest]
    part.axes = tuple(Axis(a, 1, part.shape[a]) for a in (0, *(k + 1 for k in order)))
    loops = [Var(v.name, v.extent) for v in w.loops]
    env = dict(zip(w.loops, map(Index.of, loops), strict=True))
    body = fused.make.map_indices(w.body, lambda i: i.replace(env), {})
    at = (Index.of(n) // group, *map(Index.of, loops))
    acc = fused.make.acc(w.body.dtype)
    rest = [v for v in w.reduce if v is not n]
    first = Nest(w.name, [n, *loops], [Store(part, at, acc)], "sum", rest, body, n, group, w.unit,
                 w.stale & _read_in(body))  # fmt: skip
    g = Var("g", groups)
    w.body = fused.make.load(part, (Index.of(g), *map(Index.of, w.loops)))
    w.reduce = [g]
    return [first, w]


def _in_line(body: Expr, v: Var) -> bool:
    """Does a factor lie side by side along this variable?"""
    flats = [e.buffer.flat(e.at) for e in _loads(body) if e.buffer.axes]
    return any(i.affine_in(v) and i.coefficient(v) == 1 for i in flats)


def _read_in(e: Expr) -> set[Buffer]:
    return {p.buffer for p in parts(e) if isinstance(p, Read)}


def _position(store: Store, v: Var) -> int:
    """Where a variable's axis lies in memory, if that is known: outer axes first."""
    axis = next((k for k, i in enumerate(store.at) if i.coefficient(v)), 0)
    step = store.at[axis].coefficient(v) if store.at else 0
    axes = store.buffer.axes
    if axes is None:
        return axis
    found = [(a.divisor != step, k) for k, a in enumerate(axes) if a.axis == axis]
    return min(found)[1] if found else axis


def _summed(nest: Nest) -> Var | None:
    """The reduced variable that is the first axis of everything that is summed."""
    found: set[Var] = set()
    assert nest.body is not None
    if any(isinstance(e, Gather) for e in parts(nest.body)):
        return None
    for e in _loads(nest.body):
        index = e.at[0] if e.at else Index({})
        if index.vars() & set(nest.reduce):
            v = next(iter(index.terms))
            if not isinstance(v, Var) or index != Index.of(v):
                return None
            found.add(v)
    if len(found) != 1:
        return None
    n = found.pop()
    elsewhere = any(n in i.vars() for e in _loads(nest.body) for i in e.at[1:])
    return None if elsewhere else n


def _group_size(nest: Nest) -> int:
    if nest.kind != "sum" or nest.body is None or not nest.body.dtype.is_floating:
        return 0
    n = _summed(nest)
    if n is None or n not in nest.reduce or n.extent < 4:
        return 0
    outs = int(np.prod([v.extent for v in nest.loops], dtype=np.int64))
    length = int(np.prod([v.extent for v in nest.reduce], dtype=np.int64))
    if nest.work / 16 < GRAIN or outs * GROUPS * 4 > 2**20 or length // GROUPS < 64:
        return 0
    return -(-n.extent // GROUPS)


# -- phases ----------------------------------------------------------------------------------------
def _cycles(p: Plan) -> float:
    """About how long a plan takes on one core."""
    per = {"tile": 2 * p.lanes, "transpose": 2}.get(p.how, max(p.lanes, 1))
    return p.nest.work / per


def _aligned(p: Plan, written: set[Buffer]) -> bool:
    """Does it read what its phase wrote image by image only?"""
    n = p.nest.batch
    assert n is not None
    return all(
        isinstance(e, Load) and e.at and e.at[0] == Index.of(n)
        for e in p.nest.reads()
        if e.buffer in written
    ) and not ({s.buffer for s in p.nest.stores} & written)


def _phases(planned: list[tuple[Work, Plan | None]]) -> list[Phase]:
    """Work in an order that keeps phases long."""
    waiting = list(planned)
    pending: dict[Buffer, int] = {}
    for w, _ in planned:
        for b in writes(w):
            pending[b] = pending.get(b, 0) + 1
    phases: list[Phase] = []
    written: set[Buffer] = set()
    touched: set[Buffer] = set()

    def ready(w: Work) -> bool:
        own = writes(w)
        if any(pending.get(b, 0) > (b in own) for b in reads(w) - w.stale):
            return False
        return not any(own & other.stale for other, _ in waiting if other is not w)

    while waiting:
        choice = [(w, p) for w, p in waiting if ready(w)]
        now = phases[-1] if phases else None
        pick: tuple[Work, Plan | None] | None = None
        if now is not None and now.kernel is None:
            for w, p in choice:
                if p is None:
                    continue
                if now.batch and _by_batch(p) and p.levels[0].extent == now.batch:
                    if _aligned(p, written) and not (writes(w) & touched):
                        pick = (w, p)
                        break
                elif _is_check(w) != now.checks:
                    continue
                elif not now.batch and now.tasks == 1 and _small(p):
                    pick = (w, p)
                    break
        if pick is None:
            small: list[tuple[Work, Plan | None]] = [
                (w, p) for w, p in choice if p is not None and _small(p)
            ]
            small.sort(key=lambda item: not _is_check(item[0]))  # before anything is changed
            pick = small[0] if small and not (now and now.batch) else choice[0]
            phases.append(_opened(pick[1], pick[0]))
            written, touched = set(), set()
        elif now is not None and pick[1] is not None:
            now.plans.append(pick[1])
        waiting = [x for x in waiting if x[0] is not pick[0]]
        for b in writes(pick[0]):
            pending[b] -= 1
        written |= writes(pick[0])
        touched |= reads(pick[0]) | writes(pick[0])
    for phase in phases:
        _share(phase)
    return phases


def _is_check(w: Work) -> bool:
    return isinstance(w, Nest) and w.watches


def _small(p: Plan) -> bool:
    """Is it done sooner than another thread would be awake?

    What goes over a batch rarely comes alone: its readers follow image by image.
    """
    return _cycles(p) < (GRAIN / 4 if _by_batch(p) else GRAIN)


def _by_batch(p: Plan) -> bool:
    return bool(p.levels) and p.levels[0] is p.nest.batch


def _opened(p: Plan | None, w: Work) -> Phase:
    if p is None:
        assert isinstance(w, Kernel)
        return Phase(kernel=w)
    if _small(p):
        return Phase([p])
    if _by_batch(p):
        return Phase([p], batch=p.levels[0].extent)
    return Phase([p], tasks=0)


def _share(phase: Phase) -> None:
    """Decide what one task is."""
    if phase.kernel is not None:
        return
    if phase.batch:
        for p in phase.plans:
            p.tasks = 1
        groups = [p.nest.partial for p in phase.plans if p.nest.partial]
        phase.chunk = groups[0] if groups else -(-phase.batch // 32)
        phase.tasks = -(-phase.batch // phase.chunk)
        return
    if phase.tasks:  # one thread, everything in turn
        for p in phase.plans:
            p.tasks = min(1, len(p.levels))
        return
    (p,) = phase.plans
    p.tasks = 0
    while p.tasks < len(p.levels) and p.count < SHARES:
        p.tasks += 1
    wanted = min(p.count, max(1, min(4 * SHARES, int(_cycles(p) / GRAIN) + 1)))
    phase.chunk = -(-p.count // wanted)
    phase.tasks = -(-p.count // phase.chunk)


__all__ = ["Phase", "arrange", "dt"]
