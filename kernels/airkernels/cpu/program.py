"""A thin vocabulary over TVM's builder in which the kernels are written.

Every kernel has one C signature, so that the native replay loop can call any of them:

    int32 kernel(void *p0 .. p7, int32 n_tokens, int32 begin, int32 end, int32 worker)

`begin` and `end` bound the tasks of this call; what a task is, each kernel says. Pointers are raw:
a `Region` loads and stores typed vectors at element offsets from one, without alignment assumptions
beyond the element size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

Expr = Any
"""A TVM expression; the kernels combine them with ordinary operators."""

N_POINTERS = 8
_UNBOUNDED = 1 << 30
"""Declared extent of a raw region: its real size is the planner's business."""

_TO_READ, _SECOND_LEVEL, _DATA = 0, 2, 1
"""Arguments of LLVM's prefetch: what for, to which cache (locality 3 is the first level), of what kind."""


class Region:
    """Memory behind a pointer, viewed as one element type."""

    def __init__(self, base: Expr, dtype: str, *, buffer: Expr | None = None) -> None:
        self.base, self.dtype = base, dtype
        self.buffer = buffer if buffer is not None else T.decl_buffer((_UNBOUNDED,), dtype, data=base)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(tvm.DataType(self.dtype).itemsize)

    def load(self, index: Expr, lanes: int = 1) -> Expr:
        """`lanes` neighbouring elements, as an unbound expression (evaluated where it is used)."""
        return tirx.BufferLoad(self.buffer, [_span(index, lanes)])

    def store(self, index: Expr, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [_span(index, lanes_of(value))])

    def prefetch(self, index: Expr) -> None:
        """Ask for the cache line of an element to be brought into the second-level cache; it need not exist."""
        address = tirx.address_of(self.load(index))
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, _TO_READ, _SECOND_LEVEL, _DATA))


def _span(index: Expr, lanes: int) -> Expr:
    index = tirx.convert(index) if isinstance(index, int) else index
    return index if lanes == 1 else tirx.Ramp(index, 1, lanes)


def dtype_of(value: Expr) -> str:
    """TVM's name of a value's type, such as 'float32x16'."""
    return str(value.ty.dtype) if hasattr(value.ty, "dtype") else str(value.dtype)


def lanes_of(value: Expr) -> int:
    name = dtype_of(value)
    return int(name.rsplit("x", 1)[1]) if "x" in name else 1


def local(dtype: str, n: int) -> Region:
    """Mutable locals: registers, as long as they are accessed at constant offsets."""
    return Region(None, dtype, buffer=T.alloc_buffer((n,), dtype, scope="local"))


def let(value: Expr) -> Expr:
    """Evaluate once, here."""
    return T.Bind(value)


def const(value: float | int, dtype: str) -> Expr:
    return tirx.const(value, dtype)


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def zeros(dtype: str, lanes: int) -> Expr:
    return splat(const(0, dtype), lanes)


def cast(value: Expr, dtype: str) -> Expr:
    """Convert element by element; `dtype` names the element type."""
    lanes = lanes_of(value)
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def bits(value: Expr, dtype: str) -> Expr:
    """The same bits under another type of the same size."""
    return tirx.reinterpret(dtype, value)


def registers(value: Expr) -> list[Expr]:
    """A vector of 32-bit lanes as the 128-bit registers that hold it."""
    lanes = lanes_of(value)
    if lanes == 4:
        return [value]
    half, value = f"{dtype_of(value).rsplit('x', 1)[0]}x{lanes // 2}", let(value)
    return [*registers(tirx.vectorlow(half, value)), *registers(tirx.vectorhigh(half, value))]


def join(parts: Sequence[Expr]) -> Expr:
    """Vectors side by side: a power of two of them."""
    if len(parts) == 1:
        return parts[0]
    pairs = [
        tirx.vectorcombine(f"{dtype_of(a).rsplit('x', 1)[0]}x{2 * lanes_of(a)}", a, b)
        for a, b in zip(parts[::2], parts[1::2], strict=True)
    ]
    return join(pairs)


def byte_offset(pointer: Expr, nbytes: Expr) -> Expr:
    """Pointer advanced by a 64-bit byte count."""
    offset = nbytes if isinstance(nbytes, int) else cast(nbytes, "int64")
    return T.Bind(tirx.handle_add_byte_offset(pointer, offset))


ANCHORED = """
define linkonce_odr ptr @anchored(ptr %pointer) alwaysinline {
  %same = call ptr asm "", "=r,0"(ptr %pointer)
  ret ptr %same
}
"""
"""What `anchored` calls, for LLVM."""


def anchored(pointer: Expr) -> Expr:
    """The same pointer, but the compiler does not know that: what is loaded through it is loaded where it is used.

    Offsets are then taken from there too, so that near ones fit instructions.
    """
    return T.Bind(tirx.call_extern("handle", "anchored", pointer))


def llvm(dtype: str, name: str, *args: Expr) -> Expr:
    """Call a pure LLVM intrinsic."""
    return T.call_llvm_pure_intrin(dtype, name, *args)


@contextmanager
def loop(stop: Expr, start: Expr = 0) -> Iterator[Expr]:
    with T.serial(start, stop) as i:
        yield i


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    with T.If(condition), T.Then():
        yield


class Kernel:
    """Arguments of the kernel being built."""

    def __init__(self, pointers: Sequence[Expr], n_tokens: Expr, begin: Expr, end: Expr, worker: Expr) -> None:
        self.pointers, self.n_tokens, self.begin, self.end, self.worker = pointers, n_tokens, begin, end, worker

    def region(self, pointer: int, dtype: str) -> Region:
        return Region(self.pointers[pointer], dtype)


def define(name: str, body: Callable[[Kernel], None]) -> tirx.PrimFunc:
    """Build the kernel `name` from a function that emits its body."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        # calling_conv 2 keeps the plain C signature: no packed arguments, no runtime library behind it.
        T.func_attr({"global_symbol": name, "calling_conv": 2, "tirx.noalias": True})
        T.func_ret(tvm.ir.PrimType("int32"))
        pointers = [T.arg(f"p{i}", T.handle()) for i in range(N_POINTERS)]
        scalars = [T.arg(n, T.int32()) for n in ("n_tokens", "begin", "end", "worker")]
        body(Kernel(pointers, *scalars))
        T.Return(const(0, "int32"))
    return builder.get()
