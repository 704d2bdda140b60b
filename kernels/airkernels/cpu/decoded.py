"""Panels decoded to codes, scales and minima: in registers as they are used, or once into scratch for many tokens.

Both go along the rows in steps. Formats whose scales are those of a block times integer factors give the factors for
each group and the block's own scale once, so that products are scaled once a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from tvm import tirx

from airkernels.cpu.byte_shifts import with_byte_shifts
from airkernels.cpu.dot import centred
from airkernels.cpu.isa import PANEL, VectorIsa
from airkernels.cpu.panels import Panel, PanelLayout, PanelReader
from airkernels.cpu.program import Expr, Region, anchored, byte_offset, loop
from airkernels.formats import BlockFormat
from airkernels.formats.base import WORD, SuperBlockFormat

Codes = tuple[Expr, int]
"""A word: four codes a row, and how far they are still shifted to the left."""


class Group(Protocol):
    """One group of one vector of rows.

    Attributes
    ----------
    index
        Its number in a row.
    n_words
        Its vectors of codes.
    """

    @property
    def index(self) -> Expr: ...

    @property
    def n_words(self) -> int: ...

    def word(self, number: int) -> Codes: ...

    def scale(self) -> Expr:
        """Its scale, or the factor of it, float32."""

    def minimum(self) -> Expr:
        """Its minimum, or the factor of it, float32; only for formats with minima."""

    def again(self) -> Group:
        """The same group, for a place in the program where its words are no longer in registers."""


class Step(Protocol):
    """What a step along the rows decodes: some groups, or the groups of one block in `n_turns` turns.

    Attributes
    ----------
    n_turns
        How many times to ask for groups.
    """

    @property
    def n_turns(self) -> int: ...

    def block_scale(self) -> Expr:
        """Scale of the block, for formats with factors."""

    def block_minimum(self) -> Expr:
        """Minimum of the block, for formats with factors and minima."""

    def groups(self, turn: Expr) -> Sequence[Group]: ...


class PackedPanel:
    """Groups decoded in registers, a few blocks a step; `for_dot`: with codes as the dot product likes them."""

    def __init__(
        self, isa: VectorIsa, layout: PanelLayout, panel: Panel, first_row: int, for_dot: bool = False
    ) -> None:
        self.isa, self.layout, self.panel, self.first_row, self.for_dot = isa, layout, panel, first_row, for_dot
        self.n_steps = layout.n_blocks // layout.unrolled

    @property
    def together(self) -> int:
        """How many neighbouring groups to multiply at once: those of the same words, so that these are loaded once."""
        return self.fmt.groups_of_words if self.isa.anchors else 1

    @property
    def rows(self) -> int:
        return self.isa.lanes

    @property
    def n_words(self) -> int:
        return self.fmt.group // WORD

    @property
    def fmt(self) -> BlockFormat:
        assert isinstance(self.layout.fmt, BlockFormat)
        return self.layout.fmt

    def step(self, index: Expr) -> _PackedStep:
        span, unrolled = self.layout.span, self.layout.unrolled
        at = index if unrolled == span else tirx.indexdiv(index, span)
        panel, start = (self.panel.anchored_at(self.layout, at), 0) if self.isa.anchors else (self.panel, at)
        blocks = []
        for i in range(unrolled):
            block = index * unrolled + i
            within = i if unrolled == span else tirx.indexmod(index, span)
            blocks.append((block, PanelReader(self.isa, self.layout, panel, start, within, self.first_row)))
        return _PackedStep(self, blocks)


@dataclass(frozen=True)
class _PackedStep:
    panel: PackedPanel
    blocks: list[tuple[Expr, PanelReader]]
    n_turns = 1

    def block_scale(self) -> Expr:
        fmt = self.panel.fmt
        assert isinstance(fmt, SuperBlockFormat)
        [(_index, reader)] = self.blocks
        return fmt.block_scale(reader)

    def block_minimum(self) -> Expr:
        fmt = self.panel.fmt
        assert isinstance(fmt, SuperBlockFormat)
        [(_index, reader)] = self.blocks
        return fmt.block_minimum(reader)

    def groups(self, turn: Expr) -> Sequence[Group]:
        n = self.panel.fmt.block // self.panel.fmt.group
        return [_PackedGroup(block * n + g, self.panel, reader, g) for block, reader in self.blocks for g in range(n)]


@dataclass(frozen=True)
class _PackedGroup:
    index: Expr
    panel: PackedPanel
    reader: PanelReader
    number: int

    @property
    def n_words(self) -> int:
        return self.panel.n_words

    def again(self) -> _PackedGroup:
        return replace(self, reader=self.reader.again())

    def word(self, number: int) -> Codes:
        fmt, dot = self.panel.fmt, self.panel.isa.dot
        word = self.number * (fmt.group // WORD) + number
        if self.panel.for_dot and dot.is_centred(fmt.code_max):
            return centred(self._plain(fmt.codes(self.reader, word))), 0
        shift = fmt.code_shift(word)
        if self.panel.for_dot and dot.takes(fmt.code_max << shift):
            return self._plain(fmt.codes_in_place(self.reader, word)), shift
        return self._plain(fmt.codes(self.reader, word)), 0

    def _plain(self, codes: Expr) -> Expr:
        return with_byte_shifts(codes) if self.panel.isa.shifts_bytes else codes

    def scale(self) -> Expr:
        fmt = self.panel.fmt
        if isinstance(fmt, SuperBlockFormat):
            return self.reader.to_float(fmt.factor(self.reader, self.number))
        return fmt.scale(self.reader, self.number)

    def minimum(self) -> Expr:
        fmt = self.panel.fmt
        if isinstance(fmt, SuperBlockFormat):
            return self.reader.to_float(fmt.minimum_factor(self.reader, self.number))
        return fmt.minimum(self.reader, self.number)


class UnpackedPanel:
    """A panel decoded into scratch.

    Codes uint32 [n_cols/4][16]; scales and minima of groups, or their factors, float32 [groups][16]; with factors,
    those of blocks, float32 [blocks][16].
    """

    together = 1
    floats_of_group: ClassVar[int] = PANEL

    def __init__(self, isa: VectorIsa, fmt: BlockFormat, n_cols: int, base: Expr, first_row: int) -> None:
        self.isa, self.fmt, self.first_row = isa, fmt, first_row
        self.n_steps = n_cols // (fmt.block if isinstance(fmt, SuperBlockFormat) else fmt.group)
        self.codes = Region(base, "uint32")
        self.floats = Region(base, "float32")
        n_groups = n_cols // fmt.group
        self.scales = n_cols // WORD * PANEL
        width = self.floats_of_group
        self.minima = self.scales + n_groups * width
        self.block_scales = self.minima + (n_groups * width if fmt.has_minimum else 0)
        self.block_minima = self.block_scales + self.n_steps * width

    @classmethod
    def nbytes(cls, fmt: BlockFormat, n_cols: int) -> int:
        """Scratch bytes for one worker."""
        planes = 2 if fmt.has_minimum else 1
        n_blocks = n_cols // fmt.block if isinstance(fmt, SuperBlockFormat) else 0
        return PANEL * n_cols + 4 * cls.floats_of_group * planes * (n_cols // fmt.group + n_blocks)

    @property
    def rows(self) -> int:
        """Rows of a vector."""
        return self.isa.lanes

    @property
    def n_words(self) -> int:
        """Vectors of codes in a group."""
        return self.fmt.group // WORD

    def fill(self, source: PackedPanel) -> None:
        with loop(source.n_steps) as index:
            step = source.step(index)
            for group in step.groups(0):
                words = (group.word(w) for w in range(self.fmt.group // WORD))
                first = group.index * (self.fmt.group // WORD * PANEL)
                self._store_codes(first, (codes >> shift if shift else codes for codes, shift in words))
                self._store(self.scales, group.index, group.scale())
                if self.fmt.has_minimum:
                    self._store(self.minima, group.index, group.minimum())
            if isinstance(self.fmt, SuperBlockFormat):
                self._store(self.block_scales, index, step.block_scale())
                if self.fmt.has_minimum:
                    self._store(self.block_minima, index, step.block_minimum())

    def _store_codes(self, first: Expr, words: Iterator[Expr]) -> None:
        for w, codes in enumerate(words):
            self.codes.store(first + self.place(w), codes)

    def place(self, word: int) -> int:
        """Where a word of a group is, after the group's first."""
        return word * PANEL + self.first_row

    def _store(self, plane: int, index: Expr, value: Expr) -> None:
        self.floats.store(plane + index * PANEL + self.first_row, value)

    def load(self, plane: int, index: Expr) -> Expr:
        return self.floats.load(plane + index * PANEL + self.first_row, self.isa.lanes)

    def step(self, index: Expr) -> _UnpackedStep:
        return _UnpackedStep(self, index)


@dataclass(frozen=True)
class _UnpackedStep:
    """A group, or a block of them in as many turns."""

    panel: UnpackedPanel
    index: Expr

    @property
    def n_turns(self) -> int:
        fmt = self.panel.fmt
        return fmt.block // fmt.group if isinstance(fmt, SuperBlockFormat) else 1

    def block_scale(self) -> Expr:
        return self.panel.load(self.panel.block_scales, self.index)

    def block_minimum(self) -> Expr:
        return self.panel.load(self.panel.block_minima, self.index)

    def groups(self, turn: Expr) -> Sequence[Group]:
        return [_UnpackedGroup.at(self.panel, self.index * self.n_turns + turn)]


@dataclass(frozen=True)
class _UnpackedGroup:
    """Its codes begin with word `first` of `codes`."""

    index: Expr
    panel: UnpackedPanel
    codes: Region
    first: Expr

    @classmethod
    def at(cls, panel: UnpackedPanel, index: Expr) -> _UnpackedGroup:
        codes, first = panel.codes, index * (panel.fmt.group // WORD * PANEL)
        if panel.isa.anchors:
            codes, first = Region(anchored(byte_offset(codes.base, first * codes.itemsize)), codes.dtype), 0
        return cls(index, panel, codes, first)

    @property
    def n_words(self) -> int:
        return self.panel.n_words

    def again(self) -> _UnpackedGroup:
        return _UnpackedGroup.at(self.panel, self.index)

    def word(self, number: int) -> Codes:
        return self.codes.load(self.first + self.panel.place(number), self.panel.isa.lanes), 0

    def scale(self) -> Expr:
        return self.panel.load(self.panel.scales, self.index)

    def minimum(self) -> Expr:
        return self.panel.load(self.panel.minima, self.index)


DecodedPanel = PackedPanel | UnpackedPanel
