"""Gluon blocks and exported symbols -> Graph.

A block is traced to a Symbol once; a ``-symbol.json`` file is one already. The Symbol is read as
data, and neither a file nor its parameters need MXNet to be installed.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trivium.dtype import DType, as_dtype
from trivium.frameworks import words
from trivium.frameworks.mxnet.lines import by_its_line, call_of
from trivium.frameworks.mxnet.network import HANDLERS, UNREAD, Call
from trivium.frameworks.mxnet.params import DTYPES, read_params
from trivium.frameworks.mxnet.symbol import Symbol, SymbolNode, parse_symbol
from trivium.graph import Graph, Node, UnsupportedError, Value
from trivium.graph.check import check
from trivium.nn.module import GraphModule
from trivium.shape import Dim, Shape, as_shape
from trivium.transforms.replay import prune

_LEAVES = {
    "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var",
    "i2h_weight": "weight_ih", "h2h_weight": "weight_hh",
    "i2h_bias": "bias_ih", "h2h_bias": "bias_hh",
}  # fmt: skip
_SUFFIX = re.compile(rf"(.+)_({'|'.join(_LEAVES)}|weight|bias|running_mean|running_var)")
_LAYER_OPS = {"conv", "linear", "batch_norm", "layer_norm", "embedding", "rnn"}
_SCOPE = "__scope__"


@dataclass
class _Source:
    """What a block or a file says, before anything is made of it."""

    symbol: Symbol
    name: str
    arrays: dict[str, np.ndarray[Any, Any]]  # by MXNet's names
    states: set[str]  # those that no gradient changes
    frozen: set[str] = field(default_factory=set)  # parameters with grad_req="null"
    without: set[str] = field(default_factory=set)  # scales and offsets that a norm says it has not
    paths: dict[str, str] = field(default_factory=dict)  # MXNet's name -> "features.0.weight"
    layers: set[str] = field(default_factory=set)  # the paths of MXNet's own layers with parameters
    classes: dict[str, str] = field(default_factory=dict)  # path -> the block's own class
    traced: bool = False  # are the operators marked with their scopes?
    structure: Any = None


def read(block_or_path: Any, *examples: Any) -> GraphModule:
    """The model in a Gluon block, or in ``model-symbol.json`` with ``model-0000.params`` beside it.

    ``examples`` are inputs (arrays, or anything with a dtype and a shape), one for each of the
    model's; their first size is left open (as "batch") unless the shape names open ones itself.
    They may be left out where the first layer says what it takes. Several ``.params`` files: give
    the path of the one to read.

    An operator or an option that cannot be carried exactly raises UnsupportedError.
    """
    if isinstance(block_or_path, (str, Path)):
        source = _from_file(Path(block_or_path))
    else:
        source = _from_block(block_or_path, examples)
    try:
        return _Reader(source).read(examples)
    except UnsupportedError as refused:  # perhaps it counts on the examples' own first size
        with contextlib.suppress(UnsupportedError):
            if examples:
                return _Reader(source).read(examples, opened=False)
        raise refused


# -- files ---------------------------------------------------------------------------------------
def files(path: Path) -> tuple[Path, Path]:
    """The symbol and the parameters that ``export`` wrote, given either of the two."""
    stem = _stem(path)
    described = path.with_name(f"{stem}-symbol.json")
    if path.suffix == ".params":
        numbers = [path]
    else:
        numbers = sorted(path.parent.glob(f"{_literally(stem)}-[0-9][0-9][0-9][0-9].params"))
    if len(numbers) != 1:
        found = ", ".join(p.name for p in numbers) or "none"
        raise UnsupportedError(f"one file of parameters is wanted, found: {found}", str(path),
                               "give the path of the .params file")  # fmt: skip
    return described, numbers[0]


def _stem(path: Path) -> str:
    stem = re.sub(r"(-symbol\.json|-\d{4}\.params)$", "", path.name)
    if stem == path.name:
        raise UnsupportedError("this is neither NAME-symbol.json nor NAME-0000.params", str(path),
                               "give one of the two files that export() writes")  # fmt: skip
    return stem


def _from_file(path: Path) -> _Source:
    described, numbers = files(path)
    try:
        text = described.read_bytes().decode()
    except UnicodeDecodeError:
        raise UnsupportedError("this is no MXNet symbol: not UTF-8", str(described)) from None
    symbol = parse_symbol(text, str(described))
    stored = read_params(numbers)
    arrays = {name.split(":", 1)[-1]: a for name, a in stored.items()}
    if len(arrays) != len(stored):
        raise UnsupportedError("an argument and a state have one name", str(numbers))
    states = {name.removeprefix("aux:") for name in stored if name.startswith("aux:")}
    return _Source(symbol, _stem(path), arrays, states)


def _literally(text: str) -> str:
    """``text`` for a glob that means it literally."""
    return re.sub(r"([*?[])", r"[\1]", text)


# -- blocks --------------------------------------------------------------------------------------
def _from_block(block: Any, examples: Sequence[Any]) -> _Source:
    from trivium.frameworks.mxnet.load import load

    mx = load()
    if not isinstance(block, mx.gluon.Block):
        raise UnsupportedError(f"a {type(block).__name__} is no Gluon block", "",
                               "give a gluon.Block or the path of a -symbol.json file")  # fmt: skip
    structural = block._collect_params_with_prefix()
    _initialised(mx, block, [*structural.values(), *block.collect_params().values()], examples)
    source = _Source(None, type(block).__name__, {}, set(), traced=True)  # type: ignore[arg-type]
    named: dict[str, Any] = {}
    norms = [b for _, b in _blocks(block) if isinstance(b, mx.gluon.nn.BatchNorm)]
    held = [p for b in norms for p in (b.gamma, b.beta)]
    source.without = {p.name for p in held if not p._differentiable}
    everything = [*structural.items(), *((p.name, p) for p in block.collect_params().values())]
    for path, p in everything:
        if named.setdefault(p.name, p) is not p:
            raise UnsupportedError(f"two parameters are called {p.name!r}", path, "rename one")
        source.paths.setdefault(p.name, path)
        source.arrays[p.name] = p.data(p.list_ctx()[0]).asnumpy()
        if p._differentiable and (p.lr_mult, p.wd_mult) != (1, 1):
            warnings.warn(
                f"lr_mult={p.lr_mult} and wd_mult={p.wd_mult} of {path} belong to the optimizer "
                "and are left behind; to freeze a parameter set grad_req='null'",
                stacklevel=5,
            )
        # Gluon's own word for statistics and constants, and for the scale and offset of a batch
        # norm that is without: those are parameters that stay as they are.
        if not p._differentiable and p.name not in source.without:
            source.states.add(p.name)
        elif p.grad_req == "null" or np.dtype(p.dtype).kind != "f":
            source.frozen.add(p.name)
    own = ((p, b) for p, b in _blocks(block) if ".gluon.nn" not in type(b).__module__)
    source.classes = {path: type(b).__name__ for path, b in own}
    count = max(len(examples), 1)
    names = ["data"] if count == 1 else [f"data{i}" for i in range(count)]
    result = _traced(mx, block, names, source)
    outputs = _flat(result)
    whole = mx.sym.Group(outputs)
    source.states |= set(whole.list_auxiliary_states())
    source.frozen -= source.states
    source.symbol = parse_symbol(whole.tojson(), source.name)
    source.structure = None if len(outputs) == 1 and result is outputs[0] else type(result)
    return source


def _initialised(mx: Any, block: Any, parameters: Sequence[Any], examples: Sequence[Any]) -> None:
    """Make sure that every parameter has numbers: a deferred one gets them from the examples."""
    where = type(block).__name__
    if any(p._deferred_init for p in parameters) and examples:
        arrays = [mx.nd.zeros(tuple(s if isinstance(s, int) else 2 for s in as_shape(e.shape)),
                              dtype=_dtype(e).numpy) for e in examples]  # fmt: skip
        try:
            block(*arrays)  # not recorded, so nothing changes but what had no shape yet
        except Exception as error:
            what = f"a first call, on zeros like the examples, failed: {error}"
            raise UnsupportedError(what, where, "give examples that it takes") from error
    for p in parameters:
        if p._deferred_init:
            raise UnsupportedError(f"the size of {p.name} is not known before a first call", where,
                                   "give an example input")  # fmt: skip
        if p._data is None:
            remedy = "call block.initialize() first"
            raise UnsupportedError(f"{p.name} has no numbers", where, remedy)


def _traced(mx: Any, block: Any, names: Sequence[str], source: _Source) -> Any:
    """The block on variables, each operator marked with the path of the block that made it."""
    for p in block.collect_params().values():
        p.var()  # made now, so that the parameter keeps no mark
    with contextlib.ExitStack() as stack:
        before = mx.AttrScope(**{_SCOPE: ""})
        stack.enter_context(before)
        for path, child in _blocks(block):
            open_scopes: list[Any] = []

            def enter(*_: Any, path: str = path, scopes: list[Any] = open_scopes) -> None:
                scopes.append(mx.AttrScope(**{_SCOPE: path}))
                scopes[-1].__enter__()

            def leave(*_: Any, scopes: list[Any] = open_scopes) -> None:
                scopes.pop().__exit__(None, None, None)

            stack.callback(child.register_forward_pre_hook(enter).detach)
            stack.callback(child.register_forward_hook(leave).detach)
            if type(child).__module__.startswith("mxnet.gluon.") and child._reg_params:
                source.layers.add(path)
        try:
            return block(*(mx.sym.var(name) for name in names))
        except Exception as error:
            raise UnsupportedError(
                f"it cannot be traced to a Symbol: {error}", source.name,
                "write hybrid_forward(F, x) without Python that looks at sizes or numbers, and "
                "give one example for each input",
            ) from error  # fmt: skip


def _blocks(block: Any) -> Iterator[tuple[str, Any]]:
    """Every block inside with its path; one that is found twice has the path found first."""
    seen: set[int] = set()

    def walk(path: str, b: Any) -> Iterator[tuple[str, Any]]:
        if id(b) not in seen:
            seen.add(id(b))
            yield path, b
            for name, child in b._children.items():
                yield from walk(f"{path}.{name}" if path else name, child)

    return walk("", block)


def _flat(result: Any) -> list[Any]:
    if isinstance(result, (list, tuple)):
        return [leaf for item in result for leaf in _flat(item)]
    return [result]


# -- the Graph -----------------------------------------------------------------------------------
def _dtype(example: Any) -> DType:
    return as_dtype(example.dtype)


class _Reader:
    """A Symbol on its way into a Graph."""

    def __init__(self, source: _Source):
        self.source, self.symbol = source, source.symbol
        self.graph = Graph(re.sub(r"\W", "_", source.name))
        self.graph.classes = source.classes
        self.values: dict[tuple[int, int], Value] = {}
        self.made: dict[int, words.Call] = {}  # by id of a Value: what MXNet calls it
        self.names: dict[str, str] = {}  # ours -> MXNet's
        self.inputs: dict[str, Value] = {}  # by MXNet's name

    def read(self, examples: Sequence[Any], opened: bool = True) -> GraphModule:
        """The whole model, for any batch where it is ``opened``."""
        needed = self._needed()
        data = [n for n in needed if n.op == "null" and n.name not in self.source.arrays]
        self._data_inputs(data, examples, opened)
        with self.graph:
            for node in needed:
                if node.op != "null":
                    self._apply(node)
            self.graph.outputs = [self._value(*head) for head in self.symbol.heads]
        if len(self.graph.outputs) > 1 or self.source.structure is not None:
            self.graph.structure = self.source.structure or tuple
        self._outside_of_layers()
        prune(self.graph)
        read = {v for node in self.graph.nodes for v in node.inputs} | set(self.graph.results())
        # A parameter that is stored and not used (the gamma of fix_gamma) would be trained in vain.
        self.graph.inputs = [v for v in self.graph.inputs if v.kind == "data" or v in read]
        met = {n.name for n in self.symbol.nodes}
        for name in (n for n in self.source.arrays if n not in met):
            self._stored(name)  # no operator knows of it: it is kept
        used = {v.name for v in self.graph.inputs}
        names = {ours: theirs for ours, theirs in self.names.items() if ours in used}
        values = {ours: self.source.arrays[theirs] for ours, theirs in names.items()}
        return GraphModule(check(self.graph), values, names)

    def _in_order(self, data: Sequence[SymbolNode]) -> Sequence[SymbolNode]:
        """A Symbol has its inputs as they are first read: they are called by their numbers."""
        parts = [re.match(r"(.*?)(\d*)$", n.name) for n in data]
        words = {p[1] for p in parts if p is not None}
        if len(data) > 1 and len(words) == 1:
            return sorted(data, key=lambda n: int(n.name.removeprefix(min(words)) or 0))
        if len(data) > 1 and not self.source.traced:
            warnings.warn(
                f"{self.source.name} does not say in which order it takes its inputs; they are "
                f"taken as they are first read: {', '.join(n.name for n in data)}",
                stacklevel=5,
            )
        return data

    def _needed(self) -> list[SymbolNode]:
        """The nodes that the outputs need, in order; inputs that are not read do not count."""
        found: set[int] = set()
        waiting = [index for index, _ in self.symbol.heads]
        while waiting:
            if (index := waiting.pop()) not in found:
                found.add(index)
                node = self.symbol.nodes[index]
                skip = UNREAD.get(node.op, ())
                waiting += [i for at, (i, _) in enumerate(node.inputs) if at not in skip]
        return [self.symbol.nodes[i] for i in sorted(found)]

    # -- inputs ------------------------------------------------------------------------------------
    def _data_inputs(
        self, data: Sequence[SymbolNode], examples: Sequence[Any], opened: bool
    ) -> None:
        for node in data:
            reads = [n for n in self.symbol.nodes if (node.index, 0) in n.inputs]
            state = any(n.inputs.index((node.index, 0)) in n.states for n in reads)
            if state or _SUFFIX.fullmatch(node.name):
                raise UnsupportedError(f"there are no numbers for {node.name}", self.source.name,
                                       "export the model again, with its parameters")  # fmt: skip
        data = self._in_order(data)
        if examples and len(examples) != len(data):
            raise UnsupportedError(
                f"the model reads {len(data)} inputs ({', '.join(n.name for n in data)}), "
                f"{len(examples)} examples were given", self.source.name,
            )  # fmt: skip
        for i, node in enumerate(data):
            self._plain_name(node.name)
            type_ = _of_example(examples, i, opened) if examples else self._guess(node)
            self.inputs[node.name] = self.graph.input("data", *type_, node.name)

    def _guess(self, node: SymbolNode) -> tuple[DType, Shape]:
        """What an input is without an example: as it was declared, or as its first layer says."""
        batch = Dim("batch")
        sizes = [int(n) for n in re.findall(r"-?\d{1,15}", node.attrs.get("__shape__", ""))]
        if sizes and min(sizes[1:], default=1) > 0:  # 0, or -1, is a size that is not known
            return _declared(node), (sizes[0] if sizes[0] > 0 else batch, *sizes[1:])
        for user in self.symbol.nodes:
            if (node.index, 0) not in user.inputs[:1] or len(user.inputs) < 2:
                continue
            weight = self.source.arrays.get(self.symbol.nodes[user.inputs[1][0]].name)
            if weight is not None and user.op == "FullyConnected" and weight.ndim == 2:
                return as_dtype(weight.dtype), (batch, weight.shape[1])
            if weight is not None and user.op == "Convolution" and weight.ndim == 4:
                groups = re.fullmatch(r"\d{1,9}", user.attrs.get("num_group", "1"))
                channels = weight.shape[1] * int(groups[0] if groups else 1)
                size = (batch, channels, Dim("height"), Dim("width"))
                return as_dtype(weight.dtype), size
        what = f"the shape of the input {node.name!r} is not known"
        raise UnsupportedError(what, self.source.name, "give an example input")

    def _variable(self, node: SymbolNode) -> Value:
        known = self.inputs.get(node.name)
        return self._stored(node.name) if known is None else known

    def _stored(self, theirs: str) -> Value:
        """The Graph's input for a stored array."""
        array, ours = self.source.arrays[theirs], self._name(theirs)
        kind = "state" if theirs in self.source.states else "param"
        trainable = kind == "state" or theirs not in self.source.frozen
        value = self.graph.input(kind, as_dtype(array.dtype), array.shape, ours, trainable)
        self.inputs[theirs], self.names[ours] = value, theirs
        return value

    def _plain_name(self, name: str) -> None:
        """Refuse a name that could be more than a name once it stands in source code."""
        if not re.fullmatch(r"[\w./-]+", name, re.ASCII):
            raise UnsupportedError(f"{name!r} is no name for a parameter or an input",
                                   self.source.name, "use letters, digits, _ and .")  # fmt: skip

    def _name(self, theirs: str) -> str:
        """Our name of a parameter: the path of its layer, a dot, and what it is there."""
        # Gluon's RNN says "_unfused.0.i2h_weight" of what it holds itself.
        path = re.sub(r"\b_unfused\.0\.", "", self.source.paths.get(theirs, theirs))
        self._plain_name(path)
        layer, _, leaf = path.rpartition(".")
        if path == theirs and (match := _SUFFIX.fullmatch(path)):
            layer, leaf = match.groups()
        short = _LEAVES.get(leaf.removeprefix("l0_"), leaf)
        ours = f"{layer}.{short}" if layer else short
        return ours if ours not in self.names else path

    def _frozen(self, value: Value, number: float) -> bool:
        theirs = self.names.get(value.name)
        array = self.source.arrays.get(theirs or "")
        fixed = value.kind == "state" or theirs in self.source.without
        return fixed and array is not None and bool((array == number).all())

    # -- operators ---------------------------------------------------------------------------------
    def _value(self, index: int, output: int) -> Value:
        node = self.symbol.nodes[index]
        if node.op == "null":
            return self._variable(node)
        if (index, output) not in self.values:
            raise UnsupportedError(f"output {output} of {node} is not carried", self.source.name)
        return self.values[index, output]

    def _apply(self, node: SymbolNode) -> None:
        handler = HANDLERS.get(node.op)
        call = Call(node, self.symbol, self.graph, self._variable, self._frozen)
        skip = UNREAD.get(node.op, ())
        inputs = [None if i in skip else self._value(*e) for i, e in enumerate(node.inputs)]
        with self.graph.within(self._scope(node)):
            try:
                theirs = call_of(node, inputs)
                result = by_its_line(theirs, inputs, self.made)
                if result is not None:
                    call.asked |= node.attrs.keys()  # a line names them all
                elif handler is not None:
                    result = handler(call, *inputs)
                else:
                    where = f"node {node.name!r}"
                    what = f"MXNet's operator {node.op} is not carried"
                    raise UnsupportedError(what, where, "use other operators")
            except UnsupportedError:
                raise
            except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
                where = f"node {node.name!r} ({node.op})"
                remedy = "if the shapes do not fit, give an example input of the right shape"
                raise UnsupportedError(str(error), where, remedy) from error
        call.finish()
        for i, value in enumerate(result if isinstance(result, tuple) else (result,)):
            self.values[node.index, i] = value
            self.made[id(value)] = theirs

    def _scope(self, node: SymbolNode) -> str:
        if self.source.traced and _SCOPE in node.attrs:
            return node.attrs[_SCOPE]
        # A file has no structure but in its names: a node belongs where its parameters do.
        for index, _ in node.inputs[1:]:
            name = self.symbol.nodes[index].name
            if name in self.source.arrays and (match := _SUFFIX.fullmatch(name)):
                self.source.layers.add(match[1])
                return match[1]
        return ""

    def _outside_of_layers(self) -> None:
        """Leave in the scope of a layer what is the layer.

        Gluon's Dense flattens before and activates after itself. That belongs to whoever calls it,
        as far as other frameworks' layers are concerned.
        """
        own = set(self.graph.of_kind("param", "state"))

        def core(node: Node) -> bool:
            return any(v in own for v in node.inputs)

        split = {n.scope for n in self.graph.nodes if core(n) and n.op in _LAYER_OPS}
        for path in sorted(split & self.source.layers, reverse=True):
            for node in self.graph.nodes:
                inside = not path or f"{node.scope}.".startswith(f"{path}.")
                if inside and not core(node):
                    node.scope = path.rpartition(".")[0]


def _declared(node: SymbolNode) -> DType:
    code = node.attrs.get("__dtype__", "0")
    return DTYPES.get(int(code), DTYPES[0]) if re.fullmatch(r"\d", code) else DTYPES[0]


def _of_example(examples: Sequence[Any], i: int, opened: bool) -> tuple[DType, Shape]:
    """The type of an input; its first size is the batch if it is also the first input's."""
    first, shape = as_shape(examples[0].shape), as_shape(examples[i].shape)
    sized = shape and all(isinstance(s, int) for s in shape)
    if opened and sized and shape[:1] == first[:1]:
        shape = (Dim("batch"), *shape[1:])
    return _dtype(examples[i]), shape
