"""Module: parameters by name, defined without sizes, and a forward function.

A module names its parameters when it first sees data (or a Spec): until then it costs no memory.
The initial values depend on the seed and on the parameter's path alone, so two models of the same
structure begin alike, in any order of building and on any engine.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from trivium.graph import MODE, OPS, Graph, current
from trivium.interpret import traced_dims
from trivium.nn.chance import settled
from trivium.nn.habits import Habits
from trivium.nn.held import called, calling, changed, held, mode
from trivium.nn.parameter import Parameter, narrowed
from trivium.op import lift
from trivium.operators import Operators
from trivium.shape import Shape, ShapeError, subs
from trivium.tensor import Spec, asarray, is_array, spec_of
from trivium.transforms.replay import freeze, specialize

_default_seed = 0


def seed(n: int) -> None:
    """Set the seed that modules built from now on take their initial values from, and dropout's."""
    global _default_seed, _keys
    _default_seed, _keys = n, itertools.count(1)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _random(path: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{path}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


_BESIDE = ("inputs_seen", "report", "training_setup", "metrics")  # no forward reads them


class Module(Habits):
    """What every layer and model is. Write ``forward``; make parameters there, with ``self.param``.

    >>> import trivium as tv
    >>> model = tv.nn.Sequential(tv.nn.Linear(4), tv.nn.relu, tv.nn.Linear(2))
    >>> model(tv.ones((3, 5))).shape
    (3, 2)
    >>> {name: p.shape for name, p in model.named_parameters()}
    {'0.weight': (4, 5), '0.bias': (4,), '2.weight': (2, 4), '2.bias': (2,)}
    """

    _at = ""  # the path in the model that it was last called in
    _training: bool = True
    _requires_grad: bool = True
    _seed: int | None = None
    inputs_seen: tuple[Spec, ...] = ()
    """What the model was last called, built or fitted with, its batch open."""
    report: Any = None
    """The evidence, of a model that was read from another framework."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not (name.startswith("_") or name in _BESIDE) and calling() is None:
            changed()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        changed()

    def __getattr__(self, name: str) -> Any:
        # Only what is found nowhere else comes here: perhaps what param() made.
        made = vars(self).get("_parameters", {})
        if name in made:
            return made[name]
        raise AttributeError(self._lacks(name), name=name, obj=self)

    def _lacks(self, name: str) -> str:
        """Why there is no attribute of this name, in words."""
        return f"{type(self).__name__!r} object has no attribute {name!r}"

    def forward(self, *args: Any) -> Any:
        """The outputs for these inputs."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any) -> Any:
        graph = current()
        args = tuple(asarray(a) if type(a) is list and is_array(a) else a for a in args)
        if calling() is not None:
            return self._forward(graph, args)
        with called(self):
            result = self._forward(graph, args)
        self._remember(args)
        return result

    def _remember(self, args: tuple[Any, ...]) -> None:
        arrays = [a for a in args if isinstance(a, (np.ndarray, Operators))]
        fixed = all(isinstance(s, int) for a in arrays for s in a.shape[1:])
        if len(arrays) == len(args) and fixed:
            self.inputs_seen = tuple(spec_of(a, batch=True) for a in arrays)

    def _forward(self, graph: Graph | None, args: tuple[Any, ...]) -> Any:
        try:
            if graph is None:
                args = tuple(asarray(a) if isinstance(a, np.ndarray) else a for a in args)
                return self.forward(*args)
            with graph.within(self._path):
                return self.forward(*args)
        except (ShapeError, TypeError, ValueError) as error:
            if getattr(error, "_placed", False) or not self._path:
                raise
            shapes = ", ".join(str(getattr(a, "shape", a)) for a in args)
            message = f"{error}\n  in layer {self._path!r} ({self!r}), which got shape {shapes}"
            placed = type(error)(message)
            placed._placed = True  # type: ignore[union-attr]
            raise placed from error

    @property
    def _path(self) -> str:
        """Its path in the model that is being called, in this thread, or was called last."""
        call = calling()
        return self._at if call is None else call.path(self) or ""

    # -- structure -----------------------------------------------------------------------------
    def children(self) -> dict[str, Module]:
        """The modules directly inside, by attribute name."""
        return dict(held(self._attributes(), Module))

    def _attributes(self) -> dict[str, Any]:
        """Where parts of this module are looked for."""
        found = vars(self).copy()  # at once: another thread may be making parameters
        found.pop("_parameters", None)
        return found

    def _own(self) -> dict[str, Parameter]:
        """The parameters directly inside: those that ``param`` made, and attributes."""
        made: dict[str, Parameter] = self.__dict__.get("_parameters", {})
        return made | dict(held(self._attributes(), Parameter))

    def _named(self) -> dict[str, Any]:
        """Every module and parameter inside by path, this one under ""; tells them their paths."""
        found: dict[str, Any] = {}
        seed = _default_seed if self._seed is None else self._seed
        for path, module in self._walk(""):
            vars(module).update(_at=path, _seed=seed)
            own = {_join(path, name): p for name, p in module._own().items()}
            if twice := found.keys() & {path, *own}:
                raise ValueError(f"{self!r} holds two things as {sorted(twice)[0]!r}")
            found |= {path: module} | own
        for name, p in reversed(found.items()):  # the first of its names, if it has several
            if isinstance(p, Parameter):
                p.name = name
        return found

    def _walk(self, path: str, seen: set[int] | None = None) -> Iterator[tuple[str, Module]]:
        """Every module once, under the first of its paths."""
        seen = set() if seen is None else seen
        if id(self) in seen:
            return
        seen.add(id(self))
        yield path, self
        for name, child in self.children().items():
            yield from child._walk(_join(path, name), seen)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, depth first, each once."""
        return (module for _, module in self._walk(""))

    def param(
        self, name: str, shape: Shape, init: Callable[..., Any], kind: str = "param"
    ) -> Parameter:
        """The parameter ``name`` of this module, made on first use.

        ``init(rng, shape) -> ndarray`` gives its initial values.
        """
        if (call := calling()) is not None:
            call.need(self, f"{self!r}, which has a parameter {name!r},")
        made = self.__dict__.setdefault("_parameters", {})
        if isinstance(given := vars(self).get(name), Parameter):
            made[name] = given
        if name not in made:
            if not all(isinstance(s, int) for s in shape):
                raise ShapeError(
                    f"{name} would have the open shape {shape}: parameters have fixed sizes"
                )
            path = _join(self._path, name)
            data = init(_random(path, self._seed or 0), shape)
            # Another thread may have made it meanwhile, with the same numbers: there is one.
            array = narrowed(data)
            made.setdefault(name, Parameter(array, path, kind, self._requires_grad))
        parameter: Parameter = made[name]
        if parameter.shape != tuple(shape):
            raise ShapeError(f"{name} has shape {parameter.shape}, this input wants {tuple(shape)}")
        return parameter

    def named_parameters(self, *kinds: str, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Names and parameters, by default no states; ``kinds`` of "param", "state"."""
        seen: set[int] = set()
        for path, module in self._walk(""):
            for name, p in module._own().items():
                if p.kind in (kinds or ("param",)) and id(p) not in seen:
                    seen.add(id(p))
                    yield prefix + _join(path, name), p

    def parameters(self) -> list[Parameter]:
        """The parameters, also those that are frozen."""
        return [p for _, p in self.named_parameters()]

    def requires_grad_(self, flag: bool = True) -> Module:
        """Freeze every parameter inside (False), made already or not, or have them trained again.

        >>> import trivium as tv
        >>> body, head = tv.nn.Linear(4), tv.nn.Linear(2)
        >>> model = tv.nn.Sequential(body.requires_grad_(False), tv.relu, head)
        >>> _ = model(tv.ones((3, 5)))
        >>> [(name, p.requires_grad) for name, p in model.named_parameters()][1:3]
        [('0.bias', False), ('2.weight', True)]
        """
        for module in self.modules():
            module._requires_grad = flag
            for p in module._own().values():
                if p.kind == "param" and (p.dtype.is_floating or not flag):
                    p.requires_grad = flag
        return self

    @property
    def trainable(self) -> bool:
        """Is anything inside trained? Setting it is Keras's word for ``requires_grad_``."""
        return self._requires_grad

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self.requires_grad_(flag)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters():
            p.grad = None

    # -- mode ----------------------------------------------------------------------------------
    @property
    def training(self) -> Any:
        """True, False, or MODE inside a Graph that leaves it open."""
        call = calling()  # what forward makes for itself is in the mode of its model
        frozen = call is not None and call.model._training and not self._training
        if frozen and call is not None and call.path(self) is not None:
            return False  # a part that was set to eval() stays as it is while the rest trains
        graph = current()
        if graph is not None and graph.training is not None:
            return graph.training
        if (asked := mode()) is not None:
            return asked
        return (
            self._training if call is None or call.path(self) is not None else call.model._training
        )

    def train(self, mode: bool = True) -> Module:
        """Training mode: dropout drops, batch norm uses and collects the batch's statistics."""
        for module in self.modules():
            module._training = mode
        return self

    def eval(self) -> Module:
        """Inference mode."""
        return self.train(False)

    # -- state ---------------------------------------------------------------------------------
    def build(self, *specs: Any) -> Module:
        """Make the parameters, for inputs like these, without computing anything."""
        graph = Graph()
        graph.training = False
        with graph:
            inputs = [spec_of(s) for s in specs]
            self(*(graph.input("data", s.dtype, s.shape, f"x{i}") for i, s in enumerate(inputs)))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Every parameter and state by name, as NumPy arrays."""
        return {name: p.data for name, p in self.named_parameters("param", "state")}

    def load_state_dict(self, values: Mapping[str, Any]) -> Module:
        """Take these numbers; names and shapes must match exactly."""
        mine = dict(self.named_parameters("param", "state"))
        if not mine:
            raise ValueError(
                "this model has no parameters yet: they are made by its first call; "
                "call model.build(example) first"
            )
        if missing := mine.keys() - values.keys():
            raise KeyError(f"the state has no {', '.join(sorted(missing))}")
        if extra := values.keys() - mine.keys():
            raise KeyError(f"the model has no {', '.join(sorted(extra))}")
        for name, p in mine.items():  # all of them before the first is taken
            if (shape := np.shape(values[name])) != p.shape:
                raise ShapeError(f"{name} has shape {p.shape}, the state holds {shape}")
        for name, p in mine.items():
            p.data = np.array(values[name], p.data.dtype)
        return self

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}: {type(c).__name__}" for n, c in self.children().items())
        return f"{type(self).__name__}({inside})"


def trace(
    function: Callable[..., Any], *specs: Any, training: Any = None, name: str | None = None
) -> Graph:
    """The Graph of a function or module on inputs like ``specs``.

    A spec is ``tv.Spec(dtype, shape)``, ``(dtype, shape)`` or an example array. ``training`` True
    or False decides the mode; None leaves it open (batch norm and dropout carry ``training=MODE``).

    >>> import trivium as tv
    >>> print(tv.trace(tv.nn.Linear(2), ("float32", ("batch", 3))))
    def Linear(
        x0: data("x0", float32, ("batch", 3)),
        weight: param("weight", float32, (2, 3)),
        bias: param("bias", float32, (2,)),
    ):
        linear_1 = linear(x0, weight, bias)
        return linear_1
    """
    default = (
        type(function).__name__
        if isinstance(function, Module)
        else getattr(function, "__name__", "graph")
    )
    title = name or default.strip("<>")
    return settled(lambda: trace_once(function, specs, training, title), function, title)


def trace_once(
    function: Callable[..., Any], specs: Any, training: Any = None, name: str = "graph"
) -> Graph:
    """The Graph of one call, to be run once: what chance decides in it may be decided."""
    graph = Graph(name)
    graph.training = MODE if training is None else training
    with graph:
        result = function(
            *(
                graph.input("data", s.dtype, s.shape, f"x{i}")
                for i, s in enumerate(map(spec_of, specs))
            )
        )
        _finish(graph, result)
    if isinstance(function, Module):
        own = (m for m in function.modules() if type(m).__module__ != "trivium.nn.layers")
        graph.classes = {m._path: type(m).__name__ for m in own if not isinstance(m, GraphModule)}
    return graph


def _finish(graph: Graph, result: Any) -> None:
    if isinstance(result, Mapping):
        graph.structure = tuple(result)
        items = list(result.values())
    elif isinstance(result, (tuple, list)):
        graph.structure = type(result)
        items = list(result)
    else:
        items = [result]
    graph.outputs = [lift(graph, item, None) for item in items]


def restructure(graph: Graph, outputs: list[Any]) -> Any:
    """Outputs nested as the traced function returned them."""
    if graph.structure is None:
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
    if isinstance(graph.structure, tuple):
        return dict(zip(graph.structure, outputs, strict=True))
    return graph.structure(outputs)


class GraphModule(Module):
    """A Module made of a Graph, trainable and composable: what importers and ``tv.load`` give."""

    def __init__(
        self, graph: Graph, values: Mapping[str, Any], source_names: Mapping[str, str] | None = None
    ):
        self._graph = graph
        self.source_names = dict(source_names or {})
        """What each parameter was called in the framework it came from."""
        self.weight_maps: dict[str, Any] = {}
        """How the arrays there, by those names, become ours, where they differ."""
        self._parameters = {}
        for v in graph.of_kind("param", "state"):
            data = np.asarray(values[v.name])
            if data.shape != v.shape:
                raise ShapeError(f"{v.name} has shape {v.shape}, got {data.shape}")
            self._parameters[v.name] = Parameter(
                data.astype(v.dtype.numpy), v.name, v.kind or "param", v.trainable
            )

    @property
    def graph(self) -> Graph:
        """The Graph, with the parameters frozen that are frozen now."""
        frozen = {n for n, p in self._parameters.items() if not p.requires_grad}
        if any(v.trainable == (v.name in frozen) for v in self._graph.of_kind("param")):
            self._graph = freeze(self._graph, frozen)
        return self._graph

    def forward(self, *args: Any) -> Any:
        """The Graph applied to ``args``, op by op: eagerly, or into the Graph being built."""
        data = self._graph.of_kind("data")
        if len(args) != len(data):
            raise TypeError(f"{self._graph.name} takes {len(data)} inputs, got {len(args)}")
        args = tuple(asarray(a) for a in args)
        env: dict[Any, Any] = {None: None} | dict(zip(data, args, strict=True))
        for v in self._graph.of_kind("param", "state"):
            env[v] = self._parameters[v.name]
        graph = current()
        for v in self._graph.of_kind("rng"):
            env[v] = random_key()
        dims = traced_dims(self._graph, args)

        def attr(item: Any) -> Any:
            if item is MODE:
                return self.training
            if isinstance(item, tuple):
                return tuple(map(attr, item))
            if isinstance(item, Graph):
                mode = self.training
                return specialize(item, dims, None if mode is MODE else mode)
            return subs(item, dims)

        base = graph.scope if graph else ""
        for node in self._graph.nodes:
            scope = ".".join(filter(None, (base, node.scope)))
            attrs = {k: attr(a) for k, a in node.attrs.items()}
            if "salt" in attrs:
                attrs["salt"] = fresh_salt(attrs["salt"])
            inputs = [env[v] for v in node.inputs]
            if graph is None:
                out = OPS[node.op](*inputs, **attrs)
            else:
                with graph.within(scope):
                    out = OPS[node.op](*inputs, **attrs)
            env |= zip(node.outputs, out if isinstance(out, tuple) else (out,), strict=True)
        for state, new in self._graph.updates.items():
            if self.training is MODE or self.training:
                env[state].assign(env[new])
        return restructure(self._graph, [env[v] for v in self._graph.outputs])

    def __repr__(self) -> str:
        return f"GraphModule({self._graph.name})"


_keys = itertools.count(1)


def fresh_salt(wish: int) -> int:
    """``wish``, or the next number with which nothing draws yet in the Graph that is being built.

    Two draws with one key and one salt would be the same numbers.
    """
    graph = current()
    used = {node.attrs.get("salt") for node in graph.nodes} if graph else set()
    while wish in used:
        wish += 1
    return wish


def random_key() -> Any:
    """The key a dropout draws from: the Graph's rng input while tracing, else a fresh one."""
    graph = current()
    if graph is not None:
        return graph.key()
    return asarray(np.array([_default_seed, next(_keys)], np.uint64))


__all__ = [
    "GraphModule",
    "Module",
    "Parameter",
    "Spec",
    "random_key",
    "restructure",
    "seed",
    "trace",
]
