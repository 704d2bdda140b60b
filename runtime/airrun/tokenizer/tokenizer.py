"""`Tokenizer`: text to token ids and back, with special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from airrun.errors import UsageError
from airrun.tokenizer.bpe import BpeModel
from airrun.tokenizer.spec import MODEL_SPM, TokenizerSpec, TokenType
from airrun.tokenizer.spm import SpmModel
from airrun.tokenizer.stream import StreamDecoder

# plain numbers: comparing numpy scalars with enum members takes microseconds, for every token
_HIDDEN = frozenset([int(TokenType.CONTROL), int(TokenType.UNKNOWN)])
_WHITE_SPACE = " \t\n\v\f\r"
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_MAX_REMEMBERED = 1 << 16


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
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._model = SpmModel(spec) if spec.model == MODEL_SPM else BpeModel(spec)
        self._types = spec.token_types.tobytes()
        self._pieces: dict[int, bytes] = {}

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self.spec.eog_ids

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokenize.

        Parameters
        ----------
        text : str
            Any text. Surrogates that do not form a pair are read as U+FFFD.
        add_special : bool
            Add the BOS and EOS tokens that the model wants.
        parse_special : bool
            Let texts of control tokens, such as `<|im_start|>`, become these tokens. User-defined tokens are always
            recognised. Pass False for text that is not trusted.

        Returns
        -------
        list of int
        """
        spec = self.spec
        out: list[int] = []
        if add_special and spec.add_bos and spec.bos_id is not None:
            out.append(spec.bos_id)
        wants_space = spec.model == MODEL_SPM and spec.add_space_prefix
        after_special = True
        for part in self._partition(_without_lone_surrogates(text), parse_special):
            if isinstance(part, int):
                out.append(part)
                after_special = True
            else:
                out += self._model.encode(" " + part if wants_space and after_special else part)
                after_special = False
        if add_special and spec.add_eos and spec.eos_id is not None:
            out.append(spec.eos_id)
        return out

    def decode(self, ids: Iterable[int], skip_special: bool = True, continuation: bool = False) -> str:
        """Text of a token sequence; bytes that are not UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
        skip_special : bool
            Leave out control and unknown tokens.
        continuation : bool
            The tokens go on after other text, so the space that SPM models write before the first word of a text
            is a real one and stays. Otherwise it goes, and `decode(encode(text)) == text`.

        Raises
        ------
        UsageError
            An id is outside the vocabulary.
        """
        strip = self.spec.add_space_prefix and not continuation
        data = b"".join([self.shown_bytes(i, skip_special) for i in ids])
        return (data[1:] if strip and data.startswith(b" ") else data).decode("utf-8", "replace")

    def stream(self, skip_special: bool = True, continuation: bool = False) -> StreamDecoder:
        """Decoder for one token at a time; its pieces joined equal `decode` with the same arguments."""
        return StreamDecoder(self, skip_special, strip_space=self.spec.add_space_prefix and not continuation)

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
        data = self._pieces.get(token)
        if data is None:
            if not 0 <= token < self.spec.n_tokens:
                raise UsageError(f"token id {token} is outside the vocabulary of {self.spec.n_tokens} tokens")
            data = self._token_bytes(token)
            if len(self._pieces) >= _MAX_REMEMBERED:
                self._pieces.clear()
            self._pieces[token] = data
        return data

    def _token_bytes(self, token: int) -> bytes:
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
