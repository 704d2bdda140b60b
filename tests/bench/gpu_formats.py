"""Products of one token in every block format: ``python tests/bench/gpu_formats.py [--formats MXFP4,IQ2_XXS]``.

Times are those of the tuner: launches in a graph over copies of the weights that exceed the cache, under the
configurations that plans get. Needs Triton where kernels are compiled and a GPU where they are timed: ``--save FILE``
compiles for ``--arch`` on a machine without a GPU, ``--kernels FILE`` times what was compiled elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from airkernels.formats import FORMATS, BlockFormat
from airkernels.triton.build import Binary
from airkernels.triton.layout import MatrixLayout
from airrun.cuda.driver import Device
from airschedules.gpu.rules import ProductTask, schedule_product
from airschedules.gpu.tuner import CompiledProduct, ProductBench, compile_product

Kernels = dict[str, CompiledProduct]


def compile_all(tasks: list[ProductTask], arch: str) -> Kernels:
    """Kernels under the configurations of plans, by task."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        jobs = {}
        for task in tasks:
            config = schedule_product(task, arch)
            jobs[task.key(arch)] = pool.submit(compile_product, task, (config.rows, config.tile, config.columns), arch)
        return {key: job.result() for key, job in jobs.items()}


def save(kernels: Kernels, path: Path) -> None:
    """Write kernels for `load`."""
    text = {
        key: asdict(binary) | {"image": base64.b64encode(binary.image).decode(), "n_rows": n_rows}
        for key, (binary, n_rows) in kernels.items()
    }
    path.write_bytes(zlib.compress(json.dumps(text).encode(), 9))


def load(path: Path) -> Kernels:
    """Kernels that `save` wrote."""
    found = {}
    for key, entry in json.loads(zlib.decompress(path.read_bytes())).items():
        n_rows = entry.pop("n_rows")
        found[key] = (Binary(**entry | {"image": base64.b64decode(entry["image"])}), n_rows)
    return found


def main() -> int:
    """Print a table: microseconds and TB/s of weights as they lie in device memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    quantized = [name for name, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)]
    parser.add_argument("--formats", default=",".join(quantized))
    parser.add_argument("--shapes", default="4096x14336,28672x4096", help="rows x columns, ...")
    parser.add_argument("--kinds", default="q8,q16", help="of activations")
    parser.add_argument("--arch", default="sm_90", help="to compile for")
    parser.add_argument("--save", type=Path, help="compile into this file, and time nothing")
    parser.add_argument("--kernels", type=Path, help="time the kernels of this file")
    args = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes.split(",")]
    columns = [(shape, kind) for shape in shapes for kind in args.kinds.split(",")]
    names = args.formats.split(",")
    tasks = [ProductTask(name, kind, *shape) for name in names for shape, kind in columns]
    if args.save:
        save(compile_all(tasks, args.arch), args.save)
        return 0
    gpu = Device()
    kernels = load(args.kernels) if args.kernels else compile_all(tasks, gpu.arch)
    bench = ProductBench(gpu)
    print(f"{gpu.name}: us, TB/s")
    print("format   bits/weight " + " ".join(f"{n}x{k} {kind}".rjust(18) for (n, k), kind in columns))
    for name in names:
        cells, layout = [], MatrixLayout(FORMATS[name], *shapes[0])
        bits = 8 * layout.nbytes / (layout.n_rows * layout.n_cols)
        for shape, kind in columns:
            task = ProductTask(name, kind, *shape)
            us = bench.microseconds(task, kernels[task.key(gpu.arch)])
            rate = MatrixLayout(FORMATS[name], *shape).nbytes / us / 1e6
            cells.append(f"{us:11.1f} {rate:6.2f}")
        print(f"{name:8} {bits:11.2f} " + " ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
