"""ONNX -> Graph: a ModelProto while it is read, its names kept."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from trivium.frameworks import words
from trivium.frameworks.onnx import FROZEN, KIND, OUTPUTS, decimal, from_onnx_dtype, package
from trivium.frameworks.onnx.load import array
from trivium.graph import OPS, Graph, GraphError, UnsupportedError, Value, current
from trivium.graph.check import check
from trivium.shape import Dim, ShapeError, Size, parse_size
from trivium.transforms.replay import prune

ONNX = ("", "ai.onnx")  # both names of the standard domain
OLDEST = 7  # before, broadcasting was an attribute
DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError)
_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class Reader:
    """A Graph being made from a ModelProto; ``meaning`` says what one of its nodes makes."""

    def __init__(self, model: Any, meaning: Callable[[Call], Any]):
        self.meaning = meaning
        self.proto = model.graph
        self.named = any(p.key == OUTPUTS and p.value == "named" for p in model.metadata_props)
        self.opset = max((o.version for o in model.opset_import if o.domain in ONNX), default=0)
        if self.opset < OLDEST:
            raise UnsupportedError(
                f"a model of opset {self.opset}", self.proto.name,
                f"convert it to {OLDEST} or later with onnx.version_converter",
            )  # fmt: skip
        self.graph = Graph(_word(self.proto.name) or "model")
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        self.source_names: dict[str, str] = {}
        self.initializers = {t.name: t for t in self.proto.initializer}
        self.env: dict[
            str, Value | np.ndarray[Any, Any]
        ] = {}  # by ONNX name: a Value, or known numbers
        self.alias: dict[str, str] = {}
        self.lifted: dict[tuple[Graph | None, str], Any] = {}
        self.uses = Counter(_names(self.proto))

    def read(self) -> Graph:
        """The whole Graph."""
        if self.proto.sparse_initializer:
            raise UnsupportedError("sparse initializers", self.proto.name, "store them dense")
        for info in self.proto.input:
            if info.name not in self.initializers:
                self._input(info)
        with self.graph:
            self.nodes(self.proto)
            self.graph.outputs = [self.value(o.name) for o in self.proto.output]
            for name in (n for n in self.initializers if not self.uses[n] and n not in self.env):
                if self.constant(name) is None:
                    self.parameter(name)  # nothing reads it: it is kept
        names = tuple(o.name for o in self.proto.output)
        if self.named and len({*names}) == len(names):
            self.graph.structure = names
        elif len(names) > 1:
            self.graph.structure = tuple
        self._agree()
        return check(prune(self.graph))

    def _input(self, info: Any) -> None:
        where = f"input {info.name!r}"
        if not info.type.HasField("tensor_type"):
            raise UnsupportedError("an input that is no tensor", where, "pass tensors")
        tensor = info.type.tensor_type
        if not tensor.HasField("shape"):
            raise UnsupportedError("an input of unknown rank", where, "export it with a shape")
        name = _clean(info.name)
        shape = [_size(d, name, axis) for axis, d in enumerate(tensor.shape.dim)]
        dtype = from_onnx_dtype(tensor.elem_type, where)
        self.env[info.name] = self.graph.input("data", dtype, shape, name)

    def _agree(self) -> None:
        """What the file says of its outputs must be what was read."""
        for info, value in zip(self.proto.output, self.graph.outputs, strict=True):
            said = info.type.tensor_type
            sizes = [d.dim_value if d.HasField("dim_value") else None for d in said.shape.dim]
            wrong = said.HasField("shape") and (
                len(sizes) != len(value.shape)
                or any(
                    isinstance(b, int) and a is not None and a != b
                    for a, b in zip(sizes, value.shape, strict=True)
                )
            )
            if wrong or (said.elem_type and from_onnx_dtype(said.elem_type) != value.dtype):
                raise GraphError(
                    f"output {info.name!r} is {value.type}, the file says otherwise: {sizes}"
                )

    # -- what names mean -----------------------------------------------------------------------
    def chain(self, name: str) -> list[str]:
        """``name`` and what it is an Identity of, the origin last."""
        names = [name]
        while names[-1] in self.alias:
            names.append(self.alias[names[-1]])
        return names

    def constant(self, name: str, forced: bool = False) -> np.ndarray[Any, Any] | None:
        """The numbers behind ``name`` where they are fixed; a parameter's only when ``forced``."""
        name = self.chain(name)[-1]
        item = self.env.get(name)
        if isinstance(item, np.ndarray):
            return item
        if item is None and name in self.initializers:
            tensor = self.initializers[name]
            numbers = array(tensor)
            # A foreign number alone is rather a factor than a weight; of our own the kind is known.
            fixed = numbers.ndim == 0 or not from_onnx_dtype(tensor.data_type).is_floating
            if forced or (fixed and not _meta(tensor, KIND, "param", "state")):
                return numbers
        return None

    def initializer(self, name: str) -> Any:
        """The floating initializer behind ``name``, or None."""
        tensor = self.initializers.get(self.chain(name)[-1])
        floating = tensor is not None and from_onnx_dtype(tensor.data_type).is_floating
        return tensor if floating else None

    def value(self, name: str) -> Any:
        """``name`` as a Value of the Graph being built."""
        origin = self.chain(name)[-1]
        item = self.env.get(origin)
        if isinstance(item, Value):
            return item
        numbers = self.constant(origin)
        if numbers is None:
            if origin not in self.initializers:
                raise GraphError(f"nothing before it makes {origin!r}")
            return self.parameter(name)
        key = (current(), origin)
        if key not in self.lifted:
            self.lifted[key] = lifted(numbers)
        return self.lifted[key]

    def parameter(
        self,
        name: str,
        leaf: str = "",
        kind: str = "param",
        change: Callable[[Any], Any] = lambda a: a,
        part: str = "",
    ) -> Value:
        """The initializer ``name`` as an input; ``change`` maps its numbers to ours."""
        name = self.chain(name)[-1]
        tensor = self.initializers[name]
        key = name + part
        if isinstance(found := self.env.get(key), Value):
            return found
        numbers = change(array(tensor))
        ours = self._ours(name, leaf, part)
        dtype = from_onnx_dtype(tensor.data_type)
        kind = _meta(tensor, KIND, "param", "state") or kind
        trainable = kind != "param" or _meta(tensor, FROZEN, "false") != "false"
        value = self.graph.input(kind, dtype, numbers.shape, ours, trainable)
        self.values[ours] = numbers
        if ours != name:
            self.source_names[ours] = name
        self.env[key] = value
        return value

    def once(self, name: str) -> bool:
        """Whether this is an initializer that nothing else reads: it may be stored otherwise."""
        names = self.chain(name)
        return (
            names[-1] in self.initializers
            and names[-1] not in self.env
            and all(self.uses[n] == 1 for n in names)
        )

    def _ours(self, name: str, leaf: str, part: str) -> str:
        scope = (current() or self.graph).scope
        if (not _PATH.fullmatch(name) or part) and leaf and scope:
            wish = f"{scope}.{leaf}"  # exporters that fold weights call them "onnx::Conv_193"
        else:
            wish = _clean(name) + part
        taken = {v.name for v in self.graph.inputs}
        return next(w for w in _numbered(wish) if w not in taken)

    # -- nodes ---------------------------------------------------------------------------------
    def nodes(self, proto: Any) -> None:
        """Read the nodes of a graph or subgraph."""
        for node in proto.node:
            where = f"node {node.name!r} ({node.op_type})"
            graph = current() or self.graph
            try:
                with graph.within(self.scope(node)):
                    self._node(node, where)
            except (GraphError, UnsupportedError):
                raise
            except DAMAGED as error:
                raise GraphError(f"{where}: {error}") from error

    def _node(self, node: Any, where: str) -> None:
        if node.op_type == "Identity" and not node.domain:
            self.alias[node.output[0]] = node.input[0]
            self.value(node.input[0]) if node.input[0] in self.env else None
            return
        call = Call(self, node, where)
        result = self.meaning(call)
        if result is None:
            what = f"the operator {call.name}"
            raise call.refuse(what, "Trivium has no op for it: export without it")
        made = result if isinstance(result, tuple) else (result,)
        asked = [i for i, output in enumerate(node.output) if output]
        if asked and asked[-1] >= len(made):
            raise UnsupportedError(f"output {asked[-1]} of {node.op_type}", where)
        for i in asked:
            self.env[node.output[i]] = made[i]

    def scope(self, node: Any) -> str:
        """The path of the module a node belongs to, from its name or its parameters' names."""
        for prop in node.metadata_props:  # torch.onnx.export(dynamo=True)
            if prop.key == "pkg.torch.onnx.name_scopes":
                scopes = _listed(prop.value)
                return _word(scopes[-2]) if len(scopes) > 1 else ""
        if "/" in node.name:
            path: list[str] = []
            for part in node.name.strip("/").split("/")[:-1]:
                if path and part.startswith(path[-1] + "."):  # torch: /layer1/layer1.0/conv1/Conv
                    path[-1] = part
                else:
                    path.append(part)
            return _word(".".join(path))
        names = (self.chain(n)[-1] for n in node.input)
        weights = [n for n in names if n in self.initializers and _PATH.fullmatch(n)]
        return weights[0].rpartition(".")[0] if weights else ""


class Call:
    """One ONNX node while it is read: its inputs and attributes, with the operator's defaults."""

    def __init__(self, reader: Reader, node: Any, where: str):
        self.reader, self.node, self.where = reader, node, where
        self.op, self.opset = node.op_type, reader.opset
        self.name = self.op if node.domain in ONNX else f"{node.domain}::{self.op}"
        self.outputs = len(node.output)
        self._attrs = {a.name: a for a in node.attribute}

    def __len__(self) -> int:
        return len(self.node.input)

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given."""
        return i < len(self) and self.node.input[i] != ""

    def value(self, i: int) -> Any:
        """Input ``i`` as a Value."""
        if not self.has(i):
            raise GraphError(f"{self.where}: input {i} is missing")
        return self.reader.value(self.node.input[i])

    def values(self) -> list[Any]:
        """All inputs."""
        return [self.value(i) for i in range(len(self))]

    def optional(self, i: int) -> Any:
        """Input ``i``, or None where it was left out."""
        return self.value(i) if self.has(i) else None

    def constant(self, i: int) -> np.ndarray[Any, Any] | None:
        """The numbers of input ``i`` where they are fixed."""
        return self.reader.constant(self.node.input[i]) if self.has(i) else None

    def known(self, i: int, what: str) -> np.ndarray[Any, Any]:
        """The numbers of input ``i``, which must be fixed."""
        found = self.reader.constant(self.node.input[i], forced=True) if self.has(i) else None
        if found is None:
            raise UnsupportedError(
                f"{what} that the model computes", self.where, "make it a constant"
            )
        return found

    def ints(self, i: int, what: str) -> list[Any]:
        """The integers (or open sizes) of input ``i``."""
        return [s if isinstance(s, Dim) else int(s) for s in self.known(i, what).reshape(-1)]

    def weight(
        self, i: int, leaf: str, kind: str = "param", change: Callable[[Any], Any] | None = None
    ) -> Any:
        """Input ``i`` as a parameter; ``change``, of an array or a Value, brings it to our form."""
        name = self.node.input[i]
        fresh = self.reader.chain(name)[-1] in self.reader.initializers
        if fresh and self.reader.constant(name) is None:
            if change is None or self.reader.once(name):
                return self.reader.parameter(name, leaf, kind, change or (lambda a: a))
            return change(self.reader.parameter(name, leaf, kind))
        value = self.value(i)
        return value if change is None else change(value)

    def attr(self, name: str) -> Any:
        """An attribute, the operator's default for it, or None where neither is."""
        if name in self._attrs:
            return _attribute(self._attrs[name], self.where)
        onnx = package()
        schema = onnx.defs.get_schema(self.op, self.opset, "")
        if name not in schema.attributes:
            return None
        declared = schema.attributes[name]
        if declared.required:
            raise GraphError(f"{self.where}: attribute {name!r} is missing")
        default = declared.default_value
        return _attribute(default, self.where) if default.name else None

    def bound(self) -> words.Call:
        """The node as a call: inputs and attributes by the names that its schema has for them."""
        schema = package().defs.get_schema(self.op, self.opset, "")
        given: dict[str, Any] = {}
        for i, formal in enumerate(schema.inputs):
            if formal.option == schema.FormalParameterOption.Variadic:
                given[formal.name] = [self.value(k) for k in range(i, len(self))]
            elif self.has(i):
                given[formal.name] = self.value(i)
        defaults = {n: self.attr(n) for n, a in schema.attributes.items() if not a.required}
        return words.Call(self.op, given | {n: self.attr(n) for n in self._attrs},
                          [i.name for i in schema.inputs], defaults)  # fmt: skip

    def meta(self, key: str) -> str | None:
        """A note that the exporter left on the node."""
        return next((p.value for p in self.node.metadata_props if p.key == key), None)

    def refuse(self, what: str, remedy: str = "") -> UnsupportedError:
        """The error that says that this node cannot be carried."""
        return UnsupportedError(what, self.where, remedy)


def lifted(numbers: np.ndarray[Any, Any]) -> Any:
    """Fixed numbers as a node of the current Graph; a single one as ``full``."""
    full = OPS["full"]
    if numbers.dtype == object:  # with open sizes among them
        items = [
            full(shape=(), value=n if isinstance(n, Dim) else int(n), dtype="int64")
            for n in numbers.flat
        ]
        if not numbers.ndim:
            return items[0]
        return OPS["reshape"](OPS["stack"](*items), shape=numbers.shape)
    if numbers.ndim:
        return OPS["constant"](value=numbers)
    item = numbers[()]
    plain = decimal(item) if item.dtype.kind not in "iub" else item.item()
    return full(shape=(), value=plain, dtype=numbers.dtype.name)


def _attribute(proto: Any, where: str) -> Any:
    kinds = package().AttributeProto
    match proto.type:
        case kinds.FLOAT:
            return decimal(np.float32(proto.f))
        case kinds.INT:
            return int(proto.i)
        case kinds.STRING:
            return proto.s.decode(errors="replace")
        case kinds.TENSOR:
            return array(proto.t)
        case kinds.GRAPH:
            return proto.g
        case kinds.FLOATS:
            return tuple(decimal(np.float32(f)) for f in proto.floats)
        case kinds.INTS:
            return tuple(map(int, proto.ints))
        case kinds.STRINGS:
            return tuple(s.decode(errors="replace") for s in proto.strings)
    raise UnsupportedError(f"attribute {proto.name!r} of an unusual type", where)


def _meta(tensor: Any, key: str, *words: str) -> str:
    """What our exporter noted on an initializer, if it is one of these words."""
    said = next((p.value for p in tensor.metadata_props if p.key == key), "")
    return said if said in words else ""


def _size(dim: Any, name: str, axis: int) -> Size:
    """A size of an input: fixed, named, or open without a name."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    if dim.dim_param:
        try:
            return parse_size(dim.dim_param)
        except ShapeError:  # "unk__123", "?": any string is a name there
            return Dim(_identifier(dim.dim_param))
    return Dim("batch" if axis == 0 else _identifier(f"{name}_{axis}"))


def _identifier(text: str) -> str:
    word = re.sub(r"\W", "_", text)
    return word if word.isidentifier() else f"size_{word}"


def _word(text: str) -> str:
    return re.sub(r"[^\w.]", "_", text)


def _clean(text: str) -> str:
    """A foreign name without what would end a string of the printed Graph."""
    return re.sub(r'["\\\x00-\x1f]', "_", text)


def _numbered(wish: str) -> Iterator[str]:
    yield wish
    for i in range(1, 1 << 30):
        yield f"{wish}_{i}"


def _listed(text: str) -> Sequence[str]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ()
    return found if isinstance(found, list) and all(isinstance(s, str) for s in found) else ()


def _names(proto: Any) -> Iterator[str]:
    """Every name that is read in a graph and those inside it."""
    for node in proto.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _names(attribute.g)
    yield from (o.name for o in proto.output)
