"""Inputs per layer (Gemma 3n and 4): each layer gets a small vector per token besides the residual stream.

They are rows of an embedding table of their own, plus a normed projection of the model's embedding.
"""

from __future__ import annotations

import math

from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.architectures.toolkit.limits import MAX_WIDTH
from aircompile.operators import Activation, Add, Gather, Multiply, Slice


class PerLayerInputs:
    """The inputs of all layers, side by side; nothing where the model has none."""

    def __init__(self, b: Builder, norm: Normalize, embedding: str) -> None:
        self.builder, self.norm = b, norm
        self.width = b.hyper.integer("embedding_length_per_layer_input", MAX_WIDTH, low=0, default=0)
        if not self.width:
            return
        total = self.width * b.n_layers
        table = b.tensors.matrix("per_layer_token_embd.weight", b.n_vocab, total)
        rows = b.scale(b.add("per_layer_rows", Gather(table)), math.sqrt(self.width), "per_layer_scaled")
        projected = b.linear(embedding, "per_layer_model_proj", total, "per_layer_projection")
        # the norm undoes a factor on the projection but for its epsilon
        projected = b.scale(projected, 1 / math.sqrt(b.n_embd), "per_layer_projection_scaled")
        projected = norm(projected, "per_layer_proj_norm", groups=b.n_layers)
        self.all = b.scale(b.add("per_layer_sum", Add(), projected, rows), math.sqrt(0.5), "per_layer_inputs")

    def gated(self, x: str) -> str:
        """What a layer adds of its input, gated by `x`."""
        b = self.builder
        gate = b.add("per_layer_activation", Activation("gelu_tanh"), b.linear(x, "inp_gate", self.width))
        mine = b.add("per_layer_input", Slice(b.layer * self.width, self.width), self.all)
        x = b.linear(b.add("per_layer_gated", Multiply(), gate, mine), "proj", b.n_embd)
        return self.norm(x, "post_norm")

    def residual(self, hidden: str) -> str:
        """The residual stream with the input of the current layer, where the model has such."""
        if not self.width:
            return hidden
        return self.builder.residual(hidden, self.gated(hidden), "per_layer_residual")
