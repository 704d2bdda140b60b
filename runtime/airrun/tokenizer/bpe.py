"""Byte pair encoding over a `MergeTable`.

Nothing is built per token when a vocabulary is opened: a pair of symbols is looked up by bisection in the sorted
table and remembered, so opening takes milliseconds where a dictionary of all merges takes tens of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from airrun.tokenizer.byte_alphabet import CHAR_OF_BYTE, spell, unspell
from airrun.tokenizer.memo import MAX_REMEMBERED_LENGTH, Memo
from airrun.tokenizer.merging import cut_where_nothing_joins, merge_symbols, pair_keys
from airrun.tokenizer.pretokenizers import find_pre_tokenizer
from airrun.tokenizer.spec import MergeTable, TokenizerSpec, TokenType
from airrun.tokenizer.strings import SPACE_MARK, spaces_for_marks

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys

# A character without a symbol of its own takes its code point above this: no merge knows it.
_UNKNOWN = 1 << 31


class _Pairs(Memo[int, tuple[int, int] | None]):
    """(left << 32 | right) -> (rank, result) or None, from the sorted table."""

    def __init__(self, table: MergeTable) -> None:
        super().__init__(self._find)
        self._keys = array("Q", pair_keys(table.left, table.right).tobytes())
        self._ranks = table.rank
        self._results = table.result

    def _find(self, key: int) -> tuple[int, int] | None:
        at = bisect_left(self._keys, key)
        if at < len(self._keys) and self._keys[at] == key:
            return int(self._ranks[at]), int(self._results[at])
        return None


class BpeModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._pre = find_pre_tokenizer(spec.pre)
        self._words = Memo(self._encode_word)

    @cached_property
    def _pairs(self) -> _Pairs:
        return _Pairs(self._spec.merges)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._spec.tokens)}

    @cached_property
    def _symbols(self) -> dict[str, int]:
        """Character -> symbol id."""
        merges, n = self._spec.merges, self._spec.n_tokens
        if not self._pre.byte_level:
            index, extra = self._index, {text: n + i for i, text in enumerate(merges.extra)}
            return Memo(lambda char: index[char] if char in index else extra.get(char, _UNKNOWN | ord(char)))
        none = n + len(merges.extra)
        spelled = zip(CHAR_OF_BYTE, merges.byte_symbols.tolist(), strict=True)
        return {char: symbol if symbol < none else _UNKNOWN | ord(char) for char, symbol in spelled}

    @cached_property
    def _joinable(self) -> Keys:
        """Keys of the character pairs across which some merge joins."""
        merges = self._spec.merges
        texts = [*self._spec.tokens, *merges.extra]
        first = np.array([ord(t[0]) for t in texts], np.uint32)
        last = np.array([ord(t[-1]) for t in texts], np.uint32)
        return np.unique(pair_keys(last[merges.left], first[merges.right]))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally."""
        if self._pre.escape_spaces:
            text = text.replace(" ", SPACE_MARK)
        out: list[int] = []
        words = self._words
        for word in self._pre.split(text):
            out += words[word] if len(word) <= MAX_REMEMBERED_LENGTH else self._encode_word(word)
        return out

    def _encode_word(self, word: str) -> list[int]:
        pre = self._pre
        spelled = spell(word.encode("utf-8")) if pre.byte_level else word
        if pre.whole_words or (pre.newline_words and not word.strip("\n")):
            whole = self._index.get(spelled)
            if whole is not None:
                return [whole]
        if len(spelled) <= MAX_REMEMBERED_LENGTH:
            return self._merge(spelled)
        out: list[int] = []
        known = Memo(self._merge)
        for piece in cut_where_nothing_joins(spelled, self._joinable):
            out += known[piece]
        return out

    def _merge(self, spelled: str) -> list[int]:
        symbols, pairs, n = self._symbols, self._pairs, self._spec.n_tokens
        merged = merge_symbols([symbols[c] for c in spelled], lambda left, right: pairs[left << 32 | right])
        if all(s < n for s in merged):
            return merged
        out: list[int] = []
        for symbol in merged:
            if symbol < n:
                out.append(symbol)
            else:
                out += self._by_bytes(
                    chr(symbol ^ _UNKNOWN) if symbol >= _UNKNOWN else self._spec.merges.extra[symbol - n]
                )
        return out

    def _by_bytes(self, text: str) -> list[int]:
        """Byte tokens for text that is no token; like llama.cpp, bytes without a token are left out."""
        if self._pre.byte_level:
            names = [bytes([b]).decode("utf-8", "surrogateescape") for b in text.encode("utf-8", "surrogateescape")]
        else:
            names = [f"<0x{b:02X}>" for b in text.encode("utf-8", "surrogateescape")]
        return [self._index[name] for name in names if name in self._index]

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        raw = self._spec.tokens.raw(token)
        if self._spec.token_types[token] != TokenType.NORMAL:
            return raw
        if self._pre.byte_level:
            return unspell(raw.decode("utf-8", "surrogateescape"))
        return spaces_for_marks(raw) if self._pre.escape_spaces else raw
