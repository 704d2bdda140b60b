"""Logits of a plan in a process of its own: python emulated_logits.py PLAN MODEL IDS.npy OUT.npy

Prints the instruction set that was chosen. QEMU shows its programs the /proc/cpuinfo of the machine that it runs on,
while numpy asks the processor that they see, which is the emulated one.
"""

from __future__ import annotations

import sys

import numpy as np

from airrun.engine import Engine
from airrun.machine import isa


def main() -> None:
    plan, model, ids, out = sys.argv[1:]
    isa.host_features = isa._numpy_features  # type: ignore[assignment]
    with Engine.from_plan(plan, model, threads=1) as engine:
        np.save(out, engine.logits(np.load(ids).tolist()))
        print(engine.isa)


if __name__ == "__main__":
    main()
