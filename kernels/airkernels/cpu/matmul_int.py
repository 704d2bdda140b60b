"""Matrix product of quantized weights and quantized activations, in integers.

    out[t, r] (+)= sum over groups g of scale[r, g] * x_scale[t, g] * (integer dot product of group g) + minima

Tasks are panels of 16 rows. Per row and token the operations and their order are the same in every
variant, so decode, small batches and prefill agree bit for bit:

    product = codes . x_codes - zero_point * sum(x_codes)          exact, int32; x_codes = low + 128 * high
    acc     = fma(float(product), scale * x_scale, acc)
    acc     = fma(minimum, x_scale * sum(x_codes), acc)            formats with a minimum

Where scales and minima are those of a block times integer factors, the groups of a block are summed apart:

    part    = fma(float(product) * factor, x_scale, part)
    least   = fma(minimum_factor, x_scale * sum(x_codes), least)
    acc     = fma(least, block_minimum, fma(part, block_scale, acc))

Pointers: p0 panels, p1 quantized rows (`QuantizedRow`), p2 out float32, p3 bias float32 (if any),
p7 scratch of all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from tvm import tirx

from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.decoded import DecodedPanel, Group, PackedPanel, Step, UnpackedPanel
from airkernels.cpu.dot import Dot
from airkernels.cpu.group_products import GroupProducts
from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.paired import PairedPanel, of_tokens
from airkernels.cpu.panels import Panel, PanelLayout
from airkernels.cpu.program import (
    Expr,
    Kernel,
    Region,
    byte_offset,
    cast,
    define,
    lanes_of,
    let,
    local,
    loop,
    when,
    zeros,
)
from airkernels.cpu.row_tile import RowTile, starts_of
from airkernels.formats import BlockFormat
from airkernels.formats.base import SuperBlockFormat

_MOST_PANELS = 4
_UNPACKED_NBYTES = 512 << 10
"""Bounds of what is unpacked at once, see `panels_at_once`."""


@dataclass(frozen=True)
class MatmulSchedule:
    """How a product is tiled.

    Attributes
    ----------
    tile
        Tokens whose accumulators are held in registers at once.
    unpack_from
        Batches of this many tokens or more decode a panel once into scratch and multiply from there; smaller
        ones decode it in registers for every tile. 0: never.
    """

    tile: int
    unpack_from: int = 0


@dataclass(frozen=True)
class MatmulShape:
    """What a product computes.

    Attributes
    ----------
    n_rows, n_cols
        Weight rows, and elements per row.
    out_stride
        Floats between the outputs of neighbouring tokens.
    accumulate
        Add to what `out` holds (a residual connection).
    bias
        Add p3[row].
    digits
        Digits of quantized activations (`QuantizedRow`).
    step
        Rows of quantized activations from one token to the next.
    """

    n_rows: int
    n_cols: int
    out_stride: int
    accumulate: bool = False
    bias: bool = False
    digits: int = 1
    step: int = 1


@dataclass
class _Tile:
    """Emits the product of a panel with `n` neighbouring tokens, one vector of rows beside the other."""

    isa: VectorIsa
    fmt: BlockFormat
    shape: MatmulShape
    kernel: Kernel
    dot: Dot

    def emit(self, panels: Sequence[DecodedPanel], row: Expr, first_token: Expr, n: int) -> None:
        """`panels` are the vectors of rows from `row` on, of one panel."""
        lanes = self.isa.lanes
        layout = QuantizedRow(self.shape.n_cols, self.shape.digits)
        base = byte_offset(self.kernel.pointers[1], cast(first_token, "int64") * (self.shape.step * layout.nbytes))
        stride = self.shape.step * layout.nbytes // 4
        starts = starts_of(n, self.dot.n_tokens, stride)
        rows = RowTile(layout, self.fmt.group, Region(base, "int32"), Region(base, "float32"), starts, lanes)
        n_sums = len(panels) * rows.n
        together = panels[0].together
        acc, totals = local("float32", n_sums * lanes), local("int32", together * n_sums * lanes)
        part = local("float32", n_sums * lanes) if isinstance(self.fmt, SuperBlockFormat) else None
        _clear(acc, n_sums, lanes)
        with loop(panels[0].n_steps) as index:
            steps = [panel.step(index) for panel in panels]
            if part is None:
                self._plain_step(steps, acc, totals, rows)
            else:
                self._step_with_factors(steps, acc, part, totals, rows, together)
        for i in range(rows.n):
            for v, panel in enumerate(panels):
                value = acc.load((v * rows.n + i) * lanes, lanes)
                values = [value] if self.dot.n_tokens == 1 else of_tokens(value)
                first = self.dot.n_tokens * i
                for t, each in enumerate(values[: n - first], first):
                    store_row(self.shape, self.kernel, each, first_token + t, row + v * panel.rows)

    def _plain_step(self, steps: Sequence[Step], acc: Region, totals: Region, rows: RowTile) -> None:
        for groups in zip(*(step.groups(0) for step in steps), strict=True):
            index = groups[0].index
            self._products.store([groups], rows, totals)
            scales = [let(group.scale()) for group in groups]
            minima = [let(group.minimum()) for group in groups] if self.fmt.has_minimum else None
            for t in range(rows.n):
                x_scale = let(rows.scale(t, index))
                x_sum = None if minima is None else let(rows.scaled_sum(t, index))
                for v, scale in enumerate(scales):
                    at = v * rows.n + t
                    self._multiply_add(acc, at, self._product(totals, at), scale * x_scale)
                    if minima is not None:
                        self._multiply_add(acc, at, minima[v], x_sum)

    def _step_with_factors(
        self, steps: Sequence[Step], acc: Region, part: Region, totals: Region, rows: RowTile, together: int
    ) -> None:
        """Sum up a block's products, then its minima, each in turns and then scaled at once."""
        n_sums = len(steps) * rows.n
        scales = [step.block_scale() for step in steps]
        minima = [step.block_minimum() for step in steps] if self.fmt.has_minimum else []
        with _turns(steps, part, rows) as turn:
            for some in _batched(zip(*(step.groups(turn) for step in steps), strict=True), together):
                self._products.store(some, rows, totals)
                for i, groups in enumerate(some):
                    factors = [let(group.scale()) for group in groups]
                    for t in range(rows.n):
                        x_scale = let(rows.scale(t, groups[0].index))
                        for v, factor in enumerate(factors):
                            at = v * rows.n + t
                            product = self._product(totals, i * n_sums + at)
                            self._multiply_add(part, at, product * factor, x_scale)
        self._add_scaled(acc, part, scales, rows.n)
        if not minima:
            return
        with _turns(steps, part, rows) as turn:
            for groups in zip(*(step.groups(turn) for step in steps), strict=True):
                factors = [let(group.minimum()) for group in groups]
                for t in range(rows.n):
                    x_sum = let(rows.scaled_sum(t, groups[0].index))
                    for v, factor in enumerate(factors):
                        self._multiply_add(part, v * rows.n + t, factor, x_sum)
        self._add_scaled(acc, part, minima, rows.n)

    def _add_scaled(self, acc: Region, part: Region, scales: Sequence[Expr], n: int) -> None:
        for v, scale in enumerate(scales):
            scale = let(scale)
            for at in range(v * n, (v + 1) * n):
                self._multiply_add(acc, at, self._load(part, at), scale)

    @cached_property
    def _products(self) -> GroupProducts:
        return GroupProducts(self.isa, self.dot, self.fmt, self.shape.digits)

    def _product(self, totals: Region, at: int) -> Expr:
        return cast(self._load(totals, at), "float32")

    def _load(self, sums: Region, at: int) -> Expr:
        return sums.load(at * self.isa.lanes, self.isa.lanes)

    def _multiply_add(self, sums: Region, at: int, a: Expr, b: Expr) -> None:
        sums.store(at * self.isa.lanes, self.isa.fused_multiply_add(a, b, self._load(sums, at)))


def _batched(groups: Iterable[tuple[Group, ...]], size: int) -> list[list[tuple[Group, ...]]]:
    """Runs of so many neighbouring groups."""
    every = list(groups)
    return [every[at : at + size] for at in range(0, len(every), size)]


@contextmanager
def _turns(steps: Sequence[Step], sums: Region, rows: RowTile) -> Iterator[Expr]:
    """A loop over the turns of a step, which adds to sums that begin at 0."""
    _clear(sums, len(steps) * rows.n, rows.lanes)
    n_turns = steps[0].n_turns
    if n_turns == 1:
        yield 0
    else:
        with loop(n_turns) as turn:
            yield turn


def _clear(sums: Region, n: int, lanes: int) -> None:
    for i in range(n):
        sums.store(i * lanes, zeros("float32", lanes))


def store_row(shape: MatmulShape, k: Kernel, value: Expr, token: Expr, row: Expr) -> None:
    """Finish one vector of rows of one token: bias, residual, store."""
    lanes = lanes_of(value)
    if shape.bias:
        value = value + _bias(k.region(3, "float32"), row, shape.n_rows, lanes)
    start = byte_offset(k.pointers[2], cast(token, "int64") * (4 * shape.out_stride))
    out = Region(start, "float32")
    if shape.accumulate:
        value = out.load(row, lanes) + value
    out.store(row, value)


def _bias(bias: Region, row: Expr, n_rows: int, lanes: int) -> Expr:
    """Biases of a vector of rows, without reading past the last one."""
    if n_rows % lanes == 0:
        return bias.load(row, lanes)
    vector = local("float32", lanes)
    for lane in range(lanes):
        vector.store(lane, bias.load(tirx.min(row + lane, n_rows - 1)))
    return vector.load(0, lanes)


def matmul_int(
    name: str, isa: VectorIsa, fmt: BlockFormat, shape: MatmulShape, schedule: MatmulSchedule
) -> tirx.PrimFunc:
    """Build the product kernel of one shape under one schedule."""
    return define(name, product(isa, fmt, shape, schedule))


def product(isa: VectorIsa, fmt: BlockFormat, shape: MatmulShape, schedule: MatmulSchedule) -> Callable[[Kernel], None]:
    """The body of that kernel."""
    layout = PanelLayout(fmt, shape.n_cols)

    def body(k: Kernel) -> None:
        tile = _Tile(isa, fmt, shape, k, isa.dot)
        first_rows = range(0, PANEL, isa.lanes)

        def packed(index: Expr) -> list[PackedPanel]:
            panel = Panel.at(k.pointers[0], layout, index)
            return [PackedPanel(isa, layout, panel, first_row, for_dot=True) for first_row in first_rows]

        def decode_in_registers(size: int) -> None:
            with loop(k.end, k.begin) as index:
                for_each_tile(k.n_tokens, size, partial(tile.emit, packed(index), index * PANEL))

        def unpack() -> None:
            scratch = byte_offset(k.pointers[7], cast(k.worker, "int64") * scratch_nbytes(isa, fmt, shape.n_cols))
            at_once = panels_at_once(isa, fmt, shape.n_cols)
            kind = unpacked_kind(isa)
            tile = _Tile(isa, fmt, shape, k, isa.pairs or isa.dot)

            def unpacked(panel: Expr) -> list[UnpackedPanel]:
                base = byte_offset(scratch, panel * kind.nbytes(fmt, shape.n_cols))
                rows = range(0, PANEL, PANEL // 2) if isa.pairs else first_rows
                return [kind(isa, fmt, shape.n_cols, base, first_row) for first_row in rows]

            with loop(tirx.indexdiv(k.end - k.begin + at_once - 1, at_once)) as some:
                first = let(k.begin + some * at_once)
                n_panels = let(tirx.min(k.end - first, at_once))
                with loop(n_panels) as panel:
                    # the first half of a panel for pairs fills the other as well
                    for target, source in zip(unpacked(panel), packed(first + panel), strict=False):
                        target.fill(source)

                def emit(token: Expr, n: int) -> None:
                    with loop(n_panels) as panel:
                        tile.emit(unpacked(panel), (first + panel) * PANEL, token, n)

                for_each_tile(k.n_tokens, schedule.tile, emit)

        if not schedule.unpack_from:
            decode_in_registers(schedule.tile)
            return
        if schedule.unpack_from > 1:
            with when(k.n_tokens < schedule.unpack_from):
                decode_in_registers(_largest_power(min(schedule.tile, schedule.unpack_from - 1)))
        with when(k.n_tokens >= schedule.unpack_from):
            unpack()

    return body


def unpacked_kind(isa: VectorIsa) -> type[UnpackedPanel]:
    return PairedPanel if isa.pairs else UnpackedPanel


def panels_at_once(isa: VectorIsa, fmt: BlockFormat, n_cols: int) -> int:
    """How many panels are unpacked together: a tile's activations are then read once for all of them.

    They are read again for every tile, so together they should stay in the second-level cache.
    """
    return max(1, min(_MOST_PANELS, _UNPACKED_NBYTES // unpacked_kind(isa).nbytes(fmt, n_cols)))


def scratch_nbytes(isa: VectorIsa, fmt: BlockFormat, n_cols: int) -> int:
    """Scratch bytes of a worker that unpacks."""
    return panels_at_once(isa, fmt, n_cols) * unpacked_kind(isa).nbytes(fmt, n_cols)


def _largest_power(n: int) -> int:
    """The largest power of two up to n."""
    return 1 << (n.bit_length() - 1)


def for_each_tile(n_tokens: Expr, tile: int, emit: Callable[[Expr, int], None]) -> None:
    """Cover `n_tokens` with tiles of `tile`, then of its halves down to 1."""
    done: Expr = 0
    size = tile
    while size >= 1:
        count = let(tirx.indexdiv(n_tokens - done, size))
        start = done
        with loop(count) as i:
            emit(let(start + i * size), size)
        done = let(done + count * size)
        size //= 2
