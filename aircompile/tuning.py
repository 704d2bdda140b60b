"""Tuning the kernels of one build, and remembering what was found."""

from __future__ import annotations

import time
from collections.abc import Sequence

from airkernels.cpu.isa import VectorIsa
from airrun.errors import UsageError
from airrun.machine.isa import missing
from airschedules.records import add_records, find_record
from airschedules.specs import KernelSpec, MatmulSpec
from airschedules.tuner import Progress, tune_matmuls

_FAST_SECONDS = 40.0
"""`fast` begins no further product after this long."""


def tune(specs: Sequence[KernelSpec], isa: VectorIsa, effort: str, progress: Progress) -> int:
    """Tune the products among `specs` for an instruction set of this machine.

    Parameters
    ----------
    effort
        'fast': products without a record, for at most about 40 s; 'full': every product, more candidates and rounds.

    Returns
    -------
    Number of products measured.

    Raises
    ------
    UsageError
        If this machine cannot run the instruction set.
    """
    lacking = missing(isa.name)
    if lacking:
        raise UsageError(f"cannot tune for {isa.name} here: this CPU lacks {', '.join(lacking)}")
    tasks = list(dict.fromkeys(spec.task for spec in specs if isinstance(spec, MatmulSpec)))
    deadline = None
    if effort == "fast":
        tasks = [task for task in tasks if find_record(task, isa.name) is None]
        deadline = time.monotonic() + _FAST_SECONDS
    found = tune_matmuls(tasks, isa, effort, progress, deadline)
    if found:
        add_records(found)
    return len(found)
