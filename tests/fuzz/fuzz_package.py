"""Fuzzing of packages: a good one whose manifest, tar headers, contents or compressed bytes are changed.

A reader may answer with PackageError, or accept a package if all that it unpacked is what the manifest names, with the
digests it gives. Anything else - another exception, a slow answer, a file elsewhere - is a failure.

    python tests/fuzz/fuzz_package.py -n 20000
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from package_sample import PLAN, WEIGHTS, compress, entry, good_entries, manifest_of, sample_files, tar

from airrun.errors import PackageError
from airrun.package.manifest import MANIFEST, parse_manifest
from airrun.package.verify import verify_package

SECONDS_PER_CASE = 5.0  # a clean answer takes 2 ms

VALUES: list[Any] = [0, 1, -1, 2, 511, 512, 1 << 20, 1 << 40, 1 << 63, 10**30, 0.5, True, False, None, "", "..", "../x"]
VALUES += ["/etc/x", "a/b", "a\\b", "\0", "\x1b[2J", "\ud800", "é" * 200, "0" * 64, MANIFEST, PLAN, WEIGHTS, [], {}]
KINDS = [bytes([kind]) for kind in b"01234567LKSxgX\0"]
FIELDS: dict[str, list[Any]] = {
    "size": [0, 1, -1, 511, 512, 1 << 33, 1 << 62],
    "type": KINDS,
    "name": ["", "..", "../x", "/x", "a" * 300, MANIFEST, PLAN, WEIGHTS, "x"],
    "linkname": ["/etc/passwd", "../x", PLAN],
    "mode": [0, 0o7777],
    "mtime": [-1, 1 << 40],
}


def some_manifest(rng: random.Random) -> bytes:
    """The manifest with one to three values changed, removed or doubled; or its text damaged."""
    data = manifest_of(sample_files(), included=rng.random() < 0.8).to_bytes()
    if rng.random() < 0.15:
        at, damage = rng.randrange(len(data)), rng.choice([b"", b"[" * 5000, b"\xff", b"{", b'"', b"1" * 5000])
        return data[:at] + damage + data[at + rng.choice((0, 1, 9)) :]
    document = json.loads(data)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        weights = document.get("weights")
        places = [document, document.get("plan"), weights, *(weights if isinstance(weights, list) else [])]
        where: Any = rng.choice(places)
        if isinstance(where, list):
            where.append(copy.deepcopy(where[0] if where and rng.random() < 0.5 else rng.choice(VALUES)))
        elif isinstance(where, dict) and where:
            key = rng.choice(sorted(where))
            if rng.random() < 0.2:
                del where[key]
            else:
                where[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(document).encode()


def mutate(rng: random.Random) -> bytes:
    """A mutated archive."""
    files = sample_files()
    contents = {MANIFEST: some_manifest(rng), WEIGHTS: files[WEIGHTS], PLAN: files[PLAN]}
    if rng.random() < 0.2:
        name = rng.choice([WEIGHTS, PLAN])
        data = bytearray(contents[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        contents[name] = bytes(data)
    entries = [entry(name, data) for name, data in contents.items()]
    kind = rng.random()
    if kind < 0.25:
        i = rng.randrange(3)
        name = list(contents)[i]
        field = rng.choice(sorted(FIELDS))
        entries[i] = entry(name, contents[name], **{field: rng.choice(FIELDS[field])})
    elif kind < 0.35:
        extra = entry(rng.choice(FIELDS["name"]), b"x" * rng.choice((0, 1, 600)), rng.choice(KINDS))
        entries.insert(rng.randrange(4), extra)
    elif kind < 0.4:
        rng.shuffle(entries)
    elif kind < 0.45:
        del entries[rng.randrange(3)]
    raw = bytearray(tar(entries))
    if rng.random() < 0.2:
        for _ in range(rng.choice((1, 4))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    if rng.random() < 0.1:
        del raw[rng.randrange(len(raw)) :]
    data = bytearray(compress(bytes(raw)))
    if rng.random() < 0.15:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    if rng.random() < 0.05:
        data += rng.choice([b"x", compress(b"x"), bytes(100)])
    return bytes(data)


def check(folder: Path, out: Path) -> None:
    """The promises about an accepted package."""
    manifest = parse_manifest((out / MANIFEST).read_bytes())
    packed = {each.name: each for each in manifest.included}
    assert {path.name for path in out.iterdir()} == {MANIFEST, *packed}
    for name, each in packed.items():
        data = (out / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (each.nbytes, each.sha256)


def run_case(data: bytes) -> str:
    """Unpack one archive: the refusal with all its particulars removed, or 'accepted'."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "a" / "out"
        (folder / "case").write_bytes(data)
        start = time.process_time()
        outcome = "accepted"
        try:
            verify_package(folder / "case", out)
        except PackageError as error:
            message = str(error).removeprefix(f"{folder / 'case'}: ")
            assert len(message) < 1000 and message.isprintable(), message
            outcome = re.sub(r"'.*?'|\".*?\"|-?\d[\d.e+-]*", "#", message)
            assert not (out / MANIFEST).exists()
        else:
            check(folder, out)
        assert time.process_time() - start < SECONDS_PER_CASE, "slow"
        assert {path.name for path in folder.iterdir()} <= {"case", "a"}
        assert not (folder / "a").exists() or [path.name for path in (folder / "a").iterdir()] == ["out"]
        return outcome


def fuzz(n_cases: int, seed: int) -> Counter[str]:
    """Run `n_cases` mutations; the counts of outcomes, where every key of a failure begins with 'FAILED'."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for i in range(n_cases):
        data = mutate(rng) if i else compress(tar(good_entries()))
        try:
            outcome = run_case(data)
        except Exception as error:
            outcome = f"FAILED {type(error).__name__}"
            traceback.print_exc()
            print(f"case {i} of seed {seed}", file=sys.stderr)
        counts[outcome] += 1
    return counts


def main() -> int:
    """Command line: exit 1 if any case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=5000, help="number of mutated packages (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print every kind of refusal")
    arguments = parser.parse_args()
    start = time.perf_counter()
    counts = fuzz(arguments.n, arguments.seed)
    failed = {outcome: count for outcome, count in counts.items() if outcome.startswith("FAILED")}
    for outcome, count in counts.most_common() if arguments.verbose else failed.items():
        print(f"{count:8} {outcome}")
    print(
        f"{arguments.n} mutated packages in {time.perf_counter() - start:.0f} s: {counts['accepted']} accepted and "
        f"sound, {arguments.n - counts['accepted'] - sum(failed.values())} refused in "
        f"{len(counts) - len(failed) - 1} ways, {sum(failed.values())} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
