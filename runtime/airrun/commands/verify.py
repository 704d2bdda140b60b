"""``verify``: whether a package is whole, and what it was when it was packed; unpacks it on request."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from airrun.commands.explain_text import size
from airrun.commands.options import OptionParser
from airrun.package.manifest import PackedFile, describe
from airrun.package.verify import Approve, verify_package


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="archive of aircompile pack, or a folder of it")
    parser.add_argument("--extract", type=Path, metavar="DIR", help="unpack the archive to DIR, each file once checked")
    parser.add_options(("require_signature",))
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of text")


def run(args: Namespace) -> int:
    """Check the package and print what it holds.

    Raises
    ------
    PackageError
        It is not what was packed, or its plan not signed by a key that is asked for.
    """
    approve = _signed_by(args.require_signature) if args.require_signature else lambda _: None
    manifest = verify_package(args.package, args.extract, (lambda _: None) if args.json else _say, approve)
    if args.json:
        print(json.dumps(asdict(manifest), indent=1, ensure_ascii=False))
        return 0
    for line in describe(manifest):
        print(f"note: {line}")
    signed = ", its plan signed by a required key" if args.require_signature else ""
    where = f", unpacked to {args.extract}" if args.extract else ""
    print(f"{args.package}: as it was packed by {manifest.generator}{signed}{where}")
    return 0


def _signed_by(keys: Sequence[str]) -> Approve:
    """Refuses plans that none of the keys signed; the keys are read now, not after gigabytes."""
    from airrun.plan.signature import read_public_keys, require_one_of

    return partial(require_one_of, trusted=read_public_keys(keys))


def _say(file: PackedFile) -> None:
    print(f"ok  {file.name}  {size(file.nbytes)}  sha256 {file.sha256[:16]}", flush=True)
