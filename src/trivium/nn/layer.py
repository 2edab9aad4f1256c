"""What the layers of the house share: words for what other frameworks call otherwise.

A layer says what its arguments are, where a habit from elsewhere meets other ones; and it takes no
attribute that it would not read.
"""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable
from typing import Any, ClassVar

from trivium.nn.module import Module
from trivium.nn.parameter import Parameter

_HERE = {
    "p": "rate", "eps": "epsilon", "out_features": "out", "units": "out", "out_channels": "out",
    "channels": "out", "filters": "out", "kernel_size": "kernel", "pool_size": "kernel",
    "strides": "stride", "dilation_rate": "dilation", "hidden_size": "hidden",
    "num_embeddings": "count", "embedding_dim": "width", "input_dim": "count",
    "output_dim": "width", "use_bias": "bias", "num_groups": "groups", "nonlinearity": "activation",
    "kernel_initializer": "init", "count_include_pad": "include_pad",
}  # fmt: skip
"""What torch, Keras and Gluon call an argument, and its name here."""

_SIZES = {"in_features", "in_channels", "num_features", "normalized_shape", "input_size",
          "in_units", "input_shape", "input_dim"}  # fmt: skip
_LEARNT = "input sizes are learnt from the first batch, not declared"


class Layer(Module):
    """The base of the layers in :mod:`trivium.nn.layers`."""

    _owned: ClassVar[tuple[str, ...]] = ()
    """The names of its parameters."""
    _house: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        # A user's subclass has what its author gives it.
        cls._house = cls.__module__ == "trivium.nn.layers"
        if cls._house and "__init__" in vars(cls):
            cls.__init__ = _guided(cls.__init__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        if self._house and "_made" in vars(self) and not name.startswith("_"):
            self._take(name, value)
        super().__setattr__(name, value)
        if name == "has_bias" and not value:
            vars(self).pop("bias", None)
            vars(self).get("_parameters", {}).pop("bias", None)

    def _take(self, name: str, value: Any) -> None:
        """Raise unless the next call honours this attribute."""
        kind = type(self).__name__
        if name in self._owned:
            if not isinstance(value, Parameter):
                out = " (has_bias=False leaves it out)" if "has_" + name in vars(self) else ""
                raise AttributeError(
                    f"{name} of {self!r} is a parameter{out}: layer.{name}.data = array gives it "
                    f"other numbers after the first call, layer.{name} = other.{name} ties it"
                )
            if not vars(self).get("has_" + name, True):
                raise AttributeError(f"{self!r} reads no {name}: has_{name} is False")
        elif name == "init":
            if vars(self).get("_parameters"):
                raise AttributeError(
                    f"the parameters of {self!r} are made already, so init would change nothing; "
                    f"layer.weight.data = array gives it other numbers"
                )
        elif name not in vars(self) and not hasattr(type(self), name):
            raise AttributeError(f"{kind} has no {name}, so setting it would change nothing; "
                                 f"{self._has(name)}")  # fmt: skip

    def _has(self, name: str) -> str:
        """Which attributes may be set, and which of them is meant by ``name``."""
        fields = [f for f in vars(self) if f[0] != "_" and f not in ("inputs_seen", *self._owned)]
        if isinstance(getattr(type(self), "layers", None), property):
            fields.append("layers")
        known = _HERE.get(name)
        meant = f" ({name} is called {known} here)" if known in fields else ""
        return f"it has {', '.join(fields) or 'nothing to set'}{meant}"

    def _lacks(self, name: str) -> str:
        if name in self._owned:
            if not vars(self).get("has_" + name, True):
                return f"{self!r} was made without {name}"
            return (
                f"{self!r} has no {name} yet: parameters are made by the first call, or by "
                f"build(example); then layer.{name} is it. layer.{name} = other.{name} ties two "
                f"layers, layer.param({name!r}, shape, init) makes it now"
            )
        return super()._lacks(name) + (f"; {self._has(name)}" if name[0] != "_" else "")


def _guided(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that says in words of the house what is wrong with its arguments."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Layer, *args: Any, **named: Any) -> None:
        try:
            signature.bind(self, *args, **named)
        except TypeError as error:
            raise TypeError(_wrong(self, signature, args, named, str(error))) from None
        init(self, *args, **named)
        vars(self)["_made"] = True

    return __init__


def _wrong(layer: Layer, signature: inspect.Signature, args: Any, named: Any, why: str) -> str:
    kind, params = type(layer).__name__, list(signature.parameters.values())[1:]
    places = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in params)
    names = {p.name for p in params}

    def call(args: Any, named: Any) -> str:
        given = [*map(reprlib.repr, args), *(f"{k}={reprlib.repr(v)}" for k, v in named.items())]
        return f"{kind}({', '.join(given)})"

    said = []
    for k in named.keys() - names:
        here = _HERE.get(k)
        if here in names:
            said.append(f"{k} is called {here} here")
        elif k in _SIZES:
            said.append(f"{_LEARNT}: leave {k} out")
        else:
            said.append(f"it has no {k}")
    if len(args) > places:
        rest = {k: v for k, v in named.items() if k in names}
        try:  # without a table's sizes, which are declared, is the first argument one too many?
            signature.bind(layer, *args[1:], **rest)
            sized = bool(layer._owned) and "count" not in names
        except TypeError:
            sized = False
        if sized:
            said.append(f"{_LEARNT}: if {args[0]!r} is one, write {call(args[1:], rest)}")
        if len(params) > places:
            said.append("what comes after * is given by name")
        elif not sized:
            said.append(f"it has {places or 'no'} arguments")
    return f"{call(args, named)}: {'; '.join(sorted(said)) or why}; it is {kind}{_shown(params)}"


def _shown(params: list[inspect.Parameter]) -> str:
    """The arguments without their types: ``(out, *, bias=True, init=glorot)``."""
    words, starred = [], False
    for p in params:
        if p.kind is p.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        default = getattr(p.default, "__name__", None) or repr(p.default)
        words.append(p.name if p.default is p.empty else f"{p.name}={default}")
    return f"({', '.join(words)})"
