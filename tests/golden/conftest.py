"""Models compiled for this machine, each once a run of the tests, and the measures of the golden data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from measures import OpenEngine

from aircompile.pipeline import BuildOptions, build
from airrun.engine import Engine
from airrun.machine.system import detect


@pytest.fixture(scope="session")
def compiler_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this run, so that kernels are compiled from the sources under test, and once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def open_engine(compiler_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenEngine]:
    """`open_engine(model, activations, threads=1, parallel=1)`: plans are built once, engines are closed at the end."""
    profile = detect()
    best = dataclasses.replace(profile, cpu=dataclasses.replace(profile.cpu, isa=profile.cpu.isa[:1]))
    folder = tmp_path_factory.mktemp("plans")
    engines: dict[tuple[Path, str, int, int], Engine] = {}

    def open_one(model: Path, activations: str, threads: int = 1, parallel: int = 1) -> Engine:
        key = (model, activations, threads, parallel)
        if key not in engines:
            plan = folder / f"{model.parent.name}.{model.stem}.{activations}.plan.bin"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AIRCOMPILE_HOME", str(compiler_home))
                patch.delenv("AIR_ISA", raising=False)
                if not plan.exists():
                    build(model, plan, BuildOptions(best, activations=activations))  # type: ignore[arg-type]
                engines[key] = Engine.from_plan(plan, model, threads=threads, parallel=parallel)
        return engines[key]

    yield open_one
    for engine in engines.values():
        engine.close()
