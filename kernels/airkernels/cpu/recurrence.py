"""Recurrences of single columns: token shift, causal convolution, selective scan. A task is a part of the columns."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, define, let, local, loop, splat, zeros
from airkernels.cpu.rounding import row_of
from airkernels.cpu.state import StateLayout, clear, part_of
from airkernels.cpu.vectors import add, exp, lanes_dividing, reduce


@dataclass(frozen=True)
class ConvolutionShape:
    """Columns, taps of each, and floats between rows."""

    n: int
    kernel: int
    bias: bool
    in_stride: int
    out_stride: int

    @property
    def state(self) -> StateLayout:
        """The last kernel - 1 rows, oldest first."""
        return StateLayout((self.kernel - 1) * self.n)

    @property
    def tasks(self) -> int:
        return self.n // part_of(self.n)


def token_shift(name: str, isa: VectorIsa, shape: ConvolutionShape) -> tirx.PrimFunc:
    """out = row before - row. p0 x, p1 out float32, p2 state, p3 slots; `kernel` is 2, without a bias."""
    n, layout = part_of(shape.n), shape.state
    lanes = lanes_dividing(n, isa)

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as task:
            first = let(task * n)

            def step(token: Expr, state: Region) -> None:
                x, out = row_of(k, 0, token, shape.in_stride), row_of(k, 1, token, shape.out_stride)
                with loop(n // lanes) as i:
                    at = let(first + i * lanes)
                    now = let(x.load(at, lanes))
                    out.store(at, state.load(at, lanes) - now)
                    state.store(at, now)

            layout.for_tokens(k, 2, 3, lambda state: clear(state, first, n, lanes), step)

    return define(name, body)


def causal_convolution(name: str, isa: VectorIsa, shape: ConvolutionShape) -> tirx.PrimFunc:
    """Each column convolved with its own taps.

    p0 x, p1 weight [n, kernel], p2 out, p3 bias float32, p4 state [kernel - 1, n], p5 slots.
    """
    part, kernel, layout = part_of(shape.n), shape.kernel, shape.state
    lanes = lanes_dividing(part, isa)

    def body(k: Kernel) -> None:
        weight, bias = k.region(1, "float32"), k.region(3, "float32")
        with loop(k.end, k.begin) as task:
            first = let(task * part)
            taps = local("float32", kernel * part)
            with loop(part) as column:
                for j in range(kernel):
                    taps.store(j * part + column, weight.load((first + column) * kernel + j))

            def reset(state: Region) -> None:
                for j in range(kernel - 1):
                    clear(state, first + j * shape.n, part, lanes)

            def step(token: Expr, state: Region) -> None:
                x, out = row_of(k, 0, token, shape.in_stride), row_of(k, 2, token, shape.out_stride)
                for at in range(0, part, lanes):
                    rows = [let(state.load(j * shape.n + first + at, lanes)) for j in range(kernel - 1)]
                    rows.append(let(x.load(first + at, lanes)))
                    total = let(bias.load(first + at, lanes)) if shape.bias else zeros("float32", lanes)
                    for j, row in enumerate(rows):
                        total = isa.fused_multiply_add(taps.load(j * part + at, lanes), row, total)
                    out.store(first + at, total)
                    for j, row in enumerate(rows[1:]):
                        state.store(j * shape.n + first + at, row)

            layout.for_tokens(k, 4, 5, reset, step)

    return define(name, body)


@dataclass(frozen=True)
class ScanShape:
    """Channels, elements of each one's state, and floats between rows of x, dt, b, c and the output."""

    n_channels: int
    n_states: int
    strides: tuple[int, int, int, int]
    out_stride: int

    @property
    def state(self) -> StateLayout:
        return StateLayout(self.n_channels * self.n_states)

    @property
    def tasks(self) -> int:
        return self.n_channels // part_of(self.n_channels)


def selective_scan(name: str, isa: VectorIsa, shape: ScanShape) -> tirx.PrimFunc:
    """h = exp(dt a) h + dt x b; out = c . h, channel by channel.

    p0 x, p1 dt, p2 b, p3 c, p4 a [n_channels, n_states], p5 out float32, p6 state, p7 slots.
    """
    part, n = part_of(shape.n_channels), shape.n_states
    lanes = lanes_dividing(n, isa)

    def body(k: Kernel) -> None:
        a = k.region(4, "float32")
        with loop(k.end, k.begin) as task:
            first = let(task * part)

            def step(token: Expr, state: Region) -> None:
                x, dt, b, c = (row_of(k, i, token, stride) for i, stride in enumerate(shape.strides))
                out = row_of(k, 5, token, shape.out_stride)
                total = local("float32", lanes)
                with loop(part) as i:
                    channel = let(first + i)
                    step_size = let(dt.load(channel))
                    given = let(step_size * x.load(channel))
                    total.store(0, zeros("float32", lanes))
                    with loop(n // lanes) as v:
                        at = let(channel * n + v * lanes)
                        decay = let(exp(a.load(at, lanes) * splat(step_size, lanes), isa))
                        new = b.load(v * lanes, lanes) * splat(given, lanes)
                        h = let(isa.fused_multiply_add(decay, state.load(at, lanes), new))
                        state.store(at, h)
                        total.store(0, isa.fused_multiply_add(h, c.load(v * lanes, lanes), total.load(0, lanes)))
                    out.store(channel, reduce(total.load(0, lanes), add))

            shape.state.for_tokens(k, 6, 7, lambda state: clear(state, first * n, part * n, lanes), step)

    return define(name, body)
