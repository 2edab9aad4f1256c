"""A Gluon block, or the one that ``export`` wrote to two files, and our reading of it."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from trivium.frameworks.mxnet.read import files, read
from trivium.nn.module import Module


def opened(model: Any, *examples: Any, **options: Any) -> tuple[Any, Module]:
    """The block itself and our reading of it."""
    module = read(model, *examples, **options)
    return (_block(Path(model), module) if isinstance(model, (str, Path)) else model), module


def _block(path: Path, module: Any) -> Any:
    """The files as a block, once they have been read; None where MXNet is not installed.

    MXNet is given copies: it would read the paths that it finds, whatever is in them by then.
    """
    from trivium.frameworks.mxnet.load import load

    try:
        mx = load()
    except ImportError:
        return None
    described, numbers = files(path)
    inputs = [v.name for v in module.graph.of_kind("data")]
    with tempfile.TemporaryDirectory(prefix="trivium-") as folder:
        symbol, params = Path(folder, "model-symbol.json"), Path(folder, "model-0000.params")
        symbol.write_bytes(described.read_bytes())
        params.write_bytes(numbers.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot tell the inputs' dtypes: they say it
            return mx.gluon.SymbolBlock.imports(str(symbol), inputs, str(params))
