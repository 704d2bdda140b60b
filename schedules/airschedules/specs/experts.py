"""Products with chosen experts, and the rows they need."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import experts
from airkernels.cpu import route as route_kernels
from airkernels.cpu.experts import SumShape
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import define
from airkernels.cpu.route import RouteShape
from airkernels.cpu.row_order import RowOrder
from airschedules.specs.kernel import KernelSpec, Program
from airschedules.specs.products import BankSpec


@dataclass(frozen=True)
class ExpertMatmulSpec(BankSpec):
    """A product of rows sorted by expert."""

    order: RowOrder

    def build(self, isa: VectorIsa) -> Program:
        sort = experts.by_row if self.phase == "decode" else experts.by_expert
        return define(self.symbol, sort(self.bank, self.order, self.body(isa), self.matrix.bias))


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
