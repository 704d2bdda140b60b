"""Tokens/s over memory budgets as a picture (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

plt.rcParams["svg.hashsalt"] = "aircompile"  # equal pictures are equal files


def plot(title: str, rows: Sequence[Any], out: Path) -> None:
    """Draw `streaming.Row`s: ours, the limit that the disk sets, and llama.cpp where it was measured."""
    streamed = [row for row in rows if row.limit]
    figure, axes = plt.subplots(figsize=(7, 4))

    def line(points: Sequence[tuple[int, float]], label: str, style: str) -> None:
        if points:
            budgets, rates = zip(*sorted(points), strict=True)
            axes.plot([budget / (1 << 20) for budget in budgets], rates, style, label=label)

    line([(row.budget, row.limit) for row in streamed], "disk: sequential read rate / bytes per token", "k--")
    line([(row.budget, row.ours["tokens_per_second"]) for row in streamed], "airrun", "o-")
    line([(row.budget, row.peer) for row in streamed if row.peer], "llama.cpp (mmap)", "s-")
    axes.set(title=title, xlabel="memory limit of the process, MiB", ylabel="decode, tokens/s", yscale="log")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
