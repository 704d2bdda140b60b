"""What a user can decide about the passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activations = Literal["auto", "q8", "f32"]


@dataclass(frozen=True)
class PassOptions:
    """Choices that change the program.

    Attributes
    ----------
    activations
        What matrices in integer block formats are multiplied with: 'q8' rounds activations to 8 bits, and insists that
        the model has such matrices; 'auto' rounds groups with outliers to 16 bits; 'f32' keeps floats. Float matrices
        always take floats.
    """

    activations: Activations = "auto"
