"""Define, then run: TF1's habits on our Graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.engines import get as engine_named
from trivium.graph import Graph, GraphError, Value, current
from trivium.interpret import Interpreter
from trivium.nn.parameter import Parameter, narrowed
from trivium.op import lift
from trivium.optim import TrainOp
from trivium.recent import Recent
from trivium.transforms.replay import prune, replay


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
    """Runs parts of a Graph, and holds its variables while they change.

    >>> import trivium as tv
    >>> with tv.Graph() as g:
    ...     x = tv.placeholder("float32", ("batch",), name="x")
    ...     w = tv.variable(2.0, "w")
    ...     loss = tv.mean((w * x - 6.0) ** 2)
    ...     train = tv.optim.SGD(0.5).minimize(loss)
    >>> session = tv.Session(g)
    >>> session.run(loss, feed_dict={x: [1.0, 1.0]})
    array(16., dtype=float32)
    >>> _ = session.run(train, feed_dict={x: [1.0, 1.0]})
    >>> session.run(w)
    array(6., dtype=float32)
    """

    def __init__(self, graph: Graph, engine: str | None = None):
        self.graph, self.engine = graph, engine_named(engine)
        self.values: dict[str, Any] = {}
        for item, value in graph.captured.values():
            if value.kind in ("param", "state"):
                self.values[value.name] = np.array(item.data)
        self._parts = Recent(64)
        self._trainers: dict[TrainOp, Any] = {}

    def run(self, fetches: Any, feed_dict: Mapping[Value, Any] | None = None) -> Any:
        """The numbers of a Value or several; a TrainOp takes one step and gives its loss."""
        many = isinstance(fetches, (list, tuple))
        wanted = list(fetches) if many else [fetches]
        feed = dict(feed_dict or {})
        for value in feed:
            if value.graph is not self.graph or value.kind != "data":
                raise GraphError(f"{value!r} is no placeholder of this graph")
        values = [f for f in wanted if isinstance(f, Value)]
        found = dict(zip(values, self._fetch(values, feed), strict=True)) if values else {}
        results = [self._train(f, feed) if isinstance(f, TrainOp) else found[f] for f in wanted]
        return results if many else results[0]

    def _part(self, outputs: list[Value]) -> Graph:
        """The Graph cut down to what ``outputs`` need."""
        part, env = replay(self.graph)
        part.outputs = [env[v] for v in outputs]  # type: ignore[misc]
        part.updates = {}
        prune(part)
        read = {v for n in part.nodes for v in n.inputs} | set(part.outputs)
        part.inputs = [v for v in part.inputs if v in read]
        return part

    def _feed(self, part: Graph, feed: Mapping[Value, Any]) -> list[Any]:
        named = {v.name: x for v, x in feed.items()}
        missing = [v.name for v in part.of_kind("data") if v.name not in named]
        if missing:
            raise GraphError(f"feed_dict lacks the placeholder {missing[0]!r}")
        return [np.asarray(named[v.name], v.dtype.numpy) for v in part.of_kind("data")]

    def _fetch(self, values: list[Value], feed: Mapping[Value, Any]) -> list[Any]:
        run = self._parts.get(
            tuple(values), lambda: Interpreter(self._part(values), training=False)
        )
        part = run.graph
        given = iter(self._feed(part, feed))
        arrays = [next(given) if v.kind == "data" else self.values.get(v.name) for v in part.inputs]
        return list(run(*arrays))

    def _train(self, op: TrainOp, feed: Mapping[Value, Any]) -> Any:
        if op not in self._trainers:
            part = self._part([op.loss])
            held = {v.name: self.values[v.name] for v in part.of_kind("param", "state")}
            self._trainers[op] = (part, self.engine.trainer(part, held, op.optimizer.update()))
        part, trainer = self._trainers[op]
        loss = trainer.step(self._feed(part, feed), op.optimizer.lr)
        self.values |= trainer.values()
        return np.asarray(loss, np.float32)
