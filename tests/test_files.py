"""Files: there whole or not at all, whatever happens; what cannot run is refused when read."""

from __future__ import annotations

import os
import random
import re
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
from trivium.graph import OPS, Graph
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.shape import size_product, subs

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
from trivium.graph.check import check
from trivium.graph import OPS, Graph
from trivium.interpret import Interpreter
from trivium.shape import size_product, subs
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
    """As above: what is left, at most once, is a whole file between its two names."""
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
        left = [p for p in tmp_path.iterdir() if p != path]
        assert len(left) <= 1 and all(p.stat().st_size == path.stat().st_size for p in left)
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
    with pytest.raises(IsADirectoryError, match=r"folder\.tv is a folder"):
        tv.load(tmp_path / "folder.tv")
    with pytest.raises(ValueError, match=r"'.pt'.*\.tv, .*\.onnx, \.keras"):
        tv.save(model(), tmp_path / "m.pt", X)


# -- text that parses and cannot run ---------------------------------------------------------------
HEAD = """def graph(
    x: data("x", float32, (2, 3, 4, 4)),
    n: data("n", int64, (2,)),
    m: data("m", float32, (2,)),
    b: data("b", bool, (2, 3)),
    k: data("k", uint64, (3,)),
    w: param("w", float32, (5, 3, 3, 3)),
):
"""


def refused(path: Path, *lines: str, head: str = HEAD) -> str:
    """What ``load`` says of a model with these lines."""
    from safetensors.numpy import save

    text = head + "".join(f"    {line}\n" for line in lines) + "    return y"
    arrays = {"w": np.ones((5, 3, 3, 3), "f")}
    path.write_bytes(save(arrays, metadata={"trivium": "1", "graph": text}))
    with pytest.raises(ValueError) as refusal:
        tv.load(path)
    said = str(refusal.value)
    assert "Traceback" not in said and len(said) > 20
    return said


CONV = "y = conv(x, w, stride={}, padding={}, dilation={}, groups={}, layout={})"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("y = concat(axis=0)", "nothing to join"),
        ("y = stack(axis=0)", "nothing to join"),
        ("y = full(shape=(1000000, 1000000), value=1.5, dtype=float32)", "4,000,000,000,000 bytes"),
        ('y = full(shape=("batch*1000000", 1000000), value=1.5, dtype=float32)', "bytes or more"),
        ('y = full(shape=("batch",), value=1.5, dtype=float32)', "no input says .* 'batch'"),
        ("y = full(shape=((2, 3), 4), value=1.5, dtype=float32)", "a size is an int or a name"),
        ("y = full(shape=(2,), value=-1, dtype=uint8)", "-1 is no uint8"),
        ("y = full(shape=(2,), value=nan, dtype=int64)", "nan is no int64"),
        ("y = full(shape=(-2,), value=1.5, dtype=float32)", "negative size"),
        ("y = arange(stop=5, start=0, step=0, dtype=int64)", "step=0"),
        ("y = arange(stop=10000000000000, start=0, step=1, dtype=int8)", "bytes or more"),
        ("y = sum(x, axis=(1,), keepdims=1.5)", "keepdims=1.5"),
        ("y = max(x, axis=array([1.0], float32, (1,)), keepdims=False)", "axis"),
        ("y = mean(x, axis=(7,), keepdims=False)", "axis 7 is out of range"),
        ("y = layer_norm(x, axes=7, epsilon=1e-05)", "layer_norm"),
        ("y = layer_norm(x, axes=1, epsilon='a')", "epsilon"),
        ("y = subtract(x, 'x')", "not defined"),
        ("y = subtract(x, None)", "an array is missing"),
        ("y = subtract(b, b)", "bools"),
        ("y = add(m, n)", "one dtype"),
        ("y = argmax(x, axis=9)", "axis 9"),
        ("y = take(x, x, axis=0)", "integer indices"),
        ("y = take_grad(x, n, axis=5, size=5)", "take_grad"),
        ("y = random_uniform(k, shape=(2,), salt=0, dtype=float32)", "two uint64"),
        ("y = dropout(x, k, rate=0.5, training=MODE, salt=0)", "two uint64"),
        ("y = one_hot(n, classes=-2, dtype=float32)", "at least one class"),
        ("y = one_hot(n, classes=3, dtype=1.5)", "dtype"),
        ("y = pad(x, low=(1,), high=(1,), interior=(0,), value=0.0)", "do not fit"),
        ("y = pad(x, low=(9999999999, 0, 0, 0), high=(-9999999999, 0, 0, 0), "
         "interior=(0, 0, 0, 0), value=0.0)", "bytes or more"),
        ("y = reshape(x, shape=('2//0', 3))", "divides by zero"),
        (f"y = reshape(x, shape=('{'*'.join(['(a+b+c+d+e+f+g)'] * 9)}',))", "terms"),
        (f"y = reshape(x, shape=('{'-' * 100_000}1',))", "no size|no printed Graph"),
        (f"y = sum(x, axis={'(' * 90}1{',)' * 90}, keepdims=False)", "axis"),
        ("y = flatten(x, start=y)", "not an attribute"),
        ("y = rnn(x, w, w, activation='no')", "rnn"),
        (CONV.format("(0, 1)", "((0, 0), (0, 0))", "(1, 1)", "1", "'NCHW'"), "1 or more"),
        (CONV.format("(1, 1)", "((0, 0), (0, 0))", "(-1, 1)", "1", "'NCHW'"), "1 or more"),
        (CONV.format("(1, 1)", "((0, 0), (0, 0))", "(1, 1)", "0", "'NCHW'"), "at least one group"),
        (CONV.format("(1,)", "((0, 0), (0, 0))", "(1, 1)", "1", "'NCHW'"), "2 axes"),
        (CONV.format("(1, 1)", "((0, 0),)", "(1, 1)", "1", "'NCHW'"), "padding of 2 axes"),
        (CONV.format("(1, 1)", "((0, 0), (0, 0))", "(1, 1)", "1", "'NCW'"), "layout 'NCW'"),
        (CONV.format("(9999999, 1)", "((99999999999, 0), (0, 0))", "(1, 1)", "1", "'NCHW'"),
         "bytes or more"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused_when_read(line: str, why: str, tmp_path: Path) -> None:
    said = refused(tmp_path / "m.tv", line)
    assert re.search(why, said), said


def test_an_input_that_is_too_large_and_numbers_that_are_others(tmp_path: Path) -> None:
    huge = HEAD.replace("(2, 3, 4, 4)", "(1000000, 1000000)")
    assert "input 'x'" in refused(tmp_path / "m.tv", "y = tanh(m)", head=huge)
    for change in (
        ("(5, 3, 3, 3)", "(5, 3, 3, 2)"),
        ('w: param("w", float32', 'w: param("w", int8'),
    ):
        said = refused(tmp_path / "m.tv", "y = tanh(x)", head=HEAD.replace(*change))
        assert "its 'w' is not" in said


POOL = """
0 1 -1 2 3 7 1000000 -99999999999999999999 1.5 nan inf None True () (1,) (1,2) ((1,2),(3,4))
'batch' 'batch-5' '-batch' 'batch*1000000' 'x' 'NHWC' 'NCHW' '' '1//0' float32 int64 bool uint8
bfloat16 MODE array([1.0,2.0],float32,(2,)) array([],float32,(0,)) graph
"""


def texts() -> list[str]:
    """A Graph for every case of every op."""
    found = []
    for op in OPS.values():
        for one in getattr(op, "cases", ()):
            graph = Graph()
            with graph:
                arrays = [
                    None if a is None else graph.input("data", a.dtype, a.shape, f"x{i}")
                    for i, a in enumerate(one.arrays)
                ]
                made = op(*arrays, **one.attrs)
                graph.outputs = list(made) if isinstance(made, tuple) else [made]
            found.append(str(graph))
    return found


def spoilt(text: str, rng: random.Random) -> str:
    """``text`` with one to three of its words, or of its attributes, replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = list(re.finditer(r'"[^"]*"|\d+\.\d+(?:e-?\d+)?|\d+|[A-Za-z_]\w*|[(),=:-]', text))
        attributes = list(re.finditer(r"(?<==)(\([^()]*\)|[^\s(),]+)(?=[,)])", text))
        at = rng.choice(attributes if attributes and rng.random() < 0.6 else words)
        new = rng.choice(POOL.split()) if rng.random() < 0.7 else rng.choice(words).group()
        text = text[: at.start()] + new + text[at.end() :]
    return text


def test_what_is_read_runs() -> None:
    """Spoilt texts of every op: each is refused in words, or runs and makes what it says."""
    rng, originals, ran = random.Random(20), texts(), 0
    for _ in range(2500):
        text = spoilt(rng.choice(originals), rng)
        try:
            graph = check(tv.parse(text))
        except ValueError as error:  # GraphError and ShapeError are ValueErrors
            assert str(error), text
            continue
        dims = dict.fromkeys(graph.dims(), 2)
        shapes = [tuple(subs(s, dims) for s in v.shape) for v in graph.inputs]
        if any(s < 0 for shape in shapes for s in shape) or sum(map(size_product, shapes)) > 1e6:
            continue
        inputs = [np.zeros(s, v.dtype.numpy) for s, v in zip(shapes, graph.inputs, strict=True)]
        try:
            results = Interpreter(graph, training=True)(*inputs)
        except (tv.ShapeError, IndexError) as error:  # what the numbers alone decide, in words
            assert dims or "is out of range for" in str(error), text
            continue
        ran += 1
        for value, result in zip(graph.results(), results, strict=True):
            assert result.dtype == value.dtype.numpy, text
            assert dims or result.shape == value.shape, text
    assert ran > 100


def test_a_damaged_file_is_refused_in_words(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "m.tv"
    tv.save(model(), path, X)
    whole, refusals = path.read_bytes(), 0
    for turn in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content if turn % 4 else content[: rng.randrange(len(content))])
        try:
            tv.load(path)(X)
        except ValueError:
            refusals += 1
    assert refusals > 150


def test_a_model_keeps_how_its_outputs_are_named(tmp_path: Path) -> None:
    class Named(tv.nn.Module):
        def __init__(self) -> None:
            self.a = tv.nn.Linear(2)

        def forward(self, x: Any) -> Any:
            y = self.a(x)
            return {"y": y, "z": tv.relu(y)}

    model, x = Named(), np.ones((2, 3), np.float32)
    model(x)
    tv.save(model, tmp_path / "m.tv")
    again = tv.load(tmp_path / "m.tv")
    assert list(again(x)) == ["y", "z"]
    assert tv.verify(model, again)
    assert "class Named" in tv.emit(again, "torch")


@pytest.mark.parametrize(
    "said",
    ['{"outputs": ["y", "z"], "classes": {}, "sizes": {}}',
     '{"outputs": null, "classes": [], "sizes": {}}',
     '{"outputs": null, "classes": {}, "sizes": {"batch": -1}}', "[]", "{", "{}",
     '{"outputs": "set", "classes": {}, "sizes": {}}'],
)  # fmt: skip
def test_what_a_file_says_of_itself_has_to_fit(said: str, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    model = tv.nn.Linear(2).build(np.ones((2, 3), np.float32))
    tv.save(model, tmp_path / "m.tv")
    with safe_open(str(tmp_path / "m.tv"), framework="numpy") as file:
        text = file.metadata()["graph"]
        values = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    save_file(values, str(tmp_path / "bad.tv"), metadata={"graph": text, "said": said})
    with pytest.raises(ValueError, match="damaged"):
        tv.load(tmp_path / "bad.tv")


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    model = tv.nn.Sequential(tv.nn.Linear(16), tv.nn.Linear(3))
    model(np.ones((2, 8), "f"))
    tv.save(model, tmp_path / "model.tv")
    whole = (tmp_path / "model.tv").read_bytes()
    want = np.asarray(tv.load(tmp_path / "model.tv").eval()(np.ones((2, 8), "f")))
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "spoilt.tv").write_bytes(bytes(spoilt))
        try:
            found = tv.load(tmp_path / "spoilt.tv").eval()(np.ones((2, 8), "f"))
        except (ValueError, tv.GraphError, tv.UnsupportedError):
            continue
        np.testing.assert_array_equal(found, want)  # "trivium": "1" says nothing of numbers
