"""What a token costs: counted on the lowered program, priced with measured rates of kernels and of the target's memory.

Calls between two barriers run side by side. Such a stage takes about as long as the slower of its computing and its
reading of weights; near the crossing it takes longer than either, for which a power mean of order four stands: of the
first order it would be no overlap, of an infinite one perfect overlap.

The plan carries the result, so it must be the same on every machine and under every version of Python: floats are added
by `fsum`, since `sum` rounds differently from version to version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aircompile.lowering import Call, Lowering, Phase
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS
from airrun.machine.profile import Profile
from airrun.plan.schema import PANEL_ROWS, Cost
from airrun.predict import CONTEXT
from airschedules.calibration import ACTIVATIONS, Calibration, Rate, load_calibration
from airschedules.specs import (
    AttentionSpec,
    ExpertMatmulSpec,
    HeadMatmulSpec,
    MatmulSpec,
    RopeStoreSpec,
)


@dataclass(frozen=True)
class Machine:
    """The target in numbers: threads, bytes/s they read together, and rates of kernels."""

    threads: int
    ram_bytes_per_s: float
    rates: Calibration


def estimate(lowered: Sequence[tuple[Phase, Lowering]], profile: Profile, threads: int = 0) -> Cost:
    """Price the programs of a plan for a target.

    Parameters
    ----------
    lowered
        The program of one token first, that of the largest batch last.
    profile
        The target; rates that it does not know make those of the cost 0. Where its kernels were never measured only
        memory and disk count, and `prefill_macs_per_s` is 0.
    threads
        Threads of a run; 0 for all of the target's.

    Returns
    -------
    Cost
        `decode_overhead_s` holds for a cache of `airrun.predict.CONTEXT` tokens, `prefill_macs_per_s` for a
        prompt that fills one batch; `estimates` names kernels whose rates are those of others of their class.
    """
    decode, (batch, prefill) = lowered[0][1], lowered[-1]
    nbytes = sum(weight_nbytes(call) for call in decode.calls)
    macs = sum(_macs(spec) for spec in _products(decode.calls))
    ram, overhead, rate = _ram_rate(profile, threads), 0.0, 0.0
    estimates: tuple[str, ...] = ()
    machine = _machine(profile, threads)
    if machine is not None:
        overhead = max(0.0, decode_seconds(decode.calls, machine, CONTEXT) - nbytes / ram)
        rate = macs * batch.max_tokens / prefill_seconds(prefill.calls, machine, batch.max_tokens)
        estimates = _estimates(decode.calls, prefill.calls, machine.rates)
    return Cost(
        weight_nbytes_per_token=nbytes,
        macs_per_token=macs,
        ram_bytes_per_s=ram,
        disk_bytes_per_s=float(profile.tiers.disk.bandwidth),
        decode_overhead_s=overhead,
        prefill_macs_per_s=rate,
        estimates=estimates,
    )


def decode_seconds(calls: Sequence[Call], machine: Machine, context: int) -> float:
    """Seconds of one token after `context` others."""
    total = 0.0
    for stage in stages(calls):
        computing = math.fsum(_decode(call, machine, context) for call in stage)
        reading = sum(map(weight_nbytes, stage)) / machine.ram_bytes_per_s
        total += _overlapped(computing, reading) + _waiting(machine)
    return total


def prefill_seconds(calls: Sequence[Call], machine: Machine, n_tokens: int) -> float:
    """Seconds of a prompt of `n_tokens`, of which the last one's logits are wanted."""
    total = 0.0
    for stage in stages(calls):
        computing = math.fsum(_prefill(call, machine, n_tokens) for call in stage)
        reading = sum(map(weight_nbytes, stage)) / machine.ram_bytes_per_s
        total += _overlapped(computing, reading) + _waiting(machine)
    return total


def stages(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Calls up to each barrier."""
    stage: list[Call] = []
    for call in calls:
        stage.append(call)
        if call.sync:
            yield stage
            stage = []
    if stage:
        yield stage


def weight_nbytes(call: Call) -> int:
    """Bytes of weights that a call reads."""
    if not isinstance(call.spec, MatmulSpec):
        return 0
    return call.tasks * PanelLayout(FORMATS[call.spec.weights], call.spec.matrix.n_cols).nbytes


def elements(call: Call) -> int:
    """Elements that a kernel other than a product handles for one token; of attention, for one cell."""
    spec = call.spec
    if isinstance(spec, RopeStoreSpec):
        n_heads, n_kv_heads, head_dim = spec.shape
        return (n_heads + 2 * n_kv_heads) * head_dim
    if isinstance(spec, AttentionSpec):
        return spec.n_heads * (spec.cache.head_dim + spec.cache.v_dim) // 2
    return spec.shape[0]


def _ram_rate(profile: Profile, threads: int) -> float:
    """Bytes/s of memory that the threads of a run reach together; 0 if unknown."""
    ram, n = profile.tiers.ram, threads or profile.cpu.threads
    return float(min(ram.bandwidth, n * (ram.bandwidth_1 or ram.bandwidth)))


def _machine(profile: Profile, threads: int) -> Machine | None:
    ram, n = _ram_rate(profile, threads), threads or profile.cpu.threads
    rates = load_calibration(profile.cpu.isa[0], profile.cpu.vendor) if profile.cpu.isa else None
    return None if rates is None or not ram else Machine(n, ram, rates)


def _estimates(decode: Sequence[Call], prefill: Sequence[Call], rates: Calibration) -> tuple[str, ...]:
    """Kernels that were not measured."""
    found = set()
    for phase, calls in (("decode", decode), ("prefill", prefill)):
        for spec in (call.spec for call in calls):
            if isinstance(spec, MatmulSpec):
                if not _product_rate(spec, phase, rates).measured:
                    found.add(f"{spec.weights}/{ACTIVATIONS[spec.task.digits]}")
            elif not rates.element(phase, spec.rate).measured:
                found.add(spec.rate)
    return tuple(sorted(found))


def _product_rate(spec: MatmulSpec, phase: str, rates: Calibration) -> Rate:
    return rates.product(phase, spec.weights, spec.task.digits)


def _products(calls: Sequence[Call]) -> Iterator[MatmulSpec]:
    return (call.spec for call in calls if isinstance(call.spec, MatmulSpec))


def _macs(spec: MatmulSpec) -> int:
    """Multiplications of a product for one token."""
    n = spec.order.n_used if isinstance(spec, ExpertMatmulSpec) else 1
    n = spec.n_heads if isinstance(spec, HeadMatmulSpec) else n
    return n * spec.matrix.n_rows * spec.matrix.n_cols


def _overlapped(computing: float, reading: float) -> float:
    # multiplied and rooted, which every machine rounds alike; powers are not
    computing, reading = computing * computing, reading * reading
    return math.sqrt(math.sqrt(computing * computing + reading * reading))


def _waiting(machine: Machine) -> float:
    return machine.rates.sync if machine.threads > 1 else 0.0


def _decode(call: Call, machine: Machine, context: int) -> float:
    """Computing of a call for one token: its tasks are all there is to share between the threads."""
    rates, workers = machine.rates, min(machine.threads, call.tasks)
    if isinstance(call.spec, MatmulSpec):
        return weight_nbytes(call) / _product_rate(call.spec, "decode", rates).value / workers
    cells = _visible(call.spec, context + 1) if isinstance(call.spec, AttentionSpec) else 1
    return elements(call) * cells * rates.element("decode", call.spec.rate).value / workers


def _prefill(call: Call, machine: Machine, n_tokens: int) -> float:
    """Computing of a call for a prompt; products of output rows have a single token."""
    if call.rows == "outputs":
        return _decode(call, machine, 0)
    rates, n = machine.rates, machine.threads
    if isinstance(call.spec, MatmulSpec):
        rows = call.tasks * PANEL_ROWS
        if isinstance(call.spec, ExpertMatmulSpec):  # its tasks are all experts, of which a token uses some
            rows = call.spec.order.n_used * call.spec.matrix.n_rows
        macs = rows * call.spec.matrix.n_cols * n_tokens
        return macs / _product_rate(call.spec, "prefill", rates).value / n
    # a token sees those before it and itself
    cells = _visible(call.spec, (n_tokens + 1) / 2) if isinstance(call.spec, AttentionSpec) else 1
    return elements(call) * n_tokens * cells * rates.element("prefill", call.spec.rate).value / n


def _visible(spec: AttentionSpec, cells: float) -> float:
    """Cells that a token sees of those before it."""
    return min(cells, spec.window or spec.chunk or cells)
