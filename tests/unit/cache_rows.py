"""Rows of keys and values as a cache of the processor holds them, by what is written about its layout alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from kernel_harness import Bytes, Doubles, Floats

from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout


def as_rows(fmt: str, values: Floats) -> Bytes:
    """Rows in a format, float32 [..., n] to uint8 [..., bytes of a row]: gguf's own rounding."""
    if fmt in ("F32", "F16"):
        limited = values if fmt == "F32" else np.clip(values, -65504, 65504).astype("<f2")
        return np.ascontiguousarray(limited).view(np.uint8)
    return quants.quantize(np.ascontiguousarray(values, np.float32), GGMLQuantizationType[fmt])


def as_floats(fmt: str, rows: Bytes) -> Doubles:
    return quants.dequantize(rows, GGMLQuantizationType[fmt]).astype(np.float64)


def is_spread(fmt: str) -> bool:
    """Whether rows of a format hold heads multiplied by `hadamard`."""
    return fmt not in ("F32", "F16")


def hadamard(n: int) -> Doubles:
    """Sylvester's matrices on the diagonal of [n, n], as large as powers of two up to 64 divide n; orthonormal."""
    size = next(size for size in (64, 32) if n % size == 0)
    block = np.ones((1, 1))
    while len(block) < size:
        block = np.kron(np.array([[1, 1], [1, -1]]), block)
    return np.kron(np.eye(n // size), block) / np.sqrt(size)


UNITS = {"F32": [4], "F16": [2], "Q8_0": [2, *[4] * 8], "Q4_0": [2, *[4] * 4]}
"""Bytes of the units of a block of each format."""


def units_of(fmt: str, nbytes: int) -> list[tuple[int, int]]:
    """First byte and size of every unit of a row of so many bytes."""
    sizes = UNITS[fmt] * (nbytes // sum(UNITS[fmt]))
    return [(sum(sizes[:i]), unit) for i, unit in enumerate(sizes)]


def key_rows(c: CacheLayout, planes: Bytes) -> Bytes:
    """Rows of the keys of heads, uint8 [..., bytes of a plane] to [..., cells, bytes of a row]."""
    shape = (*planes.shape[:-1], BLOCK_CELLS)
    parts = [
        planes[..., at * BLOCK_CELLS : (at + unit) * BLOCK_CELLS].reshape(*shape, unit)
        for at, unit in units_of(c.keys, c.key_nbytes)
    ]
    return np.concatenate(parts, axis=-1)


def key_planes(c: CacheLayout, rows: Bytes) -> Bytes:
    """The inverse of `key_rows`."""
    units = units_of(c.keys, c.key_nbytes)
    return np.concatenate([rows[..., at : at + unit].reshape(*rows.shape[:-2], -1) for at, unit in units], axis=-1)


def read_rows(c: CacheLayout, cache: Bytes, table: Any, n_cells: int) -> tuple[Bytes, Bytes]:
    """Rows of keys and values [n_cells, heads, bytes] of one sequence, read as the plan format describes a block."""
    planes = cache.reshape(-1, c.n_kv_heads, c.plane_nbytes)[table]
    keys, values = np.split(planes, [c.key_nbytes * BLOCK_CELLS], axis=2)
    rows = key_rows(c, keys), values.reshape(*values.shape[:2], BLOCK_CELLS, -1)
    keys, values = (x.transpose(0, 2, 1, 3).reshape(-1, c.n_kv_heads, x.shape[3]) for x in rows)
    return keys[:n_cells].copy(), values[:n_cells].copy()


def read_cache(c: CacheLayout, cache: Bytes, table: Any, n_cells: int) -> tuple[Doubles, Doubles]:
    """Keys and values [n_cells, heads, head_dim] of one sequence."""
    keys, values = read_rows(c, cache, table, n_cells)
    return as_heads(c.keys, keys), as_heads(c.values, values)


def as_heads(fmt: str, rows: Bytes) -> Doubles:
    """What rows stand for, uint8 [..., bytes of a row] to [..., n]."""
    found = as_floats(fmt, rows)
    return found @ hadamard(found.shape[-1]) if is_spread(fmt) else found


def filled_blocks(c: CacheLayout, n_blocks: int, rng: np.random.Generator) -> Bytes:
    """Blocks full of large finite leftovers of other sequences."""
    shape = (n_blocks, c.n_kv_heads, BLOCK_CELLS)
    keys, values = (
        as_rows(fmt, rng.choice(np.array([-6e4, 6e4, 1.0], np.float32), (*shape, n)))
        for fmt, n in ((c.keys, c.head_dim), (c.values, c.v_dim))
    )
    return np.concatenate([key_planes(c, keys), values.reshape(*shape[:2], -1)], axis=-1)
