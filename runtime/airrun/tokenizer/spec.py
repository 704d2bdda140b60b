"""What a tokenizer needs at run time, taken from GGUF metadata once and carried by the plan."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from airrun.records import record
from airrun.tokenizer.strings import PackedStrings

if TYPE_CHECKING:
    from numpy.typing import NDArray

# `tokenizer.ggml.model` of the GGUF specification; Gemma 4's "gemma4" is "gpt2" with a pre-tokenizer of that name.
MODEL_BPE = "gpt2"
MODEL_SPM = "llama"
MODEL_WPM = "bert"
MODEL_UGM = "t5"
MODEL_RWKV = "rwkv"
MODEL_PLAMO2 = "plamo2"
MODEL_WHITESPACE = "whitespace"
MODEL_HYBRID_DNA = "hybriddna"
MERGE_MODELS = frozenset([MODEL_BPE, MODEL_WHITESPACE, MODEL_HYBRID_DNA])
SCORE_MODELS = frozenset([MODEL_SPM, MODEL_UGM, MODEL_PLAMO2])
MODELS = MERGE_MODELS | SCORE_MODELS | {MODEL_WPM, MODEL_RWKV}

# No vocabulary in use comes near these; they bound what a damaged file can make us allocate.
MAX_TOKENS = 1 << 22
MAX_MERGES = 1 << 23
MAX_TOKEN_BYTES = (1 << 16) - 1
MAX_CHARSMAP_BYTES = 1 << 22


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` of the GGUF specification."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@record(eq=False)
class MergeTable:
    """BPE merges over symbol ids, ordered by (left, right) so that a pair is found by bisection.

    A symbol id below the number of tokens is a token; ids from there on are `extra` strings, which occur in
    merges only. `rank` is the line number of the merge: lower merges first.

    Attributes
    ----------
    left, right, rank, result : uint32 [n_merges]
    extra : PackedStrings
    byte_symbols : uint32 [256] or [0]
        For byte-level models the symbol that spells each byte; `n_tokens + len(extra)` where there is none.
    """

    left: NDArray[np.uint32]
    right: NDArray[np.uint32]
    rank: NDArray[np.uint32]
    result: NDArray[np.uint32]
    extra: PackedStrings
    byte_symbols: NDArray[np.uint32]

    @classmethod
    def empty(cls) -> MergeTable:
        """Table without merges."""
        none = np.zeros(0, np.uint32)
        return cls(none, none, none, none, PackedStrings.pack([]), none)


@record(eq=False)
class TokenizerSpec:
    """A tokenizer as data.

    Attributes
    ----------
    model : str
        One of `MODELS`.
    pre : str
        Pre-tokenizer name; "default" for models without merges, which have none.
    tokens : PackedStrings
        Token texts as in the file (byte-level BPE in its printable alphabet); an empty one is `[EMPTY_<id>]`.
    scores : float32 [n_tokens], or [0] for models that are not in `SCORE_MODELS`
    token_types : uint8 [n_tokens]
        `TokenType`, after llama.cpp's corrections for texts that look like control tokens.
    merges : MergeTable
    bos_id, eos_id, eot_id, eom_id, unk_id, pad_id, sep_id, mask_id : int or None
    fim_ids : mapping
        Fill-in-the-middle tokens: some of "prefix", "suffix", "middle", "pad", "repo", "separator".
    eog_ids : frozenset of int
        Tokens that end a generation.
    lstrip_ids, rstrip_ids : frozenset of int
        Special tokens that swallow white space to their left or right.
    add_bos, add_eos : bool
        Put BOS before and EOS (of WPM: SEP) after a text.
    add_space_prefix, remove_extra_whitespaces : bool
    lowercase, strip_accents : bool
        Normalization of WPM and whitespace models.
    charsmap : bytes
        Compiled normalization rules of UGM models, see `Charsmap`; may be empty.
    chat_template : str or None
        Jinja source of the default template.
    chat_templates : mapping
        Further templates by name.
    """

    model: str
    pre: str
    tokens: PackedStrings
    scores: NDArray[np.float32]
    token_types: NDArray[np.uint8]
    merges: MergeTable
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eom_id: int | None
    unk_id: int | None
    pad_id: int | None
    sep_id: int | None
    mask_id: int | None
    fim_ids: Mapping[str, int]
    eog_ids: frozenset[int]
    lstrip_ids: frozenset[int]
    rstrip_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    remove_extra_whitespaces: bool
    lowercase: bool
    strip_accents: bool
    charsmap: bytes
    chat_template: str | None
    chat_templates: Mapping[str, str]

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self.tokens)
