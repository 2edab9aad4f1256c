"""Define, then run: TF1's habits on our Graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from trivium.demands import Demands
from trivium.dtype import as_dtype
from trivium.engines import Engine
from trivium.engines import get as engine_named
from trivium.graph import Graph, GraphError, Value, current
from trivium.interpret import Interpreter
from trivium.nn.parameter import Parameter, captured, narrowed
from trivium.op import lift
from trivium.optim import TrainOp
from trivium.recent import Recent
from trivium.train.owner import EngineOwner
from trivium.transforms.replay import freeze, prune, replay, specialize


def variable(initial: Any, name: str, trainable: bool = True, dtype: Any = None) -> Any:
    """A parameter of the Graph that is being built, from these initial numbers.

    Python's numbers and NumPy's float64 become float32 unless ``dtype`` says otherwise. With
    ``trainable=False`` no optimizer changes it; what is no floating array none can.
    """
    graph = current()
    if graph is None:
        raise RuntimeError("variable() wants a Graph around it: with trivium.Graph() as g: ...")
    if dtype is not None:
        array = np.asarray(initial, as_dtype(dtype).numpy)
    else:
        array = narrowed(initial if hasattr(initial, "dtype") else np.asarray(initial, np.float32))
    trained = trainable and as_dtype(array.dtype).is_floating
    return lift(graph, Parameter(array, name, requires_grad=trained), None)


class Session:
    """Runs parts of a Graph. Its variables are the parameters of the models called in the Graph.

    So ``model.state_dict()`` and every way out see what was trained here, and two Sessions on one
    Graph share their numbers. A run that fetches a train op is in training mode (dropout drops,
    the statistics that the loss reads are collected); any other is in inference, and changes
    nothing. ``training=`` says otherwise. What attributes of the models' layers were when the Graph
    was built stays in it.

    >>> import trivium as tv
    >>> with tv.Graph() as g:
    ...     x = tv.placeholder("float32", ("batch",), name="x")
    ...     w = tv.variable(2.0, "w")
    ...     loss = tv.mean((w * x - 6.0) ** 2)
    ...     train = tv.optim.SGD(0.5).minimize(loss)
    >>> session = tv.Session(g)
    >>> session.run(loss, feed_dict={x: [1.0, 1.0]})
    array(16., dtype=float32)
    >>> _ = session.run(train, feed_dict={"x": [1.0, 1.0]})
    >>> session.run({"slope": w})
    {'slope': array(6., dtype=float32)}
    """

    def __init__(self, graph: Graph, engine: str | None = None):
        self.graph, self.engine = graph, engine_named(engine)
        self._parts = Recent(64)
        self._draws = itertools.count()
        self._training: dict[tuple[TrainOp, bool], _Training] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: the variables are the models' own."""

    @property
    def values(self) -> Mapping[str, Any]:
        """The numbers of every variable by name, to be read."""
        return MappingProxyType({n: p.data for n, p in captured(self.graph).items()})

    def run(
        self,
        fetches: Any,
        feed_dict: Mapping[Value | str, Any] | None = None,
        training: bool | None = None,
    ) -> Any:
        """The numbers of what is fetched: Values, names, train ops, or lists and dicts of these.

        A train op takes one step and gives its loss; Values fetched beside it are those before the
        step, with its masks on the engines that draw as the Graph says (native, NumPy); frameworks
        draw their own. Placeholders are fed by themselves or by name.
        """
        feed = {self._value(k): x for k, x in (feed_dict or {}).items()}
        for value in feed:
            if value.graph is not self.graph or value.kind != "data":
                raise GraphError(f"{value!r} is no placeholder of this graph")
        wanted: list[Value | TrainOp] = []
        shape = self._leaves(fetches, wanted)
        steps = [f for f in dict.fromkeys(wanted) if isinstance(f, TrainOp)]
        mode = bool(steps) if training is None else training
        # What a step computes anyway is not computed twice: with dropout it would be another.
        own = {op.loss: op for op in steps[:1]}
        values = [f for f in wanted if isinstance(f, Value) and f not in own]
        # The key of the step that comes next, so that its masks are seen; else one never used yet.
        draw = (0, self._step_of(steps[0], mode).count) if steps else (1, next(self._draws))
        found: dict[Any, Any] = {}
        if values:
            found |= zip(values, self._fetch(values, feed, mode, draw), strict=True)
        for op in steps:
            found[op] = self._step_of(op, mode).step(feed)
        found |= {loss: found[op] for loss, op in own.items()}
        return _nested(shape, iter([found[f] for f in wanted]))

    def _leaves(self, fetches: Any, found: list[Value | TrainOp]) -> Any:
        """Puts into ``found`` what is fetched, in order; how it was nested."""
        if isinstance(fetches, (list, tuple)):
            return [self._leaves(f, found) for f in fetches]
        if isinstance(fetches, Mapping):
            return {k: self._leaves(f, found) for k, f in fetches.items()}
        found.append(fetches if isinstance(fetches, TrainOp) else self._value(fetches))
        if found[-1].graph is not self.graph:
            raise GraphError(f"{fetches!r} belongs to another graph than this Session")
        return None

    def _value(self, item: Any) -> Value:
        """The Value that is meant: itself, by its name, or a parameter of a model in the Graph."""
        if isinstance(item, Value):
            return item
        if isinstance(item, Parameter) and id(item) in self.graph.captured:
            return self.graph.captured[id(item)][1]
        if isinstance(item, str):
            made = [v for node in self.graph.nodes for v in node.outputs]
            named = {v.name: v for v in (*made, *self.graph.inputs) if v.name}
            if item in named:
                return named[item]
            raise KeyError(
                f"nothing is called {item!r} in this graph; there are {', '.join(named)}"
            )
        raise TypeError(
            f"{item!r} is nothing that a Session knows: Values of its graph, their names and train "
            f"ops can be fetched, in lists and dicts too; placeholders can be fed"
        )

    def _step_of(self, op: TrainOp, mode: bool) -> _Training:
        if (op, mode) not in self._training:
            self._training[op, mode] = _Training(self.graph, op, self.engine, mode)
        return self._training[op, mode]

    def _fetch(
        self, values: list[Value], feed: Any, mode: bool, draw: tuple[int, int]
    ) -> list[Any]:
        def make() -> tuple[Interpreter, Demands]:
            part = _part(self.graph, values, [], mode)
            return Interpreter(part), _demands(part)

        run, demands = self._parts.get((tuple(values), mode), make)
        given = iter(_fed(run.graph, demands, feed))
        params = captured(self.graph)
        key = np.array(draw, np.uint64)
        arrays = [
            next(given) if v.kind == "data" else key if v.kind == "rng" else params[v.name].data
            for v in run.graph.inputs
        ]
        return list(run(*arrays))[: len(values)]


class _Training(EngineOwner):
    """What a train op trains: an engine's step, and who owns the parameters until they are read."""

    def __init__(self, graph: Graph, op: TrainOp, engine: Engine, mode: bool):
        super().__init__(engine)
        self._op, self.count = op, 0
        self._part = _part(graph, [op.loss], _updates(graph, op.loss) if mode else [], mode)
        self._demands = _demands(self._part)
        found = captured(graph)
        self._params = {v.name: found[v.name] for v in self._part.of_kind("param", "state")}

    def step(self, feed: Mapping[Value, Any]) -> Any:
        """One step on what is fed; the loss before it."""
        arrays = _fed(self._part, self._demands, feed)
        if self._trainer is None:
            self._start()
        elif self._outdated:
            self._load()
        loss = self._trainer.step(arrays, self._op.optimizer.lr)
        self._behind = True
        self.count += 1
        return np.asarray(loss, np.float32)

    def _start(self) -> None:
        frozen = {n for n, p in self._params.items() if p.kind == "param" and not p.requires_grad}
        self._hand_over(freeze(self._part, frozen), self._op.optimizer.update())


def _nested(shape: Any, results: Any) -> Any:
    if isinstance(shape, list):
        return [_nested(s, results) for s in shape]
    if isinstance(shape, dict):
        return {k: _nested(s, results) for k, s in shape.items()}
    return next(results)


def _read(graph: Graph, values: list[Value]) -> set[Value]:
    """The inputs that these Values are computed from."""
    needed = set(values)
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            needed |= {v for v in node.inputs if v is not None}
    return needed.intersection(graph.inputs)


def _updates(graph: Graph, loss: Value) -> list[Value]:
    """The states that change when this loss is trained.

    They are those it reads, those computed from what it learns, and those no data goes into: not
    the statistics of another model in the Graph.
    """
    held = set(graph.of_kind("param", "state"))
    reads = _read(graph, [loss]) & held
    found = []
    for state, new in graph.updates.items():
        behind = _read(graph, [new])
        if state in reads or reads & behind or not behind.intersection(graph.of_kind("data")):
            found.append(state)
    return found


def _part(graph: Graph, outputs: list[Value], states: list[Value], mode: bool) -> Graph:
    """The Graph cut down to what ``outputs`` and these states' updates need, in this mode."""
    part, env = replay(graph)
    part.outputs = [env[v] for v in outputs]  # type: ignore[misc]
    part.updates = {env[s]: env[graph.updates[s]] for s in states}  # type: ignore[misc]
    part.structure = None
    prune(part)
    read = {v for n in part.nodes for v in n.inputs} | set(part.results()) | set(part.updates)
    part.inputs = [v for v in part.inputs if v in read]
    return specialize(part, training=mode)


def _demands(part: Graph) -> Demands:
    return Demands(part, [v.name for v in part.of_kind("data")])


def _fed(part: Graph, demands: Demands, feed: Mapping[Value, Any]) -> list[Any]:
    """The arrays for the placeholders of ``part``, once they are seen to fit."""
    named = {v.name: x for v, x in feed.items()}
    arrays = []
    for v in part.of_kind("data"):
        if v.name not in named:
            raise GraphError(f"feed_dict lacks the placeholder {v.name!r}")
        array = np.asarray(named[v.name])
        if array.size and not np.can_cast(array.dtype, v.dtype.numpy, "same_kind"):
            raise TypeError(
                f"the placeholder {v.name!r} is {v.dtype} and was fed {array.dtype}, of which a "
                f"cast would lose something; cast it yourself where that is meant"
            )
        arrays.append(array.astype(v.dtype.numpy, copy=False))
    demands.sizes(arrays)
    if demands.of_numbers:
        demands.numbers(arrays)
    return arrays
