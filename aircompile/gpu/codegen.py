"""Machine code for GPUs: every kernel once for every architecture, by Triton, in parallel processes.

Binaries are cached by the content of everything that goes into them, as objects for processors are.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import airkernels
from aircompile.codegen import CodegenError, Progress
from airrun.paths import cache_dir, ensure_dir, write_atomic

if TYPE_CHECKING:
    from airkernels.triton.build import Binary
    from airschedules.gpu.schedule import DeviceSpec

CHECKED = ("sm_90",)
"""Architectures that the kernels were run on; those of the same maker share their source."""


def compile_binaries(specs: Sequence[DeviceSpec], arch: str, progress: Progress) -> list[Binary]:
    """Compile every kernel for one architecture, in the order of the specs.

    Raises
    ------
    CodegenError
        If Triton fails; names the kernel.
    """
    paths = [_path(spec, arch) for spec in specs]
    missing = [i for i, path in enumerate(paths) if _read(path) is None]
    workers = min(len(missing), os.cpu_count() or 1)
    if workers > 1:
        # a fresh interpreter: LLVM's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            made = pool.map(_compile, [specs[i] for i in missing], [arch] * len(missing), [paths[i] for i in missing])
            for done, i in enumerate(missing):
                progress(f"{arch} {specs[i].symbol}", done, len(missing))
                _check(specs[i], arch, next(made))
    else:
        for i in missing:
            _check(specs[i], arch, _compile(specs[i], arch, paths[i]))
    found = []
    for spec, path in zip(specs, paths, strict=True):
        binary = _read(path)
        if binary is None:
            raise CodegenError(f"{path}: the compiled {spec.symbol} cannot be read back")
        found.append(binary)
    return found


def _check(spec: DeviceSpec, arch: str, failure: str | None) -> None:
    if failure is not None:
        raise CodegenError(f"Triton failed on {spec.symbol} for {arch}: {failure}")


def _compile(spec: DeviceSpec, arch: str, path: str) -> str | None:
    """Compile into a file of the cache; the reason where that fails. Runs in a process of its own."""
    try:
        binary = spec.schedule(arch).compile(arch)
    except Exception as error:  # of Triton's many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0]
    meta = {**asdict(binary), "image": len(binary.image)}
    content = json.dumps(meta).encode() + b"\n" + binary.image
    write_atomic(ensure_dir(cache_dir() / "gpu") / path, hashlib.sha256(content).digest() + content)
    return None


def _read(path: str) -> Binary | None:
    from airkernels.triton.build import Binary

    try:
        data = (cache_dir() / "gpu" / path).read_bytes()
    except OSError:
        return None
    digest, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    meta, _, image = content.partition(b"\n")
    return Binary(**{**json.loads(meta), "image": image})


def _path(spec: DeviceSpec, arch: str) -> str:
    schedule = spec.schedule(arch)
    launch = (schedule.types, sorted(schedule.constants.items()), schedule.warps, schedule.stages)
    return hashlib.sha256(f"{_sources()} {arch} {spec.symbol} {launch}".encode()).hexdigest()


@lru_cache(maxsize=1)
def _sources() -> str:
    """Digest of the code that decides what a binary contains."""
    digest = hashlib.sha256(importlib.metadata.version("triton").encode())
    root = Path(str(airkernels.__file__)).parent
    for path in sorted([*(root / "triton").glob("*.py"), *(root / "formats").glob("*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
