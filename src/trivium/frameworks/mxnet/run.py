"""Models in MXNet: running, differentiating and training them."""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.layer import Weight
from trivium.frameworks.made import Held, execute, furnished, looking
from trivium.frameworks.mxnet.emit import emit
from trivium.frameworks.mxnet.load import load
from trivium.frameworks.runner import Array, Pulled, Slots
from trivium.graph import MODE, Graph, Type, UnsupportedError
from trivium.transforms.step import Update, by_dtype, by_mode


def build(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    """The HybridBlock that the Graph's source makes, with these numbers, and where each is."""
    load()
    emitted = emit(graph)
    _say_names(graph, values)
    block = execute(emitted, "mxnet")()
    block.source = emitted.source
    # MXNet has no bool and no array without axes: what the arrays are that go in and come out.
    block.types = ([v.type for v in graph.of_kind("data")], [v.type for v in graph.outputs])
    block.initialize()
    furnished(MxnetRunner, block, emitted, graph, values)
    return block, emitted.weights


_told: list[Any] = []  # a weak reference to an array of the model that was spoken of last


def _say_names(graph: Graph, values: Mapping[str, Any]) -> None:
    """That the names of the outputs stay behind: once, however often a proof builds the model."""
    # An engine, which builds one mode alone, gives the names back itself.
    if not isinstance(graph.structure, tuple) or graph.training is not MODE:
        return
    array = next((a for a in values.values() if isinstance(a, np.ndarray)), None)
    if array is not None and _told and _told[0]() is array:
        return
    _told[:] = [] if array is None else [weakref.ref(array)]
    names = ", ".join(graph.structure)
    what = f"MXNet gives a list: {names}, in this order; a HybridBlock's outputs have no names"
    warnings.warn(what, stacklevel=3)


def foreign(model: Any, module: Any) -> MxnetRunner:
    """A Gluon block of the user's own; ``module`` is what reading it gave."""
    runner = MxnetRunner(
        model, {n: (at, Weight("", n, at)) for n, at in module.source_names.items()}
    )
    runner.takes = [v.type for v in module.graph.of_kind("data")]
    runner.gives = [v.type for v in module.graph.outputs]
    return runner


class MxnetRunner:
    """Any Gluon block. ``weights`` says where our parameters are in it: "conv1.weight", as
    save_parameters has it, or a parameter's own name.
    """

    def __init__(self, block: Any, weights: Mapping[str, tuple[str, Weight]], device: str = "cpu"):
        self.mx = load()
        self.block, self.weights = block, weights
        self.device = self.mx.Context(device)
        types: tuple[Any, Any] = getattr(block, "types", (None, None))
        self.takes, self.gives = types
        self._rates: list[float] | None = None
        # Only a HybridBlock has a graph in which a dropout can be passed over.
        hybrid = isinstance(block, self.mx.gluon.HybridBlock)
        self.quiet = self._quiet if hybrid else None
        # Imperatively, MXNet may not survive a block that ends gradients (cut.py); our own do not.
        self.symbolic = hybrid and not hasattr(block, "types")

    def parameters(self) -> dict[str, Any]:
        """Our names -> Gluon's parameters."""
        named = dict(self.block.collect_params().items())
        named |= self.block._collect_params_with_prefix()  # what save_parameters goes by
        found = {}
        for ours, (theirs, _) in self.weights.items():
            with looking(ours, theirs):
                found[ours] = named[theirs]
        return found

    def declared(self) -> list[Held]:
        """Every parameter that is none of MXNet's constants."""
        named = self.block._collect_params_with_prefix()
        return [self._held(name, p) for name, p in named.items()
                if not isinstance(p, self.mx.gluon.Constant)]  # fmt: skip

    def held(self) -> dict[str, Held]:
        """Those that are ours, by our names."""
        return {n: self._held(self.weights[n][0], p) for n, p in self.parameters().items()}

    def _held(self, name: str, parameter: Any) -> Held:
        shape = parameter.shape  # 0 or -1 where it waits for the first batch
        known = shape is not None and all(s > 0 for s in shape)
        trained = parameter.grad_req != "null"
        return Held(name, id(parameter), tuple(shape) if known else None, trained)

    def trained(self) -> dict[str, bool]:
        """Which parameters have gradients."""
        return {n: p.grad_req != "null" for n, p in self.parameters().items()}

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        return {n: self._back(n, p.data(self.device)) for n, p in self.parameters().items()}

    def _back(self, name: str, array: Any) -> Array:
        return np.array(self.weights[name][1].back(array.asnumpy()))

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        for ours, p in self.parameters().items():
            new = np.asarray(self.weights[ours][1].to(np.asarray(values[ours])))
            array = self.mx.nd.array(new, dtype=p.dtype)
            p.shape = array.shape  # where Gluon would wait for the first batch to learn it
            if p._data is None:
                p.initialize(ctx=self.device)
            p.set_data(array)

    def arrays(self, inputs: Sequence[Any]) -> list[Any]:
        """NumPy arrays as MXNet's, in the dtypes that the block reads."""
        found = []
        for i, x in enumerate(inputs):
            if not isinstance(x, self.mx.nd.NDArray):
                a = np.asarray(x)
                dtype = a.dtype if self.takes is None else self.takes[i].dtype.numpy
                dtype = np.dtype(np.float32) if dtype == np.bool_ else dtype
                x = self.mx.nd.array(a.reshape(a.shape or (1,)), self.device, dtype)
            found.append(x)
        return found

    def _results(self, outputs: Sequence[Any]) -> list[Array]:
        arrays = [o.asnumpy() for o in outputs]
        if self.gives is None:
            return arrays
        return [_as(a, t) for a, t in zip(arrays, self.gives, strict=True)]

    @contextmanager
    def _states_kept(self) -> Iterator[None]:
        """What has no gradient is put back afterwards: batch statistics change on the way back."""
        frozen = [
            p
            for p in self.block.collect_params().values()
            if p.grad_req == "null" and p._data is not None
        ]
        kept = [
            (p, p.data(self.device).copy())
            for p in frozen
            if not isinstance(p, self.mx.gluon.Constant)
        ]
        try:
            yield
        finally:
            for p, data in kept:
                p.set_data(data)

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        mode = self.mx.autograd.train_mode if training else self.mx.autograd.predict_mode
        xs = self.arrays(inputs)
        with self._states_kept(), mode():
            block = self._training(xs) if training else self.block
            return self._results(listed(block(*xs)))

    def predicting(self, xs: Sequence[Any]) -> Any:
        """The block as it predicts, in a form that may be differentiated while MXNet is training.

        In prediction mode MXNet 1.9.1 keeps nothing for the way back: the gradient of a max pool on
        a CPU then goes to the wrong elements.
        """

        def at_rest(op: str, attrs: dict[str, str]) -> None:
            if op == "BatchNorm":
                attrs["use_global_stats"] = "True"
            elif op in ("Dropout", "RNN") and attrs.get("mode") != "always":
                attrs["p"] = "0"

        return self._rewritten(xs, at_rest)

    @contextmanager
    def _quiet(self) -> Iterator[list[float]]:
        self._rates = []
        try:
            yield self._rates
        finally:
            self._rates = None

    def _training(self, xs: Sequence[Any]) -> Any:
        """The block as it trains; with its dropouts passing everything on where that was asked."""
        rates = self._rates
        if rates is None:
            return self.block

        def passing(op: str, attrs: dict[str, str]) -> None:
            if op == "Dropout":
                rates.append(float(attrs.get("p", 0.5)))
                attrs["p"] = "0"

        return self._rewritten(xs, passing)

    def intermediates(
        self, inputs: Sequence[Array], training: bool = False
    ) -> list[tuple[str, Array]]:
        """What every operator of the block computes, in order."""
        xs = self.arrays(inputs)
        data = [self.mx.sym.var(f"data{i}", dtype=x.dtype) for i, x in enumerate(xs)]
        inner = self.mx.sym.Group(listed(self.block(*data))).get_internals()
        known = {*(d.name for d in data), *self.block.collect_params()}
        names = [n for n in inner.list_outputs() if n not in known]
        told = self.mx.gluon.SymbolBlock(
            [inner[n] for n in names], data, self.block.collect_params()
        )
        mode = self.mx.autograd.train_mode if training else self.mx.autograd.predict_mode
        with self._states_kept(), mode():
            found = [y.asnumpy() for y in listed(told(*xs))]
        return list(zip((n.removesuffix("_output") for n in names), found, strict=True))

    def _rewritten(self, xs: Sequence[Any], change: Callable[[str, dict[str, str]], None]) -> Any:
        """The block with the attributes of its operators changed, on the same parameters."""
        if not isinstance(self.block, self.mx.gluon.HybridBlock):
            raise UnsupportedError("gradients in inference mode of a Block that is no HybridBlock",
                                   type(self.block).__name__, "make it a HybridBlock")  # fmt: skip
        data = [self.mx.sym.var(f"data{i}", dtype=x.dtype) for i, x in enumerate(xs)]
        # identity: an output that is an input would be none of the graph's own
        outputs = [self.mx.sym.identity(o) for o in listed(self.block(*data))]
        graph = json.loads(self.mx.sym.Group(outputs).tojson())
        for node in graph["nodes"]:
            change(node["op"], node.setdefault("attrs", {}))
        symbol = self.mx.sym.load_json(json.dumps(graph))
        return self.mx.gluon.SymbolBlock(symbol, data, params=self.block.collect_params())

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by MXNet's autograd; None for an input for which MXNet has none."""
        wanted = {i for i, x in enumerate(self.arrays(inputs)) if _floating(x.dtype)}
        try:
            return self._pull(inputs, cotangents, training, wanted)
        except self.mx.MXNetError:
            has = {i for i in wanted if self._has_gradient(inputs, cotangents, training, i)}
            if has == wanted:
                raise
            return self._pull(inputs, cotangents, training, has)

    def _has_gradient(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool, which: int
    ) -> bool:
        """Gluon's Embedding raises where the gradient of its indices is asked for."""
        try:
            self._pull(inputs, cotangents, training, {which})
        except self.mx.MXNetError as error:
            if "gradient" not in str(error):
                raise
            return False
        return True

    def _pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool, wanted: set[int]
    ) -> Pulled:
        mx = self.mx
        xs = self.arrays(inputs)
        block = self._training(xs) if training else self.predicting(xs)
        if training and block is self.block and self.symbolic:
            block = self._rewritten(xs, lambda op, attrs: None)
        for i in wanted:
            xs[i].attach_grad()
        params = self.parameters()
        trained = {n: p for n, p in params.items() if p.grad_req != "null"}
        for p in trained.values():
            p.zero_grad()
        # Recorded in any case: a block may hand on what no gradient comes back to.
        nothing = mx.nd.zeros((1,), self.device)
        nothing.attach_grad()
        with self._states_kept():
            with mx.autograd.record():
                outputs = listed(block(*xs))
                heads = [
                    o
                    for o, t in zip(outputs, self.gives or outputs, strict=True)
                    if _floating(t.dtype)
                ]
                seeds = [mx.nd.array(np.reshape(c, o.shape), self.device, o.dtype)
                         for c, o in zip(cotangents, heads, strict=True)]  # fmt: skip
                # As one number: an output that depends on nothing here must not be a head itself.
                total = sum(
                    ((o * c).sum().astype("float32") for o, c in zip(heads, seeds, strict=True)),
                    nothing,
                )
            if heads and (trained or wanted):
                total.backward()
            states = {n: self._back(n, p.data()) for n, p in params.items() if n not in trained}
            return Pulled(
                self._results(outputs),
                {n: self._back(n, p.grad()) for n, p in trained.items()},
                [xs[i].grad.asnumpy().reshape(np.shape(a)) if i in wanted else None
                 for i, a in enumerate(inputs)],
                states,
            )  # fmt: skip


def _as(array: Array, type: Type) -> Array:
    return array.astype(type.dtype.numpy, copy=False).reshape(array.shape if type.shape else ())


def _floating(dtype: Any) -> bool:
    return bool(np.dtype(getattr(dtype, "numpy", dtype)).kind == "f")


def listed(outputs: Any) -> list[Any]:
    """One output or several, nested or not, as a list."""
    if isinstance(outputs, (tuple, list)):
        return [array for item in outputs for array in listed(item)]
    return [outputs]


class MxnetTrainer(Slots):
    """The loss Graph as a hybridized block, differentiated by autograd; the update as another."""

    def __init__(
        self, graph: Graph, values: Mapping[str, Any], update: Update, device: str = "cpu"
    ):
        self.mx = load()
        self.block, weights = build(by_mode(graph), values)
        self.block.hybridize(static_alloc=True)
        self.runner = MxnetRunner(self.block, weights, device)
        trained = {n: p for n, p in self.runner.parameters().items() if p.grad_req != "null"}
        self.names, self.params = list(trained), list(trained.values())
        self._slots = [[self.mx.nd.zeros_like(p.data()) for _ in update.slots] for p in self.params]
        self.count = self.mx.nd.zeros((1,), self.runner.device)
        kinds = [as_dtype(p.dtype) for p in self.params]
        self.updates = by_dtype(update, kinds, lambda g: execute(emit(g), "mxnet")())

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        with self.mx.autograd.record():
            loss = self.block(*self.runner.arrays(inputs))
        loss.backward()
        self.count += 1
        rate = self.mx.nd.array([lr], self.runner.device)
        for i, p in enumerate(self.params):
            found = self.updates[i](p.data(), p.grad(), *self._slots[i], self.count, rate)
            new, *slots = listed(found)
            p.set_data(new)
            self._slots[i] = slots
        return float(loss.asscalar())

    def _out(self, array: Any) -> Array:
        found: Array = array.asnumpy()
        return found

    def _in(self, array: Any, new: Array) -> Any:
        return self.mx.nd.array(new, self.runner.device, dtype=new.dtype)
