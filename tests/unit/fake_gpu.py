"""A GPU made of this machine's memory and Triton's interpreter: whole plans are replayed where there is no GPU."""

from __future__ import annotations

import ctypes
import pickle
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from triton_harness import Interpreter, Memory

from airkernels.triton.build import Binary
from airrun.cuda.driver import Arguments, CudaError, Function
from airrun.replay.memory import Region
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec


def fake_binaries(specs: Sequence[DeviceSpec], arch: str, progress: Any) -> list[Binary]:
    """Instead of machine code, the description of each kernel."""
    return [Binary(pickle.dumps((spec, arch)), spec.schedule(arch).kernel.__name__, 32, 0, False) for spec in specs]


class Work:
    """Something a stream does once what it waits for is done."""

    def __init__(self, call: Callable[[], None] | None, waits: Sequence[Work]) -> None:
        self.call, self.waits, self.done = call, list(waits), False


class FakeEvent:
    """Where a stream was when it was recorded last."""

    def __init__(self) -> None:
        self.work: Work | None = None


class FakeStream:
    """What is left to do: the last piece of work, and what the next one waits for beside it."""

    def __init__(self) -> None:
        self.waits: list[Work] = []


class FakeGraph:
    """Recorded work, which is done again and again."""

    def __init__(self, device: FakeDevice, recorded: list[Work]) -> None:
        self._device, self._recorded = device, recorded

    def launch(self) -> None:
        stream, copies = self._device.stream, dict[Work, Work]()
        for work in self._recorded:
            waits = [copies[each] for each in work.waits if each in copies] or stream.waits
            copies[work] = Work(work.call, waits)
        self._device.pending += copies.values()
        stream.waits = list(copies.values()) or stream.waits


class FakeDevice:
    """What `airrun.cuda.driver.Device` does, as late as it may and in any order that streams and events allow.

    Attributes
    ----------
    pending
        Work that was not done yet.
    carried
        Bytes copied from pinned memory, by copies of at least 4 KiB.
    """

    name, arch, multiprocessors, careful, failed = "Fake", "sm_90", 4, False, ""
    memory = 1 << 30
    failing = ""

    def __init__(self, ordinal: int = 0) -> None:
        self._interpreter = Interpreter()
        self._kept: dict[int, Any] = {}
        self._pinned: dict[int, int] = {}
        self._random = random.Random(7)
        self._lock = threading.RLock()
        self._recording: list[Work] | None = None
        self.pending: list[Work] = []
        self._streams: list[FakeStream] = []
        self.stream = self.new_stream()
        self.launches: list[str] = []
        self.carried = 0
        self.closed = ""

    # order

    def new_stream(self) -> FakeStream:
        self._streams.append(FakeStream())
        return self._streams[-1]

    def _do(self, call: Callable[[], Any] | None, stream: FakeStream | None = None) -> Work:
        with self._lock:
            stream = stream or self.stream
            work = Work(call, stream.waits)
            stream.waits = [work]
            (self.pending if self._recording is None else self._recording).append(work)
            return work

    def _finish(self, wanted: Sequence[Work]) -> None:
        """Do work until some is done, in random order."""
        with self._lock:
            self._require_sound()
            while not all(work.done for work in wanted):
                possible = [work for work in self.pending if all(each.done for each in work.waits)]
                work = self._random.choice(possible)
                self.pending.remove(work)
                if work.call is not None:
                    work.call()
                work.done = True

    def _require_sound(self) -> None:
        """As the driver does once a kernel has failed."""
        if self.failed:
            raise CudaError("CUDA: any call at all failed: illegal_address")

    def event(self) -> FakeEvent:
        return FakeEvent()

    def record(self, event: FakeEvent, stream: FakeStream | None = None) -> None:
        event.work = self._do(None, stream)

    def follow(self, event: FakeEvent, stream: FakeStream | None = None) -> None:
        if event.work is not None:
            if self._recording is not None:
                assert event.work in self._recording, "an event of before the recording"
            stream = stream or self.stream
            stream.waits = [*stream.waits, event.work]

    def wait(self, event: FakeEvent) -> None:
        assert event.work is None or self._recording is None or event.work not in self._recording
        if event.work is not None:
            self._finish([event.work])

    def synchronize(self) -> None:
        self._finish(self.stream.waits)

    def capture(self, record: Callable[[], None]) -> FakeGraph:
        before = [stream.waits for stream in self._streams]
        self.stream.waits = []
        self._recording = recorded = []
        try:
            record()
        finally:
            self._recording = None
            for stream, waits in zip(self._streams, before, strict=False):
                stream.waits = waits
        return FakeGraph(self, recorded)

    # memory

    def use(self) -> None:
        assert not self.closed
        self._require_sound()

    def free_memory(self) -> tuple[int, int]:
        return self.memory, self.memory

    def allocate(self, nbytes: int) -> int:
        # aligned as the driver does, and poisoned: what was never written must not matter
        memory = np.full(nbytes + 512, 0xA5, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self._kept[address] = memory
        return int(address)

    def allocate_pinned(self, nbytes: int) -> Any:
        region = Region(nbytes)
        self._kept[region.address] = region
        self.register(region.address, nbytes)
        return (ctypes.c_char * nbytes).from_address(region.address)

    def register(self, address: int, nbytes: int) -> None:
        self._pinned[address] = nbytes

    def unregister(self, address: int) -> None:
        del self._pinned[address]

    def free(self, address: int) -> None:
        self.synchronize()
        del self._kept[address]

    def free_pinned(self, memory: Any) -> None:
        self.free(ctypes.addressof(memory))
        del self._pinned[ctypes.addressof(memory)]

    def upload(self, target: int, source: int, nbytes: int, stream: FakeStream | None = None) -> None:
        if any(start <= source < start + n for start, n in list(self._pinned.items())):
            # read when it is copied, so that whoever changes it before is found out
            self.carried += nbytes if nbytes >= 4096 else 0
            self.copy(target, source, nbytes, stream)
        else:
            data = ctypes.string_at(source, nbytes)
            self._do(lambda: ctypes.memmove(target, data, nbytes), stream)

    def copy(self, target: int, source: int, nbytes: int, stream: FakeStream | None = None) -> None:
        self._do(lambda: ctypes.memmove(target, source, nbytes), stream)

    download = copy

    def clear(self, target: int, nbytes: int) -> None:
        self._do(lambda: ctypes.memset(target, 0, nbytes))

    # code

    def load(self, image: memoryview) -> tuple[DeviceSpec, str]:
        found: tuple[DeviceSpec, str] = pickle.loads(image)
        return found

    def function(self, module: tuple[DeviceSpec, str], entry: str, threads: int, shared: int, pdl: bool) -> Function:
        spec, arch = module
        return Function(spec.schedule(arch), entry, threads, shared, pdl)

    def prepare(self, function: Function) -> None:
        assert function.handle

    def launch(
        self,
        function: Function,
        grid: Sequence[int],
        arguments: Arguments,
        *,
        stream: FakeStream | None = None,
        apart: bool = False,
    ) -> None:
        schedule: DeviceSchedule = function.handle
        n = sum(t.startswith("*") for t in schedule.types)
        pointers = [Memory(int(a), t[1:], 0) for a, t in zip(arguments.pointers, schedule.types[:n], strict=False)]
        integers = [int(i) for i in arguments.integers[: len(schedule.types) - n]]

        def call() -> None:
            if function.name == self.failing:
                self.failed = "CUDA: cuStreamSynchronize failed: illegal_address"
                raise CudaError(self.failed)
            self.launches.append(function.name)
            self._interpreter.run(schedule.kernel, tuple(grid), *pointers, *integers, **schedule.constants)

        self._do(call, stream)

    def close(self, *, zero: bool = False) -> None:
        self.closed = "zeroed" if zero else "closed"
        if self.failed and zero:
            raise CudaError(f"{self.failed}; the GPU's memory could not be filled with zeros after that")


def use_fake_gpu(patch: pytest.MonkeyPatch) -> None:
    """Compile for, and run on, a `FakeDevice`."""
    import aircompile.gpu.assemble
    import airrun.cuda.engine

    patch.setattr(aircompile.gpu.assemble, "compile_binaries", fake_binaries)
    patch.setattr(airrun.cuda.engine, "Device", FakeDevice)
    patch.setattr(airrun.cuda.engine, "available", lambda: None)
