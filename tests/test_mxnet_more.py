"""What MXNet's own operators get wrong or cannot do, and how its source says it all the same."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import trivium as tv
from trivium import nn

if importlib.util.find_spec("mxnet") is None:
    pytest.skip("MXNet is not installed", allow_module_level=True)

from trivium.frameworks.mxnet.emit import emit
from trivium.frameworks.mxnet.run import MxnetRunner, build
from trivium.interpret import Interpreter
from trivium.transforms.grad import pullback

ways = pytest.mark.parametrize("hybrid", [False, True], ids=["imperative", "hybridized"])


def running(graph: tv.Graph, values: dict[str, Any], hybrid: bool) -> MxnetRunner:
    block, weights = build(graph, values)
    if hybrid:
        block.hybridize(static_alloc=True)
    return MxnetRunner(block, weights)


# -- digits ----------------------------------------------------------------------------------------
LOGARITHMS = {
    "softplus": tv.softplus,
    "log_sigmoid": lambda x: -tv.softplus(-x),
    "mish": lambda x: x * tv.tanh(tv.softplus(x)),
}


@ways
@pytest.mark.parametrize("name", LOGARITHMS)
def test_what_is_small_keeps_its_digits(name: str, hybrid: bool) -> None:
    """Each number by itself, to a few units in its last place: value and gradient."""
    x = np.array([-80, -45, -30, -20, -17.5, -16, -12, -8, -3, -0.7, -1e-4, 0, 1e-4], np.float32)
    x = np.concatenate([x, -x])
    graph = tv.trace(LOGARITHMS[name], ("float32", x.shape))
    pulled = running(graph, {}, hybrid).pull([x], [np.ones_like(x)])
    (exact,) = Interpreter(graph, tv.float64)(x)
    back = pullback(graph, [graph.inputs[0].name])
    slope = Interpreter(back, tv.float64)(x, np.ones_like(x))[-1]
    for got, want in ((pulled.outputs[0], exact), (pulled.inputs[0], slope)):
        np.testing.assert_allclose(got, want, rtol=16 * np.finfo(np.float32).eps, atol=0)


def test_softplus_in_a_chain_is_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3), tv.softplus, nn.Linear(2))
    source = emit(tv.trace(model, ("float32", ("batch", 4)))).source
    assert '"softrelu"' not in source and "Softplus(), nn.Dense(2))" in source


@ways
def test_softplus_at_the_ends(hybrid: bool) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0], np.float32)
    graph = tv.trace(tv.softplus, ("float32", x.shape))
    (y,) = running(graph, {}, hybrid).outputs([x])
    np.testing.assert_array_equal(y[:5], np.array([np.inf, 0, np.nan, 3e38, 0], np.float32))
