"""What is measured, section by section: numbers only, which report.py shows."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.machine import Machine
from bench.pool import ROOT, Worker, environment, neighbour, turns, watched, workers
from bench.workloads import CONTRACTIONS, TRAINING, WORKLOADS

SECONDS = 0.25  # of a worker's turn in a round
SECTIONS = ("training", "contractions", "contention", "first")

Figures = dict[str, Any]


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def ratios(times: dict[str, list[float]], ours: str) -> dict[str, float] | None:
    """Ours over the best peer: round by round, then the median of these."""
    peers = [n for n in times if n != ours]
    if not peers or ours not in times:
        return None
    best = min(peers, key=lambda n: statistics.median(times[n]))
    return summary([a / b for a, b in zip(times[ours], times[best], strict=True)])


def bytecode() -> None:
    """Python's bytecode written beforehand, as after any first import: no part of a first step."""
    command = [sys.executable, "-m", "compileall", "-q", str(ROOT / "src"), str(ROOT / "bench")]
    subprocess.run(command, check=False, env=environment(1))


@dataclass
class Bench:
    """One run. Each section gives its figures item by item, as they come."""

    ours: str  # a peer's name: "trivium:native"
    peers: list[str]
    only: list[str]  # of the training workloads; none: all
    rounds: int
    machine: Machine
    tell: Callable[[str], None]  # what is going on

    def training(self) -> Iterator[tuple[str, Figures]]:
        """Every training workload."""
        for name in TRAINING:
            if name in self.only or not self.only:
                yield name, self._side_by_side(name, self.peers)

    def contractions(self) -> Iterator[tuple[str, Figures]]:
        """Single products, beside NumPy's BLAS where that has one."""
        for name in CONTRACTIONS:
            yield name, self._side_by_side(name, ["numpy"] if name == "matmul" else [])

    def _side_by_side(self, name: str, peers: Sequence[str]) -> Figures:
        """One workload on ours and on every peer, alternating."""
        work, threads = WORKLOADS[name], self.machine.threads
        with workers([self.ours, *peers], name, threads, self.tell) as (up, down):
            times: dict[str, list[float]] = {n: [] for n in up}
            shares: list[float] = []
            for r, worker in turns(up, self.rounds):
                self.tell(f"{name} · round {r + 1} of {self.rounds} · {worker.name}")
                with watched(up, worker, shares):
                    times[worker.name].append(worker.run(worker.count(SECONDS)))
                worker.settle()
            info = {n: w.info for n, w in up.items()}
        return {
            "title": work.title, "flops": work.flops, "bytes": work.bytes, "ours": self.ours,
            "limit_us": self.machine.limit(work.flops, work.bytes),
            "times_us": {n: summary(t) for n, t in times.items()}, "rounds_us": times,
            "ratio": ratios(times, self.ours), "info": info, "absent": down,
            "others_awake": max(shares, default=0.0),
        }  # fmt: skip

    def contention(self) -> Iterator[tuple[str, Figures]]:
        """The CNN's step quiet, and beside a process that keeps one of the cores busy."""
        if self.machine.cores < 2:
            return
        rounds, found = max(3, self.rounds // 2), {}
        with workers([self.ours, *self.peers], "cnn", self.machine.threads, self.tell) as (
            up,
            down,
        ):
            for name, worker in up.items():
                quiet, busy = [], []
                for r in range(rounds):
                    self.tell(f"contention · {name} · round {r + 1} of {rounds}")
                    quiet.append(worker.run(worker.count(2 * SECONDS)))
                    with neighbour():
                        busy.append(worker.run(worker.count(2 * SECONDS)))
                    worker.settle()
                slower = [b / q for q, b in zip(quiet, busy, strict=True)]
                found[name] = {
                    "quiet_us": summary(quiet), "busy_us": summary(busy), "slower": summary(slower)
                }  # fmt: skip
        yield "cnn", {"ours": self.ours, "workers": found, "absent": down}

    def first(self, times: int = 3) -> Iterator[tuple[str, Figures]]:
        """Our first CNN step in a fresh process: nothing in the cache, then everything in it."""
        cold: list[float] = []
        warm: list[float] = []
        for _ in range(times):
            with tempfile.TemporaryDirectory() as folder:
                os.chmod(folder, 0o700)
                for kind in (cold, warm, warm):
                    self.tell(f"first step · {'compiled' if kind is cold else 'from the cache'}")
                    cache = {"TRIVIUM_CACHE_DIR": folder}
                    worker = Worker(self.ours, "cnn", self.machine.threads, cache)
                    kind.append(worker.info["first_ms"])
                    worker.close()
        yield "cnn", {"compiled_ms": summary(cold), "cached_ms": summary(warm)}
