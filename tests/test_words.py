"""What is refused says what to do, in words a user can follow; and what need not be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trivium as tv

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

X = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
IDS = np.array([[0, 2, 1, 6], [5, 5, 3, 0], [1, 4, 6, 2]])


class Does(nn.Module):
    """A function of its layers and its inputs, as a model."""

    def __init__(self, function: Any, **layers: Any):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def refused(call: Any, *words: str) -> str:
    with pytest.raises(tv.UnsupportedError) as seen:
        call()
    said = str(seen.value)
    assert all(w in said for w in words), said
    return said


# -- weights that two layers share -----------------------------------------------------------------
def tied() -> Any:
    model = Does(lambda m, i: m.head(torch.tanh(m.emb(i))), emb=nn.Embedding(7, 5))
    model.head = nn.Linear(5, 7, bias=False)
    model.head.weight = model.emb.weight
    return model


def two_biases() -> Any:
    model = Does(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(5, 5), b=nn.Linear(5, 5))
    model.b.weight = model.a.weight
    return model


def there_and_back() -> Any:
    layer = nn.Linear(5, 3)
    return Does(lambda m, x: F.linear(torch.tanh(m.a(x)), m.a.weight.t()), a=layer)


@pytest.mark.parametrize("make", [tied, two_biases, there_and_back])
def test_a_weight_of_two_layers_goes_to_keras_and_back(make: Any, tmp_path: Any) -> None:
    pytest.importorskip("keras")
    x = IDS if make is tied else X
    model = make()
    there = tv.to_keras(model, x)
    there.save(tmp_path / "model.keras")
    names = [n for n, _ in model.named_parameters()]
    back = tv.from_keras(tmp_path / "model.keras")
    assert sorted(back.state_dict()) == sorted(names)
    assert tv.verify(there, back, x)


def test_a_cell_in_a_loop_goes_to_keras_though_its_weights_have_other_names() -> None:
    pytest.importorskip("keras")
    assert tv.to_keras(nn.GRUCell(5, 4), X, np.zeros((3, 4), "f")).report.ok


def test_a_weight_that_is_an_output_too_goes_everywhere() -> None:
    model = Does(lambda m, x: (m.a(x), m.a.weight), a=nn.Linear(5, 3))
    for target in ("keras", "tensorflow", "jax", "torch"):
        pytest.importorskip(target)
        assert getattr(tv, f"to_{target}")(model, X)


# -- without gradients -----------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["torch", "keras", "jax"])
def test_a_trunk_without_gradients_keeps_its_statistics(target: str) -> None:
    pytest.importorskip(target)

    def forward(m: Any, x: Any) -> Any:
        with torch.no_grad():
            x = m.trunk(x)
        return m.head(x)

    trunk = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())
    assert getattr(tv, f"to_{target}")(Does(forward, trunk=trunk, head=nn.Linear(4, 2)), X)


# -- recurrence ------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Does is read for inputs")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_recurs_with_gates_says_what_to_do(kind: str) -> None:
    layer = getattr(nn, kind)(5, 4, num_layers=2, dropout=0.1)
    model = Does(lambda m, x: m.r(x)[0], r=layer)
    x = np.stack([X, X])
    refused(lambda: tv.from_torch(model, x), f"(nn.{kind})", "at r", f"nn.{kind}Cell")


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell_is_applied_to_one_moment_after_another(kind: str) -> None:
    def forward(m: Any, x: Any) -> Any:
        h = torch.zeros(x.shape[0], 4)
        state = (h, h) if kind == "LSTMCell" else h
        for i in range(x.shape[1]):
            state = m.cell(x[:, i], state)
        return state

    x = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    net = tv.to_torch(Does(forward, cell=getattr(nn, kind)(5, 4)), x)
    assert net.report.ok


# -- operators that nothing reads ------------------------------------------------------------------
def test_an_operator_that_nothing_reads_says_what_a_user_can_do() -> None:
    words = ("docs/coverage.md", "report it", "CONTRIBUTING.md", "at M")
    model = type("M", (nn.Module,), {"forward": lambda m, x: torch.erfinv(x)})()
    refused(lambda: tv.from_torch(model, X), "the operator aten.erfinv", *words)
    model.forward = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")
    x = np.zeros((1, 3, 8, 8), "f")
    refused(lambda: tv.from_torch(model, x), "aten.upsample_bilinear2d", "is a part", *words)


# -- what is no number -----------------------------------------------------------------------------
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 0.2, -0.2, 3, -3], np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.threshold(x, 0.2, -7.0),
        lambda x: F.threshold(x, 0.0, 0.0),
        lambda x: x**-0.5,
        lambda x: x**0.5,
        lambda x: torch.clamp(x, -1, 1),
        lambda x: torch.clamp(x, min=0.5),
        lambda x: F.leaky_relu(x, -0.5),
        lambda x: F.prelu(x, torch.tensor([0.25])),
        lambda x: F.hardtanh(x),
        lambda x: F.softplus(x, 2.0, 1.0),
        lambda x: torch.maximum(x, x.flip(0)),
    ],
)
def test_what_is_no_number_is_read_as_torch_means_it(function: Any) -> None:
    ours = tv.from_torch(Does(lambda m, x: function(x)), ODD, verify=False)
    want = function(torch.from_numpy(ODD)).numpy()
    np.testing.assert_allclose(np.asarray(ours(ODD)), want, rtol=1e-6)


# -- examples --------------------------------------------------------------------------------------
@pytest.mark.parametrize("example", [{"a": X}, (X, X), [torch.from_numpy(X)]])
def test_inputs_in_a_container_are_refused(example: Any) -> None:
    model = Does(lambda m, d: d)
    kind = type(example).__name__
    for call in (tv.from_torch, tv.to_torch):
        said = refused(lambda c=call: c(model, example), f"(number 0) that is a {kind}")
        assert "from_torch(model, a, b)" in said and "wrapped" in said


def test_examples_may_be_numbers_in_lists() -> None:
    tv.to_torch(tv.nn.Linear(2), [[1.0, 2.0], [3.0, 4.0]])
    refused(lambda: tv.from_torch(nn.Linear(5, 2), None), "a NoneType", "arrays or tensors")


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        (nn.Linear(4, 4), X, "3x5 and 4x4"),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), X[:1], "more than 1 value"),
        (Does(lambda m, x: x * (1 // 0)), X, "by zero"),
    ],
)
def test_a_model_that_fails_by_itself_is_not_blamed_on_the_export(
    model: Any, x: Any, words: str
) -> None:
    said = refused(lambda: tv.from_torch(model, x), "the model itself fails while training", words)
    assert f"float32{x.shape}" in said and "branch" not in said


def test_an_export_that_fails_says_why() -> None:
    branches = Does(lambda m, x: x if x.sum() > 0 else -x)
    refused(lambda: tv.from_torch(branches, X), "torch.export cannot follow", "torch.where")
    numpy = Does(lambda m, x: torch.from_numpy(x.numpy() * 2))
    said = refused(lambda: tv.from_torch(numpy, X), "torch.export cannot follow", "on tensors")
    assert "branch" not in said


# -- wrong use -------------------------------------------------------------------------------------
@pytest.mark.parametrize("epochs", [-1, 0, 1.5, True, None, "3"])
def test_epochs_are_a_whole_number(epochs: Any) -> None:
    model = tv.nn.Linear(3).compile("sgd", "mse")
    with pytest.raises(ValueError, match="epochs is a whole number from 1, not"):
        model.fit(X, X[:, :3], epochs=epochs, verbose=False)


@pytest.mark.parametrize("index", [-1, 7, -8])
def test_a_row_that_is_not_there_is_refused_in_the_same_words(index: int) -> None:
    own, wrong = tv.nn.Embedding(7, 4), np.array([[0, index]])
    own(IDS)
    read = tv.from_torch(nn.Embedding(7, 4), IDS)
    engines = [n for n, version in tv.engines().items() if version]
    calls = [lambda: own(wrong), lambda: read(wrong), lambda: own.predict(wrong)]
    calls += [lambda e=e: tv.compile(own, engine=e)(wrong) for e in engines]
    calls += [lambda: tv.from_torch(nn.Embedding(7, 4), wrong), lambda: tv.to_torch(own, wrong)]
    for call in calls:
        with pytest.raises(IndexError) as seen:
            call()
        said = f"embedding: index {index} is out of range for a table of 7 rows"
        assert str(seen.value) == said


# -- ONNX and Keras --------------------------------------------------------------------------------
def onnx_model(nodes: Any, outputs: Any, held: Any = ()) -> Any:
    onnx = pytest.importorskip("onnx")
    made = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*a, **k) for a, k in nodes], "g",
        [made("x", onnx.TensorProto.FLOAT, ["n", 5])],
        [made(n, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(t)), s) for n, t, s in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in held],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


@pytest.mark.parametrize("last", [0, 1])
def test_argmax_goes_from_onnx_to_keras_with_zeros_of_both_signs(last: int) -> None:
    pytest.importorskip("keras")
    node = (("ArgMax", ["x"], ["y"]), {"axis": 1, "keepdims": 0, "select_last_index": last})
    model = tv.to_keras(tv.from_onnx(onnx_model([node], [("y", "int64", ["n"])])))
    x = np.array([[-0.0, 0.0, -1, 0.0, -0.0]], np.float32)
    assert np.asarray(model(x)).tolist() == [4 * last]


@pytest.mark.parametrize("target", ["keras", "torch", "tensorflow", "jax"])
@pytest.mark.parametrize("how", ["held", "made"])
def test_an_output_that_no_input_decides(target: str, how: str, tmp_path: Any) -> None:
    pytest.importorskip(target)
    onnx = pytest.importorskip("onnx")
    c, w = np.arange(4, dtype=np.float32), np.ones((5, 4), np.float32)
    nodes = [(("MatMul", ["x", "w"], ["y"]), {})]
    held = [("w", w)] + [("c", c)] * (how == "held")
    if how == "made":
        nodes.append((("Constant", [], ["c"]), {"value": onnx.numpy_helper.from_array(c)}))
    proto = onnx_model(nodes, [("y", "float32", ["n", 4]), ("c", "float32", [4])], held)
    there = getattr(tv, f"to_{target}")(tv.from_onnx(proto))
    if target == "keras":
        there.save(tmp_path / "model.keras")
        assert tv.verify(there, tv.from_keras(tmp_path / "model.keras"))


@pytest.mark.parametrize("pool", [nn.AvgPool1d(2), nn.MaxPool1d(2), nn.AvgPool2d(2, padding=1)])
def test_float64_pools_go_to_keras(pool: Any) -> None:
    pytest.importorskip("keras")
    shape = (2, 3, 8) if "1d" in type(pool).__name__ else (2, 3, 8, 6)
    assert tv.to_keras(pool, np.random.default_rng(0).standard_normal(shape)).report.ok


def test_what_onnx_runtime_lacks_is_said() -> None:
    pytest.importorskip("onnxruntime")
    x = X.astype(np.float64)
    refused(lambda: tv.to_onnx(nn.GELU(), x), "ONNX Runtime", "Erf", "float32", "verify=False")
    assert tv.to_onnx(nn.GELU(), x, verify=False)
