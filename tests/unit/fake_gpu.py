"""A GPU made of this machine's memory and Triton's interpreter: whole plans are replayed where there is no GPU."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from triton_harness import Interpreter, Memory

from airkernels.triton.build import Binary
from airrun.cuda.driver import Arguments, Function
from airschedules.gpu.schedule import DeviceSchedule, DeviceSpec


def fake_binaries(specs: Sequence[DeviceSpec], arch: str, progress: Any) -> list[Binary]:
    """Instead of machine code, the description of each kernel."""
    return [Binary(pickle.dumps((spec, arch)), spec.schedule(arch).kernel.__name__, 32, 0, False) for spec in specs]


class FakeGraph:
    def __init__(self, calls: list[Callable[[], None]]) -> None:
        self._calls = calls

    def launch(self) -> None:
        for call in self._calls:
            call()


class FakeDevice:
    """What `airrun.cuda.driver.Device` does, at once and in order."""

    name, arch, multiprocessors = "Fake", "sm_90", 4
    memory = 1 << 30

    def __init__(self, ordinal: int = 0) -> None:
        self._interpreter = Interpreter()
        self._kept: dict[int, Any] = {}
        self._recording: list[Callable[[], None]] | None = None
        self.launches: list[str] = []
        self.closed = ""

    def _do(self, call: Callable[[], Any]) -> None:
        if self._recording is None:
            call()
        else:
            self._recording.append(call)

    def use(self) -> None:
        assert not self.closed

    def free_memory(self) -> tuple[int, int]:
        return self.memory, self.memory

    def allocate(self, nbytes: int) -> int:
        # aligned as the driver does, and poisoned: what was never written must not matter
        memory = np.full(nbytes + 512, 0xA5, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self._kept[address] = memory
        return int(address)

    def allocate_pinned(self, nbytes: int) -> Any:
        return (ctypes.c_char * nbytes).from_address(self.allocate(nbytes))

    def free(self, address: int) -> None:
        del self._kept[address]

    def free_pinned(self, memory: Any) -> None:
        self.free(ctypes.addressof(memory))

    def upload(self, target: int, source: int, nbytes: int) -> None:
        self._do(lambda: ctypes.memmove(target, source, nbytes))

    download = copy = upload

    def clear(self, target: int, nbytes: int) -> None:
        self._do(lambda: ctypes.memset(target, 0, nbytes))

    def load(self, image: memoryview) -> tuple[DeviceSpec, str]:
        found: tuple[DeviceSpec, str] = pickle.loads(image)
        return found

    def function(self, module: tuple[DeviceSpec, str], entry: str, threads: int, shared: int, pdl: bool) -> Function:
        spec, arch = module
        return Function(spec.schedule(arch), entry, threads, shared, pdl)

    def launch(self, function: Function, grid: Sequence[int], arguments: Arguments) -> None:
        schedule: DeviceSchedule = function.handle
        n = sum(t.startswith("*") for t in schedule.types)
        pointers = [Memory(int(a), t[1:], 0) for a, t in zip(arguments.pointers, schedule.types[:n], strict=False)]
        integers = [int(i) for i in arguments.integers[: len(schedule.types) - n]]

        def call() -> None:
            self.launches.append(function.name)
            self._interpreter.run(schedule.kernel, tuple(grid), *pointers, *integers, **schedule.constants)

        self._do(call)

    def capture(self, record: Callable[[], None]) -> FakeGraph:
        self._recording = calls = []
        record()
        self._recording = None
        return FakeGraph(calls)

    def event(self) -> None:
        return None

    def record(self, event: None) -> None:
        pass

    def wait(self, event: None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def close(self, *, zero: bool = False) -> None:
        self.closed = "zeroed" if zero else "closed"


def use_fake_gpu(patch: pytest.MonkeyPatch) -> None:
    """Compile for, and run on, a `FakeDevice`."""
    import aircompile.gpu.assemble
    import airrun.cuda.engine

    patch.setattr(aircompile.gpu.assemble, "compile_binaries", fake_binaries)
    patch.setattr(airrun.cuda.engine, "Device", FakeDevice)
    patch.setattr(airrun.cuda.engine, "available", lambda: None)
