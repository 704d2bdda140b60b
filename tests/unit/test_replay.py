"""The native replay loop: every task once, stages in order, whatever the number of workers and the load."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tvm import tirx

from aircompile.codegen import compile_library
from airkernels.cpu.isa import ISAS, VectorIsa
from airkernels.cpu.program import Kernel, define, loop
from airrun.machine.isa import host_levels
from airrun.replay.memory import Region
from airrun.replay.native import Call, Library, Team, pack_calls
from airschedules.specs import KernelSpec

N = 97


class _CountSpec(KernelSpec):
    """out[task] += in[(7 * task + 3) mod N] + 1: wrong if a task runs twice, or before the last stage has ended."""

    shape = (N,)
    symbol = "count"

    def build(self, isa: VectorIsa) -> tirx.PrimFunc:
        def body(k: Kernel) -> None:
            source, out = k.region(0, "int32"), k.region(1, "int32")
            with loop(k.end, k.begin) as task:
                out.store(task, out.load(task) + source.load(tirx.indexmod(task * 7 + 3, N)) + 1)

        return define(self.symbol, body)


@pytest.fixture(scope="module")
def library() -> Library:
    levels = [level for level in host_levels() if level in ISAS]
    if not levels:
        pytest.skip("no kernels for this processor")
    return Library(compile_library([_CountSpec()], ISAS[levels[-1]], lambda *_: None).image, "test")


def expected(n_stages: int, n_tasks: list[int]) -> np.ndarray:
    """The same in numpy; stage s reads buffer s % 2 and writes the other."""
    buffers = [np.zeros(N, np.int64), np.zeros(N, np.int64)]
    for s in range(n_stages):
        tasks = np.arange(n_tasks[s])
        buffers[(s + 1) % 2][tasks] += buffers[s % 2][(7 * tasks + 3) % N] + 1
        buffers = [np.int64(b) % 2**32 for b in buffers]
    return np.stack(buffers).astype(np.uint32).view(np.int32)


@pytest.mark.parametrize("n_workers", [1, 2, 3, 8])
def test_stages_follow_each_other(library: Library, n_workers: int) -> None:
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    team = Team(library, n_workers)
    try:
        for _ in range(20):
            n_stages = int(rng.integers(1, 120))
            n_tasks = [int(rng.choice([0, 1, 2, 13, N])) for _ in range(n_stages)]
            memory = Region(8 * N)
            buffers = [memory.address, memory.address + 4 * N]
            kernel = library.address("count")
            calls = [Call(kernel, [buffers[s % 2], buffers[(s + 1) % 2]], 1, n_tasks[s], True) for s in range(n_stages)]
            array = pack_calls(calls)
            team.adopt(array)
            team.run(array.address, n_stages)
            found = memory.array("<i4", (2, N))
            assert np.array_equal(found, expected(n_stages, n_tasks))
    finally:
        team.close()


def test_calls_of_one_stage_share_it(library: Library) -> None:
    team = Team(library, 2)
    try:
        memory = Region(4 * 4 * N)
        kernel = library.address("count")
        places = [memory.address + 4 * N * i for i in range(4)]
        calls = [Call(kernel, [places[0], places[i]], 1, N, i == 3) for i in (1, 2, 3)]
        array = pack_calls(calls)
        team.adopt(array)
        for _ in range(200):
            team.run(array.address, 3)
        assert (memory.array("<i4", (4, N))[1:] == 200).all()
    finally:
        team.close()


def test_stopping_reaches_workers_on_their_way_to_sleep(library: Library) -> None:
    """Teams are stopped at every moment of a worker's spin and sleep; one that missed it would never end."""
    started = time.monotonic()
    for i in range(600):
        team = Team(library, 3)
        # around the time after which an idle worker goes to sleep
        until = time.perf_counter() + (i % 60) * 1e-5
        while time.perf_counter() < until:
            pass
        team.close()
    assert time.monotonic() - started < 60
