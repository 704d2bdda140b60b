"""How blocks are rearranged for GPUs: sizes, tables, and what goes into a kernel's library."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from airkernels.formats import FORMATS, BlockFormat
from airkernels.formats.base import Table
from airkernels.triton.forms import DeviceForm, stored
from airkernels.triton.intrinsics import library, symbol
from airkernels.triton.layout import MatrixLayout

FORMS = {name: stored(fmt) for name, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)}
REARRANGED = [name for name, form in FORMS.items() if isinstance(form, DeviceForm)]


@pytest.mark.parametrize("name", FORMS)
def test_matrices_take_about_what_they_take_in_the_file(name: str) -> None:
    layout = MatrixLayout(FORMATS[name], 4096, 4096)
    assert layout.nbytes <= 1.07 * 4096 * layout.n_blocks * FORMATS[name].nbytes


def test_what_is_rearranged() -> None:
    grids = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
    assert ["IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", *grids, "Q1_0", "Q2_0"] == REARRANGED


def test_library_holds_the_table_of_its_kernel() -> None:
    table = Table((7, 0x01020304))
    text = library("cuda", table)
    assert symbol("entry", table) in text and "[i32 7, i32 16909060]" in text and "nvvm.prmt" in text
    assert "_entry_" not in library("hip", None) and "amdgcn.perm" in library("hip", None)
    assert symbol("entry", table) != symbol("entry", Table((7, 0x01020305)))
