"""Where models are compared: what was not seen from the points that were taken before."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import UnsupportedError
from trivium.proof.inputs import _furthest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
IDS = np.array([[0, 1], [2, 3]])


class Does(nn.Module):
    """A table, a layer, and a forward that is given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer, self.does = nn.Embedding(10, 3), nn.Linear(4, 4), forward

    def forward(self, *xs: Any) -> Any:
        return self.does(self, *xs)


# -- integers --------------------------------------------------------------------------------------
@pytest.mark.parametrize("ends", [(0, 9), (-7, 12345), (-(10**6), 10**6), (0, 0), (5, 5), (0, 127)])
@pytest.mark.parametrize("likely", [(), (30521, 9, 3), (12344,)])
def test_the_last_integer_that_is_taken_is_found(ends: Any, likely: Any) -> None:
    asked = []

    def takes(n: int) -> bool:
        asked.append(n)
        return bool(ends[0] <= n <= ends[1])

    start = max(ends[0], 0)
    up = _furthest(takes, start, 10**6, likely)
    assert (_furthest(takes, start, -(10**6), ()), up) == ends
    assert len(asked) < 60


PAIRS = {
    "absolute": (lambda m, x: x.abs(), lambda m, x: x),
    "relu": (lambda m, x: x.relu(), lambda m, x: x),
    "above a hundred": (lambda m, x: x.clamp(max=100), lambda m, x: x),
    "squares": (lambda m, x: x * x, lambda m, x: x),
    "a clamped index": (lambda m, x: m.table(x[:, 0]), lambda m, x: m.table(x[:, 0].clamp(max=3))),
    "a moved index": (lambda m, x: m.table(x + 1), lambda m, x: m.table((x + 1).clamp(max=4))),
    "one of a table": (lambda m, x: m.table(x), lambda m, x: m.table(x) * torch.where(
        x == 7, 2.0, 1.0)[..., None]),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_integer_models_that_differ_are_told_apart(pair: str) -> None:
    a, b = PAIRS[pair]
    assert tv.verify(Does(a), Does(a), IDS).ok
    assert not tv.verify(Does(a), Does(b), IDS).ok


# -- dtypes and sizes ------------------------------------------------------------------------------
KINDS = {
    "half": (lambda m, x: m.layer(x), lambda m, x: m.layer(x).half()),
    "double": (lambda m, x: m.layer(x), lambda m, x: m.layer(x).double()),
    "bool": (lambda m, x: x > 0, lambda m, x: (x > 0).long()),
    "whole": (lambda m, x: (x > 0).float(), lambda m, x: (x > 0).long()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_of_an_output_is_a_difference(kind: str) -> None:
    a, b = KINDS[kind]
    report = tv.verify(Does(a), Does(b), X)
    assert not report.ok
    assert any(r.name.startswith("dtypes of") and not r.ok for r in report.rows)


def test_small_integers_are_summed_as_they_are() -> None:
    keras = pytest.importorskip("keras")
    i = keras.Input((4,), dtype="int32")
    model = keras.Model(i, keras.ops.sum(i, axis=1))
    x = np.array([[2**30, 2**30, 2**30, 5]], np.int32)
    got = tv.to_torch(model)(torch.from_numpy(x)).numpy()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, np.asarray(model(x)))


def test_what_fits_into_the_example_is_not_all() -> None:
    def attends(window: int) -> Callable[..., Any]:
        def forward(m: Any, x: Any) -> Any:
            far = torch.arange(x.shape[1])
            seen = (far[:, None] - far[None]).abs() < window
            y = m.layer(x)
            return (y @ y.mT).masked_fill(~seen, -1e9).softmax(-1) @ y

        return forward

    x = np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)
    assert tv.verify(Does(attends(16)), Does(attends(16)), x).ok
    assert not tv.verify(Does(attends(16)), Does(attends(99)), x).ok


# -- nothing left of it ----------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["instance", "affine", "batch"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_cancels_to_rounding_is_not_misread(norm: str, seed: int) -> None:
    made = {
        "instance": lambda: nn.InstanceNorm2d(6),
        "affine": lambda: nn.InstanceNorm2d(6, affine=True),
        "batch": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    }
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), made[norm]())
    x = np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert tv.to_torch(model, x).report.ok


@pytest.mark.parametrize("form", ["bool", "float", "heads"])
def test_who_sees_nothing_in_an_attention_gets_nothing(form: str) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.heads = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Any, seen: Any) -> Any:
            y = self.layer(x)
            if form == "heads":
                return self.heads(y, y, y, key_padding_mask=~seen, need_weights=False)[0]
            mask = seen[:, None]
            if form == "float":
                mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
            return F.scaled_dot_product_attention(y, y, y, attn_mask=mask)

    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    seen, dead = np.ones((2, 4), bool), np.array([[0, 0, 0, 0], [1, 1, 0, 0]], bool)
    model = Attends()
    there = tv.to_torch(model, x, seen)
    inputs = torch.from_numpy(x), torch.from_numpy(dead)
    want = model.train()(*inputs)
    for got in (there.train()(*inputs), torch.from_numpy(np.asarray(tv.from_torch(
            model, x, seen)(x, dead)))):  # fmt: skip
        assert not want.isnan().any()
        np.testing.assert_allclose(got.detach(), want.detach(), rtol=1e-5, atol=1e-6)
    there.zero_grad()
    there(*inputs).sum().backward()
    assert not any(p.grad.isnan().any() for p in there.parameters() if p.grad is not None)


# -- a model that is not left as it was ------------------------------------------------------------
class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls, self.ready = nn.Linear(4, 2), 3, False

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.ready = True
        return self.layer(x) * (1 if self.calls < 1000 else 2)


def test_a_count_in_forward_is_said_and_left_alone() -> None:
    model = Counts()
    with pytest.warns(UserWarning, match="changes its calls"):
        tv.to_torch(model, X)
    assert model.calls == 3 and model.ready is False


def test_a_dropout_that_is_always_on_is_refused() -> None:
    def forward(m: Any, x: Any) -> Any:
        return F.dropout(m.layer(x), 0.4)

    with warnings.catch_warnings(), pytest.raises(UnsupportedError, match="in evaluation too"):
        warnings.simplefilter("ignore")
        tv.from_torch(Does(forward), X)


# -- a framework's own words -----------------------------------------------------------------------
def test_what_a_framework_lacks_is_no_raw_error() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UnsupportedError, match="onnx does not build"):
        tv.to_onnx(Does(lambda m, x: -x), np.array([1, 2, 3], np.uint8))
    with pytest.raises(UnsupportedError, match="open number of classes"):
        tv.to_onnx(Does(lambda m, x, y: F.cross_entropy(x, y)), X, np.array([0, 1, 2]))
