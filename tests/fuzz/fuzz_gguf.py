"""Structure-aware fuzzing of the GGUF reader: valid files whose header fields are changed one to three at a time.

A reader may answer a damaged file with ModelFileError or UnsupportedError, or accept it if what it returns keeps its
promises (tensors in bounds, aligned, apart). Anything else - another exception, a slow answer, too much memory, a
broken promise - is a failure, and the file is kept.

    python tests/fuzz/fuzz_gguf.py -n 100000
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aircompile.frontends.gguf import GGUFModel, read_gguf
from airrun.errors import ModelFileError, UnsupportedError
from airrun.plan.blocks import BLOCKS

SECONDS_PER_CASE = 10.0  # a clean answer takes 0.2 ms, with the header cap reached 0.3 s
MEMORY_LIMIT = 4 << 30
SPARSE_BYTES = 1 << 40  # a hole of this size lets lengths pass the check against the file size and reach the caps
SPARSE_SHARE = 0.004
SINGLE, FIRST, SECOND = "m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
_SCALAR_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass
class Builder:
    """Writes a GGUF byte by byte, and notes where each header field stands."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int]] = field(default_factory=list)  # (offset, size) of each integer
    starts: list[int] = field(default_factory=list)  # where metadata and tensor entries begin

    def number(self, code: str, value: float) -> None:
        packed = struct.pack("<" + code, value)
        self.fields.append((len(self.data), len(packed)))
        self.data += packed

    def text(self, value: bytes) -> None:
        self.number("Q", len(value))
        self.data += value

    def array(self, kind: int, values: list[Any]) -> None:
        self.number("I", kind)
        self.number("Q", len(values))
        for value in values:
            self.element(kind, value)

    def element(self, kind: int, value: Any) -> None:
        if kind == 8:
            self.text(value)
        elif kind == 9:
            self.array(*value)
        else:
            self.number(_SCALAR_CODES[kind], value)


@dataclass(frozen=True)
class Seed:
    """A valid file: its bytes, its integer fields, and the places where its entries begin."""

    data: bytes
    fields: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]


def build(
    metadata: list[tuple[bytes, int, object]],
    tensors: list[tuple[bytes, tuple[int, ...], str]],
    version: int = 3,
    alignment: int = 32,
) -> Seed:
    """A GGUF file with the given metadata (key, type, value) and tensors (name, dimensions innermost first, format)."""
    out = Builder()
    out.data += b"GGUF"
    out.number("I", version)
    out.number("Q", len(tensors))
    out.number("Q", len(metadata))
    for key, kind, value in metadata:
        out.starts.append(len(out.data))
        out.text(key)
        out.number("I", kind)
        out.element(kind, value)
    offset = 0
    for name, dims, format_name in tensors:
        out.starts.append(len(out.data))
        out.text(name)
        out.number("I", len(dims))
        n_elements = 1
        for dim in dims:
            out.number("Q", dim)
            n_elements *= dim
        block = BLOCKS[format_name]
        out.number("I", block.id)
        out.number("Q", offset)
        offset += -(-n_elements // block.block * block.nbytes // alignment) * alignment
    out.starts.append(len(out.data))
    out.data += bytes(-len(out.data) % alignment)
    out.data += bytes(offset)
    return Seed(bytes(out.data), tuple(out.fields), tuple(out.starts))


def seeds() -> list[dict[str, Seed]]:
    """Small valid models that between them hold every kind of field; each is a set of files by name."""
    scalars: list[tuple[bytes, int, object]] = [
        (b"s.%d" % kind, kind, True if kind == 7 else 1.5 if kind in (6, 12) else 77) for kind in _SCALAR_CODES
    ]
    vocabulary: list[tuple[bytes, int, object]] = [
        (b"general.architecture", 8, b"llama"),
        (b"tokenizer.ggml.tokens", 9, (8, [b"<s>", b"", "\u0120a".encode(), b"\xff\xfe", b"x" * 40])),
        (b"tokenizer.ggml.scores", 9, (6, [0.0, -1.0, 2.5, 3.5, 4.5])),
        (b"tokenizer.ggml.token_type", 9, (5, [1, 2, 3, 4, 5])),
        (b"flags", 9, (7, [True, False, True])),
        (b"nested", 9, (9, [(4, [1, 2]), (8, [b"a", b"b"]), (9, [(0, [7])])])),
    ]
    tensors = [
        (b"token_embd.weight", (64, 5), "Q4_1"),
        (b"blk.0.attn_norm.weight", (64,), "F32"),
        (b"blk.0.attn_q.weight", (256, 3), "Q6_K"),
        (b"blk.0.experts", (32, 2, 3), "Q8_0"),
        (b"four", (2, 3, 1, 2), "F16"),
        (b"scalar", (), "I32"),
    ]

    def split(no: int) -> list[tuple[bytes, int, object]]:
        return [(b"split.no", 2, no), (b"split.count", 2, 2), (b"split.tensors.count", 5, 3)]

    aligned: list[tuple[bytes, int, object]] = [(b"general.alignment", 4, 128), (b"a.b", 10, 1 << 40)]
    return [
        {SINGLE: build(vocabulary + scalars, tensors)},
        {SINGLE: build(vocabulary, tensors[:2], version=2)},
        {SINGLE: build(aligned, tensors, alignment=128)},
        {SINGLE: build(vocabulary, [])},
        {FIRST: build(vocabulary + split(0), tensors[:1]), SECOND: build(split(1), tensors[1:3])},
    ]


def interesting(rng: random.Random, old: int, size: int, file_size: int) -> int:
    """A value for an integer field of `size` bytes: near the old one, at a limit, an id, or at random."""
    pick = rng.randrange(6)
    if pick == 0:
        value = old + rng.choice((-8, -1, 1, 2, 4, 8, 32, 64))
    elif pick == 1:
        value = (1 << rng.choice((7, 8, 15, 16, 20, 22, 26, 28, 31, 32, 33, 48, 62, 63, 64))) - rng.choice((0, 1, 8))
    elif pick == 2:
        value = rng.randrange(64)
    elif pick == 3:
        value = file_size + rng.choice((-64, -32, -1, 0, 1, 32))
    elif pick == 4:
        value = old * rng.choice((2, 3, 32, 256, 1 << 31))
    else:
        value = rng.getrandbits(8 * size)
    return value % (1 << 8 * size)


def set_field(data: bytearray, place: tuple[int, int], value: int) -> None:
    """Store an integer into a header field, as far as it still lies in the data."""
    offset, size = place
    if offset + size <= len(data):
        data[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def mutate(rng: random.Random, seed: Seed) -> bytes:
    """One to three random changes to a valid file."""
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(12)
        if kind < 6:
            offset, size = rng.choice(seed.fields)
            old = int.from_bytes(data[offset : offset + size], "little")
            set_field(data, (offset, size), interesting(rng, old, size, len(data)))
        elif kind == 6:
            source, target = rng.choice(seed.fields), rng.choice(seed.fields)
            set_field(data, target, int.from_bytes(data[source[0] : sum(source)], "little"))
        elif kind == 7:  # a byte of the header at random
            place = rng.randrange(min(len(data), seed.starts[-1] + 1) or 1)
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 8:
            end = rng.choice((rng.randrange(len(data) + 1), rng.choice(seed.starts), rng.choice(seed.fields)[0]))
            del data[end:]
        elif kind == 9 and len(seed.starts) > 1:  # an entry twice, in place of another or between two
            i, j = rng.randrange(len(seed.starts) - 1), rng.randrange(len(seed.starts))
            entry = seed.data[seed.starts[i] : seed.starts[i + 1]]
            data[seed.starts[j] : seed.starts[j] + rng.choice((0, len(entry)))] = entry
        elif kind == 10:
            start = rng.choice(seed.starts)
            del data[start : start + rng.choice((1, 4, 8, rng.randrange(1, 80)))]
        else:  # two neighbouring fields at once: products of dimensions, count and length
            i = rng.randrange(len(seed.fields) - 1)
            for pair in seed.fields[i : i + 2]:
                set_field(data, pair, rng.choice((1 << 31, 1 << 32, (1 << 63) + 1, 0, 1 << 16)))
    return bytes(data)


def check(model: GGUFModel) -> None:
    """AssertionError unless an accepted model keeps what ``read_gguf`` promises."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for name, tensor in model.tensors.items():
        assert tensor.name == name and name
        file = model.files[tensor.file]
        block = BLOCKS[tensor.format]
        n_elements = 1
        for dim in tensor.shape:
            assert dim > 0
            n_elements *= dim
        assert (tensor.shape[-1] if tensor.shape else 1) % block.block == 0
        assert tensor.nbytes == n_elements * block.nbytes // block.block
        assert file.header_nbytes <= tensor.offset <= tensor.offset + tensor.nbytes <= file.nbytes
        spans.setdefault(tensor.file, []).append((tensor.offset, tensor.offset + tensor.nbytes))
    for of_file in spans.values():
        of_file.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(of_file))
    for file in model.files:
        assert 0 <= file.header_nbytes <= file.nbytes == file.path.stat().st_size


def run_case(folder: Path, files: dict[str, bytes], sparse: bool = False) -> str:
    """Write a model and read it: the name of the clean error, or 'accepted'. Anything else is raised."""
    for name, data in files.items():
        with open(folder / name, "wb", buffering=0) as stream:
            stream.write(data)
            if sparse:
                stream.truncate(SPARSE_BYTES)
    start = time.perf_counter()
    try:
        model = read_gguf(folder / next(iter(files)))
    except (ModelFileError, UnsupportedError) as error:
        outcome = type(error).__name__
        assert "\n" not in str(error), f"an error of several lines: {error}"
        assert str(folder) in str(error), f"an error that does not name the file: {error}"
    else:
        check(model)
        outcome = "accepted"
    seconds = time.perf_counter() - start
    assert seconds < SECONDS_PER_CASE, f"took {seconds:.1f} s"
    return outcome


def fuzz(n_cases: int, seed: int, keep: Path | None = None) -> Counter[str]:
    """Run `n_cases` mutations; the counts of outcomes, where every key of a failure begins with 'FAILED'."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    bases = seeds()
    with tempfile.TemporaryDirectory() as temporary:
        for i in range(n_cases):
            base = rng.choice(bases)
            files = {name: part.data for name, part in base.items()}
            victim = rng.choice(sorted(base))
            files[victim] = mutate(rng, base[victim])
            try:
                outcome = run_case(Path(temporary), files, rng.random() < SPARSE_SHARE)
            except Exception as error:
                outcome = f"FAILED {type(error).__name__}"
                traceback.print_exc()
                print(f"case {i} of seed {seed}", file=sys.stderr)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"gguf-{seed}-{i}.bin").write_bytes(files[victim])
            counts[outcome] += 1
    return counts


def main() -> int:
    """Command line: exit 1 if any case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=10_000, help="number of mutated files (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default %(default)s)")
    parser.add_argument("--keep", type=Path, default=None, help="folder for files that failed")
    arguments = parser.parse_args()
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    start = time.perf_counter()
    counts = fuzz(arguments.n, arguments.seed, arguments.keep)
    for outcome, count in sorted(counts.items()):
        print(f"{outcome:20} {count:8}")
    print(f"{arguments.n} mutated files in {time.perf_counter() - start:.0f} s")
    return 1 if any(outcome.startswith("FAILED") for outcome in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
