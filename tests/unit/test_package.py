"""Packages: what is packed comes out, the same bytes every time, and nothing else is let through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backports import zstd
from package_sample import (
    PLAN,
    WEIGHTS,
    compress,
    digest,
    entry,
    good_entries,
    listed,
    manifest_of,
    sample_files,
    tar,
    write_folder,
    write_package,
)

import fuzz_package
from aircompile.cli import main as aircompile
from aircompile.pack_command import pack
from airrun.cli import main as airrun
from airrun.errors import PackageError
from airrun.package import verify
from airrun.package.manifest import MANIFEST, parse_manifest
from airrun.package.verify import verify_package

FILES = sample_files()
DATA = manifest_of(FILES).to_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a package, where they were built."""
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_what_is_packed_comes_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aircompile(["pack", str(folder / WEIGHTS), str(folder / PLAN), "-o", str(folder / "box.tar.zst")]) == 0
    box = folder / "box.tar.zst"
    assert [member.name for member in listed(box)] == [MANIFEST, *sorted(FILES)]
    assert airrun(["verify", str(box), "--extract", str(folder / "out")]) == 0
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == FILES | {
        MANIFEST: replace(manifest_of(FILES), generator="aircompile 0.1.0").to_bytes()
    }
    capsys.readouterr()
    assert airrun(["verify", str(folder / "out")]) == 0
    out = capsys.readouterr().out
    assert all(f"ok  {name}" in out for name in FILES) and out.endswith(": as it was packed by aircompile 0.1.0\n")
    assert airrun(["verify", str(box), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["sha256"] == digest(FILES[PLAN])


@pytest.mark.skipif(shutil.which("tar") is None or shutil.which("zstd") is None, reason="no tar or zstd")
def test_common_tools_read_it_and_write_it(folder: Path) -> None:
    pack(folder / WEIGHTS, folder / PLAN, folder / "box.tar.zst")
    (folder / "out").mkdir()
    subprocess.run(["tar", "--zstd", "-xf", "box.tar.zst", "-C", "out"], cwd=folder, check=True)
    assert verify_package(folder / "out").plan.name == PLAN
    names = [MANIFEST, *sorted(FILES)]
    subprocess.run(["tar", "--zstd", "-cf", "../again.tar.zst", *names], cwd=folder / "out", check=True)
    assert verify_package(folder / "again.tar.zst") == verify_package(folder / "out")


def test_the_same_files_give_the_same_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pack(folder / WEIGHTS, folder / PLAN, folder / "one.tar.zst")
    other = tmp_path_factory.mktemp("other place")
    for name in FILES:
        path = Path(shutil.copy(folder / name, other))
        path.chmod(0o600)
        os.utime(path, (1, 1))
    old = os.umask(0o077)
    try:
        pack(other / WEIGHTS, other / PLAN, other / "two.tar.zst")
    finally:
        os.umask(old)
    assert (folder / "one.tar.zst").read_bytes() == (other / "two.tar.zst").read_bytes()
    for member in listed(folder / "one.tar.zst"):
        assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_without_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box, url = folder / "box.tar.zst", "https://example.org/sample.gguf"
    arguments = ["pack", str(folder / WEIGHTS), str(folder / PLAN), "-o", str(box), "--no-weights", "--hint", url]
    assert aircompile(arguments) == 0
    assert [member.name for member in listed(box)] == [MANIFEST, PLAN]
    assert airrun(["verify", str(box), "--extract", str(folder / "out")]) == 0
    assert (
        f"{WEIGHTS} ({len(FILES[WEIGHTS])} bytes) is not in the package: get it from {url}" in capsys.readouterr().out
    )
    # once they were fetched they are checked as if they had been packed
    shutil.copy(folder / WEIGHTS, folder / "out")
    seen: list[str] = []
    verify_package(folder / "out", checked=lambda file: seen.append(file.name))
    assert seen == sorted(FILES)
    (folder / "out" / WEIGHTS).write_bytes(FILES[WEIGHTS][:-1] + b"x")
    with pytest.raises(PackageError, match=f"out: {WEIGHTS} is damaged"):
        verify_package(folder / "out")


def test_split_models_are_packed_whole(folder: Path) -> None:
    """Two files of one plan, packed from either of them; long names go through as well."""
    from plan_sample import HEADER_NBYTES, sample

    from airrun.plan.container import write_plan

    plan, segments = sample(1)
    names = [f"{'long' * 40}-0000{i}-of-00002.gguf" for i in (1, 2)]
    contents = [np.random.default_rng(i).bytes(plan.files[0].nbytes) for i in range(2)]
    files = tuple(
        replace(plan.files[0], name=name, header_sha256=digest(data[:HEADER_NBYTES]))
        for name, data in zip(names, contents, strict=True)
    )
    write_plan(folder / "split.plan.bin", replace(plan, files=files), segments)
    (folder / "models").mkdir()
    for name, data in zip(names, contents, strict=True):
        (folder / "models" / name).write_bytes(data)
    for name in names:
        manifest = pack(folder / "models" / name, folder / "split.plan.bin", folder / "box.tar.zst")
        assert [each.name for each in manifest.weights] == names
        assert verify_package(folder / "box.tar.zst", folder / "out") == manifest


def test_what_cannot_be_packed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "other.gguf").write_bytes(b"other")
    shutil.copy(folder / PLAN, folder / MANIFEST)
    for arguments, message in (
        ([WEIGHTS, PLAN, "-o", "box.tgz"], "packages are .tar.zst archives"),
        (["other.gguf", PLAN, "-o", "box.tar.zst"], "has 5 bytes, the plan was built from"),
        (["absent.gguf", PLAN, "-o", "box.tar.zst"], "cannot be read"),
        ([WEIGHTS, WEIGHTS, "-o", "box.tar.zst"], "not a plan"),
        ([WEIGHTS, MANIFEST, "-o", "box.tar.zst"], "need names of their own"),
    ):
        assert aircompile(["pack", *(str(folder / a) if a[0] != "-" else a for a in arguments)]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (folder / "box.tar.zst").exists()


def test_a_file_that_changes_while_it_is_packed_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aircompile import pack_command

    real = pack_command.write_archive

    def change(*arguments: object) -> None:
        (folder / WEIGHTS).write_bytes(bytes(len(FILES[WEIGHTS])))
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pack_command, "write_archive", change)
    with pytest.raises(PackageError, match=f"{WEIGHTS} is damaged"):
        pack(folder / WEIGHTS, folder / PLAN, folder / "box.tar.zst")


def huge(nbytes: int) -> bytes:
    """A manifest that says the weights have so many bytes."""
    found = manifest_of(FILES)
    return replace(found, weights=(replace(found.weights[0], nbytes=nbytes),)).to_bytes()


def wide(data: bytes) -> bytes:
    """Compressed so that decompressing takes 128 MiB."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    return bytes(compressor.compress(data) + compressor.flush())


M, W, P = good_entries()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (compress(tar([P, W])), "does not begin with manifest.json"),
        (compress(tar([])), "does not begin with manifest.json"),
        (compress(tar([M, W])), "does not hold 'sample.plan.bin'"),
        (compress(tar([M, P, W])), "holds 'sample.plan.bin' of .* where its manifest has 'sample.gguf'"),
        (compress(tar([M, W, P, entry("more")])), "holds 'more', which its manifest does not name"),
        (compress(tar([M, W, P, W])), "holds 'sample.gguf', which its manifest does not name"),
        (compress(tar([M, entry("../sample.gguf", FILES[WEIGHTS]), P])), "holds '../sample.gguf' of"),
        (compress(tar([M, entry("/etc/passwd", FILES[WEIGHTS]), P])), "holds '/etc/passwd' of"),
        (compress(tar([M, entry(WEIGHTS, kind=tarfile.SYMTYPE, linkname="/etc/passwd"), P])), "holds a symbolic link"),
        (compress(tar([M, entry(WEIGHTS, kind=tarfile.LNKTYPE, linkname="x"), P])), "holds a hard link"),
        (compress(tar([M, entry("x", kind=tarfile.DIRTYPE), W, P])), "holds a folder: 'x'"),
        (compress(tar([M, entry("x", kind=tarfile.FIFOTYPE), W, P])), "holds a pipe"),
        (compress(tar([M, entry("x", kind=tarfile.CHRTYPE), W, P])), "holds a device"),
        (compress(tar([M, entry("x", b"9 path=x\n", tarfile.XHDTYPE), W, P])), "holds something unknown"),
        (compress(tar([M, entry("x", kind=tarfile.GNUTYPE_SPARSE), W, P])), "holds something unknown"),
        (compress(tar([entry("x", kind=tarfile.GNUTYPE_LONGNAME, size=1 << 40), M])), "has a name of 1099511627776"),
        (compress(tar([entry("x", b"\xff\0", tarfile.GNUTYPE_LONGNAME), M])), "a name that is not UTF-8"),
        (compress(tar([M, entry(WEIGHTS, size=-1), P])), "sample.gguf' has -1 bytes|of -1 bytes"),
        (compress(tar([M, entry(WEIGHTS, FILES[WEIGHTS][:-1] + b"x"), P])), "sample.gguf is damaged"),
        (compress(tar([M, entry(WEIGHTS, FILES[WEIGHTS][:-1]), P])), "where its manifest has 'sample.gguf'"),
        (compress(tar([M, W, entry(PLAN, FILES[PLAN][:-1] + b"x")])), "sample.plan.bin is damaged"),
        (compress(M + W[:-1] + b"x" + P + bytes(1024)), "something between two files|is damaged"),
        (compress(tar([M, W, P]) + b"x"), "something follows"),
        (compress(tar([M, W, P]) + bytes(1 << 20)), "something follows"),
        (compress(M + W + P), "is cut off"),
        (compress(tar([M, W, P])) + b"x", "is followed by other data"),
        (compress(tar([M, W, P])) + compress(b"x"), "is followed by other data"),
        (compress(tar([M, W, P]))[:-1], "is cut off"),
        (compress(tar([M, W, P]))[:5000], "is cut off"),
        (compress(M + b"x" * 512), "where a file should begin"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 100, "no zstandard file"),
        (b"PK\3\4", "is no package"),
        (b"", "is no package"),
        (compress(tar([entry(MANIFEST, b" " * (1 << 21)), W, P])), "manifest.json has 2097152 bytes"),
        (compress(tar([entry(MANIFEST, huge(1 << 40)), W, P])), "says to hold"),
        (wide(tar([M, W, P])), "no zstandard file"),
    ],
)  # fmt: skip
def test_hostile_archives(tmp_path: Path, data: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    box = tmp_path / "box.tar.zst"
    box.write_bytes(data)
    out = tmp_path / "a" / "out"
    with pytest.raises(PackageError, match=message):
        verify_package(box, out)
    assert airrun(["verify", str(box)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {box}: ") and error.count("\n") == 1 and len(error) < 500
    # nothing outside the folder, nothing that is not the manifest's, no manifest, no leftovers
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"box.tar.zst", f"a/out/{WEIGHTS}", f"a/out/{PLAN}"}
    for path in written - {"box.tar.zst"}:
        assert (tmp_path / path).read_bytes() == FILES[Path(path).name]


def changed(change: Callable[[dict[str, object]], object]) -> bytes:
    document = json.loads(DATA)
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is no object"),
        (b"{}", "format is None"),
        (changed(lambda d: d.update(format=2)), "package format 2 is newer than this airrun understands"),
        (changed(lambda d: d.update(format=True)), "format is True"),
        (changed(lambda d: d.update(format=0)), "format is 0"),
        (changed(lambda d: d.update(more=1)), "key 'more' is unknown"),
        (changed(lambda d: d.pop("plan")), "key 'plan' is missing"),
        (changed(lambda d: d.update(plan=[])), "plan is an array of 0, expected an object"),
        (changed(lambda d: d.update(weights=[])), "weights is empty"),
        (changed(lambda d: d.update(weights={})), "weights is an object of 0, expected an array"),
        (changed(lambda d: d.update(generator="a\nb")), "generator is .*, expected printable text"),
        (changed(lambda d: d["plan"].update(name=WEIGHTS)), "two files have one name"),
        (changed(lambda d: d["plan"].update(name=MANIFEST)), "two files have one name"),
        *[(changed(lambda d, name=name: d["plan"].update(name=name)), r"plan\.name is ")
          for name in ("", ".", "..", "../x", "/x", "a/b", "a\\b", "-x", "a\0b", "\ud800", "\x1b[2J", "ä" * 200, 1)],
        (changed(lambda d: d["plan"].update(nbytes=0)), r"plan\.nbytes is 0"),
        (changed(lambda d: d["plan"].update(nbytes=-1)), r"plan\.nbytes is -1"),
        (changed(lambda d: d["plan"].update(nbytes=1e3)), r"plan\.nbytes is 1000\.0, expected a number"),
        (changed(lambda d: d["plan"].update(nbytes=10**30)), r"plan\.nbytes is "),
        (changed(lambda d: d["plan"].update(sha256="0" * 63)), r"plan\.sha256 is .* not a SHA-256"),
        (changed(lambda d: d["plan"].update(sha256="0" * 64 + "\n")), r"plan\.sha256 is .* not a SHA-256"),
        (changed(lambda d: d["weights"][0].update(included=1)), r"weights\[0\]\.included is 1"),
        (changed(lambda d: d["weights"][0].update(hint="\x1b")), r"weights\[0\]\.hint is "),
        (changed(lambda d: d["weights"][0].pop("hint")), r"key 'weights\[0\]\.hint' is missing"),
    ],
)  # fmt: skip
def test_hostile_manifests(data: bytes, message: str) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        parse_manifest(data)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    assert parse_manifest(DATA) == manifest_of(FILES)


def test_manifests_that_do_not_belong_to_the_plan(tmp_path: Path) -> None:
    found = manifest_of(FILES)
    weights = found.weights[0]
    for other in (
        replace(weights, header_nbytes=weights.header_nbytes + 1),
        replace(weights, header_sha256="0" * 64),
    ):
        folder = write_folder(tmp_path / "box", FILES, replace(found, weights=(other,)))
        with pytest.raises(PackageError, match="another fingerprint"):
            verify_package(folder)
    other_weights = FILES[WEIGHTS] + b"x"
    files = {**FILES, WEIGHTS: other_weights}
    with pytest.raises(PackageError, match="is for other weights than the manifest names"):
        verify_package(write_folder(tmp_path / "box", files, manifest_of(files)))


@pytest.mark.parametrize("name", [WEIGHTS, PLAN, MANIFEST])
def test_folders_with_something_else_in_a_files_place(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "box", FILES, manifest_of(FILES))
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match=f"{name}: cannot be read"):
        verify_package(folder)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match=f"{name} is a symbolic link"):
        verify_package(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PackageError, match=f"{name} is no regular file"):
        verify_package(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(PackageError, match=name):
        verify_package(folder)
    path.rmdir()
    (tmp_path / "elsewhere").rename(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(PackageError, match=name):
        verify_package(folder)


def test_a_folder_is_not_unpacked_and_a_full_disk_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "box", FILES, manifest_of(FILES))
    assert airrun(["verify", str(folder), "--extract", str(tmp_path / "out")]) == 1
    assert "unpacked already" in capsys.readouterr().err
    box = write_package(tmp_path / "box.tar.zst", good_entries())
    monkeypatch.setattr(verify.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))  # type: ignore[attr-defined]
    with pytest.raises(PackageError, match="has room for 1000"):
        verify_package(box, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_memory_is_bounded(tmp_path: Path) -> None:
    """64 MiB pass through a few."""
    files = sample_files(64 << 20)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    pack(folder / WEIGHTS, folder / PLAN, tmp_path / "box.tar.zst")
    sample_files.cache_clear()
    tracemalloc.start()
    try:
        verify_package(tmp_path / "box.tar.zst", tmp_path / "out")
        pack(folder / WEIGHTS, folder / PLAN, tmp_path / "again.tar.zst")
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out" / WEIGHTS).stat().st_size > 64 << 20


def test_without_zstandard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = write_package(tmp_path / "box.tar.zst", good_entries())
    monkeypatch.setitem(__import__("sys").modules, "backports", None)
    with pytest.raises(PackageError, match="needs zstandard, which is not installed"):
        verify_package(box)
    # an unpacked package needs none
    verify_package(write_folder(tmp_path / "box", FILES, manifest_of(FILES)))


@pytest.mark.fuzz
def test_fuzz() -> None:
    counts = fuzz_package.fuzz(600, seed=int(os.environ.get("AIR_FUZZ_SEED", "1")))
    assert not [outcome for outcome in counts if outcome.startswith("FAILED")]
    assert counts["accepted"] > 5 and len(counts) > 25


def test_the_fuzzer_notices_what_slips_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_check", lambda wanted, chunks, manifest, out: [out.write(c) for c in chunks])
    counts = fuzz_package.fuzz(200, seed=1)
    assert sum(count for outcome, count in counts.items() if outcome.startswith("FAILED")) > 3
