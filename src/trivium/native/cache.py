"""Compiled programs on disk: found again by what they were made from.

An entry is one file: a digest of what follows, and that. A program's is a header in JSON, the
constants, the object code. It appears whole or not at all, so that processes may share the
folder. A file whose digest is wrong is removed and made anew. The folder holds machine code
that will run: it belongs to the user alone (mode 700), and is not used otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import stat
from pathlib import Path
from typing import Any

import numpy as np

from trivium.atomic import write
from trivium.native.build import Array, Recipe
from trivium.native.target import Target

LIMIT = 256 * 2**20  # bytes of all entries together; the longest unused go first
_DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where entries are: ``TRIVIUM_CACHE_DIR`` or the user's cache; None where that is unsafe."""
    named = os.environ.get("TRIVIUM_CACHE_DIR")
    if named == "":
        return None  # set and empty: no cache
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(named) if named else Path(base) / "trivium" / "native"
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
        mine = not hasattr(os, "getuid") or info.st_uid == os.getuid()
        if mine and not stat.S_IMODE(info.st_mode) & 0o022:
            return path
    return None


@functools.cache
def _version() -> str:
    """Of this compiler: its own source, that of the ops and transforms, and LLVM's release."""
    from importlib.metadata import version

    digest = hashlib.sha256(version("llvmlite").encode())
    house = Path(__file__).parents[1]
    rooms = ("native", "ops", "transforms")
    files = [p for room in rooms for p in sorted((house / room).glob("*.py"))]
    for path in [*files, house / "op.py", house / "traits.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _machine() -> str:
    """This processor, as the system describes it; found without loading LLVM."""
    words = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                words.append(line)
            elif not line:
                break  # one core speaks for all
    return "\n".join(words)


def key_of(text: str, target: Target | None) -> str:
    """What an entry is found by: what was compiled, for which machine, by which version.

    ``target`` is None for this machine.
    """
    machine = f"{target}" if target is not None else _machine()
    return hashlib.sha256("\0".join((_version(), machine, text)).encode()).hexdigest()[:40]


def load(key: str) -> bytes | None:
    """The entry of this key, if there is a sound one."""
    where = folder()
    if where is None:
        return None
    path = where / f"{key}.bin"
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
            path.unlink()
            return None
        os.utime(path)  # used just now
    except OSError:
        return None
    return raw[_DIGEST:]


def save(key: str, body: bytes) -> None:
    """Keep an entry; a full disk or a read-only home is no error."""
    where = folder()
    if where is None:
        return
    with contextlib.suppress(OSError):
        # Its digest tells what was torn: a sync would only cost time.
        write(where / f"{key}.bin", hashlib.sha256(body).digest() + body, sync=False)
        _bound(where)


def _bound(where: Path) -> None:
    """Remove the entries that were not used for longest until the rest is within the limit."""
    entries = []
    for path in where.glob("*.bin"):
        with contextlib.suppress(OSError):
            info = path.stat()
            entries.append((info.st_mtime, info.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= LIMIT:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


# -- a program's entry ---------------------------------------------------------------------------
def packed(recipe: Recipe, code: bytes) -> bytes:
    """A program as bytes."""
    arrays = [np.ascontiguousarray(value).tobytes() for _, value in recipe.constants]
    head = {
        "held": recipe.held, "arena": recipe.arena, "slots": recipe.slots,
        "parallel": recipe.parallel, "checks": recipe.checks,
        "inputs": [_plain(a) for a in recipe.inputs],
        "outputs": [_plain(a) for a in recipe.outputs],
        "errors": _plain(recipe.errors),
        "kernels": [
            [n, [_plain(a) for a in reads], [_plain(a) for a in writes]]
            for n, reads, writes in recipe.kernels
        ],
        "constants": [
            [_plain(a), len(x)] for (a, _), x in zip(recipe.constants, arrays, strict=True)
        ],
        "code": len(code),
    }  # fmt: skip
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(arrays) + code


def _plain(a: Array) -> list[Any]:
    return [a.dtype, a.shape, a.axes, a.place, a.at]


def _array(item: list[Any]) -> Array:
    dtype, shape, axes, place, at = item
    return Array(dtype, tuple(shape), tuple(tuple(x) for x in axes), place, at)


def unpacked(body: bytes) -> tuple[Recipe, bytes]:
    """The way back."""
    at = 8 + int.from_bytes(body[:8], "little")
    head = json.loads(body[8:at])
    constants = []
    for item, size in head["constants"]:
        array = _array(item)
        constants.append(
            (array, np.frombuffer(body[at : at + size], array.dtype).reshape(array.shape))
        )
        at += size
    code = body[at : at + head["code"]]
    recipe = Recipe(
        head["held"], head["arena"], [_array(a) for a in head["inputs"]],
        [_array(a) for a in head["outputs"]], constants, head["checks"], _array(head["errors"]),
        [(n, [_array(a) for a in i], [_array(a) for a in o]) for n, i, o in head["kernels"]],
        head["slots"], head["parallel"],
    )  # fmt: skip
    return recipe, code
