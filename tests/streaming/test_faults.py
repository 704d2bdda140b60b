"""What goes wrong with a disk: one clear error or a clean continuation, never wrong text and never a hang."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streamed_model import IDS, FaultyDisk, Open, budget, rechunked

from airrun.engine import Engine
from airrun.errors import PlanError, UsageError, WeightFileError
from airrun.plan.container import read_plan
from airrun.weights import files, stream

PROMPT = IDS[:9]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where whoever started the tests has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_read_error_names_file_offset_and_reason_and_is_survived(
    resident: Engine, open_streamed: Open, disk: FaultyDisk
) -> None:
    engine = open_streamed(0.3)
    engine.session.eval(PROMPT)
    disk.fail_next(-errno.EIO, after=5)
    with pytest.raises(WeightFileError, match=r"model\.gguf: cannot be read at offset \d+: Input/output error$"):
        for token in range(20):
            engine.session.eval([token])
    # the session is what it was before the step that failed, and goes on
    ids = engine.session.ids
    assert ids[: len(PROMPT)] == PROMPT
    row = engine.session.eval([77])[0]
    assert np.array_equal(row, resident.logits([*ids[:-1], 77])[-1])


def test_a_short_read_is_read_on(resident: Engine, open_streamed: Open, disk: FaultyDisk) -> None:
    """A read that is interrupted, or gives a part: the rest is read as well."""
    engine = open_streamed(load_mode="buffered")
    for result in (-errno.EINTR, 4096):
        disk.fail_next(result, after=3)
        if result > 0:
            disk.result = 0  # what it says must be there
        assert np.array_equal(engine.logits(PROMPT), resident.logits(PROMPT))


@pytest.mark.parametrize("after", range(1, 8))
def test_a_disk_that_does_not_answer_is_given_up(
    open_streamed: Open, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Whether it is a chunk that does not come, or the row of an embedding."""
    monkeypatch.setattr(stream, "TIMEOUT_S", 1)
    engine = open_streamed()
    engine.session.eval(PROMPT)
    answer = threading.Event()
    disk.fail_next(before=lambda: answer.wait(20), after=after)
    started = time.perf_counter()
    with pytest.raises(
        WeightFileError, match=r"the disk did not answer within 1 s (at offset \d+|for rows of a table)$"
    ):
        for token in range(20):
            engine.session.eval([token])
    assert time.perf_counter() - started < 10
    answer.set()


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_file_that_shrinks_while_it_is_read(open_streamed: Open, model: Path, mode: str) -> None:
    engine = open_streamed(0.3, load_mode=mode)
    engine.session.eval(PROMPT)
    os.truncate(model, 200_000)
    with pytest.raises(WeightFileError, match=r"model\.gguf: (ends before its weights do|was changed)"):
        for token in range(20):
            engine.session.eval([token])


def test_a_file_that_is_written_to_is_never_used(open_streamed: Open, model: Path) -> None:
    engine = open_streamed()
    engine.session.eval(PROMPT)
    with model.open("r+b") as file:
        file.seek(500_000)
        file.write(bytes(1000))
    with pytest.raises(WeightFileError, match=r"model\.gguf: was changed while the model was running"):
        engine.session.eval([5])
    assert engine.session.ids == PROMPT


def test_a_file_that_is_replaced_goes_on_as_it_was(resident: Engine, open_streamed: Open, model: Path) -> None:
    engine = open_streamed(0.3)
    engine.session.eval(PROMPT)
    other = model.with_name("other")
    other.write_bytes(bytes(model.stat().st_size))
    other.replace(model)
    assert np.array_equal(engine.session.eval([5])[0], resident.logits([*PROMPT, 5])[-1])


def test_an_embedding_row_that_cannot_be_read(open_streamed: Open, disk: FaultyDisk) -> None:
    engine = open_streamed(1.5)  # everything is kept: rows are all that is read
    assert not engine.streams
    engine.session.eval(PROMPT)
    disk.fail_next(-errno.EIO)
    with pytest.raises(WeightFileError, match=r"model\.gguf: cannot be read at offset \d+: Input/output error"):
        engine.session.eval([5])
    engine.session.eval([5])


def test_an_error_while_loading(open_streamed: Open, disk: FaultyDisk) -> None:
    disk.fail_next(-errno.EIO, after=4)
    engine = open_streamed(0.6)
    with pytest.raises(WeightFileError, match="Input/output error"):
        engine.session.eval(PROMPT)


def test_ctrl_c_in_the_middle_of_a_pass(resident: Engine, open_streamed: Open, ctrl_c: None) -> None:
    engine = open_streamed(0.3)
    engine.session.eval(PROMPT)

    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    engine.watch(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.session.eval([5])
    assert engine.session.ids == PROMPT
    engine.watch(None)
    assert np.array_equal(engine.session.eval([5])[0], resident.logits([*PROMPT, 5])[-1])


def test_a_file_system_without_direct_reads(
    resident: Engine, open_streamed: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(files.os, "open", refuse)
    engine = open_streamed(0.3)
    assert engine.load_mode == "buffered"
    assert np.array_equal(engine.logits(PROMPT), resident.logits(PROMPT))
    with pytest.raises(UsageError, match=r"model\.gguf: this file system has no direct reads: Invalid argument"):
        open_streamed(0.3, load_mode="direct")


def test_weights_in_memory_backed_files(home: Path, resident: Engine, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or not os.access(shm, os.W_OK):
        pytest.skip("no /dev/shm to write to")
    folder = shm / f"aircompile-{os.getpid()}"
    folder.mkdir()
    try:
        model = Path(shutil.copy(home / "model.gguf", folder))
        plan = rechunked(home / "model.plan.bin", tmp_path / "p.bin", 2)
        with Engine.from_plan(plan, model, ram=budget(read_plan(plan).plan, 0.3)) as engine:
            assert np.array_equal(engine.logits(PROMPT), resident.logits(PROMPT))
    finally:
        shutil.rmtree(folder)


def test_a_closed_engine_leaves_no_threads_and_no_files(open_streamed: Open) -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        engine = open_streamed(0.3)
        engine.session.eval(PROMPT)
        engine.close()
        engine.close()
    assert threading.active_count() == before[0]
    # a library each stays loaded, and the fixture holds the plans, which are mapped
    assert len(os.listdir("/proc/self/fd")) <= before[1] + 6


@pytest.mark.parametrize("share", [0.0, 0.5, 1.5])
def test_an_engine_can_be_closed_while_it_loads_and_is_closed_then(open_streamed: Open, share: float) -> None:
    for mode in ("direct", "buffered", "mmap"):
        engine = open_streamed(share, load_mode=mode)
        engine.close()
        with pytest.raises(PlanError, match="the engine is closed"):
            engine.session.eval(PROMPT)


def test_the_command_reports_one_line(home: Path, model: Path, tmp_path: Path) -> None:
    plan = rechunked(home / "model.plan.bin", tmp_path / "p.bin", 1)
    ram = budget(read_plan(plan).plan, 0.3)
    command = [
        sys.executable,
        "-m",
        "airrun",
        str(plan),
        "--model",
        str(model),
        "-p",
        "a",
        "-n",
        "3",
        "--ram",
        str(ram),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0].startswith("note: ")  # the plan is not from here
    os.truncate(model, model.stat().st_size - 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
