"""The engine of a plan that runs on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from airrun.cuda.driver import CudaError, Device, available
from airrun.cuda.executor import CudaExecutor
from airrun.cuda.loading import DeviceWeights, loading_slots
from airrun.cuda.pool import DevicePool
from airrun.cuda.predict import DevicePrediction, predict_device
from airrun.cuda.programs import load_kernels, prepare, select_library
from airrun.cuda.reading import Slots
from airrun.cuda.sizes import DeviceSizes, device_sizes
from airrun.cuda.tiers import DEVICE, DISK, HOST, HOST_ROWS
from airrun.engine import Engine
from airrun.errors import PlanError
from airrun.plan.container import LoadedPlan
from airrun.plan.device import MAX_WATCHED, DevicePlan
from airrun.plan.read_device import device_plan
from airrun.replay.kv_cache import StatePool
from airrun.weights.files import LoadMode, WeightFiles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from airrun.generation.leaders import Leaders
    from airrun.replay.batch import Batch
    from airrun.replay.kv_cache import SequenceMemory


Progress = Callable[[int, int], None]
"""Called with the bytes of weights that were read, and those there are to read."""

_PROGRESS_S = 0.1

_MAX_OUTPUTS = 128
"""Tokens of a step whose logits are all wanted: bounds their memory."""


class CudaEngine(Engine):
    """A compiled model on a GPU; `Engine.from_plan` makes one where that is wanted.

    Attributes
    ----------
    gpu
        The device.
    device_sizes
        What it takes of the device's memory.
    times
        Seconds of the start: creating the context, loading code, everything but the context.
    """

    device, chooses, max_watched = "cuda", True, MAX_WATCHED

    def __init__(
        self,
        loaded: LoadedPlan,
        device: DevicePlan,
        paths: Sequence[Path],
        gpu: Device,
        sizes: DeviceSizes,
        slots: Slots,
        load_mode: LoadMode = "auto",
        progress: Progress | None = None,
    ) -> None:
        started = time.perf_counter()
        library = select_library(device, gpu.arch)
        sizes.require(gpu.free_memory()[0], gpu.name)
        self._device, self._files = device, WeightFiles(loaded.plan, paths)
        self.loaded, self.plan, self.gpu, self.device_sizes = loaded, loaded.plan, gpu, sizes
        self.n_vocab, self.n_ctx, self.max_batch = loaded.plan.model.n_vocab, sizes.ctx_size, sizes.max_tokens
        self.max_outputs, self.parallel = min(_MAX_OUTPUTS, sizes.max_tokens), sizes.parallel
        self.threads, self.isa, self.streams = 1, library.arch, sizes.tiers.streams
        kernels = load_kernels(gpu, loaded, library)
        self.times = {"code_seconds": time.perf_counter() - started}
        self._weights = weights = DeviceWeights(sizes.tiers, gpu, self._files)
        self.pool = DevicePool(loaded.plan.kv, sizes.kv_blocks, sizes.ring_blocks, gpu)
        self.states = StatePool(loaded.plan.states, 0)
        with ThreadPoolExecutor(1, "airrun_load", gpu.use) as loader:
            loading = loader.submit(weights.load, kernels, slots, load_mode)
            self._cuda = CudaExecutor(loaded, device, gpu, kernels, sizes, weights, self.pool)
            prepare(gpu, kernels)
            if progress is not None:
                self._watch(loading, progress)
            loading.result()
        self.times["load_seconds"] = time.perf_counter() - started

    def _watch(self, loading: Future[None], progress: Progress) -> None:
        """Report until everything is loaded."""
        total = self.device_sizes.tiers.raw_nbytes(DEVICE, HOST_ROWS, HOST)
        while wait([loading], _PROGRESS_S).not_done:
            progress(min(self._files.nbytes_read, total), total)
        progress(total, total)

    @property
    def prediction(self) -> DevicePrediction | None:
        """Of decoding, for the target that this GPU is, else for one of its architecture; None where there is none."""
        name = self.gpu.name.lower().replace(" ", "")
        alike = [target for target in self._device.targets if target.arch == self.gpu.arch]
        alike.sort(key=lambda target: target.name not in name)
        return predict_device(self.plan, self._device, self.device_sizes, alike[0]) if alike else None

    def choose(self, blocks: SequenceMemory, cell: int, token: int) -> int:
        return self._cuda.choose(blocks, cell, token)

    def leaders(self, blocks: SequenceMemory, cell: int, token: int, watched: npt.NDArray[np.int32]) -> Leaders:
        return self._cuda.leaders(blocks, cell, token, watched)

    @property
    def decode(self) -> Callable[[SequenceMemory, int, int], npt.NDArray[np.float32]]:
        return self._cuda.decode

    @property
    def step_devices(self) -> dict[str, str]:
        steps = [step for program in self._device.programs for step in program.steps]
        steps += [*self._device.greedy, *self._device.leaders.steps]
        return {self._device.kernels[step.kernel].op: self.device for step in steps}

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        return self._cuda.run(batch)

    def copy_rate(self) -> float:
        """Bytes per second of a copy within the device, read and written: what decode is measured against."""
        nbytes = min(2 << 30, self.gpu.free_memory()[0] // 4)
        source, target = self.gpu.allocate(nbytes), self.gpu.allocate(nbytes)
        first, last = self.gpu.event(), self.gpu.event()
        seconds = []
        for _ in range(6):
            self.gpu.record(first)
            self.gpu.copy(target, source, nbytes)
            self.gpu.record(last)
            self.gpu.wait(last)
            seconds.append(self.gpu.milliseconds(first, last) / 1e3)
        self.gpu.free(source)
        self.gpu.free(target)
        return 2 * nbytes / min(seconds)

    def metrics(self) -> dict[str, float]:
        work, tiers = self._cuda.work, self.device_sizes.tiers
        found = {**self.times, **work, "read_bytes": self._weights.nbytes_read}
        if work["decode_tokens"]:
            rate = work["decode_tokens"] / work["decode_seconds"]
            found["decode_weight_bytes_per_second"] = rate * self.plan.cost.weight_nbytes_per_token
            if self.streams:
                found["decode_bus_bytes_per_second"] = rate * tiers.raw_nbytes(HOST, DISK)
        return found

    def close(self, *, zero_memory: bool = False) -> None:
        """Free the device's memory, filling it with zeros first if wanted. The engine cannot run afterwards."""
        try:
            if not self.gpu.failed:
                self._weights.close()
            self.gpu.close(zero=zero_memory)
        finally:
            self._files.close()


def cuda_engine(
    loaded: LoadedPlan,
    paths: Sequence[Path],
    device: str,
    *,
    ctx_size: int | None,
    parallel: int,
    vram: int | None = None,
    ram: int | None = None,
    load_mode: LoadMode = "auto",
    check_steps: bool = False,
    progress: Progress | None = None,
) -> CudaEngine | str:
    """The engine on a GPU, or, where 'auto' does not find everything for one, what is missing.

    Parameters
    ----------
    device
        'cuda' insists, 'auto' does not.

    Raises
    ------
    PlanError, CudaError
        What is missing, with 'cuda' only.
    BudgetError
        The GPU's memory, or what may be taken of it, is too small.
    """
    part = device_plan(loaded)
    if part is None:
        raise PlanError(f"{loaded.path}: has no code for GPUs: build it with --target h200 or another with a GPU")
    missing = available()
    if missing is not None:
        if device == "cuda":
            raise CudaError(missing)
        return missing
    started = time.perf_counter()
    with ThreadPoolExecutor(1, "airrun_memory") as memory:
        slots = memory.submit(loading_slots, loaded.plan, part)
        gpu = Device()
        context_seconds = time.perf_counter() - started
    try:
        select_library(part, gpu.arch)
    except PlanError as error:
        gpu.close()
        if device == "cuda":
            raise
        return str(error)
    try:
        free = gpu.free_memory()[0]
        sizes = device_sizes(loaded.plan, part, ctx_size=ctx_size, parallel=parallel, vram=vram, ram=ram, free=free)
        engine = CudaEngine(loaded, part, paths, gpu, sizes, slots.result(), load_mode, progress)
    except BaseException:
        gpu.close()
        raise
    gpu.careful = check_steps
    engine.times["context_seconds"] = context_seconds
    return engine
