"""Unigram (T5, XLM-R): rewrite the text by rules, then find the tokens whose scores add up to the most."""

from __future__ import annotations

import sys
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from airrun.errors import ModelFileError
from airrun.tokenizer.charsmap import Charsmap
from airrun.tokenizer.memo import Words
from airrun.tokenizer.merging import cut_where_nothing_joins, inner_pairs
from airrun.tokenizer.spec import TokenizerSpec, TokenType
from airrun.tokenizer.strings import SPACE_MARK, spaces_for_marks, utf8_length

if TYPE_CHECKING:
    from airrun.tokenizer.merging import Keys

_UNKNOWN_PENALTY = np.float32(10)
_MATCHED = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)


class UgmModel:
    """Encodes text without special tokens and gives the bytes of each token."""

    def __init__(self, spec: TokenizerSpec) -> None:
        if spec.unk_id is None:
            raise ModelFileError("the vocabulary has no token for unknown text")
        self._spec = spec
        self._unknown = spec.unk_id
        self._charsmap = Charsmap(spec.charsmap)
        self._pieces = Words(lambda pieces: [self._encode_piece(piece) for piece in pieces])

    @cached_property
    def _tokens(self) -> dict[str, tuple[int, float]]:
        """Text -> (id, score) of the tokens that a text can be made of."""
        spec = self._spec
        scores = np.where(spec.token_types == TokenType.USER_DEFINED, np.float32(0), spec.scores).tolist()
        matched = np.isin(spec.token_types, _MATCHED).tolist()
        return {text: (i, scores[i]) for i, text in enumerate(spec.tokens) if matched[i]}

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """Lengths of the tokens that start with a character, ascending."""
        lengths: dict[str, set[int]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        return {char: sorted(found) for char, found in lengths.items()}

    @cached_property
    def _joinable(self) -> Keys:
        return inner_pairs(list(self._tokens))

    @cached_property
    def _unknown_score(self) -> float:
        normal = self._spec.scores[self._spec.token_types == TokenType.NORMAL]
        return float(normal.min(initial=np.finfo(np.float32).max) - _UNKNOWN_PENALTY)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally."""
        normalized = self._mark_spaces(self._normalize(text))
        ids = self._pieces.encode(cut_where_nothing_joins(normalized, self._joinable))
        # neighbouring unknown characters are one unknown token
        unknown = self._unknown
        return [token for before, token in pairwise([-1, *ids]) if token != unknown or before != unknown]

    def _normalize(self, text: str) -> str:
        """Apply the rules of the character map, at each character the longest."""
        if not self._charsmap:
            return text
        data = text.encode("utf-8")
        match, touches = self._charsmap.match, self._charsmap.touches
        out: list[bytes] = []
        at = 0
        while at < len(data):
            found = match(data, at) if data[at] >= 0x80 or touches(data[at : at + 2]) else None
            length, replacement = found or (utf8_length(data[at]), None)
            out.append(data[at : at + length] if replacement is None else replacement)
            at += length
        return b"".join(out).decode("utf-8", "replace")

    def _mark_spaces(self, text: str) -> str:
        """Spaces as U+2581, with one before the first word or one before each as the model wants."""
        spec = self._spec
        if spec.remove_extra_whitespaces:
            return "".join([SPACE_MARK + word for word in text.split(" ") if word])
        if spec.add_space_prefix and text.strip(" "):
            lead = len(text) - len(text.lstrip(" "))
            text = f"{text[:lead]} {text[lead:]}"
        return text.replace(" ", SPACE_MARK)

    def _encode_piece(self, piece: str) -> list[int]:
        """Viterbi over the ends of tokens, in double precision; among equals the token that starts first."""
        tokens, lengths = self._tokens, self._lengths
        n = len(piece)
        best = [0.0] + [-sys.float_info.max] * n
        last: list[tuple[int, int]] = [(0, self._unknown)] * (n + 1)
        for start, char in enumerate(piece):
            so_far = best[start]
            alone = False
            for length in lengths.get(char, ()):
                end = start + length
                if end > n:
                    break
                found = tokens.get(piece[start:end])
                if found is not None:
                    alone = alone or length == 1
                    if so_far + found[1] > best[end]:
                        best[end] = so_far + found[1]
                        last[end] = start, found[0]
            if not alone and so_far + self._unknown_score > best[start + 1]:
                best[start + 1] = so_far + self._unknown_score
                last[start + 1] = start, self._unknown
        out: list[int] = []
        while n:
            n, token = last[n]
            out.append(token)
        out.reverse()
        return out

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        raw = self._spec.tokens.raw(token)
        return spaces_for_marks(raw) if self._spec.token_types[token] == TokenType.NORMAL else raw
