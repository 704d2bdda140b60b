"""Every x86-64 instruction set gives the same results up to rounding, on this processor and on emulated older ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from debian import emulator
from measures import Logits, divergence, same_bits
from zoo_folder import zoo_folder

from aircompile.pipeline import BuildOptions, build
from airrun.engine import Engine
from airrun.machine.isa import machine, missing
from airschedules.targets import load_target

pytestmark = pytest.mark.skipif(machine() != "x86_64", reason="instruction sets of x86-64")

X86_LEVELS = load_target("cpu").cpu.isa
SIMPLEST = X86_LEVELS[-1]
EMULATED = {"x86-64-v3": "Haswell", "x86-64-v2": "Nehalem"}
"""Processors of QEMU that have a level and nothing more. It knows no AVX-512 and no AVX-VNNI."""

SAMPLE = ("Q4_1", "auto")
N_TOKENS = 50

PlanOf = Callable[[str, str], Path]


def model_file(name: str) -> Path:
    return zoo_folder() / "quant" / f"{name}.gguf"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: every quantized model with rounded activations and exact ones, all but a sample in slow tests."""
    if "case" in metafunc.fixturenames:
        names = sorted(file.stem for file in (zoo_folder() / "quant").glob("*.gguf"))
        cases = [(name, activations) for name in names for activations in ("auto", "f32")]
        slow = pytest.mark.slow
        metafunc.parametrize(
            "case", [pytest.param(c, id="-".join(c), marks=[] if c == SAMPLE else [slow]) for c in cases]
        )


@pytest.fixture(scope="module")
def plan_of(compiler_home: Path, tmp_path_factory: pytest.TempPathFactory) -> PlanOf:
    """Plans with kernels for every level, each built once."""
    folder = tmp_path_factory.mktemp("plans")

    def plan_of(name: str, activations: str) -> Path:
        plan = folder / f"{name}.{activations}.plan.bin"
        if not plan.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AIRCOMPILE_HOME", str(compiler_home))
                build(model_file(name), plan, BuildOptions(load_target("cpu"), activations=activations))  # type: ignore[arg-type]
        return plan

    return plan_of


def token_ids(name: str) -> np.ndarray:
    return np.load(zoo_folder() / "models" / "quant_base" / "golden.npz")["seq300"][:N_TOKENS]


def here(plan: Path, name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> Logits:
    """Logits by the kernels of a level, on this processor."""
    monkeypatch.setenv("AIR_ISA", level)
    with Engine.from_plan(plan, model_file(name), threads=1) as engine:
        assert engine.isa == level
        return engine.logits(token_ids(name).tolist())


def emulated(plan: Path, name: str, level: str, folder: Path) -> Logits:
    """Logits of an emulated processor of a level, which must be the one that it chooses."""
    np.save(folder / "ids.npy", token_ids(name))
    worker = [str(Path(__file__).with_name("emulated_logits.py")), str(plan), str(model_file(name))]
    command = [str(emulator("x86_64")), "-cpu", EMULATED[level], os.path.realpath(sys.executable), *worker]
    environment = {k: v for k, v in os.environ.items() if k != "AIR_ISA"} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command += [str(folder / "ids.npy"), str(folder / "logits.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [level]
    logits: Logits = np.load(folder / "logits.npy")
    return logits


def tolerance(name: str, activations: str) -> float:
    """Mean KL allowed between levels: rounding of float32 sums, or half what llama.cpp's rounded activations cost.

    Where activations are rounded, a sum that differs in its last bit may round the other way.
    """
    if activations == "f32":
        return 1e-7
    entries = {e["tag"]: e for e in json.loads((zoo_folder() / "quant" / "index.json").read_text())}
    return float(entries[name]["q8act_vs_dequant_f32"]["mean_kl"]) / 2


@pytest.mark.parametrize("level", X86_LEVELS[:-1])
def test_levels_agree(
    zoo: Path, plan_of: PlanOf, case: tuple[str, str], level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, activations = case
    plan = plan_of(name, activations)
    if not missing(level):
        logits = here(plan, name, level, monkeypatch)
    elif level in EMULATED:
        logits = emulated(plan, name, level, tmp_path)
    else:
        pytest.skip(f"this processor lacks {' '.join(missing(level))}, and QEMU does, too")
    mean = divergence(here(plan, name, SIMPLEST, monkeypatch), logits).mean()
    print(f"{name} {activations} {level}: mean KL from {SIMPLEST} {mean:.2e}")
    assert mean < tolerance(name, activations)


@pytest.mark.parametrize("level", EMULATED)
def test_a_processor_of_a_level_runs_its_kernels(
    zoo: Path, plan_of: PlanOf, case: tuple[str, str], level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No instruction that it lacks, and the same bits as here."""
    name, activations = case
    plan = plan_of(name, activations)
    logits = emulated(plan, name, level, tmp_path)
    if not missing(level):
        assert same_bits(logits, here(plan, name, level, monkeypatch))
