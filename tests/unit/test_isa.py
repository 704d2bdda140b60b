"""Instruction sets: flags against numpy's own detection, levels, and the choice among a plan's kernels."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest

from airrun.errors import PlanError
from airrun.machine import isa
from airrun.machine.auxiliary_vector import parse_auxiliary_vector

V2, V3, V3_VNNI, V4 = "x86-64-v2", "x86-64-v3", "x86-64-v3+avxvnni", "x86-64-v4"
ARM, ARM_DOTPROD, ARM_I8MM = "armv8-a", "armv8-a+dotprod", "armv8-a+i8mm"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor with AVX2 and no AVX-512, and no override in the environment."""
    monkeypatch.setattr(isa, "host_features", lambda: isa.LEVELS[V3] | {"aes"})
    monkeypatch.delenv(isa.ENVIRONMENT, raising=False)
    return monkeypatch


@pytest.mark.skipif(isa.machine() != "x86_64", reason="x86-64 flags")
def test_flags_agree_with_numpys_detection() -> None:
    known = set(isa._NUMPY_NAMES)
    assert known == set(isa.LEVELS[V4])
    assert isa.host_features() & known == isa._numpy_features()


def test_without_cpuinfo_numpy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    isa.host_features.cache_clear()
    try:
        assert isa.host_features() == isa._numpy_features()
    finally:
        isa.host_features.cache_clear()


def test_cpuinfo_of_unequal_processors_gives_what_all_have() -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n"
    assert isa.parse_cpuinfo(text) == {"fpu", "avx2"}
    assert isa.parse_cpuinfo("Features\t: fp asimd asimddp\n") == {"fp", "asimd", "asimddp"}
    assert isa.parse_cpuinfo("model name : x\n") == frozenset()


def test_levels_contain_each_other() -> None:
    assert [level for level in isa.LEVELS if level.startswith("x86")] == [V4, V3_VNNI, V3, V2]
    assert isa.LEVELS[V4] > isa.LEVELS[V3] > isa.LEVELS[V2]
    assert {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"} <= isa.LEVELS[V4]
    assert "avx512_vbmi" not in isa.LEVELS[V4]
    assert isa.LEVELS[V3_VNNI] - isa.LEVELS[V3] == {"avx_vnni"}
    arm = [isa.LEVELS[level] for level in isa.LEVELS if level.startswith("armv8")]
    assert all(better > worse for better, worse in pairwise(arm)) and len(arm) == 3


def test_an_auxiliary_vector_says_what_arm_has() -> None:
    def vector(hwcap: int, hwcap2: int) -> bytes:
        return struct.pack("<8Q", 6, 4096, 16, hwcap, 26, hwcap2, 0, 0)

    assert parse_auxiliary_vector(vector(3, 0)) == {"fp", "asimd"}
    assert parse_auxiliary_vector(vector(3 | 1 << 20, 1 << 13)) == {"fp", "asimd", "asimddp", "i8mm"}
    assert parse_auxiliary_vector(b"cut off") == frozenset()


def test_levels_of_a_processor(processor: pytest.MonkeyPatch) -> None:
    assert isa.host_levels() == [V3, V2]
    assert isa.missing(V3) == []
    assert isa.missing(V4) == ["avx512_vnni", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]
    processor.setattr(isa, "host_features", lambda: isa.LEVELS[V4] - {"avx512_vnni"})
    assert isa.host_levels() == [V3, V2]
    processor.setattr(isa, "host_features", lambda: isa.LEVELS[V3_VNNI])
    assert isa.host_levels() == [V3_VNNI, V3, V2]
    with pytest.raises(PlanError, match="unknown instruction set 'x86-64-v5'"):
        isa.missing("x86-64-v5")


@pytest.mark.parametrize(
    ("available", "chosen"), [([V2, V3, V4], V3), ([V4, V2], V2), (["armv9-a", V3], V3), ((V3,), V3)]
)
def test_the_best_that_runs_is_chosen(processor: pytest.MonkeyPatch, available: list[str], chosen: str) -> None:
    assert isa.select_level(available) == chosen


def test_no_match_says_what_the_plan_has_and_the_machine_lacks(processor: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match=f"kernels for {V4}, armv9-a, .* for {V4} it lacks avx512_vnni avx512bw"):
        isa.select_level([V4, "armv9-a"])
    with pytest.raises(PlanError, match="kernels for none"):
        isa.select_level([])


def test_the_override_is_followed_or_refused(processor: pytest.MonkeyPatch) -> None:
    processor.setenv(isa.ENVIRONMENT, V2)
    assert isa.select_level([V2, V3]) == V2
    with pytest.raises(PlanError, match=f"AIR_ISA={V2}, but the plan has kernels for {V3}"):
        isa.select_level([V3])
    processor.setenv(isa.ENVIRONMENT, V4)
    with pytest.raises(PlanError, match=f"AIR_ISA={V4}, but this processor lacks avx512_vnni"):
        isa.select_level([V4, V3])
    processor.setenv(isa.ENVIRONMENT, "")
    assert isa.select_level([V2, V3]) == V3
