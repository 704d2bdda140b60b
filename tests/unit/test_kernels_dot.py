"""Integer dot products against numpy, with the largest codes and digits there are: sums in 16 bits must hold them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from block_samples import fresh_rng
from kernel_harness import PRODUCT_LEVELS, Array, Kernels, Memory, vector_isa
from tvm import tirx

from airkernels.cpu.dot import CENTRE, centred
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Kernel, define, splat, zeros
from airkernels.formats import FORMATS, BlockFormat

pytestmark = pytest.mark.skipif(not PRODUCT_LEVELS, reason="no kernels for this processor")

N_WORDS = 13  # more than a sum in 16 bits takes at once, and odd
CODE_MAXIMA = sorted({fmt.code_max << s for fmt in FORMATS.values() if isinstance(fmt, BlockFormat) for s in (0, 2, 4)})
CODE_MAXIMA = [code_max for code_max in CODE_MAXIMA if code_max <= 255]


def dot_kernel(name: str, isa: VectorIsa, code_max: int) -> tirx.PrimFunc:
    """p0 codes uint8 [n_words][lanes][4], p1 digits int8 [n_words][4], p2 out int32 [lanes]."""

    def body(k: Kernel) -> None:
        codes, digits, out = k.region(0, "uint32"), k.region(1, "int32"), k.region(2, "int32")
        total = isa.dot.start(zeros("int32", isa.lanes), code_max, isa.dot.is_centred(code_max))
        for w in range(N_WORDS):
            word = codes.load(w * isa.lanes, isa.lanes)
            word = centred(word) if isa.dot.is_centred(code_max) else word
            total.add(word, splat(digits.load(w), isa.lanes))
        out.store(0, total.total())

    return define(name, body)


@pytest.fixture(scope="module", params=PRODUCT_LEVELS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VectorIsa, Kernels]:
    isa = vector_isa(request.param)
    programs = {f"dot{m}": dot_kernel(f"dot{m}", isa, m) for m in CODE_MAXIMA}
    return isa, Kernels(request.param, programs, tmp_path_factory.mktemp("dot"))


def run(isa: VectorIsa, kernels: Kernels, code_max: int, codes: Array, digits: Array) -> Array:
    out = Memory(4 * isa.lanes)
    kernels(f"dot{code_max}", Memory(codes), Memory(digits), out, n=1, end=1)
    return out.view(np.int32, isa.lanes).copy()


@pytest.mark.parametrize("code_max", CODE_MAXIMA)
def test_sums_are_exact(kernels: tuple[VectorIsa, Kernels], code_max: int) -> None:
    isa, compiled = kernels
    rng = fresh_rng()
    zero = CENTRE if isa.dot.is_centred(code_max) else 0
    random_codes = rng.integers(0, code_max, (N_WORDS, isa.lanes, 4), np.uint8, endpoint=True)
    random_digits = rng.integers(-127, 127, (N_WORDS, 4), np.int8, endpoint=True)
    all_codes = (random_codes, np.full_like(random_codes, code_max), np.zeros_like(random_codes))
    all_digits = (random_digits, np.full_like(random_digits, 127), np.full_like(random_digits, -127))
    for codes, digits in product(all_codes, all_digits):
        expected = ((codes.astype(np.int32) - zero) * digits[:, None].astype(np.int32)).sum((0, 2))
        np.testing.assert_array_equal(run(isa, compiled, code_max, codes, digits), expected)
