"""The verifier: is this Graph well formed? Every importer and transform may ask."""

from __future__ import annotations

from trivium.graph import OPS, Graph, GraphError, Value


def check(graph: Graph) -> Graph:
    """``graph`` itself, or a GraphError that names the first node that is wrong."""
    known: set[Value] = set(graph.inputs)
    names = [v.name for v in graph.inputs]
    for name in names:
        if names.count(name) > 1:
            raise GraphError(f"two inputs are called {name!r}")
    for i, node in enumerate(graph.nodes):
        where = f"node {i}, {node!r}"
        if node.op not in OPS:
            raise GraphError(f"{where}: there is no op {node.op!r}")
        for value in node.inputs:
            if value is not None and value not in known:
                raise GraphError(f"{where}: reads {value!r}, which nothing before it makes")
        types = [None if v is None else v.type for v in node.inputs]
        inferred = OPS[node.op].infer(types, node.attrs)
        if inferred != [v.type for v in node.outputs]:
            has = ", ".join(str(v.type) for v in node.outputs)
            raise GraphError(f"{where}: says {has}, is {', '.join(map(str, inferred))}")
        for item in node.attrs.values():
            if isinstance(item, Graph):
                check(item)
        known |= set(node.outputs)
    for value in graph.results():
        if value not in known:
            raise GraphError(f"the result {value!r} is made by no node of this graph")
    for state, new in graph.updates.items():
        if state.kind not in ("state", "param") or state.type != new.type:
            raise GraphError(f"{state!r} cannot become {new!r}")
    return graph
