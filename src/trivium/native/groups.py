"""Groups: a reduction or product with the elementwise work that follows it, stored by one nest.

No two nests may wait for each other: a value joins a group only if nothing else that it depends on
has to wait for that group.
"""

from __future__ import annotations

from collections.abc import Callable

from trivium.graph import Graph, Node, Value
from trivium.native.meaning import is_native


class Groups:
    """For each heavy node of a Graph the values that its nest stores.

    ``heavy``: has it loops of its own? ``follows``: may it be done where its input is made?
    ``realised``: what is kept in memory; the roots of the groups are added to it.
    """

    def __init__(
        self,
        graph: Graph,
        realised: set[Value],
        heavy: Callable[[Node], bool],
        follows: Callable[[Node], bool],
    ):
        self.graph, self.realised, self.follows = graph, realised, follows
        self.uses, self.results = graph.uses(), set(graph.results())
        self.own: dict[Value, int] = {}  # what has work of its own: a bit; a set of it: a number
        self.below = self._below(heavy)
        self.waits: dict[Value, int] = {}  # what a group waits for, beside what its heavy does
        self.roots: dict[Value, list[Value]] = {}
        self.owner: dict[Value, Value] = {}
        claimed: set[Value] = set()  # told by the reduction of some group: no other may tell them
        for node in graph.nodes:
            if is_native(node) and heavy(node):
                claimed |= self._group(node.out, claimed)

    def _below(self, heavy: Callable[[Node], bool]) -> dict[Value, int]:
        """For each value what it depends on that has work of its own, with itself."""
        below: dict[Value, int] = dict.fromkeys(self.graph.inputs, 0)
        for node in self.graph.nodes:
            found = 0
            for x in node.inputs:
                found |= below[x] if x is not None else 0
            for v in node.outputs:
                if not is_native(node) or heavy(node) or v in self.realised:
                    self.own[v] = 1 << len(self.own)
                below[v] = found | self.own.get(v, 0)
        return below

    def _later(self, v: Value) -> int:
        """Everything with work of its own that can only begin when the nest of ``v`` is done."""

        def after(x: Value) -> int:
            bit = self.own[x]
            return sum(b for h, b in self.own.items() if h is not x and self.below[h] & bit)

        late, left = after(v), dict(self.waits)
        while found := [h for h, more in left.items() if more & (late | self.own[v])]:
            for h in found:
                late |= self.own[h] | after(h)
                del left[h]
        return late

    def _group(self, v: Value, claimed: set[Value]) -> set[Value]:
        """Decide what the nest of ``v`` stores; what is told by its reduction."""
        late = self._later(v)
        reach, inside = {v}, self.own[v]
        for node in self.graph.nodes:
            if not is_native(node) or not self.follows(node):
                continue
            x, own = node.out, self.own.get(node.out, 0)
            if (
                any(y in reach for y in node.inputs)
                and x.size == v.size
                and x not in claimed
                and not self.below[x] & ~(inside | own) & late
            ):
                reach.add(x)
                inside |= own
        roots, told = self._frontier(v, reach)
        while torn := self._torn(reach, told):
            reach -= torn
            roots, told = self._frontier(v, reach)
        if any(r.shape != roots[0].shape for r in roots):
            roots, told = [v], {v}
        self.waits[v] = 0
        for x in told:
            self.waits[v] |= self.below[x] & ~(inside | self.below[v])
        self.roots[v] = roots
        self.owner |= dict.fromkeys(roots, v)
        self.realised |= set(roots)
        return told

    def _frontier(self, v: Value, reach: set[Value]) -> tuple[list[Value], set[Value]]:
        """Values that must be stored so that whoever is outside can do without the reduction.

        And all values that are told by the reduction.
        """
        roots: list[Value] = []
        told = {v}
        needs = {v}  # what is told by the reduction without passing through a stored value
        order = [
            v,
            *(x for n in self.graph.nodes for x in n.outputs if x in reach and x is not v),
        ]
        for f in order:
            if f is not v:
                assert f.node is not None
                if not any(x in needs for x in f.node.inputs):
                    if f in self.realised and f in self.results:
                        roots.append(f)  # an update that reads others of this group
                        told.add(f)
                    continue
                needs.add(f)
                told.add(f)
            outside = [n for n in self.uses.get(f, []) if not any(x in reach for x in n.outputs)]
            if outside or f in self.results or f in self.realised:
                roots.append(f)
                if f not in self.results:
                    needs.discard(f)
        return roots or [v], told

    def _torn(self, reach: set[Value], told: set[Value]) -> set[Value]:
        """What cannot be told after all: it reads what is kept on its own, made of the group's."""
        apart: set[Value] = set()
        torn: set[Value] = set()
        for node in self.graph.nodes:
            if not node.outputs or (x := node.outputs[0]) not in reach:
                continue
            if any(y in apart or y in torn for y in node.inputs):
                (torn if x in told else apart).add(x)
            elif x not in told and x in self.realised:
                apart.add(x)
        return torn
