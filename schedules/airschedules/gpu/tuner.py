"""The tuner of GPU products: times candidate configurations on this machine's GPU and keeps the fastest.

Candidates are compiled in parallel processes, then timed as graphs that go through several copies of the weights, more
than the cache of the device holds. The median of several launches of a graph counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.build import Binary
from airkernels.triton.layout import MatrixLayout, RowLayout
from airrun.cuda.driver import Arguments, Device
from airschedules.gpu.records import ProductRecord
from airschedules.gpu.rules import ProductTask, candidates, configure
from airschedules.gpu.specs import ProductSpec

Progress = Callable[[str, int, int], None]

_WEIGHT_NBYTES = 1 << 30
"""Of the copies that a graph goes through: many times what the cache of a device holds."""

_LAUNCHES = (4, 64)
"""Fewest and most launches of a graph."""

_ROUNDS = 7
_KEEP = 1.02
"""A candidate replaces the rules' choice only if it is this much faster: less is noise."""

Config = tuple[int, int, int]
CompiledProduct = tuple[Binary, int]


def tune_products(tasks: Sequence[ProductTask], gpu: Device, progress: Progress) -> dict[str, ProductRecord]:
    """Measure every product that has candidates.

    Returns
    -------
    Records by key, for `records.add_records`.
    """
    todo = [task for task in tasks if isinstance(FORMATS[task.fmt], BlockFormat)]
    bench = ProductBench(gpu)
    found: dict[str, ProductRecord] = {}
    # a fresh interpreter for each: LLVM's threads do not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = [
            [(config, pool.submit(compile_product, task, config, gpu.arch)) for config in candidates(task)]
            for task in todo
        ]
        for i, (task, tried) in enumerate(zip(todo, jobs, strict=True)):
            progress(task.key(gpu.arch), i, len(todo))
            times = {config: bench.microseconds(task, job.result()) for config, job in tried}
            baseline = times[tried[0][0]]
            best = min(times, key=times.__getitem__)
            if times[best] * _KEEP > baseline:
                best = tried[0][0]
            name = gpu.name.removeprefix("NVIDIA ")
            found[task.key(gpu.arch)] = ProductRecord(*best, round(times[best], 2), round(baseline, 2), name)
    return found


def _spec(task: ProductTask) -> ProductSpec:
    return ProductSpec(task.fmt, task.n_rows, task.n_cols, task.kind, task.n_rows, False, False)


def compile_product(task: ProductTask, config: Config, arch: str) -> CompiledProduct:
    """A product of one token under a configuration: the kernel, and the rows of a program."""
    schedule = _spec(task).configured(configure(task, *config, "candidate"))
    return schedule.compile(arch), schedule.tiles[0]


class ProductBench:
    """Operands on the device for products of any shape."""

    def __init__(self, gpu: Device) -> None:
        self._gpu = gpu
        self._weights = gpu.allocate(_WEIGHT_NBYTES)
        self._rows = gpu.allocate(64 << 20)
        rng = np.random.default_rng(0)
        # all bits are random, so that points of grids are read as evenly as with real weights; sums may overflow
        noise = rng.integers(0, 256, 64 << 20, dtype=np.uint8)
        for at in range(0, _WEIGHT_NBYTES, noise.nbytes):
            gpu.upload(self._weights + at, noise.ctypes.data, noise.nbytes)
        gpu.upload(self._rows, noise.ctypes.data, noise.nbytes)
        gpu.synchronize()
        self._marks = (gpu.event(), gpu.event())

    def microseconds(self, task: ProductTask, compiled: CompiledProduct) -> float:
        """Time of one product."""
        gpu, (binary, n_rows) = self._gpu, compiled
        function = gpu.function(gpu.load(binary.image), binary.entry, binary.threads, binary.shared_nbytes, binary.pdl)
        layout = MatrixLayout(FORMATS[task.fmt], task.n_rows, task.n_cols)
        fewest, most = _LAUNCHES
        copies = max(1, min(most, _WEIGHT_NBYTES // layout.nbytes))
        launches = max(fewest, copies)
        x_nbytes = RowLayout(task.kind, task.n_cols, layout.fmt.block).nbytes
        out = self._rows + -(-x_nbytes // 256) * 256
        arguments = []
        for i in range(launches):
            words = self._weights + i % copies * layout.nbytes
            arguments.append(Arguments([words, words + layout.halves_offset, self._rows, out, out]))
        grid = (-(-task.n_rows // n_rows), 1)

        def launch() -> None:
            for each in arguments:
                gpu.launch(function, grid, each)

        graph = gpu.capture(launch)
        graph.launch()
        first, last = self._marks
        times: list[Any] = []
        for _ in range(_ROUNDS):
            gpu.record(first)
            graph.launch()
            gpu.record(last)
            gpu.wait(last)
            times.append(gpu.milliseconds(first, last))
        return 1e3 * float(median(times)) / launches
