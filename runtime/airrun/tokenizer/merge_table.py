"""From merge lines ("left right") to a `MergeTable` over symbol ids; done once, by the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from airrun.errors import ModelFileError
from airrun.tokenizer.byte_alphabet import CHAR_OF_BYTE
from airrun.tokenizer.spec import MAX_MERGES, MAX_TOKEN_BYTES, MergeTable
from airrun.tokenizer.strings import PackedStrings, encode_text


def build_merge_table(lines: Sequence[str], index: Mapping[str, int], n_tokens: int, *, byte_level: bool) -> MergeTable:
    """Translate merge lines.

    Parameters
    ----------
    lines : sequence of str
        In order of rank. As in llama.cpp the first space after the first character separates the two sides, the
        first of two equal lines counts, and a line without a space merges nothing.
    index : mapping
        Token text -> id.
    n_tokens : int
    byte_level : bool
        Whether words are spelled in GPT-2's byte alphabet.
    """
    if len(lines) > MAX_MERGES:
        raise ModelFileError(f"tokenizer.ggml.merges has {len(lines)} entries, at most {MAX_MERGES} are supported")
    extra: dict[str, int] = {}

    def symbol(text: str) -> int:
        found = index.get(text)
        return found if found is not None else extra.setdefault(text, n_tokens + len(extra))

    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, line in enumerate(lines):
        at = line.find(" ", 1)
        if at < 0 or at == len(line) - 1:
            continue
        if len(line) > MAX_TOKEN_BYTES // 4:
            raise ModelFileError(f"merge {rank} of tokenizer.ggml.merges is longer than {MAX_TOKEN_BYTES // 4}")
        left, right = line[:at], line[at + 1 :]
        key = symbol(left), symbol(right)
        if key not in pairs:
            pairs[key] = rank, symbol(left + right)

    columns = np.array([(*key, *value) for key, value in sorted(pairs.items())], np.uint32).reshape(-1, 4)
    none = n_tokens + len(extra)
    spelled = [index.get(c, extra.get(c, none)) for c in CHAR_OF_BYTE] if byte_level else []
    return MergeTable(
        left=columns[:, 0].copy(),
        right=columns[:, 1].copy(),
        rank=columns[:, 2].copy(),
        result=columns[:, 3].copy(),
        extra=PackedStrings.pack(encode_text(t) for t in extra),
        byte_symbols=np.array(spelled, np.uint32),
    )
