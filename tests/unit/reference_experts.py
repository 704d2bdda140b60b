"""What a router chooses, in float64, step by step as the papers tell it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Router(Protocol):
    """A router's options, as ``aircompile.operators.Route`` has them; `bias` and `scales` are there or not."""

    @property
    def n_used(self) -> int: ...
    @property
    def softmax(self) -> bool: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def scale(self) -> float: ...
    @property
    def bias(self) -> bool: ...
    @property
    def scales(self) -> bool: ...
    @property
    def n_groups(self) -> int: ...
    @property
    def n_groups_used(self) -> int: ...
    @property
    def group_best(self) -> int: ...


def choose_experts(
    router: Router, logits: npt.NDArray[Any], bias: npt.NDArray[Any], scales: npt.NDArray[Any]
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """One token's experts and weights."""
    x, n = logits.astype(np.float64), len(logits)
    scores = np.exp(x - x.max()) / np.exp(x - x.max()).sum() if router.softmax else 1 / (1 + np.exp(-x))
    ranks = scores + bias if router.bias else scores
    size = n // router.n_groups
    value = [sum(sorted(ranks[g * size : (g + 1) * size])[-router.group_best :]) for g in range(router.n_groups)]
    groups = sorted(range(router.n_groups), key=lambda g: (-value[g], g))[: router.n_groups_used]
    allowed = [e for e in range(n) if e // size in groups]
    chosen = sorted(allowed, key=lambda e: (-ranks[e], e))[: router.n_used]
    weights = scores[chosen]
    weights = weights / weights.sum() if router.normalize else weights
    return chosen, weights * router.scale * (scales[chosen] if router.scales else 1.0)
