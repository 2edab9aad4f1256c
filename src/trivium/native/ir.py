"""Writing LLVM IR: typed values, instructions, loops with carried values. Text, because it is fast.

llvmlite's own builder makes an object per instruction and formats them at the end; writing lines
directly takes a quarter of the time, and a training step has some ten thousand of them.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trivium.dtype import DType

_TYPES = {
    "float64": "double", "float32": "float", "float16": "half", "bfloat16": "bfloat",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "bool": "i1",
    "uint64": "i64", "uint32": "i32", "uint16": "i16", "uint8": "i8",
}  # fmt: skip


class V(NamedTuple):
    """An LLVM value: its type, and how it is written (``%12``, or a constant)."""

    type: str
    ref: str

    @property
    def lanes(self) -> int:
        """How many numbers it holds; 0 for a scalar."""
        return int(self.type[1:].split(" ", 1)[0]) if self.type[0] == "<" else 0

    @property
    def element(self) -> str:
        """The type of one of its numbers."""
        return self.type[1:-1].split(" x ")[1] if self.type[0] == "<" else self.type

    def __str__(self) -> str:
        return f"{self.type} {self.ref}"


def type_of(dtype: DType) -> str:
    """The LLVM type of a number of this dtype in a register."""
    return _TYPES[str(dtype)]


def vector(element: str, lanes: int) -> str:
    """The type of ``lanes`` numbers; 0 lanes is the number itself."""
    return f"<{lanes} x {element}>" if lanes else element


def suffix(type: str) -> str:
    """How an intrinsic's name spells a type: ``v16f32``, ``f64``, ``i32``."""
    v = V(type, "")
    short = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}
    return (f"v{v.lanes}" if v.lanes else "") + short.get(v.element, v.element)


def literal(element: str, value: Any) -> str:
    """A number as an LLVM constant."""
    if element in ("float", "double"):
        # Both are written as the 64 bits of a double; a float's must be exact as one.
        wide = struct.unpack("f", struct.pack("f", value))[0] if element == "float" else value
        return f"0x{struct.unpack('>Q', struct.pack('>d', wide))[0]:016X}"
    if element in ("half", "bfloat"):
        raise TypeError(f"no constants of {element}: compute in float")
    return str(int(value))


def _alone(argument: str) -> str:
    """An argument's type without its attributes."""
    return argument[: argument.index(">") + 1] if argument[0] == "<" else argument.split()[0]


class Module:
    """What one object file is made of: functions, declarations, constants."""

    def __init__(self, target: Any):
        self.target = target
        self.functions: list[str] = []
        self.known: dict[str, str] = {}  # a function's text without its name -> its name
        self.defined: set[str] = set()
        self.declared: dict[str, str] = {}

    def declare(self, name: str, ret: str, args: Sequence[str]) -> None:
        """A function that is defined elsewhere (an intrinsic, libc)."""
        if name not in self.defined:
            self.declared[name] = f"declare {ret} @{name}({', '.join(args)})"

    def text(self) -> str:
        """The module as LLVM reads it."""
        declared = (d for n, d in self.declared.items() if n not in self.defined)
        return "\n".join([f'target triple = "{self.target.triple}"', *declared, *self.functions])


@dataclass
class Region:
    """The body of a loop or a condition: what is known in it, and the line just before it."""

    before: int
    known: dict[str, V] = field(default_factory=dict)


class Function:
    """A function being written.

    Numbers that say where things lie (integers, pointers, what is made of these) are computed once,
    outside of all loops that they do not depend on: that is how the text is written, and no pass of
    LLVM has to find it out.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        args: Sequence[str],
        ret: str = "void",
        attributes: str = "nounwind",
        exported: bool = False,
    ):
        """``args`` are types with attributes: ``"ptr noalias"``, ``"i64"``."""
        own = ret.startswith("internal")
        visible = "" if exported or own else "hidden "  # what is hidden is reached without a table
        self.module, self.name, self.ret = module, name, ret
        self.args = [V(_alone(a), f"%a{i}") for i, a in enumerate(args)]
        head = ", ".join(f"{a} %a{i}" for i, a in enumerate(args))
        self.lines = [f"define {visible}{ret} @{name}({head}) {attributes} {{", "entry:", ""]
        self.block = "entry"
        self.count = 0
        self.regions = [Region(0)]
        self.home: dict[str, int] = {}  # how many regions a value is inside of; 0 for arguments
        module.defined.add(name)

    # -- instructions --------------------------------------------------------------------------
    def value(self, type: str, text: str) -> V:
        """An instruction that gives a value."""
        self.count += 1
        ref = f"%v{self.count}"
        self.lines.append(f" {ref} = {text}")
        self.home[ref] = len(self.regions) - 1
        return V(type, ref)

    def depth(self, x: V) -> int:
        """How many loops and conditions a value is inside of."""
        return self.home.get(x.ref, 0)

    def number(self, type: str, text: str, *operands: V) -> V:
        """An instruction without effects or traps: written once, as far out as its operands are."""
        now = len(self.regions) - 1
        depth = min(now, max(map(self.depth, operands)))
        known = self.regions[depth].known
        if text not in known:
            self.count += 1
            known[text] = V(type, f"%v{self.count}")
            self.home[known[text].ref] = depth
            line = f" {known[text].ref} = {text}"
            if depth == now:
                self.lines.append(line)
            else:
                self.lines[self.regions[depth + 1].before] += line + "\n"
        return known[text]

    @contextlib.contextmanager
    def region(self, before: int) -> Iterator[None]:
        """What is written inside is the body of a loop or a condition."""
        self.regions.append(Region(before))
        yield
        self.regions.pop()

    def gap(self) -> int:
        """A line to be filled later."""
        self.lines.append("")
        return len(self.lines) - 1

    def do(self, text: str) -> None:
        """An instruction that gives nothing."""
        self.lines.append(" " + text)

    def op(self, name: str, x: V, y: V | None = None) -> V:
        """``fadd``, ``mul``, ``and``, ``fneg``... on values of one type."""
        text = f"{name} {x}" + (f", {y.ref}" if y else "")
        if x.element[0] == "f" or x.element in ("double", "half", "bfloat"):
            return self.value(x.type, text)
        assert y is not None  # only fneg has one operand
        if name[1:] in ("div", "rem") and y.ref[0] == "%":
            return self.value(x.type, text)  # by zero it traps: it stays where it was asked for
        return self.number(x.type, text, x, y)

    def compare(self, kind: str, name: str, x: V, y: V) -> V:
        """``compare("fcmp", "olt", x, y)`` -> i1, one per lane."""
        type, text = vector("i1", x.lanes), f"{kind} {name} {x}, {y.ref}"
        return self.number(type, text, x, y) if kind == "icmp" else self.value(type, text)

    def select(self, condition: V, x: V, y: V) -> V:
        """x where the condition holds (per lane, or for all), else y."""
        return self.number(x.type, f"select {condition}, {x}, {y}", condition, x, y)

    def cast(self, how: str, x: V, element: str) -> V:
        """``sitofp``, ``zext``, ``trunc``, ``bitcast``... lane by lane."""
        if x.element == element:
            return x
        type = vector(element, x.lanes)
        return self.number(type, f"{how} {x} to {type}", x)

    def call(self, name: str, ret: str, args: Sequence[V], *, declare: bool = True) -> V:
        """A call; the function is declared unless it is defined in this module."""
        if declare:
            self.module.declare(name, ret, [a.type for a in args])
        text = f"call {ret} @{name}({', '.join(map(str, args))})"
        if ret == "void":
            self.do(text)
            return V("void", "")
        return self.value(ret, text)

    def intrinsic(self, name: str, *args: V, ret: str | None = None) -> V:
        """An LLVM intrinsic overloaded on its first argument's type: ``intrinsic("fabs", x)``."""
        return self.call(f"llvm.{name}.{suffix(args[0].type)}", ret or args[0].type, args)

    def fma(self, x: V, y: V, z: V) -> V:
        """x * y + z; rounded once where the target can, twice elsewhere."""
        if self.module.target.fma:
            return self.intrinsic("fma", x, y, z)
        return self.op("fadd", self.op("fmul", x, y), z)

    # -- constants and vectors -----------------------------------------------------------------
    @staticmethod
    def const(type: str, value: Any) -> V:
        """A constant; for a vector type, the same number in every lane."""
        v = V(type, "")
        one = literal(v.element, value)
        if not v.lanes:
            return V(type, one)
        return V(type, "<" + ", ".join([f"{v.element} {one}"] * v.lanes) + ">")

    @staticmethod
    def lanes_of(element: str, values: Sequence[Any]) -> V:
        """A constant vector."""
        inner = ", ".join(f"{element} {literal(element, x)}" for x in values)
        return V(vector(element, len(values)), f"<{inner}>")

    def splat(self, x: V, lanes: int) -> V:
        """The scalar in every lane; itself for 0 lanes."""
        if not lanes or x.lanes:
            return x
        type = vector(x.type, lanes)
        if x.ref[0] != "%":
            return V(type, "<" + ", ".join([str(x)] * lanes) + ">")
        one = self.number(type, f"insertelement {type} poison, {x}, i64 0", x)
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.number(type, f"shufflevector {one}, {type} poison, {zeros}", one)

    # -- memory --------------------------------------------------------------------------------
    def gep(self, element: str, base: V, index: V) -> V:
        """The address of ``base[index]``, inside the array or not; one per lane of the index."""
        text = f"getelementptr {element}, {base}, {index}"
        return self.number(vector("ptr", index.lanes), text, base, index)

    def load(self, type: str, address: V, align: int) -> V:
        """``type`` from an address that is a multiple of ``align`` bytes."""
        return self.value(type, f"load {type}, {address}, align {align}")

    def store(self, x: V, address: V, align: int) -> None:
        """The other way."""
        self.do(f"store {x}, {address}, align {align}")

    def reserve(self, type: str, align: int) -> V:
        """Room on the stack, taken where the function begins."""
        self.count += 1
        self.lines[2] += f" %s{self.count} = alloca {type}, align {align}\n"
        return V("ptr", f"%s{self.count}")

    def masked_load(self, type: str, address: V, align: int, mask: V, other: V) -> V:
        """Lanes whose mask is off are not read; they are ``other``'s."""
        name = f"llvm.masked.load.{suffix(type)}.p0"
        return self.call(name, type, [address, V("i32", str(align)), mask, other])

    def masked_store(self, x: V, address: V, align: int, mask: V) -> None:
        """Lanes whose mask is off are not written."""
        name = f"llvm.masked.store.{suffix(x.type)}.p0"
        self.call(name, "void", [x, address, V("i32", str(align)), mask])

    # -- control -------------------------------------------------------------------------------
    def label(self, wish: str) -> str:
        """A fresh name for a block."""
        self.count += 1
        return f"{wish}{self.count}"

    def begin(self, label: str) -> None:
        """The following instructions are in this block; what was known may not be known here."""
        self.regions[-1].known.clear()
        self._begin(label)

    def _begin(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def jump(self, label: str) -> None:
        """Go on in another block."""
        self.do(f"br label %{label}")

    def branch(self, condition: V, yes: str, no: str) -> None:
        """Go on in one of two blocks."""
        self.do(f"br {condition}, label %{yes}, label %{no}")

    def loop(
        self,
        start: V,
        stop: V,
        step: int,
        carried: Sequence[V],
        body: Callable[[V, list[V]], Sequence[V]],
        at_least_once: bool = False,
    ) -> list[V]:
        """``for i in range(start, stop, step)``; the body maps the carried values to new ones."""
        head, inside, out = self.label("head"), self.label("body"), self.label("done")
        before, gap = self.block, self.gap()
        self.jump(head)
        self._begin(head)
        at = len(self.lines)
        self.count += 1
        i = V(start.type, f"%i{self.count}")
        self.count += len(carried)
        now = [V(c.type, f"%c{self.count - k}") for k, c in enumerate(carried)]
        self.home |= {v.ref: len(self.regions) for v in (i, *now)}
        self.lines += [""] * (1 + len(carried))
        with self.region(gap):
            if at_least_once:
                self.jump(inside)
            else:
                self.branch(self.compare("icmp", "slt", i, stop), inside, out)
            self._begin(inside)
            new = list(body(i, now))
            after = self.op("add nsw", i, V(i.type, str(step)))
            latch = self.block
            if at_least_once:
                self.branch(self.compare("icmp", "slt", after, stop), head, out)
            else:
                self.jump(head)
        pairs = [(i, start, after), *zip(now, carried, new, strict=True)]
        for k, (phi, first, later) in enumerate(pairs):
            self.lines[at + k] = (
                f" {phi.ref} = phi {phi.type} [ {first.ref}, %{before} ], [ {later.ref}, %{latch} ]"
            )
        self._begin(out)
        return new if at_least_once else now

    @contextlib.contextmanager
    def when(self, condition: V) -> Iterator[None]:
        """What is written inside runs only if the condition holds."""
        yes, out, gap = self.label("then"), self.label("after"), self.gap()
        self.branch(condition, yes, out)
        self._begin(yes)
        with self.region(gap):
            yield
        self.jump(out)
        self._begin(out)

    def choose(self, condition: V, values: Sequence[V], body: Callable[[], Sequence[V]]) -> list[V]:
        """``body()`` where the condition holds, else the values as they are."""
        yes, out, gap = self.label("then"), self.label("after"), self.gap()
        before = self.block
        self.branch(condition, yes, out)
        self._begin(yes)
        with self.region(gap):
            new = list(body())
        inside = self.block
        self.jump(out)
        self._begin(out)
        return [
            self.value(a.type, f"phi {a.type} [ {a.ref}, %{inside} ], [ {o.ref}, %{before} ]")
            for a, o in zip(new, values, strict=True)
        ]

    def finish(self, result: V | None = None) -> None:
        """Return, and hand the function to its module."""
        self.do(f"ret {result}" if result else "ret void")
        self.module.functions.append("\n".join([*self.lines, "}"]))

    def share(self) -> str:
        """Finish, unless the module knows a function that says the same: the name of the one kept.

        Steps of a loop that was written out and layers of one size share theirs.
        """
        text = "\n".join(self.lines).replace(f"@{self.name}(", "@(", 1)
        known = self.module.known.setdefault(text, self.name)
        if known == self.name:
            self.finish()
        return known
