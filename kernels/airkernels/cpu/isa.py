"""Vector instruction sets, as tables: what the kernels need to know of one.

The names are those of `airrun.machine.isa`, whose table says which CPU features each level needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airkernels.cpu.program import Expr, bits, const, lanes_of, let, llvm, splat

PANEL = 16
"""Rows interleaved into one panel, on every instruction set: the widest float vector in use."""


@dataclass(frozen=True)
class VectorIsa:
    """One instruction set.

    Attributes
    ----------
    name
        Level name, as the plan and `AIR_ISA` spell it.
    cpu
        LLVM's name of a CPU of that level.
    attributes
        LLVM features beyond those of `cpu`.
    lanes
        32-bit lanes of a vector register.
    registers
        Vector registers: bounds the tile of a matrix product.
    dot
        How four products of bytes are added to a 32-bit lane.
    fma
        Whether multiply-add rounds once.
    half
        Whether the CPU converts half-precision floats.
    prefetch
        Bytes ahead of its use at which packed weights are prefetched; 0 leaves it to the hardware. No property of an
        instruction set but of the processor behind it (`airrun.machine.profile.Cpu`).
    """

    name: str
    cpu: str
    attributes: tuple[str, ...]
    lanes: int
    registers: int
    dot: Literal["vpdpbusd", "pmaddubsw"]
    fma: bool
    half: bool
    prefetch: int = 0

    def fused_multiply_add(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """a * b + c, element by element, float32."""
        if not self.fma:
            return a * b + c
        lanes = lanes_of(c)
        dtype = "float32" if lanes == 1 else f"float32x{lanes}"
        return llvm(dtype, "llvm.fma", a, b, c)

    def dot_accumulate(self, acc: Expr, codes: Expr, word: Expr, code_max: int) -> Expr:
        """acc[i] + sum over 4 of unsigned byte codes[i][j] * signed byte word[j].

        Parameters
        ----------
        acc
            int32 x lanes.
        codes
            uint32 x lanes, four unsigned bytes each.
        word
            int32 scalar, four signed bytes, the same for every lane.
        code_max
            Largest code, which decides whether 16-bit intermediate sums can hold two products.
        """
        n = 4 * self.lanes
        unsigned, signed = bits(codes, f"int8x{n}"), bits(splat(word, self.lanes), f"int8x{n}")
        if self.dot == "vpdpbusd":
            return llvm(f"int32x{self.lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}", acc, unsigned, signed)
        multiply, widen = {
            8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
            4: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
        }[self.lanes]
        ones = splat(const(1, "int16"), 2 * self.lanes)

        def pairs(left: Expr) -> Expr:
            products = llvm(f"int16x{2 * self.lanes}", multiply, left, signed)
            return llvm(f"int32x{self.lanes}", widen, products, ones)

        if code_max <= 127:
            return acc + pairs(unsigned)
        # Two products of codes up to 255 overflow 16 bits: split each code into its low seven bits and its top bit.
        whole = let(codes)
        low = bits(whole & const(0x7F7F7F7F, "uint32"), f"int8x{n}")
        top = bits((whole >> const(7, "uint32")) & const(0x01010101, "uint32"), f"int8x{n}")
        return acc + pairs(low) + (pairs(top) << const(7, "int32"))


X86_64_V2 = VectorIsa("x86-64-v2", "x86-64-v2", (), 4, 16, "pmaddubsw", False, False)
X86_64_V3 = VectorIsa("x86-64-v3", "x86-64-v3", (), 8, 16, "pmaddubsw", True, True)
X86_64_V4 = VectorIsa("x86-64-v4", "x86-64-v4", ("+avx512vnni",), 16, 32, "vpdpbusd", True, True)

ISAS = {isa.name: isa for isa in (X86_64_V2, X86_64_V3, X86_64_V4)}
