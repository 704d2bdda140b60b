"""Weights in memory: what is kept of them, interleaved into panels while it is loaded, and small tensors."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

from airrun.ledger import Sizes, gathered, row_nbytes
from airrun.plan.chunks import Chunk
from airrun.plan.schema import PANEL_ROWS, Plan, Weight
from airrun.replay.memory import Region, inner_pages
from airrun.replay.native import TABLE, Call, Fetch, Library
from airrun.weights.expert_banks import banks_of
from airrun.weights.expert_cache import resident_tables
from airrun.weights.files import LoadMode, WeightFiles
from airrun.weights.residency import span_of
from airrun.weights.stream import Ring, Stream, describe_failure, read_function

_AT_ONCE = 8 << 20
"""Raw bytes interleaved between two releases of their pages: bounds what is resident twice."""


class Weights:
    """Memory of everything that a plan reads from its files. Panels are filled by the calls of `loading`.

    Attributes
    ----------
    address
        Of the panels that are kept; `Residency.segments` says what is where.
    tensor_addresses
        Address of each `plan.tensors` entry: its bytes, or where `tables` puts rows of it, or 0.
    expert_tables
        Address of where each matrix of a bank of experts is, by weight.
    tables
        Of the tensors that are read row by row: address of the native description of each, by tensor.
    """

    def __init__(self, plan: Plan, files: WeightFiles, sizes: Sizes, library: Library) -> None:
        self._plan, self._files, self._library = plan, files, library
        self._residency = sizes.residency
        self._panels = Region(sizes.residency.kept_nbytes, huge=True)
        self.address = self._panels.address
        self.tensor_addresses = [0] * len(plan.tensors)
        self._pinned = Region(sizes.pinned)
        self._read_pinned()
        self.expert_tables = self._tables_of_experts()
        self._rows = Region(sizes.rows)
        by_row = list(gathered(plan))
        self._tables = Region(TABLE.size * len(by_row))
        self.tables: dict[int, int] = {}
        at = 0
        for i, tensor in enumerate(by_row):
            found, nbytes = plan.tensors[tensor], row_nbytes(plan, tensor)
            fd, offset = files.descriptors[found.file], found.offset
            TABLE.pack_into(self._tables.memory, i * TABLE.size, read_function(library), offset, nbytes, 0, fd)
            self.tables[tensor] = self._tables.address + i * TABLE.size
            self.tensor_addresses[tensor] = self._rows.address + at
            at += -(-nbytes * sizes.max_tokens // 64) * 64

    def _tables_of_experts(self) -> list[int]:
        """Address of the table of each bank of experts, by weight; those of banks that are kept are filled."""
        banks = banks_of(self._plan)
        self._expert_tables = Region(8 * sum(bank.n_experts for bank in banks))
        addresses, at = [0] * len(self._plan.weights), self._expert_tables.address
        for bank in banks:
            addresses[bank.weight] = at
            at += 8 * bank.n_experts
        if not self._residency.expert_slots:
            resident_tables(banks, addresses)
        return addresses

    def _read_pinned(self) -> None:
        at = 0
        for i, tensor in enumerate(self._plan.tensors):
            if tensor.access == "pinned":
                data = self._files.read(tensor.file, tensor.offset, tensor.nbytes)
                self._pinned.memory[at : at + tensor.nbytes] = data
                self.tensor_addresses[i] = self._pinned.address + at
                at += -(-tensor.nbytes // 64) * 64

    def check_rows(self) -> None:
        """Raise what went wrong with reading single rows.

        Raises
        ------
        WeightFileError
            With file, offset and reason.
        """
        for i, index in enumerate(self.tables):
            read, offset, nbytes, failure, fd = TABLE.unpack_from(self._tables.memory, i * TABLE.size)
            if failure:
                TABLE.pack_into(self._tables.memory, i * TABLE.size, read, offset, nbytes, 0, fd)
                path = self._files.paths[self._plan.tensors[index].file]
                raise describe_failure(failure, path, offset + (failure >> 32) * nbytes)

    def loading(self, mode: LoadMode) -> tuple[list[Call], Stream | None]:
        """Native calls that make all panels that are kept, and the stream whose only pass they use, if any.

        Where everything is kept and files may be mapped, panels are made from the maps.
        """
        if not self._residency.streams and mode == "mmap":
            return self._interleave_maps(), None
        plan = self._plan
        chunks: list[Chunk] = []
        calls: list[Call] = []
        for chunk, place in zip(self._residency.chunks, self._residency.places, strict=True):
            if place < 0:
                continue
            weight = plan.weights[chunk.weight]
            fetch = fetch_of(chunk, weight, len(chunks))
            panels = self.address + place - chunk.first_panel * weight.panel_nbytes
            kernel = self._library.address(weight.pack)
            calls.append(Call(kernel, (0, panels), chunk.n_rows, chunk.n_panels, False, chunk.first_panel, fetch))
            chunks.append(chunk)
        if not calls:
            return [], None
        calls[-1] = calls[-1]._replace(sync=True)
        ring = Ring(plan.stream.slots, max(span_of(chunk)[1] for chunk in chunks))
        drop = self._residency.streams
        stream = Stream(
            self._library, self._files, chunks, ring, mode=mode, readers=plan.stream.readers, drop_cache=drop
        )
        return calls, stream

    def _interleave_maps(self) -> list[Call]:
        """Calls that make panels from mapped files, a few megabytes at a time, and let go of raw pages after each.

        A native call is a C function of a few words, and `madvise` is one: so all is done in one parallel region, in
        which no worker waits for the interpreter.
        """
        madvise = ctypes.cast(ctypes.CDLL(None).madvise, ctypes.c_void_p).value or 0
        packs = {weight.pack: self._library.address(weight.pack) for weight in self._plan.weights}
        calls: list[Call] = []
        releases: list[Call] = []
        size = 0
        for weight, source, nbytes, target, n_rows in self._pieces(self._files.maps()):
            n_tasks = -(-n_rows // PANEL_ROWS)
            calls.append(Call(packs[weight.pack], (source, target), n_rows, n_tasks, sync=False))
            first, length = inner_pages(source, nbytes)
            if length:
                releases.append(Call(madvise, (first, length, mmap.MADV_DONTNEED), 0, 1, sync=False))
            size += nbytes
            if size >= _AT_ONCE:
                calls[-1] = calls[-1]._replace(sync=True)
                calls += releases
                releases, size = [], 0
        if calls:
            calls[-1] = calls[-1]._replace(sync=True)
        return calls + releases

    def _pieces(self, maps: list[int]) -> Iterator[tuple[Weight, int, int, int, int]]:
        """Parts of weights, cut at `_AT_ONCE`: weight, address and bytes of the raw rows, address of panels, rows."""
        for weight, (whole,) in zip(self._plan.weights, self._residency.segments(), strict=True):
            address = self.address + whole.offset
            for part in weight.parts:
                tensor = self._plan.tensors[part.tensor]
                row_nbytes = weight.panel_nbytes // PANEL_ROWS
                n_rows, source = tensor.nbytes // row_nbytes, maps[tensor.file] + tensor.offset
                step = max(_AT_ONCE // row_nbytes // PANEL_ROWS, 1)
                for panel in range(0, -(-n_rows // PANEL_ROWS), step):
                    first = panel * PANEL_ROWS
                    rows = min(step * PANEL_ROWS, n_rows - first)
                    target = address + (part.first_panel + panel) * weight.panel_nbytes
                    yield weight, source + first * row_nbytes, rows * row_nbytes, target, rows


def fetch_of(chunk: Chunk, weight: Weight, number: int, pack: int = 0, origin: int = 0) -> Fetch:
    """How a call gets the rows of a chunk.

    Parameters
    ----------
    number
        Of the chunk in the pass.
    pack
        Kernel that makes panels of them; 0 where the call's kernel reads the rows themselves.
    origin
        Panel of the weight from which the call counts its tasks.
    """
    before = (chunk.first_panel - origin) * weight.panel_nbytes  # bytes of rows that the buffer does not begin with
    skew = chunk.offset - span_of(chunk)[0] - before
    return Fetch(pack, skew, weight.panel_nbytes, number, chunk.n_rows - origin * PANEL_ROWS)
