"""Session files of the command line: going on where a run stopped, and damaged or foreign ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cli_command import CHATML_TEMPLATE, Command
from fake_engine import BOS, FakeEngine, answering, continuing

from airrun.errors import ModelFileError
from airrun.session_file import load_session, save_session


def test_sessions_go_on_where_they_stopped(airrun_command: Command, tmp_path: Path) -> None:
    run, file = airrun_command, str(tmp_path / "state")
    prompt = [BOS, *b"Hello"]

    def fresh() -> None:
        run.engine = FakeEngine(continuing(prompt, " wide world"))

    fresh()
    assert run(run.plan, "-p", "Hello", "-n", "3", "--temp", "0", "--session", file)[:2] == (0, " wi")
    fresh()
    assert run(run.plan, "-n", "4", "--temp", "0", "--session", file)[:2] == (0, "de w")
    fresh()
    assert run(run.plan, "--temp", "0", "--session", file, stdin="")[:2] == (0, "orld")
    fresh()
    assert run(run.plan, "-p", "Hello", "-n", "2", "--temp", "0", "--session", file)[:2] == (0, " w")
    assert run.engine.session.evaluated == 2  # the last prompt token, and one generated: the rest was restored
    assert os.listdir(tmp_path) == unordered(["model.plan.bin", "model.gguf", "state"])


def unordered(names: list[str]) -> Any:
    """Equal to any list with the same names."""

    class Unordered(list[str]):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, list) and sorted(self) == sorted(other)

    return Unordered(names)


def test_a_chat_goes_on_from_a_session(airrun_command: Command, tmp_path: Path) -> None:
    run, file = airrun_command, str(tmp_path / "state")
    for typed, expected in (("A\n", "one\n"), ("", ""), ("B\n", "two\n")):
        run.engine = FakeEngine(answering("one", "two"), chat_template=CHATML_TEMPLATE)
        assert run(run.plan, "--chat", "--temp", "0", "--session", file, stdin=typed)[:2] == (0, expected)
    assert run.engine.session.evaluated < 60


def saved(path: Path, ids: list[int]) -> bytes:
    engine = FakeEngine(lambda _: 0)
    if ids:
        engine.session.eval(ids)
    save_session(path, engine.session, "fake", {"note": "x"})
    return path.read_bytes()


@pytest.mark.parametrize("ids", [[], [5], list(range(200))])
def test_session_round_trip(tmp_path: Path, ids: list[int]) -> None:
    saved(tmp_path / "s", ids)
    session = FakeEngine(lambda _: 0).session
    session.eval([1, 2, 3])
    assert load_session(tmp_path / "s", session, "fake") == {"note": "x"}
    assert session.ids == ids


def test_every_damaged_byte_of_a_session_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    data = saved(path, [1, 2, 3])
    session = FakeEngine(lambda _: 0).session
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        with pytest.raises(ModelFileError, match="^[^\n]*s: [^\n]*$"):
            load_session(path, session, "fake")
        path.write_bytes(data[:at])
        with pytest.raises(ModelFileError):
            load_session(path, session, "fake")
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        load_session(path, session, "fake")
    assert session.ids == []


def test_foreign_sessions_are_refused(airrun_command: Command, tmp_path: Path) -> None:
    run, file = airrun_command, tmp_path / "state"
    saved(file, list(range(20)))
    args = (run.plan, "-p", "Hello", "--session", str(file))
    run.engine.loaded.digest = "other"
    assert "saved by another plan or model" in run(*args)[2]
    run.engine.loaded.digest = "fake"
    run.engine.session.n_ctx = 10
    assert "holds 20 tokens, but the context 10" in run(*args)[2]
    file.write_bytes(b"something else, which is long enough to be looked at, but is not a session at all")
    status, out, err = run(*args)
    assert (status, out) == (1, "")
    assert "not a session file" in err
    assert "cannot be saved" in run(run.plan, "-p", "Hello", "--session", str(tmp_path / "no" / "where"))[2]
