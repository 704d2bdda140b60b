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

_TABLE = """
@table = internal addrspace(1) constant {kind} [{entries}], align 16
define i32 @{entry}(i32 %index) alwaysinline {{
  %wide = zext i32 %index to i64
  %at = getelementptr i32, ptr addrspace(1) @table, i64 %wide
  %found = load i32, ptr addrspace(1) %at, align 4, !invariant.load !0
  ret i32 %found
}}
!0 = !{{}}
"""

_KEPT_NVIDIA = """
@kept = internal addrspace(3) global {kind} undef, align 16
declare void @llvm.nvvm.bar.warp.sync(i32)
define i32 @{keep}(i32 %number, i32 %step) alwaysinline {{
first:
  br label %copy
copy:
  %four = phi i32 [ %number, %first ], [ %next, %copy ]
  %wide = zext i32 %four to i64
  %from = getelementptr <4 x i32>, ptr addrspace(1) @table, i64 %wide
  %to = getelementptr <4 x i32>, ptr addrspace(3) @kept, i32 %four
  %value = load <4 x i32>, ptr addrspace(1) %from, align 16, !invariant.load !0
  store <4 x i32> %value, ptr addrspace(3) %to, align 16
  %next = add i32 %four, %step
  %more = icmp ult i32 %next, {n_fours}
  br i1 %more, label %copy, label %last
last:
  call void @llvm.nvvm.bar.warp.sync(i32 -1)
  ret i32 0
}}
define i32 @{kept_entry}(i32 %index, i32 %zero) alwaysinline {{
  %place = add i32 %index, %zero
  %at = getelementptr i32, ptr addrspace(3) @kept, i32 %place
  %found = load i32, ptr addrspace(3) %at, align 4
  ret i32 %found
}}
"""
"""A copy in shared memory: reads of neighbouring lanes meet in banks rather than in lines of the cache, and need no
64-bit addresses."""

_KEPT_AMD = """
define i32 @{keep}(i32 %number, i32 %step) alwaysinline {{
  ret i32 0
}}
define i32 @{kept_entry}(i32 %index, i32 %zero) alwaysinline {{
  %found = call i32 @{entry}(i32 %index)
  ret i32 %found
}}
"""


def library(backend: str, table: Table | None) -> str:
    """The library's text for Triton's backend 'cuda' or 'hip', with the one table that a kernel may read."""
    text = _PERMUTE_NVIDIA if backend == "cuda" else _PERMUTE_AMD
    if table is None:
        return text
    entries = ", ".join(f"i32 {entry}" for entry in table.entries)
    names = {"kind": f"[{len(table.entries)} x i32]", "entries": entries, "n_fours": len(table.entries) // 4}
    names |= {use: symbol(use, table) for use in ("entry", "keep", "kept_entry")}
    return text + (_TABLE + (_KEPT_NVIDIA if backend == "cuda" else _KEPT_AMD)).format_map(names)


def symbol(use: str, table: Table) -> str:
    """Name of a function of a table: 'entry', 'keep' or 'kept_entry'."""
    return f"{LIBRARY}_{use}_{crc32(array('I', table.entries).tobytes()):08x}"


def permute(low: Any, high: Any, selectors: Any, shape: list[int], semantic: Any) -> Any:
    """`forms.DeviceReader.permute` of uint32 tensors of a shape, or constants."""
    words = [
        semantic.full(shape, word, tl.uint32) if isinstance(word, int) else word for word in (low, high, selectors)
    ]
    return _call(PERMUTE, words, semantic)


def keep(table: Table, numbers: Any, semantic: Any) -> Any:
    """Copy the table to where a program of one warp reads it fastest.

    Parameters
    ----------
    numbers
        ``arange(0, n)`` as uint32, of which every lane copies its share.

    Returns
    -------
    Zeros, to be given to `entry`, which thus comes after.
    """
    step = semantic.full(list(numbers.shape), numbers.shape[0], tl.uint32)
    return _call(symbol("keep", table), [numbers, step], semantic)


def entry(table: Table, index: Any, kept: Any | None, semantic: Any) -> Any:
    """An entry of the kernel's table, of the copy if there is one; uint32 tensors."""
    if kept is None:
        return _call(symbol("entry", table), [index], semantic)
    return _call(symbol("kept_entry", table), [index, kept], semantic)


def _call(name: str, arguments: list[Any], semantic: Any) -> Any:
    types = len(arguments) * (tl.uint32,)
    return tl.core.extern_elementwise(
        LIBRARY, "", arguments, {types: (name, tl.uint32)}, is_pure=True, _semantic=semantic
    )
