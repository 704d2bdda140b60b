"""Reading the part of a plan that runs on a GPU."""

from __future__ import annotations

from airrun.plan.container import DEVICE_SEGMENT, LoadedPlan, has_device_plan
from airrun.plan.device import DEVICE_CODEC, DevicePlan
from airrun.plan.verify_device import verify_device


def device_plan(loaded: LoadedPlan) -> DevicePlan | None:
    """The GPU's part of a plan, checked; None if it has none.

    Raises
    ------
    PlanError
        A part that is damaged, of another version, or inconsistent.
    """
    if not has_device_plan(loaded.plan):
        return None
    number = [segment.name for segment in loaded.plan.segments].index(DEVICE_SEGMENT)
    found = DEVICE_CODEC.loads(bytes(loaded.segment(number)))
    verify_device(found, loaded.plan)
    return found
