"""The cost model: counted against the tensors of a model, priced against sums made by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import llama_model, llama_tensors

from aircompile.architectures import build_graph
from aircompile.cost import Machine, decode_seconds, elements, estimate, prefill_seconds, stages
from aircompile.lowering import Call, Lowering, Phase, lower, plan_caches
from aircompile.passes import PASSES
from aircompile.passes.options import PassOptions
from airkernels.cpu.isa import ISAS
from airkernels.formats import FORMATS, FloatFormat
from airrun.machine.profile import Cpu, Disk, Profile, Tier, Tiers
from airrun.plan.blocks import BLOCKS
from airschedules.calibration import ACTIVATIONS, Calibration, load_calibration
from airschedules.specs import MatmulSpec
from airschedules.specs.kernel import KernelSpec

RATE = 1e9
ELEMENT = 1e-9


class Same(dict[str, float]):
    """One rate for every kernel."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def __missing__(self, key: str) -> float:
        return self.rate


def rates(sync: float = 0.0) -> Calibration:
    return Calibration("test", sync, Same(RATE), Same(RATE), Same(ELEMENT), Same(ELEMENT))


def lowered(form: str = "Q8_0", activations: Any = "auto", n_layers: int = 2) -> list[tuple[Phase, Lowering]]:
    graph = build_graph(llama_model(None if n_layers == 1 else _layers(n_layers), tensors(form, n_layers)))
    for _name, rewrite in PASSES:
        graph = rewrite(graph, PassOptions(activations))
    return lower(graph, plan_caches(graph, "f16", 128))


def _layers(n: int) -> dict[str, object]:
    from small_models import llama_metadata

    return llama_metadata(block_count=n)


def tensors(form: str, n_layers: int) -> Any:
    return llama_tensors(n_layers=n_layers, default=form)


def products(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if isinstance(call.spec, MatmulSpec)]


CALIBRATED = [name for name in ISAS if name.startswith("x86")]
"""Rates were measured on machines that were at hand."""

PROFILE = Profile(
    "box",
    cpu=Cpu(isa=("x86-64-v4",), threads=2),
    tiers=Tiers(Tier(1 << 34, bandwidth=30_000_000_000, bandwidth_1=20_000_000_000), Disk(bandwidth=1_000_000_000)),
)


def test_bytes_and_multiplications_are_those_of_the_matrices() -> None:
    cost = estimate(lowered(), PROFILE)
    matrices = [t for t in tensors("Q8_0", 2).values() if len(t.shape) == 2 and t.name != "token_embd.weight"]
    # 40 rows of the output matrix are padded to 48, whole panels of 16
    padding = 8 * BLOCKS["Q8_0"].row_bytes(64)
    assert cost.weight_nbytes_per_token == sum(t.nbytes for t in matrices) + padding
    assert cost.macs_per_token == sum(t.shape[0] * t.shape[1] for t in matrices)
    assert cost.disk_bytes_per_s == 1e9


def test_computing_by_hand() -> None:
    calls = lowered()[0][1].calls
    weights = estimate(lowered(), PROFILE).weight_nbytes_per_token
    others = sum(
        elements(call) for call in calls if not isinstance(call.spec, MatmulSpec) and call.spec.rate != "attention"
    )
    # two layers of attention, 4 heads of 16 elements, 10 cells before this one
    attention = 2 * 4 * 16 * 11
    expected = weights / RATE + (others + attention) * ELEMENT
    unbounded = Machine(1, 1e30, rates())
    assert decode_seconds(calls, unbounded, 10) == pytest.approx(expected)
    barriers = sum(call.sync for call in calls)
    pair = Machine(2, 1e30, rates(sync=1.0))
    assert decode_seconds(calls, pair, 10) == pytest.approx(barriers, rel=1e-3)


def test_memory_bounds_what_computes_faster() -> None:
    calls = lowered()[0][1].calls
    weights = estimate(lowered(), PROFILE).weight_nbytes_per_token
    # memory a hundred times slower than the kernels: reading is all that counts of the products
    slow = decode_seconds(products(calls), Machine(1, RATE / 100, rates()), 0)
    assert slow == pytest.approx(weights / (RATE / 100), rel=1e-6)
    even = decode_seconds(products(calls), Machine(1, RATE, rates()), 0)
    assert weights / RATE < even < 1.25 * weights / RATE


def test_prefill_by_hand() -> None:
    (_, low) = lowered()[1]
    inner = [call for call in products(low.calls) if call.rows == "tokens"]
    macs = sum(call.tasks * 16 * call.spec.matrix.n_cols for call in inner)  # type: ignore[attr-defined]
    for threads in (1, 2):
        machine = Machine(threads, 1e30, rates())
        assert prefill_seconds(inner, machine, 100) == pytest.approx(macs * 100 / RATE / threads)


def test_two_threads_share_tasks_but_not_a_single_one() -> None:
    calls = [call for call in lowered()[0][1].calls if call.tasks == 1]
    alone, pair = (decode_seconds(calls, Machine(n, 1e30, rates()), 0) for n in (1, 2))
    assert alone == pair > 0


def test_stages_end_at_barriers() -> None:
    calls = lowered()[0][1].calls
    free = [replace(call, sync=i % 3 == 2) for i, call in enumerate(calls[:8])]
    assert [len(stage) for stage in stages(free)] == [3, 3, 2]


def test_unknown_rates_predict_nothing() -> None:
    for profile in (
        replace(PROFILE, tiers=Tiers()),
        replace(PROFILE, cpu=Cpu(isa=("x86-64-v4",))),
    ):
        cost = estimate(lowered(), profile)
        assert (cost.ram_bytes_per_s, cost.decode_overhead_s, cost.prefill_macs_per_s) == (0, 0, 0)
        assert cost.macs_per_token > 0


def test_memory_counts_where_kernels_were_never_measured() -> None:
    """Then a prediction is what the target's memory allows, and not what that of the building machine does."""
    for isa in ((), ("unheard-of",)):
        cost = estimate(lowered(), replace(PROFILE, cpu=Cpu(isa=isa, threads=4)))
        assert (cost.ram_bytes_per_s, cost.decode_overhead_s, cost.prefill_macs_per_s) == (30e9, 0, 0)
    one = estimate(lowered(), replace(PROFILE, cpu=Cpu(threads=4)), threads=1)
    assert one.ram_bytes_per_s == 20e9


@pytest.mark.parametrize("isa", CALIBRATED)
@pytest.mark.parametrize(("form", "activations"), [(f, a) for f in ("F16", "Q8_0", "Q4_1") for a in ("q8", "f32")])
def test_every_kernel_has_a_rate(isa: str, form: str, activations: str) -> None:
    profile = replace(PROFILE, cpu=Cpu(isa=(isa,), threads=1))
    cost = estimate(lowered(form, "auto" if form == "F16" else activations), profile)
    assert cost.ram_bytes_per_s == 20e9 and cost.prefill_macs_per_s > 0


@pytest.mark.parametrize("isa", CALIBRATED)
def test_calibrations_are_plausible(isa: str) -> None:
    found = load_calibration(isa)
    assert found is not None and found.machine
    assert set(found.decode) == set(found.prefill) >= {"F32/f32", "Q4_0/q8", "Q4_K/q8", "Q6_K/f32"}
    # between a slow and an absurd core
    assert all(1e8 < rate < 1e12 for rate in [*found.decode.values(), *found.prefill.values()])
    assert found.element_decode.keys() == found.element_prefill.keys()
    assert 0 < found.sync < 1e-4


def test_the_makers_own_calibration_is_taken_if_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "rates.toml"
    tables = [
        f'["{name}"]\nmachine = "{name}"\nsync = 1.0\n'
        + "".join(f"{part} = {{}}\n" for part in ("decode", "prefill", "element_decode", "element_prefill"))
        for name in ("v4/A", "v4/B", "v40/C")
    ]
    path.write_text("".join(tables))
    for maker, expected in (("B", "v4/B"), ("A", "v4/A"), ("C", "v4/A"), ("", "v4/A")):
        found = load_calibration("v4", maker, path)
        assert found is not None and found.machine == expected
    assert load_calibration("v3", "A", path) is None


def test_what_one_maker_lacks_is_taken_from_another() -> None:
    other = Calibration("other", 0.0, {"F32/f32": 4e9}, {"F32/f32": 5e9}, {}, {})
    found = Calibration("own", 0.0, {"Q4_K/q16": 9e9}, {"Q4_K/q16": 8e9}, {}, {}, other)
    assert found.product("decode", "F32", 0) == (4e9, False)
    assert found.product("prefill", "Q5_K", 2) == (pytest.approx(8e9), False)
    assert found.product("prefill", "Q8_0", 2) == (pytest.approx(8e9), False)


@pytest.mark.parametrize("isa", CALIBRATED)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("digits", [0, 1, 2])
def test_every_product_has_a_rate_that_is_like_others(isa: str, form: str, digits: int) -> None:
    if digits and isinstance(FORMATS[form], FloatFormat):
        return
    found = load_calibration(isa)
    assert found is not None
    for phase, table in (("decode", found.decode), ("prefill", found.prefill)):
        rate = found.product(phase, form, digits)
        assert rate.measured == (f"{form}/{ACTIVATIONS[digits]}" in table)
        assert min(table.values()) / 5 < rate.value < 2 * max(table.values())


def test_estimates_keep_weights_per_second() -> None:
    known = {"Q4_K/q16": 9e9, "Q6_K/q16": 8e9, "Q8_0/q16": 34e9, "F32/f32": 4e9}
    found = Calibration("test", 0.0, known, known, {}, {})
    # 256 weights in 144, 210 and 176 bytes; those of K-quants are like K-quants
    per_second = math.sqrt(9e9 / 144 * 256 * 8e9 / 210 * 256)
    assert found.product("decode", "Q5_K", 2) == (pytest.approx(per_second / 256 * 176), False)
    assert found.product("prefill", "Q5_K", 2) == (pytest.approx(math.sqrt(9e9 * 8e9)), False)
    # no format with grids was measured: all integer ones count, and no float
    assert found.product("prefill", "IQ2_S", 1) == (pytest.approx((9e9 * 8e9 * 34e9) ** (1 / 3)), False)
    assert found.product("decode", "BF16", 0) == (pytest.approx(4e9 / 4 * 2), False)
    assert found.product("decode", "Q8_0", 2) == (34e9, True)


def test_kernels_without_a_rate_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = replace(PROFILE, cpu=Cpu(isa=("x86-64-v3",), threads=1))
    assert estimate(lowered("Q4_1", "q8"), profile).estimates == ()
    cost = estimate(lowered("Q5_1", "q8"), profile)
    assert cost.estimates == ("Q5_1/q8",) and cost.prefill_macs_per_s > 0


def test_every_operator_has_a_rate() -> None:
    def described(cls: type) -> Iterator[type]:
        for each in cls.__subclasses__():
            yield each
            yield from described(each)

    ops = {each.__name__.removesuffix("Spec").lower() for each in described(KernelSpec)}
    assert {"scan", "linearattention", "route"} <= ops
    for isa in CALIBRATED:
        found = load_calibration(isa)
        assert found is not None
        for op in ops:
            for phase in ("decode", "prefill"):
                assert 1e-12 < found.element(phase, op).value < 1e-8
