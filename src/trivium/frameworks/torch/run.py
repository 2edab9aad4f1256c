"""Models in PyTorch: running, differentiating and training them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivium.frameworks.layer import Weight
from trivium.frameworks.made import Held, furnished, looking
from trivium.frameworks.runner import Array, Pulled
from trivium.frameworks.source import execute
from trivium.frameworks.torch.emit import emit
from trivium.graph import Graph
from trivium.transforms.replay import specialize
from trivium.transforms.step import Update, by_mode


def load_torch() -> Any:
    """The torch module, or an ImportError with the remedy."""
    try:
        import torch
    except ImportError:
        raise ImportError("PyTorch is not installed: pip install torch") from None
    return torch


def build(graph: Graph, values: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[str, Weight]]]:
    """The torch module that the Graph's source makes, with these numbers, and where each is."""
    load_torch()
    emitted = emit(graph)
    module = execute(emitted, "torch")()
    module.source = emitted.source
    furnished(TorchRunner, module, emitted, graph, values)
    return module, emitted.weights


class TorchRunner:
    """Any torch module. ``weights`` says where our parameters are in it."""

    def __init__(self, module: Any, weights: Mapping[str, tuple[str, Weight]], device: str = "cpu"):
        self.torch = load_torch()
        self.module, self.weights, self.device = module.to(device), weights, device

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
            ours: np.array(w.back(named[theirs].detach().cpu().numpy()))
            for ours, (theirs, w) in self.weights.items()
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        named = self._tensors()
        with self.torch.no_grad():
            for ours, (theirs, w) in self.weights.items():
                new = np.array(w.to(np.asarray(values[ours])))
                named[theirs].copy_(self.torch.from_numpy(new))

    def _inputs(self, inputs: Sequence[Array]) -> list[Any]:
        return [self.torch.from_numpy(np.array(x)).to(self.device) for x in inputs]

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        kept = {k: v.clone() for k, v in self.module.state_dict().items()}
        was = self.module.training
        with self.torch.no_grad():
            found = _listed(self.module.train(training)(*self._inputs(inputs)))
        self.module.load_state_dict(kept)
        self.module.train(was)
        return [t.detach().cpu().numpy() for t in found]

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by torch's autograd."""
        kept = {k: v.clone() for k, v in self.module.state_dict().items()}
        was = self.module.training
        xs = self._inputs(inputs)
        for x in xs:
            if x.is_floating_point():
                x.requires_grad_(True)
        outputs = _listed(self.module.train(training)(*xs))
        named = {o: t for o, (t, _) in self.weights.items()}
        tensors = self._tensors()
        wanted = {o: tensors[t] for o, t in named.items() if tensors[t].requires_grad}
        gs = [self.torch.from_numpy(np.array(c)).to(self.device) for c in cotangents]
        sources = [x for x in xs if x.requires_grad]
        floating = [o for o in outputs if o.is_floating_point()]
        reached = [(o, g) for o, g in zip(floating, gs, strict=True) if o.requires_grad]
        targets = [*wanted.values(), *sources]
        grads = [None] * len(targets)
        if reached and targets:
            ends, heads = zip(*reached, strict=True)
            grads = self.torch.autograd.grad(ends, targets, heads, allow_unused=True)
        arrays = [None if g is None else g.cpu().numpy() for g in grads]
        params = {
            o: self.weights[o][1].back(np.zeros(tuple(t.shape), np.float32) if g is None else g)
            for (o, t), g in zip(wanted.items(), arrays, strict=False)
        }
        rest = iter(arrays[len(wanted) :])
        states = {
            o: np.array(w.back(tensors[t].detach().cpu().numpy()))
            for o, (t, w) in self.weights.items()
            if o not in wanted
        }
        self.module.load_state_dict(kept)
        self.module.train(was)
        return Pulled(
            [o.detach().cpu().numpy() for o in outputs],
            params,
            [next(rest) if x.requires_grad else None for x in xs],
            states,
        )


def _listed(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


class TorchTrainer:
    """The loss Graph as a torch module, gradients by autograd, the optimizer's update emitted."""

    def __init__(
        self, graph: Graph, values: Mapping[str, Any], update: Update, device: str = "cpu"
    ):
        self.torch = load_torch()
        module, weights = build(by_mode(graph), values)
        self.runner = TorchRunner(module.train(), weights, device)
        self.module = module
        self.update = execute(emit(specialize(update.graph)), "torch")().to(device)
        tensors = self.runner._tensors()
        self.params = [t for t in tensors.values() if t.requires_grad]
        self.slots = [[self.torch.zeros_like(p) for _ in update.slots] for p in self.params]
        self.count = self.torch.zeros((), device=device)

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        torch = self.torch
        xs = [x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x)) for x in inputs]
        loss = self.module(*(x.to(self.runner.device) for x in xs))
        grads = torch.autograd.grad(loss, self.params)
        rate = torch.tensor(lr, device=self.runner.device)
        with torch.no_grad():
            self.count += 1
            for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
                new = self.update(p, g, *self.slots[i], self.count, rate)
                first, *slots = new if isinstance(new, tuple) else (new,)
                p.copy_(first)
                self.slots[i] = slots
        return float(loss.detach())

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        return self.runner.values()

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""
        self.runner.load(values)


def foreign(model: Any, module: Any) -> TorchRunner:
    """A torch model of the user's own; ``module`` is what reading it gave."""
    names = {n: module.source_names.get(n, n) for n in module.state_dict()}
    return TorchRunner(model, {n: (theirs, Weight("", n, theirs)) for n, theirs in names.items()})
