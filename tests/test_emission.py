"""Awkward models in all five frameworks: outputs in both modes, every gradient, every state.

The judge is the float64 oracle of the traced Graph; the models are those of ``odd_models.py``.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

import odd_models
import trivium as tv
from emit_suite import Bound, near, shaken
from trivium import nn
from trivium.convert import SOURCES
from trivium.framework import FRAMEWORKS
from trivium.frameworks.made import execute, furnished
from trivium.frameworks.writing.source import in_order
from trivium.graph import Graph, UnsupportedError
from trivium.interpret import Interpreter

TORCH = tuple(odd_models.torch_models()) if importlib.util.find_spec("torch") else ()


def bound(target: str) -> Bound:
    if target == "mxnet":
        from trivium.frameworks.mxnet.load import load

        try:
            load()
        except ImportError:
            pytest.skip("MXNet is not installed")
    else:
        pytest.importorskip(target)
    emit, run = (
        importlib.import_module(f"trivium.frameworks.{target}.{part}") for part in ("emit", "run")
    )
    runner = getattr(run, FRAMEWORKS[target].runner)
    return Bound(target, emit.emit, run.build, runner, None)


def graph_and_values(name: str) -> tuple[Graph, Any, list[Any]]:
    module, xs = (odd_models.OWN | odd_models.torch_models())[name]()
    specs = [(str(x.dtype), ("batch", *x.shape[1:])) for x in xs]
    if not isinstance(module, nn.Module):
        module = tv.from_torch(module, *xs)
        return module.graph, shaken(module), xs
    return tv.trace(module, *specs), shaken(module), xs


@pytest.mark.parametrize("name", [*odd_models.OWN, *TORCH])
@pytest.mark.parametrize("target", SOURCES)
def test_awkward_model(target: str, name: str) -> None:
    framework = bound(target)
    graph, values, xs = graph_and_values(name)
    runner = framework.runner(*framework.build(graph, values))
    assert runner.values().keys() == values.keys()
    if graph.of_kind("rng"):  # its masks are its own while training
        inputs = [values.get(v.name, xs[0]) for v in graph.inputs if v.kind != "rng"]
        keyed = iter(inputs)
        given = [np.zeros(2, np.uint64) if v.kind == "rng" else next(keyed) for v in graph.inputs]
        exact = Interpreter(graph, tv.float64, training=False)(*given)
        for got, want in zip(runner.outputs(xs), exact, strict=False):
            near(got, want, 128)
        return
    framework.both_modes(graph, runner, values, xs)


# -- how it reads ----------------------------------------------------------------------------------
def torch_source(name: str) -> str:
    module, xs = (odd_models.OWN | odd_models.torch_models())[name]()
    return tv.emit(module, "torch", *xs)


def test_lists_are_module_lists() -> None:
    source = torch_source("interleaved")
    one = "nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])"
    assert f"self.first = {one}\n" in source and f"self.second = {one}\n" in source
    assert "self.second[1](torch.tanh(self.first[1](x)))" in source


def test_a_module_called_twice_is_one_member() -> None:
    source = torch_source("called_twice")
    assert source.count("self.block = Pair()") == 1 and source.count("self.block(") == 2


def test_names_that_python_or_torch_has_taken() -> None:
    torch = pytest.importorskip("torch")
    from trivium.frameworks.torch import classes

    assert {n for n in dir(torch.nn.Module()) if not n.startswith("__")} == classes._TAKEN
    source = torch_source("torch_dict")
    assert 'self.branches["lambda"](' in source


def test_a_causal_mask_is_a_formula() -> None:
    for name in ("causal_mask", "causal_bools"):
        source = torch_source(name)
        assert "torch.arange(0, 40, 1" in source and len(source) < 1200


def test_arrays_without_a_pattern_travel_with_the_model() -> None:
    """The source says which numbers it does not hold; blocks that have them are one class."""
    source = torch_source("constant_in_blocks")
    head = source.partition("import torch")[0]
    assert "trivium.to_torch(...)" in head
    assert re.findall(r"# (blocks\.\d\.constant): float32 of shape \(4, 301\)", head) == [
        f"blocks.{i}.constant" for i in range(3)
    ]
    assert source.count("class WithConstant") == 1


def formulas() -> dict[str, Any]:
    i, j = np.indices((9, 11))
    one = np.float32(1)
    return {
        "uniform": np.full((4, 20), np.float32(0.1)),
        "not a number": np.full((40,), np.nan, np.float32),
        "minus zero": np.full((40,), -0.0, np.float32),
        "counts": np.arange(3, 90, 2),
        "counts down": np.arange(50, 0, -1, dtype=np.float32),
        "affine": (3 * i - 2 * j + 5).astype(np.int32),
        "repeated": np.repeat(np.arange(40), 3).reshape(1, 40, 3),
        "lower": np.tril(np.full((9, 11), -np.inf, np.float32)),
        "upper": np.triu(np.ones((11, 9), np.bool_), 2),
        "eye": np.eye(8, dtype=np.float32)[None, None],
        "band": np.where(np.abs(i - j) < 3, one, -one),
        "start": np.where(np.arange(60) < 7, np.float16(2), np.float16(0.5)),
        "one hot": np.arange(60) == 13,
    }


@pytest.mark.parametrize("name", formulas())
def test_a_formula_has_the_bits_of_the_array(name: str) -> None:
    from trivium.frameworks.writing.ready import arrays_written

    array = formulas()[name]
    graph = Graph("g")
    with graph:
        graph.outputs = [tv.graph.OPS["constant"].trace(graph, [], {"value": array})]
    written, kept = arrays_written(graph)
    assert not kept and "constant" not in [n.op for n in written.nodes]
    (found,) = Interpreter(written)()
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


@pytest.mark.parametrize("change", ["first", "middle", "last"])
@pytest.mark.parametrize("name", formulas())
def test_one_other_number_is_no_pattern_or_another(name: str, change: str) -> None:
    from trivium.frameworks.writing.ready import arrays_written

    array = formulas()[name].copy()
    at = {"first": 0, "middle": array.size // 2, "last": -1}[change]
    array.flat[at] = not array.flat[at] if array.dtype == bool else 77
    graph = Graph("g")
    with graph:
        graph.outputs = [tv.graph.OPS["constant"].trace(graph, [], {"value": array})]
    written, _ = arrays_written(graph)
    (found,) = Interpreter(written)()
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_members_of_lists_stand_by_their_numbers() -> None:
    members: Any = dict.fromkeys(["b.2", "a", "b.0", "c.1", "b.10", "b.1", "c.3"])
    members |= dict.fromkeys(f"b.{i}" for i in range(3, 10))
    assert list(in_order(members)) == [*(f"b.{i}" for i in range(11)), "a", "c.1", "c.3"]


# -- what the source has is counted ----------------------------------------------------------------
def miscounted(edit: Any) -> None:
    """A torch model whose source was changed by ``edit``, given its numbers."""
    pytest.importorskip("torch")
    from trivium.frameworks.torch.emit import emit
    from trivium.frameworks.torch.run import TorchRunner

    module = nn.Sequential(nn.Linear(4), nn.BatchNorm(), nn.Linear(3))
    graph = tv.trace(module, ("float32", ("batch", 5)))
    emitted = emit(graph)
    changed = edit(emitted.source)
    assert changed != emitted.source
    emitted.source = changed
    furnished(TorchRunner, execute(emitted, "torch")(), emitted, graph, module.state_dict())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nn.Linear(5, 4)", "nn.Linear(5, 4, bias=False)", "no '0.bias'"),
        ("nn.Linear(4, 3)", "nn.Linear(4, 3), nn.Linear(3, 3)", "'3.weight'.* the Graph has not"),
        ("nn.Linear(4, 3)", "nn.Linear(3, 4)", r"'2.weight' is .* of shape \(4, 3\), not \(3, 4\)"),
        ("nn.BatchNorm1d(4)", "nn.BatchNorm1d(4, affine=False)", "no '1.weight'"),
    ],
)
def test_a_wrong_parameter_is_an_error_by_name(old: str, new: str, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        miscounted(lambda source: source.replace(old, new))


def test_jax_source_that_does_not_read_a_parameter() -> None:
    pytest.importorskip("jax")
    from trivium.frameworks.jax.emit import emit
    from trivium.frameworks.jax.run import JaxModel

    module = nn.Sequential(nn.Linear(4))
    graph = tv.trace(module, ("float32", ("batch", 5)))
    emitted = emit(graph)
    helper = 'return y + params["bias"]'
    assert helper in emitted.source
    emitted.source = emitted.source.replace(helper, "return y")
    model = JaxModel(execute(emitted, "jax"), {}, owed=frozenset({"0.weight", "0.bias"}))
    with pytest.raises(UnsupportedError, match=r"does not read the parameter '0\.bias'"):
        model.apply(module.state_dict(), [np.zeros((2, 5), np.float32)], False, None)


@pytest.mark.parametrize("target", [t for t in SOURCES if t != "keras"])
def test_a_parameter_that_nothing_reads_is_kept(target: str) -> None:
    framework = bound(target)
    module = nn.Sequential(odd_models.Pair(), nn.Linear(3))
    graph = tv.trace(module, ("float32", ("batch", 4)))
    values = shaken(module)
    for name in ("pooler.dense.weight", "0.unused", "count"):
        graph.input("param", "float32", (2, 3), name)
        values[name] = np.ones((2, 3), np.float32)
    runner = framework.runner(*framework.build(graph, values))
    assert runner.values().keys() == values.keys()
    framework.both_modes(graph, runner, values, [odd_models.numbers(3, 4)])


@pytest.mark.parametrize("target", SOURCES)
def test_a_deep_model_is_written(target: str) -> None:
    """As deep as nobody's stack: 3,000 nodes, one after the other."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            self.head = nn.Linear(3)

        def forward(self, x: Any) -> Any:
            for _ in range(1500):
                x = tv.tanh(x) + 0.1
            return self.head(x)

    source = tv.emit(Deep(), target, np.ones((2, 4), "f"))
    assert source.count("tanh") == 1500
