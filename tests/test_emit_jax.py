"""JAX source and engine: what is particular to them."""

import os
import re
from typing import Any

import numpy as np
import pytest

import trivium as tv
from emit_suite import near, shaken
from trivium import nn
from trivium.graph import Graph, UnsupportedError

os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0"
)  # small models, many compilations
pytest.importorskip("jax")

from trivium.frameworks.jax.emit import emit
from trivium.frameworks.jax.run import JaxRunner, build


def test_open_sizes() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            self.conv, self.head = nn.Conv2d(3, 3, padding=1), nn.Linear(4)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            n, c, h, w = y.shape
            return self.head(tv.transpose(tv.reshape(y, (n, c, h * w)), axes=(0, 2, 1)))

    module = Images()
    graph = tv.trace(module, ("float32", ("batch", 2, "h", "w")))
    module.load_state_dict(shaken(module))
    runner = JaxRunner(*build(graph, module.state_dict()))
    for shape in ((2, 2, 5, 7), (3, 2, 4, 3)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        near(runner.outputs([x])[0], module(x).numpy())


def test_every_dropout_has_a_key_of_its_own() -> None:
    module = nn.Sequential(
        nn.Dropout(0.5), nn.Sequential(nn.Linear(2), nn.Dropout(0.5)), nn.Dropout(0.5)
    )
    model, _ = build(tv.trace(module, ("float32", ("batch", 8))), module.state_dict())
    assert "keys = jax.random.split(rng, 3) if training else [None] * 3" in model.source
    assert len(set(re.findall(r"keys\[\d\]", model.source))) == 3


def test_state_is_threaded() -> None:
    import jax

    module = nn.Sequential(nn.Linear(3), nn.BatchNorm())
    model, _ = build(
        tv.trace(module, ("float32", ("batch", 2))), module.build(("float32", (4, 2))).state_dict()
    )
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    y, state = jax.jit(model.function, static_argnames="training")(model.params, x, training=True)
    assert y.shape == (4, 3)
    assert jax.tree.map(np.shape, state) == {"1": {"running_mean": (3,), "running_var": (3,)}}
    assert model.function(model.params, x).shape == (4, 3)


def test_64_bits_are_not_lost_silently() -> None:
    graph = Graph("same")
    with graph:
        graph.outputs = [graph.input("data", "int64", ("n",), "x") + 1]
    runner = JaxRunner(*build(graph, {}))
    (y,) = runner.outputs([np.array([1, 2])])
    assert y.dtype == np.int32 and y.tolist() == [2, 3]
    with pytest.raises(UnsupportedError, match="beyond int32"):
        runner.outputs([np.array([2**40])])
    wide = Graph("wide")
    with wide:
        wide.outputs = [wide.input("data", "float64", ("n",), "x") * 2]
    with pytest.raises(UnsupportedError, match="float64 in JAX source"):
        emit(wide)
    with pytest.raises(UnsupportedError, match="float64 array"):
        JaxRunner(*build(graph, {})).outputs([np.array([1.0])])


def test_statistics_collected_side_by_side_are_refused() -> None:
    graph = Graph("twice")
    with graph:
        x = graph.input("data", "float32", ("n", 3), "x")
        mean, var = (
            graph.input("state", "float32", (3,), f"bn.{s}")
            for s in ("running_mean", "running_var")
        )
        for _ in range(2):
            x, new_mean, new_var = tv.batch_norm(x, None, None, mean, var, training=True)
        graph.outputs, graph.updates = [x], {mean: new_mean, var: new_var}
    with pytest.raises(UnsupportedError, match="side by side"):
        emit(graph)
