"""Expressions as instructions: on one number, or on a vector of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trivium import dtype as dt
from trivium.dtype import DType
from trivium.native import vecmath
from trivium.native.expr import Apply, Buffer, Condition, Const, Expr, Gather, Guard, Iota, Load
from trivium.native.index import Index, Part, Var
from trivium.native.ir import Function, V, type_of, vector

_ARITHMETIC = {"add": "add", "subtract": "sub", "multiply": "mul"}
_COMPARE = {"equal": "oeq eq eq", "not_equal": "une ne ne", "less": "olt slt ult",
            "less_equal": "ole sle ule", "greater": "ogt sgt ugt",
            "greater_equal": "oge sge uge"}  # fmt: skip
FUNCTIONS = {"exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "pow", *vecmath.LIBRARY}
"""Instructions on floating numbers that ``vecmath`` writes."""
INTEGER = {"fmod", "floor_divide"}
"""Instructions that integers have otherwise."""


def memory_type(dtype: DType) -> str:
    """How a number of this dtype lies in memory: a bool takes a byte."""
    return "i8" if dtype == dt.bool_ else type_of(dtype)


class Place:
    """Where the loops stand: each variable's value, and which one is spread over the lanes.

    ``pointers``: for each array where its element ``base`` is, and that number.
    """

    def __init__(self, b: Function, pointers: Mapping[Buffer, tuple[V, int]],
                 env: dict[Var, V | int],
                 vec: Var | None = None, lanes: int = 0, mask: V | None = None,
                 acc: V | None = None):  # fmt: skip
        self.b, self.pointers, self.env = b, pointers, env
        self.vec, self.lanes, self.mask, self.acc = vec, lanes, mask, acc
        self._made: dict[tuple[int, str | None], V] = {}

    # -- indices ---------------------------------------------------------------------------------
    def where(self, buffer: Buffer, at: Sequence[Index]) -> tuple[V, Index]:
        """An element as a pointer, and how far behind it."""
        pointer, base = self.pointers[buffer]
        return pointer, buffer.flat(at) - base

    def scalar(self, index: Index) -> V:
        """An Index as a number: the first lane's, where it depends on the spread variable."""
        b, const = self.b, index.const
        terms: list[V] = []
        for atom, c in index.terms.items():
            if isinstance(atom, Var):
                value = self.env[atom]
            else:
                value = self._part(atom.kind, self.scalar(atom.inner), atom.number, atom.inner)
            if isinstance(value, int):
                const += value * c
                continue
            if value.ref[0] != "%":
                const += int(value.ref) * c
                continue
            terms.append(value if c == 1 else b.op("mul nsw", value, V("i64", str(c))))
        if const or not terms:
            terms.append(V("i64", str(const)))
        terms.sort(key=b.depth)  # what changes least often first: those sums leave the loops
        return functools.reduce(lambda x, y: b.op("add nsw", y, x), terms)

    def _part(self, kind: str, x: V, number: int, inner: Index) -> V:
        b = self.b
        if x.ref[0] != "%":
            value = int(x.ref)
            return V("i64", str(value // number if kind == "//" else value % number))
        # Floor division of what may be negative: moved up by whole multiples first.
        low = min(inner.bounds()[0], 0)
        shift = -(low // number) * number
        one = b.splat(V(x.element, str(number)), x.lanes)
        up = b.op("add", x, b.splat(V(x.element, str(shift)), x.lanes)) if shift else x
        if kind == "%":
            return b.op("urem", up, one)
        q = b.op("udiv", up, one)
        return b.op("sub", q, b.splat(V(x.element, str(shift // number)), x.lanes)) if shift else q

    def spread(self, index: Index) -> bool:
        """Does the Index differ from lane to lane?"""
        return self.vec is not None and self.vec in index.vars()

    def lane_values(self, index: Index) -> V:
        """An Index as a vector, one integer per lane: i32 where it fits."""
        assert self.vec is not None
        b, n, (low, high) = self.b, self.lanes, index.bounds()
        kind = "i32" if low > -(2**30) and high < 2**30 else "i64"
        terms = index.terms
        parts = {a: c for a, c in terms.items() if isinstance(a, Part) and self.spread(a.inner)}
        even = Index({a: c for a, c in terms.items() if a not in parts}, index.const)
        total = b.splat(b.cast("trunc", self.scalar(even), kind), n)
        if step := even.coefficient(self.vec):
            total = b.op("add", total, b.lanes_of(kind, [k * step for k in range(n)]))
        for part, c in parts.items():
            value = self._part(part.kind, self.lane_values(part.inner), part.number, part.inner)
            value = b.cast("sext" if kind == "i64" else "trunc", value, kind)
            total = b.op("add", total, b.op("mul", value, b.const(value.type, c)))
        return total

    def holds(self, conditions: tuple[Condition, ...]) -> V:
        """Do all conditions hold? i1, or one per lane."""
        b = self.b
        result: V | None = None
        for index, low, high in conditions:
            smallest, largest = index.bounds()
            x = self.lane_values(index) if self.spread(index) else self.scalar(index)
            tests = []
            if smallest < low:
                tests.append(b.compare("icmp", "sge", x, b.splat(V(x.element, str(low)), x.lanes)))
            if largest >= high:
                tests.append(b.compare("icmp", "slt", x, b.splat(V(x.element, str(high)), x.lanes)))
            for t in tests:
                if result is None:
                    result = t
                else:
                    n = max(result.lanes, t.lanes)
                    result = b.op("and", b.splat(result, n), b.splat(t, n))
        return result or V("i1", "true")

    # -- expressions -----------------------------------------------------------------------------
    def emit(self, e: Expr, mask: V | None = None) -> V:
        """The value of an expression; lanes (or the number) outside ``mask`` may be anything."""
        key = (id(e), mask.ref if mask else None)
        if key not in self._made:
            self._made[key] = self._emit(e, mask)
        return self._made[key]

    def wide(self, e: Expr, mask: V | None) -> V:
        """As :meth:`emit`, in as many lanes as there are, and an int64 in its 64 bits."""
        x = self.b.splat(self.emit(e, mask), self.lanes)
        return self.b.cast("sext", x, "i64") if e.dtype == dt.int64 else x

    def _emit(self, e: Expr, mask: V | None) -> V:
        b = self.b
        match e:
            case Const():
                return self._const(e)
            case Load():
                return self._load(e, mask)
            case Iota():
                x = self.lane_values(e.index) if self.spread(e.index) else self.scalar(e.index)
                return b.cast("trunc", x, "i32") if e.small else b.cast("sext", x, "i64")
            case Guard():
                return self._guard(e, mask)
            case Gather():
                return self._gather(e, mask)
        if not isinstance(e, Apply):
            assert self.acc is not None
            return self.acc
        args = [self.emit(a, mask) for a in e.args]
        lanes = max(a.lanes for a in args)
        args = [b.splat(a, lanes) for a in args]
        if any(a.element == "i64" for a in args):  # a small one beside a wide one
            args = [b.cast("sext", a, "i64") if x.dtype == dt.int64 else a
                    for a, x in zip(args, e.args, strict=True)]  # fmt: skip
        return operate(b, e.op, args, e.args[-1].dtype, e.dtype)

    def _const(self, e: Const) -> V:
        if e.dtype == dt.bool_:
            return V("i1", "true" if e.value else "false")
        return Function.const("i32" if e.small else type_of(e.dtype), e.value)

    def _guard(self, e: Guard, mask: V | None) -> V:
        b = self.b
        condition = self.holds(e.conditions)
        lanes = max(condition.lanes, mask.lanes if mask else 0)
        inner = b.splat(condition, lanes)
        if mask is not None:
            inner = b.op("and", inner, b.splat(mask, lanes))
        value, other = self.emit(e.args[0], inner), self.emit(e.args[1], mask)
        lanes = max(value.lanes, other.lanes, condition.lanes)
        if e.dtype == dt.int64 and value.element != other.element:
            value, other = (b.cast("sext", x, "i64") for x in (value, other))
        value, other = b.splat(value, lanes), b.splat(other, lanes)
        return b.select(b.splat(condition, lanes) if condition.lanes else condition, value, other)

    def _load(self, e: Load, mask: V | None) -> V:
        buffer = e.buffer
        pointer, flat = self.where(buffer, e.at)
        b, kind, size = self.b, memory_type(buffer.dtype), buffer.dtype.numpy.itemsize
        if not self.spread(flat):
            at = self.scalar(flat)
            if mask is not None:
                # One number: read from the start of the array where it is not wanted.
                one = mask if not mask.lanes else b.value(
                    "i1", f"call i1 @llvm.vector.reduce.or.v{mask.lanes}i1({mask})")  # fmt: skip
                if mask.lanes:
                    name = f"llvm.vector.reduce.or.v{mask.lanes}i1"
                    b.module.declare(name, "i1", [mask.type])
                at = b.select(one, at, V("i64", "0"))
            raw = b.load(kind, b.gep(kind, pointer, at), size)
            return self._loaded(raw, buffer.dtype, e.dtype)
        every = self._lane_mask(mask)
        type = vector(kind, self.lanes)
        if self._in_line(flat):
            raw = self._read(type, b.gep(kind, pointer, self.scalar(flat)), size, every)
        else:
            raw = self._gathered(pointer, kind, size, self.lane_values(flat), every)
        return self._loaded(raw, buffer.dtype, e.dtype)

    def _gathered(self, pointer: V, kind: str, size: int, at: V, mask: V | None) -> V:
        b, n = self.b, at.lanes
        type = vector(kind, n)
        where = b.gep(kind, pointer, at)
        mask = mask or b.const(vector("i1", n), 1)
        name = f"llvm.masked.gather.v{n}{_short(kind)}.v{n}p0"
        return b.call(name, type, [where, V("i32", str(size)), mask, V(type, "zeroinitializer")])

    def _gather(self, e: Gather, mask: V | None) -> V:
        """One index comes from memory; it was checked before, and is kept inside all the same."""
        b, buffer, place = self.b, e.buffer, e.at
        axis = place.index(None)
        chosen = self.emit(e.args[0], mask)
        chosen = b.cast("sext", chosen, "i64")
        most = b.splat(V("i64", str(buffer.shape[axis] - 1)), chosen.lanes)
        chosen = b.intrinsic("smax", chosen, b.splat(V("i64", "0"), chosen.lanes))
        chosen = b.intrinsic("smin", chosen, most)
        var = Var("chosen", buffer.shape[axis])
        at = [Index.of(var) if p is None else p for p in place]
        pointer, flat = self.where(buffer, at)
        kind, size = memory_type(buffer.dtype), buffer.dtype.numpy.itemsize
        rest = Index({a: c for a, c in flat.terms.items() if a is not var}, flat.const)
        step = flat.coefficient(var)
        lanes = max(chosen.lanes, self.lanes if self.spread(rest) else 0)
        chosen = b.op("mul", chosen, b.splat(V("i64", str(step)), chosen.lanes))
        if not chosen.lanes and (not lanes or self._in_line(rest)):
            address = b.gep(kind, pointer, b.op("add", chosen, self.scalar(rest)))
            every = self._lane_mask(mask) if lanes else None
            raw = self._read(vector(kind, lanes), address, size, every)
            return self._loaded(raw, buffer.dtype, e.dtype)
        more = self.lane_values(rest) if self.spread(rest) else b.splat(self.scalar(rest), lanes)
        chosen = b.op("add", b.splat(chosen, lanes), b.cast("sext", more, "i64"))
        raw = self._gathered(pointer, kind, size, chosen, self._lane_mask(mask))
        return self._loaded(raw, buffer.dtype, e.dtype)

    def _in_line(self, flat: Index) -> bool:
        """Do lanes side by side lie side by side in memory?"""
        assert self.vec is not None
        return flat.affine_in(self.vec) and flat.coefficient(self.vec) == 1

    def _read(self, type: str, address: V, size: int, mask: V | None) -> V:
        if not mask:
            return self.b.load(type, address, size)
        return self.b.masked_load(type, address, size, mask, V(type, "zeroinitializer"))

    def _lane_mask(self, mask: V | None) -> V | None:
        b = self.b
        both = [b.splat(m, self.lanes) for m in (mask, self.mask) if m is not None]
        if len(both) == 2:
            return b.op("and", *both)
        return both[0] if both else None

    def _loaded(self, raw: V, stored: DType, wanted: DType) -> V:
        b = self.b
        if stored == dt.bool_:
            return b.compare(
                "icmp", "ne", raw, V(raw.type, "zeroinitializer" if raw.lanes else "0")
            )
        if stored != wanted:  # an argmax kept in a byte
            return b.cast("sext", raw, "i32")
        return raw

    def store(self, buffer: Buffer, at: tuple[Index, ...], x: V, dtype: DType) -> None:
        """Put a value (of all lanes, or one) where it belongs."""
        b, kind, size = self.b, memory_type(buffer.dtype), buffer.dtype.numpy.itemsize
        pointer, flat = self.where(buffer, at)
        if buffer.dtype == dt.bool_:
            x = b.cast("zext", x, "i8")
        elif buffer.dtype != dtype:
            x = b.cast("trunc", x, kind)
        elif dtype == dt.int64:
            x = b.cast("sext", x, "i64")
        if not self.lanes:
            b.store(x, b.gep(kind, pointer, self.scalar(flat)), size)
            return
        x = b.splat(x, self.lanes)
        if self._in_line(flat):
            address = b.gep(kind, pointer, self.scalar(flat))
            if self.mask is None:
                b.store(x, address, size)
            else:
                b.masked_store(x, address, size, self.mask)
            return
        n = self.lanes
        where = b.gep(kind, pointer, self.lane_values(flat))
        mask = self.mask or b.const(vector("i1", n), 1)
        b.call(f"llvm.masked.scatter.v{n}{_short(kind)}.v{n}p0", "void",
               [x, where, V("i32", str(size)), mask])  # fmt: skip


def _short(kind: str) -> str:
    return {"float": "f32", "double": "f64"}.get(kind, kind)


# -- one operation -------------------------------------------------------------------------------
def operate(b: Function, op: str, x: list[V], source: DType, dtype: DType) -> V:
    """One elementwise op; ``source``: its (last) argument's dtype, ``dtype``: the result's."""
    if op == "cast":
        return convert(b, x[0], source, dtype)
    if op in INTEGER and not source.is_floating:
        return _quotient(b, op, x, source)
    if op in FUNCTIONS:
        return vecmath.call(b, op, *x)
    return _OPERATIONS[op](b, x, source)


def _is_float(dtype: DType) -> bool:
    return dtype.is_floating


def _arithmetic(op: str) -> Callable[[Function, list[V], DType], V]:
    name = _ARITHMETIC[op]
    return lambda b, x, d: b.op(("f" if _is_float(d) else "") + name, x[0], x[1])


def _comparison(op: str) -> Callable[[Function, list[V], DType], V]:
    floating, signed, unsigned = _COMPARE[op].split()

    def run(b: Function, x: list[V], d: DType) -> V:
        if _is_float(d):
            return b.compare("fcmp", floating, x[0], x[1])
        return b.compare("icmp", unsigned if d.startswith("u") or d == dt.bool_ else signed, *x)

    return run


def _zero(x: V) -> V:
    return Function.const(x.type, 0)


def _extremum(floating: str, signed: str) -> Callable[[Function, list[V], DType], V]:
    def run(b: Function, x: list[V], d: DType) -> V:
        if _is_float(d):
            best = b.select(b.compare("fcmp", floating, x[0], x[1]), x[0], x[1])
            return b.select(b.compare("fcmp", "uno", x[0], x[0]), x[0], best)  # nan wins
        kind = ("u" if d.startswith("u") else "s") + signed
        return b.select(b.compare("icmp", kind, x[0], x[1]), x[0], x[1])

    return run


def _relu(b: Function, x: list[V], d: DType) -> V:
    zero = _zero(x[0])
    if _is_float(d):
        return b.select(b.compare("fcmp", "olt", x[0], zero), zero, x[0])  # nan stays
    if d.startswith("u"):
        return x[0]
    return b.select(b.compare("icmp", "slt", x[0], zero), zero, x[0])


def _beats(b: Function, x: list[V], d: DType) -> V:
    """Is x[0] larger than the best so far, x[1]? The first nan is, and then nothing else."""
    if not _is_float(d):
        return _comparison("greater")(b, x, d)
    larger = b.compare("fcmp", "ugt", x[0], x[1])
    return b.op("and", larger, b.compare("fcmp", "ord", x[1], x[1]))


def _sign(b: Function, x: list[V], d: DType) -> V:
    zero, one = _zero(x[0]), Function.const(x[0].type, 1)
    if not _is_float(d):
        minus = Function.const(x[0].type, -1)
        out = b.select(
            b.compare("icmp", "sgt" if not d.startswith("u") else "ne", x[0], zero), one, zero
        )
        if d.startswith("u"):
            return out
        return b.select(b.compare("icmp", "slt", x[0], zero), minus, out)
    out = b.select(b.compare("fcmp", "ogt", x[0], zero), one, x[0])  # 0, -0.0 and nan stay
    return b.select(b.compare("fcmp", "olt", x[0], zero), Function.const(x[0].type, -1), out)


def _negative(b: Function, x: list[V], d: DType) -> V:
    return b.op("fneg", x[0]) if _is_float(d) else b.op("sub", _zero(x[0]), x[0])


def _abs(b: Function, x: list[V], d: DType) -> V:
    if _is_float(d):
        return b.intrinsic("fabs", x[0])
    if d.startswith("u"):
        return x[0]
    return b.select(
        b.compare("icmp", "slt", x[0], _zero(x[0])), b.op("sub", _zero(x[0]), x[0]), x[0]
    )


def _quotient(b: Function, op: str, x: list[V], d: DType) -> V:
    """The quotient, rounded down, or what is left of C's; 0 of a division by 0, as in NumPy."""
    zero, one = _zero(x[0]), Function.const(x[0].type, 1)
    none = b.compare("icmp", "eq", x[1], zero)
    if d.startswith("u"):
        y = b.select(none, one, x[1])
        return b.select(none, zero, b.op("udiv" if op == "floor_divide" else "urem", x[0], y))
    minus = b.compare("icmp", "eq", x[1], Function.const(x[0].type, -1))  # -2**63 / -1 would trap
    y = b.select(b.op("or", none, minus), one, x[1])
    rest = b.op("srem", x[0], y)
    if op == "fmod":
        return b.select(none, zero, rest)
    q = b.op("sdiv", x[0], y)
    apart = b.compare("icmp", "slt", b.op("xor", x[0], y), zero)
    down = b.op("and", apart, b.compare("icmp", "ne", rest, zero))
    q = b.select(down, b.op("sub", q, one), q)
    return b.select(none, zero, b.select(minus, b.op("sub", zero, x[0]), q))


_OPERATIONS: dict[str, Callable[[Function, list[V], DType], V]] = {
    **{op: _arithmetic(op) for op in _ARITHMETIC},
    **{op: _comparison(op) for op in _COMPARE},
    "divide": lambda b, x, d: b.op("fdiv", x[0], x[1]),
    "maximum": _extremum("ogt", "gt"),
    "minimum": _extremum("olt", "lt"),
    "relu": _relu,
    "beats": _beats,
    "sign": _sign,
    "negative": _negative,
    "abs": _abs,
    "sqrt": lambda b, x, d: b.intrinsic("sqrt", x[0]),
    "floor": lambda b, x, d: b.intrinsic("floor", x[0]),
    "ceil": lambda b, x, d: b.intrinsic("ceil", x[0]),
    "logical_and": lambda b, x, d: b.op("and", x[0], x[1]),
    "logical_or": lambda b, x, d: b.op("or", x[0], x[1]),
    "logical_not": lambda b, x, d: b.op("xor", x[0], Function.const(x[0].type, 1)),
    "where": lambda b, x, d: b.select(x[0], x[1], x[2]),
}


INSTRUCTIONS = (_OPERATIONS.keys() - {"beats"}) | FUNCTIONS | INTEGER | {"cast"}
"""What the engine computes on each place, each by the name of the op that it is."""


def convert(b: Function, x: V, source: DType, dtype: DType) -> V:
    """A cast between dtypes, with NumPy's meaning."""
    to = type_of(dtype)
    if dtype == dt.bool_:
        if source == dt.bool_:
            return x
        zero = _zero(x)
        return (
            b.compare("fcmp", "une", x, zero)
            if _is_float(source)
            else b.compare("icmp", "ne", x, zero)
        )
    if _is_float(source):
        if _is_float(dtype):
            return b.cast("fpext" if dtype.itemsize > source.itemsize else "fptrunc", x, to)
        # Out of range is undefined in C and so in NumPy; here it saturates.
        how = "fptoui.sat" if dtype.startswith("u") else "fptosi.sat"
        type = vector(to, x.lanes)
        name = f"llvm.{how}.{_suffix(type)}.{_suffix(x.type)}"
        return b.call(name, type, [x])
    unsigned = source == dt.bool_ or source.startswith("u")
    if _is_float(dtype):
        return b.cast("uitofp" if unsigned else "sitofp", x, to)
    width, have = int(to[1:]), int(x.element[1:])
    if width == have:
        return x
    return b.cast("trunc" if width < have else "zext" if unsigned else "sext", x, to)


def _suffix(type: str) -> str:
    from trivium.native.ir import suffix

    return suffix(type)


def neutral(kind: str, dtype: DType) -> Any:
    """What a reduction starts from."""
    if kind == "sum":
        return 0
    if dtype.is_floating:
        return -np.inf if kind == "max" else np.inf
    if dtype == dt.bool_:
        return kind == "min"
    info = np.iinfo(dtype.numpy)
    return info.min if kind == "max" else info.max
