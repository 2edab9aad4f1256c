"""The bench: what it counts, that every framework builds the same step, what it shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import report, sections
from bench.__main__ import main
from bench.machine import Machine
from bench.peers import PEERS, find
from bench.pool import Worker
from bench.workloads import CONTRACTIONS, RATES, TRAINING

FRAMEWORKS = ["torch", "tensorflow", "jax", "mxnet"]


def test_flops_are_those_of_the_layers() -> None:
    mlp = TRAINING["mlp"]
    assert mlp.parameters == 784 * 128 + 128 + 128 * 10 + 10
    # forward, weight gradients, and the gradient of the second layer's input
    assert mlp.flops == 128 * 2 * (2 * (784 * 128 + 128 * 10) + 128 * 10)
    first, second = (layer for layer in TRAINING["cnn"].layers() if layer.kind == "conv")
    assert first.forward == 2 * 26 * 26 * 32 * 9
    assert second.forward == 2 * 11 * 11 * 64 * 9 * 32
    assert CONTRACTIONS["conv"].flops == 32 * second.forward
    rnn = TRAINING["rnn"]
    assert rnn.parameters == 64 * (8 + 64) + 64 + 64 * 10 + 10


@pytest.mark.parametrize("name", TRAINING)
def test_every_framework_trains_the_same_numbers(name: str) -> None:
    """As many parameters, and a loss that falls from where ours starts."""
    workload = TRAINING[name]
    start = {}
    for peer in ("trivium:numpy", "torch"):
        step = find(peer).make(1, find(peer).variant).step(workload)
        losses = [step.value(step.run(*step.batches[0])) for _ in range(3)]
        assert losses[2] < losses[0]
        start[peer] = losses[0]
        extra = workload.chain[0][1] if name == "rnn" else 0  # torch keeps a second bias
        assert step.parameters() in (workload.parameters, workload.parameters + extra)
    if workload.classes:
        assert max(start.values()) < 2 * min(start.values())


def test_our_step_is_the_one_by_hand() -> None:
    step = find("trivium:native").make(1, "native").step(TRAINING["linreg"])
    x, y = step.batches[0]
    first, second = (step.value(step.run(x, y)) for _ in range(2))
    # A weight w and a bias 0: first = mean (w x - y)^2, which gives w, one of two; then one step.
    a, b, c = (float(np.mean(v)) for v in (x * x, x * y, y * y))
    after = []
    for w in np.roots([a, -2 * b, c - first]):
        d, rate = w * x - y, RATES["sgd"] * 2
        after.append(np.mean(((w - rate * np.mean(d * x)) * x - rate * np.mean(d) - y) ** 2))
    assert min(abs(second - loss) for loss in after) < 1e-4


def test_a_worker_answers_and_a_missing_peer_is_named() -> None:
    worker = Worker("trivium:numpy", "linreg", 1)
    assert worker.info["parameters"] == 2
    assert worker.run(3) > 0
    worker.close()
    absent = Worker("jax", "matmul", 1)
    assert set(absent.info) <= {"unfit", "missing"}
    absent.close()


def test_ratios_are_taken_round_by_round() -> None:
    times = {"ours": [1.0, 2.0, 9.0], "a": [2.0, 4.0, 3.0], "b": [100.0, 100.0, 1.0]}
    assert sections.ratios(times, "ours") == {"median": 0.5, "min": 0.5, "max": 3.0}
    assert sections.ratios({"ours": [1.0]}, "ours") is None


def test_the_limit_is_the_larger_of_arithmetic_and_bytes() -> None:
    machine = Machine("x", 1, 1, peak_one=100.0, peak_all=100.0)
    assert machine.limit(10**9, 8) == pytest.approx(1e9 / 100 / 1e3)
    assert machine.limit(1, 2**28) > 100  # a quarter of a gigabyte takes its time
    assert Machine("x", 1, 1).limit(1, 1) is None


def test_a_run_shows_saves_and_draws(tmp_path: Path) -> None:
    args = ["--only", "linreg", "--peers", "numpy", "--quick", "--threads", "1", "--sections",
            "training", "--engine", "numpy", "--out", str(tmp_path)]  # fmt: skip
    done = CliRunner().invoke(main, args, catch_exceptions=False)
    assert done.exit_code == 0
    assert "linear regression" in done.output
    assert "trivium:numpy" in done.output
    found: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert len(found["training"]["linreg"]["rounds_us"]["trivium:numpy"]) == 3
    assert report.machine(found["machine"]) in done.output


def test_unknown_names_are_refused() -> None:
    done = CliRunner().invoke(main, ["--peers", "caffe"])
    assert done.exit_code == 2
    assert "there are torch" in done.output
    assert set(FRAMEWORKS) <= set(PEERS)
