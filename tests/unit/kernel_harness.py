"""Compiles kernels for one instruction set and calls them on memory that shows every access out of bounds."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import airkernels
from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.isa import ISAS, VectorIsa
from airrun.machine.isa import host_levels

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PRODUCT_LEVELS = [level for level in host_levels() if level in ISAS]
"""Instruction sets of this machine, best first."""

LEVELS = [level for level in PRODUCT_LEVELS if level != "x86-64-v3+avxvnni"]
"""Those whose kernels differ beyond products in integers."""

EPS = 2.0**-24
"""Half a unit in the last place of a float32 near 1."""

_NO_ACCESS = 0  # PROT_NONE, which the mmap module does not name
_CANARY = 0xA5
_FRONT = 64
_NATIVE = sorted((Path(airkernels.__file__).parent / "native").glob("*.c"))
_LIBC = ctypes.CDLL(None, use_errno=True)


class Memory:
    """Bytes that end at a page nobody may touch, with a canary in front: reads and writes past them are seen.

    Parameters
    ----------
    data
        Initial contents, of any type, or a number of bytes to be filled with canaries.
    skew
        Bytes left between the end and the forbidden page, which moves the start to another alignment.
    """

    def __init__(self, data: Array | int, skew: int = 0) -> None:
        given = np.full(data, _CANARY, np.uint8) if isinstance(data, int) else np.ascontiguousarray(data)
        raw = given.reshape(-1).view(np.uint8)
        pages = -(-(raw.nbytes + skew + _FRONT) // mmap.PAGESIZE)
        self._map = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        whole = np.frombuffer(self._map, np.uint8)
        last = pages * mmap.PAGESIZE
        if _LIBC.mprotect(ctypes.c_void_p(whole.ctypes.data + last), mmap.PAGESIZE, _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
        start = last - skew - raw.nbytes
        self.bytes: Bytes = whole[start : start + raw.nbytes]
        self._around = (whole[:start], whole[start + raw.nbytes : last])
        for part in self._around:
            part[:] = _CANARY
        self.bytes[:] = raw
        self.address: int = self.bytes.ctypes.data

    def view(self, dtype: npt.DTypeLike, *shape: int) -> Array:
        """The bytes as an array, which need not be aligned."""
        return np.frombuffer(self.bytes, dtype).reshape(shape)

    def check(self) -> None:
        assert all((part == _CANARY).all() for part in self._around), "a kernel wrote outside its buffer"


class Kernels:
    """Kernels compiled into one library.

    Parameters
    ----------
    isa
        Level name.
    programs
        Kernels by symbol.
    folder
        Where to put the library.
    """

    def __init__(self, isa: str, programs: Mapping[str, Any], folder: Path) -> None:
        from airkernels.cpu.build import compile_kernels

        compile_kernels(programs, ISAS[isa]).write_to_file(str(folder / "kernels.o"))
        # the native half of the runtime brings memset and the like, which the code generator may call
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-shared", "-nostdlib", "-O2"]
        command += ["-fPIC", "-ffreestanding", "-fno-stack-protector", *map(str, _NATIVE), str(folder / "kernels.o")]
        subprocess.run([*command, "-o", str(folder / "kernels.so")], check=True, capture_output=True)
        self._library = ctypes.CDLL(str(folder / "kernels.so"))

    def __call__(self, name: str, *memory: Memory | None, n: int, end: int, begin: int = 0, worker: int = 0) -> None:
        """Run tasks [begin, end) of a kernel for `n` rows, and check that it stayed inside its memory."""
        function = getattr(self._library, name)
        function.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int32] * 4
        pointers = [None if m is None else m.address for m in memory]
        pointers += [None] * (8 - len(pointers))
        assert function(*pointers, n, begin, end, worker) == 0
        for m in memory:
            if m is not None:
                m.check()


def vector_isa(level: str) -> VectorIsa:
    return ISAS[level]


def has_outlier(groups: Doubles) -> npt.NDArray[np.bool_]:
    """Groups [..., 32] whose largest magnitude is more than six times their mean magnitude."""
    magnitudes = np.abs(groups)
    return np.asarray(magnitudes.max(-1) > 6 * magnitudes.mean(-1))


def quantize_reference(x: Floats, digits: int = 1) -> tuple[Bytes, Doubles]:
    """Rows rounded in groups of 32, laid out for the kernels, and the values they stand for."""
    n_rows, n = x.shape
    groups = x.astype(np.float64).reshape(n_rows, n // 32, 32)
    fine = has_outlier(groups) & (digits == 2)
    most = np.where(fine, 127 * 128, 127)
    scale = (np.abs(groups).max(2) / most).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)[..., None].astype(np.float64)
    codes = np.clip(np.rint(groups / safe), -most[..., None], most[..., None]).astype(np.int32)
    sums = codes.sum(2, dtype=np.int32)
    half_sums = codes.reshape(n_rows, n // 16, 16).sum(2, dtype=np.int32)
    row = QuantizedRow(n, digits)
    low = np.where(fine[..., None], (codes + 64) % 128 - 64, codes)
    planes = [low, (codes - low) // 128][:digits]
    out = np.zeros((n_rows, row.nbytes), np.uint8)
    parts: list[tuple[int, Array]] = [(i * n, p.astype(np.int8).reshape(n_rows, n)) for i, p in enumerate(planes)]
    parts += [(row.scale, scale), (row.negative_sum, -sums)]
    parts += [(row.scaled_sum, scale * sums.astype(np.float32)), (row.negative_half_sum, -half_sums)]
    parts += [(row.scaled_half_sum, np.repeat(scale, 2, axis=1) * half_sums.astype(np.float32))]
    if digits == 2:
        parts.append((row.has_high, fine.astype(np.int32)))
    for at, part in parts:
        raw = np.ascontiguousarray(part).view(np.uint8).reshape(n_rows, -1)
        out[:, at : at + raw.shape[1]] = raw
    return out, (codes * scale[..., None].astype(np.float64)).reshape(n_rows, n)
