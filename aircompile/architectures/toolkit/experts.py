"""Mixtures of experts: a router, the chosen experts, and experts that all tokens share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aircompile.architectures.toolkit.builder import Builder
from aircompile.architectures.toolkit.feed_forward import gated
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.operators import (
    Activation,
    Add,
    Dispatch,
    ExpertMatMul,
    Function,
    Gate,
    GatedActivation,
    MatMul,
    Multiply,
    Route,
    Scores,
    Slice,
    SortByExpert,
    SumExperts,
)

MAX_EXPERTS = 1 << 12
_SCORES: dict[int, Scores] = {1: "softmax", 2: "sigmoid"}
"""By the number that a file has for them."""


@dataclass(frozen=True)
class Experts:
    """So many experts of width `n_ff`, of which a token uses `n_used`; `scale` of their weights."""

    n: int
    n_used: int
    n_ff: int
    scale: float


def has_experts(b: Builder) -> bool:
    """Whether the model has any."""
    return b.hyper.integer("expert_count", MAX_EXPERTS, low=0, default=0) > 0


def read_experts(b: Builder, n_ff: int | None = None) -> Experts:
    """The experts of a model; `n_ff` is their width where the file does not say."""
    n = b.hyper.integer("expert_count", MAX_EXPERTS)
    n_used = b.hyper.integer("expert_used_count", n)
    width = b.hyper.integer("expert_feed_forward_length", MAX_WIDTH, default=n_ff)
    # 0 stands for none
    return Experts(n, n_used, width, b.hyper.number("expert_weights_scale", 0.0, 1e6, 0.0) or 1.0)


def leading_dense(b: Builder) -> int:
    """How many layers come before the first with experts."""
    return b.hyper.integer("leading_dense_block_count", b.n_layers, low=0, default=0)


@dataclass(frozen=True)
class Mixture:
    """Experts of the current layer, which are `kind` gated (with `parameters`): ``mixture(x)`` is what they make of x.

    `router` describes how they are chosen, but for its tensors, which a layer may have or not; `weigh_first` multiplies
    inputs by weights, and not results.
    """

    builder: Builder
    experts: Experts
    router: Route
    kind: Gate = "silu"
    parameters: tuple[float, ...] = ()
    weigh_first: bool = False

    def __call__(self, x: str, logits: str | None = None) -> str:
        """The experts that `logits` choose, by default those of the router's own product with x."""
        b, n = self.builder, self.experts.n
        if logits is None:
            logits = b.linear(x, "ffn_gate_inp", n, "router")
        bias = b.tensors.optional_vector(f"{b.name('exp_probs_b')}.bias", n)
        scales = b.tensors.optional_vector(f"{b.name('ffn_down_exps')}.scale", n)
        router = replace(self.router, bias=bias, scales=scales)
        numbers, weights = b.add_all(("experts", "expert_weights"), router, logits)
        order = b.add("expert_order", SortByExpert(n), numbers)
        first, last = ((weights,), ()) if self.weigh_first else ((), (weights,))
        rows = b.add("expert_rows", Dispatch(n, self.experts.n_used), x, order, *first)
        hidden = self._product(self._activated(rows, order), order, "ffn_down_exps", b.n_embd)
        return b.add("experts_sum", SumExperts(n), hidden, order, *last)

    def _activated(self, rows: str, order: str) -> str:
        b, n_ff = self.builder, self.experts.n_ff
        if b.has("ffn_gate_up_exps"):
            both = self._product(rows, order, "ffn_gate_up_exps", 2 * n_ff)
            gate, up = b.add("expert_gate", Slice(0, n_ff), both), b.add("expert_up", Slice(n_ff, n_ff), both)
        else:
            gate = self._product(rows, order, "ffn_gate_exps", n_ff)
            up = self._product(rows, order, "ffn_up_exps", n_ff)
        return b.add("expert_gated", GatedActivation(self.kind, self.parameters), gate, up)

    def _product(self, x: str, order: str, part: str, n_rows: int) -> str:
        b, n, name = self.builder, self.experts.n, self.builder.name(part)
        weight = b.tensors.matrices(f"{name}.weight", n, n_rows, b.width(x))
        bias = f"{name}.bias" if b.tensors.has(f"{name}.bias") else None
        if bias is not None:
            b.tensors.vectors(bias, n, n_rows)
        return b.add(part, ExpertMatMul(weight, n, bias), x, order)


def softmax_router(experts: Experts, *, normalize: bool) -> Route:
    """Softmax over all experts; weights of the chosen ones add up to 1 if `normalize`."""
    return Route(experts.n_used, "softmax", normalize, experts.scale)


def read_router(b: Builder, experts: Experts, default: Scores) -> Route:
    """The router that the file describes, which may choose within groups (DeepSeek V2 and V3); `default` scores.

    A group is as good as its best expert by softmax (Liu et al. 2024, "DeepSeek-V2"), and as its best two by sigmoid
    (DeepSeek-AI 2024, "DeepSeek-V3").
    """
    hyper = b.hyper
    number = hyper.integer("expert_gating_func", 1 << 16, low=0, default=0)
    if number and number not in _SCORES:
        raise hyper.unsupported("expert_gating_func", f"is {number}; supported: 1 (softmax), 2 (sigmoid)")
    scores = _SCORES.get(number, default)
    # 0 stands for none
    n_groups = hyper.integer("expert_group_count", experts.n, low=0, default=1) or 1
    n_groups_used = hyper.integer("expert_group_used_count", n_groups, low=0, default=n_groups) or n_groups
    size = experts.n // n_groups
    best = min(1 if scores == "softmax" else 2, size)
    if experts.n % n_groups or experts.n_used > n_groups_used * size:
        raise hyper.error("expert_group_count", f"is {n_groups}, which does not fit {experts.n} experts")
    normalize = hyper.flag("expert_weights_norm", False)
    return Route(
        experts.n_used,
        scores,
        normalize,
        experts.scale,
        n_groups=n_groups,
        n_groups_used=n_groups_used,
        group_best=best,
    )


def with_shared(mixture: Mixture, n_shared: int) -> Callable[[str], str]:
    """Chosen experts and such that all tokens share, as many as would fill `n_shared` columns."""
    b = mixture.builder
    if not n_shared:
        return mixture
    return lambda x: b.add("experts_and_shared", Add(), mixture(x), shared(b, x, n_shared))


def shared(b: Builder, x: str, n_ff: int, kind: Function = "silu", *, weighed: bool = False) -> str:
    """The experts that all tokens share, as one of width `n_ff`; times the sigmoid of a product with x if `weighed`."""
    y = gated(b, x, n_ff, kind, "_shexp")
    if not weighed:
        return y
    row = b.tensors.row(f"{b.name('ffn_gate_inp_shexp')}.weight", b.n_embd)
    weight = b.add("shared_weight", Activation("sigmoid"), b.add("shared_router", MatMul((row,), (None,)), x))
    return b.add("shared_weighed", Multiply(), y, weight)
