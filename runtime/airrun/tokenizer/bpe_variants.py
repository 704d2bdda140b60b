"""Two models that prepare a text before byte pair encoding: words of Chinese and English, and DNA."""

from __future__ import annotations

from functools import cached_property
from typing import Final

from airrun.tokenizer.bpe import BpeModel
from airrun.tokenizer.memo import Memo
from airrun.tokenizer.spec import TokenizerSpec
from airrun.tokenizer.strings import decode_text, encode_text
from airrun.tokenizer.unicode_classes import is_white_space

_DNA, _END_OF_DNA, _UNKNOWN_DNA = "<dna>", "</dna>", "<oov>"
_BASES_PER_TOKEN: Final = 6
# Ends the text of a token of DNA, to tell it from ordinary text such as CCCCCC.
_DNA_MARK: Final = "\ue000"


class WhitespaceModel(BpeModel):
    """BPE inside words; the white space between them is dropped."""

    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__(spec)
        self._cleaned = Memo(self._clean)

    def _clean(self, code: int) -> str:
        if is_white_space(code):
            return " "
        return chr(code).lower()[0] if self._spec.lowercase else chr(code)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally."""
        out: list[int] = []
        for word in text.translate(self._cleaned).split(" "):
            if word:
                out += super().encode(word)
        return out


class HybridDnaModel(BpeModel):
    """BPE, but between `<dna>` and `</dna>` one token per six bases; the last is filled up with A."""

    @cached_property
    def _dna_ids(self) -> tuple[int, int, int] | None:
        """Begin, end and unknown, if the vocabulary has them."""
        begin, end, unknown = (self._index.get(text) for text in (_DNA, _END_OF_DNA, _UNKNOWN_DNA))
        return None if begin is None or end is None or unknown is None else (begin, end, unknown)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally but for the two tags."""
        if self._dna_ids is None:
            return super().encode(text)
        begin, end, unknown = self._dna_ids
        out: list[int] = []
        while text:
            before, tag, rest = text.partition(_DNA)
            if before:
                out += super().encode(before)
            if not tag:
                break
            dna, closed, text = rest.partition(_END_OF_DNA)
            out.append(begin)
            bases = dna.encode("utf-8").upper()
            for at in range(0, len(bases), _BASES_PER_TOKEN):
                word = decode_text(bases[at : at + _BASES_PER_TOKEN].ljust(_BASES_PER_TOKEN, b"A"))
                out.append(self._index.get(word + _DNA_MARK, unknown))
            if closed:
                out.append(end)
        return out

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        if self._dna_ids is not None and token > self._dna_ids[2]:
            text = self._spec.tokens[token]
            if text.endswith(_DNA_MARK) and text != _DNA_MARK:
                return encode_text(text.removesuffix(_DNA_MARK))
        return super().piece(token)
