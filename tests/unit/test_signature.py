"""Signed plans: by keys that openssl makes, checked against its own verification, refused wherever they differ."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from package_sample import PLAN, WEIGHTS, sample_files
from plan_sample import sample

from aircompile.cli import main as aircompile
from aircompile.pack_command import pack
from airrun.cli import main as airrun
from airrun.engine import Engine
from airrun.errors import PlanError, UsageError
from airrun.package.manifest import MANIFEST
from airrun.package.verify import verify_package
from airrun.plan.container import read_plan, sign_plan, write_plan
from airrun.plan.signature import require_signature

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    """PEM files of a private key and its public one."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed plan, and the public key."""
    private, public = make_key(tmp_path, "ours")
    path = tmp_path / "p.bin"
    write_plan(path, *sample(1))
    sign_plan(path, private)
    return path, public


def test_signing_leaves_the_plan_as_it_is(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    path, public = signed
    write_plan(tmp_path / "unsigned.bin", *sample(1))
    plain = (tmp_path / "unsigned.bin").read_bytes()
    with_signature = path.read_bytes()
    # the place of the signature in the header, and the signature: nothing else differs
    place = struct.pack("<2Q", len(plain), 96)
    assert with_signature[:-96] == plain[:48] + place + plain[64:]
    ours, other = read_plan(path), read_plan(tmp_path / "unsigned.bin")
    assert (ours.plan, ours.digest) == (other.plan, other.digest) and other.signature == b""
    require_signature(ours, [public])
    # again gives the same bytes, by another key others
    sign_plan(path, tmp_path / "ours.pem")
    assert path.read_bytes() == with_signature
    sign_plan(path, make_key(tmp_path, "theirs")[0])
    assert path.read_bytes()[:-96] == with_signature[:-96] and path.read_bytes() != with_signature


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_openssl_makes_keys_and_agrees(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub.pem")
    write_plan(tmp_path / "p.bin", *sample(1))
    sign_plan(tmp_path / "p.bin", tmp_path / "key.pem")
    loaded = read_plan(tmp_path / "p.bin")
    require_signature(loaded, [tmp_path / "key.pub.pem"])
    (tmp_path / "message").write_bytes(b"airrun plan\0" + bytes.fromhex(loaded.digest))
    (tmp_path / "signature").write_bytes(loaded.signature[32:])
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", "key.pub.pem", "-rawin", "-in", "message"]
    assert "Verified" in openssl(*verify, "-sigfile", "signature")


def test_what_is_refused(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    path, public = signed
    other = make_key(tmp_path, "other")[1]
    require_signature(read_plan(path), [other, public])
    with pytest.raises(PlanError, match="signed by another key than those required: [0-9a-f]{16}$"):
        require_signature(read_plan(path), [other])
    data = path.read_bytes()
    # every bit of the signature counts, those of the key too
    for at in (-96, -65, -64, -1):
        path.write_bytes(data[: len(data) + at] + bytes([data[at] ^ 1]) + data[len(data) + at + 1 :])
        with pytest.raises(PlanError, match="by another key" if at < -64 else "is not of this plan"):
            require_signature(read_plan(path), [public])
    # one plan's signature on another
    write_plan(path, *sample(2))
    sign_plan(path, tmp_path / "other.pem")
    path.write_bytes(path.read_bytes()[:-96] + data[-96:])
    with pytest.raises(PlanError, match="is not of this plan"):
        require_signature(read_plan(path), [public])
    write_plan(path, *sample(1))
    with pytest.raises(PlanError, match="is not signed, and a signature is required"):
        require_signature(read_plan(path), [public])
    for cut, message in ((data[:-1], "truncated"), (data + b"x", "followed by other data"), (data[:-96], "truncated")):
        path.write_bytes(cut)
        with pytest.raises(PlanError, match=message):
            read_plan(path)


def test_keys_that_are_none(tmp_path: Path, signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, public = signed
    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "curve.pem").write_bytes(
        curve.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "text.pem").write_text("no key")
    for name in ("curve.pem", "text.pem", "ours.pem"):
        with pytest.raises(UsageError, match=f"{name}: is not an ed25519 public key in PEM$"):
            require_signature(read_plan(path), [tmp_path / name])
    with pytest.raises(UsageError, match="absent.pem: No such file"):
        require_signature(read_plan(path), [tmp_path / "absent.pem"])
    with pytest.raises(UsageError, match="is not an ed25519 private key without a password in PEM"):
        sign_plan(path, public)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(UsageError, match=r"need the package cryptography: pip install"):
        require_signature(read_plan(path), [public])


def test_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive, and the folder of it: whoever unpacks them for a fleet asks for its signature."""
    (private, public), (_, other) = make_key(tmp_path, "ours"), make_key(tmp_path, "other")
    for name, data in sample_files().items():
        (tmp_path / name).write_bytes(data)
    unsigned, signed = tmp_path / "unsigned.tar.zst", tmp_path / "signed.tar.zst"
    pack(tmp_path / WEIGHTS, tmp_path / PLAN, unsigned)
    sign_plan(tmp_path / PLAN, private)
    pack(tmp_path / WEIGHTS, tmp_path / PLAN, signed)
    out = tmp_path / "out"
    require = ["--require-signature", str(other), "--require-signature", str(public)]
    assert airrun(["verify", str(signed), "--extract", str(out), *require]) == 0
    assert "its plan signed by a required key" in capsys.readouterr().out
    assert airrun(["verify", str(out), *require]) == 0
    verify_package(unsigned)  # nobody asks

    for package, key, message in (
        (unsigned, public, "is not signed, and a signature is required"),
        (signed, other, "is signed by another key than those required"),
        (out, other, "is signed by another key than those required"),
        (signed, private, "is not an ed25519 public key"),
        (signed, tmp_path / "absent.pem", "No such file"),
    ):
        new = ["--extract", str(tmp_path / "new")] if package != out else []
        assert airrun(["verify", str(package), *new, "--require-signature", str(key)]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    # what was refused is not unpacked; weights are no program
    assert not (tmp_path / "new" / PLAN).exists() and not (tmp_path / "new" / MANIFEST).exists()
    monkeypatch.setenv("AIR_ARG_REQUIRE_SIGNATURE", str(other))
    assert airrun(["verify", str(signed)]) == 1


def test_commands(
    home: Path,
    model: Path,
    plan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = make_key(tmp_path, "ours")
    out, other = tmp_path / "p.bin", make_key(tmp_path, "other")[1]
    build = ["build", str(model), "-o", str(out), "--quiet", "--sign"]
    assert aircompile([*build, str(public)]) == 1 and not out.exists()
    assert aircompile([*build, str(private)]) == 0
    # nothing but the signature is new: it is still the plan that was built here
    assert out.read_bytes()[96 : len(plan.read_bytes())] == plan.read_bytes()[96:]
    run = ["-p", "a", "-n", "1", "--model", str(model)]
    monkeypatch.setattr("airrun.commands.opening.was_built_here", lambda _digest: False)
    assert airrun([str(out), *run]) == 0
    assert "trust whoever sent it" in capsys.readouterr().err
    assert airrun([str(out), *run, "--require-signature", str(other), "--require-signature", str(public)]) == 0
    assert capsys.readouterr().err == ""  # they are trusted
    for path, key, message in ((out, other, "is signed by another key"), (plan, public, "is not signed")):
        assert airrun([str(path), *run, "--require-signature", str(key)]) == 1
        assert message in capsys.readouterr().err
    assert airrun(["doctor", str(out), "--model", str(model), "--require-signature", str(public)]) == 0
    assert "ok  signature" in capsys.readouterr().out
    assert airrun(["doctor", str(plan), "--require-signature", str(public)]) == 1
    with pytest.raises(PlanError), Engine.from_plan(out, model, require_signature=[other]):
        pass
