"""Random blocks of every format and their values as others decode them.

Where the scales are is written down here from ggml-common.h, not read from the code under test.
"""

from __future__ import annotations

import secrets
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from airrun.plan.blocks import BLOCKS

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.uint16]

_HALVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys("Q4_0 Q5_0 Q8_0 IQ4_NL IQ4_XS Q1_0 Q2_0 IQ1_S IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S".split(), (0,)),
    **dict.fromkeys("Q4_1 Q5_1 Q4_K Q5_K".split(), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
"""Byte offsets of half-precision scales and minima."""


def n_halves(name: str) -> int:
    """How many half-precision floats a block has; formats with scales of other types have none."""
    return 1 if name == "IQ1_M" else len(_HALVES.get(name, ()))


def set_half(blocks: Bytes, name: str, which: int, halves: Halves) -> None:
    """Write half number `which` of every block; in IQ1_M it is spread over the upper nibbles of four 16-bit units."""
    if name == "IQ1_M":
        for i in range(4):
            high = 48 + 2 * i + 1
            blocks[:, high] = (blocks[:, high] & 0x0F) | ((halves >> (4 * i)) & 0x0F).astype(np.uint8) << 4
    else:
        at = _HALVES[name][which]
        blocks[:, at : at + 2] = halves.astype("<u2")[:, None].view(np.uint8)


def random_blocks(rng: np.random.Generator, name: str, n: int) -> Bytes:
    """Random bytes, with finite scales of any magnitude: [n, block bytes]."""
    raw = rng.integers(0, 256, (n, BLOCKS[name].nbytes), dtype=np.uint8)
    for which in range(n_halves(name)):
        halves = rng.integers(0, 1 << 16, n, dtype=np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] &= 0xBFFF
        set_half(raw, name, which, halves)
    return raw


def ordinary_blocks(rng: np.random.Generator, name: str, n: int) -> Bytes:
    """Random bytes, so that every code and group scale occurs, with block scales as trained weights have them."""
    raw = rng.integers(0, 256, (n, BLOCKS[name].nbytes), dtype=np.uint8)
    for which in range(n_halves(name)):
        set_half(raw, name, which, (rng.standard_normal(n) * 0.02).astype(np.float16).view(np.uint16))
    if name == "MXFP4":
        raw[:, 0] = rng.integers(118, 125, n)
    return raw


def decoded(name: str, raw: Bytes) -> Floats:
    """What the gguf package makes of blocks or rows; it lacks Q1_0 and Q2_0, which are plain enough to write here."""
    if name not in ("Q1_0", "Q2_0"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    blocks = raw.reshape(-1, BLOCKS[name].nbytes)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    bits: Any = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.float32)
    codes = 2 * bits - 1 if name == "Q1_0" else bits[:, 0::2] + 2 * bits[:, 1::2] - 1
    return (codes * scales).reshape(*raw.shape[:-1], -1)


def fresh_rng() -> np.random.Generator:
    """New numbers in every run; pytest shows the seed where a test fails."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def random_weights(rng: np.random.Generator, name: str, n_rows: int, n_cols: int) -> tuple[Bytes, Doubles]:
    """Raw rows [n_rows, row bytes] of a format, and their values as others decode them."""
    if name in ("F32", "F16", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        raw = gguf.quantize(rng.standard_normal((n_rows, n_cols)).astype(np.float32), kind)
        raw = np.ascontiguousarray(raw).view(np.uint8).reshape(n_rows, -1)
    else:
        raw = ordinary_blocks(rng, name, n_rows * n_cols // BLOCKS[name].block).reshape(n_rows, -1)
    return raw, decoded(name, raw).reshape(n_rows, n_cols).astype(np.float64)
