"""What a model calls its outputs, and how they are nested, goes along."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv

torch = pytest.importorskip("torch")
nn = torch.nn

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
NAMES = ["z", "a", "of two"]


class Named(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3) if norm else nn.Identity()

    def forward(self, x: Any) -> Any:
        h = self.norm(self.layer(x))
        return {"z": h, "a": h * 2, "of two": h.argmax(-1)}


class Listed(Named):
    def forward(self, x: Any) -> Any:
        return [self.norm(self.layer(x)), x]


def called(target: str, model: Any) -> Any:
    there = getattr(tv, f"to_{target}")(model, X)
    if target == "jax":
        function, params = there
        result = function(params, X, training=False) if "norm" in params else function(params, X)
        return result
    x = torch.from_numpy(X) if target == "torch" else X
    return (there.eval() if target == "torch" else there)(x)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("target", ["torch", "keras", "tensorflow", "jax"])
def test_a_dict_stays_a_dict(target: str, norm: bool) -> None:
    if target != "torch":
        pytest.importorskip(target)
    model = Named(norm).eval()
    found, want = called(target, model), model(torch.from_numpy(X))
    assert isinstance(found, dict) and set(found) == set(NAMES)
    for name, y in found.items():
        np.testing.assert_allclose(
            np.asarray(y.detach() if target == "torch" else y), want[name].detach(), 1e-5, 1e-6
        )


@pytest.mark.parametrize("target", ["torch", "tensorflow", "jax"])
def test_a_list_stays_a_list(target: str) -> None:
    if target != "torch":
        pytest.importorskip(target)
    assert isinstance(called(target, Listed(True).eval()), (list, tuple))


def test_what_was_carried_agrees_with_its_source() -> None:
    model = Named(True).eval()
    assert tv.verify(model, tv.to_torch(model, X), X).ok


@pytest.mark.parametrize("ending", [".tv", ".onnx", ".keras"])
def test_names_are_in_the_file(tmp_path: Path, ending: str) -> None:
    pytest.importorskip({".onnx": "onnxruntime", ".keras": "keras"}.get(ending, "numpy"))
    tv.save(Named(True).eval(), tmp_path / f"model{ending}", X)
    found = tv.load(tmp_path / f"model{ending}").eval()(X)
    assert isinstance(found, dict) and set(found) == set(NAMES)


def test_another_name_is_a_difference() -> None:
    class Other(Named):
        def forward(self, x: Any) -> Any:
            return dict(zip(["z", "b", "of two"], super().forward(x).values(), strict=True))

    report = tv.verify(Named(False), Other(False), X)
    assert not report.ok and report.first_divergence and "outputs" in report.first_divergence
