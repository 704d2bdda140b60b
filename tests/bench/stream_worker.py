"""One run of an engine in a process of its own, for `streaming.py`: decodes a few tokens and prints a line of JSON.

python stream_worker.py air   PLAN MODEL THREADS TOKENS RAM LOAD_MODE CTX_SIZE DISK
python stream_worker.py llama MODEL THREADS TOKENS CTX_SIZE
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace


def air(
    plan: str, model: str, threads: str, tokens: str, ram: str, load_mode: str, ctx_size: str, disk: str
) -> dict[str, object]:
    """`disk`: bytes/s to predict with."""
    from airrun.engine import Engine
    from airrun.predict import predict

    started = time.perf_counter()
    budget = int(ram) or None
    engine = Engine.from_plan(
        plan, model, threads=int(threads), ram=budget, load_mode=load_mode, ctx_size=int(ctx_size)
    )  # type: ignore[arg-type]
    engine.session.eval([11])
    first = time.perf_counter() - started
    before = engine.metrics()
    started = time.perf_counter()
    for i in range(int(tokens)):
        engine.session.eval([100 + i])
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
        "expert_hit_share": after.get("expert_hit_share"),
        "stalled_share": waited / seconds,
        "predicted": predict(priced, sizes=engine.sizes).decode_tokens_per_second,
        "ledger": engine.sizes.total,
    }


def llama(model: str, threads: str, tokens: str, ctx_size: str) -> dict[str, object]:
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

    step(11)
    started = time.perf_counter()
    for i in range(int(tokens)):
        step(100 + i)
    return {"tokens_per_second": int(tokens) / (time.perf_counter() - started)}


if __name__ == "__main__":
    print(json.dumps({"air": air, "llama": llama}[sys.argv[1]](*sys.argv[2:])))
