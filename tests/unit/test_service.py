"""The example of a systemd unit: systemd accepts it, and its commands run, as strictly confined as it says."""

from __future__ import annotations

import configparser
import ctypes
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aircompile.cli import main
from airrun.package.verify import verify_package

UNIT = Path(__file__).resolve().parents[2] / "examples" / "airrun@.service"
_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1


class Unit(configparser.RawConfigParser):
    """systemd's syntax, as far as the example uses it."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture
def unit(home: Path, plan: Path, model: Path, tmp_path: Path) -> Path:
    """The unit with the paths of a package, a program and a state folder that are there."""
    box = tmp_path / "box"
    shutil.copy(plan, tmp_path / "box.plan.bin")
    assert main(["pack", str(model), str(tmp_path / "box.plan.bin"), "--quiet"]) == 0
    verify_package(tmp_path / "box.tar.zst", box)
    program = tmp_path / "airrun"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m airrun "$@"\n')
    program.chmod(0o755)
    text = UNIT.read_text()
    for there, here in {"/opt/airrun/bin/airrun": program, "/opt/airrun/box": box, "/var/lib/airrun": tmp_path}.items():
        assert there in text
        text = text.replace(there, str(here))
    path = tmp_path / "units" / UNIT.name
    path.parent.mkdir()
    path.write_text(text)
    return path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_accepts_it(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line or "airrun@" in line]
    assert done.returncode == 0 and not complaints, done.stderr
    # a unit that is wrong would not have been accepted
    unit.write_text(unit.read_text().replace("ExecStart=/", "ExecStart=/nowhere/"))
    assert subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, timeout=60).returncode


def test_its_commands_run(unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = Unit()
    parsed.read(unit)
    service = parsed["Service"]
    (tmp_path / "count.txt").write_text("ab")
    monkeypatch.delenv("AIRCOMPILE_HOME")
    monkeypatch.setenv(*service["Environment"].split("=", 1))
    out = Path(service["StandardOutput"].removeprefix("file:").replace("%i", "count"))
    assert service["MemoryDenyWriteExecute"] == "yes"
    for key in ("ExecStartPre", "ExecStart"):
        command = shlex.split(service[key].replace("%i", "count"))
        with out.open("w") as answer:
            # stricter than systemd's own filter: no memory ever becomes executable
            done = subprocess.run(command, stdout=answer, stderr=subprocess.PIPE, text=True, preexec_fn=_confine)
        assert done.returncode == 0, done.stderr
    assert out.read_text().strip()


def _confine() -> None:
    """Refuse executable memory that was writable, where the kernel can (Linux 6.3)."""
    ctypes.CDLL(None).prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
