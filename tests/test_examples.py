"""Five models, three habits, the same numbers; and the ten-step promise on every engine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
EXAMPLES = ["linear_regression", "logistic_regression", "mlp", "cnn", "rnn"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_three_habits_give_the_same_numbers(name: str) -> None:
    habits, example = importlib.import_module("habits"), importlib.import_module(name)
    x, y = example.data()
    settings = example.settings | {"epochs": 1}
    runs = {
        habit.__name__: habit(example.make, example.loss, x, y, **settings)
        for habit in (habits.pytorch, habits.keras, habits.tf1)
    }
    first = np.array(runs["pytorch"])
    assert len(first) == -(-len(x) // settings["batch_size"])
    assert first[-1] < 0.8 * first[0]  # it learns
    for other in ("keras", "tf1"):
        np.testing.assert_allclose(runs[other], first, rtol=2e-5, atol=1e-6, err_msg=other)
    # The compiled step and the session run the same Graph: not only close.
    assert runs["keras"] == runs["tf1"]
