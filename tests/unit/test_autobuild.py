"""Running a model without a plan: what is cached, when it is built again, and what is said of plans from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_model import shared_home, tiny_plan, use_home, write_tiny

from airrun import autobuild, built_here
from airrun.autobuild import plan_for
from airrun.built_here import claimed_digest, remember_plan, was_built_here
from airrun.commands import opening
from airrun.engine import Engine
from airrun.errors import AirError, ModelFileError, PlanError, UsageError
from airrun.generation.generate import GenerateConfig
from airrun.plan.container import read_plan


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = shared_home(tmp_path_factory)
    use_home(monkeypatch, found)
    return found


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of the builds that were started."""
    commands: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **settings: Any) -> Any:
        commands.append(command)
        return real(command, **settings)

    monkeypatch.setattr(autobuild.subprocess, "run", run)
    return commands


def test_a_model_is_compiled_once(
    home: Path, builds: list[list[str]], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = Path(shutil.copy(home / "tiny.gguf", tmp_path))
    plan = plan_for(model)
    assert plan.parent == home / "plans" and read_plan(plan).plan.files[0].name == "tiny.gguf"
    assert len(builds) == 1
    assert plan_for(model) == plan and len(builds) == 1
    assert capfd.readouterr() == ("", "")
    # a plan that can no longer be read is replaced
    plan.write_bytes(plan.read_bytes()[:-1])
    assert plan_for(model) == plan and len(builds) == 2 and read_plan(plan)
    with Engine.from_gguf(model, threads=1) as engine:
        assert engine.generate("a", GenerateConfig(max_tokens=3, temperature=0.0, ignore_eos=True))
    assert len(builds) == 2


def test_the_fingerprint_has_the_last_word(home: Path, builds: list[list[str]], tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model.gguf")
    plan = plan_for(model)
    # another model's plan under this one's name
    data = model.read_bytes()
    model.write_bytes(data.replace(b"Tiny", b"Tony", 1))
    other = plan_for(model)
    assert other != plan and len(builds) == 2
    shutil.copy(plan, other)
    assert plan_for(model) == other and len(builds) == 3
    assert read_plan(other).plan.model.name == "Tony"


def test_failures_are_one_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelFileError, match=r"absent.gguf: No such file"):
        plan_for(tmp_path / "absent.gguf")
    short = tmp_path / "short.gguf"
    short.write_bytes((home / "tiny.gguf").read_bytes()[:3000])
    with pytest.raises(AirError, match=r"short.gguf: cannot be compiled: ") as caught:
        plan_for(short)
    assert "\n" not in str(caught.value) and str(caught.value).count("short.gguf") == 1
    assert not list((home / "plans").glob("*short*"))
    real = autobuild.find_spec
    monkeypatch.setattr(autobuild, "find_spec", lambda name: None if name == "tvm" else real(name))
    with pytest.raises(UsageError, match=r'tvm is missing.*pip install "aircompile\[compile\]"'):
        plan_for(short)


def test_plans_built_here_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    digests = [f"{i:064x}" for i in range(20)]
    assert not was_built_here(digests[0])
    monkeypatch.setattr(built_here, "_MAX_NBYTES", 65 * 16)
    for digest in digests:
        remember_plan(digest)
    # at the seventeenth the older eight were dropped
    assert [was_built_here(digest) for digest in digests] == [False] * 8 + [True] * 12
    assert not was_built_here("")


def test_plans_from_elsewhere_are_announced(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, model = tiny_plan(home), str(home / "tiny.gguf")
    assert claimed_digest(plan) == read_plan(plan).digest
    opening.open_engine(str(plan), threads=1).close()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    opening.open_engine(str(plan), [model], threads=1).close()
    err = capsys.readouterr().err
    assert err == f"note: {plan} was not built on this machine; a plan is a program, trust whoever sent it\n"


@pytest.mark.parametrize("data", [b"", b"AIRPLAN\0", b"AIRPLAN\0" + bytes(200), b"AIRPLAN\0" + b"\xff" * 20])
def test_damaged_headers_have_no_digest(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "plan"
    path.write_bytes(data)
    assert claimed_digest(path) is None
    with pytest.raises(PlanError):
        opening.open_engine(str(path))
    assert claimed_digest(tmp_path / "absent") is None


def test_a_terminal_sees_progress(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def run(command: list[str], **settings: Any) -> Any:
        seen.update(settings, command=command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(autobuild.subprocess, "run", run)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model = write_tiny(tmp_path / "new.gguf")
    model.write_bytes(model.read_bytes() + bytes(32))
    with pytest.raises(AirError, match="exit status 1"):
        plan_for(model)
    assert "--quiet" not in seen["command"] and seen["stderr"] is None
    assert seen["stdout"] == subprocess.DEVNULL and os.path.isabs(seen["command"][5])
    assert "compiling new.gguf for this machine" in capsys.readouterr().err
