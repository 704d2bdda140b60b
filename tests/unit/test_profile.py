"""Hardware profiles: strict reading, inheritance, writing back, the shipped ones, and targets by name."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airkernels.cpu.isa import ISAS
from airrun.errors import UsageError
from airrun.machine import system
from airrun.machine.profile import Cpu, Disk, Gpu, Profile, Tier, Tiers, load_profile, parse_bytes
from airrun.paths import host_profile_path
from airschedules import targets
from airschedules.targets import list_targets, load_target

PROFILES = Path(targets.__file__).parent / "profiles"
MACHINES = ["rpi5", "jetson-orin", "graviton3", "apple-m1", "n100", "x86-64-v2", "x86-64-v3", "znver4"]
GIB = 1 << 30


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1500MiB", 1500 << 20),
        ("10GB", 10**10),
        ("10 gib", 10 * GIB),
        ("2T", 2 * 10**12),
        ("1.5GiB", 3 * GIB // 2),
        ("4096", 4096),
        ("7b", 7),
        (12, 12),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_quantities(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "GiB", "1e9", "10 GiBs", "1..5G", "nan", "٣MiB x"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of bytes"):
        parse_bytes(text)


def test_a_profile_inherits_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "base", 'description = "b"\n[cpu]\nisa = ["x86-64-v2"]\ncores = 4\n[tiers.ram]\nsize = "8GiB"')
    write(tmp_path, "middle", 'inherits = "base"\n[cpu]\ncores = 8\n[tiers.vram]\nsize = "1GiB"\n[gpu]\narch = "sm_86"')
    path = write(tmp_path, "top", 'inherits = "middle"\n[tiers.ram]\nbandwidth = "2GB"\n[tiers.vram]\nbandwidth = 5')
    assert load_profile(path) == Profile(
        name="top",
        inherits="middle",
        cpu=Cpu(isa=("x86-64-v2",), cores=8),
        tiers=Tiers(ram=Tier(8 * GIB, 2 * 10**9), vram=Tier(GIB, 5)),
        gpu=Gpu("sm_86"),
    )


BAD = {
    "misspelt key": ("[tiers.ram]\nbandwith = 1", r"unknown key tiers.ram.bandwith .*bandwidth"),
    "unknown table": ("[npu]\narch = 'x'", "unknown key npu"),
    "key of another tier": ("[tiers.ram]\nchunk = 1", "unknown key tiers.ram.chunk"),
    "no table": ("tiers = 3", "tiers is 3, not a table"),
    "no quantity": ("[tiers.ram]\nsize = 'much'", "tiers.ram.size: 'much' is not a number of bytes"),
    "negative": ("[tiers.ram]\nsize = -1", "tiers.ram.size: '?-1'? is not"),
    "bool for a count": ("[cpu]\ncores = true", "cpu.cores is True, not a number"),
    "float for a count": ("[cpu]\ncores = 1.5", "cpu.cores is 1.5, not a number"),
    "list of numbers": ("[cpu]\nisa = [1]", "cpu.isa is .1., not a list of strings"),
    "string for a flag": ("[tiers.disk]\ndirect = 'no'", "direct is 'no', not true or false"),
    "gpu without arch": ("[gpu]", "key gpu.arch is missing"),
    "empty name": ("name = ''", "name is empty"),
    "not TOML": ("a = = 1", "not a TOML file"),
    "not text": ("", None),
    "unknown parent": ("inherits = 'nobody'", "nobody.toml: No such file"),
    "parent of a wrong type": ("inherits = 3", "inherits is 3"),
    "itself": ("inherits = 'bad'", "circle: bad -> bad"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(tmp_path: Path, case: str) -> None:
    text, reason = BAD[case]
    path = write(tmp_path, "bad", text)
    if reason is None:
        path.write_bytes(b"\xff\xfe\x00")
        reason = "not a TOML file"
    with pytest.raises(UsageError, match=reason) as caught:
        load_profile(path)
    assert "bad.toml" in str(caught.value) or "nobody.toml" in str(caught.value)


def test_a_circle_and_an_error_in_a_parent_are_named(tmp_path: Path) -> None:
    a = write(tmp_path, "a", 'inherits = "b"')
    write(tmp_path, "b", 'inherits = "c"')
    write(tmp_path, "c", 'inherits = "a"')
    with pytest.raises(UsageError, match="a -> b -> c -> a"):
        load_profile(a)
    write(tmp_path, "c", "colour = 1")
    with pytest.raises(UsageError, match=r"c\.toml: unknown key colour"):
        load_profile(a)


counts = st.integers(0, 1 << 50)
tiers = st.builds(Tier, counts, counts, counts)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
profiles = st.builds(
    Profile,
    name=texts,
    description=texts,
    cpu=st.builds(Cpu, texts, st.lists(texts, max_size=3).map(tuple), counts, counts, counts, counts, counts, counts),
    tiers=st.builds(
        Tiers,
        tiers,
        st.builds(Disk, counts, counts, counts, counts, counts, st.booleans(), counts),
        st.none() | tiers,
        st.none() | tiers,
    ),
    gpu=st.none() | st.builds(Gpu, texts),
)


@given(profile=profiles)
def test_written_and_read_again(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> None:
    path = tmp_path_factory.getbasetemp() / "again.toml"
    path.write_text(profile.to_toml(), encoding="utf-8", newline="")
    assert load_profile(path) == profile


def test_every_shipped_profile_is_complete() -> None:
    assert {"host", "cpu", "rtx3060", "rtx4090", "h200"} <= set(list_targets())
    for name in list_targets():
        profile = load_target(name)
        assert profile.name == name and profile.description
        if profile.gpu is not None:
            assert profile.tiers.vram is not None and profile.tiers.bus is not None
            # the order of the hardware: a card's own memory is the fastest, a disk the slowest
            rates = [profile.tiers.vram, profile.tiers.ram, profile.tiers.bus, profile.tiers.disk]
            assert [tier.bandwidth for tier in rates] == sorted((tier.bandwidth for tier in rates), reverse=True)
    assert load_target("cpu").cpu.isa == ("x86-64-v4", "x86-64-v3+avxvnni", "x86-64-v3", "x86-64-v2")
    archs = {name: gpu.arch for name in list_targets() if (gpu := load_target(name).gpu) is not None}
    nvidia = {"rtx3060": "sm_86", "rtx4090": "sm_89", "a100": "sm_80", "h100": "sm_90", "h200": "sm_90"}
    assert archs == nvidia | {"rx7900xtx": "gfx1100", "mi300x": "gfx942"}
    vram = load_target("rtx3060").tiers.vram
    assert vram is not None and vram.size == 12 * GIB


@pytest.mark.parametrize("name", MACHINES)
def test_machines_can_be_built_for_and_predicted(name: str) -> None:
    profile = load_target(name)
    cpu, ram, disk = profile.cpu, profile.tiers.ram, profile.tiers.disk
    assert len(cpu.isa) == 1 and {ISAS[level].arch for level in cpu.isa} == {cpu.arch}
    assert 1 <= cpu.cores <= cpu.threads
    assert 0 < disk.bandwidth < ram.bandwidth_1 <= ram.bandwidth <= cpu.threads * ram.bandwidth_1
    assert ram.size and disk.chunk and disk.readers
    # where the figures are from is said in the file, and what was not measured
    comment = (PROFILES / f"{name}.toml").read_text().split("name =")[0]
    assert comment.startswith("# ") and "measured" in comment


def test_a_file_is_a_target_and_inherits_from_shipped_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "box", 'inherits = "rtx4090"\n[tiers.ram]\nsize = "16GiB"')
    profile = load_target(str(path))
    assert profile.name == "box" and profile.tiers.ram.size == 16 * GIB and profile.gpu == Gpu("sm_89")
    own = write(tmp_path, "rtx4090", 'inherits = "rtx4090"\n[cpu]\ncores = 3')
    assert load_target(own).cpu.cores == 3 and load_target(own).gpu == Gpu("sm_89")


@pytest.mark.parametrize("name", ["rtx9999", "", "HOST"])
def test_an_unknown_target_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"known: {', '.join(list_targets())}, or a path"):
        load_target(name)


def test_host_is_the_measured_profile_while_it_fits_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    found = system.detect()
    assert load_target("host") == found and found.cpu.threads >= found.cpu.cores >= 1
    measured = replace(found, tiers=replace(found.tiers, ram=Tier(found.tiers.ram.size, 7, 3)))
    host_profile_path().write_text(measured.to_toml(), encoding="utf-8")
    assert load_target("host") == measured
    other = replace(measured, cpu=replace(measured.cpu, l2=measured.cpu.l2 + 1))
    host_profile_path().write_text(other.to_toml(), encoding="utf-8")
    assert load_target("host") == found


def test_profiles_are_plain_toml() -> None:
    values = tomllib.loads(load_target("h200").to_toml())
    assert values["tiers"]["vram"]["bandwidth"] == 4_800_000_000_000 and "inherits" not in values
