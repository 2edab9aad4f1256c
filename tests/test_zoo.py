"""A real model from each zoo crosses to the other two frameworks: outputs, gradients and names.

Weights are seeded and random (nothing is downloaded), batch-norm statistics too. ``tv.to_*``
verifies outputs at several batches, training mode, every parameter's gradient, statistics and
steps; it raises when anything differs. What the tests add: the names, and how the source reads.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import trivium as tv
import zoo_shim

IMAGE = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


def classes(source: str) -> list[str]:
    """The classes or functions of an emitted source, but for corrections and helpers."""
    return re.findall(r"^(?:class|def) (\w*(?:block|resnet|bottleneck)\w*)\(", source, re.M | re.I)


def leaves(names: Any) -> set[str]:
    """Layer paths of parameters."""
    return {n.rpartition(".")[0] for n in names}


@pytest.fixture(scope="module")
def torch_resnet() -> Any:
    torch = pytest.importorskip("torch")
    zoo_shim.load_torchvision()
    timm = zoo_shim.load_timm()
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=10)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.running_mean.normal_(std=0.5)
                m.running_var.uniform_(0.5, 2)
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(std=0.1)
    return model


@pytest.mark.parametrize("target", ["keras", "mxnet"])
def test_torch_resnet18_crosses(torch_resnet: Any, target: str) -> None:
    carried = getattr(tv, f"to_{target}")(torch_resnet, IMAGE)  # raises unless everything agrees
    report = carried.report
    assert report.ok
    assert {r.kind for r in report.rows} >= {"output", "training", "state", "gradient", "step"}
    batches = {r.case for r in report.rows if r.kind == "output"}
    assert any("batch 1" in c for c in batches) and any("batch 3" in c for c in batches)
    module = tv.from_torch(torch_resnet, IMAGE)
    counters = {n for n in torch_resnet.state_dict() if n.endswith("num_batches_tracked")}
    assert set(module.state_dict()) == set(torch_resnet.state_dict()) - counters
    # Two kinds of basic block, each written once, and the network.
    assert len(classes(carried.source)) <= 3, carried.source
    if target == "keras":
        there = leaves(tv.from_keras(carried).state_dict())
    else:
        there = leaves(carried._collect_params_with_prefix())
    assert there == leaves(module.state_dict())


def keras_resnet() -> Any:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, var = (np.zeros(w.shape, "f") for w in layer.get_weights())
            gamma += rng.uniform(0.5, 1, gamma.shape)
            beta += rng.normal(0, 0.1, beta.shape)
            mean += rng.normal(0, 0.5, mean.shape)
            var += rng.uniform(0.5, 2, var.shape)
            layer.set_weights([gamma, beta, mean, var])
    return model


@pytest.mark.parametrize("target", ["torch", "mxnet"])
def test_keras_resnet50_crosses(target: str) -> None:
    model = keras_resnet()
    image = np.moveaxis(IMAGE, 1, 3).copy()
    carried = getattr(tv, f"to_{target}")(model, image)
    assert carried.report.ok
    names = {w.path.split("/")[0] for w in model.weights}
    assert leaves(tv.from_keras(model).state_dict()) == names
    if target == "torch":
        counters = {n for n in carried.state_dict() if n.endswith("num_batches_tracked")}
        assert leaves(set(carried.state_dict()) - counters) == names


@pytest.mark.parametrize(("version", "target"), [("v1", "torch"), ("v1", "keras"), ("v2", "torch")])
def test_gluon_resnet18_crosses(version: str, target: str) -> None:
    from trivium.frameworks.mxnet.load import load

    mx = load()
    mx.random.seed(0)
    block = getattr(mx.gluon.model_zoo.vision, f"resnet18_{version}")(classes=10)
    block.initialize(mx.init.Xavier())
    block(mx.nd.array(IMAGE))
    rng = np.random.default_rng(1)
    for name, p in block._collect_params_with_prefix().items():
        if name.endswith(("running_mean", "beta")):
            p.set_data(mx.nd.array(rng.normal(0, 0.3, p.shape)))
        elif name.endswith(("running_var", "gamma")):
            p.set_data(mx.nd.array(rng.uniform(0.5, 1.5, p.shape)))
    carried = getattr(tv, f"to_{target}")(block, IMAGE)
    assert carried.report.ok
    names = leaves(block._collect_params_with_prefix())
    assert leaves(tv.from_mxnet(block, IMAGE).state_dict()) == names
    source = carried.source
    assert len(classes(source)) <= 4, source
