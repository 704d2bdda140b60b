"""`Tokenizer`: text to token ids and back, with special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from typing import Final, Protocol

import numpy as np

from airrun.errors import UsageError
from airrun.tokenizer import spec as kinds
from airrun.tokenizer.memo import Memo
from airrun.tokenizer.spec import TokenizerSpec, TokenType
from airrun.tokenizer.stream import StreamDecoder

# plain numbers: comparing numpy scalars with enum members takes microseconds, for every token
_HIDDEN = frozenset([int(TokenType.CONTROL), int(TokenType.UNKNOWN)])
_WHITE_SPACE = " \t\n\v\f\r"
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


# Modules and classes by GGUF name; a module is imported when a vocabulary of its kind is opened.
_MODELS: Final = {
    kinds.MODEL_BPE: ("bpe", "BpeModel"),
    kinds.MODEL_WHITESPACE: ("bpe_variants", "WhitespaceModel"),
    kinds.MODEL_HYBRID_DNA: ("bpe_variants", "HybridDnaModel"),
    kinds.MODEL_SPM: ("spm", "SpmModel"),
    kinds.MODEL_WPM: ("wpm", "WpmModel"),
    kinds.MODEL_UGM: ("ugm", "UgmModel"),
    kinds.MODEL_RWKV: ("rwkv", "RwkvModel"),
    kinds.MODEL_PLAMO2: ("plamo2", "Plamo2Model"),
}


class _Model(Protocol):
    """What a kind of tokenizer does to text without special tokens."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` (not empty), which is taken literally."""
        ...

    def piece(self, token: int) -> bytes:
        """Bytes that an ordinary token stands for."""
        ...


class Tokenizer:
    """Encodes and decodes like llama.cpp does for the same GGUF file.

    One instance may be shared by threads.

    Parameters
    ----------
    spec : TokenizerSpec

    Raises
    ------
    UnsupportedError
        The spec names a pre-tokenizer that this version does not know.
    ModelFileError
        The vocabulary lacks tokens that its kind cannot do without.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        module, name = _MODELS[spec.model]
        self._model: _Model = getattr(import_module(f"airrun.tokenizer.{module}"), name)(spec)
        self._types = spec.token_types.tobytes()
        self._pieces = Memo(self._token_bytes)
        before, after = (spec.bos_id, spec.sep_id) if spec.model == kinds.MODEL_WPM else (spec.bos_id, spec.eos_id)
        self._before = [before] if spec.add_bos and before is not None else []
        self._after = [after] if spec.add_eos and after is not None else []

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self.spec.eog_ids

    @property
    def _leads_with_space(self) -> bool:
        spec = self.spec
        return (
            spec.add_space_prefix
            or spec.model == kinds.MODEL_WPM
            or (spec.model == kinds.MODEL_UGM and spec.remove_extra_whitespaces)
        )

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokenize.

        Parameters
        ----------
        text : str
            Any text. Surrogates that do not form a pair are read as U+FFFD.
        add_special : bool
            Add the tokens that the model wants before and after a text: BOS and EOS, of BERT CLS and SEP.
        parse_special : bool
            Let texts of control tokens, such as `<|im_start|>`, become these tokens. User-defined tokens are always
            recognised. Pass False for text that is not trusted.

        Returns
        -------
        list of int
        """
        out = list(self._before) if add_special else []
        wants_space = self.spec.model == kinds.MODEL_SPM and self.spec.add_space_prefix
        after_special = True
        for part in self._partition(_without_lone_surrogates(text), parse_special):
            if isinstance(part, int):
                out.append(part)
                after_special = True
            else:
                out += self._model.encode(" " + part if wants_space and after_special else part)
                after_special = False
        return out + self._after if add_special else out

    def decode(self, ids: Iterable[int], skip_special: bool = True, continuation: bool = False) -> str:
        """Text of a token sequence; bytes that are not UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
        skip_special : bool
            Leave out control and unknown tokens.
        continuation : bool
            The tokens go on after other text, so the space that some models write before the first word of a text
            is a real one and stays. Otherwise it goes, and of models that keep a text as it is
            `decode(encode(text)) == text`.

        Raises
        ------
        UsageError
            An id is outside the vocabulary.
        """
        strip = self._leads_with_space and not continuation
        data = b"".join([self.shown_bytes(i, skip_special) for i in ids])
        return (data[1:] if strip and data.startswith(b" ") else data).decode("utf-8", "replace")

    def stream(self, skip_special: bool = True, continuation: bool = False) -> StreamDecoder:
        """Decoder for one token at a time; its pieces joined equal `decode` with the same arguments."""
        return StreamDecoder(self, skip_special, strip_space=self._leads_with_space and not continuation)

    def shown_bytes(self, token: int, skip_special: bool) -> bytes:
        """Bytes that a token adds to a text; none for control and unknown tokens if these are skipped."""
        data = self.token_bytes(token)
        return b"" if skip_special and self._types[token] in _HIDDEN else data

    def token_bytes(self, token: int) -> bytes:
        """Bytes that a token stands for; may be part of a character. Special tokens give their text.

        Raises
        ------
        UsageError
            The id is outside the vocabulary.
        """
        return self._pieces[token]

    def _token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.spec.n_tokens:
            raise UsageError(f"token id {token} is outside the vocabulary of {self.spec.n_tokens} tokens")
        kind = self._types[token]
        if kind in (TokenType.UNUSED, TokenType.UNDEFINED):
            return b""
        if kind == TokenType.BYTE:
            match = _BYTE_TOKEN.fullmatch(self.spec.tokens.raw(token))
            if match:
                return bytes([int(match[1], 16)])
        return self._model.piece(token)

    @cached_property
    def _special(self) -> list[tuple[str, int]]:
        """Texts of special tokens, longest (in bytes) first."""
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        ids = np.flatnonzero(np.isin(self.spec.token_types, kinds)).tolist()
        ids.sort(key=lambda i: -len(self.spec.tokens.raw(i)))
        return [(self.spec.tokens[i], i) for i in ids]

    @cached_property
    def _user_defined(self) -> list[tuple[str, int]]:
        return [(text, i) for text, i in self._special if self._types[i] == TokenType.USER_DEFINED]

    def _partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Cut special tokens out of `text`: not leftmost first but longest token first, as llama.cpp does."""
        parts: list[str | int] = [text] if text else []
        for special, token in self._special if parse_special else self._user_defined:
            if special in text:
                parts = [
                    p for part in parts for p in ([part] if isinstance(part, int) else self._cut(part, special, token))
                ]
        return parts

    def _cut(self, text: str, special: str, token: int) -> list[str | int]:
        out: list[str | int] = []
        lstrip, rstrip = token in self.spec.lstrip_ids, token in self.spec.rstrip_ids
        *befores, last = text.split(special)
        for i, before in enumerate(befores):
            if rstrip and i:
                before = before.lstrip(_WHITE_SPACE)
            if lstrip:
                before = before.rstrip(_WHITE_SPACE)
            if before:
                out.append(before)
            out.append(token)
        if rstrip and befores:
            last = last.lstrip(_WHITE_SPACE)
        if last:
            out.append(last)
        return out


def _without_lone_surrogates(text: str) -> str:
    """Join surrogate pairs and replace single surrogates by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
