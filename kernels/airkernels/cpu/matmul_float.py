"""Matrix product with float32 activations: unquantized weights, and quantized ones decoded exactly.

    out[t, r] (+)= sum over k of weight[r, k] * x[t, k]

Tasks are panels of 16 rows. Even and odd columns are summed apart, in order, and added at the end, so
that a row's result is the same for every tile. Pointers: p0 panels, p1 x float32, p2 out float32,
p3 bias float32 (if any), p7 scratch of all workers (quantized weights only).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from airkernels.cpu.decoded import PackedPanel, UnpackedPanel
from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.matmul_int import MatmulShape, for_each_tile, store_row
from airkernels.cpu.panels import Panel, PanelLayout
from airkernels.cpu.program import Expr, Kernel, Region, bits, byte_offset, cast, define, let, local, loop, splat, zeros
from airkernels.cpu.rows import float_value
from airkernels.formats import AnyFormat, BlockFormat, FloatFormat
from airkernels.formats.base import WORD, SuperBlockFormat

_CHAINS = 2
"""Partial sums per output: hides the latency of multiply-add."""

_CACHE_LINE = 64

Column = Callable[[Expr], Expr]
"""Builds the weights of one column for one vector of rows, float32."""

Prefetch = Callable[[Expr], None]
"""Asks for the weights some columns after this one."""


def scratch_nbytes(fmt: AnyFormat, n_cols: int) -> int:
    """Scratch bytes for one worker: a panel as float32 [n_cols][16], and as codes on the way there."""
    return 0 if isinstance(fmt, FloatFormat) else 4 * PANEL * n_cols + UnpackedPanel.nbytes(fmt, n_cols)


def _decode_panel(unpacked: UnpackedPanel, fmt: BlockFormat, source: PackedPanel, out: Region) -> None:
    """Codes first, then floats in a loop over groups: unrolled over a block, decoding takes seconds to compile."""
    unpacked.fill(source)
    lanes, first_row = unpacked.isa.lanes, unpacked.first_row
    with loop(unpacked.n_steps) as index:
        step = unpacked.step(index)
        with loop(step.n_turns) as turn:
            for group in step.groups(turn):
                scale, minimum = group.scale(), group.minimum() if fmt.has_minimum else None
                if isinstance(fmt, SuperBlockFormat):
                    scale = scale * step.block_scale()
                    minimum = None if minimum is None else minimum * step.block_minimum()
                scale, minimum = let(scale), None if minimum is None else let(minimum)
                for w in range(fmt.group // WORD):
                    codes = let(group.word(w)[0])
                    for j in range(WORD):
                        code = bits((codes >> (8 * j)) & 0xFF, f"int32x{lanes}") - fmt.zero_point
                        value = scale * cast(code, "float32")
                        value = value if minimum is None else value + minimum
                        column = group.index * fmt.group + w * WORD + j
                        out.store(column * PANEL + first_row, value)


def matmul_float(
    name: str, isa: VectorIsa, fmt: AnyFormat, shape: MatmulShape, in_stride: int, tile: int
) -> tirx.PrimFunc:
    """Build the product kernel; `in_stride` floats lie between the rows of x, `tile` tokens share a pass."""
    return define(name, product(isa, fmt, shape, in_stride, tile))


def product(isa: VectorIsa, fmt: AnyFormat, shape: MatmulShape, in_stride: int, tile: int) -> Callable[[Kernel], None]:
    """The body of that kernel."""
    layout = PanelLayout(fmt, shape.n_cols)
    lanes, n_cols = isa.lanes, shape.n_cols

    def tokens(column: Column, prefetch: Prefetch | None, k: Kernel, row: Expr, first_token: Expr, n: int) -> None:
        x = Region(byte_offset(k.pointers[1], cast(first_token, "int64") * (4 * in_stride)), "float32")
        acc = local("float32", n * _CHAINS * lanes)
        for i in range(n * _CHAINS):
            acc.store(i * lanes, zeros("float32", lanes))

        def step(at: Expr, chain: int) -> None:
            weights = let(column(at))
            for t in range(n):
                slot = (t * _CHAINS + chain) * lanes
                value = splat(x.load(at + t * in_stride), lanes)
                acc.store(slot, isa.fused_multiply_add(weights, value, acc.load(slot, lanes)))

        with loop(n_cols // _CHAINS) as i:
            if n == 1 and prefetch is not None:
                prefetch(i * _CHAINS)
            for chain in range(_CHAINS):
                step(i * _CHAINS + chain, chain)
        for chain in range(n_cols % _CHAINS):
            step(tirx.const(n_cols - n_cols % _CHAINS + chain, "int32"), chain)
        for t in range(n):
            total = acc.load(t * _CHAINS * lanes, lanes)
            for chain in range(1, _CHAINS):
                total = total + acc.load((t * _CHAINS + chain) * lanes, lanes)
            store_row(shape, k, total, first_token + t, row)

    def body(k: Kernel) -> None:
        scratch = byte_offset(k.pointers[7], cast(k.worker, "int64") * scratch_nbytes(fmt, n_cols))
        decoded = Region(scratch, "float32")
        with loop(k.end, k.begin) as index:
            panel = byte_offset(k.pointers[0], cast(index, "int64") * layout.nbytes)
            for first_row in range(0, PANEL, lanes):
                prefetch = None
                if isinstance(fmt, BlockFormat):
                    unpacked = UnpackedPanel(isa, fmt, n_cols, byte_offset(scratch, 4 * PANEL * n_cols), first_row)
                    _decode_panel(unpacked, fmt, PackedPanel(isa, layout, Panel(panel), first_row), decoded)
                    column = partial(_decoded_column, decoded, first_row, lanes)
                else:
                    column = partial(_plain_column, isa, fmt, panel, first_row)
                    if isa.prefetch and first_row == 0:
                        prefetch = partial(_prefetch_columns, isa, fmt, panel)
                for_each_tile(k.n_tokens, tile, partial(tokens, column, prefetch, k, index * PANEL + first_row))

    return body


def _decoded_column(decoded: Region, first_row: int, lanes: int, at: Expr) -> Expr:
    return decoded.load(at * PANEL + first_row, lanes)


def _plain_column(isa: VectorIsa, fmt: AnyFormat, panel: Expr, first_row: int, at: Expr) -> Expr:
    assert isinstance(fmt, FloatFormat)
    return float_value(fmt, panel, at * PANEL + first_row, isa.lanes, isa)


def _prefetch_columns(isa: VectorIsa, fmt: FloatFormat, panel: Expr, at: Expr) -> None:
    """The lines of as many columns as a step of the product takes, `isa.prefetch` bytes ahead."""
    raw, column = Region(panel, "uint8"), PANEL * fmt.nbytes
    for line in range(0, _CHAINS * column, _CACHE_LINE):
        raw.prefetch(at * column + line + isa.prefetch)
