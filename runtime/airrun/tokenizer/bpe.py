"""Byte pair encoding over a `MergeTable`.

Nothing is built per token when a vocabulary is opened: a pair of symbols is looked up by bisection in the sorted
table and remembered, so opening takes milliseconds where a dictionary of all merges takes tens of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from airrun.tokenizer.byte_alphabet import CHAR_OF_BYTE, spell, unspell
from airrun.tokenizer.memo import Memo, Words
from airrun.tokenizer.merging import cut_where_nothing_joins, pair_keys
from airrun.tokenizer.pairs import TablePairs, unknown_char, unknown_symbol
from airrun.tokenizer.pretokenizers import find_pre_tokenizer
from airrun.tokenizer.spec import TokenizerSpec, TokenType
from airrun.tokenizer.strings import SPACE_MARK, spaces_for_marks

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys

# Words beyond this are cut where no merge joins before they are merged.
_LONG_WORD: Final = 48


class BpeModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._pre = find_pre_tokenizer(spec.pre)
        self._words = Words(self._encode_words)
        self._pieces = Words(self._encode_pieces)

    @cached_property
    def _pairs(self) -> TablePairs:
        return TablePairs(self._spec.merges)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._spec.tokens)}

    @cached_property
    def _symbols(self) -> dict[str, int]:
        """Character -> symbol id."""
        merges, n = self._spec.merges, self._spec.n_tokens
        if not self._pre.byte_level:
            index, extra = self._index, {text: n + i for i, text in enumerate(merges.extra)}
            return Memo(lambda char: index[char] if char in index else extra.get(char, unknown_symbol(char)))
        none = n + len(merges.extra)
        spelled = zip(CHAR_OF_BYTE, merges.byte_symbols.tolist(), strict=True)
        return {char: symbol if symbol < none else unknown_symbol(char) for char, symbol in spelled}

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
        return self._words.encode(self._pre.split(text))

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        spelled = [spell(word.encode("utf-8")) for word in words] if self._pre.byte_level else words
        out: list[list[int]] = [[]] * len(words)
        short: list[int] = []
        for i, text in enumerate(spelled):
            whole = self._whole_word(words[i], text)
            if whole is not None:
                out[i] = [whole]
            elif len(text) <= _LONG_WORD:
                short.append(i)
            else:
                out[i] = self._pieces.encode(cut_where_nothing_joins(text, self._joinable))
        for i, ids in zip(short, self._encode_pieces([spelled[i] for i in short]), strict=True):
            out[i] = ids
        return out

    def _whole_word(self, word: str, spelled: str) -> int | None:
        """The token that is the word, if the model takes such words whole."""
        if self._pre.whole_words or (self._pre.newline_words and not word.strip("\n")):
            return self._index.get(spelled)
        return None

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        symbols, n = self._symbols, self._spec.n_tokens
        merged = self._pairs.merge([[symbols[c] for c in piece] for piece in pieces])
        return [ids if not ids or max(ids) < n else self._with_bytes(ids) for ids in merged]

    def _with_bytes(self, merged: list[int]) -> list[int]:
        """Byte tokens for symbols that are no tokens."""
        extra, n = self._spec.merges.extra, self._spec.n_tokens
        out: list[int] = []
        for symbol in merged:
            if symbol < n:
                out.append(symbol)
            else:
                out += self._by_bytes(extra[symbol - n] if symbol < n + len(extra) else unknown_char(symbol))
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
