"""Vector arithmetic the kernels share: reductions, exp, half precision, rounding to bytes."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, bits, cast, const, dtype_of, lanes_of, let, llvm, local, loop, splat

Combine = Callable[[Expr, Expr], Expr]

_LOG2E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""Cephes `expf`: exp(r) - 1 - r over r^2 for |r| <= ln(2)/2, highest power first."""


def lanes_dividing(n: int, isa: VectorIsa) -> int:
    """The widest power-of-two vector, up to the registers', that divides n elements."""
    lanes = isa.lanes
    while n % lanes:
        lanes //= 2
    return lanes


def for_vectors(n: int, isa: VectorIsa, emit: Callable[[Expr, int], None]) -> None:
    """Emit a loop over n elements: whole vectors, then single elements."""
    whole = n // isa.lanes
    with loop(whole) as i:
        emit(i * isa.lanes, isa.lanes)
    if n % isa.lanes:
        with loop(n % isa.lanes) as i:
            emit(i + whole * isa.lanes, 1)


def reduce(value: Expr, combine: Combine) -> Expr:
    """Combine the lanes of a vector pairwise, halves first: the same order for every caller."""
    while lanes_of(value) > 1:
        lanes = lanes_of(value)
        element = dtype_of(value).rsplit("x", 1)[0]
        half = element if lanes == 2 else f"{element}x{lanes // 2}"
        value = let(value)
        if lanes == 2:
            parts = local(element, 2)
            parts.store(0, value)
            return combine(parts.load(0), parts.load(1))
        value = combine(tirx.vectorlow(half, value), tirx.vectorhigh(half, value))
    return value


def add(a: Expr, b: Expr) -> Expr:
    return a + b


def exp(x: Expr, isa: VectorIsa) -> Expr:
    """e^x within 2 ulp for x in [-87, 88]; clamped outside."""
    lanes = lanes_of(x)

    def c(value: float) -> Expr:
        return splat(const(value, "float32"), lanes)

    x = let(tirx.max(tirx.min(x, c(88.0)), c(-87.0)))
    n = let(llvm(dtype_of(x), "llvm.rint", x * c(_LOG2E)))
    r = let(isa.fused_multiply_add(n, c(-_LN2_LOW), isa.fused_multiply_add(n, c(-_LN2_HIGH), x)))
    value = c(_EXP_POLYNOMIAL[0])
    for coefficient in _EXP_POLYNOMIAL[1:]:
        value = isa.fused_multiply_add(value, r, c(coefficient))
    value = isa.fused_multiply_add(let(value), r * r, r + c(1.0))
    exponent = (cast(n, "int32") + splat(const(127, "int32"), lanes)) << splat(const(23, "int32"), lanes)
    return let(value) * bits(exponent, dtype_of(x))


def silu(x: Expr, isa: VectorIsa) -> Expr:
    """x / (1 + e^-x)."""
    x = let(x)
    one = splat(const(1.0, "float32"), lanes_of(x))
    return x / (one + exp(splat(const(0.0, "float32"), lanes_of(x)) - x, isa))


def square_root(x: Expr) -> Expr:
    return llvm("float32", "llvm.sqrt", x)


def half_to_float(raw: Expr, isa: VectorIsa) -> Expr:
    """IEEE half bits (uint16) to float32, exactly; by integer arithmetic where the CPU cannot convert.

    The exponent is rebiased by a multiplication with 2^112, which also normalises subnormals; infinities
    and NaNs, whose exponent field is all ones, are put back afterwards.
    """
    lanes = lanes_of(raw)
    suffix = "" if lanes == 1 else f"x{lanes}"
    if isa.half:
        return cast(bits(raw, f"float16{suffix}"), "float32")
    wide = let(cast(raw, "uint32"))
    shifted = bits((wide & 0x7FFF) << 13, f"float32{suffix}")
    magnitude = bits(shifted * splat(const(2.0**112, "float32"), lanes), f"uint32{suffix}")
    special = ((wide & 0x7C00) + 0x0400) >> 15
    restored = magnitude | (special * 0x7F800000)
    return bits(restored | ((wide & 0x8000) << 16), f"float32{suffix}")


def float_to_half(x: Expr, isa: VectorIsa) -> Expr:
    """float32 to half bits (uint16), to nearest even; values past the largest half become it.

    The cache must stay finite: an infinite value would turn a masked position into a NaN.
    """
    lanes = lanes_of(x)
    suffix = "" if lanes == 1 else f"x{lanes}"
    limit = splat(const(65504.0, "float32"), lanes)
    x = let(tirx.max(tirx.min(x, limit), splat(const(-65504.0, "float32"), lanes)))
    if isa.half:
        return bits(cast(x, "float16"), f"uint16{suffix}")
    raw = let(bits(x, f"uint32{suffix}"))
    magnitude = let(raw & splat(const(0x7FFFFFFF, "uint32"), lanes))
    # Normal halves: rebias the exponent and round the 13 dropped bits to nearest even.
    normal = (magnitude + ((magnitude >> 13) & 1) + 0x0FFF - 0x38000000) >> 13
    # Subnormal halves: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded by the adder.
    half = splat(const(0.5, "float32"), lanes)
    subnormal = bits(bits(magnitude, f"float32{suffix}") + half, f"uint32{suffix}") - 0x3F000000
    small = magnitude < splat(const(0x38800000, "uint32"), lanes)
    return cast(tirx.Select(small, subnormal, normal) | ((raw >> 16) & 0x8000), "uint16")


def bfloat_to_float(raw: Expr) -> Expr:
    """bfloat16 bits (uint16) to float32."""
    lanes = lanes_of(raw)
    return bits(cast(raw, "uint32") << 16, "float32" if lanes == 1 else f"float32x{lanes}")


def round_to_int(x: Expr) -> Expr:
    """float32 to int32, to nearest even."""
    return cast(llvm(dtype_of(x), "llvm.rint", x), "int32")
