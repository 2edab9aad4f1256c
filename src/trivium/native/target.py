"""What machine code is made for: instruction set, vector width, registers."""

from __future__ import annotations

import functools
import platform
import sys
from dataclasses import dataclass
from typing import Any

from trivium.dtype import DType


@dataclass(frozen=True)
class Target:
    """One kind of machine. ``bits`` is the width of a vector register, ``registers`` how many."""

    name: str
    triple: str
    cpu: str
    features: str
    bits: int
    registers: int
    fma: bool  # a fused multiply-add, one rounding

    def lanes(self, dtype: DType) -> int:
        """How many numbers of this dtype fill a vector; a bool counts as a float32."""
        size = dtype.numpy.itemsize if dtype.numpy.itemsize > 1 else 4
        return self.bits // 8 // size

    def machine(self, opt: int = 2) -> Any:
        """The LLVM target machine."""
        import llvmlite.binding as llvm

        if "x86" in self.triple:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
        else:
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
        return llvm.Target.from_triple(self.triple).create_target_machine(
            cpu=self.cpu, features=self.features, opt=opt, reloc="pic", codemodel="default"
        )


_LINUX = "x86_64-unknown-linux-gnu"
TARGETS = {
    t.name: t
    for t in (
        Target("avx512", _LINUX, "x86-64-v4", "-prefer-256-bit", 512, 32, True),
        Target("avx2", _LINUX, "x86-64-v3", "", 256, 16, True),
        Target("sse2", _LINUX, "x86-64", "", 128, 16, False),
        Target("neon", "aarch64-unknown-linux-gnu", "generic", "+neon", 128, 32, True),
    )
}


@functools.cache
def host() -> Target:
    """The best target that this machine runs."""
    import llvmlite.binding as llvm

    has = llvm.get_host_cpu_features()
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        name = "neon"
    elif machine in ("x86_64", "amd64"):
        wide = all(has.get(f) for f in ("avx512f", "avx512bw", "avx512dq", "avx512vl"))
        name = "avx512" if wide else "avx2" if has.get("avx2") and has.get("fma") else "sse2"
    else:
        raise ImportError(f"the native engine knows no {machine} machine; use engine='numpy'")
    base = TARGETS[name]
    triple = base.triple if sys.platform == "linux" else llvm.get_default_triple()
    # The processor's own name gives LLVM its instruction timings.
    return Target(base.name, triple, llvm.get_host_cpu_name(), has.flatten(), base.bits,
                  base.registers, base.fma)  # fmt: skip
