"""What is refused says what to do, in words a user can follow; and what need not be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trivium as tv

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

X = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
IDS = np.array([[0, 2, 1, 6], [5, 5, 3, 0], [1, 4, 6, 2]])


class Does(nn.Module):
    """A function of its layers and its inputs, as a model."""

    def __init__(self, function: Any, **layers: Any):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def refused(call: Any, *words: str) -> str:
    with pytest.raises(tv.UnsupportedError) as seen:
        call()
    said = str(seen.value)
    assert all(w in said for w in words), said
    return said


# -- weights that two layers share -----------------------------------------------------------------
def tied() -> Any:
    model = Does(lambda m, i: m.head(torch.tanh(m.emb(i))), emb=nn.Embedding(7, 5))
    model.head = nn.Linear(5, 7, bias=False)
    model.head.weight = model.emb.weight
    return model


def two_biases() -> Any:
    model = Does(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(5, 5), b=nn.Linear(5, 5))
    model.b.weight = model.a.weight
    return model


def there_and_back() -> Any:
    layer = nn.Linear(5, 3)
    return Does(lambda m, x: F.linear(torch.tanh(m.a(x)), m.a.weight.t()), a=layer)


@pytest.mark.parametrize("make", [tied, two_biases, there_and_back])
def test_a_weight_of_two_layers_goes_to_keras_and_back(make: Any, tmp_path: Any) -> None:
    pytest.importorskip("keras")
    x = IDS if make is tied else X
    model = make()
    there = tv.to_keras(model, x)
    there.save(tmp_path / "model.keras")
    names = [n for n, _ in model.named_parameters()]
    back = tv.from_keras(tmp_path / "model.keras")
    assert sorted(back.state_dict()) == sorted(names)
    assert tv.verify(there, back, x)


def test_a_cell_in_a_loop_goes_to_keras_though_its_weights_have_other_names() -> None:
    pytest.importorskip("keras")
    assert tv.to_keras(nn.GRUCell(5, 4), X, np.zeros((3, 4), "f")).report.ok


# -- without gradients -----------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["torch", "keras", "jax"])
def test_a_trunk_without_gradients_keeps_its_statistics(target: str) -> None:
    pytest.importorskip(target)

    def forward(m: Any, x: Any) -> Any:
        with torch.no_grad():
            x = m.trunk(x)
        return m.head(x)

    trunk = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())
    assert getattr(tv, f"to_{target}")(Does(forward, trunk=trunk, head=nn.Linear(4, 2)), X)


# -- recurrence ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_recurs_with_gates_says_what_to_do(kind: str) -> None:
    layer = getattr(nn, kind)(5, 4, num_layers=2, dropout=0.1)
    model = Does(lambda m, x: m.r(x)[0], r=layer)
    x = np.stack([X, X])
    refused(lambda: tv.from_torch(model, x), f"an nn.{kind}", "at r", f"nn.{kind}Cell")


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell_is_applied_to_one_moment_after_another(kind: str) -> None:
    def forward(m: Any, x: Any) -> Any:
        h = torch.zeros(x.shape[0], 4)
        state = (h, h) if kind == "LSTMCell" else h
        for i in range(x.shape[1]):
            state = m.cell(x[:, i], state)
        return state

    x = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    net = tv.to_torch(Does(forward, cell=getattr(nn, kind)(5, 4)), x)
    assert net.report.ok


# -- operators that nothing reads ------------------------------------------------------------------
def test_an_operator_that_nothing_reads_says_what_a_user_can_do() -> None:
    words = ("docs/coverage.md", "report it", "CONTRIBUTING.md", "at M")
    model = type("M", (nn.Module,), {"forward": lambda m, x: torch.erfinv(x)})()
    refused(lambda: tv.from_torch(model, X), "the operator aten.erfinv", *words)
    model.forward = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")
    x = np.zeros((1, 3, 8, 8), "f")
    refused(lambda: tv.from_torch(model, x), "aten.upsample_bilinear2d", "is a part", *words)


# -- what is no number -----------------------------------------------------------------------------
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 0.2, -0.2, 3, -3], np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.threshold(x, 0.2, -7.0),
        lambda x: F.threshold(x, 0.0, 0.0),
        lambda x: x**-0.5,
        lambda x: x**0.5,
        lambda x: torch.clamp(x, -1, 1),
        lambda x: torch.clamp(x, min=0.5),
        lambda x: F.leaky_relu(x, -0.5),
        lambda x: F.prelu(x, torch.tensor([0.25])),
        lambda x: F.hardtanh(x),
        lambda x: F.softplus(x, 2.0, 1.0),
        lambda x: torch.maximum(x, x.flip(0)),
    ],
)
def test_what_is_no_number_is_read_as_torch_means_it(function: Any) -> None:
    ours = tv.from_torch(Does(lambda m, x: function(x)), ODD, verify=False)
    want = function(torch.from_numpy(ODD)).numpy()
    np.testing.assert_allclose(np.asarray(ours(ODD)), want, rtol=1e-6)
