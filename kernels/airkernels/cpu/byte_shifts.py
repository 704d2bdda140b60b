"""Shifts of words whose bytes are masked, as shifts of bytes, which take no mask: x86 has none, NEON has."""

from __future__ import annotations

from tvm import tirx
from tvm.ir.prim.expr import BitwiseAnd, BitwiseOr, LShift, RShift

from airkernels.cpu.program import Expr, bits, const, lanes_of, splat
from airkernels.formats.base import EACH


def with_byte_shifts(value: Expr) -> Expr:
    """An equal expression of uint32 lanes; what is bound to a name already is left as it is."""
    if isinstance(value, BitwiseAnd):
        mask = _constant(value.b)
        shift = _constant(value.a.b) if isinstance(value.a, RShift) else None
        if mask is not None and shift is not None and mask % EACH == 0 and mask // EACH <= 0xFF >> shift:
            return _shifted(value.a.a, shift, mask // EACH)
    if isinstance(value, RShift) and isinstance(value.a, BitwiseAnd):
        mask, shift = _constant(value.a.b), _constant(value.b)
        if mask is not None and shift is not None and mask % EACH == 0 and not mask // EACH & ((1 << shift) - 1):
            return _shifted(value.a.a, shift, mask // EACH >> shift)
    if isinstance(value, BitwiseAnd | BitwiseOr):
        return type(value)(with_byte_shifts(value.a), with_byte_shifts(value.b))
    if isinstance(value, LShift):
        return LShift(with_byte_shifts(value.a), value.b)
    return value


def _shifted(word: Expr, shift: int, mask: int) -> Expr:
    """Bytes shifted right, then masked where that leaves too much of them."""
    n = 4 * lanes_of(word)
    found = bits(with_byte_shifts(word), f"uint8x{n}") >> splat(const(shift, "uint8"), n)
    if mask != 0xFF >> shift:
        found = found & splat(const(mask, "uint8"), n)
    return bits(found, f"uint32x{n // 4}")


def _constant(value: Expr) -> int | None:
    value = value.value if isinstance(value, tirx.Broadcast) else value
    return int(value) if isinstance(value, tirx.IntImm) else None
