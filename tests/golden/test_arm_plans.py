"""Whole plans on emulated ARM processors: recurrences, mixtures, windows, rounded caches; streamed, on large pages.

Logits are those of the plan for this machine up to rounding, and streamed ones are those of the resident run on ARM,
bit for bit. One process of the emulator evaluates all models of a machine, since its start takes seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import arm_machine
import numpy as np
import pytest
from measures import Logits, OpenEngine, divergence, same_bits
from streamed_model import budget, rechunked
from zoo_folder import zoo_folder

from aircompile.pipeline import BuildOptions, build
from airrun.engine import Engine
from airrun.ledger import sizes_of
from airrun.machine.system import detect
from airrun.plan.container import read_plan
from airschedules.targets import load_target

ZOO = zoo_folder() / "models"
LENGTH = 80
"""Tokens: more than the windows of 64."""


@dataclass(frozen=True)
class Machine:
    """An emulated processor, its best instruction set, and the size of its pages (0: this machine's)."""

    level: str
    processor: str
    page_nbytes: int


MACHINES = {
    "plain": Machine("armv8-a", "cortex-a53", 0),
    "dot-16k": Machine("armv8-a+dotprod", "cortex-a76", 1 << 14),
    "dot-64k": Machine("armv8-a+dotprod", "cortex-a76", 1 << 16),
    "matrix": Machine("armv8-a+i8mm", "neoverse-v1", 0),
}
STREAMED = (("direct", 0.0), ("buffered", 0.3), ("mmap", 0.6))
"""How weights that are not kept are read, and where the budget is between the least and that of a resident run."""

SAMPLE = {("dot-64k", "mamba2", "auto"), ("dot-64k", "gptoss", "q8_0")}
"""Always tested: a recurrence; experts, windows and a rounded cache."""


@dataclass(frozen=True)
class Case:
    """A model of the golden data, with a type of cache, on a machine."""

    machine: str
    model: str
    kv_type: str

    def __str__(self) -> str:
        return f"{self.machine}-{self.model}-{self.kv_type}"

    @property
    def file(self) -> Path:
        return ZOO / self.model / "model.gguf"


def cases() -> list[Any]:
    models = sorted(path.parent.name for path in ZOO.glob("*/model.gguf"))
    found = [Case(machine, model, "auto") for machine in MACHINES for model in models]
    found += [Case(machine, model, "q8_0") for machine in MACHINES for model in ("gptoss", "llama")]
    sampled = {Case(*each) for each in SAMPLE}
    return [pytest.param(c, id=str(c), marks=[] if c in sampled else [pytest.mark.slow]) for c in found]


def token_ids(case: Case) -> Any:
    return np.load(case.file.with_name("golden.npz"))["seq300"][:LENGTH]


class Emulated:
    """Logits of cases, computed together for all of a machine that were asked for in this run."""

    def __init__(self, wanted: list[Case], folder: Path, home: Path) -> None:
        self._wanted, self._folder, self._home = wanted, folder, home
        self._done: set[str] = set()

    def logits(self, case: Case) -> tuple[Logits, list[Logits]]:
        """Of the resident run, and of one for each way to stream."""
        if case.machine not in self._done:
            self._run(case.machine)
            self._done.add(case.machine)
        return np.load(self._path(case, "resident")), [np.load(self._path(case, mode)) for mode, _ in STREAMED]

    def _path(self, case: Case, run: str) -> Path:
        return self._folder / f"{case}.{run}.npy"

    def _build(self, case: Case) -> Path:
        target = load_target("cpu-arm")
        target = replace(target, cpu=replace(target.cpu, isa=(MACHINES[case.machine].level,)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRCOMPILE_HOME", str(self._home))
            out = self._folder / f"{case}.whole.bin"
            build(case.file, out, BuildOptions(target, ctx_size=128, activations="f32", kv_type=case.kv_type))
        return rechunked(out, self._folder / f"{case}.plan.bin", 1)

    def _run(self, name: str) -> None:
        machine, jobs, expected = MACHINES[name], [], []
        for case in (case for case in self._wanted if case.machine == name):
            plan = self._build(case)
            np.save(ids := self._path(case, "ids"), token_ids(case))
            loaded = read_plan(plan).plan
            kept = {"threads": 2, "ram": 1 << 30}
            runs: list[tuple[str, dict[str, Any]]] = [("resident", kept)]
            sizes: dict[str, Any] = {"threads": 2, "library": loaded.libraries[0]}
            least, most = budget(loaded, 0.0, **sizes), sizes_of(loaded, ram=1 << 30, **sizes).total
            for mode, share in STREAMED:
                ram = least + int(share * (most - least))
                runs.append((mode, {"threads": 2, "ram": ram, "load_mode": mode}))
            for run, options in runs:
                job = {"plan": str(plan), "model": str(case.file), "ids": str(ids), "options": options}
                jobs.append(job | {"logits": str(self._path(case, run)), "split": (LENGTH - 3, 1, 2)})
                expected += [machine.level, *([run] if run != "resident" else [])]
        (file := self._folder / f"{name}.json").write_text(json.dumps(jobs))
        worker = str(Path(__file__).with_name("arm_worker.py"))
        done = arm_machine.python(
            machine.processor,
            *(worker, str(file)),
            environment={},
            timeout=60 + 120 * len(jobs),
            page_nbytes=machine.page_nbytes,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == expected


@pytest.fixture(scope="session")
def emulated(
    zoo: Path, compiler_home: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Emulated:
    chosen = [item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")]
    wanted = [case for case in chosen if isinstance(case, Case)]
    return Emulated(wanted, tmp_path_factory.mktemp("arm"), compiler_home)


def rounded_here(case: Case, folder: Path, home: Path) -> Logits:
    """Logits of this machine with the case's type of cache."""
    profile = detect()
    best = replace(profile, cpu=replace(profile.cpu, isa=profile.cpu.isa[:1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRCOMPILE_HOME", str(home))
        build(case.file, folder / "here.bin", BuildOptions(best, activations="f32", kv_type=case.kv_type))
    with Engine.from_plan(folder / "here.bin", case.file, threads=1) as engine:
        return engine.logits(token_ids(case).tolist())


@pytest.mark.parametrize("case", cases())
def test_logits_on_an_arm_machine(
    emulated: Emulated, open_engine: OpenEngine, compiler_home: Path, tmp_path: Path, case: Case
) -> None:
    whole, streamed = emulated.logits(case)
    for each in streamed:
        assert same_bits(each, whole)
    exact = open_engine(case.file, "f32").logits(token_ids(case).tolist())
    if case.kv_type == "auto":
        assert divergence(exact, whole).max() < 1e-7
        return
    # what was near the middle of two values may be rounded to the other: less than rounding itself costs
    here = rounded_here(case, tmp_path, compiler_home)
    assert divergence(here, whole).mean() < divergence(exact, here).mean() / 2
