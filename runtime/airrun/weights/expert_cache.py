"""A cache of expert matrices: what a router chose is read when it is not there, and what was of least use makes room.

Uses count by their number and their age: the weight of a use is halved with every `HALF_LIFE` tokens that it lies back,
as in LRFU (Lee et al. 2001).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
import weakref
from collections.abc import Sequence

from airrun.plan.schema import Plan
from airrun.replay.memory import Region
from airrun.replay.native import Call, Library
from airrun.weights.expert_banks import Bank, banks_of, needs_of
from airrun.weights.files import WeightFiles
from airrun.weights.residency import Residency, matrix_span_nbytes
from airrun.weights.stream import TIMEOUT_S, describe_failure, read_function

HALF_LIFE = 64
"""Tokens. Texts that stay with their subject would do better with more, others with less: see FINDINGS.md."""

_DEMAND = struct.Struct("<3Q4i")
"""`struct air_demand`: cache, bank, parts, n_parts, first, last, by_row."""

_REQUEST = struct.Struct("<2Q2i")
"""`struct air_request`: cache, demands, n_demands, ahead."""

_PLACE_NBYTES, _PART_NBYTES = 16, 8


class _Bank(ctypes.Structure):
    """`struct air_bank` of replay.h."""

    _fields_ = (
        ("table", ctypes.c_uint64),
        ("heat", ctypes.c_uint64),
        ("pack", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("matrix_nbytes", ctypes.c_int64),
        ("file", ctypes.c_int32),
        ("n_experts", ctypes.c_int32),
        ("n_rows", ctypes.c_int32),
        ("n_panels", ctypes.c_int32),
        ("first_chunk", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class _State(ctypes.Structure):
    """`struct air_experts` of replay.h."""

    _fields_ = (
        ("banks", ctypes.c_uint64),
        ("places", ctypes.c_uint64),
        ("jobs", ctypes.c_uint64),
        ("pool", ctypes.c_uint64),
        ("raw", ctypes.c_uint64),
        ("read", ctypes.c_uint64),
        ("slot_nbytes", ctypes.c_int64),
        ("raw_nbytes", ctypes.c_int64),
        ("n_banks", ctypes.c_int32),
        ("n_slots", ctypes.c_int32),
        ("growth", ctypes.c_float),
        ("weight", ctypes.c_float),
        ("drop_cache", ctypes.c_int32),
        ("timeout_s", ctypes.c_int32),
        ("round", ctypes.c_int32),
        ("page_nbytes", ctypes.c_int32),
        ("reserved1", ctypes.c_int64 * 4),
        ("posted", ctypes.c_uint64),
        ("begun", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("failure", ctypes.c_uint64),
        ("stop", ctypes.c_int32),
        ("reserved2", ctypes.c_int32),
        ("hits", ctypes.c_uint64),
        ("misses", ctypes.c_uint64),
        ("nbytes_read", ctypes.c_uint64),
        ("waited_ns", ctypes.c_uint64),
        ("reserved3", ctypes.c_int64 * 7),
    )


class ExpertCache:
    """The matrices of all banks, as many as there are slots.

    Attributes
    ----------
    address
        Of the native struct.
    pool
        Address of the slots, which the tables count from.
    n_slots
        How many matrices there is room for.
    """

    def __init__(
        self,
        plan: Plan,
        library: Library,
        files: WeightFiles,
        residency: Residency,
        tables: Sequence[int],
        drop_cache: bool,
    ) -> None:
        self._library, self._files = library, files
        self._banks = banks_of(plan)
        self._numbers = {bank.weight: i for i, bank in enumerate(self._banks)}
        self.n_slots = n_slots = residency.expert_slots
        readers = plan.stream.readers
        raw_nbytes = matrix_span_nbytes(plan)
        self._memory = Region(ctypes.sizeof(_State))
        self._state = state = _State.from_buffer(self._memory.memory)
        self.address = self._memory.address
        self._pool = Region(n_slots * residency.expert_slot_nbytes, huge=True)
        self._raw = Region(readers * raw_nbytes)
        self._places, self._jobs = Region(_PLACE_NBYTES * n_slots), Region(4 * n_slots)
        self._heat = Region(4 * sum(bank.n_experts for bank in self._banks))
        self._described = Region(ctypes.sizeof(_Bank) * len(self._banks))
        self.pool = self._pool.address
        heat = self._heat.address
        for i, bank in enumerate(self._banks):
            entry = _Bank.from_buffer(self._described.memory, i * ctypes.sizeof(_Bank))
            entry.table, entry.heat = tables[bank.weight], heat
            entry.pack = library.address(plan.weights[bank.weight].pack)
            entry.offset, entry.matrix_nbytes = bank.chunk.offset, bank.matrix_nbytes
            entry.file, entry.n_experts = files.streams[bank.chunk.file], bank.n_experts
            entry.n_rows, entry.n_panels, entry.first_chunk = bank.n_rows, bank.n_panels, bank.first_chunk
            heat += 4 * bank.n_experts
        state.banks, state.places, state.jobs = self._described.address, self._places.address, self._jobs.address
        state.pool, state.raw, state.read = self.pool, self._raw.address, read_function(library)
        state.slot_nbytes, state.raw_nbytes = residency.expert_slot_nbytes, raw_nbytes
        state.n_banks, state.n_slots = len(self._banks), n_slots
        rounds = HALF_LIFE * len(needs_of(plan, plan.programs[0]))
        state.growth, state.weight = 2.0 ** (1.0 / rounds), 1.0
        state.drop_cache, state.timeout_s, state.page_nbytes = drop_cache, TIMEOUT_S, mmap.PAGESIZE
        self._demands: list[object] = []
        self._settled = True
        self.forget()
        reader = library.function("air_expert_reader", ctypes.c_void_p, ctypes.c_int32)
        self._threads = [
            threading.Thread(target=reader, args=(self.address, i), name=f"airrun_expert-{i}", daemon=True)
            for i in range(readers)
        ]
        for thread in self._threads:
            thread.start()
        # readers know what they use by address only: it must stay until they have ended
        keep = (self._memory, self._pool, self._raw, self._places, self._jobs, self._heat, self._described, files)
        self._finalizer = weakref.finalize(self, _end, library, self.address, self._threads, keep)

    def demand(self, weight: int, first: int, last: int, by_row: bool, most: int) -> int:
        """Address of the demand of a product for chosen experts of [first, last): at most so many parts."""
        entry = self._described.address + self._numbers[weight] * ctypes.sizeof(_Bank)
        parts = ctypes.create_string_buffer(_PART_NBYTES * most)
        packed = _DEMAND.pack(self.address, entry, ctypes.addressof(parts), 0, first, last, by_row)
        demand = ctypes.create_string_buffer(packed, _DEMAND.size)
        self._demands.append((parts, demand))
        return ctypes.addressof(demand)

    def request(self, demands: Sequence[int], order: int, *, ahead: int) -> Call:
        """A call after which what demands lack is being read, by an order of rows; `ahead` requests may be in use."""
        listed = (ctypes.c_uint64 * len(demands))(*demands)
        packed = _REQUEST.pack(self.address, ctypes.addressof(listed), len(demands), ahead)
        request = ctypes.create_string_buffer(packed, _REQUEST.size)
        self._demands.append((listed, request))
        return Call(self._library.address("air_experts_request"), (ctypes.addressof(request), order), 0, 1, sync=True)

    def check(self) -> None:
        """Raise what went wrong with reading.

        Raises
        ------
        WeightFileError
            With file, offset and reason.
        """
        failure = int(self._state.failure)
        if failure:
            number = failure >> 32
            bank = next(b for b in reversed(self._banks) if b.first_chunk <= number)
            offset = bank.chunk.offset + (number - bank.first_chunk) * bank.matrix_nbytes
            raise describe_failure(failure, self._files.paths[bank.chunk.file], offset)

    def begin(self) -> None:
        """Before a run: after a failure nothing may be read any more that belongs to the run that failed.

        Raises
        ------
        WeightFileError
            The disk does not answer still.
        """
        if not self._settled:
            self.forget()
            self.check()

    def forget(self) -> None:
        """Take all matrices for absent; not while anything runs."""
        forget = self._library.function("air_experts_forget", ctypes.c_void_p)
        forget.restype = ctypes.c_int32
        self._settled = bool(forget(self.address))

    def metrics(self, running: float, n_workers: int) -> dict[str, float]:
        """How often a chosen matrix was there, what was read in `running` seconds, how long workers waited for it."""
        state = self._state
        uses = state.hits + state.misses
        return {
            "expert_hit_share": state.hits / uses if uses else 0.0,
            "expert_misses": state.misses,
            "expert_bytes": state.nbytes_read,
            "expert_bytes_per_second": state.nbytes_read / running if running else 0.0,
            "expert_wait_seconds": state.waited_ns / 1e9 / n_workers,
        }

    def close(self) -> None:
        """End the readers; idempotent."""
        self._finalizer()


def resident_tables(banks: Sequence[Bank], tables: Sequence[int]) -> None:
    """Fill the tables of banks whose matrices follow each other."""
    for bank in banks:
        entries = (ctypes.c_int64 * bank.n_experts).from_address(tables[bank.weight])
        entries[:] = [i * bank.matrix_nbytes for i in range(bank.n_experts)]


def _end(library: Library, address: int, threads: list[threading.Thread], _keep: object) -> None:
    library.function("air_experts_stop", ctypes.c_void_p)(address)
    for thread in threads:
        thread.join(TIMEOUT_S)
