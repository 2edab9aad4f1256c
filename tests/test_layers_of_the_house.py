"""Arrows point down only. Read from the source itself, imports inside functions included."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted((SRC / "trivium").rglob("*.py"))

# From the ground up. One line is one storey; rooms of a storey between which there is a wall do not
# import each other, and a room is a file or a folder of this name.
STOREYS: list[list[set[str]]] = [
    [{"dtype", "shape", "atomic", "recent", "framework", "traits"}],
    [{"operators"}],
    [{"graph"}],
    [{"op"}],
    [{"ops"}],
    [{"transforms"}],
    [{"interpret", "demands"}],
    [{"tensor", "nn", "optim", "data", "functional"}, {"frameworks"}, {"native"}],
    [{"engines"}],
    [{"proof"}],
    [{"train", "compare"}],
    [{"convert", "files"}],
    [{"cli", "tour", "__main__", "__init__"}],
]
DOORS = {"frameworks": {"tensor", "nn.module"}}  # through a wall: what importers hand out
STAIRS = {
    ("trivium.nn.habits", "trivium.train.fit"), ("trivium.nn.habits", "trivium.optim"),
    ("trivium.graph.core", "trivium.graph.text"), ("trivium.convert", "trivium.files"),
}  # fmt: skip
"""Arrows up: methods and functions that import late what does their work."""
ROOM = SRC / "trivium" / "frameworks"
SHARED = {path.stem for path in ROOM.glob("*.py")} | {"writing"}  # by all frameworks
FOREIGN = {
    "torch", "torchvision", "timm", "tensorflow", "keras", "jax", "flax", "optax", "mxnet", "onnx",
    "onnxruntime", "openvino", "scipy", "sklearn", "pandas",
}  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(tree: ast.AST, module: str, package: str) -> Iterator[tuple[int, str]]:
    """Every module named by an import below ``tree``, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield node.lineno, inside if inside in MODULES else base


def room(module: str) -> str:
    """The file or folder a module is in: "trivium.ops.conv" in "ops", "trivium" in "__init__"."""
    return [*module.split("."), "__init__"][1]


def place(name: str) -> tuple[int, int] | None:
    for storey, rooms in enumerate(STOREYS):
        for wall, names in enumerate(rooms):
            if name in names:
                return storey, wall
    return None


def complaint(module: str, target: str) -> str | None:
    """What is wrong with ``module`` importing ``target``; None when it may."""
    if target.split(".")[0] != "trivium":
        return None
    here, there = room(module), room(target)
    mine, theirs = place(here), place(there)
    if mine is None or theirs is None:
        return f"{here if mine is None else there} has no storey yet: give it one in this file"
    if theirs[0] > mine[0] and (module, target) not in STAIRS:
        return f"an arrow up from {here} to {there}"
    if here == there == "frameworks":
        own, other = (m.split(".")[2] if m.count(".") > 1 else "__init__" for m in (module, target))
        if other != own and other not in SHARED:
            return f"frameworks/{own} imports frameworks/{other}"
    elif theirs[0] == mine[0] and theirs[1] != mine[1]:
        inside = target.removeprefix("trivium.")
        if not any(inside == door or inside.startswith(door + ".") for door in DOORS.get(here, ())):
            return f"through the wall between {here} and {there}"
    return None


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_arrows_point_down(path: Path) -> None:
    module = module_of(path)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    wrong = [
        f"{path.name}:{line}: {why}"
        for line, target in imports(parsed(path), module, package)
        if (why := complaint(module, target))
    ]
    assert wrong == []


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a round, the first one twice; empty where there are none.

    An import inside a function counts as any other, and so does one for annotations alone.
    """
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_circles() -> None:
    arrows = {}
    for path in FILES:
        module = module_of(path)
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        named = {target for _, target in imports(parsed(path), module, package)}
        arrows[module] = {t for t in named & MODULES if t != module}
    for module, up in STAIRS:
        arrows[module].remove(up)
    assert circle(arrows) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}}) in (
        ["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"],
    )  # fmt: skip
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}}) == []


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported: not those of functions."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            waiting += getattr(node, field, [])
        for handler in getattr(node, "handlers", []):
            waiting += handler.body


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_frameworks_are_imported_late(path: Path) -> None:
    module = module_of(path)
    named = [
        target
        for statement in at_import(parsed(path))
        if isinstance(statement, (ast.Import, ast.ImportFrom))
        for _, target in imports(statement, module, module)
    ]
    assert [name for name in named if name.split(".")[0] in FOREIGN] == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_fits_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize(
    ("module", "target", "why"),
    [
        ("trivium.graph", "trivium.op", "an arrow up from graph to op"),
        ("trivium.ops.conv", "trivium.tensor", "an arrow up"),
        ("trivium.tensor", "trivium", "an arrow up from tensor to __init__"),
        ("trivium.frameworks.torch.read", "trivium.frameworks.keras.read", "torch imports .*keras"),
        ("trivium.frameworks.layer", "trivium.frameworks.keras", "layer imports frameworks/keras"),
        ("trivium.frameworks.torch.read", "trivium.nn.layers", "through the wall"),
        ("trivium.nn.layers", "trivium.frameworks.torch.read", "through the wall"),
        ("trivium.native.codegen", "trivium.tensor", "through the wall"),
        ("trivium.frameworks.torch.run", "trivium.engines", "an arrow up"),
        ("trivium.engines.numpy", "trivium.proof.verify", "an arrow up"),
        ("trivium.attic", "trivium.graph", "attic has no storey"),
    ],
)
def test_the_complaints(module: str, target: str, why: str) -> None:
    assert re.search(why, complaint(module, target) or "")


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("trivium.frameworks.torch.read", "trivium.nn.module"),
        ("trivium.frameworks.torch.read", "trivium.frameworks.layer"),
        ("trivium.frameworks.torch.read", "trivium.frameworks.torch.layers"),
        ("trivium.nn.module", "trivium.tensor"),
        ("trivium.engines", "trivium.frameworks.torch.run"),
        ("trivium.cli", "trivium"), ("trivium.op", "numpy"),
    ],
)  # fmt: skip
def test_what_is_allowed(module: str, target: str) -> None:
    assert complaint(module, target) is None


def test_importing_trivium_imports_no_framework() -> None:
    code = "import sys, trivium; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    env = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "trivium" in loaded
    assert loaded & FOREIGN == set()
