"""Selection: which kernels a graph becomes, what they point to, and that no pointer leaves its value."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_models import empty_graph, llama_metadata, llama_model, llama_tensors, tensor

from aircompile.architectures import build_graph
from aircompile.graph import Graph
from aircompile.lowering import PHASES, Call, Lowering, Pointer, lower, plan_caches, specs_of, stride
from aircompile.operators import Attention, Gather
from aircompile.passes import run_passes
from aircompile.passes.options import Activations, PassOptions
from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.isa import PANEL
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS
from airrun.errors import UnsupportedError, UsageError
from airschedules.specs import (
    AttentionPartsSpec,
    AttentionSpec,
    GatedSpec,
    GatherSpec,
    MatmulSpec,
    MergePartsSpec,
    NormSpec,
    QuantizeSpec,
    RopeStoreSpec,
    SelectSpec,
)


def small(activations: Activations = "auto", **options: object) -> Graph:
    """A llama of width 64 after all passes; options of `llama_tensors`."""
    tensors = llama_tensors(**options)  # type: ignore[arg-type]
    return run_passes(build_graph(llama_model(tensors=tensors)), PassOptions(activations))


def lowered(graph: Graph, phase: str = "prefill") -> Lowering:
    found = lower(graph, plan_caches(graph, "f16", 128))
    assert [p.name for p, _ in found] == [p.name for p in PHASES]
    return next(low for p, low in found if p.name == phase)


def line(call: Call) -> str:
    """A call as text: kernel, rows, tasks (per so many tokens), what it points to, `+` where others run beside it."""

    def show(p: Pointer) -> str:
        name = p.name.replace("layers.0.", "").replace("blk.0.", "")
        return f"{p.space} {name}" + (f"@{p.offset}" if p.offset else "")

    tasks = f"{call.tasks}/{call.tokens_per_task}" if call.tokens_per_task else str(call.tasks)
    pointers = ", ".join(f"{i}={show(p)}" for i, p in enumerate(call.pointers) if p.space != "none")
    return f"{call.spec.op} {call.rows} {tasks}: {pointers}{'' if call.sync else ' +'}"


def test_a_layer_becomes_these_calls() -> None:
    low = lowered(small())
    places = "3=input cells, 4=input sequences, 5=input block_table"
    assert [line(call) for call in low.calls] == [
        "gather tokens 1/1: 0=tensor token_embd.weight, 1=input token_ids, 2=value embedding",
        "norm tokens 1/1: 0=value embedding, 1=tensor attn_norm.weight, 2=value attn_norm",
        "matmul tokens 8: 0=weight attn_q.weight+attn_k.weight+attn_v.weight, 1=value attn_norm, 2=value q+k+v, "
        "7=scratch ",
        "ropestore tokens 6/1: 0=value q+k+v, 1=value q+k+v@256, 2=value q+k+v@384, 3=input rope, 4=kv 0, "
        "5=input cells, 6=input sequences, 7=input block_table",
        f"attention tokens 4/8: 0=value q+k+v, 1=value attention, 2=kv 0, {places}, 7=scratch ",
        "quantize tokens 1/1: 0=value attention, 2=value attention.q8",
        # residuals are added in place: the output of these two is the embedding's memory
        "matmul tokens 4: 0=weight attn_output.weight, 1=value attention.q8, 2=value embedding, 7=scratch ",
        "norm tokens 1/1: 0=value embedding, 1=tensor ffn_norm.weight, 2=value ffn_norm",
        "matmul tokens 12: 0=weight ffn_gate.weight+ffn_up.weight, 1=value ffn_norm, 2=value gate+up, 7=scratch ",
        "gated tokens 1/1: 0=value gate+up, 1=value gate+up@384, 2=value gated",
        "matmul tokens 4: 0=weight ffn_down.weight, 1=value gated, 2=value embedding, 7=scratch ",
        "select outputs 1/1: 0=value embedding, 1=input output_rows, 2=value ffn_residual.selected",
        "norm outputs 1/1: 0=value ffn_residual.selected, 1=tensor output_norm.weight, 2=value output_norm",
        "matmul outputs 3: 0=weight output.weight, 1=value output_norm, 2=logits , 7=scratch ",
    ]


def test_biases_keep_the_members_of_a_product_apart() -> None:
    """One call each, side by side; only the last one waits for all."""
    low = lowered(small(biases=("attn_q", "attn_k", "attn_v")))
    calls = [call for call in low.calls if isinstance(call.spec, MatmulSpec) and call.spec.matrix.bias]
    panel = PanelLayout(FORMATS["Q8_0"], 64).nbytes
    weight = "0=weight attn_q.weight+attn_k.weight+attn_v.weight"
    rest = "1=value attn_norm, 2=value q+k+v"
    assert [line(call) for call in calls] == [
        f"matmul tokens 4: {weight}, {rest}, 3=tensor attn_q.bias, 7=scratch  +",
        f"matmul tokens 2: {weight}@{4 * panel}, {rest}@256, 3=tensor attn_k.bias, 7=scratch  +",
        f"matmul tokens 2: {weight}@{6 * panel}, {rest}@384, 3=tensor attn_v.bias, 7=scratch ",
    ]


def test_decoding_takes_one_token_and_the_heads_of_a_cache_a_task_in_attention() -> None:
    graph = small()
    assert [PHASES[0].name, PHASES[0].max_tokens, PHASES[-1].name] == ["decode", 1, "prefill"]
    for phase, tokens, heads, parts in (("decode", 1, 2, 2), ("prefill", 8, 1, 1)):
        (call,) = (call for call in lowered(graph, phase).calls if isinstance(call.spec, AttentionSpec))
        assert (call.tasks, call.tokens_per_task, call.spec.group) == (4 // heads * parts, tokens, tokens)
        assert call.spec.heads == heads


@pytest.mark.parametrize(("context", "window", "parts"), [(64, 0, 1), (300, 0, 4), (4096, 0, 8), (4096, 100, 2)])
def test_few_heads_make_parts_as_far_as_there_are_blocks(context: int, window: int, parts: int) -> None:
    graph = small()
    (operator,) = (operator for operator in graph.operators() if isinstance(operator.op, Attention))
    graph.replace([operator.name], [replace(operator, op=replace(operator.op, window=window))])
    for _phase, low in lower(graph, plan_caches(graph, "f16", context)):
        specs = [call.spec for call in low.calls if isinstance(call.spec, AttentionSpec)]
        assert [spec.parts for spec in specs] == [parts]
    decode = [line(call) for call in lower(graph, plan_caches(graph, "f16", context))[0][1].calls]
    assert (f"attentionparts tokens {2 * parts}/1: 0=value q+k+v, 2=kv 0, 3=input cells, 4=input sequences, "
            "5=input block_table, 7=scratch " in decode) == (parts > 1)  # fmt: skip
    assert ("mergeparts tokens 2/1: 1=value attention, 3=input cells, 7=scratch " in decode) == (parts > 1)


@pytest.mark.parametrize(
    ("width", "expected"), [(1, 16), (16, 16), (17, 32), (576, 576), (49152, 49152), (49153, 49168)]
)
def test_strides_are_whole_panels(width: int, expected: int) -> None:
    assert stride(width) == expected


def check_pointers(low: Lowering) -> None:
    """Every kernel is compiled for the strides of the values it gets, and stays inside their rows."""

    def row_floats(pointer: Pointer) -> int:
        if pointer.space == "logits":
            return low.stride_of(low.graph.outputs[0])
        return low.row_nbytes(pointer.name) // 4

    def fits(pointer: Pointer, floats: int, of_stride: int) -> None:
        assert pointer.space in ("value", "logits") and pointer.offset % 4 == 0
        assert of_stride == row_floats(pointer)
        assert pointer.offset // 4 + floats <= row_floats(pointer)

    def holds_quantized(pointer: Pointer, n: int, digits: int) -> None:
        assert pointer.offset == 0 and low.row_nbytes(pointer.name) == QuantizedRow(n, digits).nbytes

    for call in low.calls:
        spec, p = call.spec, call.pointers
        if isinstance(spec, MatmulSpec):
            n = spec.matrix.n_cols
            if spec.quantized:
                holds_quantized(p[1], n, spec.matrix.digits)
            else:
                fits(p[1], n, spec.in_stride)
            # whole panels are stored, also where the last one is padded
            fits(p[2], call.tasks * PANEL, spec.matrix.out_stride)
            assert call.tasks == -(-spec.matrix.n_rows // PANEL)
            weight = low.weights[p[0].name]
            infos = [low.graph.weights[name] for name in weight.tensors]
            panels = sum(-(-info.shape[0] // PANEL) for info in infos)
            panel_nbytes = PanelLayout(FORMATS[spec.weights], n).nbytes
            assert p[0].offset % panel_nbytes == 0 and p[0].offset // panel_nbytes + call.tasks <= panels
        elif isinstance(spec, NormSpec):
            n, norm = spec.norm.n, spec.norm
            fits(p[0], n, norm.in_stride)
            holds_quantized(p[2], n, norm.digits) if norm.digits else fits(p[2], n, norm.out_stride)
        elif isinstance(spec, GatedSpec):
            row = spec.row
            for pointer, of_stride in zip(p[:2], row.strides, strict=True):
                fits(pointer, row.n, of_stride)
            holds_quantized(p[2], row.n, row.digits) if row.digits else fits(p[2], row.n, row.out_stride)
            assert call.tasks == -(-row.n // row.chunk)
        elif isinstance(spec, QuantizeSpec):
            fits(p[0], spec.n, spec.in_stride)
            holds_quantized(p[2], spec.n, spec.digits)
        elif isinstance(spec, SelectSpec):
            fits(p[0], spec.n, spec.in_stride)
            fits(p[2], spec.n, spec.out_stride)
        elif isinstance(spec, GatherSpec):
            fits(p[2], spec.n, spec.out_stride)
        elif isinstance(spec, RopeStoreSpec):
            widths = [spec.rope.n_heads, spec.cache.n_kv_heads, spec.cache.n_kv_heads]
            for pointer, heads, of_stride in zip(p[:3], widths, spec.strides, strict=True):
                fits(pointer, heads * spec.cache.head_dim, of_stride)
        elif isinstance(spec, AttentionPartsSpec):
            fits(p[0], spec.n_heads * spec.cache.head_dim, spec.q_stride)
        elif isinstance(spec, MergePartsSpec):
            fits(p[1], spec.of.n_heads * spec.of.cache.v_dim, spec.of.out_stride)
        elif isinstance(spec, AttentionSpec):
            fits(p[0], spec.n_heads * spec.cache.head_dim, spec.q_stride)
            fits(p[1], spec.n_heads * spec.cache.head_dim, spec.out_stride)
        else:
            raise AssertionError(f"{spec.op} is not checked")


MIXED = {"attn_q": "F16", "attn_k": "Q4_0", "attn_v": "F16", "ffn_gate": "Q8_0", "ffn_up": "F32", "output": "BF16"}


@pytest.mark.parametrize("activations", ["auto", "f32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"biases": ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")},
        {"formats": MIXED},
        {"formats": MIXED, "biases": ("attn_k", "ffn_up")},
        {"default": "F32"},
    ],
)
def test_pointers_stay_inside_their_values(activations: Activations, options: dict[str, object]) -> None:
    graph = small(activations, **options)
    for phase in PHASES:
        check_pointers(lowered(graph, phase.name))


def test_rows_that_are_no_whole_panels_are_padded_apart() -> None:
    """Heads of 4 elements: k and v are 8 rows each, so that padded panels would run into the next member."""
    metadata = llama_metadata()
    metadata |= {"llama.attention.head_count": 16, "llama.attention.head_count_kv": 2}
    tensors = llama_tensors()
    for name in ("blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        tensors[name] = tensor(name, (8, 64), "Q8_0")
    graph = run_passes(build_graph(llama_model(metadata, tensors)), PassOptions())
    low = lowered(graph)
    check_pointers(low)
    stores = []
    for call in low.calls:
        if isinstance(call.spec, MatmulSpec):
            first = call.pointers[2].offset // 4
            stores.append((call.pointers[2], call.operator.name, first, first + PANEL * call.tasks))
    for a, first_name, start, stop in stores:
        for b, second_name, other, end in stores:
            if (a.space, a.name) == (b.space, b.name) and first_name == second_name and (start, stop) != (other, end):
                assert stop <= other or end <= start


def test_every_kernel_is_listed_once_and_equal_ones_are_shared() -> None:
    graph = run_passes(
        build_graph(llama_model(llama_metadata(block_count=3), llama_tensors(n_layers=3))), PassOptions()
    )
    found = lower(graph, plan_caches(graph, "f16", 128))
    specs = specs_of(found)
    assert len(set(specs)) == len(specs) and len({spec.symbol for spec in specs}) == len(specs)
    for _, low in found:
        assert {call.spec for call in low.calls} <= set(specs)
        assert {weight.pack for weight in low.weights.values()} <= set(specs)
    one_layer = set(specs_of(lower(small(), plan_caches(small(), "f16", 128))))
    assert set(specs) == one_layer


def test_symbols_tell_apart_whatever_differs() -> None:
    low = lowered(small())
    spec = next(call.spec for call in low.calls if isinstance(call.spec, NormSpec))
    assert spec.symbol == replace(spec).symbol
    other = replace(spec, norm=replace(spec.norm, eps=1e-6))
    assert spec.symbol != other.symbol != replace(spec, norm=replace(spec.norm, eps=1e-5)).symbol
    assert all(call.spec.symbol.isidentifier() for call in low.calls)


def test_what_no_kernel_computes_is_refused() -> None:
    graph = empty_graph(tensor("table", (10, 32), "F16"))
    graph.add(Gather("table"), (), ("x",), phase="embed")
    graph.add(Attention(1, 1, 32, 32, 1.0), ("x", "x", "x"), ("out",), name="alone", layer=0)
    with pytest.raises(UnsupportedError, match="alone"):
        Lowering(graph, plan_caches(graph, "f16", 64), "decode").run()


@pytest.mark.parametrize(("name", "kind"), [("blk.0.ffn_down.weight", "Q8_K"), ("token_embd.weight", "I8")])
def test_block_formats_without_kernels_are_refused(name: str, kind: str) -> None:
    tensors = llama_tensors()
    tensors[name] = tensor(name, tensors[name].shape, kind)
    graph = run_passes(build_graph(llama_model(tensors=tensors)), PassOptions())
    with pytest.raises(UnsupportedError) as error:
        lowered(graph)
    assert name in str(error.value) and kind in str(error.value) and "\n" not in str(error.value)


def test_vectors_must_be_floats() -> None:
    tensors = llama_tensors()
    tensors["output_norm.weight"] = tensor("output_norm.weight", (64,), "F16")
    with pytest.raises(UnsupportedError, match=r"output_norm\.weight"):
        lowered(run_passes(build_graph(llama_model(tensors=tensors)), PassOptions()))


@pytest.mark.parametrize(
    ("kv_type", "formats", "key_nbytes", "value_nbytes"),
    [
        ("f16", ("F16", "F16"), 64, 64),
        ("f32", ("F32", "F32"), 128, 128),
        ("q8_0", ("Q8_0", "Q8_0"), 34, 34),
        ("q8_0,q4_0", ("Q8_0", "Q4_0"), 34, 18),
    ],
)
def test_the_cache_is_made_of_whole_blocks(
    kv_type: str, formats: tuple[str, str], key_nbytes: int, value_nbytes: int
) -> None:
    names = [f"blk.0.attn_{part}.weight" for part in "kv"]
    tensors = llama_tensors() | {name: tensor(name, (64, 64)) for name in names}
    model = llama_model(llama_metadata(attention__head_count=2), tensors)
    graph = run_passes(build_graph(model), PassOptions())
    for tokens, blocks in ((1, 1), (64, 1), (65, 2), (4096, 64)):
        (cache,) = plan_caches(graph, kv_type, tokens).layers
        assert (cache.n_kv_heads, cache.head_dim, cache.keys, cache.values) == (2, 32, *formats)
        assert cache.table.max_blocks == blocks and not cache.ring
        assert cache.block_nbytes == 2 * 64 * (key_nbytes + value_nbytes)


def test_heads_are_whole_blocks_of_the_cache() -> None:
    with pytest.raises(UnsupportedError, match="type q4_0: heads of 16 elements are not whole blocks of 32; use f16"):
        plan_caches(small(), "f16,q4_0", 64)
    for text in ("q5_0", "f16,", "f16,f16,f16", "F16"):
        with pytest.raises(UsageError, match="is no type of a KV cache: f32, f16, q8_0, q4_0"):
            plan_caches(small(), text, 64)
