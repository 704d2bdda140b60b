"""What the code of a plan needs of a machine, and what this machine has.

The engine asks before it loads anything, so that a plan built for another machine is refused in one line rather than
by the system's loader, or by a signal; `doctor` prints the comparison.
"""

from __future__ import annotations

import mmap
import platform
import struct
import sys
from collections.abc import Iterator
from functools import partial

from airrun.errors import PlanError
from airrun.machine import isa, kernel_calls
from airrun.plan.container import LoadedPlan
from airrun.plan.elf import largest_page
from airrun.plan.schema import Library, Plan
from airrun.records import record


@record
class Requirement:
    """One thing that a plan needs, and what there is of it here."""

    subject: str
    needs: str
    has: str
    met: bool


def require(loaded: LoadedPlan) -> None:
    """Refuse a plan whose code cannot run here.

    Raises
    ------
    PlanError
        Names the first thing that the plan needs and this machine does not have.
    """
    for each in requirements(loaded):
        if not each.met:
            raise PlanError(f"{loaded.path}: the plan needs {each.needs}; this machine has {each.has}")


def requirements(loaded: LoadedPlan) -> Iterator[Requirement]:
    """Compare, from the coarsest to the finest; nothing follows what makes the rest meaningless.

    Raises
    ------
    PlanError
        An override of the instruction set that cannot be followed.
    """
    plan = loaded.plan
    for check in (_system, _python, partial(_architecture, plan), partial(_instruction_set, plan)):
        yield (found := check())
        if not found.met:
            return
    library = choose_library(plan)
    yield _pages(loaded, library)
    yield _calls(library)


def choose_library(plan: Plan) -> Library:
    """The plan's code that runs here: the best that this processor can, or what ``AIR_ISA`` says.

    Raises
    ------
    PlanError
        There is none, or the override cannot be followed.
    """
    mine = {each.isa: each for each in plan.libraries if each.arch == isa.machine()}
    return mine[isa.select_level(list(mine))]


def _system() -> Requirement:
    return Requirement("system", "Linux", _system_name(), sys.platform == "linux")


def _system_name() -> str:
    return f"Linux {platform.release()}" if sys.platform == "linux" else sys.platform


def _python() -> Requirement:
    bits = 8 * struct.calcsize("P")
    return Requirement("python", "a 64-bit Python", f"a {bits}-bit Python {platform.python_version()}", bits == 64)


def _architecture(plan: Plan) -> Requirement:
    needed = sorted({each.arch for each in plan.libraries})
    return Requirement("processor", f"architecture {' or '.join(needed)}", isa.machine(), isa.machine() in needed)


def _instruction_set(plan: Plan) -> Requirement:
    """The level that is picked; where none can be, what the processor lacks for the nearest."""
    offered = [each for each in plan.libraries if each.arch == isa.machine()]
    needs = f"the instructions of {' or '.join(each.isa for each in offered)}"
    if {each.isa for each in offered}.isdisjoint(isa.host_levels()):
        lacks = min((sorted({*each.features} - isa.host_features()) for each in offered), key=len, default=[])
        has = f"a processor without {' '.join(lacks)}" if lacks else "an airrun that does not know them"
        return Requirement("instructions", needs, has, False)
    return Requirement("instructions", needs, f"{choose_library(plan).isa}, which is picked", True)


def _pages(loaded: LoadedPlan, library: Library) -> Requirement:
    largest = largest_page(loaded.segment(library.segment))
    needs = f"memory pages of at most {largest >> 10} KiB"
    return Requirement("pages", needs, f"pages of {mmap.PAGESIZE >> 10} KiB", largest >= mmap.PAGESIZE)


def _calls(library: Library) -> Requirement:
    needs = f"the kernel calls {' '.join(library.calls)}"
    if missing := kernel_calls.missing_calls(library.calls):
        return Requirement("kernel", needs, f"{_system_name()} without {' '.join(missing)}", False)
    return Requirement("kernel", needs, "all of them", True)
