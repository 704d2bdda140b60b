"""A small real plan with its weight file and an engine on it, and the command line on a stand-in engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_command import Command
from tiny_model import shared_home, tiny_plan, use_home

from airrun.commands.options import OPTIONS
from airrun.engine import Engine


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = shared_home(tmp_path_factory)
    use_home(monkeypatch, found)
    return found


@pytest.fixture
def plan(home: Path) -> Path:
    return tiny_plan(home)


@pytest.fixture
def model(home: Path) -> Path:
    return home / "tiny.gguf"


@pytest.fixture
def engine(plan: Path, model: Path) -> Iterator[Engine]:
    with Engine.from_plan(plan, model, threads=2) as opened:
        yield opened


@pytest.fixture
def airrun_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)
    return Command(monkeypatch, capsys, tmp_path)
