"""``aircompile tune``: measure the kernels of a model on this machine, so that later builds choose better."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from airrun.commands.options import OptionParser
from airrun.errors import UsageError
from airschedules.targets import load_target


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", type=Path, nargs="+", metavar="MODEL", help="GGUF files whose products are measured")
    parser.add_argument("--target", required=True, metavar="NAME",
                        help="a target with a GPU: the one of this machine")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="file of records to add to (default: this machine's, in the cache)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: Namespace) -> int:
    """Measure and keep the records.

    Raises
    ------
    AirError
        No GPU, another one than the target's, or a model that cannot be read.
    """
    from aircompile.build_command import check_model, require_compiler

    profile = load_target(args.target)
    if profile.gpu is None:
        raise UsageError(f"target {profile.name} has no GPU: the processor is tuned by build --tune fast or full")
    for model in args.model:
        check_model(model)
    require_compiler()
    require_compiler(("triton",), "compile-cuda")
    from aircompile.gpu.tuning import product_tasks
    from airrun.cuda.driver import Device
    from airschedules.gpu.records import add_records
    from airschedules.gpu.tuner import tune_products

    gpu = Device()
    if gpu.arch != profile.gpu.arch:
        raise UsageError(f"target {profile.name} is {profile.gpu.arch}, this machine's {gpu.name} is {gpu.arch}")

    def progress(what: str, done: int, total: int) -> None:
        if not args.quiet:
            print(f"{done + 1}/{total} {what}", file=sys.stderr)

    found = tune_products(product_tasks(args.model), gpu, progress)
    path = add_records(found, args.output)
    if not args.quiet:
        faster = sum(record.microseconds < record.baseline for record in found.values())
        print(f"{path}: {len(found)} products measured on {gpu.name}, {faster} faster than by the rules")
    return 0
