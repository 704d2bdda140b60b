"""Reading the fields of blocks as TVM expressions: what every `formats.base.Reader` of kernels shares.

A vector has one 32-bit lane per row. Bytes are looked up and chosen by shuffles in registers; tables that do not
fit a register are constants of the kernel, read by gathers.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx

from airkernels.cpu.byte_shifts import with_byte_shifts
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Region, bits, cast, const, join, let, llvm, registers, splat, zeros
from airkernels.cpu.vectors import half_to_float
from airkernels.formats.base import Places, Table

_SHUFFLE_BYTES = {
    16: "llvm.x86.avx512.pshuf.b.512",
    8: "llvm.x86.avx2.pshuf.b",
    4: "llvm.x86.ssse3.pshuf.b.128",
}


class VectorReader:
    """`formats.base.Reader` with `lanes` rows side by side, 4 to 16; how a unit is loaded, subclasses say."""

    def __init__(self, isa: VectorIsa, lanes: int) -> None:
        self.isa, self.lanes = isa, lanes
        self._made: dict[object, Expr] = {}

    def load(self, field: str, index: int) -> Expr:
        """Unit `index` of a field, unsigned."""
        raise NotImplementedError

    def once(self, key: object, build: Callable[[], Expr]) -> Expr:
        if key not in self._made:
            self._made[key] = let(build())
        return self._made[key]

    def word(self, field: str, index: int) -> Expr:
        return self.once(("word", field, index), lambda: self.load(field, index))

    def half(self, field: str) -> Expr:
        return self.once(("half", field), lambda: half_to_float(let(self.load(field, 0)), self.isa))

    def narrow(self, field: str) -> Expr:
        return self.once(("narrow", field), lambda: cast(self.load(field, 0), "uint32"))

    def byte(self, field: str, index: int) -> Expr:
        return self.byte_of(self.word(field, index // 4), index % 4)

    def signed_byte(self, field: str, index: int) -> Expr:
        word, byte = divmod(index, 4)
        return bits(self.word(field, word) << (24 - 8 * byte), self._type("int32")) >> 24

    def byte_of(self, word: Expr, index: int) -> Expr:
        return bits((word >> (8 * index)) & 0xFF, self._type("int32"))

    def to_float(self, value: Expr) -> Expr:
        return cast(value, "float32")

    def half_of(self, bits_: Expr) -> Expr:
        return half_to_float(let(cast(bits_, "uint16")), self.isa)

    def float_of(self, bits_: Expr) -> Expr:
        return bits(bits_, self._type("float32"))

    def constant(self, value: int) -> Expr:
        return splat(const(value, "uint32"), self.lanes)

    def choose(self, bits_: Expr, places: Places, if_set: Expr, if_clear: Expr) -> Expr:
        n = 4 * self.lanes
        flags = let(self._bytes(bits_))
        owners = [tirx.const(4 * lane + place // 8, "int32") for lane in range(self.lanes) for place in places]
        masks = self._bytes(self.constant(sum(1 << (8 * j + place % 8) for j, place in enumerate(places))))
        is_set = (tirx.Shuffle([flags], owners) & masks) != zeros("int8", n)
        return bits(tirx.Select(is_set, self._bytes(if_set), self._bytes(if_clear)), self._type("uint32"))

    def lookup(self, entries: tuple[int, ...], indices: Expr) -> Expr:
        assert len(entries) == 16
        words = [int.from_bytes(bytes(entries[at : at + 4]), "little") for at in range(0, 16, 4)]
        if self.isa.arch == "aarch64":
            table = bits(tirx.Shuffle([const(word, "uint32") for word in words], _numbers(4)), "int8x16")
            found = [
                bits(llvm("int8x16", "llvm.aarch64.neon.tbl1.v16i8", table, bits(each, "int8x16")), "uint32x4")
                for each in registers(with_byte_shifts(indices))
            ]
            return join(found)
        table = tirx.Shuffle([const(words[lane % 4], "uint32") for lane in range(self.lanes)], _numbers(self.lanes))
        found = llvm(f"int8x{4 * self.lanes}", _SHUFFLE_BYTES[self.lanes], self._bytes(table), self._bytes(indices))
        return bits(found, self._type("uint32"))

    def entry(self, table: Table, index: Expr) -> Expr:
        pointer = let(tirx.reinterpret("handle", tvm.ir.StringImm(_as_text(table))))
        index = bits(index, self._type("int32"))
        if self.isa.arch == "aarch64":
            found = tirx.BufferLoad(Region(pointer, "int32").buffer, [index])
        elif self.lanes == 16:
            every = const(-1, "int16")
            gather = "llvm.x86.avx512.gather.dpi.512"
            found = llvm("int32x16", gather, zeros("int32", 16), pointer, index, every, const(4, "int32"))
        elif self.isa.lanes >= 8:
            dtype, every = self._type("int32"), splat(const(-1, "int32"), self.lanes)
            gather = "llvm.x86.avx2.gather.d.d" + (".256" if self.lanes == 8 else "")
            found = llvm(dtype, gather, zeros("int32", self.lanes), pointer, index, every, const(4, "int8"))
        else:
            found = tirx.BufferLoad(Region(pointer, "int32").buffer, [index])
        return bits(found, self._type("uint32"))

    def _bytes(self, value: Expr) -> Expr:
        return bits(value, f"int8x{4 * self.lanes}")

    def _type(self, element: str) -> str:
        return f"{element}x{self.lanes}"


def _numbers(n: int) -> list[Expr]:
    return [tirx.const(i, "int32") for i in range(n)]


def _as_text(table: Table) -> str:
    return b"".join(entry.to_bytes(4, "little") for entry in table.entries).decode("ascii")
