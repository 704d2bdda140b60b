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

from aircompile.graph import Graph, Operator
from aircompile.operators import (
    Activation,
    Add,
    Attention,
    GatedActivation,
    Gather,
    MatMul,
    Multiply,
    Norm,
    Quantize,
    Rope,
    RopeStore,
    SelectRows,
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
            result = self._compute(operator, [values[name] for name in operator.inputs])
            declared = self.graph.values[operator.outputs[0]]
            n_rows = len(self.tokens) if declared.rows == "tokens" else len(self.output_rows)
            assert result.shape == (n_rows, declared.width), operator.name
            values[operator.outputs[0]] = result
        return values[self.graph.outputs[0]]

    def _compute(self, operator: Operator, inputs: list[Array]) -> Array:
        match operator.op:
            case Gather() as op:
                return self.weights[op.table][self.tokens]
            case Norm() as op:
                x = inputs[0]
                x = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + op.eps) * self.weights[op.weight]
                return x if op.bias is None else x + self.weights[op.bias]
            case MatMul() as op:
                parts = [inputs[0] @ self.weights[name].T for name in op.weights]
                for i, bias in enumerate(op.biases):
                    if bias is not None:
                        parts[i] = parts[i] + self.weights[bias]
                product = np.concatenate(parts, axis=1)
                return product + inputs[1] if op.accumulate else product
            case Rope() as op:
                factors = 1.0 if op.factors is None else self.weights[op.factors]
                return self._rotate(inputs[0], op.n_heads, op.head_dim, op.dim, op.mode, factors)
            case RopeStore() as op:
                q, k, v = self._parts(operator, inputs)
                k = self._rotate(k, op.n_kv_heads, op.head_dim, op.dim, op.mode, 1.0)
                assert operator.layer not in self.cache
                self.cache[operator.layer] = (k, v)
                return self._rotate(q, op.n_heads, op.head_dim, op.dim, op.mode, 1.0)
            case Attention() as op:
                k, v = inputs[1:] if len(inputs) == 3 else self.cache[operator.layer]
                return _attention(inputs[0], k, v, op)
            case Activation(kind="silu"):
                return inputs[0] / (1 + np.exp(-inputs[0]))
            case GatedActivation(kind="silu"):
                gate, up = self._parts(operator, inputs)
                return gate / (1 + np.exp(-gate)) * up
            case Multiply():
                return inputs[0] * inputs[1]
            case Add():
                return inputs[0] + inputs[1]
            case SelectRows():
                return inputs[0][self.output_rows]
            case Quantize():
                return inputs[0]
        raise NotImplementedError(operator.op)

    def _parts(self, operator: Operator, inputs: list[Array]) -> list[Array]:
        assert isinstance(operator.op, RopeStore | GatedActivation)
        columns = operator.op.columns([self.graph.values[name] for name in operator.inputs])
        return [inputs[c.input][:, c.first : c.first + c.width] for c in columns.values()]

    def _rotate(self, x: Array, n_heads: int, head_dim: int, dim: int, mode: str, factors: Array | float) -> Array:
        rope = self.graph.hyper.rope
        angle = np.arange(len(x))[:, None] * (rope.inverse_frequency / factors)
        turn = (np.exp(1j * angle) * rope.magnitude)[:, None, :]
        heads = x.reshape(len(x), n_heads, head_dim).copy()
        first, second = (
            (slice(0, dim, 2), slice(1, dim, 2)) if mode == "normal" else (slice(dim // 2), slice(dim // 2, dim))
        )
        pairs = (heads[..., first] + 1j * heads[..., second]) * turn
        heads[..., first], heads[..., second] = pairs.real, pairs.imag
        return heads.reshape(x.shape)


def _attention(q: Array, k: Array, v: Array, op: Attention) -> Array:
    n = len(q)
    future = np.triu(np.ones((n, n), bool), 1)
    out = np.empty((n, op.n_heads, op.head_dim))
    keys, values = (x.reshape(n, op.n_kv_heads, op.head_dim) for x in (k, v))
    for head, query in enumerate(q.reshape(n, op.n_heads, op.head_dim).transpose(1, 0, 2)):
        group = head // (op.n_heads // op.n_kv_heads)
        scores = np.where(future, -np.inf, op.scale * query @ keys[:, group].T)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = scores / scores.sum(axis=1, keepdims=True) @ values[:, group]
    return out.reshape(n, -1)
