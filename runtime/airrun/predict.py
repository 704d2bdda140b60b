"""How fast a plan will run, from what the compiler counted and measured; no model is touched.

A token reads every weight once and does the work that the compiler counted beyond that; attention reads the cache.
Whichever takes longer, memory or the rest, is what bounds the speed. Weights that are not kept are read from the disk
beside that, and then the slower of the two decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from airrun.errors import AirError
from airrun.ledger import Sizes, kv_nbytes
from airrun.machine.profile import load_profile
from airrun.paths import host_profile_path
from airrun.plan.schema import Cost, Plan

CONTEXT = 128
"""Tokens already in the cache where nothing else is said."""


@dataclass(frozen=True)
class Prediction:
    """Expected speed.

    Attributes
    ----------
    decode_tokens_per_second, prefill_tokens_per_second
        None where the target's rates are unknown.
    decode_bound, prefill_bound
        'disk', 'memory', 'compute', or 'unknown'.
    decode_seconds
        Of one token: 'weights', 'cache' and 'other' (computing, waiting, small steps), and beside them 'disk'.
    context
        Tokens in the cache before the one that is decoded.
    upper_limit
        Only memory could be counted, so that the real speed is lower.
    load_seconds
        Reading the weights from a cold disk; None if its rate is unknown.
    estimates
        Kernels whose rates were not measured on the target but taken from similar ones.
    """

    decode_tokens_per_second: float | None
    decode_bound: str
    decode_seconds: dict[str, float]
    prefill_tokens_per_second: float | None
    prefill_bound: str
    context: int
    upper_limit: bool
    load_seconds: float | None
    estimates: tuple[str, ...] = ()


def predict(plan: Plan, context: int = CONTEXT, sizes: Sizes | None = None) -> Prediction:
    """Predict the speed of a plan with `context` tokens in the cache, on the plan's number of threads.

    With the `sizes` of a run, what it streams is counted; otherwise everything is taken to be in memory. A plan for no
    particular machine has no rates; then those of this machine count, if `probe` has measured them.
    """
    cost = plan.cost if plan.cost.ram_bytes_per_s else _on_this_machine(plan.cost)
    blocks, ring = (-(-n // plan.kv.block_cells) for n in (context, min(context, plan.kv.window)))
    cells = kv_nbytes(plan.kv, blocks, ring)
    states = 2 * sum(state.nbytes for state in plan.states)  # read and written
    prefill = cost.prefill_macs_per_s / cost.macs_per_token if cost.macs_per_token else 0.0
    disk = cost.disk_bytes_per_s
    load = sum(file.nbytes for file in plan.files) / disk if disk else None
    if not cost.ram_bytes_per_s:
        return Prediction(
            None, "unknown", {}, prefill or None, "compute" if prefill else "unknown", context, False, load
        )
    batch = sizes.max_tokens if sizes is not None else plan.programs[-1].max_tokens
    residency = None if sizes is None else sizes.residency
    absent = residency.streamed_nbytes + residency.expert_nbytes if residency is not None else 0.0
    reading = absent / disk if disk else 0.0
    unknown = sizes is not None and sizes.residency.streams and not disk
    seconds = {
        "weights": cost.weight_nbytes_per_token / cost.ram_bytes_per_s,
        "cache": (cells + states) / cost.ram_bytes_per_s,
        "other": cost.decode_overhead_s,
    }
    total = sum(seconds.values())
    bound = "compute" if seconds["other"] > total / 2 else "memory"
    if reading > total:
        bound, total = "disk", reading
    if reading:
        seconds["disk"] = reading
    prefill_bound = "compute" if prefill else "unknown"
    if prefill and reading > batch / prefill:
        prefill, prefill_bound = batch / reading, "disk"
    return Prediction(
        decode_tokens_per_second=1 / total if total and not unknown else None,
        decode_bound="unknown" if unknown else bound,
        decode_seconds=seconds,
        prefill_tokens_per_second=prefill or None,
        prefill_bound=prefill_bound,
        context=context,
        upper_limit=bool(total) and not prefill,
        load_seconds=load,
        estimates=cost.estimates,
    )


def _on_this_machine(cost: Cost) -> Cost:
    """The cost with this machine's measured rates, or as it is."""
    path = host_profile_path()
    if not path.is_file():
        return cost
    try:
        tiers = load_profile(path).tiers
    except AirError:  # a damaged profile is reported by who builds with it; here it is only a missing figure
        return cost
    return replace(cost, ram_bytes_per_s=float(tiers.ram.bandwidth), disk_bytes_per_s=float(tiers.disk.bandwidth))
