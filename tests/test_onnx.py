"""ONNX both ways: what is written runs in ONNX Runtime, what is read means what ONNX says it means.

The second is held against the ONNX project's own node tests. What is refused is listed here by
name: a new refusal fails, and so does a case that works by now.
"""

import warnings
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn
from trivium.graph import OPS, Graph, UnsupportedError
from trivium.interpret import Interpreter
from trivium.nn.module import GraphModule
from trivium.op import Op
from trivium.transforms.replay import prune, specialize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from trivium.engines.onnxruntime import OnnxRuntime  # noqa: E402
from trivium.frameworks.onnx.emit import write  # noqa: E402
from trivium.frameworks.onnx.load import array  # noqa: E402
from trivium.frameworks.onnx.open import read  # noqa: E402
from trivium.frameworks.onnx.operators_nn import OPERATORS  # noqa: E402
from trivium.frameworks.onnx.sizes import FOLDS  # noqa: E402

ENGINE = OnnxRuntime(threads=1)
FLOAT = TensorProto.FLOAT

# -- every case of every op --------------------------------------------------------------------
NOT_IN_ONNX = {  # and why
    "atan2": "it has Atan alone",
    "conv_input_grad": "a gradient",
    "conv_weight_grad": "a gradient",
    "windows": "the inside of a pool",
    "fold": "the inside of a pool",
    "random_uniform": "random_uniform cannot be exported",
    "dropout": "random_uniform cannot be exported",  # while training, that is
}
CASES = [
    pytest.param(op, case, id=f"{op.name}-{i}")
    for op in OPS.values()
    if isinstance(op, Op)
    for i, case in enumerate(op.cases)
]


def refused(op: Op, case: Any) -> bool:
    return op.name in NOT_IN_ONNX and (op.name != "dropout" or case.attrs["training"])


def graph_of(op: Op, case: Any) -> Graph:
    graph = Graph(op.name)
    values = [
        s and graph.input("data", s.dtype, s.shape, f"x{i}") for i, s in enumerate(case.arrays)
    ]
    graph.outputs = list(op.append(graph, values, op.bind(values, case.attrs)[1]))
    return graph


def close(got: Any, want: Any) -> None:
    assert got.shape == want.shape
    scale = np.abs(np.asarray(want, np.float64)).max(initial=1e-3)
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), 1e-5, 1e-5 * scale)


@pytest.mark.parametrize("op, case", CASES)
def test_runs_in_onnxruntime_and_reads_back(op: Op, case: Any, rng: Any) -> None:
    graph = graph_of(op, case)
    if refused(op, case):
        with pytest.raises(UnsupportedError, match=NOT_IN_ONNX[op.name]):
            write(graph, {})
        return
    model = write(graph, {})
    onnx.checker.check_model(model, full_check=True)
    arrays = [np.asarray(s.array(rng)) for s in case.arrays if s is not None]
    want = Interpreter(graph, floating=tv.float64, training=False)(*arrays)
    for got, expected in zip(ENGINE.function(graph, {})(*arrays), want, strict=True):
        close(got, expected)
    back = read(model).graph
    assert back.of_kind("param", "state") == []
    for got, expected in zip(Interpreter(back, tv.float64)(*arrays), want, strict=True):
        close(got, expected)


def test_exact_near_zero() -> None:
    """log1p and expm1 have no operator; log(1 + x) would be wrong in every digit here."""
    x = np.array([1e-30, -3e-9, 2e-8, 1e-4, -0.5, 0, 5, 80, np.inf], np.float32)
    for op in (tv.log1p, tv.expm1):
        graph = tv.trace(op, ("float32", (9,)))
        (want,) = Interpreter(graph, tv.float64)(x)
        np.testing.assert_allclose(ENGINE.function(graph, {})(x)[0], want, 1e-6, 0)


# -- open sizes --------------------------------------------------------------------------------
def same_everywhere(function: Any, *specs: Any, sizes: Any) -> None:
    """ONNX Runtime, and what is read back, agree with the Graph at several sizes of one model."""
    graph = tv.trace(function, *specs)
    run, back = ENGINE.function(graph, {}), Interpreter(read(write(graph, {})).graph, tv.float64)
    for shapes in sizes:
        rng = np.random.default_rng(1)
        arrays = [rng.uniform(-1, 1, s).astype(np.float32) for s in shapes]
        want = Interpreter(graph, tv.float64)(*arrays)
        for got, again, expected in zip(run(*arrays), back(*arrays), want, strict=True):
            close(got, expected)
            close(again, expected)


def test_open_sizes_stay_open() -> None:
    spec = ("float32", ("batch", "time", 6))
    sizes = [[(1, 1, 6)], [(3, 5, 6)], [(2, 7, 6)], [(2, 2, 6)]]
    same_everywhere(lambda x: x.reshape(x.shape[0], x.shape[1], 2, 3), spec, sizes=sizes)
    same_everywhere(lambda x: x.reshape(x.shape[0] * x.shape[1], 6), spec, sizes=sizes)
    same_everywhere(lambda x: tv.mean(x, axis=(0, 1)), spec, sizes=sizes)
    same_everywhere(lambda x: x[:, (x.shape[1] - 3) // 2 + 1 :], spec, sizes=sizes[1:3])
    same_everywhere(lambda x: x[:, -1] * tv.full((x.shape[0], 1), 2.0), spec, sizes=sizes)
    same_everywhere(lambda x: tv.batch_norm(x, None, None, tv.zeros((6,)), tv.ones((6,)),
                    axis=2, training=False), spec, sizes=sizes)  # fmt: skip
    same_everywhere(lambda x: tv.sum(x, axis=1) / tv.full((), x.shape[1], dtype=tv.float32), spec,
                    sizes=sizes)  # fmt: skip
    same_everywhere(lambda x: (x * 2.0) @ x.mT, spec, sizes=sizes)


def test_open_padding() -> None:
    """SAME over an open size: the padding is computed when the model runs."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)

    def same(x: Any) -> Any:
        h = x.shape[2]
        total = ((h + 1) // 2 - 1) * 2 + 3 - h
        return tv.conv(x, weight, stride=2, padding=((total // 2, total - total // 2), (0, 1)))

    same_everywhere(same, ("float32", ("batch", 3, "h", 6)),
                    sizes=[[(1, 3, 5, 6)], [(2, 3, 8, 6)]])  # fmt: skip


def test_the_open_size_is_in_the_file() -> None:
    model, graph = example(nn.Linear(3), ("float32", ("batch", 5)))
    (given,) = write(graph, model.state_dict()).graph.input
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 5]


# -- round trips -------------------------------------------------------------------------------
class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int):
        self.conv1 = nn.Conv2d(width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d()
        self.conv2 = nn.Conv2d(width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(momentum=0.3, epsilon=1e-3)

    def forward(self, x: Any) -> Any:
        y = tv.relu(self.bn1(self.conv1(x)))
        return tv.relu(self.bn2(self.conv2(y)) + x)


class Scaled(nn.Module):
    """Numbers of both kinds: a constant 0.1, and a parameter that is a single number."""

    def forward(self, x: Any) -> Any:
        scale = self.param("scale", (), lambda rng, shape: np.float32(2))
        offset = self.param("offset", (4,), lambda rng, shape: np.ones(4), kind="state")
        return tv.leaky_relu(x * scale, slope=0.2) * 0.1 + offset, tv.softmax(x)


IMAGES = ("float32", ("batch", 3, 8, 6))
MODELS = {
    "mlp": (nn.Sequential(nn.Linear(8), nn.relu, nn.Linear(3)), ("float32", ("batch", 5))),
    "cnn": (
        nn.Sequential(nn.Conv2d(4, 3), nn.relu, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3)),
        IMAGES,
    ),
    "residual": (nn.Sequential(nn.Conv2d(4, 3, stride=2), Block(4), nn.GlobalAvgPool2d()), IMAGES),
    "sequence": (
        nn.Sequential(
            nn.RNN(7), lambda pair: pair[0], nn.LayerNorm(), nn.Linear(3), nn.Dropout(0.5)
        ),
        ("float32", ("batch", 5, 4)),
    ),
    "tokens": (
        nn.Sequential(nn.Embedding(11, 6), nn.Linear(3, bias=False)),
        ("int64", ("batch", 5)),
    ),
    "numbers": (Scaled(), ("float32", ("batch", 4))),
}  # fmt: skip


def example(module: nn.Module, spec: Any) -> tuple[nn.Module, Graph]:
    module.build(spec)
    return module, tv.trace(module, spec)


def inference(graph: Graph) -> Graph:
    """What is left of a Graph in an ONNX file: nothing of training."""
    graph = specialize(graph, training=False)
    graph.updates = {}
    graph.inputs = [v for v in graph.inputs if v.kind != "rng"]
    for node in [n for n in graph.nodes if n.op == "dropout"]:
        graph.outputs = [node.inputs[0] if v is node.out else v for v in graph.outputs]
    return prune(graph)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_gives_the_same_graph(name: str) -> None:
    model, graph = example(*MODELS[name])
    values = model.state_dict()
    back = read(write(graph, values))
    assert back.graph.difference(inference(graph)) is None
    assert back.graph.same_as(inference(graph))
    assert [n.scope for n in back.graph.nodes] == [n.scope for n in inference(graph).nodes]
    assert back.source_names == {}
    for key, item in back.state_dict().items():
        np.testing.assert_array_equal(item, values[key])


def test_what_was_read_is_trained() -> None:
    model, graph = example(*MODELS["cnn"])
    back = read(write(graph, model.state_dict()))
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype(np.float32)
    tv.sum(back(x)).backward()
    tv.sum(model(x)).backward()
    for (name, p), (other, q) in zip(
        back.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == other
        np.testing.assert_allclose(p.grad, q.grad, 1e-5, 1e-5)


def test_control_flow_round_trip(rng: Any) -> None:
    def function(flag: Any, x: Any, y: Any) -> Any:
        chosen = tv.cond(flag, lambda v: v * y, lambda v: tv.silu(v) - 1.0, x)
        last, sums = tv.scan(lambda c, row: (c + row * y, c), chosen[0], x, reverse=True)
        return chosen, last, sums

    specs = [("bool", ()), ("float32", ("batch", 3)), ("float32", (3,))]
    graph = tv.trace(function, *specs)
    back = read(write(graph, {})).graph
    for flag in (True, False):
        arrays = [np.array(flag), *(rng.standard_normal(s).astype("f4") for s in ((4, 3), (3,)))]
        want = Interpreter(graph, tv.float64)(*arrays)
        for run in (ENGINE.function(graph, {}), Interpreter(back, tv.float64)):
            for got, expected in zip(run(*arrays), want, strict=True):
                close(got, expected)


def test_missing_values_are_named() -> None:
    model, graph = example(*MODELS["mlp"])
    with pytest.raises(UnsupportedError, match=r"0\.weight"):
        write(graph, {})
    values = model.state_dict() | {"0.weight": np.zeros((3, 3))}
    with pytest.raises(UnsupportedError, match=r"0\.weight.*\(3, 3\)"):
        write(graph, values)
    with pytest.raises(TypeError, match="takes 1 inputs, got 2"):
        ENGINE.function(graph, model.state_dict())(1, 2)


# -- ONNX's own node tests ---------------------------------------------------------------------
BAKED = {  # inputs that are arguments: sizes, axes, modes. Here they are fixed, as in real models
    "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3),
    "Expand": (1,), "Tile": (1,), "Split": (1,), "OneHot": (1, 2), "ConstantOfShape": (0,),
    "Range": (0, 1, 2), "Dropout": (1, 2), "CenterCropPad": (1,), "CumSum": (1,), "Trilu": (1,),
} | dict.fromkeys([name for name in OPERATORS if name.startswith("Reduce")], (1,))  # fmt: skip

REFUSED = {  # tests of operators that are read, but not in this form; * is anything
    "affine_grid_*_expanded", "center_crop_pad_*_expanded",  # shapes that are inputs
    "averagepool_*_dilations*", "maxpool_2d_uint8", "maxpool_with_argmax_*",
    "cumsum_*_exclusive",
    "edge_pad", "reflect_pad", "wrap_pad",
    "identity_opt", "identity_sequence", "if_opt", "if_seq",
    "reduce_prod_*", "scatternd*",  # read only in shapes, and as the gradient of take
    "not_2d", "not_3d", "not_4d", "scan_sum",  # old opsets
    "pow_types_int*_float32",
    "reduce_log_sum_exp_empty_set", "reduce_max_empty_set*", "reduce_min_empty_set",
    "training_dropout*",
}  # fmt: skip


@pytest.fixture(scope="module")
def node_tests() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():  # of NumPy, about the infinities in them
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")  # type: ignore[no-any-return]


def fixed(test: Any) -> tuple[Any, list[Any], list[Any]]:
    """A node test with its arguments as initializers; its other inputs and its outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    inputs, outputs = test.data_sets[0]
    nodes = model.graph.node
    baked = {n.input[i] for n in nodes for i in BAKED.get(n.op_type, ()) if i < len(n.input)}
    infos = list(zip(model.graph.input, inputs, strict=True))
    del model.graph.input[:]
    for info, item in infos:
        if info.name in baked:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(item), info.name))
        else:
            model.graph.input.append(info)
    return model, [a for info, a in infos if info.name not in baked], outputs


def numbers(item: Any) -> Any:
    return array(item) if isinstance(item, TensorProto) else np.asarray(item)


def disagreement(test: Any) -> str:
    """How what was read differs from what ONNX says; nothing when it does not."""
    model, inputs, outputs = fixed(test)
    module = read(model)
    values = dict(zip((i.name for i in model.graph.input), map(numbers, inputs), strict=True))
    values |= module.values if hasattr(module, "values") else module.state_dict()
    got = Interpreter(module.graph)(*(values[v.name] for v in module.graph.inputs))
    for value, mine, theirs in zip(module.graph.outputs, got, map(numbers, outputs), strict=True):
        if (mine.shape, value.dtype) != (theirs.shape, theirs.dtype.name):
            return f"{value.dtype}{mine.shape} against {theirs.dtype}{theirs.shape}"
        # The oracle keeps more digits of a bfloat16 than the reference does.
        rtol = 2**-7 if value.dtype == "bfloat16" else test.rtol
        mine, theirs = mine.astype(np.float64), theirs.astype(np.float64)
        if not np.allclose(mine, theirs, rtol, max(test.atol, 1e-6), equal_nan=True):
            return f"{mine} against {theirs}"
    return ""


def test_onnx_node_tests(node_tests: list[Any]) -> None:
    readable = OPERATORS.keys() | FOLDS.keys() | {"Identity", "Shape", "Size"}
    done, wrong, refusals = set(), {}, set()
    for test in node_tests:
        name, types = test.name.removeprefix("test_"), {n.op_type for n in test.model.graph.node}
        try:
            if problem := disagreement(test):
                wrong[name] = problem
            done.add(name)
        except UnsupportedError as error:
            if types <= readable and "elements of type" not in str(error):
                refusals.add(name)
    assert wrong == {}
    assert {n for n in refusals if not any(fnmatchcase(n, p) for p in REFUSED)} == set()
    assert {n for n in done if any(fnmatchcase(n, p) for p in REFUSED)} == set()
    assert {p for p in REFUSED if not any(fnmatchcase(n, p) for n in refusals)} == set()
    assert len(done) >= 900 or onnx.__version__ < "1.20"


# -- other exporters ---------------------------------------------------------------------------
def model_of(nodes: Any, inputs: Any, weights: Any = (), opset: int = 17, **ranks: int) -> Any:
    """A ModelProto in a few words: nodes, {input: shape}, {weight: array}, output=its rank."""
    infos = [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()]
    ranks = ranks or {"y": 2}
    outs = [helper.make_tensor_value_info(n, FLOAT, [None] * rank) for n, rank in ranks.items()]
    held = [numpy_helper.from_array(a, n) for n, a in dict(weights).items()]
    graph = helper.make_graph(nodes, "g", infos, outs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agrees(model: Any, *arrays: Any) -> GraphModule:
    """What was read computes what ONNX Runtime computes."""
    module = read(model)
    want = ENGINE.session(model).run(
        None, dict(zip((i.name for i in model.graph.input), arrays, strict=True))
    )
    module.eval()
    got = module(*arrays)
    for mine, theirs in zip(got if isinstance(got, tuple) else (got,), want, strict=True):
        close(np.asarray(mine), theirs)
    return module


def test_gemm_in_every_form(rng: Any) -> None:
    x, bias = rng.standard_normal((4, 5)).astype("f4"), rng.standard_normal(3).astype("f4")
    for turned, flipped, alpha, beta in ((0, 0, 1, 1), (1, 0, 1, 1), (1, 1, 0.5, 2), (0, 1, 2, 1)):
        weight = rng.standard_normal((3, 5) if turned else (5, 3)).astype("f4")
        node = helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=turned,
                                transA=flipped, alpha=float(alpha), beta=float(beta))  # fmt: skip
        given = np.ascontiguousarray(x.T) if flipped else x
        model = model_of([node], {"x": given.shape}, weights={"fc.weight": weight, "fc.bias": bias})
        module = agrees(model, given)
        assert {k: v.shape for k, v in module.state_dict().items()} == {
            "fc.weight": (3, 5), "fc.bias": (3,),
        }  # fmt: skip
        assert module.graph.nodes[-1].scope == "fc"
        assert (module.graph.nodes[-1].op == "linear") == (alpha == beta == 1)


def test_a_linear_layer_on_three_axes_is_one(rng: Any) -> None:
    weights = {
        "onnx::MatMul_7": rng.standard_normal((5, 3)).astype("f4"),
        "fc.bias": np.ones(3, "f4"),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["m"], "/fc/MatMul"),
        helper.make_node("Add", ["fc.bias", "m"], ["y"], "/fc/Add"),
    ]
    x = rng.standard_normal((2, 4, 5)).astype("f4")
    module = agrees(model_of(nodes, {"x": ("batch", 4, 5)}, weights=weights, y=3), x)
    assert [n.op for n in module.graph.nodes] == ["linear"]
    assert module.source_names == {"fc.weight": "onnx::MatMul_7"}
    assert module.state_dict()["fc.weight"].shape == (3, 5)


def test_a_tied_weight_stays_one(rng: Any) -> None:
    table = rng.standard_normal((7, 5)).astype("f4")
    nodes = [
        helper.make_node("Gemm", ["x", "table"], ["h"]),
        helper.make_node("Gemm", ["h", "table"], ["y"], transB=1),
    ]
    module = agrees(model_of(nodes, {"x": (2, 7)}, weights={"table": table}), np.ones((2, 7), "f4"))
    assert [v.name for v in module.graph.of_kind("param")] == ["table"]


def test_mismatch_16_softmax_before_opset_13() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    for opset, want in ((11, 1 / 12), (13, 1 / 3)):
        node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
        module = read(model_of([node], {"x": ("batch", 3, 4)}, opset=opset, y=3))
        np.testing.assert_allclose(np.asarray(module(x)), want, 1e-6)


def test_shapes_computed_by_nodes() -> None:
    """x.view(x.size(0), -1) as exporters write it; the batch stays open."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Unsqueeze", ["b", "axes"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    module = agrees(model_of(nodes, {"x": ("N", 3, 4)}, weights=weights), np.ones((5, 3, 4), "f4"))
    assert [n.op for n in module.graph.nodes] == ["reshape"]
    assert str(module.graph.outputs[0].shape) == "(N, 12)"


def test_rnn_stored_for_all_directions(rng: Any) -> None:
    for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        weights = {
            "W": rng.standard_normal((d, 6, 4)), "R": rng.standard_normal((d, 6, 6)) / 3,
            "B": rng.standard_normal((d, 12)),
        }  # fmt: skip
        node = helper.make_node("RNN", list("xWRB"), ["y", "h"], hidden_size=6, direction=direction)
        weights = {k: v.astype("f4") for k, v in weights.items()}
        model = model_of([node], {"x": (5, 2, 4)}, weights, y=4, h=3)
        agrees(model, rng.standard_normal((5, 2, 4)).astype("f4"))


def test_clip_and_hard_sigmoid_and_dropout(rng: Any) -> None:
    nodes = [
        helper.make_node("Clip", ["x", "", "six"], ["a"]),
        helper.make_node("HardSigmoid", ["a"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    module = agrees(
        model_of(nodes, {"x": ("batch", 3)}, weights={"six": np.array(1.5, "f4")}),
        rng.uniform(-4, 4, (6, 3)).astype("f4"),
    )
    assert module.state_dict() == {}  # a number alone is no weight


def test_what_torch_exports(tmp_path: Any) -> None:
    """Folded weights come under the layer's path, and the batch stays open through view and rnn."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
            self.stem = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(8), torch.nn.ReLU6())
            self.head, self.norm = torch.nn.Linear(8, 5), torch.nn.LayerNorm(5)
            self.rnn = torch.nn.RNN(5, 6, batch_first=True)

        def forward(self, x: Any) -> Any:
            y = torch.nn.functional.max_pool2d(self.stem(x), 3, 2, 1, ceil_mode=True)
            b, c, h, w = y.shape
            y = self.norm(self.head(y.view(b, c, h * w).transpose(1, 2)))
            return self.rnn(torch.nn.functional.gelu(y))[0].mean(1)

    net, path = Net().eval(), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is old; there are many of its files
        torch.onnx.export(net, (torch.randn(2, 3, 16, 12),), str(path), dynamo=False,
                          input_names=["x"], dynamic_axes={"x": {0: "batch"}})  # fmt: skip
    module = read(path)
    assert str(module.graph.outputs[0].shape) == "(batch, 6)"
    assert [n.op for n in module.graph.nodes].count("linear") == 1
    assert {"stem.0.weight", "head.weight", "head.bias", "norm.weight", "rnn.weight_ih"} <= set(
        module.state_dict()
    )
    for size in (1, 5):
        x = torch.randn(size, 3, 16, 12)
        close(np.asarray(module(x.numpy())), net(x).detach().numpy())
