"""PyTorch source and engine: what is emitted means what the Graph means."""

import pytest

from emit_suite import CASES, MODELS, UPDATES, Bound
from trivium.graph import UnsupportedError
from trivium.op import Case, Op

pytest.importorskip("torch")

from trivium.frameworks.torch.emit import emit
from trivium.frameworks.torch.run import TorchRunner, TorchTrainer, build

TORCH = Bound("torch", emit, build, TorchRunner, TorchTrainer)

REFUSED = {
    "conv_input_grad": "derives its own",
    "conv_weight_grad": "derives its own",
    "windows": "the inside of a pool",
    "fold": "the inside of a pool",
    "random_uniform": "no exact form",
    "take_grad": "derives its own",
    "cond": "a branch in a module's source",
    "rnn": "no exact form of (rnn|scan)",  # without parameters of its own; nn.RNN is a layer
    "pad-2": "between elements",
}
OPS_CASES = [
    pytest.param(o, c, id=f"{o.name}-{i}") for o, i, c in CASES if (o.name, i) != ("dropout", 0)
]


@pytest.mark.parametrize(("op", "case"), OPS_CASES)
def test_op(op: Op, case: Case, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    reason = REFUSED.get(name) or REFUSED.get(op.name)
    if reason is None:
        return TORCH.op(op, case)
    with pytest.raises(UnsupportedError, match=reason):
        TORCH.op(op, case)


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    TORCH.model(name)


@pytest.mark.parametrize("optimizer", UPDATES)
def test_ten_steps(optimizer: str) -> None:
    TORCH.trains(optimizer)


def test_dropout() -> None:
    TORCH.dropout()


@pytest.mark.parametrize("name", ["mlp", "residual", "rnn"])
def test_golden(name: str) -> None:
    TORCH.golden(name)
