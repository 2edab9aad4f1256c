"""Gradients of whole Graphs: composition, control flow, second order; torch as a second opinion."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.graph import Graph, GraphError
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.transforms.grad import gradient, pullback, unbroadcast
from trivium.transforms.replay import inline

Arrays = list[Any]


def run(graph: Graph, arrays: Arrays) -> Arrays:
    return Interpreter(graph, tv.float64)(*arrays)


def assert_gradient(graph: Graph, wrt: list[str], arrays: Arrays) -> Arrays:
    """``graph``'s gradients, after comparing each element with a central difference."""
    grads = run(check(gradient(graph, wrt)), arrays)[1:]
    names, f = [v.name for v in graph.inputs], Interpreter(graph, tv.float64)
    for name, grad in zip(wrt, grads, strict=True):
        i = names.index(name)
        numeric = np.zeros_like(arrays[i])
        for at in np.ndindex(arrays[i].shape):
            ahead, behind = (arrays[i].copy() for _ in range(2))
            ahead[at] += 1e-6
            behind[at] -= 1e-6
            values = [f(*arrays[:i], a, *arrays[i + 1 :])[0] for a in (ahead, behind)]
            numeric[at] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(grad, numeric, rtol=1e-6, atol=1e-8, err_msg=name)
    return grads


def traced(f: Callable[..., Any], *arrays: Any) -> Graph:
    return check(tv.trace(f, *(("float64", a.shape) for a in arrays)))


# -- composition -----------------------------------------------------------------------------------
def test_what_is_shared_gathers(rng: np.random.Generator) -> None:
    def f(x: Any, w: Any) -> Any:
        h = tv.tanh(x @ w)
        return (h * h.sum(axis=1, keepdims=True) + tv.exp(h) * w.sum()).mean()

    arrays = [rng.standard_normal(s) for s in ((2, 3), (3, 4))]
    assert_gradient(traced(f, *arrays), ["x0", "x1"], arrays)


def test_third_order_of_a_power() -> None:
    x = np.array(1.7)
    graph = traced(lambda x: x * x * x * x, x)
    for expected in (4 * 1.7**3, 12 * 1.7**2, 24 * 1.7):
        graph = gradient(graph, ["x0"])
        np.testing.assert_allclose(run(graph, [x])[1], expected, rtol=1e-12)
        graph.outputs = graph.outputs[1:]


def test_a_hessian_is_symmetric(rng: np.random.Generator) -> None:
    x = rng.standard_normal(3)
    first = gradient(traced(lambda x: (tv.sigmoid(x) * tv.exp(-x).sum()).sum(), x), ["x0"])
    rows = []
    for direction in np.eye(3):
        with Graph() as g:
            v = g.input("data", "float64", (3,), "x0")
            g.outputs = [(inline(first, g, [v])[1] * direction).sum()]
        rows.append(run(gradient(g, ["x0"]), [x])[1])
    np.testing.assert_allclose(np.array(rows), np.array(rows).T, rtol=1e-12)
    assert np.abs(rows).min() > 0


def test_integers_get_zeros_and_the_unused_too() -> None:
    graph = tv.trace(
        lambda x, i, u: tv.take(x, i).sum(), ("float32", (4,)), ("int64", (2,)), ("float32", (3,))
    )
    arrays = [np.ones(4), np.array([1, 1]), np.ones(3)]
    _, x, i, u = run(check(gradient(graph, ["x0", "x1", "x2"])), arrays)
    assert x.tolist() == [0, 2, 0, 0]
    assert (i == 0).all() and i.dtype == np.int64
    assert u.tolist() == [0, 0, 0]


def test_the_input_itself_as_the_loss() -> None:
    graph = traced(lambda x: x, np.ones(()))
    assert run(gradient(graph, ["x0"]), [np.array(3.0)]) == [3, 1]


@pytest.mark.parametrize(("size", "step"), [(0, 2), (0, 1), (1, 2), (1, 3), (5, 2), (6, 4)])
def test_a_strided_slice_of_any_size(size: int, step: int) -> None:
    """Of nothing and of one too; the size known, or open until the numbers come."""
    x = np.arange(1.0, 2 * size + 1).reshape(size, 2)
    expected = np.where((np.arange(size) % step == 0)[:, None], 2 * x, 0)
    for open_size in (size, "n"):
        graph = tv.trace(lambda x: (x[::step] ** 2).sum(), ("float64", (open_size, 2)))
        (grad,) = run(check(gradient(graph, ["x0"])), [x])[1:]
        np.testing.assert_array_equal(grad, expected)
    eager = tv.grad(lambda x: (x[::step] ** 2).sum())(tv.asarray(x))
    np.testing.assert_array_equal(np.asarray(eager), expected)


def test_updates_of_states_stay(rng: np.random.Generator) -> None:
    model = tv.nn.Sequential(tv.nn.Linear(3), tv.nn.BatchNorm())
    graph = tv.trace(lambda x: (model(x) ** 2).sum(), ("float32", ("batch", 2)), training=True)
    grads = check(gradient(graph))
    assert [v.name for v in grads.updates] == ["1.running_mean", "1.running_var"]
    assert len(grads.outputs) == 1 + len(graph.of_kind("param"))
    assert {n.scope for n in grads.nodes} == {"0", "1", ""}  # a gradient belongs to its layer


def test_pullback_takes_a_cotangent_per_output(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3))
    graph = tv.trace(lambda x: (tv.exp(x), x * 2.0, x.argmax()), ("float64", (2, 3)))
    back = check(pullback(graph, ["x0"]))
    assert [v.name for v in back.inputs] == ["x0", "cotangent_0", "cotangent_1"]
    a, b = rng.standard_normal((2, 2, 3))
    *outputs, grad = run(back, [x, a, b])
    assert len(outputs) == 3
    np.testing.assert_allclose(grad, a * np.exp(x) + 2 * b)


def test_one_value_as_two_outputs(rng: np.random.Generator) -> None:
    def twice(x: Any) -> Any:
        y = tv.exp(x)
        return y, y

    back = pullback(tv.trace(twice, ("float64", (3,))), ["x0"])
    x, a, b = rng.standard_normal((3, 3))
    np.testing.assert_allclose(run(back, [x, a, b])[2], (a + b) * np.exp(x))


def test_open_sizes_stay_open(rng: np.random.Generator) -> None:
    def f(x: Any, w: Any) -> Any:
        y = tv.concat(x @ w, x[:, 1:], axis=1)
        y = tv.reshape(y, shape=(x.shape[0] * 2, -1))
        return (y / y.sum(axis=0)).mean() + x[1:].max()

    graph = gradient(tv.trace(f, ("float64", ("batch", 3)), ("float64", (3, 2))), ["x0", "x1"])
    assert check(graph).dims() == {"batch"}
    for batch in (2, 5):
        arrays = [rng.uniform(1, 2, (batch, 3)), rng.uniform(1, 2, (3, 2))]
        fixed = assert_gradient(traced(f, *arrays), ["x0", "x1"], arrays)
        for a, b in zip(run(graph, arrays)[1:], fixed, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_unbroadcast_sums_what_was_repeated() -> None:
    g = tv.ones((2, 3, 4))
    assert unbroadcast(g, (3, 1)).tolist() == [[8], [8], [8]]
    assert unbroadcast(g, ()).item() == 24
    assert unbroadcast(g, (1, 3, 4)).shape == (1, 3, 4)
    assert unbroadcast(g, g.shape) is g


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: gradient(tv.trace(tv.exp, ("float32", (2,))), ["x0"]),
            r"scalar; output 0 has shape \(2,\)",
        ),
        (lambda: gradient(tv.trace(tv.sum, ("float32", (2,))), ["y"]), "no input 'y'"),
        (
            lambda: gradient(
                tv.trace(lambda x: tv.nn.BatchNorm()(x).sum(), ("float32", ("batch", 2))), ["x0"]
            ),
            "training=True or training=False",
        ),
    ],
)
def test_what_has_no_gradient_is_refused(make: Callable[[], Any], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        make()


# -- where it is easy to be wrong ------------------------------------------------------------------
def test_a_masked_class_does_not_poison_the_loss() -> None:
    """-inf is how a class is ruled out; 0 * -inf would be NaN."""
    logits = tv.asarray([[1.0, -np.inf, 2.0], [0.5, 1.0, -np.inf]], requires_grad=True)
    loss = tv.cross_entropy(logits, tv.asarray([2, 0]))
    expected = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(0.5))]
    np.testing.assert_allclose(loss.item(), np.mean(expected), rtol=1e-6)
    loss.backward()
    assert np.isfinite(logits.grad.numpy()).all()


@pytest.mark.parametrize("f", [tv.softplus, tv.sigmoid, tv.tanh, tv.silu, tv.gelu, tv.log_softmax])
def test_large_numbers_overflow_nowhere(f: Callable[..., Any]) -> None:
    x = tv.asarray([-1000.0, -90.0, 0.0, 90.0, 1000.0], requires_grad=True)
    y = f(x)
    y.sum().backward()
    assert np.isfinite(y.numpy()).all()
    assert np.isfinite(x.grad.numpy()).all()


def test_the_gradient_at_a_kink() -> None:
    x = tv.asarray([0.0], requires_grad=True)
    for f, slope in (
        (tv.relu, 0),
        (tv.abs, 0),
        (tv.softplus, 0.5),
        (lambda x: tv.maximum(x, 0.0), 1),
    ):
        x.grad = None
        f(x).sum().backward()
        assert x.grad.tolist() == [slope]


def test_equal_extrema_share() -> None:
    x = tv.asarray([[3.0, 3.0, 1.0]], requires_grad=True)
    x.max(axis=1).sum().backward()
    assert x.grad.tolist() == [[0.5, 0.5, 0]]
    x.grad = None
    tv.max_pool(x.reshape(1, 1, 3), kernel=3).sum().backward()
    assert x.grad.tolist() == [[1, 0, 0]]


def test_a_repeated_index_gathers() -> None:
    w = tv.asarray(np.zeros((3, 2)), requires_grad=True)
    tv.take(w, tv.asarray([[2, 2], [0, -1]])).sum().backward()
    assert w.grad.tolist() == [[1, 1], [0, 0], [3, 3]]


# -- control flow ----------------------------------------------------------------------------------
@pytest.mark.parametrize("flag", [True, False])
def test_cond(rng: np.random.Generator, flag: bool) -> None:
    def f(c: Any, x: Any, w: Any) -> Any:
        y = tv.cond(c, lambda a: tv.tanh(a @ w), lambda a: a[:, :2] * 3.0, x)
        return (y * y).sum()

    arrays = [np.array(flag), rng.standard_normal((2, 3)), rng.standard_normal((3, 2))]
    graph = check(tv.trace(f, ("bool", ()), ("float64", (2, 3)), ("float64", (3, 2))))
    grads = assert_gradient(graph, ["x1", "x2"], arrays)
    assert grads[1].any() == flag
    first = gradient(graph, ["x1", "x2"])
    first.outputs = [first.outputs[1]]
    with first:
        first.outputs = [(first.outputs[0] ** 2).sum()]
    assert_gradient(first, ["x1", "x2"], arrays)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_with_weights_from_outside(rng: np.random.Generator, reverse: bool) -> None:
    def f(xs: Any, w: Any, b: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            h, total = c
            h = tv.tanh(h @ w + x[0] + b)
            return (h, total + h.sum()), h * x[1]

        start = (xs[0] * 0.1, tv.zeros((), dtype=xs.dtype))
        (h, total), ys = tv.scan(step, start, (xs, xs * xs), reverse=reverse)
        return total * total + (ys * ys).sum() + h.mean()

    arrays = [rng.standard_normal(s) * 0.5 for s in ((3, 2, 2), (2, 2), (2,))]
    assert_gradient(traced(f, *arrays), ["x0", "x1", "x2"], arrays)


def test_scan_that_counts_is_refused_by_name() -> None:
    def f(xs: Any) -> Any:
        start = (tv.zeros(()), tv.zeros((), dtype=tv.int64))
        (total, _), _ = tv.scan(lambda c, x: ((c[0] + x, c[1] + 1), x), start, xs)
        return total

    with pytest.raises(GraphError, match="scan with an integer carry"):
        gradient(tv.trace(f, ("float32", (3,))), ["x0"])


def test_scan_inside_scan(rng: np.random.Generator) -> None:
    def f(xs: Any, w: Any) -> Any:
        def outer(c: Any, row: Any) -> Any:
            c, ys = tv.scan(lambda d, x: (tv.tanh(d * w + x), d), c, row)
            return c, ys.sum()

        return tv.scan(outer, tv.zeros((), dtype=xs.dtype), xs)[1].sum()

    arrays = [rng.standard_normal((2, 3)), np.array(0.7)]
    assert_gradient(traced(f, *arrays), ["x0", "x1"], arrays)


def test_a_branch_inside_a_scan(rng: np.random.Generator) -> None:
    def f(xs: Any, w: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            c = tv.cond(x > 0.0, lambda d: d * w, lambda d: tv.exp(-d * x), c)
            return c, c

        return tv.scan(step, tv.ones((), dtype=xs.dtype), xs)[1].sum()

    arrays = [np.array([0.5, -0.4, 1.0, -0.2]), np.array(0.7)]
    assert_gradient(traced(f, *arrays), ["x0", "x1"], arrays)


# -- torch's own derivation ------------------------------------------------------------------------
def assert_torch_agrees(
    ours: Graph, names: list[str], theirs: Callable[..., Any], arrays: Arrays
) -> None:
    torch = pytest.importorskip("torch")
    value, *grads = run(check(gradient(ours, names)), arrays)[: 1 + len(names)]
    tensors = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in arrays]
    loss = theirs(*tensors)
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-10)
    order = [v.name for v in ours.inputs]
    for name, grad in zip(names, grads, strict=True):
        expected = tensors[order.index(name)].grad.numpy()
        np.testing.assert_allclose(grad, expected, rtol=1e-8, atol=1e-11, err_msg=name)


def test_a_convolutional_network_beside_torch(rng: np.random.Generator) -> None:
    class Net(tv.nn.Module):
        def __init__(self) -> None:
            self.conv = tv.nn.Conv2d(6, 3, stride=2, padding=((1, 1), (0, 2)), groups=2)
            self.bn = tv.nn.BatchNorm2d()
            self.fc = tv.nn.Linear(5)

        def forward(self, x: Any) -> Any:
            x = tv.max_pool(tv.gelu(self.bn(self.conv(x))), kernel=2, stride=1, padding=1)
            return self.fc(tv.avg_pool(x, kernel=2).flatten(start=1))

    net = Net()
    graph = tv.trace(
        lambda x, y: tv.cross_entropy(net(x), y),
        ("float32", ("batch", 4, 9, 8)), ("int64", ("batch",)), training=True,
    )  # fmt: skip
    state = net.state_dict()
    data = {"x0": rng.standard_normal((3, 4, 9, 8)), "x1": np.array([4, 0, 2])}
    arrays = [data[v.name] if v.name in data else state[v.name].astype("d") for v in graph.inputs]

    def theirs(*tensors: Any) -> Any:
        import torch.nn.functional as F

        v = dict(zip([v.name for v in graph.inputs], tensors, strict=True))
        x = F.conv2d(
            F.pad(v["x0"], (0, 2, 1, 1)), v["conv.weight"], v["conv.bias"], stride=2, groups=2
        )
        mean, var = (v[f"bn.running_{s}"].detach().clone() for s in ("mean", "var"))
        x = F.gelu(F.batch_norm(x, mean, var, v["bn.weight"], v["bn.bias"], training=True))
        x = F.avg_pool2d(F.max_pool2d(x, 2, stride=1, padding=1), 2)
        return F.cross_entropy(F.linear(x.flatten(1), v["fc.weight"], v["fc.bias"]), v["x1"])

    names = [v.name for v in graph.of_kind("param")]
    assert_torch_agrees(graph, ["x0", *names], theirs, arrays)


def test_a_recurrent_network_beside_torch(rng: np.random.Generator) -> None:
    model = tv.nn.Sequential(tv.nn.Embedding(7, 3), tv.nn.RNN(4, last=True), tv.nn.LayerNorm())
    graph = tv.trace(
        lambda i: (model(i) ** 2).sum() + model(i).exp().mean(), ("int64", ("batch", 5))
    )
    state = {k: v.astype("d") + 0.01 for k, v in model.state_dict().items()}
    arrays = [
        rng.integers(0, 7, (3, 5)) if v.kind == "data" else state[v.name] for v in graph.inputs
    ]

    def theirs(*tensors: Any) -> Any:
        import torch
        import torch.nn.functional as F

        v = dict(zip([v.name for v in graph.inputs], tensors, strict=True))
        x = F.embedding(v["x0"], v["0.weight"])
        h = torch.zeros(3, 4, dtype=torch.float64)
        for t in range(5):
            h = torch.tanh(x[:, t] @ v["1.weight_ih"].T + v["1.bias_ih"] + h @ v["1.weight_hh"].T)
        y = F.layer_norm(h, (4,), v["2.weight"], v["2.bias"])
        return (y**2).sum() + y.exp().mean()

    assert_torch_agrees(graph, [v.name for v in graph.of_kind("param")], theirs, arrays)
