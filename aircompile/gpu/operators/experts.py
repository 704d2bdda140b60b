"""Mixtures of experts: routing, the order of rows by expert, products with the chosen matrices, sums."""

from __future__ import annotations

from aircompile.gpu.calls import Axis, DeviceMatrix
from aircompile.gpu.lowering import DeviceLowering, lowers
from aircompile.gpu.operators.products import UNPACKED_NBYTES, unpacked
from aircompile.graph import Operator
from aircompile.lowering import Pointer
from aircompile.operators import Dispatch, ExpertMatMul, Route, SortByExpert, SumExperts
from airkernels.cpu.row_order import RowOrder
from airschedules.gpu.specs import (
    DispatchSpec,
    ExpertGemmSpec,
    ExpertProductSpec,
    RouteSpec,
    RowKind,
    SortByExpertSpec,
    SumExpertsSpec,
    UnpackSpec,
)


@lowers(Route, "scale bias n_groups n_groups_used group_best scales")
def _route(low: DeviceLowering, operator: Operator, op: Route) -> None:
    (logits,), (numbers, weights) = operator.inputs, operator.outputs
    spec = RouteSpec(
        n_experts=low.graph.values[logits].width,
        n_used=op.n_used,
        softmax=op.scores == "softmax",
        normalize=op.normalize,
        scale=op.scale,
        bias=op.bias is not None,
        scales=op.scales is not None,
        n_groups=op.n_groups,
        n_groups_used=op.n_groups_used,
        group_best=op.group_best,
        strides=(low.stride_of(logits), low.stride_of(numbers), low.stride_of(weights)),
    )
    x = low.value(logits)
    pointers = [x, low.vector_or(op.bias, x), low.vector_or(op.scales, x), low.value(numbers), low.value(weights)]
    low.emit(operator, spec, [low.rows(logits)], pointers)


@lowers(SortByExpert)
def _sort(low: DeviceLowering, operator: Operator, op: SortByExpert) -> None:
    (numbers,), (out,) = operator.inputs, operator.outputs
    chosen = low.graph.values[numbers]
    spec = SortByExpertSpec(RowOrder(op.n_experts, chosen.width), low.stride_of(numbers))
    low.emit(operator, spec, [Axis(0, "fixed", op.n_experts)], [low.value(numbers), low.value(out)], [chosen.rows])


def _experts_of(low: DeviceLowering, order: str, rows: RowOrder) -> Pointer:
    """The experts of sorted rows; sources and places follow them."""
    start = low.value(order)
    return Pointer(start.space, start.name, start.offset + 4 * rows.experts(0))


def _weigh(low: DeviceLowering, weights: list[str], nothing: Pointer) -> tuple[Pointer, int]:
    """The weights, if there are any, and floats between their rows."""
    return (low.value(weights[0]), low.stride_of(weights[0])) if weights else (nothing, 0)


@lowers(Dispatch)
def _dispatch(low: DeviceLowering, operator: Operator, op: Dispatch) -> None:
    (source, order, *weights), (out,) = operator.inputs, operator.outputs
    x = low.value(source)
    assert low.kind(source) == low.kind(out) and low.stride_of(source) == low.stride_of(out)
    weight, weight_stride = _weigh(low, weights, x)
    n_words = low.stride_of(source)
    spec = DispatchSpec(op.n_used, n_words, weight_stride)
    pointers = [x, _experts_of(low, order, RowOrder(op.n_experts, op.n_used)), weight, low.value(out)]
    low.emit(operator, spec, [low.rows(out), Axis(1, "fixed", n_words)], pointers, [low.graph.values[out].rows])


@lowers(SumExperts)
def _sum(low: DeviceLowering, operator: Operator, op: SumExperts) -> None:
    (source, order, *weights), (out,) = operator.inputs, operator.outputs
    found, x = low.graph.values[source], low.value(source)
    weight, weight_stride = _weigh(low, weights, x)
    spec = SumExpertsSpec(found.slots, found.width, low.stride_of(source), weight_stride, low.stride_of(out))
    pointers = [x, _experts_of(low, order, RowOrder(op.n_experts, found.slots)), weight, low.value(out)]
    low.emit(operator, spec, [low.rows(out), Axis(1, "fixed", found.width)], pointers, [found.rows])


@lowers(ExpertMatMul, "bias")
def _expert_matmul(low: DeviceLowering, operator: Operator, op: ExpertMatMul) -> None:
    bank = low.matrix((op.weight,), operator.layer)
    (_many_rows if low.many(operator.inputs[0]) else _few_rows)(low, operator, op, bank)


def _few_rows(low: DeviceLowering, operator: Operator, op: ExpertMatMul, bank: DeviceMatrix) -> None:
    (source, order), (out,) = operator.inputs, operator.outputs
    value, n_rows = low.graph.values[source], low.graph.values[out].width
    kind = RowKind("f32" if value.dtype == "float32" else value.dtype, bank.n_cols, bank.layout.fmt.block)
    x, target = low.rows_as(operator, source, kind), low.value(out)
    spec = ExpertProductSpec(bank.fmt, n_rows, bank.n_cols, kind.kind, low.stride_of(out), False, op.bias is not None)
    experts = _experts_of(low, order, RowOrder(op.n_experts, value.slots))
    pointers = [*low.planes(bank), x, experts, low.vector_or(op.bias, target), target]
    low.emit(operator, spec, [Axis(0, "fixed", n_rows), Axis(1, value.rows, value.slots)], pointers)


def _many_rows(low: DeviceLowering, operator: Operator, op: ExpertMatMul, bank: DeviceMatrix) -> None:
    (source, order), (out,) = operator.inputs, operator.outputs
    n_rows, target = low.graph.values[out].width, low.value(out)
    kind = low.batch_kind(source, bank)
    x = low.rows_as(operator, source, kind)
    k, itemsize = bank.layout.unpacked_cols, 2 if kind.kind == "f16" else 4
    direct = bank.fmt == ("F16" if kind.kind == "f16" else "F32")
    most = op.n_experts if direct else max(UNPACKED_NBYTES // (n_rows * k * itemsize), 1)
    for first in range(0, op.n_experts, most):
        n = min(most, op.n_experts - first)
        weights = low.planes(bank, first * n_rows)[0]
        if not direct:
            weights = low.scratch_for("unpacked", n * n_rows * k * itemsize)
            unpack = UnpackSpec(bank.fmt, n * n_rows, bank.n_cols, kind.kind)
            low.emit(operator, unpack, unpacked(bank, n * n_rows), [*low.planes(bank, first * n_rows), weights])
        spec = ExpertGemmSpec(kind.kind, first, n_rows, k, kind.layout.nbytes, low.stride_of(out), op.bias is not None)
        pointers = [weights, x, low.value(order), low.vector_or(op.bias, target), target]
        low.emit(operator, spec, [Axis(0, "fixed", n_rows), Axis(1, "fixed", n)], pointers)
