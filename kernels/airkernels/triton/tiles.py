"""Running the description of a block format inside a Triton kernel.

`airkernels.formats` writes the decode of a block against a reader and the operators of Python. Here the reader's
values are tiles of tensors with an entry per block, so one description serves numpy, TVM and Triton alike. Functions
marked `device` are ordinary Python that runs while a kernel is being compiled (or interpreted) and emits its
operations; loops in them are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import triton.language as tl
from triton.language.core import TRITON_BUILTIN

from airkernels.formats import FORMATS, BlockFormat
from airkernels.formats.base import EACH, WORD, Places, Table, run
from airkernels.triton.layout import first_planes, plane_unit

Tensor = Any
"""`tl.tensor`."""

F = TypeVar("F", bound=Callable[..., Any])


def device(function: F) -> F:
    """Mark a Python function that kernels may call; it gets the emitter of operations as `_semantic`."""

    def call(*arguments: Any, _semantic: Any = None, **named: Any) -> Any:
        values = [a.value if isinstance(a, tl.constexpr) else a for a in arguments]
        named = {k: v.value if isinstance(v, tl.constexpr) else v for k, v in named.items()}
        return function(*values, **named, _semantic=_semantic or _interpreter())

    setattr(call, TRITON_BUILTIN, True)
    return call  # type: ignore[return-value]


def _interpreter() -> Any:
    from triton.runtime.interpreter import interpreter_semantic

    return interpreter_semantic


class Expr:
    """A tensor with the operators that block formats use; integers are taken in the type of the other operand."""

    def __init__(self, tensor: Tensor, semantic: Any) -> None:
        self.tensor, self._s = tensor, semantic

    def _with(self, tensor: Tensor) -> Expr:
        return Expr(tensor, self._s)

    def _other(self, other: Any) -> Tensor:
        if isinstance(other, Expr):
            return other.tensor
        return self._s.scalar_constant(other, self.tensor.dtype)

    def __and__(self, other: Any) -> Expr:
        return self._with(self._s.and_(self.tensor, self._other(other)))

    def __or__(self, other: Any) -> Expr:
        return self._with(self._s.or_(self.tensor, self._other(other)))

    def __xor__(self, other: Any) -> Expr:
        return self._with(self._s.xor_(self.tensor, self._other(other)))

    def __lshift__(self, other: Any) -> Expr:
        return self._with(self._s.shl(self.tensor, self._other(other))) if other else self

    def __rshift__(self, other: Any) -> Expr:
        if not other:
            return self
        signed = self.tensor.dtype.is_int_signed()
        return self._with((self._s.ashr if signed else self._s.lshr)(self.tensor, self._other(other)))

    def __add__(self, other: Any) -> Expr:
        return self._with(self._s.add(self.tensor, self._other(other), False))

    def __sub__(self, other: Any) -> Expr:
        return self._with(self._s.sub(self.tensor, self._other(other), False))

    def __mul__(self, other: Any) -> Expr:
        return self._with(self._s.mul(self.tensor, self._other(other), False))

    def __neg__(self) -> Expr:
        return self._with(self._s.minus(self.tensor))

    def to(self, dtype: Any) -> Expr:
        """Converted to another type."""
        return self._with(self._s.cast(self.tensor, dtype))

    def bits(self, dtype: Any) -> Expr:
        """The same bits as another type."""
        return self._with(self._s.bitcast(self.tensor, dtype))


def load(pointer: Tensor, offset: Any, mask: Tensor | None, semantic: Any, cache: str = "") -> Expr:
    """Entries at `pointer + offset`; zero where `mask` is false."""
    at = semantic.add(pointer, offset, False) if offset is not None else pointer
    other = None if mask is None else 0
    return Expr(tl.load(at, mask, other, cache_modifier=cache, _semantic=semantic), semantic)


def count_units(fmt: BlockFormat, unit: int) -> int:
    """Planes of so many bytes: words, or two bytes for every narrower unit."""
    return sum(field.count for field in fmt.fields if plane_unit(field) == unit)


class Planes:
    """The planes of a tile of blocks in memory, each loaded when it is first asked for.

    Parameters
    ----------
    words, halves
        Pointers to plane 0: uint32, float16.
    places
        Entries from plane to plane.
    mask
        Which blocks exist; None for all.
    """

    def __init__(
        self, fmt: BlockFormat, words: Tensor, halves: Tensor, places: int, mask: Tensor | None, semantic: Any
    ) -> None:
        self._sources = [(words, i) for i in range(count_units(fmt, WORD))]
        self._sources += [(halves, i) for i in range(count_units(fmt, 2))]
        self._places, self._mask, self._semantic = places, mask, semantic
        self._loaded: dict[int, Expr] = {}

    def __getitem__(self, number: int) -> Expr:
        """Plane `number`: words, then halves. No weight is read twice, so the nearest cache is left to activations."""
        if number not in self._loaded:
            base, plane = self._sources[number]
            self._loaded[number] = load(base, plane * self._places, self._mask, self._semantic, ".cg")
        return self._loaded[number]

    def load_all(self) -> list[Tensor]:
        return [self[number].tensor for number in range(len(self._sources))]


class BlockReader:
    """`airkernels.formats.base.Reader` over a tile of blocks, one an entry; `planes` are words, then narrow units."""

    def __init__(self, fmt: BlockFormat, planes: Planes | list[Expr]) -> None:
        self._first, self._planes, self._n_words = first_planes(fmt), planes, count_units(fmt, WORD)
        self._made: dict[object, Expr] = {}

    def word(self, field: str, index: int) -> Expr:
        return self._planes[self._first[field] + index]

    def _narrow(self, field: str) -> Expr:
        return self._planes[self._n_words + self._first[field]]

    def half(self, field: str) -> Expr:
        return self._narrow(field).to(tl.float32)

    def narrow(self, field: str) -> Expr:
        return self._narrow(field).bits(tl.uint16).to(tl.uint32)

    def byte(self, field: str, index: int) -> Expr:
        return self.byte_of(self.word(field, index // 4), index % 4)

    def signed_byte(self, field: str, index: int) -> Expr:
        return (self.word(field, index // 4) << 24 - 8 * (index % 4)).bits(tl.int32) >> 24

    def byte_of(self, word: Expr, index: int) -> Expr:
        return ((word >> 8 * index) & 255).bits(tl.int32)

    def to_float(self, value: Expr) -> Expr:
        return value.to(tl.float32)

    def half_of(self, bits: Expr) -> Expr:
        return bits.to(tl.uint16).bits(tl.float16).to(tl.float32)

    def float_of(self, bits: Expr) -> Expr:
        return bits.bits(tl.float32)

    def constant(self, value: int) -> int:
        return value

    def choose(self, bits: Expr, places: Places, if_set: Expr | int, if_clear: Expr | int) -> Expr:
        mask = _one_in_bytes(bits, places) * 255
        if isinstance(if_set, int) and isinstance(if_clear, int):
            return (mask & (if_set ^ if_clear)) ^ if_clear
        return (mask & if_set) | ((mask ^ 0xFFFFFFFF) & if_clear)

    def lookup(self, entries: tuple[int, ...], indices: Expr) -> Expr:
        raise NotImplementedError("codebooks")

    def entry(self, table: Table, index: Expr) -> Expr:
        raise NotImplementedError("tables")

    def once(self, key: object, build: Callable[[], Expr]) -> Expr:
        if key not in self._made:
            self._made[key] = build()
        return self._made[key]


def _one_in_bytes(bits: Expr, places: Places) -> Expr:
    """Bit `places[j]` of a word as 0 or 1 in byte j."""
    first = places[0]
    if places == run(first, 8):
        return (bits >> first) & EACH
    if places == run(first):
        # a multiplication spreads neighbouring bits over bytes
        return (((bits >> first) & 15) * 0x00204081) & EACH
    found = None
    for j, place in enumerate(places):
        bit = (bits >> place if place > 8 * j else bits << 8 * j - place) & (1 << 8 * j)
        found = bit if found is None else found | bit
    assert found is not None
    return found


def block_format(name: str) -> BlockFormat:
    """The description of a quantized format."""
    fmt = FORMATS[name]
    assert isinstance(fmt, BlockFormat)
    return fmt


def decode(fmt: BlockFormat, reader: BlockReader, group: int) -> Iterator[Expr]:
    """Elements of a group of the blocks of a reader in order, float32, rounded as in the numpy reference."""
    scale = fmt.scale(reader, group)
    minimum = fmt.minimum(reader, group) if fmt.has_minimum else None
    for word in range(group * fmt.group // WORD, (group + 1) * fmt.group // WORD):
        codes = fmt.codes(reader, word)
        for byte in range(WORD):
            code = ((codes >> 8 * byte) & 255).bits(tl.int32)
            code = code - fmt.zero_point if fmt.zero_point else code
            value = scale * code.to(tl.float32)
            yield value if minimum is None else value + minimum


def dot4(a: Expr, b: Expr, c: Expr, signed: bool, target: str, semantic: Any) -> Expr:
    """``c + a . b`` over the four bytes of words; those of `b` are signed, those of `a` if `signed`. int32.

    `target` is 'cuda', 'gfx9' (CDNA) or 'gfx11' (RDNA 3).
    """
    if target == "cuda":
        asm, constraint = f"dp4a.{'s' if signed else 'u'}32.s32 $0, $1, $2, $3;", "=r,r,r,r"
    else:
        # CDNA only has signed by signed: the callers keep codes below 128 there
        signs = f" neg_lo:[{int(signed)},1,0]"
        asm = "v_dot4_i32_i8 $0, $1, $2, $3" if target == "gfx9" else f"v_dot4_i32_iu8 $0, $1, $2, $3{signs}"
        constraint = "=v,v,v,v"
    operands = [a.tensor, b.tensor, c.tensor]
    out = tl.inline_asm_elementwise(asm, constraint, operands, tl.int32, True, 1, _semantic=semantic)
    return Expr(out, semantic)
