"""Parameters, buffers and inputs keep their dtype, on every road and on every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import trivium as tv
from trivium.graph import UnsupportedError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

INSTALLED = [e for e, version in tv.engines().items() if version]
TRAINS = ["native", "numpy", "torch", "keras", "tensorflow", "mxnet", "jax"]
ENGINES = [pytest.param(e, marks=() if e in INSTALLED else pytest.mark.skip) for e in TRAINS]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NUMBERS = np.float32([1.0, -2.5, 3e38, 1e-30, 0.1])


# -- arrays of other frameworks --------------------------------------------------------------------
def test_bfloat16_of_torch() -> None:
    tensor = torch.from_numpy(NUMBERS).bfloat16().requires_grad_(True)
    ours = tv.asarray(tensor)
    assert ours.dtype == "bfloat16" and ours.numpy().dtype == BFLOAT16
    assert np.array_equal(ours.numpy().astype("f"), tensor.detach().float().numpy())


def test_bfloat16_of_tensorflow_and_jax() -> None:
    want = NUMBERS.astype(BFLOAT16)
    tf, jnp = pytest.importorskip("tensorflow"), pytest.importorskip("jax.numpy")
    for theirs in (tf.constant(want), jnp.asarray(want)):
        ours = tv.asarray(theirs)
        assert ours.dtype == "bfloat16" and np.array_equal(ours.numpy(), want)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float16", "float64", "float32", "uint8"])
def test_arrays_of_torch_keep_their_dtype(dtype: str) -> None:
    tensor = torch.tensor([0, 1, 2]).to(getattr(torch, dtype))
    assert tv.asarray(tensor).dtype == dtype


# -- buffers ---------------------------------------------------------------------------------------
class Buffers(nn.Module):
    """Of every dtype; the integer is beyond what a float32 holds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("count", torch.tensor([2**40 + 1, 2**24 + 1, 3]))
        self.register_buffer("on", torch.tensor([True, False, True]))
        self.register_buffer("narrow", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float16))
        self.register_buffer("brain", torch.tensor([0.1, 0.2, 0.3], dtype=torch.bfloat16))
        self.register_buffer("wide", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))

    def forward(self, x: Any) -> Any:
        y = torch.where(self.on, self.fc(x), x)
        y = y + (self.count - 2**40).float()
        return y * self.narrow.float() + self.brain.float() + self.wide.float()


X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
DTYPES = {"count": "int64", "on": "bool", "narrow": "float16", "brain": "bfloat16",
          "wide": "float64"}  # fmt: skip


def buffers() -> Any:
    torch.manual_seed(0)
    module = Buffers()
    return module


def held(model: Any) -> dict[str, Any]:
    return {n: model.state_dict()[n] for n in DTYPES}


def test_buffers_come_in_and_go_out_as_they_are(tmp_path: Path) -> None:
    model = tv.from_torch(buffers(), X)
    first = held(model)
    assert {n: a.dtype.name for n, a in first.items()} == DTYPES
    assert first["count"].tolist() == [2**40 + 1, 2**24 + 1, 3]
    carried = tv.to_torch(model, X)
    for name, tensor in buffers().named_buffers():
        there = dict(carried.named_buffers())[name]
        assert there.dtype == tensor.dtype and torch.equal(there, tensor), name
    tv.save(model, tmp_path / "m.tv")
    again = held(tv.load(tmp_path / "m.tv"))
    assert all(a.dtype == first[n].dtype and np.array_equal(a, first[n]) for n, a in again.items())


@pytest.mark.parametrize("engine", ["native", "numpy", "torch"])
def test_training_leaves_buffers_as_they_are(engine: str) -> None:
    model = tv.from_torch(buffers(), X)
    first = {n: a.copy() for n, a in held(model).items()}
    model.compile(optimizer="sgd", loss="mse", engine=engine)
    model.fit(X, X, epochs=2, batch_size=2, verbose=False)
    for name, array in held(model).items():
        assert array.dtype == first[name].dtype and np.array_equal(array, first[name]), name


# -- parameters ------------------------------------------------------------------------------------
def small(dtype: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


Y = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_float64_model_trains_in_float64(engine: str, optimizer: str) -> None:
    module = small(torch.float64)
    x, y = X.astype(np.float64) + 1e-12, Y.astype(np.float64)
    model = tv.from_torch(module, x)
    step = tv.TrainStep(model, "mse", optimizer, engine=engine)
    if engine == "jax":
        with pytest.raises(UnsupportedError, match="float64"):
            step(x, y)
        return
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    theirs = kind(module.parameters(), lr=step.optimizer.lr)
    for _ in range(3):
        loss = step(x, y)
        theirs.zero_grad()
        want = F.mse_loss(module(torch.from_numpy(x)), torch.from_numpy(y))
        want.backward()
        theirs.step()
    assert abs(loss - want.item()) < 1e-9
    for name, array in model.state_dict().items():
        want_array = module.state_dict()[name].numpy()
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, want_array, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_a_narrow_model_stays_narrow(engine: str, dtype: str) -> None:
    module = small(getattr(torch, dtype))
    x, y = (tv.asarray(a).astype(dtype).numpy() for a in (X, Y))
    model = tv.from_torch(module, x)
    step = tv.TrainStep(model, "mse", "sgd", engine=engine)
    theirs = torch.optim.SGD(module.parameters(), lr=step.optimizer.lr)
    for _ in range(3):
        step(x, y)
        theirs.zero_grad()
        tensors = [torch.from_numpy(a.astype("f")).to(getattr(torch, dtype)) for a in (x, y)]
        F.mse_loss(module(tensors[0]), tensors[1]).backward()
        theirs.step()
    for name, array in model.state_dict().items():
        assert array.dtype.name == dtype
        want = module.state_dict()[name].float().numpy()
        np.testing.assert_allclose(array.astype("f"), want, atol=2e-2, err_msg=name)


def test_bfloat16_examples_are_verified() -> None:
    module = small(torch.bfloat16)
    example = torch.from_numpy(X).bfloat16()
    model = tv.from_torch(module, example)
    assert model.graph.of_kind("data")[0].dtype == "bfloat16"
    carried = tv.to_torch(model, example, verify=False)
    assert torch.equal(carried(example), module(example))
    assert carried.state_dict()["0.weight"].dtype is torch.bfloat16


def test_float64_examples_are_verified() -> None:
    example = torch.from_numpy(X).double()
    report = tv.to_torch(small(torch.float64), example).report
    assert report.ok and max(r.target_error for r in report.rows) < 1e-12


# -- our own ---------------------------------------------------------------------------------------
def test_parameters_of_our_own_keep_the_dtype_of_their_initial_values() -> None:
    class Table(tv.nn.Module):
        def forward(self, x: Any) -> Any:
            at = self.param("at", (2,), lambda rng, shape: np.int64([2**40, 1]), "state")
            w = self.param("w", (2,), lambda rng, shape: rng.random(shape))
            return x * w + (at - 2**40).astype("float32")

    model = Table()
    model(tv.ones((3, 2)))
    state = model.state_dict()
    assert state["at"].tolist() == [2**40, 1] and state["w"].dtype == np.float32


def test_variables_keep_their_dtype() -> None:
    with tv.Graph() as g:
        whole = tv.variable(np.int64([2**40 + 1]), "whole")
        double = tv.variable(0.1, "double", dtype="float64")
        plain = tv.variable(np.zeros(2), "plain")
    values = tv.Session(g).run([whole, double, plain])
    assert values[0].tolist() == [2**40 + 1] and values[0].dtype == np.int64
    assert float(values[1]) == 0.1 and values[2].dtype == np.float32


@pytest.mark.parametrize("engine", ["native", "numpy", "torch", "tensorflow", "mxnet"])
def test_inputs_keep_their_dtype(engine: str) -> None:
    """2**24 + 1 is no float32; a bool is no number."""
    if engine not in INSTALLED:
        pytest.skip(f"{engine} is not installed")
    seen = tv.compile(lambda i, on: tv.where(on, i + 1, i), engine=engine)
    numbers, on = np.int64([2**24 + 1, 2**40 + 1]), np.array([True, False])
    assert np.asarray(seen(numbers, on)).tolist() == [2**24 + 2, 2**40 + 1]


@pytest.mark.parametrize("engine", ["native", "numpy", "torch"])
def test_fit_keeps_integers_beyond_float32(engine: str) -> None:
    class Odd(tv.nn.Module):
        def forward(self, i: Any) -> Any:
            w = self.param("w", (2,), lambda rng, shape: np.ones(shape))
            return (i - 2**40).astype("float32") * w

    model = Odd()
    i = np.int64([[2**40 + 1, 2**40 + 3]] * 4)
    model.compile(optimizer=tv.optim.SGD(0.0), loss="mse", engine=engine)
    history = model.fit(i, np.float32([[1, 3]] * 4), batch_size=2, verbose=False)
    assert history.history["loss"] == [0.0]
