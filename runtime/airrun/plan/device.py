"""The part of a plan that runs on a GPU: kernels for one or several architectures, and programs that launch them.

It is a segment of its own, named `DEVICE_SEGMENT`, in the form of the plan's index (`airrun.plan.codec`), so that a run
on the processor never decodes it; the machine code is in further segments, one per architecture. Tensors, the cache's
geometry, rotary frequencies, constants and the tokenizer are those of the plan around it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from airrun.plan.codec import Codec
from airrun.plan.schema import Buffer, Kernel, Operand
from airrun.records import record

DEVICE_FORMAT_VERSION = 1

BACKENDS = ("cuda", "hip")

DEVICE_SPACES = ("none", "weight", "halves", "tensor", "buffer", "input", "kv", "logits", "scratch")
"""Spaces of operands: 'weight' is a matrix on the device and 'halves' its two-byte planes; 'tensor' a vector, uploaded
as it stands in its file; the others are those of `airrun.plan.schema.Operand`."""

DEVICE_INPUTS = (
    "token_ids", "cells", "sequences", "output_rows", "rope_rows", "rope", "block_table", "chosen", "watched",
)  # fmt: skip
"""What the host fills before a program runs, int32 unless said otherwise. As `airrun.plan.schema.INPUTS`, but: rope
is float32 [rows, 2, dim/2], cosines and sines by position; rope_rows [n] says which row a token takes; chosen
[CHOSEN_RING] are the tokens that the greedy steps chose, by cell, in memory that the host can read; watched
[MAX_WATCHED] are tokens whose logits the host wants to see whatever they are (`DeviceLeaders`)."""

CHOSEN_RING = 64

MAX_WATCHED = 1024

MAX_SMALL = 8
"""Tokens of a small batch, of as many sequences at most: rows of the block table."""

AXES = 3

COUNTS = ("fixed", "tokens", "outputs")


@record
class Extent:
    """What the programs of a kernel divide between them along one axis of the grid: `n` times the number of tokens or
    outputs, or just `n`. Extents of one axis multiply."""

    axis: int
    count: str
    n: int


@record
class Launch:
    """A kernel call. Extent i is covered by tiles of the kernel's `Binary.tiles[i]`.

    `integers`: further arguments, 'tokens' or 'outputs'. `phase` is one of the plan's.
    """

    kernel: int
    layer: int
    phase: str
    label: str
    extents: tuple[Extent, ...]
    operands: tuple[Operand, ...]
    integers: tuple[str, ...]


@record
class DeviceProgram:
    """Launches for batches of up to `max_tokens` tokens, those of the last program of one sequence only. `hidden` is
    the buffer that embeddings are written to."""

    name: str
    max_tokens: int
    hidden: int
    steps: tuple[Launch, ...]


@record
class DeviceLeaders:
    """Steps that follow the decode program where a token is drawn: they find the most likely ones, in parts of the row.

    From `offset` of scratch on they leave, float32 unless said otherwise: [parts, best] the largest logits of each
    part, largest first; int32 [parts, best] their tokens; [MAX_WATCHED] the logits of the tokens of the input
    'watched'; [parts] the sum of exp(logit - largest) over each part. Every token belongs to a part.
    """

    steps: tuple[Launch, ...]
    offset: int
    parts: int
    best: int

    @property
    def nbytes(self) -> int:
        """What the steps leave."""
        return 4 * (2 * self.parts * self.best + self.parts + MAX_WATCHED)


@record
class Binary:
    """Machine code of a kernel: an ELF image in the segment of its library, and how it is launched.

    `pdl`: it may start before the kernel in front of it has ended (programmatic dependent launch).
    """

    entry: str
    offset: int
    nbytes: int
    threads: int
    shared_nbytes: int
    pdl: bool
    tiles: tuple[int, ...]
    schedule: str
    reason: str


@record
class DeviceLibrary:
    """Kernels for one architecture (``sm_90``, ``gfx942``): a binary per kernel, in the order of the kernels.

    `checked`: whether kernels of this kind of architecture were ever run, or only compiled.
    """

    backend: str
    arch: str
    segment: int
    checked: bool
    binaries: tuple[Binary, ...]


@record
class DeviceTarget:
    """A GPU that the plan was built for, and the rates that predictions are made from: of its memory and of the bus
    from the host's, in bytes/s; 0 is unknown."""

    name: str
    arch: str
    vram_nbytes: int
    vram_bytes_per_s: float
    bus_bytes_per_s: float


@record
class DeviceWeight:
    """A matrix in device memory, see `airkernels.triton.layout`: made of raw rows by kernel `pack`, or, if that is -1,
    their copy.

    `parts` are tensors of the plan, whose rows follow each other. A plane has `places` entries, blocks and padding;
    `halves_offset` is where the two-byte planes begin.
    """

    name: str
    layer: int
    format: str
    n_rows: int
    n_cols: int
    nbytes: int
    places: int
    halves_offset: int
    pack: int
    parts: tuple[int, ...]


@record
class DevicePlan:
    """Everything. `arena_nbytes` is per token of the largest batch; `logits_stride` in float32; `vram_nbytes` what a
    run may take of the device's memory by default, 0 where that is left to the machine. All programs read the same
    matrices in the same order.

    `greedy` follows the decode program where the most likely token is wanted, `leaders` where one is drawn. A block of
    the cache is as large as on a processor, but holds, per KV head, keys and then values as [cells, head_dim].
    """

    format_version: int
    kernels: tuple[Kernel, ...]
    libraries: tuple[DeviceLibrary, ...]
    weights: tuple[DeviceWeight, ...]
    buffers: tuple[Buffer, ...]
    arena_nbytes: int
    scratch_nbytes: int
    logits_stride: int
    programs: tuple[DeviceProgram, ...]
    greedy: tuple[Launch, ...]
    leaders: DeviceLeaders
    targets: tuple[DeviceTarget, ...]
    vram_nbytes: int


class MatrixUse(NamedTuple):
    """Steps `first` to `last` of a program read a matrix, and no other."""

    weight: int
    first: int
    last: int


def matrix_uses(steps: Sequence[Launch]) -> list[MatrixUse]:
    """Matrices in the order in which steps read them whole; gathers of rows, in phase 'embed', do not count.

    A matrix that is read again after another one is listed again.
    """
    found: list[MatrixUse] = []
    for i, step in enumerate(steps):
        for weight in dict.fromkeys(o.index for o in step.operands if o.space in ("weight", "halves")):
            if step.phase == "embed":
                continue
            if found and found[-1].weight == weight:
                found[-1] = found[-1]._replace(last=i)
            else:
                found.append(MatrixUse(weight, i, i))
    return found


DEVICE_CODEC = Codec(DevicePlan, pooled=(Operand, Extent))
