"""Rotary positions, and the writing of keys and values to the cache."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.cells import store_key, store_value
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, byte_offset, cast, define, let, loop, when
from airkernels.cpu.vectors import for_vectors


@dataclass(frozen=True)
class RopeShape:
    """Which elements of each head rotate: the first `dim`, as neighbours ('normal') or as halves ('neox'); 0: none.

    A token's row of angles has `n_pairs` cosines, then as many sines: of all tables of the model, of which a kernel
    gets the address of its own.
    """

    n_heads: int
    dim: int
    mode: str
    n_pairs: int

    def pair(self, i: Expr) -> tuple[Expr, Expr]:
        """The elements that rotate together."""
        return (i * 2, i * 2 + 1) if self.mode == "normal" else (i, i + self.dim // 2)

    def rotate(self, angles: Expr, token: Expr, x: Region, out: Region) -> None:
        """Rotate one head of a token."""
        row = Region(byte_offset(angles, cast(token, "int64") * (8 * self.n_pairs)), "float32")
        with loop(self.dim // 2) as i:
            first, second = self.pair(i)
            a, b = let(x.load(first)), let(x.load(second))
            c, s = let(row.load(i)), let(row.load(i + self.n_pairs))
            out.store(first, a * c - b * s)
            out.store(second, a * s + b * c)


def _head(k: Kernel, pointer: int, token: Expr, stride: int, head: Expr, dim: int) -> Region:
    at = cast(token, "int64") * (4 * stride) + cast(head, "int64") * (4 * dim)
    return Region(byte_offset(k.pointers[pointer], at), "float32")


def rope(name: str, isa: VectorIsa, shape: RopeShape, head_dim: int, in_stride: int, out_stride: int) -> tirx.PrimFunc:
    """Rotate every head of a value. Tasks are (token, head). p0 x float32, p1 angles, p2 out float32."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as task:
            token, head = let(tirx.indexdiv(task, shape.n_heads)), let(tirx.indexmod(task, shape.n_heads))
            x, out = _head(k, 0, token, in_stride, head, head_dim), _head(k, 2, token, out_stride, head, head_dim)
            for_vectors(
                head_dim - shape.dim,
                isa,
                lambda at, lanes: out.store(at + shape.dim, x.load(at + shape.dim, lanes)),
            )
            shape.rotate(k.pointers[1], token, x, out)

    return define(name, body)


def rope_store(
    name: str, isa: VectorIsa, cache: CacheLayout, shape: RopeShape, q_stride: int, k_stride: int, v_stride: int
) -> tirx.PrimFunc:
    """Rotate queries in place; rotate keys and put keys and values into the cache.

    Tasks are (token, head), query heads before KV heads; KV heads only where nothing rotates. p0 q, p1 k, p2 v
    float32; p3 angles float32; p4 cache; p5 cells, p6 sequences, p7 block table int32.
    """
    query_heads = shape.n_heads if shape.dim else 0
    heads_per_token = query_heads + cache.n_kv_heads

    def body(k: Kernel) -> None:
        cells, sequences, table = (k.region(p, "int32") for p in (5, 6, 7))

        def store(token: Expr, head: Expr, keys: Region, values: Region) -> None:
            cell = let(cells.load(token))
            block = cache.block(k.pointers[4], table, sequences.load(token), tirx.indexdiv(cell, BLOCK_CELLS))
            place = let(tirx.indexmod(cell, BLOCK_CELLS))
            store_key(cache.keys_of(block, head), place, keys, cache, isa)
            store_value(cache.values_of(block, head), place, values, cache, isa)

        with loop(k.end, k.begin) as task:
            token, head = let(tirx.indexdiv(task, heads_per_token)), let(tirx.indexmod(task, heads_per_token))
            if query_heads:
                with when(head < query_heads):
                    q = _head(k, 0, token, q_stride, head, cache.head_dim)
                    shape.rotate(k.pointers[3], token, q, q)
            with when(head >= query_heads):
                kv_head = let(head - query_heads)
                keys = _head(k, 1, token, k_stride, kv_head, cache.head_dim)
                if shape.dim:
                    shape.rotate(k.pointers[3], token, keys, keys)
                store(token, kv_head, keys, _head(k, 2, token, v_stride, kv_head, cache.v_dim))

    return define(name, body)
