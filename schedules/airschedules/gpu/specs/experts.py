"""Kernels of mixtures of experts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from airkernels.cpu.row_order import RowOrder
from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton import experts, route
from airkernels.triton.build import Constants
from airkernels.triton.layout import MatrixLayout, padded
from airschedules.gpu.rules import ProductConfig, schedule_expert_gemm
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec
from airschedules.gpu.specs.products import ProductSpec
from airschedules.gpu.specs.rows import power, row_warps

_TILE = 256
"""Columns per program."""


@dataclass(frozen=True)
class RouteSpec(DeviceSpec):
    """The best experts of each token (``aircompile.operators.Route``), `bias` and `scales` given or not; words between
    rows of logits, numbers and weights. Extents: tokens."""

    n_experts: int
    n_used: int
    softmax: bool
    normalize: bool
    scale: float
    bias: bool
    scales: bool
    n_groups: int
    n_groups_used: int
    group_best: int
    strides: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_experts, self.n_used)

    def schedule(self, arch: str) -> DeviceSchedule:
        logits, numbers, weights = self.strides
        constants: Constants = {
            "N_EXPERTS": self.n_experts,
            "N_USED": self.n_used,
            "SOFTMAX": self.softmax,
            "NORMALIZE": self.normalize,
            "SCALE": self.scale,
            "BIAS": self.bias,
            "SCALES": self.scales,
            "N_GROUPS": self.n_groups,
            "N_GROUPS_USED": self.n_groups_used,
            "GROUP_BEST": self.group_best,
            "IN_STRIDE": logits,
            "NUMBERS_STRIDE": numbers,
            "WEIGHTS_STRIDE": weights,
            "WIDTH": power(self.n_experts),
            "SLOTS": power(self.n_used),
            "GROUPS": power(self.n_groups),
        }
        types = ("*fp32", "*fp32", "*fp32", "*i32", "*fp32")
        return DeviceSchedule(route.route, types, constants, (1,), row_warps(power(self.n_experts)))


@dataclass(frozen=True)
class SortByExpertSpec(DeviceSpec):
    """The order of rows by expert. Extents: experts."""

    order: RowOrder
    stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.order.n_experts, self.order.n_used)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N_EXPERTS": self.order.n_experts, "N_USED": self.order.n_used, "STRIDE": self.stride}
        constants |= {"EXPERTS_AT": self.order.experts(0), "TILE": 1024}
        return DeviceSchedule(experts.sort_by_expert, ("*i32", "*i32", "i32"), constants, (1,), 4)


@dataclass(frozen=True)
class DispatchSpec(DeviceSpec):
    """Rows of tokens to their sorted places, weighed unless `weight_stride` is 0. Extents: rows, words."""

    n_used: int
    n_words: int
    weight_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_words, self.n_used)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N_USED": self.n_used, "N_WORDS": self.n_words, "WEIGHT_STRIDE": self.weight_stride}
        constants |= {"TILE": 1024}
        types = ("*u32", "*i32", "*fp32", "*u32", "i32")
        return DeviceSchedule(experts.dispatch, types, constants, (1, 1024), 4)


@dataclass(frozen=True)
class SumExpertsSpec(DeviceSpec):
    """Sums of the rows of tokens, weighed unless `weight_stride` is 0. Extents: tokens, columns."""

    n_used: int
    n: int
    in_stride: int
    weight_stride: int
    out_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, self.n_used)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N_USED": self.n_used, "N": self.n, "TILE": _TILE}
        constants |= {"IN_STRIDE": self.in_stride, "WEIGHT_STRIDE": self.weight_stride, "OUT_STRIDE": self.out_stride}
        types = ("*fp32", "*i32", "*fp32", "*fp32", "i32")
        return DeviceSchedule(experts.sum_experts, types, constants, (1, _TILE), 2)


@dataclass(frozen=True)
class ExpertProductSpec(ProductSpec):
    """A product of every sorted row with the matrix of its expert, of `n_rows` rows. Extents: matrix rows, rows."""

    def configured(self, config: ProductConfig) -> DeviceSchedule:
        plain, fmt = super().configured(config), FORMATS[self.weights]
        if not isinstance(fmt, BlockFormat):
            types = (*plain.types[:2], "*i32", *plain.types[2:])
            return dataclasses.replace(plain, kernel=experts.expert_product_float, types=types)
        layout = MatrixLayout(fmt, self.n_rows, self.n_cols)
        units = self.n_rows * padded(layout.n_blocks)
        constants = {**plain.constants, "WORDS": units * layout.n_words, "HALVES": units * layout.n_halves}
        types = (*plain.types[:3], "*i32", *plain.types[3:])
        return dataclasses.replace(plain, kernel=experts.expert_product, types=types, constants=constants)


@dataclass(frozen=True)
class ExpertGemmSpec(DeviceSpec):
    """Products of the sorted rows of experts from number `first` on, on tensor cores. Extents: matrix rows, experts."""

    kind: str
    first: int
    n_rows: int
    k: int
    x_nbytes: int
    out_stride: int
    bias: bool

    @property
    def fmt(self) -> str:
        return self.kind

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, self.k)

    def schedule(self, arch: str) -> DeviceSchedule:
        config = schedule_expert_gemm(self.kind)
        half = self.kind == "f16"
        constants: Constants = {
            "FIRST": self.first,
            "N_ROWS": self.n_rows,
            "K": self.k,
            "X_STRIDE": self.x_nbytes // (2 if half else 4),
            "OUT_STRIDE": self.out_stride,
            "SCALE_AT": padded(self.k) // 2 if half else -1,
            "BIAS": self.bias,
            "TOKENS": config.tokens,
            "ROWS": config.rows,
            "DEPTH": config.depth,
        }
        element = "*fp16" if half else "*fp32"
        types = (element, element, "*i32", "*fp32", "*fp32")
        tiles = (config.rows, 1)
        return DeviceSchedule(experts.expert_gemm, types, constants, tiles, config.warps, config.stages, config.reason)
