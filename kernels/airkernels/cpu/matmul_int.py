"""Matrix product of quantized weights and quantized activations, in integers.

    out[t, r] (+)= sum over groups g of scale[r, g] * x_scale[t, g] * (integer dot product of group g) + minima

Tasks are panels of 16 rows. Per row and token the operations and their order are the same in every
variant, so decode, small batches and prefill agree bit for bit:

    product = codes . x_codes - zero_point * sum(x_codes)          exact, int32; x_codes = low + 128 * high
    acc     = fma(float(product), scale * x_scale, acc)
    acc     = fma(minimum, x_scale * sum(x_codes), acc)            formats with a minimum

Pointers: p0 panels, p1 quantized rows (`QuantizedRow`), p2 out float32, p3 bias float32 (if any),
p7 scratch of all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_

from tvm import tirx

from airkernels.cpu.activations import GROUP, SHIFT, QuantizedRow
from airkernels.cpu.dot import CENTRE, centred
from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.panels import Panel, PanelLayout, PanelReader
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
    splat,
    when,
    zeros,
)
from airkernels.formats import BlockFormat
from airkernels.formats.base import WORD

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


_Codes = list[tuple[Expr, int]]
"""The words of a group: four codes a row, and how far they are still shifted to the left."""


@dataclass(frozen=True)
class _Group:
    """Weights of one group for one vector of rows."""

    index: Expr
    words: _Codes
    scale: Expr
    minimum: Expr | None


class PackedSource:
    """Groups decoded in registers, a few blocks at a time; `for_dot`: with codes as the dot product likes them."""

    def __init__(
        self, isa: VectorIsa, layout: PanelLayout, panel: Panel, first_row: int, for_dot: bool = False
    ) -> None:
        self.isa, self.layout, self.panel, self.first_row, self.for_dot = isa, layout, panel, first_row, for_dot
        self.n_steps = layout.n_blocks // layout.unrolled

    def groups(self, step: Expr) -> Iterator[_Group]:
        fmt = self.layout.fmt
        assert isinstance(fmt, BlockFormat)
        n_groups, n_words = fmt.block // fmt.group, fmt.group // WORD
        span, unrolled = self.layout.span, self.layout.unrolled
        for i in range(unrolled):
            block = step * unrolled + i
            at, within = (tirx.indexdiv(block, span), tirx.indexmod(block, span)) if unrolled < span else (step, i)
            reader = PanelReader(self.isa, self.layout, self.panel, at, within, self.first_row)
            for g in range(n_groups):
                scale = fmt.scale(reader, g)
                minimum = fmt.minimum(reader, g) if fmt.has_minimum else None
                words = [self._codes(reader, g * n_words + w) for w in range(n_words)]
                yield _Group(block * n_groups + g, words, scale, minimum)

    def _codes(self, reader: PanelReader, word: int) -> tuple[Expr, int]:
        """Codes and how far they are still shifted to the left."""
        fmt, dot = self.layout.fmt, self.isa.dot
        assert isinstance(fmt, BlockFormat)
        if self.for_dot and dot.is_centred(fmt.code_max):
            return centred(fmt.codes(reader, word)), 0
        shift = fmt.code_shift(word)
        if self.for_dot and dot.takes(fmt.code_max << shift):
            return fmt.codes_in_place(reader, word), shift
        return fmt.codes(reader, word), 0


class UnpackedPanel:
    """A decoded panel in scratch: codes uint32 [n_cols/4][16], scales and minima float32 [groups][16]."""

    def __init__(self, isa: VectorIsa, fmt: BlockFormat, n_cols: int, base: Expr, first_row: int) -> None:
        self.isa, self.fmt, self.first_row = isa, fmt, first_row
        self.n_steps = n_cols // fmt.group
        self.codes = Region(base, "uint32")
        self.floats = Region(base, "float32")
        self._scales = n_cols // WORD * PANEL
        self._minima = self._scales + self.n_steps * PANEL

    @staticmethod
    def nbytes(fmt: BlockFormat, n_cols: int) -> int:
        """Scratch bytes for one worker."""
        planes = 2 if fmt.has_minimum else 1
        return PANEL * (n_cols + 4 * planes * (n_cols // fmt.group))

    def fill(self, source: PackedSource) -> None:
        n_words = self.fmt.group // WORD
        with loop(source.n_steps) as step:
            for group in source.groups(step):
                at = group.index * PANEL + self.first_row
                for w, (codes, shift) in enumerate(group.words):
                    plain = codes >> shift if shift else codes
                    self.codes.store((group.index * n_words + w) * PANEL + self.first_row, plain)
                self.floats.store(self._scales + at, group.scale)
                if group.minimum is not None:
                    self.floats.store(self._minima + at, group.minimum)

    def groups(self, step: Expr) -> Iterator[_Group]:
        n_words, lanes = self.fmt.group // WORD, self.isa.lanes
        at = step * PANEL + self.first_row
        words = [(self.codes.load((step * n_words + w) * PANEL + self.first_row, lanes), 0) for w in range(n_words)]
        minimum = self.floats.load(self._minima + at, lanes) if self.fmt.has_minimum else None
        yield _Group(step, words, self.floats.load(self._scales + at, lanes), minimum)


Source = PackedSource | UnpackedPanel


@dataclass
class _Tile:
    """Emits the product of a panel with `n` neighbouring tokens, one vector of rows beside the other."""

    isa: VectorIsa
    fmt: BlockFormat
    shape: MatmulShape
    kernel: Kernel

    def emit(self, sources: Sequence[Source], row: Expr, first_token: Expr, n: int) -> None:
        """`sources` are the vectors of rows from `row` on."""
        lanes = self.isa.lanes
        layout = QuantizedRow(self.shape.n_cols, self.shape.digits)
        base = byte_offset(self.kernel.pointers[1], cast(first_token, "int64") * (self.shape.step * layout.nbytes))
        words, floats = Region(base, "int32"), Region(base, "float32")
        stride = self.shape.step * layout.nbytes // 4
        n_sums = len(sources) * n
        acc, totals = local("float32", n_sums * lanes), local("int32", n_sums * lanes)
        for i in range(n_sums):
            acc.store(i * lanes, zeros("float32", lanes))
        with loop(sources[0].n_steps) as step:
            for groups in zip(*(source.groups(step) for source in sources), strict=True):
                self._group(groups, acc, totals, words, floats, stride, n)
        for t in range(n):
            for v in range(len(sources)):
                value = acc.load((v * n + t) * lanes, lanes)
                store_row(self.shape, self.kernel, value, first_token + t, row + v * lanes)

    def _group(
        self,
        groups: tuple[_Group, ...],
        acc: Region,
        totals: Region,
        words: Region,
        floats: Region,
        stride: int,
        n: int,
    ) -> None:
        isa, lanes, index = self.isa, self.isa.lanes, groups[0].index
        layout = QuantizedRow(self.shape.n_cols, self.shape.digits)
        codes = [[(let(codes), shift) for codes, shift in group.words] for group in groups]
        starts = [t * stride for t in range(n)]
        for i, total in enumerate(self._dot(codes, index, words, starts, with_zero_point=True)):
            totals.store(i * lanes, total)
        if self.shape.digits == 2:
            self._add_high_digits(codes, index, totals, words, stride, n)
        scale_index = index if self.fmt.group == GROUP else tirx.indexdiv(index * self.fmt.group, GROUP)
        scales = [let(group.scale) for group in groups]
        minima = [None if group.minimum is None else let(group.minimum) for group in groups]
        for t in range(n):
            x_scale = let(splat(floats.load(t * stride + layout.scale // 4 + scale_index), lanes))
            if self.fmt.has_minimum:
                sums_plane = layout.scaled_sum if self.fmt.group == GROUP else layout.scaled_half_sum
                x_sum = let(splat(floats.load(t * stride + sums_plane // 4 + index), lanes))
            for v, (scale, minimum) in enumerate(zip(scales, minima, strict=True)):
                at = (v * n + t) * lanes
                value = acc.load(at, lanes)
                value = isa.fused_multiply_add(cast(totals.load(at, lanes), "float32"), scale * x_scale, value)
                if minimum is not None:
                    value = isa.fused_multiply_add(minimum, x_sum, value)
                acc.store(at, value)

    def _add_high_digits(
        self, codes: list[_Codes], group: Expr, totals: Region, words: Region, stride: int, n: int
    ) -> None:
        """Add what the high digits contribute, where any token of the tile has them: those of the others are 0."""
        lanes = self.isa.lanes
        layout = QuantizedRow(self.shape.n_cols, self.shape.digits)
        flag = layout.has_high // 4 + tirx.indexdiv(group * self.fmt.group, GROUP)
        with when(reduce(or_, [words.load(t * stride + flag) for t in range(n)]) != 0):
            starts = [t * stride + layout.n // WORD for t in range(n)]
            for i, total in enumerate(self._dot(codes, group, words, starts)):
                totals.store(i * lanes, totals.load(i * lanes, lanes) + (total << SHIFT))

    def _dot(
        self, codes: list[_Codes], group: Expr, words: Region, digits: list[int], with_zero_point: bool = False
    ) -> list[Expr]:
        """Integer products of a group's codes with the digits that begin at these words, for each vector of rows.

        Codes with different shifts have a sum each until the end; the zero point, of whole elements, goes to the first.
        """
        dot, lanes, first_word = self.isa.dot, self.isa.lanes, group * (self.fmt.group // WORD)
        shifts = sorted({shift for _codes, shift in codes[0]})
        starts = {(shift, at): zeros("int32", lanes) for shift in shifts for at in digits}
        if with_zero_point:
            for at in digits:
                starts[shifts[0], at] = self._start(words, group, at, shifts[0])
        code_max, is_centred = self.fmt.code_max, dot.is_centred(self.fmt.code_max)
        sums = [
            {(shift, at): dot.start(start, code_max << shift, is_centred) for (shift, at), start in starts.items()}
            for _vector in codes
        ]
        digits_of = {at: dot.digits(words, at + first_word, lanes) for at in digits}
        for w in range(len(codes[0])):
            for at in digits:
                x = digits_of[at](w)
                for vector, of_vector in zip(codes, sums, strict=True):
                    word, shift = vector[w]
                    of_vector[shift, at].add(word, x)
        return [
            let(_sum_shifted([(of_vector[shift, at].total(), shift) for shift in shifts]))
            for of_vector in sums
            for at in digits
        ]

    def _start(self, words: Region, group: Expr, token: int, code_shift: int) -> Expr:
        """The zero point's share of a group's integer sum, for codes shifted left by `code_shift`."""
        lanes = self.isa.lanes
        zero_point = self.fmt.zero_point - (CENTRE if self.isa.dot.is_centred(self.fmt.code_max) else 0)
        if zero_point == 0:
            return zeros("int32", lanes)
        layout = QuantizedRow(self.shape.n_cols, self.shape.digits)
        plane = layout.negative_sum if self.fmt.group == GROUP else layout.negative_half_sum
        shift = zero_point.bit_length() - 1
        assert 1 << shift == zero_point
        return let(splat(words.load(token + plane // 4 + group), lanes) << (shift + code_shift))


def _sum_shifted(parts: list[tuple[Expr, int]]) -> Expr:
    """Sum of integer sums whose codes were shifted left; exact, since each is a multiple of its power of two."""
    plain = [value >> shift if shift else value for value, shift in parts]
    total = plain[0]
    for value in plain[1:]:
        total = total + value
    return total


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
        tile = _Tile(isa, fmt, shape, k)
        first_rows = range(0, PANEL, isa.lanes)

        def packed(index: Expr) -> list[PackedSource]:
            panel = Panel.at(k.pointers[0], layout, index)
            return [PackedSource(isa, layout, panel, first_row, for_dot=True) for first_row in first_rows]

        def decode_in_registers(size: int) -> None:
            with loop(k.end, k.begin) as index:
                for_each_tile(k.n_tokens, size, partial(tile.emit, packed(index), index * PANEL))

        def unpack() -> None:
            scratch = byte_offset(k.pointers[7], cast(k.worker, "int64") * scratch_nbytes(fmt, shape.n_cols))
            at_once = panels_at_once(fmt, shape.n_cols)

            def unpacked(panel: Expr) -> list[UnpackedPanel]:
                base = byte_offset(scratch, panel * UnpackedPanel.nbytes(fmt, shape.n_cols))
                return [UnpackedPanel(isa, fmt, shape.n_cols, base, first_row) for first_row in first_rows]

            with loop(tirx.indexdiv(k.end - k.begin + at_once - 1, at_once)) as some:
                first = let(k.begin + some * at_once)
                n_panels = let(tirx.min(k.end - first, at_once))
                with loop(n_panels) as panel:
                    for target, source in zip(unpacked(panel), packed(first + panel), strict=True):
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


def panels_at_once(fmt: BlockFormat, n_cols: int) -> int:
    """How many panels are unpacked together: a tile's activations are then read once for all of them.

    They are read again for every tile, so together they should stay in the second-level cache.
    """
    return max(1, min(_MOST_PANELS, _UNPACKED_NBYTES // UnpackedPanel.nbytes(fmt, n_cols)))


def scratch_nbytes(fmt: BlockFormat, n_cols: int) -> int:
    """Scratch bytes of a worker that unpacks."""
    return panels_at_once(fmt, n_cols) * UnpackedPanel.nbytes(fmt, n_cols)


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
