"""Models as files: written and read by what their ending says."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trivium.atomic import writable, write
from trivium.convert import (
    as_module,
    from_keras,
    from_mxnet,
    from_onnx,
    graph_of,
    to_keras,
    to_onnx,
)
from trivium.dtype import as_dtype
from trivium.graph import Graph
from trivium.nn.module import GraphModule, Module

_NESTED: dict[Any, Any] = {"tuple": tuple, "list": list}
_PLAIN = '{"outputs": null, "classes": {}, "sizes": {}}'


def save(model: Any, path: str | Path, *examples: Any, verify: bool = True) -> None:
    """Write a model: ``.tv`` (its Graph and numbers, as safetensors), ``.onnx`` or ``.keras``.

    ``verify=False`` leaves out the comparison that comes before ``.onnx`` and ``.keras``.
    The file is there whole or not at all: what was there before stays until then. OSError: the disk
    is full, or nobody may write there.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(
            f"no format for the ending {path.suffix!r}: {', '.join(ENDINGS)} are there"
        )
    writable(path)
    write(path, _CONTENT[path.suffix](model, examples, verify))


def _tv(model: Any, examples: Sequence[Any], verify: bool) -> bytes:
    from safetensors.numpy import save

    module = as_module(model, *examples, verify=verify)
    graph = graph_of(module, *examples)
    arrays = {n: np.ascontiguousarray(a) for n, a in module.state_dict().items()}
    said = {"graph": str(graph), "said": json.dumps(_said(graph))}
    digest = {"sha256": _digest(arrays, said)}
    return save(arrays, metadata={"trivium": "1"} | said | digest)  # type: ignore[no-any-return]


def _digest(arrays: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """Of the numbers and of what the file says: a flipped bit is seen."""
    whole = hashlib.sha256()
    for text in said.values():
        whole.update(text.encode())
    for name in sorted(arrays):
        whole.update(name.encode())
        flat: Any = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        whole.update(flat)
    return whole.hexdigest()


def _said(graph: Graph) -> dict[str, Any]:
    """What a Graph says beside its text: how its outputs are nested, its classes and sizes."""
    nested = graph.structure
    outputs = list(nested) if isinstance(nested, tuple) else nested and nested.__name__
    return {"outputs": outputs, "classes": graph.classes, "sizes": graph.sizes}


def _take_said(graph: Graph, said: Any, path: Path) -> None:
    """The same from a file; ValueError where it does not fit the Graph."""
    outputs, classes, sizes = (said.get(k) for k in ("outputs", "classes", "sizes"))
    named = isinstance(outputs, list) and all(isinstance(n, str) for n in outputs)
    fits = len(set(outputs)) == len(graph.outputs) if named else outputs in (*_NESTED, None)
    words = isinstance(classes, dict) and all(isinstance(c, str) for c in classes.values())
    counts = isinstance(sizes, dict) and all(
        n in graph.dims() and type(s) is int and s > 0 for n, s in sizes.items()
    )
    if not (fits and words and counts):
        raise ValueError(f"{path} is damaged: what it says of its outputs is not the Graph's")
    graph.structure = tuple(outputs) if named else _NESTED.get(outputs)
    graph.classes, graph.sizes = classes, sizes


def _onnx(model: Any, examples: Sequence[Any], verify: bool) -> bytes:
    return to_onnx(model, *examples, verify=verify).SerializeToString()  # type: ignore[no-any-return]


def _keras(model: Any, examples: Sequence[Any], verify: bool) -> bytes:
    with tempfile.TemporaryDirectory(prefix="trivium-") as folder:  # Keras writes to a path only
        from trivium.frameworks.keras.run import keep

        file = Path(folder, "model.keras")
        keep(to_keras(model, *examples, verify=verify), str(file))
        return file.read_bytes()


_CONTENT: dict[str, Callable[..., bytes]] = {
    ".tv": _tv, ".safetensors": _tv, ".onnx": _onnx, ".keras": _keras,
}  # fmt: skip


ENDINGS = tuple(_CONTENT)
"""What can be written, by ending."""


def load(path: str | Path) -> Module:
    """A model from a file; its ending says the format. Nothing in a file is ever executed."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, a model is a file")
    match path.suffix:
        case ".tv" | ".safetensors":
            return _load_tv(path)
        case ".onnx":
            return from_onnx(path, verify=False)
        case ".keras":
            return from_keras(path, verify=False)
        case ".json":
            return from_mxnet(path, verify=False)
        case other:
            raise ValueError(
                f"no format for the ending {other!r}: .tv, .onnx, .keras, -symbol.json"
            )


def _load_tv(path: Path) -> Module:
    from safetensors import SafetensorError, safe_open

    from trivium.graph.check import check
    from trivium.graph.text import parse

    try:
        with safe_open(str(path), framework="numpy") as file:
            about = file.metadata() or {}
            text = about.get("graph")
            if text is None:
                raise ValueError(f"{path} holds numbers but no Graph: it is not a Trivium model")
            said = json.loads(about.get("said", _PLAIN))
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if not isinstance(said, dict):
                raise ValueError(f"{path} is damaged: what it says of itself is no table")
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    whole = _digest(values, {k: about[k] for k in ("graph", "said") if k in about})
    if about.get("sha256", whole) != whole:  # the first files had none
        raise ValueError(f"{path} is damaged: its numbers are not those that were saved")
    graph = check(parse(text))
    _take_said(graph, said, path)
    if missing := [v.name for v in graph.of_kind("param", "state") if v.name not in values]:
        raise ValueError(f"{path} is damaged: it lacks {missing[0]!r}")
    for v in graph.of_kind("param", "state"):
        if (as_dtype(values[v.name].dtype), values[v.name].shape) != v.type:
            raise ValueError(f"{path} is damaged: its {v.name!r} is not the Graph's {v.type}")
    return GraphModule(graph, values)


__all__ = ["ENDINGS", "load", "save"]
