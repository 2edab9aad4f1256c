"""TensorFlow source and engine: what is particular to them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trivium as tv
from emit_suite import MODELS, near, sample, shaken
from trivium import nn
from trivium.graph import UnsupportedError

pytest.importorskip("tensorflow")

from trivium.frameworks.tensorflow.emit import emit
from trivium.frameworks.tensorflow.run import TensorflowRunner, build


def test_is_a_module_of_tensorflow() -> None:
    """Its variables are found, saved and brought back by TensorFlow's own means."""
    module, specs, _ = MODELS["residual"]()
    graph = tv.trace(module, *specs)
    model, weights = build(graph, shaken(module))
    assert len(model.trainable_variables) == len(graph.of_kind("param"))
    assert len(model.variables) == len(weights)
    assert "trivium" not in model.source


def test_checkpoint(tmp_path: Path) -> None:
    import tensorflow as tf

    module, specs, _ = MODELS["residual"]()
    graph = tv.trace(module, *specs)
    values = shaken(module)
    saved = tf.train.Checkpoint(model=build(graph, values)[0]).save(str(tmp_path / "model"))
    names = [n for n, _ in tf.train.list_variables(saved)]
    assert any(n.startswith("model/layer1/layers/1/conv1/kernel") for n in names)
    fresh = TensorflowRunner(*build(graph, {n: np.zeros_like(v) for n, v in values.items()}))
    tf.train.Checkpoint(model=fresh.module).restore(saved).assert_consumed()
    for n, v in fresh.values().items():
        np.testing.assert_array_equal(v, values[n])


def test_saved_model(tmp_path: Path) -> None:
    import tensorflow as tf

    module, specs, _ = MODELS["channels_last"]()
    graph = tv.trace(module, *specs)
    runner = TensorflowRunner(*build(graph, shaken(module)))
    model = runner.module
    spec = tf.TensorSpec([None, *specs[0][1][1:]], tf.float32)
    serve = tf.function(lambda x: model(x), input_signature=[spec])
    tf.saved_model.save(model, str(tmp_path), signatures={"serve": serve})
    x = sample(specs[0], 3)
    (served,) = tf.saved_model.load(str(tmp_path)).signatures["serve"](tf.constant(x)).values()
    np.testing.assert_allclose(served.numpy(), runner.outputs([x])[0], rtol=1e-5, atol=1e-5)


def test_open_sizes() -> None:
    import tensorflow as tf

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
    runner = TensorflowRunner(*build(graph, module.state_dict()))
    spec = tf.TensorSpec([None, 2, None, None])
    once = tf.function(runner.module, input_signature=[spec])  # traced with no size known
    for shape in ((2, 2, 5, 7), (3, 2, 4, 3)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        near(once(tf.constant(x)).numpy(), module(x).numpy())


def test_negative_padding_of_a_convolution_is_refused() -> None:
    module = nn.Conv2d(2, 3, padding=((-1, 0), (0, 0)))
    with pytest.raises(UnsupportedError, match="negative padding"):
        emit(tv.trace(module, ("float32", ("batch", 2, 7, 6))))
