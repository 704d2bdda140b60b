"""Streamed models with recurrent states: the bits of what is in memory, in prompts, steps, and sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streamed_model import IDS, budget, rechunked
from tiny_model import shared_home, use_home
from zoo_folder import zoo_folder

from aircompile.cli import main
from airrun.engine import Engine
from airrun.plan.container import read_plan
from airrun.session_file import load_session, save_session

MODELS = [
    "mamba2",
    "qwen35moe",  # with attention and experts
    pytest.param("jamba", marks=pytest.mark.slow),
    pytest.param("rwkv7", marks=pytest.mark.slow),
    pytest.param("lfm2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=MODELS)
def engines(
    request: pytest.FixtureRequest, zoo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    """(in memory, streamed)."""
    home, model = shared_home(tmp_path_factory), zoo_folder() / "models" / request.param / "model.gguf"
    whole, cut = home / f"{request.param}.plan.bin", home / f"{request.param}.cut.plan.bin"
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, home)
        assert main(["build", str(model), "-c", "256", "-o", str(whole), "--quiet"]) == 0
        rechunked(whole, cut, panels=2)
        ram = budget(read_plan(cut).plan, 0.2)
        with Engine.from_plan(whole, model) as resident, Engine.from_plan(cut, model, ram=ram) as streamed:
            residency = streamed.sizes.residency
            assert not resident.streams and (residency.streamed_nbytes or residency.expert_slots)
            yield resident, streamed


def test_prompts_and_steps(engines: tuple[Engine, Engine]) -> None:
    resident, streamed = engines
    expected = resident.logits(IDS)
    assert np.array_equal(streamed.logits(IDS), expected)
    session = streamed.session
    rows = [session.eval(IDS[:30], all_logits=True).copy()]
    rows += [session.eval([id_]).copy() for id_ in IDS[30:40]]
    assert np.array_equal(np.concatenate(rows), expected[:40])
    session.truncate(25)
    assert np.array_equal(session.eval(IDS[25:], all_logits=True), expected[25:])
    session.reset()


def test_a_state_goes_from_one_to_the_other(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    expected = engines[0].logits(IDS)[40:]
    for source, target in (engines, engines[::-1]):
        source.session.eval(IDS[:40])
        save_session(tmp_path / "session", source.session, "plan")
        load_session(tmp_path / "session", target.session, "plan")
        assert np.array_equal(target.session.eval(IDS[40:], all_logits=True), expected)
        source.session.reset()
        target.session.reset()
