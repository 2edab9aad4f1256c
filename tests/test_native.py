"""The native engine against the float64 oracle: every case of every op, on every instruction set.

The judge is the interpreter in float64 (NumPy); nothing here compares the engine with itself except
where the same bits are promised.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import trivium as tv
from trivium.engines import NumpyTrainer
from trivium.graph import OPS, Graph
from trivium.interpret import Interpreter
from trivium.native import program, run
from trivium.native.build import Build, assemble
from trivium.native.run import NativeFunction, NativeTrainer
from trivium.native.target import TARGETS, host
from trivium.nn.parameter import captured
from trivium.op import Case, Op
from trivium.shape import ShapeError
from trivium.transforms.grad import pullback
from trivium.transforms.step import training_step

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
MODELS = ["linear_regression", "logistic_regression", "mlp", "cnn", "rnn"]
ORDER = ["sse2", "avx2", "avx512"]
HERE = ORDER[: ORDER.index(host().name) + 1] if host().name in ORDER else []

# What runs as its NumPy body inside the compiled step; docs/coverage.md says so too.
KERNELS = {"random_uniform", "take_grad", "cond", "dropout"}

ALL = [op for op in OPS.values() if isinstance(op, Op)]
CASES = [pytest.param(op, c, id=f"{op.name}-{i}") for op in ALL for i, c in enumerate(op.cases)]


FENCE = 2**16  # bytes before and behind all memory that compiled code is given


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", "")


@pytest.fixture(autouse=True)
def _fences(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled code that writes outside of its arrays is found."""
    fences: list[tuple[Any, int, int]] = []

    def fenced(size: int) -> Any:
        raw = np.full(size + 2 * FENCE + 64, 0xA5, np.uint8)
        start = -program.address_of(raw) % 64 + FENCE
        raw[start : start + size] = 0
        fences.append((raw, start, start + size))
        return raw[start : start + size]

    def empty(array: program.Array) -> Any:
        dtype = tv.dtype.as_dtype(array.dtype).numpy
        count = int(np.prod(array.shape))
        return fenced(count * dtype.itemsize).view(dtype).reshape(array.shape)

    for module in (program, run):
        monkeypatch.setattr(module, "room", fenced)
    monkeypatch.setattr(run, "empty", empty)
    yield
    for raw, start, stop in fences:
        assert (raw[:start] == 0xA5).all()
        assert (raw[stop:] == 0xA5).all()


def on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compile for this instruction set from now on."""
    if name != host().name:
        monkeypatch.setattr(program, "host", lambda: TARGETS[name])


def one_node(op: Op, case: Case, arrays: list[Any]) -> Graph:
    graph = Graph(op.name)
    with graph:
        values = [
            None if a is None else graph.input("data", str(a.dtype), a.shape, f"x{i}")
            for i, a in enumerate(arrays)
        ]
        graph.outputs = list(op.append(graph, *op.bind(values, case.attrs)))
    return graph


def agree(graph: Graph, arrays: list[Any], tolerance: float) -> NativeFunction:
    """The engine's results are the oracle's, within rounding of their largest number."""
    function = NativeFunction(graph)
    found = function({}, arrays)
    exact = Interpreter(graph, tv.float64, training=False)(*arrays)
    for got, want in zip(found, exact, strict=False):
        assert got.shape == want.shape
        if got.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
        elif got.size:
            assert np.isfinite(got).all()
            scale = max(1.0, float(np.abs(want).max()))
            assert np.abs(got.astype(np.float64) - want).max() <= tolerance * scale
    return function


def kernels(function: NativeFunction) -> set[str]:
    frames = function._frames.last()
    recipe = frames.program.recipe
    return {recipe.nodes[k].op for k, _, _ in recipe.kernels}


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_every_case(op: Op, case: Case, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, target)
    rng = np.random.default_rng(0)
    kinds = (
        ((tv.float32, 4e-6), (tv.float64, 1e-13))
        if target == host().name
        else ((tv.float32, 4e-6),)
    )
    for floating, tolerance in kinds:
        if floating == tv.float64 and op.name in ("cond", "scan"):
            continue  # their cases hold Graphs of float32
        arrays = [None if s is None else s.array(rng, floating) for s in case.arrays]
        graph = one_node(op, case, arrays)
        given = [a for a in arrays if a is not None]
        assert kernels(agree(graph, given, tolerance)) <= KERNELS
        wrt = [v.name for v in graph.inputs if v.dtype.is_floating]
        if not wrt or not any(v.dtype.is_floating for v in graph.outputs):
            continue
        back = pullback(graph, wrt)
        more = [
            rng.standard_normal(v.shape).astype(v.dtype.numpy)
            for v in back.inputs[len(graph.inputs) :]
        ]
        assert kernels(agree(back, given + more, 4 * tolerance)) <= KERNELS


# -- shapes nobody thought of ---------------------------------------------------------------------
def graph_of(function: Any, *arrays: Any) -> Graph:
    return tv.trace(function, *(tv.Spec(str(a.dtype), a.shape) for a in arrays), training=False)


sizes = st.one_of(st.integers(0, 5), st.integers(6, 40))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, sizes, sizes, st.booleans(), st.booleans(), st.integers(0, 3), st.booleans())
def test_matmul_of_any_size(
    m: int, n: int, k: int, ta: bool, tb: bool, batch: int, relu: bool
) -> None:
    rng = np.random.default_rng(m + 41 * n + 1681 * k)
    lead = (batch,) if batch else ()
    x = rng.standard_normal((*lead, *((k, m) if ta else (m, k)))).astype(np.float32)
    y = rng.standard_normal((n, k) if tb else (k, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)

    def function(x: Any, y: Any, bias: Any) -> Any:
        z = (x.mT if ta else x) @ (y.mT if tb else y) + bias
        return tv.relu(z) if relu else z

    agree(graph_of(function, x, y, bias), [x, y, bias], 4e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_convolutions_of_any_shape(data: Any) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 3))
    cin, cout = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 20))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    stride = [draw(st.integers(1, 3)) for _ in range(2)]
    dilation = [draw(st.integers(1, 2)) for _ in range(2)]
    padding = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2)]
    size = [
        d * (k - 1) + 1 + draw(st.integers(0, 14)) for d, k in zip(dilation, kernel, strict=True)
    ]
    layout = draw(st.sampled_from(["NCHW", "NHWC"]))
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (n, cin, *size) if layout == "NCHW" else (n, *size, cin)
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal((cout, cin // groups, *kernel)).astype(np.float32)
    graph = graph_of(
        lambda x, w: tv.conv(x, w, stride=tuple(stride), padding=tuple(padding), groups=groups,
                             dilation=tuple(dilation), layout=layout), x, w)  # fmt: skip
    back = pullback(graph, [v.name for v in graph.inputs])
    g = rng.standard_normal(graph.outputs[0].shape).astype(np.float32)
    agree(back, [x, w, g], 4e-6)


LARGE = {  # images, kernels, attributes: large enough that threads share them and tiles are full
    "plain": ((8, 32, 26, 26), (64, 32, 3, 3), {}),
    "padded, one channel": ((16, 1, 32, 32), (16, 1, 3, 3), {"padding": 1}),
    "strided": ((8, 16, 29, 29), (32, 16, 3, 3), {"stride": 2, "padding": 1}),
    "a stem": ((4, 3, 56, 56), (32, 3, 7, 7), {"stride": 2, "padding": 3}),
    "pointwise": ((8, 48, 28, 28), (40, 48, 1, 1), {}),
    "dilated": ((8, 16, 28, 28), (32, 16, 3, 3), {"dilation": 2, "padding": 2}),
    "grouped": ((8, 32, 28, 28), (64, 8, 3, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((8, 40, 28, 28), (40, 1, 3, 3), {"groups": 40, "padding": 1}),
    "depthwise, strided": ((8, 32, 29, 29), (32, 1, 3, 3), {"groups": 32, "stride": 2}),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_convolutions_are_tiles(name: str) -> None:
    """Right, within their fences, and no way back to one number at a time."""
    images, kernels, attrs = LARGE[name]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (images, kernels))
    graph = graph_of(lambda x, w: tv.relu(tv.conv(x, w, **attrs)), x, w)
    # An image of one channel is where a model begins: nobody asks for its gradient.
    back = pullback(graph, [v.name for v in graph.inputs[images[1] == 1 :]])
    g = rng.standard_normal(graph.outputs[0].shape).astype(np.float32)
    function = agree(back, [x, w, g], 4e-6)
    frames = function._frames.last()
    plans = [p for phase in frames.program._build().phases for p in phase.plans]
    products = [p for p in plans if p.nest.kind == "sum" and p.nest.body.op == "multiply"]
    assert len(products) >= 2
    assert {p.how for p in products} == {"tile"}


@pytest.mark.parametrize("optimizer", [tv.optim.SGD(0.1), tv.optim.Adam(0.1)])
def test_training_steps_are_tiles_with_any_optimizer(optimizer: Any) -> None:
    """An optimizer's slots lie as their parameter does, and so do the gradients."""
    nn = tv.nn
    first = nn.Conv2d(16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(
        *first, nn.Conv2d(32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(10)
    )
    x, y = tv.Spec("float32", (32, 1, 16, 16)), tv.Spec("int64", (32,))
    loss = tv.trace(lambda x, y: tv.cross_entropy(model(x), y), x, y, training=True)
    build = Build(training_step(loss, optimizer.update()), True, host())
    plans = [p for phase in build.phases for p in phase.plans]
    products = [p for p in plans if p.nest.kind == "sum" and p.nest.body.op == "multiply"]
    assert len(products) >= 7
    assert {p.how for p in products if p.nest.iterations > 10_000} == {"tile"}


ROWS = {  # what makes one number of a row, and then a row of it
    "softmax": (lambda x, g, b: tv.softmax(x, axis=-1), 1, 2),
    "log_softmax": (lambda x, g, b: tv.log_softmax(x, axis=-1), 1, 1),
    "layer_norm": (lambda x, g, b: tv.layer_norm(x, g, b), 1, 3),
}


@pytest.mark.parametrize("name", ROWS)
def test_softmax_and_norms_are_one_pass_over_rows(name: str) -> None:
    """A few rows at a time go through everything; backwards, sums over all rows come after."""
    function, forward, backward = ROWS[name]
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((96, 500)).astype(np.float32) for _ in range(2))
    scale, shift = (rng.standard_normal(500).astype(np.float32) for _ in range(2))
    graph = graph_of(function, x, scale, shift)
    read = {id(v) for n in graph.nodes for v in n.inputs}
    used = [v.name for v in graph.inputs if id(v) in read]
    back = pullback(graph, used)
    for made, arrays, most in ((graph, [], forward), (back, [g], backward)):
        agree(made, [x, scale, shift, *arrays], 2e-5)
        assert len(Build(made, False, host()).phases) <= most


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(sizes, min_size=1, max_size=4), st.data())
def test_reductions_and_broadcasts_of_any_shape(shape: list[int], data: Any) -> None:
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    order = data.draw(st.permutations(range(len(shape))))
    count = max(1, int(np.prod([shape[i] for i in axes])))
    rng = np.random.default_rng(sum(shape))
    x = rng.standard_normal(shape).astype(np.float32)
    y = rng.standard_normal([1 if i in axes else s for i, s in enumerate(shape)]).astype(np.float32)

    def function(x: Any, y: Any) -> Any:
        z = tv.tanh(x * y) + y
        total = tv.sum(z, axis=tuple(axes))
        middle = tv.sum(z, axis=tuple(axes), keepdims=True) / count
        return total, tv.exp(z - middle).permute(*order)

    agree(graph_of(function, x, y), [x, y], 1e-5)


@pytest.mark.parametrize("axis", [None, 0, (0, 1), (1, 2), 2])
def test_large_sums(axis: Any) -> None:
    """Long enough to be made in groups, over all axes or some, and on from there."""
    x = np.random.default_rng(0).standard_normal((24, 70, 90)).astype(np.float32)
    graph = graph_of(lambda x: x - tv.sum(tv.tanh(x), axis=axis, keepdims=True), x)
    agree(graph, [x], 1e-5)


def test_inputs_however_they_lie() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((40, 50)).astype(np.float32)
    raw = np.zeros(4 * 35 + 1, np.uint8)
    odd = raw[1:].view(np.float32).reshape(5, 7)  # begins at an odd address
    odd[...] = 2
    read_only = base[:7, :5].copy()
    read_only.flags.writeable = False
    for x in (base[::2, 3:][:5, :7], base.T[:7, :5].T, base[::-1][:5, 10:17], odd, read_only.T):
        agree(graph_of(lambda x: tv.tanh(x) * 2, x), [x], 1e-6)


def test_an_input_may_be_an_output_and_a_result_twice() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = graph_of(lambda x: (x, x + 1, x + 1, tv.sum(x)), x)
    graph.outputs.append(graph.outputs[1])
    agree(graph, [x], 1e-6)


# -- training -------------------------------------------------------------------------------------
def steps(name: str, threads: int, count: int = 4) -> tuple[list[float], dict[str, Any]]:
    example = importlib.import_module(name)
    tv.seed(0)
    step = tv.TrainStep(
        example.make(), example.loss, tv.optim.Adam(0.01), engine="native", threads=threads
    )
    x, y = example.data()
    batches = list(tv.data.batches(x, y, batch_size=33))[:count]
    batches.append((x[:7], y[:7]))  # another size in between
    losses = [step(a, b) for a, b in batches]
    return losses, step.model.state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_for_any_number_of_threads(name: str) -> None:
    losses, values = steps(name, 1)
    for threads in (2, 3, 2):
        again, state = steps(name, threads)
        assert again == losses
        for key, value in values.items():
            assert state[key].tobytes() == value.tobytes()


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("name", ["mlp", "cnn", "rnn"])
def test_steps_on_every_instruction_set(
    name: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, target)
    found, _ = steps(name, 2, 2)
    monkeypatch.undo()
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", "")
    example = importlib.import_module(name)
    tv.seed(0)
    step = tv.TrainStep(example.make(), example.loss, tv.optim.Adam(0.01), engine="numpy")
    x, y = example.data()
    batches = [*list(tv.data.batches(x, y, batch_size=33))[:2], (x[:7], y[:7])]
    np.testing.assert_allclose(found, [step(a, b) for a, b in batches], rtol=1e-4)


def cnn_step() -> Graph:
    cnn = importlib.import_module("cnn")
    x, _ = cnn.data()
    model = cnn.make()
    graph = tv.trace(
        lambda a, b: cnn.loss(model(a), b), tv.Spec("float32", x[:8].shape),
        tv.Spec("int64", (8,)), training=True)  # fmt: skip
    return training_step(graph, tv.optim.Adam().update())


def test_code_for_another_machine() -> None:
    build = Build(cnn_step(), True, TARGETS["neon"])
    code = assemble(build.text(), TARGETS["neon"])
    assert code[:4] == b"\x7fELF" and code[18] == 183  # e_machine: aarch64


def test_labels_out_of_range_stop_the_step_before_it_changes_anything() -> None:
    tv.seed(0)
    model = tv.nn.Sequential(tv.nn.Linear(4), tv.relu, tv.nn.Linear(3))
    step = tv.TrainStep(model, "cross_entropy", tv.optim.Adam(0.1), engine="native")
    x, y = np.ones((5, 2), np.float32), np.array([0, 1, 2, 0, 1])
    step(x, y)
    before = {n: a.copy() for n, a in model.state_dict().items()}
    with pytest.raises(IndexError, match="label 3 is out of range for 3 classes"):
        step(x, y + 1)
    with pytest.raises(IndexError, match="one_hot: an index is out of range for 3 entries"):
        step._trainer.step([x, y + 1], 0.1)  # the engine's own, for indices that are computed
    for name, value in model.state_dict().items():
        assert value.tobytes() == before[name].tobytes()
    assert np.isfinite(step(x, y))


def test_an_index_that_is_computed_is_checked_too() -> None:
    x, i = np.arange(10, dtype=np.float32), np.array([1, 3])
    function = NativeFunction(graph_of(lambda x, i: tv.take(x, i * 2), x, i))
    np.testing.assert_array_equal(function({}, [x, i])[0], [2, 6])
    with pytest.raises(IndexError, match="take"):
        function({}, [x, i + 3])
    np.testing.assert_array_equal(function({}, [x, -i])[0], [8, 4])


def test_a_wrong_input_is_named() -> None:
    step = tv.TrainStep(tv.nn.Linear(1), "mse", tv.optim.SGD(0.1), engine="native")
    step(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32))
    with pytest.raises(tv.ShapeError, match="x wants shape"):
        step(np.ones((4, 3), np.float32), np.ones((4, 1), np.float32))


def test_several_threads_call_one_function() -> None:
    fast = tv.compile(lambda x: tv.softmax(x @ x.mT, axis=-1), engine="native")
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((60, 60)).astype(np.float32) for _ in range(8)]
    alone = [np.asarray(fast(x)) for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(50):
            if np.asarray(fast(inputs[k])).tobytes() != alone[k].tobytes():
                wrong.append(k)

    crew = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in crew:
        t.start()
    for t in crew:
        t.join()
    assert wrong == []


def test_a_child_trains_on_after_fork(tmp_path: Path) -> None:
    code = """
import os, sys, numpy as np, trivium as tv
x = np.random.default_rng(0).random((64, 300), dtype=np.float32)
y = np.arange(64) % 10
def losses(n):
    return [step(x, y) for _ in range(n)]
tv.seed(0)
step = tv.TrainStep(tv.nn.Sequential(tv.nn.Linear(500), tv.relu, tv.nn.Linear(10)),
                    "cross_entropy", tv.optim.SGD(0.1), engine="native", threads=2)
losses(3)
pid = os.fork()
found = losses(3)
if pid == 0:
    open(sys.argv[1], "w").write(repr(found))
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0 and open(sys.argv[1]).read() == repr(found), (status, found)
"""
    env = os.environ | {"PYTHONPATH": "src"}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr


def test_specialisations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEPT", 3)
    tv.seed(0)
    model = tv.nn.Linear(2)
    model.build(np.ones((1, 3), np.float32))
    graph = tv.trace(model, tv.Spec("float32", ("batch", 3)), training=False)
    function = NativeFunction(graph)
    values = model.state_dict()
    for batch in (1, 2, 3, 4, 5, 1):
        x = np.ones((batch, 3), np.float32)
        np.testing.assert_allclose(function(values, [x])[0], np.asarray(model(x)), rtol=1e-6)
    assert len(function._frames) == 3


def test_bias_activation_and_residual_are_a_products_last_words() -> None:
    rng = np.random.default_rng(0)
    x, w, b, r = (rng.standard_normal(s).astype(np.float32)
                  for s in ((64, 32), (32, 48), (48,), (64, 48)))  # fmt: skip
    graph = graph_of(lambda x, w, b, r: tv.relu(x @ w + b) + r, x, w, b, r)
    source = agree(graph, [x, w, b, r], 4e-6).source
    assert source.count("acc = 0") == source.count("# phase") == 1
    assert "add_1[i, j] = relu(acc + x2[j]) + x3[i, j]" in source


def test_the_source_can_be_read() -> None:
    trainer = NativeTrainer(
        tv.trace(lambda x, y: tv.mse_loss(tv.nn.Linear(1)(x), y), tv.Spec("float32", ("n", 2)),
                 tv.Spec("float32", ("n", 1)), training=True),
        {"weight": np.ones((1, 2), np.float32), "bias": np.ones(1, np.float32)},
        tv.optim.SGD(0.1).update())  # fmt: skip
    with pytest.raises(ValueError, match="nothing is compiled yet"):
        _ = trainer.source
    trainer.step([np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)], 0.1)
    assert "acc += x0[i, k] * weight[0, k]" in trainer.source


def test_steps_of_a_loop_share_their_code() -> None:
    """Twelve steps of a recurrent network, written out, are no more code than six."""

    def functions(steps: int) -> int:
        weights = [np.zeros(s, np.float32) for s in ((4, 3), (4, 4), (4,))]
        x = np.zeros((5, steps, 3), np.float32)
        step = graph_of(lambda x, *w: tv.sum(OPS["rnn"](x, *w)[1] ** 2), x, *weights)
        text = Build(pullback(step, [v.name for v in step.inputs[1:]]), False, host()).text()
        return text.count("@nest_", 0) - text.count("call void @nest_")

    assert functions(6) == functions(12)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_training_steps_of_any_model(data: Any) -> None:
    """Layers in any order, any optimizer: three steps as on the NumPy engine."""
    draw, nn = data.draw, tv.nn
    tv.seed(draw(st.integers(0, 99)))
    layers: list[Any] = []
    for _ in range(draw(st.integers(0, 3))):
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
        layers.append(nn.Conv2d(draw(st.integers(1, 20)), draw(st.integers(1, 3)), stride=stride,
                                padding=padding, bias=draw(st.booleans())))  # fmt: skip
        more = [nn.BatchNorm2d(), nn.ReLU(), nn.Tanh(), nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2)]
        layers += draw(st.lists(st.sampled_from(more), max_size=2, unique_by=type))
    layers.append(nn.Flatten())
    for _ in range(draw(st.integers(0, 2))):
        layers.append(nn.Linear(draw(st.integers(1, 40))))
        layers += draw(
            st.lists(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.LayerNorm()]), max_size=1)
        )
    model = nn.Sequential(*layers, nn.Linear(5))
    optimizers = [tv.optim.SGD(0.05), tv.optim.SGD(0.05, momentum=0.9), tv.optim.Adam(0.01)]
    optimizer = draw(st.sampled_from(optimizers))
    batch, channels = draw(st.integers(2, 9)), draw(st.integers(1, 5))
    size = [draw(st.integers(14, 19)) for _ in range(2)]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, channels, *size)).astype(np.float32)
    y = rng.integers(0, 5, batch)
    specs = tv.Spec("float32", x.shape), tv.Spec("int64", y.shape)
    try:
        loss = tv.trace(lambda x, y: tv.cross_entropy(model(x), y), *specs, training=True)
    except ShapeError:
        reject()  # a window larger than what is left of the image
    values = {name: p.data for name, p in captured(loss).items()}
    ours, numpy = (make(loss, values, optimizer.update()) for make in (NativeTrainer, NumpyTrainer))
    for _ in range(3):
        assert ours.step([x, y], optimizer.lr) == pytest.approx(
            numpy.step([x, y], optimizer.lr), rel=1e-3, abs=1e-4
        )
