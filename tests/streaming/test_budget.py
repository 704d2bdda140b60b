"""A budget is kept: by the ledger on paper, and by a process in a control group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from plan_sample import sample

from aircompile.cli import main
from aircompile.stream_plan import chunk_panels, keep_order, stream
from airrun.errors import BudgetError
from airrun.ledger import sizes_of
from airrun.plan.schema import Plan, Segment, Stream
from airrun.predict import predict
from airrun.profile import Disk

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
    monkeypatch.setattr("airrun.machine.available_ram", lambda: whole.total - whole.kv - 1)
    sizes = sizes_of(plan, library=plan.libraries[0], ctx_size=32)
    assert sizes.residency.streams and sizes.total <= 0.9 * whole.total
    monkeypatch.setattr("airrun.machine.available_ram", lambda: whole.total - whole.kv)
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


def test_a_process_stays_within_its_budget(home: Path) -> None:
    """The peak of a control group, page cache included, beside a process that wants memory too."""
    try:
        group = MemoryGroup(1 << 40)
    except OSError:
        pytest.skip("no control groups for memory here (needs root)")
    code = (
        "import sys\n"
        "from airrun.engine import Engine\n"
        "from airrun.generate import GenerateConfig\n"
        "engine = Engine.from_plan(sys.argv[1], ram=sys.argv[2])\n"
        "assert engine.streams\n"
        "engine.session.eval([5] * 100)\n"
        "engine.session.reset()\n"
        "engine.generate('abba', GenerateConfig(max_tokens=20, ignore_eos=True))\n"
        "print(engine.sizes.total)\n"
    )
    budget = "42MiB"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(home / "model.plan.bin"), budget],
            preexec_fn=group.join,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert int(done.stdout) <= 42 * MIB
        assert group.peak <= 42 * MIB
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
