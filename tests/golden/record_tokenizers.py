"""Tokenizers against llama.cpp itself: record golden ids, or compare on random texts.

    python tests/golden/record_tokenizers.py record --peer-python PYTHON
    python tests/golden/record_tokenizers.py compare --peer-python PYTHON [-n 300] [--seed 1] [VOCABULARY.gguf ...]

PYTHON has llama-cpp-python. `compare` takes the vocabularies of `tokenizer_vocabularies.py`, or the files given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizer_vocabularies import Metadata, random_text, read_metadata, vocabularies, write_metadata

from airrun.tokenizer import Tokenizer
from airrun.tokenizer.metadata import spec_from_metadata
from airrun.tokenizer.wire import spec_from_bytes, spec_to_bytes

GOLDEN = Path(__file__).with_name("tokenizers.json")
ZOO = Path(os.environ.get("AIR_ZOO", Path(__file__).resolve().parents[3] / "shared" / "zoo"))
Case = tuple[str, bool, bool]
"""Text, add_special, parse_special."""

_WORKER = """
import ctypes, json, sys
import llama_cpp as llama
silent = llama.llama_log_callback(lambda level, text, data: None)
llama.llama_log_set(silent, ctypes.c_void_p(0))
llama.llama_backend_init()
parameters = llama.llama_model_default_params()
parameters.vocab_only = True
vocab = llama.llama_model_get_vocab(llama.llama_model_load_from_file(sys.argv[1].encode(), parameters))
for text, add_special, parse_special in json.load(sys.stdin):
    data = text.encode()
    ids = (llama.llama_token * (2 * len(data) + 16))()
    n = llama.llama_tokenize(vocab, data, len(data), ids, len(ids), add_special, parse_special)
    print(json.dumps(ids[:n]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["record", "compare"])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has llama-cpp-python")
    parser.add_argument("-n", type=int, default=300, help="texts per vocabulary")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_intermixed_args()
    if args.job == "record":
        record(args.peer_python)
    else:
        made = [(path.name, lambda path=path: read_metadata(path)) for path in args.files] or vocabularies(ZOO)
        sys.exit(compare(args.peer_python, iter(made), args.n, args.seed))


def record(peer: str) -> None:
    rng = random.Random(20261124)
    cases = [(random_text(rng, 30), i % 2 == 0, i % 4 < 2) for i in range(16)]
    groups: dict[str, list[str]] = {}
    for name, make in vocabularies(ZOO):
        groups.setdefault(json.dumps(llama_cpp(peer, make(), cases)), []).append(name)
    found = [{"names": names, "ids": json.loads(ids)} for ids, names in groups.items()]
    lines = [json.dumps(group, separators=(",", ":")) for group in found]
    GOLDEN.write_text(f'{{"cases":{json.dumps(cases)},\n"groups":[\n' + ",\n".join(lines) + "\n]}\n")


def compare(peer: str, made: Iterator[tuple[str, Callable[[], Metadata]]], n: int, seed: int) -> int:
    """Number of texts that differ; the first of each vocabulary are printed."""
    total = 0
    for name, make in made:
        metadata = make()
        tokenizer = Tokenizer(spec_from_bytes(spec_to_bytes(spec_from_metadata(metadata))))
        rng = random.Random(f"{name} {seed}")
        cases = [(random_text(rng), rng.random() < 0.5, rng.random() < 0.5) for _ in range(n)]
        tokens = [tokenizer.spec.tokens.raw(rng.randrange(tokenizer.spec.n_tokens)) for _ in range(n // 4)]
        cases += [(token.decode("utf-8", "replace"), False, True) for token in tokens]
        different = [
            (case, ours, theirs)
            for case, theirs in zip(cases, llama_cpp(peer, metadata, cases), strict=True)
            if (ours := tokenizer.encode(*case)) != theirs
        ]
        print(f"{name}: {len(different)} of {len(cases)} differ", flush=True)
        for case, ours, theirs in different[:3]:
            print(f"  {case!r}\n    ours   {ours}\n    theirs {theirs}")
        total += len(different)
    return total


def llama_cpp(peer: str, metadata: Metadata, cases: list[Case]) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_metadata(path, metadata)
        command: list[Any] = [peer, "-c", _WORKER, str(path)]
        done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
