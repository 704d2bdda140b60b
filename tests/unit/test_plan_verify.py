"""Every rule about the numbers of a plan, each with a plan that breaks it and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_sample import NONE, sample

from airrun.errors import PlanError
from airrun.plan.container import encode_plan
from airrun.plan.schema import INPUTS, Operand, Plan, Segment, WeightPart
from airrun.plan.verify import verify

PLAN, SEGMENTS = sample()
PLAN = replace(
    PLAN, segments=tuple(Segment(s.name, 0, len(data)) for s, data in zip(PLAN.segments, SEGMENTS, strict=True))
)
HUGE = 1 << 62
TENSORS = {tensor.name: i for i, tensor in enumerate(PLAN.tensors)}
WEIGHTS = {weight.name: i for i, weight in enumerate(PLAN.weights)}
QKV, HEAD, N_CHUNKS = WEIGHTS["blk.0.qkv"], WEIGHTS["head"], len(PLAN.keep_order)
STEPS = PLAN.programs[1].steps
NORM_STEP, QKV_STEP, HEAD_STEP = 1, 2, len(STEPS) - 1


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with the place at `path` replaced; a function is called with the old value."""
    if not path:
        return new(value) if callable(new) else new
    key, rest = path[0], path[1:]
    if isinstance(key, int):
        return (*value[:key], changed(value[key], rest, new), *value[key + 1 :])
    return replace(value, **{key: changed(getattr(value, key), rest, new)})


def plan_with(*changes: tuple[str, Any]) -> Plan:
    """The sample with changes such as ``("weights.3.nbytes", 5)``."""
    plan = PLAN
    for path, new in changes:
        plan = changed(plan, tuple(int(part) if part.isdigit() else part for part in path.split(".")), new)
    return plan


def test_the_sample_is_sound() -> None:
    verify(PLAN)
    for n_layers in (1, 5):
        encode_plan(*sample(n_layers))


def step(number: int) -> str:
    return f"programs.1.steps.{number}"


def operand(number: int, place: int) -> str:
    return f"programs.1.steps.{number}.operands.{place}"


ONE_CHANGE: list[tuple[str, Any, str]] = [
    # model and choices
    ("model.n_vocab", 0, "model.n_vocab is 0, expected 1 to 2147483647"),
    ("model.n_vocab", 1 << 31, "model.n_vocab is 2147483648"),
    ("model.n_vocab", 305, "model.logits_stride is 304, expected 305 to"),
    ("model.n_embd", -1, "model.n_embd is -1"),
    ("model.n_embd", 65, "model.hidden is a buffer of 256 bytes per token, embeddings need 260"),
    ("model.n_layers", 0, "model.n_layers is 0, expected 1 to 16384"),
    ("model.n_layers", 16385, "model.n_layers is 16385"),
    ("model.n_ctx_train", 0, "model.n_ctx_train is 0"),
    ("model.n_params", HUGE + 1, "model.n_params is"),
    ("model.hidden", 5, "model.hidden is 5, buffers has 5 entries"),
    ("model.hidden", -1, "model.hidden is -1, buffers has 5 entries"),
    ("choice.ctx_size", 0, "choice.ctx_size is 0"),
    ("choice.ram_nbytes", -1, "choice.ram_nbytes is -1"),
    ("choice.threads", -1, "choice.threads is -1, expected 0 to 65536"),
    # files
    ("files", (), "number of files is 0"),
    ("files.0.name", "", r"files\[0\].name is '', not the name of a file"),
    ("files.0.name", "..", r"files\[0\].name is '..'"),
    ("files.0.name", "a/b", r"files\[0\].name is 'a/b'"),
    ("files.0.name", "a\\b", r"files\[0\].name is"),
    ("files.0.name", "a" * 256, r"files\[0\].name is 'aaa"),
    ("files.0.header_sha256", "ABCDEF0123456789" * 4, r"files\[0\].header_sha256 is not a SHA-256"),
    ("files.0.header_sha256", "0" * 63, r"files\[0\].header_sha256"),
    ("files.0.header_sha256", "0" * 64 + "\n", r"files\[0\].header_sha256"),
    ("files.0.nbytes", 0, r"files\[0\].nbytes is 0"),
    ("files.0.nbytes", HUGE + 1, r"files\[0\].nbytes is"),
    ("files.0.header_nbytes", 0, r"files\[0\].header_nbytes is 0"),
    ("files.0.header_nbytes", lambda n: n + 1, r"tensors\[0\].offset is 4096, expected 4097 to"),
    ("files.0.header_nbytes", 1 << 40, r"files\[0\].header_nbytes is 1099511627776, expected 1 to"),
    ("files", lambda files: files * 2, "files has the same fingerprint twice"),
    # tensors
    ("tensors.1.file", 1, r"tensors\[1\].file is 1, files has 1 entries"),
    ("tensors.1.access", "cached", r"tensors\[1\].access is 'cached', which is unknown"),
    ("tensors.1.access", "weight", r"tensors\[1\].access is 'weight', but a step reads the tensor itself"),
    (
        "tensors.1.access",
        "row_gather",
        r"tensors\[1\].access is 'row_gather', but a step does not read it by row numbers",
    ),
    ("tensors.1.format", "Q9_9", r"tensors\[1\].format is 'Q9_9', which is unknown"),
    ("tensors.0.offset", 0, r"tensors\[0\].offset is 0, expected 4096 to"),
    ("tensors.0.offset", -1, r"tensors\[0\].offset is -1"),
    ("files.0.nbytes", lambda n: n - 1, rf"tensors\[{len(PLAN.tensors) - 1}\].offset is"),
    ("tensors.0.offset", 1 << 62, r"tensors\[0\].offset is"),
    ("tensors.0.nbytes", lambda n: n - 1, r"tensors\[0\].nbytes is \d+, expected \d+ from Q8_0 of shape \(300, 64\)"),
    ("tensors.0.nbytes", lambda n: n + 1, r"tensors\[0\].nbytes is"),
    ("tensors.0.shape", (), r"tensors\[0\].shape is 0 dimensions, expected 1 to 4"),
    ("tensors.0.shape", (1, 1, 1, 300, 64), r"tensors\[0\].shape is 5 dimensions"),
    ("tensors.0.shape", (0, 64), r"tensors\[0\].shape\[0\] is 0"),
    ("tensors.0.shape", (-300, -64), r"tensors\[0\].shape\[0\] is -300"),
    ("tensors.0.shape", (300, 65), r"tensors\[0\].shape is wrong: 65 elements are not a whole number of Q8_0 blocks"),
    ("tensors.0.shape", (301, 64), r"tensors\[0\].nbytes is"),
    ("tensors.0.shape", (HUGE, HUGE), r"tensors\[0\].nbytes is"),
    # libraries and kernels
    ("libraries", (), "number of libraries is 0, expected 1 to 16"),
    ("libraries", lambda libraries: libraries * 2, "libraries has two for the same instruction set"),
    ("libraries.0.segment", 3, r"libraries\[0\].segment is 3, segments has 3 entries"),
    ("libraries.0.arch", "mips", r"libraries\[0\].arch is 'mips', which is unknown"),
    ("libraries.0.isa", "", r"libraries\[0\] has an empty name"),
    ("libraries.0.features", ("avx2", ""), r"libraries\[0\] has an empty name"),
    ("libraries.0.scratch_nbytes", -1, r"libraries\[0\].scratch_nbytes is -1"),
    ("libraries.0.scratch_nbytes", 1 << 47, r"libraries\[0\].scratch_nbytes is"),
    ("segments.2.nbytes", 0, r"libraries\[0\].segment is empty"),
    ("kernels.0.symbol", "", r"kernels\[0\].symbol is '', not a C identifier"),
    ("kernels.0.symbol", "1a", r"kernels\[0\].symbol is '1a'"),
    ("kernels.0.symbol", "a-b", r"kernels\[0\].symbol is 'a-b'"),
    ("kernels.0.symbol", "é", r"kernels\[0\].symbol is"),
    ("kernels.0.symbol", "a\n", r"kernels\[0\].symbol is"),
    ("kernels.0.symbol", "a" * 129, r"kernels\[0\].symbol is 'aaa"),
    ("kernels.0.shape", (16, -1), r"kernels\[0\].shape\[1\] is -1"),
    # weights
    (f"weights.{QKV}.layer", 2, r"weights\[\d\].layer is 2, expected -1 to 1"),
    (f"weights.{QKV}.layer", -2, r"weights\[\d\].layer is -2"),
    (f"weights.{QKV}.format", "Q", r"weights\[\d\].format is 'Q', which is unknown"),
    (f"weights.{QKV}.format", "Q8_0", r"weights\[\d\].parts\[0\].tensor is Q4_0 with rows of 64, the weight is Q8_0"),
    (f"weights.{QKV}.n_cols", 32, r"weights\[\d\].parts\[0\].tensor is Q4_0 with rows of 64, the weight is Q4_0 with"),
    (f"weights.{QKV}.n_cols", 0, r"weights\[\d\].n_cols is 0"),
    (f"weights.{QKV}.n_cols", 33, r"weights\[\d\].n_cols is wrong: 33 elements"),
    (f"weights.{QKV}.n_rows", 0, r"weights\[\d\].n_rows is 0"),
    (f"weights.{QKV}.n_rows", 127, r"weights\[\d\].n_rows is 127, the parts have 128 \(128 in whole panels\)"),
    (f"weights.{HEAD}.n_rows", 303, r"weights\[8\].n_rows is 303, the parts have 300 \(304 in whole panels\)"),
    (f"weights.{QKV}.nbytes", lambda n: n + 576, r"weights\[\d\].nbytes is \d+, expected \d+ from 8 panels"),
    (f"weights.{QKV}.nbytes", lambda n: n - 1, r"weights\[\d\].nbytes is"),
    (f"weights.{QKV}.panel_nbytes", lambda n: n + 1, r"weights\[\d\].panel_nbytes is 577, expected 576 from 16 rows"),
    (f"weights.{QKV}.pack", "absent", r"weights\[\d\].pack is 'absent', which is none of the kernels"),
    (f"weights.{QKV}.parts", (), r"weights\[\d\].parts is empty"),
    (f"weights.{QKV}.parts.1.tensor", 99, r"weights\[\d\].parts\[1\].tensor is 99, tensors has"),
    (f"weights.{QKV}.parts.1.tensor", -1, r"weights\[\d\].parts\[1\].tensor is -1, tensors has"),
    (f"weights.{QKV}.parts.1.tensor", 0, r"weights\[\d\].parts\[1\].tensor is Q8_0"),
    (f"weights.{QKV}.parts.0.first_panel", 1, r"weights\[\d\].parts\[0\].first_panel is 1, expected 0"),
    (f"weights.{QKV}.parts.2.first_panel", 5, r"weights\[\d\].parts\[2\].first_panel is 5, expected 6"),
    (f"weights.{QKV}.parts", lambda p: p[:2], r"weights\[\d\].n_rows is 128, the parts have 96"),
    (f"weights.{QKV}.chunk_panels", 0, r"weights\[\d\].chunk_panels is 0"),
    (f"weights.{QKV}.chunk_panels", 1 << 30, r"bytes of a chunk of weights\[\d\] is \d+, expected 1 to 1073741823"),
    (f"weights.{QKV}.chunk_panels", 1, "keep_order does not list each of the 43 chunks once"),
    ("keep_order", lambda order: order[1:], f"keep_order does not list each of the {N_CHUNKS} chunks once"),
    ("keep_order", lambda order: (order[1], *order[1:]), "keep_order does not list"),
    ("keep_order", lambda order: (*order, N_CHUNKS), "keep_order does not list"),
    ("stream.readers", 0, "stream.readers is 0, expected 1 to 256"),
    ("stream.slots", 1, "stream.slots is 1, expected 2 to 65536"),
    # constants
    ("constants_segment", 3, "constants_segment is 3, segments has 3 entries"),
    ("constants.0.dtype", "bfloat16", r"constants\[0\].dtype is 'bfloat16', which is unknown"),
    ("constants.0.shape", (1, 1, 1, 1, 8), r"constants\[0\].shape is 5 dimensions"),
    ("constants.0.shape", (-8,), r"constants\[0\].shape\[0\] is -8"),
    ("constants.0.nbytes", 60, r"constants\[0\].nbytes is 60, expected 64 from shape \(8,\)"),
    ("constants.1.offset", -4, r"constants\[1\].offset is -4, expected 0 to 128"),
    ("constants.1.offset", 132, r"constants\[1\].offset is 132, expected 0 to 128"),
    ("constants.1.offset", 62, r"constants\[1\].offset is 62, not a multiple of 4"),
    ("constants_segment", 0, None),
    # buffers
    ("arena_nbytes", 0, "arena_nbytes is 0"),
    ("arena_nbytes", (1 << 42) + 64, "arena_nbytes is"),
    ("arena_nbytes", lambda n: n + 32, "arena_nbytes is 2464, not a multiple of 64"),
    ("arena_nbytes", lambda n: n - 64, r"buffers\[4\].offset is 1152, expected 0 to 1088"),
    ("buffers.1.offset", -64, r"buffers\[1\].offset is -64"),
    ("buffers.1.offset", 2368, r"buffers\[1\].offset is 2368, expected 0 to 2304"),
    ("buffers.1.offset", 32, r"buffers\[1\].offset is 32, not a multiple of 64"),
    ("buffers.1.nbytes", 100, r"buffers\[1\].nbytes is 100, not a multiple of 64"),
    ("buffers.1.nbytes", 0, r"buffers\[1\].nbytes is 0, expected 64 to"),
    ("buffers.1.nbytes", HUGE, r"buffers\[1\].nbytes is"),
    # cache and rotary positions
    ("kv.layers", lambda layers: layers * 2, "kv.layers is 4 caches, expected 0 to 2"),
    ("kv.layers", (), r".*operands\[\d\].index is 0, space kv has 0 entries"),
    ("kv.layers.1.n_kv_heads", 0, r"kv.layers\[1\].n_kv_heads is 0"),
    ("kv.layers.0.head_dim", 1 << 17, r"kv.layers\[0\].head_dim is 131072"),
    ("kv.layers.1.v_dim", 0, r"kv.layers\[1\].v_dim is 0"),
    ("kv.block_cells", 0, "kv.block_cells is 0"),
    ("kv.keys", "Q4_K", "kv.keys is 'Q4_K', which is unknown"),
    ("kv.values", "Q8_0", r"kv.layers\[0\].v_dim is 16, not a multiple of 32"),
    ("kv.window", 40, "kv.window is 40, expected 0"),
    ("kv.ring_blocks", 17, "kv.ring_blocks is 17, expected 0 to 16"),
    ("kv.layers.0.block_nbytes", lambda n: n - 1, r"kv.layers\[0\].block_nbytes is 4095, expected 4096 to"),
    ("kv.layers.0.v_dim", 17, r"kv.layers\[0\].block_nbytes is 4096, expected 4224 to"),
    ("kv.keys", "F32", r"kv.layers\[0\].block_nbytes is 4096, expected 6144 to"),
    ("kv.max_blocks", 15, "kv.max_blocks is 15, expected 16 to"),
    ("kv.max_blocks", 1 << 26, "kv.max_blocks is 67108864"),
    ("kv.layers.1.block_nbytes", 1 << 60, "size of the KV cache is"),
    ("states.0.nbytes", 0, r"states\[0\].nbytes is 0, expected 64 to"),
    ("states.0.nbytes", 96, r"states\[0\].nbytes is 96, not a multiple of 64"),
    ("states.0.nbytes", HUGE, r"states\[0\].nbytes is"),
    ("states", (), r".*operands\[\d\].index is 0, space state has 0 entries"),
    ("rope.n_pairs", -1, "rope.n_pairs is -1"),
    ("rope.n_pairs", 4, r"rope.inverse_frequency is float64 of shape \(8,\), expected float64 of shape \(4,\)"),
    ("rope.inverse_frequency", 1, r"rope.inverse_frequency is int32 of shape \(8,\), expected float64"),
    ("rope.inverse_frequency", 3, "rope.inverse_frequency is 3, constants has 3 entries"),
    ("rope.axis", 0, r"rope.axis is float64 of shape \(8,\), expected int32"),
    ("rope.magnitude", 1, r"rope.magnitude is int32 of shape \(8,\), expected float64"),
    ("rope.n_axes", 0, "rope.n_axes is 0, expected 1 to 4"),
    # programs
    ("programs", (), "number of programs is 0, expected 1 to 8"),
    ("programs", lambda p: p * 3, "number of programs is 9"),
    ("programs", lambda p: p[::-1], r"programs\[1\].max_tokens is 8, expected 513 to"),
    ("programs.1.max_tokens", 1, r"programs\[1\].max_tokens is 1, expected 2 to"),
    ("programs.0.max_tokens", 0, r"programs\[0\].max_tokens is 0"),
    ("programs.2.max_tokens", (1 << 20) + 1, r"programs\[2\].max_tokens is"),
    ("programs.1.steps", (), r"programs\[1\].steps is empty"),
    # steps
    (
        f"{step(2)}.kind",
        "collective",
        r"programs\[1\].steps\[2\].kind is 'collective', which is unknown",
    ),
    (f"{step(2)}.device", "cuda", r"programs\[1\].steps\[2\].device is 'cuda', which is unknown to this airrun"),
    (f"{step(2)}.stream", 64, r"programs\[1\].steps\[2\].stream is 64"),
    (f"{step(2)}.stream", -1, r"programs\[1\].steps\[2\].stream is -1"),
    (f"{step(2)}.kernel", 14, r"programs\[1\].steps\[2\].kernel is 14, kernels has 14 entries"),
    (f"{step(2)}.kernel", -1, r"programs\[1\].steps\[2\].kernel is -1"),
    (f"{step(2)}.layer", 2, r"programs\[1\].steps\[2\].layer is 2, expected 0 to 1"),
    (f"{step(2)}.layer", -1, r"programs\[1\].steps\[2\].layer is -1, expected 0 to 1"),
    (f"{step(0)}.layer", -2, r"programs\[1\].steps\[0\].layer is -2, expected -1 to 1"),
    (f"{step(2)}.phase", "tail", r"programs\[1\].steps\[2\].phase is 'tail', which is unknown"),
    (f"{step(2)}.rows", "cells", r"programs\[1\].steps\[2\].rows is 'cells', which is unknown"),
    (f"{step(2)}.tasks", 0, r"programs\[1\].steps\[2\].tasks is 0"),
    (f"{step(2)}.tasks", 1 << 31, r"programs\[1\].steps\[2\].tasks is 2147483648"),
    (f"{step(1)}.tasks", 1 << 29, r"programs\[1\].steps\[1\].tasks is 4294967296 for the largest batch"),
    (f"{step(2)}.tokens_per_task", -1, r"programs\[1\].steps\[2\].tokens_per_task is -1"),
    (f"{step(2)}.operands", lambda o: o[:7], r"programs\[1\].steps\[2\].operands is 7 operands, expected 8"),
    (f"{step(2)}.operands", lambda o: (*o, NONE), r"programs\[1\].steps\[2\].operands is 9 operands"),
    (f"{step(2)}.tokens_per_task", 8, r"programs\[1\].steps\[2\] reads a weight otherwise than by tasks of a panel"),
    (f"{step(2)}.tasks", 9, r"programs\[1\].steps\[2\].tasks is 9 panels, expected 1 to 8"),
    (f"{step(2)}.tasks", 7, r"programs\[1\] does not read the weights in the order of programs\[0\]"),
    (f"{operand(2, 0)}.offset", 5, r"programs\[1\].steps\[2\] reads a weight otherwise"),
    # cost
    ("cost.macs_per_token", -1, "cost.macs_per_token is -1"),
    ("cost.weight_nbytes_per_token", HUGE + 1, "cost.weight_nbytes_per_token is"),
    ("cost.ram_bytes_per_s", 0.0, None),
    ("cost.ram_bytes_per_s", -1e-9, r"cost.ram_bytes_per_s is -1e-09, expected a rate \(0: unknown\)"),
    ("cost.disk_bytes_per_s", -1.0, "cost.disk_bytes_per_s is -1.0"),
    ("cost.prefill_macs_per_s", 1e19, "cost.prefill_macs_per_s is"),
    ("cost.decode_overhead_s", -0.1, "cost.decode_overhead_s is -0.1, expected a duration"),
    ("tokenizer", 3, "tokenizer is 3, segments has 3 entries"),
    ("tokenizer", -1, "tokenizer is -1"),
]

BAD_OPERANDS: list[tuple[Operand, str]] = [
    (Operand("stack", 0, 0), ".space is 'stack', which is unknown"),
    (Operand("none", 1, 0), ".index is 1, space none has 1 entries"),
    (Operand("none", 0, 1), ".offset is 1, expected 0"),
    (Operand("weight", 9, 0), ".index is 9, space weight has 9 entries"),
    (Operand("weight", -1, 0), ".index is -1"),
    (Operand("weight", QKV, -1), ".offset is -1"),
    (Operand("weight", QKV, 4608), ".offset is 4608, expected 0 to 4607"),
    (Operand("tensor", len(PLAN.tensors), 0), ".index is"),
    (Operand("tensor", TENSORS["output_norm.weight"], 256), ".offset is 256, expected 0 to 255"),
    (Operand("buffer", 5, 0), ".index is 5, space buffer has 5 entries"),
    (Operand("buffer", 0, 256), ".offset is 256, expected 0 to 255"),
    (Operand("constant", 3, 0), ".index is 3"),
    (Operand("constant", 1, 32), ".offset is 32, expected 0 to 31"),
    (Operand("input", 7, 0), ".index is 7, space input has 7 entries"),
    (Operand("input", INPUTS.index("cells"), 4), ".offset is 4, expected 0 to 3"),
    (Operand("input", INPUTS.index("rope"), 64), ".offset is 64, expected 0 to 63"),
    (Operand("input", INPUTS.index("output_rows"), 0), ".space has a row per output, but the step counts tokens"),
    (Operand("kv", 2, 0), ".index is 2, space kv has 2 entries"),
    (Operand("kv", 0, 4096), ".offset is 4096, expected 0 to 4095"),
    (Operand("state", 1, 0), ".index is 1, space state has 1 entries"),
    (Operand("state", 0, 256), ".offset is 256, expected 0 to 255"),
    (Operand("logits", 1, 0), ".index is 1"),
    (Operand("logits", 0, 0), ".space has a row per output, but the step counts tokens"),
    (Operand("scratch", 1, 0), ".index is 1"),
    (Operand("scratch", 0, 4096), ".offset is 4096, expected 0 to 4095"),
]

GOOD_OPERANDS = [
    Operand("buffer", 0, 255),
    Operand("input", INPUTS.index("rope"), 32),
    Operand("kv", 1, 4095),
    Operand("state", 0, 255),
    Operand("scratch", 0, 4095),
    Operand("constant", 0, 63),
]


@pytest.mark.parametrize(("path", "new", "message"), ONE_CHANGE)
def test_a_plan_with_one_wrong_number_is_refused(path: str, new: Any, message: str | None) -> None:
    plan = plan_with((path, new))
    if message is None:
        verify(plan)
        return
    with pytest.raises(PlanError, match="^" + message) as caught:
        verify(plan)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("bad", "message"), BAD_OPERANDS)
def test_operands_stay_inside_their_space(bad: Operand, message: str) -> None:
    with pytest.raises(PlanError, match=r"^programs\[1\]\.steps\[2\]\.operands\[3\]" + message):
        verify(plan_with((operand(QKV_STEP, 3), bad)))


@pytest.mark.parametrize("good", GOOD_OPERANDS)
def test_operands_reach_the_last_byte(good: Operand) -> None:
    verify(plan_with((operand(QKV_STEP, 3), good)))


def test_outputs_have_logits() -> None:
    verify(plan_with((operand(HEAD_STEP, 5), Operand("logits", 0, 4 * 304 - 1))))
    with pytest.raises(PlanError, match=r"operands\[5\]\.offset is 1216, expected 0 to 1215"):
        verify(plan_with((operand(HEAD_STEP, 5), Operand("logits", 0, 4 * 304))))
    with pytest.raises(
        PlanError, match=rf"^programs\[1\]\.steps\[{HEAD_STEP}\]\.operands\[2\]\.space has a row per out"
    ):
        verify(plan_with((f"{step(HEAD_STEP)}.rows", "tokens")))


def test_scratch_is_what_every_library_has() -> None:
    small = replace(PLAN.libraries[0], isa="x86-64-v2", scratch_nbytes=0)
    with pytest.raises(PlanError, match=r"operands\[6\]\.index points into scratch, which has 0 bytes"):
        verify(plan_with(("libraries", (*PLAN.libraries, small))))


def test_a_bad_operand_is_found_wherever_it_is() -> None:
    bad = Operand("kv", 7, 0)
    for i, program in enumerate(PLAN.programs):
        for j in (0, len(program.steps) - 1):
            for k in (1, 7):
                with pytest.raises(PlanError, match=rf"^programs\[{i}\]\.steps\[{j}\]\.operands\[{k}\]\.index is 7"):
                    verify(plan_with((f"programs.{i}.steps.{j}.operands.{k}", bad)))


def test_rows_may_count_the_padding() -> None:
    verify(plan_with((f"weights.{HEAD}.n_rows", 304)))


def test_parts_are_padded_each_to_whole_panels() -> None:
    """Two parts of 300 rows: the second starts at panel 19, not where the rows of the first end."""
    two = replace(PLAN.weights[HEAD], parts=(WeightPart(0, 0), WeightPart(0, 19)), n_rows=600)
    order = tuple(range(N_CHUNKS + 7))  # of 3 panels each
    verify(plan_with((f"weights.{HEAD}", replace(two, nbytes=38 * two.panel_nbytes)), ("keep_order", order)))
    with pytest.raises(PlanError, match=r"nbytes is \d+, expected \d+ from 38 panels"):
        verify(plan_with((f"weights.{HEAD}", replace(two, nbytes=37 * two.panel_nbytes))))
    for first in (18, 20):
        parts = (WeightPart(0, 0), WeightPart(0, first))
        with pytest.raises(PlanError, match=rf"parts\[1\]\.first_panel is {first}, expected 19"):
            verify(plan_with((f"weights.{HEAD}", replace(two, parts=parts))))


def test_the_first_of_equal_values_is_named() -> None:
    plan = plan_with((f"{step(3)}.device", "npu"), (f"{step(5)}.device", "npu"))
    with pytest.raises(PlanError, match=r"^programs\[1\]\.steps\[3\]\.device is 'npu'"):
        verify(plan)
