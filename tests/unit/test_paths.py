"""The cache folder and the index of known weight files."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from airrun import paths
from airrun.errors import UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_environment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AIRCOMPILE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache_dir() == tmp_path / ".cache" / "aircompile"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert paths.cache_dir() == tmp_path / ".cache" / "aircompile"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert paths.cache_dir() == tmp_path / "x" / "aircompile"
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "h"))
    assert paths.cache_dir() == tmp_path / "h"


def test_weights_are_found_while_the_file_exists(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.find_weights("aa") is None
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    paths.remember_weights("aa", "m.gguf")
    paths.remember_weights("bb", tmp_path / "other.gguf")
    monkeypatch.chdir("/")
    assert paths.find_weights("aa") == file and paths.find_weights("bb") is None
    moved = file.rename(tmp_path / "moved.gguf")
    assert paths.find_weights("aa") is None
    paths.remember_weights("aa", moved)
    assert paths.find_weights("aa") == moved


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff", b'{"aa": 3, "cc": "/x"}', b"[" * 100_000])
def test_a_damaged_index_is_rebuilt(home: Path, damage: bytes) -> None:
    home.mkdir()
    (home / "weights.json").write_bytes(damage)
    assert paths.find_weights("aa") is None
    paths.remember_weights("aa", home / "weights.json")
    assert paths.find_weights("aa") == home / "weights.json"


def test_the_oldest_entries_are_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_MAX_ENTRIES", 3)
    for name in ("a", "b", "c", "a", "d"):
        paths.remember_weights(name, "/x")
    assert list(json.loads((home / "weights.json").read_text())) == ["c", "a", "d"]


def _remember(prefix: str) -> None:
    for i in range(20):
        paths.remember_weights(f"{prefix}{i}", "/x")


def test_processes_do_not_lose_each_others_entries(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_remember, args=(prefix,)) for prefix in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(json.loads((home / "weights.json").read_text())) == 40


def test_a_failed_write_keeps_the_old_content(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = home / "file"
    paths.write_atomic(target, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UsageError, match="file: cannot write this file: No space left"):
        paths.write_atomic(target, b"new")
    assert target.read_bytes() == b"old" and list(home.iterdir()) == [target]
