"""The elementary functions as instructions: on one number, or on any number of lanes alike.

In float32 they are written out here without branches, so that a vector costs little more than a
number, and err by less than 2 ulp over all of float32 (``tests/test_native_vecmath.py`` measures
it): denormal numbers, infinities, nan and -0.0 give what NumPy gives. A lane's result does not
depend on how many lanes there are. In float64, where no model's time goes, each lane asks libm.

The polynomials are our own: weighted minimax fits of what their comments say, their coefficients
rounded one after the other while those that remain are fitted again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trivium.native.ir import Function, Module, V, suffix

# Adding _ROUND to a number leaves the nearest integer in its low bits, on every machine in one
# instruction; what is added beyond 1.5 * 2**23 makes these bits the exponent field of 2**n.
_ROUND = {"float": 1.5 * 2**23 + 127, "double": 1.5 * 2**52 + 1023}
_MANTISSA = {"float": 23, "double": 52}
_BITS = {"float": "i32", "double": "i64"}
_ROOT_HALF = {"float": 0x3F3504F3, "double": 0x3FE6A09E667F3BCD}  # sqrt(1/2), as bits

_LOG2_E = 1.4426950408889634
# n times the first part is exact for every n that occurs (9 bits each), with or without fma.
_LN2_HIGH = 0.693359375
_LN2_LOW = math.log(2) - _LN2_HIGH

# (exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2; exp(r) - 1 from it is right to 2**-25.9
_EXP = (0.5, 0.1666654646396637, 0.0416664183139801, 0.008366309106349945, 0.0013939323835074902)
# (log(1 + f) - f + f**2 / 2) / f**3 for sqrt(1/2) <= 1 + f <= sqrt(2); the log to 2**-27.2
_LOG = (0.33333316445350647, -0.25000783801078796, 0.20002302527427673, -0.16625356674194336,
        0.14181190729141235, -0.13121768832206726, 0.12879641354084015,
        -0.07874704152345657)  # fmt: skip
# (tanh(x) / x - 1) / z for z = x**2 <= 0.625**2; tanh to 2**-27.8
_TANH = (-0.3333328366279602, 0.13331478834152222, -0.053742170333862305, 0.02064555324614048,
         -0.005710788071155548)  # fmt: skip
# erf(x) / x - 1 for x**2 <= 0.9**2; erf to 2**-26
_ERF = (0.12837915122509003, -0.3761250376701355, 0.11281922459602356, -0.02677081525325775,
        0.00500018335878849, -0.0006031600059941411)  # fmt: skip
# -log(1 - erf(x)) for 0.9 <= x <= 4; erf to 2**-29
_ERFC = (0.00016372889513149858, 1.1278071403503418, 0.6369616985321045, 0.1041242927312851,
         -0.02231936901807785, 0.0030662971548736095, -0.00019827866344712675)  # fmt: skip
# In float64, for pow. 2**f for |f| <= 1/2, to 2**-34
_EXP2 = (0.9999999999613789, 0.6931471807298178, 0.24022651201146616, 0.055504103502957085,
         0.009618026848922332, 0.0013333924083794649, 0.00015469421950316562,
         1.5201804813285865e-05)  # fmt: skip
# log2((1 + s) / (1 - s)) / s in s**2, for the same 1 + f as above, to 2**-43
_LOG2 = (2.885390081777849, 0.9617966941151149, 0.5770779418337396, 0.4122093076147753,
         0.3199033689014977, 0.2829342885335622)  # fmt: skip


def _operator(name: str) -> Callable[[Num, Num | float], Num]:
    """The instruction of that name; arithmetic on floats has an ``f`` before it."""

    def run(self: Num, x: Num | float) -> Num:
        f = "f" if self.kind in _BITS else ""
        return Num(self.b, self.b.op(f + name, self.v, self.like(x).v))

    return run


class Num:
    """A value with the signs of arithmetic, so that the functions below read as formulas."""

    def __init__(self, b: Function, v: V):
        self.b, self.v = b, v
        self.kind = v.element

    def like(self, x: Num | float) -> Num:
        """A Python number as a constant of this one's type."""
        return x if isinstance(x, Num) else Num(self.b, self.b.const(self.v.type, x))

    def compare(self, name: str, x: Num | float) -> Num:
        """One bit per lane; ``o..`` is false and ``u..`` is true where a number is nan."""
        return Num(self.b, self.b.compare("fcmp", name, self.v, self.like(x).v))

    def cast(self, how: str, kind: str) -> Num:
        """The same number, or the same bits, in another type."""
        return Num(self.b, self.b.cast(how, self.v, kind))

    __add__, __sub__ = _operator("add"), _operator("sub")
    __mul__, __truediv__ = _operator("mul"), _operator("div")
    __and__, __or__, __xor__ = _operator("and"), _operator("or"), _operator("xor")
    __lshift__, __rshift__ = _operator("shl"), _operator("lshr")

    def __rsub__(self, x: float) -> Num:
        return self.like(x) - self

    def __rtruediv__(self, x: float) -> Num:
        return self.like(x) / self

    def __neg__(self) -> Num:
        return Num(self.b, self.b.op("fneg", self.v))

    def __lt__(self, x: Num | float) -> Num:
        return self.compare("olt", x)

    def __gt__(self, x: Num | float) -> Num:
        return self.compare("ogt", x)

    def __abs__(self) -> Num:
        return Num(self.b, self.b.intrinsic("fabs", self.v))

    @property
    def bits(self) -> Num:
        """A float's bits as an integer."""
        return self.cast("bitcast", _BITS[self.kind])

    @property
    def real(self) -> Num:
        """An integer's bits as a float."""
        return self.cast("bitcast", "float" if self.kind == "i32" else "double")

    @property
    def sign(self) -> Num:
        """The sign bit of a float, alone."""
        return self.bits & (-(2**31) if self.kind == "float" else -(2**63))


def _fma(x: Num, y: Num | float, z: Num | float) -> Num:
    return Num(x.b, x.b.fma(x.v, x.like(y).v, x.like(z).v))


def _where(condition: Num, x: Num | float, y: Num) -> Num:
    return Num(y.b, y.b.select(condition.v, y.like(x).v, y.v))


def _at_least(x: Num, low: float) -> Num:
    return _where(x < low, low, x)  # nan stays nan


def _at_most(x: Num, high: float) -> Num:
    return _where(x > high, high, x)


def _polynomial(x: Num, coefficients: Sequence[float]) -> Num:
    """Horner's rule; the constant term comes first."""
    *rest, last = coefficients
    y = x.like(last)
    for c in reversed(rest):
        y = _fma(y, x, c)
    return y


# -- powers of two -------------------------------------------------------------------------------
def _two(t: Num) -> Num:
    """2**n from t = n + _ROUND, n the exponent of a normal number."""
    return (t.bits << _MANTISSA[t.kind]).real


def _scaled(y: Num, t: Num) -> Num:
    """y * 2**n, rounded once where that is denormal, infinite where it is too large."""
    b, n, lanes = y.b, t - _ROUND[y.kind], y.v.lanes
    if b.module.target.name == "avx512" and lanes in (4, 8, 16):  # an instruction of its own
        mask = V(f"i{max(lanes, 8)}", "-1")
        rounding = [V("i32", "4")] if lanes == 16 else []  # as ever, to the nearest
        name = f"llvm.x86.avx512.mask.scalef.ps.{32 * lanes}"
        return Num(b, b.call(name, y.v.type, [y.v, n.v, y.v, mask, *rounding]))
    # 2**n itself may be no normal number; two halves of it are, and the first product is exact.
    half = _fma(n, 0.5, _ROUND[y.kind])
    rest = n - (half - _ROUND[y.kind]) + _ROUND[y.kind]
    return y * _two(half) * _two(rest)


def _reduced(x: Num) -> tuple[Num, Num]:
    """x = n * ln(2) + r with \\|r\\| <= ln(2) / 2, as (n + _ROUND, r)."""
    t = _fma(x, _LOG2_E, _ROUND["float"])
    n = t - _ROUND["float"]
    return t, _fma(n, -_LN2_LOW, _fma(n, -_LN2_HIGH, x))


def _split(x: Num) -> tuple[Num, Num]:
    """A normal positive x = 2**n * m with sqrt(1/2) <= m < sqrt(2), as (n, m)."""
    width, root = _MANTISSA[x.kind], _ROOT_HALF[x.kind]
    bias = int(_ROUND[x.kind] - 1.5 * 2**width)
    moved = x.bits + ((bias << width) - root)  # from sqrt(2) on it has the next exponent
    m = ((moved & (2**width - 1)) + root).real
    # The exponent field, put into the low bits of 2**width, makes a float that is so much larger.
    above = ((moved >> width) | (bias + width << width)).real
    return above - (2**width + bias), m


# -- float32 -------------------------------------------------------------------------------------
def _exp(x: Num) -> Num:
    # Outside of these bounds the result is infinite and zero all the same.
    t, r = _reduced(_at_most(_at_least(x, -104), 89))
    return _scaled(_polynomial(r, (1, 1, *_EXP)), t)


def _expm1(x: Num) -> Num:
    # 2**n * (exp(r) - 1) + (2**n - 1), all by half: 2**128 is no number.
    t, r = _reduced(_at_most(_at_least(x, -30), 89))
    half = _two(t - 1)
    p = _fma(r * r, _polynomial(r, _EXP), r)
    y = _fma(half, p, half - 0.5)
    return _where(abs(x) < 2**-25, x, y + y)  # for denormals, and for the sign of -0.0


def _sigmoid(x: Num) -> Num:
    # exp of a negative number only, as in ops: nothing overflows, small results keep their digits.
    t, r = _reduced(_at_least(-abs(x), -104))
    small = _scaled(_polynomial(r, (1, 1, *_EXP)), t)
    # x < 0 wants small / (1 + small), x > 0 wants 1 / (1 + small). Written as a difference from the
    # numerator, what the sum and the quotient lost is small.
    first = _where(x < 0, small, x.like(1))
    return _fma(first, -(small / (small + 1)), first)


def _tanh(x: Num) -> Num:
    sign = x.sign
    a = (x.bits ^ sign).real
    z = a * a
    near = _fma(a * z, _polynomial(z, _TANH), a)
    # 1 - 2 / (exp(2a) + 1), whose error shrinks with the quotient; from 9.1 on it is 1.
    c = _at_most(a, 10)
    t, r = _reduced(c + c)
    far = 1 - 2 / _fma(_polynomial(r, (1, 1, *_EXP)), _two(t), 1)
    return (_where(a < 0.625, near, far).bits ^ sign).real


def _erf(x: Num) -> Num:
    sign = x.sign
    a = (x.bits ^ sign).real
    near = _fma(a, _polynomial(a * a, _ERF), a)
    # 1 - exp(log(1 - erf(a))): at most a fifth of it has the error of exp; from 3.9 on it is 1.
    t, r = _reduced(-_polynomial(_at_most(a, 4), _ERFC))
    far = 1 - _polynomial(r, (1, 1, *_EXP)) * _two(t)
    return (_where(a < 0.9, near, far).bits ^ sign).real


def _log_of(n: Num, f: Num, x: Num) -> Num:
    """log(2**n * (1 + f)); ``x`` is that number, and may be one that has no logarithm."""
    y = _fma(f * f, _fma(f, _polynomial(f, _LOG), -0.5), f)
    y = _fma(n, _LN2_HIGH, _fma(n, _LN2_LOW, y))
    y = _where(x < math.inf, y, x)
    none = _where(x.compare("oeq", 0), -math.inf, x.like(math.nan))
    return _where(x > 0, y, none)


def _log(x: Num) -> Num:
    denormal = x < 2**-126
    n, m = _split(_where(denormal, x * 2**25, x))
    return _log_of(_where(denormal, n - 25, n), m - 1, x)


def _log1p(x: Num) -> Num:
    u = x + 1
    n, m = _split(u)
    # What the sum lost, brought to the scale of m: m / u is a power of two, made from their bits.
    lost = _where(x < 1, x - (u - 1), 1 - (u - x))
    scale = (m.bits - _at_most(u, 2**100).bits + x.like(1).bits).real  # beyond, nothing counts
    f = _fma(lost, scale, m - 1)
    return _where(x.compare("oeq", 0), x, _log_of(n, f, u))


def _pow(x: Num, y: Num) -> Num:
    # 2**(y * log2(|x|)) in float64: y magnifies the logarithm's error up to 150 times. There every
    # float32 is a normal number, and the result is rounded once, where it is narrowed.
    a = abs(x).cast("fpext", "double")
    n, m = _split(a)
    s = (m - 1) / (m + 1)
    log = _fma(s, _polynomial(s * s, _LOG2), n)
    log = _where(a.compare("oeq", 0), -math.inf, _where(a < math.inf, log, a))
    # An infinite y as the largest one: 1 to its power is 1, and the rest is as infinite.
    largest = float.fromhex("0x1.fffffep127")
    p = _at_most(_at_least(y, -largest), largest).cast("fpext", "double") * log
    p = _at_most(_at_least(p, -160), 160)
    t = p + _ROUND["double"]
    f = p - (t - _ROUND["double"])
    z = (_polynomial(f, _EXP2) * _two(t)).cast("fptrunc", "float")
    # What has a sign: odd powers of a negative x; other whole ones are even, from 2**24 on all.
    some = _where(abs(y) < 2**24, y, y.like(2**24))
    whole = some.cast("fptosi", "i32")
    part = whole.cast("sitofp", "float").compare("une", some)
    z = (z.bits ^ _where(part, 0, x.sign & (whole << 31))).real
    z = _where(part & (x < 0) & (x > -math.inf), math.nan, z)
    return _where(x.compare("oeq", 1) | y.compare("oeq", 0), 1, z)  # of and to nan as well


# -- float64 -------------------------------------------------------------------------------------
def _libm(name: str) -> Callable[..., Num]:
    """The function of C's library on each lane."""

    def run(*args: Num) -> Num:
        b, type, lanes = args[0].b, args[0].v.type, args[0].v.lanes
        if not lanes:
            return Num(b, b.call(name, "double", [a.v for a in args]))
        out = V(type, "poison")
        for k in range(lanes):
            each = [b.value("double", f"extractelement {a.v}, i64 {k}") for a in args]
            one = b.call(name, "double", each)
            out = b.value(type, f"insertelement {out}, {one}, i64 {k}")
        return Num(b, out)

    return run


def _sigmoid_libm(x: Num) -> Num:
    small = _libm("exp")(-abs(x))
    return _where(x < 0, small, small.like(1)) / (small + 1)


def _wide(name: str) -> Callable[..., Num]:
    """The float64 function of C's library on float32, rounded once."""
    return lambda *args: _libm(name)(*(a.cast("fpext", "double") for a in args)).cast(
        "fptrunc", "float"
    )


# Nothing of our own: few models spend their time there.
LIBRARY = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
            "atan2", "fmod")  # fmt: skip


# -- the helper functions ------------------------------------------------------------------------
_FLOAT: dict[str, Callable[..., Num]] = {
    "exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p, "tanh": _tanh, "erf": _erf,
    "sigmoid": _sigmoid, "pow": _pow, **{name: _wide(name) for name in LIBRARY},
}  # fmt: skip
_DOUBLE = {name: _libm(name) for name in _FLOAT} | {"sigmoid": _sigmoid_libm}
# In place of every call: they are short, and a call costs what lies in registers. The others LLVM
# puts in place where they are called once.
_INLINE = {"exp", "tanh", "sigmoid"}


def call(b: Function, name: str, *args: V) -> V:
    """``name`` of values of one type, float or double; written into the module at its first use."""
    type = args[0].type
    if name == "sqrt":
        return b.intrinsic("sqrt", *args)
    helper = f"tv_{name}_{suffix(type)}"
    if helper not in b.module.defined:
        _define(b.module, helper, name, [a.type for a in args])
    return b.call(helper, type, args, declare=False)


def _define(module: Module, helper: str, name: str, types: Sequence[str]) -> None:
    table = {"float": _FLOAT, "double": _DOUBLE}.get(V(types[0], "").element)
    if table is None:
        raise TypeError(f"{name} of {types[0]}: convert to float first")
    own = table is _FLOAT and name not in LIBRARY  # libm writes errno
    pure = "memory(none) willreturn " if own else ""
    inline = "alwaysinline " if table is _FLOAT and name in _INLINE else ""
    f = Function(module, helper, types, f"internal {types[0]}", f"{inline}{pure}nounwind")
    f.finish(table[name](*(Num(f, a) for a in f.args)).v)
