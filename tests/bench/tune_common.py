"""Make the tuning records that ship with the package: prefill products of common models, on this machine.

python tests/bench/tune_common.py x86-64-v4 [--effort fast|full] > schedules/airschedules/records/x86-64-v4.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from airkernels.cpu.isa import ISAS
from airschedules.records import MatmulTask
from airschedules.tuner import tune_matmuls

MODELS = {
    # d_model, d_ffn, rows of q+k+v
    "SmolLM2-135M": (576, 1536, 960),
    "Llama-3.2-1B": (2048, 8192, 3072),
    "Llama-3.2-3B": (3072, 8192, 5120),
    "Llama-3.1-8B": (4096, 14336, 6144),
}
FORMATS = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
SUPER_BLOCK = 256


def tasks() -> list[MatmulTask]:
    found = []
    for d, ffn, qkv in MODELS.values():
        for fmt in FORMATS:
            if fmt.endswith("K") and d % SUPER_BLOCK:
                continue
            for n_rows, n_cols, digits in ((qkv, d, 2), (d, d, 1), (2 * ffn, d, 1), (d, ffn, 2)):
                found.append(MatmulTask(fmt, n_rows, n_cols, "prefill", digits))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("isa", choices=ISAS)
    parser.add_argument("--effort", choices=("fast", "full"), default="fast")
    args = parser.parse_args()

    def progress(what: str, done: int, total: int) -> None:
        print(f"{done}/{total} {what}", file=sys.stderr)

    found = tune_matmuls(tasks(), ISAS[args.isa], args.effort, progress)
    print(json.dumps({key: asdict(record) for key, record in found.items()}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
