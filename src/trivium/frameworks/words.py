"""The correspondence of an op and one line of a framework's source, in both directions.

    torch="{x}.sum({axis!axes}, keepdim={keepdims|False})"

Forwards the line is filled with a node's arrays and attributes. Backwards it says which call of the
framework is our op: the function's name, what stands where, and what must be left at its default.

A hole ``{name!way|default}`` is an array or an attribute of the op. The *way* is how the framework
says it, a pair of functions; with a default, the argument is left out where it has that value. A
star before a hole spells a tuple as so many arguments. What is no hole is the same in every call:
``act_type="elu"``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trivium.frameworks.ways import PARTS, WAYS, At, NotTheirs, Several
from trivium.graph import OPS, Value
from trivium.op import CORNERS, By, Op
from trivium.shape import Dim

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


@dataclass(frozen=True)
class Hole:
    """An array or an attribute of ours in a line."""

    name: str
    way: str = ""
    default: Any = MISSING
    star: bool = False
    before: str = ""
    """What goes with it where it is left out: ``, keepdim=``."""

    @property
    def of(self) -> str:
        """The array or attribute that it is, or is about."""
        return self.name.partition(".")[0]

    def operand(self, op: Op) -> bool:
        """Does an array itself stand there, and not what it says?"""
        return not self.way and self.name in (*op.arrays, op.variadic)

    def value(self, at: At) -> Any:
        """What it is with us."""
        part = self.name.partition(".")[2]
        whole = at.attrs[self.of] if self.of in at.op.defaults else at.arrays[self.of]
        if not part:
            return whole
        return PARTS[part](whole, at) if part in PARTS else whole.shape[int(part)]

    def full(self, at: At) -> Any:
        """What the framework says there."""
        return WAYS[self.way].to(self.value(at), at)

    def said(self, at: At) -> Any:
        """What the framework says there; MISSING where it is left out."""
        said = self.full(at)
        return MISSING if self.default is not MISSING and said == self.default else said


_HOLE = re.compile(
    r"(?P<before>(?:, )?(?:\w+=)?)(?P<star>\*?)"
    r"\{(?P<name>[\w.]+)(?:!(?P<way>\w+))?(?:\|(?P<default>[^}]*))?\}"
)


def _hole(m: re.Match[str]) -> Hole:
    default = MISSING if m["default"] is None else ast.literal_eval(m["default"])
    before = "" if default is MISSING else m["before"]
    return Hole(m["name"], m["way"] or "", default, bool(m["star"]), before)


@functools.cache
def pieces(line: str) -> tuple[str | Hole, ...]:
    """A line as text and holes, in their order."""
    found: list[str | Hole] = []
    end = 0
    for m in _HOLE.finditer(line):
        hole = _hole(m)
        found += [line[end : m.start()] + m["before"][len(hole.before) :], hole]
        end = m.end()
    return (*found, line[end:])


def filled(op: Op, line: str, names: Mapping[str, str], attrs: Mapping[str, Any]) -> str:
    """A line with these names for its arrays, and these attributes."""
    parts: list[str] = []
    for piece in pieces(line):
        if isinstance(piece, str) or piece.name in names:
            parts.append(piece if isinstance(piece, str) else names[piece.name])
        elif (said := piece.said(At(op, {}, attrs))) is not MISSING:
            parts += [piece.before, "*" * piece.star, repr(said)]
    return "".join(parts)


# -- backwards -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pattern:
    """A call as a line says it: arguments are Holes, Patterns, lists of these, or constants."""

    name: str
    positional: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Call:
    """A call in a framework's graph: what is given, by the names of its parameters."""

    name: str
    given: Mapping[str, Any]
    order: Sequence[str]
    """Its parameters as they may be given without their names."""
    defaults: Mapping[str, Any] = field(default_factory=dict)


SIGNS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.MatMult: "@",
    ast.BitAnd: "&", ast.BitOr: "|", ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=",
    ast.Gt: ">", ast.GtE: ">=", ast.USub: "-x", ast.Invert: "~x",
}  # fmt: skip


@functools.cache
def pattern(line: str) -> Pattern | None:
    """What a line says, as a call; None where it is more than calls."""
    holes: list[Hole] = []

    def named(m: re.Match[str]) -> str:
        holes.append(_hole(m))
        return f"{m['before']}{m['star']}_hole{len(holes) - 1}"

    tree = ast.parse(_HOLE.sub(named, line), mode="eval").body
    try:
        found = _pattern(tree, holes)
    except NotTheirs:
        return None
    return found if isinstance(found, Pattern) else None


def _pattern(tree: ast.expr, holes: Sequence[Hole]) -> Any:
    def inside(t: ast.expr) -> Any:
        return _pattern(t, holes)

    match tree:
        case ast.Name(id=name) if name.startswith("_hole"):
            return holes[int(name.removeprefix("_hole"))]
        case ast.Starred(value=value):
            return inside(value)
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [inside(i) for i in items]
        case ast.BinOp(left=ast.Constant(value=a), op=ast.Div(), right=ast.Constant(value=b)):
            return a / b  # type: ignore[operator]
        case ast.BinOp(left=a, op=op, right=b):
            return Pattern(SIGNS[type(op)], (inside(a), inside(b)))
        case ast.UnaryOp(op=op, operand=ast.Constant(value=a)) if isinstance(op, ast.USub):
            return -a  # type: ignore[operator]
        case ast.UnaryOp(op=op, operand=a):
            return Pattern(SIGNS[type(op)], (inside(a),))
        case ast.Compare(left=a, ops=[op], comparators=[b]):
            return Pattern(SIGNS[type(op)], (inside(a), inside(b)))
        case ast.Call(func=ast.Attribute(value=of, attr=name), args=args, keywords=words):
            own = [] if _is_module(of) else [inside(of)]
            named = {w.arg: inside(w.value) for w in words if w.arg}
            return Pattern(name, (*own, *map(inside, args)), named)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=words):
            named = {w.arg: inside(w.value) for w in words if w.arg}
            return Pattern(name, tuple(map(inside, args)), named)
    raise NotTheirs(ast.dump(tree))


def _is_module(tree: ast.expr) -> bool:
    while isinstance(tree, ast.Attribute):
        tree = tree.value
    return isinstance(tree, ast.Name) and not tree.id.startswith("_hole")


Made = Callable[[Any], Call | None]
"""What call made a Value."""
Suited = Callable[[Op, list[Any], Mapping[str, Any]], Sequence[Any]]


def whole(op: Op, line: str) -> str:
    """A line that is one word is a call with all arrays, and all attributes by their names."""
    if not line.isidentifier():
        return line
    arrays = [f"{{{a}}}" for a in op.arrays] + ([f"[{{{op.variadic}}}]"] if op.variadic else [])
    attrs = [f"{k}={{{k}}}" for k in op.defaults if k not in CORNERS]
    return f"{line}({', '.join([*arrays, *attrs])})"


def _many(op: Op, part: Any) -> Any:
    return [part] if isinstance(part, Hole) and part.name == op.variadic else part


def _depth(part: Any) -> int:
    inner = (*part.positional, *part.keywords.values()) if isinstance(part, Pattern) else ()
    return isinstance(part, Pattern) + sum(map(_depth, inner))


class Vocabulary:
    """All lines of a framework, found by the names that its graphs have for their calls."""

    def __init__(self, framework: str, signs: Mapping[str, str] | None = None,
                 spelled: Callable[[str], str] = str):  # fmt: skip
        self.signs = signs or {}  # "add": "+", what its graphs call a sign, or otherwise
        self.framework, self._spelled = framework, spelled
        self.why: Exception | None = None  # what an op said of the last call that no line took
        self._known: Any = None
        self._lines: dict[str, list[tuple[Op, dict[str, Any], Pattern]]] = {}

    @property
    def lines(self) -> dict[str, list[tuple[Op, dict[str, Any], Pattern]]]:
        """By word; what was declared since they were last asked for is among them."""
        if self._known != (known := (len(OPS), next(reversed(OPS)))):
            self._known, self._lines = known, self._learnt()
        return self._lines

    def _learnt(self) -> dict[str, list[tuple[Op, dict[str, Any], Pattern]]]:
        learnt: dict[str, list[tuple[Op, dict[str, Any], Pattern]]] = {}
        for op, fixed, line in lines(self.framework):
            if (found := pattern(whole(op, line))) is not None:
                word = found.name if found.name in SIGNS.values() else self._spelled(found.name)
                if op.variadic:
                    found = replace(found, positional=tuple(_many(op, p) for p in found.positional))
                learnt.setdefault(word, []).append((op, fixed, found))
        for of_a_word in learnt.values():
            of_a_word.sort(key=lambda line: -_depth(line[2]))  # what says more comes first
        return learnt

    def says(self, op: Op, attrs: Mapping[str, Any]) -> Pattern | None:
        """The call that is an op with these attributes, what stands in its holes filled in."""
        line = op.lowering(self.framework, attrs)
        found = pattern(whole(op, line)) if isinstance(line, str) else None
        if found is None:
            return None
        at = At(op, {}, attrs)
        filled = {k: h.said(at) if isinstance(h, Hole) else h for k, h in found.keywords.items()}
        return Pattern(
            found.name, found.positional, {k: v for k, v in filled.items() if v is not MISSING}
        )

    def text(self, op: Op, attrs: Mapping[str, Any], arrays: Sequence[str]) -> str | None:
        """The line with these names and numbers in it; None where the op has none."""
        line = op.lowering(self.framework, attrs)
        if not isinstance(line, str):
            return None
        return filled(op, line, dict(zip(op.arrays, arrays, strict=False)), attrs)

    def knows(self, call: Call) -> bool:
        """Is there a line with this call, whatever its arguments?"""
        return self.signs.get(call.name, call.name) in self.lines

    def translate(self, call: Call, made: Made, suited: Suited | None = None) -> Any:
        """What a call is in our ops; None where no line says it. ``suited`` adapts the operands."""
        self.why = None
        for op, arrays, attrs in self.read(call, made):
            values = [arrays.get(n) for n in op.arrays]
            if op.variadic:
                values = list(arrays[op.variadic])
            values = list(suited(op, values, attrs)) if suited else values
            try:
                takes(op, values, attrs)
            except (TypeError, ValueError, LookupError) as error:
                self.why = error
                continue
            return op(*values, **attrs)
        return None

    def read(self, call: Call, made: Made) -> Iterator[tuple[Op, dict[str, Any], dict[str, Any]]]:
        """The ops that a call is, each with its arrays and its attributes."""
        for op, fixed, wanted in self.lines.get(self.signs.get(call.name, call.name), ()):
            stands: list[tuple[Hole, Any]] = []
            if not self.match(wanted, call, made, stands):
                continue
            arrays = {h.name: item for h, item in stands if h.operand(op)}
            try:
                attrs = resolve(op, [(h, i) for h, i in stands if not h.operand(op)], arrays)
            except NotTheirs:
                continue
            if fits(op, arrays | attrs):
                yield op, arrays, fixed | attrs

    def match(self, wanted: Pattern, call: Call, made: Made, stands: list[Any]) -> bool:
        """Is this such a call? What stands in its holes goes into ``stands``."""
        call = _gathered(call, len(wanted.positional)) if _gathers(wanted, call) else call
        parts = dict(zip(call.order, wanted.positional, strict=False)) | dict(wanted.keywords)
        for beyond in wanted.positional[len(call.order) :]:  # x.sum() has no place for an axis
            if not isinstance(beyond, Hole) or beyond.default is MISSING:
                return False
            stands.append((beyond, beyond.default))
        for name in {**parts, **call.given}:
            has = name in call.given or name in call.defaults
            item = call.given.get(name, call.defaults.get(name))
            if name not in parts:
                if name not in call.defaults or not same(item, call.defaults[name]):
                    return False  # nobody names it, and it is not at its default
                continue
            part = parts[name]
            if not has and isinstance(part, Hole) and part.default is not MISSING:
                item = part.default
            elif not has:
                return False
            if not self.stands(part, item, made, stands):
                return False
        return True

    def stands(self, part: Any, item: Any, made: Made, stands: list[Any]) -> bool:
        """May an argument stand where this part does?"""
        match part:
            case Hole():
                stands.append((part, item))
                return True
            case Pattern():
                inner = made(item)
                if inner is None or self.signs.get(inner.name, inner.name) != part.name:
                    return False
                return self.match(part, inner, made, stands)
            case [Hole() as hole]:
                stands.append((hole, item))
                return isinstance(item, (list, tuple))
        return not isinstance(item, Value) and same(item, part)


def resolve(
    op: Op,
    stands: Sequence[tuple[Hole, Any]],
    arrays: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The attributes that these words say; NotTheirs where they say none, or gainsay an array.

    A word that goes by another attribute (a border by the stride) waits for it. ``fixed`` are those
    that go without saying: values, or what makes them of the others.
    """
    attrs: dict[str, Any] = {}
    at = At(op, arrays, attrs)
    waiting: list[tuple[Hole | str, Any]] = [*(fixed or {}).items(), *stands]
    while waiting:
        later = []
        for hole, item in waiting:
            try:
                if isinstance(hole, str):
                    attrs[hole] = item(at) if callable(item) else item
                elif hole.of not in op.defaults:
                    if hole.of in arrays and not _told(hole, at, item):
                        raise NotTheirs(f"{hole.name} is not {item}")
                elif isinstance(item, Value):
                    attrs[hole.of] = item  # fits() says whether it may be one
                else:
                    back = WAYS[hole.way].back(item, at)
                    attrs.update(back if isinstance(back, Several) else {hole.of: back})
            except KeyError:
                later.append((hole, item))
            except (TypeError, ValueError, LookupError) as error:
                raise error if isinstance(error, NotTheirs) else NotTheirs(str(error)) from error
        if len(later) == len(waiting):
            raise NotTheirs(f"{later[0][0]} goes by what is not said")
        waiting = later
    return attrs


def _told(hole: Hole, at: At, item: Any) -> bool:
    """Does an array say the same? A kernel of (3, 3) may be called 3."""
    value = hole.value(at)
    return same(WAYS[hole.way].to(value, at), item) or (type(value) is tuple and same(value, item))


def _gathers(wanted: Pattern, call: Call) -> bool:
    """Does the last place want several arrays, which the call has one by one?"""
    last = len(wanted.positional) - 1
    if last < 0 or not isinstance(wanted.positional[last], list) or len(call.order) <= last:
        return False
    return isinstance(call.given.get(call.order[last]), Value)


def _gathered(call: Call, count: int) -> Call:
    several = call.order[count - 1 :]
    items = [call.given[n] for n in several if n in call.given]
    rest = {k: v for k, v in call.given.items() if k not in several}
    first = several[0]
    return replace(call, given=rest | {first: items}, order=(*call.order[: count - 1], first))


def same(a: Any, b: Any) -> bool:
    """Are two arguments alike? Numbers to float32's digits, lists as tuples."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return a == b or abs(a - b) <= 1e-6 * abs(b)
    return (
        (type(a) is type(b) and bool(a == b))
        or a is b
        or (isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b)
    )


def fits(op: Op, found: Mapping[str, Any]) -> bool:
    """Are arrays where the op has arrays, and plain values where it has attributes?"""
    for name, item in found.items():
        items = item if isinstance(item, (list, tuple)) else [item]
        if name in op.defaults and any(isinstance(i, Value) for i in items):
            return False
        number = op.promotes and type(item) in (int, float, Dim)
        number = number or (item is None and name in op.arrays[op.required :])
        if name not in {*op.defaults, op.variadic} and not (isinstance(item, Value) or number):
            return False
    return True


def takes(op: Op, values: Sequence[Any], attrs: Mapping[str, Any]) -> None:
    """Raise what the op's own type rule says; numbers become arrays when it is called."""
    if all(v is None or isinstance(v, Value) for v in values):
        op.settle([None if v is None else v.type for v in values], attrs)


def lines(framework: str) -> tuple[tuple[Op, dict[str, Any], str], ...]:
    """Every line of a framework: the op, the attributes that it stands for, the text."""
    found: list[tuple[Op, dict[str, Any], str]] = []
    for op in OPS.values():
        form = op.lowerings.get(framework) if isinstance(op, Op) else None
        if isinstance(form, str):
            found.append((op, {}, form))
        elif isinstance(form, By):
            each = form.lines.items()
            found += [(op, {form.attribute: v}, t) for v, t in each if isinstance(t, str)]
    return tuple(found)
