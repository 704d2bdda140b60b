"""What lowering makes: kernel calls whose pointers say what they point to, and the matrices they read."""

from __future__ import annotations

from dataclasses import dataclass

from aircompile.graph import Operator
from airkernels.cpu.isa import PANEL
from airschedules.specs import KernelSpec, PackSpec


@dataclass(frozen=True)
class Pointer:
    """A pointer argument before the memory plan: an entry of a space by name, and an offset in bytes.

    Space 'value' is an activation; the others are those of the plan.
    """

    space: str
    name: str = ""
    offset: int = 0


NOTHING = Pointer("none")


@dataclass(frozen=True)
class Call:
    """A kernel call: the step of the plan before addresses."""

    spec: KernelSpec
    operator: Operator
    rows: str
    tasks: int
    tokens_per_task: int
    sync: bool
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class PanelWeight:
    """A matrix in panels, of one or several tensors of one format."""

    tensors: tuple[str, ...]
    layer: int
    pack: PackSpec

    @property
    def name(self) -> str:
        return "+".join(self.tensors)


@dataclass
class Phase:
    """A program to be: batches of up to `max_tokens` tokens."""

    name: str
    max_tokens: int


PHASES = (Phase("decode", 1), Phase("prefill", 512))


def stride(width: int) -> int:
    """Floats between rows of a value: whole panels, so that products need no tail."""
    return -(-width // PANEL) * PANEL
