"""Engines on a small real plan: threads, levels, their end, and what they need to run."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from engine_checks import TEXT, one_line, same
from tiny_model import measured_host

import airrun
from aircompile.pipeline import BuildOptions, build
from airrun.engine import Engine
from airrun.errors import PlanError
from airrun.generation.generate import GenerateConfig
from airrun.machine.isa import LEVELS, host_levels
from airrun.session import Session

RUNTIME = Path(airrun.__file__ or "").parents[1]


def test_threads_do_not_change_a_bit(plan: Path, model: Path) -> None:
    ids = [3 + i % 250 for i in range(70)]
    results = []
    for threads in (1, 2, 3, 5):
        with Engine.from_plan(plan, model, threads=threads) as engine:
            assert engine.threads == threads
            results.append(engine.logits(ids))
    assert all(same(r, results[0]) for r in results)


def test_a_closed_engine_says_so(plan: Path, model: Path) -> None:
    engine = Engine.from_plan(plan, model, threads=2)
    engine.logits(TEXT)
    engine.close()
    engine.close()
    with pytest.raises(PlanError, match="closed"):
        engine.logits(TEXT)


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("airrun-")]


def test_a_dropped_engine_leaves_nothing_behind(plan: Path, model: Path) -> None:
    """Its workers know their memory by address: if they lived on, they would join the next engine that gets it."""
    gc.collect()
    before = len(workers())
    expected = None
    for _ in range(4):
        engine = Engine.from_plan(plan, model, threads=3)
        assert len(workers()) == before + 2
        logits = engine.logits(TEXT)
        expected = logits if expected is None else expected
        assert same(logits, expected)
        del engine
        gc.collect()
        assert len(workers()) == before


def test_engines_of_different_plans_keep_their_own_kernels(
    plan: Path, model: Path, tmp_path: Path, engine: Engine
) -> None:
    host = measured_host()
    host = dataclasses.replace(host, cpu=dataclasses.replace(host.cpu, isa=host.cpu.isa[:1]))
    build(model, tmp_path / "float.plan.bin", BuildOptions(host, activations="f32"))
    expected = engine.logits(TEXT)
    exact = []
    for _ in range(2):
        with Engine.from_plan(tmp_path / "float.plan.bin", model) as other:
            exact.append(other.logits(TEXT))
            assert same(engine.logits(TEXT), expected)
        with Engine.from_plan(plan, model) as again:
            assert same(again.logits(TEXT), expected)
    assert same(exact[0], exact[1])
    assert 0 < np.abs(exact[0] - expected).max() < 0.5


@pytest.fixture
def portable(home: Path, model: Path) -> Path:
    """A plan with kernels for this processor's best level and its simplest one."""
    path = home / "portable.plan.bin"
    if not path.exists():
        host = measured_host()
        levels = tuple(dict.fromkeys((host.cpu.isa[0], host.cpu.isa[-1])))
        build(model, path, BuildOptions(dataclasses.replace(host, cpu=dataclasses.replace(host.cpu, isa=levels))))
    return path


def test_a_plan_runs_on_the_best_level_unless_told_otherwise(
    portable: Path, model: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    best, simplest = host_levels()[0], host_levels()[-1]
    for asked, level in ((None, best), (simplest, simplest), (best, best)):
        if asked:
            monkeypatch.setenv("AIR_ISA", asked)
        with Engine.from_plan(portable, model) as other:
            assert other.isa == level
            # sums are made in the same order everywhere, but not every level multiplies and adds in one rounding
            assert np.abs(other.logits(TEXT) - engine.logits(TEXT)).max() < 0.1


def test_a_level_the_plan_lacks_is_refused(plan: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in ("pentium", *(set(LEVELS) - {host_levels()[0]})):
        monkeypatch.setenv("AIR_ISA", level)
        with pytest.raises(PlanError) as error:
            Engine.from_plan(plan, model)
        assert level in one_line(error)


def test_metrics_count_tokens_and_time(engine: Engine) -> None:
    before = engine.metrics()
    engine.session.eval(TEXT)
    engine.session.eval([5])
    engine.session.eval([6])
    after = engine.metrics()
    assert after["prefill_tokens"] - before["prefill_tokens"] == len(TEXT)
    assert after["decode_tokens"] - before["decode_tokens"] == 2
    for key in ("prefill_seconds", "decode_seconds", "native_seconds"):
        assert after[key] > before[key]
    total = after["prefill_seconds"] + after["decode_seconds"]
    assert after["native_seconds"] <= total and after["load_seconds"] > 0


def test_text_in_and_out(engine: Engine) -> None:
    config = GenerateConfig(max_tokens=8, temperature=0.0, ignore_eos=True)
    text = engine.generate("ab", config)
    engine.reset()
    assert "".join(engine.stream("ab", config)) == text
    ids = engine.tokenize("ab")
    session: Session = engine.new_session()
    engine.reset()
    found, logits = [], session.eval(ids)
    allowed = np.ones(engine.n_vocab, bool)
    allowed[2] = False  # the end of generation, which the configuration rules out
    for _ in range(8):
        found.append(int(np.where(allowed, logits[0], -np.inf).argmax()))
        logits = session.eval(found[-1:])
    assert engine.detokenize(found) == text


_ALONE = """
import sys

BLOCKED = set("tvm tvm_ffi gguf networkx ziglang aircompile airkernels airschedules triton onnx".split())

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not for the runtime")

sys.meta_path.insert(0, Block())
import airrun
from airrun import Engine, GenerateConfig
import numpy as np
plan, model, out = sys.argv[1:]
with Engine.from_plan(plan, model, threads=2) as engine:
    np.save(out, engine.logits([1, 70, 104, 104, 111, 35, 122, 114, 117, 111, 103]))
    print(repr(engine.generate("ab", GenerateConfig(max_tokens=8, temperature=0.0))))
    engine.metrics()
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & BLOCKED, loaded & BLOCKED
"""


def test_the_runtime_runs_without_the_compiler(plan: Path, model: Path, tmp_path: Path, engine: Engine) -> None:
    """A prebuilt plan, no package of the compiler, and no program on the path: no C compiler either."""
    out = tmp_path / "logits.npy"
    environment = {"PATH": "/nonexistent", "PYTHONPATH": str(RUNTIME), "HOME": str(tmp_path)}
    environment |= {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    command = [sys.executable, "-c", _ALONE, str(plan), str(model), str(out)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert same(np.load(out), engine.logits(TEXT))
