"""Whether the numbers of a plan are consistent: every index, offset and size, before anything uses them.

A plan contains machine code, so this protects against damage and mistakes, not against malice. It checks what the
tables say of each other; that a tensor really is where the plan says is the fingerprint's business.
"""

from __future__ import annotations

import math
import re

from airrun.plan.blocks import BLOCKS
from airrun.plan.checks import equal, fail, index, multiple, one_of, row_nbytes, show, within
from airrun.plan.chunks import n_chunks
from airrun.plan.schema import ACCESSES, ARCHITECTURES, DTYPES, KV_FORMATS, PANEL_ROWS, Plan, Weight
from airrun.plan.verify_steps import MAX_BATCH, verify_programs

MAX_NBYTES = 1 << 62
"""Of anything: sums of two such numbers still fit 64 bits."""
MAX_COUNT = (1 << 31) - 1
"""Of tokens, rows and columns: kernels count them in int32."""
MAX_LAYERS = 1 << 14
MAX_DIMS = 4
MAX_LIBRARIES = 16
MAX_AXES = 4
MAX_PAIRS = 1 << 20
"""Of rotary positions, over all tables."""
MAX_THREADS = 1 << 16
MAX_CHUNKS = 1 << 20
MAX_READERS = 256
MAX_SLOTS = 1 << 16
MAX_RATE = 1e18
"""Of bytes, operations or seconds in the cost model."""

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def verify(plan: Plan) -> None:
    """Check every number of a plan against its tables; values must have their declared types, as decoding ensures.

    Raises
    ------
    PlanError
        The first inconsistency, with its path, such as ``programs[0].steps[3].operands[1].index``.
    """
    _model(plan)
    _files(plan)
    _tensors(plan)
    _code(plan)
    _weights(plan)
    _constants(plan)
    _buffers(plan)
    _kv_and_rope(plan)
    _states(plan)
    verify_programs(plan)
    _cost(plan)
    index("tokenizer", plan.tokenizer, plan.segments, "segments")


def verify_rope_axis(plan: Plan, constants: memoryview) -> None:
    """Check that the axes of rotary pairs exist, given the bytes of the segment of constants."""
    table = plan.constants[plan.rope.axis]
    nbytes = 4 * math.prod(table.shape)
    axes = constants[table.offset : table.offset + nbytes].cast("i")
    if nbytes and not (min(axes) >= 0 and max(axes) < plan.rope.n_axes):
        fail(f"constants[{plan.rope.axis}] {show(table.name)}", f"names an axis outside 0 to {plan.rope.n_axes - 1}")


def _model(plan: Plan) -> None:
    model, choice = plan.model, plan.choice
    for name in ("n_vocab", "n_embd", "n_ctx_train"):
        within(f"model.{name}", getattr(model, name), 1, MAX_COUNT)
    within("model.n_layers", model.n_layers, 1, MAX_LAYERS)
    within("model.n_params", model.n_params, 1, MAX_NBYTES)
    within("model.logits_stride", model.logits_stride, model.n_vocab, MAX_COUNT)
    index("model.hidden", model.hidden, plan.buffers, "buffers")
    hidden = plan.buffers[model.hidden]
    if hidden.nbytes < 4 * model.n_embd:
        fail("model.hidden", f"is a buffer of {hidden.nbytes} bytes per token, embeddings need {4 * model.n_embd}")
    within("choice.ctx_size", choice.ctx_size, 1, MAX_COUNT)
    within("choice.threads", choice.threads, 0, MAX_THREADS)
    within("choice.ram_nbytes", choice.ram_nbytes, 0, MAX_NBYTES)
    within("stream.readers", plan.stream.readers, 1, MAX_READERS)
    within("stream.slots", plan.stream.slots, 2, MAX_SLOTS)


def _files(plan: Plan) -> None:
    within("number of files", len(plan.files), 1, MAX_COUNT)
    for i, file in enumerate(plan.files):
        path = f"files[{i}]"
        if not file.name or file.name in (".", "..") or re.search(r"[/\\]", file.name) or len(file.name) > 255:
            fail(f"{path}.name", f"is {show(file.name)}, not the name of a file")
        if not _DIGEST.fullmatch(file.header_sha256):
            fail(f"{path}.header_sha256", "is not a SHA-256 in lower-case hexadecimal")
        within(f"{path}.nbytes", file.nbytes, 1, MAX_NBYTES)
        within(f"{path}.header_nbytes", file.header_nbytes, 1, file.nbytes)
    if len({file.header_sha256 for file in plan.files}) < len(plan.files):
        fail("files", "has the same fingerprint twice")


def _tensors(plan: Plan) -> None:
    for i, tensor in enumerate(plan.tensors):
        path = f"tensors[{i}]"
        index(f"{path}.file", tensor.file, plan.files, "files")
        one_of(f"{path}.format", tensor.format, BLOCKS)
        one_of(f"{path}.access", tensor.access, ACCESSES)
        file = plan.files[tensor.file]
        within(f"{path}.shape", len(tensor.shape), 1, MAX_DIMS, "dimensions")
        for j, n in enumerate(tensor.shape):
            within(f"{path}.shape[{j}]", n, 1, MAX_NBYTES)
        needed = math.prod(tensor.shape[:-1]) * row_nbytes(f"{path}.shape", tensor.format, tensor.shape[-1])
        equal(f"{path}.nbytes", tensor.nbytes, needed, f"{tensor.format} of shape {tensor.shape}")
        within(f"{path}.offset", tensor.offset, file.header_nbytes, file.nbytes - tensor.nbytes)


def _code(plan: Plan) -> None:
    within("number of libraries", len(plan.libraries), 1, MAX_LIBRARIES)
    for i, library in enumerate(plan.libraries):
        path = f"libraries[{i}]"
        index(f"{path}.segment", library.segment, plan.segments, "segments")
        if plan.segments[library.segment].nbytes == 0:
            fail(f"{path}.segment", "is empty")
        one_of(f"{path}.arch", library.arch, ARCHITECTURES)
        if not library.isa or not all((*library.features, *library.calls)):
            fail(path, "has an empty name among isa, features and calls")
        within(f"{path}.scratch_nbytes", library.scratch_nbytes, 0, MAX_NBYTES // MAX_THREADS)
    if len({(library.arch, library.isa) for library in plan.libraries}) < len(plan.libraries):
        fail("libraries", "has two for the same instruction set")
    for i, kernel in enumerate(plan.kernels):
        if not _SYMBOL.fullmatch(kernel.symbol):
            fail(f"kernels[{i}].symbol", f"is {show(kernel.symbol)}, not a C identifier of at most 128 characters")
        for j, n in enumerate(kernel.shape):
            within(f"kernels[{i}].shape[{j}]", n, 0, MAX_NBYTES)


def _weights(plan: Plan) -> None:
    symbols = {kernel.symbol for kernel in plan.kernels}
    for i, weight in enumerate(plan.weights):
        path = f"weights[{i}]"
        within(f"{path}.layer", weight.layer, -1, plan.model.n_layers - 1)
        one_of(f"{path}.format", weight.format, BLOCKS)
        within(f"{path}.n_rows", weight.n_rows, 1, MAX_COUNT)
        within(f"{path}.n_cols", weight.n_cols, 1, MAX_COUNT)
        if not weight.parts:
            fail(f"{path}.parts", "is empty")
        row = row_nbytes(f"{path}.n_cols", weight.format, weight.n_cols)
        rows = []
        for j, part in enumerate(weight.parts):
            at = f"{path}.parts[{j}]"
            index(f"{at}.tensor", part.tensor, plan.tensors, "tensors")
            tensor = plan.tensors[part.tensor]
            if (tensor.format, tensor.shape[-1]) != (weight.format, weight.n_cols):
                fail(
                    f"{at}.tensor",
                    f"is {tensor.format} with rows of {tensor.shape[-1]}, "
                    f"the weight is {weight.format} with rows of {weight.n_cols}",
                )
            if tensor.access == "experts" and (len(tensor.shape) != 3 or tensor.shape[1] % PANEL_ROWS):
                fail(f"{at}.tensor", f"is a bank of experts of shape {tensor.shape}, not matrices of whole panels")
            if tensor.access == "experts" and len(weight.parts) > 1:
                fail(f"{at}.tensor", "is a bank of experts, but not the only part")
            rows.append(math.prod(tensor.shape[:-1]))
        _panels(path, weight, rows, row)
        tensor = plan.tensors[weight.parts[0].tensor]
        if tensor.access == "experts":
            equal(f"{path}.chunk_panels", weight.chunk_panels, tensor.shape[1] // PANEL_ROWS, "a matrix")
        if weight.pack not in symbols:
            fail(f"{path}.pack", f"is {show(weight.pack)}, which is none of the kernels")
        within(f"{path}.chunk_panels", weight.chunk_panels, 1, MAX_COUNT)
        within(f"bytes of a chunk of {path}", weight.chunk_panels * weight.panel_nbytes, 1, MAX_COUNT // 2)
    chunks = n_chunks(plan)
    within("number of chunks", chunks, 0, MAX_CHUNKS)
    if sorted(plan.keep_order) != list(range(chunks)):
        fail("keep_order", f"does not list each of the {chunks} chunks once")


def _panels(path: str, weight: Weight, rows: list[int], row: int) -> None:
    """Parts follow each other, each from a panel of its own; `row` is the bytes of a row."""
    first = 0
    for j, (part, n) in enumerate(zip(weight.parts, rows, strict=True)):
        equal(f"{path}.parts[{j}].first_panel", part.first_panel, first, "the parts before")
        first += -(-n // PANEL_ROWS)
    if weight.n_rows not in (sum(rows), first * PANEL_ROWS):
        fail(f"{path}.n_rows", f"is {weight.n_rows}, the parts have {sum(rows)} ({first * PANEL_ROWS} in whole panels)")
    equal(f"{path}.panel_nbytes", weight.panel_nbytes, PANEL_ROWS * row, f"{PANEL_ROWS} rows")
    equal(f"{path}.nbytes", weight.nbytes, first * weight.panel_nbytes, f"{first} panels")


def _constants(plan: Plan) -> None:
    index("constants_segment", plan.constants_segment, plan.segments, "segments")
    room = plan.segments[plan.constants_segment].nbytes
    for i, constant in enumerate(plan.constants):
        path = f"constants[{i}]"
        one_of(f"{path}.dtype", constant.dtype, DTYPES)
        within(f"{path}.shape", len(constant.shape), 0, MAX_DIMS, "dimensions")
        for j, n in enumerate(constant.shape):
            within(f"{path}.shape[{j}]", n, 0, MAX_NBYTES)
        size = DTYPES[constant.dtype]
        equal(f"{path}.nbytes", constant.nbytes, math.prod(constant.shape) * size, f"shape {constant.shape}")
        within(f"{path}.offset", constant.offset, 0, room - constant.nbytes)
        multiple(f"{path}.offset", constant.offset, size)


def _buffers(plan: Plan) -> None:
    within("arena_nbytes", plan.arena_nbytes, 64, MAX_NBYTES // MAX_BATCH)
    multiple("arena_nbytes", plan.arena_nbytes, 64)
    for i, buffer in enumerate(plan.buffers):
        path = f"buffers[{i}]"
        within(f"{path}.nbytes", buffer.nbytes, 64, plan.arena_nbytes)
        within(f"{path}.offset", buffer.offset, 0, plan.arena_nbytes - buffer.nbytes)
        multiple(f"{path}.nbytes", buffer.nbytes, 64)
        multiple(f"{path}.offset", buffer.offset, 64)


def _kv_and_rope(plan: Plan) -> None:
    kv, rope = plan.kv, plan.rope
    within("kv.block_cells", kv.block_cells, 1, 1 << 16)
    for name in ("keys", "values"):
        one_of(f"kv.{name}", getattr(kv, name), KV_FORMATS)
    within("kv.layers", len(kv.layers), 0, plan.model.n_layers, "caches")
    for i, layer in enumerate(kv.layers):
        for name in ("n_kv_heads", "head_dim", "v_dim"):
            within(f"kv.layers[{i}].{name}", getattr(layer, name), 1, 1 << 16)
        row = 0
        for name, fmt in (("head_dim", BLOCKS[kv.keys]), ("v_dim", BLOCKS[kv.values])):
            multiple(f"kv.layers[{i}].{name}", getattr(layer, name), fmt.block)
            row += fmt.row_bytes(getattr(layer, name))
        within(f"kv.layers[{i}].block_nbytes", layer.block_nbytes, layer.n_kv_heads * row * kv.block_cells, MAX_NBYTES)
    within("kv.max_blocks", kv.max_blocks, -(-plan.choice.ctx_size // kv.block_cells), MAX_COUNT // kv.block_cells)
    ring = any(layer.ring for layer in kv.layers)
    within("kv.window", kv.window, int(ring), MAX_COUNT // 4 if ring else 0)
    batch = max((program.max_tokens for program in plan.programs), default=1)
    # as many blocks as that many neighbouring cells may touch
    needed = -(-(kv.window + batch - 2) // kv.block_cells) + 1 if ring else 0
    within("kv.ring_blocks", kv.ring_blocks, needed, kv.max_blocks)
    within("size of the KV cache", kv.max_blocks * sum(layer.block_nbytes for layer in kv.layers), 0, MAX_NBYTES)

    within("rope.n_pairs", rope.n_pairs, 0, MAX_PAIRS)
    within("rope.n_axes", rope.n_axes, 1, MAX_AXES)
    for name, dtype in (("inverse_frequency", "float64"), ("axis", "int32"), ("magnitude", "float64")):
        place = getattr(rope, name)
        index(f"rope.{name}", place, plan.constants, "constants")
        constant = plan.constants[place]
        if (constant.dtype, constant.shape) != (dtype, (rope.n_pairs,)):
            fail(
                f"rope.{name}",
                f"is {constant.dtype} of shape {constant.shape}, expected {dtype} of shape {(rope.n_pairs,)}",
            )


def _states(plan: Plan) -> None:
    for i, state in enumerate(plan.states):
        within(f"states[{i}].nbytes", state.nbytes, 64, MAX_COUNT)
        multiple(f"states[{i}].nbytes", state.nbytes, 64)


def _cost(plan: Plan) -> None:
    cost = plan.cost
    within("cost.weight_nbytes_per_token", cost.weight_nbytes_per_token, 0, MAX_NBYTES)
    within("cost.macs_per_token", cost.macs_per_token, 0, MAX_NBYTES)
    if not 0.0 <= cost.decode_overhead_s <= MAX_RATE:
        fail("cost.decode_overhead_s", f"is {cost.decode_overhead_s}, expected a duration")
    for name in ("ram_bytes_per_s", "disk_bytes_per_s", "prefill_macs_per_s"):
        if not 0.0 <= getattr(cost, name) <= MAX_RATE:
            fail(f"cost.{name}", f"is {getattr(cost, name)}, expected a rate (0: unknown)")
