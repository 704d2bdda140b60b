"""Compiling kernels to machine code for a GPU architecture, on a machine that need not have one."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.forms import DeviceForm, stored
from airkernels.triton.intrinsics import LIBRARY, library

Constant = int | float | bool | str
Constants = dict[str, Constant]

_PDL_SINCE = 90
"""First compute capability with programmatic dependent launch."""


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: an ELF image with one entry point, and what a launch needs to know.

    `pointers` and `integers` are its arguments in order; two scratch pointers, null, follow them.
    """

    image: bytes
    entry: str
    threads: int
    shared_nbytes: int
    pdl: bool


def compile_kernel(
    kernel: Any, types: Sequence[str], constants: Mapping[str, Constant], arch: str, warps: int, stages: int = 3
) -> Binary:
    """Compile one kernel.

    Parameters
    ----------
    kernel
        A function of this package decorated by `triton.jit`.
    types
        Of its arguments, which come before the constants: ``*fp32``, ``*u32``, ``i32``, ... Pointers are to addresses
        divisible by 16, but those to bytes.
    constants
        Its other parameters; TARGET and PDL are added here.
    arch
        ``sm_86``, ``gfx942``, ...
    """
    target = gpu_target(arch)
    pdl = target.backend == "cuda" and target.arch >= _PDL_SINCE
    values = {**constants, "TARGET": isa_family(arch), "PDL": pdl}
    names = list(kernel.arg_names)
    values = {name: value for name, value in values.items() if name in names}
    assert set(names[len(types) :]) == set(values), f"{kernel.__name__}: constants {values} for parameters {names}"
    signature = {name: types[i] if i < len(types) else "constexpr" for i, name in enumerate(names)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t.startswith("*") and t != "*u8"}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in values.items()}, aligned)
    options: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if target.backend == "cuda":
        options["sanitize_overflow"] = False
    # Triton knows sources by their text, which says nothing of the functions marked `device`
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        fmt = FORMATS.get(str(constants.get("FORMAT")))
        if isinstance(fmt, BlockFormat) and isinstance(form := stored(fmt), DeviceForm):
            path = Path(folder) / "library.ll"
            path.write_text(library(target.backend, form.table))
            options["extern_libs"] = {LIBRARY: str(path)}
        triton.knobs.cache.dir = folder
        compiled = triton.compile(source, target=target, options=options)
        image: bytes = compiled.asm["cubin" if target.backend == "cuda" else "hsaco"]
    meta = compiled.metadata
    assert not getattr(meta, "global_scratch_size", 0)
    return Binary(image, meta.name, warps * target.warp_size, meta.shared, pdl and "PDL" in values)


def gpu_target(arch: str) -> GPUTarget:
    """Triton's name of an architecture."""
    found = re.fullmatch(r"sm_(\d+)", arch)
    if found:
        return GPUTarget("cuda", int(found[1]), 32)
    return GPUTarget("hip", arch, 64 if isa_family(arch) == "gfx9" else 32)


def isa_family(arch: str) -> str:
    """'cuda', 'gfx9' (CDNA) or 'gfx11' (RDNA 3 and later)."""
    if arch.startswith("sm_"):
        return "cuda"
    return "gfx9" if arch.startswith("gfx9") else "gfx11"
