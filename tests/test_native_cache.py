"""Compiled programs on disk, and object code into memory."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.native import cache, loader, program
from trivium.native.build import assemble
from trivium.native.run import NativeFunction
from trivium.native.target import TARGETS, host

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = tmp_path / "cache"
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", str(where))
    return where


def run() -> Any:
    """A function with a constant, a NumPy kernel and loops of its own."""
    table = np.arange(12, dtype=np.float32).reshape(4, 3)

    def function(x: Any) -> Any:
        picked = tv.cond(tv.sum(x) > 0.0, lambda v: v * 2.0, lambda v: v, x)
        return tv.tanh(picked @ tv.asarray(table))

    graph = tv.trace(function, tv.Spec("float32", (2, 4)), training=False)
    return NativeFunction(graph)({}, [np.ones((2, 4), np.float32)])[0]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


def test_the_second_time_nothing_is_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    assert len(entries(folder)) == 1
    assert folder.stat().st_mode & 0o777 == 0o700

    def never(*_: Any) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(program, "assemble", never)
    assert run().tobytes() == first.tobytes()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_entry_is_made_anew(folder: Path, damage: str) -> None:
    first = run()
    (path,) = entries(folder)
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    broken = {"cut": whole[: len(whole) // 2], "flip": flipped, "empty": b"", "text": b"x" * 100}
    path.write_bytes(broken[damage])
    assert run().tobytes() == first.tobytes()
    assert path.read_bytes() == whole


def test_it_does_not_grow_without_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    monkeypatch.setattr(cache, "LIMIT", 1000)
    folder.chmod(0o700)
    for k in range(6):
        cache.save(f"key{k}", bytes(300))
        os.utime(folder / f"key{k}.bin", (k, k))
    assert cache.load("key0") is None
    assert cache.load("key5") == bytes(300)
    assert sum(p.stat().st_size for p in entries(folder)) <= 1000


def test_a_folder_that_others_may_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    first = run()
    assert entries(folder) == []
    assert run().tobytes() == first.tobytes()


def test_a_folder_that_cannot_be_made_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", "/proc/nothing/here")
    assert cache.folder() is None
    assert np.isfinite(run()).all()


def test_another_machine_or_graph_is_another_entry() -> None:
    keys = {cache.key_of("a", None), cache.key_of("b", None)}
    keys |= {cache.key_of("a", t) for t in TARGETS.values()}
    assert len(keys) == 2 + len(TARGETS)


def test_processes_share_the_folder(folder: Path) -> None:
    code = """
import numpy as np, trivium as tv
x = np.random.default_rng(0).random((20, 30), dtype=np.float32)
for n in range(1, 6):
    fast = tv.compile(lambda x: tv.tanh(x * n) @ x.mT, engine="native")
    print(np.asarray(fast(x)).sum())
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRIVIUM_CACHE_DIR": str(folder)}
    crew = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = {p.communicate(timeout=120)[0] for p in crew}
    assert all(p.returncode == 0 for p in crew)
    assert len(said) == 1
    assert not list(folder.glob("making-*"))


def test_a_cached_program_runs_without_llvm(folder: Path) -> None:
    code = """
import sys, numpy as np, trivium as tv
tv.seed(0)
step = tv.TrainStep(tv.nn.Linear(2), "mse", tv.optim.SGD(0.1), engine="native")
loss = step(np.ones((64, 200), np.float32), np.ones((64, 2), np.float32))
print(loss, any(name.startswith("llvmlite") for name in sys.modules))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TRIVIUM_CACHE_DIR": str(folder)}
    said = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                       timeout=60, check=True).stdout.split() for _ in range(2)
    ]  # fmt: skip
    assert said[0][0] == said[1][0]
    assert said[0][1] == "True"
    assert said[1][1] == "False" or not loader.LINUX_X86


@pytest.mark.skipif(host().name == "neon", reason="the text is for this machine")
@pytest.mark.parametrize("load", [loader.linked, loader.Code])
def test_object_code_is_loaded(load: Any) -> None:
    text = """
@table = private constant [4 x double] [double 1.0, double 2.0, double 4.0, double 8.0]
declare double @exp(double)
define double @picked(i64 %k) {
  %p = getelementptr double, ptr @table, i64 %k
  %x = load double, ptr %p
  %y = call double @exp(double %x)
  ret double %y
}
"""
    code = load(assemble(text, host()), ["picked"])
    address = code["picked"] if load is loader.linked else code.addresses["picked"]
    call = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)(address)
    assert [call(k) for k in range(4)] == [math.exp(2.0**k) for k in range(4)]


@pytest.mark.skipif(not loader.LINUX_X86, reason="read by LLVM elsewhere")
def test_what_the_loader_does_not_know_is_refused() -> None:
    declared = "declare void @no_such_function_anywhere()\n"
    text = declared + "define void @f() {\n call void @no_such_function_anywhere()\n ret void\n}"
    with pytest.raises(OSError, match="no_such_function_anywhere"):
        loader.Code(assemble(text, host()), ["f"])
