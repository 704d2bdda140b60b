"""``doctor``: whether a plan can run on this machine, and what is missing where it cannot."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from airrun.built_here import was_built_here
from airrun.commands.options import OptionParser
from airrun.errors import AirError
from airrun.ledger import processors, sizes_of
from airrun.machine.isa import machine, select_level
from airrun.machine.system import available_ram
from airrun.plan.container import LoadedPlan, has_device_plan, read_plan
from airrun.plan.fingerprint import locate
from airrun.plan.schema import Plan


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `status` is 'ok', 'warning' or 'problem'."""

    subject: str
    status: str
    detail: str


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("plan", metavar="PLAN", help="plan.bin to check against this machine")
    parser.add_options(("model", "ctx_size", "threads", "ram"))
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of text")


def run(args: Namespace) -> int:
    """Print what was found; 0 if the plan can run here, else 1.

    Raises
    ------
    AirError
        A file that is no undamaged plan.
    """
    loaded = read_plan(args.plan)
    findings = diagnose(loaded, args.model, threads=args.threads, ctx_size=args.ctx_size, ram=args.ram)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.status:8} {finding.subject:11} {finding.detail}")
    return int(any(finding.status == "problem" for finding in findings))


def diagnose(
    loaded: LoadedPlan,
    model: Sequence[str] = (),
    *,
    threads: int | None = None,
    ctx_size: int | None = None,
    ram: int | None = None,
) -> list[Finding]:
    """Compare what a plan needs with what this machine has.

    Parameters
    ----------
    loaded
        The plan, which reading has already verified.
    model
        Weight files; found by fingerprint where empty.
    threads, ctx_size, ram
        Override the plan's.
    """
    plan = loaded.plan
    return [
        Finding("plan", "ok", f"{loaded.path}: undamaged, {plan.generator}, for {plan.choice.target}"),
        _origin(loaded),
        _checked("platform", lambda: _platform()),
        _checked("processor", lambda: _processor(plan)),
        _checked("weights", lambda: _weights(loaded, model)),
        _checked("threads", lambda: _threads(plan, threads)),
        _checked("memory", lambda: _memory(plan, threads, ctx_size, ram)),
        *([_checked("gpu", lambda: _gpu(loaded, ctx_size))] if has_device_plan(plan) else []),
    ]


def _checked(subject: str, check: Callable[[], tuple[str, str]]) -> Finding:
    """A check's finding; an error it reports is a problem."""
    try:
        return Finding(subject, *check())
    except AirError as error:
        return Finding(subject, "problem", str(error))


def _origin(loaded: LoadedPlan) -> Finding:
    if was_built_here(loaded.digest):
        return Finding("origin", "ok", "built on this machine")
    return Finding("origin", "warning", "not built on this machine: a plan is a program, trust whoever sent it")


def _platform() -> tuple[str, str]:
    if sys.platform != "linux":
        return "problem", f"this system is {sys.platform}; native code of plans is for Linux"
    return "ok", f"Linux on {machine()}"


def _processor(plan: Plan) -> tuple[str, str]:
    level = select_level([library.isa for library in plan.libraries])
    return "ok", f"runs the plan's code for {level} (of {', '.join(each.isa for each in plan.libraries)})"


def _weights(loaded: LoadedPlan, model: Sequence[str]) -> tuple[str, str]:
    paths = locate(loaded.plan, loaded.path, [Path(path) for path in model])
    return "ok", ", ".join(str(path) for path in paths)


def _threads(plan: Plan, threads: int | None) -> tuple[str, str]:
    wanted, have = threads or plan.choice.threads, processors()
    if wanted > have:
        return "warning", f"the plan asks for {wanted}, this process may use {have}"
    return "ok", f"{wanted or have} of {have} processors"


def _memory(plan: Plan, threads: int | None, ctx_size: int | None, ram: int | None) -> tuple[str, str]:
    sizes = sizes_of(plan, threads=threads, ctx_size=ctx_size, library=plan.libraries[0], ram=ram)
    needed, available = sizes.total, available_ram()
    streamed = sizes.residency.streamed_nbytes
    reads = f", reads {streamed >> 20} MiB of weights in every pass" if streamed else ""
    text = f"needs {needed >> 20} MiB{reads} with a full context of {sizes.ctx_size}, {available >> 20} MiB available"
    if needed <= available:
        return "ok", text
    if needed - sizes.kv <= available:
        return "warning", f"{text}: a long conversation will not fit; -c/--ctx-size sets a smaller context"
    return "problem", text


def _gpu(loaded: LoadedPlan, ctx_size: int | None) -> tuple[str, str]:
    """The plan's part for GPUs; the processor does where there is none, so nothing here is a problem."""
    from airrun.cuda.driver import Device, available
    from airrun.cuda.programs import select_library
    from airrun.cuda.sizes import device_sizes
    from airrun.plan.read_device import device_plan

    part = device_plan(loaded)
    assert part is not None
    code = f"the plan has code for {', '.join(library.arch for library in part.libraries)}"
    missing = available()
    if missing is not None:
        return "warning", f"{code}; {missing}: the processor will do"
    gpu = Device()
    try:
        library = select_library(part, gpu.arch)
        sizes, free = device_sizes(loaded.plan, part, ctx_size=ctx_size), gpu.free_memory()[0]
        sizes.require(free, gpu.name)
        return "ok", f"{gpu.name} runs its {library.arch}, needs {sizes.total >> 20} of {free >> 20} MiB free"
    except AirError as error:
        return "warning", f"{error}"
    finally:
        gpu.close()
