"""Plans that are built here run on ARM processors, emulated ones of every level: golden logits and text, equal bits.

One process of the emulator evaluates all models of a level, since its start takes seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import arm_machine
import numpy as np
import pytest
from measures import Logits, argmax_where_clear, divergence, same_bits
from zoo_folder import zoo_folder

from aircompile.demo import fetch_smollm2
from aircompile.pipeline import BuildOptions, build
from airrun.errors import ModelFileError
from airschedules.targets import load_target

LEVELS = load_target("cpu-arm").cpu.isa
LENGTH = 17
SPLIT = (1, 11, 2, 3)
"""A token, a prompt, and small batches: each has other loops."""

SAMPLE = {
    "armv8-a+i8mm": (("pure_q8_0", "auto"),),
    "armv8-a+dotprod": (("Q4_1", "f32"),),
    "armv8-a": (),
}
"""What is always tested; products of every kind of format on every level are, by themselves, in test_kernels_arm.py."""

TARGETS = {"rpi5": "armv8-a+dotprod", "graviton3": "armv8-a+i8mm"}


@dataclass(frozen=True)
class Case:
    """A model of the golden data on a level."""

    level: str
    model: str
    activations: str

    @property
    def file(self) -> Path:
        zoo = zoo_folder()
        llama = zoo / "models" / self.model / "model.gguf"
        return llama if llama.is_file() else zoo / "quant" / f"{self.model}.gguf"

    @property
    def is_sample(self) -> bool:
        return (self.model, self.activations) in SAMPLE[self.level]


def cases() -> list[Case]:
    models = sorted(file.stem for file in (zoo_folder() / "quant").glob("*.gguf"))
    return [
        *(Case(level, model, activations) for level in LEVELS for model in models for activations in ("auto", "f32")),
        *(Case(level, model, "f32") for level in LEVELS for model in ("llama", "llama_tied")),
    ]


def parameters() -> list[Any]:
    return [
        pytest.param(c, id=f"{c.level}-{c.model}-{c.activations}", marks=[] if c.is_sample else [pytest.mark.slow])
        for c in cases()
    ]


@cache
def golden(folder: str) -> dict[str, Any]:
    return dict(np.load(zoo_folder() / "models" / folder / "golden.npz"))


class Emulated:
    """Logits of cases, computed together for all that were asked for in this run."""

    def __init__(self, wanted: list[Case], folder: Path, home: Path) -> None:
        self._wanted, self._folder, self._home = wanted, folder, home
        self._done: set[str] = set()

    def logits(self, case: Case) -> tuple[Logits, Logits]:
        """All at once, and in parts, of the golden tokens."""
        if case.level not in self._done:
            self._run(case.level)
            self._done.add(case.level)
        return tuple(np.load(self._path(case, part)) for part in ("whole", "parts"))  # type: ignore[return-value]

    def _path(self, case: Case, part: str) -> Path:
        return self._folder / f"{case.level}.{case.model}.{case.activations}.{part}.npy"

    def _run(self, level: str) -> None:
        jobs = []
        target = load_target("cpu-arm")
        target = replace(target, cpu=replace(target.cpu, isa=(level,)))
        mine = [case for case in self._wanted if case.level == level]
        for case in mine:
            plan = self._folder / f"{case.level}.{case.model}.{case.activations}.plan.bin"
            ids = self._folder / f"{case.model}.ids.npy"
            np.save(ids, golden_ids(case))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AIRCOMPILE_HOME", str(self._home))
                build(case.file, plan, BuildOptions(target, activations=case.activations))  # type: ignore[arg-type]
            for part, split, threads in (("whole", (LENGTH,), 1), ("parts", SPLIT, 2)):
                jobs.append(
                    {
                        "plan": str(plan),
                        "model": str(case.file),
                        "ids": str(ids),
                        "logits": str(self._path(case, part)),
                        "split": split,
                        "options": {"threads": threads},
                    }
                )
        (file := self._folder / f"{level}.json").write_text(json.dumps(jobs))
        worker = str(Path(__file__).with_name("arm_worker.py"))
        done = arm_machine.python(
            arm_machine.PROCESSORS[level], worker, str(file), environment={}, timeout=60 + 120 * len(jobs)
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == [level] * len(jobs)


def golden_ids(case: Case) -> Any:
    return golden(case.model if case.model.startswith("llama") else "quant_base")[f"seq{LENGTH}"]


@pytest.fixture(scope="session")
def emulated(
    zoo: Path, compiler_home: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Emulated:
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if hasattr(item, "callspec") and "case" in item.callspec.params
    ]
    wanted = [case for case in dict.fromkeys(chosen) if isinstance(case, Case)]
    return Emulated(wanted, tmp_path_factory.mktemp("arm"), compiler_home)


@pytest.mark.parametrize("case", parameters())
def test_logits_on_an_arm_processor(emulated: Emulated, case: Case) -> None:
    """As near to exact arithmetic as golden logits or nearer, and the same bits however the tokens are split."""
    whole, parts = emulated.logits(case)
    assert same_bits(whole, parts)
    if case.model.startswith("llama"):
        assert divergence(golden(case.model)[f"hf_{LENGTH}"], whole).max() < 1e-6
        return
    gold = np.load(zoo_folder() / "quant" / f"{case.model}.npz")
    exact = gold[f"dequant_f32_{LENGTH}"]
    if case.activations == "f32":
        assert divergence(exact, whole).max() < 1e-6
    else:
        assert divergence(exact, whole).mean() <= divergence(exact, gold[f"lcpp_{LENGTH}"]).mean()


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return fetch_smollm2(print)
    except ModelFileError as error:
        pytest.skip(f"the model is neither cached nor to be had: {error}")


def smollm2_plan(model: Path, target: str, home: Path, folder: Path) -> Path:
    plan = folder / f"{target}.plan.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRCOMPILE_HOME", str(home))
        build(model, plan, BuildOptions(load_target(target), ctx_size=128, activations="f32"))
    return plan


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_smollm2_continues_as_golden(
    zoo: Path, smollm2: Path, compiler_home: Path, tmp_path: Path, target: str
) -> None:
    """The text of the command, for as many tokens as emulation has time for."""
    entry = json.loads((zoo / "smollm2" / "golden.json").read_text())["F32"]["greedy"][0]
    plan = smollm2_plan(smollm2, target, compiler_home, tmp_path)
    options = ["--model", str(smollm2), "-p", entry["prompt"], "-n", "2", "--temp", "0", "-t", "1"]
    processor = arm_machine.PROCESSORS[TARGETS[target]]
    done = arm_machine.python(
        processor, "-m", "airrun", str(plan), *options, environment={"AIRCOMPILE_HOME": str(tmp_path)}, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == " Paris."


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_greedy_token_of_smollm2(
    zoo: Path, smollm2: Path, compiler_home: Path, tmp_path: Path, target: str
) -> None:
    """Every golden token follows from those before it (evaluated at once: steps give the same bits)."""
    plan = smollm2_plan(smollm2, target, compiler_home, tmp_path)
    greedy = json.loads((zoo / "smollm2" / "golden.json").read_text())["F32"]["greedy"]
    jobs = []
    for i, entry in enumerate(greedy):
        ids, logits = tmp_path / f"{i}.ids.npy", tmp_path / f"{i}.npy"
        np.save(ids, entry["tokens"] + entry["greedy"][:-1])
        split = [len(entry["tokens"]) + len(entry["greedy"]) - 1]
        job = {"plan": str(plan), "model": str(smollm2), "ids": str(ids), "logits": str(logits)}
        jobs.append(job | {"split": split, "options": {"threads": 1}})
    (file := tmp_path / "jobs.json").write_text(json.dumps(jobs))
    worker = str(Path(__file__).with_name("arm_worker.py"))
    processor = arm_machine.PROCESSORS[TARGETS[target]]
    done = arm_machine.python(processor, worker, str(file), environment={}, timeout=3 * 3600)
    assert done.returncode == 0, done.stderr[-2000:]
    for i, entry in enumerate(greedy):
        logits = np.load(tmp_path / f"{i}.npy")[len(entry["tokens"]) - 1 :]
        argmax_where_clear(logits, entry["greedy"], entry["margins"], 1e-3)
