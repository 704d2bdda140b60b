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
        What matrices in integer block formats are multiplied with: 'auto' and 'q8' round activations to 8 bits, where
        'q8' insists that the model has such matrices; 'f32' keeps floats. Float matrices always take floats.
    """

    activations: Activations = "auto"
