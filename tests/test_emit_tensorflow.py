"""TensorFlow source and engine: what is emitted means what the Graph means."""

import os
from typing import Any

import numpy as np
import pytest
from emit_suite import CASES, MODELS, UPDATES, Bound

import trivium as tv
from trivium.graph import Graph, UnsupportedError
from trivium.op import Case, Op

pytest.importorskip("tensorflow")

from trivium.frameworks.tensorflow.emit import emit
from trivium.frameworks.tensorflow.run import TensorflowRunner, TensorflowTrainer, build

TF = Bound("tensorflow", emit, build, TensorflowRunner, TensorflowTrainer)

REFUSED = {
    "conv_input_grad": "derives its own",
    "conv_weight_grad": "derives its own",
    "windows": "the inside of a pool",
    "fold": "the inside of a pool",
    "random_uniform": "no exact form",
    "take_grad": "derives its own",
    "cond": "a branch in a module's source",
    "scan": "a loop in a module's source",
    "rnn": "no exact form of (rnn|scan)",  # without parameters of its own; nn.RNN is a layer
    "pad-2": "between elements",
    "pad-3": "nor negatively",
}
OPS_CASES = [pytest.param(o, c, id=f"{o.name}-{i}") for o, i, c in CASES if (o.name, i) != ("dropout", 0)]


@pytest.mark.parametrize(("op", "case"), OPS_CASES)
def test_op(op: Op, case: Case, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    reason = REFUSED.get(name) or REFUSED.get(op.name)
    if reason is None:
        return TF.op(op, case)
    with pytest.raises(UnsupportedError, match=reason):
        TF.op(op, case)


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    TF.model(name)


@pytest.mark.parametrize("optimizer", UPDATES)
def test_ten_steps(optimizer: str) -> None:
    TF.trains(optimizer)


def test_dropout() -> None:
    TF.dropout()


@pytest.mark.parametrize("name", ["mlp", "residual", "rnn"])
def test_golden(name: str) -> None:
    TF.golden(name)
