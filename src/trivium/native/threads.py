"""The native engine's threads: pools that run the tasks of one phase after another.

A step is one native function that runs phases in turn, the wide ones through the pool it is given:
the pool's first word is a function ``run(ptr pool, ptr phase, ptr ctx, i64 tasks)`` that calls
``phase(ctx, task)`` for every task, on the caller and on the pool's workers, and returns when all
are done. Who does which task and when is left to chance, so tasks must not depend on each other.

Workers are Python's daemon threads, each in one native call that never returns and holds no lock of
Python's. Without work they look for some for a moment, then sleep in the kernel (futex).

A busy neighbour on a worker's core should cost its share of that core and no more. What costs more
is a worker that the kernel takes off its core within a task: all wait, for milliseconds. Hence:
- A worker asks for its time on the core after every phase. That makes the kernel (since 6.6) look
  whether that time is over and give the core away then, when nobody waits for the worker.
- A worker that misses time all the same, twice, is polite for a while: it rests twice as long as it
  works, so that the kernel owes it time and lets it finish.
- A caller that has waited for a moment sleeps: the kernel may put the worker on its core.
- A worker on the caller's core leaves it. The kernel would not part them while a neighbour has the
  other core, and they would share one for good.
Measured on two cores, one with a neighbour: a step takes 1.35 times as long (its share: 1.33), 1.65
beside one of another session, to whom the kernel gives more (1.5). Without all this: 2.1 and 2.3.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any

from trivium.native import cache
from trivium.native.build import assemble
from trivium.native.ir import Function, Module, V
from trivium.native.loader import Code
from trivium.native.target import TARGETS, host

LINUX = sys.platform == "linux"

# Nanoseconds.
SPIN = 100_000  # to look for work, or for the last task's end, before sleeping
STOLEN = 500_000  # a worker that misses so much was taken off its core
TWICE = 50_000_000  # and if that happens again so soon, a neighbour is there:
POLITE = 100_000_000  # it is polite for so long,
RUN = 400_000  # works so long, less than the kernel would let it,
REST = 4_000_000  # and then rests, at most so long

# A pool's fields, in bytes. What several threads write has cache lines of its own, in pairs,
# because processors fetch the neighbour too.
FIELDS = {
    "run": 0,
    "phase": 128, "ctx": 136, "tasks": 144, "core": 152,  # the job; where its caller is
    "left": 256,  # tasks that nobody has taken
    "unfinished": 384,  # tasks that are not done
    "sleepers": 512,  # workers that sleep
    "busy": 640,  # is there a caller?
}  # fmt: skip
SIZE, ALIGN = 768, 128
FOREVER = str(2**63 - 1)
WALL, OWN = 1, 3  # clocks: everybody's time, and this thread's time on a core
SLEEP, WAKE = 128, 129  # what futex is to do


class _Code(Function):
    """A function of 64-bit numbers, some of them in memory that other threads write too."""

    def field(self, name: str) -> V:
        """Where a field of the pool, the first argument, is."""
        return self.gep("i8", self.args[0], V("i64", str(FIELDS[name])))

    def get(self, place: V) -> V:
        """The number there now."""
        return self.value("i64", f"load atomic i64, {place} seq_cst, align 8")

    def put(self, x: V | int, place: V) -> None:
        """Whoever sees it there sees what this thread wrote before."""
        self.do(f"store atomic {_number(x)}, {place} seq_cst, align 8")

    def change(self, how: str, place: V, x: V | int) -> V:
        """``add`` or ``sub`` at once; what was there before."""
        return self.value("i64", f"atomicrmw {how} {place}, {_number(x)} seq_cst")

    def swap(self, place: V, old: V | int, new: V | int) -> V:
        """Put the new number there if the old one is there; says whether it was."""
        both = f"cmpxchg {place}, {_number(old)}, {_number(new)} seq_cst seq_cst"
        return self.value("i1", f"extractvalue {self.value('{ i64, i1 }', both)}, 1")

    def math(self, x: V, name: str, y: V | int) -> V:
        """``add``, ``sub``..."""
        return self.op(name, x, _number(y))

    def test(self, x: V, name: str, y: V | int) -> V:
        """``eq``, ``slt``..."""
        return self.compare("icmp", name, x, _number(y))

    def to(self, label: str) -> None:
        """Go on to a block that begins here."""
        self.jump(label)
        self.begin(label)

    def clock(self, which: int = WALL) -> V:
        """Nanoseconds."""
        time = self.reserve("[2 x i64]", 8)
        self.call("clock_gettime", "i32", [V("i32", str(which)), time])
        seconds, rest = (self.load("i64", self.gep("i64", time, V("i64", k)), 8) for k in "01")
        return self.math(self.math(seconds, "mul", 10**9), "add", rest)

    def core(self) -> V:
        """The core that this runs on."""
        return self.cast("zext", self.call("sched_getcpu", "i32", []), "i64")

    def futex(self, place: V, how: int, x: V | int) -> None:
        """Sleep while the number there (its low half) is x, or wake x threads that do."""
        number = 98 if _arm(self.module) else 202
        self.module.declare("syscall", "i64", ["i64", "..."])
        args = f"i64 {number}, {place}, i64 {how}, {_number(x)}, ptr null"
        self.do(f"call i64 (i64, ...) @syscall({args})")


def _number(x: V | int) -> V:
    return x if isinstance(x, V) else V("i64", str(x))


def _arm(module: Module) -> bool:
    return bool(module.target.triple.startswith("aarch64"))


def emit(module: Module) -> None:
    """Write ``tv_alone`` and, for Linux, ``tv_parallel`` and ``tv_worker``."""
    _alone(module)
    if "linux" in module.target.triple:
        _spin(module)
        _take(module)
        _parallel(module)
        _worker(module)


def _alone(module: Module) -> None:
    """The caller does everything, in order."""
    b = _Code(module, "tv_alone", ["ptr", "ptr", "ptr", "i64"])
    _, phase, ctx, tasks = b.args

    def run(task: V, carried: list[V]) -> list[V]:
        b.do(f"call void {phase.ref}({ctx}, {task})")
        return carried

    b.loop(V("i64", "0"), tasks, 1, [], run)
    b.finish()


def _spin(module: Module) -> None:
    """Watch a number for a moment until it is zero, or until it is not; says whether that came."""
    b = _Code(module, "tv_spin", ["ptr", "i1"], "i1")
    place, zero = b.args
    start = b.clock()
    b.to("look")
    came = b.compare("icmp", "eq", b.test(b.get(place), "eq", 0), zero)
    b.branch(came, "out", "pause")
    b.begin("pause")
    for _ in range(2):
        if _arm(module):
            b.call("llvm.aarch64.hint", "void", [V("i32", "1")])
        else:
            b.call("llvm.x86.sse2.pause", "void", [])
    b.branch(b.test(b.math(b.clock(), "sub", start), "sgt", SPIN), "out", "look")
    b.begin("out")
    b.finish(came)


def _take(module: Module) -> None:
    """Take tasks and do them until none is left, or it is late; says whether that ended the job.

    To take one needs nothing but ``left``, and whoever has taken one keeps its job from ending: so
    even a thread that looked long ago takes a task of the present job, and only then reads what
    that is.
    """
    b = _Code(module, "tv_take", ["ptr", "i64"], "i1")
    left, done = b.field("left"), b.reserve("i64", 8)
    b.put(0, done)
    b.to("next")
    rest = b.get(left)
    b.branch(b.test(rest, "eq", 0), "out", "try")
    b.begin("try")
    b.branch(b.swap(left, rest, b.math(rest, "sub", 1)), "mine", "next")
    b.begin("mine")
    phase, ctx = (b.load("ptr", b.field(name), 8) for name in ("phase", "ctx"))
    task = b.math(b.get(b.field("tasks")), "sub", rest)
    b.do(f"call void {phase.ref}({ctx}, {task})")
    b.change("add", done, 1)
    b.branch(b.test(b.clock(), "sgt", b.args[1]), "out", "next")
    b.begin("out")
    mine = b.get(done)
    before = b.change("sub", b.field("unfinished"), mine)
    b.finish(b.op("and", b.test(before, "eq", mine), b.test(mine, "ne", 0)))


def _parallel(module: Module) -> None:
    """The job of one caller; another who comes meanwhile does everything alone."""
    b = _Code(module, "tv_parallel", ["ptr", "ptr", "ptr", "i64"])
    pool, phase, ctx, tasks = b.args
    left, unfinished, busy = b.field("left"), b.field("unfinished"), b.field("busy")
    b.branch(b.test(tasks, "slt", 2), "alone", "lock")
    b.begin("lock")
    b.branch(b.swap(busy, 0, 1), "publish", "alone")
    b.begin("alone")
    b.call("tv_alone", "void", b.args)
    b.do("ret void")
    b.begin("publish")
    b.store(phase, b.field("phase"), 8)
    b.store(ctx, b.field("ctx"), 8)
    b.put(tasks, b.field("tasks"))
    b.put(b.core(), b.field("core"))
    b.put(tasks, unfinished)
    b.put(tasks, left)
    # A worker counts itself asleep first and then sleeps only while nothing is left: who is not
    # counted here sees the tasks.
    with b.when(b.test(b.get(b.field("sleepers")), "ne", 0)):
        b.futex(left, WAKE, b.math(tasks, "sub", 1))
    b.call("tv_take", "i1", [pool, V("i64", FOREVER)])
    b.call("tv_spin", "i1", [unfinished, V("i1", "true")])
    b.to("check")
    rest = b.get(unfinished)
    b.branch(b.test(rest, "eq", 0), "done", "sleep")
    b.begin("sleep")
    b.futex(unfinished, SLEEP, rest)
    b.jump("check")
    b.begin("done")
    b.put(0, busy)
    b.finish()


def _worker(module: Module) -> None:
    """What a worker does for ever."""
    b = _Code(module, "tv_worker", ["ptr"])
    left, sleepers = b.field("left"), b.field("sleepers")
    polite, awake = b.reserve("i64", 8), b.reserve("i64", 8)  # until when, since when
    b.put(0, polite)
    b.to("woken")
    b.put(b.clock(), awake)
    b.to("begin")
    _leave(b)
    own, wall = b.clock(OWN), b.clock()
    b.branch(b.call("tv_spin", "i1", [left, V("i1", "false")]), "work", "sleep")

    b.begin("sleep")
    b.change("add", sleepers, 1)
    b.futex(left, SLEEP, 0)
    b.change("sub", sleepers, 1)
    b.jump("woken")

    b.begin("work")
    limit = b.math(b.get(awake), "add", RUN)
    until = b.select(b.test(b.get(polite), "sgt", wall), limit, V("i64", FOREVER))
    with b.when(b.call("tv_take", "i1", [b.args[0], until])):
        b.futex(b.field("unfinished"), WAKE, 1)
    now = b.clock()  # before OWN, which may cost this thread its core, and harms nobody here
    missing = b.math(b.math(now, "sub", wall), "sub", b.math(b.clock(OWN), "sub", own))
    with b.when(b.test(missing, "sgt", STOLEN)):
        again = b.test(b.math(now, "sub", b.get(polite)), "slt", TWICE)
        b.put(b.math(now, "add", b.select(again, _number(POLITE), _number(0))), polite)
    worked = b.math(now, "sub", b.get(awake))
    tired = b.op("and", b.test(b.get(polite), "sgt", now), b.test(worked, "sgt", RUN))
    b.branch(tired, "rest", "begin")

    b.begin("rest")
    time = b.math(b.intrinsic("smin", worked, _number(REST // 2)), "udiv", 500)  # microseconds
    b.call("usleep", "i32", [b.cast("trunc", time, "i32")])
    b.jump("woken")
    b.begin("never")
    b.finish()


def _leave(b: _Code) -> None:
    """Leave the caller's core: forbidden there, the kernel moves it; then all is allowed again."""
    core, mask = b.core(), b.reserve("i1024", 8)
    with b.when(b.test(core, "eq", b.get(b.field("core")))):
        b.store(V("i1024", "0"), mask, 8)
        size = [V("i32", "0"), V("i64", "128"), mask]
        b.call("sched_getaffinity", "i32", size)
        allowed = b.load("i1024", mask, 8)
        here = b.op("shl", V("i1024", "1"), b.cast("zext", core, "i1024"))
        for cores in (b.op("and", allowed, b.op("xor", here, V("i1024", "-1"))), allowed):
            b.store(cores, mask, 8)
            b.call("sched_setaffinity", "i32", size)


def _forever(thing: Any) -> Any:
    """Never freed: workers use it until the process ends, while Python already clears modules."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


@functools.cache
def _addresses() -> dict[str, int]:
    """The machine code, for any machine of this kind, and where its functions are."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    target = TARGETS["neon" if arm else "sse2"]
    if not LINUX:
        target = host()
    module = Module(target)
    emit(module)
    text = module.text()
    key = cache.key_of(text, target)
    code = cache.load(key)
    if code is None:
        code = assemble(text, target)
        cache.save(key, code)
    names = ("tv_alone", "tv_parallel", "tv_worker") if LINUX else ("tv_alone",)
    loaded: Code = _forever(Code(code, names))
    return loaded.addresses


class Pool:
    """So many threads, the caller among them. On systems other than Linux it is always one."""

    def __init__(self, threads: int):
        self.threads = threads if LINUX else 1
        start = ctypes.addressof(_forever(ctypes.create_string_buffer(SIZE + ALIGN)))
        self.address = start + -start % ALIGN  # what native code is given
        run = _addresses()["tv_parallel" if self.threads > 1 else "tv_alone"]
        ctypes.c_int64.from_address(self.address).value = run
        for k in range(1, self.threads):
            worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_addresses()["tv_worker"])
            thread = threading.Thread(
                target=worker, args=(self.address,), name=f"trivium-{k}", daemon=True
            )
            # Where no more threads may start, those that there are do all tasks.
            with contextlib.suppress(RuntimeError):
                thread.start()


@functools.cache
def _pool(threads: int) -> Pool:
    return Pool(threads)


def pool(threads: int | None = None) -> Pool:
    """The pool of so many threads; None for as many as this process has cores (see `cores`)."""
    return _pool(cores() if threads is None else max(1, threads))


@functools.cache
def cores() -> int:
    """Physical cores that this process may use, as it was when first asked."""
    if not LINUX:
        return 1
    found = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        found.add(siblings.read_text() if siblings.exists() else str(cpu))
    # A container may have a share of many cores' time.
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(len(found), -(-int(quota) // int(period)))
    return len(found)


def _forget() -> None:
    """A forked child has the pools' memory without the workers: who still has a pool's address does
    all tasks alone, who asks again gets a new one."""
    _pool.cache_clear()
    cores.cache_clear()


if LINUX:
    os.register_at_fork(after_in_child=_forget)
