"""Dense feed-forward sub-layers."""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.operators import Activation, Function, Multiply, Slice


def read_widths(b: Builder) -> tuple[int, ...]:
    """Width of the feed-forward sub-layer of each layer, which must be dense."""
    n_experts = b.hyper.integer("expert_count", MAX_WIDTH, low=0, default=0)
    if n_experts > 0:
        raise b.hyper.unsupported("expert_count", f"is {n_experts}: mixtures of experts are not supported")
    return b.hyper.integers("feed_forward_length", MAX_WIDTH, b.n_layers)


def read_width(b: Builder) -> int:
    """Width of the feed-forward sub-layers, which must be dense and of one width."""
    widths = read_widths(b)
    if len(set(widths)) > 1:
        raise b.hyper.unsupported("feed_forward_length", f"differs between layers ({min(widths)} to {max(widths)})")
    return widths[0]


def gated(b: Builder, x: str, n_ff: int, kind: Function) -> str:
    """``down(activation(gate(x)) * up(x))``."""
    return b.linear(gate_up(b, x, n_ff, kind), "ffn_down", b.n_embd, "down")


def gate_up(b: Builder, x: str, n_ff: int, kind: Function) -> str:
    """``activation(gate(x)) * up(x)``; where the file has no gate, it is the first half of `up`."""
    if b.has("ffn_gate"):
        gate, up = b.linear(x, "ffn_gate", n_ff, "gate"), b.linear(x, "ffn_up", n_ff, "up")
    else:
        both = b.linear(x, "ffn_up", 2 * n_ff, "gate_up")
        gate, up = b.add("gate", Slice(0, n_ff), both), b.add("up", Slice(n_ff, n_ff), both)
    return b.add("gated", Multiply(), b.add("gate_activation", Activation(kind), gate), up)


def plain(b: Builder, x: str, n_ff: int, kind: Function, parameters: tuple[float, ...] = ()) -> str:
    """``down(activation(up(x)))``."""
    x = b.add("activation", Activation(kind, parameters), b.linear(x, "ffn_up", n_ff, "up"))
    return b.linear(x, "ffn_down", b.n_embd, "down")
