"""The one Graph: what it is (core), as text, whether it is well formed (check), as lists (flat)."""

from trivium.graph.core import (
    KINDS,
    MODE,
    OPS,
    Graph,
    GraphError,
    Node,
    Operators,
    Type,
    UnsupportedError,
    Value,
    current,
)
from trivium.graph.text import identifier, quoted

__all__ = [
    "KINDS",
    "MODE",
    "OPS",
    "Graph",
    "GraphError",
    "Node",
    "Operators",
    "Type",
    "UnsupportedError",
    "Value",
    "current",
    "identifier",
    "quoted",
]
