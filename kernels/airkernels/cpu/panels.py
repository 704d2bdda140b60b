"""Panels: 16 rows of a matrix interleaved, so that a vector lane is a row.

A panel holds the same bytes as its 16 raw rows, block by block (or two by two) as [unit][row], the units of
a block in the order in which they are used. Nothing is decoded or rounded, so a panel is made by copying
units and takes exactly the room of the rows. With a row per lane, sums along a row stay in one lane and are
added in file order, whatever the number of tokens, threads or lanes: results do not depend on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.program import Expr, Region, anchored, byte_offset, cast
from airkernels.cpu.reader import VectorReader
from airkernels.formats import AnyFormat, BlockFormat
from airkernels.formats.base import WORD, Places, Table

_LARGE_BLOCK = 256
"""Elements of a block whose decoding is code enough for one step of a loop."""


@dataclass(frozen=True)
class PanelLayout:
    """Where things are in the panels of a matrix with `n_cols` columns."""

    fmt: AnyFormat
    n_cols: int

    @property
    def n_blocks(self) -> int:
        """Blocks per row."""
        return self.n_cols // self.fmt.block

    @property
    def nbytes(self) -> int:
        """Bytes per panel."""
        return PANEL * self.n_blocks * self.fmt.nbytes

    @property
    def span(self) -> int:
        """Blocks that are laid out together, so that none lies across cache lines where their number allows it."""
        return gcd(64 // gcd(PANEL * self.fmt.nbytes, 64), self.n_blocks)

    @property
    def n_spans(self) -> int:
        return self.n_blocks // self.span

    @property
    def span_nbytes(self) -> int:
        return PANEL * self.span * self.fmt.nbytes

    @property
    def unrolled(self) -> int:
        """Blocks that are decoded in one go: large ones singly, since the code of two takes long to compile."""
        return self.span if self.fmt.block < _LARGE_BLOCK else 1

    def place(self, name: str, span: Expr, block: Expr, index: int) -> Expr:
        """Where unit `index` of a field begins, for the first row, in block `block` of a span; counts units."""
        unit = self.fmt.field(name).unit
        first, stride = self._slots[name, index]
        assert first % unit == 0 and stride % unit == 0
        return span * (self.span_nbytes // unit) + block * (stride // unit) + first // unit

    @cached_property
    def _slots(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Byte offset of every unit in the first block of a span, and from there to the next block's.

        Narrow units come first, which aligns the others to cache lines. The others follow block by block in the
        order in which kernels use them, so that memory is read in one forward sweep: with fields apart, the hardware
        prefetcher lost the thread and reads fell to a third of the bandwidth.
        """
        narrow = [f for f in self.fmt.fields if f.unit < 4]
        wide = [(f.name, i) for f in self.fmt.fields if f.unit == 4 for i in range(f.count)]
        used = _use_order(self.fmt) if isinstance(self.fmt, BlockFormat) else wide
        assert sorted(used) == sorted(wide)
        slots: dict[tuple[str, int], tuple[int, int]] = {}
        at = 0
        for f in narrow:
            slots[f.name, 0] = at, f.unit * PANEL
            at += f.unit * PANEL * self.span
        for i, unit in enumerate(used):
            slots[unit] = at + 4 * PANEL * i, 4 * PANEL * len(used)
        return slots


class _UseRecorder:
    """`formats.base.Reader` that notes which words are read, in what order."""

    def __init__(self) -> None:
        self.words: dict[tuple[str, int], None] = {}

    def word(self, field: str, index: int) -> int:
        self.words[field, index] = None
        return 0

    def byte(self, field: str, index: int) -> int:
        return self.word(field, index // 4)

    signed_byte = byte

    def byte_of(self, word: int, index: int) -> int:
        return 0

    def half(self, field: str) -> float:
        return 0.0

    def narrow(self, field: str) -> int:
        return 0

    def to_float(self, value: int) -> float:
        return 0.0

    half_of = float_of = to_float

    def constant(self, value: int) -> int:
        return value

    def choose(self, bits: int, places: Places, if_set: int, if_clear: int) -> int:
        return 0

    def lookup(self, entries: tuple[int, ...], indices: int) -> int:
        return 0

    def entry(self, table: Table, index: int) -> int:
        return 0

    def once(self, key: object, build: Callable[[], Expr]) -> Expr:
        return build()


def _use_order(fmt: BlockFormat) -> list[tuple[str, int]]:
    """The four-byte units of a block in order of first use, group by group as the kernels go."""
    recorder = _UseRecorder()
    n_words = fmt.group // WORD
    for group in range(fmt.block // fmt.group):
        fmt.scale(recorder, group)
        if fmt.has_minimum:
            fmt.minimum(recorder, group)
        for w in range(n_words):
            fmt.codes_in_place(recorder, group * n_words + w)
    return list(recorder.words)


class PanelReader(VectorReader):
    """`formats.base.Reader` over one block of `isa.lanes` rows of a panel; every load is made once.

    A unit of a panel's 16 rows is at most a cache line, so the first pass over a panel prefetches one line a unit.
    """

    def __init__(
        self, isa: VectorIsa, layout: PanelLayout, panel: Panel, span: Expr, block: Expr, first_row: int
    ) -> None:
        super().__init__(isa, isa.lanes)
        self.layout, self.panel, self.span, self.block = layout, panel, span, block
        self.first_row = first_row

    def load(self, field: str, index: int) -> Expr:
        region = self.panel.units[self.layout.fmt.field(field).unit]
        at = self.layout.place(field, self.span, self.block, index) + self.first_row
        if self.isa.prefetch and self.first_row == 0:
            region.prefetch(at + self.isa.prefetch // region.itemsize)
        return region.load(at, self.lanes)

    def again(self) -> PanelReader:
        """A reader of the same block that loads everything anew, where registers could not hold it until then."""
        if not self.isa.anchors:
            return self
        panel = Panel(anchored(self.panel.base))
        return PanelReader(self.isa, self.layout, panel, self.span, self.block, self.first_row)


class Panel:
    """Typed views of one panel's bytes."""

    def __init__(self, base: Expr) -> None:
        self.base = base
        self.units = {unit: Region(base, f"uint{8 * unit}") for unit in (1, 2, 4)}

    @classmethod
    def at(cls, matrix: Expr, layout: PanelLayout, index: Expr) -> Panel:
        """Panel `index` of a matrix; the offset is 64-bit, matrices may exceed 2 GiB."""
        return cls(byte_offset(matrix, cast(index, "int64") * layout.nbytes))

    def anchored_at(self, layout: PanelLayout, span: Expr) -> Panel:
        """The panel from that span on, at a pointer of its own."""
        return Panel(anchored(byte_offset(self.base, span * layout.span_nbytes)))
