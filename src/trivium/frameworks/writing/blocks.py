"""From a flat Graph to nested blocks: which nodes are one layer, which scopes are one class.

A *layer* is a node whose parameters are all called ``path.leaf`` with the leaves of a layer form;
it lives in the scope above ``path``. A *class scope* is a scope that holds a layer, a parameter of
its own or another class scope. Every other node belongs to the nearest class scope around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trivium.frameworks.layer import LayerForm
from trivium.graph import Graph, Node, Value
from trivium.op import Op


def parent(path: str) -> str:
    """The scope around ``path``."""
    return path.rpartition(".")[0]


def leaf(path: str) -> str:
    """The last part of ``path``."""
    return path.rpartition(".")[2]


def inside(path: str, scope: str) -> bool:
    """Is ``path`` the scope or below it?"""
    return not scope or path == scope or path.startswith(scope + ".")


def held(node: Node) -> list[str]:
    """The names of the parameters and states that a node reads."""
    return [v.name for v in node.inputs if v is not None and v.kind in ("param", "state")]


@dataclass(eq=False)
class Layer:
    """A node that is a layer of the target: its path ("layer1.0.conv1") and its form."""

    node: Node
    path: str
    form: LayerForm


@dataclass(eq=False)
class Block:
    """One run of a class scope: what it reads, does and gives."""

    path: str
    items: list[Layer | Node | Block] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        """All nodes inside."""
        found: list[Node] = []
        for item in self.items:
            if isinstance(item, Block):
                found += item.nodes()
            else:
                found.append(item.node if isinstance(item, Layer) else item)
        return found

    def paths(self) -> list[str]:
        """Its own path and those of all blocks inside."""
        inner = (p for item in self.items if isinstance(item, Block) for p in item.paths())
        return [self.path, *inner]


def place(form: LayerForm, arrays: Mapping[str, Value | None]) -> str | None:
    """The path of the layer whose weights a node's parameters are; "" if it has none.

    None where they are not the form's, or not called as those of one layer are.
    """
    given = {n: v for n, v in arrays.items() if v is not None}
    params = {n: v for n, v in given.items() if v.kind in ("param", "state")}
    wanted = {w.array: w for w in form.weights if w.array in given}
    if set(wanted) != set(params):
        return None
    paths = {parent(v.name) for v in params.values()}
    named = all(leaf(params[a].name) == w.ours for a, w in wanted.items())
    if wanted and (len(paths) != 1 or not named or "" in paths):
        return None
    return paths.pop() if wanted else ""


Forms = Callable[[Node], Sequence[LayerForm]]


def as_layers(graph: Graph, op_of: Callable[[str], Op], forms: Forms) -> dict[str, str]:
    """Parameters renamed, in place, to what a layer calls them; the new names -> the old ones.

    Those that a node has for itself, alone under one path: ``norm.scale`` is ``norm.weight``.
    """
    under: dict[str, set[str]] = {}
    for v in graph.of_kind("param", "state"):
        under.setdefault(parent(v.name), set()).add(v.name)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        arrays = dict(zip(op_of(node.op).arrays, node.inputs, strict=False))
        own = {n: v for n, v in arrays.items() if v is not None and v.kind in ("param", "state")}
        names = {v.name for v in own.values()}
        path = parent(min(names, default=""))
        for form in forms(node) if path and names == under[path] else ():
            words = {w.array: w.ours for w in form.weights}
            if place(form, arrays) is None and own.keys() <= words.keys():
                for array, v in own.items():
                    new = f"{path}.{words[array]}"
                    renamed[new], v.name = renamed.pop(v.name, v.name), new
                under[path] = {v.name for v in own.values()}
                break
    return {new: old for new, old in renamed.items() if new != old}


def holders(graph: Graph) -> set[str]:
    """The paths that hold parts with parameters inside: no framework's own layer."""
    scopes = {parent(v.name) for v in graph.of_kind("param", "state")}
    return {s[:i] for s in scopes for i in range(len(s)) if s[i] == "."}


def find_layers(graph: Graph, op_of: Callable[[str], Op], forms: Forms) -> dict[Node, Layer]:
    """The nodes that are layers. A parameter belongs to the first layer that uses it.

    A node is no layer where that layer would read a parameter that the Graph holds and never reads.
    """
    unread = {v.name for v in graph.unread()}
    around = holders(graph)
    found: dict[Node, Layer] = {}
    owner: dict[str, Layer] = {}
    for node in graph.nodes:
        op = op_of(node.op)
        arrays = dict(zip(op.arrays, node.inputs, strict=False))
        params = {n: v for n, v in arrays.items() if v is not None and v.kind in ("param", "state")}
        for form in forms(node):
            if (path := place(form, arrays)) is None:
                continue
            if params:
                before = owner.get(path)
                if before and (before.form is not form or before.node.attrs != node.attrs):
                    continue
                if path in around or any(f"{path}.{w.ours}" in unread for w in form.weights):
                    continue
            elif not (path := node.scope) or not leaf(path).isdigit():
                continue  # a plain module (ReLU, MaxPool2d) is one only as a part of a Sequential
            found[node] = Layer(node, path, form)
            if params:
                owner[path] = found[node]
            break
    return found


def blocks(
    graph: Graph,
    layers: dict[Node, Layer],
    apart: Collection[str] = (),
    repeats: bool = True,
) -> Block:
    """The Graph as one nested Block.

    ``apart``: scopes that are no call, whatever they look like. ``repeats``: one scope may be
    several Blocks, where it did the same each time (the target decides whether it really is).
    """
    scopes = {""}
    own = [v.name for v in graph.of_kind("param", "state")]
    covered = {v.name for la in layers.values() for v in la.node.inputs if v is not None}
    raw = [parent(n) for n in own if n not in covered]
    for path in [parent(la.path) for la in layers.values() if la.form.weights] + raw:
        while path:
            scopes.add(path)
            path = parent(path)

    # A plain module has a scope of its own, for itself alone.
    crowd = Counter(node.scope for node in graph.nodes)
    for node, layer in list(layers.items()):
        if not layer.form.weights and (layer.path in scopes or crowd[node.scope] > 1):
            del layers[node]
    homes = {node: _home(node, layers.get(node), scopes) for node in graph.nodes}
    scopes -= _broken(graph, homes, repeats) | {*apart}
    homes = {node: _home(node, layers.get(node), scopes) for node in graph.nodes}
    root = _nest("", graph.nodes, homes, layers, scopes)
    _wire(graph, root)
    return root


def _home(node: Node, layer: Layer | None, scopes: Collection[str]) -> str:
    """The class scope that a node's line stands in."""
    scope = parent(layer.path) if layer else node.scope
    mine = [] if layer else held(node)
    while scope not in scopes or not all(inside(name, scope) for name in mine):
        scope = parent(scope)  # a parameter shared with another scope is read above both
    return scope


def _broken(graph: Graph, homes: dict[Node, str], repeats: bool) -> set[str]:
    """The class scopes that are neither one uninterrupted run of nodes nor the same several times.

    Such a one is no call: its lines, and the classes inside it, stand in the scope around it.
    """
    runs: dict[str, list[list[Node]]] = {}
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        scope = homes[node]
        while scope:
            if last.get(scope, -1) != i - 1 or scope not in runs:
                runs.setdefault(scope, []).append([])
            runs[scope][-1].append(node)
            last[scope] = i
            scope = parent(scope)
    return {
        scope
        for scope, found in runs.items()
        if len(found) > 1 and not (repeats and len({_outline(r, homes) for r in found}) == 1)
    }


def _outline(run: Sequence[Node], homes: dict[Node, str]) -> tuple[Any, ...]:
    """What two calls of one module have in common: ops, places, parameters."""
    return tuple((n.op, homes[n], n.scope, *held(n)) for n in run)


def _nest(
    scope: str,
    nodes: Sequence[Node],
    homes: dict[Node, str],
    layers: dict[Node, Layer],
    scopes: Collection[str],
) -> Block:
    block = Block(scope)
    run: list[Node] = []
    child = ""

    def close() -> None:
        if run:
            block.items.append(_nest(child, list(run), homes, layers, scopes))
            run.clear()

    for node in nodes:
        below = at = homes[node]
        if at == scope:
            close()
            block.items.append(layers.get(node, node))
            continue
        while (at := parent(at)) != scope:
            below = at if at in scopes else below  # the outermost class inside this one
        if below != child:
            close()
            child = below
        run.append(node)
    close()
    return block


def _wire(graph: Graph, root: Block) -> None:
    """Fill in what every block reads from outside and what the outside reads from it."""
    readers = graph.uses()
    results = set(graph.outputs)

    def fill(block: Block) -> None:
        nodes = block.nodes()
        mine = set(nodes)
        made = {v for n in nodes for v in n.outputs}
        seen: set[Value] = set()
        for node in nodes:
            for v in node.inputs:
                if v is None or v in made or v in seen or v.kind in ("param", "state", "rng"):
                    continue
                seen.add(v)
                block.inputs.append(v)
        for node in nodes:
            for v in node.outputs:
                if v in results or any(r not in mine for r in readers.get(v, [])):
                    block.outputs.append(v)
        for item in block.items:
            if isinstance(item, Block):
                fill(item)

    fill(root)
    root.inputs = graph.of_kind("data")
    root.outputs = list(graph.outputs)


def numbered(names: Iterable[str]) -> bool:
    """Are these 0, 1, 2, ...: what the elements of a list are called?"""
    names = list(names)
    return bool(names) and names == [str(i) for i in range(len(names))]


def in_order(members: dict[str, Any]) -> dict[str, Any]:
    """Members as they come, but the elements of a list together and by their numbers."""
    first: dict[tuple[str, ...], int] = {}
    children: dict[tuple[str, ...], set[str]] = {}
    for name in members:
        parts = tuple(name.split("."))
        for i, part in enumerate(parts):
            first.setdefault(parts[: i + 1], len(first))
            children.setdefault(parts[:i], set()).add(part)
    lists = {at for at, names in children.items() if numbered(sorted(names, key=_count_of))}

    def place(name: str) -> list[int]:
        parts = tuple(name.split("."))
        return [int(p) if parts[:i] in lists else first[parts[: i + 1]]
                for i, p in enumerate(parts)]  # fmt: skip

    return {name: members[name] for name in sorted(members, key=place)}


def _count_of(name: str) -> int:
    return int(name) if name.isdecimal() else -1
