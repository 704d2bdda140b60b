"""GPU kernels under test: on a GPU where there is one (marker `gpu`), and in Triton's interpreter everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("triton", reason="triton is not installed")

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.build import compile_kernel
from airkernels.triton.forms import DeviceForm, stored
from airkernels.triton.intrinsics import PERMUTE
from airkernels.triton.intrinsics import symbol as function
from airkernels.triton.layout import GROUP, MatrixLayout, RowLayout
from airkernels.triton.matrices import pack

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

_TYPES = {
    "float32": "fp32", "float16": "fp16", "int32": "i32", "uint32": "u32", "uint16": "u16", "uint8": "u8",
}  # fmt: skip
_POISON = 0xA5


@dataclass(frozen=True)
class Memory:
    """Memory of a machine: an address, and its elements as Triton names their type."""

    address: int
    type: str
    nbytes: int

    def at(self, offset: int = 0, kind: str | None = None) -> Memory:
        """From a byte on, as another type."""
        return Memory(self.address + offset, kind or self.type, self.nbytes - offset)


class Machine:
    """Where kernels run. Arguments are `Memory` and integers, in the kernel's order; constants are named.

    Attributes
    ----------
    parallel
        Whether it has warps, so that tiles must be at least as large as one.
    """

    parallel: bool

    def put(self, array: Array) -> Memory:
        """A copy of an array."""
        raise NotImplementedError

    def get(self, memory: Memory, dtype: npt.DTypeLike, *shape: int) -> Array:
        """What stands in memory."""
        raise NotImplementedError

    def run(self, kernel: Any, grid: tuple[int, ...], *arguments: Memory | int, warps: int = 4, **named: Any) -> None:
        raise NotImplementedError

    def poisoned(self, nbytes: int, kind: str) -> Memory:
        """Memory that nobody wrote: as floats, tiny and the same everywhere."""
        return self.put(np.full(nbytes, _POISON, np.uint8)).at(0, kind)


class Interpreter(Machine):
    """Triton's interpreter, over host memory."""

    parallel = False

    def __init__(self) -> None:
        self._kept: list[Array] = []

    def put(self, array: Array) -> Memory:
        copy = np.ascontiguousarray(array).copy()
        self._kept.append(copy)
        return Memory(copy.ctypes.data, _TYPES[copy.dtype.name], copy.nbytes)

    def get(self, memory: Memory, dtype: npt.DTypeLike, *shape: int) -> Array:
        owner = next(a for a in self._kept if a.ctypes.data <= memory.address < a.ctypes.data + a.nbytes)
        raw = owner.reshape(-1).view(np.uint8)[memory.address - owner.ctypes.data :]
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return raw[:n].view(dtype).reshape(shape).copy()

    def run(self, kernel: Any, grid: tuple[int, ...], *arguments: Memory | int, warps: int = 4, **named: Any) -> None:
        named |= {name: value for name, value in (("TARGET", "cuda"), ("PDL", False)) if name in kernel.arg_names}
        values = dict(zip(kernel.arg_names, map(_interpreted, arguments), strict=False)) | named
        with _interpreting():
            scope = interpreter._patch_lang(kernel.fn)
            try:
                function = interpreter.InterpretedFunction(kernel.fn).rewrite()
                builder = interpreter.interpreter_builder
                x, y, z = (*grid, 1, 1)[:3]
                builder.set_grid_dim(x, y, z)
                for place in np.ndindex(x, y, z):
                    builder.set_grid_idx(*place)
                    function(**values)
            finally:
                scope.restore()


class Gpu(Machine):
    """The GPU of this machine, by the runtime's own driver."""

    parallel = True

    def __init__(self) -> None:
        from airrun.cuda.driver import Device

        self.device = Device()
        self._functions: dict[Any, Any] = {}

    def put(self, array: Array) -> Memory:
        data = np.ascontiguousarray(array)
        address = self.device.allocate(data.nbytes)
        self.device.upload(address, data.ctypes.data, data.nbytes)
        self.device.synchronize()
        return Memory(address, _TYPES[data.dtype.name], data.nbytes)

    def get(self, memory: Memory, dtype: npt.DTypeLike, *shape: int) -> Array:
        out = np.empty(shape, dtype)
        self.device.download(out.ctypes.data, memory.address, out.nbytes)
        self.device.synchronize()
        return out

    def run(self, kernel: Any, grid: tuple[int, ...], *arguments: Memory | int, warps: int = 4, **named: Any) -> None:
        from airrun.cuda.driver import Arguments

        function = self.function(kernel, arguments, warps, named)
        pointers = [a.address for a in arguments if isinstance(a, Memory)]
        self.device.launch(function, grid, Arguments(pointers, [a for a in arguments if isinstance(a, int)]))
        self.device.synchronize()

    def function(self, kernel: Any, arguments: tuple[Memory | int, ...], warps: int, named: dict[str, Any]) -> Any:
        types = tuple(f"*{a.type}" if isinstance(a, Memory) else "i32" for a in arguments)
        key = (kernel, types, warps, *named.items())
        if key not in self._functions:
            binary = compile_kernel(kernel, types, named, self.device.arch, warps)
            module = self.device.load(binary.image)
            self._functions[key] = self.device.function(
                module, binary.entry, binary.threads, binary.shared_nbytes, binary.pdl
            )
        return self._functions[key]


def _interpreted(value: Memory | int) -> Any:
    if isinstance(value, int):
        return interpreter._implicit_cvt(value)
    names = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16, "i32": tl.int32, "u32": tl.uint32}
    kind = tl.pointer_type(names.get(value.type) or {"u16": tl.uint16, "u8": tl.uint8}[value.type])
    return tl.tensor(interpreter.TensorHandle(np.array([value.address], np.uint64), kind), kind)


@contextmanager
def _interpreting() -> Iterator[None]:
    """Helpers that kernels call are interpreted too; inline assembly and the kernels' library are emulated."""
    builder = interpreter.InterpreterBuilder
    called, inline, extern = JITFunction.__call__, builder.create_inline_asm, builder.create_extern_elementwise
    JITFunction.__call__ = _call
    builder.create_inline_asm = _inline_asm
    builder.create_extern_elementwise = _extern
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        JITFunction.__call__, builder.create_inline_asm = called, inline
        builder.create_extern_elementwise = extern


def _call(self: JITFunction, *arguments: Any, **named: Any) -> Any:
    """Interpret a helper."""
    scope = interpreter._patch_lang(self.fn)
    try:
        return interpreter.InterpretedFunction(self.fn).rewrite()(*arguments, **named)
    finally:
        scope.restore()


def _inline_asm(self: Any, asm: str, constraints: str, values: Any, types: Any, pure: bool, pack: int) -> Any:
    """``dp4a``: dot product of four bytes, the second signed, added to the third operand."""
    name, _, operands = asm.partition(" ")
    assert operands == "$0, $1, $2, $3;" and name in ("dp4a.u32.s32", "dp4a.s32.s32")
    a, b, c = (np.ascontiguousarray(v.data) for v in values)
    first = np.uint8 if name == "dp4a.u32.s32" else np.int8
    products = a.view(first).reshape(*a.shape, 4).astype(np.int64) * b.view(np.int8).reshape(*b.shape, 4)
    result = (products.sum(-1) + c.view(np.int32)).astype(np.int32)
    return _Operation(interpreter.TensorHandle(result, tl.int32))


def _extern(self: Any, library: str, path: str, symbol: str, values: Any, kind: Any, pure: bool) -> Any:
    """Functions of `airkernels.triton.intrinsics`; bytes are permuted as PTX's ``prmt.b32`` is specified."""
    data = [np.broadcast_to(v.data, np.broadcast_shapes(*(v.data.shape for v in values))) for v in values]
    if symbol != PERMUTE:
        use, table = _TABLES[symbol]
        entries = np.array(table.entries, np.uint32)
        found = np.zeros_like(data[0]) if use == "keep" else entries[data[0].astype(np.int64)]
        return interpreter.TensorHandle(found, tl.uint32)
    low, high, selectors = (d.astype(np.uint64) for d in data)
    both, result = low | high << np.uint64(32), np.zeros(low.shape, np.uint64)
    for j in range(4):
        selector = selectors >> np.uint64(4 * j) & np.uint64(15)
        byte = both >> (selector & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(selector & np.uint64(8), sign, byte) << np.uint64(8 * j)
    return interpreter.TensorHandle(result.astype(np.uint32), tl.uint32)


_FORMS = [stored(fmt) for fmt in FORMATS.values() if isinstance(fmt, BlockFormat)]
_TABLES = {
    function(use, form.table): (use, form.table)
    for form in _FORMS
    if isinstance(form, DeviceForm) and form.table is not None
    for use in ("entry", "keep", "kept_entry")
}


class _Operation:
    """What the builder returns for an operation with one result."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def get_result(self, number: int) -> Any:
        assert number == 0
        return self._result


def machines() -> list[Any]:
    """Parameters of a fixture: the interpreter, and a GPU where there is one (``-m gpu`` alone)."""
    return [pytest.param(Interpreter, id="interpreter"), pytest.param(Gpu, id="gpu", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=machines())
def machine(request: pytest.FixtureRequest) -> Machine:
    kind: Callable[[], Machine] = request.param
    if kind is Gpu:
        from airrun.cuda.driver import available

        missing = available()
        if missing is not None:
            pytest.skip(missing)
    return kind()


@dataclass(frozen=True)
class Planes:
    """A quantized matrix in planes on a machine."""

    layout: MatrixLayout
    memory: Memory

    @property
    def words(self) -> Memory:
        return self.memory.at(0, "u32")

    @property
    def halves(self) -> Memory:
        return self.memory.at(self.layout.halves_offset, "fp16")


def put_planes(machine: Machine, name: str, raw: Array, n_cols: int) -> Planes:
    """Pack raw rows by the kernel that the loader uses."""
    fmt = FORMATS[name]
    assert isinstance(fmt, BlockFormat)
    layout = MatrixLayout(fmt, len(raw), n_cols)
    planes = Planes(layout, machine.poisoned(layout.nbytes, "u8"))
    places = layout.unpacked_cols // fmt.block
    tile = 16
    machine.run(
        pack, (-(-len(raw) * places // tile),), machine.put(raw), planes.words, planes.halves.at(0, "u16"), 0, len(raw),
        FORMAT=name, N_BLOCKS=layout.n_blocks, PLACES=places, TILE=tile,
    )  # fmt: skip
    return planes


def row_block(name: str) -> tuple[int, int]:
    """(BLOCK of the row kernels, block of `RowLayout`) for matrices of a format."""
    block = FORMATS[name].block
    return max(block, GROUP), block


def decode_rows(raw: Array, layout: RowLayout) -> Doubles:
    """What rows of a kind stand for, float64 [n_rows, n] in natural order; checks the sums of integer rows."""
    n_rows, places = len(raw), layout.places
    if layout.kind == "f32":
        planes = raw.view("<f4")[:, : layout.elements].astype(np.float64)
    elif layout.kind == "f16":
        scale = raw.view("<f4")[:, layout.elements // 2].astype(np.float64)
        planes = raw.view("<f2")[:, : layout.elements].astype(np.float64) * scale[:, None]
    else:
        words = raw.view("<i4")[:, : layout.nbytes // 4]
        groups = layout.block // GROUP

        def of(first: int, n: int) -> Array:
            return np.ascontiguousarray(words[:, first * places : (first + n) * places]).reshape(n_rows, n, places)

        integers: Any = 0
        for digit in range(layout.digits):
            part = of(digit * layout.block // 4, layout.block // 4)
            four = np.ascontiguousarray(part).view(np.int8).reshape(n_rows, -1, places, 4).transpose(0, 1, 3, 2)
            integers = integers * 128 + four.reshape(n_rows, layout.block, places).astype(np.int64)
        by_group = integers.reshape(n_rows, groups, GROUP, places)
        assert (by_group.sum(2) == of(layout.sums, groups)).all(), "sums"
        halves = integers.reshape(n_rows, 2 * groups, GROUP // 2, places).sum(2)
        assert (halves == of(layout.half_sums, 2 * groups)).all(), "half sums"
        scales = of(layout.scales, groups).view("<f4").astype(np.float64)
        planes = (by_group * scales[:, :, None, :]).reshape(n_rows, -1)
    natural = planes.reshape(n_rows, layout.block, places).transpose(0, 2, 1).reshape(n_rows, -1)
    return natural[:, : layout.n]
