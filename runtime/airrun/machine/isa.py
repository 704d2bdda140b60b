"""Instruction sets: what this processor has, and which of a plan's kernels it can run.

A level is a name under which the compiler builds kernels. Its flags are those a compiler may use for it, so that a
kernel never meets an instruction the processor lacks.

Source: x86-64 psABI, section 3.1.1 (micro-architecture levels); Arm Architecture Reference Manual, section A2
(extensions); flag names as in ``/proc/cpuinfo``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from airrun.errors import PlanError

_V2 = frozenset({"cx16", "pni", "ssse3", "sse4_1", "sse4_2", "popcnt"})
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
# AVX2 with the 8-bit dot product of AVX-512 VNNI: client processors that have no AVX-512
_V3_VNNI = _V3 | {"avx_vnni"}
# the psABI level and the 8-bit dot product, without which 512-bit integer kernels do not pay
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}

_ARMV8 = frozenset({"fp", "asimd"})
_DOTPROD = _ARMV8 | {"asimddp"}

LEVELS: dict[str, frozenset[str]] = {
    "x86-64-v4": _V4,
    "x86-64-v3+avxvnni": _V3_VNNI,
    "x86-64-v3": _V3,
    "x86-64-v2": _V2,
    "armv8-a+i8mm": _DOTPROD | {"i8mm"},
    "armv8-a+dotprod": _DOTPROD,
    "armv8-a": _ARMV8,
}
"""Levels by name, best first on each architecture, with the processor flags each needs."""

ENVIRONMENT = "AIR_ISA"

# numpy's names, where /proc/cpuinfo is not at hand. It does not report every flag in every version.
_NUMPY_NAMES = {
    "cx16": ("CX16", "SSE42"),
    "pni": ("SSE3",),
    "ssse3": ("SSSE3",),
    "sse4_1": ("SSE41",),
    "sse4_2": ("SSE42",),
    "popcnt": ("POPCNT",),
    "avx": ("AVX",),
    "avx2": ("AVX2",),
    "f16c": ("F16C",),
    "fma": ("FMA3",),
    # every processor with AVX2 and FMA that was ever sold has these four
    "bmi1": ("BMI", "AVX2"),
    "bmi2": ("BMI2", "AVX2"),
    "abm": ("LZCNT", "AVX2"),
    "movbe": ("MOVBE", "AVX2"),
    "avx512f": ("AVX512F",),
    "avx512cd": ("AVX512CD",),
    "avx512bw": ("AVX512BW", "AVX512_SKX"),
    "avx512dq": ("AVX512DQ", "AVX512_SKX"),
    "avx512vl": ("AVX512VL", "AVX512_SKX"),
    "avx512_vnni": ("AVX512VNNI", "AVX512_CLX"),
}


def machine() -> str:
    """The processor architecture under its Linux name: ``x86_64``, ``aarch64``, ..."""
    # not the module `platform` where there is a shorter way: every start would pay for its import
    name = (os.uname().machine if hasattr(os, "uname") else importlib.import_module("platform").machine()).lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    """Flags of this processor that the operating system has enabled, under their ``/proc/cpuinfo`` names."""
    if machine() == "aarch64":
        from airrun.machine.auxiliary_vector import parse_auxiliary_vector

        return parse_auxiliary_vector(Path("/proc/self/auxv").read_bytes())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _numpy_features()
    return parse_cpuinfo(text) or _numpy_features()


def parse_cpuinfo(text: str) -> frozenset[str]:
    """The flags common to all processors of a ``/proc/cpuinfo`` (x86 ``flags``, arm ``Features``)."""
    found: frozenset[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            found = flags if found is None else found & flags
    return found or frozenset()


def _numpy_features() -> frozenset[str]:
    known: dict[str, bool] = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    return frozenset(flag for flag, names in _NUMPY_NAMES.items() if any(known.get(name) for name in names))


def host_levels() -> list[str]:
    """Levels this processor can run, best first."""
    return [level for level in LEVELS if not missing(level)]


def missing(level: str) -> list[str]:
    """Flags of `level` that this processor lacks, sorted.

    Raises
    ------
    PlanError
        A level that this version does not know.
    """
    if level not in LEVELS:
        raise PlanError(f"unknown instruction set {level!r} (known: {', '.join(LEVELS)})")
    return sorted(LEVELS[level] - host_features())


def select_level(available: Sequence[str]) -> str:
    """The best level that a plan has kernels for and this processor can run.

    ``AIR_ISA`` overrides the choice; it is read here and nowhere else.

    Parameters
    ----------
    available
        Levels of the plan, in any order; ones this version does not know are passed over.

    Raises
    ------
    PlanError
        No match, or an override that the plan or the processor cannot follow; says what is lacking.
    """
    offered = ", ".join(available) or "none"
    wanted = os.environ.get(ENVIRONMENT)
    if wanted:
        if wanted not in available:
            raise PlanError(f"{ENVIRONMENT}={wanted}, but the plan has kernels for {offered}")
        if missing(wanted):
            raise PlanError(f"{ENVIRONMENT}={wanted}, but this processor lacks {' '.join(missing(wanted))}")
        return wanted
    for level in host_levels():
        if level in available:
            return level
    lacks = "; ".join(f"for {level} it lacks {' '.join(missing(level))}" for level in available if level in LEVELS)
    raise PlanError(
        f"the plan has kernels for {offered}, and this {machine()} processor runs none of them"
        + (f": {lacks}" if lacks else "")
    )
