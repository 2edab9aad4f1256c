"""TensorFlow source and engine: what is emitted means what the Graph means."""

import pytest

from emit_suite import CASES, MODELS, UPDATES, Bound
from trivium.graph import UnsupportedError
from trivium.op import Case, Op

pytest.importorskip("tensorflow")

from trivium.frameworks.tensorflow.emit import emit
from trivium.frameworks.tensorflow.run import TensorflowRunner, TensorflowTrainer, build

TENSORFLOW = Bound("tensorflow", emit, build, TensorflowRunner, TensorflowTrainer)

REFUSED = {
    "conv_input_grad": "derives its own",
    "conv_weight_grad": "derives its own",
    "windows": "the inside of a pool",
    "fold": "the inside of a pool",
    "random_uniform": "no exact form",
    "pad-2": "between elements",
    "pad-3": "negative padding",
}
OPS_CASES = [
    pytest.param(o, c, id=f"{o.name}-{i}") for o, i, c in CASES if (o.name, i) != ("dropout", 0)
]


@pytest.mark.parametrize(("op", "case"), OPS_CASES)
def test_op(op: Op, case: Case, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    reason = REFUSED.get(name) or REFUSED.get(op.name)
    if reason is None:
        return TENSORFLOW.op(op, case)
    with pytest.raises(UnsupportedError, match=reason):
        TENSORFLOW.op(op, case)


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    TENSORFLOW.model(name)


@pytest.mark.parametrize("optimizer", UPDATES)
def test_ten_steps(optimizer: str) -> None:
    TENSORFLOW.trains(optimizer)


def test_dropout() -> None:
    TENSORFLOW.dropout()


@pytest.mark.parametrize("name", ["mlp", "residual", "rnn"])
def test_golden(name: str) -> None:
    TENSORFLOW.golden(name)
