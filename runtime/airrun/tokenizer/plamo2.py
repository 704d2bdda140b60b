"""PLaMo 2: the tokens whose scores add up to the most, found from the end of the text; bytes where none fits."""

from __future__ import annotations

import math
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import numpy as np

from airrun.errors import ModelFileError
from airrun.tokenizer.memo import Words
from airrun.tokenizer.merging import cut_where_nothing_joins, inner_pairs
from airrun.tokenizer.spec import TokenizerSpec, TokenType

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys

# Scores are compared as whole numbers of 1e-4.
_SCALE: Final = 1e4
_BY_BYTES_SCORE: Final = -10_000_000
_LEAST_SCORE: Final = -20_000_000
_BY_BYTES: Final = -1
_BYTE_ORDER_MARK: Final = "\ufeff"


class Plamo2Model:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self._spec = spec
        self._bytes = _byte_tokens(spec)
        self._pieces = Words(lambda pieces: [self._encode_piece(piece) for piece in pieces])

    @cached_property
    def _tokens(self) -> dict[str, tuple[int, int]]:
        """Text -> (id, score) of the tokens that a text can be made of."""
        types, scores = self._spec.token_types.tobytes(), self._spec.scores.tolist()
        return {
            text: (i, _whole(scores[i]))
            for i, text in enumerate(self._spec.tokens)
            if types[i] != TokenType.BYTE and math.isfinite(scores[i]) and _whole(scores[i]) > _LEAST_SCORE
        }

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """Lengths of the tokens that start with a character, longest first."""
        lengths: dict[str, set[int]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        return {char: sorted(found, reverse=True) for char, found in lengths.items()}

    @cached_property
    def _joinable(self) -> Keys:
        return inner_pairs(list(self._tokens))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally but for a byte order mark before it."""
        return self._pieces.encode(cut_where_nothing_joins(text.removeprefix(_BYTE_ORDER_MARK), self._joinable))

    def _encode_piece(self, piece: str) -> list[int]:
        """Dynamic programming over the starts of tokens, last first; among equals the longest token."""
        tokens, lengths = self._tokens, self._lengths
        n = len(piece)
        best = [0] * (n + 1)
        first: list[tuple[int, int]] = [(1, _BY_BYTES)] * n
        for start in range(n - 1, -1, -1):
            options = [
                (best[start + length] + found[1], length, found[0])
                for length in lengths.get(piece[start], ())
                if start + length <= n and (found := tokens.get(piece[start : start + length])) is not None
            ]
            options.append((best[start + 1] + _BY_BYTES_SCORE, 1, _BY_BYTES))
            best[start], length, token = max(options, key=itemgetter(0))
            first[start] = length, token
        out: list[int] = []
        at = 0
        while at < n:
            length, token = first[at]
            out += [token] if token != _BY_BYTES else [self._bytes[b] for b in piece[at].encode("utf-8")]
            at += length
        return out

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        return self._spec.tokens.raw(token)


def _byte_tokens(spec: TokenizerSpec) -> list[int]:
    """Id of the token of each byte."""
    found = {spec.tokens[i].upper(): i for i in np.flatnonzero(spec.token_types == TokenType.BYTE).tolist()}
    try:
        return [found[f"<0X{byte:02X}>"] for byte in range(256)]
    except KeyError as error:
        raise ModelFileError(f"the vocabulary has no token for byte {error.args[0].lower()}") from None


def _whole(score: float) -> int:
    """`score` in units of 1e-4, halves away from zero."""
    scaled = score * _SCALE
    return math.floor(scaled + 0.5) if scaled >= 0 else math.ceil(scaled - 0.5)
