"""The verdict does not depend on the order; every difference ends in a Report that names it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trivium as tv
from conftest import Plant, op_for

torch = pytest.importorskip("torch")
nn = torch.nn

X = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


def net(**changed: Any) -> Any:
    """A small torch network; each argument changes one thing in it."""
    torch.manual_seed(0)
    made = nn.Sequential()
    made.add_module("fc", nn.Linear(6, 8))
    made.add_module("bn", nn.BatchNorm1d(8, momentum=changed.get("momentum", 0.1),
                                         eps=changed.get("eps", 1e-5)))  # fmt: skip
    made.add_module("act", changed.get("act", nn.ReLU()))
    made.add_module("drop", nn.Dropout(changed.get("rate", 0.25)))
    made.add_module("head", nn.Linear(8, 4, bias=changed.get("bias", True)))
    with torch.no_grad():
        made.bn.running_mean.normal_(std=0.1)
        made.bn.bias.normal_(std=0.1)
        if "scaled" in changed:
            made.head.weight.mul_(changed["scaled"])
    if changed.get("frozen"):
        made.fc.weight.requires_grad_(False)
    return made.to(changed.get("dtype", torch.float32))


DIFFERENT: dict[str, dict[str, Any]] = {
    "another activation": {"act": nn.Tanh()},
    "momentum": {"momentum": 0.3},
    "epsilon": {"eps": 1e-3},
    "dropout's rate": {"rate": 0.5},
    "a bias less": {"bias": False},
    "a weight scaled": {"scaled": 1.0001},
    "a frozen weight": {"frozen": True},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_difference_is_one_whichever_comes_first(what: str) -> None:
    a, b = net(), net(**DIFFERENT[what])
    one, other = tv.verify(a, b, X), tv.verify(b, a, X)
    assert not one.ok and not other.ok
    assert not one.misread and not other.misread, one.table()
    assert [(r.kind, r.name, r.case) for r in one.rows if not r.ok] == [
        (r.kind, r.name, r.case) for r in other.rows if not r.ok
    ] or what == "a bias less"
    assert one.first_divergence and other.first_divergence


@pytest.mark.parametrize(
    ("a", "b"), list(itertools.permutations(["torch", "keras", "trivium", "onnx"], 2))
)
def test_the_same_is_the_same_whichever_comes_first(a: str, b: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    made: dict[str, Callable[[], Any]] = {
        "torch": lambda: model,
        "trivium": lambda: tv.from_torch(model, X),
        "keras": lambda: tv.to_keras(model, X),
        "onnx": lambda: tv.to_onnx(model, X),
    }
    report = tv.verify(made[a](), made[b](), X)
    assert report.ok, report.table()


def test_what_is_the_same_in_both_orders_but_not_read_rightly(plant: Plant) -> None:
    a, b = net(), tv.to_trivium(net(), X) if hasattr(tv, "to_trivium") else tv.from_torch(net(), X)
    plant("torch", op_for("relu", "tanh"))
    for report in (tv.verify(a, b, X), tv.verify(b, a, X)):
        assert not report.ok
        assert report.misread == ["torch"]
        assert "relu" in (report.first_divergence or "") and "tanh" in report.first_divergence


# -- every difference ends in a Report -------------------------------------------------------------
class Two(nn.Module):
    def __init__(self, swapped: bool = False, count: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)
        self.swapped, self.count = swapped, count

    def forward(self, x: Any) -> Any:
        y = (self.a(x), self.b(x))
        y = y[::-1] if self.swapped else y
        return y if self.count == 2 else (*y, y[0] + y[1])


def test_swapped_outputs_are_named() -> None:
    report = tv.verify(Two(), Two(swapped=True), X)
    assert not report.ok and "output" in (report.first_divergence or report.table())
    assert report.first_divergence


def test_another_number_of_outputs() -> None:
    report = tv.verify(Two(), Two(count=3), X)
    assert not report.ok
    assert any(r.kind == "output" and r.name == "2" and not r.ok for r in report.rows)


def test_another_shape_of_inputs_is_the_difference() -> None:
    a, b = tv.from_torch(nn.Linear(6, 4), X), tv.from_torch(nn.Linear(5, 4), X[:, :5])
    report = tv.verify(a, b, X)
    assert not report.ok and "inputs" in report.first_divergence


def test_another_shape_of_outputs() -> None:
    torch.manual_seed(0)
    report = tv.verify(nn.Linear(6, 4), nn.Linear(6, 3), X)
    assert not report.ok and report.first_divergence


def test_an_onnx_model_that_differs() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    proto = tv.to_onnx(model, X)
    from onnx import numpy_helper

    for tensor in proto.graph.initializer:
        numbers = numpy_helper.to_array(tensor) * 1.01
        tensor.CopyFrom(numpy_helper.from_array(numbers.astype(np.float32), tensor.name))
    for pair in ((model, proto), (proto, model)):
        report = tv.verify(*pair, X)
        assert not report.ok and report.first_divergence
        assert any(r.kind == "parameter" and not r.ok for r in report.rows)


def test_a_frozen_parameter_and_a_momentum_are_named() -> None:
    assert "fc.weight" in tv.verify(net(), net(frozen=True), X).first_divergence
    assert "bn" in tv.verify(net(), net(momentum=0.3), X).first_divergence


@pytest.mark.parametrize("example", ["torch", "numpy", "mxnet", "tensorflow", "jax"])
def test_examples_come_from_any_framework(example: str) -> None:
    from trivium.frameworks.mxnet.load import load

    mx = load()
    given: Any = X
    match example:
        case "torch":
            given = torch.from_numpy(X)
        case "mxnet":
            given = mx.nd.array(X)
        case "tensorflow":
            given = pytest.importorskip("tensorflow").constant(X)
        case "jax":
            given = pytest.importorskip("jax").numpy.asarray(X)
    block = mx.gluon.nn.Dense(4, in_units=6)
    block.initialize()
    carried = tv.to_torch(block, given)
    assert carried.report.ok and tv.verify(block, carried, given)
    assert tv.to_keras(torch.nn.Linear(6, 4), given).report.ok


# -- what is not believed unless it ran ------------------------------------------------------------
def test_the_report_says_what_ran() -> None:
    report = tv.to_keras(nn.Linear(6, 4), X).report
    assert report.ran["torch"].startswith("torch 2") and report.ran["keras"].startswith("keras 3")
    assert "ran: torch: torch" in report.table()


def test_files_are_run(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    tv.save(model, tmp_path / "a.onnx", X)
    tv.save(model, tmp_path / "b.keras", X)
    report = tv.verify(tmp_path / "a.onnx", tmp_path / "b.keras")
    assert report.ok
    assert report.ran["a.onnx"].startswith("onnxruntime")
    assert report.ran["b.keras"].startswith("keras")
    assert tv.load(tmp_path / "a.onnx").report.ran == {"a.onnx": "read, not run"}
    assert tv.from_onnx(tmp_path / "a.onnx").report.ran["a.onnx"].startswith("onnxruntime")


def test_zeros_do_not_hide_what_stands_before_them(plant: Plant) -> None:
    """A head that starts at zero gives 0 whatever comes before it, and no gradient either."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight.zero_()
    assert tv.to_keras(model, X).report.ok
    plant("torch", op_for("relu", "tanh"))
    with pytest.raises(tv.VerificationError, match="misread"):
        tv.from_torch(model, X)
    with pytest.raises(tv.VerificationError, match="misread"):
        tv.to_keras(model, X)


# -- a model remembers what it was given -----------------------------------------------------------
def test_a_called_model_needs_no_example(tmp_path: Any) -> None:
    model = tv.nn.Sequential(tv.nn.Linear(8), tv.nn.relu, tv.nn.Linear(4))
    with pytest.raises(ValueError, match="pass an example"):
        tv.emit(model, "torch")
    model(X)
    assert "nn.Linear(6, 8)" in tv.emit(model, "torch")
    assert tv.to_torch(model).report.ok
    tv.save(model, tmp_path / "m.tv")
    assert tv.to_keras(tv.load(tmp_path / "m.tv")).report.ok
    assert tv.verify(model, tmp_path / "m.tv")


def test_a_built_and_a_fitted_model_need_none() -> None:
    built = tv.nn.Linear(4).build(X)
    assert tv.to_torch(built).report.ok
    fitted = tv.nn.Linear(4)
    fitted.compile(optimizer="sgd", loss="mse")
    fitted.fit(X, np.zeros((3, 4), np.float32), verbose=False)
    assert tv.to_torch(fitted).report.ok
    assert "batch" in tv.trace(fitted, *fitted.inputs_seen).dims()


def test_keras_models_as_people_write_them() -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    called = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(4)])
    called(X)
    assert tv.to_torch(called).report.ok
    assert tv.to_torch(keras.Sequential([layers.Input((6,)), layers.Dense(4)])).report.ok
    assert tv.to_torch(keras.Sequential([layers.Dense(4)]), X).report.ok
    fitted = keras.Sequential([layers.Dense(4)])
    fitted.compile(optimizer="sgd", loss="mse")
    fitted.fit(X, np.zeros((3, 4)), verbose=0)
    assert tv.to_torch(fitted).report.ok


@pytest.mark.parametrize("target", ["torch", "tensorflow", "mxnet"])
def test_a_batch_norm_of_rows_wants_no_example(target: str) -> None:
    """Batch 1 has no variance: what is asked in training is asked at another batch."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential([layers.Input((6,)), layers.Dense(4), layers.BatchNormalization(),
                              layers.Dropout(0.2), layers.Dense(2)])  # fmt: skip
    assert getattr(tv, f"to_{target}")(model).report.ok


# -- what a model says beside its numbers ----------------------------------------------------------
class Says(nn.Module):
    """The same numbers, said differently."""

    def __init__(self, names: Any = ("a", "b"), dtype: Any = None):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.names = nn.Linear(6, 4), names
        self.register_buffer("count", torch.arange(4, dtype=dtype or torch.int64))

    def forward(self, x: Any) -> Any:
        y = self.fc(x) * self.count
        return dict(zip(self.names, (y, 2 * y), strict=True)) if self.names else (y, 2 * y)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"names": ("a", "c")}, "outputs"), ({"names": ()}, "outputs"),
     ({"dtype": torch.int32}, "dtype: count")],
)  # fmt: skip
def test_names_and_dtypes_are_compared(other: Any, said: str) -> None:
    assert tv.verify(Says(), Says(), X)
    for pair in ((Says(), Says(**other)), (Says(**other), Says())):
        report = tv.verify(*pair, X)
        assert not report.ok and not report.misread
        assert [r.name for r in report.rows if r.kind == "said" and not r.ok] == [said]


def test_an_open_batch_is_a_word_of_the_model() -> None:
    model = tv.nn.Linear(4)
    model(X)
    open_, fixed = model, tv.nn.Linear(4).build(tv.Spec("float32", (3, 6)))
    graph = tv.trace(model, tv.Spec("float32", (3, 6)))
    from trivium.nn.module import GraphModule

    fixed = GraphModule(graph, model.state_dict())
    report = tv.verify(open_, fixed)
    assert [r.name for r in report.rows if not r.ok] == ["open batch of input x0"]
    assert not tv.verify(fixed, open_).ok


def test_nothing_that_ran_is_no_evidence() -> None:
    class Picky(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 1

    class Never(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("not with these numbers")

    report = tv.verify(Picky(), Picky(), X)
    assert report.ok
    from trivium.proof.sources import source_of
    from trivium.proof.verify import compare_sides

    sides = [source_of(Picky(), X).side() for _ in range(2)]
    for side in sides:
        side.runner.module = Never()
    report = compare_sides(*sides, [X], gradients=False)
    assert not report.ok and "no inputs were found" in report.table()
