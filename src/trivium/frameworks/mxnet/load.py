"""Import MXNet 1.9.1, the last release, beside a NumPy and a Python that are newer than it knows.

MXNet's modules get an import of their own, in which ``numpy`` is a copy of NumPy's namespace with the
names that NumPy 2 dropped. NumPy itself is never touched, not even while MXNet loads.
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
    """The ``mxnet`` module, imported and repaired on the first call."""
    if "mxnet" not in sys.modules:
        # A plain import that failed earlier has left submodules bound to NumPy as it is: start afresh.
        for name in [name for name in sys.modules if name.startswith("mxnet.")]:
            del sys.modules[name]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # stays: MXNet imports more of itself later
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in its docstrings
            mxnet = importlib.import_module("mxnet")
    except ImportError as error:
        raise ImportError(
            f"MXNet cannot be imported: {error}. Install it without its outdated requirements: "
            "pip install --no-deps mxnet==1.9.1 && pip install requests"
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
        raise NotImplementedError(f"mxnet.np.{name}: NumPy {np.__version__} has no such function any more")

    return gone


# What MXNet asks NumPy for and NumPy 2 does not have, with the meaning it had in NumPy 1.
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
vars(_numpy).update(_LENT | vars(np))  # NumPy's own comes first


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """``__import__`` as MXNet's modules see it."""
    if name == "distutils.version":  # deprecated, and gone from Python 3.12
        return SimpleNamespace(LooseVersion=_version, StrictVersion=_version)
    module = builtins.__import__(name, globals, locals, fromlist, level)
    return _numpy if module is np else module


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
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
    """All that MXNet wants of ``scipy.sparse``, without its deprecated submodule ``csr``."""
    matrices = {"csr_matrix": scipy_sparse.csr_matrix, "coo_matrix": scipy_sparse.coo_matrix}
    return SimpleNamespace(csr=SimpleNamespace(**matrices), **matrices)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


class _TextType(type):
    def __call__(cls, value: Any = "") -> str:
        return str(_plain(value))

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, str)


class _Text(metaclass=_TextType):
    """``str`` for MXNet, which hands attributes to its C++ side as text: NumPy 2 prints the shape
    ``(np.int64(3), 4)`` where C++ wants ``(3, 4)``."""
