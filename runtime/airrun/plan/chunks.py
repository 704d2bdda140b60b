"""Chunks: the pieces in which weights are read from their files, and kept in memory or not.

A chunk is some neighbouring panels of one part of a weight. Chunks are numbered through all weights of a plan, part
by part, from the first rows on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from airrun.plan.schema import PANEL_ROWS, Plan, Weight


class Chunk(NamedTuple):
    """Panels [first_panel, first_panel + n_panels) of a weight, and where their rows are.

    Attributes
    ----------
    weight
        Index into `plan.weights`.
    n_rows
        Rows of the weight up to the end of the chunk's part, counted like the panels' rows: those after it in the
        part's last panel do not exist.
    file, offset, nbytes
        The rows as they stand in the file.
    """

    weight: int
    first_panel: int
    n_panels: int
    n_rows: int
    file: int
    offset: int
    nbytes: int


def chunks_of(plan: Plan) -> Iterator[Chunk]:
    """All chunks of a plan, in order of their numbers."""
    for index, weight in enumerate(plan.weights):
        row_nbytes = weight.panel_nbytes // PANEL_ROWS
        for part in weight.parts:
            tensor = plan.tensors[part.tensor]
            n_rows = tensor.nbytes // row_nbytes
            for panel in range(0, -(-n_rows // PANEL_ROWS), weight.chunk_panels):
                n_panels = min(weight.chunk_panels, -(-n_rows // PANEL_ROWS) - panel)
                first = panel * PANEL_ROWS
                rows = min(n_panels * PANEL_ROWS, n_rows - first)
                yield Chunk(
                    index,
                    part.first_panel + panel,
                    n_panels,
                    part.first_panel * PANEL_ROWS + n_rows,
                    tensor.file,
                    tensor.offset + first * row_nbytes,
                    rows * row_nbytes,
                )


def n_chunks(plan: Plan) -> int:
    """Number of chunks of a plan."""
    total = 0
    for weight in plan.weights:
        rows_per_chunk = PANEL_ROWS * weight.chunk_panels
        row_nbytes = weight.panel_nbytes // PANEL_ROWS
        total += sum(-(-(plan.tensors[p.tensor].nbytes // row_nbytes) // rows_per_chunk) for p in weight.parts)
    return total


def n_matrices(plan: Plan, weight: Weight) -> int:
    """Matrices of a bank of experts; 0 of other weights."""
    return plan.tensors[weight.parts[0].tensor].shape[0] if is_bank(plan, weight) else 0


def is_bank(plan: Plan, weight: Weight) -> bool:
    """Whether a weight is a bank of experts, of which steps read what was chosen."""
    return plan.tensors[weight.parts[0].tensor].access == "experts"
