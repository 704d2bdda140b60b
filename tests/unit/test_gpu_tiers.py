"""Weights that do not fit a GPU: what is kept where, how the rest travels, and that the results stay the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeDevice, use_fake_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gpu_plan import build_plan

from airrun import Engine
from airrun.cuda.engine import CudaEngine
from airrun.cuda.pieces import Rows, ring_of, transfers_of
from airrun.cuda.predict import predict_device
from airrun.cuda.sizes import DeviceSizes, device_sizes
from airrun.cuda.tiers import DEVICE, DISK, HOST, HOST_ROWS
from airrun.errors import AirError, BudgetError, WeightFileError
from airrun.plan.container import LoadedPlan, read_plan
from airrun.plan.device import DevicePlan, DeviceTarget, matrix_uses
from airrun.plan.fingerprint import locate
from airrun.plan.read_device import device_plan

PROMPT, TOKENS = [1, 40, 77], [7, 3]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        use_fake_gpu(patch)
        yield build_plan(tmp_path_factory, patch)


@pytest.fixture(scope="module")
def loaded(plan: Path) -> LoadedPlan:
    return read_plan(plan)


@pytest.fixture(scope="module")
def part(loaded: LoadedPlan) -> DevicePlan:
    found = device_plan(loaded)
    assert found is not None
    return found


def least(fits: Callable[[int], DeviceSizes], most: int) -> int:
    """The smallest budget that works, by trying."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        try:
            fits(middle)
        except BudgetError:
            low = middle + 1
        else:
            high = middle
    return low


@pytest.fixture(scope="module")
def vram(loaded: LoadedPlan, part: DevicePlan) -> int:
    """The smallest budget of the device's memory."""
    return least(lambda n: device_sizes(loaded.plan, part, vram=n, ram=1 << 40), 1 << 40)


@pytest.fixture(scope="module")
def ram(loaded: LoadedPlan, part: DevicePlan, vram: int) -> int:
    """The smallest budget of the host's memory beside that: it has room for the table of embeddings."""
    return least(lambda n: device_sizes(loaded.plan, part, vram=vram, ram=n), 1 << 40)


def results(engine: Engine) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Logits after a prompt and after single tokens, and a choice."""
    with engine:
        logits = engine.session.eval(PROMPT)[0].copy()
        ones = [engine.session.eval([token])[0].copy() for token in TOKENS]
        return logits, ones, engine.session.choose(5)


def assert_same(got: tuple, want: tuple) -> None:
    assert (got[0] == want[0]).all()
    assert all((a == b).all() for a, b in zip(got[1], want[1], strict=True))
    assert got[2] == want[2]


@pytest.fixture(scope="module")
def resident(plan: Path) -> tuple:
    engine = Engine.from_plan(plan, device="cuda")
    assert not engine.streams
    return results(engine)


@pytest.mark.parametrize("case", ["ram", "disk", "all"])
def test_same_bits_as_when_everything_fits(plan: Path, resident: tuple, vram: int, ram: int, case: str) -> None:
    budgets = {"ram": (vram, 1 << 40), "disk": (vram, ram), "all": (vram + 30_000, ram + 30_000)}[case]
    engine = Engine.from_plan(plan, device="cuda", vram=budgets[0], ram=budgets[1])
    assert isinstance(engine, CudaEngine)
    places = set(engine.device_sizes.tiers.places)
    assert places == {"ram": {HOST, HOST_ROWS}, "disk": {DISK, HOST_ROWS}, "all": {DEVICE, HOST, DISK, HOST_ROWS}}[case]
    assert engine.streams
    got = results(engine)
    assert_same(got, resident)
    fake: FakeDevice = engine.gpu  # type: ignore[assignment]
    # a prompt, and steps for logits and for a choice, of which each is recorded once
    assert fake.carried >= 3 * engine.device_sizes.tiers.raw_nbytes(HOST, DISK)
    assert (engine.metrics()["read_bytes"] > 0) == (case != "ram")


def test_budgets_bound_what_is_taken(loaded: LoadedPlan, part: DevicePlan, vram: int, ram: int) -> None:
    whole = device_sizes(loaded.plan, part)
    carried = []
    for budget in range(vram, whole.total, max((whole.total - vram) // 12, 1)):
        sizes = device_sizes(loaded.plan, part, vram=budget, ram=ram + 20_000)
        assert sizes.total <= budget
        assert sum(sizes.host_entries.values()) <= ram + 20_000
        carried.append(sizes.tiers.raw_nbytes(HOST, DISK))
    assert carried == sorted(carried, reverse=True)
    assert carried[0] > 0
    assert not device_sizes(loaded.plan, part, vram=whole.total).tiers.streams


def test_too_small_budgets_name_the_smallest(loaded: LoadedPlan, part: DevicePlan, vram: int, ram: int) -> None:
    with pytest.raises(BudgetError, match=rf"smallest --vram that works is {-(-vram // (1 << 20))} MiB"):
        device_sizes(loaded.plan, part, vram=vram - 1, ram=1 << 40)
    with pytest.raises(BudgetError, match=r"smallest --ram is \d+ MiB"):
        device_sizes(loaded.plan, part, vram=vram, ram=1 << 20)


def test_more_than_there_is(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "memory", 1 << 20)
    with pytest.raises(BudgetError, match="Fake has 0.00 GiB of memory free"):
        Engine.from_plan(plan, device="cuda", vram=1 << 40)


def test_a_file_that_shrinks_is_an_error_and_the_engine_recovers(
    plan: Path, tmp_path: Path, vram: int, ram: int
) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(locate(read_plan(plan).plan, plan, [])[0].read_bytes())
    engine = Engine.from_plan(plan, model, device="cuda", vram=vram, ram=ram)
    data = model.read_bytes()
    want = engine.logits(PROMPT)
    try:
        os.truncate(model, len(data) // 2)
        with pytest.raises(WeightFileError, match=str(model.name)):
            engine.logits(PROMPT)
    finally:
        model.write_bytes(data)
    engine._files._states = [engine._files._state(fd) for fd in engine._files.descriptors]
    assert (engine.logits(PROMPT) == want).all()
    engine.close()


def test_prediction_names_the_tier_that_bounds(loaded: LoadedPlan, part: DevicePlan, vram: int, ram: int) -> None:
    plan = loaded.plan
    target = DeviceTarget("x", "sm_90", 1 << 30, 1e12, 1e6)
    resident = predict_device(plan, part, device_sizes(plan, part), target)
    assert resident.bound == "vram"
    from_ram = predict_device(plan, part, device_sizes(plan, part, vram=vram, ram=1 << 40), target)
    assert from_ram.bound == "bus"
    assert from_ram.tokens_per_second == pytest.approx(1 / from_ram.seconds["bus"])
    slow_disk = plan.cost.disk_bytes_per_s / 1e6
    fast_bus = DeviceTarget("x", "sm_90", 1 << 30, 1e12, 1e3 * slow_disk * 1e6)
    assert predict_device(plan, part, device_sizes(plan, part, vram=vram, ram=ram), fast_bus).bound == "disk"
    unknown = predict_device(plan, part, device_sizes(plan, part), DeviceTarget("x", "sm_90", 0, 0.0, 0.0))
    assert (unknown.tokens_per_second, unknown.bound) == (None, "unknown")


def test_matrices_are_used_in_one_order(part: DevicePlan) -> None:
    first, last = ([use.weight for use in matrix_uses(p.steps)] for p in (part.programs[0], part.programs[-1]))
    assert first == last
    assert len(set(first)) == len(first) == len(part.weights) - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(0, 1500), st.sampled_from([1, 16]))
def test_ring_overwrites_only_what_was_used(sizes: list[int], more: int, unit: int) -> None:
    nbytes = max(sizes) + more
    ring = ring_of(sizes, nbytes, unit)
    for i, (offset, size) in enumerate(zip(ring.offsets, sizes, strict=True)):
        assert 0 <= offset <= nbytes - size
        assert offset % unit == 0
        over = [j for j in range(i) if ring.offsets[j] < offset + size and offset < ring.offsets[j] + sizes[j]]
        assert max(over, default=-1) <= ring.after[i] < i
    assert list(ring.after) == sorted(ring.after)
    if sum(-(-size // unit) * unit for size in sizes) <= nbytes:
        assert set(ring.after) == {-1}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9000), st.lists(st.integers(1, 40), min_size=1, max_size=3)), min_size=1, max_size=9
    ),
    st.integers(20_000, 90_000),
    st.data(),
)
def test_transfers_hold_every_byte_once(matrices: list, slot: int, data: st.DataObject) -> None:
    rows, at = [], data.draw(st.integers(0, 5000))
    for number, (row_nbytes, parts) in enumerate(matrices):
        places = []
        for n in parts:
            places.append((0, at, n * row_nbytes))
            at += n * row_nbytes + data.draw(st.integers(0, 5000))
        rows.append(Rows(number, 0, tuple(places), row_nbytes))
    cut = data.draw(st.integers(0, len(rows)))
    transfers = transfers_of(rows, slot, lambda first, visit: (first < cut) == (visit < cut))
    for transfer in transfers:
        assert transfer.nbytes <= slot
        spans = [(place, nbytes) for _first, nbytes, place in (piece.span for piece in transfer.pieces)]
        assert [place for place, _n in spans] == [sum(n for _p, n in spans[:i]) for i in range(len(spans))]
        assert len({piece.visit < cut for piece in transfer.pieces}) == 1
        for piece in transfer.pieces:
            first, _nbytes, place = piece.span
            assert piece.at - place == piece.offset - first
    pieces = [piece for transfer in transfers for piece in transfer.pieces]
    for number, each in enumerate(rows):
        mine = [piece for piece in pieces if piece.visit == number]
        found = b"".join(bytes(f"{p.offset}:{p.nbytes};", "ascii") for p in mine)
        assert [p.ends for p in mine] == [False] * (len(mine) - 1) + [True], found
        assert sum(p.nbytes for p in mine) == sum(n for _f, _o, n in each.parts)
        assert [p.first_row for p in mine] == [sum(p.n_rows for p in mine[:i]) for i in range(len(mine))]


def test_read_errors_name_file_and_offset(plan: Path, vram: int, ram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import airrun.cuda.reading as reading

    engine = Engine.from_plan(plan, device="cuda", vram=vram, ram=ram)
    want = engine.logits(PROMPT)

    def broken(fd: int, buffers: list, offset: int) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(reading.os, "preadv", broken)
        with pytest.raises(AirError, match=r"cannot be read at offset \d+: Input/output error"):
            for _ in range(3):
                engine.logits(PROMPT)
    assert (engine.logits(PROMPT) == want).all()
    engine.close()
