"""The command line on a stand-in engine."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_engine import BOS, FakeEngine, continuing

from airrun import cli

CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


class Command:
    """Runs `cli.main` on a fake engine; remembers how the engine was opened."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._patch, self._capsys = patch, capsys
        self.plan = str(folder / "model.plan.bin")
        self.gguf = str(folder / "model.gguf")
        Path(self.plan).write_bytes(b"AIRPLAN\0")
        Path(self.gguf).write_bytes(b"GGUF\3\0\0\0")
        self.opened: tuple[Any, ...] = ()
        self.engine = FakeEngine(continuing([BOS, *b"Hello"], " world"))
        module = ModuleType("airrun.engine")
        module.Engine = self  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "airrun.engine", module)

    def from_plan(self, *args: Any, **kwargs: Any) -> FakeEngine:
        self.opened = ("plan", *args, kwargs)
        return self.engine

    def from_gguf(self, *args: Any, **kwargs: Any) -> FakeEngine:
        self.opened = ("gguf", *args, kwargs)
        return self.engine

    def __call__(self, *args: str, stdin: str | bytes | None = None) -> tuple[int, str, str]:
        data = io.BytesIO((stdin or "").encode() if isinstance(stdin, str | None) else stdin)
        source = io.TextIOWrapper(data, "utf-8")
        self._patch.setattr(source, "isatty", lambda: stdin is None)
        self._patch.setattr(sys, "stdin", source)
        status = cli.main(list(args))
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err
