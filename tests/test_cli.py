"""The command line and the tour: what they print, what they exit with, how they refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.cli import main
from trivium.convert import OUT
from trivium.proof.report import Report, VerificationError
from trivium.tour import DigitsCNN, run

X = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trivium", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tv.seed(0)
    path = tmp_path_factory.mktemp("cli") / "model.tv"
    tv.save(DigitsCNN(), path, X)
    return path


@pytest.mark.parametrize("command", ["emit", "convert", "verify", "inspect", "tour", "engines"])
def test_help_is_there(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert call(monkeypatch, command, "--help") == 0
    said = capsys.readouterr().out
    assert "Usage: " in said and f"\n    trivium {command}" in said


def test_inspect_and_emit(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert call(monkeypatch, "inspect", str(saved)) == 0
    assert 'conv1_weight: param("conv1.weight", float32, (16, 1, 3, 3))' in capsys.readouterr().out
    assert call(monkeypatch, "emit", str(saved), "--to", "torch") == 0
    assert "self.conv1 = nn.Conv2d(1, 16, 3, padding=1)" in capsys.readouterr().out


def test_a_model_class_of_ones_own(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    where = "trivium.tour:DigitsCNN"
    assert call(monkeypatch, "emit", where, "--to", "jax", "--input", "1,8,8") == 0
    assert "def digits_cnn(params, x" in capsys.readouterr().out


def test_convert_and_verify(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime")
    there = tmp_path / "model.onnx"
    assert call(monkeypatch, "convert", str(saved), str(there)) == 0
    assert json.loads((tmp_path / "model.report.json").read_text())["ok"]
    assert call(monkeypatch, "verify", str(saved), str(there)) == 0
    other = tv.load(saved)
    other.load_state_dict({n: a * 1.01 for n, a in other.state_dict().items()})
    tv.save(other, tmp_path / "other.tv")
    capsys.readouterr()
    assert call(monkeypatch, "verify", str(saved), str(tmp_path / "other.tv"), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and report["first_divergence"] == "conv in conv1"


def test_bad_input_is_one_line_and_says_which(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert call(monkeypatch, "inspect", "nowhere.onnx") == 2
    assert "there is no file nowhere.onnx" in capsys.readouterr().err
    damaged = tmp_path / "damaged.tv"
    damaged.write_bytes(saved.read_bytes()[:300])
    assert call(monkeypatch, "inspect", str(damaged)) == 2
    assert "damaged.tv is damaged" in capsys.readouterr().err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path) -> Path:
    """A folder with good and bad models, in which one stands."""
    (tmp_path / "mine.py").write_text(
        "import trivium as tv\n"
        "class Wide(tv.nn.Module):\n"
        "    def __init__(self, width): self.width = width\n"
        "def make(): return tv.nn.Linear(3)\n"
        "def fails(): raise RuntimeError('no luck')\n"
        "def number(): return 5\n"
    )
    (tmp_path / "broken.py").write_text("import there_is_no_such_module\n")
    (tmp_path / "crash.py").write_text("1 / 0\n")
    (tmp_path / "m.tv").write_bytes(saved.read_bytes())
    (tmp_path / "cut.tv").write_bytes(saved.read_bytes()[:300])
    (tmp_path / "other.xyz").write_bytes(b"?")
    (tmp_path / "folder.tv").mkdir()
    for ending in (".tv", ".onnx", ".keras", "-symbol.json"):
        (tmp_path / f"empty{ending}").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "broken", "crash"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("inspect folder.tv", r"folder\.tv is a folder"),
        ("inspect cut.tv", r"cut\.tv is damaged"),
        ("inspect empty.tv", r"empty\.tv is damaged"),
        ("inspect empty.onnx", r"empty\.onnx is no ONNX file"),
        ("inspect empty.keras", r"no \.keras file.*empty\.keras"),
        ("inspect empty-symbol.json", r"empty-symbol\.json"),
        ("inspect other.xyz", r"'\.xyz'.*\.tv, .*\.onnx, \.keras, -symbol\.json"),
        ("inspect nomodule:x", "there is no module nomodule"),
        ("inspect mine.sub:x", r"there is no module mine\.sub"),
        ("inspect broken:x", r"importing broken failed.*there_is_no_such_module.*broken\.py:1"),
        ("inspect crash:x", r"importing crash failed: ZeroDivisionError.*crash\.py:1"),
        ("inspect mine:mke", "mine has no mke; it has make"),
        ("inspect mine:make.x.y", r"mine has no make\.x"),
        ("inspect mine:Wide", r"mine:Wide wants arguments: Wide\(width\)\. Write a function"),
        ("inspect mine:fails", r"mine:fails\(\) failed: RuntimeError: no luck .*mine\.py:5"),
        ("inspect mine:number", "mine:number is no model but of type int"),
        ("inspect mine:make", "Give the shape of each input, without the batch: --input 3,224,224"),
        ("emit mine:make --to torch", "--input 3,224,224"),
        ("inspect mine:make --input abc", "'abc' is no shape: .*1,28,28"),
        ("inspect mine:make --input 3,-1", "'3,-1' is no shape"),
        ("inspect mine:make --input what:3", "'what' is no Trivium dtype; there are bool, "),
        ("inspect mine:make --input 99999999,99999999", "99999999"),
        ("verify m.tv m.tv --steps -1", "-1 is not in the range"),
        ("convert m.tv m.pt", r"'\.pt' of m\.pt: there are \.tv, .*\.onnx, \.keras and \.py"),
        ("convert m.tv folder.tv", r"folder\.tv: that is a folder"),
        ("convert m.tv no/m.tv", r"no/m\.tv: there is no such file or folder.*mkdir -p"),
        ("convert m.tv m.py", r"a \.py destination needs --to torch"),
        ("convert m.tv x.tv --to torch", r"a \.py destination needs --to torch.*no other"),
        ("emit m.tv --to torch -o m.tv", "'m.tv' is a file"),
        ("emit m.tv --to pytorch", "'pytorch' is not one of 'torch'"),
    ],
)
def test_wrong_use_is_said_and_nothing_is_written(
    arguments: str, words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts)
    assert call(monkeypatch, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert re.search(words, said, re.DOTALL), said
    assert "Traceback" not in said
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == before


def test_a_file_that_may_not_be_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("trivium.files._load_tv", refuse)
    assert call(monkeypatch, "inspect", "m.tv") == 2
    assert "m.tv: permission denied; ask its owner" in capsys.readouterr().err


def test_emit_into_a_folder(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert call(monkeypatch, "emit", "m.tv", "--to", "torch", "-o", "made/here") == 0
    assert "wrote made/here/m_torch.py" in capsys.readouterr().out
    source = (here / "made/here/m_torch.py").read_text()
    assert source == tv.emit(tv.load("m.tv"), "torch")
    arguments = ["--to", "jax", "--input", "4", "-o", "made/here"]
    assert call(monkeypatch, "emit", "mine:make", *arguments) == 0
    assert sorted(p.name for p in (here / "made/here").iterdir()) == ["m_torch.py", "make_jax.py"]


@pytest.mark.parametrize("destination", ["n.onnx", "n.tv", "n.py"])
def test_a_convert_that_fails_leaves_nothing(
    destination: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    arguments = ["convert", "m.tv", destination, *(["--to", "torch"] * (destination == "n.py"))]
    (here / destination).write_text("old")
    before = {p.name: p.read_bytes() for p in here.iterdir() if p.is_file()}

    def unchanged() -> bool:
        return {p.name: p.read_bytes() for p in here.iterdir() if p.is_file()} == before

    def differs(*_: Any, **__: Any) -> Any:
        raise VerificationError(nothing)

    nothing = Report("a", "b")  # without a row it is no proof
    with monkeypatch.context() as patch:
        patch.setattr(tv, "verify", lambda *_, **__: nothing)
        patch.setitem(OUT, "torch", differs)
        assert call(patch, *arguments) == 1
        assert "differ" in capsys.readouterr().err and unchanged()
    real, count = os.write, [0]

    def full(handle: int, data: Any) -> int:  # the second file that is put there finds no place
        if os.fstat(handle).st_nlink == 0:
            count[0] += 1
            if count[0] > 5:
                raise OSError(28, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert call(patch, *arguments) == 2
        assert "the disk is full; nothing was changed" in capsys.readouterr().err and unchanged()
    assert call(monkeypatch, *arguments) == 0
    assert (
        not unchanged() and (here / "n.report.json").exists() and (here / "n.report.txt").exists()
    )
    assert not list(here.glob(".trivium-*"))


def test_a_keras_model_with_batch_norm_becomes_onnx(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """ONNX only infers: training is not compared, and what is compared is the file itself."""
    keras = pytest.importorskip("keras")
    pytest.importorskip("onnxruntime")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(3),
        ]
    )
    model.save("cnn.keras")
    assert call(monkeypatch, "convert", "cnn.keras", "cnn.onnx") == 0, capsys.readouterr().err
    assert json.loads(Path("cnn.report.json").read_text())["ok"]
    for pair in (("cnn.keras", "cnn.onnx"), ("cnn.onnx", "cnn.keras")):
        assert call(monkeypatch, "verify", *pair) == 0
    model.layers[1].gamma.assign(model.layers[1].gamma * 1.5)
    model.save("other.keras")
    assert call(monkeypatch, "verify", "other.keras", "cnn.onnx") != 0


def test_a_gluon_export_becomes_onnx(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if not tv.engines()["mxnet"]:
        pytest.skip("MXNet is not installed")
    pytest.importorskip("onnxruntime")
    from trivium.frameworks.mxnet.load import load

    mx = load()
    from mxnet.gluon.model_zoo import vision

    net = vision.get_resnet(1, 18, classes=4, thumbnail=True)
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 3, 16, 16)))
    net.export("resnet18")
    assert call(monkeypatch, "convert", "resnet18-symbol.json", "resnet18.onnx") == 0, (
        capsys.readouterr()
    )
    assert "wrote resnet18.onnx" in capsys.readouterr().out
    assert json.loads(Path("resnet18.report.json").read_text())["ok"]


def process(*arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-m", "trivium", *arguments]
    # A background job ignores SIGINT, and so would its children.
    how |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **how)


def test_as_a_module_into_a_closed_pipe_and_interrupted(here: Path) -> None:
    with process("--version") as done:
        assert done.communicate()[0].startswith(b"trivium, version ")
        assert done.returncode == 0
    with process("inspect", "m.tv") as done:
        assert done.stdout is not None and done.stderr is not None
        done.stdout.close()
        assert (done.stderr.read(), done.wait()) == (b"", 141)
    (here / "slow.py").write_text(
        "import time\ndef make():\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    with process("convert", "slow:make", "slow.tv") as done:
        assert done.stdout is not None
        done.stdout.readline()
        done.send_signal(signal.SIGINT)
        error = done.communicate()[1]
        assert (error.strip(), done.returncode) == (b"trivium: interrupted", 130)
    assert not (here / "slow.tv").exists()


def test_who_watches_sees_what_takes_long(here: Path) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "TERM": "xterm"}
    command = [sys.executable, "-m", "trivium", "emit", "m.tv", "--to", "torch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=env) as done:
        os.close(slave)
        shown = b""
        while chunk := read(master):
            shown += chunk
        assert done.stdout is not None
        assert b"writing m.tv for torch ..." in shown
        assert done.stdout.read().startswith(b"import")
    os.close(master)


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_the_tour_without_training_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One epoch is not enough for the promise, and the tour says so; the roads are proven."""
    pytest.importorskip("sklearn")
    monkeypatch.setenv("COLUMNS", "200")
    assert not run(tmp_path, epochs=1)
    printed = capsys.readouterr().out
    assert "less than the 97% that was promised" in printed
    assert "the same bits" in printed
    assert "DIFFERS" not in printed and "REFUSED" not in printed
    for name in ("torch", "keras", "tensorflow", "mxnet", "jax"):
        if tv.engines()[name]:
            assert json.loads((tmp_path / f"digits_{name}.report.json").read_text())["ok"]
            assert (tmp_path / f"digits_{name}.py").read_text()
