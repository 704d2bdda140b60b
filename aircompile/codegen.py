"""Code generation: kernels become one shared object per instruction set.

TVM makes an object of every kernel; what replays and streams is C. Both are linked by the compiler that the
`ziglang` package carries, so no system toolchain is needed and the result depends on no C library.
Objects are cached by the content of everything that goes into them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import airkernels
import airschedules
from airkernels.cpu.isa import VectorIsa
from airrun.errors import AirError
from airrun.paths import cache_dir, ensure_dir, write_atomic
from airschedules.specs import KernelSpec

Progress = Callable[[str, int, int], None]
"""Called with what is being compiled, how many are done, and how many there are."""

_NATIVE = Path(str(airkernels.__file__)).parent / "native"

_BASELINE = {"x86_64": ("-mcpu=x86_64",), "aarch64": ("-mcpu=generic", "-mno-outline-atomics")}
"""What the native code may use of each architecture: all its processors have it, and there is no library to ask."""


class CodegenError(AirError):
    """The compiler behind the kernels failed."""


@dataclass(frozen=True)
class CompiledLibrary:
    """A shared object and the scratch memory its kernels need per worker."""

    isa: VectorIsa
    image: bytes
    scratch_nbytes: int


def compile_library(specs: Sequence[KernelSpec], isa: VectorIsa, progress: Progress) -> CompiledLibrary:
    """Compile and link every kernel for one instruction set.

    Raises
    ------
    CodegenError
        If a compiler is missing or fails.
    """
    # Products name their scratch even where they use none, so there is always some.
    scratch = max(64, *(spec.scratch_nbytes(isa) for spec in specs))
    objects = []
    for i, spec in enumerate(specs):
        progress(f"{isa.name} {spec.symbol}", i, len(specs))
        objects.append(_cached(f"{isa.name} {isa} {spec.symbol} {spec.schedule(isa)}", partial(_compile, spec, isa)))
    objects += [
        _cached(f"{isa.arch} {source.name}", partial(_compile_native, source, isa.arch))
        for source in sorted(_NATIVE.glob("*.c"))
    ]
    progress(f"{isa.name} linking", len(specs), len(specs))
    return CompiledLibrary(isa, _link(objects, isa.arch), -(-scratch // 64) * 64)


def needed_calls() -> tuple[str, ...]:
    """Names of the kernel's calls without which the native code does not run, sorted."""
    declared = re.findall(r"enum needed_calls \{(.*?)\}", (_NATIVE / "sys.h").read_text())
    return tuple(sorted({name.lower() for each in declared for name in re.findall(r"SYS_(\w+)", each)}))


def _cached(description: str, make: Callable[[], bytes]) -> bytes:
    key = hashlib.sha256(f"{_sources()} {description}".encode()).hexdigest()
    path = ensure_dir(cache_dir() / "objects") / f"{key}.o"
    try:
        data = path.read_bytes()
        digest, content = data[:32], data[32:]
        if hashlib.sha256(content).digest() == digest:
            return content
    except OSError:
        pass
    content = make()
    write_atomic(path, hashlib.sha256(content).digest() + content)
    return content


@lru_cache(maxsize=1)
def _sources() -> str:
    """Digest of the code that decides what an object contains."""
    digest = hashlib.sha256()
    for package in (airkernels, airschedules):
        for path in sorted(Path(str(package.__file__)).parent.rglob("*")):
            if path.suffix in {".py", ".c", ".h"}:
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for tool in ("apache-tvm", "ziglang"):
        digest.update(importlib.metadata.version(tool).encode())
    return digest.hexdigest()


def _compile(spec: KernelSpec, isa: VectorIsa) -> bytes:
    from airkernels.cpu.build import compile_kernels

    library = compile_kernels({spec.symbol: spec.build(isa)}, isa)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        library.write_to_file(str(path))
        return path.read_bytes()


def _compile_native(source: Path, arch: str) -> bytes:
    flags = ["-O2", "-fPIC", "-ffreestanding", "-fno-stack-protector", "-g0", "-Wall", "-Wextra", "-Werror"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "native.o"
        _zig(arch, ["-c", *flags, *_BASELINE[arch], str(source), "-o", str(path)])
        return path.read_bytes()


def _link(objects: Sequence[bytes], arch: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, content in enumerate(objects):
            path = Path(folder) / f"{i}.o"
            path.write_bytes(content)
            paths.append(str(path))
        out = Path(folder) / "kernels.so"
        _zig(arch, ["-shared", "-Wl,-z,defs", "-nostdlib", "-s", "-Wl,--build-id=none", "-o", str(out), *paths])
        return out.read_bytes()


def _zig(arch: str, arguments: list[str]) -> None:
    """Run the C compiler of the `ziglang` package for Linux on an architecture."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-musl", *arguments]
    folder = str(ensure_dir(cache_dir() / "zig"))
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CodegenError(f"the C compiler failed: {lines[-1] if lines else f'exit status {done.returncode}'}")
