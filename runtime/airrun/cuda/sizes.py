"""What a run takes of a GPU's memory and, pinned, of the host's, from the plan and the options alone; the engine
allocates by it. Budgets are bound here, as `airrun.ledger` binds them for a processor."""

from __future__ import annotations

from dataclasses import dataclass

from airrun.cuda.pieces import STREAM_NBYTES, slot_nbytes_for
from airrun.cuda.tiers import (
    DEVICE,
    HOST,
    HOST_ROWS,
    HOST_SLOTS,
    UNIT,
    Tiers,
    all_on_device,
    bind_tiers,
    smallest,
    vectors_of,
)
from airrun.errors import BudgetError, UsageError
from airrun.ledger import interpreter_nbytes, kv_nbytes, table_row
from airrun.plan.device import CHOSEN_RING, MAX_SMALL, MAX_WATCHED, DevicePlan
from airrun.plan.schema import Plan

_FREE_SHARE = 0.97
"""Of the memory that is free on a device, what a run without a budget takes at most: code needs some too."""

_DRIVER_NBYTES = 400 << 20
"""Host memory of a process that has a CUDA context, beside everything that is allocated: with some room, as drivers
differ (150 MiB on an H200)."""

_SMALLEST_BATCH = 16
"""Tokens; a prompt takes a pass over the weights per batch."""

_BATCH_SHARE = 4
"""The activations of a batch take at most one part in so many of what a budget leaves to them and the weights."""

_GIB = 1 << 30


@dataclass(frozen=True)
class DeviceSizes:
    """Bytes, by purpose; the first five are counts.

    Attributes
    ----------
    tiers
        Where the matrices lie.
    vectors
        Small tensors.
    arena, scratch
        Activations of the largest batch, working memory of single kernels.
    inputs
        What the host fills, rotary angles included.
    kv
        The cache.
    logits
        Of a single token, and of a small batch.
    process
        Host memory that is not pinned: the interpreter, the tokenizer, the driver: an estimate.
    """

    ctx_size: int
    parallel: int
    max_tokens: int
    kv_blocks: int
    ring_blocks: int
    tiers: Tiers
    vectors: int
    arena: int
    scratch: int
    inputs: int
    kv: int
    logits: int
    process: int

    @property
    def entries(self) -> dict[str, int]:
        """Of the device's memory, by what it is for."""
        found = {
            "weights": self.tiers.nbytes(DEVICE),
            "ring of streamed weights": self.tiers.ring_nbytes,
            "raw bytes on arrival": self.tiers.staging_nbytes,
            "vectors": self.vectors,
            f"KV cache, {self.ctx_size} tokens": self.kv,
            f"activations, {self.max_tokens} tokens": self.arena,
            "scratch": self.scratch,
            "inputs": self.inputs,
            "logits": self.logits,
        }
        return {name: nbytes for name, nbytes in found.items() if nbytes}

    @property
    def host_entries(self) -> dict[str, int]:
        """Of the host's memory."""
        found = {
            "process": self.process,
            "weights, pinned": self.tiers.raw_nbytes(HOST),
            "rows of embeddings, pinned": self.tiers.nbytes(HOST_ROWS),
            "buffers of files, pinned": self.tiers.buffers_nbytes,
        }
        return {name: nbytes for name, nbytes in found.items() if nbytes}

    @property
    def total(self) -> int:
        """All bytes on the device."""
        return sum(self.entries.values())

    def require(self, free: int, name: str) -> None:
        """BudgetError where a device has less memory free than this."""
        if self.total > free:
            weights = self.tiers.nbytes(DEVICE) / _GIB
            raise BudgetError(
                f"{name} has {free / _GIB:.2f} GiB of memory free, and this run needs {self.total / _GIB:.2f} GiB "
                f"({weights:.2f} of weights, {self.kv / _GIB:.2f} of cache): use a smaller --vram or --ctx-size, or "
                "--device cpu"
            )


def device_sizes(
    plan: Plan,
    device: DevicePlan,
    *,
    ctx_size: int | None = None,
    parallel: int = 1,
    vram: int | None = None,
    ram: int | None = None,
    free: int | None = None,
) -> DeviceSizes:
    """Sizes of a run.

    Parameters
    ----------
    vram, ram
        Bytes that may be taken of the device's memory, and by the whole process of the host's; by default what the plan
        was built for, else what is there.
    free
        Bytes of the device's memory that are there; None where that does not matter.

    Raises
    ------
    UsageError
        A number out of range.
    BudgetError
        A budget is too small even if no weight is kept; names the smallest that works.
    """
    ctx_size = plan.choice.ctx_size if ctx_size is None else ctx_size
    most = plan.kv.max_blocks * plan.kv.block_cells
    if not 1 <= ctx_size <= most:
        raise UsageError(f"context of {ctx_size} tokens: this plan allows 1 to {most}")
    if parallel < 1:
        raise UsageError(f"{parallel} parallel sessions: must be 1 or more")
    run = _Run(plan, device, ctx_size, parallel)
    whole = run.sizes(_largest_batch(plan, device), all_on_device(plan, device))
    budget = vram or device.vram_nbytes or (int(_FREE_SHARE * free) if free is not None else whole.total)
    return whole if whole.total <= budget else run.within(budget, ram or plan.choice.ram_nbytes or _available())


def _largest_batch(plan: Plan, device: DevicePlan) -> int:
    """Tokens: where layers have windows, a batch is written before its first token looks back, so the blocks that these
    go round in must hold both."""
    most, kv = device.programs[-1].max_tokens, plan.kv
    if not kv.ring_blocks:
        return most
    return min(most, (kv.ring_blocks - 1) * kv.block_cells + 2 - kv.window)


def _available() -> int:
    from airrun.ram import available_ram

    return int(0.9 * available_ram())


@dataclass(frozen=True)
class _Run:
    """A plan and the numbers of a run that are settled before its budgets are."""

    plan: Plan
    device: DevicePlan
    ctx_size: int
    parallel: int

    def sizes(self, max_tokens: int, tiers: Tiers) -> DeviceSizes:
        plan, device = self.plan, self.device
        blocks = self.parallel * -(-self.ctx_size // plan.kv.block_cells)
        # one more than sequences at once, so that logits of another text can be had beside them
        ring = (self.parallel + 1) * min(plan.kv.ring_blocks, -(-self.ctx_size // plan.kv.block_cells))
        arrays = _whole(4 * max_tokens) * 5 + _whole(4 * table_row(plan.kv) * MAX_SMALL) + _whole(4 * CHOSEN_RING)
        arrays += _whole(4 * MAX_WATCHED)
        return DeviceSizes(
            ctx_size=self.ctx_size,
            parallel=self.parallel,
            max_tokens=max_tokens,
            kv_blocks=blocks,
            ring_blocks=ring,
            tiers=tiers,
            vectors=sum(_whole(plan.tensors[i].nbytes) for i in vectors_of(device)),
            arena=device.arena_nbytes * max_tokens,
            scratch=device.scratch_nbytes,
            inputs=arrays + 8 * plan.rope.n_pairs * (self.ctx_size + max_tokens),
            kv=kv_nbytes(plan.kv, blocks, ring),
            logits=4 * device.logits_stride * (1 + MAX_SMALL),
            process=interpreter_nbytes(plan) + _DRIVER_NBYTES,
        )

    def within(self, vram: int, ram: int) -> DeviceSizes:
        """The largest batch and the most weights that budgets have room for."""
        plan, device = self.plan, self.device
        base = self.sizes(1, all_on_device(plan, device))
        buffers = HOST_SLOTS * slot_nbytes_for(plan, device, vectors_of(device), STREAM_NBYTES)
        if base.process + buffers > ram:
            smallest_ram = -(-(base.process + buffers) // (1 << 20))
            raise BudgetError(
                f"{ram >> 20} MiB of RAM are not enough to stream to a GPU: the smallest --ram is {smallest_ram} MiB"
            )
        host = ram - base.process
        least = smallest(plan, device, host)
        for max_tokens in self._batches():
            bare = self.sizes(max_tokens, all_on_device(plan, device))
            room = vram - (bare.total - bare.tiers.device_nbytes)
            if room < least or (max_tokens > _SMALLEST_BATCH and bare.arena * _BATCH_SHARE > room):
                continue
            return self.sizes(max_tokens, bind_tiers(plan, device, room, host))
        needed = bare.total - bare.tiers.device_nbytes + least
        raise BudgetError(
            f"{vram >> 20} MiB of the GPU's memory are not enough for a context of {self.ctx_size} tokens: the "
            f"smallest --vram that works is {-(-needed // (1 << 20))} MiB, of which the cache takes {bare.kv >> 20}"
        )

    def _batches(self) -> list[int]:
        """Batch sizes to try, largest first."""
        n = _largest_batch(self.plan, self.device)
        return [n >> i for i in range(n.bit_length()) if n >> i >= _SMALLEST_BATCH] or [n]


def _whole(nbytes: int) -> int:
    return -(-nbytes // UNIT) * UNIT
