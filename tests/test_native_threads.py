"""The native engine's thread pool: every task once, whoever calls, forks or ends."""

import ctypes
import functools
import os
import subprocess
import sys
import threading
import time

import pytest

llvm = pytest.importorskip("llvmlite.binding")

from trivium.native.ir import Module  # noqa: E402
from trivium.native.target import host  # noqa: E402
from trivium.native.threads import LINUX, Pool, cores, emit, pool  # noqa: E402

linux = pytest.mark.skipif(not LINUX, reason="the pool has one thread elsewhere")

# ctx is an array of counters, so a task of the wrong job is seen where it counted. `jobs` runs jobs
# in turn on two contexts with different numbers of tasks: one job right after another.
NATIVE = """
define void @count(ptr %ctx, i64 %task) {
  %at = getelementptr i64, ptr %ctx, i64 %task
  atomicrmw add ptr %at, i64 1 monotonic
  ret void
}
define void @order(ptr %ctx, i64 %task) {
  %n = atomicrmw add ptr %ctx, i64 1 monotonic
  %i = add i64 %n, 1
  %at = getelementptr i64, ptr %ctx, i64 %i
  store i64 %task, ptr %at
  ret void
}
define void @nested(ptr %ctx, i64 %task) {
  %pool = load ptr, ptr %ctx
  %run = load ptr, ptr %pool
  %to = getelementptr i64, ptr %ctx, i64 1
  call void %run(ptr %pool, ptr @count, ptr %to, i64 5)
  ret void
}
define void @once(ptr %pool, ptr %phase, ptr %ctx, i64 %tasks) {
  %run = load ptr, ptr %pool
  call void %run(ptr %pool, ptr %phase, ptr %ctx, i64 %tasks)
  ret void
}
define void @jobs(ptr %pool, i64 %times, ptr %a, i64 %m, ptr %b, i64 %n) {
entry:
  %run = load ptr, ptr %pool
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %head ]
  call void %run(ptr %pool, ptr @count, ptr %a, i64 %m)
  call void %run(ptr %pool, ptr @count, ptr %b, i64 %n)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %times
  br i1 %more, label %head, label %done
done:
  ret void
}
"""


@functools.cache
def native():
    """The functions above, and the addresses of the phases."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(NATIVE), host().machine())
    engine.finalize_object()
    p, n = ctypes.c_void_p, ctypes.c_int64
    once = ctypes.CFUNCTYPE(None, p, p, p, n)(engine.get_function_address("once"))
    jobs = ctypes.CFUNCTYPE(None, p, n, p, n, p, n)(engine.get_function_address("jobs"))
    at = {name: engine.get_function_address(name) for name in ("count", "order", "nested")}
    return engine, once, jobs, at


class Counters:
    """Zeros with zeros around them, where only a wrong task would count."""

    def __init__(self, size):
        self._all = (ctypes.c_int64 * (size + 2000))()
        self.size, self.address = size, ctypes.addressof(self._all) + 8000

    def read(self):
        values = list(self._all)
        assert not any(values[:1000]) and not any(values[1000 + self.size :])
        return values[1000 : 1000 + self.size]


def run_jobs(address, times, m, n):
    a, b = Counters(m), Counters(n)
    native()[2](address, times, a.address, m, b.address, n)
    assert a.read() == [times] * m and b.read() == [times] * n


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("m", "n", "times"), [(0, 1, 3000), (2, 7, 20_000), (7, 3, 20_000), (1000, 2, 1000)]
)
def test_every_task_once(threads, m, n, times):
    p = pool(threads)
    assert p is pool(threads) and p.threads == (threads if LINUX else 1)
    run_jobs(p.address, times, m, n)


def test_one_thread_goes_in_order():
    out = (ctypes.c_int64 * 101)()
    _, once, _, at = native()
    once(pool(1).address, at["order"], ctypes.addressof(out), 100)
    assert list(out) == [100, *range(100)]


def test_a_number_of_threads_nobody_has():
    assert pool(0) is pool(1) and pool(-3) is pool(1)
    assert pool() is pool(None) is pool(cores())
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_a_late_thread_takes_no_task_of_another_job():
    for threads in (2, 3):
        run_jobs(pool(threads).address, 100_000, 2, 3)


def test_several_callers_at_once():
    p, failed = pool(3), []

    def call(k):
        try:
            for _ in range(20):
                run_jobs(p.address, 1000, 7, k + 2)
        except AssertionError as e:
            failed.append(e)

    callers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert not failed


def test_a_task_may_use_the_pool():
    _, once, _, at = native()
    out = Counters(6)
    memory = (ctypes.c_int64 * 6).from_address(out.address)
    memory[0] = pool(2).address
    for _ in range(100):
        once(pool(2).address, at["nested"], out.address, 8)
    assert out.read()[1:] == [800] * 5


@linux
def test_without_work_the_workers_sleep_and_may_run_anywhere():
    run_jobs(pool(4).address, 1000, 7, 8)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15
    workers = [t for t in threading.enumerate() if t.name.startswith("trivium-")]
    assert len(workers) >= 3
    assert all(os.sched_getaffinity(t.native_id) == os.sched_getaffinity(0) for t in workers)


@linux
def test_there_may_be_no_more_threads(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    run_jobs(Pool(3).address, 100, 7, 8)


def python(script):
    """Run a script that has this file's functions, from outside."""
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.join(here, os.pardir, "src")])
    done = subprocess.run(
        [sys.executable, "-c", f"from test_native_threads import *\n{script}"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_a_forked_child_has_its_own_pool():
    script = """
import warnings
warnings.simplefilter("ignore")
p = pool(3)
run_jobs(p.address, 500, 7, 8)
stop = threading.Event()
def work():
    while not stop.is_set(): run_jobs(p.address, 50, 7, 8)
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        run_jobs(p.address, 500, 7, 8)  # whoever kept the parent's address is alone, and correct
        q = pool(3)
        run_jobs(q.address, 500, 7, 8)
        names = open("/proc/self/status").read()
        alive = int(names.split("Threads:")[1].split()[0])
        os._exit(0 if q.address != p.address and alive == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for t in threads: t.join()
run_jobs(p.address, 500, 7, 8)
print("fine")
"""
    assert python(script) == "fine\n"


@linux
@pytest.mark.parametrize("pause", [0, 0.05])
def test_python_ends_while_workers_look_for_work_or_sleep(pause):
    script = f"""
run_jobs(pool(4).address, 1000, 7, 8)
time.sleep({pause})
print("fine")
"""
    assert python(script) == "fine\n"


@linux
@pytest.mark.parametrize("triple", ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"])
def test_the_code_is_valid_for(triple):
    from trivium.native.target import TARGETS

    target = next(t for t in TARGETS.values() if t.triple == triple)
    module = Module(target)
    emit(module)
    parsed = llvm.parse_assembly(module.text())
    parsed.verify()
    assert len(target.machine().emit_object(parsed)) > 1000
