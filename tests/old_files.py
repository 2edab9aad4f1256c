"""Files as they were written once: models of every kind, and every op in every conformance case.

    python tests/old_files.py v2

writes a new folder beside the old ones, which stay as they are: what was saved then has to be read
for ever, whatever ops and attributes are called by now.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import emit_suite
import trivium as tv
from trivium import nn
from trivium.graph import OPS, Graph
from trivium.interpret import Interpreter

FOLDER = Path(__file__).parent / "files"


class Frozen(nn.Module):
    """A part that is not trained, a dropout, and outputs with names."""

    def __init__(self) -> None:
        self.body, self.head = nn.Linear(5), nn.Linear(2)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Any) -> Any:
        h = self.drop(tv.gelu(self.body(x)))
        return {"logits": self.head(h), "hidden": h}


def _frozen() -> nn.Module:
    model = Frozen()
    model(np.ones((2, 3), "f"))
    for p in model.body.parameters():
        p.requires_grad_(False)
    return model


class Sizes(nn.Module):
    """Open sizes in the middle of the arithmetic, a constant, whole numbers, a double."""

    def forward(self, x: Any, n: Any) -> Any:
        y = tv.sum(x, axis=1) / x.shape[1]
        table = np.arange(3, dtype=np.float64) / 7
        return y, (n * 3).reshape((-1,)), tv.astype(y, "float64") + table


SPECIAL: dict[str, Any] = {
    "frozen": (_frozen, [("float32", ("batch", 3))]),
    "sizes": (Sizes, [("float32", ("batch", "length", 3)), ("int64", ("batch", 2))]),
}


def models() -> dict[str, tuple[nn.Module, list[Any]]]:
    """The models of the emission suite and those above, with what they take."""
    suite = emit_suite.MODELS | emit_suite.WIDER
    made = {name: make()[:2] for name, make in suite.items()}
    return made | {name: (make(), specs) for name, (make, specs) in SPECIAL.items()}


def drawn(spec: Any, rng: np.random.Generator) -> Any:
    """An array for a Spec, every open size 3."""
    dtype, shape = spec
    sizes = [s if isinstance(s, int) else 3 for s in shape]
    return rng.integers(0, 9, sizes) if dtype == "int64" else rng.standard_normal(sizes).astype("f")


def write(folder: Path) -> None:
    """All of them into a new folder."""
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {}
    for name, (model, specs) in models().items():
        graph = tv.trace(model, *(tv.Spec(d, s) for d, s in specs))
        values = emit_suite.shaken(model) if name not in SPECIAL else model.state_dict()
        module = nn.GraphModule(graph, values).eval()
        tv.save(module, folder / f"{name}.tv", verify=False)
        inputs = [drawn(s, np.random.default_rng(3)) for s in specs]
        for i, x in enumerate(inputs):
            arrays[f"{name}/in{i}"] = x
        for i, y in enumerate(ran(module, inputs)):
            arrays[f"{name}/out{i}"] = y
    texts = {}
    for op, i, case in emit_suite.CASES:
        graph = emit_suite.one_node(op, case)
        texts[f"{op.name}-{i}"] = str(graph)
        given = emit_suite.draw(graph, case)
        arrays |= {f"{op.name}-{i}/in{k}": x for k, x in enumerate(given)}
        arrays |= {f"{op.name}-{i}/out{k}": y for k, y in enumerate(computed(graph, given))}
    (folder / "ops.json").write_text(json.dumps(texts, indent=0))
    np.savez_compressed(folder / "numbers.npz", **arrays)


def ran(module: nn.Module, inputs: list[Any]) -> list[Any]:
    """A model's outputs, in evaluation."""
    result = module.eval()(*inputs)
    outputs = result.values() if isinstance(result, dict) else result
    listed = outputs if isinstance(result, (dict, tuple, list)) else [result]
    return [np.asarray(y) for y in listed]


def computed(graph: Graph, arrays: list[Any]) -> list[Any]:
    """The oracle's outputs."""
    return [np.asarray(y) for y in Interpreter(graph, tv.float64)(*arrays)]


if __name__ == "__main__":
    assert OPS
    write(FOLDER / sys.argv[1])
