"""Kernels by description: what a plan needs, independent of the instruction set it is compiled for.

A spec names itself (`symbol`), and builds itself for an instruction set under the schedule that the
rules choose there. Equal specs are one kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from airkernels.cpu import attention as attention_kernels
from airkernels.cpu import elementwise, experts, matmul_float, matmul_int, norms, pack, read_probe, rows, streams
from airkernels.cpu import rope as rope_kernels
from airkernels.cpu import route as route_kernels
from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.attention import AttentionShape
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.elementwise import RowShape
from airkernels.cpu.experts import Bank, SumShape
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.cpu.norms import NormShape
from airkernels.cpu.panels import PanelLayout
from airkernels.cpu.program import Kernel, define
from airkernels.cpu.rope import RopeShape
from airkernels.cpu.route import RouteShape
from airkernels.cpu.row_order import RowOrder
from airkernels.cpu.streams import CombineShape
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
    def rate(self) -> str:
        """Name of the measured rate that prices it."""
        return self.op

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
        return define(self.symbol, self.body(isa))

    def body(self, isa: VectorIsa) -> Callable[[Kernel], None]:
        """What computes the product, without the function around it."""
        schedule = schedule_matmul(self.task, isa).schedule
        fmt = FORMATS[self.weights]
        if self.quantized:
            assert isinstance(fmt, BlockFormat)
            return matmul_int.product(isa, fmt, self.matrix, schedule)
        return matmul_float.product(isa, fmt, self.matrix, self.in_stride, schedule.tile)

    def scratch_nbytes(self, isa: VectorIsa) -> int:
        fmt = FORMATS[self.weights]
        if not self.quantized:
            return matmul_float.scratch_nbytes(fmt, self.matrix.n_cols)
        assert isinstance(fmt, BlockFormat)
        unpacks = schedule_matmul(self.task, isa).schedule.unpack_from > 0
        return matmul_int.scratch_nbytes(fmt, self.matrix.n_cols) if unpacks else 0

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        decision = schedule_matmul(self.task, isa)
        start = decision.schedule.unpack_from
        where = f"panels unpacked from {start} tokens on" if start else "panels decoded in registers"
        return f"tile of {decision.schedule.tile} tokens, {where}", decision.reason


@dataclass(frozen=True)
class BankSpec(MatmulSpec):
    """Base of products with one matrix of many; `matrix` is the shape of one."""

    @property
    def bank(self) -> Bank:
        """Where the matrices and their rows lie."""
        n = self.matrix.n_cols
        x_nbytes = QuantizedRow(n, self.matrix.digits).nbytes if self.quantized else 4 * self.x_stride
        return Bank(self.matrix.n_rows, PanelLayout(FORMATS[self.weights], n).nbytes, x_nbytes, self.y_stride)

    @property
    def x_stride(self) -> int:
        """Floats between neighbouring rows of float activations."""
        return self.in_stride

    @property
    def y_stride(self) -> int:
        """Floats between neighbouring rows of results."""
        return self.matrix.out_stride


@dataclass(frozen=True)
class ExpertMatmulSpec(BankSpec):
    """A product of rows sorted by expert."""

    order: RowOrder

    def build(self, isa: VectorIsa) -> Program:
        sort = experts.by_row if self.phase == "decode" else experts.by_expert
        return define(self.symbol, sort(self.bank, self.order, self.body(isa), self.matrix.bias))


@dataclass(frozen=True)
class HeadMatmulSpec(BankSpec):
    """A product of every head with its own matrix; rows of one head lie `n_heads` apart."""

    n_heads: int

    @property
    def x_stride(self) -> int:
        return self.in_stride // self.n_heads

    @property
    def y_stride(self) -> int:
        return self.matrix.out_stride // self.n_heads

    def build(self, isa: VectorIsa) -> Program:
        return define(self.symbol, experts.by_head(self.bank, self.body(isa)))


@dataclass(frozen=True)
class RouteSpec(KernelSpec):
    """Choosing experts."""

    route: RouteShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.route.n_experts, self.route.n_used)

    @property
    def rate(self) -> str:
        return "select"

    def build(self, isa: VectorIsa) -> Program:
        return route_kernels.route(self.symbol, isa, self.route)


@dataclass(frozen=True)
class SortByExpertSpec(KernelSpec):
    """The order of rows by expert."""

    order: RowOrder
    in_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.order.n_experts, self.order.n_used)

    @property
    def rate(self) -> str:
        return "select"

    def build(self, isa: VectorIsa) -> Program:
        return experts.sort_by_expert(self.symbol, self.order, self.in_stride)


@dataclass(frozen=True)
class DispatchSpec(KernelSpec):
    """Rows of tokens to sorted rows of experts."""

    order: RowOrder
    row_nbytes: int
    weight_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.row_nbytes // 4 * self.order.n_used,)

    @property
    def rate(self) -> str:
        return "select"

    def build(self, isa: VectorIsa) -> Program:
        return experts.dispatch(self.symbol, isa, self.order, self.row_nbytes, self.weight_stride)


@dataclass(frozen=True)
class SumExpertsSpec(KernelSpec):
    """Sums of the rows of each token."""

    order: RowOrder
    row: SumShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.row.n * self.order.n_used,)

    @property
    def rate(self) -> str:
        return "select"

    def build(self, isa: VectorIsa) -> Program:
        return experts.sum_experts(self.symbol, isa, self.order, self.row)


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
    """A norm of rows or of groups of their columns."""

    norm: NormShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.norm.n,)

    def build(self, isa: VectorIsa) -> Program:
        return norms.norm(self.symbol, isa, self.norm)


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
class ElementwiseSpec(KernelSpec):
    """Base of what works element by element."""

    row: RowShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.row.n,)

    @property
    def rate(self) -> str:
        return "gated"


@dataclass(frozen=True)
class GatedSpec(ElementwiseSpec):
    """A function of the gate times the other half; see `functions.gate`."""

    kind: str
    parameters: tuple[float, ...]

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.gated(self.symbol, isa, self.row, self.kind, self.parameters)


@dataclass(frozen=True)
class ActivationSpec(ElementwiseSpec):
    """A function of each element; see `functions.apply`."""

    kind: str
    parameters: tuple[float, ...]

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.activation(self.symbol, isa, self.row, self.kind, self.parameters)


@dataclass(frozen=True)
class AddSpec(ElementwiseSpec):
    """a + scale * b."""

    scale: float

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.add(self.symbol, isa, self.row, self.scale)


@dataclass(frozen=True)
class MultiplySpec(ElementwiseSpec):
    """a * b, where every element of b stands for `group` columns."""

    group: int

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.multiply(self.symbol, isa, self.row, self.group)


@dataclass(frozen=True)
class PositionScaleSpec(ElementwiseSpec):
    """Rows times a factor that grows with their position."""

    period: int
    strength: float

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.scale_by_position(self.symbol, isa, self.row, self.period, self.strength)


@dataclass(frozen=True)
class JoinSpec(ElementwiseSpec):
    """Columns of one or two inputs side by side; so many rows of the result have the same row of an input."""

    widths: tuple[int, ...]
    slots: tuple[int, ...]

    def build(self, isa: VectorIsa) -> Program:
        return elementwise.join(self.symbol, isa, self.row, self.widths, self.slots)


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
class CombineSpec(KernelSpec):
    """A sum of streams by coefficients of the row."""

    combine: CombineShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.combine.n,)

    @property
    def rate(self) -> str:
        return "gated"

    def build(self, isa: VectorIsa) -> Program:
        return streams.combine(self.symbol, isa, self.combine)


@dataclass(frozen=True)
class MatchSizeSpec(KernelSpec):
    """Rows scaled to the size of others."""

    n: int
    in_stride: int
    target_stride: int
    out_stride: int
    least: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def rate(self) -> str:
        return "norm"

    def build(self, isa: VectorIsa) -> Program:
        strides = (self.in_stride, self.target_stride, self.out_stride)
        return streams.match_size(self.symbol, isa, self.n, *strides, self.least)


@dataclass(frozen=True)
class CutOffSpec(KernelSpec):
    """What lies some deviations above the mean of its row."""

    n: int
    in_stride: int
    out_stride: int
    deviations: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def rate(self) -> str:
        return "norm"

    def build(self, isa: VectorIsa) -> Program:
        return streams.cut_off(self.symbol, isa, self.n, self.in_stride, self.out_stride, self.deviations)


@dataclass(frozen=True)
class RopeSpec(KernelSpec):
    """Rotation of the heads of a value."""

    rope: RopeShape
    head_dim: int
    in_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rope.n_heads * self.head_dim,)

    @property
    def rate(self) -> str:
        return "ropestore"

    def build(self, isa: VectorIsa) -> Program:
        strides = (self.in_stride, self.out_stride)
        return rope_kernels.rope(self.symbol, isa, self.rope, self.head_dim, *strides)


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
        return rope_kernels.rope_store(self.symbol, isa, self.cache, self.rope, *self.strides)


@dataclass(frozen=True)
class AttentionSpec(KernelSpec):
    """Attention over the cache; `group` tokens a task. The last fields as in ``AttentionShape``."""

    cache: CacheLayout
    n_heads: int
    scale: float
    q_stride: int
    out_stride: int
    group: int
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_heads, self.cache.n_kv_heads, self.cache.head_dim)

    def _shape(self, isa: VectorIsa) -> AttentionShape:
        return AttentionShape(
            self.n_heads,
            self.scale,
            self.q_stride,
            self.out_stride,
            self.group,
            min(self.group, isa.registers // 4),
            self.window,
            self.chunk,
            self.softcap,
            self.alibi,
            self.sinks,
        )

    def build(self, isa: VectorIsa) -> Program:
        return attention_kernels.attention(self.symbol, isa, self.cache, self._shape(isa))

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        return f"tile {self._shape(isa).tile} tokens, blocks of {BLOCK_CELLS} cells", "online softmax by blocks"


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
