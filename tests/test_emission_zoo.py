"""Known models written as PyTorch source: one class where the original has one, names by role.

The sources under ``goldens/torch`` are reviewed by reading them.
"""

from __future__ import annotations

import gc
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium.frameworks.torch.emit import emit
from trivium.graph import OPS, Graph
from trivium.transforms.simplify import simplify

GOLDENS = Path(__file__).parent / "goldens" / "torch"
NAMELESS = re.compile(r"\b(z|u|w|input_layer_\d+|\w*channels_\d\w*|\w*features_\d\w*|part_\d+)\b")


def of_timm(name: str, size: int) -> Callable[[], tuple[Graph, int]]:
    def read() -> tuple[Graph, int]:
        if not importlib.util.find_spec("timm"):
            pytest.skip("timm is not installed")
        torch = pytest.importorskip("torch")
        from zoo_shim import load_timm

        model = load_timm().create_model(name).eval()
        lists = (torch.nn.Sequential, torch.nn.ModuleList)
        classes = {type(m) for m in model.modules() if any(m.children())} - {*lists}
        graph = tv.from_torch(model, torch.zeros(2, 3, size, size), verify=False).graph
        return graph, len(classes)

    return read


def of_keras() -> tuple[Graph, int]:
    keras = pytest.importorskip("keras")
    keras.utils.clear_session()  # it numbers the layers of a process
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3))
    return tv.from_keras(model, np.zeros((2, 64, 64, 3), "f"), verify=False).graph, 1


def of_gluon() -> tuple[Graph, int]:
    from trivium.frameworks.mxnet.load import load

    try:
        mx = load()
    except ImportError:
        pytest.skip("MXNet is not installed")
    from mxnet.gluon.model_zoo import vision

    block = vision.mobilenet0_25()
    block.initialize()
    block(mx.nd.zeros((2, 3, 64, 64)))
    return tv.from_mxnet(block, np.zeros((2, 3, 64, 64), "f"), verify=False).graph, 1


MODELS: dict[str, Callable[[], tuple[Graph, int]]] = {
    "mobilenet_v3": of_timm("mobilenetv3_small_100", 64),
    "densenet": of_timm("densenet121", 64),
    "convnext": of_timm("convnext_atto", 64),
    "vit": of_timm("vit_tiny_patch16_224", 224),
    "keras_efficientnet": of_keras,
    "gluon_mobilenet": of_gluon,
}


@pytest.mark.parametrize("name", MODELS)
def test_golden(name: str) -> None:
    graph, classes = MODELS[name]()
    source = emit(graph).source
    assert len(re.findall(r"^class ", source, re.MULTILINE)) <= classes + 2
    assert not NAMELESS.findall(source)
    path = GOLDENS / f"{name}.txt"
    assert path.exists(), f"write {path} and read it:\n{source}"
    assert source == path.read_text()


# -- what blocks may differ in ---------------------------------------------------------------------
class Block(tv.nn.Module):
    """A residual block in all its forms."""

    def __init__(self, width: int, extra: bool, skip: bool, act: Any, twice: bool) -> None:
        self.first = tv.nn.Linear(width)
        self.extra = tv.nn.Linear(width) if extra else None
        self.last = tv.nn.Linear(width)
        self.skip, self.act, self.twice = skip, act, twice

    def forward(self, x: Any) -> Any:
        y = self.act(self.first(x))
        if self.extra is not None:
            y = self.extra(y)
        y = self.last(y)
        if self.twice:
            y = tv.exp(tv.tanh(y))
        return y + x if self.skip else y


@pytest.mark.parametrize("seed", range(3))
def test_blocks_that_differ_share_a_class_and_mean_the_same(seed: int) -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    widths, blocks = [4], []
    for _ in range(7):
        extra, skip, act, twice = rng.integers(2, size=4)
        widths.append(widths[-1] if skip else int(rng.integers(3, 7)))
        blocks.append(
            Block(widths[-1], bool(extra), bool(skip), [tv.tanh, tv.sigmoid][act], bool(twice))
        )
    model = tv.nn.Sequential(*blocks)
    x = rng.standard_normal((3, 4)).astype("f")
    model(x)
    source = tv.emit(model, "torch", x)
    assert source.count("class Block") <= 2, source
    assert tv.to_torch(model, x).report.ok  # verified: outputs, gradients, training steps


def test_a_block_that_reads_another_value_is_another_class() -> None:
    class Crossed(tv.nn.Module):
        def __init__(self, early: bool) -> None:
            self.a, self.b = tv.nn.Linear(4), tv.nn.Linear(4)
            self.early = early

        def forward(self, x: Any) -> Any:
            y = self.a(x)
            z = self.b(y)
            return tv.exp(z) * (y if self.early else z)

    model = tv.nn.Sequential(Crossed(True), Crossed(False))
    x = np.ones((2, 4), "f")
    source = tv.emit(model, "torch", x)
    assert source.count("class Crossed") == 2
    assert tv.to_torch(model, x).report.ok


# -- no-ops ----------------------------------------------------------------------------------------
def ops_of(function: Any) -> list[str]:
    return [n.op for n in simplify(tv.trace(function, ("float32", ("batch", 3, 4)))).nodes]


def test_what_changes_nothing_is_left_out() -> None:
    assert ops_of(lambda x: tv.tanh(x * 1.0) / 1.0) == ["tanh"]
    assert "multiply" in ops_of(lambda x: x * 2.0)
    assert "divide" in ops_of(lambda x: 1.0 / x)


def test_a_mean_that_is_given_its_axes_back_keeps_them() -> None:
    (mean,) = simplify(tv.trace(lambda x: tv.reshape(tv.mean(x, axis=1), shape=(2, 1, 4)),
                                ("float32", (2, 3, 4)))).nodes  # fmt: skip
    assert mean.op == "mean" and mean.attrs["keepdims"]


# -- how long it takes -----------------------------------------------------------------------------
def deep(count: int) -> Graph:
    graph = Graph("deep")
    with graph:
        x: Any = tv.placeholder("float32", ("batch", 4), name="x")
        for i in range(count // 4):
            graph.classes[f"parts.{i}"] = "Block"
            with graph.within(f"parts.{i}.fc"):
                shapes = {"weight": (4, 4), "bias": (4,)}
                w, b = (graph.input("param", "float32", s, f"parts.{i}.fc.{n}")
                        for n, s in shapes.items())  # fmt: skip
                y = OPS["linear"](x, w, b)
            with graph.within(f"parts.{i}"):
                x = tv.exp(tv.tanh(y) + x)
        graph.outputs = [x]
    return graph


@pytest.mark.parametrize("do", [emit, lambda g: tv.parse(str(g)), simplify])
def test_the_time_grows_with_the_nodes(do: Any) -> None:
    from time import process_time

    def seconds(count: int) -> float:
        graph, times = deep(count), []
        gc.disable()  # what it costs depends on what else is alive
        for _ in range(3):
            start = process_time()
            do(graph)
            times.append(process_time() - start)
        gc.enable()
        return min(times)

    do(deep(100))
    assert seconds(8000) < 8 * max(seconds(2000), 0.02)  # 4 times as many
