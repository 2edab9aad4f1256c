"""docs/coverage.md says what is so."""

from __future__ import annotations

from pathlib import Path

import pytest

import coverage_table


def test_coverage_is_up_to_date() -> None:
    for framework in ("torch", "keras", "tensorflow", "mxnet", "jax", "onnx"):
        pytest.importorskip(framework if framework != "mxnet" else "requests")
    written = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text()
    remedy = "run: python tests/coverage_table.py > docs/coverage.md"
    assert written.rstrip("\n") == "\n".join(coverage_table.table()).rstrip("\n"), remedy


def test_no_op_is_without_a_road() -> None:
    """Every op reaches a framework or says why not; the inside of a gradient reaches none."""
    inside = {"conv_input_grad", "conv_weight_grad", "windows", "fold", "random_uniform"}
    nowhere = set()
    for line in coverage_table.table():
        if line.startswith("| ") and not line.startswith("| op"):
            name, _, _, *cells = [c.strip() for c in line.strip("|").split("|")]
            if all(c == "-" for c in cells):
                nowhere.add(name)
    assert nowhere == inside
