"""Import MXNet 1.9.1, the last release, beside a NumPy and a Python that are newer than it.

MXNet's modules get an import statement of their own, for which ``numpy`` is NumPy's namespace and
the names that NumPy 2 dropped. NumPy itself stays as it is, even while MXNet loads.

What MXNet 1.9.1 still cannot do here:

- ``mxnet.recordio.pack`` with an array as label, and ``pack_img`` (``ndarray.tostring`` is gone);
- ``mxnet.onnx.export_model`` (``onnx.mapping`` is gone);
- ``mxnet.np.mirr``, ``npv``, ``pmt``, ``ppmt``, ``pv`` and ``rate`` (gone from NumPy; they say so).

What it never could, with the NumPy of its day either: ``np.asarray`` of an ``mx.nd.NDArray`` (use
``asnumpy``), arithmetic between a NumPy array and an NDArray, a dense layer in float16 on a CPU.
"""

import builtins
import importlib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


def load() -> ModuleType:
    """The ``mxnet`` module, imported and repaired when first asked for."""
    if "mxnet" not in sys.modules:
        # A plain import that failed has left submodules behind, and they hold the plain NumPy.
        for name in [name for name in sys.modules if name.startswith("mxnet.")]:
            del sys.modules[name]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # it stays, for the submodules that are imported later
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings hold invalid escapes
            mxnet = importlib.import_module("mxnet")
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is missing
        raise ImportError(
            f"MXNet cannot be imported: {error}. It is installed without its own requirements, "
            "which ask for an old NumPy: pip install --no-deps mxnet==1.9.1; pip install requests"
        ) from error
    for name in ("mxnet._ctypes.ndarray", "mxnet._ctypes.symbol", "mxnet.symbol.symbol"):
        vars(sys.modules[name])["str"] = _Text
    for name in ("mxnet.ndarray.utils", "mxnet.ndarray.sparse"):
        scope = vars(sys.modules[name])
        if isinstance(scope["spsp"], ModuleType):  # None where SciPy is not installed
            scope["spsp"] = _sparse(scope["spsp"])
    return mxnet


def _gone(name: str) -> Any:
    def gone(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"mxnet.np.{name}: NumPy {np.__version__} has no {name} to call")

    return gone


# What MXNet asks of NumPy and NumPy 2 does not have, with the meaning it had in NumPy 1.
_LENT: dict[str, Any] = {
    "PZERO": 0.0,
    "NZERO": -0.0,
    "PINF": np.inf,
    "NINF": -np.inf,
    "Inf": np.inf,
    "NAN": np.nan,
    "NaN": np.nan,
    "int": int,
    "compat": SimpleNamespace(basestring=str),
    "alltrue": np.all,
    "sometrue": np.any,
    "product": np.prod,
    "round_": np.round,
    "in1d": lambda a, *args, **kwargs: np.isin(np.ravel(a), *args, **kwargs),
    "msort": lambda a: np.sort(a, axis=0),
    "trapz": getattr(np, "trapezoid", None),
    **{name: _gone(name) for name in ("mirr", "npv", "pmt", "ppmt", "pv", "rate")},
}

_numpy = ModuleType("numpy")
vars(_numpy).update(_LENT | vars(np))  # where NumPy has a name, its own counts


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """``__import__`` for MXNet's modules."""
    if name == "distutils.version":  # gone from Python 3.12; MXNet compares NumPy's version with it
        return SimpleNamespace(LooseVersion=_version, StrictVersion=_version)
    module = builtins.__import__(name, globals, locals, fromlist, level)
    return _numpy if module is np else module


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        # Python looks for __import__ where a module keeps its builtins.
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": _import}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "mxnet":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


def _sparse(scipy_sparse: ModuleType) -> SimpleNamespace:
    """What MXNet uses of ``scipy.sparse``, without its deprecated submodule ``csr``."""
    matrices = {"csr_matrix": scipy_sparse.csr_matrix, "coo_matrix": scipy_sparse.coo_matrix}
    return SimpleNamespace(csr=SimpleNamespace(**matrices), **matrices)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


class _TextType(type):
    def __call__(cls, value: Any = "") -> str:
        return str(_plain(value))

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, str)


class _Text(metaclass=_TextType):
    """``str`` where MXNet writes attributes for its C++ side, which reads the shape ``(3, 4)``.

    NumPy 2 prints ``(np.int64(3), 4)``.
    """
