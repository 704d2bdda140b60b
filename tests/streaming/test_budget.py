"""A budget is kept: by the ledger on paper, and by a process in a control group."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from plan_sample import sample
from streamed_model import Open

from aircompile.cli import main
from aircompile.stream_plan import chunk_panels, keep_order, stream
from airrun.commands.doctor import Finding, diagnose
from airrun.engine import Engine
from airrun.errors import BudgetError
from airrun.generation.generate import GenerateConfig
from airrun.ledger import sizes_of
from airrun.machine.profile import Disk
from airrun.plan.schema import Plan, Segment, Stream
from airrun.predict import predict
from airrun.weights.files import WeightFiles

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from cgroup import MemoryGroup

MIB = 1 << 20


def big_plan() -> Plan:
    """Many layers, with a chunk for every panel: no file belongs to it."""
    plan, segments = sample(300)
    weights = tuple(replace(weight, chunk_panels=1000) for weight in plan.weights)
    sized = tuple(Segment(s.name, 0, len(data)) for s, data in zip(plan.segments, segments, strict=True))
    plan = replace(plan, weights=weights, segments=sized, stream=Stream(2, 4))
    return replace(plan, keep_order=keep_order(sum(len(weight.parts) for weight in weights)))


def test_the_ledger_stays_within_the_budget_and_uses_it() -> None:
    plan = big_plan()
    library = plan.libraries[0]
    whole = sizes_of(plan, library=library, ram=1 << 50)
    assert not whole.residency.streams and whole.residency.kept_nbytes >= sum(w.nbytes for w in plan.weights)
    largest = max(weight.nbytes for weight in plan.weights)
    seen = []
    for budget in range(whole.total - MIB, whole.total - 9 * MIB, -MIB):
        sizes = sizes_of(plan, library=library, ram=budget)
        seen.append(sizes.residency.kept_nbytes)
        assert sizes.total <= budget
        # what is left would not have held another chunk
        assert sizes.total > budget - largest or sizes.residency.kept_nbytes == 0
    assert seen == sorted(seen, reverse=True) and len(set(seen)) > 5
    with pytest.raises(BudgetError, match=r"^5 MiB are not enough for a context of 512 tokens on 1 threads") as caught:
        sizes_of(plan, library=library, ram=5 * MIB, threads=1)
    smallest = int(str(caught.value).split()[-2])
    assert sizes_of(plan, library=library, ram=smallest * MIB, threads=1).total <= smallest * MIB
    with pytest.raises(BudgetError):
        sizes_of(plan, library=library, ram=(smallest - 1) * MIB, threads=1)


def test_the_budget_of_the_build_is_the_default() -> None:
    plan = big_plan()
    whole = sizes_of(plan, library=plan.libraries[0])
    assert whole.budget is None
    plan = replace(plan, choice=replace(plan.choice, ram_nbytes=whole.total - MIB))
    assert sizes_of(plan, library=plan.libraries[0]).budget == whole.total - MIB
    assert sizes_of(plan, library=plan.libraries[0], ram=whole.total).budget is None


def test_less_memory_than_the_model_streams_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a budget, what is available decides."""
    plan = big_plan()
    whole = sizes_of(plan, library=plan.libraries[0], ctx_size=32)
    monkeypatch.setattr("airrun.ram.available_ram", lambda: whole.total - whole.kv - 1)
    sizes = sizes_of(plan, library=plan.libraries[0], ctx_size=32)
    assert sizes.residency.streams and sizes.total <= 0.9 * whole.total
    monkeypatch.setattr("airrun.ram.available_ram", lambda: whole.total - whole.kv)
    assert not sizes_of(plan, library=plan.libraries[0], ctx_size=32).residency.streams


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 100, 1000])
def test_any_beginning_of_the_keep_order_is_spread(n: int) -> None:
    order = keep_order(n)
    assert sorted(order) == list(range(n))
    for kept in range(1, n + 1):
        places = sorted(order[:kept])
        gaps = [b - a for a, b in zip([-1, *places], [*places, n], strict=False)]
        # never more than twice the even distance, but for the power of two that n is rounded up to
        assert max(gaps) <= 4 * n / kept + 1


def test_chunks_are_even_and_of_the_size_that_the_disk_likes() -> None:
    disk = Disk(chunk=1 << 21, readers=4)
    assert chunk_panels(1000, 40_000, disk) == 50  # 20 chunks of 2 MB
    assert chunk_panels(53, 40_000, disk) == 27  # two halves rather than a whole and a scrap
    assert chunk_panels(3, 40_000, disk) == 3
    assert chunk_panels(10, 5_000_000, disk) == 1
    assert stream(disk).readers == 4 and stream(Disk()).readers == 2
    assert chunk_panels(1000, 40_000, Disk(chunk=4096)) == chunk_panels(1000, 40_000, Disk(chunk=1 << 20))


def test_what_is_streamed_bounds_the_predicted_speed() -> None:
    plan = big_plan()
    plan = replace(plan, cost=replace(plan.cost, disk_bytes_per_s=1e8))
    whole = sizes_of(plan, library=plan.libraries[0])
    fast = predict(plan, sizes=whole)
    assert fast.decode_bound != "disk" and fast == predict(plan)
    sizes = sizes_of(plan, library=plan.libraries[0], ram=whole.total - 4 * MIB)
    slow = predict(plan, sizes=sizes)
    assert slow.decode_bound == "disk"
    assert slow.decode_tokens_per_second == pytest.approx(1e8 / sizes.residency.streamed_nbytes)
    unknown = replace(plan, cost=replace(plan.cost, disk_bytes_per_s=0.0))
    assert predict(unknown, sizes=sizes).decode_tokens_per_second is None


RUN = """
import sys
from airrun.weights import stream as stream_module
from airrun.commands.doctor import Finding, diagnose
from airrun.engine import Engine
from airrun.generation.generate import GenerateConfig
engine = Engine.from_plan(sys.argv[1], ram=sys.argv[2])
assert engine.streams
engine.session.eval([5] * 100)
engine.session.reset()
print(engine.generate("abba", GenerateConfig(max_tokens=20, ignore_eos=True, temperature=0.0)))
print(engine.sizes.total)
"""
HOG = """
import sys
held = bytearray(b"x") * (64 << 20)
print("ready", flush=True)
while True:
    with open(sys.argv[1], "rb") as file:
        while file.read(1 << 20):
            pass
"""


def group_of(limit: int) -> MemoryGroup:
    try:
        return MemoryGroup(limit)
    except OSError:
        pytest.skip("no control groups for memory here (needs root)")


def run_limited(group: MemoryGroup, code: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *args]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, preexec_fn=group.join, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_process_stays_within_its_budget(home: Path) -> None:
    """The peak of a control group, page cache included, in which nothing else runs."""
    group = group_of(1 << 40)
    try:
        with run_limited(group, RUN, str(home / "model.plan.bin"), "42MiB") as process:
            text = process.communicate()[0].splitlines()
        assert process.returncode == 0 and int(text[-1]) <= 42 * MIB
        assert group.peak <= 42 * MIB
    finally:
        group.close()


def test_another_process_that_wants_memory_changes_nothing(home: Path, resident: Engine) -> None:
    """One that holds 64 MiB and fills the page cache, in a group whose limit leaves 8 MiB beside both."""
    group = group_of((42 + 64 + 12 + 8) * MIB)
    try:
        with run_limited(group, HOG, str(home / "model.gguf")) as hog:
            assert hog.stdout is not None and hog.stdout.readline() == "ready\n"
            with run_limited(group, RUN, str(home / "model.plan.bin"), "42MiB") as process:
                text = process.communicate()[0]
            assert process.returncode == 0
            hog.kill()
        alone = resident.generate("abba", GenerateConfig(max_tokens=20, ignore_eos=True, temperature=0.0))
        assert text.rpartition("\n")[0].rpartition("\n")[0] == alone
    finally:
        group.close()


def test_a_budget_is_bound_by_the_build_and_explained(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.plan.bin"
    build = ["build", str(home / "model.gguf"), "-o", str(out), "--quiet", "--ram"]
    assert main([*build, "5MiB"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the smallest budget that works is" in error
    assert not out.exists()
    smallest = int(error.split()[-2])
    assert main([*build, f"{smallest}MiB"]) == 0
    assert main(["explain", str(out), "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)["ledger"]
    assert ledger["budget"] == smallest * MIB >= ledger["ram_total"] == sum(ledger["ram"].values())
    assert ledger["streamed_per_pass"] > 3 * MIB
    assert main(["explain", str(out), "--ram", "1GiB"]) == 0
    assert "read in every pass" not in capsys.readouterr().out
    assert main(["explain", str(out), "--ram", "5MiB"]) == 1


def test_doctor_says_how_streamed_weights_are_read(open_streamed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_streamed()

    def disk() -> Finding:
        found = diagnose(engine.loaded, engine._files.paths, threads=engine.threads, ram=engine.sizes.budget)
        return next(each for each in found if each.subject == "disk")

    assert disk().status == "ok" and "in every pass" in disk().needs

    def refuse(path: Path) -> int:
        raise OSError(errno.EINVAL, "Invalid argument", str(path))

    monkeypatch.setattr(WeightFiles, "_open_direct", staticmethod(refuse))
    assert disk().status == "ok" and "without direct reads" in disk().has
