"""An independent oracle: the operators of a graph in plain numpy float64, over weights decoded by the gguf package.

Slow and literal on purpose: one sequence from position 0, no cache blocks, no batching. `Quantize` is the identity, so
a fused and quantized graph must give the logits of the graph it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from reference_functions import activation, alibi_slopes, gate, sigmoid

from aircompile.graph import Graph, Operator
from aircompile.operators import (
    Activation,
    Add,
    Attention,
    Combine,
    CutOff,
    Dispatch,
    ExpertMatMul,
    GatedActivation,
    Gather,
    HeadMatMul,
    Join,
    MatchSize,
    MatMul,
    Multiply,
    Norm,
    Quantize,
    Rope,
    RopeStore,
    Route,
    Scale,
    ScaleByPosition,
    SelectRows,
    Slice,
    SortByExpert,
    Split,
    SumExperts,
)

Array = npt.NDArray[np.float64]


def read_weights(path: Path) -> dict[str, Array]:
    """Every tensor of a GGUF file as float64, by gguf's own reader and decoder."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        .astype(np.float64)
        .reshape(tensor.shape[::-1])
        for tensor in reader.tensors
    }


class Interpreter:
    """Runs a graph on one sequence of token ids."""

    def __init__(self, graph: Graph, weights: dict[str, Array]) -> None:
        self.graph = graph
        self.weights = weights

    def run(self, tokens: Sequence[int], output_rows: Sequence[int]) -> Array:
        """The graph's (only) output: float64 [rows, width]."""
        self.tokens = np.asarray(tokens)
        self.output_rows = np.asarray(output_rows)
        self.cache: dict[int, tuple[Array, Array]] = {}
        values: dict[str, Array] = {}
        for operator in self.graph.operators():
            computed = self._compute(operator, [values[name] for name in operator.inputs])
            results = computed if isinstance(computed, tuple) else (computed,)
            for name, result in zip(operator.outputs, results, strict=True):
                declared = self.graph.values[name]
                n_rows = len(self.tokens) if declared.rows == "tokens" else len(self.output_rows)
                # what an order looks like is the kernels' business: here it is the chosen experts
                if not isinstance(operator.op, SortByExpert):
                    assert result.shape == (n_rows * declared.slots, declared.width), operator.name
                values[name] = result
        return values[self.graph.outputs[0]]

    def _compute(self, operator: Operator, inputs: list[Array]) -> Array | tuple[Array, ...]:
        match operator.op:
            case Route() as op:
                return self._route(inputs[0], op)
            case SortByExpert():
                return inputs[0]
            case Dispatch() as op:
                rows = np.repeat(inputs[0], op.n_used, axis=0)
                return rows * inputs[2].reshape(-1, 1) if len(inputs) == 3 else rows
            case ExpertMatMul() as op:
                chosen = inputs[1].reshape(-1).astype(int)
                product = np.stack([self.weights[op.weight][e] @ x for e, x in zip(chosen, inputs[0], strict=True)])
                return product if op.bias is None else product + self.weights[op.bias][chosen]
            case SumExperts():
                y = inputs[0].reshape(*inputs[1].shape, -1)
                return (y * inputs[2][..., None] if len(inputs) == 3 else y).sum(axis=1)
            case HeadMatMul() as op:
                matrices = self.weights[op.weight]
                heads = inputs[0].reshape(-1, *matrices.shape[::2])
                return np.einsum("thc,hrc->thr", heads, matrices).reshape(-1, matrices.shape[1])
            case Split():
                return inputs[0].reshape(-1, self.graph.values[operator.outputs[0]].width)
            case Join():
                slots = [self.graph.values[name].slots for name in operator.inputs]
                repeated = [np.repeat(x, max(slots) // n, axis=0) for x, n in zip(inputs, slots, strict=True)]
                return np.concatenate(repeated, axis=1)
            case ScaleByPosition() as op:
                steps = (np.arange(len(self.tokens)) + 1) // op.period
                return inputs[0] * (1 + op.strength * np.log(1 + steps))[:, None]
            case Gather() as op:
                return self.weights[op.table][self.tokens if op.by == "token_ids" else np.arange(len(self.tokens))]
            case Norm() as op:
                return self._norm(inputs[0], op)
            case MatMul() as op:
                parts = [inputs[0] @ self.weights[name].T for name in op.weights]
                for i, bias in enumerate(op.biases):
                    if bias is not None:
                        parts[i] = parts[i] + self.weights[bias]
                product = np.concatenate(parts, axis=1)
                return product + inputs[1] if op.accumulate else product
            case Slice() as op:
                return inputs[0][:, op.first : op.first + op.width]
            case Rope() as op:
                factors = 1.0 if op.factors is None else self.weights[op.factors]
                return self._rotate(inputs[0], op.n_heads, op, factors)
            case RopeStore() as op:
                q, k, v = inputs
                assert op.slot not in self.cache
                self.cache[op.slot] = (self._rotate(k, op.n_kv_heads, op, 1.0), v)
                return self._rotate(q, op.n_heads, op, 1.0)
            case Attention() as op:
                k, v = inputs[1:] if op.slot < 0 else self.cache[op.slot]
                sinks = None if op.sinks is None else self.weights[op.sinks]
                return _attention(inputs[0], k, v, op, sinks)
            case Activation() as op:
                return activation(op.kind, op.parameters, inputs[0])
            case GatedActivation() as op:
                return gate(op.kind, op.parameters, *inputs)
            case Multiply():
                return inputs[0] * inputs[1]
            case Add() as op:
                return inputs[0] + op.scale * inputs[1]
            case Scale() as op:
                return inputs[0] * self.weights[op.weight]
            case Combine() as op:
                base, coefficients, *streams = inputs
                factors = coefficients[:, op.first : op.first + len(streams)] + op.offset
                return base + np.einsum("tj,jtn->tn", factors, np.stack(streams))
            case MatchSize() as op:
                x, target = ((v * v).mean(1, keepdims=True) for v in inputs)
                return inputs[0] * np.sqrt(target / np.maximum(x, op.least))
            case CutOff() as op:
                mean, std = inputs[0].mean(1, keepdims=True), inputs[0].std(1, keepdims=True)
                return np.maximum(inputs[0] - mean - op.deviations * std, 0)
            case SelectRows():
                return inputs[0][self.output_rows]
            case Quantize():
                return inputs[0]
        raise NotImplementedError(operator.op)

    def _route(self, logits: Array, op: Route) -> tuple[Array, Array]:
        spread = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = spread / spread.sum(axis=1, keepdims=True) if op.scores == "softmax" else sigmoid(logits)
        ranks = scores if op.bias is None else scores + self.weights[op.bias]
        groups = np.sort(ranks.reshape(len(ranks), op.n_groups, -1), axis=2)[:, :, -op.group_best :].sum(axis=2)
        worst = np.argsort(-groups, axis=1, kind="stable")[:, op.n_groups_used :]
        ranks = ranks.reshape(len(ranks), op.n_groups, -1).copy()
        np.put_along_axis(ranks, worst[..., None], -np.inf, axis=1)
        chosen = np.argsort(-ranks.reshape(logits.shape), axis=1, kind="stable")[:, : op.n_used]
        weights = np.take_along_axis(scores, chosen, axis=1)
        weights = weights / weights.sum(axis=1, keepdims=True) if op.normalize else weights
        scales = 1.0 if op.scales is None else self.weights[op.scales][chosen]
        return chosen.astype(np.float64), weights * op.scale * scales

    def _norm(self, x: Array, op: Norm) -> Array:
        groups = x.reshape(len(x), op.groups, -1)
        if op.kind == "layer":
            groups = groups - groups.mean(axis=2, keepdims=True)
        groups = groups / np.sqrt(np.mean(groups * groups, axis=2, keepdims=True) + op.eps)

        def spread(name: str) -> Array:
            """A vector for every group, whether it is the same for all or has an entry per column of the row."""
            vector = self.weights[name]
            return vector.reshape(op.groups, -1) if vector.size == x.shape[1] else vector[None]

        groups = groups if op.weight is None else groups * spread(op.weight)
        groups = groups if op.bias is None else groups + spread(op.bias)
        return groups.reshape(x.shape)

    def _rotate(self, x: Array, n_heads: int, op: Rope | RopeStore, factors: Array | float) -> Array:
        if not op.dim:
            return x
        rope = self.graph.hyper.ropes[op.table]
        angle = np.arange(len(x))[:, None] * (rope.inverse_frequency / factors)
        turn = (np.exp(1j * angle) * rope.magnitude)[:, None, :]
        heads = x.reshape(len(x), n_heads, op.head_dim).copy()
        half = op.dim // 2
        first, second = (
            (slice(0, op.dim, 2), slice(1, op.dim, 2)) if op.mode == "normal" else (slice(half), slice(half, op.dim))
        )
        pairs = (heads[..., first] + 1j * heads[..., second]) * turn
        heads[..., first], heads[..., second] = pairs.real, pairs.imag
        return heads.reshape(x.shape)


def _attention(q: Array, k: Array, v: Array, op: Attention, sinks: Array | None) -> Array:
    n = len(q)
    query, key = np.arange(n)[:, None], np.arange(n)[None]
    hidden = key > query
    if op.window:
        hidden |= query - key >= op.window
    if op.chunk:
        hidden |= key // op.chunk != query // op.chunk
    out = np.empty((n, op.n_heads, op.v_dim))
    keys, values = k.reshape(n, op.n_kv_heads, op.head_dim), v.reshape(n, op.n_kv_heads, op.v_dim)
    for head, queries in enumerate(q.reshape(n, op.n_heads, op.head_dim).transpose(1, 0, 2)):
        group = head // (op.n_heads // op.n_kv_heads)
        scores = op.scale * queries @ keys[:, group].T
        if op.softcap:
            scores = op.softcap * np.tanh(scores / op.softcap)
        if op.alibi:
            scores = scores - alibi_slopes(op.n_heads, op.alibi)[head] * (query - key)
        scores = np.where(hidden, -np.inf, scores)
        if sinks is not None:
            scores = np.concatenate([scores, np.full((n, 1), sinks[head])], axis=1)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        out[:, head] = weights[:, :n] @ values[:, group]
    return out.reshape(n, -1)
