"""``bench``: prefill and decode speed of a plan on this machine, and how near the decode is to its limit.

Rounds of prefill, decode and plain reading of memory alternate, so that a neighbour on the machine disturbs all
three alike. Decode is measured as a user sees it: evaluation, greedy choice and text, without the terminal.
"""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from airrun.commands.opening import open_engine
from airrun.commands.options import OptionParser
from airrun.errors import PlanError, UsageError
from airrun.replay.memory import Region, peak_resident_nbytes
from airrun.replay.native import Call, pack_calls

if TYPE_CHECKING:
    from airrun.engine import Engine

_RUN_OPTIONS = ("threads", "ctx_size", "ram", "vram", "load_mode", "device", "require_signature")
_FIRST_PROMPT, _FIRST_TOKENS = "The capital of France is", 5
_PROBE = "air_read_probe"
_PIECE = 1 << 16
"""Bytes of a task of the kernel `_PROBE`."""
_PROBED = 256 << 20
"""Bytes read by a round, or more where caches are larger."""
_PROBE_SECONDS = 0.05
_SLICE = 4 << 20


@dataclass
class _Rounds:
    """What each round gave: tokens/s, tokens/s, bytes/s, and the share of decode time outside native code (on a GPU, in
    which nothing was waited for); the same in microseconds a token."""

    prefill: list[float]
    decode: list[float]
    read: list[float]
    overhead: list[float]
    host: list[float]


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("plan", metavar="PLAN", help="plan.bin to measure, or a GGUF model, which is compiled first")
    parser.add_options(("model", *_RUN_OPTIONS))
    for flags, default, text in (
        (("-p", "--n-prompt"), 512, "tokens of a prefill"),
        (("-n", "--n-gen"), 128, "tokens of a decode"),
        (("-r", "--repetitions"), 5, "rounds"),
    ):
        parser.add_argument(*flags, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: Namespace) -> int:
    """Measure and print.

    Raises
    ------
    UsageError
        Numbers out of range, or more tokens than the context holds.
    AirError
        A plan that cannot run here.
    """
    for name in ("n_prompt", "n_gen", "repetitions"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}")
    options: dict[str, Any] = {name: getattr(args, name) for name in _RUN_OPTIONS}
    if os.path.splitext(args.plan)[1].lower() == ".gguf":
        open_engine(args.plan, args.model, **options).close()  # compiles it, which is no part of a start
    started = time.perf_counter()
    with open_engine(args.plan, args.model, **options) as engine:
        first = _first_token(engine) - started
        found = measure(engine, args.n_prompt, args.n_gen, args.repetitions) | {"time_to_first_token_ms": 1e3 * first}
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _show(found)
    return 0


def measure(engine: Engine, n_prompt: int, n_gen: int, rounds: int) -> dict[str, Any]:
    """Measure an engine.

    Parameters
    ----------
    n_prompt, n_gen
        Tokens of a prefill, and of a decode that begins with an almost empty context.
    rounds
        Times that everything is repeated, after one round that does not count.

    Returns
    -------
    dict
        What ``--json`` prints, but for the time to the first token. Rates are tokens/s, or 1e9 bytes/s of weights read
        and of memory read by as many threads without computing (on a GPU, copied: read and written); the share is that
        of their medians.
    """
    needed = max(n_prompt, n_gen + 1)
    if needed > engine.n_ctx:
        raise UsageError(f"{needed} tokens do not fit the context of {engine.n_ctx}; raise it with -c/--ctx-size")
    prompt = [(7919 * i + 11) % engine.n_vocab for i in range(n_prompt)]
    _prefill(engine, prompt)
    _decode(engine, n_gen)
    peak = peak_resident_nbytes()  # before the reader of memory takes a buffer that no user would
    read = _reader(engine)
    read()
    seen = _Rounds([], [], [], [], [])
    for _ in range(rounds):
        seen.prefill.append(n_prompt / _prefill(engine, prompt))
        seconds, native = _decode(engine, n_gen)
        seen.decode.append(n_gen / seconds)
        seen.overhead.append(1 - native / seconds)
        seen.host.append(1e6 * (seconds - native) / n_gen)
        seen.read.append(read())
    plan = engine.plan
    nbytes = plan.cost.weight_nbytes_per_token
    weights, bandwidth = median(seen.decode) * nbytes / 1e9, median(seen.read) / 1e9
    return {
        "plan": str(engine.loaded.path),
        "plan_digest": engine.loaded.digest,
        "model": plan.model.name,
        "architecture": plan.model.architecture,
        "device": engine.device,
        "gpu": _gpu_name(engine),
        "step_devices": engine.step_devices,
        "threads": engine.threads,
        "isa": engine.isa,
        "ctx_size": engine.n_ctx,
        "prompt_tokens": n_prompt,
        "decode_tokens": n_gen,
        "rounds": rounds,
        "prefill_tokens_per_second": _spread(seen.prefill),
        "decode_tokens_per_second": _spread(seen.decode),
        "weight_bytes_per_token": nbytes,
        "weights_gb_per_second": weights,
        "read_bandwidth_gb_per_second": bandwidth,
        "share_of_read_bandwidth": weights / bandwidth,
        "replay_overhead_share": median(seen.overhead),
        "host_microseconds_per_token": median(seen.host),
        "peak_rss_bytes": peak,
    }


def _gpu_name(engine: Engine) -> str | None:
    """What its driver calls the GPU that the engine runs on."""
    if engine.device != "cuda":
        return None
    from airrun.cuda.engine import CudaEngine

    assert isinstance(engine, CudaEngine)
    name: str = engine.gpu.name
    return name


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _first_token(engine: Engine) -> float:
    """When the first token after a short prompt is known; the prompt is tokenized and cut to 5 tokens."""
    ids = (engine.tokenize(_FIRST_PROMPT) * _FIRST_TOKENS)[:_FIRST_TOKENS]
    engine.session.eval(ids)[0].argmax()
    return time.perf_counter()


def _prefill(engine: Engine, prompt: list[int]) -> float:
    """Seconds to evaluate a prompt."""
    session = engine.session
    session.reset()
    started = time.perf_counter()
    session.eval(prompt)
    return time.perf_counter() - started


def _decode(engine: Engine, n: int) -> tuple[float, float]:
    """Seconds to generate n tokens, and how many of them were spent in native code."""
    from airrun.generation.sampler_config import SamplerConfig
    from airrun.generation.sampling import Sampler

    session = engine.session
    sampler = Sampler(SamplerConfig(temperature=0.0), engine.n_vocab)
    decoder = engine.tokenizer.stream(continuation=True)
    session.reset()
    logits = session.eval([11 % engine.n_vocab])[0]
    if engine.chooses:
        return _choose(engine, sampler.sample(logits), n)
    native = engine.metrics()["native_seconds"]
    started = time.perf_counter()
    for _ in range(n):
        token = sampler.sample(logits)
        decoder.push(token)
        logits = session.eval((token,))[0]
    return time.perf_counter() - started, engine.metrics()["native_seconds"] - native


def _choose(engine: Engine, token: int, n: int) -> tuple[float, float]:
    """`_decode` where the device chooses the tokens."""
    decoder = engine.tokenizer.stream(continuation=True)
    native = engine.metrics()["native_seconds"]
    started = time.perf_counter()
    for _ in range(n):
        decoder.push(token)
        token = engine.session.choose(token)
    return time.perf_counter() - started, engine.metrics()["native_seconds"] - native


def _reader(engine: Engine) -> Callable[[], float]:
    """A function that reads memory with the engine's threads, or copies a GPU's, for a moment and returns bytes/s."""
    if engine.device == "cuda":
        from airrun.cuda.engine import CudaEngine

        assert isinstance(engine, CudaEngine)
        return engine.copy_rate
    from airrun.machine.system import uncached_nbytes

    nbytes = max(uncached_nbytes(_PROBED) // _SLICE, engine.threads) * _SLICE
    buffer = Region(nbytes, huge=True)
    buffer.bytes[:] = 1  # pages that were never written are all the same page of zeros
    try:
        kernel = engine._team.library.address(_PROBE)
    except PlanError:  # a plan without the kernel
        return _numpy_reader(engine, buffer)
    sums = Region(64 * engine.threads)
    calls = pack_calls([Call(kernel, (buffer.address, sums.address), 0, nbytes // _PIECE, sync=True)])
    engine._team.adopt((buffer, sums, calls))

    def read() -> float:
        started, total = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < _PROBE_SECONDS:
            engine._team.run(calls.address, 1)
            total += nbytes
        return total / elapsed

    return read


def _numpy_reader(engine: Engine, buffer: Region) -> Callable[[], float]:
    from airrun.machine.probe import read_rate

    slices = buffer.array("u1", (buffer.nbytes // _SLICE, _SLICE))
    shares = [slices[i :: engine.threads] for i in range(engine.threads)]
    return lambda: float(read_rate(shares, _PROBE_SECONDS))


def _show(found: dict[str, Any]) -> None:
    from airrun.commands.explain_text import show_table, size

    def rate(name: str) -> str:
        value = found[f"{name}_tokens_per_second"]
        return f"{value['median']:.1f} tokens/s (min {value['min']:.1f}, max {value['max']:.1f})"

    share, weights = found["share_of_read_bandwidth"], found["weights_gb_per_second"]
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    outside = "outside native code"
    if found["gpu"] is not None:
        threads, outside = found["gpu"], "on the host, not waiting for the GPU"
    rows = [
        [f"prefill of {found['prompt_tokens']} tokens", rate("prefill")],
        [f"decode of {found['decode_tokens']} tokens", rate("decode")],
        ["weights read in decode", f"{weights:.1f} GB/s, {size(found['weight_bytes_per_token'])} a token"],
        ["share of read bandwidth", f"{share:.0%} of {found['read_bandwidth_gb_per_second']:.1f} GB/s"],
        [
            outside,
            f"{found['replay_overhead_share']:.1%} of decode, {found['host_microseconds_per_token']:.0f} us a token",
        ],
        ["time to first token", f"{found['time_to_first_token_ms']:.0f} ms after the start of Python, 5 tokens"],
        ["peak resident memory", size(found["peak_rss_bytes"])],
    ]
    title = f"{found['model'] or found['plan']}: {threads}, {found['isa']}, medians of {found['rounds']} rounds"
    show_table(title, ["measured", "value"], rows)
