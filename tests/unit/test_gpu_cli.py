"""The command line on a GPU: what it says before, meanwhile, afterwards, and when something is wrong: a line each."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_gpu import FakeDevice, use_fake_gpu
from test_gpu_plan import build_plan
from test_gpu_tiers import least

import airrun.cuda.driver
import airrun.cuda.engine
from aircompile.build_command import _summary
from airrun import Engine
from airrun.cli import main
from airrun.commands.options import OPTIONS
from airrun.commands.pace import LoadBar
from airrun.cuda.sizes import device_sizes
from airrun.plan.container import read_plan
from airrun.plan.read_device import device_plan

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_gpu(patch)
        patch.setattr(airrun.cuda.driver, "Device", FakeDevice)
        patch.setattr(airrun.cuda.driver, "available", lambda: None)
        yield build_plan(tmp_path_factory, patch)


@pytest.fixture
def run(plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)

    def call(*arguments: str, command: str = "") -> tuple[int, str, str]:
        status = main([*([command] if command else []), str(plan), *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def streaming_budget(plan: Path) -> int:
    """The smallest budget of a GPU's memory that works."""
    loaded = read_plan(plan)
    part = device_plan(loaded)
    assert part is not None
    return least(lambda vram: device_sizes(loaded.plan, part, vram=vram, ram=1 << 30), 1 << 22)


def test_expectation_and_rates(run: Run) -> None:
    status, out, err = run("-p", "a", "-n", "2", "-s", "1", "--verbose", "--device", "cuda")
    lines = err.splitlines()
    assert status == 0 and out
    assert lines[0].startswith("note: expect ") and lines[0].endswith("tokens/s, bound by vram (a)")
    shown = {line.partition(":")[0] for line in lines[1:]}
    assert {"load", "context", "prefill", "decode", "decode weight"} <= shown and "decode bus" not in shown


def test_what_streams_is_announced(run: Run, plan: Path) -> None:
    vram = str(streaming_budget(plan))
    status, _out, err = run("-p", "a", "-n", "2", "--vram", vram, "--verbose", "--temp", "0")
    assert status == 0
    assert "GB each over the bus" in err.splitlines()[0]
    assert any(line.startswith("decode bus: ") and line.endswith(" GB/s") for line in err.splitlines())


def test_loading_is_shown(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(airrun.cuda.engine, "_PROGRESS_S", 1e-4)
    with Engine.from_plan(plan, device="cuda", progress=lambda done, total: seen.append((done, total))) as engine:
        assert isinstance(engine, airrun.cuda.engine.CudaEngine)
        read = engine._files.nbytes_read
    done, total = zip(*seen, strict=True)
    assert len(seen) > 1 and list(done) == sorted(done) and done[-1] == total[0] and len(set(total)) == 1
    # beside matrices, vectors and pages that are shared are read
    assert total[0] <= read < 1.5 * total[0]


def test_the_bar_of_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    out = io.StringIO()
    bar = LoadBar(out)
    bar(10**9, 4 * 10**9)
    assert out.getvalue() == ""
    now = 12.0
    bar(3 * 10**9, 4 * 10**9)
    assert out.getvalue() == "\rloading 3.0 of 4.0 GB, 1.5 GB/s"
    bar(4 * 10**9, 4 * 10**9)
    assert out.getvalue().endswith("\r" + " " * 31 + "\r")


def test_bench_names_the_device_of_every_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_first_token", "_prefill"):  # which take an interpreter of kernels long
        monkeypatch.setattr(f"airrun.commands.bench.{name}", lambda engine, prompt=(): 1.0)
    monkeypatch.setattr(airrun.cuda.engine.CudaEngine, "copy_rate", lambda engine: 1e9)
    status, out, _err = run("-p", "2", "-n", "1", "-r", "1", "--json", command="bench")
    found = json.loads(out)
    assert status == 0 and found["gpu"] == "Fake" and found["host_microseconds_per_token"] > 0
    assert {"product", "split", "argmax", "leaders"} <= set(found["step_devices"])
    assert set(found["step_devices"].values()) == {"cuda"}


def test_doctor(run: Run, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(*arguments: str) -> dict[str, str]:
        status, out, _err = run("--json", *arguments, command="doctor")
        assert status == 0
        return next(each for each in json.loads(out) if each["subject"] == "gpu")

    found = finding()
    assert found["status"] == "ok" and "Fake, which runs its sm_90" in found["has"]
    found = finding("--vram", str(streaming_budget(plan)))
    assert found["status"] == "warning" and "cross the bus in every step" in found["has"]
    monkeypatch.setattr(FakeDevice, "arch", "sm_75")
    found = finding()
    assert found["status"] == "warning" and "this GPU is sm_75" in found["has"]


def test_another_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Insisting is an error; otherwise the processor does it, and says why."""
    monkeypatch.setattr(FakeDevice, "arch", "sm_75")
    reason = "this GPU is sm_75, the plan has code for sm_90, sm_86; build it for this one, or use --device cpu"
    assert run("-p", "a", "-n", "1", "--device", "cuda") == (1, "", f"error: {reason}\n")
    status, out, err = run("-p", "a", "-n", "1", "--temp", "0")
    assert status == 0 and out and err == f"note: running on the processor: {reason}\n"


def test_too_little_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "memory", 1 << 17)
    status, out, err = run("-p", "a")
    assert (status, out) == (1, "") and err.startswith("error: 0 MiB of the GPU's memory are not enough")
    assert err.count("\n") == 1


@pytest.mark.parametrize("zero", [(), ("--zero-memory",)])
def test_a_failing_kernel(run: Run, monkeypatch: pytest.MonkeyPatch, zero: tuple[str, ...]) -> None:
    """Its step is named though nothing can be done on the device afterwards."""
    monkeypatch.setattr(FakeDevice, "failing", "gated")
    status, out, err = run("-p", "a", "-n", "1", "--check-steps", *zero)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("error: step layers.0.gated (layer 0): ") and "illegal_address" in err
    assert ("could not be filled with zeros" in err) == bool(zero)


def test_a_build_ends_with_what_to_expect_on_each_gpu(plan: Path) -> None:
    first, *lines = _summary(plan, 1.0).splitlines()
    assert first.endswith(" kernels") and len(lines) == 2
    for target, line in zip("ab", lines, strict=True):
        assert re.fullmatch(rf"  on {target} predicted \d+ tokens/s, bound by vram", line)
