"""The round of five roads: one CNN through every framework and back, the same Graph and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.convert import graph_of
from trivium.tour import DigitsCNN
from trivium.transforms.simplify import canonical

X = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)


def carried(model: Any, road: str, tmp_path: Path) -> Any:
    match road:
        case "torch":
            return tv.from_torch(tv.to_torch(model, X), X)
        case "keras":
            path = tmp_path / "model.keras"  # through a file: what a Keras user would hand over
            tv.save(model, path, X)
            return tv.load(path)
        case "mxnet":
            return tv.from_mxnet(tv.to_mxnet(model, X), X)
        case "onnx":
            path = tmp_path / "model.onnx"
            tv.save(model, path, X)
            return tv.load(path)
    raise AssertionError(road)


def test_the_round_of_five_roads(tmp_path: Path) -> None:
    tv.seed(3)
    model: Any = DigitsCNN()
    start = canonical(graph_of(model, X))
    values, y = model.state_dict(), np.asarray(model(X))
    for road in ("torch", "keras", "mxnet", "onnx"):
        model = carried(model, road, tmp_path)
        assert canonical(graph_of(model)).difference(start) is None, road
        now = model.state_dict()
        assert now.keys() == values.keys()
        for name, array in values.items():
            np.testing.assert_array_equal(now[name], array, err_msg=f"{name} after {road}")
        np.testing.assert_allclose(
            np.asarray(model.eval()(X)), y, rtol=1e-5, atol=1e-6, err_msg=road
        )


@pytest.mark.parametrize("road", ["torch", "keras", "mxnet", "onnx"])
def test_every_road_there_and_back_is_the_same_graph(road: str, tmp_path: Path) -> None:
    tv.seed(4)
    model = DigitsCNN()
    back = carried(model, road, tmp_path)
    assert canonical(graph_of(back)).difference(canonical(graph_of(model, X))) is None
    assert tv.verify(model, back, X)
