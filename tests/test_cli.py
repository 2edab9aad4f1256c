"""The command line and the tour: what they print, what they exit with, how they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.cli import main
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
    assert "Usage: " in capsys.readouterr().out


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
