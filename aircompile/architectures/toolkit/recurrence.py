"""Layers with a recurrent state in place of attention."""

from __future__ import annotations

from dataclasses import dataclass

from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.limits import MAX_HEADS, MAX_WIDTH
from aircompile.operators import (
    Activation,
    Add,
    Bias,
    CausalConvolution,
    LinearAttention,
    Multiply,
    Scale,
    SelectiveScan,
    Slice,
)

_MAX_KERNEL = 64


def convolve(b: Builder, x: str, part: str, kernel: int) -> str:
    """Each column of x with its taps, which GGUF stores column by column."""
    width, name = b.width(x), b.name(part)
    weight = b.tensors.flat(f"{name}.weight", width, kernel)
    bias = b.tensors.optional_vector(f"{name}.bias", width)
    return b.add("convolution", CausalConvolution(width, kernel, weight, bias), x)


def split(b: Builder, x: str, /, **widths: int) -> tuple[str, ...]:
    """Neighbouring columns of x by the names of their values."""
    found, first = [], 0
    for name, width in widths.items():
        found.append(b.add(name, Slice(first, width), x))
        first += width
    assert first == b.width(x)
    return tuple(found)


def lerp(b: Builder, x: str, shift: str, by: str, output: str) -> str:
    """From each token towards the one before it, by so much in every column: x + by * shift."""
    return b.add(output, Add(), x, b.add(f"{output}_shift", Scale(by), shift))


@dataclass(frozen=True)
class MambaShape:
    """Channels, taps of the convolution, elements of a channel's state, and the rank of dt (in Mamba-2: the heads); the
    groups of Mamba-2, which share keys and queries."""

    n_channels: int
    kernel: int
    n_states: int
    rank: int
    n_groups: int


def read_mamba(b: Builder) -> MambaShape:
    """The shape of all Mamba layers; groups are those of Mamba-2."""
    hyper = b.hyper
    shape = MambaShape(
        hyper.integer("ssm.inner_size", MAX_WIDTH),
        hyper.integer("ssm.conv_kernel", _MAX_KERNEL, low=2),
        hyper.integer("ssm.state_size", MAX_WIDTH),
        hyper.integer("ssm.time_step_rank", MAX_HEADS),
        hyper.integer("ssm.group_count", MAX_HEADS, low=0, default=1) or 1,
    )
    if hyper.has("ssm.group_count") and (shape.n_channels % shape.rank or shape.rank % shape.n_groups):
        raise hyper.error("ssm.time_step_rank", f"is {shape.rank}: heads do not fit the channels or the groups")
    return shape


def mamba(b: Builder, x: str, shape: MambaShape, norm: Normalize | None = None, weighted: bool = False) -> str:
    """A layer of Mamba (Gu & Dao 2023); `norm` is for dt, b and c, with weights or without."""
    n, n_states = shape.n_channels, shape.n_states
    given, gate = split(b, b.linear(x, "ssm_in", 2 * n), given=n, ssm_gate=n)
    given = b.add("activated", Activation("silu"), convolve(b, given, "ssm_conv1d", shape.kernel))
    dt, keys, queries = split(
        b, b.linear(given, "ssm_x", shape.rank + 2 * n_states), dt=shape.rank, b=n_states, c=n_states
    )
    if norm is not None:
        dt, keys, queries = (
            norm(value, f"ssm_{part}_norm" if weighted else None, output=f"{part}_norm")
            for value, part in ((dt, "dt"), (keys, "b"), (queries, "c"))
        )
    dt = b.add("step", Activation("softplus"), b.linear(dt, "ssm_dt", n))
    a, d = b.tensors.flat(b.name("ssm_a"), n, n_states), b.tensors.vector(b.name("ssm_d"), n)
    y = b.add("scan", SelectiveScan(n, n_states, a), given, dt, keys, queries)
    y = b.add("skipped", Add(), y, b.add("skip", Scale(d), given))
    return b.linear(
        b.add("ssm_gated", Multiply(), b.add("ssm_gate_activation", Activation("silu"), gate), y), "ssm_out", b.n_embd
    )


def mamba2(b: Builder, x: str, shape: MambaShape, norm: Normalize) -> str:
    """A layer of Mamba-2 (Dao & Gu 2024): x, b and c are values, keys and queries of heads."""
    n, n_heads, keys_width = shape.n_channels, shape.rank, shape.n_groups * shape.n_states
    mixed = n + 2 * keys_width
    gate, given, dt = split(b, b.linear(x, "ssm_in", n + mixed + n_heads), ssm_gate=n, given=mixed, dt=n_heads)
    given = b.add("activated", Activation("silu"), convolve(b, given, "ssm_conv1d", shape.kernel))
    values, keys, queries = split(b, given, x=n, b=keys_width, c=keys_width)
    step = b.add(
        "step", Activation("softplus"), b.add("biased_dt", Bias(b.tensors.vector(b.name("ssm_dt.bias"), n_heads)), dt)
    )
    a, d = (b.tensors.flat(b.name(part), n_heads, 1) for part in ("ssm_a", "ssm_d"))
    decay = b.add("decay", Activation("exp"), b.add("scaled_step", Scale(a), step))
    op = LinearAttention(n_heads, shape.n_groups, shape.n_states, n // n_heads, "decay")
    y = b.add("scan", op, queries, keys, b.add("stepped", Multiply(), values, step), decay)
    y = b.add("skipped", Add(), y, b.add("skip", Scale(d), values))
    y = b.add("ssm_gated", Multiply(), b.add("ssm_gate_activation", Activation("silu"), gate), y)
    if b.has("ssm_norm"):
        y = norm(y, "ssm_norm", groups=shape.n_groups)
    return b.linear(y, "ssm_out", b.n_embd)


def read_wkv_heads(b: Builder) -> int:
    """Heads of RWKV's time mix."""
    head_dim = b.hyper.integer("wkv.head_size", MAX_WIDTH)
    if b.n_embd % head_dim:
        raise b.hyper.error("wkv.head_size", f"is {head_dim}, which does not divide the width {b.n_embd}")
    return b.n_embd // head_dim
