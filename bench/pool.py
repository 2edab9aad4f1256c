"""The workers: started, asleep, and woken one at a time, round after round."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.machine import cpus

ROOT = Path(__file__).parents[1]
PATIENCE = 600  # seconds that a worker may take to answer


class Failed(Exception):
    """A worker that has no answer, and why."""


def environment(threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a worker's process is told. Nothing here slows a peer down."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {
        "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path,
        "TRIVIUM_CACHE_DIR": "",  # every run compiles: the same work and memory each time
    }  # fmt: skip
    return os.environ | own | dict(extra or {})


class Worker:
    """A process that has one peer's step of one workload ready to run."""

    def __init__(
        self, name: str, workload: str, threads: int, env: Mapping[str, str] | None = None
    ):
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        command = [sys.executable, "-m", "bench.worker", name, workload, str(threads)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(threads, env), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        try:
            self.info: dict[str, Any] = self.answer()
        except BaseException:
            self.close()
            raise

    def answer(self) -> Any:
        """The worker's next line."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            raise Failed(f"no answer in {PATIENCE} s")
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            text = self.errors.read().decode(errors="replace").strip()
            code = self.process.wait()
            raise Failed(text.splitlines()[-1] if text else f"ended with code {code}")
        return json.loads(line)

    def run(self, count: int) -> float:
        """Microseconds a step, over ``count`` of them."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it may have died: answer() says of what
            self.process.stdin.write(f"run {count}\n")
        return float(self.answer())

    def count(self, seconds: float) -> int:
        """How many steps take about so long."""
        return max(3, round(seconds * 1e6 / self.info["pace_us"]))

    def cpu(self) -> float | None:
        """Seconds of processor time so far, all threads; None where the system does not say."""
        try:
            return time.clock_gettime((~self.process.pid << 3) | 2)  # clock_getcpuclockid(3)
        except (OSError, AttributeError):
            return None

    def settle(self) -> None:
        """Wait until it sleeps: threads of OpenMP spin for a while (0.2 s) when work has ended."""
        before = self.cpu()
        for _ in range(50):
            time.sleep(0.02)
            now = self.cpu()
            if before is None or now is None or now - before < 0.001:
                return
            before = now

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


@contextmanager
def workers(
    names: Sequence[str], workload: str, threads: int, tell: Callable[[str], None]
) -> Iterator[tuple[dict[str, Worker], dict[str, Any]]]:
    """Those that came up, and what the others said instead ({"missing": how to get it}...)."""
    up: dict[str, Worker] = {}
    down: dict[str, Any] = {}
    with ExitStack() as stack:
        for name in names:
            tell(f"{workload} · {name} gets ready")
            try:
                worker = Worker(name, workload, threads)
            except Failed as error:
                down[name] = {"failed": str(error)}
                continue
            stack.callback(worker.close)
            if "pace_us" in worker.info:
                up[name] = worker
                worker.settle()
            else:
                down[name] = worker.info
        yield up, down


def turns(up: Mapping[str, Worker], rounds: int) -> Iterator[tuple[int, Worker]]:
    """Every worker once a round; each round begins with another, so no one's neighbour is fixed."""
    names = list(up)
    for r in range(rounds):
        at = r % max(len(names), 1)
        for name in names[at:] + names[:at]:
            yield r, up[name]


@contextmanager
def watched(up: Mapping[str, Worker], awake: Worker, into: list[float]) -> Iterator[None]:
    """Note the share of a core that the sleeping workers used meanwhile."""
    asleep = [w for w in up.values() if w is not awake]
    before, start = [w.cpu() for w in asleep], time.perf_counter()
    yield
    wall = time.perf_counter() - start
    pairs = zip(before, (w.cpu() for w in asleep), strict=True)
    into.append(sum(b - a for a, b in pairs if a is not None and b is not None) / wall)


@contextmanager
def neighbour() -> Iterator[None]:
    """Another process that keeps the last of our processors busy."""
    code = f"import os\nos.sched_setaffinity(0, {{{cpus()[-1]}}})\nprint(flush=True)\nwhile 1: pass"
    busy = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        yield
    finally:
        busy.kill()
        busy.communicate()
