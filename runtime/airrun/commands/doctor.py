"""``doctor``: whether a plan can run on this machine, and what is missing where it cannot."""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from airrun.built_here import was_built_here
from airrun.commands.explain_text import show_table, size
from airrun.commands.options import OptionParser
from airrun.errors import AirError, PlanError
from airrun.ledger import Sizes, processors, sizes_of
from airrun.plan.container import LoadedPlan, has_device_plan, read_plan
from airrun.plan.fingerprint import locate
from airrun.plan.schema import Plan
from airrun.plan.signature import require_signature
from airrun.ram import available_ram, total_ram
from airrun.requirements import choose_library, requirements
from airrun.weights.files import WeightFiles


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what the plan needs of it and what there is; `status` is 'ok', 'warning' or
    'problem'."""

    subject: str
    status: str
    needs: str
    has: str


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("plan", metavar="PLAN", help="plan.bin to check against this machine")
    parser.add_options(("model", "ctx_size", "threads", "ram", "vram", "require_signature"))
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of text")


def run(args: Namespace) -> int:
    """Print what was found; 0 if the plan can run here, else 1.

    Raises
    ------
    AirError
        A file that is no undamaged plan.
    """
    loaded = read_plan(args.plan)
    findings = diagnose(loaded, args.model, threads=args.threads, ctx_size=args.ctx_size, ram=args.ram, vram=args.vram)
    findings[1:1] = _signature(loaded, args.require_signature)
    problems = [finding.subject for finding in findings if finding.status == "problem"]
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
        return int(bool(problems))
    title = f"{loaded.path}: undamaged, {loaded.plan.generator}, for {loaded.plan.choice.target}"
    rows = [[each.status, each.subject, each.needs, each.has] for each in findings]
    show_table(title, ["", "of", "the plan needs", "this machine has"], rows)
    print(f"cannot run here: {', '.join(problems)}" if problems else "can run here")
    return int(bool(problems))


def diagnose(
    loaded: LoadedPlan,
    model: Sequence[str] = (),
    *,
    threads: int | None = None,
    ctx_size: int | None = None,
    ram: int | None = None,
    vram: int | None = None,
) -> list[Finding]:
    """Compare what a plan needs with what this machine has.

    Parameters
    ----------
    loaded
        The plan, which reading has already verified.
    model
        Weight files; found by fingerprint where empty.
    threads, ctx_size, ram, vram
        Override the plan's.
    """
    plan = loaded.plan
    found = [_origin(loaded), *_requirements(loaded)]
    weights = _checked("weights", lambda: _weights(loaded, model))
    found += [weights, _threads(plan, threads)]
    try:
        sizes = _sizes(plan, threads, ctx_size, ram)
    except AirError as error:
        found.append(Finding("memory", "problem", str(error), f"{size(available_ram())} free"))
    else:
        found.append(_memory(sizes))
        found.append(_checked("disk", lambda: _disk(loaded, model, sizes, weights.status == "ok")))
    if has_device_plan(plan):
        found.append(_checked("gpu", lambda: _gpu(loaded, ctx_size, ram, vram)))
    return found


def _checked(subject: str, check: Callable[[], tuple[str, str, str]]) -> Finding:
    """A check's finding (status, needs, has); an error it reports is a problem."""
    try:
        return Finding(subject, *check())
    except AirError as error:
        return Finding(subject, "problem", "", str(error))


def _origin(loaded: LoadedPlan) -> Finding:
    if was_built_here(loaded.digest):
        return Finding("origin", "ok", "to be trusted, as a program", "built it")
    return Finding("origin", "warning", "to be trusted, as a program", "not built it: trust whoever sent it")


def _signature(loaded: LoadedPlan, keys: Sequence[str]) -> list[Finding]:
    """Whether one of the keys signed the plan, where that is asked."""
    if not keys:
        return []
    needs = f"the trust of {' or '.join(keys)}"
    try:
        require_signature(loaded, keys)
    except AirError as error:
        return [Finding("signature", "problem", needs, str(error))]
    return [Finding("signature", "ok", needs, "its signature")]


def _requirements(loaded: LoadedPlan) -> Iterator[Finding]:
    try:
        for each in requirements(loaded):
            yield Finding(each.subject, "ok" if each.met else "problem", each.needs, each.has)
    except PlanError as error:
        yield Finding("instructions", "problem", "an instruction set that it has code for", str(error))


def _weights(loaded: LoadedPlan, model: Sequence[str]) -> tuple[str, str, str]:
    files = loaded.plan.files
    needs = ", ".join(f"{each.name}, {size(each.nbytes)}, fingerprint {each.header_sha256[:16]}" for each in files)
    try:
        paths = locate(loaded.plan, loaded.path, [Path(path) for path in model])
    except PlanError as error:
        return "problem", needs, str(error)
    return "ok", needs, ", ".join(str(path) for path in paths)


def _threads(plan: Plan, threads: int | None) -> Finding:
    wanted, have = threads or plan.choice.threads, processors()
    has = f"{have} for this process"
    needs = f"{wanted} processors" if wanted else "any number of processors"
    return Finding("threads", "warning" if wanted > have else "ok", needs, has)


def _sizes(plan: Plan, threads: int | None, ctx_size: int | None, ram: int | None) -> Sizes:
    """Sizes of a run; by the plan's first library where none can run here."""
    try:
        library = choose_library(plan)
    except PlanError:
        library = plan.libraries[0]
    return sizes_of(plan, threads=threads, ctx_size=ctx_size, library=library, ram=ram)


def _memory(sizes: Sizes) -> Finding:
    available = available_ram()
    needs = f"{size(sizes.total)} with a full context of {sizes.ctx_size}, {size(sizes.kv)} of it cache"
    has = f"{size(available)} free of {size(total_ram())}"
    if sizes.total <= available:
        return Finding("memory", "ok", needs, has)
    if sizes.total - sizes.kv <= available:
        advice = f"{has}: a long conversation will not fit; -c/--ctx-size sets a smaller context"
        return Finding("memory", "warning", needs, advice)
    return Finding("memory", "problem", needs, has)


def _disk(loaded: LoadedPlan, model: Sequence[str], sizes: Sizes, present: bool) -> tuple[str, str, str]:
    """How fast weights can be read matters where they stream; room for them where they are not there yet."""
    if not present:
        nbytes = sum(file.nbytes for file in loaded.plan.files)
        free = shutil.disk_usage(os.path.dirname(loaded.path.absolute())).free
        return ("ok" if nbytes <= free else "problem"), f"room for {size(nbytes)}", f"{size(free)} free beside the plan"
    streamed = sizes.residency.streamed_nbytes
    if not streamed:
        return "ok", f"{size(sum(file.nbytes for file in loaded.plan.files))} read once", "them"
    files = WeightFiles(loaded.plan, locate(loaded.plan, loaded.path, [Path(path) for path in model]))
    try:
        mode = files.open_streams("auto")
    finally:
        files.close()
    has = "direct reads" if mode == "direct" else "a file system without direct reads: the page cache is used"
    return "ok", f"{size(streamed)} read in every pass", has


def _gpu(loaded: LoadedPlan, ctx_size: int | None, ram: int | None, vram: int | None) -> tuple[str, str, str]:
    """The plan's part for GPUs; the processor does where there is none, so nothing here is a problem."""
    from airrun.cuda.driver import Device, available
    from airrun.cuda.programs import select_library
    from airrun.cuda.sizes import device_sizes
    from airrun.cuda.tiers import DISK, HOST
    from airrun.plan.read_device import device_plan

    part = device_plan(loaded)
    assert part is not None
    needs = f"a GPU of {' or '.join(library.arch for library in part.libraries)}"
    missing = available()
    if missing is not None:
        return "warning", needs, f"{missing}: the processor will do"
    gpu = Device()
    try:
        library = select_library(part, gpu.arch)
        free = gpu.free_memory()[0]
        sizes = device_sizes(loaded.plan, part, ctx_size=ctx_size, vram=vram, ram=ram, free=free)
        sizes.require(free, gpu.name)
        here = f"{gpu.name}, which runs its {library.arch}, {size(free)} free"
        if sizes.tiers.streams:
            crossing = size(sizes.tiers.raw_nbytes(HOST, DISK))
            return "warning", f"{needs}, {size(sizes.total)}", f"{here}: {crossing} cross the bus in every step"
        return "ok", f"{needs}, {size(sizes.total)}", here
    except AirError as error:
        return "warning", needs, f"{error}"
    finally:
        gpu.close()
