"""Interleaving raw rows into panels.

Tasks are panels. p0 raw rows as they stand in the file, p1 panels; `n_tokens` is the number of rows.
Rows past the last are written as zeros, which decode to zero in every format.
"""

from __future__ import annotations

from tvm import tirx

from airkernels.cpu.isa import PANEL
from airkernels.cpu.panels import PanelLayout
from airkernels.cpu.program import Kernel, Region, byte_offset, cast, const, define, loop, when
from airkernels.formats import AnyFormat


def pack(name: str, fmt: AnyFormat, n_cols: int) -> tirx.PrimFunc:
    """Build the interleaving kernel for rows of `n_cols` elements."""
    layout = PanelLayout(fmt, n_cols)
    row_nbytes = layout.n_blocks * fmt.nbytes

    def body(k: Kernel) -> None:
        with loop(k.end, k.begin) as index:
            panel = byte_offset(k.pointers[1], cast(index, "int64") * layout.nbytes)
            with loop(PANEL) as lane:
                row = index * PANEL + lane
                raw = byte_offset(k.pointers[0], cast(row, "int64") * row_nbytes)
                for field in fmt.fields:
                    dtype = f"uint{8 * field.unit}"
                    target = Region(panel, dtype)
                    with loop(layout.n_spans) as span:
                        for block in range(layout.span):
                            start = (span * layout.span + block) * fmt.nbytes + field.offset
                            source = Region(byte_offset(raw, start), dtype)
                            for unit in range(field.count):
                                at = layout.place(field.name, span, block, unit) + lane
                                with when(row < k.n_tokens):
                                    target.store(at, source.load(unit))
                                with when(row >= k.n_tokens):
                                    target.store(at, const(0, dtype))

    return define(name, body)
