"""Products of queries with the keys of a block, for a few vectors of cells at a time.

Keys in floats are multiplied as they are. Rounded keys are multiplied in integers, by queries that are rounded for it
to two digits (`activations.QuantizedRow`), so finely that the rounding of the keys is all that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from airkernels.cpu.activations import GROUP, SHIFT, QuantizedRow
from airkernels.cpu.cache import BLOCK_CELLS, CacheLayout
from airkernels.cpu.cells import spread_out, unit_place
from airkernels.cpu.dot import CENTRE, centred
from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import Expr, Region, byte_offset, cast, const, let, local, loop, splat, zeros
from airkernels.cpu.reader import VectorReader
from airkernels.cpu.rounding import QuantizedOut
from airkernels.cpu.vectors import half_to_float
from airkernels.formats import AnyFormat, FloatFormat, RoundedFormat
from airkernels.formats.base import WORD

_DIGITS = 2

Each = Callable[[Expr], None]
"""Called with the number of an iteration."""


def scratch_nbytes(cache: CacheLayout, n_rows: int) -> int:
    """Bytes that the rounded queries of a pass take."""
    return 0 if isinstance(cache.key_format, FloatFormat) else n_rows * QuantizedRow(cache.head_dim, _DIGITS).nbytes


class FloatScores:
    """Products with keys in floats. `queries` has a region per row of results.

    Attributes
    ----------
    most_rows
        Sums that the registers have room for.
    n_steps
        Iterations of the loop over a key.
    """

    def __init__(self, cache: CacheLayout, isa: VectorIsa, queries: Sequence[Region]) -> None:
        self.cache, self.isa, self.queries = cache, isa, queries
        self.most_rows, self.n_steps = isa.registers // 2, cache.head_dim

    def products(self, keys: Expr, first: Expr, together: int, rows: range, each: Each) -> list[list[Expr]]:
        """[row][vector] of the cells from `first` on, for some rows; `each` is called in every step."""
        isa, lanes = self.isa, self.isa.lanes
        half = self.cache.keys == "F16"
        elements = Region(keys, "uint16" if half else "float32")
        slots = [(r, u, ((r - rows.start) * together + u) * lanes) for r in rows for u in range(together)]
        dots = local("float32", len(slots) * lanes)
        for _r, _u, slot in slots:
            dots.store(slot, zeros("float32", lanes))
        with loop(self.n_steps) as d:
            each(d)
            factors = {r: let(self.queries[r].load(d)) for r in rows}
            raw = [elements.load(d * BLOCK_CELLS + first + u * lanes, lanes) for u in range(together)]
            key = [let(half_to_float(vector, isa) if half else vector) for vector in raw]
            for r, u, slot in slots:
                dots.store(slot, isa.fused_multiply_add(key[u], splat(factors[r], lanes), dots.load(slot, lanes)))
        return _by_row([dots.load(slot, lanes) for _r, _u, slot in slots], together)


class RoundedScores:
    """Products with rounded keys; makes the rounded queries in `scratch`. Attributes as of `FloatScores`."""

    def __init__(self, cache: CacheLayout, isa: VectorIsa, queries: Sequence[Region], scratch: Expr) -> None:
        self.cache, self.isa = cache, isa
        self.row = QuantizedRow(cache.head_dim, _DIGITS)
        # a sum of floats and one of integers for each digit
        self.most_rows, self.n_steps = max(1, isa.registers // 4), cache.head_dim // GROUP
        self.queries = []
        for r, query in enumerate(queries):
            out = QuantizedOut(scratch, const(r, "int32"), cache.head_dim, _DIGITS, isa, always_fine=True)
            turned = spread_out(query, cache.head_dim, isa)
            with loop(cache.head_dim // GROUP) as group:
                out.write_group(group, turned.load)
            self.queries.append(out)

    def products(self, keys: Expr, first: Expr, together: int, rows: range, each: Each) -> list[list[Expr]]:
        """[row][vector] of the cells from `first` on, for some rows; `each` is called in every step."""
        isa, lanes, fmt, row = self.isa, self.isa.lanes, self.cache.key_format, self.row
        assert isinstance(fmt, RoundedFormat) and fmt.block == GROUP
        slots = [(r, u, ((r - rows.start) * together + u) * lanes) for r in rows for u in range(together)]
        dots = local("float32", len(slots) * lanes)
        for _r, _u, slot in slots:
            dots.store(slot, zeros("float32", lanes))
        units = {2: Region(keys, "uint16"), 4: Region(keys, "uint32")}
        n_words, is_centred = GROUP // WORD, isa.dot.is_centred(fmt.code_max)
        with loop(self.n_steps) as group:
            each(group)
            readers = [_CellReader(fmt, units, group, first + u * lanes, isa) for u in range(together)]
            sums, digits = {}, {}
            for r in rows:
                query = self.queries[r]
                zero = let(query.ints.load(group + row.negative_sum // 4) * (fmt.zero_point - CENTRE * is_centred))
                for digit in range(_DIGITS):
                    word = digit * (row.n // WORD) + group * n_words
                    digits[r, digit] = isa.dot.digits(query.ints, [word], lanes)
                    for u in range(together):
                        initial = zeros("int32", lanes) if digit else splat(zero, lanes)
                        sums[r, u, digit] = isa.dot.start(initial, fmt.code_max, is_centred)
            for w in range(n_words):
                codes = [let(fmt.codes(reader, w)) for reader in readers]
                codes = [let(centred(word)) for word in codes] if is_centred else codes
                for (r, digit), words in digits.items():
                    x = words(w)
                    for u in range(together):
                        sums[r, u, digit].add(codes[u], x)
            scales = [let(fmt.scale(reader, 0)) for reader in readers]
            for r, u, slot in slots:
                scale = scales[u] * splat(self.queries[r].floats.load(group + row.scale // 4), lanes)
                whole = cast(sums[r, u, 0].total() + (sums[r, u, 1].total() << SHIFT), "float32")
                dots.store(slot, isa.fused_multiply_add(whole, scale, dots.load(slot, lanes)))
        return _by_row([dots.load(slot, lanes) for _r, _u, slot in slots], together)


def _by_row(vectors: list[Expr], together: int) -> list[list[Expr]]:
    return [vectors[i : i + together] for i in range(0, len(vectors), together)]


Scores = FloatScores | RoundedScores


def scores_of(
    cache: CacheLayout, isa: VectorIsa, queries: Sequence[Region], scratch: Expr, worker: Expr, most: int
) -> Scores:
    """Products of queries, at most `most` in any pass of the kernel, with the keys of a cache."""
    if isinstance(cache.key_format, FloatFormat):
        return FloatScores(cache, isa, queries)
    mine = byte_offset(scratch, cast(worker, "int64") * scratch_nbytes(cache, most))
    return RoundedScores(cache, isa, queries, mine)


class _CellReader(VectorReader):
    """`formats.base.Reader` over one block of the keys of neighbouring cells, a lane each."""

    def __init__(self, fmt: AnyFormat, units: dict[int, Region], block: Expr, first: Expr, isa: VectorIsa) -> None:
        super().__init__(isa, isa.lanes)
        self.fmt, self.units, self.block, self.first = fmt, units, block, first

    def load(self, field: str, index: int) -> Expr:
        at = unit_place(self.fmt, field, self.block, index) + self.first
        return self.units[self.fmt.field(field).unit].load(at, self.lanes)
