"""Random models on every engine, and what fails made as small as it gets.

``python tests/fuzz.py --first 0 --count 2000``: every model forward and in training on each of the
engines, compared with the oracle. The seed says which model it is.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from random_models import ALL, STEPS, Limits, Model, Wrong, draw, forward, loss_of, plain
from trivium.engines import get
from trivium.graph import OPS, Graph, UnsupportedError, Value
from trivium.transforms.replay import prune, replay
from trivium.transforms.simplify import simplify

ENGINES = ("native", "numpy", "torch")


def compared(found: Sequence[Any], wanted: Limits, what: str) -> None:
    for k, (got, (exact, limit)) in enumerate(zip(found, wanted, strict=True)):
        got = np.asarray(got)
        if got.shape != exact.shape:
            raise Wrong(f"{what} {k} has shape {got.shape}, not {exact.shape}")
        off = np.abs(got.astype(np.float64) - exact).max(initial=0)
        if not off <= limit:
            raise Wrong(f"{what} {k} is off by {off:.3g}, allowed {limit:.3g}")


def judge(model: Model, name: str, training: bool) -> None:
    """Raise unless the engine gives what the oracle gives, forward or in training."""
    engine = get(name)
    whole = loss_of(model.graph) if training else model.graph
    source = engine.trainer_at.startswith("trivium.frameworks")
    if source and (not _said(whole) or (training and model.has_ties)):
        return  # at a tie every framework has a gradient of its own
    if not training:
        if model.outputs is not None:
            compared(engine.function(whole)(model.values, model.data), model.outputs, "output")
    elif model.steps is not None:
        trainer = engine.trainer(whole, model.values, model.optimizer.update())
        losses = [trainer.step(model.data, model.optimizer.lr) for _ in range(STEPS)]
        after = trainer.values()
        names = [v.name for v in model.graph.of_kind("param", "state")]
        compared([*losses, *(after[n] for n in names)], model.steps, "loss or parameter")


def _said(graph: Graph) -> bool:
    """Can source say it today? Not an input or a number as a result, nor an input called ``a/b``.

    Nor a parameter that nothing reads.
    """
    graph = prune(plain(simplify(graph), True))
    read = {v for n in graph.nodes for v in n.inputs}
    inputs = set(graph.inputs)
    if any(not v.name.isidentifier() for v in inputs):
        return False
    fed: set[Value | None] = set(inputs)
    for n in graph.nodes:
        if any(v in fed for v in n.inputs):
            fed |= set(n.outputs)
    return (
        fed.issuperset(graph.results())
        and not inputs & set(graph.results())
        and set(graph.of_kind("param", "state")) <= read
    )


def failure(model: Model, name: str, training: bool) -> str | None:
    """What is wrong, in a line; None if nothing is, or if the framework has no such op."""
    try:
        judge(model, name, training)
    except UnsupportedError:
        return None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = (
            "" if isinstance(error, Wrong) else f" [{last.filename.rsplit('/', 2)[-1]}:{last.name}]"
        )
        return f"{type(error).__name__}: {error}{place}"
    return None


def kind_of(wrong: str) -> str:
    return wrong.split(":")[0] + (wrong.rsplit(" [")[-1] if " [" in wrong else "")


# -- making it small -------------------------------------------------------------------------------
def shrunk(model: Model, fails: Callable[[Model], bool]) -> Model:
    """The smallest model that still fails: fewer outputs, nodes cut away for inputs."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(model):
            if candidate is not None and fails(candidate):
                model, smaller = candidate, True
                break
    return model


def _candidates(model: Model) -> Iterator[Model | None]:
    graph = model.graph
    for k in range(len(graph.outputs)):
        if len(graph.outputs) > 1:
            yield _cut(model, None, k)
    if graph.updates:
        yield _cut(model, None, None)
    for k in range(len(graph.nodes)):
        yield _cut(model, k, None)


def _cut(model: Model, node: int | None, output: int | None) -> Model | None:
    """Without an output, without updates, or with a node's outputs as inputs."""
    graph, _ = replay(model.graph)
    data, values = list(model.data), dict(model.values)
    if node is None and output is None:
        graph.updates = {}
    elif output is not None:
        del graph.outputs[output]
    else:
        assert node is not None
        probe, _ = replay(model.graph)
        probe.outputs, probe.updates = list(probe.nodes[node].outputs), {}
        numbers = forward(Model(probe, values, data, None))(None)
        fresh = Graph("model")
        swap: dict[Any, Any] = {None: None}
        arrays = iter(data)
        data, values = [], {}
        for v in graph.inputs:
            swap[v] = fresh.input(v.kind or "", *v.type, v.name)
            if v.kind == "data":
                data.append(next(arrays))
            else:
                values[v.name] = model.values[v.name]
        for k, n in enumerate(graph.nodes):
            if k != node:
                outs = OPS[n.op].append(fresh, [swap[v] for v in n.inputs], n.attrs)
                swap |= zip(n.outputs, outs, strict=True)
                continue
            for v, a in zip(n.outputs, numbers, strict=True):
                a = a.astype(v.dtype.numpy)
                kind = "param" if v.dtype.is_floating else "data"
                swap[v] = fresh.input(kind, *v.type, fresh.unused(f"c{len(fresh.inputs)}"))
                if kind == "param":
                    values[swap[v].name] = a
                else:
                    data.append(a)
        fresh.outputs = [swap[v] for v in graph.outputs if swap[v].node is not None]
        fresh.updates = {swap[k]: swap[v] for k, v in graph.updates.items()}
        graph = fresh
    prune(graph)
    read = {v for n in graph.nodes for v in n.inputs} | set(graph.results()) | set(graph.updates)
    if len(read & set(graph.inputs)) < len(graph.inputs):
        numbers = dict(zip(graph.of_kind("data"), data, strict=True))
        graph.inputs = [v for v in graph.inputs if v in read]
        data = [numbers[v] for v in graph.of_kind("data")]
        values = {v.name: values[v.name] for v in graph.of_kind("param", "state")}
    if not graph.of_kind("param") or not any(v.dtype.is_floating for v in graph.outputs):
        return None
    return Model(graph, values, data, model.optimizer)


# -- by hand ---------------------------------------------------------------------------------------
def same(name: str, training: bool, wrong: str) -> Callable[[Model], bool]:
    """Does a model fail in the same way?"""

    def fails(model: Model) -> bool:
        now = failure(model, name, training)
        return now is not None and kind_of(now) == kind_of(wrong)

    return fails


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=2000, help="how many seeds")
    parser.add_argument("--engines", default=",".join(ENGINES))
    args = parser.parse_args()
    found: collections.Counter[str] = collections.Counter()
    ops: collections.Counter[str] = collections.Counter()
    start = time.time()
    for seed in range(args.first, args.first + args.count):
        try:
            model = draw(seed)
        except Exception:
            found["no model"] += 1
            print(f"\nseed {seed}, no model")
            traceback.print_exc(file=sys.stdout)
            continue
        ops.update(n.op for n in model.graph.nodes)
        for name in args.engines.split(","):
            for training in (False, True):
                if (wrong := failure(model, name, training)) is not None:
                    kind = f"{name}, {'training' if training else 'forward'}: {kind_of(wrong)}"
                    found[kind] += 1
                    print(f"\nseed {seed}, {kind}\n{wrong:.300}", flush=True)
                    if found[kind] <= 2:
                        print(shrunk(model, same(name, training, wrong)), flush=True)
        if (seed + 1) % 100 == 0:
            spent = time.time() - start
            print(f"-- {seed + 1}: {sum(found.values())} failures, {spent:.0f} s", flush=True)
    print(f"\n{args.count} models, {sum(found.values())} failures")
    for kind, count in found.most_common():
        print(f"{count:6} {kind}")
    print("never drawn:", ", ".join(sorted({op.name for op in ALL} - set(ops))))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
