"""Files: there whole or not at all, whatever happens; what cannot run is refused when read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import atomic

SRC = Path(__file__).parents[1] / "src"
X = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


def model(seed: int = 0, width: int = 7) -> Any:
    tv.seed(seed)
    net = tv.nn.Sequential(tv.nn.Linear(width), tv.nn.ReLU(), tv.nn.Linear(3))
    net(X)
    return net


def needs(ending: str) -> None:
    if ending == ".onnx":
        pytest.importorskip("onnxruntime")
    if ending == ".keras":
        pytest.importorskip("keras")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


ENDINGS = [".tv", ".onnx", ".keras"]


# -- a disk that is full ---------------------------------------------------------------------------
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("nameless", [True, False])
def test_a_full_disk_keeps_the_old_file(
    ending: str, nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(ending)
    if not nameless:
        monkeypatch.setattr(atomic, "_NAMELESS", 0)
    path = tmp_path / f"m{ending}"
    tv.save(model(), path, X)
    before = contents(tmp_path)
    real, written = os.write, [0]

    def write(handle: int, data: Any) -> int:
        if os.fstat(handle).st_dev == tmp_path.stat().st_dev and not os.isatty(handle):
            if written[0] >= 300:
                raise OSError(28, "No space left on device")
            written[0] += 300
            return real(handle, bytes(data)[:300])
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    for target in (path, tmp_path / f"new{ending}"):
        written[0] = 0
        with pytest.raises(OSError, match="No space left on device") as failure:
            tv.save(model(1), target, X)
        assert failure.value.filename == str(target)
        assert contents(tmp_path) == before
    monkeypatch.setattr(os, "write", real)
    tv.save(model(1), path, X)
    np.testing.assert_array_equal(np.asarray(tv.load(path)(X)), np.asarray(model(1)(X)))


def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """A real one, where one may be mounted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True
    )
    if done.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        path = tmp_path / "m.tv"
        tv.save(model(), path, X)
        before = contents(tmp_path)
        with pytest.raises(OSError, match="No space left"):
            tv.save(model(1, width=20_000), path, X)
        assert contents(tmp_path) == before
        report = tv.verify(model(), model(), X, steps=0, gradients=False)
        (tmp_path / "filling").write_bytes(bytes(64 * 1024 - 3 * 4096))
        with pytest.raises(OSError, match="No space left"):
            report.notes = ["x" * 4096]
            report.save(tmp_path / "m.report.json")
        assert sorted(contents(tmp_path)) == ["filling", "m.tv"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# -- a process that is killed ----------------------------------------------------------------------
LOOP = """
import sys
from pathlib import Path
from trivium import atomic
folder = Path(sys.argv[1])
size = 3_000_000
print("ready", flush=True)
while True:
    for letter in "ab":
        with atomic.together():
            atomic.write(folder / "one", letter * size)
            atomic.write(folder / "two", letter * 100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="files without a name are Linux's")
def test_a_kill_at_any_moment_leaves_whole_files_and_nothing_else(tmp_path: Path) -> None:
    """A file has another name for some microseconds, when it is whole: one kill may hit them."""
    rng = np.random.default_rng(0)
    env = os.environ | {"PYTHONPATH": str(SRC)}
    left = set()
    for moment in rng.uniform(0, 0.05, 12):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)], env=env, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 + float(moment))
            process.kill()
        for name, content in contents(tmp_path).items():
            if name not in ("one", "two"):
                left.add(name)
            assert len(content) == {"one": 3_000_000, "two": 100}.get(name, len(content))
            assert len(content) in (3_000_000, 100) and len(set(content)) == 1
    assert len(left) <= 1


SAVE = """
import sys
import numpy as np
import trivium as tv
x = np.ones((2, 300), "f")
net = tv.nn.Linear(int(sys.argv[2]))
net(x)
print("ready", flush=True)
while True:
    tv.save(net, sys.argv[1], x)
"""


@pytest.mark.parametrize("ending", [".tv", ".onnx"])
def test_a_model_that_is_being_saved_and_killed(ending: str, tmp_path: Path) -> None:
    needs(ending)
    path = tmp_path / f"m{ending}"
    env = os.environ | {"PYTHONPATH": str(SRC)}
    x = np.ones((2, 300), "f")
    for turn, moment in enumerate((0.05, 0.3, 0.5)):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE, str(path), "400"], env=env, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            while turn == 0 and not path.exists():
                time.sleep(0.05)
            time.sleep(moment)
            process.kill()
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        assert np.asarray(tv.load(path)(x)).shape == (2, 400)


# -- what a user expects of a file -----------------------------------------------------------------
def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.together():
        atomic.write(tmp_path / "a", "new")
        atomic.write(tmp_path / "b", "new")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a": b"old"}
    with atomic.together():
        atomic.write(tmp_path / "a", "new")
        atomic.write(tmp_path / "b", "näw")
        assert contents(tmp_path) == {"a": b"old"}
    assert contents(tmp_path) == {"a": b"new", "b": "näw".encode()}


@pytest.mark.parametrize("nameless", [True, False])
def test_permissions_and_links(
    nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        monkeypatch.setattr(atomic, "_NAMELESS", 0)
    folder, elsewhere = tmp_path / "here", tmp_path / "there"
    folder.mkdir()
    elsewhere.mkdir()
    before = os.umask(0o027)
    try:
        tv.save(model(), folder / "new.tv", X)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "new.tv").stat().st_mode) == 0o640
    (folder / "new.tv").chmod(0o604)
    tv.save(model(1), folder / "new.tv", X)
    assert stat.S_IMODE((folder / "new.tv").stat().st_mode) == 0o604
    (elsewhere / "real.tv").write_bytes(b"old")
    (folder / "link.tv").symlink_to(Path("../there/real.tv"))
    (folder / "hanging.tv").symlink_to(elsewhere / "made.tv")
    for name in ("link.tv", "hanging.tv"):
        tv.save(model(), folder / name, X)
        assert (folder / name).is_symlink()
        tv.load(folder / name)
    assert sorted(p.name for p in elsewhere.iterdir()) == ["made.tv", "real.tv"]
    assert sorted(p.name for p in folder.iterdir()) == ["hanging.tv", "link.tv", "new.tv"]


def test_where_nobody_may_write_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.tv").mkdir()
    (tmp_path / "mine.tv").write_bytes(b"keep")
    (tmp_path / "mine.tv").chmod(0o444)
    allowed = os.access

    def access(path: Any, mode: int, **how: Any) -> bool:  # root may write everywhere
        return Path(path).name != "mine.tv" and allowed(path, mode, **how)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr("trivium.files.as_module", lambda *_: pytest.fail("work was done"))
    for name, kind in (
        ("folder.tv", IsADirectoryError),
        ("no/where.tv", FileNotFoundError),
        ("mine.tv", PermissionError),
    ):
        with pytest.raises(kind) as failure:
            tv.save(model(), tmp_path / name, X)
        assert failure.value.filename == str(tmp_path / name)
    assert (tmp_path / "mine.tv").read_bytes() == b"keep"
    with pytest.raises(ValueError, match=r"'.pt'.*\.tv, .*\.onnx, \.keras"):
        tv.save(model(), tmp_path / "m.pt", X)
