"""One run of an engine in a process of its own, for `streaming.py`: decodes a few tokens and prints a line of JSON.

python stream_worker.py air   PLAN MODEL THREADS WARM TOKENS RAM LOAD_MODE CTX_SIZE DISK
python stream_worker.py llama MODEL THREADS WARM TOKENS CTX_SIZE

WARM tokens come before those that are timed: caches of what is used often need some.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import numpy as np


def text(n: int, n_vocab: int) -> list[int]:
    """Random tokens that are as frequent as words are (Zipf's law): the k-th most frequent one with 1/k."""
    rng = np.random.default_rng(5)
    frequencies = 1.0 / np.arange(1, n_vocab - 299)
    ranks = rng.choice(len(frequencies), size=n, p=frequencies / frequencies.sum())
    return [int(id_) for id_ in 300 + rng.permutation(len(frequencies))[ranks]]


def air(
    plan: str, model: str, threads: str, warm: str, tokens: str, ram: str, load_mode: str, ctx_size: str, disk: str
) -> dict[str, object]:
    """`disk`: bytes/s to predict with."""
    from airrun.engine import Engine
    from airrun.predict import predict

    started = time.perf_counter()
    budget = int(ram) or None
    engine = Engine.from_plan(
        plan, model, threads=int(threads), ram=budget, load_mode=load_mode, ctx_size=int(ctx_size)
    )  # type: ignore[arg-type]
    ids = text(1 + int(warm) + int(tokens), engine.n_vocab)
    engine.session.eval(ids[:1])
    first = time.perf_counter() - started
    for id_ in ids[1 : 1 + int(warm)]:
        engine.session.eval([id_])
    before = engine.metrics()
    started = time.perf_counter()
    for id_ in ids[1 + int(warm) :]:
        engine.session.eval([id_])
    seconds = time.perf_counter() - started
    after = engine.metrics()
    priced = replace(engine.plan, cost=replace(engine.plan.cost, disk_bytes_per_s=float(disk)))
    gained = {name: value - before[name] for name, value in after.items()}
    waited = gained.get("stalled_seconds", 0.0) + gained.get("expert_wait_seconds", 0.0)
    experts = gained.get("expert_bytes", 0.0)
    return {
        "tokens_per_second": int(tokens) / seconds,
        "first_token_seconds": first,
        "streamed_per_pass": engine.sizes.residency.streamed_nbytes + int(experts / int(tokens)),
        "bytes_per_second": (gained.get("streamed_bytes", 0.0) + experts) / seconds,
        "expert_hit_share": hit_share(before, after),
        "stalled_share": waited / seconds,
        "predicted": predict(priced, sizes=engine.sizes).decode_tokens_per_second,
        "ledger": engine.sizes.total,
    }


def hit_share(before: dict[str, float], after: dict[str, float]) -> float | None:
    """Of the experts that were chosen in between, the part that was there; None where none are streamed."""
    if not after.get("expert_misses"):
        return None
    uses, hits = [], []
    for found in (before, after):
        uses.append(found["expert_misses"] / max(1.0 - found["expert_hit_share"], 1e-9))
        hits.append(uses[-1] - found["expert_misses"])
    return (hits[1] - hits[0]) / (uses[1] - uses[0])


def llama(model: str, threads: str, warm: str, tokens: str, ctx_size: str) -> dict[str, object]:
    import llama_cpp as lib

    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    # repacked weights are copies, which a limit kills; mapped ones can be dropped and read again
    settings.use_extra_bufts = False
    handle = lib.llama_model_load_from_file(model.encode(), settings)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = int(ctx_size), 32, 32
    params.n_threads = params.n_threads_batch = int(threads)
    context = lib.llama_init_from_model(handle, params)

    def step(token: int) -> None:
        batch = lib.llama_batch_get_one((lib.llama_token * 1)(token), 1)
        if lib.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        lib.llama_get_logits(context)

    vocab = lib.llama_model_get_vocab(handle)
    ids = text(1 + int(warm) + int(tokens), lib.llama_vocab_n_tokens(vocab))
    for id_ in ids[: 1 + int(warm)]:
        step(id_)
    started = time.perf_counter()
    for id_ in ids[1 + int(warm) :]:
        step(id_)
    return {"tokens_per_second": int(tokens) / (time.perf_counter() - started)}


if __name__ == "__main__":
    print(json.dumps({"air": air, "llama": llama}[sys.argv[1]](*sys.argv[2:])))
