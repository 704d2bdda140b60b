"""Block formats: decoding against the gguf package and against rows that ggml decoded, and the layout of panels."""

from __future__ import annotations

import secrets
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from block_samples import decoded, n_halves, random_blocks, set_half

from airkernels.cpu.isa import PANEL
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS, BlockFormat
from airkernels.formats.base import WORD
from airkernels.formats.reference import ArrayReader, dequantize
from airrun.plan.blocks import BLOCKS

BLOCK_FORMATS = [name for name, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)]
# zero, negative zero, the smallest subnormal, the largest subnormal, the smallest normal, one, the largest
EXTREME = (0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF)
N_BLOCKS = 400


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def same_bits(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_those_of_gguf(name: str) -> None:
    fmt = FORMATS[name]
    if name == "Q2_0":  # newer than the package
        assert (fmt.block, fmt.nbytes) == (64, 18)
    else:
        assert (fmt.block, fmt.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", FORMATS)
def test_fields_cover_the_block_without_overlap(name: str) -> None:
    fmt = FORMATS[name]
    covered = [at for f in fmt.fields for at in range(f.offset, f.offset + f.nbytes)]
    assert sorted(covered) == list(range(fmt.nbytes))


def test_every_block_format_of_a_file_is_described() -> None:
    """All but the types of activations, of which no file has matrices."""
    assert set(BLOCK_FORMATS) == {name for name, size in BLOCKS.items() if size.quantized} - {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_random_blocks_decode_as_others_decode_them(name: str, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, name, N_BLOCKS)
    assert same_bits(dequantize(FORMATS[name], raw, FORMATS[name].block), decoded(name, raw))


@pytest.mark.parametrize("name", [name for name in BLOCK_FORMATS if n_halves(name)])
def test_extreme_scales_decode_as_others_decode_them(name: str, rng: np.random.Generator) -> None:
    raw = random_blocks(rng, name, len(EXTREME) ** 2)
    for i in range(n_halves(name)):
        values = np.repeat(EXTREME, len(EXTREME)) if i else np.tile(EXTREME, len(EXTREME))
        set_half(raw, name, i, values.astype(np.uint16))
    assert same_bits(dequantize(FORMATS[name], raw, FORMATS[name].block), decoded(name, raw))


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_every_byte_as_scale(name: str) -> None:
    """Subnormal results of the one, and the NaN of the other, included."""
    raw = np.full((256, BLOCKS[name].nbytes), 0x7A, np.uint8)
    raw[:, : 1 if name == "MXFP4" else 4] = np.arange(256, dtype=np.uint8)[:, None]
    assert same_bits(dequantize(FORMATS[name], raw, FORMATS[name].block), decoded(name, raw))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_every_code_at_its_limit(name: str, byte: int) -> None:
    raw = np.full((3, BLOCKS[name].nbytes), byte, np.uint8)
    for which in range(n_halves(name)):
        set_half(raw, name, which, np.full(3, np.float16(0.75).view(np.uint16)))
    assert same_bits(dequantize(FORMATS[name], raw, FORMATS[name].block), decoded(name, raw))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floats_decode_exactly(name: str, rng: np.random.Generator) -> None:
    values = (rng.standard_normal((7, 33)) * 10.0 ** rng.integers(-6, 5, (7, 33))).astype(np.float32)
    raw = gguf.quantize(values, gguf.GGMLQuantizationType[name]).view(np.uint8)
    assert same_bits(dequantize(FORMATS[name], raw, 33), decoded(name, raw))


@pytest.mark.parametrize("name", [name for name in BLOCK_FORMATS if name != "IQ2_S"])
def test_rows_decode_as_ggml_decodes_them(name: str, zoo: Path) -> None:
    """The rows called iq2_s are IQ2_XS: the recipe of that name uses that type."""
    rows = np.load(zoo / "quant" / "dequant_rows.npz")
    prefixes = (f"{name.lower()}/", f"{name[0].lower()}{name[1:]}/")
    found = [key.removesuffix("/raw") for key in rows.files if key.startswith(prefixes) and key.endswith("/raw")]
    assert found
    for key in found:
        expected = rows[f"{key}/f32"]
        assert same_bits(dequantize(FORMATS[name], rows[f"{key}/raw"], expected.shape[1]), expected)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_codes_stay_within_what_the_dot_product_allows(name: str, rng: np.random.Generator) -> None:
    """`code_max` decides whether a 16-bit sum of products can saturate, so it must not be too small or too large."""
    fmt = FORMATS[name]
    assert isinstance(fmt, BlockFormat)
    reader = ArrayReader(fmt, rng.integers(0, 256, (2000, fmt.nbytes), dtype=np.uint8))
    codes = np.stack([fmt.codes(reader, word) for word in range(fmt.block // WORD)])
    assert np.ascontiguousarray(codes).astype("<u4").view(np.uint8).max() == fmt.code_max


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 6])
@pytest.mark.parametrize("name", FORMATS)
def test_panel_gives_every_unit_one_place(name: str, n_blocks: int) -> None:
    """The vectors of all units (16 rows each) tile a panel: nothing overlaps, nothing is left over."""
    fmt = FORMATS[name]
    layout = PanelLayout(fmt, n_blocks * fmt.block)
    assert layout.nbytes == PANEL * n_blocks * fmt.nbytes
    taken: list[int] = []
    for field in fmt.fields:
        for span in range(layout.n_spans):
            for block in range(layout.span):
                for index in range(field.count):
                    first = field.unit * layout.place(field.name, span, block, index)
                    taken.extend(range(first, first + field.unit * PANEL))
    assert sorted(taken) == list(range(layout.nbytes))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_four_byte_units_are_aligned_to_cache_lines(name: str) -> None:
    """A vector that crosses cache lines costs two loads; panels begin at multiples of 64."""
    fmt = FORMATS[name]
    layout = PanelLayout(fmt, 4 * fmt.block)
    for field in (f for f in fmt.fields if f.unit == 4):
        for block in range(layout.span):
            for index in range(field.count):
                assert 4 * layout.place(field.name, 1, block, index) % 64 == 0
