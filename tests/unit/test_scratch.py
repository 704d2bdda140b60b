"""Scratch memory of products: a few panels for each worker, however large the matrix."""

from __future__ import annotations

import pytest

from airkernels.cpu.isa import ISAS, PANEL
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.formats import FORMATS, BlockFormat
from airschedules.specs import MatmulSpec

N_COLS = 1024


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("level", ISAS)
@pytest.mark.parametrize("name", FORMATS)
def test_no_decoded_copy_of_a_matrix(name: str, level: str, phase: str) -> None:
    for quantized in (True, False) if isinstance(FORMATS[name], BlockFormat) else (False,):
        sizes = {
            MatmulSpec(name, MatmulShape(n_rows, N_COLS, n_rows), N_COLS, quantized, phase).scratch_nbytes(ISAS[level])
            for n_rows in (PANEL, 32 * PANEL, 1 << 20)
        }
        assert len(sizes) == 1, "scratch depends on the number of rows"
        # 16 rows of floats and of codes, or 64 rows of codes, with scales and minima for every 16 and 256 elements,
        # which are there twice where two tokens are multiplied in one instruction
        codes = PANEL * N_COLS * (1 + (8 / 16 + 8 / 256) * (2 if ISAS[level].pairs else 1))
        assert sizes.pop() <= max(PANEL * N_COLS * 4 + codes, 4 * codes)
