"""Models in JAX: running, differentiating and training them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trivium.dtype import as_dtype
from trivium.frameworks.jax.emit import NARROW, emit
from trivium.frameworks.jax.tree import flatten, nest
from trivium.frameworks.layer import Weight
from trivium.frameworks.made import Held, execute, furnished
from trivium.frameworks.runner import Array, Names, Pulled, listed
from trivium.graph import Graph, UnsupportedError
from trivium.transforms.step import COUNT, Update, by_dtype


@functools.cache
def load_jax() -> Any:
    """The jax module, or an ImportError with the remedy."""
    try:
        import jax
    except ImportError:
        raise ImportError("JAX is not installed: pip install jax") from None
    jax.tree_util.register_pytree_node(
        _Read,
        lambda p: (list(p.values()), tuple(p)),
        lambda names, leaves: dict(zip(names, leaves, strict=True)),
    )
    return jax


@dataclass
class JaxModel:
    """A function of (params, *inputs), its parameters, and which of them no gradient changes."""

    function: Callable[..., Any]
    params: dict[str, Any]
    states: frozenset[str] = frozenset()
    updates: bool = False
    """While training the function gives (y, the new states)."""
    source: str = ""
    owed: frozenset[str] = frozenset()
    """The parameters that the function has to read; looked after when it first runs."""
    structure: Names = None
    """The names of its outputs, once it ran."""

    def __call__(self, *inputs: Any) -> Any:
        return self.function(self.params, *inputs)

    def apply(
        self, params: Mapping[str, Any], inputs: Sequence[Any], training: bool, key: Any
    ) -> Any:
        """All outputs, and the states that changed by dotted name; the parameters are flat here."""
        accepted = inspect.signature(self.function).parameters
        given: dict[str, Any] = {"training": training} if "training" in accepted else {}
        given |= {"rng": key} if "rng" in accepted else {}
        seen: set[str] = set()
        result = self.function(_Read(nest(params), seen), *inputs, **given)
        if unread := sorted(self.owed - seen):
            raise UnsupportedError(f"JAX source that does not read the parameter {unread[0]!r}")
        state: dict[str, Any] = {}
        if self.updates and (training or "training" not in accepted):
            result, state = result
        outputs, self.structure = listed(result)
        return outputs, flatten(state)


class _Read(dict[str, Any]):
    """Nested parameters that note which of them are read."""

    def __init__(self, tree: Mapping[str, Any], seen: set[str], path: str = ""):
        super().__init__(
            {k: _Read(v, seen, f"{path}{k}.") if isinstance(v, dict) else v
             for k, v in tree.items()}
        )  # fmt: skip
        self.seen, self.path = seen, path

    def __iter__(self) -> Iterator[str]:
        # That there is one keeps {**params} from taking what is inside unseen.
        return super().__iter__()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(self.path + key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        return self[key] if key in self else default  # noqa: SIM401  (so that it is noted)

    def items(self) -> Any:
        """As a dict's."""
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        """As a dict's."""
        return [self[key] for key in self]


def build(
    graph: Graph, values: Mapping[str, Any]
) -> tuple[JaxModel, dict[str, tuple[str, Weight]]]:
    """The function that the Graph's source makes, with these numbers, and where each is."""
    load_jax()
    emitted = emit(graph)
    fixed = {path for path, _, _ in emitted.constants.values()}
    trained = {v.name for v in graph.trained() if v.dtype.is_floating}
    at = {ours: path for ours, (path, _) in emitted.weights.items()}
    states = frozenset({path for ours, path in at.items() if ours not in trained} | fixed)
    function = execute(emitted, "jax")
    read_by = {v for node in graph.nodes for v in node.inputs}
    read = (v.name for v in graph.of_kind("param", "state") if v in read_by)
    owed = {at.get(name, name) for name in read} | fixed
    model = JaxModel(function, {}, states, bool(graph.updates), emitted.source, frozenset(owed))
    furnished(JaxRunner, model, emitted, graph, values)
    return model, emitted.weights


def to_array(array: Any) -> Any:
    """``array`` for JAX, which has 32-bit numbers: said aloud where that would lose something."""
    jnp = load_jax().numpy
    if isinstance(array, jnp.ndarray):
        return array
    array = np.asarray(array)
    name = array.dtype.name
    if name == "float64" and not load_jax().config.jax_enable_x64:
        raise UnsupportedError(
            "a float64 array in JAX, which would make it float32",
            remedy='pass float32, or jax.config.update("jax_enable_x64", True)',
        )
    if name in NARROW:
        narrow = array.astype(NARROW[name])
        if not np.array_equal(narrow, array):
            raise UnsupportedError(f"numbers beyond {NARROW[name]} in JAX")
        array = narrow
    return jnp.array(array)


@dataclass
class Foreign(JaxModel):
    """A function of the user's own: its parameters may be nested in lists and tuples, too."""

    given: Any = None
    """The parameters as they are nested."""

    def apply(
        self, params: Mapping[str, Any], inputs: Sequence[Any], training: bool, key: Any
    ) -> Any:
        """All outputs, a dict's in the order of its keys, as JAX has them; no state changes."""
        tree = load_jax().tree_util
        leaves, shape = tree.tree_flatten_with_path(self.given)
        flat = flatten(nest(params))
        values = [flat[".".join(map(name_of, path))] for path, _ in leaves]
        result = self.function(tree.tree_unflatten(shape, values), *inputs)
        self.structure = tuple(sorted(result)) if isinstance(result, Mapping) else None
        return tree.tree_leaves(result), {}


def name_of(key: Any) -> str:
    """One step on the way to a leaf: a key, a place, an attribute."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def foreign(model: Any, module: Any) -> JaxRunner:
    """``(function, params)``, or an nnx module taken apart; ``module`` is what reading it gave."""
    if not isinstance(model, tuple):
        runner: JaxRunner = model.runner()
        return runner
    function, params = model
    held = module.state_dict()
    states = frozenset(n for n, a in held.items() if a.dtype.kind not in "fV")
    numbers = nest({n: to_array(a) for n, a in held.items()})
    made = Foreign(function, numbers, states, given=params)
    return JaxRunner(made, {n: (n, Weight("", n, n)) for n in held})


class JaxRunner:
    """Any JAX function. ``weights`` says where our parameters are in its nested ones."""

    lacks = NARROW

    def __init__(self, model: JaxModel, weights: Mapping[str, tuple[str, Weight]]):
        self.jax = load_jax()
        self.model, self.weights = model, weights
        self.compile()

    def compile(self) -> None:
        """Trace the function anew when it runs next."""
        self._apply = self.jax.jit(lambda *a: self.model.apply(*a), static_argnums=2)
        self._pull = self.jax.jit(lambda *a: self._pulled(*a), static_argnums=4)

    @property
    def structure(self) -> Names:
        """The names of the outputs, once it ran."""
        return self.model.structure

    def declared(self) -> list[Held]:
        """None: source in JAX declares no parameter."""
        return []

    def held(self) -> dict[str, Held]:
        """Where the parameters will be, by our names."""
        return {n: Held(path, path, None, True) for n, (path, _) in self.weights.items()}

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        flat = flatten(self.model.params)
        return {
            ours: np.array(w.back(np.asarray(flat[path])))
            for ours, (path, w) in self.weights.items()
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Take these numbers."""
        new = {
            path: to_array(w.to(np.asarray(values[ours])))
            for ours, (path, w) in self.weights.items()
        }
        self.model.params = nest(flatten(self.model.params) | new)

    def outputs(self, inputs: Sequence[Array], training: bool = False) -> list[Array]:
        """The outputs, the states left as they were."""
        params = flatten(self.model.params)
        ys, _ = self._apply(params, [to_array(x) for x in inputs], training, self.jax.random.key(0))
        return [np.asarray(y) for y in ys]

    def _pulled(self, params: Any, rest: Any, inputs: Any, cotangents: Any, training: bool) -> Any:
        jnp = self.jax.numpy
        at = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]

        def run(params: Any, floats: Any) -> Any:
            xs = list(inputs)
            for i, x in zip(at, floats, strict=True):
                xs[i] = x
            ys, state = self.model.apply(params | rest, xs, training, self.jax.random.key(0))
            return [y for y in ys if jnp.issubdtype(y.dtype, jnp.floating)], (ys, state)

        smooth, back, (ys, state) = self.jax.vjp(run, params, [inputs[i] for i in at], has_aux=True)
        heads = [c.astype(y.dtype) for c, y in zip(cotangents, smooth, strict=True)]
        by_params, by_inputs = back(heads)
        found: list[Any] = [None] * len(inputs)
        for i, g in zip(at, by_inputs, strict=True):
            found[i] = g
        return ys, by_params, found, state

    def pull(
        self, inputs: Sequence[Array], cotangents: Sequence[Array], training: bool = False
    ) -> Pulled:
        """Outputs and gradients by jax.vjp."""
        flat = flatten(self.model.params)
        ours_of = {path: ours for ours, (path, _) in self.weights.items()}
        rest = {n: v for n, v in flat.items() if n in self.model.states}
        params = {n: v for n, v in flat.items() if n not in rest}
        xs, gs = ([to_array(a) for a in arrays] for arrays in (inputs, cotangents))
        ys, grads, by_inputs, state = self._pull(params, rest, xs, gs, training)

        def back(arrays: Mapping[str, Any]) -> dict[str, Array]:
            named = {ours_of[n]: np.asarray(a) for n, a in arrays.items() if n in ours_of}
            return {n: np.array(self.weights[n][1].back(a)) for n, a in named.items()}

        return Pulled(
            [np.asarray(y) for y in ys],
            back(grads),
            [None if g is None else np.asarray(g) for g in by_inputs],
            back(rest | state),
        )


class JaxTrainer:
    """The loss Graph as a JAX function; loss, gradients and update in one jitted step."""

    def __init__(self, graph: Graph, values: Mapping[str, Any], update: Update):
        self.jax = load_jax()
        self.model, self.weights = build(graph, values)
        self.ours = {path: ours for ours, (path, _) in self.weights.items()}
        self.slot_names = update.slots
        self._take()
        kinds = [as_dtype(p.dtype) for p in self.params.values()]
        made = by_dtype(update, kinds, lambda g: execute(emit(g), "jax"))
        self.updates = dict(zip(self.params, made, strict=True))
        jnp = self.jax.numpy
        self._slots = {n: [jnp.zeros_like(p) for _ in update.slots] for n, p in self.params.items()}
        self.count = 0
        # What a step replaces is given up to it: the new arrays lie where the old ones were.
        self._step = self.jax.jit(self._one_step, donate_argnums=(0, 1, 2))

    def _take(self) -> None:
        # Copies: the step consumes its arrays, and the model's may be in other hands.
        flat = {n: self.jax.numpy.array(v) for n, v in flatten(self.model.params).items()}
        states = self.model.states
        self.states = {n: v for n, v in flat.items() if n in states}
        self.params = {n: v for n, v in flat.items() if n not in states}

    def _one_step(
        self, params: Any, states: Any, slots: Any, inputs: Any, lr: Any, count: Any
    ) -> Any:
        key = self.jax.random.key(count)

        def loss_of(params: Any) -> Any:
            (loss, *_), state = self.model.apply(params | states, inputs, True, key)
            return loss, state

        (loss, state), grads = self.jax.value_and_grad(loss_of, has_aux=True)(params)
        new_params, new_slots = {}, {}
        for name, p in params.items():
            new = self.updates[name]({}, p, grads[name], *slots[name], count.astype("float32"), lr)
            new_params[name], *new_slots[name] = new if isinstance(new, tuple) else (new,)
        return loss, new_params, states | state, new_slots

    def step(self, inputs: Sequence[Array], lr: float) -> float:
        """One step on a batch; the loss before it."""
        self.count += 1
        loss, self.params, self.states, self._slots = self._step(
            self.params, self.states, self._slots, [to_array(x) for x in inputs], np.float32(lr),
            np.int32(self.count),
        )  # fmt: skip
        return float(loss)

    def values(self) -> dict[str, Array]:
        """Every parameter and state, by our names."""
        held = self.params | self.states
        return {self.ours.get(n, n): np.array(v) for n, v in held.items()}

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on from these parameters and states; the optimizer's slots stay."""
        JaxRunner(self.model, self.weights).load(values)
        self._take()

    def memory(self) -> dict[str, Any]:
        """What the optimizer keeps, by parameter, and its count of steps; NumPy arrays."""
        kept = {self.ours[n]: [np.array(s) for s in slots] for n, slots in self._slots.items()}
        return {COUNT: np.array(self.count)} | kept

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Begin with what another trainer on this engine kept; what it did not starts anew."""
        array = self.jax.numpy.array
        self.count = int(memory[COUNT])
        given = {n: memory[self.ours[n]] for n in self._slots if self.ours[n] in memory}
        self._slots |= {n: [array(a) for a in slots] for n, slots in given.items()}
