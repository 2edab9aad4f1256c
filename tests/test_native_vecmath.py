"""The native engine's elementary functions against float64, in units in the last place."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import numpy as np
import pytest

from trivium.native import vecmath
from trivium.native.build import assemble
from trivium.native.ir import Function, Module, V, vector
from trivium.native.loader import Code
from trivium.native.target import TARGETS, Target, host

LANES = [16, 8, 4, 0]
ORDER = ["sse2", "avx2", "avx512"]
HERE = ORDER[: ORDER.index(host().name) + 1] if host().name in ORDER else [host().name]
INF, NAN, MOST, LEAST = math.inf, math.nan, 3.4028234663852886e38, 1.401298464324817e-45


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


# What is right, and where there is something to see.
FUNCTIONS: dict[str, tuple[Any, list[tuple[float, float]]]] = {
    "exp": (np.exp, [(-104.5, 89), (-1, 1), (-88, -86)]),
    "expm1": (np.expm1, [(-20, 89), (-1.2, 1.2), (-0.01, 0.01)]),
    "log": (np.log, [(0, 2), (0.98, 1.02), (0, 1e-37), (0, 1e5)]),
    "log1p": (np.log1p, [(-1, 4), (-0.3, 0.5), (-0.01, 0.01), (0, 1e5)]),
    "tanh": (np.tanh, [(-10, 10), (-1, 1), (0.6, 0.65)]),
    "erf": (lambda x: np.frompyfunc(math.erf, 1, 1)(x).astype(float), [(-4.1, 4.1), (0.8, 1)]),
    "sigmoid": (_sigmoid, [(-104.5, 20), (-3, 3), (-90, -86)]),
    "sqrt": (np.sqrt, [(0, 4), (0, 1e-38)]),
    "pow": (np.power, []),
    "sin": (np.sin, [(-10, 10)]), "cos": (np.cos, [(-10, 10)]), "tan": (np.tan, [(-2, 2)]),
    "asin": (np.arcsin, [(-1, 1)]), "acos": (np.arccos, [(-1, 1)]), "atan": (np.arctan, [(-9, 9)]),
    "sinh": (np.sinh, [(-90, 90)]), "cosh": (np.cosh, [(-90, 90)]),
    "asinh": (np.arcsinh, [(-9, 9)]), "acosh": (np.arccosh, [(1, 9)]),
    "atanh": (np.arctanh, [(-1, 1)]), "atan2": (np.arctan2, []), "fmod": (np.fmod, []),
}  # fmt: skip
ARGS = {name: 2 if name in ("pow", "atan2", "fmod") else 1 for name in FUNCTIONS}


def text_of(target: Target, kind: str) -> str:
    """A module with a loop over arrays for every function and number of lanes."""
    module = Module(target)
    for name, count in ARGS.items():
        for lanes in LANES:
            b = Function(module, f"{name}_{lanes}", ["ptr", "ptr", "ptr", "i64"], exported=True)

            def body(i: V, _: list[V], b: Function = b, name: str = name, lanes: int = lanes,
                     count: int = count) -> list[V]:  # fmt: skip
                kinds = [b.load(vector(kind, lanes), b.gep(kind, p, i), 4) for p in b.args[:count]]
                b.store(vecmath.call(b, name, *kinds), b.gep(kind, b.args[2], i), 4)
                return []

            b.loop(V("i64", "0"), b.args[3], max(lanes, 1), [], body)
            b.finish()
    return module.text()


@functools.cache
def engine(target: str, kind: str) -> Code:
    """All functions, compiled; kept, because freed code cannot be called."""
    names = [f"{name}_{lanes}" for name in ARGS for lanes in LANES]
    return Code(assemble(text_of(TARGETS[target], kind), TARGETS[target]), names)


def run(target: str, name: str, lanes: int, *args: Any) -> Any:
    """The function of arrays, the last vector filled up with ones."""
    kind = {"f": "float", "d": "double"}[args[0].dtype.char]
    size = args[0].size
    args = tuple(np.concatenate([a, np.ones(-size % 16, a.dtype)]) for a in args)
    out = np.empty_like(args[0])
    address = engine(target, kind).addresses[f"{name}_{lanes}"]
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (args[0], args[-1], out)]
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(address)(*pointers, out.size)
    return out[:size]


@functools.cache
def sample(name: str) -> tuple[tuple[Any, ...], Any]:
    """About a million points, and what is right there in float64."""
    rng = np.random.default_rng(7)

    def patterns(n: int) -> Any:
        return rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)

    if ARGS[name] == 2:
        n = 2**18
        x = [patterns(n), np.exp(rng.uniform(-20, 20, n)), rng.uniform(0.9, 1.1, n),
             np.exp(rng.uniform(-87, 88, n))]  # fmt: skip
        y = [patterns(n), rng.uniform(-9, 9, n), rng.uniform(-1500, 1500, n), None]
        y[3] = rng.uniform(-104, 89, n) / np.log(x[3])  # everywhere up to the bounds
        args = tuple(np.concatenate([np.float32(part) for part in a]) for a in (x, y))
    else:
        ranges = FUNCTIONS[name][1]
        dense = [np.float32(rng.uniform(*r, 2**19 // len(ranges))) for r in ranges]
        args = (np.concatenate([patterns(2**19), *dense]),)
    with np.errstate(all="ignore"):
        return args, FUNCTIONS[name][0](*(a.astype(np.float64) for a in args))


def ulps(got: Any, exact: Any) -> Any:
    """The error in units of the last place of the exact number; nan where both are nan."""
    limit = 2.0**128  # what infinity stands for
    exponent = np.frexp(exact)[1] - 1
    unit = np.ldexp(1.0, np.clip(exponent, -126, 127) - 23)
    return np.abs(np.clip(got.astype(float), -limit, limit) - np.clip(exact, -limit, limit)) / unit


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("target", HERE)
def test_float32_errs_by_at_most_two_ulp(target: str, name: str) -> None:
    args, exact = sample(name)
    got = run(target, name, 16, *args)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    with np.errstate(all="ignore"):
        error = ulps(got, exact)
    worst = int(np.nanargmax(error))
    assert error[worst] <= 2, [float(a[worst]) for a in args]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("target", HERE)
def test_every_number_of_lanes_gives_the_same_bits(target: str, name: str) -> None:
    args = sample(name)[0]
    wide, *others = [run(target, name, lanes, *args) for lanes in LANES]
    known = ~np.isnan(wide)
    for other in others:
        np.testing.assert_array_equal(np.isnan(other), ~known)
        np.testing.assert_array_equal(other[known].view(np.int32), wide[known].view(np.int32))


EDGES = [0.0, 1.0, INF, NAN, 2.0, 3.0, 0.5, 1e-3, 7.0, LEAST, 2.0**-126, 1e-42, MOST, 2e38, 104,
         88.7228, 1000, 2.0**24, 2.0**24 + 2, 2.0**23 + 1, 1e9, 1 + 2**-23]  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("target", HERE)
def test_special_values_are_numpys(target: str, name: str, kind: Any) -> None:
    x = np.array([s * e for s in (1, -1) for e in EDGES], kind)
    args = (x,) if ARGS[name] == 1 else tuple(a.ravel().copy() for a in np.meshgrid(x, x))
    with np.errstate(all="ignore"):
        want = FUNCTIONS[name][0](*(a.astype(np.float64) for a in args)).astype(kind)
    # To the bit where a result is special, close to it elsewhere.
    simple = np.any([np.isin(a, [0, 1, -1, INF, -INF]) for a in args], axis=0)
    special = (want == 0) | ~np.isfinite(want) | (simple & np.isin(want, [1, -1]))
    known = ~np.isnan(want)
    rtol = 3e-7 if kind is np.float32 else 2e-15
    for lanes in LANES:
        got = run(target, name, lanes, *args)
        np.testing.assert_array_equal(got[special], want[special])
        np.testing.assert_array_equal(np.signbit(got[known]), np.signbit(want[known]))
        np.testing.assert_allclose(got, want, rtol, 3e-45 if kind is np.float32 else 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_libms(name: str) -> None:
    with np.errstate(all="ignore"):
        args = tuple(a[:: 2**6].astype(np.float64) for a in sample(name)[0])
        want = FUNCTIONS[name][0](*args)
    for lanes in LANES:
        got = run(HERE[-1], name, lanes, *args)
        np.testing.assert_allclose(got, want, 2e-15, 0)


@pytest.mark.parametrize("kind", ["float", "double"])
def test_neon_compiles(kind: str) -> None:
    assert assemble(text_of(TARGETS["neon"], kind), TARGETS["neon"])[:4] == b"\x7fELF"


def test_each_function_is_written_once_and_others_are_refused() -> None:
    module = Module(TARGETS["sse2"])
    b = Function(module, "f", ["float", "half"])
    for _ in range(3):
        vecmath.call(b, "exp", b.args[0])
    b.finish()
    assert module.text().count("@tv_exp_f32(") == 4
    with pytest.raises(TypeError, match="exp of half"):
        vecmath.call(b, "exp", b.args[1])
