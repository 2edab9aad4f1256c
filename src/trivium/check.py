"""The verifier: is this Graph well formed? Every importer and transform may ask."""

from __future__ import annotations

from trivium.graph import KINDS, OPS, Graph, GraphError, Value


def check(graph: Graph) -> Graph:
    """``graph`` itself, or a GraphError that names the first node that is wrong."""
    known: set[Value] = set(graph.inputs)
    for value in graph.inputs:
        if value.kind not in KINDS or value.graph is not graph:
            raise GraphError(f"{value!r}, {value.name!r}, is no input of this graph")
    names = [v.name for v in graph.inputs]
    for name in names:
        if names.count(name) > 1:
            raise GraphError(f"two inputs are called {name!r}")
    for i, node in enumerate(graph.nodes):
        where = f"node {i}, {node!r}"
        if node.op not in OPS:
            raise GraphError(f"{where}: there is no op {node.op!r}")
        for read in node.inputs:
            if read is not None and read not in known:
                raise GraphError(f"{where}: reads {read!r}, which nothing before it makes")
        if wrong := node.attrs.keys() ^ OPS[node.op].defaults.keys():
            raise GraphError(f"{where}: has or lacks the attribute {min(wrong)}")
        types = [None if v is None else v.type for v in node.inputs]
        try:
            inferred = OPS[node.op].infer(types, node.attrs)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise GraphError(f"{where}: {error}") from error
        if inferred != [v.type for v in node.outputs]:
            has = ", ".join(str(v.type) for v in node.outputs)
            raise GraphError(f"{where}: says {has}, is {', '.join(map(str, inferred))}")
        for item in node.attrs.values():
            if isinstance(item, Graph):
                check(item)
        for value in node.outputs:
            if value.node is not node or value.graph is not graph or value in known:
                raise GraphError(f"{where}: {value!r} is made elsewhere too")
            known.add(value)
    for value in graph.results():
        if value not in known:
            raise GraphError(f"the result {value!r} is made by no node of this graph")
    for state, new in graph.updates.items():
        if not any(state is v for v in graph.of_kind("state", "param")) or state.type != new.type:
            raise GraphError(f"{state!r} cannot become {new!r}")
    return graph
