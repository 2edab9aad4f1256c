"""What was saved once is read for ever: see old_files.py, which wrote these."""

import json
from typing import Any

import numpy as np
import pytest

import trivium as tv
from old_files import FOLDER, computed, ran
from trivium.graph.check import check

FOLDERS = sorted(p for p in FOLDER.iterdir() if p.is_dir())
MODELS = [p for folder in FOLDERS for p in sorted(folder.glob("*.tv"))]
OPS = [(f, name) for f in FOLDERS for name in json.loads((f / "ops.json").read_text())]


def numbered(arrays: Any, start: str) -> list[Any]:
    names = sorted(
        (k for k in arrays.files if k.startswith(start)), key=lambda k: int(k[len(start) :])
    )
    return [arrays[k] for k in names]


def test_there_are_files() -> None:
    assert len(MODELS) >= 18 and len(OPS) >= 200


@pytest.mark.parametrize("path", MODELS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_model_saved_then_is_the_same_model(path: Any) -> None:
    arrays = np.load(path.parent / "numbers.npz")
    model = tv.load(path)
    outputs = ran(model, numbered(arrays, f"{path.stem}/in"))
    wanted = numbered(arrays, f"{path.stem}/out")
    for got, want in zip(outputs, wanted, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("folder", "name"), OPS, ids=lambda x: getattr(x, "name", x))
def test_an_op_written_then_means_the_same(folder: Any, name: str) -> None:
    arrays = np.load(folder / "numbers.npz")
    graph = check(tv.parse(json.loads((folder / "ops.json").read_text())[name]))
    outputs = computed(graph, numbered(arrays, f"{name}/in"))
    for got, want in zip(outputs, numbered(arrays, f"{name}/out"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_what_a_file_said_beside_numbers_is_kept(folder: Any) -> None:
    model = tv.load(folder / "frozen.tv")
    frozen = {p.name for p in model.parameters() if not p.requires_grad}
    assert frozen == {"body.weight", "body.bias"}
    assert set(model(np.ones((2, 3), "f"))) == {"logits", "hidden"}
    assert [n.attrs["rate"] for n in model.graph.nodes if n.op == "dropout"] == [0.25]
