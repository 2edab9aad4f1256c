"""What reading and writing a framework costs in lines, for each op.

    python tests/count_lines.py

A line counts that is neither empty, a comment nor a docstring. A file reads, writes or does both
(layers, names, files: half of it each); what runs models counts for neither.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import trivium as tv
from trivium.graph import OPS
from trivium.op import Op

HERE = Path(tv.__file__).parent / "frameworks"
READING = {"read.py", "open.py", "operators.py", "operations.py", "network.py", "symbol.py",
           "symbolic.py", "special.py", "files.py", "load.py", "params.py", "exported.py",
           "exporting.py", "modes.py", "aten.py", "aten_math.py", "aten_nn.py", "aten_shape.py",
           "sizes.py", "operators_nn.py", "operators_shape.py", "lines.py", "primitives.py",
           "walk.py", "flax.py", "written.py"}  # fmt: skip
BOTH = {"layers.py", "words.py", "ways.py", "layer.py", "arrays.py", "__init__.py"}
RUNNING = {"run.py", "runner.py", "made.py", "watch.py"}


def lines_of(path: Path) -> int:
    """Lines of code."""
    source = path.read_text()
    tree = ast.parse(source)
    prose: set[int] = set()
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
            tokenize.ENDMARKER, tokenize.ENCODING}  # fmt: skip
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skip:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def main() -> None:
    """Print the table."""
    ops = sum(isinstance(op, Op) for op in OPS.values())
    total = {"reading": 0.0, "writing": 0.0}
    for path in sorted(HERE.rglob("*.py")):
        count = lines_of(path)
        if path.name in RUNNING:
            continue
        share = 1.0 if path.name in READING else 0.5 if path.name in BOTH else 0.0
        if path.parent.name == "mxnet" and path.name == "layers.py":
            share = 0.0  # a Symbol has no layers: these are only written
        total["reading"] += share * count
        total["writing"] += (1 - share) * count
    print(f"{ops} ops")
    for word, count in total.items():
        print(f"{word}: {count:.0f} lines, {count / ops:.1f} an op")


if __name__ == "__main__":
    main()
