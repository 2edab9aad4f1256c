"""JAX functions, written by hand, come in: read from their jaxprs, verified against JAX itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import UnsupportedError

jax = pytest.importorskip("jax")
jnp, lax = jax.numpy, jax.lax


def numbers(*shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.standard_normal(shape).astype(np.float32))


def linear(p: Any, x: Any) -> Any:
    return x @ p["w"] + p["b"]


def logistic(p: Any, x: Any) -> Any:
    return jax.nn.sigmoid(x @ p["w"] + p["b"])


def mlp(p: Any, x: Any) -> Any:
    for layer in p[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return jax.nn.log_softmax(x @ p[-1]["w"] + p[-1]["b"])


def cnn(p: Any, x: Any) -> Any:
    order = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=order)
    y = jax.nn.relu(y + p["kernel_bias"])
    y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return y.reshape(y.shape[0], -1) @ p["w"] + p["b"]


def elman(p: Any, x: Any) -> Any:
    def step(h: Any, xt: Any) -> Any:
        h = jnp.tanh(xt @ p["ih"] + h @ p["hh"] + p["b"])
        return h, h

    h, _ = lax.scan(step, jnp.zeros((x.shape[0], 3)), x.swapaxes(0, 1))
    return h @ p["out"]


def residual(p: Any, x: Any) -> Any:
    for block in p["blocks"]:
        centered = x - x.mean(-1, keepdims=True)
        normed = centered / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * block["scale"]
        h = jax.nn.gelu(normed @ block["w"])
        x = x + jax.nn.silu(h)
    return {"out": x, "largest": x.max(-1)}


LAYERS = [{"w": numbers(4, 6), "b": numbers(6)}, {"w": numbers(6, 3), "b": numbers(3)}]
MODELS: dict[str, Any] = {
    "linear": (linear, {"w": numbers(4, 3), "b": numbers(3)}, numbers(5, 4)),
    "logistic": (logistic, {"w": numbers(4, 1), "b": numbers(1)}, numbers(5, 4)),
    "mlp": (mlp, LAYERS, numbers(5, 4)),
    "cnn": (
        cnn,
        {"kernel": numbers(3, 3, 2, 4), "kernel_bias": numbers(4), "w": numbers(64, 3) * 0.2,
         "b": numbers(3)},
        numbers(2, 8, 8, 2),
    ),
    "elman": (
        elman,
        {"ih": numbers(2, 3), "hh": numbers(3, 3), "b": numbers(3), "out": numbers(3, 2)},
        numbers(2, 5, 2),
    ),
    "residual": (
        residual,
        {"blocks": [{"scale": numbers(4, seed=i), "w": numbers(4, 4, seed=i)} for i in range(2)]},
        numbers(3, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_comes_in_verified(name: str) -> None:
    function, params, x = MODELS[name]
    module = tv.from_jax(function, params, x)
    assert module.report.ok and any(r.kind == "gradient" for r in module.report.rows)
    larger = np.concatenate([np.asarray(x)] * 3)  # the batch is open
    want = jax.tree_util.tree_leaves(function(params, larger))
    found = module.eval()(larger)
    got = [found[k] for k in sorted(found)] if isinstance(found, dict) else [found]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["torch", "keras", "tensorflow", "mxnet", "jax"])
@pytest.mark.parametrize("name", MODELS)
def test_goes_on(name: str, target: str) -> None:
    pytest.importorskip({"mxnet": "requests"}.get(target, target))
    function, params, x = MODELS[name]
    module = tv.from_jax(function, params, x)
    if target == "mxnet" and name == "residual":
        with pytest.warns(UserWarning, match="MXNet gives a list"):
            assert tv.to_mxnet(module).report.ok
        return
    there = getattr(tv, f"to_{target}")(module)
    assert (there[0] if target == "jax" else there).report.ok


def test_what_jax_calls_by_name_is_an_op() -> None:
    def names(x: Any) -> Any:
        y = jax.nn.relu(x) + jax.nn.relu6(x) + jax.nn.silu(x) + jax.nn.softplus(x)
        return y + jax.nn.log_softmax(x, axis=0) + jax.nn.log_sigmoid(x)

    graph = tv.from_jax(lambda p, x: names(x), {}, numbers(3, 4), verify=False).graph
    ops = {n.op for n in graph.nodes} - {"add"}
    assert ops == {"relu", "relu6", "silu", "softplus", "log_softmax", "log_sigmoid"}


def test_a_derivative_of_its_own_is_no_part_of_what_is_read() -> None:
    @jax.custom_jvp
    def relu(x: Any) -> Any:
        return jax.nn.relu(x)

    relu.defjvp(lambda xs, ts: (jax.nn.relu(xs[0]), 7 * ts[0]))
    with pytest.raises(tv.VerificationError, match="misread"):
        tv.from_jax(lambda p, x: relu(x @ p), numbers(4, 3), numbers(2, 4))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_axis_of_a_call_by_name_is_found(axis: int) -> None:
    module = tv.from_jax(lambda p, x: jax.nn.log_softmax(x, axis=axis), {}, numbers(3, 4))
    assert [(n.op, n.attrs) for n in module.graph.nodes] == [("log_softmax", {"axis": axis})]


REFUSED = {
    "sort": lambda x: jnp.sort(x),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "while": lambda x: lax.while_loop(lambda v: v.sum() < 10, lambda v: v + 1, x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        tv.from_jax(lambda p, x: REFUSED[name](x), {}, numbers(2, 3))
