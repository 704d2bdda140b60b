"""The plan file: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_sample import sample

import fuzz_plan
from airrun.built_here import remember_plan
from airrun.errors import AirError, PlanError
from airrun.plan import container
from airrun.plan.codec import PLAN_CODEC
from airrun.plan.container import MAX_INDEX_NBYTES, content_digest, decode_plan, encode_plan, read_plan, write_plan
from airrun.plan.schema import FORMAT_VERSION, Segment

PLAN, SEGMENTS = sample()
DATA = encode_plan(PLAN, SEGMENTS)
HERE = Path("p.bin")


def header(data: bytes) -> dict[str, Any]:
    """The header, read by its description rather than by the reader's code."""
    names = ("magic", "version", "size", "total", "index", "index_nbytes", "inflated", "signature", "signature_nbytes")
    values = struct.unpack_from("<8sIIQQQQQQ32s", data)
    return dict(zip((*names, "digest"), values, strict=True))


def patched(data: bytes, at: int, code: str, value: Any, *, seal: bool = True) -> bytes:
    """`data` with one header field changed and, if asked, the digest computed again."""
    result = bytearray(data)
    struct.pack_into("<" + code, result, at, value)
    if seal:
        result[64:96] = content_digest(result)
    return bytes(result)


def with_index(raw: bytes, compressed: bytes | None = None, inflated: int | None = None) -> bytes:
    """The sample with another index."""
    index = zlib.compress(raw) if compressed is None else compressed
    at = header(DATA)["index"]
    data = bytearray(DATA[:at] + index)
    struct.pack_into("<QQQQ", data, 16, len(data), at, len(index), len(raw) if inflated is None else inflated)
    data[64:96] = content_digest(data)
    return bytes(data)


def refused(data: bytes, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        decode_plan(data, HERE)
    assert str(caught.value).startswith("p.bin: ")
    assert str(caught.value).isprintable()


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "m.plan.bin"
    write_plan(path, PLAN, SEGMENTS)
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["m.plan.bin"]
    loaded = read_plan(str(path))
    assert loaded.path == path
    assert [bytes(loaded.segment(i)) for i in range(len(SEGMENTS))] == SEGMENTS
    assert loaded.segment(0).readonly
    assert replace(loaded.plan, segments=PLAN.segments) == PLAN
    assert [(s.name, s.nbytes) for s in loaded.plan.segments] == [
        (s.name, len(data)) for s, data in zip(PLAN.segments, SEGMENTS, strict=True)
    ]


def test_a_plan_that_is_cut_off_after_it_was_opened_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.plan.bin"
    write_plan(path, PLAN, SEGMENTS)
    loaded = read_plan(path)
    os.truncate(path, 0)
    assert [bytes(loaded.segment(i)) for i in range(len(SEGMENTS))] == SEGMENTS


def test_what_was_verified_when_it_was_built_is_not_verified_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "home"))
    verifications: list[object] = []
    monkeypatch.setattr(container, "verify", verifications.append)
    path = tmp_path / "m.plan.bin"
    path.write_bytes(DATA)
    digest = read_plan(path).digest
    assert len(verifications) == 1
    remember_plan(digest)
    assert read_plan(path).plan == verifications.pop()
    assert not verifications
    damaged = bytearray(DATA)
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(PlanError, match="damaged"):
        read_plan(path)


def test_the_format_is_what_its_description_says() -> None:
    fields = header(DATA)
    assert (fields["magic"], fields["version"], fields["size"]) == (b"AIRPLAN\0", FORMAT_VERSION, 96)
    assert fields["total"] == len(DATA) == fields["index"] + fields["index_nbytes"]
    assert (fields["signature"], fields["signature_nbytes"]) == (0, 0)
    assert fields["digest"] == hashlib.sha256(DATA[:64] + DATA[96:]).digest()
    assert decode_plan(DATA, HERE).digest == fields["digest"].hex()
    raw = zlib.decompress(DATA[fields["index"] :])
    assert len(raw) == fields["inflated"]
    document = json.loads(raw)
    names = [name for name, _ in document["classes"]["Plan"]]
    places = dict(zip(names, document["plan"], strict=True))["segments"]
    end = 96
    for (_, offset, nbytes), data in zip(places, SEGMENTS, strict=True):
        assert offset == (end + 4095) // 4096 * 4096
        assert not any(DATA[end:offset])
        assert DATA[offset : offset + nbytes] == data
        end = offset + nbytes
    assert fields["index"] == (end + 4095) // 4096 * 4096


def test_equal_plans_are_equal_files() -> None:
    assert encode_plan(*sample()) == DATA
    loaded = decode_plan(DATA, HERE)
    assert encode_plan(loaded.plan, SEGMENTS) == DATA
    assert encode_plan(replace(PLAN, generator="other"), SEGMENTS) != DATA


def test_segments_may_be_empty_or_exactly_pages() -> None:
    for tokenizer in (b"", bytes(4096), bytes(8192), bytes(4097)):
        loaded = decode_plan(encode_plan(PLAN, [tokenizer, *SEGMENTS[1:]]), HERE)
        assert bytes(loaded.segment(0)) == tokenizer
        assert bytes(loaded.segment(2)) == SEGMENTS[2]


def test_a_plan_that_would_not_load_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.plan.bin"
    path.write_bytes(b"before")
    with pytest.raises(PlanError, match="arena_nbytes is 1, expected 64"):
        write_plan(path, replace(PLAN, arena_nbytes=1), SEGMENTS)
    with pytest.raises(ValueError, match="zip"):
        write_plan(path, PLAN, SEGMENTS[:2])
    assert path.read_bytes() == b"before"
    with pytest.raises(AirError, match=r"m\.plan\.bin"):
        write_plan(path / "below" / "m.plan.bin", PLAN, SEGMENTS)
    assert os.listdir(tmp_path) == ["m.plan.bin"]


def test_every_truncation_is_refused() -> None:
    fields = header(DATA)
    ends = {0, 1, 7, 8, 11, 12, 16, 64, 95, 96, 97, 4095, 4096, fields["index"] - 1, fields["index"], len(DATA) - 1}
    ends |= {
        segment.offset + d for segment in decode_plan(DATA, HERE).plan.segments for d in (-1, 0, 1, segment.nbytes)
    }
    for end in sorted(ends):
        refused(DATA[:end], "^p.bin: plan is truncated: ")


def test_appended_bytes_are_refused() -> None:
    refused(DATA + b"\0", "plan is followed by other data")
    longer = patched(DATA + b"\0", 16, "Q", len(DATA) + 1)
    refused(longer, "does not end the file")
    # part of the index as the header has it, but not of the deflated stream
    refused(patched(longer, 32, "Q", header(DATA)["index_nbytes"] + 1), "index does not inflate to the")


def test_damage_anywhere_is_refused() -> None:
    for at in [*range(96), *range(96, len(DATA), 97), len(DATA) - 1]:
        data = bytearray(DATA)
        data[at] ^= 0x10
        with pytest.raises(PlanError, match="^p.bin: "):
            decode_plan(bytes(data), HERE)
    data = bytearray(DATA)
    data[5000] ^= 1
    refused(bytes(data), "plan is damaged: its digest does not match")


def test_other_files_are_told_apart() -> None:
    refused(b"GGUF" + bytes(5000), "not a plan")
    refused(b"x", "not a plan")
    refused(b"", "truncated: 0 bytes")
    refused(b"AIRPLAN\0", "truncated: 8 bytes")


def test_newer_and_unknown_versions() -> None:
    for data in (patched(DATA, 8, "I", 7), patched(DATA, 8, "I", 7, seal=False), b"AIRPLAN\0\7\0\0\0"):
        refused(data, r"^p\.bin: plan format 7 is newer than this airrun understands \(2\); update aircompile$")
    refused(patched(DATA, 8, "I", 0), "plan format 0 is not known")


@pytest.mark.parametrize(
    ("at", "code", "value", "message"),
    [
        (12, "I", 104, "header of 104 bytes, format 2 has 96"),
        (16, "Q", 2**63, "plan is truncated"),
        (24, "Q", 0, "does not end the file"),
        (24, "Q", 2**64 - 4096, "does not end the file"),
        (24, "Q", len(DATA) + 4096, "does not end the file"),
        (32, "Q", 0, "does not end the file"),
        (32, "Q", 2**64 - 1, "does not end the file"),
        (40, "Q", 0, "index of 0 bytes, expected 1 to"),
        (40, "Q", MAX_INDEX_NBYTES + 1, "expected 1 to"),
        (40, "Q", 2**64 - 1, "expected 1 to"),
        (40, "Q", 100, "does not inflate to the 100 bytes"),
        (40, "Q", header(DATA)["inflated"] + 1, "does not inflate to"),
        (40, "Q", header(DATA)["inflated"] - 1, "does not inflate to"),
        (48, "Q", len(DATA), "signature at .* of 0 bytes does not follow the index"),
        (56, "Q", 96, "signature at 0 of 96 bytes does not follow the index"),
    ],
)
def test_header_fields_are_checked_behind_the_digest(at: int, code: str, value: int, message: str) -> None:
    refused(patched(DATA, at, code, value), message)


def test_index_streams() -> None:
    raw = zlib.decompress(DATA[header(DATA)["index"] :])
    assert decode_plan(with_index(raw), HERE).plan == decode_plan(DATA, HERE).plan
    refused(with_index(raw, b"not deflated"), "index cannot be inflated")
    refused(with_index(raw, zlib.compress(raw)[:-1]), "does not inflate")
    refused(with_index(raw, zlib.compress(raw) + b"more"), "does not inflate")
    bomb = zlib.compress(bytes(1 << 25), 9)
    start = time.perf_counter()
    refused(with_index(raw, bomb, len(raw)), "does not inflate")
    assert time.perf_counter() - start < 0.5
    refused(with_index(b"[]"), "index is not an object of classes, pools and plan")


def resegmented(*segments: tuple[int, int, int]) -> bytes:
    """The sample with (index, offset, length) of some segments changed, index and digest made anew."""
    plan = decode_plan(DATA, HERE).plan
    places = list(plan.segments)
    for i, offset, nbytes in segments:
        places[i] = Segment(places[i].name, offset, nbytes)
    return with_index(PLAN_CODEC.dumps(replace(plan, segments=tuple(places))))


def test_segments_are_checked() -> None:
    first, second, third = decode_plan(DATA, HERE).plan.segments
    assert (first.offset, second.offset, third.offset) == (4096, 8192, 12288)
    assert decode_plan(resegmented(), HERE)
    refused(resegmented((0, 0, 10)), r"segments\[0\] 'tokenizer' is at 0, expected at 4096")
    refused(resegmented((0, 4100, 10)), "is at 4100, expected at 4096")
    refused(resegmented((1, 4096, second.nbytes)), "is at 4096, expected at 8192")
    refused(resegmented((1, -4096, second.nbytes)), "is at -4096, expected at 8192")
    refused(resegmented((1, 2**62, second.nbytes)), "expected at 8192")
    refused(resegmented((0, 4096, -1)), "of -1 bytes exceeds")
    refused(resegmented((2, 12288, 4097)), "of 4097 bytes exceeds")
    refused(resegmented((2, 12288, 2**63 - 1)), "exceeds the 16384 bytes before the index")
    refused(resegmented((0, 4096, 4097)), "is at 8192, expected at 12288")
    refused(resegmented((0, 4096, first.nbytes - 1)), "between two parts are not zero")
    # lengths within the same page change what a segment means, but still not what lies outside
    assert decode_plan(resegmented((0, 4096, first.nbytes + 1)), HERE)


def test_nothing_hides_between_parts() -> None:
    plan = decode_plan(DATA, HERE).plan
    for at in (100, 4095, plan.segments[0].offset + plan.segments[0].nbytes, header(DATA)["index"] - 1):
        data = bytearray(DATA)
        data[at] = 1
        data[64:96] = content_digest(data)
        refused(bytes(data), "between two parts are not zero")


def test_inconsistent_plans_are_refused_on_reading() -> None:
    plan = decode_plan(DATA, HERE).plan
    refused(with_index(PLAN_CODEC.dumps(replace(plan, arena_nbytes=64))), r"buffers\[0\]\.nbytes is 256, expected 64")
    constants = [SEGMENTS[0], SEGMENTS[1][:64] + struct.pack("<i", 1) + SEGMENTS[1][68:], SEGMENTS[2]]
    with pytest.raises(PlanError, match=r"constants\[1\] 'axis' names an axis outside 0 to 0"):
        encode_plan(PLAN, constants)


def test_unreadable_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for path, message in [
        (tmp_path / "none", "cannot read the plan: No such file"),
        (tmp_path, "cannot read the plan: Is a directory"),
        (empty, "plan is truncated: 0 bytes"),
        (tmp_path / "a\0b", "cannot read the plan: embedded null"),
    ]:
        with pytest.raises(PlanError, match=message):
            read_plan(path)
    path = tmp_path / "sparse"
    path.write_bytes(DATA)
    os.truncate(path, 1 << 40)
    with pytest.raises(PlanError, match="plan of 1099511627776 bytes, at most"):
        read_plan(path)


def test_loading_is_fast(tmp_path: Path) -> None:
    plan, segments = sample(n_layers=30, library_nbytes=2 << 20)
    path = tmp_path / "m.plan.bin"
    write_plan(path, plan, segments)
    times = []
    for _ in range(5):
        start = time.thread_time()
        read_plan(path)
        times.append(time.thread_time() - start)
    assert min(times) < 0.05


@pytest.mark.fuzz
def test_fuzz() -> None:
    counts = fuzz_plan.fuzz(1000, seed=int(os.environ.get("AIR_FUZZ_SEED", "1")))
    assert not [outcome for outcome in counts if outcome.startswith("FAILED")]
    assert counts["accepted"] > 20
    # the mutations reach far behind the digest: many different checks have answered
    assert len(counts) > 150
    assert sum(count for outcome, count in counts.items() if "operands[#]" in outcome) > 3


def test_the_fuzzer_notices_broken_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airrun.plan.container.verify", lambda plan: None)
    counts = fuzz_plan.fuzz(400, seed=1)
    assert sum(count for outcome, count in counts.items() if outcome.startswith("FAILED")) > 5
