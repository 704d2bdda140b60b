"""Make the tuning records that ship with the package: prefill products of common models, on this machine.

    python tests/bench/tune_common.py x86-64-v4 [--formats Q4_K ...] [--effort fast|full] [-o FILE]

Records are added to those of the file, by default the one that ships.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from airkernels.cpu.isa import ISAS
from airschedules import records
from airschedules.records import MatmulTask
from airschedules.tuner import tune_matmuls

COLUMNS = (576, 1536, 2048, 3072, 4096, 8192, 14336)
"""Widths of SmolLM2-135M and of Llama 1B, 3B and 8B, and of their feed-forward layers."""

FORMATS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
SUPER_BLOCK = 256
DIGITS = 2
"""Of activations, as they are unless something else is asked for."""


def tasks(formats: list[str]) -> list[MatmulTask]:
    return [
        MatmulTask(fmt, n_cols, "prefill", DIGITS)
        for fmt in formats
        for n_cols in COLUMNS
        if not (fmt.endswith("K") and n_cols % SUPER_BLOCK)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("isa", choices=ISAS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--effort", choices=("fast", "full"), default="fast")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()

    path = args.output or Path(records.__file__).parent / "records" / f"{args.isa}.json"
    for task in tasks(args.formats):
        found = tune_matmuls([task], ISAS[args.isa], args.effort, lambda *_: None)
        records.STORE.add({key: asdict(record) for key, record in found.items()}, path)
        print(*found.items(), file=sys.stderr)


if __name__ == "__main__":
    main()
