"""Running a model without a plan: the compiler, in a process of its own, makes one for this machine and caches it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from airrun import __version__
from airrun.errors import AirError, ModelFileError, PlanError, UsageError
from airrun.machine.isa import host_levels, machine
from airrun.paths import cache_dir, ensure_dir
from airrun.plan.container import read_plan
from airrun.plan.fingerprint import matches
from airrun.plan.schema import FORMAT_VERSION

_PACKAGES = ("aircompile", "airkernels", "airschedules")
_COMPILER = (*_PACKAGES, "tvm", "networkx", "ziglang")
_HEAD = 1 << 20


def plan_for(model: Path) -> Path:
    """The cached plan of a model for this machine, compiled now if there is none.

    Parameters
    ----------
    model
        GGUF file (any shard of a split one).

    Returns
    -------
    Path
        A plan file that names `model` by its fingerprint.

    Raises
    ------
    UsageError
        There is no plan yet, and the compiler is not installed.
    AirError
        The model cannot be read or compiled; says why.
    """
    path = ensure_dir(cache_dir() / "plans") / _name(model)
    if not _is_plan_of(path, model):
        _build(model, path)
    return path


def _name(model: Path) -> str:
    """A name that changes with the model, the compiler and the processor; the plan's fingerprint has the last word."""
    try:
        with model.open("rb") as file:
            head = file.read(_HEAD)
            nbytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ModelFileError(f"{model}: {error.strerror or error}") from error
    compiler = f"{__version__} {FORMAT_VERSION} {_sources()}"
    identity = f"{nbytes} {hashlib.sha256(head).hexdigest()} {compiler} {machine()} {host_levels()}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", model.stem)[:80]
    return f"{stem}.{key}.plan.bin"


def _sources() -> str:
    """What tells one state of the compiler's files from another: a version does not while they are being edited."""
    digest = hashlib.sha256()
    for name in _PACKAGES:
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            for path in sorted(Path(folder).rglob("*")):
                if path.suffix in {".py", ".c", ".h", ".json", ".toml"}:
                    status = path.stat()
                    digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _is_plan_of(path: Path, model: Path) -> bool:
    if not path.is_file():
        return False
    try:
        plan = read_plan(path).plan
    except PlanError:  # of a version between releases, or damaged: building again repairs both
        return False
    return any(matches(file, model) is None for file in plan.files)


def _build(model: Path, path: Path) -> None:
    missing = [name for name in _COMPILER if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{model}: running a model needs its plan, and the compiler is not installed ({missing[0]} is missing): "
            'pip install "aircompile[compile]", or build the plan elsewhere'
        )
    terminal = sys.stderr.isatty()
    # -P: a file in the current folder must not stand in for the compiler
    command = [sys.executable, "-P", "-m", "aircompile", "build", str(model.absolute()), "--target", "host"]
    command += ["-o", str(path)] if terminal else ["-o", str(path), "--quiet"]
    if terminal:
        print(f"compiling {model.name} for this machine; the plan is kept", file=sys.stderr)
    # stdout is for the generated text and nothing else
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if terminal else subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in (done.stderr or "").splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"
        raise AirError(f"{model}: cannot be compiled: {reason.removeprefix(f'{model.absolute()}: ')}")
