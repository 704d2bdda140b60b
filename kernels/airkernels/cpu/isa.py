"""Vector instruction sets, as tables: what the kernels need to know of one.

The names are those of `airrun.machine.isa`, whose table says which CPU features each level needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from airkernels.cpu.dot import Dot, Pmaddubsw, Vpdpbusd
from airkernels.cpu.dot_neon import Sdot, Smlal, Smmla
from airkernels.cpu.program import Expr, lanes_of, llvm

PANEL = 16
"""Rows interleaved into one panel, on every instruction set: the widest float vector in use."""


@dataclass(frozen=True)
class VectorIsa:
    """One instruction set.

    Attributes
    ----------
    name
        Level name, as the plan and `AIR_ISA` spell it.
    arch
        Architecture, as Linux names it.
    cpu
        LLVM's name of a CPU of that level.
    attributes
        LLVM features beyond those of `cpu`.
    lanes
        32-bit lanes of a vector, which may be several registers side by side.
    registers
        Vectors that the registers hold: bounds the tile of a matrix product.
    dot
        How products of bytes are added to 32-bit lanes.
    fma
        Whether multiply-add rounds once.
    half
        Whether the CPU converts half-precision floats.
    pairs
        How products of two rows with two tokens are added, where the CPU makes those at once.
    prefetch
        Bytes ahead of its use at which packed weights are prefetched; 0 leaves it to the hardware. No property of an
        instruction set but of the processor behind it (`airrun.machine.profile.Cpu`).
    """

    name: str
    arch: str
    cpu: str
    attributes: tuple[str, ...]
    lanes: int
    registers: int
    dot: Dot
    fma: bool
    half: bool
    prefetch: int = 0
    pairs: Dot | None = None

    @property
    def shifts_bytes(self) -> bool:
        """Whether there are shifts of bytes."""
        return self.arch == "aarch64"

    @property
    def anchors(self) -> bool:
        """Whether loads of a step along the panels go from a pointer of its own (`program.anchored`).

        Two neighbouring vectors are then one instruction, and codes that are wanted again are loaded again: they fill
        the registers, where x86 takes them from memory as it multiplies.
        """
        return self.arch == "aarch64"

    def fused_multiply_add(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """a * b + c, element by element, float32."""
        if not self.fma:
            return a * b + c
        lanes = lanes_of(c)
        dtype = "float32" if lanes == 1 else f"float32x{lanes}"
        return llvm(dtype, "llvm.fma", a, b, c)


X86_64_V2 = VectorIsa("x86-64-v2", "x86_64", "x86-64-v2", (), 4, 16, Pmaddubsw(), False, False)
X86_64_V3 = VectorIsa("x86-64-v3", "x86_64", "x86-64-v3", (), 8, 16, Pmaddubsw(), True, True)
X86_64_V3_VNNI = VectorIsa("x86-64-v3+avxvnni", "x86_64", "x86-64-v3", ("+avxvnni",), 8, 16, Vpdpbusd(), True, True)
X86_64_V4 = VectorIsa("x86-64-v4", "x86_64", "x86-64-v4", ("+avx512vnni",), 16, 32, Vpdpbusd(), True, True)

# A vector is four registers, a panel: the compiler splits what is done to it, and a row of a panel is read whole. Sums
# of vectors are then also taken in the order of AVX-512.
_NEON = ("+neon",)
ARMV8 = VectorIsa("armv8-a", "aarch64", "generic", _NEON, 16, 8, Smlal(), True, True)
ARMV8_DOTPROD = VectorIsa("armv8-a+dotprod", "aarch64", "generic", (*_NEON, "+dotprod"), 16, 8, Sdot(), True, True)
ARMV8_I8MM = replace(ARMV8_DOTPROD, name="armv8-a+i8mm", attributes=(*ARMV8_DOTPROD.attributes, "+i8mm"), pairs=Smmla())

ISAS = {isa.name: isa for isa in (X86_64_V2, X86_64_V3, X86_64_V3_VNNI, X86_64_V4, ARMV8, ARMV8_DOTPROD, ARMV8_I8MM)}
