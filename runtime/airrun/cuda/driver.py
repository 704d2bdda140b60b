"""The CUDA driver, as far as replay needs it: one device, one context, a few streams; every call checked."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airrun.errors import AirError, UsageError

_NO_OPTIONS = 0

_KERNEL_FAILURES = (
    "illegal_address",
    "illegal_instruction",
    "misaligned_address",
    "invalid_address_space",
    "invalid_pc",
    "hardware_stack_error",
    "launch_failed",
    "launch_timeout",
    "assert",
)
"""What the driver says, at some later call, of a kernel that went wrong."""


class CudaError(AirError):
    """The driver refused a call, or there is none."""


def available() -> str | None:
    """Why no GPU can be used here, in a few words; None if one can."""
    try:
        _driver()
    except CudaError as error:
        return str(error)
    return None


def _driver() -> Any:
    """The module of the driver's functions, initialized."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise CudaError('cuda-bindings is not installed: pip install "aircompile[cuda]"') from None
    try:
        (status,) = driver.cuInit(0)
    except Exception:  # cuda-bindings looks for the driver's library at the first call, and has its own errors
        raise CudaError("no NVIDIA driver is installed") from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise CudaError(f"no usable NVIDIA GPU: {status.name}")
    return driver


@dataclass(frozen=True)
class Function:
    """An entry point on the device. `pdl`: it waits itself for the kernel before it, and may start early."""

    handle: Any
    name: str
    threads: int
    shared_nbytes: int
    pdl: bool


class Arguments:
    """Packed kernel arguments: 64-bit addresses, then 32-bit integers, then two null scratch pointers.

    `integers` can be changed afterwards; a launch takes what is there when it is made.
    """

    def __init__(self, pointers: Sequence[int], integers: Sequence[int] = ()) -> None:
        self.integers = (ctypes.c_int32 * max(len(integers), 1))(*integers)
        self.pointers = (ctypes.c_uint64 * (len(pointers) + 2))(*pointers, 0, 0)
        places = [ctypes.addressof(self.pointers) + 8 * i for i in range(len(pointers) + 2)]
        middle = [ctypes.addressof(self.integers) + 4 * i for i in range(len(integers))]
        listed = [*places[: len(pointers)], *middle, *places[len(pointers) :]]
        self._list = (ctypes.c_void_p * len(listed))(*listed)
        self.address = ctypes.addressof(self._list)


class Device:
    """A GPU, its primary context made current, and a stream.

    What is done "in stream order" is done in that stream, or in one of `new_stream` where that is given.

    Attributes
    ----------
    name, arch
        What the driver calls it, and the architecture as in ``sm_90``.
    multiprocessors
        How many it has.
    careful
        Wait for every kernel before the next one, and record no graphs: so that a failure is known by its step.
    failed
        What went wrong in a kernel, empty if nothing did: after that the device answers nothing but this error.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self.careful, self.failed = False, ""
        self._d = d = _driver()
        count = self._call(d.cuDeviceGetCount)
        if not 0 <= ordinal < count:
            raise UsageError(f"GPU {ordinal}: this machine has {count}")
        self._device = self._call(d.cuDeviceGet, ordinal)
        self.name = self._call(d.cuDeviceGetName, 256, self._device).split(b"\0")[0].decode()
        attribute = d.CUdevice_attribute

        def number(name: str) -> int:
            return int(
                self._call(d.cuDeviceGetAttribute, getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), self._device)
            )

        self.arch = f"sm_{number('COMPUTE_CAPABILITY_MAJOR')}{number('COMPUTE_CAPABILITY_MINOR')}"
        self.multiprocessors = number("MULTIPROCESSOR_COUNT")
        self._context = self._call(d.cuDevicePrimaryCtxRetain, self._device)
        self._call(d.cuCtxSetCurrent, self._context)
        self._streams: list[Any] = []
        self.stream = self.new_stream()
        self._modules: list[Any] = []
        self._memory: dict[int, int] = {}
        self._pinned: list[int] = []
        self._registered: list[int] = []

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        self._check(result[0], function.__name__)
        return result[1] if len(result) == 2 else result[1:]

    def _check(self, status: Any, what: str) -> None:
        if status == self._d.CUresult.CUDA_SUCCESS:
            return
        reason = status.name.removeprefix("CUDA_ERROR_").lower()
        message = f"CUDA: {what} failed: {reason}"
        if reason in _KERNEL_FAILURES:
            if not self.careful:
                message = f"CUDA: a kernel failed: {reason}; --check-steps finds out which"
            self.failed = self.failed or message
        raise CudaError(message)

    def _check_pinned(self, status: Any, what: str, nbytes: int) -> None:
        refused = (self._d.CUresult.CUDA_ERROR_OUT_OF_MEMORY, self._d.CUresult.CUDA_ERROR_OPERATING_SYSTEM)
        if status in refused:
            raise CudaError(f"{self.name}: the system does not pin {nbytes >> 20} MiB more: use a smaller --ram")
        self._check(status, what)

    def _or_main(self, stream: Any) -> Any:
        return self.stream if stream is None else stream

    def use(self) -> None:
        """Make the context current in the calling thread."""
        self._call(self._d.cuCtxSetCurrent, self._context)

    def new_stream(self) -> Any:
        """A further stream, whose work runs beside that of others."""
        stream = self._call(self._d.cuStreamCreate, self._d.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        self._streams.append(stream)
        return stream

    # memory

    def free_memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all."""
        free, total = self._call(self._d.cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory.

        Raises
        ------
        CudaError
            There is not as much.
        """
        status, pointer = self._d.cuMemAlloc(max(nbytes, 1))
        if status == self._d.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            free = self.free_memory()[0]
            raise CudaError(f"{self.name}: no room for {nbytes >> 20} MiB more, {free >> 20} MiB are free")
        self._check(status, "cuMemAlloc")
        address = int(pointer)
        self._memory[address] = nbytes
        return address

    def allocate_pinned(self, nbytes: int) -> Any:
        """Host memory that the device can reach: a ctypes array of bytes, at the same address on both sides."""
        mapped = 0x02
        status, pointer = self._d.cuMemHostAlloc(nbytes, mapped)
        self._check_pinned(status, "cuMemHostAlloc", nbytes)
        address = int(pointer)
        self._pinned.append(address)
        return (ctypes.c_char * nbytes).from_address(address)

    def register(self, address: int, nbytes: int) -> None:
        """Pin pages of this process, so that copies from them run at the speed of the bus.

        Of huge pages that are there already this takes a twentieth of the time of `allocate_pinned`.
        """
        (status,) = self._d.cuMemHostRegister(address, nbytes, 0)
        self._check_pinned(status, "cuMemHostRegister", nbytes)
        self._registered.append(address)

    def unregister(self, address: int) -> None:
        """Give pages back to the system, which nothing may be copying from."""
        self._call(self._d.cuMemHostUnregister, address)
        self._registered.remove(address)

    def free(self, address: int) -> None:
        """Give device memory back, once the stream has passed."""
        self.synchronize()
        self._call(self._d.cuMemFree, address)
        del self._memory[address]

    def free_pinned(self, memory: Any) -> None:
        """Give pinned memory back, once the stream has passed."""
        self.synchronize()
        address = ctypes.addressof(memory)
        self._call(self._d.cuMemFreeHost, address)
        self._pinned.remove(address)

    def upload(self, target: int, source: Any, nbytes: int, stream: Any = None) -> None:
        """Copy from host memory (an address), in stream order; pageable memory may be reused at once."""
        self._call(self._d.cuMemcpyHtoDAsync, target, source, nbytes, self._or_main(stream))

    def download(self, target: Any, source: int, nbytes: int) -> None:
        """Copy to host memory (an address), in stream order."""
        self._call(self._d.cuMemcpyDtoHAsync, target, source, nbytes, self.stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Any = None) -> None:
        """Copy within the device, or from it to memory of `allocate_pinned`, in stream order."""
        self._call(self._d.cuMemcpyAsync, target, source, nbytes, self._or_main(stream))

    def clear(self, target: int, nbytes: int) -> None:
        """Fill with zeros, in stream order."""
        self._call(self._d.cuMemsetD8Async, target, 0, nbytes, self.stream)

    # code

    def load(self, image: bytes | memoryview) -> Any:
        """Load a cubin.

        Raises
        ------
        CudaError
            The driver does not know its form: it is older than the compiler.
        """
        d = self._d
        status, module = d.cuModuleLoadData(bytes(image))
        if status in (d.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, d.CUresult.CUDA_ERROR_INVALID_IMAGE):
            version = self._call(d.cuDriverGetVersion)
            known = f"CUDA {version // 1000}.{version % 1000 // 10}"
            raise CudaError(f"{self.name}: its driver (for {known}) does not take the plan's code: use a newer driver")
        self._check(status, "cuModuleLoadData")
        self._modules.append(module)
        return module

    def function(self, module: Any, entry: str, threads: int, shared_nbytes: int, pdl: bool) -> Function:
        """An entry point of a loaded module."""
        d = self._d
        handle = self._call(d.cuModuleGetFunction, module, entry.encode())
        if shared_nbytes > 48 << 10:
            largest = d.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(d.cuFuncSetAttribute, handle, largest, shared_nbytes)
        return Function(handle, entry, threads, shared_nbytes, pdl)

    def prepare(self, function: Function) -> None:
        """Bring a function's code to the device now; drivers do it at the first launch where they can."""
        self._call(self._d.cuFuncLoad, function.handle)

    def launch(
        self, function: Function, grid: Sequence[int], arguments: Arguments, *, stream: Any = None, apart: bool = False
    ) -> None:
        """Start a kernel in stream order; `apart`: not before what is in front of it has ended, even if it could."""
        d = self._d
        config = d.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = function.threads, 1, 1
        config.sharedMemBytes, config.hStream = function.shared_nbytes, self._or_main(stream)
        if function.pdl and not apart:
            attribute = d.CUlaunchAttribute()
            attribute.id = d.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        else:
            config.numAttrs = 0
        self._call(d.cuLaunchKernelEx, config, function.handle, arguments.address, 0)

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._call(self._d.cuStreamSynchronize, self.stream)

    # graphs

    def capture(self, record: Callable[[], None]) -> Graph:
        """Record what `record` does in the stream, and in others that follow events of it, without doing it."""
        d = self._d
        self._call(d.cuStreamBeginCapture, self.stream, d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            record()
        except BaseException:
            d.cuStreamEndCapture(self.stream)
            raise
        graph = self._call(d.cuStreamEndCapture, self.stream)
        executable = self._call(d.cuGraphInstantiate, graph, _NO_OPTIONS)
        self._call(d.cuGraphDestroy, graph)
        self._call(d.cuGraphUpload, executable, self.stream)
        return Graph(self, executable)

    # time

    def event(self) -> Any:
        """A new event."""
        return self._call(self._d.cuEventCreate, 0)

    def record(self, event: Any, stream: Any = None) -> None:
        """Mark this place of the stream."""
        self._call(self._d.cuEventRecord, event, self._or_main(stream))

    def follow(self, event: Any, stream: Any = None) -> None:
        """Let what comes next in the stream wait for where an event was recorded last."""
        self._call(self._d.cuStreamWaitEvent, self._or_main(stream), event, 0)

    def wait(self, event: Any) -> None:
        """Return when the device has passed an event; other threads go on meanwhile."""
        self._call(self._d.cuEventSynchronize, event)

    def milliseconds(self, first: Any, last: Any) -> float:
        """Time between two events."""
        return float(self._call(self._d.cuEventElapsedTime, first, last))

    def close(self, *, zero: bool = False) -> None:
        """Free everything, filling device memory with zeros first if `zero`. Idempotent.

        Raises
        ------
        CudaError
            Memory could not be filled, since a kernel had failed: says that, too.
        """
        if self._context is None:
            return
        d = self._d
        if self.failed:
            # nothing can be done in this context any more; its memory goes with it
            self._context = None
            d.cuDevicePrimaryCtxRelease(self._device)
            if zero:
                raise CudaError(f"{self.failed}; the GPU's memory could not be filled with zeros after that")
            return
        self.use()
        self._call(d.cuCtxSynchronize)
        for address, nbytes in self._memory.items():
            if zero:
                d.cuMemsetD8(address, 0, nbytes)
            d.cuMemFree(address)
        for address in self._pinned:
            d.cuMemFreeHost(address)
        for address in self._registered:
            d.cuMemHostUnregister(address)
        for module in self._modules:
            d.cuModuleUnload(module)
        self._memory, self._pinned, self._registered, self._modules, self._context = {}, [], [], [], None
        for stream in self._streams:
            d.cuStreamDestroy(stream)
        d.cuDevicePrimaryCtxRelease(self._device)


class Graph:
    """Recorded work, started by one call."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        """Start it in stream order."""
        d = self._device
        d._call(d._d.cuGraphLaunch, self._executable, d.stream)


__all__ = ["Arguments", "CudaError", "Device", "Function", "Graph", "available"]
