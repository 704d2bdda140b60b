"""Numpy decoding and rounding of rows, derived from the format descriptions: the oracle of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from airkernels.formats.base import WORD, AnyFormat, BlockFormat, FloatFormat, Places, RoundedFormat, Table

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[Any]


class ArrayReader:
    """`Reader` over raw blocks, uint8 [n_blocks, block_bytes]."""

    def __init__(self, fmt: BlockFormat, blocks: Bytes) -> None:
        self.fmt, self.blocks = fmt, blocks
        self._made: dict[object, Any] = {}

    def _units(self, field: str) -> npt.NDArray[np.uint8]:
        f = self.fmt.field(field)
        return np.ascontiguousarray(self.blocks[:, f.offset : f.offset + f.nbytes])

    def word(self, field: str, index: int) -> npt.NDArray[np.uint32]:
        return self._units(field).view("<u4")[:, index]

    def half(self, field: str) -> Floats:
        return self._units(field).view("<f2")[:, 0].astype(np.float32)

    def byte(self, field: str, index: int) -> npt.NDArray[np.int32]:
        return self._units(field)[:, index].astype(np.int32)

    def signed_byte(self, field: str, index: int) -> npt.NDArray[np.int32]:
        return self._units(field).view(np.int8)[:, index].astype(np.int32)

    def byte_of(self, word: Integers, index: int) -> npt.NDArray[np.int32]:
        return ((word >> (8 * index)) & 0xFF).astype(np.int32)

    def narrow(self, field: str) -> npt.NDArray[np.uint32]:
        return self._units(field).view(f"<u{self.fmt.field(field).unit}")[:, 0].astype(np.uint32)

    def to_float(self, value: npt.NDArray[np.int32]) -> Floats:
        return value.astype(np.float32)

    def half_of(self, bits: Integers) -> Floats:
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    def float_of(self, bits: Integers) -> Floats:
        return bits.astype(np.uint32).view(np.float32)

    def constant(self, value: int) -> np.uint32:
        return np.uint32(value)

    def choose(self, bits: Integers, places: Places, if_set: Integers, if_clear: Integers) -> Integers:
        chosen = np.zeros_like(bits)
        for j, place in enumerate(places):
            byte = np.where((bits >> place) & 1, if_set, if_clear)
            chosen |= byte & np.uint32(0xFF << (8 * j))
        return chosen

    def lookup(self, entries: tuple[int, ...], indices: Integers) -> Integers:
        return np.array(entries, np.uint8)[indices.view(np.uint8)].view(np.uint32)

    def entry(self, table: Table, index: Integers) -> Integers:
        return np.array(table.entries, np.uint32)[index]

    def once(self, key: object, build: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = build()
        return self._made[key]


def dequantize(fmt: AnyFormat, raw: Bytes, n_cols: int) -> Floats:
    """Decode rows.

    Parameters
    ----------
    fmt
        Block format of the rows.
    raw
        uint8, the bytes of whole rows as they stand in the file.
    n_cols
        Elements per row, a multiple of the format's block.

    Returns
    -------
    float32 [n_rows, n_cols], rounded as ggml's `dequantize_row_*` rounds.
    """
    raw = np.ascontiguousarray(raw, np.uint8).reshape(-1)
    if isinstance(fmt, FloatFormat):
        if fmt.dtype == "bfloat16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(-1, n_cols)
        return raw.view(fmt.dtype).astype(np.float32).reshape(-1, n_cols)
    blocks = raw.reshape(-1, fmt.nbytes)
    reader = ArrayReader(fmt, blocks)
    out = np.empty((len(blocks), fmt.block), np.float32)
    for group in range(fmt.block // fmt.group):
        scale = _column(fmt.scale(reader, group))
        first = group * fmt.group
        for word in range(first // WORD, (first + fmt.group) // WORD):
            codes = np.ascontiguousarray(fmt.codes(reader, word)).astype("<u4").view(np.uint8).reshape(-1, WORD)
            out[:, word * WORD : (word + 1) * WORD] = scale * (codes.astype(np.float32) - np.float32(fmt.zero_point))
        if fmt.has_minimum:
            out[:, first : first + fmt.group] += _column(fmt.minimum(reader, group))
    return out.reshape(-1, n_cols)


def _column(values: Floats) -> Floats:
    """One value a block, as a column that broadcasts over its elements."""
    return values[:, None]


class ArrayRounder:
    """`Rounder` over blocks of values, float32 [n_blocks, block]."""

    def largest(self, values: Floats) -> Floats:
        return np.asarray(np.abs(values).max(axis=1))

    def extreme(self, values: Floats) -> Floats:
        return np.asarray(values[np.arange(len(values)), np.abs(values).argmax(axis=1)])

    def nearest(self, x: Floats) -> Integers:
        whole = np.trunc(x)
        return (whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0)).astype(np.int32)

    def truncated(self, x: Floats) -> Integers:
        return np.trunc(x).astype(np.int32)

    def least(self, x: Integers, most: int) -> Integers:
        return np.minimum(x, most)

    def constant(self, value: int, like: Integers) -> np.uint32:
        return np.uint32(value)


def quantize(fmt: RoundedFormat, rows: Floats) -> Bytes:
    """Round rows as ggml's `quantize_row_*_ref`; scales past the largest half become it.

    Parameters
    ----------
    rows
        float32 [n_rows, n_cols], n_cols a multiple of the format's block.

    Returns
    -------
    uint8 [n_rows, bytes of a row]
    """
    values = np.ascontiguousarray(rows, np.float32).reshape(-1, fmt.block)
    rounder = ArrayRounder()
    scale = np.asarray(fmt.scale_of(rounder, values), np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.asarray(fmt.code_of(rounder, values * _column(inverse)), np.int32)
    words = codes.astype(np.uint8).view("<u4")
    units = fmt.units_of(rounder, [words[:, w] for w in range(words.shape[1])])
    out = np.empty((len(values), fmt.nbytes), np.uint8)
    for name, part in (("d", np.clip(scale, -65504, 65504).astype("<f2")), ("qs", np.stack(units, 1).astype("<u4"))):
        first = fmt.field(name).offset
        raw = np.ascontiguousarray(part.reshape(len(values), -1)).view(np.uint8)
        out[:, first : first + raw.shape[1]] = raw
    return out.reshape(len(rows), -1)
