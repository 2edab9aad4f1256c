"""Every case of every op: what its declaration says of it is one thing, said in many ways.

Type rule, oracle, body, text, gradient, gradient of the gradient, and torch's own derivation where
the op names its torch form. Nothing here names an op that keeps the rules: a new op is tested by
being declared with cases.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.dtype import DType, as_dtype
from trivium.frameworks.words import Hole, pieces
from trivium.graph import OPS, Graph, Node, Value
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.op import Case, Op
from trivium.traits import CONTRACTION, FAMILIES, MOVEMENT, REDUCTION
from trivium.transforms.decompose import decompose
from trivium.transforms.grad import gradient
from trivium.transforms.replay import replay, specialize
from trivium.transforms.simplify import simplify

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


# -- what an op says it is like --------------------------------------------------------------------
FAMILY = {f: [p for p in CASES if p.values[0].family == f] for f in FAMILIES}


def placed(node: Node, arrays: list[Any]) -> list[Any]:
    """The arrays as the node takes them, None where one is left out."""
    given = iter(arrays)
    return [None if v is None else next(given) for v in node.inputs]


def axes_of(attrs: Any) -> tuple[int, ...]:
    return (attrs["axis"],) if isinstance(attrs["axis"], int) else attrs["axis"]


@pytest.mark.parametrize(("op", "case"), FAMILY[REDUCTION])
def test_a_reduction_makes_one_number_along_its_axes(op: Op, case: Case) -> None:
    """Its shape says so; and each result depends on the numbers of its own row alone."""
    node, (x,) = one_node(op, case).nodes[-1], draw(case)
    axes = axes_of(node.attrs)
    kept = [1 if i in axes else s for i, s in enumerate(x.shape)]
    if not node.attrs.get("keepdims"):
        kept = [s for i, s in enumerate(x.shape) if i not in axes]
    (whole,) = op.evaluate([x], node.attrs)
    assert list(whole.shape) == kept
    for axis in set(range(x.ndim)) - set(axes):
        other = x.copy()
        other[(slice(None),) * axis + (0,)] *= -3
        (got,) = op.evaluate([other], node.attrs)
        at = axis if node.attrs.get("keepdims") else axis - sum(a < axis for a in axes)
        rest = (slice(None),) * at + (slice(1, None),)
        np.testing.assert_array_equal(got[rest], whole[rest])


@pytest.mark.parametrize(("op", "case"), FAMILY[MOVEMENT])
def test_a_movement_computes_nothing(op: Op, case: Case) -> None:
    node = one_node(op, case).nodes[-1]
    arrays = draw(case)
    numbers = [a for a in arrays if a.dtype.kind == "f"]
    for a in numbers:  # numbers that come from nowhere else
        a[...] = np.random.default_rng(a.size).permutation(a.size).reshape(a.shape) + 1000.5
    (out,) = op.evaluate(arrays, node.attrs)
    known = [a.reshape(-1) for a in numbers] + [np.array([node.attrs.get("value", 1000.5)])]
    assert set(out.reshape(-1)) <= set(np.concatenate(known))


@pytest.mark.parametrize(("op", "case"), FAMILY[CONTRACTION])
def test_a_contraction_is_linear_in_both(op: Op, case: Case) -> None:
    node, arrays = one_node(op, case).nodes[-1], draw(case)
    full = placed(node, arrays)
    x, y, *bias = full
    nothing = [b if b is None else 0 * b for b in bias]
    (once,) = op.evaluate([x, y, *nothing], node.attrs)
    for a, b in ((2 * x, y), (x, 2 * y)):
        np.testing.assert_allclose(op.evaluate([a, b, *nothing], node.attrs)[0], 2 * once)
    assert np.abs(op.evaluate([0 * x, y, *nothing], node.attrs)[0]).max() == 0


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if p.values[0].axes is not None])
def test_axes_are_followed(op: Op, case: Case) -> None:
    """Arrays laid otherwise, and the result laid back: the same as before."""
    node, arrays = one_node(op, case).nodes[-1], draw(case)
    rank, full = arrays[0].ndim, placed(node, arrays)
    plain = op.evaluate(full, node.attrs)
    assert op.axes is not None
    for order in itertools.permutations(range(rank)):
        attrs, lies = op.axes(node.attrs, order)
        laid = [a.transpose(order) if a is not None and a.ndim == rank else a for a in full]
        found = op.evaluate(laid, attrs)
        back = found[0].transpose([lies.index(i) for i in range(len(lies))])
        for got, want in zip((back, *found[1:]), plain, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("op", "case"), [p for p in CASES if p.values[0].images and "layout" in p.values[0].defaults]
)
def test_images_lie_as_their_layout_says(op: Op, case: Case) -> None:
    node, arrays = one_node(op, case).nodes[-1], draw(case)
    full = placed(node, arrays)
    layout = node.attrs["layout"]
    rank = len(layout)
    other = "NC" + layout[1:-1] if layout[-1] == "C" else "N" + layout[2:] + "C"
    order = tuple(layout.index(a) for a in other)
    laid = [
        a.transpose(order) if name in op.images else a
        for a, name in zip(full, op.names(full), strict=True)
    ]
    (plain,) = op.evaluate(full, node.attrs)
    (found,) = op.evaluate(laid, node.attrs | {"layout": other})
    if not op.makes_kernel:
        plain = plain.transpose((*order, *range(rank, plain.ndim)))
    np.testing.assert_allclose(found, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if p.values[0].around is not None])
def test_padding_stands_for_a_number(op: Op, case: Case) -> None:
    node, arrays = one_node(op, case).nodes[-1], draw(case)
    x, *more = placed(node, arrays)
    sides, it = [], iter(node.attrs["padding"])
    for a in node.attrs["layout"]:
        sides.append((0, 0) if a in "NC" else next(it))
    padded = np.pad(x, sides, constant_values=op.around)
    none = tuple((0, 0) for _ in node.attrs["padding"])
    (want,) = op.evaluate([x, *more], node.attrs)
    (got,) = op.evaluate([padded, *more], node.attrs | {"padding": none})
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def likely(value: Any, x: Any) -> list[Any]:
    """Values of an attribute with which an op might do nothing."""
    found = [value, (), x.shape, False, x.ndim - 1, tuple(range(x.ndim)), (0,) * x.ndim]
    return [*found, 0.0, as_dtype(x.dtype)]


IDLE = [op for op in ALL if op.idle is not None]


@pytest.mark.parametrize("op", IDLE, ids=lambda op: op.name)
def test_what_is_idle_leaves_its_array_as_it_is(op: Op) -> None:
    assert op.idle is not None
    count = 0
    for c in op.cases:
        arrays = draw(c, tv.float64)
        x, names = arrays[0], list(c.attrs) or ["axis"]
        for several in itertools.product(*(likely(c.attrs.get(n), x) for n in names[:3])):
            changed = c.attrs | dict(zip(names, several, strict=False))
            try:
                graph = one_node(op, Case(c.arrays, changed))
                graph = specialize(graph, floating=tv.float64)
                node = graph.nodes[-1]
                types = [v if v is None else v.type for v in node.inputs]
                idle = op.idle(*types, **node.attrs)
            except (TypeError, ValueError, IndexError, AttributeError):
                continue
            if idle:
                count += 1
                (y,) = op.evaluate(placed(node, arrays), node.attrs)
                np.testing.assert_array_equal(y, x)
    assert count, f"{op.name} is never idle"


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if "axis" in p.values[0].defaults])
def test_nothing_is_left_out_that_does_something(op: Op, case: Case) -> None:
    """Along no axis a sum is what is summed; a variance is 0 there."""
    try:
        graph = one_node(op, Case(case.arrays, case.attrs | {"axis": ()}))
    except (TypeError, ValueError, LookupError):
        return
    arrays = draw(case)
    for got, want in zip(
        *(Interpreter(g, tv.float64)(*arrays) for g in (simplify(graph), graph)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-12)


BOUNDED = [p for p in CASES if p.values[0].bounds]


@pytest.mark.parametrize(("op", "case"), BOUNDED)
def test_places_out_of_bounds_are_an_error_everywhere(op: Op, case: Case) -> None:
    graph, arrays = one_node(op, case), draw(case, tv.float32)
    node = graph.nodes[-1]
    for name, bounds in op.bounds.items():
        at = op.arrays.index(name)
        low, high, what = bounds(*(v.type for v in node.inputs if v is not None), **node.attrs)
        for wrong, fits in ((low - 1, False), (low, True), (high - 1, True), (high, False)):
            given = [a.copy() for a in arrays]
            given[at].reshape(-1)[-1] = wrong
            for run in (Interpreter(graph), tv.compile(op_with(op, case))):
                if fits:
                    run(*given)
                    continue
                with pytest.raises(IndexError, match=f"out of range for {what}"):
                    run(*given)


def op_with(op: Op, case: Case) -> Any:
    return lambda *arrays: op(*arrays, **case.attrs)


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if p.values[0].gives is not None])
def test_numbers_are_what_an_op_says_it_gives(op: Op, case: Case) -> None:
    node = one_node(op, case).nodes[-1]
    assert op.gives is not None
    low, high = op.gives(*(v.type for v in node.inputs if v is not None), **node.attrs)
    rng = np.random.default_rng(0)
    shapes = [s.shape for s in case.arrays if s is not None]
    found = [op.evaluate([rng.standard_normal(s) for s in shapes], node.attrs) for _ in range(100)]
    assert {int(n) for (y,) in found for n in y.reshape(-1)} == set(range(low, high))


@pytest.mark.parametrize(("op", "case"), [p for p in CASES if p.values[0].random])
def test_random_numbers_follow_their_key(op: Op, case: Case) -> None:
    node, arrays = one_node(op, case).nodes[-1], draw(case)
    at = op.arrays.index(op.random)
    other = [a + np.uint64(1) if i == at else a for i, a in enumerate(arrays)]
    once, again, changed = (op.evaluate(a, node.attrs)[0] for a in (arrays, arrays, other))
    np.testing.assert_array_equal(once, again)
    assert (node.attrs.get("training") is False) == np.array_equal(once, changed)


@pytest.mark.parametrize("op", [op for op in ALL if op.drops], ids=lambda op: op.name)
@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_what_drops_does_so_as_often_as_it_says(op: Op, rate: float) -> None:
    x, key = np.ones((100, 1000)), np.array([3, 5], np.uint64)
    attrs = op.normalize([], {op.drops: rate, "training": True})
    (y,) = op.evaluate([x, key], attrs)
    assert abs((y == 0).mean() - rate) < 0.01
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate))


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
