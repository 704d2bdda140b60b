"""Time to the first token of a cold process on a GPU: ``python tests/bench/gpu_first_token.py PLAN MODEL``.

Prints as JSON: what Python and the CUDA context take, the time from the context to the first token, and the rate that
makes of the model's bytes; beside it the rate of the same reads and copies with nothing else done.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def copy_seconds(engine: Any) -> float:
    """Seconds to read all matrices into pinned memory and copy them to the device, with nothing else done."""
    from airrun.cuda.lanes import load
    from airrun.cuda.loading import loading_slots
    from airrun.cuda.pieces import rows_of_weight, transfers_of

    tiers = engine.device_sizes.tiers
    rows = [rows_of_weight(tiers.plan, tiers.device, i, 0) for i in range(len(tiers.places))]
    slots = loading_slots(tiers.plan, tiers.device)
    transfers = transfers_of(rows, slots.nbytes)
    started = time.perf_counter()
    load(engine.gpu, engine._files, transfers, slots, tiers.staging_nbytes, lambda *_: None)
    return time.perf_counter() - started


def main() -> None:
    """Measure this process."""
    started = time.perf_counter()
    from airrun import Engine
    from airrun.cuda import engine as cuda_engine

    imported = time.perf_counter()
    made: list[float] = []

    class Device(cuda_engine.Device):
        """Notes when its context is there."""

        def __init__(self, ordinal: int = 0) -> None:
            super().__init__(ordinal)
            made.append(time.perf_counter())

    cuda_engine.Device = Device  # type: ignore[misc]
    engine = Engine.from_plan(sys.argv[1], sys.argv[2], device="cuda")
    assert isinstance(engine, cuda_engine.CudaEngine)
    engine.session.eval([1, 40, 77, 5, 200])[0].argmax()
    first = time.perf_counter()
    times = engine.metrics()
    nbytes = Path(sys.argv[2]).stat().st_size
    after_context = first - made[0]
    copied = copy_seconds(engine)
    found = {
        "import_seconds": imported - started,
        "plan_seconds": made[0] - imported - times["context_seconds"],
        "first_token_seconds": after_context,
        "bytes_per_s": nbytes / after_context,
        "copy_bytes_per_s": nbytes / copied,
        "share": copied / after_context,
        **{name: value for name, value in times.items() if name.endswith("_seconds")},
    }
    engine.close()
    print(json.dumps(found))


main()
