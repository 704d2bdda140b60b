"""airrun as a process: interrupts, broken pipes, what starting it imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import airrun

RUNTIME = Path(airrun.__file__).parents[1]


def process(script: str, **settings: Any) -> subprocess.Popen[bytes]:
    """A new Python in which the engine is a fake whose model says `x` for ever, slowly."""
    code = f"""
        import signal, sys, time
        from types import ModuleType
        from fake_engine import FakeEngine

        # a parent that runs in the background may have handed down that the signal is ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import airrun.cli as cli

        def slow(ids):
            time.sleep(0.01)
            return ord("x")

        class Engine:
            from_plan = staticmethod(lambda *a, **k: FakeEngine(slow))

        sys.modules["airrun.engine"] = module = ModuleType("airrun.engine")
        module.Engine = Engine
        {script}
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(RUNTIME), str(Path(__file__).parent)])}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
    )  # fmt: skip


RUN_FOR_EVER = "sys.exit(cli.main([cli.__file__, '-p', 'Hello', '--temp', '0']))"


def test_interrupt_ends_with_130_and_a_new_line() -> None:
    with process(RUN_FOR_EVER) as child:
        assert child.stdout is not None and child.stdout.read(3) == b"xxx"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=10)
        assert child.returncode == 130
        assert (set(out) <= set(b"x"), err) == (True, b"\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    with process(RUN_FOR_EVER) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read(1) == b"x"
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=10) == 141


def test_a_full_disk_is_one_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with process("sys.stdout = open('/dev/full', 'w'); " + RUN_FOR_EVER) as child:
        _, err = child.communicate(timeout=10)
        assert (child.returncode, err) == (1, b"error: No space left on device\n")


def test_starting_is_cheap() -> None:
    code = """
        import sys, time
        import numpy
        start = time.process_time()
        import airrun.cli
        took = time.process_time() - start
        for name in ("jinja2", "tokenizers", "numpy.random", "ssl", "importlib.metadata"):
            assert name not in sys.modules, name
        import airrun.commands.completion
        for name in ("jinja2", "tokenizers", "numpy.random", "secrets"):
            assert name not in sys.modules, name
        print(took)
    """
    env = os.environ | {"PYTHONPATH": str(RUNTIME)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    took = [float(subprocess.run(command, env=env, capture_output=True, check=True).stdout) for _ in range(4)]
    assert min(took) < 0.015


def test_the_package_exports_lazily() -> None:
    from airrun.generation.generate import GenerateConfig

    assert airrun.GenerateConfig is GenerateConfig
    assert airrun.AirError.__module__ == "airrun.errors"
    with pytest.raises(AttributeError, match="nonsense"):
        airrun.nonsense  # noqa: B018
