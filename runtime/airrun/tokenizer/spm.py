"""SentencePiece-style encoding (SPM): merge the neighbours whose joined text is the best-scored token."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import UnsupportedError
from airrun.tokenizer.memo import MAX_REMEMBERED_LENGTH, Memo
from airrun.tokenizer.merging import cut_where_nothing_joins, inner_pairs, merge_symbols
from airrun.tokenizer.spec import TokenizerSpec, TokenType
from airrun.tokenizer.strings import SPACE_MARK, spaces_for_marks

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys


class SpmModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._pieces = Memo(self._encode_piece)

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
        return inner_pairs(self._texts)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally; spaces become U+2581."""
        out: list[int] = []
        for piece in cut_where_nothing_joins(text.replace(" ", SPACE_MARK), self._joinable):
            out += self._pieces[piece] if len(piece) <= MAX_REMEMBERED_LENGTH else self._encode_piece(piece)
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
        return spaces_for_marks(raw) if self._spec.token_types[token] == TokenType.NORMAL else raw
