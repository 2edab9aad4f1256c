"""Models as files: written and read by what their ending says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trivium.convert import as_module, from_mxnet, from_onnx, graph_of, to_keras, to_onnx
from trivium.nn.module import GraphModule, Module


def save(model: Any, path: str | Path, *examples: Any) -> None:
    """Write a model: ``.tv`` (its Graph and numbers, as safetensors), ``.onnx`` or ``.keras``."""
    path = Path(path)
    match path.suffix:
        case ".tv" | ".safetensors":
            from safetensors.numpy import save_file

            module = as_module(model, *examples)
            graph = graph_of(module, *examples)
            arrays = {n: np.ascontiguousarray(a) for n, a in module.state_dict().items()}
            save_file(arrays, str(path), metadata={"trivium": "1", "graph": str(graph)})
        case ".onnx":
            import onnx

            onnx.save(to_onnx(model, *examples), str(path))
        case ".keras":
            to_keras(model, *examples).save(str(path))
        case other:
            raise ValueError(f"no format for the ending {other!r}: .tv, .onnx and .keras are there")


def load(path: str | Path) -> Module:
    """A model from a file; its ending says the format. Nothing in a file is ever executed."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    match path.suffix:
        case ".tv" | ".safetensors":
            return _load_tv(path)
        case ".onnx":
            return from_onnx(path)
        case ".keras":
            from trivium.frameworks.keras.read import read_file

            return read_file(path)
        case ".json":
            return from_mxnet(path)
        case other:
            raise ValueError(
                f"no format for the ending {other!r}: .tv, .onnx, .keras, -symbol.json"
            )


def _load_tv(path: Path) -> Module:
    from safetensors import SafetensorError, safe_open

    from trivium.check import check
    from trivium.text import parse

    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get("graph")
            if text is None:
                raise ValueError(f"{path} holds numbers but no Graph: it is not a Trivium model")
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    graph = check(parse(text))
    if missing := [v.name for v in graph.of_kind("param", "state") if v.name not in values]:
        raise ValueError(f"{path} is damaged: it lacks {missing[0]!r}")
    return GraphModule(graph, values)


__all__ = ["load", "save"]
