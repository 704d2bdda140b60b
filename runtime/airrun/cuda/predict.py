"""How fast a plan should run on the GPUs it was built for, and which tier bounds that."""

from __future__ import annotations

from dataclasses import dataclass

from airrun.cuda.sizes import DeviceSizes
from airrun.cuda.tiers import DISK, HOST
from airrun.plan.device import DevicePlan, DeviceTarget
from airrun.plan.schema import Plan

_SHARE_OF_VRAM = 0.8
"""Of the data sheet's rate, what products reach in long matrices (H200)."""

_STEP_S = 1.5e-6
"""What a launch in a graph takes beside its bytes (H200)."""

_PIN_BYTES_PER_S = 15e9
"""At which the system pins pages that are there already (small ones, H200), while others are read."""


@dataclass(frozen=True)
class DevicePrediction:
    """Expected speed of decoding.

    Attributes
    ----------
    target
        The GPU.
    tokens_per_second, bound
        None and 'unknown' where a rate is missing; else 'vram', 'bus' or 'disk'.
    seconds
        Of a token, by tier: they run beside each other, and the longest counts.
    load_seconds
        Until the first token can begin, from a cold disk; None if its rate is unknown.
    """

    target: str
    tokens_per_second: float | None
    bound: str
    seconds: dict[str, float]
    load_seconds: float | None


def predict_device(plan: Plan, device: DevicePlan, sizes: DeviceSizes, target: DeviceTarget) -> DevicePrediction:
    """Predict the speed of one sequence with a short context."""
    tiers, disk = sizes.tiers, plan.cost.disk_bytes_per_s
    steps = len(device.programs[0].steps) + len(device.greedy)
    loads = {
        "vram": (plan.cost.weight_nbytes_per_token, _SHARE_OF_VRAM * target.vram_bytes_per_s, _STEP_S * steps),
        "bus": (tiers.raw_nbytes(HOST, DISK), target.bus_bytes_per_s, 0.0),
        "disk": (tiers.raw_nbytes(DISK), disk, 0.0),
    }
    known = all(rate for nbytes, rate, _fixed in loads.values() if nbytes)
    seconds = {name: nbytes / rate + fixed for name, (nbytes, rate, fixed) in loads.items() if nbytes and rate}
    slowest = max(seconds, key=seconds.__getitem__) if known else "unknown"
    resident = sum(file.nbytes for file in plan.files) - tiers.raw_nbytes(DISK)
    load = max(resident / disk, tiers.raw_nbytes(HOST) / _PIN_BYTES_PER_S) if disk else None
    return DevicePrediction(target.name, 1 / seconds[slowest] if known else None, slowest, seconds, load)
