"""SentencePiece-style encoding (SPM): merge the neighbours whose joined text is the best-scored token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import UnsupportedError
from airrun.tokenizer.memo import Words
from airrun.tokenizer.merging import cut_where_nothing_joins, inner_pairs
from airrun.tokenizer.pairs import TextPairs, unknown_char, unknown_symbol
from airrun.tokenizer.spec import TokenizerSpec, TokenType
from airrun.tokenizer.strings import SPACE_MARK, spaces_for_marks

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys


class SpmModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._pieces = Words(self._encode_pieces)

    @cached_property
    def _texts(self) -> list[str]:
        return list(self._spec.tokens)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._texts)}

    @cached_property
    def _pairs(self) -> TextPairs:
        # by falling score; equal scores share a rank, so the leftmost pair goes first
        ranks: list[int] = np.unique(-self._spec.scores, return_inverse=True)[1].tolist()
        return TextPairs(self._texts, self._index, ranks)

    @cached_property
    def _joinable(self) -> Keys:
        """Keys of the character pairs inside tokens; no merge joins any other pair."""
        return inner_pairs(self._texts)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally; spaces become U+2581."""
        return self._pieces.encode(cut_where_nothing_joins(text.replace(" ", SPACE_MARK), self._joinable))

    def _encode_pieces(self, pieces: list[str]) -> list[list[int]]:
        index, n = self._index, self._spec.n_tokens
        merged = self._pairs.merge([[index[c] if c in index else unknown_symbol(c) for c in piece] for piece in pieces])
        return [ids if max(ids) < n else self._with_bytes(ids) for ids in merged]

    def _with_bytes(self, merged: list[int]) -> list[int]:
        """Byte tokens for characters that are no tokens."""
        out: list[int] = []
        for symbol in merged:
            out += [symbol] if symbol < self._spec.n_tokens else self._by_bytes(unknown_char(symbol))
        return out

    def _by_bytes(self, char: str) -> list[int]:
        """Byte tokens of a character that is no token."""
        out: list[int] = []
        for byte in char.encode("utf-8"):
            token = self._index.get(f"<0x{byte:02X}>")
            if token is None:
                # vocabularies without byte tokens say "unknown", once for the character
                if self._spec.unk_id is None:
                    raise UnsupportedError(
                        f"the vocabulary has neither {char!r}, nor byte tokens, nor an unknown token"
                    )
                return [self._spec.unk_id]
            out.append(token)
        return out

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        raw = self._spec.tokens.raw(token)
        return spaces_for_marks(raw) if self._spec.token_types[token] == TokenType.NORMAL else raw
