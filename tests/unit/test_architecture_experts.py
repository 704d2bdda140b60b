"""Hyperparameters and tensors of mixtures of experts that files get wrong."""

from __future__ import annotations

import pytest
from small_models import llama_metadata, llama_model, llama_tensors, tensor

from aircompile.architectures import build_graph
from aircompile.cost import estimate
from aircompile.frontends.gguf import TensorInfo
from aircompile.lowering import lower, plan_caches
from aircompile.operators import Dispatch, ExpertMatMul, Quantize, Route, SumExperts
from aircompile.passes import run_passes
from aircompile.passes.options import PassOptions
from airrun.errors import ModelFileError, UnsupportedError
from airrun.machine.profile import Profile

N = 4


def experts(n_ff: int = 96, kind: str = "Q8_0") -> dict[str, TensorInfo]:
    """Tensors of a model of one layer with experts."""
    found = {name: info for name, info in llama_tensors().items() if ".ffn_" not in name or "norm" in name}
    for part, shape in (("gate", (N, n_ff, 64)), ("up", (N, n_ff, 64)), ("down", (N, 64, n_ff))):
        found[f"blk.0.ffn_{part}_exps.weight"] = tensor(f"blk.0.ffn_{part}_exps.weight", shape, kind)
    found["blk.0.ffn_gate_inp.weight"] = tensor("blk.0.ffn_gate_inp.weight", (N, 64))
    return found


def metadata(**changes: object) -> dict[str, object]:
    return llama_metadata(**({"expert_count": N, "expert_used_count": 2} | changes))


def test_rows_are_rounded_once_and_then_dispatched() -> None:
    graph = run_passes(build_graph(llama_model(metadata(), experts())), PassOptions())
    kinds = [type(operator.op) for operator in graph.operators()]
    assert kinds.count(ExpertMatMul) == 3 and kinds.index(Quantize) < kinds.index(Dispatch) < kinds.index(SumExperts)
    for operator in graph.operators():
        if isinstance(operator.op, Dispatch | ExpertMatMul):
            assert graph.values[operator.inputs[0]].dtype in ("q8", "q16")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expert_used_count": 5}, "llama.expert_used_count is 5, not within 1 to 4"),
        ({"expert_used_count": None}, "llama.expert_used_count is missing"),
        ({"expert_used_count": 0}, "llama.expert_used_count is 0"),
        ({"expert_count": 1 << 20}, "llama.expert_count is 1048576"),
        ({"expert_count": 3}, "tensor 'blk.0.ffn_gate_inp.weight' has shape (4, 64), expected (3, 64)"),
        ({"expert_weights_scale": -1.0}, "llama.expert_weights_scale is -1"),
        ({"expert_feed_forward_length": 32}, "has shape (4, 96, 64), expected (4, 32, 64)"),
        ({"expert_shared_count": 1}, "llama.expert_shared_count is 1: not supported"),
    ],
)
def test_absurd_hyperparameters(changes: dict[str, object], reason: str) -> None:
    with pytest.raises((ModelFileError, UnsupportedError)) as caught:
        build_graph(llama_model(metadata(**changes), experts()))
    assert reason in str(caught.value)


def test_a_bias_on_the_scores_is_used_and_never_ignored() -> None:
    tensors = experts() | {"blk.0.exp_probs_b.bias": tensor("blk.0.exp_probs_b.bias", (N,))}
    graph = build_graph(llama_model(metadata(), tensors))
    (route,) = [op.op for op in graph.operators() if isinstance(op.op, Route)]
    assert route.bias == "blk.0.exp_probs_b.bias"


def test_matrices_must_be_whole_panels() -> None:
    graph = build_graph(llama_model(metadata(expert_feed_forward_length=40), experts(40, "F16")))
    graph = run_passes(graph, PassOptions())
    with pytest.raises(UnsupportedError, match="matrices of 40 rows are not supported, only multiples of 16"):
        lower(graph, plan_caches(graph, "f32", 64))


def test_a_token_is_charged_for_the_experts_that_it_uses() -> None:
    graph = run_passes(build_graph(llama_model(metadata(), experts())), PassOptions())
    cost = estimate(lower(graph, plan_caches(graph, "f32", 64)), Profile("test"))
    dense = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 40 * 64
    router, chosen = N * 64, 2 * 3 * 96 * 64
    assert cost.macs_per_token == dense + router + chosen
    q8_0 = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 48 * 64 + chosen  # the head is padded to whole panels
    assert cost.weight_nbytes_per_token == q8_0 // 32 * 34 + 4 * 16 * 64
