"""What an hour with the README alone brought up, by habit and by malice: each stays found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from conftest import Plant, op_for

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def partly_frozen() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.train()
    model[1].eval()
    return model


@pytest.mark.parametrize("target", ["torch", "keras", "jax", "onnx", "verify", "from_torch"])
def test_a_model_is_as_it_was_afterwards(target: str) -> None:
    model = partly_frozen()
    before, chance = [m.training for m in model.modules()], torch.get_rng_state()
    match target:
        case "verify":
            assert tv.verify(model, model, X)
        case "from_torch":
            tv.from_torch(model, X)
        case _:
            getattr(tv, f"to_{target}")(model, X)
    assert [m.training for m in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_part_in_eval_stays_frozen() -> None:
    carried = tv.to_torch(partly_frozen(), X).train()
    before = {n: b.clone() for n, b in carried.named_buffers()}
    carried(torch.from_numpy(X))
    assert all(torch.equal(b, before[n]) for n, b in carried.named_buffers())


def test_the_dropout_inside_attention_is_seen() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)
    assert tv.to_torch(layer, x).report.ok


class Exchanged(nn.Module):
    def __init__(self, first: float, second: float):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.first, self.second = nn.Dropout(first), nn.Dropout(second)

    def forward(self, x: Any) -> Any:
        return self.b(self.second(torch.tanh(self.a(self.first(x)))))


def test_rates_that_are_exchanged_are_others() -> None:
    report = tv.verify(Exchanged(0.1, 0.5), Exchanged(0.5, 0.1), X)
    assert not report.ok and "dropout rates" in report.first_divergence


def test_what_is_nowhere_finite_is_no_evidence() -> None:
    class Log(nn.Module):
        def __init__(self, function: Any):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.function = nn.Linear(4, 2), function

        def forward(self, x: Any) -> Any:
            return self.function(self.fc(torch.log(x)))

    assert tv.verify(Log(torch.tanh), Log(torch.tanh), X)  # where the logarithm is one
    assert not tv.verify(Log(torch.tanh), Log(torch.sigmoid), X)

    class Overflows(nn.Module):
        def __init__(self, factor: float):
            super().__init__()
            self.factor = factor

        def forward(self, x: Any) -> Any:
            return torch.exp(x.abs() + 200) * self.factor

    report = tv.verify(Overflows(2.0), Overflows(3.0), X)
    assert not report.ok, report.table()


def test_numbers_that_are_counted_are_exact() -> None:
    class Counts(nn.Module):
        def forward(self, i: Any) -> Any:
            return (i + 4099) ** 2

    i = torch.tensor([[0, 1], [2, 3]])
    assert tv.to_torch(Counts(), i).report.ok
    with pytest.raises((tv.VerificationError, tv.UnsupportedError)):
        tv.to_mxnet(Counts(), i)  # it computes them in float32


@pytest.mark.parametrize("length", [8, 4, 2, 1])
def test_pieces_and_ends_of_another_length(length: int) -> None:
    class Ends(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.chunk(3, 1)[-1]

    example, other = np.ones((2, 8, 3), np.float32), np.ones((2, length, 3), np.float32)
    want = Ends()(torch.from_numpy(other)).numpy()
    carried = tv.to_torch(Ends(), example)
    try:
        got = carried(torch.from_numpy(other)).numpy()
    except ValueError as error:
        assert "made for" in str(error) and length != 8
    else:
        np.testing.assert_array_equal(got, want)


def test_the_end_of_an_open_length_in_keras_is_refused() -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((None, 2))
    with pytest.raises(tv.UnsupportedError, match="open size"):
        tv.from_keras(keras.Model(inputs, inputs[:, -4:] * 2.0))
    last = tv.from_keras(keras.Model(inputs, inputs[:, -1:] * 2.0))
    assert last.report.ok


def test_a_keras_file_of_ours_opens_anywhere(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    path = tmp_path / "m.keras"
    tv.save(model, path, X)
    code = f"import trivium as tv; print(len(tv.load({str(path)!r}).state_dict()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "8", done.stderr[-600:]


def test_what_belongs_to_the_objective_is_said() -> None:
    keras = pytest.importorskip("keras")
    layer = keras.layers.Dense(3, kernel_regularizer="l2")
    with pytest.warns(UserWarning, match="regularizer L2 of .* left behind"):
        tv.from_keras(keras.Sequential([keras.Input((4,)), layer]))
    from trivium.frameworks.mxnet.load import load

    mx = load()
    block = mx.gluon.nn.Dense(2, in_units=4)
    block.initialize()
    block.weight.lr_mult = 0.0
    with pytest.warns(UserWarning, match="lr_mult=0.0"):
        tv.from_mxnet(block, X)


def test_float64_stays_float64_beside_what_nothing_reads() -> None:
    pytest.importorskip("keras")

    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2))

        def forward(self, x: Any) -> Any:
            return x / 3

    x = np.full((2, 3), 0.1)
    got = np.asarray(tv.to_keras(Unread().double(), x)(x))
    assert got.dtype == np.float64 and np.array_equal(got, x / 3)


def test_the_words_for_a_missing_example() -> None:
    with pytest.raises(ValueError, match="pass an example"):
        tv.to_keras(nn.Linear(3, 2))


def test_trainable_is_a_word_for_freezing() -> None:
    model = tv.nn.Sequential(tv.nn.Linear(4), tv.nn.Linear(2))
    model[0].trainable = False
    model(X)
    assert not model[0].trainable
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_a_model_without_gradients_is_carried() -> None:
    class Picks(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.argmax(1)

    assert tv.to_torch(Picks(), X).report.ok


def test_a_layer_that_starts_at_almost_nothing_is_looked_behind(plant: Plant) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 1e-6))

        def forward(self, x: Any) -> Any:
            return x + self.scale * F.gelu(self.fc(x))

    assert tv.from_torch(Scaled(), X).report.ok
    plant("torch", op_for("gelu", "relu"))
    with pytest.raises(tv.VerificationError, match="misread"):
        tv.from_torch(Scaled(), X)


@pytest.mark.parametrize("how", ["bernoulli", "floor", "floor in place", "twice"])
def test_a_branch_dropped_by_chance_is_seen(how: str) -> None:
    class Path(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.keep = nn.Linear(4, 4), 0.75

        def forward(self, x: Any) -> Any:
            y = self.fc(x)
            if not self.training:
                return x + (self.fc(y) if how == "twice" else y)
            sizes = (y.shape[0], 1)
            if how == "bernoulli":
                return x + y * y.new_empty(sizes).bernoulli_(self.keep).div_(self.keep)
            if how == "floor":
                return x + y.div(self.keep) * torch.floor(self.keep + torch.rand(sizes))
            mask = self.keep + torch.rand(sizes, dtype=y.dtype)
            mask.floor_()
            if how == "twice":
                y = self.fc(y / self.keep * mask)
                mask = (torch.rand(sizes) + self.keep).floor()
            return x + y / self.keep * mask

    assert tv.to_torch(Path(), X).report.ok


@pytest.mark.parametrize("layer", ["depthwise", "separable", "distributed"])
def test_keras_kernels_go_back_where_they_came_from(layer: str) -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    made, shape = {
        "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 4)),
        "separable": (lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2), (6, 6, 4)),
        "distributed": (lambda: layers.TimeDistributed(layers.Dense(3)), (5, 6)),
    }[layer]
    model = keras.Sequential([layers.Input(shape), made(), layers.Flatten(), layers.Dense(2)])
    before = [np.array(w) for w in model.get_weights()]
    assert tv.to_torch(model).report.ok
    for array, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, now)


@pytest.mark.parametrize("cut", [slice(-4, None), slice(None, -4), slice(2, -2), slice(-1, None)])
def test_our_own_ends_of_another_length(cut: slice) -> None:
    class Ends(tv.nn.Module):
        def forward(self, x: Any) -> Any:
            return x[:, cut] * 2.0

    model, other = Ends(), np.arange(6, dtype=np.float32).reshape(2, 3)
    carried = tv.to_torch(model, np.ones((2, 8), np.float32))
    try:
        got = carried(torch.from_numpy(other)).numpy()
    except ValueError as error:
        assert "made for" in str(error)
    else:
        np.testing.assert_array_equal(got, other[:, cut] * 2)


def test_the_end_of_an_open_length_in_onnx_is_refused() -> None:
    from onnx import TensorProto, helper

    def model(start: int) -> Any:
        ends = [helper.make_tensor(n, TensorProto.INT64, [1], [v])
                for n, v in (("start", start), ("end", 2**62), ("axis", 1))]  # fmt: skip
        graph = helper.make_graph(
            [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])], "ends",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "last", 3])], ends,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)

    with pytest.raises(tv.UnsupportedError, match="open size"):
        tv.from_onnx(model(-3))
    assert tv.from_onnx(model(-1)).report.ok


@pytest.mark.parametrize("target", ["torch", "keras", "tensorflow", "mxnet", "jax"])
def test_a_module_with_a_weight_and_a_child_is_no_layer(target: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.inner = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.inner(torch.relu(nn.functional.linear(x, self.weight)))

    model = nn.Sequential()
    model.add_module("part", Own())
    model.add_module("head", nn.Linear(4, 2))
    getattr(tv, f"to_{target}")(model, X)  # verified


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_one_hot_of_any_integers(dtype: Any) -> None:
    class Hot(nn.Module):
        def forward(self, x: Any) -> Any:
            return nn.functional.one_hot(x.to(dtype).long(), 6).to(torch.float32)

    assert tv.to_torch(Hot(), np.array([[1, 5], [0, 2]])).report.ok


def test_outputs_named_by_numbers_are_refused() -> None:
    class Numbers(nn.Module):
        def forward(self, x: Any) -> Any:
            return {0: x, 1: x * 2}

    with pytest.raises(tv.UnsupportedError, match="names are no words"):
        tv.from_torch(Numbers(), X)


@pytest.mark.parametrize("target", ["torch", "keras", "tensorflow", "mxnet", "jax", "onnx"])
def test_a_table_of_positions_that_no_input_reaches(target: str) -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.places = nn.Embedding(9, 4), nn.Embedding(16, 4)

        def forward(self, ids: Any) -> Any:
            return self.table(ids) + self.places(torch.arange(ids.shape[1]))

    getattr(tv, f"to_{target}")(Places(), np.array([[1, 2, 3], [4, 5, 6]]))  # verified


# -- the second time -------------------------------------------------------------------------------
def test_gluon_inputs_keep_their_order(tmp_path: Path) -> None:
    load = pytest.importorskip("trivium.frameworks.mxnet.load").load
    mx = load()

    class Two(mx.gluon.HybridBlock):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = mx.gluon.nn.Dense(3), mx.gluon.nn.Dense(3)

        def hybrid_forward(self, F: Any, x: Any, y: Any) -> Any:
            return self.b(y) - 2 * F.tanh(self.a(x))

    block = Two()
    block.initialize(mx.init.Xavier())
    block.hybridize()
    x, y = (mx.nd.array(np.random.default_rng(i).standard_normal((3, 4))) for i in (1, 2))
    want = block(x, y).asnumpy()
    block.export(str(tmp_path / "two"))
    for model in (tv.from_mxnet(block, x, y), tv.load(tmp_path / "two-symbol.json")):
        got = np.asarray(model.eval()(x.asnumpy(), y.asnumpy()))
        np.testing.assert_allclose(got, want, 1e-5, 1e-5)


def test_a_part_of_our_own_model_in_eval_stays_so() -> None:
    class Parts(tv.nn.Module):
        def __init__(self) -> None:
            self.layer, self.norm = tv.nn.Linear(4), tv.nn.BatchNorm(axis=-1)
            self.drop = tv.nn.Dropout(0.9)

        def forward(self, x: Any) -> Any:
            return self.drop(self.norm(self.layer(x)))

    model = Parts()
    model(X)
    model.train()
    model.norm.eval()
    model.drop.eval()
    before = {n: np.array(a) for n, a in model.state_dict().items() if "running" in n}
    want = float(np.mean(np.square(np.asarray(model(X)))))
    step = tv.TrainStep(model, "mse", tv.optim.SGD(lr=0.0))
    assert abs(step(X, np.zeros((3, 4), "f")) - want) < 1e-5
    for name, array in before.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    there = tv.to_torch(model)
    got = there.train()(torch.from_numpy(X)).detach()
    np.testing.assert_allclose(got, np.asarray(model(X)), 1e-5, 1e-5)


def test_numbers_that_an_engine_owns_are_not_written_into() -> None:
    model = tv.nn.Linear(2)
    model(X)
    tv.TrainStep(model, "mse", tv.optim.SGD(lr=0.1))(X, np.zeros((3, 2), "f"))
    with pytest.raises(ValueError, match="read-only"):
        model.weight.data[:] = 0.0
    model.weight.data = np.zeros_like(model.weight.data)
    assert not np.asarray(model(X) - model.bias).any()


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "eps", "betas"])
@pytest.mark.parametrize("kind", [tv.optim.SGD, tv.optim.Adam])
def test_an_optimizer_takes_no_attribute_that_it_would_not_read(kind: Any, name: str) -> None:
    with pytest.raises(AttributeError, match="lr is what may change"):
        setattr(kind(lr=0.1), name, 0.5)


def test_verify_minds_no_order_where_one_side_rounds() -> None:
    class Rounds(nn.Module):
        def __init__(self, half: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.half_of_it = nn.Linear(4, 4), half

        def forward(self, x: Any) -> Any:
            y = self.layer(x)
            return y.half().float() if self.half_of_it else y

    a, b = Rounds(False), Rounds(True)
    assert tv.verify(a, b, X).ok == tv.verify(b, a, X).ok


def test_a_dropout_of_nothing_and_a_list_of_parameters() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.several = nn.ParameterList([torch.randn(4), torch.randn(4)])
            self.drop = nn.Dropout(0.0)

        def forward(self, x: Any) -> Any:
            return self.drop(x * self.several[0] + self.several[1])

    net = tv.to_torch(Listed(), X)
    assert isinstance(net.several, nn.ParameterList)


def test_a_statistic_that_is_read_after_the_norm_is_refused_by_name() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Any) -> Any:
            y = self.norm(x)
            return y, self.norm.running_var

    with pytest.raises(tv.UnsupportedError, match="read again"):
        tv.to_torch(Reads(), X)


@pytest.mark.parametrize("target", ["torch", "tensorflow", "jax", "keras"])
def test_a_batch_norm_of_buffers_that_nothing_collects(target: str) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.register_buffer("mean", torch.rand(4))
            self.register_buffer("var", torch.rand(4) + 1)

        def forward(self, x: Any) -> Any:
            return F.batch_norm(x, self.mean, self.var, None, None, False)

    getattr(tv, f"to_{target}")(Fixed(), X)  # verified
