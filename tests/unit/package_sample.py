"""A small package: a plan that needs no compiler and weights of random bytes; archives of anything."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from backports import zstd
from plan_sample import HEADER_NBYTES, sample

from airrun.package.manifest import MANIFEST, Manifest, PackedFile, PackedWeights
from airrun.plan.container import encode_plan

PLAN, WEIGHTS = "sample.plan.bin", "sample.gguf"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=4)
def sample_files(more: int = 0) -> dict[str, bytes]:
    """A plan, and its weights with `more` bytes than they need."""
    plan, segments = sample(1)
    nbytes = plan.files[0].nbytes + more
    weights = np.random.default_rng(5).bytes(nbytes)
    file = replace(plan.files[0], name=WEIGHTS, nbytes=nbytes, header_sha256=digest(weights[:HEADER_NBYTES]))
    return {PLAN: encode_plan(replace(plan, files=(file,)), segments), WEIGHTS: weights}


def manifest_of(files: dict[str, bytes], *, included: bool = True, hint: str = "") -> Manifest:
    """The manifest of `sample_files`."""
    plan, weights = files[PLAN], files[WEIGHTS]
    header = digest(weights[:HEADER_NBYTES])
    packed = PackedWeights(WEIGHTS, len(weights), digest(weights), HEADER_NBYTES, header, included, hint)
    return Manifest("tests", PackedFile(PLAN, len(plan), digest(plan)), (packed,))


def entry(label: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    """A file of a tar archive, with any header."""
    info = tarfile.TarInfo(label)
    info.size, info.type = len(data), kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def tar(entries: Iterable[bytes]) -> bytes:
    """An archive before it is compressed."""
    return b"".join(entries) + bytes(1024)


def compress(data: bytes) -> bytes:
    return zstd.compress(data, 1)


def good_entries() -> list[bytes]:
    """Those of a package that is as it should be."""
    files = sample_files()
    named = {MANIFEST: manifest_of(files).to_bytes(), WEIGHTS: files[WEIGHTS], PLAN: files[PLAN]}
    return [entry(name, data) for name, data in named.items()]


def write_package(path: Path, entries: Iterable[bytes]) -> Path:
    path.write_bytes(compress(tar(entries)))
    return path


def write_folder(folder: Path, files: dict[str, bytes], manifest: Manifest) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in {**files, MANIFEST: manifest.to_bytes()}.items():
        (folder / name).write_bytes(data)
    return folder


def listed(path: Path) -> list[tarfile.TarInfo]:
    """What Python's own reader finds in an archive."""
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(path.read_bytes()))) as archive:
        return archive.getmembers()
