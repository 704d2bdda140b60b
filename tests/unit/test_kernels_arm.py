"""Integer products on emulated ARM processors: the same bits as on this machine, for every format and level."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from activation_samples import random_activations
from arm_machine import PROCESSORS, emulator_command
from block_samples import fresh_rng, random_weights
from kernel_harness import PRODUCT_LEVELS, Floats, Kernels, Memory, quantize_reference, vector_isa

from airkernels.cpu.build import compile_kernels
from airkernels.cpu.isa import ISAS, PANEL
from airkernels.cpu.matmul_int import MatmulSchedule, MatmulShape, matmul_int, scratch_nbytes
from airkernels.cpu.pack import pack
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS, BlockFormat

HERE = [level for level in PRODUCT_LEVELS if vector_isa(level).fma]
pytestmark = pytest.mark.skipif(not HERE, reason="no kernels here that multiply and add in one rounding")

ARM_LEVELS = [name for name, isa in ISAS.items() if isa.arch == "aarch64"]
INTEGERS = [name for name, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)]
SAMPLE = {
    ("armv8-a+i8mm", "Q4_K"),
    ("armv8-a+i8mm", "Q8_0"),
    ("armv8-a+dotprod", "Q4_0"),
    ("armv8-a+dotprod", "IQ4_NL"),
    ("armv8-a+dotprod", "Q5_0"),
    ("armv8-a", "Q6_K"),
    ("armv8-a", "Q8_0"),
}
"""What is always tested: every way of taking codes on every level that has it, lookups and choices of bytes."""

N_TOKENS = 11
N_COLS = {name: 512 if FORMATS[name].block == 256 else 384 for name in INTEGERS}


def compiled_elsewhere(level: str, programs: dict[str, Any], folder: Path) -> Path:
    """A program for Linux on ARM out of kernels, see arm_product.c."""
    compile_kernels(programs, ISAS[level]).write_to_file(str(folder / "kernels.o"))
    source, out = Path(__file__).with_name("arm_product.c"), folder / "product"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
    subprocess.run([*command, str(source), str(folder / "kernels.o"), "-o", str(out)], check=True, capture_output=True)
    return out


def on_arm(program: Path, level: str, raw: Any, rows: Any, sizes: tuple[int, int], folder: Path) -> Floats:
    """Results [2, n_tokens, 16] of the program on a processor that has the level and nothing better."""
    raw.tofile(folder / "raw")
    rows.tofile(folder / "rows")
    numbers = [str(n) for n in (*sizes, len(rows))]
    files = [str(folder / name) for name in ("raw", "rows")]
    command = [*emulator_command(PROCESSORS[level]), str(program), *files, *numbers, str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return np.fromfile(folder / "out", np.float32).reshape(2, len(rows), PANEL)


@pytest.mark.parametrize(
    ("level", "name"),
    [
        pytest.param(level, name, marks=[] if (level, name) in SAMPLE else [pytest.mark.slow])
        for level in ARM_LEVELS
        for name in INTEGERS
    ],
)
def test_products_have_the_same_bits_as_here(level: str, name: str, tmp_path: Path) -> None:
    """Two digits, of which some groups have the second; one token at a time, and tiles of an unpacked panel."""
    rng = fresh_rng()
    fmt, n_cols = FORMATS[name], N_COLS[name]
    assert isinstance(fmt, BlockFormat)
    raw, _values = random_weights(rng, name, PANEL, n_cols)
    rows, _values = quantize_reference(random_activations(rng, N_TOKENS, n_cols), 2)
    shape, layout = MatmulShape(PANEL, n_cols, PANEL, digits=2), PanelLayout(fmt, n_cols)

    def programs(isa_name: str) -> dict[str, Any]:
        isa = ISAS[isa_name]
        return {
            "pack": pack("pack", fmt, n_cols),
            "one": matmul_int("one", isa, fmt, shape, MatmulSchedule(1)),
            "tiled": matmul_int("tiled", isa, fmt, shape, MatmulSchedule(5, 3)),
        }

    scratch = scratch_nbytes(ISAS[level], fmt, n_cols)
    program = compiled_elsewhere(level, programs(level), tmp_path)
    theirs = on_arm(program, level, raw, rows, (layout.nbytes, -(-scratch // 64) * 64), tmp_path)

    kernels = Kernels(HERE[-1], {k: p for k, p in programs(HERE[-1]).items() if k != "tiled"}, tmp_path)
    panels, out = Memory(layout.nbytes), Memory(4 * N_TOKENS * PANEL)
    kernels("pack", Memory(raw), panels, n=PANEL, end=1)
    kernels("one", panels, Memory(rows), out, *[None] * 5, n=N_TOKENS, end=1)
    ours = out.view(np.uint32, N_TOKENS, PANEL)
    for part in theirs.view(np.uint32):
        assert np.array_equal(part, ours)
