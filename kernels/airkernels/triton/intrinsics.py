"""What Triton has no operation for: permuting bytes, and tables of constants.

They are functions of a library in LLVM's intermediate language, which is written for each kernel and linked into it.
A table is then data of the kernel's own image, wherever a plan carries it, and what is one instruction of NVIDIA's
is several elsewhere, with the same result.
"""

from __future__ import annotations

from array import array
from typing import Any
from zlib import crc32

import triton.language as tl

from airkernels.formats.base import EACH, Table

LIBRARY = "airkernels"
"""Part of the functions' names, by which Triton tells that a kernel for AMD needs the library."""

PERMUTE = f"{LIBRARY}_permute"

_PERMUTE_NVIDIA = f"""
declare i32 @llvm.nvvm.prmt(i32, i32, i32)
define i32 @{PERMUTE}(i32 %low, i32 %high, i32 %selectors) alwaysinline {{
  %found = call i32 @llvm.nvvm.prmt(i32 %low, i32 %high, i32 %selectors)
  ret i32 %found
}}
"""

_PERMUTE_AMD = f"""
declare i32 @llvm.amdgcn.perm(i32, i32, i32)
define i32 @{PERMUTE}(i32 %low, i32 %high, i32 %selectors) alwaysinline {{
  %first = and i32 %selectors, 255
  %rest = shl i32 %selectors, 8
  %second = and i32 %rest, 16711680
  %pairs = or i32 %first, %second
  %moved = shl i32 %pairs, 4
  %both = or i32 %pairs, %moved
  %bytes = and i32 %both, {0x07 * EACH}
  %found = call i32 @llvm.amdgcn.perm(i32 %high, i32 %low, i32 %bytes)
  %sign.high = lshr i32 %found, 7
  %sign.one = and i32 %sign.high, {EACH}
  %sign = mul i32 %sign.one, 255
  %only.high = lshr i32 %both, 3
  %only.one = and i32 %only.high, {EACH}
  %only = mul i32 %only.one, 255
  %kept.bytes = xor i32 %only, -1
  %kept = and i32 %found, %kept.bytes
  %signs = and i32 %sign, %only
  %all = or i32 %kept, %signs
  ret i32 %all
}}
"""
"""Selectors are bytes there, and none gives the sign of any byte."""


def library(backend: str, table: Table | None) -> str:
    """The library's text for Triton's backend 'cuda' or 'hip', with the one table that a kernel may read."""
    text = _PERMUTE_NVIDIA if backend == "cuda" else _PERMUTE_AMD
    if table is None:
        return text
    kind = f"[{len(table.entries)} x i32]"
    entries = ", ".join(f"i32 {entry}" for entry in table.entries)
    return f"""{text}
@{LIBRARY}_table = internal addrspace(1) constant {kind} [{entries}], align 16
define i32 @{entry_symbol(table)}(i32 %index) alwaysinline {{
  %wide = zext i32 %index to i64
  %at = getelementptr {kind}, ptr addrspace(1) @{LIBRARY}_table, i64 0, i64 %wide
  %found = load i32, ptr addrspace(1) %at, align 4, !invariant.load !0
  ret i32 %found
}}
!0 = !{{}}
"""


def entry_symbol(table: Table) -> str:
    """Name of the function that reads a table."""
    return f"{LIBRARY}_entry_{crc32(array('I', table.entries).tobytes()):08x}"


def permute(low: int, high: int, selectors: Any, semantic: Any) -> Any:
    """Byte j is byte ``s & 7`` of two words, where ``s`` is nibble j of a uint32 tensor's lower 16 bits; where
    ``s >= 8`` it is that byte's upper bit eight times."""
    shape = list(selectors.shape)
    words = [semantic.full(shape, word, tl.uint32) for word in (low, high)]
    return _call(PERMUTE, [*words, selectors], semantic)


def entry(table: Table, index: Any, semantic: Any) -> Any:
    """An entry of the kernel's table; index and result are uint32 tensors."""
    return _call(entry_symbol(table), [index], semantic)


def _call(symbol: str, arguments: list[Any], semantic: Any) -> Any:
    types = len(arguments) * (tl.uint32,)
    return tl.core.extern_elementwise(
        LIBRARY, "", arguments, {types: (symbol, tl.uint32)}, is_pure=True, _semantic=semantic
    )
