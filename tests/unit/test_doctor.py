"""`doctor`: every need of a plan that this machine may lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_model import shared_home, tiny_plan, use_home, write_tiny

from airrun import ledger
from airrun.cli import main
from airrun.commands import doctor
from airrun.commands.doctor import diagnose
from airrun.machine import isa
from airrun.plan.container import read_plan


@pytest.fixture
def plan(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = shared_home(tmp_path_factory)
    use_home(monkeypatch, home)
    return tiny_plan(home)


def statuses(plan: Path, **options: int) -> dict[str, str]:
    return {finding.subject: finding.status for finding in diagnose(read_plan(plan), **options)}


def test_a_plan_at_home(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(statuses(plan).values()) == {"ok"}
    assert main(["doctor", str(plan)]) == 0
    out = capsys.readouterr().out
    assert str(plan.with_name("tiny.gguf")) in out
    assert main(["doctor", str(plan), "--json"]) == 0
    assert [entry["subject"] for entry in json.loads(capsys.readouterr().out)] == list(statuses(plan))


def test_a_plan_on_another_machine(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "elsewhere"))
    copy = shutil.copy(plan, tmp_path)
    found = statuses(Path(copy))
    assert (found["origin"], found["weights"]) == ("warning", "problem")
    assert main(["doctor", copy]) == 1
    shutil.copy(plan.with_name("tiny.gguf"), tmp_path / "renamed.gguf")
    assert statuses(Path(copy))["weights"] == "ok"


def test_weights_that_are_not_the_plans(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_tiny(tmp_path / "other.gguf", seed=1)
    assert main(["doctor", str(plan), "--model", str(plan.with_name("tiny.gguf"))]) == 0
    capsys.readouterr()
    # same metadata and shapes: a fingerprint covers those, not the numbers
    other.write_bytes(other.read_bytes() + b"\0")
    assert main(["doctor", str(plan), "--model", str(other)]) == 1
    out = capsys.readouterr().out
    assert "problem  weights" in out and out.endswith("cannot run here: weights\n")


def test_a_processor_that_lacks_something(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: frozenset())
    assert statuses(plan)["instructions"] == "problem"
    # what can only be told where the code runs is left away, the rest is not
    assert {"weights", "memory", "disk"} <= statuses(plan).keys() and "pages" not in statuses(plan)


def test_an_override_that_cannot_be_followed(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIR_ISA", "none")
    finding = next(f for f in diagnose(read_plan(plan)) if f.subject == "instructions")
    assert finding.status == "problem" and "AIR_ISA=none" in finding.has


def test_memory(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ledger.sizes_of(read_plan(plan).plan)
    fixed = sizes.total - sizes.kv
    for available, status in ((fixed + sizes.kv, "ok"), (fixed, "warning"), (fixed - 1, "problem")):
        monkeypatch.setattr(doctor, "available_ram", lambda available=available: available)
        assert statuses(plan)["memory"] == status


def test_threads_and_sizes(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "processors", lambda: 2)
    assert statuses(plan, threads=2)["threads"] == "ok"
    assert statuses(plan, threads=3)["threads"] == "warning"
    assert statuses(plan, ctx_size=1 << 20)["memory"] == "problem"


def test_room_for_weights_that_are_not_there_yet(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "elsewhere"))
    copy = Path(shutil.copy(plan, tmp_path))
    nbytes = plan.with_name("tiny.gguf").stat().st_size
    for free, status in ((nbytes, "ok"), (nbytes - 1, "problem")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))  # type: ignore[attr-defined]
        assert statuses(copy)["disk"] == status


def test_a_damaged_plan_is_an_error(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(plan.read_bytes())
    data[5000] ^= 1
    (tmp_path / "plan").write_bytes(data)
    assert main(["doctor", str(tmp_path / "plan")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "plan is damaged" in err and err.count("\n") == 1
