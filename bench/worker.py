"""One peer, one workload, one process: builds its step, then runs as many as it is told to.

    python -m bench.worker PEER WORKLOAD THREADS

Talks in lines: JSON on stdout, first about the step that was built, then for every "run N" on
stdin the microseconds that each of N steps took. Between the lines it sleeps.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench.machine import cores
from bench.peers import Step, Unfit, find
from bench.workloads import WORKLOADS


def peak() -> float:
    """The most memory that this process held, in MB; on Linux, since :func:`forget`."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def forget() -> None:
    """Let the peak start again from what is held now; where this cannot be, it is for life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run(step: Step, count: int) -> float:
    """Microseconds a step, over ``count`` of them, when a fifth as many have warmed it up."""
    gc.collect()
    for i in range(max(2, count // 5)):
        last = step.run(*step.batches[i % len(step.batches)])
    step.value(last)
    start = time.perf_counter()
    for i in range(count):
        last = step.run(*step.batches[i % len(step.batches)])
    step.value(last)
    return (time.perf_counter() - start) / count * 1e6


def build(name: str, workload: str, threads: int) -> tuple[Step, dict[str, Any]]:
    """The step, and what there is to know of it: time and memory of the first, a rough pace."""
    peer = find(name)
    if any(importlib.util.find_spec(module) is None for module in peer.needs):
        raise ImportError(peer.remedy)
    framework = peer.make(threads, peer.variant)
    chosen = WORKLOADS[workload]
    chosen.data()  # NumPy's generators come late, and belong to nobody's first step
    gc.collect()
    forget()
    before, start = peak(), time.perf_counter()
    step = framework.step(chosen)
    loss = step.value(step.run(*step.batches[0]))
    first = time.perf_counter() - start
    run(step, 4)
    built = peak() - before
    forget()
    pace = run(step, 8)
    return step, {
        "version": framework.version, "parameters": step.parameters(), "loss": loss,
        "first_ms": first * 1e3, "build_mb": built, "steps_mb": peak() - before, "pace_us": pace,
    }  # fmt: skip


def pin(threads: int) -> None:
    """Keep to ``threads`` cores, when these are not all: not every peer has an option for it."""
    chosen = cores()
    if threads < len(chosen) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen[:threads])


def main(name: str, workload: str, threads: str) -> None:
    """Build, then obey."""
    pin(int(threads))
    # What a framework prints goes to stderr; stdout is for answers.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        step, info = build(name, workload, int(threads))
    except (Unfit, ImportError) as error:
        why = "unfit" if isinstance(error, Unfit) else "missing"
        print(json.dumps({why: str(error)}), file=out)
        return
    print(json.dumps(info), file=out)
    for line in sys.stdin:
        print(json.dumps(run(step, int(line.split()[1]))), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
