"""What the tests share: fixed random numbers, and the default seed put back before each."""

import hypothesis
import numpy as np
import pytest

import trivium as tv

# The same examples on every run, and no deadline: a busy machine is not a failure.
hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=150)
hypothesis.settings.load_profile("quick")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def default_seed() -> None:
    tv.seed(0)
