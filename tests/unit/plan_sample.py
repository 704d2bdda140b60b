"""A small plan of a llama with all kinds of entries, for tests of the plan file; any number of layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from airrun.plan.blocks import BLOCKS
from airrun.plan.chunks import n_chunks
from airrun.plan.schema import (
    INPUTS,
    Buffer,
    Choice,
    Constant,
    Cost,
    Kernel,
    KvCache,
    KvLayer,
    Library,
    Model,
    Operand,
    Plan,
    Program,
    Rope,
    Segment,
    StateCache,
    Step,
    Stream,
    Tensor,
    Weight,
    WeightFile,
    WeightPart,
)

N_EMBD, N_HEADS, N_KV_HEADS, HEAD_DIM, N_FF, N_VOCAB, N_CTX = 64, 4, 2, 16, 160, 300, 512
HEADER_NBYTES = 4096
CHUNK_PANELS = 3
NONE = Operand("none", 0, 0)


def panels(name: str, layer: int, members: list[int], tensors: list[Tensor]) -> Weight:
    """A weight of interleaved rows, made of whole tensors."""
    first, parts = 0, []
    for tensor in members:
        parts.append(WeightPart(tensor, first))
        first += -(-tensors[tensor].shape[0] // 16)
    form, n_cols = tensors[members[0]].format, tensors[members[0]].shape[1]
    size = 16 * BLOCKS[form].row_bytes(n_cols)
    n_rows = sum(tensors[tensor].shape[0] for tensor in members)
    pack = f"pack_{form.lower()}_{n_cols}"
    return Weight(name, layer, form, n_rows, n_cols, first * size, size, pack, CHUNK_PANELS, tuple(parts))


def sample(n_layers: int = 2, library_nbytes: int = 3000) -> tuple[Plan, list[bytes]]:
    """A plan and what its segments (tokenizer, constants, library) hold."""
    tensors: list[Tensor] = []
    end = HEADER_NBYTES

    def tensor(name: str, form: str, *shape: int, access: str = "weight") -> int:
        nonlocal end
        nbytes = math.prod(shape[:-1]) * BLOCKS[form].row_bytes(shape[-1])
        tensors.append(Tensor(name, 0, end, nbytes, form, shape, access))
        end += -(-nbytes // 32) * 32
        return len(tensors) - 1

    weights: list[Weight] = []
    embedding = tensor("token_embd.weight", "Q8_0", N_VOCAB, N_EMBD, access="row_gather")
    norm = tensor("output_norm.weight", "F32", N_EMBD, access="pinned")

    buffers, arena = [], 0
    for name, nbytes in (("hidden", 256), ("normed", 128), ("qkv", 512), ("attention", 256), ("ffn", 1280)):
        buffers.append(Buffer(name, arena, nbytes))
        arena += nbytes
    hidden, normed, qkv, attention, ffn = (Operand("buffer", i, 0) for i in range(5))
    inputs = {name: Operand("input", i, 0) for i, name in enumerate(INPUTS)}

    names = (
        "embed",
        "norm",
        "head_norm",
        "qkv",
        "store",
        "attend",
        "out",
        "gate_up",
        "scan",
        "down",
        "head",
        "pack_q4_0_64",
    )
    names += ("pack_q4_0_160", "pack_q8_0_64")
    kernels = tuple(Kernel(n, n, "Q4_0", (16, 64), "panels 1x4", "the last rule: always applies") for n in names)

    def step(name: str, layer: int, tokens: int, *operands: Operand, tasks: int = 4, group: int = 0) -> Step:
        phase = "layer" if layer >= 0 else name.partition("_")[0]
        rows = "outputs" if phase == "head" else "tokens"
        label = f"layer {layer} {name}" if layer >= 0 else name
        filled = operands + (NONE,) * (8 - len(operands))
        return Step(
            "call", "cpu", 0, names.index(name), layer, phase, label, rows, tasks, min(group, tokens), True, filled
        )

    layers = []
    for layer in range(n_layers):
        prefix = f"blk.{layer}."
        norms = [tensor(prefix + f"{n}_norm.weight", "F32", N_EMBD, access="pinned") for n in ("attn", "ffn")]
        q = tensor(prefix + "attn_q.weight", "Q4_0", N_HEADS * HEAD_DIM, N_EMBD)
        k, v = (tensor(prefix + f"attn_{n}.weight", "Q4_0", N_KV_HEADS * HEAD_DIM, N_EMBD) for n in "kv")
        o = tensor(prefix + "attn_output.weight", "Q4_0", N_EMBD, N_EMBD)
        gate, up = (tensor(prefix + f"ffn_{n}.weight", "Q4_0", N_FF, N_EMBD) for n in ("gate", "up"))
        down = tensor(prefix + "ffn_down.weight", "Q4_0", N_EMBD, N_FF)
        first = len(weights)
        for name, members in (("qkv", [q, k, v]), ("out", [o]), ("gate_up", [gate, up]), ("down", [down])):
            weights.append(panels(prefix + name, layer, members, tensors))
        layers.append((norms, first))
    weights.append(panels("head", -1, [embedding], tensors))

    def program(name: str, tokens: int) -> Program:
        steps = [step("embed", -1, tokens, Operand("tensor", embedding, 0), inputs["token_ids"], hidden, group=1)]
        for layer, (norms, first) in enumerate(layers):
            w = [Operand("weight", first + i, 0) for i in range(4)]
            n = [Operand("tensor", i, 0) for i in norms]
            cache = Operand("kv", layer, 0)
            where = (inputs["cells"], inputs["sequences"], inputs["block_table"])
            scratch = Operand("scratch", 0, 0)
            state = (Operand("state", 0, 0), inputs["state_slots"])
            steps += [
                step("norm", layer, tokens, hidden, n[0], normed, group=1),
                step("qkv", layer, tokens, w[0], normed, qkv, tasks=8),
                step("store", layer, tokens, qkv, cache, inputs["rope"], *where, group=1),
                step("attend", layer, tokens, qkv, cache, attention, *where, scratch, group=1),
                step("out", layer, tokens, w[1], attention, hidden, scratch),
                step("norm", layer, tokens, hidden, n[1], normed, group=1),
                step("gate_up", layer, tokens, w[2], normed, ffn, tasks=20),
                step("scan", layer, tokens, hidden, *state),
                step("down", layer, tokens, w[3], replace(ffn, offset=640), hidden),
            ]
        final = (Operand("weight", len(weights) - 1, 0), hidden, Operand("logits", 0, 0), inputs["output_rows"])
        steps.append(step("head_norm", -1, tokens, hidden, Operand("tensor", norm, 0), normed, group=1))
        steps.append(step("head", -1, tokens, *final, tasks=19))
        return Program(name, tokens, tuple(steps))

    frequencies = (10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))).astype("<f8")
    tables = (frequencies, np.zeros(HEAD_DIM // 2, "<i4"), np.ones(HEAD_DIM // 2, "<f8"))
    constants_bytes = b"".join(table.tobytes() for table in tables)
    blocks = 2 * N_KV_HEADS * HEAD_DIM * 32 * 2
    segments = [bytes(range(256)) * 10, constants_bytes, b"\x7fELF" + bytes(library_nbytes - 4)]
    plan = Plan(
        generator="airrun tests",
        model=Model("sämple", "llama", N_VOCAB, N_EMBD, n_layers, N_CTX, 123_456, 0, 304),
        choice=Choice("host", N_CTX, 0, "auto", "f16", "none", 0),
        files=(WeightFile("sample.gguf", end, HEADER_NBYTES, "0123456789abcdef" * 4),),
        tensors=tuple(tensors),
        weights=tuple(weights),
        keep_order=(),
        stream=Stream(2, 4),
        constants=(
            Constant("inverse_frequency", "float64", (HEAD_DIM // 2,), 0, 8 * HEAD_DIM // 2),
            Constant("axis", "int32", (HEAD_DIM // 2,), 8 * HEAD_DIM // 2, 4 * HEAD_DIM // 2),
            Constant("magnitude", "float64", (HEAD_DIM // 2,), 12 * HEAD_DIM // 2, 8 * HEAD_DIM // 2),
        ),
        buffers=tuple(buffers),
        arena_nbytes=arena,
        kv=KvCache(
            32, N_CTX // 32, 0, 0, "F16", "F16", (KvLayer(N_KV_HEADS, HEAD_DIM, HEAD_DIM, blocks, False),) * n_layers
        ),
        states=(StateCache("scan", 4 * N_EMBD),),
        rope=Rope(HEAD_DIM // 2, 0, 1, 2, 1),
        kernels=kernels,
        programs=(program("decode", 1), program("batch", 8), program("prefill", 512)),
        libraries=(Library("x86-64-v3", "x86_64", ("avx2", "fma"), ("futex",), 2, 4096),),
        cost=Cost(100_000, 200_000, 1e10, 1e9, 1e-5, 1e11, ("IQ2_S/q16",)),
        tokenizer=0,
        constants_segment=1,
        segments=tuple(Segment(name, 0, 0) for name in ("tokenizer", "constants", "x86-64-v3")),
    )
    return replace(plan, keep_order=tuple(reversed(range(n_chunks(plan))))), segments
