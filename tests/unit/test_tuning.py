"""Tuning of processor kernels: records that ship are used, and new ones are found and remembered."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aircompile.tuning import tune
from airkernels.cpu.isa import ISAS
from airrun.machine.isa import host_levels
from airschedules.records import STORE, MatmulTask, Record, add_records, find_record
from airschedules.rules import schedule_matmul, untuned
from airschedules.tuner import candidates, tune_matmuls

COMMON = [(fmt, n_cols) for fmt in ("Q4_0", "Q4_1", "Q8_0") for n_cols in (576, 1536, 2048, 4096, 8192, 14336)]


@pytest.fixture(autouse=True)
def no_records_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    STORE.forget()
    yield
    STORE.forget()


@pytest.mark.parametrize(("fmt", "n_cols"), COMMON)
def test_products_of_common_models_have_records_that_are_used(fmt: str, n_cols: int) -> None:
    task, isa = MatmulTask(fmt, n_cols, "prefill", digits=2), ISAS["x86-64-v4"]
    record = find_record(task, isa.name)
    assert record is not None and record.gops >= record.baseline > 0
    decision = schedule_matmul(task, isa)
    assert decision.reason.startswith("tuning record") and decision.schedule.tile == record.tile
    assert decision.schedule.unpack_from == untuned(task, isa).schedule.unpack_from


def test_what_was_never_measured_is_left_to_the_rules() -> None:
    isa = ISAS["x86-64-v4"]
    task = MatmulTask("Q4_0", 1760, "prefill", digits=2)
    assert schedule_matmul(task, isa) == untuned(task, isa)
    add_records({task.key(isa.name): Record(4, 2.0, 1.0)})
    assert schedule_matmul(task, isa).schedule.tile == 4
    # one token has one schedule, and floats have no records
    for other in (MatmulTask("Q4_0", 1760, "decode", 2), MatmulTask("Q4_0", 1760, "prefill", 0)):
        assert schedule_matmul(other, isa) == untuned(other, isa)


def test_the_fastest_candidate_is_found_and_remembered() -> None:
    level = host_levels()[0]
    task = MatmulTask("Q4_0", 160, "prefill", digits=2)
    found = tune_matmuls([task], ISAS[level], "fast", lambda *_: None)
    record = found[task.key(level)]
    assert record.tile in {schedule.tile for schedule in candidates(task, ISAS[level])}
    assert record.gops >= record.baseline > 0
    add_records(found)
    assert find_record(task, level) == record
    assert tune([], ISAS[level], "fast", lambda *_: None) == 0


def test_no_product_is_begun_after_the_deadline() -> None:
    level = host_levels()[0]
    task = MatmulTask("Q4_0", 160, "prefill", digits=2)
    assert not tune_matmuls([task], ISAS[level], "full", lambda *_: None, time.monotonic() - 1)
