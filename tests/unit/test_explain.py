"""`explain` and what it rests on: the ledger against what an engine really takes, and the prediction by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_sample import sample
from tiny_model import N_CTX, measured_host, shared_home, tiny_plan, use_home

from airrun.cli import main
from airrun.commands.explain import describe
from airrun.commands.explain_text import layer_ranges, size
from airrun.engine import Engine
from airrun.errors import UsageError
from airrun.ledger import sizes_of
from airrun.machine import isa
from airrun.plan.container import read_plan
from airrun.predict import predict
from airrun.replay import memory


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = shared_home(tmp_path_factory)
    use_home(monkeypatch, found)
    return found


@pytest.mark.parametrize(("threads", "ctx_size"), [(1, N_CTX), (2, 64), (3, 100)])
def test_the_ledger_is_what_an_engine_takes(
    home: Path, monkeypatch: pytest.MonkeyPatch, threads: int, ctx_size: int
) -> None:
    taken: list[int] = []
    real = memory.Region.__init__

    def counting(self: memory.Region, nbytes: int, *, huge: bool = False) -> None:
        taken.append(nbytes)
        real(self, nbytes, huge=huge)

    monkeypatch.setattr(memory.Region, "__init__", counting)
    plan = tiny_plan(home)
    with Engine.from_plan(plan, threads=threads, ctx_size=ctx_size):
        pass
    ledger = describe(read_plan(plan), threads=threads, ctx_size=ctx_size)["ledger"]
    told = [nbytes for name, nbytes in ledger["ram"].items() if name != "interpreter and tokenizer"]
    assert not Counter(told) - Counter(taken)
    # descriptions of threads and tables, and the numbers of rows
    assert sum((Counter(taken) - Counter(told)).elements()) < 4096


def test_the_interpreters_share_is_measured(home: Path) -> None:
    """A process that has loaded everything but the model takes what the ledger says, within 15 MiB."""
    command = [sys.executable, "-m", "airrun", "explain", str(tiny_plan(home)), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    code = (
        "import sys, airrun.engine, airrun.generation.generate, airrun.commands.completion\n"
        "engine = airrun.engine.Engine.from_plan(sys.argv[1], threads=1)\n"
        "engine.generate('a', airrun.generation.generate.GenerateConfig(max_tokens=2))\n"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_plan(home))], capture_output=True, check=True)
    taken = int(done.stdout) << 10
    allowance = told["ledger"]["ram"]["interpreter and tokenizer"]
    assert abs(taken - allowance) < 15 << 20, (taken, allowance)


def test_steps_are_those_of_the_plan(home: Path) -> None:
    loaded = read_plan(tiny_plan(home))
    short, full = describe(loaded), describe(loaded, all_steps=True)
    for program, brief, whole in zip(loaded.plan.programs, short["programs"], full["programs"], strict=True):
        listed = [step for section in whole["sections"] for step in section["steps"]]
        assert [step["kernel"] for step in listed] == [loaded.plan.kernels[s.kernel].symbol for s in program.steps]
        assert brief["n_steps"] == whole["n_steps"] == len(program.steps)
        # both layers are alike, so that one stands for both
        assert [section["layers"] for section in brief["sections"] if section["phase"] == "layer"] == [[0, 1]]
        weights = sum(step["weight_nbytes"] for step in listed)
        assert weights == sum(weight.nbytes for weight in loaded.plan.weights)


def test_kernels_formats_and_libraries(home: Path) -> None:
    loaded = read_plan(tiny_plan(home))
    found = describe(loaded)
    assert found["formats"]["Q8_0"]["nbytes"] == sum(t.nbytes for t in loaded.plan.tensors if t.format == "Q8_0")
    assert set(found["formats"]) == {"Q8_0", "F32"}
    calls = [kernel["calls"].get("decode", 0) for kernel in found["kernels"]]
    assert sum(calls) == len(loaded.plan.programs[0].steps)
    products = [kernel for kernel in found["kernels"] if kernel["op"] == "matmul"]
    assert products and all(kernel["schedule"] and kernel["reason"] for kernel in products)
    assert found["libraries"][0]["chosen_here"] and found["libraries"][0]["missing_here"] == []
    assert found["plan"]["built_here"]
    assert found["ledger"]["disk"] == {"tiny.gguf": (home / "tiny.gguf").stat().st_size}


def test_a_plan_for_another_processor_is_explained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "host_features", lambda: frozenset({"sse4_2"}))
    found = describe(read_plan(tiny_plan(home)))
    assert "this machine has a processor without" in found["obstacle"]
    assert found["libraries"][0]["missing_here"] and not found["libraries"][0]["chosen_here"]


def test_text_and_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(tiny_plan(home))
    assert main(["explain", plan]) == 0
    text = capsys.readouterr().out
    for part in ("Ledger\n", "Program decode", "layer 0-1", "Kernels with a choice of schedule", "Predicted\n"):
        assert part in text
    assert max(map(len, text.splitlines())) < 250 and not any(line.endswith(" ") for line in text.splitlines())
    assert main(["explain", plan, "--steps"]) == 0
    assert "layer 1 " in capsys.readouterr().out
    assert main(["explain", plan, "--json", "-c", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ledger"]["ctx_size"] == 64 and "KV cache, 64 tokens" in found["ledger"]["ram"]


def test_a_terminal_gets_tables(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["explain", str(tiny_plan(home))]) == 0
    assert "\u2500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["absent.plan.bin"], 1, "absent.plan.bin: cannot read the plan"),
        (["PLAN", "-c", "1000000"], 1, "context of 1000000 tokens: this plan allows 1 to"),
        (["PLAN", "-t", "5000"], 1, "5000 threads: must be 1 to 1024"),
        ([], 2, "required: PLAN"),
        (["PLAN", "--context", "x"], 2, "invalid int value: 'x'"),
    ],
)
def test_refusals_are_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    plan = str(tiny_plan(home))
    assert main(["explain", *(plan if word == "PLAN" else word for word in arguments)]) == status
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def cost(**changes: Any) -> Any:
    plan, _ = sample()
    return replace(plan, cost=replace(plan.cost, **changes))


def test_the_prediction_by_hand() -> None:
    # 100 kB at 10 GB/s, 10 us beyond, two layers of four blocks (of 32 cells) of the cache, a state read and written
    plan = cost()
    block, state = sum(layer.block_nbytes for layer in plan.kv.layers) / 1e10, 2 * 256 / 1e10
    cache = 4 * block + state
    found = predict(plan, 128)
    assert found.decode_tokens_per_second == pytest.approx(1 / (1e-5 + 1e-5 + cache))
    assert found.decode_seconds == pytest.approx({"weights": 1e-5, "cache": cache, "other": 1e-5})
    assert found.decode_bound == "memory" and not found.upper_limit
    # 200,000 multiplications a token at 1e11 a second
    assert found.prefill_tokens_per_second == pytest.approx(500_000) and found.prefill_bound == "compute"
    assert found.load_seconds == pytest.approx(plan.files[0].nbytes / 1e9)
    assert predict(cost(decode_overhead_s=1e-3), 0).decode_bound == "compute"
    assert predict(plan, 129).decode_seconds["cache"] == pytest.approx(5 * block + state)


def test_without_rates_this_machines_count_or_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    plan = cost(ram_bytes_per_s=0.0, disk_bytes_per_s=0.0, prefill_macs_per_s=0.0, decode_overhead_s=0.0)
    found = predict(plan)
    assert (found.decode_tokens_per_second, found.decode_bound, found.load_seconds) == (None, "unknown", None)
    (tmp_path / "host.toml").write_text(measured_host().to_toml())
    found = predict(plan, 0)
    assert found.decode_tokens_per_second == pytest.approx(20e9 / (100_000 + 2 * 256)) and found.upper_limit
    (tmp_path / "host.toml").write_text("nonsense")
    assert predict(plan).decode_tokens_per_second is None


def test_rates_without_those_of_kernels_are_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    # the target's own rates count, not those of the machine that asks
    (tmp_path / "host.toml").write_text(measured_host().to_toml())
    plan = cost(ram_bytes_per_s=1e9, prefill_macs_per_s=0.0, decode_overhead_s=0.0)
    found = predict(plan, 0)
    assert found.decode_tokens_per_second == pytest.approx(1e9 / (100_000 + 2 * 256)) and found.upper_limit
    assert found.prefill_tokens_per_second is None and found.decode_bound == "memory"


def test_sizes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airrun.ledger.processors", lambda: 2)
    plan, _ = sample()
    plan = replace(plan, segments=tuple(replace(s, nbytes=96) for s in plan.segments))
    sizes = sizes_of(plan, ctx_size=33, parallel=3, library=plan.libraries[0])
    # 33 tokens are two blocks of 32
    assert sizes.kv_blocks == 6 and sizes.kv == 6 * sum(layer.block_nbytes for layer in plan.kv.layers)
    assert sizes.scratch == 2 * 4096 and sizes.arena == 512 * plan.arena_nbytes
    assert sizes.residency.kept_nbytes == sum(-(-w.nbytes // 4096) * 4096 for w in plan.weights)
    assert sizes.residency.places[0] == 0 and sizes.residency.streamed_nbytes == 0
    # a row of the embedding per token of the batch; 5 norms of 64 floats
    assert sizes.rows == 512 * 68 and sizes.pinned == 5 * 256
    assert sizes.inputs["block_table"].shape == (3, plan.kv.max_blocks)
    # token ids, cells, sequences, output rows, slots of states; cosines and sines; block table
    assert sizes.inputs_nbytes == 5 * 2048 + 512 * 2 * 8 * 4 + 192
    assert sizes.state_slots == 4 and sizes.states == 4 * 256
    for wrong in ({"threads": 0}, {"threads": 1025}, {"ctx_size": 0}, {"ctx_size": 513}, {"parallel": 0}):
        with pytest.raises(UsageError):
            sizes_of(plan, library=plan.libraries[0], **wrong)  # type: ignore[arg-type]


def test_small_words() -> None:
    assert layer_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert [size(n) for n in (0, 1023, 1024, 3 << 19, 5 << 30)] == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 GiB"]
