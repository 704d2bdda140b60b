"""Building the graph of one model file: operators are added in order, and take their weights by name.

Tensors have GGUF's names. A `part` such as 'attn_q' stands for the tensors of that name in the current layer
('blk.3.attn_q.weight'), or outside the layers for those of the whole model ('output_norm.weight').
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Protocol

from aircompile.architectures.toolkit.hyperparameters import Hyperparameters
from aircompile.architectures.toolkit.limits import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH
from aircompile.architectures.toolkit.tensors import TensorTable
from aircompile.frontends.gguf import GGUFModel
from aircompile.graph import Graph, ModelInfo, Phase
from aircompile.operators import Activation, Add, Gather, MatMul, Norm, NormKind, Op, Scale
from airrun.errors import ModelFileError, UnsupportedError

_MAX_NAME = 200


class Normalize(Protocol):
    """A kind of norm with its epsilon: `norm(x, 'attn_norm')` adds one with the weights of that part."""

    def __call__(self, x: str, part: str | None, *, groups: int = 1, output: str | None = None) -> str:
        """`groups` equal parts of a row are normed apart (heads); without a part there are no weights."""
        ...


class Builder:
    """The graph of one model file as it grows.

    Attributes
    ----------
    model
        The file as it was read.
    hyper, tensors
        Its hyperparameters and tensors; what is never taken from them is an error at the end.
    n_embd, n_layers, n_ctx_train, n_vocab
        Hyperparameters that every family has.
    graph
        Operators so far.
    layer
        The layer that operators are added to; -1 outside the layers.
    ctx_size
        Tokens that a session is to hold; None where it is not decided.
    """

    def __init__(self, model: GGUFModel, architecture: str, ctx_size: int | None = None) -> None:
        self.model, self.ctx_size = model, ctx_size
        self.hyper = Hyperparameters(model, architecture)
        self.tensors = TensorTable(model)
        self.n_layers = self.hyper.integer("block_count", MAX_LAYERS)
        self.n_embd = self.hyper.integer("embedding_length", MAX_WIDTH)
        self.n_ctx_train = self.hyper.integer("context_length", MAX_CONTEXT)
        self.n_vocab = _vocabulary_size(model, self.hyper)
        info = ModelInfo(
            name=_model_name(model),
            architecture=architecture,
            n_vocab=self.n_vocab,
            n_embd=self.n_embd,
            n_layers=self.n_layers,
            n_ctx_train=self.n_ctx_train,
            n_params=sum(math.prod(tensor.shape) for tensor in model.tensors.values()),
        )
        self.graph = Graph(info, {}, ("logits",), model.files)
        self.layer = -1
        self._phase: Phase = "embed"

    def finish(self) -> Graph:
        """The finished graph. Raises ModelFileError or UnsupportedError for what was not understood of the file."""
        self.hyper.finish()
        self.tensors.finish()
        return self.graph

    def width(self, value: str) -> int:
        """Columns of a value."""
        return self.graph.values[value].width

    def name(self, part: str) -> str:
        """The full name of a part of the current layer."""
        return f"blk.{self.layer}.{part}" if self.layer >= 0 else part

    def has(self, part: str) -> bool:
        """Whether the file has the matrix or vector of a part."""
        return self.tensors.has(f"{self.name(part)}.weight")

    def layers(self) -> Iterator[int]:
        """Go through the layers: what is added meanwhile belongs to the current one."""
        for layer in range(self.n_layers):
            self.layer = layer
            yield layer
        self.layer, self._phase = -1, "head"

    def add(self, output: str, op: Op, *inputs: str) -> str:
        """Add an operator with one result; returns the name of that, which is prefixed with the layer."""
        (name,) = self.add_all((output,), op, *inputs)
        return name

    def add_all(self, outputs: tuple[str, ...], op: Op, *inputs: str) -> tuple[str, ...]:
        """The same with several results."""
        names = tuple(f"layers.{self.layer}.{output}" if self.layer >= 0 else output for output in outputs)
        for tensor in op.tensors():
            self.graph.weights[tensor] = self.tensors.taken[tensor]
        # what stands between the embedding and the first layer counts to that
        layer = max(self.layer, 0) if self._phase == "layer" else -1
        self.graph.add(op, inputs, names, layer=layer, phase=self._phase)
        return names

    def limit_context(self, n: int) -> None:
        """Positions end after `n` tokens."""
        self.graph.hyper = dataclasses.replace(self.graph.hyper, n_ctx_max=n)

    def leave_out_prediction_layers(self) -> None:
        """Do without the last layers, where they only predict tokens after the next one."""
        n = self.hyper.integer("nextn_predict_layers", self.n_layers - 1, low=0, default=0)
        for layer in range(self.n_layers - n, self.n_layers):
            self.tensors.ignore(rf"blk\.{layer}\..*")
        self.n_layers -= n
        self.graph.hyper = dataclasses.replace(self.graph.hyper, n_layers=self.n_layers)

    # parts that most families have

    def embedding(self, scale: float = 1.0) -> str:
        """Rows of the token embedding, times `scale`: what a caller may give instead of tokens."""
        table = self.tensors.matrix("token_embd.weight", self.n_vocab, self.n_embd)
        hidden = self.scale(self.add("embedding", Gather(table)), scale, "scaled_embedding")
        self._phase = "layer"
        return hidden

    def learned_positions(self, hidden: str) -> str:
        """Add a learned vector per position, which is as far as the context goes."""
        self.limit_context(self.n_ctx_train)
        table = self.tensors.matrix("position_embd.weight", self.n_ctx_train, self.n_embd)
        positions = self.add("positions", Gather(table, "cells"))
        return self.add("positioned", Add(), hidden, positions)

    def scale(self, x: str, factor: float, output: str) -> str:
        """``x * factor``."""
        return x if factor == 1.0 else self.add(output, Activation("scale", (factor,)), x)

    def linear(self, x: str, part: str, n_rows: int, output: str | None = None) -> str:
        """``x @ weight.T``, plus the bias if the file has one; the product times its scale if it has one."""
        output, name = output or part, self.name(part)
        weight = self.tensors.matrix(f"{name}.weight", n_rows, self.width(x))
        bias = self.tensors.optional_vector(f"{name}.bias", n_rows)
        scale = self.tensors.optional_vector(f"{name}.scale", 1)
        if scale is None:
            return self.add(output, MatMul((weight,), (bias,)), x)
        if bias is not None:
            raise UnsupportedError(f"{self.hyper.path}: tensor {name}.weight has both a scale and a bias")
        return self.add(output, Scale(scale), self.add(f"{output}.unscaled", MatMul((weight,), (None,)), x))

    def rms_norm(self) -> Normalize:
        """Root-mean-square norms with the model's epsilon."""
        return self._norms("rms", self.hyper.number("attention.layer_norm_rms_epsilon", 1e-30, 1.0))

    def layer_norm(self) -> Normalize:
        """Layer norms with the model's epsilon."""
        return self._norms("layer", self.hyper.number("attention.layer_norm_epsilon", 1e-30, 1.0))

    def _norms(self, kind: NormKind, eps: float) -> Normalize:
        def norm(x: str, part: str | None, *, groups: int = 1, output: str | None = None) -> str:
            weight = bias = None
            if part is not None:
                weight = self.tensors.group_vector(f"{self.name(part)}.weight", groups, self.width(x) // groups)
                bias = self.tensors.optional_vector(f"{self.name(part)}.bias", self.width(x) // groups)
            name = output or part
            assert name is not None
            return self.add(name, Norm(weight, eps, bias, kind, groups), x)

        return norm

    def residual(self, hidden: str, x: str, output: str, scale: float = 1.0) -> str:
        """The residual stream after a sub-layer."""
        return self.add(output, Add(scale), hidden, x)

    def logits(self, x: str, softcap: float = 0.0) -> str:
        """The output matrix: one of its own, or the embedding; then `softcap` if it is not 0."""
        own = self.tensors.has("output.weight")
        weight = self.tensors.matrix("output.weight" if own else "token_embd.weight", self.n_vocab, self.n_embd)
        op = MatMul((weight,), (self.tensors.optional_vector("output.bias", self.n_vocab),))
        if softcap == 0.0:
            return self.add("logits", op, x)
        return self.add("logits", Activation("softcap", (softcap,)), self.add("uncapped", op, x))


def _model_name(model: GGUFModel) -> str:
    """The name the file gives itself, fit to be printed on a line; else the file's."""
    name = model.metadata.get("general.name")
    if not isinstance(name, str) or not name.strip():
        return model.files[0].path.stem
    return "".join(c if c.isprintable() else " " for c in name[:_MAX_NAME])


def _vocabulary_size(model: GGUFModel, hyper: Hyperparameters) -> int:
    """The length of the vocabulary; a file without one says it in a key, or shows it by the embedding."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None:
        if not isinstance(tokens, list) or not 0 < len(tokens) <= MAX_VOCAB:
            raise ModelFileError(f"{hyper.path}: tokenizer.ggml.tokens is not a list of 1 to {MAX_VOCAB} texts")
        return len(tokens)
    embedding = model.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    return hyper.integer("vocab_size", MAX_VOCAB, default=rows)
