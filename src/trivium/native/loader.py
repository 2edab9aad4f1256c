"""Object code into memory, ready to be called.

On Linux and x86-64 the object file is read here: its sections are laid into one mapping, in which
everything is in reach of everything, and functions of libc and libm are reached through stubs that
hold their full address. (LLVM's older loader, which llvmlite uses by default, maps each section by
itself; in a process as large as one that has imported TensorFlow they can be more than 2 GB apart,
and it aborts.) It also means that a program from the cache starts without LLVM being loaded at all.
Elsewhere LLVM's JITLink does it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
import sys
from collections.abc import Sequence
from typing import Any

_ALLOC = 2  # section flag: it is there at run time
_NOBITS, _RELA = 8, 4  # section types
_ABSOLUTE, _PC, _PLT, _GOT = 1, 2, 4, (9, 41, 42)  # relocations of the x86-64 psABI
_STUB = bytes([0xFF, 0x25, 0, 0, 0, 0])  # jmp *[rip + 0]: the address follows


class Code:
    """A loaded object: ``addresses`` of its functions by name."""

    def __init__(self, code: bytes, names: Sequence[str]):
        self._kept: Any = _Mapped(code) if LINUX_X86 else linked(code, names)
        self.addresses: dict[str, int] = {n: self._kept[n] for n in names}


LINUX_X86 = sys.platform == "linux" and platform.machine() == "x86_64"


def linked(code: bytes, names: Sequence[str]) -> Any:
    """The object loaded by LLVM's JITLink: ``[name]`` is an address."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    jit = llvm.create_lljit_compiler(use_jit_link=True)
    builder = llvm.JITLibraryBuilder().add_current_process().add_object_img(code)
    for name in names:
        builder.export_symbol(name)
    return builder.link(jit, "trivium")


class _Mapped:
    """An ELF object laid out in one executable mapping."""

    def __init__(self, code: bytes):
        self._raw = code
        sections = self._sections()
        symbols = self._symbols(sections)
        self._at: dict[int, int] = {}
        size = 0
        for k, (_, kind, flags, _, length, align, *_) in enumerate(sections):
            if flags & _ALLOC and length and kind != 0x70000001:  # not the unwinding tables
                size = -(-size // max(align, 1)) * max(align, 1)
                self._at[k] = size
                size += length
        outside = sorted({n for n, section, _ in symbols if section == 0 and n})
        size = -(-size // 16) * 16
        self._stubs = {name: size + 16 * k for k, name in enumerate(outside)}
        size += 16 * len(outside)
        self._memory = mmap.mmap(-1, max(size, 1))
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._names = {
            n: self._base + self._at[s] + v for n, s, v in symbols if n and s in self._at
        }
        self._fill(sections, symbols)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(self._base, len(self._memory), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "this system lets no program make code to run")

    def __getitem__(self, name: str) -> int:
        address: int = self._names[name]
        return address

    def _sections(self) -> list[tuple[int, ...]]:
        """(name, type, flags, offset, size, align, link, info) of each."""
        raw = self._raw
        (start,) = struct.unpack_from("<Q", raw, 40)
        size, count = struct.unpack_from("<HH", raw, 58)
        out: list[tuple[int, ...]] = []
        for k in range(count):
            n, kind, flags, _, offset, length, link, info, align, _ = struct.unpack_from(
                "<IIQQQQIIQQ", raw, start + k * size
            )
            out.append((n, kind, flags, offset, length, align, link, info))
        return out

    def _symbols(self, sections: list[tuple[int, ...]]) -> list[Any]:
        """(name, section, value) of each."""
        raw = self._raw
        table = next(s for s in sections if s[1] == 2)
        strings = sections[table[6]][3]
        out = []
        for k in range(table[4] // 24):
            n, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", raw, table[3] + 24 * k)
            name = raw[strings + n : raw.index(b"\0", strings + n)].decode()
            out.append((name, section, value))
        return out

    def _fill(self, sections: list[tuple[int, ...]], symbols: list[Any]) -> None:
        raw, memory = self._raw, self._memory
        for k, at in self._at.items():
            _, kind, _, offset, length, *_ = sections[k]
            if kind != _NOBITS:
                memory[at : at + length] = raw[offset : offset + length]
        for name, at in self._stubs.items():
            memory[at : at + 14] = _STUB + struct.pack("<Q", _process(name))
        for _, kind, _, offset, length, _, _, target in sections:
            if kind != _RELA or target not in self._at:
                continue
            for where, info, add in struct.iter_unpack("<QQq", raw[offset : offset + length]):
                self._relocate(
                    self._at[target] + where, info & 0xFFFFFFFF, add, symbols[info >> 32]
                )

    def _relocate(self, at: int, kind: int, add: int, symbol: Any) -> None:
        name, section, value = symbol
        if section == 0:
            # A stub's first bytes jump, its last eight hold the address.
            goal = self._stubs[name] + (6 if kind in _GOT else 0)
        elif section in self._at and kind not in _GOT:
            goal = self._at[section] + value
        else:
            raise OSError(f"object code refers to {name or section} in a way not known here")
        if kind == _ABSOLUTE:
            self._memory[at : at + 8] = struct.pack("<Q", self._base + goal + add)
        elif kind in (_PC, _PLT, *_GOT):
            self._memory[at : at + 4] = struct.pack("<i", goal + add - at)
        else:
            raise OSError(f"object code has a relocation of kind {kind}")


@functools.cache
def _libraries() -> list[Any]:
    return [ctypes.CDLL(None), ctypes.CDLL("libm.so.6")]


def _process(name: str) -> int:
    """The address of a function of libc or libm."""
    for library in _libraries():
        try:
            found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except AttributeError:
            continue
        if found:
            return found
    raise OSError(f"object code wants {name}, which this system's libraries lack")
