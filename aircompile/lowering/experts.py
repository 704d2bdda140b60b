"""Mixtures of experts: routing, the order of rows by expert, products with the chosen matrices, sums."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, lowers
from aircompile.lowering.products import bank_weight
from aircompile.operators import Dispatch, ExpertMatMul, Route, SortByExpert, SumExperts
from airkernels.cpu.experts import SumShape
from airkernels.cpu.isa import PANEL
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.cpu.route import RouteShape
from airkernels.cpu.row_order import RowOrder
from airschedules.specs import DispatchSpec, ExpertMatmulSpec, RouteSpec, SortByExpertSpec, SumExpertsSpec

_CHUNK = 256
"""Columns of a sum per task."""


@lowers(Route)
def _route(low: Lowering, operator: Operator, op: Route) -> None:
    (logits,), (numbers, weights) = operator.inputs, operator.outputs
    shape = RouteShape(
        n_experts=low.graph.values[logits].width,
        n_used=op.n_used,
        softmax=op.scores == "softmax",
        normalize=op.normalize,
        scale=op.scale,
        bias=op.bias is not None,
        n_groups=op.n_groups,
        n_groups_used=op.n_groups_used,
        group_best=op.group_best,
        scales=op.scales is not None,
        in_stride=low.stride_of(logits),
        numbers_stride=low.stride_of(numbers),
        weights_stride=low.stride_of(weights),
    )
    pointers = {0: low.value(logits), 2: low.value(numbers), 3: low.value(weights)}
    pointers |= {i: low.vector(name) for i, name in ((1, op.bias), (4, op.scales)) if name is not None}
    low.emit(operator, RouteSpec(shape), pointers)


@lowers(SortByExpert)
def _sort(low: Lowering, operator: Operator, op: SortByExpert) -> None:
    (numbers,), (out,) = operator.inputs, operator.outputs
    order = RowOrder(op.n_experts, low.graph.values[numbers].width)
    spec = SortByExpertSpec(order, low.stride_of(numbers))
    low.emit(operator, spec, {0: low.value(numbers), 2: low.value(out)}, tokens_per_task=0)


@lowers(Dispatch)
def _dispatch(low: Lowering, operator: Operator, op: Dispatch) -> None:
    source, order, *weights = operator.inputs
    out = operator.outputs[0]
    pointers = {0: low.value(source), 1: low.value(order), 2: low.value(out)}
    weight_stride = _weigh(low, weights, pointers)
    spec = DispatchSpec(RowOrder(op.n_experts, op.n_used), low.row_nbytes(source), weight_stride)
    low.emit(operator, spec, pointers, tasks=op.n_used)


def _weigh(low: Lowering, weights: list[str], pointers: dict[int, Pointer]) -> int:
    """Point to the weights, if there are any; returns the floats between their rows, or 0."""
    if not weights:
        return 0
    pointers[3] = low.value(weights[0])
    return low.stride_of(weights[0])


@lowers(ExpertMatMul)
def _expert_matmul(low: Lowering, operator: Operator, op: ExpertMatMul) -> None:
    (source, order), (out,) = operator.inputs, operator.outputs
    x, y = low.graph.values[source], low.graph.values[out]
    digits = low.digits(source)
    weight = bank_weight(low, operator, op.weight)
    shape = MatmulShape(y.width, x.width, low.stride_of(out), bias=op.bias is not None, digits=max(digits, 1))
    in_stride = 0 if digits else low.stride_of(source)
    rows = RowOrder(op.n_experts, x.slots)
    spec = ExpertMatmulSpec(low.format(op.weight), shape, in_stride, digits > 0, low.phase, rows)
    pointers = {0: Pointer("weight", weight.name), 1: low.value(source), 2: low.value(out), 4: low.value(order)}
    pointers |= {5: Pointer("experts", weight.name), 7: Pointer("scratch")}
    if op.bias is not None:
        pointers[3] = low.vector(op.bias)
    # of one token, only the panels of its experts are tasks; of many, most experts have some rows
    decode = low.phase == "decode"
    tasks = (x.slots if decode else op.n_experts) * y.width // PANEL
    low.emit(operator, spec, pointers, tasks=tasks, tokens_per_task=1 if decode else 0)


@lowers(SumExperts)
def _sum(low: Lowering, operator: Operator, op: SumExperts) -> None:
    source, order, *weights = operator.inputs
    out = operator.outputs[0]
    x = low.graph.values[source]
    pointers = {0: low.value(source), 1: low.value(order), 2: low.value(out)}
    weight_stride = _weigh(low, weights, pointers)
    row = SumShape(x.width, low.stride_of(source), weight_stride, low.stride_of(out), _CHUNK)
    spec = SumExpertsSpec(RowOrder(op.n_experts, x.slots), row)
    low.emit(operator, spec, pointers, tasks=-(-x.width // _CHUNK))
