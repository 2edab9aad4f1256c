"""Into Trivium from every framework and out to each; source, and proof on the way.

A conversion is verified before it is handed over, unless ``verify=False``: what was read is
compared with the model itself, running in its own framework, and what comes out with both;
``model.report`` is the evidence.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trivium.demands import Demands
from trivium.framework import FRAMEWORKS
from trivium.graph import Graph, UnsupportedError
from trivium.nn.module import Module
from trivium.proof.report import Report, VerificationError
from trivium.proof.sources import (
    READ,
    Source,
    arrays,
    builder_of,
    framework_of,
    graph_of,
    ran_by,
    source_of,
)
from trivium.proof.verify import compare_sides, doubt
from trivium.proof.witness import Side

SOURCES = tuple(f.name for f in FRAMEWORKS.values() if f.source)


# -- in --------------------------------------------------------------------------------------------
def from_torch(module: Any, *examples: Any, training: bool | None = None,
               verify: bool = True) -> Module:  # fmt: skip
    """A torch.nn.Module as a Trivium Module, with its parameter names, trainable.

    It comes in training mode, as every new Module is: ``eval()`` for inference. ``examples`` are
    inputs (tensors or arrays) as ``module`` takes them; every size that the module leaves open
    stays open. ``training`` True or False reads one mode alone, for a module whose two modes differ
    in more than dropout and batch norm. ``verify``: the module is run beside what was read, and
    VerificationError says where they part.
    """
    return _read("torch", module, examples, verify, training=training)


def from_keras(model: Any, *examples: Any, verify: bool = True) -> Module:
    """A Keras 3 model, or a ``.keras`` file; layer paths are kept, kernels are (out, in, ...).

    It comes in training mode: what Keras's ``model(x)`` is, ``eval()`` makes of it. ``examples``
    are wanted by a model that is not built yet.
    """
    return _read("keras", model, examples, verify)


def from_mxnet(block: Any, *examples: Any, verify: bool = True) -> Module:
    """A Gluon block, or the path of a ``-symbol.json`` file, as a Trivium Module."""
    return _read("mxnet", block, examples, verify)


def from_onnx(model: Any, *, verify: bool = True) -> Module:
    """An ONNX ModelProto, or the path of one, as a Trivium Module."""
    return _read("onnx", model, (), verify)


def from_jax(model: Any, *given: Any, training: bool | None = None, verify: bool = True) -> Module:
    """``from_jax(function, params, *examples)`` or, of Flax, ``from_jax(nnx_module, *examples)``.

    ``params`` are nested dicts, lists and tuples of arrays; their paths are the parameters' names,
    as are those in the module ("layers.0.kernel"). An nnx.Param is trained; a BatchStat, or any
    other Variable, is a state, which a call may change. ``training`` reads one mode alone of a
    module whose two modes differ in more than dropout and batch norm.
    Gradients are compared too: a derivative that a function brings along (``jax.custom_vjp``) is no
    part of what can be read. UnsupportedError: a primitive has no meaning here.

    >>> import numpy as np, trivium as tv
    >>> params = {"w": np.ones((3, 2), "f")}
    >>> try:
    ...     model = tv.from_jax(lambda p, x: x @ p["w"], params, np.ones((4, 3), "f"))
    ...     print(sorted(model.state_dict()))
    ... except ImportError:
    ...     print(["w"])
    ['w']
    """
    if not FRAMEWORKS["jax"].owns(model):
        if not callable(model) or not given:
            raise TypeError("from_jax(function, params, *examples) or from_jax(module, *examples)")
        model, given = (model, given[0]), given[1:]
    if any(str(getattr(x, "dtype", "")).startswith("key<") for x in given):
        what, remedy = "a key of random numbers as an example", "pass what is drawn as an input"
        raise UnsupportedError(what, remedy=f"{remedy}; in Flax, nnx.Dropout is carried")
    return _read("jax", model, given, verify, gradients=True, training=training)


def from_tensorflow(function: Any, *examples: Any, signature: str | None = None,
                    verify: bool = True) -> Module:  # fmt: skip
    """A tf.function, a callable tf.Module or a SavedModel's folder as a Trivium Module, trainable.

    ``examples`` are inputs, one for each argument; a function with an ``input_signature`` wants
    none. ``signature`` names one of a SavedModel's; without it its ``__call__`` is read, or the
    only signature it has. Variables keep their paths as names. UnsupportedError: an operator has
    no meaning here. Gradients are compared too, as in :func:`from_jax`.

    >>> import numpy as np, trivium as tv
    >>> try:
    ...     import tensorflow as tf
    ...     w = tf.Variable(np.ones((3, 2), "f"), name="w")
    ...     model = tv.from_tensorflow(lambda x: tf.nn.relu(x @ w), np.ones((4, 3), "f"))
    ...     print(sorted(model.state_dict()))
    ... except ImportError:
    ...     print(["w"])
    ['w']
    """
    return _read("tensorflow", function, examples, verify, gradients=True, signature=signature)


def _read(
    framework: str, model: Any, examples: Sequence[Any], check: bool, gradients: bool = False,
    **options: Any,
) -> Module:  # fmt: skip
    source = _source(model, *examples, framework=framework, **options)
    _fits(source.graph, source.examples)
    report = Report(source.name, "our reading", ran={source.name: READ})
    if check and source.itself is not None:
        report = _believed(source.side(), source, gradients)
    source.module.report = report
    return source.module


def _is_array(example: Any) -> bool:
    """Is it an array, a Spec or a pair that means one, or numbers in nested lists?"""
    if isinstance(example, (list, tuple)):
        spec = len(example) == 2 and isinstance(example[0], str)
        return spec or all(_is_array(x) and not hasattr(x, "shape") for x in example)
    return hasattr(example, "shape") or isinstance(example, (bool, int, float))


def _no_array(place: int, example: Any) -> UnsupportedError:
    kind = type(example).__name__
    remedy = "examples are arrays or tensors, one for each input"
    if isinstance(example, (Mapping, list, tuple)):
        remedy += (
            f": from_torch(model, a, b); a model that takes them as one {kind} is wrapped in one "
            "whose forward takes each by itself"
        )
    return UnsupportedError(f"an example (number {place}) that is a {kind}", remedy=remedy)


def _fits(graph: Graph, examples: Sequence[Any]) -> None:
    """Raise where the examples hold numbers that the model cannot take: a label, an index."""
    data, given = graph.of_kind("data"), arrays(examples)
    demands = Demands(graph, [v.name for v in data])
    if demands.of_numbers and len(given) == len(data):
        demands.numbers([np.asarray(a, v.dtype.numpy) for a, v in zip(given, data, strict=True)])


def _believed(side: Side, source: Source, gradients: bool = False) -> Report:
    report = doubt(side, arrays(source.examples), gradients, source.training)
    if not report.ok:
        raise VerificationError(report)
    return report


def _source(model: Any, *examples: Any, **options: Any) -> Source:
    """A model, or the file at a path, read; the model itself is kept to be run."""
    for i, x in enumerate(examples):
        if not _is_array(x):
            raise _no_array(i, x)
    if isinstance(model, (str, Path)) and framework_of(model) == "trivium":
        from trivium.files import load  # our own format: what is read is what runs

        source = source_of(load(model), *examples, **options)
        source.name = Path(model).name
        return source
    return source_of(model, *examples, **options)


def as_module(model: Any, *examples: Any, verify: bool = False) -> Module:
    """Any model, or file, as a Trivium Module: read, and run only if it is to be verified."""
    source = _source(model, *examples)
    if verify and source.itself is not None:
        source.module.report = _believed(source.side(), source)
    return source.module


def verify(a: Any, b: Any, *inputs: Any, gradients: bool = True, steps: int = 3) -> Report:
    """Are two models, or files, of any frameworks the same? Outputs, gradients and steps say.

    Each is run in its own framework and compared with our reading of it, then the readings with
    each other, so that the order of the two does not matter. ``inputs`` are examples; both take
    them. Parameters are matched by name. The report is true when every comparison held;
    ``report.table()`` shows it.
    """
    first, second = _source(a, *inputs), _source(b, *inputs)
    if first.name == second.name:
        first.name, second.name = f"{first.name} (a)", f"{second.name} (b)"
    return compare_sides(first.side(), second.side(), arrays(first.examples), gradients, steps)


# -- out -------------------------------------------------------------------------------------------
def emit(model: Any, target: str, *examples: Any) -> str:
    """The source of a model in a framework: "torch", "keras", "tensorflow", "mxnet" or "jax"."""
    if target not in SOURCES:
        raise ValueError(f"no source for {target!r}; there is {', '.join(SOURCES)}")
    graph = graph_of(as_module(model, *examples), *examples)
    source: str = FRAMEWORKS[target].at("emit").emit(graph).source
    try:
        compile(source, target, "exec")
    except SyntaxError as error:
        what = f"{target} source that Python cannot read, line {error.lineno}: {error.text}"
        raise UnsupportedError(what, graph.name, "report it, with the model") from error
    return source


def _carry(
    model: Any, target: str, examples: Sequence[Any], check: bool
) -> tuple[Any, Report | None]:
    source = _source(model, *examples)
    side = source.side()
    _fits(side.graph, source.examples)
    try:
        with _in_words(target):
            native, runner = FRAMEWORKS[target].built(side.graph, side.values)
    except Exception:
        if check:  # what cannot be written may have been misread: that comes first
            _believed(side, source, gradients=True)
        raise
    report = None
    if check:
        rebuild = builder_of(target, side.values)
        there = Side(_other(target, side), side.graph, side.values, runner, ran_by(target),
                     rebuild=rebuild)  # fmt: skip
        report = compare_sides(side, there, arrays(source.examples))
        if not report.ok:
            raise VerificationError(report)
    return native, report


@contextlib.contextmanager
def _in_words(target: str) -> Iterator[None]:
    """What a framework says of a model that it will not build, as a refusal."""
    try:
        yield
    except (UnsupportedError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(last).is_relative_to(Path(__file__).parent):
            raise  # our own
        line = str(error).strip().partition("\n")[0]
        raise UnsupportedError(
            f"{target} does not build what this model says: {type(error).__name__}: {line}",
            remedy="the source is tv.emit(model, target); another dtype often is what it lacks",
        ) from error


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
    source = _source(model, *examples)
    side = source.side()
    _fits(side.graph, source.examples)
    proto = FRAMEWORKS["onnx"].at("emit").write(side.graph, side.values, side.graph.name)
    if verify:
        with _in_words("onnx"):
            runner = FRAMEWORKS["onnx"].at("run").OnnxRunner(proto)
        there = Side(_other("onnx", side), side.graph, side.values, runner, ran_by("onnx"), False)
        report = compare_sides(side, there, arrays(source.examples), gradients=False)
        if not report.ok:
            raise VerificationError(report)
    return proto


def _other(target: str, side: Side) -> str:
    return target if side.name != target else f"{target} (carried)"


OUT: dict[str, Callable[..., Any]] = {name: globals()[f"to_{name}"] for name in FRAMEWORKS}


__all__ = [
    "OUT", "SOURCES", "as_module", "emit", "framework_of", "from_jax", "from_keras", "from_mxnet",
    "from_onnx", "from_tensorflow", "from_torch", "graph_of", "to_jax", "to_keras",
    "to_mxnet", "to_onnx", "to_tensorflow", "to_torch", "verify",
]  # fmt: skip
