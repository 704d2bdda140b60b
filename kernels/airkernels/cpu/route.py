"""Routers: the best experts of each token and their weights, from logits."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from airkernels.cpu.functions import sigmoid
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Kernel, Region, const, define, let, local, loop, when
from airkernels.cpu.rounding import row_of
from airkernels.cpu.vectors import exp

_LOWEST = -3.4e38
"""Ranks of experts that cannot be chosen (any more)."""

_LEAST_SUM = 1e-20
"""Of weights that are divided by it."""


@dataclass(frozen=True)
class RouteShape:
    """A router as ``aircompile.operators.Route`` describes it; words between rows of logits, numbers and weights."""

    n_experts: int
    n_used: int
    softmax: bool
    normalize: bool
    scale: float
    bias: bool
    n_groups: int
    n_groups_used: int
    group_best: int
    scales: bool
    in_stride: int
    numbers_stride: int
    weights_stride: int


def route(name: str, isa: VectorIsa, shape: RouteShape) -> tirx.PrimFunc:
    """p0 logits float32, p1 bias, p2 numbers int32, p3 weights float32, p4 scales; tasks are tokens."""

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as token:
            logits = row_of(k, 0, token, shape.in_stride)
            numbers = Region(row_of(k, 2, token, shape.numbers_stride).base, "int32")
            weights = row_of(k, 3, token, shape.weights_stride)
            scores, ranks = local("float32", shape.n_experts), local("float32", shape.n_experts)
            _score(isa, shape, logits, scores)
            # scores rise with logits, but as floats some that differ may become equal
            by_logit = not shape.bias and shape.n_groups == 1
            with loop(shape.n_experts) as expert:
                rank = logits.load(expert) if by_logit else scores.load(expert)
                ranks.store(expert, rank + k.region(1, "float32").load(expert) if shape.bias else rank)
            if shape.n_groups_used < shape.n_groups:
                _leave_best_groups(shape, ranks)
            with loop(shape.n_used) as slot:
                best = _take_best(ranks, 0, shape.n_experts)
                numbers.store(slot, best)
                weights.store(slot, scores.load(best))
            _weigh(k, shape, numbers, weights)

    return define(name, body)


def _score(isa: VectorIsa, shape: RouteShape, logits: Region, scores: Region) -> None:
    n = shape.n_experts
    if not shape.softmax:
        with loop(n) as expert:
            scores.store(expert, sigmoid(logits.load(expert), isa))
        return
    largest, total = local("float32", 1), local("float32", 1)
    largest.store(0, logits.load(0))
    with loop(n) as expert:
        largest.store(0, tirx.max(largest.load(0), logits.load(expert)))
    total.store(0, const(0.0, "float32"))
    with loop(n) as expert:
        score = let(exp(logits.load(expert) - largest.load(0), isa))
        scores.store(expert, score)
        total.store(0, total.load(0) + score)
    with loop(n) as expert:
        scores.store(expert, scores.load(expert) / total.load(0))


def _leave_best_groups(shape: RouteShape, ranks: Region) -> None:
    """Give the lowest rank to experts outside the best groups."""
    size = shape.n_experts // shape.n_groups
    group_ranks, spare = local("float32", shape.n_groups), local("float32", size)
    kept = local("int32", shape.n_groups)
    with loop(shape.n_groups) as group:
        kept.store(group, const(0, "int32"))
        with loop(size) as i:
            spare.store(i, ranks.load(group * size + i))
        group_ranks.store(group, const(0.0, "float32"))
        with loop(shape.group_best):
            best = _take_best(spare, 0, size, forget=False)
            group_ranks.store(group, group_ranks.load(group) + spare.load(best))
            spare.store(best, const(_LOWEST, "float32"))
    with loop(shape.n_groups_used):
        kept.store(_take_best(group_ranks, 0, shape.n_groups), const(1, "int32"))
    with loop(shape.n_groups) as group, when(kept.load(group) == 0), loop(size) as i:
        ranks.store(group * size + i, const(_LOWEST, "float32"))


def _take_best(ranks: Region, first: int, n: int, forget: bool = True) -> Expr:
    """The place of the first of the largest of n ranks, which is then the lowest."""
    best, largest = local("int32", 1), local("float32", 1)
    best.store(0, const(first, "int32"))
    largest.store(0, ranks.load(first))
    with loop(n - 1, 0) as i, when(ranks.load(first + 1 + i) > largest.load(0)):
        largest.store(0, ranks.load(first + 1 + i))
        best.store(0, first + 1 + i)
    found = let(best.load(0))
    if forget:
        ranks.store(found, const(_LOWEST, "float32"))
    return found


def _weigh(k: Kernel, shape: RouteShape, numbers: Region, weights: Region) -> None:
    total = local("float32", 1)
    total.store(0, const(0.0, "float32"))
    with loop(shape.n_used) as slot:
        total.store(0, total.load(0) + weights.load(slot))
    with loop(shape.n_used) as slot:
        weight = weights.load(slot)
        if shape.normalize:
            weight = weight / tirx.max(total.load(0), const(_LEAST_SUM, "float32"))
        weight = weight * const(shape.scale, "float32")
        if shape.scales:
            weight = weight * k.region(4, "float32").load(numbers.load(slot))
        weights.store(slot, weight)
