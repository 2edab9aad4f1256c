"""From a Graph to object code: every step in order, and what is known of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trivium.dtype import as_dtype
from trivium.graph import Graph, Node
from trivium.native import codegen
from trivium.native.arrange import Phase, arrange
from trivium.native.expr import Axis, Buffer
from trivium.native.fuse import Fused, Fusion
from trivium.native.ir import Function, Module, V
from trivium.native.nest import printed
from trivium.native.prepare import prepared
from trivium.native.target import Target

ALIGN = 64  # bytes: a cache line, and the widest vector
POOL, HELD, ARENA, FIRST = 0, 1, 2, 3  # a call's arguments: where the slots begin


@dataclass(frozen=True)
class Array:
    """Where an array is and how it lies: what is left of a Buffer once all is decided."""

    dtype: str
    shape: tuple[int, ...]
    axes: tuple[tuple[int, int, int, int], ...]  # the fields of its ``nest.Axis`` objects
    place: str  # "held", "arena", "constant", "input" or "output"
    at: int  # bytes from the start of its place; which slot, for an input or output

    @property
    def nbytes(self) -> int:
        """The room it takes."""
        size = as_dtype(self.dtype).itemsize
        for _, _, extent, spare in self.axes:
            size *= extent + spare
        return size


@dataclass
class Recipe:
    """All that a loaded program has to know, beside its code."""

    held: int  # bytes of parameters and states
    arena: int  # bytes of everything else
    inputs: list[Array]
    outputs: list[Array]
    constants: list[tuple[Array, Any]]
    checks: list[str]
    errors: Array
    kernels: list[tuple[int, list[Array], list[Array]]]  # (node of the prepared Graph, in, out)
    slots: int
    parallel: bool
    nodes: list[Node] = field(default_factory=list)


def physical(buffer: Buffer) -> int:
    """The bytes that a buffer takes."""
    if buffer.axes is None:
        buffer.lie()
    count = buffer.dtype.numpy.itemsize
    for a in buffer.axes or ():
        count *= a.room
    return count


def _rounded(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


class Build:
    """A Graph without open sizes on its way to LLVM's text.

    ``held``: parameters and states live in the program's memory and are updated there; otherwise
    every input comes with the call. ``layouts``: how held arrays lie, where that was decided
    before.
    """

    def __init__(self, graph: Graph, held: bool, target: Target,
                 layouts: Mapping[str, Any] | None = None):  # fmt: skip
        self.target, self.held = target, held
        self.graph = prepared(graph, held)
        fusion = Fusion(self.graph, held, layouts or {})
        self.fused: Fused = fusion.run()
        self.phases = arrange(self.fused, target)
        self.recipe = self._recipe()

    # -- memory ----------------------------------------------------------------------------------
    def _recipe(self) -> Recipe:
        fused = self.fused
        held = constants = 0
        slots = 0
        for b in fused.inputs:
            if b.place == "held":
                b.offset, held = held, held + _rounded(physical(b))
        last = [b for v, b in zip(self.graph.inputs, fused.inputs, strict=True)
                if v.kind in ("rng", "hyper")] if self.held else []  # fmt: skip
        for b in [*(b for b in fused.inputs if b not in last), *last, *fused.outputs]:
            if b.place in ("input", "output") and b.slot < 0:
                b.slot, slots = slots, slots + 1
        for b, _ in fused.constants:
            b.offset, constants = constants, constants + _rounded(physical(b))
        arena = self._place(constants)
        index = {id(n): k for k, n in enumerate(self.graph.nodes)}
        kernels = [
            (index[id(k.node)], [_array(b) for b in k.reads], [_array(b) for b in k.writes])
            for p in self.phases
            if (k := p.kernel) is not None
        ]
        return Recipe(
            held, arena, [_array(b) for b in fused.inputs], [_array(b) for b in fused.outputs],
            [(_array(b), value) for b, value in fused.constants], fused.checks,
            _array(fused.errors), kernels, slots, any(p.tasks > 1 for p in self.phases),
            self.graph.nodes,
        )  # fmt: skip

    def _place(self, start: int) -> int:
        """Give every array in the arena room for as long as it is needed; large ones first."""
        life: dict[Buffer, tuple[int, int]] = {}
        for k, phase in enumerate(self.phases):
            for b in sorted(phase.buffers(), key=lambda b: b.name):
                if b.place == "arena":
                    life[b] = (life.get(b, (k, k))[0], k)
        end = len(self.phases)
        for b in (*self.fused.outputs, *self.fused.updates.values()):
            if b.place == "arena":
                life[b] = (life.get(b, (0, 0))[0], end)
        life[self.fused.errors] = (0, end)
        size = start
        placed: list[tuple[int, int, tuple[int, int]]] = []
        for b in sorted(life, key=lambda b: (-physical(b), life[b], b.name)):
            need, at = _rounded(physical(b)), start
            for low, high, (born, died) in sorted(placed):
                if died < life[b][0] or born > life[b][1]:
                    continue
                if low - at >= need:
                    break
                at = max(at, high)
            b.offset = at
            placed.append((at, at + need, life[b]))
            size = max(size, at + need)
        return size

    # -- reading it ------------------------------------------------------------------------------
    @property
    def source(self) -> str:
        """The phases as loops that can be read."""
        lines: list[str] = []
        for k, phase in enumerate(self.phases):
            if phase.kernel is not None:
                lines.append(f"# phase {k}: NumPy runs {phase.kernel.node.op}\n")
                continue
            how = f"{phase.tasks} tasks" if phase.tasks > 1 else "one task"
            if phase.batch:
                how += f" of {phase.chunk} of the batch"
            lines.append(f"# phase {k}: {how}")
            for p in phase.plans:
                unit = f" in {p.nest.unit}" if p.nest.unit else ""
                loops = printed(p.nest)  # names the variables
                lines += [f"# {p.nest.name}{unit}: {p.described()}", loops + "\n"]
        return "\n".join(lines)

    # -- code ------------------------------------------------------------------------------------
    def text(self) -> str:
        """The module as LLVM reads it: nests, phases, and one run per native segment."""
        module = Module(self.target)
        segments: list[list[int]] = [[]]
        for k, phase in enumerate(self.phases):
            if phase.kernel is not None:
                segments.append([])
                continue
            nests = [codegen.write(module, p, f"nest_{k}_{j}") for j, p in enumerate(phase.plans)]
            self._phase(module, k, phase, nests)
            segments[-1].append(k)
        for k, indices in enumerate(segments):
            self._run(module, k, indices)
        return module.text()

    def _pointer(self, b: Function, args: V, buffer: Buffer, element: int = 0) -> V:
        offset = element * buffer.dtype.numpy.itemsize
        if buffer.place in ("input", "output"):
            slot = FIRST + buffer.slot
        else:
            slot, offset = HELD if buffer.place == "held" else ARENA, buffer.offset + offset
        start = b.load("ptr", b.gep("ptr", args, V("i64", str(slot))), 8)
        return b.gep("i8", start, V("i64", str(offset)))

    def _phase(self, module: Module, k: int, phase: Phase, nests: Sequence[str]) -> None:
        b = Function(module, f"phase_{k}", ["ptr", "i64"])
        args, task = b.args
        for name, p in zip(nests, phase.plans, strict=True):
            pointers = [self._pointer(b, args, x, at) for x, at in codegen.arrays(p.nest).items()]
            first, last = V("i64", "0"), V("i64", str(p.count))
            if phase.batch or phase.tasks > 1:
                first = b.op("mul", task, V("i64", str(phase.chunk)))
                last = b.op("add", first, V("i64", str(phase.chunk)))
                last = b.intrinsic("smin", last, V("i64", str(phase.batch or p.count)))
            b.call(name, "void", [*pointers, first, last])
        b.finish()

    def _run(self, module: Module, k: int, indices: Sequence[int]) -> None:
        """One native segment: its phases in turn, the wide ones on the pool."""
        b = Function(module, f"run_{k}", ["ptr"], exported=True)
        (args,) = b.args
        for i in indices:
            phase = self.phases[i]
            if phase.tasks > 1:
                pool = b.load("ptr", args, 8)
                call = b.load("ptr", pool, 8)
                tasks = V("i64", str(phase.tasks))
                b.do(f"call void {call.ref}({pool}, ptr @phase_{i}, {args}, {tasks})")
            else:
                b.call(f"phase_{i}", "void", [args, V("i64", "0")])
            if any(p.nest.watches for p in phase.plans):
                self._stop_on_errors(b, args)
        b.finish()

    def _stop_on_errors(self, b: Function, args: V) -> None:
        """An index was out of range: nothing after this may be computed from it."""
        start = self._pointer(b, args, self.fused.errors)
        found = V("i32", "0")
        for k in range(len(self.fused.checks)):
            found = b.op("or", b.load("i32", b.gep("i32", start, V("i64", str(k))), 4), found)
        with b.when(b.compare("icmp", "ne", found, V("i32", "0"))):
            b.do("ret void")
            b.begin(b.label("never"))


def _array(b: Buffer) -> Array:
    if b.axes is None:
        b.lie()
    axes = tuple((a.axis, a.divisor, a.extent, a.spare) for a in b.axes or ())
    at = b.slot if b.place in ("input", "output") else b.offset
    return Array(str(b.dtype), b.shape, axes, b.place, at)


def axes_of(array: Array) -> tuple[Axis, ...]:
    """How an array lies, as a Buffer says it."""
    return tuple(Axis(*a) for a in array.axes)


def assemble(text: str, target: Target) -> bytes:
    """LLVM's text as an object file.

    Vectors, unrolling and what leaves the loops are in the text already. LLVM's own pipeline would
    take as long as emitting the code, and its code is no faster (docs/performance.md).
    """
    import llvmlite.binding as llvm

    machine = target.machine(2)
    module = llvm.parse_assembly(text)
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_instruction_combine_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    code: bytes = machine.emit_object(module)
    return code
