"""Every case of every op: what its declaration says of it is one thing, said in many ways.

Type rule, oracle, body, text, gradient, gradient of the gradient, and torch's own derivation where
the op names its torch form. Nothing here names an op that keeps the rules: a new op is tested by
being declared with cases.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.dtype import DType
from trivium.frameworks.words import Hole, pieces
from trivium.graph import OPS, Graph, Value
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.op import Case, Op
from trivium.transforms.decompose import decompose
from trivium.transforms.grad import gradient
from trivium.transforms.replay import replay, specialize

# Outputs through which no gradient flows, on purpose.
NO_GRADIENT = {
    "batch_norm": ({1, 2}, "running statistics are state: they follow the batch, not the loss"),
    "stop_gradient": ({0}, "that is what it is for"),
}
NOT_TWICE_DIFFERENTIABLE: dict[str, str] = {}  # op: why

ALL = [op for op in OPS.values() if isinstance(op, Op)]
CASES = [pytest.param(op, c, id=f"{op.name}-{i}") for op in ALL for i, c in enumerate(op.cases)]
COMPOSITES = [p for p in CASES if p.values[0].is_composite]
each_case = pytest.mark.parametrize(("op", "case"), CASES)


def one_node(op: Op, case: Case) -> Graph:
    graph = Graph(op.name)
    with graph:
        values = [
            None if s is None else graph.input("data", s.dtype, s.shape, f"x{i}")
            for i, s in enumerate(case.arrays)
        ]
        graph.outputs = list(op.append(graph, *op.bind(values, case.attrs)))
    return check(graph)


def draw(case: Case, floating: Any = tv.float64) -> list[Any]:
    rng = np.random.default_rng(0)
    return [s.array(rng, floating) for s in case.arrays if s is not None]


def scalar(graph: Graph, outputs: list[Value], seed: int) -> Graph:
    """The graph with one output: a random projection of ``outputs`` on a number."""
    graph, env = replay(graph)
    rng = np.random.default_rng(seed)
    with graph:
        total = tv.zeros((), dtype=tv.float32)
        for v in outputs:
            kept = env[v]
            total = total + (kept * rng.standard_normal(v.shape).astype(v.dtype.numpy)).sum()
        graph.outputs = [total]
    return graph


def loss_of(op: Op, case: Case) -> tuple[Graph, list[str]]:
    """The case's node under a scalar loss, and the inputs that it can be differentiated by."""
    graph = one_node(op, case)
    flat, _ = NO_GRADIENT.get(op.name, (set(), ""))
    smooth = [v for i, v in enumerate(graph.outputs) if v.dtype.is_floating and i not in flat]
    wrt = [v.name for v in graph.inputs if v.dtype.is_floating]
    return scalar(graph, smooth, 1), wrt


def smooth(op: Op, case: Case) -> bool:
    """Is there something to differentiate, and by something?"""
    graph, (flat, _) = one_node(op, case), NO_GRADIENT.get(op.name, (set(), ""))
    floats = [v for i, v in enumerate(graph.outputs) if v.dtype.is_floating and i not in flat]
    return bool(floats) and any(v.dtype.is_floating for v in graph.inputs)


SMOOTH = [p for p in CASES if smooth(*p.values)]
each_smooth_case = pytest.mark.parametrize(("op", "case"), SMOOTH)


def assert_derivative(
    f: Callable[..., float], grads: list[Any], arrays: list[Any], at: list[int]
) -> None:
    """Each gradient against central differences, along two random directions in its array."""
    rng = np.random.default_rng(2)
    step = 1e-5
    for g, i in zip(grads, at, strict=True):
        assert g.shape == arrays[i].shape
        for _ in range(2):
            d = rng.uniform(-1, 1, arrays[i].shape)
            ahead, behind = (
                f(*arrays[:i], arrays[i] + s * d, *arrays[i + 1 :]) for s in (step, -step)
            )
            numeric = (ahead - behind) / (2 * step)
            np.testing.assert_allclose(
                (g * d).sum(), numeric, rtol=1e-6, atol=1e-7, err_msg=f"d/d input {i}"
            )


def positions(graph: Graph, names: list[str]) -> list[int]:
    return [[v.name for v in graph.inputs].index(n) for n in names]


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_has_a_case(op: Op) -> None:
    assert op.cases, f"{op.name} is declared without a conformance case"
    assert op.__doc__, f"{op.name} is declared without a docstring"


@each_case
@pytest.mark.parametrize("floating", [tv.float32, tv.float64])
def test_types_are_what_the_oracle_gives(op: Op, case: Case, floating: Any) -> None:
    graph = check(specialize(one_node(op, case), floating=floating))
    results = Interpreter(graph)(*draw(case, floating))
    assert [(v.dtype, v.shape) for v in graph.outputs] == [(r.dtype, r.shape) for r in results]


@each_case
def test_float32_is_near_float64(op: Op, case: Case) -> None:
    graph, arrays = one_node(op, case), draw(case, tv.float32)
    single, double = (Interpreter(graph, f)(*arrays) for f in (None, tv.float64))
    for got, exact in zip(single, double, strict=True):
        unit = np.finfo(np.float32).eps * max(1, np.abs(exact).max(initial=0))
        np.testing.assert_allclose(got, exact, rtol=0, atol=16 * unit)


def test_erf_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(-6, 6, 101)
    for shape in ((101,), (1, 101)):
        fast = OPS["erf"].evaluate([x.reshape(shape)], {})[0]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "scipy.special", None)
            plain = OPS["erf"].evaluate([x.reshape(shape)], {})[0]
            assert OPS["erf"].evaluate([np.float32(0.5)], {})[0].dtype == np.float32
        np.testing.assert_allclose(plain, fast, rtol=1e-15)


def composites_in(graph: Graph) -> list[str]:
    found = [n.op for n in graph.nodes if OPS[n.op].is_composite]
    inner = [a for n in graph.nodes for a in n.attrs.values() if isinstance(a, Graph)]
    return found + [name for g in inner for name in composites_in(g)]


@pytest.mark.parametrize(("op", "case"), COMPOSITES)
def test_body_is_the_fused_form(op: Op, case: Case) -> None:
    graph, arrays = one_node(op, case), draw(case)
    body = check(decompose(graph, lambda node: False))
    assert composites_in(body) == []
    assert [v.type for v in body.outputs] == [v.type for v in graph.outputs]
    for fused, plain in zip(
        *(Interpreter(g, tv.float64)(*arrays) for g in (graph, body)), strict=True
    ):
        np.testing.assert_allclose(fused, plain, rtol=1e-11, atol=1e-12)


def places(case: Case) -> list[Any]:
    """The case's arrays, spread over the places of the result."""
    arrays = draw(case)
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    return [np.ascontiguousarray(np.broadcast_to(a, shape)) for a in arrays]


def each_place(op: Op, case: Case) -> bool:
    """Does the op say so, and has it no number of its own, or inputs left out?"""
    if op.random or None in case.arrays:
        return False
    node = one_node(op, case).nodes[-1]
    return op.elementwise([None if v is None else v.type for v in node.inputs], node.attrs)


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if each_place(*p.values)])
def test_what_works_on_each_place_minds_no_order(op: Op, case: Case) -> None:
    node = one_node(op, case).nodes[-1]
    arrays = places(case)
    (whole,) = op.evaluate(arrays, node.attrs)
    order = np.random.default_rng(4).permutation(whole.size)
    mixed = [a.reshape(-1)[order] for a in arrays]
    (got,) = op.evaluate(mixed, node.attrs)
    np.testing.assert_array_equal(got, whole.reshape(-1)[order])


@each_case
def test_text_reads_back(op: Op, case: Case) -> None:
    graph = one_node(op, case)
    again = check(tv.parse(str(graph)))
    assert graph.difference(again) is None
    assert str(again) == str(graph)


@each_case
def test_eager_is_the_oracle(op: Op, case: Case) -> None:
    arrays = iter(draw(case, tv.float32))
    inputs = [None if s is None else tv.asarray(next(arrays)) for s in case.arrays]
    result = op(*inputs, **case.attrs)
    expected = Interpreter(one_node(op, case))(*draw(case, tv.float32))
    for got, want in zip(result if isinstance(result, tuple) else (result,), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)


@each_smooth_case
def test_gradient(op: Op, case: Case) -> None:
    loss, wrt = loss_of(op, case)
    arrays = draw(case)
    grads = Interpreter(check(gradient(loss, wrt)), tv.float64)(*arrays)[1:]
    f = Interpreter(loss, tv.float64)
    assert_derivative(lambda *xs: f(*xs)[0], grads, arrays, positions(loss, wrt))


@pytest.mark.parametrize(
    ("op", "case"), [p for p in SMOOTH if p.values[0].name not in NOT_TWICE_DIFFERENTIABLE]
)
def test_gradient_of_the_gradient(op: Op, case: Case) -> None:
    loss, wrt = loss_of(op, case)
    arrays = draw(case)
    first = gradient(loss, wrt)
    slope = scalar(first, first.outputs[1:], 3)
    seconds = Interpreter(check(gradient(slope, wrt)), tv.float64)(*arrays)[1:]
    f = Interpreter(slope, tv.float64)
    assert_derivative(lambda *xs: f(*xs)[0], seconds, arrays, positions(loss, wrt))


@each_smooth_case
def test_eager_gradient(op: Op, case: Case) -> None:
    loss, wrt = loss_of(op, case)
    arrays = draw(case, tv.float64)
    expected = Interpreter(gradient(loss, wrt), tv.float64)(*arrays)[1:]
    inputs = [tv.asarray(a, requires_grad=a.dtype == np.float64) for a in arrays]
    module = tv.nn.GraphModule(specialize(loss, floating=tv.float64), {})
    result = module(*inputs)
    if result.requires_grad:
        result.backward()
    for i, want in zip(positions(loss, wrt), expected, strict=True):
        got = np.zeros_like(want) if inputs[i].grad is None else inputs[i].grad.numpy()
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def resized(case: Case, size: int, new: int, attributes: bool) -> Case:
    """The case with one of its sizes changed, in its attributes too or in its arrays alone."""

    def change(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(map(change, item))
        return (
            new if item == size and isinstance(item, int) and not isinstance(item, bool) else item
        )

    arrays = tuple(
        s and replace(s, shape=change(s.shape), high=change(int(s.high)) if s.dtype.is_integer
                      else s.high) for s in case.arrays
    )  # fmt: skip
    return Case(arrays, {k: change(v) if attributes else v for k, v in case.attrs.items()})


@each_case
@pytest.mark.parametrize("new", [0, 1])
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_gradient_at_sizes_0_and_1(op: Op, case: Case, new: int) -> None:
    """Each size of the case in turn; what the op refuses to do, it need not differentiate."""
    for size in sorted({n for s in case.arrays if s is not None for n in s.shape}):
        for attributes in (False, True):
            small = resized(case, size, new, attributes)
            try:
                graph, arrays = one_node(op, small), draw(small)
                results = Interpreter(graph, tv.float64)(*arrays)
                if not all(np.isfinite(y).all() for y in results):
                    continue
            except (ValueError, TypeError, LookupError):
                continue
            wrt = [v.name for v in graph.inputs if v.dtype.is_floating]
            flat, _ = NO_GRADIENT.get(op.name, (set(), ""))
            smooth = [
                v for i, v in enumerate(graph.outputs) if v.dtype.is_floating and i not in flat
            ]
            if not wrt or not smooth:
                continue
            loss = scalar(graph, smooth, 1)
            grads = Interpreter(check(gradient(loss, wrt)), tv.float64)(*arrays)[1:]
            f = Interpreter(loss, tv.float64)
            assert_derivative(lambda *xs, f=f: f(*xs)[0], grads, arrays, positions(loss, wrt))


# -- torch as a second opinion ---------------------------------------------------------------------
NO_TORCH = {  # what torch has no say in, and who has
    "random_uniform": "torch draws other bits",
    "dropout": "torch draws other bits; test_tensor.py counts what is dropped",
    "cond": "Python's if and the Graph are compared in test_tensor.py",
    "scan": "Python's for and the Graph are compared in test_tensor.py",
}
NO_TORCH_GRADIENT = {
    "sgd_update": "torch's optimizers step without a record",
    "adam_update": "torch's optimizers step without a record",
    "hardsigmoid": "torch's slope is float32's 1/6 in float64 too; test_corners.py asks in float32",
}


def torch_expression(op: Op, attrs: Any) -> str | None:
    """The op's torch form as an expression over its arguments' names; None where it has none."""
    template = op.lowering("torch", attrs)
    if not isinstance(template, str):
        return None

    def argument(hole: Hole) -> str:
        star = "*" * (hole.star or hole.name == op.variadic)
        return f"{hole.before}{star}{hole.name}{'[0]' * (hole.way == 'one')}"

    return "".join(p if isinstance(p, str) else argument(p) for p in pieces(template))


def in_torch(op: Op, case: Case, tensors: list[Any]) -> list[Any]:
    """The outputs of the case in torch, in float64."""
    torch = pytest.importorskip("torch")
    import plain_torch
    from trivium.frameworks.torch.layers import HELPERS

    node = specialize(one_node(op, case), floating=tv.float64).nodes[0]
    attrs = {k: getattr(torch, v) if isinstance(v, DType) else v for k, v in node.attrs.items()}
    it = iter(tensors)
    arrays = [None if v is None else next(it) for v in node.inputs]
    if (expression := torch_expression(op, node.attrs)) is not None:
        named = {op.variadic: arrays} if op.variadic else dict(zip(op.arrays, arrays, strict=True))
        names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, **attrs, **named}
        for helper in HELPERS.values():
            exec(helper, names)
        result = eval(expression, names)  # a declaration of ours, on our tensors
    else:
        result = getattr(plain_torch, op.name)(*arrays, **attrs)
    return list(result) if isinstance(result, tuple) else [result]


TORCH = [p for p in CASES if p.values[0].name not in NO_TORCH]


@pytest.mark.parametrize(("op", "case"), TORCH)
def test_torch_gives_the_same(op: Op, case: Case) -> None:
    torch = pytest.importorskip("torch")
    graph, arrays = specialize(one_node(op, case), floating=tv.float64), draw(case)
    results = in_torch(op, case, [torch.tensor(a) for a in arrays])
    for v, got, expected in zip(graph.outputs, results, Interpreter(graph)(*arrays), strict=True):
        assert str(got.dtype) == f"torch.{v.dtype}"
        assert got.shape == v.shape
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("op", "case"),
    [p for p in TORCH if smooth(*p.values) and p.values[0].name not in NO_TORCH_GRADIENT],
)
def test_torch_derives_the_same(op: Op, case: Case) -> None:
    torch = pytest.importorskip("torch")
    loss, wrt = loss_of(op, case)
    arrays = draw(case)
    ours = Interpreter(gradient(loss, wrt), tv.float64)(*arrays)[1:]
    tensors = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in arrays]
    results = [r for r in in_torch(op, case, tensors) if r.requires_grad]
    rng = np.random.default_rng(1)  # the projections of loss_of
    weights = [torch.tensor(rng.standard_normal(r.shape).astype("f")).double() for r in results]
    if results:
        sum((r * w).sum() for r, w in zip(results, weights, strict=True)).backward()
    for i, mine in zip(positions(loss, wrt), ours, strict=True):
        theirs = np.zeros_like(mine) if tensors[i].grad is None else tensors[i].grad.numpy()
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)
