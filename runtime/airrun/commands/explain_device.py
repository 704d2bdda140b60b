"""The GPU's part of a plan, as `explain` shows it: memory by purpose, architectures, and kernels with their tiling."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from airrun.cuda.predict import predict_device
from airrun.cuda.sizes import device_sizes
from airrun.cuda.tiers import DISK, HOST
from airrun.plan.container import LoadedPlan
from airrun.plan.device import DevicePlan
from airrun.plan.read_device import device_plan


def describe_device(
    loaded: LoadedPlan, ctx_size: int | None, ram: int | None, vram: int | None
) -> dict[str, Any] | None:
    """Plain data for ``explain``; None where the plan has no part for GPUs.

    Without a budget, what the first target has is taken to be free.
    """
    part = device_plan(loaded)
    if part is None:
        return None
    plan = loaded.plan
    free = part.targets[0].vram_nbytes or None if part.targets else None
    sizes = device_sizes(plan, part, ctx_size=ctx_size, vram=vram, ram=ram, free=free)
    return {
        "libraries": [
            {"arch": library.arch, "backend": library.backend, "checked": library.checked, "nbytes": _code(loaded, i)}
            for i, library in ((library.segment, library) for library in part.libraries)
        ],
        "batch": sizes.max_tokens,
        "memory": sizes.entries,
        "total": sizes.total,
        "host_memory": sizes.host_entries,
        "tiers": dict(Counter(sizes.tiers.places)),
        "bus_per_token": sizes.tiers.raw_nbytes(HOST, DISK),
        "disk_per_token": sizes.tiers.raw_nbytes(DISK),
        "predictions": [asdict(predict_device(plan, part, sizes, target)) for target in part.targets],
        "kernels": _kernels(part),
        "programs": {program.name: len(program.steps) for program in part.programs},
    }


def _code(loaded: LoadedPlan, segment: int) -> int:
    return loaded.plan.segments[segment].nbytes


def _kernels(part: DevicePlan) -> list[dict[str, Any]]:
    """Every kernel, with its configuration on each architecture."""
    found = []
    for i, kernel in enumerate(part.kernels):
        calls = {program.name: sum(step.kernel == i for step in program.steps) for program in part.programs}
        configured = [(library.arch, library.binaries[i]) for library in part.libraries]
        schedules = {arch: {"schedule": binary.schedule, "reason": binary.reason} for arch, binary in configured}
        found.append({**asdict(kernel), "calls": calls, "schedules": schedules})
    return found
