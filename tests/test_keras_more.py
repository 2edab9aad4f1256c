"""Keras: names of outputs, frozen parts beside batch norms, adapted layers, numbers in source."""

import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.dtype import as_dtype
from trivium.frameworks.keras.emit import emit
from trivium.frameworks.keras.run import KerasRunner, build, foreign
from trivium.graph import Graph, UnsupportedError
from trivium.interpret import run
from trivium.shape import Dim
from trivium.transforms.replay import specialize

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
if keras.config.backend() != "tensorflow":
    pytest.skip("gradients are TensorFlow's", allow_module_level=True)
layers, nn = keras.layers, torch.nn

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
IMAGES = np.random.default_rng(0).standard_normal((4, 1, 6, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    yield


# -- names of outputs ------------------------------------------------------------------------------
class Named(nn.Module):  # type: ignore[misc, name-defined]
    """Two heads of one shape, their names in no alphabetical order."""

    def __init__(self, names: tuple[Any, ...] = ("logits", "aux")) -> None:
        super().__init__()
        self.names = names
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return dict(zip(self.names, (self.first(x), self.second(x)), strict=True))


def alike(found: Any, want: Any) -> None:
    """The same names in the same order, and each one's numbers."""
    assert list(found) == list(want)
    for name in want:
        np.testing.assert_allclose(np.asarray(found[name]), want[name].detach(), atol=1e-5)


def test_names_of_outputs_go_to_keras() -> None:
    model = Named()
    carried = tv.to_keras(model, X)
    assert 'keras.Model(inputs, {"logits": y, "aux": x}, name="Named")' in carried.source
    alike(carried(X), model(torch.tensor(X)))
    alike(carried.predict(X, verbose=0), model(torch.tensor(X)))
    assert tv.verify(model, carried, X) and tv.verify(carried, model, X)
    assert not tv.verify(carried, Named(("aux", "logits")), X)
    assert tv.from_keras(carried).graph.structure == ("logits", "aux")  # type: ignore[attr-defined]


def test_the_runner_lists_them_by_the_graph() -> None:
    graph = tv.from_torch(model := Named(), X).graph  # type: ignore[attr-defined]
    values = {n: p.detach().numpy() for n, p in model.named_parameters()}
    runner = KerasRunner(*build(graph, values))
    found = runner.outputs([X])
    assert runner.structure == ("logits", "aux")
    alike(dict(zip(runner.structure, found, strict=True)), model(torch.tensor(X)))
    pulled = runner.pull([X], [np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32)])
    assert np.any(pulled.parameters["first.weight"])
    assert not np.any(pulled.parameters["second.weight"])


def test_names_of_outputs_survive_a_keras_file(tmp_path: Path) -> None:
    model = Named()
    tv.save(model, tmp_path / "ours.keras", X)
    assert tv.load(tmp_path / "ours.keras").graph.structure == ("logits", "aux")  # type: ignore[attr-defined]
    alike(tv.load(tmp_path / "ours.keras")(X), model(torch.tensor(X)))
    tv.to_keras(model, X).save(tmp_path / "theirs.keras")
    alike(keras.models.load_model(tmp_path / "theirs.keras")(X), model(torch.tensor(X)))
    assert tv.verify(model, tmp_path / "theirs.keras", X)


def test_names_of_outputs_come_from_keras_and_go_back() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, {"z": layers.Dense(2)(x), "a": layers.Dense(2)(x), "x": x})
    back = tv.to_keras(model)
    want = {k: torch.tensor(np.asarray(v)) for k, v in model(X).items()}
    alike(back(X), want)
    alike(tv.from_keras(model)(X), want)


def test_one_named_output_is_a_dict_and_a_list_is_a_list() -> None:
    x = keras.Input((4,))
    one = tv.to_keras(keras.Model(x, {"only": layers.Dense(2)(x)}))
    assert list(one(X)) == ["only"]
    assert isinstance(tv.to_keras(keras.Model(x, [layers.Dense(2)(x), x]))(X), list)


def test_an_output_whose_name_is_no_word_is_refused() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, {1: layers.Dense(2)(x), 0: x})
    with pytest.raises(UnsupportedError, match=r"an output that is called 1;.*keys are strings"):
        tv.to_keras(model)
    graph = tv.from_torch(Named(), X).graph  # type: ignore[attr-defined]
    graph.structure = (1, 0)
    with pytest.raises(UnsupportedError, match=r"an output that is called 1;.*keys are strings"):
        emit(graph)


# -- frozen parts beside batch norms ---------------------------------------------------------------
def frozen_backbone(norm: Any) -> Any:
    model = nn.Sequential()
    model.add_module("trunk", nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Conv2d(4, 3, 3)))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(12, 2))
    model.trunk.requires_grad_(False)
    return model


HEAD = {"head/kernel", "head/bias"}


def trained(model: Any) -> set[str]:
    return {v.path for v in model.trainable_variables}


def test_a_frozen_part_is_frozen_layer_by_layer_but_for_its_norms(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"weights of trunk\.1 are frozen one by one.*\.tv"
    ) as told:
        carried = tv.to_keras(frozen_backbone(nn.BatchNorm2d(4)), IMAGES)
    assert [w.filename for w in told if "one by one" in str(w.message)] == [__file__]
    assert trained(carried) == HEAD
    assert not carried.get_layer("trunk.0").trainable
    assert not carried.get_layer("trunk.2").trainable
    assert carried.get_layer("trunk.1").trainable
    carried(IMAGES, training=True)
    assert np.any(keras.ops.convert_to_numpy(carried.get_layer("trunk.1").moving_mean))  # from 0
    carried.save(tmp_path / "m.keras")
    norm = {"trunk.1/gamma", "trunk.1/beta"}
    assert trained(keras.models.load_model(tmp_path / "m.keras")) == HEAD | norm
    assert trained(keras.models.clone_model(carried)) == HEAD | norm


def test_all_of_it_frozen() -> None:
    model = frozen_backbone(nn.BatchNorm2d(4)).requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen one by one"):
        carried = tv.to_keras(model, IMAGES)
    assert trained(carried) == set()
    flags = {la.name: la.trainable for la in carried.layers if la.weights}
    assert flags == {"trunk.0": False, "trunk.1": True, "trunk.2": False, "head": False}


def test_a_norm_without_weights_goes_on_in_a_frozen_part(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "weights of")  # nothing is frozen that a file would lose
        carried = tv.to_keras(frozen_backbone(nn.BatchNorm2d(4, affine=False)), IMAGES)
    assert trained(carried) == HEAD and carried.get_layer("trunk.1").trainable
    carried.save(tmp_path / "m.keras")
    assert trained(keras.models.load_model(tmp_path / "m.keras")) == HEAD


@pytest.mark.filterwarnings("ignore:weights of trunk:UserWarning")
def test_a_keras_file_says_why_it_cannot_keep_a_frozen_norm(tmp_path: Path) -> None:
    model = frozen_backbone(nn.BatchNorm2d(4))
    with pytest.raises(UnsupportedError) as refused:
        tv.save(tv.from_torch(model, IMAGES), tmp_path / "m.keras")
    said = str(refused.value)
    assert "the frozen layer trunk.1, which goes on collecting statistics" in said and ".tv" in said
    assert "by itself" not in said and "whole layer" not in said
    model.trunk[1].eval()  # what the words advise
    tv.save(tv.from_torch(model, IMAGES), tmp_path / "m.keras")
    assert trained(keras.models.load_model(tmp_path / "m.keras")) == HEAD


# -- layers that keep copies -----------------------------------------------------------------------
def test_a_normalization_that_adapted_goes_out_and_is_left_as_it_was() -> None:
    adapted = layers.Normalization(name="norm")
    adapted.adapt(np.random.default_rng(1).random((50, 4)) * 3 + 1)
    model = keras.Sequential([keras.Input((4,)), adapted, layers.Dense(2)])
    before = [np.asarray(model(X)), *model.get_weights()]
    carried = tv.to_torch(model, X)
    np.testing.assert_allclose(carried(torch.tensor(X)).detach(), before[0], atol=1e-5)
    after = [np.asarray(model(X)), *model.get_weights()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_normalization_computes_with_the_numbers_it_is_given() -> None:
    """Its variables alone are not what it computes with."""
    adapted = layers.Normalization(name="norm")
    adapted.adapt(np.random.default_rng(1).random((50, 4)) * 3 + 1)
    model = keras.Sequential([keras.Input((4,)), adapted])
    graph = tv.from_keras(model)
    runner = foreign(model, graph)
    ours = {n: a * 2 for n, a in runner.values().items()}
    runner.load(ours)
    want = (X - ours["norm.mean"]) / np.sqrt(ours["norm.variance"])
    np.testing.assert_allclose(runner.outputs([X])[0], want, rtol=1e-5)


# -- single numbers --------------------------------------------------------------------------------
def test_a_weight_without_axes() -> None:
    query, value = keras.Input((5, 4)), keras.Input((5, 4))
    attended = layers.Attention(use_scale=True, name="attention")([query, value])
    given = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    model = keras.Model([query, value], attended)
    assert tv.from_keras(model, *given).state_dict()["attention.scale"].shape == ()
    assert tv.to_torch(model, *given).report.ok


# -- numbers that are none -------------------------------------------------------------------------
class Holds(nn.Module):  # type: ignore[misc, name-defined]
    """Numbers that Python has no word for, in a constant that no formula makes."""

    def __init__(self) -> None:
        super().__init__()
        self.c = torch.tensor([1.5, float("nan"), float("inf"), -float("inf"), -2.0])
        self.l = nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        y = self.l(x)
        return torch.where(self.c == self.c, torch.minimum(torch.maximum(y, -self.c), self.c), y)


@pytest.mark.parametrize("target", ["torch", "keras", "tensorflow", "mxnet", "jax"])
def test_numbers_that_are_none_are_written(target: str) -> None:
    try:
        carried = getattr(tv, f"to_{target}")(Holds(), X)
    except ImportError as error:
        pytest.skip(str(error))
    source = tv.emit(Holds(), target, X)
    assert 'float("NaN")' in source and '-float("Infinity")' in source
    report = carried[0].report if target == "jax" else carried.report
    assert report.ok


# -- integers and bools ----------------------------------------------------------------------------
INTEGERS = ["bool", "uint8", "int8", "int32", "int64"]
REDUCED = {
    "sum": lambda x: keras.ops.sum(x, axis=1),
    "max": lambda x: keras.ops.max(x, axis=1),
    "argmax": lambda x: keras.ops.argmax(x, axis=1),
    "one_hot": lambda x: keras.ops.one_hot(x, 3),
    "one_hot of int32": lambda x: keras.ops.one_hot(x, 3, dtype="int32"),
    "square": keras.ops.square,
}
OTHER = {  # Keras counts in another dtype there
    ("sum", "bool"): "a sum of bools", ("sum", "uint8"): "Keras says uint32",
    ("sum", "int8"): "Keras says int32", ("square", "bool"): "Keras says int32",
}  # fmt: skip


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", REDUCED)
def test_integers_are_read_in_keras_own_dtypes_or_refused(name: str, dtype: str) -> None:
    x = keras.Input((4,), dtype=dtype)
    model = keras.Model(x, REDUCED[name](x))
    given = np.array([[1, 0, 2, 1], [0, 0, 1, 2]]).astype(dtype)
    if (name, dtype) in OTHER:
        with pytest.raises(UnsupportedError, match=OTHER[name, dtype]):
            tv.from_keras(model, given)
        return
    want = np.asarray(model(given))
    for found in (tv.from_keras(model, given)(given), tv.to_keras(model, given)(given)):
        assert np.asarray(found).dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(found), want)


WRITTEN = {
    "sum": lambda x: tv.sum(x, axis=1),
    "square": tv.square,
    "broadcast_to": lambda x: tv.broadcast_to(tv.max(x, axis=1, keepdims=True), (x.shape[0], 5)),
}


@pytest.mark.parametrize("dtype", [*INTEGERS, "int16"])
@pytest.mark.parametrize("name", WRITTEN)
def test_integers_are_written_in_the_dtypes_of_the_graph(name: str, dtype: str) -> None:
    """Keras sums bytes in 32 bits; times ones, an integer would be a float."""
    if (name, dtype) == ("sum", "bool"):
        return  # the op refuses it
    large = {"int32": 2**24, "int64": 2**52}.get(dtype, 100)
    given = (np.array([[1, 0, 1, 1], [0, 0, 1, 0]]) * (large + 1)).astype(dtype)
    graph = Graph("g")
    with graph:
        x = graph.input("data", as_dtype(dtype), (Dim("batch"), 4), "x")
        graph.outputs = [WRITTEN[name](x)]
    (want,) = run(specialize(graph, {"batch": 2}), [given])
    (found,) = KerasRunner(*build(graph, {})).outputs([given])
    assert found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)


def test_reading_draws_nothing_by_chance() -> None:
    keras.utils.set_random_seed(3)
    dense, norm = keras.layers.Dense(3), keras.layers.LayerNormalization()
    model = keras.Sequential([keras.Input((4,)), dense, norm])
    before = random.getstate()
    tv.from_keras(model, verify=False)
    assert random.getstate() == before
