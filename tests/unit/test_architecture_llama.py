"""The llama family: what is built, judged by llama.cpp's logits, and every refusal of a bad file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from graph_interpreter import Interpreter, read_weights
from small_models import PATH, llama_metadata, llama_model, llama_tensors, program, tensor

from aircompile.architectures import build_graph
from aircompile.frontends.gguf import GGUFModel, TensorInfo, read_gguf
from aircompile.graph import RopeInfo
from aircompile.operators import Attention, MatMul
from airrun.errors import ModelFileError, UnsupportedError

# Logits 0 to 7 after the 17th token of the golden sequence for the mistral model with these keys added, by llama.cpp
# (weights and cache in float32, no flash attention).
SCALED_LOGITS: dict[str, tuple[dict[str, object], list[float]]] = {
    "yarn": (
        {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 1024},
        [0.9584535, -5.2247858, -1.1487753, 4.3538160, -4.5755825, 2.0736804, 0.6448026, -1.2107742],
    ),
    "yarn with a short context": (
        {
            "scaling.type": "yarn",
            "scaling.factor": 4.0,
            "scaling.original_context_length": 64,
            "scaling.attn_factor": 1.25,
        },
        [0.7197572, -3.6964769, -0.5607393, 2.9793866, -2.5753417, 2.4382472, 0.5916922, -1.0209960],
    ),
    "yarn with fast turns": (
        {"freq_base": 10.0, "scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 1024},
        [-2.8115511, -5.4611788, -2.5106878, 5.3451123, -1.5008273, 4.0701547, 0.0768831, -3.3299201],
    ),
    "linear": (
        {"scaling.type": "linear", "scaling.factor": 4.0, "scaling.attn_factor": 0.75},
        [-0.0140916, -5.7074189, 0.5230440, 2.5057586, -5.0068002, 3.1806827, -0.4033750, -3.4037569],
    ),
    "none": (
        {"scaling.type": "none", "scaling.factor": 4.0},
        [0.6951848, -5.7004185, -1.4604636, 3.6702619, -5.5020914, 2.3410814, 0.4042098, -2.4961770],
    ),
}


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral"])
def test_logits_equal_llama_cpp(zoo: Path, name: str) -> None:
    path = zoo / "models" / name / "model.gguf"
    golden = np.load(path.with_name("golden.npz"))
    graph = build_graph(read_gguf(path))
    tokens = golden["seq17"]
    logits = Interpreter(graph, read_weights(path)).run(tokens, range(17))
    np.testing.assert_allclose(logits, golden["lcpp_f32_17"], atol=1e-4, rtol=0)


def test_logits_of_quantized_weights_equal_exact_arithmetic(zoo: Path) -> None:
    path = zoo / "quant" / "Q4_K_M.gguf"
    tokens = np.load(zoo / "models" / "quant_base" / "golden.npz")["seq17"]
    logits = Interpreter(build_graph(read_gguf(path)), read_weights(path)).run(tokens, range(17))
    np.testing.assert_allclose(logits, np.load(path.with_suffix(".npz"))["dequant_f32_17"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", SCALED_LOGITS)
def test_scaled_positions_equal_llama_cpp(zoo: Path, kind: str) -> None:
    path = zoo / "models" / "mistral" / "model.gguf"
    keys, expected = SCALED_LOGITS[kind]
    model = read_gguf(path)
    metadata = model.metadata | {f"llama.rope.{key}": value for key, value in keys.items()}
    graph = build_graph(dataclasses.replace(model, metadata=metadata))
    tokens = np.load(path.with_name("golden.npz"))["seq17"]
    logits = Interpreter(graph, read_weights(path)).run(tokens, range(17))
    np.testing.assert_allclose(logits[16, :8], expected, atol=1e-4, rtol=0)


def yarn(**keys: float) -> RopeInfo:
    scaling = {"type": "yarn", "factor": 4.0, **keys}
    metadata = llama_metadata(**{f"rope.scaling.{key}": value for key, value in scaling.items()})
    return build_graph(llama_model(metadata)).hyper.ropes[0]


def test_yarn_magnitude() -> None:
    """``get_mscale`` of the YaRN reference: 0.1 m ln(s) + 1, for two multipliers m where both are given."""
    assert yarn().magnitude == pytest.approx(0.1 * math.log(4) + 1)
    both = (0.1 * math.log(4) + 1) / (0.1 * 0.707 * math.log(4) + 1)
    assert yarn(yarn_log_multiplier=0.707).magnitude == pytest.approx(both)
    assert yarn(factor=0.5).magnitude == 1.0


def test_yarn_between_interpolation_and_nothing() -> None:
    plain = 10000.0 ** (-np.arange(8) / 8)
    none = yarn(yarn_ext_factor=0.0)
    np.testing.assert_allclose(none.inverse_frequency, plain / 4, rtol=1e-14)
    assert none.magnitude == 1.0
    full, half = yarn(), yarn(yarn_ext_factor=0.5)
    np.testing.assert_allclose(half.inverse_frequency, (full.inverse_frequency + plain / 4) / 2, rtol=1e-14)
    # turns so fast that all pairs count as slow, and so slow that all count as fast
    np.testing.assert_allclose(
        yarn(yarn_beta_fast=1e5, yarn_beta_slow=9e4).inverse_frequency[1:], plain[1:] / 4, rtol=1e-14
    )
    np.testing.assert_allclose(yarn(yarn_beta_fast=1e-3, yarn_beta_slow=1e-4).inverse_frequency, plain, rtol=1e-14)


def test_program_of_one_layer() -> None:
    assert program(build_graph(llama_model(tensors=llama_tensors(biases=("attn_q",), rope_factors=True)))) == [
        "embed  embedding  Gather(table=token_embd.weight:Q8_0)  -> embedding float32[tokens, 64]",
        "layer 0  layers.0.attn_norm  Norm(weight=blk.0.attn_norm.weight:F32, eps=1e-05)  "
        "embedding -> layers.0.attn_norm float32[tokens, 64]",
        "layer 0  layers.0.q  MatMul(weights=blk.0.attn_q.weight:Q8_0, biases=blk.0.attn_q.bias:F32)  "
        "layers.0.attn_norm -> layers.0.q float32[tokens, 64]",
        "layer 0  layers.0.k  MatMul(weights=blk.0.attn_k.weight:Q8_0)  "
        "layers.0.attn_norm -> layers.0.k float32[tokens, 32]",
        "layer 0  layers.0.v  MatMul(weights=blk.0.attn_v.weight:Q8_0)  "
        "layers.0.attn_norm -> layers.0.v float32[tokens, 32]",
        "layer 0  layers.0.rope_q  Rope(n_heads=4, head_dim=16, dim=16, mode=normal, factors=rope_freqs.weight:F32)  "
        "layers.0.q -> layers.0.rope_q float32[tokens, 64]",
        "layer 0  layers.0.rope_k  Rope(n_heads=2, head_dim=16, dim=16, mode=normal, factors=rope_freqs.weight:F32)  "
        "layers.0.k -> layers.0.rope_k float32[tokens, 32]",
        "layer 0  layers.0.attention  Attention(n_heads=4, n_kv_heads=2, head_dim=16, v_dim=16, scale=0.25)  "
        "layers.0.rope_q, layers.0.rope_k, layers.0.v -> layers.0.attention float32[tokens, 64]",
        "layer 0  layers.0.attn_output  MatMul(weights=blk.0.attn_output.weight:Q8_0)  "
        "layers.0.attention -> layers.0.attn_output float32[tokens, 64]",
        "layer 0  layers.0.attn_residual  Add()  "
        "embedding, layers.0.attn_output -> layers.0.attn_residual float32[tokens, 64]",
        "layer 0  layers.0.ffn_norm  Norm(weight=blk.0.ffn_norm.weight:F32, eps=1e-05)  "
        "layers.0.attn_residual -> layers.0.ffn_norm float32[tokens, 64]",
        "layer 0  layers.0.gate  MatMul(weights=blk.0.ffn_gate.weight:Q8_0)  "
        "layers.0.ffn_norm -> layers.0.gate float32[tokens, 96]",
        "layer 0  layers.0.up  MatMul(weights=blk.0.ffn_up.weight:Q8_0)  "
        "layers.0.ffn_norm -> layers.0.up float32[tokens, 96]",
        "layer 0  layers.0.gate_activation  Activation(kind=silu)  "
        "layers.0.gate -> layers.0.gate_activation float32[tokens, 96]",
        "layer 0  layers.0.gated  Multiply()  "
        "layers.0.gate_activation, layers.0.up -> layers.0.gated float32[tokens, 96]",
        "layer 0  layers.0.down  MatMul(weights=blk.0.ffn_down.weight:Q8_0)  "
        "layers.0.gated -> layers.0.down float32[tokens, 64]",
        "layer 0  layers.0.ffn_residual  Add()  "
        "layers.0.attn_residual, layers.0.down -> layers.0.ffn_residual float32[tokens, 64]",
        "head  output_norm  Norm(weight=output_norm.weight:F32, eps=1e-05)  "
        "layers.0.ffn_residual -> output_norm float32[tokens, 64]",
        "head  logits  MatMul(weights=output.weight:Q8_0)  output_norm -> logits float32[tokens, 40]",
    ]


def test_model_information() -> None:
    tensors = llama_tensors(n_layers=2)
    info = build_graph(llama_model(llama_metadata(block_count=2), tensors)).hyper
    assert (info.name, info.architecture, info.n_vocab, info.n_embd) == ("Small", "llama", 40, 64)
    assert (info.n_layers, info.n_ctx_train) == (2, 128)
    n_layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64
    assert info.n_params == 2 * 40 * 64 + 64 + 2 * n_layer
    (rope,) = info.ropes
    assert (rope.dim, rope.n_axes, rope.magnitude) == (16, 1, 1.0)
    np.testing.assert_allclose(rope.inverse_frequency, [10000.0 ** (-i / 8) for i in range(8)], rtol=1e-14)
    assert rope.axis.dtype == np.int32
    assert rope.axis.tolist() == [0] * 8


def test_tied_embeddings() -> None:
    graph = build_graph(llama_model(tensors=llama_tensors(tied=True)))
    assert graph.operator("logits").op == MatMul(("token_embd.weight",), (None,))


def test_biases_of_all_products() -> None:
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    graph = build_graph(llama_model(tensors=llama_tensors(biases=parts)))
    used = {op.op.biases[0] for op in graph.operators() if isinstance(op.op, MatMul)}
    assert used == {f"blk.0.{part}.bias" for part in parts} | {None}


def attention_of(model: GGUFModel) -> Attention:
    (op,) = [found.op for found in build_graph(model).operators() if isinstance(found.op, Attention)]
    return op


@pytest.mark.parametrize("n_kv_heads", [1, 4, None])
def test_head_groups(n_kv_heads: int | None) -> None:
    rows = 16 * (n_kv_heads or 4)
    tensors = llama_tensors()
    tensors |= {name: tensor(name, (rows, 64), "Q8_0") for name in ("blk.0.attn_k.weight", "blk.0.attn_v.weight")}
    model = llama_model(llama_metadata(attention__head_count_kv=n_kv_heads), tensors)
    assert attention_of(model) == Attention(4, n_kv_heads or 4, 16, 16, 0.25)


def test_heads_wider_than_the_model_over_their_number() -> None:
    shapes = {"attn_q": (128, 64), "attn_k": (64, 64), "attn_v": (64, 64), "attn_output": (64, 128)}
    changed = {f"blk.0.{part}.weight": shape for part, shape in shapes.items()}
    tensors = llama_tensors() | {name: tensor(name, shape, "Q8_0") for name, shape in changed.items()}
    metadata = llama_metadata(attention__key_length=32, attention__value_length=32, rope__dimension_count=32)
    assert attention_of(llama_model(metadata, tensors)) == Attention(4, 2, 32, 32, 1 / math.sqrt(32))


@pytest.mark.parametrize(("key", "scale"), [(0.125, 0.125), (0.0, 0.25)])
def test_attention_scale(key: float, scale: float) -> None:
    assert attention_of(llama_model(llama_metadata(attention__scale=key))).scale == scale


def test_equal_numbers_of_each_layer() -> None:
    metadata = llama_metadata(
        block_count=2,
        attention__head_count=np.array([4, 4], np.int32),
        attention__head_count_kv=np.array([2, 2], np.int32),
        feed_forward_length=np.array([96, 96], np.uint32),
    )
    graph = build_graph(llama_model(metadata, llama_tensors(n_layers=2)))
    assert {op.op.n_kv_heads for op in graph.operators() if isinstance(op.op, Attention)} == {2}


def test_old_keys_and_neutral_values_are_accepted() -> None:
    metadata = llama_metadata(
        expert_count=0,
        logit_scale=0.0,
        attention__causal=True,
        attention__sliding_window=4096,
        rope__scale_linear=2.0,
        rope__scaling__finetuned=False,
        tensor_data_layout="Meta AI original pth",
    )
    tensors = llama_tensors() | {"blk.0.attn_rot_embd": tensor("blk.0.attn_rot_embd", (8,))}
    graph = build_graph(llama_model(metadata, tensors))
    assert graph.hyper.ropes[0].inverse_frequency[0] == 0.5
    assert "blk.0.attn_rot_embd" not in graph.weights


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "reason"),
    [
        (["a"] * 40, 99, None),  # the vocabulary counts, as in llama.cpp
        (None, None, None),  # the embedding shows it
        (None, 41, "tensor 'token_embd.weight' has shape (40, 64), expected (41, 64)"),
        (["a"] * 39, 40, "tensor 'token_embd.weight' has shape (40, 64), expected (39, 64)"),
        ([], 40, "tokenizer.ggml.tokens is not a list of 1 to"),
        ("a" * 40, 40, "tokenizer.ggml.tokens is not a list of 1 to"),
    ],
)
def test_vocabulary_size(tokens: object, vocab_size: int | None, reason: str | None) -> None:
    metadata = llama_metadata(vocab_size=vocab_size)
    if tokens is not None:
        metadata["tokenizer.ggml.tokens"] = tokens
    if reason is None:
        assert build_graph(llama_model(metadata)).hyper.n_vocab == 40
    else:
        refused(llama_model(metadata), ModelFileError, reason)


@pytest.mark.parametrize(("given", "expected"), [("two\nlines", "two lines"), (7, "small"), (" ", "small")])
def test_name_fits_on_a_line(given: object, expected: str) -> None:
    metadata = llama_metadata() | {"general.name": given}
    assert build_graph(llama_model(metadata)).hyper.name == expected


def refused(model: GGUFModel, error: type[Exception], reason: str) -> None:
    with pytest.raises(error) as caught:
        build_graph(model)
    assert str(caught.value).startswith(f"{PATH}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("general", "error", "reason"),
    [
        (
            {"general.architecture": "bert"},
            UnsupportedError,
            "architecture 'bert' is not supported; supported: apertus, arcee, ",
        ),
        ({"general.architecture": "two\nlines"}, UnsupportedError, r"architecture 'two\nlines' is not"),
        ({"general.architecture": None}, ModelFileError, "general.architecture is missing"),
        ({"general.architecture": 3}, ModelFileError, "general.architecture is not a text"),
        ({"general.type": "adapter"}, UnsupportedError, "general.type is 'adapter'"),
    ],
)
def test_other_architectures(general: dict[str, object], error: type[Exception], reason: str) -> None:
    refused(llama_model(llama_metadata() | general), error, reason)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("block_count", None, "is missing"),
        ("block_count", 0, "is 0, not within 1 to 1024"),
        ("block_count", 1 << 40, "not within 1 to 1024"),
        ("block_count", 1.0, "is not a whole number"),
        ("block_count", True, "is not a whole number"),
        ("embedding_length", None, "is missing"),
        ("embedding_length", -64, "is -64, not within"),
        ("embedding_length", "64", "is not a whole number"),
        ("context_length", None, "is missing"),
        ("context_length", 0, "is 0, not within"),
        ("context_length", 1 << 31, "not within 1 to 2147483647"),
        ("feed_forward_length", None, "is missing"),
        ("feed_forward_length", 0, "is 0, not within"),
        ("feed_forward_length", np.array([96.0]), "is not a whole number"),
        ("attention.head_count", None, "is missing"),
        ("attention.head_count", 0, "is 0, not within"),
        ("attention.head_count", 5, "is 5, which does not divide the width 64"),
        ("attention.head_count", np.array([4, 4]), "has 2 entries for 1 layers"),
        ("attention.head_count", np.array([], np.int32), "has 0 entries for 1 layers"),
        ("attention.head_count_kv", 0, "is 0, not within"),
        ("attention.head_count_kv", 3, "is 3, which does not divide 4 heads"),
        ("attention.head_count_kv", 8, "is 8, which does not divide 4 heads"),
        ("attention.key_length", 0, "is 0, not within"),
        ("attention.key_length", 17, "is 17: rotary positions need an even number"),
        ("attention.layer_norm_rms_epsilon", None, "is missing"),
        ("attention.layer_norm_rms_epsilon", 0.0, "is 0, not within"),
        ("attention.layer_norm_rms_epsilon", -1e-5, "not within"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "is nan, not within"),
        ("attention.layer_norm_rms_epsilon", "1e-5", "is not a number"),
        ("attention.scale", -1.0, "is -1, not within"),
        ("rope.dimension_count", 18, "is 18, but heads have 16 elements"),
        ("rope.dimension_count", 0, "is 0, not within"),
        ("rope.freq_base", 0.0, "is 0, not within"),
        ("rope.freq_base", float("inf"), "is inf, not within"),
        ("rope.scaling.factor", -2.0, "is -2, not within"),
        ("rope.scaling.attn_factor", 0.0, "is 0, not within"),
        ("rope.scaling.original_context_length", 0, "is 0, not within"),
        ("rope.scaling.type", 1, "is not a text"),
        ("something.new", 1, "is not understood"),
        ("expert_count", -1, "is -1, not within"),
    ],
)
def test_absurd_hyperparameters(key: str, value: object, reason: str) -> None:
    model = llama_model(llama_metadata(**{key: value}))
    refused(model, ModelFileError, reason)
    refused(model, ModelFileError, f"llama.{key}")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("attention.head_count_kv", np.array([2, 4]), "differs between layers (2 to 4)"),
        ("rope.scaling.type", "dynamic", "is 'dynamic'; supported: none, linear, yarn, longrope"),
        ("rope.scaling.alpha", 1000.0, "is 1000.0: not supported"),
        ("rope.scaling.yarn_ext_factor", 0.5, "is 0.5: not supported"),
        ("attention.causal", False, "is False: not supported"),
        ("logit_scale", 0.5, "is 0.5: not supported"),
        ("embedding_scale", np.array([1.0, 2.0]), "is an array: not supported"),
    ],
)
def test_unsupported_features(key: str, value: object, reason: str) -> None:
    model = llama_model(llama_metadata(block_count=2, **{key: value}), llama_tensors(n_layers=2))
    refused(model, UnsupportedError, f"llama.{key} {reason}")


def changed(**shapes: tuple[int, ...] | None) -> dict[str, TensorInfo]:
    tensors = llama_tensors()
    for key, shape in shapes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = tensor(name, shape)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (changed(token_embd__weight=None), "tensor 'token_embd.weight' is missing"),
        (changed(output_norm__weight=None), "tensor 'output_norm.weight' is missing"),
        (changed(blk__0__attn_v__weight=None), "tensor 'blk.0.attn_v.weight' is missing"),
        (changed(blk__0__ffn_norm__weight=None), "tensor 'blk.0.ffn_norm.weight' is missing"),
        (changed(token_embd__weight=(64,)), "tensor 'token_embd.weight' has shape (64,), expected (40, 64)"),
        (changed(output__weight=(64, 40)), "tensor 'output.weight' has shape (64, 40), expected (40, 64)"),
        (
            changed(blk__0__attn_k__weight=(64, 64)),
            "tensor 'blk.0.attn_k.weight' has shape (64, 64), expected (32, 64)",
        ),
        (changed(blk__0__attn_q__bias=(63,)), "tensor 'blk.0.attn_q.bias' has shape (63,), expected (64,)"),
        (changed(blk__0__ffn_down__weight=(96, 64)), "has shape (96, 64), expected (64, 96)"),
        (changed(blk__0__attn_norm__weight=(64, 1)), "has shape (64, 1), expected (64,)"),
        (changed(rope_freqs__weight=(16,)), "tensor 'rope_freqs.weight' has shape (16,), expected (8,)"),
        (changed(blk__1__attn_q__weight=(64, 64)), "tensor 'blk.1.attn_q.weight' is not understood"),
        (changed(blk__0__attn_q_norm__weight=(16,)), "tensor 'blk.0.attn_q_norm.weight' is not understood"),
        (changed(blk__0__attn_q__scale=(2,)), "tensor 'blk.0.attn_q.scale' has shape (2,), expected (1,)"),
        (changed(blk__0__attn_q__input_scale=(1,)), "tensor 'blk.0.attn_q.input_scale' is not understood"),
    ],
)
def test_bad_tensors(tensors: dict[str, TensorInfo], reason: str) -> None:
    refused(llama_model(tensors=tensors), ModelFileError, reason)


def test_vectors_in_other_formats_are_refused() -> None:
    tensors = llama_tensors() | {"output_norm.weight": tensor("output_norm.weight", (64,), "F16")}
    refused(llama_model(tensors=tensors), UnsupportedError, "vector 'output_norm.weight' is in F16")
