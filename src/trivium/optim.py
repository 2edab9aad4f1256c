"""Optimizers: each says once, in ops, what it does to a parameter; every engine runs that.

The same object serves the three habits: ``optimizer.step()`` after ``backward()``, a name or object
for ``model.compile``, and ``optimizer.minimize(loss)`` inside a Graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trivium.graph import OPS, Graph, GraphError, Value
from trivium.nn.module import Parameter
from trivium.tensor import Tensor, no_grad
from trivium.transforms.step import Update, update_of


class Optimizer:
    """What SGD and Adam share: ``Optimizer(lr)`` or, bound, ``Optimizer(parameters, lr)``."""

    slots: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        house = type(self).__module__ == __name__  # a user's own has what its author gives it
        if house and not (name in ("lr", "parameters", "attrs", "slots") or name.startswith("_")):
            kind = type(self).__name__
            raise AttributeError(
                f"{kind} has no {name} that could be set: lr is what may change; the rest is said "
                f"when it is made, {kind}{inspect.signature(type(self))}"
            )
        super().__setattr__(name, value)

    def __init__(self, first: Any = None, lr: float | None = None):
        if isinstance(first, (int, float)):
            first, lr = None, float(first)
        self.lr = self.default_lr if lr is None else float(lr)
        self.parameters: list[Parameter] = list(first) if first is not None else []
        if first is not None and not self.parameters:
            raise ValueError(
                f"{type(self).__name__} was given no parameters: a model has none before it is "
                f"built; call it, or model.build(example), first"
            )
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError(f"{type(self).__name__} was given one parameter twice")
        self._state: dict[Parameter, dict[str, Any]] = {}
        self._count = 0

    default_lr = 0.01

    def rule(self, p: Any, g: Any, slots: dict[str, Any], count: Any, lr: Any) -> Any:
        """``(p, slots)`` after one step."""
        raise NotImplementedError

    def update(self) -> Update:
        """The rule as a Graph."""
        return update_of(self.rule, self.slots)

    def step(self, parameters: Iterable[Parameter] | None = None) -> None:
        """Change every parameter that is not frozen by its ``.grad``."""
        changed = self.parameters if parameters is None else list(parameters)
        if not changed:
            raise ValueError(
                f"{self!r} has no parameters to change: {type(self).__name__}(model.parameters(), "
                f"lr) or step(model.parameters()), of a model that is built"
            )
        self._count += 1
        with no_grad():
            for p in changed:
                if p.grad is None or not p.requires_grad:
                    continue
                zeros = {s: Tensor(np.zeros_like(p.data)) for s in self.slots}
                held = self._state.setdefault(p, zeros)
                count, lr = (Tensor(np.asarray(v, p.data.dtype)) for v in (self._count, self.lr))
                new, self._state[p] = self.rule(Tensor(p.data), p.grad, held, count, lr)
                p.data = new.data

    def zero_grad(self) -> None:
        """Forget the gradients of the bound parameters."""
        for p in self.parameters:
            p.grad = None

    def minimize(self, loss: Value) -> TrainOp:
        """Inside a Graph: the operation that trains every parameter ``loss`` depends on."""
        return TrainOp(loss.graph, loss, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self.lr})"


class TrainOp:
    """What ``minimize`` gives: run it in a Session."""

    def __init__(self, graph: Graph, loss: Value, optimizer: Optimizer):
        if loss.shape != ():
            raise GraphError(f"minimize wants a scalar, got shape {loss.shape}")
        self.graph, self.loss, self.optimizer = graph, loss, optimizer


class SGD(Optimizer):
    """v = momentum * v + g; p -= lr * v: torch.optim.SGD.

    >>> import trivium as tv
    >>> w = tv.nn.Parameter(np.float32([1.0]), "w")
    >>> (w * w).sum().backward()
    >>> SGD([w], lr=0.1).step()
    >>> w
    tensor([0.8])
    """

    def __init__(self, first: Any = None, lr: float | None = None, *, momentum: float = 0.0,
                 nesterov: bool = False, weight_decay: float = 0.0):  # fmt: skip
        super().__init__(first, lr)
        self.attrs = dict(momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        self.slots = ("velocity",) if momentum else ()

    def rule(self, p: Any, g: Any, slots: dict[str, Any], count: Any, lr: Any) -> Any:
        """See ``ops.update.sgd_update``."""
        out = OPS["sgd_update"](p, g, slots.get("velocity"), lr, **self.attrs)
        return (out[0], {"velocity": out[1]}) if self.slots else (out, {})


class Adam(Optimizer):
    """Adam as torch has it: epsilon is added after the bias correction (Kingma & Ba, 2015)."""

    default_lr = 0.001
    slots = ("m", "v")
    decoupled = False
    default_decay = 0.0

    def __init__(self, first: Any = None, lr: float | None = None, *, beta1: float = 0.9,
                 beta2: float = 0.999, epsilon: float = 1e-8,
                 weight_decay: float | None = None):  # fmt: skip
        super().__init__(first, lr)
        decay = self.default_decay if weight_decay is None else weight_decay
        self.attrs = dict(beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay,
                          decoupled=self.decoupled)  # fmt: skip

    def rule(self, p: Any, g: Any, slots: dict[str, Any], count: Any, lr: Any) -> Any:
        """See ``ops.update.adam_update``."""
        p, m, v = OPS["adam_update"](p, g, slots["m"], slots["v"], count, lr, **self.attrs)
        return p, {"m": m, "v": v}


class AdamW(Adam):
    """Adam with decoupled weight decay, 0.01 by default as in torch (Keras: 0.004)."""

    decoupled = True
    default_decay = 0.01


NAMES: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def get(spec: str | Optimizer) -> Optimizer:
    """The optimizer that a name means, with its defaults; or the one given."""
    if isinstance(spec, Optimizer):
        return spec
    if spec not in NAMES:
        raise ValueError(f"no optimizer {spec!r}; there are {', '.join(NAMES)}")
    return NAMES[spec]()


__all__: Sequence[str] = ["SGD", "Adam", "AdamW", "Optimizer", "TrainOp", "get"]
