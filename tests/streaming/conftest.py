"""A small model whose weights are cut into many chunks, and engines that stream them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamed_model import FaultyDisk, Open, budget, rechunked
from tiny_model import shared_home, use_home, write_tiny

from aircompile.cli import main
from airrun.engine import Engine
from airrun.plan.container import read_plan


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with `model.gguf`, large enough that streaming it takes less memory than keeping it, and its plan."""
    home = shared_home(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, home)
        model = write_tiny(home / "model.gguf", n_layers=4, n_embd=256, n_ff=768)
        assert main(["build", str(model), "-o", str(home / "model.plan.bin"), "--quiet"]) == 0
        yield home


@pytest.fixture
def model(home: Path, tmp_path: Path) -> Path:
    """A copy of the weight file, to be damaged."""
    return Path(shutil.copy(home / "model.gguf", tmp_path / "model.gguf"))


@pytest.fixture
def open_streamed(home: Path, model: Path, tmp_path: Path) -> Iterator[Open]:
    """`open_streamed(share=0.0, panels=1, **options)`: keeps that share of what could be kept."""
    engines: list[Engine] = []

    def open_one(share: float = 0.0, panels: int = 1, slots: int = 4, **options: Any) -> Engine:
        plan = rechunked(home / "model.plan.bin", tmp_path / f"model.{panels}.{slots}.bin", panels, slots=slots)
        engine = Engine.from_plan(plan, model, ram=budget(read_plan(plan).plan, share, **options), **options)
        engines.append(engine)
        return engine

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def resident(home: Path, tmp_path: Path) -> Iterator[Engine]:
    """The same model, in memory."""
    with Engine.from_plan(home / "model.plan.bin", home / "model.gguf") as engine:
        assert not engine.streams
        yield engine


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyDisk:
    return FaultyDisk(monkeypatch)
