"""Experts that do not fit: the same bits as in memory, no more read than was missing, and faults of the disk."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamed_model import IDS, FaultyDisk, budget
from tiny_model import shared_home, use_home, write_tiny

from aircompile.cli import main
from airrun.engine import Engine
from airrun.errors import PlanError, WeightFileError
from airrun.plan.container import read_plan
from airrun.plan.schema import Operand, Plan
from airrun.plan.verify import verify
from airrun.weights import expert_cache
from airrun.weights.expert_banks import banks_of, chosen_nbytes, least_slots, needs_of

N_LAYERS, N_EXPERTS, N_USED = 3, 12, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with a mixture of experts, `experts.gguf`, and its plan."""
    home = shared_home(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, home)
        path = home / "experts.gguf"
        model = write_tiny(path, n_layers=N_LAYERS, n_embd=128, n_ff=256, experts=(N_EXPERTS, N_USED))
        assert main(["build", str(model), "-o", str(home / "experts.plan.bin"), "--quiet"]) == 0
        yield home


@pytest.fixture(scope="module")
def plan(home: Path) -> Plan:
    return read_plan(home / "experts.plan.bin").plan


@pytest.fixture(scope="module")
def resident(home: Path) -> Iterator[Engine]:
    with Engine.from_plan(home / "experts.plan.bin", home / "experts.gguf") as engine:
        assert not engine.sizes.residency.expert_slots
        yield engine


def cached(home: Path, plan: Plan, share: float, **options: Any) -> Engine:
    """With room for about a share of the experts."""
    ram = budget(plan, share, **options)
    return Engine.from_plan(home / "experts.plan.bin", home / "experts.gguf", ram=ram, **options)


def test_what_steps_need_at_once(plan: Plan) -> None:
    banks = banks_of(plan)
    assert [bank.n_experts for bank in banks] == [N_EXPERTS] * 3 * N_LAYERS
    decode, prefill = (needs_of(plan, program) for program in plan.programs)
    assert [[(need.by_row, need.most) for need in needs] for needs in decode] == [[(True, N_USED)] * 3] * N_LAYERS
    assert [[(need.by_row, need.most) for need in needs] for needs in prefill] == [[(False, N_EXPERTS)] * 3] * N_LAYERS
    assert least_slots(plan) == 3 * N_USED
    assert chosen_nbytes(plan) == sum(N_USED * bank.matrix_nbytes for bank in banks)


@pytest.mark.parametrize(
    ("share", "mode", "threads"),
    [(0.0, "direct", 1), (0.0, "buffered", 2), (0.0, "mmap", 2), (0.4, "direct", 2), (0.7, "buffered", 1)],
)
def test_cached_equals_resident(
    home: Path, plan: Plan, resident: Engine, share: float, mode: Any, threads: int
) -> None:
    """Prompts in several batches, tokens one by one, and both again with a warm cache."""
    with cached(home, plan, share, load_mode=mode, threads=threads) as engine:
        slots = engine.sizes.residency.expert_slots
        assert least_slots(plan) <= slots < sum(bank.n_experts for bank in banks_of(plan))
        for _ in range(2):
            assert np.array_equal(engine.logits(IDS), resident.logits(IDS))
            for each in (engine, resident):
                each.reset()
            for token in IDS[:12]:
                assert np.array_equal(engine.session.eval([token]), resident.session.eval([token]))
            engine.reset()
            resident.reset()


def test_only_what_was_chosen_and_missing_is_read(home: Path, plan: Plan) -> None:
    """A token uses its experts only; of those, the ones of the token before are there."""
    (size,) = {bank.matrix_nbytes for bank in banks_of(plan)}
    with cached(home, plan, 0.6) as engine:
        engine.session.eval([5])
        before = engine.metrics()
        assert before["expert_misses"] == 3 * N_LAYERS * N_USED and before["expert_hit_share"] == 0
        engine.reset()
        engine.session.eval([5])  # the same token at the same place chooses the same
        assert engine.metrics()["expert_misses"] == before["expert_misses"]
        assert engine.metrics()["expert_hit_share"] == 0.5
        for token in IDS[:30]:
            engine.session.eval([token])
        found = engine.metrics()
        pages = 2 * 4096  # the first and the last are shared with neighbours
        assert found["expert_misses"] * size <= found["expert_bytes"] <= found["expert_misses"] * (size + pages)
        uses = found["expert_misses"] / (1 - found["expert_hit_share"])
        assert round(uses) == 32 * 3 * N_LAYERS * N_USED


def test_more_room_means_fewer_reads(home: Path, plan: Plan) -> None:
    misses = []
    for share in (0.0, 0.3, 0.7):
        with cached(home, plan, share) as engine:
            for token in IDS:
                engine.session.eval([token])
            misses.append(engine.metrics()["expert_misses"])
    assert misses[0] > misses[1] > misses[2] >= 3 * N_LAYERS * N_USED


def test_a_failed_read_is_an_error_and_then_forgotten(
    home: Path, plan: Plan, resident: Engine, disk: FaultyDisk
) -> None:
    with cached(home, plan, 0.0) as engine:
        engine.session.eval([5])
        engine.reset()
        disk.fail_next(-errno.EIO, after=3)
        with pytest.raises(WeightFileError, match=r"experts.gguf: cannot be read at offset \d+: Input/output error"):
            engine.session.eval(IDS[:5])
        engine.reset()
        assert np.array_equal(engine.logits(IDS[:9]), resident.logits(IDS[:9]))


def _changed(plan: Plan, program: int, **changes: Any) -> Plan:
    """The plan with another first step on a bank in a program; `operand` is (place, operand)."""
    steps = list(plan.programs[program].steps)
    at = needs_of(plan, plan.programs[program])[0][0].step
    if "operand" in changes:
        place, operand = changes.pop("operand")
        changes["operands"] = (*steps[at].operands[:place], operand, *steps[at].operands[place + 1 :])
    steps[at] = replace(steps[at], **changes)
    programs = list(plan.programs)
    programs[program] = replace(programs[program], steps=tuple(steps))
    return replace(plan, programs=tuple(programs))


@pytest.mark.parametrize(
    ("program", "changes", "reason"),
    [
        (0, {"tasks": 33}, "tasks is 33, not whole matrices of 16 panels"),
        (0, {"tasks": 208}, "tasks is 208"),
        (0, {"tasks": 0}, "tasks is 0"),
        (1, {"tasks": 191}, "neither panels of chosen experts nor all 192"),
        (1, {"tokens_per_task": 2}, "neither panels"),
        (0, {"rows": "outputs"}, "without the order of its rows"),
        (0, {"operand": (4, Operand("none", 0, 0))}, "without the order of its rows"),
        (0, {"operand": (5, Operand("none", 0, 0))}, "by the table in its operand 5"),
        (0, {"operand": (5, Operand("experts", 0, 0))}, "which has 0 bytes"),
    ],
)
def test_steps_that_read_banks_otherwise_are_refused(plan: Plan, program: int, changes: Any, reason: str) -> None:
    verify(plan)
    with pytest.raises(PlanError, match=reason):
        verify(_changed(plan, program, **changes))


def test_banks_are_matrices_whose_chunks_they_are(plan: Plan) -> None:
    bank = banks_of(plan)[0]
    weight = plan.weights[bank.weight]
    weights = [replace(w, chunk_panels=8) if w is weight else w for w in plan.weights]
    with pytest.raises(PlanError, match="chunk_panels is 8, expected 16 from a matrix"):
        verify(replace(plan, weights=tuple(weights)))
    index = weight.parts[0].tensor
    flat = replace(plan.tensors[index], shape=(N_EXPERTS * 256, 128))
    tensors = (*plan.tensors[:index], flat, *plan.tensors[index + 1 :])
    with pytest.raises(PlanError, match="is a bank of experts of shape"):
        verify(replace(plan, tensors=tensors))


def test_a_disk_that_does_not_answer_is_an_error(
    home: Path, plan: Plan, resident: Engine, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; and if it answers at last, all is well again."""
    monkeypatch.setattr(expert_cache, "TIMEOUT_S", 1)
    with cached(home, plan, 0.3) as engine:
        assert not engine.sizes.residency.streamed_nbytes
        engine.session.eval([5])
        disk.fail_next(before=lambda: time.sleep(4), after=4)  # after the rows of the embedding
        for _ in range(2):
            with pytest.raises(WeightFileError, match="the disk did not answer"):
                engine.session.eval(IDS[:3])
            engine.reset()
        time.sleep(2.5)
        assert np.array_equal(engine.logits(IDS[:9]), resident.logits(IDS[:9]))
