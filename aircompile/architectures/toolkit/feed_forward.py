"""Dense feed-forward sub-layers. A `suffix` tells those of shared experts apart."""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.operators import Activation, Function, Multiply, Slice


def read_widths(b: Builder) -> tuple[int, ...]:
    """Width of the dense feed-forward sub-layer of each layer."""
    return b.hyper.integers("feed_forward_length", MAX_WIDTH, b.n_layers)


def read_width(b: Builder) -> int:
    """Width of the dense feed-forward sub-layers, which must be the same in all layers."""
    widths = read_widths(b)
    if len(set(widths)) > 1:
        raise b.hyper.unsupported("feed_forward_length", f"differs between layers ({min(widths)} to {max(widths)})")
    return widths[0]


def gated(b: Builder, x: str, n_ff: int, kind: Function, suffix: str = "") -> str:
    """``down(activation(gate(x)) * up(x))``."""
    return b.linear(gate_up(b, x, n_ff, kind, suffix), f"ffn_down{suffix}", b.n_embd, f"down{suffix}")


def gate_up(b: Builder, x: str, n_ff: int, kind: Function, suffix: str = "") -> str:
    """``activation(gate(x)) * up(x)``; where the file has no gate, it is the first half of `up`."""
    gate_name, up_name = f"gate{suffix}", f"up{suffix}"
    if b.has(f"ffn_gate{suffix}"):
        gate = b.linear(x, f"ffn_gate{suffix}", n_ff, gate_name)
        up = b.linear(x, f"ffn_up{suffix}", n_ff, up_name)
    else:
        both = b.linear(x, f"ffn_up{suffix}", 2 * n_ff, f"gate_up{suffix}")
        gate, up = b.add(gate_name, Slice(0, n_ff), both), b.add(up_name, Slice(n_ff, n_ff), both)
    active = b.add(f"gate_activation{suffix}", Activation(kind), gate)
    return b.add(f"gated{suffix}", Multiply(), active, up)


def plain(b: Builder, x: str, n_ff: int, kind: Function, parameters: tuple[float, ...] = ()) -> str:
    """``down(activation(up(x)))``."""
    x = b.add("activation", Activation(kind, parameters), b.linear(x, "ffn_up", n_ff, "up"))
    return b.linear(x, "ffn_down", b.n_embd, "down")
