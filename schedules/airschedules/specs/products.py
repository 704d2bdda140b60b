"""Products with matrices in panels, and their packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airkernels.cpu import experts, matmul_float, matmul_int, pack
from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.experts import Bank
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.cpu.panels import PanelLayout
from airkernels.cpu.program import Kernel, define
from airkernels.formats import FORMATS, BlockFormat
from airschedules.records import MatmulTask
from airschedules.rules import schedule_matmul
from airschedules.specs.kernel import KernelSpec, Program


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
        return MatmulTask(self.weights, self.matrix.n_cols, self.phase, digits)

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
        return matmul_int.scratch_nbytes(isa, fmt, self.matrix.n_cols) if unpacks else 0

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
