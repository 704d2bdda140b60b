"""Choosing and tuning configurations of GPU products, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from test_gpu_plan import build_plan

from airkernels.formats import FORMATS
from airrun.commands.doctor import diagnose
from airrun.commands.explain import describe
from airrun.errors import AirError
from airrun.plan.container import read_plan
from airschedules.gpu.records import ProductRecord, add_records
from airschedules.gpu.rules import ProductTask, candidates, schedule_product
from airschedules.gpu.specs import ProductSpec

TASKS = [
    ProductTask(fmt, "q8", n_rows, n_cols)
    for fmt in ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "NVFP4", "IQ1_S")
    for n_rows, n_cols in ((1000, 256), (4096, 14336), (7, 768), (3584, 3584))
    if n_cols % FORMATS[fmt].block == 0
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.key("any"))
def test_candidates_are_tilings(task: ProductTask) -> None:
    tried = candidates(task)
    config = schedule_product(task, "sm_99")
    assert tried[0] == (config.rows, config.tile, config.columns) and "no record for sm_99" in config.reason
    assert len(set(tried)) == len(tried)
    for rows, tile, columns in tried:
        assert tile % columns == 0 and tile % 32 == 0 and rows >= 1
        assert all(n & (n - 1) == 0 for n in (rows, tile, columns))


def test_a_record_wins_over_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    task = ProductTask("Q4_0", "q8", 1000, 256)
    add_records({task.key("sm_99"): ProductRecord(1, 32, 8, 2.5, 3.0, "Fake")})
    config = schedule_product(task, "sm_99")
    assert (config.rows, config.tile, config.columns) == (1, 32, 8) and config.reason == "tuning record: 2.5 us on Fake"
    assert ProductSpec("Q4_0", 1000, 256, "q8", 1000, False, False).schedule("sm_99").tiles == (4, 1)
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "other"))
    from airschedules.gpu import records

    records.STORE.forget()
    assert schedule_product(task, "sm_99") != config


def test_shipped_records_are_of_known_shapes() -> None:
    config = schedule_product(ProductTask("Q4_0", "q8", 28672, 4096), "sm_90")
    assert "on H200" in config.reason


def test_explain_and_doctor_know_the_gpu(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_gpu import use_fake_gpu

    use_fake_gpu(monkeypatch)
    loaded = read_plan(build_plan(tmp_path_factory, monkeypatch))
    found = describe(loaded)["gpu"]
    assert [(e["arch"], e["checked"]) for e in found["libraries"]] == [("sm_90", True), ("sm_86", False)]
    assert found["total"] == sum(found["memory"].values()) > 0
    products = [kernel for kernel in found["kernels"] if kernel["op"] == "product"]
    assert products and all(kernel["schedules"]["sm_86"]["reason"] for kernel in products)

    import airrun.cuda.driver as driver

    monkeypatch.setattr(driver, "available", lambda: "no NVIDIA driver")
    finding = next(f for f in diagnose(loaded) if f.subject == "gpu")
    assert finding.status == "warning" and finding.has == "no NVIDIA driver: the processor will do"


def test_tune_needs_the_gpu_of_its_target(tmp_path: Path) -> None:
    from argparse import Namespace

    from aircompile.tune_command import run

    with pytest.raises(AirError, match="target cpu has no GPU"):
        run(Namespace(target="cpu", model=[tmp_path / "x.gguf"], output=None, quiet=True))
