"""Kernels by description: what a plan needs, independent of the instruction set it is compiled for.

A spec names itself (`symbol`), and builds itself for an instruction set under the schedule that the
rules choose there. Equal specs are one kernel.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import Any

from airkernels.cpu import attention as attention_kernels
from airkernels.cpu import matmul_float, matmul_int, pack, read_probe, rows
from airkernels.cpu.attention import AttentionShape, CacheLayout, RopeShape
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.matmul_int import MatmulShape, UnpackedPanel
from airkernels.formats import FORMATS, BlockFormat
from airschedules.records import MatmulTask
from airschedules.rules import schedule_matmul

Program = Any
"""A TVM PrimFunc."""


@dataclass(frozen=True)
class KernelSpec:
    """Base: `op`, `fmt` and `shape` are what people read; the symbol also digests every other field."""

    @property
    def op(self) -> str:
        return type(self).__name__.removesuffix("Spec").lower()

    @property
    def fmt(self) -> str:
        return ""

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def symbol(self) -> str:
        digest = hashlib.sha256(repr((self.op, astuple(self))).encode()).hexdigest()[:8]
        parts = [self.op, self.fmt.lower(), "x".join(map(str, self.shape)), digest]
        return "_".join(p for p in parts if p)

    def build(self, isa: VectorIsa) -> Program:
        raise NotImplementedError

    def scratch_nbytes(self, isa: VectorIsa) -> int:
        """Scratch bytes a worker needs."""
        return 0

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        """The schedule in words, and why."""
        return "", ""


@dataclass(frozen=True)
class MatmulSpec(KernelSpec):
    """A product of a matrix in panels; `in_stride` matters to float activations only."""

    weights: str
    matrix: MatmulShape
    in_stride: int
    quantized: bool
    phase: str

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.matrix.n_rows, self.matrix.n_cols)

    @property
    def symbol(self) -> str:
        return f"{self.phase}_{super().symbol}"

    @property
    def task(self) -> MatmulTask:
        digits = self.matrix.digits if self.quantized else 0
        return MatmulTask(self.weights, self.matrix.n_rows, self.matrix.n_cols, self.phase, digits)

    def build(self, isa: VectorIsa) -> Program:
        schedule = schedule_matmul(self.task, isa).schedule
        fmt = FORMATS[self.weights]
        if self.quantized:
            assert isinstance(fmt, BlockFormat)
            return matmul_int.matmul_int(self.symbol, isa, fmt, self.matrix, schedule)
        return matmul_float.matmul_float(self.symbol, isa, fmt, self.matrix, self.in_stride, schedule.tile)

    def scratch_nbytes(self, isa: VectorIsa) -> int:
        fmt = FORMATS[self.weights]
        if not self.quantized:
            return matmul_float.scratch_nbytes(fmt, self.matrix.n_cols)
        assert isinstance(fmt, BlockFormat)
        unpacks = schedule_matmul(self.task, isa).schedule.unpack_from > 0
        return UnpackedPanel.nbytes(fmt, self.matrix.n_cols) if unpacks else 0

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        decision = schedule_matmul(self.task, isa)
        start = decision.schedule.unpack_from
        where = f"panels unpacked from {start} tokens on" if start else "panels decoded in registers"
        return f"tile of {decision.schedule.tile} tokens, {where}", decision.reason


@dataclass(frozen=True)
class PackSpec(KernelSpec):
    """Interleaving rows into panels."""

    weights: str
    n_cols: int

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_cols,)

    def build(self, isa: VectorIsa) -> Program:
        return pack.pack(self.symbol, FORMATS[self.weights], self.n_cols)


@dataclass(frozen=True)
class GatherSpec(KernelSpec):
    """Rows of an embedding table."""

    weights: str
    n: int
    out_stride: int

    @property
    def fmt(self) -> str:
        return self.weights

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.gather_rows(self.symbol, isa, FORMATS[self.weights], self.n, self.out_stride)


@dataclass(frozen=True)
class NormSpec(KernelSpec):
    """Root-mean-square norm."""

    n: int
    in_stride: int
    out_stride: int
    eps: float
    digits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.rms_norm(self.symbol, isa, self.n, self.in_stride, self.out_stride, self.eps, self.digits)


@dataclass(frozen=True)
class QuantizeSpec(KernelSpec):
    """Rounding rows to bytes."""

    n: int
    in_stride: int
    digits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.quantize_rows(self.symbol, isa, self.n, self.in_stride, self.digits)


@dataclass(frozen=True)
class GatedSpec(KernelSpec):
    """SiLU of the gate times the other half."""

    n: int
    gate_stride: int
    up_stride: int
    out_stride: int
    chunk: int
    digits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        strides = (self.gate_stride, self.up_stride, self.out_stride)
        return rows.gated_silu(self.symbol, isa, self.n, *strides, self.chunk, self.digits)


@dataclass(frozen=True)
class SelectSpec(KernelSpec):
    """Copying the output rows of a batch."""

    n: int
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def build(self, isa: VectorIsa) -> Program:
        return rows.select_rows(self.symbol, isa, self.n, self.in_stride, self.out_stride)


@dataclass(frozen=True)
class RopeStoreSpec(KernelSpec):
    """Rotation of queries and keys, and the write to the cache."""

    cache: CacheLayout
    rope: RopeShape
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rope.n_heads, self.cache.n_kv_heads, self.cache.head_dim)

    def build(self, isa: VectorIsa) -> Program:
        return attention_kernels.rope_store(self.symbol, isa, self.cache, self.rope, *self.strides)


@dataclass(frozen=True)
class AttentionSpec(KernelSpec):
    """Attention over the cache; `group` tokens a task."""

    cache: CacheLayout
    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_heads, self.cache.n_kv_heads, self.cache.head_dim)

    def _shape(self, isa: VectorIsa) -> AttentionShape:
        tile = min(self.group, isa.registers // 4)
        return AttentionShape(self.n_heads, self.scale, self.q_stride, self.out_stride, self.group, tile)

    def build(self, isa: VectorIsa) -> Program:
        return attention_kernels.attention(self.symbol, isa, self.cache, self._shape(isa))

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        shape = self._shape(isa)
        return f"tile {shape.tile} tokens, blocks of {attention_kernels.BLOCK_CELLS} cells", "online softmax by blocks"


@dataclass(frozen=True)
class ReadProbeSpec(KernelSpec):
    """Reading memory, for `airrun bench`; every plan has it under one name."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (read_probe.PIECE,)

    @property
    def symbol(self) -> str:
        return "air_read_probe"

    def build(self, isa: VectorIsa) -> Program:
        return read_probe.read_probe(self.symbol, isa)
