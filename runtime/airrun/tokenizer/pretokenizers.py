"""The named pre-tokenizers of GGUF files: how a text is cut into words before BPE merges inside them.

Names and behaviour follow llama.cpp (`src/llama-vocab.cpp`), including where its expressions differ from the
ones of the models' own `tokenizer.json`: the GGUF ecosystem is what a user compares with.
"""

from __future__ import annotations

from typing import Final

from airrun.errors import UnsupportedError
from airrun.records import record
from airrun.tokenizer.splitting import (
    SplitText,
    Step,
    before_each_three_digits,
    digits_in_threes,
    matches_isolated,
)

# Building blocks shared by many expressions.
_ENGLISH_ENDINGS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_ENDING = rf"(?:{_ENGLISH_ENDINGS})?"
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}]+"
_MARKS = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{{L}}]+| ?[\p{{N}}]+|{_MARKS}|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENGLISH_ENDINGS}|{_WORD}|[\p{{N}}]{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_ENGLISH_ENDINGS}|{_WORD}|[\p{{N}}]|{_MARKS}[\r\n]*|{_SPACES}"
_SINGLE_DIGITS = r"[\p{N}]"
_LINES = r"[^\n]+|[\n]+"
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_AND_HANGUL = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3_WORDS = rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    r"\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    r"\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    r"\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_AFMOE_SCRIPTS = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    r"\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
# In llama.cpp's one-byte text an upper or lower case letter is told apart in ASCII only.
_UPPER, _LOWER = r"[A-Z\p{nonASCII L}]", r"[a-z\p{nonASCII L}]"
_UPPER_M, _LOWER_M = r"[A-Z\p{nonASCII L}\p{M}]", r"[a-z\p{nonASCII L}\p{M}]"


def _cased_words(upper: str, lower: str, ending: str, digits: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return rf"{lead}{upper}*{lower}+{ending}|{lead}{upper}+{lower}*{ending}|{digits}|{_MARKS}[\r\n/]*|{_SPACES}"


@record
class PreTokenizer:
    """One pre-tokenizer and the tokenizer settings that llama.cpp ties to its name.

    Attributes
    ----------
    steps : tuple of Step
        Applied in order, each refining the pieces of the one before.
    byte_level : bool
        Words are spelled in GPT-2's printable byte alphabet; otherwise in characters, with `<0xNN>` byte tokens.
    whole_words : bool
        A word that is itself a token is taken without merging (llama.cpp's ignore_merges).
    escape_spaces : bool
        Spaces are written as U+2581 before splitting, and back when decoding.
    newline_words : bool
        Like `whole_words`, but only for words of newlines.
    add_bos : bool
        Default of `tokenizer.ggml.add_bos_token`.
    default_bos : bool
        Whether a BOS token is assumed when the file names none.
    force_bos : bool
        BOS is added whatever the file says.
    lowercase : bool
        Default of `tokenizer.ggml.normalizer.lowercase`, which only whitespace models heed.
    """

    steps: tuple[Step, ...]
    byte_level: bool = True
    whole_words: bool = False
    escape_spaces: bool = False
    newline_words: bool = False
    add_bos: bool = False
    default_bos: bool = True
    force_bos: bool = False
    lowercase: bool = True

    def split(self, text: str) -> list[str]:
        """Cut `text` (not empty) into words; their concatenation is `text`."""
        split = SplitText(text)
        ends = [len(text)]
        for step in self.steps:
            ends = step(split, ends)
        words: list[str] = []
        start = 0
        for end in ends:
            words.append(text[start:end])
            start = end
        return words


def _steps(*patterns: str) -> tuple[Step, ...]:
    return tuple(matches_isolated(p) for p in patterns)


_GPT2_STEPS = _steps(_GPT2)
_LLAMA3_STEPS = _steps(_LLAMA3)
_QWEN2_STEPS = _steps(_QWEN2)
_DIGITS_GPT2_STEPS = _steps(_SINGLE_DIGITS, _GPT2)
_BLOOM_STEPS = _steps(_BLOOM)
_DEEPSEEK3_STEPS = _steps(r"[\p{N}]{1,3}", _CJK, rf"{_DEEPSEEK3_WORDS}[\r\n]*|{_SPACES}")

_KINDS: Final[tuple[tuple[PreTokenizer, tuple[str, ...]], ...]] = (
    (
        PreTokenizer(
            _steps(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"[\p{N}]+", r"[0-9][0-9][0-9]"),
        ),
        ("default",),
    ),
    (
        PreTokenizer(_GPT2_STEPS),
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ),
    ),
    (
        PreTokenizer(_LLAMA3_STEPS, whole_words=True, add_bos=True),
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
    ),
    (PreTokenizer(_LLAMA3_STEPS), ("dbrx", "smaug-bpe")),
    (PreTokenizer(_LLAMA3_STEPS, default_bos=False), ("chatglm-bpe",)),
    (PreTokenizer(_LLAMA3_STEPS, default_bos=False, whole_words=True), ("glm4", "glm5")),
    (
        PreTokenizer(_QWEN2_STEPS),
        (
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
    ),
    (
        PreTokenizer(
            _steps(
                rf"{_ENGLISH_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|[\p{{N}}]"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
            ),
        ),
        ("qwen35",),
    ),
    (PreTokenizer(_steps(rf"{_WORD}|[\p{{N}}]|{_MARKS}[\r\n]*|{_SPACES}")), ("ufakzeka",)),
    (
        PreTokenizer(_DIGITS_GPT2_STEPS),
        (
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ),
    ),
    (PreTokenizer(_steps(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")), ("falcon",)),
    (
        PreTokenizer(
            _steps(r"[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+")
            + _steps(r"\s+\Z", _CJK_AND_HANGUL, r"[\p{N}]+"),
        ),
        ("deepseek-llm",),
    ),
    (
        PreTokenizer(
            _steps(r"[\r\n]", r"\s?[\p{L}]+", r"\s?[\p{P}]+", _CJK_AND_HANGUL, r"[\p{N}]"),
        ),
        ("deepseek-coder",),
    ),
    (PreTokenizer(_DEEPSEEK3_STEPS), ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")),
    (
        PreTokenizer(
            _steps(r"[\p{N}]{1,3}", _CJK, rf"{_DEEPSEEK3_WORDS}|[\r\n]|\s+(?!\S)|\s+", r"[\p{N}]"),
        ),
        ("spark2_5",),
    ),
    (
        PreTokenizer(
            _steps(
                r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
                r"\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK,
                rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_ENDING}|[\p{{N}}]|{_MARKS}[\r\n/]*|{_SPACES}",
            ),
            whole_words=True,
        ),
        ("youtu",),
    ),
    (
        PreTokenizer(
            _steps(
                rf"{_ENGLISH_ENDINGS}|{_WORD}|[\p{{N}}]{{1,3}}|{_MARKS}[\r\n]*|\s*[\r\n]+|"
                + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
                + r"|\s{1,2}(?!\S)|\s{1}",
            ),
        ),
        ("jais-2",),
    ),
    (PreTokenizer(_BLOOM_STEPS), ("poro-chat", "bloom", "gpt3-finnish")),
    (PreTokenizer(_BLOOM_STEPS + _steps(_SINGLE_DIGITS)), ("viking",)),
    (
        PreTokenizer(
            _steps(_cased_words(_UPPER, _LOWER, "", r"[\p{N}]")),
            whole_words=True,
            add_bos=True,
        ),
        ("tekken",),
    ),
    (
        PreTokenizer(_steps(_cased_words(_UPPER, _LOWER, _ENDING, r"[\p{N}]{1,3}"))),
        (
            "gpt-4o",
            "llama4",
            "kanana2",
            "talkie",
            "minimax-m2",
        ),
    ),
    (
        PreTokenizer(
            _steps(_cased_words(_UPPER_M, _LOWER_M, _ENDING, r"[\p{N}]{1,3}")),
            whole_words=True,
        ),
        ("granite-embed-multi-97m",),
    ),
    (
        PreTokenizer(
            (
                digits_in_threes,
                *_steps(
                    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_ENDING}|[\p{{N}}]{{1,3}}|{_MARKS}[\r\n/]*|{_SPACES}",
                ),
            ),
        ),
        ("tiny_aya", "cohere2moe"),
    ),
    (
        PreTokenizer(
            _steps(
                rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L not Han}}]+{_ENDING}|[\p{{N}}]{{1,3}}"
                rf"|{_MARKS}[\r\n]*|{_SPACES}",
            ),
        ),
        ("kimi-k2",),
    ),
    (PreTokenizer((*_steps(r"[\p{N}]+"), before_each_three_digits)), ("superbpe",)),
    (
        PreTokenizer(
            _steps(
                rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|[\p{{N}}]|{_MARKS}[\r\n]*"
                r"|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        ),
        ("bailingmoe", "bailingmoe2", "llada-moe"),
    ),
    (
        PreTokenizer(
            _steps(rf"{_ENGLISH_ENDINGS}|{_WORD}|[\p{{N}}]| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"),
        ),
        ("seed-coder",),
    ),
    (
        PreTokenizer(
            (digits_in_threes, *_steps(_AFMOE_SCRIPTS, rf"{_DEEPSEEK3_WORDS}[\r\n]*|{_SPACES}")),
        ),
        ("afmoe",),
    ),
    (PreTokenizer(_steps(_LINES, _QWEN2)), ("laguna",)),
    (
        PreTokenizer(
            _steps(
                rf"{_ENGLISH_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:[\p{{L}}][\p{{M}}]*(?: [\p{{L}}][\p{{M}}]*)*)+|[\p{{N}}]"
                rf"|{_MARKS}[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        ),
        ("exaone-moe",),
    ),
    (
        PreTokenizer(
            _steps(_LINES),
            byte_level=False,
            escape_spaces=True,
            newline_words=True,
            force_bos=True,
        ),
        ("gemma4", "granite-embed-multi-311m"),
    ),
    (PreTokenizer(_steps(_LINES), byte_level=False, escape_spaces=True), ("sarvam-moe",)),
    (
        PreTokenizer(
            _steps(r"[\p{N}]{1,3}", rf"{_ENGLISH_ENDINGS}|{_WORD}|[\p{{N}}]+|{_MARKS}[\r\n]*|{_SPACES}"),
            whole_words=True,
        ),
        ("minicpm5",),
    ),
    (PreTokenizer(_steps(r"\S+"), byte_level=False, lowercase=False), ("whitespace",)),
    (
        PreTokenizer(
            _steps(
                r"<sentinel:[0-9]+>",
                r"(?:IMGIMG)[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                _SINGLE_DIGITS,
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
        ("chameleon",),
    ),
)

PRE_TOKENIZERS: Final[dict[str, PreTokenizer]] = {name: kind for kind, names in _KINDS for name in names}


def find_pre_tokenizer(name: str | None) -> PreTokenizer:
    """Look up a pre-tokenizer by its `tokenizer.ggml.pre` name.

    Raises
    ------
    UnsupportedError
        The name is missing or unknown. llama.cpp warns and falls back to "default" where it is missing; output
        of a model behind the wrong pre-tokenizer is quietly worse, so here that is an error.
    """
    if name is None:
        raise UnsupportedError("the model names no pre-tokenizer (tokenizer.ggml.pre); convert it again")
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        raise UnsupportedError(f"unknown pre-tokenizer {name!r} (tokenizer.ggml.pre)") from None
