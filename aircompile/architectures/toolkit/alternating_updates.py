"""Alternating updates (AltUp): several residual streams, of which each layer works on one and predicts the others.

Sources: Baykal et al. 2023; transformers (Gemma 3n) for details.
"""

from __future__ import annotations

from aircompile.architectures.toolkit.builder import Builder, Normalize
from aircompile.operators import Activation, Add, Combine, MatchSize, MatMul
from aircompile.operators.streams import MAX_STREAMS

_LEAST = 1e-5
"""Least mean square that a stream is scaled up from."""


class AlternatingUpdates:
    """The streams: made of the embedding, predicted from each other, corrected by what a layer made of one, joined.

    Attributes
    ----------
    active
        The stream that layers work on.
    """

    def __init__(self, b: Builder, norm: Normalize) -> None:
        self.builder, self.norm = b, norm
        self.n = b.hyper.integer("altup.num_inputs", MAX_STREAMS, low=2, default=4)
        self.active = b.hyper.integer("altup.active_idx", self.n - 1, low=0, default=0)

    def spread(self, hidden: str) -> list[str]:
        """The embedding, and projections of it."""
        return [hidden, *self._project("altup_proj", [hidden] * (self.n - 1), hidden)]

    def gather(self, streams: list[str]) -> str:
        """The mean of the first stream and of the others, projected back."""
        b, total = self.builder, streams[0]
        for i, x in enumerate(self._project("altup_unembd_proj", streams[1:], streams[0])):
            total = b.add(f"altup_sum{i + 1}", Add(), total, x)
        return b.scale(total, 1.0 / self.n, "altup_mean")

    def _project(self, part: str, streams: list[str], target: str) -> list[str]:
        b = self.builder
        matrices = b.tensors.stack(f"{part}.weight", self.n - 1, b.n_embd, b.n_embd)
        products = [
            b.add(f"{part}{i + 1}", MatMul((matrix,), (None,)), x)
            for i, (matrix, x) in enumerate(zip(matrices, streams, strict=True))
        ]
        return [b.add(f"{x}_sized", MatchSize(_LEAST), x, target) for x in products]

    def _modalities(self, x: str, when: str) -> str:
        b = self.builder
        x = b.scale(self.norm(x, "altup_router_norm", output=f"{when}_router_norm"), 1.0 / b.n_embd, f"{when}_scaled")
        return b.add(f"{when}_modalities", Activation("tanh"), b.linear(x, "altup_router", self.n, f"{when}_router"))

    def predict(self, streams: list[str]) -> list[str]:
        """What each stream would be after a layer, from all streams before it."""
        b, n = self.builder, self.n
        coefficients = b.linear(self._modalities(streams[self.active], "predict"), "altup_predict_coef", n * n)
        return [
            b.add(f"prediction{i}", Combine(i * n), stream, coefficients, *streams) for i, stream in enumerate(streams)
        ]

    def correct(self, predictions: list[str], activated: str) -> list[str]:
        """Predictions, and of what a layer made of the active one as much as each takes."""
        b = self.builder
        coefficients = b.linear(self._modalities(activated, "correct"), "altup_correct_coef", self.n)
        innovation = b.add("innovation", Add(-1.0), activated, predictions[self.active])
        return [
            b.add(f"corrected{i}", Combine(i, 1.0), prediction, coefficients, innovation)
            for i, prediction in enumerate(predictions)
        ]
