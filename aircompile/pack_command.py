"""``aircompile pack``: a plan and its weight files become one archive for another machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
from argparse import Namespace
from pathlib import Path
from typing import BinaryIO

from airrun import __version__
from airrun.commands.explain_text import size
from airrun.commands.options import OptionParser
from airrun.errors import ModelFileError, UsageError
from airrun.package.archive import CHUNK, write_archive
from airrun.package.manifest import MANIFEST, Manifest, PackedFile, PackedWeights, check_name
from airrun.package.verify import verify_package
from airrun.paths import replacing
from airrun.plan.container import read_plan
from airrun.plan.fingerprint import locate, matches
from airrun.plan.schema import Plan

SUFFIX = ".tar.zst"


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="the plan's weight file; of a split model any part")
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.bin")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT",
                        help=f"archive to write (default: PLAN's name with {SUFFIX})")  # fmt: skip
    parser.add_argument("--no-weights", action="store_true",
                        help="leave the weights out; only their names, digests and --hint travel")  # fmt: skip
    parser.add_argument("--hint", default="", metavar="URL",
                        help="where the weights can be had, for whoever unpacks the archive")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: Namespace) -> int:
    """Write the archive, and read it back.

    Raises
    ------
    AirError
        The model is not the plan's, a file cannot be read, or the archive not be written.
    """
    out = args.output or args.plan.with_name(args.plan.name.removesuffix(".bin").removesuffix(".plan") + SUFFIX)
    if not out.name.endswith(SUFFIX):
        raise UsageError(f"{out}: packages are {SUFFIX} archives")
    manifest = pack(args.model, args.plan, out, weights=not args.no_weights, hint=args.hint)
    if not args.quiet:
        held = " and ".join(["the plan", *(["its weights"] if not args.no_weights else [])])
        print(f"{out}: {size(out.stat().st_size)}, {held}, {len(manifest.included)} files, verified")
    return 0


def pack(model: Path, plan_path: Path, out: Path, *, weights: bool = True, hint: str = "") -> Manifest:
    """Write a package.

    Parameters
    ----------
    model
        Weight file of the plan; of a split model any part, with the others beside it.
    plan_path
        The plan.
    out
        The archive; replaced whole or not at all. The same files give the same bytes.
    weights
        Whether the weight files travel in it.
    hint
        Where the weights can be had.

    Raises
    ------
    AirError
        The model is not the plan's, a file cannot be read, or the archive not be written.
    """
    loaded = read_plan(plan_path)
    paths = locate(loaded.plan, plan_path, _given(loaded.plan, model))
    packed = PackedFile(check_name(plan_path.name), *_digest(plan_path))
    files = tuple(
        PackedWeights(each.name, *_digest(path), each.header_nbytes, each.header_sha256, weights, hint)
        for each, path in zip(loaded.plan.files, paths, strict=True)
    )
    manifest = Manifest(f"aircompile {__version__}", packed, files)
    places = {packed.name: plan_path} | {each.name: path for each, path in zip(files, paths, strict=True)}
    if len(places) <= len(files) or MANIFEST in places:
        raise UsageError(f"{plan_path}: the files of a package need names of their own, and {MANIFEST} is taken")
    data = manifest.to_bytes()
    with contextlib.ExitStack() as stack, replacing(out) as stream:
        entries: list[tuple[str, int, BinaryIO]] = [(MANIFEST, len(data), io.BytesIO(data))]
        entries += [
            (each.name, each.nbytes, stack.enter_context(places[each.name].open("rb"))) for each in manifest.included
        ]
        write_archive(stream, entries)
    # a weight file that was written to meanwhile, or a disk that lies, shows here rather than on the box
    verify_package(out)
    return manifest


def _given(plan: Plan, model: Path) -> list[Path]:
    """The model, and the other parts of a split one, which stand beside it."""
    beside = [model.parent / file.name for file in plan.files]
    others = [path for file, path in zip(plan.files, beside, strict=True) if matches(file, path) is None]
    return [model, *(path for path in others if path.resolve() != model.resolve())]


def _digest(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    digest, nbytes = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                nbytes += len(chunk)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    return nbytes, digest.hexdigest()
