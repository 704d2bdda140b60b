"""Mixtures of experts: a router chooses matrices for each token, and only those are read.

A token's rows, one per chosen expert, are put together with those of other tokens that chose the same: sorted by
expert, and by token and slot within one. All between ``Dispatch`` and ``SumExperts`` works on sorted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aircompile.operators.base import Kind, Op, Value, Weights, arity, floats, matrices, of_type, same_kind, vector
from aircompile.operators.products import Product, takes
from airkernels.cpu.row_order import RowOrder

Scores = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Route(Op):
    """The `n_used` best experts of each token, and their weights: logits [tokens, experts] to numbers int32 and
    weights float32 [tokens, n_used], best first.

    Attributes
    ----------
    scores
        Scores are this function of the logits; of equal ones the first wins.
    bias
        Tensor that is added to scores to rank experts by, and does not count in weights (DeepSeek V3).
    n_groups, n_groups_used, group_best
        Experts stand in `n_groups` equal groups; only those of the `n_groups_used` best are ranked. A group is as good
        as the sum of its `group_best` best experts.
    normalize
        Divide weights (scores of the chosen) by their sum.
    scale, scales
        Then multiply all of them, and each by the element of its expert of tensor `scales`.
    """

    n_used: int
    scores: Scores
    normalize: bool
    scale: float = 1.0
    bias: str | None = None
    n_groups: int = 1
    n_groups_used: int = 1
    group_best: int = 1
    scales: str | None = None

    def tensors(self) -> tuple[str, ...]:
        return tuple(name for name in (self.bias, self.scales) if name is not None)

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        logits = floats(inputs[0])
        size, rest = divmod(logits.width, self.n_groups)
        if rest or not self.group_best <= size or not 1 <= self.n_groups_used <= self.n_groups:
            raise ValueError(f"{self.n_groups_used} of {self.n_groups} groups of {logits.width} experts")
        if not 1 <= self.n_used <= self.n_groups_used * size:
            raise ValueError(f"{self.n_used} of {self.n_groups_used * size} experts")
        for name in self.tensors():
            vector(weights, name, logits.width)
        return Kind(self.n_used, logits.rows, "int32"), Kind(self.n_used, logits.rows, "float32")


@dataclass(frozen=True)
class SortByExpert(Op):
    """The order of rows by expert (``airkernels.cpu.row_order``), of the numbers that ``Route`` chose."""

    n_experts: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 1)
        chosen = of_type(inputs[0], "int32")
        return (Kind(RowOrder(self.n_experts, chosen.width).n_words, chosen.rows, "int32"),)


@dataclass(frozen=True)
class Dispatch(Op):
    """Rows of tokens to sorted rows of experts: (x, order), or (x, order, weights) to multiply each on the way."""

    n_experts: int
    n_used: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, len(inputs) if len(inputs) in (2, 3) else 2)
        x = inputs[0]
        same_kind(x, x.width, x.rows)
        same_kind(of_type(inputs[1], "int32"), RowOrder(self.n_experts, self.n_used).n_words, x.rows)
        if len(inputs) == 3:
            floats(x)
            same_kind(floats(inputs[2]), self.n_used, x.rows)
        return (Kind(x.width, x.rows, x.dtype, self.n_used),)


@dataclass(frozen=True)
class ExpertMatMul(Product):
    """``x @ matrix.T + bias`` of sorted rows, each with the matrix of its expert: inputs (x, order)."""

    weight: str
    n_experts: int
    bias: str | None = None

    def tensors(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def format(self, weights: Weights) -> str:
        return weights[self.weight].format

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, 2)
        x = inputs[0]
        n_rows, n_cols = matrices(weights, self.weight, self.n_experts)
        if n_cols != x.width:
            raise ValueError(f"{self.weight} has {n_cols} columns for rows of {x.width} ({x.name})")
        takes(x, self.format(weights))
        same_kind(of_type(inputs[1], "int32"), RowOrder(self.n_experts, x.slots).n_words, x.rows)
        if self.bias is not None and weights[self.bias].shape != (self.n_experts, n_rows):
            raise ValueError(
                f"{self.bias} of shape {weights[self.bias].shape} is not {self.n_experts} rows of {n_rows}"
            )
        return (Kind(n_rows, x.rows, "float32", x.slots),)


@dataclass(frozen=True)
class SumExperts(Op):
    """The sum of each token's rows, in the order of its choice: inputs (x, order), or (x, order, weights)."""

    n_experts: int

    def infer(self, inputs: Sequence[Value], weights: Weights) -> tuple[Kind, ...]:
        arity(inputs, len(inputs) if len(inputs) in (2, 3) else 2)
        x = of_type(inputs[0], "float32")
        same_kind(of_type(inputs[1], "int32"), RowOrder(self.n_experts, x.slots).n_words, x.rows)
        if len(inputs) == 3:
            same_kind(floats(inputs[2]), x.slots, x.rows)
        return (Kind(x.width, x.rows, "float32"),)
