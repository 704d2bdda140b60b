"""The GPU's part of a plan is refused where its numbers do not fit together, and never read out of bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import use_fake_gpu
from test_gpu_plan import build_plan

from airrun.errors import PlanError
from airrun.plan.container import LoadedPlan, read_plan
from airrun.plan.device import DEVICE_CODEC, DevicePlan
from airrun.plan.read_device import device_plan
from airrun.plan.verify_device import verify_device


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedPlan]:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_gpu(patch)
        yield read_plan(build_plan(tmp_path_factory, patch))


def first(items: tuple[Any, ...], **changes: Any) -> tuple[Any, ...]:
    return (replace(items[0], **changes), *items[1:])


def step(plan: DevicePlan, **changes: Any) -> DevicePlan:
    program = plan.programs[0]
    return replace(plan, programs=first(plan.programs, steps=first(program.steps, **changes)))


def operand(plan: DevicePlan, **changes: Any) -> DevicePlan:
    return step(plan, operands=first(plan.programs[0].steps[0].operands, **changes))


def extent(plan: DevicePlan, **changes: Any) -> DevicePlan:
    return step(plan, extents=first(plan.programs[0].steps[0].extents, **changes))


def binary(plan: DevicePlan, **changes: Any) -> DevicePlan:
    return replace(plan, libraries=first(plan.libraries, binaries=first(plan.libraries[0].binaries, **changes)))


CASES: list[tuple[Callable[[DevicePlan], DevicePlan], str]] = [
    (lambda p: replace(p, format_version=99), "format_version is 99"),
    (lambda p: replace(p, libraries=()), "number of gpu.libraries"),
    (lambda p: replace(p, libraries=(p.libraries[0], p.libraries[0])), "two for one architecture"),
    (lambda p: replace(p, libraries=first(p.libraries, segment=99)), "segments has"),
    (lambda p: replace(p, libraries=first(p.libraries, binaries=p.libraries[0].binaries[1:])), "binaries is"),
    (lambda p: binary(p, offset=1 << 40), r"binaries\[0\]\.offset"),
    (lambda p: binary(p, nbytes=0), r"binaries\[0\]\.nbytes"),
    (lambda p: binary(p, threads=4096), r"binaries\[0\]\.threads"),
    (lambda p: binary(p, entry="a b"), "no name of a function"),
    (lambda p: binary(p, tiles=()), "extents is"),
    (lambda p: binary(p, tiles=(0,) * len(p.libraries[0].binaries[0].tiles)), r"tiles\[0\]"),
    (lambda p: replace(p, weights=first(p.weights, n_rows=7)), "n_rows is 7"),
    (lambda p: replace(p, weights=first(p.weights, nbytes=64, halves_offset=0)), r"weights\[0\]\.nbytes"),
    (lambda p: replace(p, weights=first(p.weights, parts=(999,))), "tensors has"),
    (lambda p: replace(p, weights=first(p.weights, pack=999)), r"weights\[0\]\.pack"),
    (lambda p: replace(p, weights=first(p.weights, places=0)), r"weights\[0\]\.places"),
    (lambda p: replace(p, weights=first(p.weights, format="Q9_9")), "Q9_9"),
    (lambda p: replace(p, buffers=first(p.buffers, offset=1 << 40)), r"buffers\[0\]\.offset"),
    (lambda p: replace(p, scratch_nbytes=-1), "scratch_nbytes"),
    (lambda p: replace(p, logits_stride=1), "logits_stride"),
    (lambda p: replace(p, leaders=replace(p.leaders, parts=0)), "leaders.parts"),
    (lambda p: replace(p, leaders=replace(p.leaders, best=1 << 13)), "leaders.best"),
    (lambda p: replace(p, leaders=replace(p.leaders, offset=p.scratch_nbytes - 16)), "leaders.offset"),
    (lambda p: replace(p, leaders=replace(p.leaders, offset=p.leaders.offset + 4)), "leaders.offset"),
    (
        lambda p: replace(p, leaders=replace(p.leaders, steps=first(p.leaders.steps, kernel=999))),
        "leaders.steps",
    ),
    (lambda p: replace(p, programs=()), "number of gpu.programs"),
    (lambda p: replace(p, programs=first(p.programs, hidden=999)), "hidden is 999"),
    (lambda p: replace(p, programs=first(p.programs, max_tokens=2)), "max_tokens"),
    (lambda p: step(p, kernel=999), "kernel is 999"),
    (lambda p: step(p, phase="tail"), "phase"),
    (lambda p: step(p, integers=("rows",)), "integers"),
    (lambda p: operand(p, space="moon"), "space"),
    (lambda p: operand(p, index=999), "index is 999"),
    (lambda p: operand(p, offset=1 << 50), "offset"),
    (lambda p: extent(p, axis=3), "axis"),
    (lambda p: extent(p, count="moons"), "count"),
    (lambda p: extent(p, n=0), "extents.n"),
]


def test_the_part_is_read_back(loaded: LoadedPlan) -> None:
    plan = device_plan(loaded)
    assert plan is not None and [library.arch for library in plan.libraries] == ["sm_90", "sm_86"]
    assert DEVICE_CODEC.loads(DEVICE_CODEC.dumps(plan)) == plan


@pytest.mark.parametrize(("change", "message"), CASES, ids=[message for _change, message in CASES])
def test_refused(loaded: LoadedPlan, change: Callable[[DevicePlan], DevicePlan], message: str) -> None:
    plan = device_plan(loaded)
    assert plan is not None
    with pytest.raises(PlanError, match=message):
        verify_device(change(plan), loaded.plan)


def test_a_damaged_part_is_one_line(loaded: LoadedPlan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not JSON"):
        DEVICE_CODEC.loads(b"{]")
