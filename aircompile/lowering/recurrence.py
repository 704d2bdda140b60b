"""Operators with a state."""

from __future__ import annotations

from aircompile.graph import Operator
from aircompile.lowering.calls import Pointer
from aircompile.lowering.lowering import Lowering, input_array, lowers
from aircompile.operators import CausalConvolution, LinearAttention, SelectiveScan, TokenShift
from airkernels.cpu.linear_attention import LinearAttentionShape
from airkernels.cpu.recurrence import ConvolutionShape, ScanShape
from airschedules.specs import ConvolutionSpec, LinearAttentionSpec, ScanSpec, TokenShiftSpec


def _state(operator: Operator, first: int) -> dict[int, Pointer]:
    """Pointers to the states, and to the slots of the tokens."""
    return {first: Pointer("state", operator.name), first + 1: input_array("state_slots")}


@lowers(TokenShift)
def _token_shift(low: Lowering, operator: Operator, op: TokenShift) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    shape = ConvolutionShape(op.width, 2, False, low.stride_of(x), low.stride_of(out))
    pointers = {0: low.value(x), 1: low.value(out)} | _state(operator, 2)
    low.emit(operator, TokenShiftSpec(shape), pointers, tasks=shape.tasks, tokens_per_task=0)


@lowers(CausalConvolution)
def _convolution(low: Lowering, operator: Operator, op: CausalConvolution) -> None:
    (x,), (out,) = operator.inputs, operator.outputs
    shape = ConvolutionShape(op.width, op.kernel, op.bias is not None, low.stride_of(x), low.stride_of(out))
    pointers = {0: low.value(x), 1: low.vector(op.weight), 2: low.value(out)} | _state(operator, 4)
    if op.bias is not None:
        pointers[3] = low.vector(op.bias)
    low.emit(operator, ConvolutionSpec(shape), pointers, tasks=shape.tasks, tokens_per_task=0)


@lowers(SelectiveScan)
def _scan(low: Lowering, operator: Operator, op: SelectiveScan) -> None:
    x, dt, b, c = (low.stride_of(value) for value in operator.inputs)
    out = operator.outputs[0]
    shape = ScanShape(op.n_channels, op.n_states, (x, dt, b, c), low.stride_of(out))
    pointers = {i: low.value(value) for i, value in enumerate(operator.inputs)}
    pointers |= {4: low.vector(op.a), 5: low.value(out)} | _state(operator, 6)
    low.emit(operator, ScanSpec(shape), pointers, tasks=shape.tasks, tokens_per_task=0)


@lowers(LinearAttention)
def _linear_attention(low: Lowering, operator: Operator, op: LinearAttention) -> None:
    out = operator.outputs[0]
    q, k, v, w, *fifth = (low.stride_of(value) for value in operator.inputs)
    per_key = low.graph.values[operator.inputs[3]].width != op.n_heads
    shape = LinearAttentionShape(
        op.n_heads,
        op.n_key_heads,
        op.key_dim,
        op.value_dim,
        op.rule,
        op.tiled,
        per_key,
        (q, k, v, w, fifth[0] if fifth else 0),
        low.stride_of(out),
    )
    pointers = {i: low.value(value) for i, value in enumerate(operator.inputs[:4])}
    pointers |= {4: low.value(out)} | _state(operator, 5)
    if fifth:
        pointers[7] = low.value(operator.inputs[4])
    elif op.bonus is not None:
        pointers[7] = low.vector(op.bonus)
    low.emit(operator, LinearAttentionSpec(shape), pointers, tasks=shape.tasks, tokens_per_task=0)
