"""JAX functions, written by hand, come in: read from their jaxprs, verified against JAX itself."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Dense(NamedTuple):
    w: Any
    b: Any


HABITS: dict[str, tuple[Any, Any, Any]] = {
    "vmap": (lambda p, x: jax.vmap(lambda v: jnp.tanh(p["w"].T @ v + p["b"]))(x),
             {"w": jax.nn.initializers.glorot_normal()(jax.random.key(0), (4, 3)),
              "b": jnp.zeros(3)}, numbers(3, 4)),
    "named tuples in lists": (lambda p, x: sum(x @ d.w + d.b for d in p),
                              [Dense(numbers(4, 3, seed=i), numbers(3)) for i in range(2)],
                              numbers(3, 4)),
    "bfloat16": (lambda p, x: (x.astype(jnp.bfloat16) @ p).astype(jnp.float32),
                 numbers(4, 3).astype(jnp.bfloat16), numbers(3, 4)),
    "fori_loop": (lambda p, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p[i]), x),
                  numbers(3, 4, 4), numbers(2, 4)),
    "scan over layers": (lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0],
                         numbers(3, 4, 4), numbers(2, 4)),
    "checkpoint": (lambda p, x: jax.checkpoint(lambda h: jnp.tanh(h @ p))(x), numbers(4, 4),
                   numbers(2, 4)),
    "einsum": (lambda p, x: jnp.einsum("bti,hij,bsj->bhts", x, p, x), numbers(2, 4, 4),
               numbers(2, 3, 4)),
    "where": (lambda p, x: jnp.where(x > 0, x, p * x) + jnp.abs(x), numbers(4), numbers(2, 4)),
    "cond": (lambda p, x: lax.cond(p.sum() > 0, lambda v: v @ p, lambda v: v, x), numbers(4, 4),
             numbers(2, 4)),
    "grad inside": (lambda p, x: jax.grad(lambda v: (jnp.tanh(v @ p) ** 2).sum())(x),
                    numbers(4, 3), numbers(2, 4)),
    "slices": (lambda p, x: (x @ p)[:, 1:3] * x[:, :1] + jnp.roll(x, 1, 1)[..., -1][:, None],
               numbers(4, 4), numbers(2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", HABITS)
def test_what_one_is_used_to_write(name: str) -> None:
    function, params, x = HABITS[name]
    assert tv.from_jax(function, params, x).report.ok


def norm(x: Any, scale: Any = None, bias: Any = None) -> Any:
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


WRITTEN_OUT: dict[str, tuple[Any, dict[str, Any]]] = {
    "softmax": (lambda x: jax.nn.softmax(x, axis=1), {"axis": 1}),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), {"approximate": "none"}),
    "mean": (lambda x: x.mean((0, 2), keepdims=True), {"axis": (0, 2), "keepdims": True}),
    "var": (lambda x: x.var(1, ddof=1), {"axis": (1,), "correction": 1, "keepdims": False}),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=-1), {"axis": (2,), "keepdims": False}),
    "layer_norm": (norm, {"axes": 1, "epsilon": 1e-3}),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_what_is_written_out_is_an_op_again(name: str) -> None:
    function, attrs = WRITTEN_OUT[name]
    module = tv.from_jax(lambda p, x: function(x), {}, numbers(2, 3, 4))
    assert [(n.op, n.attrs) for n in module.graph.nodes] == [(name, attrs)]


def test_what_is_nearly_an_op_stays_what_it_is() -> None:
    def ops(function: Any) -> set[str]:
        module = tv.from_jax(lambda p, x: function(x), {}, numbers(2, 3, 4))
        return {n.op for n in module.graph.nodes}

    def scaled(x: Any) -> Any:
        e = jnp.exp(x - lax.stop_gradient(x.max(1, keepdims=True)))
        return e / e.sum(2, keepdims=True)  # another axis

    def bent(x: Any) -> Any:
        return 0.5 * x * (1 + jnp.tanh(0.8 * (x + 0.044715 * x**3)))  # another number

    assert "softmax" not in ops(scaled) and "gelu" not in ops(bent)
    assert "mean" not in ops(lambda x: x.sum(1) / 4)  # of three


def test_a_layer_norm_is_found_with_its_parameters() -> None:
    params = {"scale": numbers(4), "bias": numbers(4, seed=1)}
    module = tv.from_jax(lambda p, x: norm(x, p["scale"], p["bias"]), params, numbers(2, 3, 4))
    (node,) = module.graph.nodes
    assert node.op == "layer_norm" and node.attrs["epsilon"] == 1e-3
    assert [v.name for v in node.inputs[1:] if v is not None] == ["scale", "bias"]


REFUSED: dict[str, tuple[Any, str]] = {
    "sort": (lambda x: jnp.sort(x), "docs/coverage.md"),
    "cumprod": (lambda x: jnp.cumprod(x, 1), "docs/coverage.md"),
    "while": (lambda x: lax.while_loop(lambda v: v.sum() < 10, lambda v: v + 1, x), "fori_loop"),
    "scatter": (lambda x: x.at[:, 0].set(0.0), "concatenate"),
    "random numbers": (lambda x: x + jax.random.normal(jax.random.key(1), (3,)), "an input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    function, remedy = REFUSED[name]
    with pytest.raises(UnsupportedError, match=name) as error:
        tv.from_jax(lambda p, x: function(x), {}, numbers(2, 3))
    assert remedy in str(error.value) and len(str(error.value)) < 300


def test_a_key_is_no_example() -> None:
    def dropped(p: Any, x: Any, key: Any) -> Any:
        return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x @ p / 0.8, 0)

    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        with pytest.raises(UnsupportedError, match="random numbers"):
            tv.from_jax(dropped, numbers(4, 4), numbers(2, 4), key)


def test_candidates_are_traced_once_for_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.frameworks.jax.read import Reader

    traced: list[Any] = []
    meaning = Reader.meaning
    monkeypatch.setattr(Reader, "meaning", lambda *a: traced.append(a) or meaning(*a))
    for _ in range(2):
        before = len(traced)
        tv.from_jax(lambda p, x: jax.nn.log_softmax(x, axis=1), {}, numbers(2, 7), verify=False)
    assert len(traced) - before == 1  # the call itself
