"""Kernels with a state, by description."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.cpu import linear_attention, recurrence
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.linear_attention import LinearAttentionShape
from airkernels.cpu.recurrence import ConvolutionShape, ScanShape
from airschedules.specs.kernel import KernelSpec, Program


@dataclass(frozen=True)
class TokenShiftSpec(KernelSpec):
    """The difference to the row before."""

    columns: ConvolutionShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.columns.n,)

    def build(self, isa: VectorIsa) -> Program:
        return recurrence.token_shift(self.symbol, isa, self.columns)


@dataclass(frozen=True)
class ConvolutionSpec(KernelSpec):
    """Causal convolution of every column."""

    columns: ConvolutionShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.columns.n, self.columns.kernel)

    def build(self, isa: VectorIsa) -> Program:
        return recurrence.causal_convolution(self.symbol, isa, self.columns)


@dataclass(frozen=True)
class ScanSpec(KernelSpec):
    """Selective scan of every channel."""

    channels: ScanShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels.n_channels, self.channels.n_states)

    def build(self, isa: VectorIsa) -> Program:
        return recurrence.selective_scan(self.symbol, isa, self.channels)


@dataclass(frozen=True)
class LinearAttentionSpec(KernelSpec):
    """Attention as a recurrence of matrices."""

    heads: LinearAttentionShape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.heads.n_heads, self.heads.key_dim, self.heads.value_dim)

    def build(self, isa: VectorIsa) -> Program:
        return linear_attention.linear_attention(self.symbol, isa, self.heads)

    def schedule(self, isa: VectorIsa) -> tuple[str, str]:
        return f"rule {self.heads.rule}, token by token", "one order of operations for any batch"
