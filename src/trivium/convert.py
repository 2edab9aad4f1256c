"""Into Trivium from every framework and out to each; source, files, and proof on the way.

A conversion is verified before it is handed over, unless ``verify=False``: the model that comes
back was compared with the one that went in, and ``model.report`` is the evidence.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trivium.graph import Graph, UnsupportedError
from trivium.nn.module import GraphModule, Module
from trivium.nn.opening import open_trace
from trivium.report import Report, VerificationError
from trivium.tensor import Spec
from trivium.verify import GraphRunner, Side, compare_sides

TARGETS = ("torch", "keras", "tensorflow", "mxnet", "jax", "onnx")


def _at(framework: str, part: str) -> Any:
    return importlib.import_module(f"trivium.frameworks.{framework}.{part}")


# -- in --------------------------------------------------------------------------------------------
def from_torch(module: Any, *examples: Any, training: bool | None = None) -> Module:
    """A torch.nn.Module as a Trivium Module, with its parameter names, trainable.

    ``examples`` are inputs (tensors or arrays) as ``module`` takes them; every size that the module
    leaves open stays open. ``training`` reads one mode alone, where the two differ in more than
    dropout and batch norm.
    """
    return _at("torch", "read").read(module, *examples, training=training)  # type: ignore[no-any-return]


def from_keras(model: Any) -> Module:
    """A Keras 3 model as a Trivium Module; layer paths are kept, kernels are (out, in, ...)."""
    return _at("keras", "read").read(model)  # type: ignore[no-any-return]


def from_mxnet(block: Any, *examples: Any) -> Module:
    """A Gluon block, or the path of a ``-symbol.json`` file, as a Trivium Module."""
    return _at("mxnet", "read").read(block, *examples)  # type: ignore[no-any-return]


def from_onnx(model: Any) -> Module:
    """An ONNX ModelProto, or the path of one, as a Trivium Module."""
    return _at("onnx", "read").read(model)  # type: ignore[no-any-return]


def _is(model: Any, module: str, name: str) -> bool:
    """isinstance without importing a framework that is not there yet."""
    found = sys.modules.get(module)
    cls: Any = found
    for part in name.split("."):
        cls = getattr(cls, part, None)
    return isinstance(cls, type) and isinstance(model, cls)


def framework_of(model: Any) -> str:
    """Which framework a model belongs to: "trivium", "torch", "keras", "mxnet" or "onnx"."""
    if isinstance(model, Module):
        return "trivium"
    for framework, module, name in (
        ("torch", "torch", "nn.Module"), ("keras", "keras", "Model"),
        ("mxnet", "mxnet.gluon", "Block"), ("onnx", "onnx", "ModelProto"),
    ):  # fmt: skip
        if _is(model, module, name):
            return framework
    raise UnsupportedError(
        f"a {type(model).__name__} is no model Trivium knows",
        remedy="it reads trivium, torch, keras, gluon and ONNX models",
    )


def as_module(model: Any, *examples: Any) -> Module:
    """Any model as a Trivium Module."""
    match framework_of(model):
        case "torch":
            return from_torch(model, *examples)
        case "keras":
            return from_keras(model)
        case "mxnet":
            return from_mxnet(model, *examples)
        case "onnx":
            return from_onnx(model)
    return model  # type: ignore[no-any-return]


# -- the Graph of a model, and its sides -----------------------------------------------------------
def graph_of(model: Module, *examples: Any) -> Graph:
    """A module's Graph, its mode open, and every size that the module leaves open.

    A model that has not seen data yet needs ``examples`` (arrays or Specs).
    """
    if isinstance(model, GraphModule):
        return model.graph
    if not examples:
        raise ValueError(
            "this model learns its sizes from data: pass an example input or a tv.Spec"
        )
    return open_trace(model, *examples, name=type(model).__name__)


def side_of(model: Any, *examples: Any) -> Side:
    """A model of any framework, ready to be compared."""
    framework = framework_of(model)
    module = as_module(model, *examples)
    graph = graph_of(module, *examples)
    values = module.state_dict()
    if framework == "trivium":
        return Side(
            "trivium",
            graph,
            values,
            GraphRunner(graph, values),
            rebuild=lambda g: GraphRunner(g, values),
        )
    if framework == "onnx":
        from trivium.engines.onnxruntime import OnnxRunner

        return Side("onnx", graph, values, OnnxRunner(model), differentiable=False)
    runner = _at(framework, "run").foreign(model, module)
    return Side(framework, graph, values, runner, rebuild=_builder(framework, values))


def verify(a: Any, b: Any, *inputs: Any, gradients: bool = True, steps: int = 3) -> Report:
    """Are two models, of any frameworks, the same? Outputs, gradients and training steps say.

    ``inputs`` are examples; both take them. Parameters are matched by name. The report is true when
    every comparison held; ``report.table()`` shows it.
    """
    return compare_sides(
        side_of(a, *inputs), side_of(b, *inputs), _arrays(inputs), gradients, steps
    )


def _arrays(examples: Sequence[Any]) -> list[Any]:
    return [
        x.detach().cpu().numpy() if hasattr(x, "detach") and hasattr(x, "cpu")
        else x.asnumpy() if hasattr(x, "asnumpy") else np.asarray(x)
        for x in examples
        if not isinstance(x, Spec) and not (isinstance(x, tuple) and x and isinstance(x[0], str))
    ]  # fmt: skip


# -- out -------------------------------------------------------------------------------------------
def emit(model: Any, target: str, *examples: Any) -> str:
    """The source of a model in a framework: "torch", "keras", "tensorflow", "mxnet" or "jax"."""
    if target not in TARGETS or target == "onnx":
        raise ValueError(f"no source for {target!r}; there is {', '.join(TARGETS[:-1])}")
    graph = graph_of(as_module(model, *examples), *examples)
    source: str = _at(target, "emit").emit(graph).source
    return source


def _builder(framework: str, values: Any) -> Callable[[Graph], Any]:
    engine = _at(framework, "run")
    runner = getattr(engine, f"{framework.capitalize()}Runner")
    return lambda graph: runner(*engine.build(graph, values))


def _carry(
    model: Any, target: str, examples: Sequence[Any], check: bool
) -> tuple[Any, Report | None]:
    engine = _at(target, "run")
    side = side_of(model, *examples)
    native, weights = engine.build(side.graph, side.values)
    cls = getattr(engine, f"{target.capitalize()}Runner")
    runner = cls(native, weights)
    report = None
    if check:
        rebuild = _builder(target, side.values)
        there = Side(target, side.graph, side.values, runner, rebuild=rebuild)
        report = compare_sides(side, there, _arrays(examples))
        if not report.ok:
            raise VerificationError(report)
    return native, report


def _attach(native: Any, report: Report | None) -> Any:
    try:
        object.__setattr__(native, "report", report)
    except (AttributeError, TypeError):
        native.report = report
    return native


def to_torch(model: Any, *examples: Any, verify: bool = True) -> Any:
    """The model as a torch.nn.Module: ``.source`` is its source, ``.report`` the evidence."""
    return _attach(*_carry(model, "torch", examples, verify))


def to_keras(model: Any, *examples: Any, verify: bool = True) -> Any:
    """The model as a Keras model."""
    return _attach(*_carry(model, "keras", examples, verify))


def to_tensorflow(model: Any, *examples: Any, verify: bool = True) -> Any:
    """The model as a tf.Module."""
    return _attach(*_carry(model, "tensorflow", examples, verify))


def to_mxnet(model: Any, *examples: Any, verify: bool = True) -> Any:
    """The model as a Gluon HybridBlock."""
    return _attach(*_carry(model, "mxnet", examples, verify))


def to_jax(model: Any, *examples: Any, verify: bool = True) -> Any:
    """The model as ``(fn, params)``: a pure function of nested parameters and the inputs.

    ``fn.source`` is its source, ``fn.report`` the evidence.
    """
    native, report = _carry(model, "jax", examples, verify)
    native.function.source, native.function.report = native.source, report
    return native.function, native.params


def to_onnx(model: Any, *examples: Any, verify: bool = True) -> Any:
    """The model, in inference, as an ONNX ModelProto; verified in ONNX Runtime."""
    side = side_of(model, *examples)
    proto = _at("onnx", "emit").write(side.graph, side.values, side.graph.name)
    if verify:
        from trivium.engines.onnxruntime import OnnxRunner

        there = Side("onnx", side.graph, side.values, OnnxRunner(proto), differentiable=False)
        report = compare_sides(side, there, _arrays(examples), gradients=False)
        if not report.ok:
            raise VerificationError(report)
    return proto


OUT: dict[str, Callable[..., Any]] = {
    "torch": to_torch, "keras": to_keras, "tensorflow": to_tensorflow, "mxnet": to_mxnet,
    "jax": to_jax, "onnx": to_onnx,
}  # fmt: skip


# -- files -----------------------------------------------------------------------------------------
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
            return _at("keras", "read").read_file(path)  # type: ignore[no-any-return]
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


__all__ = [
    "OUT", "as_module", "emit", "framework_of", "from_keras", "from_mxnet", "from_onnx",
    "from_torch", "graph_of", "load", "save", "side_of", "to_jax", "to_keras", "to_mxnet",
    "to_onnx",
    "to_tensorflow", "to_torch", "verify",
]  # fmt: skip
