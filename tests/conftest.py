"""What the tests share: fixed random numbers, the default seed put back, readers that are wrong."""

from collections.abc import Callable

import hypothesis
import numpy as np
import pytest

import trivium as tv
from trivium.framework import FRAMEWORKS
from trivium.nn.module import GraphModule

# The same examples on every run, and no deadline: a busy machine is not a failure.
hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=150)
hypothesis.settings.load_profile("quick")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def default_seed() -> None:
    tv.seed(0)


Plant = Callable[[str, Callable[[GraphModule], GraphModule]], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """``plant("torch", misread)``: a framework's reader gives what ``misread`` makes of its own."""

    def planted(framework: str, misread: Callable[[GraphModule], GraphModule]) -> None:
        door = FRAMEWORKS[framework].at("open")
        honest = door.read
        monkeypatch.setattr(door, "read", lambda *a, **options: misread(honest(*a, **options)))

    return planted


def op_for(op: str, other: str) -> Callable[[GraphModule], GraphModule]:
    """A misreading: every ``op`` is read as the ``other``."""

    def misread(module: GraphModule) -> GraphModule:
        for node in module.graph.nodes:
            if node.op == op:
                node.op, node.attrs = other, {}
        return module

    return misread
