"""A TensorFlow function, module or SavedModel, and our reading of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trivium.frameworks.tensorflow.layers import named
from trivium.frameworks.tensorflow.modes import joined
from trivium.frameworks.tensorflow.read import read
from trivium.frameworks.tensorflow.run import Foreign, load_tensorflow
from trivium.graph import UnsupportedError
from trivium.graph.check import check
from trivium.nn.module import GraphModule, Module

REFUSED = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile"}
"""What reaches out of the graph: loading a file runs its initializers."""


def opened(model: Any, *examples: Any, signature: str | None = None) -> tuple[Any, Module]:
    """What can be called, with the variables that it holds, and our reading of it."""
    tf, name = load_tensorflow(), _name(model)
    if restored := isinstance(model, (str, Path)):
        model, name = _loaded(tf, Path(model)), Path(model).stem
    function, specs = _callable(tf, model, signature, name)
    function = _by_name(function) if restored else function
    given = examples or specs
    if given is None:
        raise ValueError("a function learns its sizes from data: pass one example of each input")
    variables = dict(_variables(tf.train.TrackableView(model), model, (), set()))
    graph, held = read(function, variables, *given, name=name)
    if "training" in inspect.signature(function).parameters:
        trains = functools.partial(function, training=True)
        other, more = read(trains, variables, *given, name=f"{name}, training=True")
        held |= more
        graph = joined(graph, other, {n: v.numpy() for n, v in held.items()})
    elif graph.updates:
        raise UnsupportedError("a variable that a call assigns", name, "assign where training=True")
    theirs = {n: n for n in held} | named(graph)
    ours = {v.name: held[theirs[v.name]] for v in graph.of_kind("param", "state")}
    values = {n: v.numpy() for n, v in ours.items()}
    return Foreign(function, ours), GraphModule(check(graph), values, theirs)


def _by_name(function: Any) -> Any:
    """A file keeps a dict of outputs in no order: by their names, it is the same every time."""

    @functools.wraps(function)
    def ordered(*inputs: Any, **flags: Any) -> Any:
        found = function(*inputs, **flags)
        return dict(sorted(found.items())) if isinstance(found, Mapping) else found

    return ordered


def _name(model: Any) -> str:
    found = getattr(model, "__name__", type(model).__name__).strip("<>_")
    return found if found.isidentifier() else "model"


def _loaded(tf: Any, path: Path) -> Any:
    """A SavedModel, once what it would do is known: loading it restores numbers, in a graph."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.framework import op_def_registry

    path = path if path.suffix != ".pb" else path.parent
    file = path / "saved_model.pb"
    if not file.is_file():
        raise UnsupportedError(f"{path} without a saved_model.pb", remedy="name the folder that "
                               "tf.saved_model.save wrote")  # fmt: skip
    try:
        proto = SavedModel.FromString(file.read_bytes())
    except Exception as error:
        raise UnsupportedError(f"{file} that is no SavedModel: {error}") from error
    for graph in (m.graph_def for m in proto.meta_graphs):
        for node in (*graph.node, *(n for f in graph.library.function for n in f.node_def)):
            called = {f.signature.name for f in graph.library.function}
            known = node.op in called or op_def_registry.get(node.op) is not None
            if node.op in REFUSED or not known:
                raise UnsupportedError(f"the operator {node.op} in {file}", node.name,
                                       "save the model without it")  # fmt: skip
    return tf.saved_model.load(path)


def _callable(tf: Any, model: Any, signature: str | None, where: str) -> tuple[Any, Any]:
    """What is to be read, and the types that it says it takes."""
    signatures = dict(getattr(model, "signatures", None) or {})
    listed = ", ".join(sorted(signatures)) or "none"
    if signature is None and len(signatures) > 1:
        raise UnsupportedError(f"a SavedModel with the signatures {listed}", where,
                               "say which: signature=...")  # fmt: skip
    if signature is not None and signature not in signatures:
        raise UnsupportedError(f"no signature {signature!r}", where, f"there are: {listed}")
    if signature is None and callable(model):
        own = isinstance(model, tf.__internal__.tracking.AutoTrackable)
        function = model.__call__ if own else model
        return function, getattr(function, "input_signature", None)
    if not signatures:
        what = f"a {type(model).__name__} that cannot be called, without a signature"
        raise UnsupportedError(what, where, "give it a __call__ that is a tf.function")
    concrete = signatures[signature or next(iter(signatures))]
    arguments = concrete.structured_input_signature[1]

    def called(*inputs: Any) -> Any:
        return concrete(**dict(zip(arguments, inputs, strict=True)))

    return called, tuple(arguments.values())


def _variables(view: Any, item: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[Any]:
    """Every variable that hangs on an object, by its path: "layers.0.kernel"."""
    if id(item) in seen:
        return
    seen.add(id(item))
    if hasattr(item, "handle") and hasattr(item, "trainable"):
        yield ".".join(path), item
    elif hasattr(item, "_trackable_children"):
        for name, child in view.children(item).items():
            yield from _variables(view, child, (*path, name), seen)
