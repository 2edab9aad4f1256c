"""What the documentation shows is what the library does."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_inside_runs_as_printed() -> None:
    failed, tried = doctest.testfile(
        str(ROOT / "docs" / "inside.md"),
        module_relative=False,
        optionflags=doctest.IGNORE_EXCEPTION_DETAIL,
    )
    assert tried > 25
    assert failed == 0


def test_the_one_minute_example_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text()
    (source,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(source, "README.md", "exec"), {})
