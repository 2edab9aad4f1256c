"""A Graph prints as Python and reads back the same; the reader runs nothing that it reads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trivium as tv
from trivium.graph import OPS, Graph, GraphError
from trivium.graph.check import check
from trivium.interpret import Interpreter
from trivium.transforms.grad import gradient


def assert_round_trip(graph: Graph) -> Graph:
    again = check(tv.parse(str(graph)))
    assert graph.difference(again) is None
    assert str(again) == str(graph)
    assert [n.scope for n in again.nodes] == [n.scope for n in graph.nodes]
    assert [n.origin for n in again.nodes] == [n.origin for n in graph.nodes]
    return again


class Block(tv.nn.Module):
    def __init__(self) -> None:
        self.conv = tv.nn.Conv2d(4, 3, padding=1, bias=False)
        self.bn = tv.nn.BatchNorm2d()
        self.drop = tv.nn.Dropout(0.25)

    def forward(self, x: Any) -> Any:
        return self.drop(tv.relu(self.bn(self.conv(x))))


def test_a_model_with_scopes_states_updates_and_an_open_mode() -> None:
    model = tv.nn.Sequential(Block(), Block(), tv.nn.Flatten(), tv.nn.Linear(3))
    graph = tv.trace(model, ("float32", ("batch", 2, 6, 6)))
    again = assert_round_trip(graph)
    text = str(again)
    assert {v.name for n in again.nodes for v in n.outputs} == {""}  # numbers are no names
    assert 'with scope("0.conv"):' in text
    assert "training=MODE" in text
    assert 'rng("rng", uint64, (2,))' in text
    assert text.count("update(") == 4


def test_a_training_graph() -> None:
    def loss(x: Any, y: Any) -> Any:
        return tv.cross_entropy(model(x), y)

    model = tv.nn.Sequential(tv.nn.RNN(4, last=True), tv.nn.Linear(3))
    graph = tv.trace(loss, ("float32", ("batch", "time", 2)), ("int64", ("batch",)), training=True)
    assert_round_trip(gradient(graph))


def test_control_flow_inside_control_flow() -> None:
    def f(flag: Any, xs: Any) -> Any:
        def step(c: Any, x: Any) -> Any:
            c = tv.cond(flag, lambda a: a + x, lambda a: a * x, c)
            return c, c

        return tv.scan(step, tv.zeros((3,)), xs)

    graph = tv.trace(f, ("bool", ()), ("float32", ("time", 3)))
    again = assert_round_trip(graph)
    xs = np.arange(6, dtype="f").reshape(2, 3)
    for a, b in zip(*(Interpreter(g)(np.array(True), xs) for g in (graph, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_open_sizes_in_attributes() -> None:
    def f(x: Any) -> Any:
        batch = x.shape[0]
        sizes = (batch - batch // 3 * 2, (batch + 1) // 2 * (batch // 5), 3 - batch // 2 + batch)
        return x.reshape(batch * 2, 2), tv.full(sizes, batch // 7 * -2)

    again = assert_round_trip(tv.trace(f, ("float32", ("batch", 4))))
    assert Interpreter(again)(np.ones((15, 4), "f"))[1].shape == (5, 24, 11)


NUMBERS = [
    np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], "float32"),
    np.array([0.1, 1 / 3], "float64"),
    np.array([0.1, 65504], "float16"),
    np.array([[1, 2**64 - 1]], "uint64"),
    np.array([-(2**63)], "int64"),
    np.array([True, False]),
    np.zeros((0, 3), "float32"),
    np.array(1.5, "float32"),
    np.array([0.1, 3e38], tv.bfloat16.numpy),
]


@pytest.mark.parametrize("array", NUMBERS, ids=lambda a: str(a.dtype) + str(a.shape))
def test_arrays_keep_every_bit(array: Any) -> None:
    graph = Graph()
    with graph:
        graph.outputs = [OPS["constant"](value=array)]
    value = assert_round_trip(graph).nodes[0].attrs["value"]
    assert (value.dtype, value.shape, value.tobytes()) == (
        array.dtype,
        array.shape,
        array.tobytes(),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0, 1e-320, 0.1])
def test_numbers_keep_every_bit(value: float) -> None:
    graph = Graph()
    with graph:
        graph.outputs = [tv.full((), value, dtype=tv.float64)]
    assert repr(assert_round_trip(graph).nodes[0].attrs["value"]) == repr(value)


NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(st.lists(NAME, min_size=2, max_size=4, unique=True), NAME, NAME, NAME)
def test_names_from_outside_may_be_anything(
    inputs: list[str], scope: str, value: str, graph_name: str
) -> None:
    graph = Graph(graph_name)
    with graph:
        values = [graph.input("data", "float32", (2,), n) for n in inputs]
        with graph.within(scope):
            graph.outputs = [tv.relu(tv.add(*values[:2]))]
        graph.nodes[0].out.name = value
        graph.nodes[1].origin = (scope, value)
    again = assert_round_trip(graph)
    assert [v.name for v in again.inputs] == inputs


@pytest.mark.parametrize("name", ["relu_7", "relu_1", "relu", "add_1", "x", "None", "def", "x_1"])
def test_values_keep_names_that_look_like_numbered_ones(name: str) -> None:
    graph = Graph()
    with graph:
        x = tv.placeholder("float32", (2,), name="x")
        y = tv.relu(x)
        graph.outputs = [tv.relu(tv.add(y, y))]
    y.name = name
    assert_round_trip(graph)


GOOD = """def graph(
    x: data("x", float32, ("batch", 3)),
):
    tanh_1 = tanh(x)
    return tanh_1"""


def test_the_sentence_that_is_spoilt_below_is_a_good_one() -> None:
    assert str(tv.parse(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (GOOD, "", "no printed Graph"),
        (GOOD, "x = 1", "does not begin with 'def'"),
        (GOOD, GOOD + "\n" + GOOD, "no printed Graph"),
        ("return", "retrun", "no printed Graph"),
        ("tanh(x)", "tahn(x)", "line 4: there is no op 'tahn'"),
        ("tanh(x)", "getitem(x)", "there is no op 'getitem'"),
        ("tanh(x)", "tanh(y)", "line 4: 'y' is not defined above"),
        ("tanh(x)", "tanh(x, x)", "line 4: tanh.* got 2 arrays"),
        ("tanh(x)", "tanh(x, axis=1)", "line 4: tanh.. has no axis"),
        ("tanh(x)", "sum(x, axis=7)", "axis 7 is out of range"),
        ("tanh(x)", "sum(x, axis=open('/etc/passwd'))", "not an attribute"),
        ("tanh(x)", "sum(x, axis=__import__('os').getpid())", "not an attribute"),
        ("tanh(x)", "sum(x, axis=[i for i in (0,)])", "not an attribute"),
        ("tanh(x)", "tanh(x).real", "not a line"),
        ("tanh_1 = tanh(x)", "tanh_1, b = tanh(x)", "gives 1 results"),
        ("tanh_1 = tanh(x)", "import os", "not a line"),
        ("tanh_1 = tanh(x)", "print(x)", "not a line"),
        ("return tanh_1", "return y", "'y' is not defined"),
        ("return tanh_1", "return tanh(x)", "not defined|not a line"),
        ("data(", "weights(", "an input is kind"),
        ("float32", "complex64", "an input is|dtype|not"),
        ('"batch"', '"2**n"', "is no size"),
        ("(x)", "(None)", "tanh"),
        ("return tanh_1", "update(tanh_1, x)\n    return tanh_1", "cannot become|update"),
    ],
)
def test_what_is_no_graph_is_refused_with_the_line(old: str, new: str, why: str) -> None:
    assert old in GOOD
    with pytest.raises((GraphError, tv.ShapeError), match=why):
        check(tv.parse(GOOD.replace(old, new)))


def test_depth_is_no_way_in() -> None:
    with pytest.raises(GraphError):
        tv.parse(GOOD.replace("tanh(x)", "sum(x, axis=" + "(" * 150 + "1" + ",)" * 150 + ")"))
    with pytest.raises(GraphError):
        tv.parse(GOOD.replace("tanh(x)", "sum(x, axis=" + "-" * 100_000 + "1)"))
