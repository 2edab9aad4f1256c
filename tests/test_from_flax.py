"""Flax nnx modules come in: both modes read from their jaxprs, verified against Flax itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import MODE, UnsupportedError

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
jnp = jax.numpy


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


class Logistic(nnx.Module):
    def __init__(self, rngs: Any):
        self.linear = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return jax.nn.sigmoid(self.linear(x))


class MLP(nnx.Module):
    def __init__(self, rngs: Any):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(8, momentum=0.9, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(nnx.relu(norm(layer(x))))
        return self.head(x)


class CNN(nnx.Module):
    def __init__(self, rngs: Any):
        self.conv1 = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.norm(self.conv2(x)))
        return self.linear(x.reshape(x.shape[0], -1))


class Elman(nnx.Module):
    def __init__(self, rngs: Any):
        self.rnn = nnx.RNN(nnx.SimpleCell(2, 3, rngs=rngs))
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.rnn(x)[:, -1])


class Block(nnx.Module):
    def __init__(self, rngs: Any):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.up = nnx.Linear(4, 8, rngs=rngs)
        self.down = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Residual(nnx.Module):
    def __init__(self, rngs: Any):
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


MODELS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda rngs: nnx.Linear(4, 3, rngs=rngs), numbers(5, 4)),
    "logistic": (Logistic, numbers(5, 4)),
    "mlp": (MLP, numbers(5, 4)),
    "cnn": (CNN, numbers(2, 8, 8, 2)),
    "elman": (Elman, numbers(2, 5, 2)),
    "residual": (Residual, numbers(3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_comes_in_verified(name: str) -> None:
    make, x = MODELS[name]
    model = make(nnx.Rngs(0))
    module = tv.from_jax(model, x)
    assert module.report.ok and any(r.kind == "gradient" for r in module.report.rows)
    held = nnx.to_flat_state(nnx.split(model, nnx.RngState, ...)[2])
    assert set(module.state_dict()) == {".".join(map(str, path)) for path, _ in held}
    larger = np.concatenate([x] * 3)  # the batch is open
    model.eval()
    want = np.asarray(model(larger))
    np.testing.assert_allclose(np.asarray(module.eval()(larger)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["torch", "keras", "tensorflow", "mxnet", "jax"])
@pytest.mark.parametrize("name", MODELS)
def test_goes_on(name: str, target: str) -> None:
    pytest.importorskip({"mxnet": "requests"}.get(target, target))
    make, x = MODELS[name]
    there = getattr(tv, f"to_{target}")(make(nnx.Rngs(0)), x)
    assert (there[0] if target == "jax" else there).report.ok


def test_a_norm_and_a_dropout_are_open_in_their_mode() -> None:
    model = MLP(nnx.Rngs(0))
    module = tv.from_jax(model, numbers(5, 4))
    modes = [(n.op, n.attrs["training"]) for n in module.graph.nodes if "training" in n.attrs]
    assert modes == [("batch_norm", MODE), ("dropout", MODE)] * 2
    assert {v.name for v in module.graph.updates} == {
        f"norms.{i}.{stat}" for i in range(2) for stat in ("mean", "var")
    }
    x = numbers(5, 4, seed=1)
    model.train()
    for layer in (model.layers[0], model.norms[0]):
        x = layer(x)
    module.train()(numbers(5, 4, seed=1))  # what the first norm collects does not depend on chance
    for stat in ("mean", "var"):
        want = getattr(model.norms[0], stat)[...]
        got = module.state_dict()[f"norms.0.{stat}"]
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5, atol=1e-6)


def test_one_mode_alone() -> None:
    model = MLP(nnx.Rngs(0))
    module = tv.from_jax(model, numbers(5, 4), training=False)
    assert module.report.ok and not module.graph.updates
    assert {n.attrs.get("training", False) for n in module.graph.nodes} == {False}
    with pytest.raises(UnsupportedError, match="on in every mode"):
        tv.from_jax(model, numbers(5, 4), training=True)


def test_a_norm_called_twice_goes_on_from_what_it_collected() -> None:
    class Twice(nnx.Module):
        def __init__(self, rngs: Any):
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.norm(nnx.relu(self.norm(x)))

    assert tv.from_jax(Twice(nnx.Rngs(0)), numbers(5, 4)).report.ok


LAYERS: dict[str, tuple[Any, Any]] = {
    "Conv": (lambda r: nnx.Conv(4, 6, (3,), padding="CAUSAL", rngs=r), numbers(2, 5, 4)),
    "ConvTranspose": (lambda r: nnx.ConvTranspose(3, 5, (3, 3), (2, 2), rngs=r),
                      numbers(2, 4, 4, 3)),
    "Einsum": (lambda r: nnx.Einsum("bti,io->bto", (4, 6), (6,), rngs=r), numbers(2, 5, 4)),
    "Embed": (lambda r: nnx.Embed(10, 4, rngs=r), np.array([[1, 2, 3], [3, 4, 9]], np.int32)),
    "GroupNorm": (lambda r: nnx.GroupNorm(6, num_groups=2, rngs=r), numbers(2, 4, 4, 6)),
    "GRU": (lambda r: nnx.RNN(nnx.GRUCell(4, 3, rngs=r)), numbers(2, 5, 4)),
    "InstanceNorm": (lambda r: nnx.InstanceNorm(3, rngs=r), numbers(2, 4, 4, 3)),
    "LinearGeneral": (lambda r: nnx.LinearGeneral((5, 4), (2, 3), axis=(-2, -1), rngs=r),
                      numbers(2, 5, 4)),
    "LSTM": (lambda r: nnx.RNN(nnx.OptimizedLSTMCell(4, 3, rngs=r)), numbers(2, 5, 4)),
    "MultiHeadAttention": (lambda r: nnx.MultiHeadAttention(2, 4, decode=False, rngs=r),
                           numbers(2, 5, 4)),
    "RMSNorm": (lambda r: nnx.RMSNorm(4, rngs=r), numbers(3, 4)),
    "Sequential": (lambda r: nnx.Sequential(nnx.Linear(4, 3, rngs=r), nnx.gelu,
                                            nnx.Dropout(0.5, rngs=r)), numbers(3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, x = LAYERS[name]
    assert tv.from_jax(make(nnx.Rngs(0)), x).report.ok


def test_linen_comes_as_a_function_of_its_variables() -> None:
    linen = pytest.importorskip("flax.linen")
    model = linen.Sequential([linen.Dense(5), linen.relu, linen.LayerNorm(), linen.Dense(2)])
    x = numbers(3, 4)
    module = tv.from_jax(model.apply, model.init(jax.random.key(0), x), x)
    assert module.report.ok and module.graph.name == "Sequential"
    assert "params.layers_0.kernel" in module.state_dict()


class Counting(nnx.Module):
    def __init__(self) -> None:
        self.count, self.w = nnx.Variable(jnp.array(0)), nnx.Param(jnp.ones(4))

    def __call__(self, x: Any) -> Any:
        self.count[...] += 1
        return x * self.w


class Branching(nnx.Module):
    def __init__(self, rngs: Any):
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(x) if self.norm.use_running_average else 2 * self.norm(x)


REFUSED: dict[str, tuple[Any, str]] = {
    "changes in inference too": (lambda r: Counting(), "training=True"),
    "differ in more than dropout": (Branching, "training=False"),
    "which a call assigns": (lambda r: nnx.WeightNorm(nnx.Linear(4, 3, rngs=r), rngs=r),
                             "nnx.Param"),
    "random numbers": (lambda r: nnx.Dropout(0.5, broadcast_dims=(1,), rngs=r), "nnx.Dropout"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what: str) -> None:
    make, remedy = REFUSED[what]
    with pytest.raises(UnsupportedError, match=what) as error:
        tv.from_jax(make(nnx.Rngs(0)), numbers(3, 4))
    assert remedy in str(error.value)


def test_what_is_called_so_by_its_layer_alone_is_that_layer() -> None:
    source = tv.emit(MLP(nnx.Rngs(0)), "torch", numbers(5, 4))
    assert "BatchNorm1d(8)" in source and "running_mean" not in source.split("class MLP")[1]
    module = tv.to_torch(MLP(nnx.Rngs(0)), numbers(5, 4), verify=False)
    assert {"norms.0.weight", "norms.0.running_var", "head.kernel"} <= module.state_dict().keys()
