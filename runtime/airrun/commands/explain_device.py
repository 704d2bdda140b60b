"""The GPU's part of a plan, as `explain` shows it: memory by purpose, architectures, and kernels with their tiling."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from airrun.cuda.sizes import device_sizes
from airrun.plan.container import LoadedPlan
from airrun.plan.device import DevicePlan
from airrun.plan.read_device import device_plan

_COUNTS = ("ctx_size", "parallel", "max_tokens", "kv_blocks")
"""Fields of the sizes that are no bytes."""


def describe_device(loaded: LoadedPlan, ctx_size: int | None) -> dict[str, Any] | None:
    """Plain data for ``explain``; None where the plan has no part for GPUs."""
    part = device_plan(loaded)
    if part is None:
        return None
    sizes = device_sizes(loaded.plan, part, ctx_size=ctx_size)
    return {
        "libraries": [
            {"arch": library.arch, "backend": library.backend, "checked": library.checked, "nbytes": _code(loaded, i)}
            for i, library in ((library.segment, library) for library in part.libraries)
        ],
        "memory": {f.name: getattr(sizes, f.name) for f in fields(sizes) if f.name not in _COUNTS},
        "total": sizes.total,
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
