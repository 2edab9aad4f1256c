"""Sizes, shapes, Graphs and what is done to them; each way a Graph can be wrong is found."""

import ast
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trivium as tv
from trivium.dtype import promote
from trivium.graph import MODE, OPS, Graph, GraphError, Node, Type, UnsupportedError, Value
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.shape import (
    Dim,
    ShapeError,
    Size,
    as_shape,
    bind,
    broadcast,
    normalize_axes,
    parse_size,
    size_product,
    subs,
)  # fmt: skip
from trivium.transforms.decompose import decompose
from trivium.transforms.replay import inline, prune, replay, specialize

# -- sizes -----------------------------------------------------------------------------------------
NAMES = ("batch", "h", "w")
ENV = st.fixed_dictionaries({n: st.integers(1, 40) for n in NAMES})


def expressions(depth: int = 3) -> st.SearchStrategy[str]:
    """Expressions in Python over the names, without a division by a name."""
    if depth == 0:
        return st.one_of(st.sampled_from(NAMES), st.integers(0, 9).map(str))
    inner = expressions(depth - 1)
    return st.one_of(
        st.builds("({}{}{})".format, inner, st.sampled_from("+-*"), inner),
        st.builds("({}*{}+{})".format, inner, st.integers(-9, 9), st.integers(-9, 9)),
        st.builds("({}{}{})".format, inner, st.sampled_from(["//", "%"]), st.integers(1, 6)),
        st.builds("(-{})".format, inner),
    )


def size_of(expression: str) -> Size:
    """The expression on Dims, by Python's own evaluation: that is their operators."""
    size: Size = eval(expression, {n: Dim(n) for n in NAMES})
    return size


@settings(max_examples=500)
@given(expressions(), ENV)
def test_dims_are_integers_not_yet_known(expression: str, env: dict[str, int]) -> None:
    assert subs(size_of(expression), env) == eval(expression, dict(env))


@given(expressions(), ENV)
def test_names_may_be_replaced_one_after_the_other(expression: str, env: dict[str, int]) -> None:
    size = size_of(expression)
    partly = subs(size, {"h": env["h"]})
    assert isinstance(partly, int) or "h" not in partly.names()
    assert subs(partly, env) == subs(size, env)


@given(expressions())
def test_a_printed_size_reads_back(expression: str) -> None:
    size = size_of(expression)
    assert parse_size(str(size)) == size
    assert hash(parse_size(str(size))) == hash(size)


@given(expressions(), expressions())
def test_sums_and_products_have_one_form(a: str, b: str) -> None:
    x, y = size_of(a), size_of(b)
    assert x + y == y + x
    assert x * y == y * x
    assert x * (y + 1) == x * y + x
    assert x - x == 0
    assert isinstance(x - x, int)


@given(expressions(), st.integers(1, 5), st.integers(1, 9))
def test_division_by_a_named_factor_is_undone(a: str, k: int, c: int) -> None:
    b = Dim("batch")
    assert (size_of(a) * b * k) // (b * k) == size_of(a)
    assert (size_of(a) * k + 0) // k == size_of(a)


def test_a_size_is_never_guessed() -> None:
    batch, h = Dim("batch"), Dim("h")
    with pytest.raises(ShapeError, match="not known to be a whole size"):
        batch // h
    with pytest.raises(ShapeError, match="bake the size 'batch' in"):
        bool(batch)
    for use in (lambda: batch > 1, lambda: range(batch), lambda: [0][batch]):
        with pytest.raises(ShapeError, match="batch"):
            use()
    assert batch != 3
    assert batch != h
    assert batch // batch == 1
    assert 0 // batch == 0


@pytest.mark.parametrize(
    "text", ["", "2**h", "h.w", "f(h)", "h[0]", "__import__('os')", "h//w", "1.5"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ShapeError):
        parse_size(text)


def test_a_name_is_an_identifier() -> None:
    with pytest.raises(ShapeError, match="identifier"):
        Dim("my batch")


# -- shapes ----------------------------------------------------------------------------------------
@given(
    st.lists(st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple), min_size=1, max_size=3)
)
def test_broadcasting_is_numpys(shapes: list[tuple[int, ...]]) -> None:
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(ShapeError, match="do not broadcast"):
            broadcast(*shapes)
    else:
        assert broadcast(*shapes) == expected


def test_broadcasting_named_sizes() -> None:
    batch = Dim("batch")
    assert broadcast((batch, 1), (5,)) == (batch, 5)
    assert broadcast((batch,), (batch,)) == (batch,)
    assert broadcast((1,), (batch * 2,)) == (batch * 2,)
    # A named size may turn out to be 1, so it is not taken for one.
    with pytest.raises(ShapeError, match="batch meets 5 on axis -2"):
        broadcast((batch, 3), (5, 1))
    with pytest.raises(ShapeError, match="axis -1"):
        broadcast((batch,), (batch + 1,))


def test_axes() -> None:
    assert normalize_axes(None, 3) == (0, 1, 2)
    assert normalize_axes((-1, 0), 3) == (0, 2)
    with pytest.raises(ShapeError, match="axis 3 is out of range for rank 3"):
        normalize_axes(3, 3)
    with pytest.raises(ShapeError, match="one axis twice"):
        normalize_axes((0, -2), 2)


def test_binding_learns_names_and_checks_the_rest() -> None:
    env: dict[str, int] = {}
    shape = as_shape(("2*n", "n", 3))
    bind(shape, (8, 4, 3), env, "x")
    assert env == {"n": 4}
    with pytest.raises(ShapeError, match=r"x wants shape .*, got \(8, 3, 3\)"):
        bind(shape, (8, 3, 3), {}, "x")
    with pytest.raises(ShapeError, match="already 4 elsewhere"):
        bind(as_shape("n"), (5,), env, "y")
    with pytest.raises(ShapeError, match="y wants shape"):
        bind(as_shape(("n", 3)), (4,), env, "y")


def test_sizes_multiply() -> None:
    assert size_product(()) == 1
    assert size_product((Dim("b"), 3, Dim("b"))) == Dim("b") * Dim("b") * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tv.sum(x, axis=3), "sum: axis 3 is out of range for rank 2"),
        (lambda x: tv.transpose(x, axes=(0, 2)), r"transpose: axes \(0, 2\)"),
        (lambda x: tv.squeeze(x, axis=1), "axis 1 of .* has size 3"),
        (lambda x: tv.concat(x, tv.ones((2, 4)), axis=0), "do not join along axis 0"),
        (lambda x: tv.concat(x, tv.ones((2, 3, 1)), axis=0), "do not join along axis 0"),
        (lambda x: tv.reshape(x, shape=(4, -1)), r"does not reshape to \(4, -1\)"),
        (lambda x: tv.reshape(x, shape=(-1, -1)), "only one size may be -1"),
        (lambda x: x @ tv.ones((2, 3)), "3 columns meet 2 rows"),
        (lambda x: tv.broadcast_to(x, shape=(3, 3)), "do not broadcast: 2 meets 3 on axis -2"),
        (lambda x: x + tv.ones((4,)), "3 meets 4 on axis -1"),
        (lambda x: tv.conv(x, tv.ones((1, 1, 1))), "layout"),
        (lambda x: x[::-1], "steps forward"),
        (lambda x: x[::0], "steps forward"),
    ],
)
def test_shape_errors_name_the_op_and_the_axis(call: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        tv.trace(call, ("float32", (2, 3)))


def test_an_error_names_the_scope() -> None:
    graph = Graph()
    with (
        graph,
        graph.within("layer1.conv"),
        pytest.raises(ShapeError, match=r"add in layer1\.conv: "),
    ):
        tv.placeholder("float32", (2,)) + tv.placeholder("float32", (3,))


# -- dtypes ----------------------------------------------------------------------------------------
def test_promotion_is_the_array_apis() -> None:
    assert promote(tv.float32, tv.float64) == "float64"
    assert promote(tv.uint8, tv.int8) == "int16"
    assert promote(tv.float16, tv.bfloat16) == "float32"
    for a, b in ((tv.int32, tv.float32), (tv.bool_, tv.int8), (tv.bool_, tv.float16)):
        with pytest.raises(TypeError, match="do not mix"):
            promote(a, b)
        with pytest.raises(TypeError, match="do not mix"):
            promote(b, a)


def test_uint64_and_a_signed_integer_do_not_mix() -> None:
    with pytest.raises(TypeError, match="do not mix"):  # NumPy would make a float of them
        promote(tv.uint64, tv.int64)


# -- building --------------------------------------------------------------------------------------
def small() -> Graph:
    """Two inputs, a weight and a state under a scope: tanh(x @ w) + count."""
    graph = Graph("small")
    with graph:
        x = graph.input("data", "float32", ("batch", 3), "x")
        w = graph.input("param", "float32", (3, 2), "w")
        count = graph.input("state", "float32", (2,), "count")
        with graph.within("layer"):
            y = tv.tanh(x @ w)
        graph.outputs = [y + count]
        graph.updates = {count: count + 1.0}
    return check(graph)


def run_small(graph: Graph) -> list[Any]:
    arrays = {"x": np.ones((4, 3), "f"), "w": np.full((3, 2), 0.1, "f"), "count": np.ones(2, "f")}
    return Interpreter(graph)(*(arrays[v.name] for v in graph.inputs))


def test_an_input_is_named_once_and_of_a_known_kind() -> None:
    graph = Graph()
    graph.input("data", "float32", (2,), "x")
    with pytest.raises(GraphError, match="already has an input 'x'"):
        graph.input("param", "float32", (2,), "x")
    with pytest.raises(GraphError, match="data, param, state, rng"):
        graph.input("weight", "float32", (2,), "w")
    with pytest.raises(TypeError, match="no Trivium dtype"):
        graph.input("data", "complex64", (2,), "z")


def test_values_stay_in_their_graph() -> None:
    one, other = Graph(), Graph()
    x, y = (g.input("data", "float32", (2,), "x") for g in (one, other))
    with pytest.raises(GraphError, match="another graph"):
        one.add("add", (x, y), {}, [x.type])
    with pytest.raises(GraphError, match="another graph"):
        OPS["add"].append(one, (x, y), {})


def test_a_traced_value_has_no_number() -> None:
    def branches(x: Any) -> Any:
        return x if x.sum() > 0 else -x

    with pytest.raises(GraphError, match="Python cannot branch on it"):
        tv.trace(branches, ("float32", (2,)))
    with pytest.raises(GraphError, match="no numbers yet"):
        tv.trace(lambda x: np.asarray(x), ("float32", (2,)))
    with pytest.raises(ShapeError, match="batch"):
        tv.trace(lambda x: list(x), ("float32", ("batch",)))


def test_a_placeholder_wants_a_graph() -> None:
    with pytest.raises(RuntimeError, match="wants a Graph"):
        tv.placeholder("float32", (2,))


def test_mode_refuses_to_be_a_bool() -> None:
    assert repr(MODE) == "MODE"
    with pytest.raises(GraphError, match="cannot serve both modes"):
        bool(MODE)

    class Asks(tv.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if self.training else x

    with pytest.raises(GraphError, match="training=True or training=False"):
        tv.trace(Asks(), ("float32", (2,)))
    assert len(tv.trace(Asks(), ("float32", (2,)), training=False).nodes) == 0


def test_an_unsupported_thing_says_where_and_what_to_do() -> None:
    error = UnsupportedError("ceil_mode", "pool1", "pad first")
    assert str(error) == "ceil_mode (at pool1); pad first"
    assert (error.what, error.where, error.remedy) == ("ceil_mode", "pool1", "pad first")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tv.sum(x, axes=1), "sum.. has no axes; it is sum"),
        (lambda x: OPS["broadcast_to"](x), "needs shape"),
        (lambda x: OPS["add"](x), "got 1 arrays"),
        (lambda x: OPS["tanh"](x, x), "got 2 arrays"),
        (lambda x: tv.sum(x, 0, axis=1), "axis"),
    ],
)
def test_a_wrong_call_shows_the_signature(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(tv.ones((2, 3)))


# -- comparing -------------------------------------------------------------------------------------
def changed(change: Any) -> Graph:
    graph = small()
    change(graph)
    return graph


def test_a_graph_is_the_same_as_its_copy() -> None:
    graph = small()
    copy, env = replay(graph)
    assert graph.same_as(copy)
    assert copy.same_as(graph)
    assert all(env[a] is b for a, b in zip(graph.inputs, copy.inputs, strict=True))
    assert [n.scope for n in copy.nodes] == [n.scope for n in graph.nodes]


def test_order_of_inputs_and_names_of_values_do_not_count() -> None:
    graph = small()
    graph.inputs.reverse()
    graph.inputs[-1].name = "images"  # arguments go by position
    graph.nodes[0].out.name = "product"
    graph.nodes[0].scope = "elsewhere"
    assert small().same_as(graph)


def _rename(g: Graph) -> None:
    g.inputs[1].name = "z"


def _other_kind(g: Graph) -> None:
    g.inputs[0].kind = "rng"


def _retype(g: Graph) -> None:
    g.inputs[0].shape = (4, 3)


def _other_op(g: Graph) -> None:
    g.nodes[1].op = "exp"


def _other_attr(g: Graph) -> None:
    next(n for n in g.nodes if n.op == "full").attrs["value"] = 2.0


def _other_wiring(g: Graph) -> None:
    g.nodes[2].inputs = g.nodes[2].inputs[::-1]


def _more_nodes(g: Graph) -> None:
    tv.tanh(g.outputs[0])


def _other_outputs(g: Graph) -> None:
    g.outputs = [g.nodes[0].out]


def _no_updates(g: Graph) -> None:
    g.updates = {}


def _other_updates(g: Graph) -> None:
    g.updates = {k: k for k in g.updates}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rename, "parameters"),
        (_other_kind, "inputs"),
        (_retype, "inputs"),
        (_other_op, "node 1"),
        (_other_attr, "value=1.0"),
        (_other_wiring, "node 2"),
        (_more_nodes, "nodes against"),
        (_other_outputs, "other outputs"),
        (_no_updates, "other updates"),
        (_other_updates, "other updates"),
    ],
)
def test_a_difference_is_found_from_either_side(change: Any, words: str) -> None:
    graph, other = small(), changed(change)
    assert words in (graph.difference(other) or "nothing")
    assert other.difference(graph) is not None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (float("nan"), float("nan"), True), (0.0, -0.0, False), (1, True, False), (1, 1.0, False),
        (np.array([np.nan]), np.array([np.nan]), True), (np.zeros(2), -np.zeros(2), False),
        (np.zeros(2), np.zeros(2, "f"), False), (np.zeros(2), np.zeros((1, 2)), False),
        (("a", 1), ("a", 1), True), ("1", 1, False), (None, 0, False),
    ],
)  # fmt: skip
def test_attributes_are_the_same_to_the_bit(a: Any, b: Any, same: bool) -> None:
    graphs = []
    for item in (a, b):
        graph = Graph()
        graph.add("x", (), {"value": item}, [Type(tv.float32, ())])
        graphs.append(graph)
    assert graphs[0].same_as(graphs[1]) is same


def test_graphs_inside_nodes_are_compared() -> None:
    def f(scale: float) -> Graph:
        return tv.trace(
            lambda c, x: tv.cond(c, lambda y: y * scale, lambda y: y, x),
            ("bool", ()),
            ("float32", (2,)),
        )

    assert f(2.0).same_as(f(2.0))
    assert "then" in (f(2.0).difference(f(3.0)) or "")


# -- changing --------------------------------------------------------------------------------------
def test_replay_may_change_a_node() -> None:
    def relu_for_tanh(new: Graph, node: Node, values: list[Value | None]) -> Any:
        return OPS["relu"].append(new, values, {}) if node.op == "tanh" else None

    new, _ = replay(small(), relu_for_tanh)
    assert [n.op for n in check(new).nodes] == ["matmul", "relu", "add", "full", "add"]
    assert new.nodes[1].scope == "layer"
    assert [v.name for v in new.updates] == ["count"]


def test_specialize_decides_sizes_dtype_and_mode() -> None:
    model = tv.nn.Sequential(tv.nn.BatchNorm(), lambda x: x.reshape(x.shape[0] * 3, 1))
    graph = tv.trace(model, ("float32", ("batch", 3)))
    assert graph.dims() == {"batch"}
    special = check(specialize(graph, {"batch": 4}, training=False, floating=tv.float64))
    assert special.dims() == set()
    assert special.outputs[0].type == Type(tv.float64, (12, 1))
    assert special.nodes[0].attrs["training"] is False
    assert graph.nodes[0].attrs["training"] is MODE


def test_specialize_reaches_into_control_flow() -> None:
    def f(xs: Any) -> Any:
        start = tv.zeros((xs.shape[1], 2))
        return tv.scan(lambda c, x: (c + x.reshape(xs.shape[1], 1), c), start, xs)[0]

    graph = tv.trace(f, ("float32", (4, "batch")))
    special = check(specialize(graph, {"batch": 3}, floating=tv.float64))
    assert special.outputs[0].type == Type(tv.float64, (3, 2))
    xs = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(Interpreter(graph)(np.float32(xs))[0][:, 1], xs.sum(0))


def test_prune_drops_what_no_result_needs() -> None:
    graph = small()
    with graph:
        tv.exp(graph.outputs[0])
    assert len(prune(graph).nodes) == len(small().nodes)
    graph.outputs = []
    assert [n.op for n in prune(graph).nodes] == ["full", "add"]  # the update still needs these


def test_decompose_leaves_what_it_is_told_to() -> None:
    graph = tv.trace(lambda x: tv.gelu(tv.silu(x)), ("float32", ("batch",)))
    kept = check(decompose(graph, lambda node: node.op == "silu"))
    assert "silu" in [n.op for n in kept.nodes]
    assert "gelu" not in [n.op for n in kept.nodes]
    x = np.linspace(-2, 2, 5, dtype="f")
    np.testing.assert_allclose(Interpreter(kept)(x)[0], Interpreter(graph)(x)[0], rtol=1e-6)


def test_inline_applies_a_graph_inside_another() -> None:
    inner, outer = tv.trace(lambda x: x * 2.0, ("float32", (3,))), Graph()
    with outer:
        x = outer.input("data", "float32", (3,), "x")
        with outer.within("here"):
            once = inline(inner, outer, [x])
            outer.outputs = inline(inner, outer, once)
    assert {n.scope for n in check(outer).nodes} == {"here"}
    assert Interpreter(outer)(np.ones(3, "f"))[0].tolist() == [4, 4, 4]


def test_the_oracle_checks_what_it_is_given() -> None:
    graph = small()
    y, count = run_small(graph)
    np.testing.assert_allclose(y, np.tanh(0.3) + 1, rtol=1e-6)
    assert y.shape == (4, 2)
    assert count.tolist() == [2, 2]
    ones = [np.ones((4, 3), "f"), np.ones((3, 2), "f"), np.ones(2, "f")]
    with pytest.raises(TypeError, match="got 2 arrays"):
        Interpreter(graph)(*ones[:2])
    with pytest.raises(TypeError, match="input 'w' wants float32, got int64"):
        Interpreter(graph)(ones[0], np.ones((3, 2), "int64"), ones[2])
    with pytest.raises(ShapeError, match="input 'w' wants shape"):
        Interpreter(graph)(ones[0], ones[0], ones[2])


# -- the verifier ----------------------------------------------------------------------------------
def _twice(g: Graph) -> None:
    g.inputs[1].name = "x"


def _unknown_op(g: Graph) -> None:
    g.nodes[0].op = "mtamul"


def _no_longer_made(g: Graph) -> None:
    del g.nodes[0]


def _out_of_order(g: Graph) -> None:
    g.nodes[0], g.nodes[1] = g.nodes[1], g.nodes[0]


def _wrong_shape(g: Graph) -> None:
    g.nodes[0].out.shape = (7, 2)


def _wrong_dtype(g: Graph) -> None:
    g.nodes[1].out.dtype = tv.float64


def _does_not_multiply(g: Graph) -> None:
    g.nodes[0].inputs = g.nodes[0].inputs[::-1]


def _too_few_inputs(g: Graph) -> None:
    g.nodes[0].inputs = g.nodes[0].inputs[:1]


def _attr_missing(g: Graph) -> None:
    next(n for n in g.nodes if n.op == "full").attrs.clear()


def _attr_unknown(g: Graph) -> None:
    g.nodes[1].attrs["approximate"] = True


def _too_many_outputs(g: Graph) -> None:
    g.nodes[0].outputs *= 2


def _made_twice(g: Graph) -> None:
    g.nodes[1].outputs = g.nodes[0].outputs


def _foreign_output(g: Graph) -> None:
    g.outputs = [small().outputs[0]]


def _foreign_update(g: Graph) -> None:
    g.updates = dict(small().updates)


def _update_of_data(g: Graph) -> None:
    g.updates = {g.inputs[0]: g.inputs[0]}


def _update_of_another_type(g: Graph) -> None:
    g.updates = {g.inputs[2]: g.outputs[0]}


def _update_of_no_input(g: Graph) -> None:
    value = Value(g, g.inputs[2].type, None, 9, "stray")
    value.kind = "state"
    g.updates[value] = g.inputs[2]


def _kind_unknown(g: Graph) -> None:
    g.inputs[0].kind = None


DAMAGE = {
    _twice: "two inputs are called 'x'",
    _unknown_op: "no op 'mtamul'",
    _no_longer_made: "node 0, .*which nothing before it makes",
    _out_of_order: "node 0, <tanh in layer>: reads",
    _wrong_shape: r"node 0, .*says float32\[7, 2\], is float32\[batch, 2\]",
    _wrong_dtype: "node 1, .*says float64",
    _does_not_multiply: "node 0, <matmul in layer>: .*2 columns meet batch rows",
    _too_few_inputs: "node 0, <matmul in layer>",
    _attr_missing: "<full in the top scope>",
    _attr_unknown: "node 1, .*approximate",
    _too_many_outputs: "node 0, .*says",
    _made_twice: "node 1, .*made elsewhere too",
    _foreign_output: "made by no node",
    _foreign_update: "made by no node",
    _update_of_data: "cannot become",
    _update_of_another_type: "cannot become",
    _update_of_no_input: "stray.* cannot become",
    _kind_unknown: "'x'",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__.strip("_"))
def test_the_verifier_finds(damage: Any) -> None:
    graph = changed(damage)
    with pytest.raises(GraphError, match=DAMAGE[damage]):
        check(graph)


def with_branches() -> Graph:
    return tv.trace(
        lambda c, x: tv.cond(c, lambda y: tv.exp(y), lambda y: -y, x),
        ("bool", ()),
        ("float32", (2,)),
    )


def test_the_verifier_looks_into_control_flow() -> None:
    graph = check(with_branches())
    graph.nodes[0].attrs["otherwise"].nodes[0].op = "nothing"
    with pytest.raises(GraphError, match="no op 'nothing'"):
        check(graph)


def test_the_verifier_compares_branches_with_what_they_get() -> None:
    graph = with_branches()
    graph.nodes[0].attrs["otherwise"] = tv.trace(
        lambda x, y: x, ("float32", (2,)), ("float32", (2,))
    )
    with pytest.raises(GraphError, match="'otherwise' takes"):
        check(graph)


def test_the_printed_form_is_python() -> None:
    assert isinstance(ast.parse(str(small())).body[0], ast.FunctionDef)
