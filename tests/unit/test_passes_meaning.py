"""No pass changes what is computed: graphs before and after run in the interpreter, on golden and random models."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from graph_interpreter import Array, Interpreter, read_weights
from small_models import llama_metadata, llama_model, llama_tensors, tensor

from aircompile.architectures import build_graph
from aircompile.frontends.gguf import read_gguf
from aircompile.operators import Activation, Add, GatedActivation, MatMul, Multiply, Quantize, Rope, RopeStore
from aircompile.passes import PASSES, run_passes
from aircompile.passes.options import PassOptions

AUTO = PassOptions()
FORMATS = ["F32", "F16", "BF16", "Q4_0", "Q8_0"]


def test_zoo_models_mean_the_same_after_every_pass(zoo: Path) -> None:
    models = [zoo / "models" / name / "model.gguf" for name in ("llama", "llama_tied", "mistral")]
    for path in [*models, zoo / "quant" / "Q4_K_M.gguf"]:
        weights = read_weights(path)
        tokens = [1, 5, 9, 2, 400, 77, 8, 8, 3]
        graph = build_graph(read_gguf(path))
        expected = Interpreter(graph, weights).run(tokens, range(9))[[8, 2]]
        for name, rewrite in PASSES:
            before = graph.dump()
            after = rewrite(graph, AUTO)
            after.check()
            assert graph.dump() == before, f"{name} changed its input"
            graph = after
            got = Interpreter(graph, weights).run(tokens, [8, 2])
            got = got[[8, 2]] if name == "fold_constants" else got
            np.testing.assert_allclose(got, expected, atol=1e-9, rtol=0, err_msg=f"{path}: {name}")
        kinds = [type(operator.op) for operator in graph.operators()]
        assert not {Rope, Multiply, Activation, Add} & set(kinds)
        assert kinds.count(RopeStore) == kinds.count(GatedActivation) == graph.hyper.n_layers
        assert (Quantize in kinds) == (path.stem == "Q4_K_M")


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_of_formats_means_the_same(seed: int) -> None:
    """Random formats, biases and head counts, so that every way to fuse or not to fuse is met."""
    rng = np.random.default_rng(seed)
    parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output", "token_embd"]
    tensors = llama_tensors(
        n_layers=2,
        formats={part: str(rng.choice(FORMATS)) for part in parts},
        biases=[part for part in parts[:7] if rng.random() < 0.3],
        tied=bool(rng.random() < 0.5),
    )
    metadata = llama_metadata(block_count=2, rope__scaling__factor=2.0)
    if rng.random() < 0.3:  # heads of 4 elements: k and v no longer end where a panel does
        metadata |= {"llama.attention.head_count": 16, "llama.attention.head_count_kv": 2}
        for name, found in tensors.items():
            if re.search(r"attn_[kv]\.", name):
                tensors[name] = tensor(name, (8, *found.shape[1:]), found.format)
    weights: dict[str, Array] = {name: rng.normal(size=found.shape) / 4 for name, found in tensors.items()}
    tokens = rng.integers(0, 40, 7).tolist()
    graph = build_graph(llama_model(metadata, tensors))
    expected = Interpreter(graph, weights).run(tokens, range(7))
    for activations in ("auto", "f32"):
        fused = run_passes(graph, PassOptions(activations))
        np.testing.assert_allclose(Interpreter(fused, weights).run(tokens, [6, 0]), expected[[6, 0]], atol=1e-9, rtol=0)
        for operator in fused.operators():
            if isinstance(operator.op, MatMul):
                integer = operator.op.format(fused.weights) not in ("F32", "F16", "BF16")
                dtype = "q16" if integer and activations == "auto" else "float32"
                assert fused.values[operator.inputs[0]].dtype == dtype


def test_the_interpreter_can_fail(zoo: Path) -> None:
    """The oracle of these tests sees a wrong rotation, a swapped projection and a lost row."""
    path = zoo / "models" / "llama" / "model.gguf"
    graph, weights = run_passes(build_graph(read_gguf(path)), AUTO), read_weights(path)
    tokens = [1, 5, 9, 2]
    right = Interpreter(graph, weights).run(tokens, [3])
    (fused,) = [
        op for op in graph.operators() if op.layer == 0 and isinstance(op.op, MatMul) and len(op.op.weights) == 2
    ]
    assert isinstance(fused.op, MatMul)
    swapped = graph.copy()
    op = dataclasses.replace(fused.op, weights=fused.op.weights[::-1])
    swapped.replace([fused.name], [dataclasses.replace(fused, op=op)])
    swapped.check()
    assert np.abs(Interpreter(swapped, weights).run(tokens, [3]) - right).max() > 1e-3
    slower = graph.copy()
    (rope,) = graph.hyper.ropes
    rope = dataclasses.replace(rope, inverse_frequency=rope.inverse_frequency * 0.9)
    slower.hyper = dataclasses.replace(graph.hyper, ropes=(rope,))
    assert np.abs(Interpreter(slower, weights).run(tokens, [3]) - right).max() > 1e-3
    assert np.abs(Interpreter(graph, weights).run(tokens, [2]) - right).max() > 1e-3
