"""What an engine refuses, and how it says so: requests that cannot be met, weight files that are not the plan's."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_checks import TEXT, one_line, same
from tiny_model import N_CTX

from airrun.engine import Engine
from airrun.errors import PlanError, UsageError
from airrun.generation.generate import GenerateConfig


def test_empty_prompts_are_refused(engine: Engine) -> None:
    for ask in (lambda: engine.logits([]), lambda: engine.session.eval([]), lambda: engine.generate([])):
        with pytest.raises(UsageError) as error:
            ask()
        assert "empty" in one_line(error)


@pytest.mark.parametrize("bad", [-1, 262, 1 << 31, -(1 << 40)])
def test_ids_out_of_range_are_refused(engine: Engine, bad: int) -> None:
    assert engine.n_vocab == 262
    session = engine.session
    session.eval(TEXT)
    with pytest.raises(UsageError) as error:
        session.eval([5, bad, 6])
    assert str(bad) in one_line(error) and "262" in str(error.value)
    assert session.ids == TEXT
    assert same(session.eval([7]).copy(), engine.logits([*TEXT, 7])[-1:])


def test_a_full_context_is_refused_and_does_no_harm(engine: Engine) -> None:
    ids = [3 + i % 250 for i in range(N_CTX)]
    session = engine.session
    with pytest.raises(UsageError) as error:
        session.eval([*ids, 3])
    assert str(N_CTX + 1) in one_line(error) and str(N_CTX) in str(error.value)
    assert session.n_past == 0
    last = session.eval(ids).copy()
    with pytest.raises(UsageError):
        session.eval([3])
    assert session.n_past == N_CTX
    session.truncate(N_CTX - 1)
    assert same(session.eval(ids[-1:]).copy(), last)


def test_generation_ends_with_the_context(engine: Engine) -> None:
    config = GenerateConfig(max_tokens=-1, temperature=0.0, ignore_eos=True)
    engine.generate([3 + i % 250 for i in range(N_CTX - 5)], config)
    assert engine.session.n_past <= N_CTX


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ctx_size": N_CTX + 1}, str(N_CTX + 1)),
        ({"ctx_size": 0}, "0"),
        ({"ctx_size": -1}, "-1"),
        ({"threads": 0}, "0"),
        ({"parallel": 0}, "0"),
        ({"threads": -1}, "-1"),
        ({"threads": 100_000}, "100000"),
    ],
)
def test_numbers_out_of_range_are_refused(plan: Path, model: Path, options: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError) as error:
        Engine.from_plan(plan, model, **options)  # type: ignore[arg-type]
    assert word in one_line(error)


def test_a_smaller_context_holds(plan: Path, model: Path, engine: Engine) -> None:
    with Engine.from_plan(plan, model, ctx_size=20) as small:
        assert same(small.logits(TEXT), engine.logits(TEXT))
        with pytest.raises(UsageError):
            small.logits([5] * 21)


def test_a_plan_of_another_model_is_refused(plan: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = model.read_bytes()
    other.write_bytes(data.replace(b"Tiny", b"Tony", 1))
    with pytest.raises(PlanError) as error:
        Engine.from_plan(plan, other)
    assert str(other) in one_line(error)


@pytest.mark.parametrize("missing", [1, 4096, 100_000])
def test_a_truncated_weight_file_is_refused(plan: Path, model: Path, tmp_path: Path, missing: int) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-missing])
    with pytest.raises(PlanError) as error:
        Engine.from_plan(plan, short)
    text = one_line(error)
    assert str(short) in text and str(short.stat().st_size) in text and str(model.stat().st_size) in text


def test_what_is_no_file_is_refused(plan: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(PlanError) as error:
            Engine.from_plan(plan, path)
        assert str(path) in one_line(error)


def test_weights_are_found_beside_the_plan(plan: Path, model: Path, tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "moved.plan.bin").write_bytes(plan.read_bytes())
    (tmp_path / "renamed.gguf").write_bytes(model.read_bytes())
    with Engine.from_plan(tmp_path / "moved.plan.bin") as found:
        assert same(found.logits(TEXT), engine.logits(TEXT))
