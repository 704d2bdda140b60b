"""Running the description of a block format inside a Triton kernel.

`airkernels.formats` writes the decode of a block against a reader and the operators of Python. Here the reader's
values are tiles of tensors with an entry per block, so one description serves numpy, TVM and Triton alike. Functions
marked `device` are ordinary Python that runs while a kernel is being compiled (or interpreted) and emits its
operations; loops in them are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, TypeVar

import triton.language as tl
from triton.language.core import TRITON_BUILTIN

from airkernels.formats import FORMATS, BlockFormat
from airkernels.formats.base import EACH, SIGNS, WORD, Places, Table, run, shifted
from airkernels.triton import intrinsics
from airkernels.triton.forms import DeviceForm, stored
from airkernels.triton.layout import count_units, first_planes

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
        self.tensor, self.semantic = tensor, semantic

    def _with(self, tensor: Tensor) -> Expr:
        return Expr(tensor, self.semantic)

    def _other(self, other: Any) -> Tensor:
        if isinstance(other, Expr):
            return other.tensor
        return self.semantic.scalar_constant(other, self.tensor.dtype)

    def __and__(self, other: Any) -> Expr:
        return self._with(self.semantic.and_(self.tensor, self._other(other)))

    def __or__(self, other: Any) -> Expr:
        return self._with(self.semantic.or_(self.tensor, self._other(other)))

    def __xor__(self, other: Any) -> Expr:
        return self._with(self.semantic.xor_(self.tensor, self._other(other)))

    def __lshift__(self, other: Any) -> Expr:
        return self._with(self.semantic.shl(self.tensor, self._other(other))) if other else self

    def __rshift__(self, other: Any) -> Expr:
        if not other:
            return self
        signed = self.tensor.dtype.is_int_signed()
        return self._with((self.semantic.ashr if signed else self.semantic.lshr)(self.tensor, self._other(other)))

    def __add__(self, other: Any) -> Expr:
        return self._with(self.semantic.add(self.tensor, self._other(other), False))

    def __sub__(self, other: Any) -> Expr:
        return self._with(self.semantic.sub(self.tensor, self._other(other), False))

    def __mul__(self, other: Any) -> Expr:
        return self._with(self.semantic.mul(self.tensor, self._other(other), False))

    def __invert__(self) -> Expr:
        return self._with(self.semantic.invert(self.tensor))

    def __neg__(self) -> Expr:
        return self._with(self.semantic.minus(self.tensor))

    def to(self, dtype: Any) -> Expr:
        """Converted to another type."""
        return self._with(self.semantic.cast(self.tensor, dtype))

    def bits(self, dtype: Any) -> Expr:
        """The same bits as another type."""
        return self._with(self.semantic.bitcast(self.tensor, dtype))


def load(pointer: Tensor, offset: Any, mask: Tensor | None, semantic: Any, cache: str = "") -> Expr:
    """Entries at `pointer + offset`; zero where `mask` is false."""
    at = semantic.add(pointer, offset, False) if offset is not None else pointer
    other = None if mask is None else 0
    return Expr(tl.load(at, mask, other, cache_modifier=cache, _semantic=semantic), semantic)


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
        self._places, self._mask, self.semantic = places, mask, semantic
        self._loaded: dict[int, Expr] = {}

    def __getitem__(self, number: int) -> Expr:
        """Plane `number`: words, then halves. No weight is read twice, so the nearest cache is left to activations."""
        if number not in self._loaded:
            base, plane = self._sources[number]
            self._loaded[number] = load(base, plane * self._places, self._mask, self.semantic, ".cg")
        return self._loaded[number]

    def load_all(self) -> list[Tensor]:
        return [self[number].tensor for number in range(len(self._sources))]


class RawPlanes:
    """The units of a tile of blocks as in the file, numbered like `Planes`; bytes are read singly, at any address."""

    def __init__(self, fmt: BlockFormat, start: Tensor, mask: Tensor, semantic: Any) -> None:
        units = [(f, f.offset + i * f.unit) for f in fmt.fields for i in range(f.count)]
        self._units = [[u for u in units if (u[0].unit == WORD) == wide] for wide in (True, False)]
        self._start, self._mask, self.semantic = start, mask, semantic
        self._loaded: dict[int, Expr] = {}

    def __getitem__(self, number: int) -> Expr:
        if number not in self._loaded:
            words, narrow = self._units
            field, offset = (words + narrow)[number]
            dtype = tl.uint32 if field.unit == WORD else tl.uint16
            parts = [
                load(self._start, offset + k, self._mask, self.semantic).to(dtype) << 8 * k for k in range(field.unit)
            ]
            value = reduce(Expr.__or__, parts)
            self._loaded[number] = value if field.unit == WORD else value.bits(tl.float16)
        return self._loaded[number]


class BlockReader:
    """`airkernels.formats.base.Reader` over a tile of blocks, one an entry; `planes` are words, then narrow units."""

    def __init__(
        self, fmt: BlockFormat, planes: Planes | RawPlanes | list[Expr], kept_table: Tensor | None = None
    ) -> None:
        self._kept_table = kept_table
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
        return _byte(self.word(field, index // 4), index % 4, True)

    def byte_of(self, word: Expr, index: int) -> Expr:
        return _byte(word, index, False)

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
        raise NotImplementedError("device forms pick by selectors")

    def entry(self, table: Table, index: Expr) -> Expr:
        found = intrinsics.entry(table, index.to(tl.uint32).tensor, self._kept_table, index.semantic)
        return Expr(found, index.semantic)

    def permute(self, low: Expr | int, high: Expr | int, selectors: Expr | int) -> Expr:
        one = next(value for value in (selectors, low) if isinstance(value, Expr))
        a, b, c = (value.tensor if isinstance(value, Expr) else value for value in (low, high, selectors))
        return Expr(intrinsics.permute(a, b, c, list(one.tensor.shape), one.semantic), one.semantic)

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
    each = (shifted(bits, 8 * j - place) & (1 << 8 * j) for j, place in enumerate(places))
    found: Expr = reduce(Expr.__or__, each)
    return found


def block_format(name: str) -> BlockFormat:
    """The description of a quantized format, as it is kept in device memory."""
    fmt = FORMATS[name]
    assert isinstance(fmt, BlockFormat)
    return stored(fmt)


def signed_addends(fmt: BlockFormat) -> bool:
    """Whether `addends` are signed bytes."""
    return isinstance(fmt, DeviceForm) or fmt.zero_point == 128


def zero_point_of(fmt: BlockFormat) -> int:
    """What the sum of `addends` is above an element."""
    return 0 if fmt.zero_point == 128 else fmt.zero_point


def addends(fmt: BlockFormat, reader: BlockReader, word: int) -> list[Expr]:
    """Words whose bytes add up to four neighbouring elements and the zero point, for dot products: uint32."""
    if isinstance(fmt, DeviceForm):
        return fmt.addends(reader, word)
    codes = fmt.codes(reader, word)
    # codes with a zero point of 128 are signed bytes with their sign bit flipped
    return [codes ^ SIGNS if fmt.zero_point == 128 else codes]


def decode(fmt: BlockFormat, reader: BlockReader, group: int) -> Iterator[Expr]:
    """Elements of a group of the blocks of a reader in order, float32, rounded as in the numpy reference."""
    scale = fmt.scale(reader, group)
    minimum = fmt.minimum(reader, group) if fmt.has_minimum else None
    signed, zero_point = signed_addends(fmt), zero_point_of(fmt)
    for word in range(group * fmt.group // WORD, (group + 1) * fmt.group // WORD):
        parts = addends(fmt, reader, word)
        for byte in range(WORD):
            code = reduce(Expr.__add__, (_byte(part, byte, signed) for part in parts))
            code = code - zero_point if zero_point else code
            value = scale * code.to(tl.float32)
            yield value if minimum is None else value + minimum


def _byte(word: Expr, index: int, signed: bool) -> Expr:
    """A byte of a word as int32."""
    if signed:
        return (word << 24 - 8 * index).bits(tl.int32) >> 24
    return ((word >> 8 * index) & 255).bits(tl.int32)


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
