"""``airrun bench`` on a small real plan: what it prints, and that it measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_model import N_CTX, shared_home, tiny_plan, use_home

from airrun import cli
from airrun.commands import bench
from airrun.engine import Engine
from airrun.errors import PlanError
from airrun.ram import available_ram
from airrun.replay.native import Library
from airrun.session import Session

RATES = ("prefill_tokens_per_second", "decode_tokens_per_second")
NUMBERS = {
    "weights_gb_per_second": float,
    "read_bandwidth_gb_per_second": float,
    "share_of_read_bandwidth": float,
    "time_to_first_token_ms": float,
    "replay_overhead_share": float,
    "peak_rss_bytes": int,
}
SHORT = ("-p", "16", "-n", "8", "-r", "3")


@pytest.fixture
def plan(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    home = shared_home(tmp_path_factory)
    use_home(monkeypatch, home)
    monkeypatch.setattr(bench, "_PROBE_SECONDS", 0.005)
    monkeypatch.setattr("airrun.machine.system.uncached_nbytes", lambda at_least: 16 << 20)
    return str(tiny_plan(home))


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = cli.main(["bench", *args])
    return (status, *capsys.readouterr())


def measured(capsys: pytest.CaptureFixture[str], plan: str, *args: str) -> dict[str, Any]:
    status, out, err = run(capsys, plan, *SHORT, "--json", *args)
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_json_object(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    found = measured(capsys, plan, "-t", "2")
    elapsed = time.perf_counter() - started
    for name in RATES:
        assert found[name].keys() == {"median", "min", "max"}
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    for name, kind in NUMBERS.items():
        assert type(found[name]) is kind and found[name] > 0, name
    assert found["replay_overhead_share"] < 1
    assert found["time_to_first_token_ms"] < 1e3 * elapsed
    assert (found["threads"], found["rounds"], found["prompt_tokens"], found["decode_tokens"]) == (2, 3, 16, 8)
    assert (found["plan"], found["model"], found["architecture"]) == (plan, "Tiny", "llama")
    # no rate is higher than the time that passed allows
    assert 3 * 16 / found[RATES[0]]["max"] + 3 * 8 / found[RATES[1]]["max"] < elapsed


def test_rates_fit_each_other(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, plan, "-t", "1")
    with Engine.from_plan(plan, threads=1) as engine:
        nbytes = engine.plan.cost.weight_nbytes_per_token
        assert found["isa"] == engine.isa and found["plan_digest"] == engine.loaded.digest
    assert found["weights_gb_per_second"] == pytest.approx(found[RATES[1]]["median"] * nbytes / 1e9)
    share = found["weights_gb_per_second"] / found["read_bandwidth_gb_per_second"]
    assert found["share_of_read_bandwidth"] == pytest.approx(share)


def test_time_outside_native_code_is_seen(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = measured(capsys, plan, "-t", "1")
    real = Session.eval

    def slow(self: Session, *args: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return real(self, *args, **options)

    monkeypatch.setattr(Session, "eval", slow)
    found = measured(capsys, plan, "-t", "1")
    assert found[RATES[1]]["max"] < 100 < fast[RATES[1]]["max"]
    assert found[RATES[0]]["max"] < 1600
    assert found["replay_overhead_share"] > 0.8


def test_bandwidth_by_kernel_and_by_numpy_agree(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [measured(capsys, plan, "-t", "1")["read_bandwidth_gb_per_second"]]
    real = Library.address

    def without_probe(self: Library, symbol: str) -> int:
        if symbol == "air_read_probe":
            raise PlanError("no such kernel")
        return real(self, symbol)

    monkeypatch.setattr(Library, "address", without_probe)
    rates.append(measured(capsys, plan, "-t", "1")["read_bandwidth_gb_per_second"])
    assert 0.1 < rates[0] / rates[1] < 10  # both read memory; the machine may be busy


def test_the_table_says_the_same(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, plan, *SHORT, "-t", "1")
    assert (status, err) == (0, "")
    assert "Tiny: 1 thread," in out
    for text in ("prefill of 16 tokens", "decode of 8 tokens", "GB/s", "first token", "peak resident memory"):
        assert text in out


@pytest.mark.parametrize("flag", ["-p", "-n", "-r"])
def test_nothing_to_measure_is_refused(plan: str, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    status, out, err = run(capsys, plan, flag, "0")
    assert (status, out) == (1, "")
    assert err.startswith("error: --") and "must be 1 or more, not 0" in err and err.count("\n") == 1


@pytest.mark.parametrize(("flag", "n"), [("-p", N_CTX + 1), ("-n", N_CTX)])
def test_more_than_the_context_is_refused(plan: str, capsys: pytest.CaptureFixture[str], flag: str, n: int) -> None:
    status, out, err = run(capsys, plan, *SHORT, flag, str(n))
    assert (status, out) == (1, "")
    assert err == f"error: {N_CTX + 1} tokens do not fit the context of {N_CTX}; raise it with -c/--ctx-size\n"


def test_the_buffer_of_the_probe_is_not_in_the_peak(plan: str) -> None:
    if available_ram() < 1 << 30:
        pytest.skip("too little memory for the buffer")
    code = """
        import json, sys
        from airrun import cli
        from airrun.commands import bench
        from airrun.replay.memory import peak_resident_nbytes
        bench._PROBE_SECONDS = 0.005
        status = cli.main(["bench", *sys.argv[1:], "--json"])
        print(json.dumps([status, peak_resident_nbytes()]))
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", lines, plan, *SHORT], capture_output=True, text=True, check=True)
    report, _, last = done.stdout.strip().rpartition("\n")
    status, peak = json.loads(last)
    assert status == 0
    assert 10 << 20 < json.loads(report)["peak_rss_bytes"] < peak - (200 << 20)


def test_a_model_is_compiled_before_its_start_is_timed(
    plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = bench.open_engine, []

    def compiling(path: str, *args: Any, **options: Any) -> Engine:
        opened.append(path)
        if len(opened) == 1:
            time.sleep(0.7)
        return real(plan, (), threads=1)

    monkeypatch.setattr(bench, "open_engine", compiling)
    found = measured(capsys, str(Path(plan).with_name("tiny.gguf")))
    assert len(opened) == 2
    assert found["time_to_first_token_ms"] < 700
