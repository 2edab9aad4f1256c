"""Models in PyTorch: running, differentiating and training them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from trivium.frameworks.layer import Weight
from trivium.frameworks.made import Held, execute, furnished, looking
from trivium.frameworks.runner import Array, Names, Pulled, Slots, listed
from trivium.frameworks.torch.arrays import array_of, tensor_of
from trivium.frameworks.torch.emit import emit
from trivium.frameworks.torch.exported import dtype_of
from trivium.frameworks.torch.exporting import as_it_was, plain_attention
from trivium.frameworks.torch.watch import quiet, watching
from trivium.graph import Graph
from trivium.transforms.step import Update, by_dtype, by_mode


def load_torch() -> Any:
    """The torch module, or an ImportError with the remedy."""
    try:
        import torch
    except ImportError:
        raise ImportError("PyTorch is not installed: pip install torch") from None
    return torch


def build(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    """The torch module that the Graph's source makes, with these numbers, and where each is."""
    torch = load_torch()
    emitted = emit(graph)
    with torch.random.fork_rng(devices=[]):  # the layers draw numbers, which ours then replace
        module = execute(emitted, "torch")()
    module.source = emitted.source
    furnished(TorchRunner, module, emitted, graph, values)
    return module, emitted.weights


class TorchRunner:
    """Any torch module. ``weights`` says where our parameters are in it."""

    def __init__(self, module: Any, weights: Mapping[str, tuple[str, Weight]], device: str = "cpu"):
        self.torch = load_torch()
        self.module, self.weights, self.device = module.to(device), weights, device
        self.structure: Names = None

    def _tensors(self) -> dict[str, Any]:
        named = dict(self.module.named_parameters(remove_duplicate=False))
        named |= dict(self.module.named_buffers(remove_duplicate=False))
        return named

    def declared(self) -> list[Held]:
        """Every parameter and buffer."""
        return [self._held(name, t) for name, t in self._tensors().items()]

    def held(self) -> dict[str, Held]:
        """Those that are ours, by our names."""
        named = self._tensors()
        found = {}
        for ours, (theirs, _) in self.weights.items():
            with looking(ours, theirs):
                found[ours] = self._held(theirs, named[theirs])
        return found

    def _held(self, name: str, tensor: Any) -> Held:
        return Held(name, id(tensor), tuple(tensor.shape), tensor.requires_grad)

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        named = self._tensors()
        return {
            ours: np.array(w.back(array_of(named[theirs])))
            for ours, (theirs, w) in self.weights.items()
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        named = self._tensors()
        with self.torch.no_grad():
            for ours, (theirs, w) in self.weights.items():
                named[theirs].copy_(tensor_of(w.to(np.asarray(values[ours]))))

    def trained(self) -> dict[str, bool]:
        """Which parameters have gradients."""
        named = self._tensors()
        return {ours: bool(named[t].requires_grad) for ours, (t, _) in self.weights.items()}

    def quiet(self) -> AbstractContextManager[list[float]]:
        """Dropouts pass everything on while this is open; the list gets the rates they have."""
        return quiet(self.module)

    def intermediates(
        self, inputs: Sequence[Array], training: bool = False
    ) -> list[tuple[str, Array]]:
        """What every operator computes, in order, with the module it belongs to."""
        with watching(self.module) as found:
            self.outputs(inputs, training)
        return found

    def _listed(self, outputs: Any) -> list[Any]:
        found, self.structure = listed(outputs)
        return found

    def _inputs(self, inputs: Sequence[Array]) -> list[Any]:
        return [tensor_of(x).to(self.device) for x in inputs]

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        with self._as_it_was(training), self.torch.no_grad():
            found = self._listed(self.module(*self._inputs(inputs)))
        return [array_of(t) for t in found]

    @contextmanager
    def _as_it_was(self, training: bool) -> Iterator[None]:
        """In this mode; every module's own mode, all numbers and chance are put back afterwards.

        A model that is in the mode already stays as it is: a part may be frozen by its eval().
        """
        kept = {k: v.clone() for k, v in self.module.state_dict().items()}
        chance = self.torch.random.fork_rng(devices=[])
        try:
            with as_it_was(self.module), plain_attention(), chance:
                if self.module.training != training:
                    self.module.train(training)
                yield
        finally:
            self.module.load_state_dict(kept)

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by torch's autograd."""
        with self._as_it_was(training):
            return self._pulled(inputs, cotangents)

    def _pulled(self, inputs: Sequence[Array], cotangents: Sequence[Array]) -> Pulled:
        xs = self._inputs(inputs)
        for x in xs:
            if x.is_floating_point():
                x.requires_grad_(True)
        outputs = self._listed(self.module(*xs))
        named = {o: t for o, (t, _) in self.weights.items()}
        tensors = self._tensors()
        wanted = {o: tensors[t] for o, t in named.items() if tensors[t].requires_grad}
        gs = [tensor_of(c).to(self.device) for c in cotangents]
        sources = [x for x in xs if x.requires_grad]
        floating = [o for o in outputs if o.is_floating_point()]
        reached = [(o, g.to(o.dtype)) for o, g in zip(floating, gs, strict=True) if o.requires_grad]
        targets = [*wanted.values(), *sources]
        grads = [None] * len(targets)
        if reached and targets:
            ends, heads = zip(*reached, strict=True)
            grads = self.torch.autograd.grad(ends, targets, heads, allow_unused=True)
        arrays = [None if g is None else array_of(g) for g in grads]
        params = {
            o: self.weights[o][1].back(array_of(self.torch.zeros_like(t)) if g is None else g)
            for (o, t), g in zip(wanted.items(), arrays, strict=False)
        }
        rest = iter(arrays[len(wanted) :])
        states = {
            o: np.array(w.back(array_of(tensors[t])))
            for o, (t, w) in self.weights.items()
            if o not in wanted
        }
        return Pulled(
            [array_of(o) for o in outputs],
            params,
            [next(rest) if x.requires_grad else None for x in xs],
            states,
        )


class TorchTrainer(Slots):
    """The loss Graph as a torch module, gradients by autograd, the optimizer's update emitted."""

    def __init__(
        self, graph: Graph, values: Mapping[str, Any], update: Update, device: str = "cpu"
    ):
        self.torch = load_torch()
        module, weights = build(by_mode(graph), values)
        self.runner = TorchRunner(module.train(), weights, device)
        self.module = module
        tensors = self.runner._tensors()
        self.names = [n for n, t in tensors.items() if t.requires_grad]
        self.params = [tensors[n] for n in self.names]
        kinds = [dtype_of(p.dtype) for p in self.params]
        self.updates = by_dtype(update, kinds, lambda g: execute(emit(g), "torch")().to(device))
        self._slots = [[self.torch.zeros_like(p) for _ in update.slots] for p in self.params]
        self.count = self.torch.zeros((), device=device)

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        torch = self.torch
        xs = [x if isinstance(x, torch.Tensor) else tensor_of(x) for x in inputs]
        loss = self.module(*(x.to(self.runner.device) for x in xs))
        if not loss.requires_grad:  # nothing of it depends on a parameter
            loss = loss + 0 * sum(p.sum() for p in self.params)
        grads = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
        rate = torch.tensor(lr, device=self.runner.device)
        with torch.no_grad():
            self.count += 1
            for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
                new = self.updates[i](p, g, *self._slots[i], self.count, rate)
                first, *slots = new if isinstance(new, tuple) else (new,)
                p.copy_(first)
                self._slots[i] = slots
        return float(loss.detach())

    def _out(self, array: Any) -> Array:
        return np.array(array.cpu().numpy())

    def _in(self, array: Any, new: Array) -> Any:
        return self.torch.from_numpy(np.array(new)).to(self.runner.device)


def foreign(model: Any, module: Any) -> TorchRunner:
    """A torch model of the user's own; ``module`` is what reading it gave."""
    names = {n: module.source_names.get(n, n) for n in module.state_dict()}
    there = {*dict(model.named_parameters(remove_duplicate=False)),
             *dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
    names = {n: theirs for n, theirs in names.items() if theirs in there}
    return TorchRunner(model, {n: (theirs, Weight("", n, theirs)) for n, theirs in names.items()})
