"""Products with matrices in panels."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.calls import PanelWeight, Pointer
from aircompile.lowering.lowering import Lowering, lowers
from aircompile.operators import HeadMatMul, MatMul
from airkernels.cpu.isa import PANEL
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS
from airrun.errors import UnsupportedError
from airschedules.specs import HeadMatmulSpec, MatmulSpec, PackSpec


@lowers(HeadMatMul)
def _head_matmul(low: Lowering, operator: Operator, op: HeadMatMul) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    slots, n_rows = low.graph.values[out].slots, low.graph.values[out].width
    fmt, n_cols = low.format(op.weight), low.graph.values[source].width
    digits = low.digits(source)
    weight = bank_weight(low, operator, op.weight)
    strides = (slots * low.stride_of(source), slots * low.stride_of(out))
    shape = MatmulShape(n_rows, n_cols, strides[1], digits=max(digits, 1), step=slots)
    spec = HeadMatmulSpec(fmt, shape, 0 if digits else strides[0], digits > 0, low.phase, slots)
    pointers = {0: Pointer("weight", weight.name), 1: low.value(source), 2: low.value(out), 7: Pointer("scratch")}
    low.emit(operator, spec, pointers, tasks=slots * n_rows // PANEL, tokens_per_task=0)


def bank_weight(low: Lowering, operator: Operator, tensor: str) -> PanelWeight:
    """A tensor of several matrices as one weight, in which each begins a panel."""
    _n, n_rows, n_cols = low.graph.weights[tensor].shape
    if n_rows % PANEL:
        raise UnsupportedError(
            f"tensor {tensor}: matrices of {n_rows} rows are not supported, only multiples of {PANEL}"
        )
    weight = PanelWeight((tensor,), operator.layer, PackSpec(low.format(tensor), n_cols))
    low.weights[weight.name] = weight
    return weight


@lowers(MatMul)
def _matmul(low: Lowering, operator: Operator, op: MatMul) -> None:
    graph, source, out = low.graph, operator.inputs[0], operator.outputs[0]
    fmt = low.format(op.weights[0])
    n_cols = graph.values[source].width
    digits = low.digits(source)
    weight = PanelWeight(op.weights, operator.layer, PackSpec(fmt, n_cols))
    low.weights[weight.name] = weight
    if op.accumulate:
        low.alias(out, operator.inputs[1])
    panel_nbytes = PanelLayout(FORMATS[fmt], n_cols).nbytes
    members = op.members(graph.weights)
    # One call does all members at once, unless biases (a tensor each) keep them apart.
    pieces = [(first, stop, bias) for (_n, first, stop), bias in zip(members, op.biases, strict=True)]
    if not any(op.biases):
        pieces = [(0, members[-1][2], None)]
    for i, (first, stop, bias) in enumerate(pieces):
        shape = MatmulShape(stop - first, n_cols, low.stride_of(out), op.accumulate, bias is not None, max(digits, 1))
        spec = MatmulSpec(fmt, shape, 0 if digits else low.stride_of(source), digits > 0, low.phase)
        pointers = {
            0: Pointer("weight", weight.name, first // PANEL * panel_nbytes),
            1: low.value(source),
            2: low.value(out, first),
            7: Pointer("scratch"),
        }
        if bias is not None:
            pointers[3] = low.vector(bias)
        tasks = -(-(stop - first) // PANEL)
        low.emit(operator, spec, pointers, tasks=tasks, tokens_per_task=0, sync=i == len(pieces) - 1)
