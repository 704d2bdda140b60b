"""Streamed and resident weights give the same bits, whatever is kept and however it is read."""

from __future__ import annotations

import numpy as np
import pytest
from streamed_model import IDS, Open

from airrun.engine import Engine
from airrun.errors import BudgetError
from airrun.generation.generate import GenerateConfig, generate_tokens
from airrun.generation.speculate import PassTimes
from airrun.plan.container import read_plan
from airrun.replay.batch import Batch
from airrun.weights.residency import span_of


@pytest.mark.parametrize(
    ("share", "panels", "mode", "threads", "slots"),
    [
        (0.0, 1, "direct", 1, 2),
        (0.0, 1, "buffered", 2, 4),
        (0.0, 3, "mmap", 2, 4),
        (0.1, 2, "direct", 2, 3),
        (0.5, 1, "buffered", 1, 5),
        (0.5, 1, "mmap", 1, 2),
        (0.4, 3, "direct", 2, 8),
        (0.6, 1, "mmap", 2, 4),
    ],
)
def test_streamed_equals_resident(
    resident: Engine, open_streamed: Open, share: float, panels: int, mode: str, threads: int, slots: int
) -> None:
    engine = open_streamed(share, panels, slots, load_mode=mode, threads=threads)
    assert engine.streams and (share < 0.2 or engine.sizes.residency.kept_nbytes)
    assert engine.load_mode == mode
    assert np.array_equal(engine.logits(IDS), resident.logits(IDS))
    for each in (resident, engine):
        each.session.eval(IDS)  # a prompt of several batches, then token by token
    for token in (5, 9, 200):
        assert np.array_equal(engine.session.eval([token]), resident.session.eval([token]))


@pytest.mark.parametrize("mode", ["direct", "buffered", "mmap"])
def test_everything_kept_is_loaded_in_every_mode(resident: Engine, open_streamed: Open, mode: str) -> None:
    engine = open_streamed(1.5, 2, load_mode=mode)
    assert not engine.streams
    assert np.array_equal(engine.logits(IDS), resident.logits(IDS))


def test_a_pass_reads_the_same_bytes_for_any_number_of_sequences(resident: Engine, open_streamed: Open) -> None:
    engine = open_streamed(0.3, parallel=4)
    engine.session.eval(IDS[:3])
    engine.session.reset()
    wanted = engine.sizes.residency.streamed_nbytes
    alone = [resident.logits(IDS[:2])[-1], resident.logits(IDS[5:7])[-1]]
    for n in (1, 2, 4):
        sessions = [engine.new_session() for _ in range(n)]
        before, passes = engine.metrics()["streamed_bytes"], engine.metrics()["streamed_passes"]
        for step in range(2):
            parts = [s.extend([IDS[5 * (i % 2) + step]], [0]) for i, s in enumerate(sessions)]
            rows = engine.run(Batch(parts))
        for i, row in enumerate(rows):
            assert np.array_equal(row, alone[i % 2])
        # readers are ahead of the passes by what the ring holds, before and after
        ring = engine.sizes.residency.ring_nbytes
        assert engine.metrics()["streamed_passes"] == passes + 2
        assert abs(engine.metrics()["streamed_bytes"] - before - 2 * wanted) <= ring
        for session in sessions:
            session.reset()


def test_parts_of_a_prompt_do_not_read_the_head(open_streamed: Open) -> None:
    """Only the last batch of a prompt needs logits: the others skip the output matrix."""
    engine = open_streamed()
    residency = engine.sizes.residency
    head = len(engine.plan.weights) - 1
    assert engine.plan.weights[head].name == "output.weight"
    size = sum(span_of(chunk)[1] for chunk in residency.chunks if chunk.weight == head)
    engine.session.eval(IDS[:1])  # starts the readers
    before = engine.metrics()["streamed_bytes"]
    engine.session.eval((IDS * 5)[: 5 * engine.max_batch])
    assert engine.metrics()["streamed_passes"] == 6
    read = engine.metrics()["streamed_bytes"] - before
    # a reader may have been in the tail before it was told; the ring is the most that it can be ahead
    assert abs(read - (5 * residency.streamed_nbytes - 4 * size)) <= residency.ring_nbytes


def test_a_budget_that_is_too_small_names_one_that_works(open_streamed: Open, resident: Engine) -> None:
    plan = open_streamed().loaded.path
    with pytest.raises(BudgetError, match=r"the smallest budget that works is (\d+) MiB") as caught:
        Engine.from_plan(plan, ram="5MiB")
    enough = f"{str(caught.value).split()[-2]}MiB"
    with Engine.from_plan(plan, resident._files.paths, ram=enough) as engine:
        assert np.array_equal(engine.logits(IDS[:9]), resident.logits(IDS[:9]))


def test_more_memory_keeps_more_and_reads_less(open_streamed: Open) -> None:
    seen = []
    for share in (0.0, 0.2, 0.4, 0.8):
        residency = open_streamed(share).sizes.residency
        seen.append((residency.kept_nbytes, -residency.streamed_nbytes))
        plan = open_streamed(share).plan
        kept = [number for number, place in enumerate(residency.places) if place >= 0]
        assert set(kept) == set(plan.keep_order[: len(kept)])
    assert seen == sorted(set(seen))
    assert read_plan(open_streamed().loaded.path).plan.choice.ram_nbytes == 0


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_speculation_gives_the_same_text_in_fewer_passes(
    open_streamed: Open, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassTimes, "relative", lambda self, n_tokens: 1.0)
    engine = open_streamed(0.3)
    found, passes = [], []
    for speculate in ("none", "ngram"):
        config = GenerateConfig(
            max_tokens=30, temperature=temperature, seed=4, ignore_eos=True, speculate=speculate, top_k=2
        )
        before = engine.metrics()
        found.append(list(generate_tokens(engine.session, IDS[:6] * 4, config)))
        after = engine.metrics()
        passes.append(after["streamed_passes"] - before["streamed_passes"])
        assert after["decode_tokens"] - before["decode_tokens"] == 29
        engine.reset()
    assert found[0] == found[1]
    assert passes[1] < passes[0]
    metrics = engine.metrics()
    assert 0 < metrics["accepted"] == passes[0] - passes[1] <= metrics["drafted"]
