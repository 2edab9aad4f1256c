"""Ops that are declared here and nowhere else: every part of the house treats them as its own.

A composite with a line for two frameworks, an elementwise primitive with its NumPy meaning, its
gradient and one native line, and a composite reduction that says along which axes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import test_conformance as conformance
import test_round_trip as round_trip
import trivium as tv
from trivium.framework import FRAMEWORKS
from trivium.graph import OPS, Graph
from trivium.native.build import Build
from trivium.native.target import host
from trivium.op import Op, S, case, composite, primitive
from trivium.traits import REDUCTION, reduced
from trivium.transforms.layout import to_layout

GATE = {"torch": "F.hardshrink({x}, 0.25)", "keras": "ops.hard_shrink({x}, 0.25)"}
COSH = {"torch": "torch.cosh({x})", "keras": "ops.cosh({x})", "tensorflow": "tf.cosh({x})",
        "mxnet": "F.cosh({x})", "jax": "jnp.cosh({x})", "onnx": "Cosh"}  # fmt: skip
INSTALLED = [f for f in FRAMEWORKS.values() if f.version()]
X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Op]]:
    """The three ops, declared for one test; whoever else has their words lends them."""
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", "")
    before = set(OPS)
    for op, (framework, line) in itertools.product(
        [o for o in OPS.values() if isinstance(o, Op)], [*GATE.items(), *COSH.items()]
    ):
        said = op.lowerings.get(framework)
        if isinstance(said, str) and said.partition("(")[0] == line.partition("(")[0]:
            monkeypatch.delitem(op.lowerings, framework)

    @composite(cases=[case(S(2, 3)), case(S(5, low=0.3, high=3))], **GATE)
    def own_gate(x: Any) -> Any:
        """x where it is more than a quarter away from 0, else 0."""
        return tv.where(tv.abs(x) > 0.25, x, OPS["zeros_like"](x))

    @primitive(
        vjp=lambda g, out, x: (g * (tv.exp(x) - tv.exp(-x)) * 0.5,),
        native=lambda x: (tv.exp(x) + tv.exp(-x)) * 0.5,
        cases=[case(S(2, 3)), case(S(4))],
        **COSH,
    )  # fmt: skip
    def own_cosh(x: Any) -> Any:
        """The hyperbolic cosine."""
        return np.cosh(x)

    @composite(
        normal=OPS["sum"].normal, cases=[case(S(2, 3, 4), axis=1), case(S(2, 3), keepdims=True)],
        family=REDUCTION, axes=reduced,
    )  # fmt: skip
    def own_length(x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """The Euclidean length along ``axis``."""
        return tv.sqrt(tv.sum(x * x, axis=axis, keepdims=keepdims))

    yield {"gate": own_gate, "cosh": own_cosh, "length": own_length}
    for name in set(OPS) - before:
        del OPS[name]


class Net(tv.nn.Module):
    """A perceptron with both activations."""

    def __init__(self, own: dict[str, Op]):
        self.own = own
        self.first, self.second = tv.nn.Linear(5), tv.nn.Linear(2)

    def forward(self, x: Any) -> Any:
        return self.second(self.own["gate"](self.own["cosh"](self.first(x))))


class Images(tv.nn.Module):
    """Convolutions with something between them."""

    def __init__(self, between: Any, last: Any):
        self.first, self.second = tv.nn.Conv2d(4, 3), tv.nn.Conv2d(5, 3)
        self.between, self.last = between, last

    def forward(self, x: Any) -> Any:
        return self.last(self.second(self.between(self.first(x))))


def traced(function: Any, *arrays: Any) -> Graph:
    return tv.trace(function, *(tv.Spec(str(a.dtype), a.shape) for a in arrays), training=False)


def read_back(framework: str, function: Any) -> Graph:
    """What our reader makes of what was written of a function; torch fixes the batch of some."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return round_trip.read_back(framework, traced(function, X), [X])


def test_it_keeps_the_rules_of_every_op(own: dict[str, Op]) -> None:
    for op in own.values():
        for c in op.cases:
            conformance.test_types_are_what_the_oracle_gives(op, c, tv.float32)
            conformance.test_text_reads_back(op, c)
            conformance.test_gradient(op, c)
            conformance.test_gradient_of_the_gradient(op, c)
            if op.is_composite:
                conformance.test_body_is_the_fused_form(op, c)


@pytest.mark.parametrize("framework", [f.name for f in INSTALLED if f.source])
def test_it_is_written_as_itself_or_as_its_body(framework: str, own: dict[str, Op]) -> None:
    source = tv.emit(Net(own), framework, X)
    assert COSH[framework].partition("(")[0] in source
    assert ("shrink(" in source) == (framework in GATE)
    assert ("where(" in source) == (framework not in GATE)


@pytest.mark.parametrize("framework", [f.name for f in INSTALLED])
def test_it_is_verified_there(framework: str, own: dict[str, Op]) -> None:
    model = Net(own)
    if framework == "onnx":
        assert {"Cosh", "Where"} <= {n.op_type for n in tv.to_onnx(model, X).graph.node}
        return
    there = getattr(tv, f"to_{framework}")(model, X)
    found = there if framework == "jax" else there.report
    assert found


@pytest.mark.parametrize("framework", [f.name for f in INSTALLED if f.kinds])
def test_it_is_read_back_where_it_has_a_line(framework: str, own: dict[str, Op]) -> None:
    for op, lines in ((own["gate"], GATE), (own["cosh"], COSH)):
        if framework in lines:
            back = read_back(framework, op)
            assert [n.op for n in back.nodes] == [op.name]
            assert back.nodes[0].inputs[0] is back.inputs[0]


def test_a_line_that_says_more_is_read_first(own: dict[str, Op]) -> None:
    """An op that has the same call with a hole comes after one that names the number."""
    pytest.importorskip("torch")

    @composite(cases=[case(S(2), at=0.5)], torch="F.hardshrink({x}, {at})")
    def own_hardshrink(x: Any, *, at: float) -> Any:
        """x where it is more than a number away from 0, else 0."""
        return tv.where(tv.abs(x) > at, x, OPS["zeros_like"](x))

    found = [read_back("torch", lambda x, at=at: own_hardshrink(x, at=at)) for at in (0.25, 0.5)]
    assert [g.nodes[0].op for g in found] == ["own_gate", "own_hardshrink"]


def transposed(model: Any) -> int:
    """How many transpositions a model of images has with its channels last."""
    return [n.op for n in to_layout(traced(model, IMAGES), "NHWC").nodes].count("transpose")


def test_it_passes_images_on_as_they_lie(own: dict[str, Op]) -> None:
    def mean(x: Any) -> Any:
        return tv.mean(x, axis=(2, 3))

    def length(x: Any) -> Any:
        return own["length"](x, axis=(2, 3))

    usual = transposed(Images(tv.relu, mean))
    assert usual == 1
    assert transposed(Images(lambda x: own["gate"](own["cosh"](x)), mean)) == usual
    assert transposed(Images(tv.relu, length)) == usual


def test_it_goes_into_the_loop_beside_it(own: dict[str, Op]) -> None:
    fast = tv.compile(lambda x: own["cosh"](own["gate"](x) + 1.0))
    np.testing.assert_allclose(fast(X), np.cosh(np.where(np.abs(X) > 0.25, X, 0) + 1), rtol=1e-6)
    loops = [line for line in fast.source.splitlines() if line.startswith("for ")]
    assert len(loops) == 1, fast.source
    assert "NumPy" not in fast.source

    product = Build(traced(lambda x, w: own["gate"](own["cosh"](x @ w)), X, X.T), False, host())
    nests = [line for line in product.source.splitlines() if line.startswith("for ")]
    assert len(nests) == 1, product.source


def test_it_trains_natively(own: dict[str, Op]) -> None:
    y = np.float32(np.random.default_rng(2).standard_normal((4, 2)))
    losses = {}
    for engine in ("native", "numpy"):
        tv.seed(0)
        step = tv.TrainStep(Net(own), "mse", tv.optim.SGD(0.1), engine=engine)
        losses[engine] = [step(X, y) for _ in range(5)]
        if engine == "native":
            assert "NumPy" not in step.source
    np.testing.assert_allclose(losses["native"], losses["numpy"], rtol=1e-5)
    assert losses["native"][-1] < losses["native"][0]


def test_what_is_compiled_is_kept_by_what_it_means(
    own: dict[str, Op], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program on disk is not found again when the op of its name means something else."""
    monkeypatch.setenv("TRIVIUM_CACHE_DIR", str(tmp_path))
    found = [tv.compile(lambda x: own["cosh"](x))(X)]
    own["cosh"].native = lambda x: x * 2.0
    found.append(tv.compile(lambda x: own["cosh"](x))(X))
    np.testing.assert_allclose(found[0], np.cosh(X), rtol=1e-6)
    np.testing.assert_array_equal(found[1], 2 * X)


def test_without_a_native_line_numpy_runs_it(own: dict[str, Op]) -> None:
    """Right all the same: between two compiled segments."""
    own["cosh"].native = None
    fast = tv.compile(lambda x: own["cosh"](x) * 2.0)
    np.testing.assert_allclose(fast(X), 2 * np.cosh(X), rtol=1e-6)
    assert "NumPy runs own_cosh" in fast.source
