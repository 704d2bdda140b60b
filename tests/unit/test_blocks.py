"""The block table against the gguf package's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from airrun.plan.blocks import BLOCKS, BY_ID

# in ggml.h (type 42, 64 elements, one half and 2 bits each), not yet in the package
NOT_IN_PACKAGE = {"Q2_0": (42, 64, 18)}


def test_table_equals_the_package() -> None:
    package = {
        kind.name: (int(kind), block, nbytes) for kind, (block, nbytes) in gguf.constants.GGML_QUANT_SIZES.items()
    }
    assert {b.name: (b.id, b.block, b.nbytes) for b in BLOCKS.values()} == NOT_IN_PACKAGE | package


def test_both_indexes_hold_every_entry() -> None:
    assert all(BY_ID[block.id] is block for block in BLOCKS.values())
    assert len(BY_ID) == len(BLOCKS)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_row_bytes_equal_a_quantised_row(name: str) -> None:
    row = np.zeros((1, 256), np.float32)
    assert BLOCKS[name].row_bytes(256) == gguf.quants.quantize(row, gguf.GGMLQuantizationType[name]).nbytes


def test_a_row_of_part_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="33 elements"):
        BLOCKS["Q4_0"].row_bytes(33)
    assert BLOCKS["F16"].row_bytes(33) == 66
