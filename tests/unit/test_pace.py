"""What a slow run says: a line beforehand, and a bar that leaves nothing behind."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from airrun import predict
from airrun.commands import pace
from airrun.commands.pace import LayerBar, announcement


def engine(rate: float | None) -> Any:
    found = SimpleNamespace(decode_tokens_per_second=rate, decode_bound="disk")
    sizes = SimpleNamespace(residency=SimpleNamespace(streamed_nbytes=38_500_000_000))
    return SimpleNamespace(plan=found, sizes=sizes)


def test_only_slow_runs_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "predict", lambda plan, sizes: plan)
    assert announcement(engine(0.025)) == "note: expect 40.0 s per token, reading 38.5 GB each, bound by disk"
    assert announcement(engine(1.0)) is None
    assert announcement(engine(None)) is None


def screen(text: str) -> str:
    """What a terminal shows after `text`."""
    line: list[str] = []
    at = 0
    for character in text:
        if character == "\b":
            at -= 1
            assert at >= 0
        else:
            line[at : at + 1] = [character]
            at += 1
    return "".join(line)


def test_the_bar_grows_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now)
    out = io.StringIO("Once upon", newline="")
    out.seek(0, io.SEEK_END)
    bar = LayerBar(out)
    for done in range(1, 41):
        bar(done, 40)
        now += 0.1
        shown = screen(out.getvalue())
        if done in (1, 2, 40):
            assert shown.rstrip() == "Once upon"
        elif done > 4:
            assert shown == f"Once upon [{'#' * (done // 2)}{'.' * (20 - done // 2)}]"
    # the cursor is where the text goes on
    out.write(" a time")
    assert screen(out.getvalue()).rstrip() == "Once upon a time"


def test_a_quick_pass_draws_nothing() -> None:
    out = io.StringIO()
    bar = LayerBar(out)
    for done in range(1, 31):
        bar(done, 30)
    assert out.getvalue() == ""
