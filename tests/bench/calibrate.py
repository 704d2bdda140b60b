"""Measures every kernel on this machine and prints the table that predictions are made from.

    python tests/bench/calibrate.py [--isa x86-64-v4] [--formats Q4_0 ...] [-o schedules/airschedules/calibration.toml]

For each instruction set, block format and kind of activations a model of one layer is compiled and its steps are
timed one by one, repeated on the same data, so that small matrices stay in the cache. Weights are random, and so are
embeddings, with outliers as trained models have them. What is measured takes the place of what the file has for this
instruction set and maker of processors; the rest stays. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block_samples import ordinary_blocks

from aircompile.pipeline import BuildOptions, build
from airrun.engine import Engine
from airrun.machine.isa import LEVELS, missing
from airrun.machine.system import cpu_name, detect
from airrun.plan.schema import PANEL_ROWS, Kernel, Step

FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
MORE_FORMATS = ("Q2_K", "Q5_K", "IQ4_XS", "MXFP4", "IQ2_XS", "IQ3_S", "TQ1_0")
"""One or two of each further kind of description, with activations as they are by default."""

OPTIONS = {"q16": "auto", "q8": "q8", "f32": "f32"}
"""How models are built whose products have activations of each kind."""

FREEDOM = 3
"""Of the t distribution of embeddings: a fifth of their groups of 32 have outliers."""
N_EMBD, N_FF, N_HEADS, N_KV_HEADS, HEAD_DIM, N_VOCAB = 1024, 2048, 16, 4, 64, 1024
PROMPT = 512
ROUNDS = 5


def write_model(path: Path, form: str) -> None:
    """A llama of one layer whose matrices are all of one format."""
    kind = gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(2 * PROMPT)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("llama")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    writer.add_token_list(special + [f"\u2581t{i}" for i in range(N_VOCAB - len(special))])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (N_VOCAB - len(special)))
    block = gguf.GGML_QUANT_SIZES[kind][0]
    rng = np.random.default_rng(0)

    def matrix(name: str, n_rows: int, n_cols: int) -> None:
        if block > 1:
            blocks = ordinary_blocks(rng, form, n_rows * n_cols // block)
            writer.add_tensor(name, blocks.reshape(n_rows, -1), raw_dtype=kind)
            return
        values = (rng.standard_normal((n_rows, n_cols)) * 0.02).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    writer.add_tensor("token_embd.weight", rng.standard_t(FREEDOM, (N_VOCAB, N_EMBD)).astype(np.float32))
    matrix("output.weight", N_VOCAB, N_EMBD)
    for name, n_rows, n_cols in (
        ("attn_q", N_HEADS * HEAD_DIM, N_EMBD),
        ("attn_k", N_KV_HEADS * HEAD_DIM, N_EMBD),
        ("attn_v", N_KV_HEADS * HEAD_DIM, N_EMBD),
        ("attn_output", N_EMBD, N_HEADS * HEAD_DIM),
        ("ffn_gate", N_FF, N_EMBD),
        ("ffn_up", N_FF, N_EMBD),
        ("ffn_down", N_EMBD, N_FF),
    ):
        matrix(f"blk.0.{name}.weight", n_rows, n_cols)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def seconds_of(engine: Engine, program: int, step: int, n_tokens: int) -> float:
    """Seconds of one call, best of several rounds of about 2 ms, after those before it: buffers are used again."""
    bound = engine._executor._program(program)
    bound.set_rows(n_tokens, 1)
    # what reads rows of the embedding from the file comes before the first step
    at = step + len(bound.calls) - len(engine.plan.programs[program].steps)
    engine._team.run(bound.address, at)
    call = bound.calls[at : at + 1].copy()
    call["sync"] = 1
    repeat = 1
    while True:
        calls = np.repeat(call, repeat)
        best = min(_timed(engine, calls) for _ in range(ROUNDS))
        if best > 2e-3:
            return best / repeat
        repeat = max(2 * repeat, int(repeat * 2.5e-3 / best))


def _timed(engine: Engine, calls: Any) -> float:
    started = time.perf_counter()
    engine._team.run(calls.ctypes.data, len(calls))
    return time.perf_counter() - started


def measure(isa: str, form: str, activations: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Work and seconds of the steps of one model: {(phase, operation): [work, seconds]}, and the cost of a barrier."""
    model, plan_path = folder / f"{form}.gguf", folder / f"{form}.plan.bin"
    if not model.exists():
        write_model(model, form)
    found = detect()
    profile = replace(found, cpu=replace(found.cpu, isa=(isa,)))
    build(model, plan_path, BuildOptions(profile, activations=activations))  # type: ignore[arg-type]
    spent: dict[str, Any] = defaultdict(lambda: [0.0, 0.0])
    with Engine.from_plan(plan_path, threads=1) as engine:
        prompt = np.arange(PROMPT) % N_VOCAB
        # leaves the inputs of the steps as a prompt and a token after it fill them
        engine.session.eval(prompt.tolist())
        _collect(engine, "prefill", PROMPT, spent)
        engine.session.eval([1])
        _collect(engine, "decode", 1, spent)
        barrier = _barrier(engine, plan_path)
    return dict(spent), barrier


def _collect(engine: Engine, phase: str, n_tokens: int, spent: dict[str, Any]) -> None:
    programs = [program.name for program in engine.plan.programs]
    index = programs.index(phase)
    for i, step in enumerate(engine.plan.programs[index].steps):
        if step.rows == "outputs" and phase == "prefill":
            continue
        kernel = engine.plan.kernels[step.kernel]
        entry = spent[phase, kernel.op]
        entry[0] += _work(step, kernel, phase, n_tokens)
        entry[1] += seconds_of(engine, index, i, n_tokens)


def _work(step: Step, kernel: Kernel, phase: str, n_tokens: int) -> float:
    """Bytes of a product in decode, multiplications in prefill; elements (and cells) of anything else."""
    if kernel.op == "matmul":
        n_rows, n_cols = step.tasks * PANEL_ROWS, kernel.shape[1]
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kernel.format]]
        return n_rows * n_cols // block * nbytes if phase == "decode" else n_rows * n_cols * n_tokens
    if kernel.op == "attention":
        cells = (PROMPT + 1) / 2 if phase == "prefill" else PROMPT + 1
        return kernel.shape[0] * kernel.shape[2] * cells * n_tokens
    if kernel.op == "ropestore":
        return (kernel.shape[0] + 2 * kernel.shape[1]) * kernel.shape[2] * n_tokens
    return kernel.shape[0] * n_tokens


def _barrier(alone: Engine, plan_path: Path) -> float:
    """What a step of one task costs more with two threads than with one."""
    with Engine.from_plan(plan_path, threads=2) as pair:
        pair.session.eval([1])
        return max(0.0, _short_step(pair) - _short_step(alone))


def _short_step(engine: Engine) -> float:
    """Seconds of a step of one task: first quartile of short rounds, so that few in it saw a thread lose its core."""
    bound = engine._executor._program(0)
    index = len(bound.calls) - 2
    bound.set_rows(1, 1)
    calls = np.repeat(bound.calls[index : index + 1], 100)
    calls["sync"] = 1
    return sorted(_timed(engine, calls) for _ in range(300))[75] / len(calls)


def fit(isa: str, formats: Sequence[str], folder: Path) -> dict[str, Any]:
    """The rates of an instruction set, as the table of a calibration."""
    rates: dict[str, dict[str, float]] = {"decode": {}, "prefill": {}}
    others: dict[tuple[str, str], list[float]] = {}
    barriers = []
    for form in formats:
        for activations in activations_of(form):
            print(f"{isa} {form} {activations}", file=sys.stderr)
            spent, barrier = measure(isa, form, OPTIONS[activations], folder)
            barriers.append(barrier)
            for (phase, op), (work, seconds) in spent.items():
                if op == "matmul":
                    rates[phase][f"{form}/{activations}"] = work / seconds
                else:
                    others.setdefault((phase, op), []).append(seconds / work)
    found: dict[str, Any] = {"machine": f"{cpu_name()}, {detect().cpu.cores} cores"}
    found["sync"] = sorted(barriers)[len(barriers) // 4]
    for phase, table in rates.items():
        found[phase] = table
        # products of output rows aside, some kernels run in decode alone
        found[f"element_{phase}"] = {
            op: float(np.median(others.get((phase, op), others["decode", op])))
            for kind, op in sorted(others)
            if kind == "decode"
        }
    return found


def activations_of(form: str) -> Sequence[str]:
    """Kinds of activations to measure a format with."""
    if form in ("F32", "F16", "BF16"):
        return ("f32",)
    return tuple(OPTIONS) if form in FORMATS else ("q16",)


def write(tables: dict[str, Any], path: Path) -> None:
    lines = ["# Rates of kernels on one thread, made by tests/bench/calibrate.py; see airschedules/calibration.py."]
    for name, table in tables.items():
        lines += ["", f'["{name}"]', f'machine = "{table["machine"]}"', f"sync = {table['sync']:.2e}"]
        for part in ("decode", "prefill", "element_decode", "element_prefill"):
            lines += ["", f'["{name}".{part}]', *(f'"{key}" = {value:.3e}' for key, value in table[part].items())]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="*", default=[level for level in LEVELS if not missing(level)])
    parser.add_argument("--formats", nargs="*", default=FORMATS + MORE_FORMATS)
    parser.add_argument("-o", "--output", type=Path, default=Path("schedules/airschedules/calibration.toml"))
    args = parser.parse_args()
    tables = tomllib.loads(args.output.read_text()) if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for isa in args.isa:
            old = tables.get(f"{isa}/{detect().cpu.vendor}", {})
            found = fit(isa, args.formats, Path(folder))
            for name, value in found.items():
                if isinstance(value, dict):
                    found[name] = old.get(name, {}) | value
            tables[f"{isa}/{detect().cpu.vendor}"] = found
            write(tables, args.output)


if __name__ == "__main__":
    main()
