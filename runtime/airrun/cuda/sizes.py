"""What a run takes of a GPU's memory, from the plan and the options alone; the engine allocates by it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from airrun.errors import BudgetError, UsageError
from airrun.ledger import kv_nbytes
from airrun.plan.device import CHOSEN_RING, DevicePlan
from airrun.plan.schema import Plan

_UNIT = 256
"""Alignment of everything, in bytes."""


@dataclass(frozen=True)
class DeviceSizes:
    """Bytes on the device, by purpose; the first four are counts.

    Attributes
    ----------
    weights, vectors
        Matrices in planes, and small tensors.
    arena, scratch
        Activations of the largest batch, working memory of single kernels.
    inputs
        What the host fills, rotary angles included.
    kv
        The cache.
    logits
        Of one row.
    """

    ctx_size: int
    parallel: int
    max_tokens: int
    kv_blocks: int
    weights: int
    vectors: int
    arena: int
    scratch: int
    inputs: int
    kv: int
    logits: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(getattr(self, f.name) for f in fields(self)[4:])

    def require(self, free: int, name: str) -> None:
        """BudgetError where a device has less memory free than this."""
        if self.total > free:
            gib = 1 << 30
            raise BudgetError(
                f"{name} has {free / gib:.2f} GiB of memory free, and this plan needs {self.total / gib:.2f} GiB "
                f"({self.weights / gib:.2f} of weights, {self.kv / gib:.2f} of cache): use a smaller --ctx-size, or "
                "--device cpu"
            )


def device_sizes(plan: Plan, device: DevicePlan, *, ctx_size: int | None = None, parallel: int = 1) -> DeviceSizes:
    """Sizes of a run.

    Raises
    ------
    UsageError
        A number out of range.
    """
    ctx_size = plan.choice.ctx_size if ctx_size is None else ctx_size
    most = plan.kv.max_blocks * plan.kv.block_cells
    if not 1 <= ctx_size <= most:
        raise UsageError(f"context of {ctx_size} tokens: this plan allows 1 to {most}")
    if parallel < 1:
        raise UsageError(f"{parallel} parallel sessions: must be 1 or more")
    max_tokens = device.programs[-1].max_tokens
    blocks = parallel * -(-ctx_size // plan.kv.block_cells)
    used = {o.index for p in device.programs for step in p.steps for o in step.operands if o.space == "tensor"}
    arrays = _whole(4 * max_tokens) * 5 + _whole(4 * plan.kv.max_blocks) + _whole(4 * CHOSEN_RING)
    return DeviceSizes(
        ctx_size=ctx_size,
        parallel=parallel,
        max_tokens=max_tokens,
        kv_blocks=blocks,
        weights=sum(_whole(weight.nbytes) for weight in device.weights),
        vectors=sum(_whole(plan.tensors[i].nbytes) for i in used),
        arena=device.arena_nbytes * max_tokens,
        scratch=device.scratch_nbytes,
        inputs=arrays + 8 * plan.rope.n_pairs * (ctx_size + max_tokens),
        kv=kv_nbytes(plan.kv, blocks, 0),
        logits=4 * device.logits_stride,
    )


def _whole(nbytes: int) -> int:
    return -(-nbytes // _UNIT) * _UNIT
