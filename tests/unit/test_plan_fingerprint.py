"""Weight files are found by what they hold."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from plan_sample import sample

from airrun.errors import PlanError
from airrun.paths import remember_weights
from airrun.plan.fingerprint import fingerprint, locate, matches
from airrun.plan.schema import Plan, WeightFile


def weights(path: Path, seed: int, nbytes: int = 3 << 20, header: int = 1_500_000) -> WeightFile:
    """Write a file of bytes that depend on `seed`; its header exceeds one read."""
    data = hashlib.sha256(bytes([seed])).digest() * (nbytes // 32)
    path.write_bytes(data)
    return WeightFile(path.name, nbytes, header, hashlib.sha256(data[:header]).hexdigest())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the plan, and a cache apart from it."""
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "plans"
    folder.mkdir()
    return folder


def plan_of(*files: WeightFile) -> Plan:
    return replace(sample()[0], files=files)


def test_fingerprint(tmp_path: Path) -> None:
    file = weights(tmp_path / "a.gguf", 1)
    assert fingerprint(tmp_path / "a.gguf", file.header_nbytes) == file.header_sha256
    assert fingerprint(str(tmp_path / "a.gguf"), 0) == hashlib.sha256().hexdigest()
    with pytest.raises(PlanError, match=r"a\.gguf: ends after 3145728 of 3145729 header bytes"):
        fingerprint(tmp_path / "a.gguf", file.nbytes + 1)
    with pytest.raises(PlanError, match="No such file"):
        fingerprint(tmp_path / "b.gguf", 1)


def test_matches(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    file = weights(path, 1)
    assert matches(file, path) is None
    assert matches(replace(file, nbytes=5), path) == f"has {3 << 20} bytes, the plan was built from 'a.gguf' of 5 bytes"
    assert "has other tensors or metadata than 'a.gguf'" in (matches(replace(file, header_nbytes=7), path) or "")
    assert matches(file, tmp_path / "none") == "cannot be read: No such file or directory"
    assert matches(file, tmp_path) == "is not a regular file"
    assert "cannot be read" in (matches(file, "a\0b") or "")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert matches(file, tmp_path / "pipe") == "is not a regular file"


def test_only_the_header_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    file = weights(path, 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert matches(file, path) is None
    data[file.header_nbytes - 1] ^= 1
    path.write_bytes(data)
    assert matches(file, path) is not None


def test_given_files_in_any_order(home: Path, tmp_path: Path) -> None:
    plan = plan_of(weights(tmp_path / "a.gguf", 1), weights(tmp_path / "b.gguf", 2))
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    assert locate(plan, home / "p.bin", [a, b]) == [a, b]
    assert locate(plan, home / "p.bin", [str(b), a, b]) == [a, b]


def test_a_given_file_of_another_model_is_an_error(home: Path, tmp_path: Path) -> None:
    a, b = (weights(tmp_path / f"{name}.gguf", seed) for seed, name in enumerate("ab"))
    weights(tmp_path / "c.gguf", 9)
    with pytest.raises(PlanError, match=r"c\.gguf: has other tensors or metadata than 'a\.gguf'"):
        locate(plan_of(a), home / "p.bin", [tmp_path / "c.gguf"])
    with pytest.raises(PlanError, match=r"c\.gguf: is none of the 2 files"):
        locate(plan_of(a, b), home / "p.bin", [tmp_path / "a.gguf", tmp_path / "c.gguf", tmp_path / "b.gguf"])
    with pytest.raises(PlanError, match="none: cannot be read"):
        locate(plan_of(a), home / "p.bin", [tmp_path / "none"])


def test_search(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a.gguf"
    file = weights(elsewhere, 1)
    plan = plan_of(file)
    remember_weights(file.header_sha256, elsewhere)
    assert locate(plan, home / "p.bin", []) == [elsewhere]  # third: the index

    renamed = home / "renamed.gguf"
    weights(home / "other.gguf", 2)
    weights(renamed, 1)
    assert locate(plan, home / "p.bin", []) == [renamed]  # second: any of the right contents

    weights(home / "a.gguf", 3)
    assert locate(plan, home / "p.bin", []) == [renamed]  # the right name alone does not count
    weights(home / "a.gguf", 1)
    assert locate(plan, home / "p.bin", []) == [home / "a.gguf"]  # first: the name it had
    assert locate(plan, home / "p.bin", [elsewhere]) == [elsewhere]  # but what is given comes first


def test_missing_files(home: Path, tmp_path: Path) -> None:
    file = weights(tmp_path / "a.gguf", 1)
    found = weights(home / "b.gguf", 2)
    plan = plan_of(found, file)
    message = r"weight file 'a\.gguf' of 3145728 bytes not found; name it with --model FILE"
    with pytest.raises(PlanError, match=message):
        locate(plan, home / "p.bin", [])
    remember_weights(file.header_sha256, home / "b.gguf")  # an index that is out of date
    with pytest.raises(PlanError, match=message):
        locate(plan, home / "p.bin", [])
    weights(home / "a.gguf", 3)
    with pytest.raises(PlanError, match=r"not found \(.*a\.gguf has other tensors.*\); name it with --model FILE"):
        locate(plan, home / "p.bin", [])
