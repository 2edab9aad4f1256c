"""Flax's nnx modules: pure functions of the numbers they hold, by their paths, in either mode."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trivium.frameworks.jax.primitives import primitive
from trivium.frameworks.jax.read import traced_graph
from trivium.frameworks.jax.run import JaxModel, JaxRunner, load_jax, to_array
from trivium.frameworks.layer import Weight
from trivium.graph import MODE, OPS, Graph, UnsupportedError, Value
from trivium.graph.check import check
from trivium.nn.module import GraphModule, fresh_salt
from trivium.transforms.replay import prune, replay


class Taken:
    """An nnx module taken apart: ``taken(training, values, *inputs)`` -> (outputs, new values).

    ``values`` are its numbers by path ("layers.0.kernel"); ``trained`` says which are nnx.Param.
    Batch statistics and other Variables are not trained. Keys of random numbers stay inside.
    ``mode`` True or False is the only one that it is ever in.
    """

    def __init__(self, module: Any, mode: bool | None = None):
        from flax import nnx

        self.nnx, self.name, self.mode = nnx, type(module).__name__, mode
        self.definition, self.chance, held = nnx.split(module, nnx.RngState, ...)
        self.leaves = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(held)}
        self.arrays = {n: np.asarray(_number(v)) for n, (_, v) in self.leaves.items()}
        self.trained = {n: isinstance(v, nnx.Param) for n, (_, v) in self.leaves.items()}

    def __call__(self, training: bool, values: Mapping[str, Any], *inputs: Any) -> Any:
        nnx = self.nnx
        held = nnx.from_flat_state(
            [(path, v.replace(values[n]) if hasattr(v, "replace") else values[n])
             for n, (path, v) in self.leaves.items()]
        )  # fmt: skip
        chance = load_jax().tree_util.tree_map(lambda key: key, self.chance)  # it is used up
        module = nnx.merge(self.definition, chance, held)
        (module.train if _said(self.mode, training) else module.eval)()
        outputs = module(*inputs)
        after = dict(nnx.to_flat_state(nnx.state(module)))
        return outputs, {n: _number(after[path]) for n, (path, _) in self.leaves.items()}

    def runner(self) -> FlaxRunner:
        """Who runs it."""
        return FlaxRunner(self)


def _number(variable: Any) -> Any:
    return variable.get_value() if hasattr(variable, "get_value") else variable


# -- layers that are one thing while training and another in inference -----------------------------
@contextlib.contextmanager
def _calling(**methods: Callable[..., Any]) -> Iterator[None]:
    """Calls of these layers go through these functions, which get the layer's own after it."""
    from flax import nnx

    classes = {name: getattr(nnx, name) for name in methods}
    before = {name: cls.__call__ for name, cls in classes.items()}
    try:
        for name, cls in classes.items():
            cls.__call__ = functools.partialmethod(_passed, methods[name], before[name])
        yield
    finally:
        for name, cls in classes.items():
            cls.__call__ = before[name]


def _passed(layer: Any, method: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    return method(layer, functools.partial(own, layer), *args, **kwargs)


def _said(given: Any, held: Any) -> Any:
    """What is given, else what is held: as Flax asks for a flag."""
    return held if given is None else given


@functools.cache
def _marks() -> tuple[Any, Any]:
    """A primitive for each: whatever transforms it has no rule for it, and so it is refused."""
    load_jax()
    from jax.extend.core import Primitive

    norm, dropout = Primitive("flax_batch_norm"), Primitive("flax_dropout")
    norm.multiple_results = True
    norm.def_abstract_eval(lambda x, mean, var, *rest, **_: [x, mean, var])
    dropout.def_abstract_eval(lambda x, **_: x)
    return norm, dropout


def _norm(
    layer: Any, own: Any, x: Any, use_running_average: Any = None, *, mask: Any = None
) -> Any:
    """nnx.BatchNorm, by name; one with a mask, or over devices, is what is inside."""
    still = _said(use_running_average, layer.use_running_average)
    parts = [v for v in (layer.scale, layer.bias) if v is not None]
    held = [x, *(v[...] for v in (layer.mean, layer.var, *parts))]
    plain = mask is None and layer.axis_name is None and isinstance(layer.axis, int)
    if not plain or still is None or {a.dtype for a in held} != {np.dtype(layer.dtype or x.dtype)}:
        return own(x, use_running_average, mask=mask)
    y, mean, var = _marks()[0].bind(
        *held, scaled=layer.scale is not None, shifted=layer.bias is not None,
        training=not still, axis=layer.axis, momentum=layer.momentum, epsilon=layer.epsilon,
    )  # fmt: skip
    layer.mean[...], layer.var[...] = mean, var  # in inference too: who is called next reads them
    return y


@primitive("flax_batch_norm")
def _read_norm(at: Any, x: Value, mean: Value, var: Value, *rest: Value, scaled: bool,
               shifted: bool, momentum: float, **attrs: Any) -> Any:  # fmt: skip
    given = iter(rest)
    scale, bias = (next(given) if has else None for has in (scaled, shifted))
    # 0.01 of 0.99, without the noise of the subtraction
    return OPS["batch_norm"](x, scale, bias, mean, var, unbiased=False,
                             momentum=round(1 - momentum, 12), **attrs)  # fmt: skip


def _drop(layer: Any, own: Any, x: Any, *, deterministic: Any = None, rngs: Any = None) -> Any:
    """nnx.Dropout, by name, off too; one whose mask is broadcast is what is inside."""
    off = _said(deterministic, layer.deterministic)
    if off is None or layer.broadcast_dims or not 0 < layer.rate < 1:
        return own(x, deterministic=deterministic, rngs=rngs)
    return _marks()[1].bind(x, rate=float(layer.rate), training=not off)


@primitive("flax_dropout")
def _read_drop(at: Any, x: Value, rate: float, training: bool) -> Any:
    key, salt = at.graph.key(), fresh_salt(0)
    return OPS["dropout"](x, key, rate=rate, training=training, salt=salt)


def marked() -> contextlib.AbstractContextManager[None]:
    """Batch norms and dropouts leave their names in what is traced while this is open."""
    return _calling(BatchNorm=_norm, Dropout=_drop)


# -- both modes ------------------------------------------------------------------------------------
def laid_together(train: Graph, evaluation: Graph) -> Graph:
    """One Graph for both modes: the flags in which they differ are left open."""
    nodes, updates = train.nodes, train.updates
    if evaluation.updates:
        name = next(iter(evaluation.updates)).name
        raise UnsupportedError(f"the state {name!r}, which changes in inference too", train.name,
                               "read it as it trains: from_jax(..., training=True)")  # fmt: skip
    train.updates = {}
    told = prune(train).nodes
    for a, b in zip(told, prune(evaluation).nodes, strict=False):
        flags = a.attrs.get("training"), b.attrs.get("training")
        if a.op == b.op and flags == (True, False):
            a.attrs["training"] = b.attrs["training"] = MODE
    differing = train.difference(evaluation)
    train.nodes, train.updates = nodes, updates
    if differing:
        raise UnsupportedError(
            f"training and inference differ in more than dropout and batch norm: {differing}",
            train.name, "read it in one mode: from_jax(..., training=False)",
        )  # fmt: skip
    return prune(train)


def still(graph: Graph) -> Graph:
    """A batch norm in inference changes no state."""
    graph.updates = {
        state: v for state, v in graph.updates.items()
        if v.node is None or v.node.attrs.get("training") is not False
    }  # fmt: skip
    return graph


def without_idle(graph: Graph) -> Graph:
    """Dropouts that never drop are left out; one that always does cannot be compared."""
    if any(n.op == "dropout" and n.attrs["training"] is True for n in graph.nodes):
        raise UnsupportedError(
            "a dropout that is on in every mode that is read",
            graph.name,
            "leave it to module.train() and eval(), and training= out",
        )

    def rule(new: Graph, node: Any, values: Any) -> Any:
        idle = node.op == "dropout" and node.attrs["training"] is False
        return [values[0]] if idle else None

    return replay(graph, rule)[0]


def read_flax(taken: Taken, *examples: Any) -> GraphModule:
    """An nnx module, taken apart: both modes are traced, and where they differ the Graph is open.

    One that is ever in one mode is read in that alone.
    """
    jax = load_jax()

    def graph(mode: bool) -> Graph:
        with marked():
            called = functools.partial(taken, mode)
            read = traced_graph(jax, taken.name, called, taken.arrays, taken.trained, examples)
        return still(read)

    found = graph(True) if taken.mode is None else graph(taken.mode)
    if taken.mode is None:
        found = laid_together(found, graph(False))
    return GraphModule(check(without_idle(found)), taken.arrays)


# -- running it ------------------------------------------------------------------------------------
class FlaxModel(JaxModel):
    """The module itself, as a function of its numbers."""

    def __init__(self, taken: Taken):
        numbers = {n: to_array(a) for n, a in taken.arrays.items()}
        fixed = frozenset(n for n, trained in taken.trained.items() if not trained)
        super().__init__(taken, numbers, fixed)

    def apply(
        self, params: Mapping[str, Any], inputs: Sequence[Any], training: bool, key: Any
    ) -> Any:
        """All outputs, a dict's in the order of its keys, and the states."""
        result, after = self.function(training, params, *inputs)
        self.structure = tuple(sorted(result)) if isinstance(result, Mapping) else None
        return load_jax().tree_util.tree_leaves(result), {n: after[n] for n in self.states}


class FlaxRunner(JaxRunner):
    """An nnx module of the user's own."""

    def __init__(self, taken: Taken):
        super().__init__(FlaxModel(taken), {n: (n, Weight("", n, n)) for n in taken.arrays})
        self.taken = taken

    def trained(self) -> dict[str, bool]:
        """Which of its numbers a gradient changes."""
        return dict(self.taken.trained)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[list[float]]:
        """Dropouts pass everything on while this is open; the list gets the rates they have."""
        rates: list[float] = []

        def hushed(layer: Any, own: Any, x: Any, *, deterministic: Any = None, **_: Any) -> Any:
            if not _said(deterministic, layer.deterministic) and layer.rate:
                rates.append(float(layer.rate))
            return x

        before = self._apply, self._pull
        self.compile()
        try:
            with _calling(Dropout=hushed):
                yield rates
        finally:
            self._apply, self._pull = before
