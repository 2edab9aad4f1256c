"""Working eagerly: tensors, backward(), modules; and that tracing says the same."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trivium as tv
from trivium.graph import MODE, GraphError, UnsupportedError
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.nn.module import restructure
from trivium.shape import ShapeError


def leaf(*numbers: Any) -> Any:
    return tv.asarray(list(numbers), dtype=tv.float64, requires_grad=True)


# -- tensors ---------------------------------------------------------------------------------------
ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("op", ARITHMETIC + COMPARISONS, ids=lambda op: op.__name__)
@pytest.mark.parametrize("kind", ["tensor", "array", "number", "tensor right", "number right"])
def test_operators_are_numpys(op: Callable[..., Any], kind: str) -> None:
    a, b = np.array([[1.5, 2.0, 0.5]]), np.array([[2.0], [1.5]])
    left: Any = {"number right": 2.0, "tensor right": a}.get(kind, tv.asarray(a))
    right: Any = {"array": b, "number": 2.0}.get(kind, tv.asarray(b))
    result = op(left, right)
    assert isinstance(result, tv.Tensor)
    np.testing.assert_allclose(np.asarray(result), op(np.asarray(left), np.asarray(right)))


def test_unary_operators_and_methods() -> None:
    x = tv.asarray([-1.0, 4.0])
    assert (-x).tolist() == [1, -4]
    assert (+x).tolist() == [-1, 4]
    assert abs(x).tolist() == [1, 4]
    assert (~(x > 0)).tolist() == [True, False]
    assert ((x > 0) & (x > 9) | (x < 0)).tolist() == [True, False]
    assert x.max().item() == float(x[1]) == 4
    assert (x.sum().item(), x.mean().item(), int(x.argmax())) == (3, 1.5, 1)
    m = tv.asarray(np.arange(6).reshape(2, 3))
    assert m.T.shape == m.mT.shape == (3, 2)
    assert m.reshape(3, -1).shape == m.reshape((3, 2)).shape == (3, 2)
    assert m.permute(1, 0).tolist() == m.T.tolist()
    assert (m @ m.T).tolist() == [[5, 14], [14, 50]]
    assert [row.tolist() for row in m] == [[0, 1, 2], [3, 4, 5]]
    assert (len(m), m.ndim, m.size) == (2, 2, 6)


def test_what_an_operator_does_not_know_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        tv.ones((2,)) + "a"
    assert (tv.ones((2,)) == None) is False  # noqa: E711


def test_numbers_take_the_dtype_of_their_neighbour() -> None:
    assert (tv.asarray([1.0]) * 2).dtype == tv.float32
    assert (tv.asarray([1.0], dtype=tv.float64) + 0.1).dtype == tv.float64
    assert (tv.asarray([1], dtype=tv.int8) + 1).dtype == tv.int8
    assert tv.asarray([1.0, 2.0]).dtype == tv.float32
    assert tv.asarray(np.ones(2)).dtype == tv.float64


@pytest.mark.parametrize(
    "mixture",
    [
        lambda: tv.asarray([1]) + tv.asarray([1.0]),
        lambda: tv.asarray([1]) * 0.5,
        lambda: tv.asarray([True]) + 1,
        lambda: tv.asarray([True]) * tv.asarray([1.0]),
        lambda: tv.where(tv.asarray([1]), tv.asarray([1.0]), tv.asarray([1.0])),
        lambda: tv.where(tv.asarray([True]), tv.asarray([1.0]), tv.asarray([1])),
        lambda: tv.asarray([1]) / tv.asarray([2]),
        lambda: tv.exp(tv.asarray([1])),
        lambda: tv.mean(tv.asarray([1, 2])),
        lambda: tv.sum(tv.asarray([True])),
        lambda: tv.logical_and(tv.asarray([1]), tv.asarray([2])),
        lambda: tv.logical_not(tv.asarray([1])),
        lambda: tv.take(tv.asarray([1.0]), tv.asarray([0.0])),
        lambda: tv.conv(tv.ones((1, 1, 3)), tv.ones((1, 1, 2)), tv.zeros((1,), dtype=tv.float64)),
        lambda: tv.layer_norm(tv.ones((2, 3)), tv.ones((3,), dtype=tv.float64)),
        lambda: tv.batch_norm(
            tv.ones((2, 3), dtype=tv.float64),
            None,
            None,
            tv.ones((3,)),
            tv.ones((3,)),
            training=True,
        ),
        lambda: tv.asarray(["a"]),
        lambda: tv.asarray([1j]),
    ],
)
def test_kinds_do_not_mix(mixture: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        mixture()


BASE = np.arange(60.0).reshape(3, 4, 5)
PIECE = st.one_of(
    st.integers(-3, 2),
    st.builds(
        slice,
        st.none() | st.integers(-7, 7),
        st.none() | st.integers(-7, 7),
        st.none() | st.integers(1, 3),
    ),
    st.none(),
)


@given(st.lists(PIECE, max_size=4), st.integers(0, 4), st.booleans())
def test_indexing_is_numpys(pieces: list[Any], at: int, dots: bool) -> None:
    key: tuple[Any, ...] = tuple(pieces)
    if dots:
        key = (*key[:at], ..., *key[at:])
    if sum(k is not None and k is not ... for k in key) > 3:
        return
    x = tv.asarray(BASE, requires_grad=True)
    got = x[key]
    np.testing.assert_array_equal(got.numpy(), BASE[key])
    if got.size and got.shape:
        got.backward(np.ones(got.shape))
        expected = np.zeros_like(BASE)
        expected[key] = 1
        np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (3, IndexError),
        (-4, IndexError),
        ((0, 0, 0, 0), IndexError),
        (slice(None, None, -1), ShapeError),
        (True, TypeError),
        (1.0, TypeError),
        ([0, 1], TypeError),
        ((..., ...), TypeError),
    ],
)
def test_other_indices_are_refused(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        tv.asarray(BASE)[key]


def test_arrays_go_in_and_out() -> None:
    x = tv.asarray([[1.0, 2.0]])
    assert np.asarray(x).dtype == np.float32
    assert np.from_dlpack(x).tolist() == [[1, 2]]
    assert x.numpy() is x.data
    assert tv.asarray(x) is x
    assert repr(x) == "tensor([[1., 2.]])"
    assert repr(tv.asarray([1], dtype=tv.int8)) == "tensor([1], dtype=int8)"
    assert isinstance(np.float32(2) * x, tv.Tensor)
    assert bool(tv.asarray(True)) is True
    assert range(tv.asarray(3)) == range(3)
    copy = np.array(x)
    copy[0, 0] = 9
    assert x.tolist() == [[1, 2]]


# -- backward --------------------------------------------------------------------------------------
def test_a_value_used_several_times_gathers_its_gradients() -> None:
    w = leaf(2.0, 3.0)
    y = w * w
    (y * y + y + w).sum().backward()
    np.testing.assert_allclose(
        w.grad.numpy(), 4 * np.array([2.0, 3.0]) ** 3 + 2 * np.array([2.0, 3.0]) + 1
    )


def test_gradients_add_up_until_they_are_forgotten() -> None:
    w = leaf(1.0, 2.0)
    for _ in range(2):
        (w * 3.0).sum().backward()
    assert w.grad.tolist() == [6, 6]
    w.grad = None
    (w * 3.0).sum().backward()
    assert w.grad.tolist() == [3, 3]


def test_one_result_may_be_walked_twice() -> None:
    w = leaf(1.0, 2.0)
    y = (w * w).sum()
    y.backward()
    y.backward()
    assert w.grad.tolist() == [4, 8]


def test_a_leaf_is_its_own_gradient() -> None:
    w = leaf(3.0)
    w.backward()
    w.backward()
    assert w.grad.tolist() == [2]


def test_what_was_broadcast_is_summed_back() -> None:
    a, b, c = (tv.asarray(np.ones(s), requires_grad=True) for s in ((2, 1, 3), (4, 1), ()))
    (a * b + c).sum().backward()
    assert [t.grad.shape for t in (a, b, c)] == [(2, 1, 3), (4, 1), ()]
    assert (a.grad.numpy() == 4).all()
    assert (b.grad.numpy() == 6).all()
    assert c.grad.item() == 24


def test_gradient_flows_only_where_it_is_wanted() -> None:
    w, fixed = leaf(1.0), tv.asarray([5.0], dtype=tv.float64)
    (w * fixed + w.detach() * w + tv.stop_gradient(w) * w).sum().backward()
    assert w.grad.tolist() == [7]
    assert fixed.grad is None
    with tv.no_grad():
        y = w * 2.0
    assert not y.requires_grad
    with pytest.raises(ValueError, match="wants a gradient"):
        y.backward()


def test_no_grad_ends_where_it_ends() -> None:
    w = leaf(1.0)
    with pytest.raises(ZeroDivisionError), tv.no_grad():
        raise ZeroDivisionError
    assert (w * 2.0).requires_grad


def test_a_tensor_of_several_numbers_wants_a_cotangent() -> None:
    w = leaf(1.0, 2.0)
    y = w * w
    with pytest.raises(ValueError, match=r"backward\(\) of shape \(2,\) needs a gradient"):
        y.backward()
    for wrong in (np.ones(3), np.ones((2, 2)), np.ones(())):
        with pytest.raises(ValueError, match="gradient of that shape"):
            y.backward(wrong)
    y.backward([1.0, 10.0])
    assert w.grad.tolist() == [2, 40]


def test_only_one_of_several_outputs_used() -> None:
    rng = np.random.default_rng(0)
    x, w, h = (
        tv.asarray(rng.standard_normal(s), requires_grad=True) for s in ((2, 4, 3), (5, 3), (5, 5))
    )
    outputs, last = tv.nn.rnn(x, w, h)
    last.sum().backward()
    first = [t.grad.numpy() for t in (x, w, h)]
    for t in (x, w, h):
        t.grad = None
    tv.nn.rnn(x, w, h)[0][:, -1].sum().backward()
    for t, want in zip((x, w, h), first, strict=True):
        np.testing.assert_allclose(t.grad.numpy(), want, rtol=1e-12)
    assert outputs.shape == (2, 4, 5)


def test_backward_sees_the_numbers_of_forward() -> None:
    w = leaf(3.0)
    y = (w * w).sum()
    w.data = np.array([100.0])  # an optimizer's step between
    y.backward()
    assert w.grad.tolist() == [6]


def test_integers_stop_the_gradient() -> None:
    w = leaf(0.5, 2.0)
    hit = (w > 1.0).astype(tv.float64)
    assert not (w > 1.0).requires_grad
    (w * hit).sum().backward()
    assert w.grad.tolist() == [0, 1]


def test_a_long_chain_needs_no_deep_stack() -> None:
    w = leaf(1.0)
    y = w
    for _ in range(3000):
        y = y + 1.0
    y.sum().backward()
    assert w.grad.tolist() == [1]


# -- control flow ----------------------------------------------------------------------------------
def test_cond_eager_and_traced_are_the_same() -> None:
    def f(x: Any) -> Any:
        return tv.cond(x.sum() > 0.0, lambda a: (a * 2.0, a), lambda a: (tv.exp(a), a + outer), x)

    outer = tv.asarray([10.0, 20.0])
    graph = check(tv.trace(f, ("float32", (2,))))
    assert [n.op for n in graph.nodes][-1] == "cond"
    for x in (np.array([1, 2], "f"), np.array([-1, -2], "f")):
        for eager, traced in zip(f(tv.asarray(x)), Interpreter(graph)(x), strict=True):
            np.testing.assert_array_equal(eager.numpy(), traced)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_eager_and_traced_are_the_same(rng: np.random.Generator, reverse: bool) -> None:
    def f(xs: Any, w: Any) -> Any:
        def step(carry: Any, given: Any) -> Any:
            c, n = carry
            c = tv.tanh(c @ w + given[0] * given[1])
            return (c, n + 1), (c, n)

        return tv.scan(step, (tv.zeros((2, 3)), tv.asarray(0)), (xs, xs * 0.5), reverse=reverse)

    graph = check(
        tv.trace(lambda *a: (*f(*a)[0], *f(*a)[1]), ("float32", (4, 2, 3)), ("float32", (3, 3)))
    )
    xs, w = (rng.standard_normal(s).astype("f") for s in ((4, 2, 3), (3, 3)))
    (c, n), (cs, ns) = f(tv.asarray(xs), tv.asarray(w))
    for eager, traced in zip((c, n, cs, ns), Interpreter(graph)(xs, w), strict=True):
        np.testing.assert_allclose(np.asarray(eager), traced, rtol=1e-6)
    assert n.item() == 4
    assert ns.tolist() == ([3, 2, 1, 0] if reverse else [0, 1, 2, 3])


def test_scan_along_nothing() -> None:
    last, ys = tv.scan(lambda c, x: (c + x, c), tv.asarray(5.0), tv.zeros((0,)))
    assert (last.item(), ys.shape) == (5, (0,))


def test_scan_along_arrays_of_other_lengths_is_refused() -> None:
    with pytest.raises(ShapeError, match="one length"):
        tv.scan(
            lambda c, x: (c + x[0] + x[1], c), tv.asarray(0.0), (tv.zeros((3,)), tv.zeros((4,)))
        )
    with pytest.raises(ShapeError, match="a carry enters the step as"):
        tv.scan(lambda c, x: (tv.stack(c, c), x), tv.asarray(0.0), tv.zeros((3,)))
    with pytest.raises(ShapeError, match="branches give"):
        tv.trace(
            lambda c, x: tv.cond(c, lambda a: a, lambda a: a.sum(), x),
            ("bool", ()),
            ("float32", (2,)),
        )


def test_a_body_does_not_draw_or_update() -> None:
    """One mask for all steps, or statistics that vanish, would be silently wrong."""
    for layer, what in ((tv.nn.Dropout(0.5), "random"), (tv.nn.BatchNorm(), "updates a state")):
        layer(tv.ones((2, 3)))

        def f(xs: Any, layer: Any = layer) -> Any:
            return tv.scan(lambda c, x: (layer(x) + c, c), tv.zeros((2, 3)), xs)[0]

        with pytest.raises(UnsupportedError, match=what):
            f(tv.ones((4, 2, 3)))
        with pytest.raises(UnsupportedError, match=what):
            tv.trace(f, ("float32", (4, 2, 3)), training=True)
        layer.eval()
        assert f(tv.ones((4, 2, 3))).shape == (2, 3)
        tv.trace(f, ("float32", (4, 2, 3)), training=False)


# -- modules ---------------------------------------------------------------------------------------
class Net(tv.nn.Module):
    def __init__(self) -> None:
        self.conv1 = tv.nn.Conv2d(4, 3, padding=1)
        self.bn = tv.nn.BatchNorm2d()
        self.blocks = [tv.nn.Linear(8), tv.nn.Linear(3, bias=False)]

    def forward(self, x: Any) -> Any:
        x = tv.flatten(tv.relu(self.bn(self.conv1(x))), start=1)
        return self.blocks[1](tv.tanh(self.blocks[0](x)))


SPEC = ("float32", ("batch", 2, 4, 4))
NAMES = ["conv1.weight", "conv1.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
         "blocks.0.weight", "blocks.0.bias", "blocks.1.weight"]  # fmt: skip


def images(rng: np.random.Generator, batch: int = 3) -> Any:
    return rng.standard_normal((batch, 2, 4, 4)).astype("f")


def test_parameters_are_made_by_the_first_batch(rng: np.random.Generator) -> None:
    net = Net()
    assert list(net.named_parameters("param", "state")) == []
    net(images(rng))
    assert list(net.state_dict()) == NAMES
    assert net.state_dict()["blocks.0.weight"].shape == (8, 64)
    assert [n for n, _ in net.named_parameters()] == [n for n in NAMES if "running" not in n]
    assert [p.name for _, p in net.named_parameters("param", "state")] == NAMES


def test_a_spec_with_an_open_batch_builds() -> None:
    net = Net().build(SPEC)
    assert list(net.state_dict()) == NAMES
    assert not net.state_dict()["bn.running_mean"].any()  # nothing was computed
    with pytest.raises(ShapeError, match=r"(?s)open shape.*blocks\.0"):
        Net().build(("float32", ("batch", 2, "h", "w")))


def test_initial_values_depend_on_seed_and_path_alone(rng: np.random.Generator) -> None:
    def values(net: Any, *how: Any) -> dict[str, Any]:
        return {k: v.copy() for k, v in net.build(*how).state_dict().items()}

    first = values(Net(), SPEC)
    again = values(Net(), images(rng))
    assert all((first[k] == again[k]).all() for k in first)

    tv.seed(1)
    changed = values(Net(), SPEC)
    assert (changed["conv1.weight"] != first["conv1.weight"]).all()
    assert (first["blocks.0.weight"][:3, :8] != first["blocks.1.weight"]).all()


class Sum(tv.nn.Module):
    def __init__(self, order: str) -> None:
        self.order, self.a, self.b = order, tv.nn.Linear(3), tv.nn.Linear(3)

    def forward(self, x: Any) -> Any:
        return sum(getattr(self, name)(x) for name in self.order)


def test_initial_values_do_not_depend_on_the_order_of_building() -> None:
    one, other = (Sum(order).build(("float32", (1, 4))).state_dict() for order in ("ab", "ba"))
    assert list(one) == list(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    assert (one["a.weight"] != one["b.weight"]).all()


def test_names_and_values_do_not_depend_on_what_else_there_is() -> None:
    small = tv.nn.Sequential(tv.nn.Linear(3)).build(("float32", (1, 4)))
    large = tv.nn.Sequential(tv.nn.Linear(3), tv.relu, tv.nn.Linear(2)).build(("float32", (1, 4)))
    np.testing.assert_array_equal(small.state_dict()["0.weight"], large.state_dict()["0.weight"])
    assert list(large.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_state_goes_out_and_in(rng: np.random.Generator) -> None:
    a, b = Net().build(SPEC), Net()
    tv.seed(7)
    b._seed = None
    b.build(SPEC)
    x = images(rng)
    a.eval(), b.eval()
    assert (a(x).numpy() != b(x).numpy()).any()
    b.load_state_dict(a.state_dict())
    np.testing.assert_array_equal(a(x).numpy(), b(x).numpy())


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    net = Net().build(SPEC)
    before = {k: v.copy() for k, v in net.state_dict().items()}
    good = {k: v + 1 for k, v in before.items()}
    with pytest.raises(KeyError, match=r"the state has no bn\.bias"):
        net.load_state_dict({k: v for k, v in good.items() if k != "bn.bias"})
    with pytest.raises(KeyError, match="the model has no head"):
        net.load_state_dict(good | {"head": np.ones(2)})
    with pytest.raises(
        ShapeError, match=r"blocks\.1\.weight has shape \(3, 8\), the state holds \(8, 3\)"
    ):
        net.load_state_dict(good | {"blocks.1.weight": good["blocks.1.weight"].T})
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg="a refused state left traces")
    with pytest.raises(ValueError, match="no parameters yet"):
        Net().load_state_dict(good)


def test_a_wrong_shape_names_the_layer_what_it_got_and_what_it_wants(
    rng: np.random.Generator,
) -> None:
    net = Net().build(SPEC)
    with pytest.raises(ShapeError) as error:
        net(np.ones((3, 2, 5, 4), "f"))
    message = str(error.value)
    assert "layer 'blocks.0' (Linear(8)), which got shape (3, 80)" in message
    assert "weight has shape (8, 64), this input wants (8, 80)" in message
    with pytest.raises(
        ValueError, match=r"(?s)images of 4 axes.*layer 'conv1'.*got shape \(3, 2\)"
    ):
        net(np.ones((3, 2), "f"))
    net(images(rng))  # and an error leaves it usable


def test_one_module_in_two_places_is_one(rng: np.random.Generator) -> None:
    class Twice(tv.nn.Module):
        def __init__(self) -> None:
            self.encode = tv.nn.Linear(4)
            self.again = self.encode

        def forward(self, x: Any) -> Any:
            return self.again(tv.tanh(self.encode(x)))

    model = Twice().build(("float32", (1, 4)))
    assert list(model.state_dict()) == ["encode.weight", "encode.bias"]
    assert len(model.parameters()) == 2
    graph = tv.trace(model, ("float32", ("batch", 4)))
    assert [v.name for v in graph.of_kind("param")] == ["encode.weight", "encode.bias"]


def test_tracing_captures_parameters_by_name(rng: np.random.Generator) -> None:
    net, x = Net(), images(rng)
    graph = check(tv.trace(net, SPEC, training=False))
    assert sorted(v.name for v in graph.of_kind("param", "state")) == sorted(NAMES)
    assert {n.scope for n in graph.nodes} == {"conv1", "bn", "", "blocks.0", "blocks.1"}
    state = net.state_dict()
    arrays = [x if v.kind == "data" else state[v.name] for v in graph.inputs]
    np.testing.assert_allclose(Interpreter(graph)(*arrays)[0], net.eval()(x).numpy(), rtol=1e-5)


def test_a_parameter_met_from_outside_is_captured(rng: np.random.Generator) -> None:
    net = tv.nn.Linear(2).build(("float32", (1, 3)))
    graph = tv.trace(
        lambda x: net(x).sum() + (net.parameters()[0] ** 2).sum(), ("float32", ("batch", 3))
    )
    assert [v.name for v in graph.of_kind("param")] == ["weight", "bias"]


def test_a_tensor_that_wants_a_gradient_does_not_become_a_constant() -> None:
    w, fixed = leaf(1.0), tv.asarray([2.0])
    graph = tv.trace(lambda x: x * fixed, ("float32", (1,)))
    assert [n.op for n in graph.nodes] == ["constant", "multiply"]
    with pytest.raises(ValueError, match="pass it as an argument"):
        tv.trace(lambda x: x * w, ("float64", (1,)))


def test_results_keep_their_nesting() -> None:
    spec = ("float32", (2,))
    x = np.ones(2, "f")
    for f in (
        lambda x: {"a": x, "b": -x}, lambda x: (x, -x), lambda x: [x, -x], lambda x: (x,),
        lambda x: x,
    ):  # fmt: skip
        graph = tv.trace(f, spec)
        back = restructure(graph, Interpreter(graph)(x))
        assert type(back) in (type(f(x)), np.ndarray)
        assert repr(back) == repr(f(x))
    with tv.Graph() as g:
        v = tv.placeholder("float32", (2,))
        g.outputs = [v, v * 2.0]
    assert len(tv.nn.GraphModule(g, {})(x)) == 2


# -- modes and states ------------------------------------------------------------------------------
def test_batch_norm_collects_statistics_eagerly_and_traced(rng: np.random.Generator) -> None:
    net, x = Net(), images(rng, 5)
    y = net(x)
    eager = {k: v.copy() for k, v in net.state_dict().items() if "running" in k}
    assert eager["bn.running_mean"].any()

    fresh = Net().build(SPEC)
    state = fresh.state_dict()
    for training in (True, None):
        graph = check(tv.trace(fresh, SPEC, training=training))
        assert [v.name for v in graph.updates] == ["bn.running_mean", "bn.running_var"]
        arrays = [x if v.kind == "data" else state[v.name] for v in graph.inputs]
        results = Interpreter(graph, training=True)(*arrays)
        np.testing.assert_allclose(results[0], y.numpy(), rtol=1e-4, atol=1e-5)
        for value, name in zip(results[1:], eager, strict=True):
            np.testing.assert_allclose(value, eager[name], rtol=1e-5, atol=1e-6)
    unchanged = Interpreter(graph, training=False)(*arrays)[1:]
    np.testing.assert_array_equal(unchanged[0], state["bn.running_mean"])


def test_batch_norm_used_twice_collects_twice(rng: np.random.Generator) -> None:
    class Twice(tv.nn.Module):
        def __init__(self) -> None:
            self.bn = tv.nn.BatchNorm()

        def forward(self, x: Any) -> Any:
            return self.bn(self.bn(x) + 3.0)

    x = rng.standard_normal((6, 2)).astype("f")
    model, start = Twice(), Twice().build(x)
    model(x)
    graph = check(tv.trace(start, ("float32", ("batch", 2)), training=True))
    state = start.state_dict()
    arrays = [x if v.kind == "data" else state[v.name] for v in graph.inputs]
    results = dict(
        zip([v.name for v in graph.updates], Interpreter(graph)(*arrays)[1:], strict=True)
    )
    for name, value in results.items():
        np.testing.assert_allclose(value, model.state_dict()[name], rtol=1e-5, err_msg=name)


def test_one_value_a_channel_has_no_unbiased_variance() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        tv.nn.BatchNorm()(tv.ones((1, 3)))
    assert tv.nn.BatchNorm().eval()(tv.ones((1, 3))).shape == (1, 3)
    assert tv.nn.BatchNorm(unbiased=False)(tv.ones((1, 3))).shape == (1, 3)


def test_dropout_drops_as_often_as_it_says() -> None:
    layer, x = tv.nn.Dropout(0.3), tv.ones((400, 100))
    y = layer(x).numpy()
    kept = y != 0
    assert abs(kept.mean() - 0.7) < 0.01  # four standard deviations
    np.testing.assert_allclose(y[kept], 1 / 0.7, rtol=1e-6)
    assert abs(np.corrcoef(kept[:200].ravel(), kept[200:].ravel())[0, 1]) < 0.03
    assert (layer(x).numpy() != y).any()
    assert layer.eval()(x) is x


def test_dropout_is_reproducible() -> None:
    def draw(n: int) -> Any:
        tv.seed(n)
        layer = tv.nn.Dropout(0.5)
        return np.stack([layer(tv.ones((50,))).numpy() for _ in range(2)])

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


class Drops(tv.nn.Module):
    """Three dropouts: two in places of the same name, one of them used twice."""

    def __init__(self) -> None:
        inner = (tv.nn.Sequential(tv.nn.Dropout(0.5)) for _ in range(2))
        self.block1layer, self.block2layer = inner

    def forward(self, x: Any) -> Any:
        return self.block1layer(x), self.block2layer(x), self.block2layer(x)


def test_every_dropout_of_a_traced_model_has_a_mask_of_its_own() -> None:
    graph = check(tv.trace(Drops(), ("float32", (100,))))
    assert [v.name for v in graph.of_kind("rng")] == ["rng"]
    model = tv.nn.GraphModule(graph, {})
    both = tv.trace(lambda x: (*model(x), *model(x)), ("float32", (100,)), training=True)
    for g, count in ((graph, 3), (both, 6)):
        run = Interpreter(g, training=True)
        masks = {m.tobytes() for m in run(np.ones(100, "f"), np.array([1, 2], "uint64"))}
        assert len(masks) == count
    once, again = (run(np.ones(100, "f"), np.array([1, 2], "uint64")) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    x = np.ones(100, "f")
    assert all((y == 1).all() for y in Interpreter(graph, training=False)(x, np.zeros(2, "uint64")))


# -- a module made of a Graph ----------------------------------------------------------------------
def graph_module(net: Any, *specs: Any) -> tv.nn.GraphModule:
    graph = tv.trace(net, *specs)
    return tv.nn.GraphModule(graph, net.state_dict())


def test_a_graph_module_is_the_model_it_came_from(rng: np.random.Generator) -> None:
    net, x = Net().build(SPEC), images(rng, 5)
    model = graph_module(net, SPEC)
    assert sorted(model.state_dict()) == sorted(NAMES)
    np.testing.assert_allclose(model.eval()(x).numpy(), net.eval()(x).numpy(), rtol=1e-6)
    net.train(), model.train()
    for m in (net, model):
        (m(x) ** 2).mean().backward()
    grads = dict(model.named_parameters())
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), grads[name].grad.numpy(), rtol=1e-4, atol=1e-6)
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    again = tv.trace(model, SPEC)
    assert tv.trace(net, SPEC).difference(again) is None


def test_a_graph_module_inside_a_model(rng: np.random.Generator) -> None:
    net = Net().build(SPEC)
    model = tv.nn.Sequential(graph_module(net, SPEC), tv.nn.Linear(2))
    x = images(rng)
    y = model.eval()(x)
    assert y.shape == (3, 2)
    assert set(model.state_dict()) == {f"0.{n}" for n in NAMES} | {"1.weight", "1.bias"}
    graph = check(tv.trace(model, SPEC))
    assert {v.name for v in graph.of_kind("param", "state")} == set(model.state_dict())
    assert "0.blocks.1" in {n.scope for n in graph.nodes}
    assert any(n.attrs.get("training") is MODE for n in graph.nodes)
    state = model.state_dict()
    arrays = [x if v.kind == "data" else state[v.name] for v in graph.inputs]
    np.testing.assert_allclose(Interpreter(graph, training=False)(*arrays)[0], y.numpy(), rtol=1e-5)


def test_a_graph_module_with_control_flow_takes_any_size(rng: np.random.Generator) -> None:
    def f(xs: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            c = c + x + tv.full((xs.shape[1], 1), 0.5)
            return c, c * 2.0

        return tv.scan(step, tv.zeros((xs.shape[1], 2)), xs)

    graph = tv.trace(f, ("float32", ("time", "batch", 2)))
    model = tv.nn.GraphModule(graph, {})
    for time, batch in ((3, 4), (5, 1)):
        xs = rng.standard_normal((time, batch, 2)).astype("f")
        for got, want in zip(model(xs), f(tv.asarray(xs)), strict=True):
            np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-6)
    renamed = check(tv.trace(model, ("float32", ("t", "n", 2))))
    assert renamed.dims() == {"t", "n"}
    got = Interpreter(renamed)(xs)[0]
    np.testing.assert_allclose(got, f(tv.asarray(xs))[0].numpy(), rtol=1e-6)


def test_a_graph_module_checks_what_it_gets() -> None:
    net = tv.nn.Linear(2).build(("float32", (1, 3)))
    graph = tv.trace(net, ("float32", ("batch", 3)))
    with pytest.raises(ShapeError, match=r"weight has shape \(2, 3\), got \(3, 2\)"):
        tv.nn.GraphModule(graph, {"weight": np.ones((3, 2)), "bias": np.ones(2)})
    model = tv.nn.GraphModule(graph, net.state_dict())
    with pytest.raises(TypeError, match="takes 1 inputs, got 2"):
        model(tv.ones((1, 3)), tv.ones((1, 3)))
    for wrong in ((4, 2), (3,), (1, 1, 3)):
        with pytest.raises(ShapeError, match="'x0'"):
            model(tv.ones(wrong))
    for wrong in (("batch", 2), ("batch",), ("batch", 1, 3)):
        with pytest.raises(ShapeError, match="'x0'"):
            tv.trace(model, ("float32", wrong))
    with pytest.raises(TypeError, match="'x0'"):
        model(tv.ones((1, 3), dtype=tv.int64))
    with pytest.raises(GraphError, match="a gradient is of a scalar"):
        from trivium.transforms.grad import gradient

        gradient(graph)


def test_a_label_out_of_range_is_an_error_and_not_a_loss_of_zero() -> None:
    logits = tv.asarray(np.zeros((2, 3), "f"))
    with pytest.raises(IndexError, match="3 is out of range for 3 classes"):
        tv.cross_entropy(logits, tv.asarray([0, 3]))
