"""A plan of format 2 made by an earlier build: read, verified and run by this runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden_plan import MODEL, PLAN

from airrun import Engine
from airrun.plan.container import read_plan
from airrun.plan.schema import FORMAT_VERSION


def test_the_golden_plan_is_of_this_format() -> None:
    """If this fails, the format has changed: raise FORMAT_VERSION and add a plan of the new one."""
    assert FORMAT_VERSION == 2
    plan = read_plan(PLAN).plan
    assert (plan.model.architecture, plan.model.n_layers, plan.choice.activations) == ("llama", 3, "f32")
    assert [program.name for program in plan.programs] == ["decode", "prefill"]
    assert [library.isa for library in plan.libraries] == ["x86-64-v2"]


def test_the_golden_plan_still_runs(zoo: Path) -> None:
    golden = np.load((zoo / MODEL).with_name("golden.npz"))
    with Engine.from_plan(PLAN, zoo / MODEL) as engine:
        logits = engine.logits(golden["seq17"].tolist())
    assert np.abs(logits - golden["lcpp_f32_17"]).max() < 1e-4
