"""Kernels that work on rows of activations, and on the logits."""

from __future__ import annotations

from dataclasses import dataclass

from airkernels.triton import rows, sample
from airkernels.triton.build import Constants
from airkernels.triton.layout import RowLayout
from airrun.plan.device import CHOSEN_RING, MAX_WATCHED
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec

_MOST_PARTS = 128
"""Of the search for the largest logits."""

LEADERS = 16
"""Largest logits that are kept of a part: of 128 parts, some 700 of a row are then sure to be among them."""

_CHUNK = 8
"""Tokens that stay together where a row is dealt to parts: a sector of memory."""


def power(n: int, least: int = 1) -> int:
    """The smallest power of two from `n`, and from `least`, on."""
    return max(least, 1 << (n - 1).bit_length())


def argmax_parts(n: int) -> int:
    """Programs that share the search among `n` logits, a power of two."""
    return min(_MOST_PARTS, power(max(n // 256, 1)))


def leader_parts(n: int) -> int:
    """Parts whose largest logits are looked for, a power of two."""
    return min(_MOST_PARTS, power(max(n // 64, 1)))


@dataclass(frozen=True)
class RowKind:
    """A kind of row, by which a row kernel stores: `layout.RowLayout` as constants."""

    kind: str
    n: int
    block: int

    @property
    def layout(self) -> RowLayout:
        return RowLayout(self.kind, self.n, self.block)

    @property
    def tile_block(self) -> int:
        """Elements of a block of the kernel's tile."""
        return max(self.block, 32)

    @property
    def n_tiles(self) -> int:
        """Blocks of the tile that cover a row."""
        return self.layout.places if self.block > 1 else -(-self.n // 32)

    def constants(self, elements: int) -> Constants:
        """Constants of a kernel whose programs store at least `elements`; a half-precision row is one tile."""
        blocks = power(self.n_tiles) if self.kind == "f16" else power(max(elements // self.tile_block, 1))
        return {
            "KIND": self.kind,
            "BLOCK": self.tile_block,
            "PLACES": self.layout.places if self.block > 1 else 0,
            "BLOCKS": min(blocks, power(self.n_tiles)),
            "OUT_STRIDE": self.layout.nbytes // 4,
        }


def row_warps(elements: int) -> int:
    """Warps for a tile: some eight elements a lane, at most 16 warps."""
    return min(16, power(max(elements // 256, 1)))


@dataclass(frozen=True)
class NormSpec(DeviceSpec):
    """Norm of rows, or of `groups` equal parts of theirs; `weights` and `biases` count the elements of these. Extents:
    rows, groups."""

    out: RowKind
    in_stride: int
    eps: float
    kind: str = "rms"
    groups: int = 1
    weights: int = 0
    biases: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        n, blocks = self.out.n // self.groups, self.out.n_tiles
        if self.groups > 1:
            blocks = -(-n // self.out.tile_block)
        stored = self.out.constants(self.out.tile_block * power(blocks))
        constants: Constants = {"N": n, "NORM": self.kind, "EPS": self.eps, "GROUPS": self.groups, **stored}
        constants |= {"WEIGHTS": self.weights, "BIASES": self.biases, "IN_STRIDE": self.in_stride}
        types = ("*fp32", "*fp32", "*fp32", "*u32")
        return DeviceSchedule(rows.norm, types, constants, (1, 1), row_warps(n))


@dataclass(frozen=True)
class ConvertSpec(DeviceSpec):
    """Float rows to another kind. Extents: rows, blocks of the tile."""

    out: RowKind
    in_stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        stored = self.out.constants(256)
        constants: Constants = {"N": self.out.n, "IN_STRIDE": self.in_stride, **stored}
        blocks = int(stored["BLOCKS"])
        warps = row_warps(blocks * self.out.tile_block)
        return DeviceSchedule(rows.convert, ("*fp32", "*u32"), constants, (1, blocks), warps)


@dataclass(frozen=True)
class SelectSpec(DeviceSpec):
    """Copying the output rows of a batch. Extents: outputs, words of a row."""

    n_words: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_words,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {
            "N_WORDS": self.n_words,
            "IN_STRIDE": self.n_words,
            "OUT_STRIDE": self.n_words,
            "TILE": 1024,
        }
        return DeviceSchedule(rows.select, ("*u32", "*i32", "*u32"), constants, (1, 1024), 4)


@dataclass(frozen=True)
class ArgmaxSpec(DeviceSpec):
    """The largest logit, in parts. Extents: parts."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        constants: Constants = {"N": self.n, "TILE": 256, "PARTS": argmax_parts(self.n)}
        return DeviceSchedule(sample.argmax_parts, ("*fp32", "*fp32", "*i32"), constants)


@dataclass(frozen=True)
class AdvanceSpec(DeviceSpec):
    """The step to the best of `n` tokens. Extents: one program."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        types = ("*fp32", "*i32", "*i32", "*i32", "*i32", "*i32")
        return DeviceSchedule(sample.advance, types, {"PARTS": argmax_parts(self.n), "RING": CHOSEN_RING}, (1,), 1)


@dataclass(frozen=True)
class LeadersSpec(DeviceSpec):
    """The largest of `n` logits, in parts. Extents: parts."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    def schedule(self, arch: str) -> DeviceSchedule:
        parts = leader_parts(self.n)
        tile = power(-(-self.n // (_CHUNK * parts))) * _CHUNK
        constants: Constants = {
            "N": self.n,
            "PARTS": parts,
            "BEST": LEADERS,
            "CHUNK": _CHUNK,
            "TILE": tile,
            "WATCHED": MAX_WATCHED,
        }
        types = ("*fp32", "*i32", "*fp32", "*i32", "*fp32", "*fp32")
        return DeviceSchedule(sample.leaders, types, constants, (1,), row_warps(tile))
