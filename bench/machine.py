"""The machine: its cores, and what it can do at best, measured rather than looked up."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 5
SECONDS = 0.1  # that one round of a measurement lasts


def cpus() -> list[int]:
    """The logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> list[int]:
    """One logical processor of each physical core."""
    seen: dict[Any, int] = {}
    for cpu in cpus():
        at = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            key: Any = [(at / f).read_text() for f in ("physical_package_id", "core_id")]
        except OSError:
            key = [cpu]
        seen.setdefault(tuple(key), cpu)
    return list(seen.values())


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def best(work: Callable[[int], Any], threads: int, seconds: float = SECONDS) -> float:
    """How often per second ``threads`` threads together do ``work(thread)``, in the best round."""
    start = time.perf_counter()
    work(0)
    count = max(1, int(seconds / (time.perf_counter() - start)))

    def repeat(thread: int) -> None:
        # Left to itself the kernel may keep short-lived threads on one core.
        if threads > 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(threading.get_native_id(), {cores()[thread % len(cores())]})
        for _ in range(count):
            work(thread)

    rates = []
    for _ in range(ROUNDS):
        workers = [threading.Thread(target=repeat, args=(i,)) for i in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates.append(threads * count / (time.perf_counter() - start))
    return max(rates)


def bandwidth(size: int, threads: int) -> float:
    """GB/s of a NumPy copy that touches ``size`` bytes, reads and writes counted.

    One thread or all, whichever is faster: what fits into a core's own cache gains nothing by
    being shared out.
    """

    def rate(count: int) -> float:
        half = max(size // 8 // count, 1)
        pairs = [(np.ones(half, np.float32), np.zeros(half, np.float32)) for _ in range(count)]
        return best(lambda i: np.copyto(pairs[i][1], pairs[i][0]), count) * half * 8 / 1e9

    return max(rate(count) for count in {1, threads})


def fma_loop(times: int) -> tuple[Callable[[int], None], int, str]:
    """A function of nothing but multiply-adds, the FLOPs of a call, and the instruction set.

    Independent accumulators, more than latency times ports (at most 5 x 2), fewer than registers.
    """
    from trivium.native.build import assemble
    from trivium.native.ir import Function, Module, V, vector
    from trivium.native.loader import Code
    from trivium.native.target import host

    target = host()
    lanes, many = target.bits // 32, target.registers * 3 // 4
    module = Module(target)
    f = Function(module, "peak", ["ptr"], exported=True)
    (at,) = f.args

    def place(i: int) -> V:
        return f.gep("float", at, V("i64", str(i * lanes)))

    # With 0.5 everywhere, x * 0.5 + 0.5 tends to 1: no infinity, no denormal slows it down.
    half = f.load(vector("float", lanes), place(0), 4)
    sums = [f.load(half.type, place(i), 4) for i in range(many)]
    sums = f.loop(
        V("i64", "0"),
        V("i64", str(times)),
        1,
        sums,
        lambda _, xs: [f.fma(x, half, half) for x in xs],
    )
    for i, x in enumerate(sums):
        f.store(x, place(i), 4)
    f.finish()

    code = Code(assemble(module.text(), target), ["peak"])
    compiled = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.addresses["peak"])

    def run(thread: int) -> None:
        numbers = np.full(many * lanes, 0.5, np.float32)
        compiled(numbers.ctypes.data)

    run.code = code  # type: ignore[attr-defined]  # it lives as long as this
    return run, 2 * lanes * many * times, target.name


@dataclass
class Machine:
    """What was measured. Without llvmlite there is no peak, and no limit from it."""

    cpu: str
    cores: int
    threads: int
    instructions: str = ""
    peak_one: float = 0.0  # GFLOP/s, float32
    peak_all: float = 0.0  # with ``threads`` threads
    copy: float = 0.0  # GB/s, a large array
    note: str = ""

    def limit(self, flops: int, size: int) -> float | None:
        """Microseconds that no step can be faster than: the arithmetic, or the bytes.

        The bytes go at the speed of a copy of as many, which may well come from a cache.
        """
        if not self.peak_all:
            return None
        return max(
            flops / self.peak_all / 1e3, size / rate_for(max(size, 2**18), self.threads) / 1e3
        )


@functools.cache
def rate_for(size: int, threads: int) -> float:
    """:func:`bandwidth`, measured once."""
    return bandwidth(size, threads)


def measure(threads: int) -> Machine:
    """The machine now. Run it while nothing else runs."""
    machine = Machine(cpu_name(), len(cores()), threads, copy=bandwidth(2**29, threads))
    try:
        run, flops, machine.instructions = fma_loop(1_000_000)
    except ImportError as error:
        machine.note = f"no peak: {error} (pip install llvmlite)"
        return machine
    machine.peak_one = best(run, 1) * flops / 1e9
    machine.peak_all = best(run, threads) * flops / 1e9
    return machine
