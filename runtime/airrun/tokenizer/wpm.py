"""WordPiece (BERT): clean and split a text into words, then the longest token first inside each word."""

from __future__ import annotations

import unicodedata
from functools import cached_property
from typing import Final

from airrun.errors import ModelFileError
from airrun.tokenizer.memo import Memo, Words
from airrun.tokenizer.spec import TokenizerSpec, TokenType
from airrun.tokenizer.strings import SPACE_MARK, spaces_for_marks
from airrun.tokenizer.unicode_classes import category, is_white_space

# Ideographs are words of their own. The sixth range starts at U+2B920 in the tokenizers library and in llama.cpp,
# where U+2B820 was meant; vocabularies in use were made so.
_IDEOGRAPHS: Final = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class WpmModel:
    """Encodes text without special tokens and gives the bytes of each token.

    A token that starts a word is written with U+2581 before it in GGUF files, one that continues a word without.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        if spec.unk_id is None:
            raise ModelFileError("the vocabulary has no token for unknown words")
        self._spec = spec
        self._unknown = [spec.unk_id]
        self._cleaned = Memo(self._clean)
        self._words = Words(lambda words: [self._encode_word(word) for word in words])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._spec.tokens)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._index))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally."""
        return self._words.encode([word for word in text.translate(self._cleaned).split(" ") if word])

    def _clean(self, code: int) -> str:
        """What a character becomes; spaces separate words."""
        if self._spec.strip_accents:
            # the base letter alone, as in llama.cpp
            code = ord(unicodedata.normalize("NFD", chr(code))[0])
        kind = category(code)
        if is_white_space(code):
            return " "
        if code in (0, 0xFFFD) or kind == "C" or (kind == "M" and self._spec.strip_accents):
            return ""
        # a character that has no lower case of one letter takes the first of several
        char = chr(code).lower()[0] if self._spec.lowercase else chr(code)
        alone = kind == "P" or (kind == "S" and code < 0x7F) or any(a <= code <= b for a, b in _IDEOGRAPHS)
        return f" {char} " if alone else char

    def _encode_word(self, word: str) -> list[int]:
        index, rest = self._index, SPACE_MARK + word
        out: list[int] = []
        at = 0
        while at < len(rest):
            for end in range(min(len(rest), at + self._longest), at, -1):
                token = index.get(rest[at:end])
                if token is not None:
                    out.append(token)
                    at = end
                    break
            else:
                return self._unknown
        return out

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        raw = self._spec.tokens.raw(token)
        return spaces_for_marks(raw) if self._spec.token_types[token] == TokenType.NORMAL else raw
