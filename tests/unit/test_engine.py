"""The engine on a small real plan: defined errors, the life of a session, and what it needs to run."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_model import N_CTX, N_EMBD, measured_host, shared_home, tiny_plan, use_home

import airrun
from aircompile.pipeline import BuildOptions, build
from airrun.batch import Batch, BatchSequence
from airrun.engine import Engine
from airrun.errors import AirError, ModelFileError, PlanError, UsageError
from airrun.generate import GenerateConfig
from airrun.isa import LEVELS, host_levels
from airrun.kv_cache import SequenceMemory
from airrun.session import Session
from airrun.session_file import load_session, save_session

RUNTIME = Path(airrun.__file__ or "").parents[1]
TEXT = [1, 70, 104, 104, 111, 35, 122, 114, 117, 111, 103]
Logits = Any


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = shared_home(tmp_path_factory)
    use_home(monkeypatch, found)
    return found


@pytest.fixture
def plan(home: Path) -> Path:
    return tiny_plan(home)


@pytest.fixture
def model(home: Path) -> Path:
    return home / "tiny.gguf"


@pytest.fixture
def engine(plan: Path, model: Path) -> Iterator[Engine]:
    with Engine.from_plan(plan, model, threads=2) as opened:
        yield opened


def same(a: Logits, b: Logits) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype == np.float32 and np.array_equal(a.view("u4"), b.view("u4"))


def one_line(error: pytest.ExceptionInfo[AirError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# --- requests that cannot be met


def test_empty_prompts_are_refused(engine: Engine) -> None:
    for ask in (lambda: engine.logits([]), lambda: engine.session.eval([]), lambda: engine.generate([])):
        with pytest.raises(UsageError) as error:
            ask()
        assert "empty" in one_line(error)


@pytest.mark.parametrize("bad", [-1, 262, 1 << 31, -(1 << 40)])
def test_ids_out_of_range_are_refused(engine: Engine, bad: int) -> None:
    assert engine.n_vocab == 262
    session = engine.session
    session.eval(TEXT)
    with pytest.raises(UsageError) as error:
        session.eval([5, bad, 6])
    assert str(bad) in one_line(error) and "262" in str(error.value)
    assert session.ids == TEXT
    assert same(session.eval([7]).copy(), engine.logits([*TEXT, 7])[-1:])


def test_a_full_context_is_refused_and_does_no_harm(engine: Engine) -> None:
    ids = [3 + i % 250 for i in range(N_CTX)]
    session = engine.session
    with pytest.raises(UsageError) as error:
        session.eval([*ids, 3])
    assert str(N_CTX + 1) in one_line(error) and str(N_CTX) in str(error.value)
    assert session.n_past == 0
    last = session.eval(ids).copy()
    with pytest.raises(UsageError):
        session.eval([3])
    assert session.n_past == N_CTX
    session.truncate(N_CTX - 1)
    assert same(session.eval(ids[-1:]).copy(), last)


def test_generation_ends_with_the_context(engine: Engine) -> None:
    config = GenerateConfig(max_tokens=-1, temperature=0.0, ignore_eos=True)
    engine.generate([3 + i % 250 for i in range(N_CTX - 5)], config)
    assert engine.session.n_past <= N_CTX


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ctx_size": N_CTX + 1}, str(N_CTX + 1)),
        ({"ctx_size": 0}, "0"),
        ({"ctx_size": -1}, "-1"),
        ({"threads": 0}, "0"),
        ({"parallel": 0}, "0"),
        ({"threads": -1}, "-1"),
        ({"threads": 100_000}, "100000"),
    ],
)
def test_numbers_out_of_range_are_refused(plan: Path, model: Path, options: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError) as error:
        Engine.from_plan(plan, model, **options)  # type: ignore[arg-type]
    assert word in one_line(error)


def test_a_smaller_context_holds(plan: Path, model: Path, engine: Engine) -> None:
    with Engine.from_plan(plan, model, ctx_size=20) as small:
        assert same(small.logits(TEXT), engine.logits(TEXT))
        with pytest.raises(UsageError):
            small.logits([5] * 21)


# --- weight files that are not the plan's


def test_a_plan_of_another_model_is_refused(plan: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = model.read_bytes()
    other.write_bytes(data.replace(b"Tiny", b"Tony", 1))
    with pytest.raises(PlanError) as error:
        Engine.from_plan(plan, other)
    assert str(other) in one_line(error)


@pytest.mark.parametrize("missing", [1, 4096, 100_000])
def test_a_truncated_weight_file_is_refused(plan: Path, model: Path, tmp_path: Path, missing: int) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-missing])
    with pytest.raises(PlanError) as error:
        Engine.from_plan(plan, short)
    text = one_line(error)
    assert str(short) in text and str(short.stat().st_size) in text and str(model.stat().st_size) in text


def test_what_is_no_file_is_refused(plan: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(PlanError) as error:
            Engine.from_plan(plan, path)
        assert str(path) in one_line(error)


def test_weights_are_found_beside_the_plan(plan: Path, model: Path, tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "moved.plan.bin").write_bytes(plan.read_bytes())
    (tmp_path / "renamed.gguf").write_bytes(model.read_bytes())
    with Engine.from_plan(tmp_path / "moved.plan.bin") as found:
        assert same(found.logits(TEXT), engine.logits(TEXT))


# --- the life of a session


def test_truncated_and_reset_sessions_are_as_good_as_new(engine: Engine) -> None:
    ids = [3 + (7 * i) % 250 for i in range(140)]
    whole = engine.logits(ids)
    session = engine.session
    for keep in (0, 1, 63, 64, 65, 128, 139):
        session.eval([200] * 150)
        session.reset()
        session.eval(ids[:keep] + [9] * 30)
        session.truncate(keep)
        assert session.ids == ids[:keep]
        assert same(session.eval(ids[keep:], all_logits=True), whole[keep:]), keep
        session.reset()


def test_a_truncated_session_keeps_the_block_it_still_uses(plan: Path, model: Path) -> None:
    ids = [3 + (7 * i) % 250 for i in range(140)]
    with Engine.from_plan(plan, model, parallel=2) as engine:
        first, second = engine.new_session(), engine.new_session()
        first.eval(ids)
        first.truncate(70)
        second.eval([9] * 200)
        got = first.eval(ids[70:], all_logits=True)
        first.reset()
        second.reset()
        assert same(got, engine.logits(ids)[70:])


def test_truncation_is_bounded(engine: Engine) -> None:
    engine.session.eval(TEXT)
    for n in (-1, len(TEXT) + 1):
        with pytest.raises(UsageError):
            engine.session.truncate(n)
    assert engine.session.ids == TEXT


def test_logits_leave_the_default_session_alone(plan: Path, model: Path) -> None:
    # the pool has room for both only if it was made for both
    with Engine.from_plan(plan, model, parallel=2) as engine:
        engine.session.eval(TEXT[:4])
        engine.logits([9] * 100)
        assert engine.session.ids == TEXT[:4]
        assert same(engine.session.eval(TEXT[4:]).copy(), engine.logits(TEXT)[-1:])


def test_all_logits_end_with_the_last_logits(engine: Engine) -> None:
    ids = [3 + i % 250 for i in range(200)]
    every = engine.logits(ids)
    assert every.shape == (200, engine.n_vocab)
    assert same(engine.session.eval(ids).copy(), every[-1:])


def test_a_full_cache_is_refused_and_freed_again(plan: Path, model: Path) -> None:
    with Engine.from_plan(plan, model, parallel=1) as engine:
        first, second = engine.new_session(), engine.new_session()
        ids = [3 + i % 250 for i in range(N_CTX)]
        first.eval(ids[:200])
        with pytest.raises(UsageError) as error:
            second.eval(ids[:100])
        assert "KV cache is full" in one_line(error)
        assert second.n_past == 0
        # what the failed request took must not be lost
        second.reset()
        first.reset()
        expected = engine.logits(ids)[-1:]
        assert same(second.eval(ids).copy(), expected)


def test_blocks_of_a_dropped_session_can_be_used_again(plan: Path, model: Path) -> None:
    with Engine.from_plan(plan, model, parallel=2) as engine:
        sessions = [engine.new_session() for _ in range(2)]
        for _ in range(5):
            for session in sessions:
                session.eval([5] * N_CTX)
            for session in sessions:
                session.reset()
        assert same(sessions[1].eval(TEXT, all_logits=True), engine.logits(TEXT))


def test_a_saved_session_goes_on_as_if_nothing_had_happened(
    engine: Engine, plan: Path, model: Path, tmp_path: Path
) -> None:
    ids = [3 + (5 * i) % 250 for i in range(150)]
    session = engine.session
    session.eval(ids[:100])
    path = tmp_path / "chat.session"
    save_session(path, session, "digest", {"turn": 3})
    expected = session.eval(ids[100:], all_logits=True)
    with Engine.from_plan(plan, model, threads=1, parallel=2) as other:
        occupied = other.new_session()
        occupied.eval([9] * 70)  # so that the blocks get other numbers
        restored = other.new_session()
        restored.eval(TEXT)
        assert load_session(path, restored, "digest") == {"turn": 3}
        assert restored.ids == ids[:100]
        assert same(restored.eval(ids[100:], all_logits=True), expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda meta: meta | {"ids": []},
        lambda meta: meta | {"ids": [1 << 40]},
        lambda meta: meta | {"ids": "abc"},
        lambda meta: meta | {"n_blocks": 7},
        lambda meta: meta | {"block_nbytes": [64]},
        lambda meta: meta | {"ids": meta["ids"] + [5] * 100},
        lambda meta: {},
    ],
)
def test_a_state_of_another_model_is_refused(engine: Engine, spoil: Callable[[dict[str, Any]], Any]) -> None:
    session = engine.session
    session.eval(TEXT)
    meta, parts = session.save_state()
    payload = memoryview(b"".join(bytes(part) for part in parts))
    with pytest.raises(UsageError) as error:
        session.load_state(spoil(meta), payload)
    one_line(error)
    assert same(session.eval(TEXT, all_logits=True), engine.logits(TEXT))


def test_a_session_of_another_plan_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.session.eval(TEXT)
    save_session(tmp_path / "s", engine.session, "one plan")
    with pytest.raises(ModelFileError, match="another plan"):
        load_session(tmp_path / "s", engine.session, "another plan")
    assert engine.session.ids == TEXT


# --- inputs other than token ids


def embedding_rows(model: Path, ids: list[int]) -> Any:
    tensor = next(t for t in gguf.GGUFReader(model).tensors if t.name == "token_embd.weight")
    return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1, N_EMBD)[ids].astype(np.float32)


def batch_sequence(engine: Engine, n: int, **inputs: Any) -> BatchSequence:
    memory = SequenceMemory(engine.pool, engine.states)
    memory.reserve(n)
    return BatchSequence(memory, 0, outputs=range(n), **inputs)


@pytest.mark.parametrize("n", [1, 5, 11])
def test_embeddings_do_as_well_as_ids(engine: Engine, model: Path, n: int) -> None:
    expected = engine.logits(TEXT[:n])
    given = batch_sequence(engine, n, token_ids=None, embeddings=embedding_rows(model, TEXT[:n]))
    assert same(engine.run(Batch([given])).copy(), expected)
    given.memory.keep(0)


def test_embeddings_and_ids_do_not_mix(plan: Path, model: Path) -> None:
    with Engine.from_plan(plan, model, parallel=2) as engine:
        rows = batch_sequence(engine, 2, token_ids=None, embeddings=embedding_rows(model, TEXT[:2]))
        with pytest.raises(AirError):
            engine.run(Batch([rows, engine.session.extend(TEXT, [])]))


def test_positions_are_cell_numbers_unless_given(engine: Engine) -> None:
    n = len(TEXT)
    expected = engine.logits(TEXT)
    for shift, equal in ((0, True), (1000, False)):
        positions = np.arange(shift, shift + n)[None]
        given = batch_sequence(engine, n, token_ids=TEXT, positions=positions)
        got = engine.run(Batch([given])).copy()
        given.memory.keep(0)
        assert same(got, expected) == equal
        # rotary positions are relative: a shift of all of them changes rounding only
        assert np.abs(got - expected).max() < 0.2


# --- engines


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


# --- what the runtime needs

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
