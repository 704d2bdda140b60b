"""SentencePiece-style encoding (SPM): merge the neighbours whose joined text is the best-scored token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import UnsupportedError
from airrun.tokenizer.merging import code_points, cut_where_nothing_joins, merge_symbols, pair_keys
from airrun.tokenizer.spec import TokenizerSpec, TokenType

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys

_SPACE_MARK = "\u2581"
_MAX_REMEMBERED = 1 << 16
_LONG_PIECE = 48


class SpmModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._remembered: dict[str, list[int]] = {}

    @cached_property
    def _texts(self) -> list[str]:
        return list(self._spec.tokens)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._texts)}

    @cached_property
    def _ranks(self) -> list[int]:
        """Rank of each token by falling score; equal scores share a rank, so the leftmost pair goes first."""
        ranks: list[int] = np.unique(-self._spec.scores, return_inverse=True)[1].tolist()
        return ranks

    @cached_property
    def _joinable(self) -> Keys:
        """Keys of the character pairs inside tokens; no merge joins any other pair."""
        points = code_points("".join(self._texts))
        keys = pair_keys(points[:-1], points[1:])
        ends = np.cumsum([len(t) for t in self._texts])[:-1]
        return np.unique(np.delete(keys, ends - 1))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally; spaces become U+2581."""
        out: list[int] = []
        remembered = self._remembered
        for piece in cut_where_nothing_joins(text.replace(" ", _SPACE_MARK), self._joinable):
            ids = remembered.get(piece)
            if ids is None:
                ids = self._encode_piece(piece)
                if len(piece) <= _LONG_PIECE:
                    if len(remembered) >= _MAX_REMEMBERED:
                        remembered.clear()
                    remembered[piece] = ids
            out += ids
        return out

    def _encode_piece(self, piece: str) -> list[int]:
        index, ranks = self._index, self._ranks

        def combine(left: str, right: str) -> tuple[int, str] | None:
            joined = left + right
            token = index.get(joined)
            return None if token is None else (ranks[token], joined)

        out: list[int] = []
        for symbol in merge_symbols(list(piece), combine):
            token = index.get(symbol)
            out += [token] if token is not None else self._by_bytes(symbol)
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
        if self._spec.token_types[token] != TokenType.NORMAL:
            return raw
        return raw.replace(_SPACE_MARK.encode(), b" ")
