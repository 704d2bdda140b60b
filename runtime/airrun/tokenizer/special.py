"""Which tokens are special: llama.cpp's detection by token text, and its corrections of token types.

GGUF files often name only BOS and EOS. Everything else that ends a turn or marks fill-in-the-middle is found by
its text, as in llama.cpp's `llama_vocab::impl::load`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from airrun.records import record
from airrun.tokenizer.spec import TokenType

# In order of preference where several are in the vocabulary.
_TEXTS = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "prefix": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "suffix": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "middle": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "pad_fim": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "repo": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "separator": ("<|file_sep|>",),
}

_END_OF_GENERATION = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@record
class SpecialTokens:
    """Special tokens of a vocabulary; `ids` is keyed like the GGUF ids plus what was found by text."""

    ids: Mapping[str, int]
    eog_ids: frozenset[int]
    lstrip_ids: frozenset[int]
    rstrip_ids: frozenset[int]


def find_special_tokens(
    index: Mapping[str, int],
    types: NDArray[np.uint8],
    named: Mapping[str, int],
    pre_name: str,
    model_name: str,
    architecture: str,
) -> SpecialTokens:
    """Complete the special ids of a file and correct `types` in place.

    Parameters
    ----------
    index : mapping
        Token text -> id.
    types : uint8 [n_tokens]
        Modified: tokens whose text says control become control, and a few known exceptions.
    named : mapping
        Ids that the file names.
    pre_name, model_name, architecture : str
        `tokenizer.ggml.pre`, `general.name` and `general.architecture`, on which white space rules depend.
    """
    ids = dict(named)
    for name, texts in _TEXTS.items():
        found = next((index[t] for t in texts if t in index), None)
        if name not in ids and found is not None:
            ids[name] = found
            types[found] = TokenType.CONTROL

    eog = {ids[name] for name in ("pad_fim", "repo", "separator") if name in ids}
    for text in _END_OF_GENERATION:
        if text in index:
            eog.add(index[text])
            types[index[text]] = TokenType.CONTROL
    for text in _ALWAYS_SHOWN:
        if text in index:
            types[index[text]] = TokenType.USER_DEFINED
    eog.update(ids[name] for name in ("eos", "eot", "eom") if name in ids)

    ending = {text for text in (*_END_OF_GENERATION, "<|plamo:eos|>") if index.get(text) in eog}
    # gpt-oss and Solar close every message with <|end|>; the turn goes on
    calls = bool(ending & {"<|call|>", "<|calls|>"})
    if "<|end|>" in ending and calls and ending & {"<|return|>", "<|flush|>"}:
        eog.discard(index["<|end|>"])
        types[index["<|end|>"]] = TokenType.USER_DEFINED
    # Gemma 4 and PLaMo have an ordinary token with this text
    if "</s>" in ending and ending & {"<|tool_response>", "<|plamo:eos|>"}:
        eog.discard(index["</s>"])
        types[index["</s>"]] = TokenType.NORMAL

    lstrip, rstrip = _stripping(index, types, pre_name, model_name.lower(), architecture)
    return SpecialTokens(ids, frozenset(eog), lstrip, rstrip)


def _stripping(
    index: Mapping[str, int], types: NDArray[np.uint8], pre_name: str, model_name: str, architecture: str
) -> tuple[frozenset[int], frozenset[int]]:
    none: frozenset[int] = frozenset()
    if any(p in pre_name for p in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        a in architecture for a in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return frozenset(index[t] for t in ("<mask>",) if t in index), none
    if "phi-3" in model_name or "phi3" in model_name:
        kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        special = set(np.flatnonzero(np.isin(types, kinds)).tolist())
        special |= {index[t] for t in ("</s>",) if t in index}
        special -= {index[t] for t in ("<unk>", "<s>", "<|endoftext|>") if t in index}
        return none, frozenset(special)
    if "modern-bert" in model_name:
        return frozenset(index[t] for t in ("[MASK]",) if t in index), none
    return none, none
