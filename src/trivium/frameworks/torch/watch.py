"""A torch module as it runs: with its dropouts passing everything on, or telling every result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_RATES = {"dropout": "p", "alpha_dropout": "p", "feature_dropout": "p", "dropout1d": "p",
          "dropout2d": "p", "dropout3d": "p", "feature_alpha_dropout": "p",
          "scaled_dot_product_attention": "dropout_p"}  # fmt: skip
"""torch's functions that drop at random, and what each calls its rate."""
_AT = {"scaled_dot_product_attention": 4}  # where the rate stands among the positional arguments

_ADDS = ("add", "radd", "iadd")


@contextlib.contextmanager
def quiet(module: Any) -> Iterator[list[float]]:
    """Every dropout is passed over, wherever it is called from; the list gets the rates."""
    import torch.nn.functional as functional
    from torch.overrides import TorchFunctionMode

    rates: list[float] = []

    class Quiet(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = getattr(func, "__name__", "").strip("_")
            return passed(name, func, args, dict(kwargs or {}))

    def passed(name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name == "bernoulli" and len(args) == 2 and isinstance(args[1], float):
            # The mask of a branch that is dropped by chance, which is then divided by this number.
            rates.append(1 - args[1])
            return args[0].fill_(args[1])
        if name in ("rand", "rand_like", *_ADDS, "floor"):
            return floored(name, func, args, kwargs)
        if name not in _RATES:
            return func(*args, **kwargs)
        at, key = _AT.get(name, 1), _RATES[name]
        rate = kwargs.get(key, args[at] if len(args) > at else (0.0 if at > 1 else 0.5))
        on = at > 1 or kwargs.get(
            "training", kwargs.get("train", args[2] if len(args) > 2 else True)
        )
        if rate and on:
            rates.append(float(rate))
        if at == 1:
            return args[0] if args else kwargs["input"]
        args = (*args[:at], 0.0, *args[at + 1 :]) if len(args) > at else args
        return func(*args, **(kwargs | ({} if len(args) > at else {key: 0.0})))

    def floored(name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The same mask written ``floor(keep + rand(sizes))``: floor finds the chance on it."""
        keep = getattr(args[0], "_keep", None) if name == "floor" else None
        if keep is not None:
            rates.append(1 - keep)
            return args[0].fill_(keep)
        result = func(*args, **kwargs)
        if name.startswith("rand"):
            result._drawn = True
        elif name in _ADDS and any(getattr(a, "_drawn", False) for a in args):
            result._keep = next((a for a in args if isinstance(a, float)), None)
        return result

    def within(name: str, func: Any) -> Any:
        return lambda *args, **kwargs: passed(name, func, args, kwargs)

    # What torch's own functions call in turn (attention in multi_head_attention_forward) no mode
    # sees: they find these names in their module.
    own = {n: getattr(functional, n) for n in _RATES if hasattr(functional, n)}
    try:
        for name, func in own.items():
            setattr(functional, name, within(name, func))
        with Quiet():
            yield rates
    finally:
        for name, func in own.items():
            setattr(functional, name, func)


@contextlib.contextmanager
def watching(module: Any) -> Iterator[list[tuple[str, Any]]]:
    """The list gets every operator's result and where it belongs: ("aten.relu in layer1.0", y)."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[tuple[str, Any]] = []
    inside: list[str] = [""]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            first = result[0] if isinstance(result, (tuple, list)) and result else result
            told = len(inside) > 1 and isinstance(first, torch.Tensor)
            if told and first.is_floating_point():
                name = f"{func}".rpartition(".")[0] or f"{func}"
                array = np.array(first.detach().to(torch.float64).cpu().numpy())
                found.append((f"{name} in {inside[-1] or 'the top scope'}", array))
            return result

    def leave(*_: Any) -> None:
        inside.pop()

    hooks = []
    for name, child in module.named_modules():
        hooks.append(child.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        hooks.append(child.register_forward_hook(leave))
    try:
        with Watch():
            yield found
    finally:
        for hook in hooks:
            hook.remove()
