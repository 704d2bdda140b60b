"""Vocabularies of every kind of tokenizer, as GGUF metadata, and texts to try them on.

Most are the golden data's with other settings; where it has none of a kind, one is made from another's tokens.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from airrun.tokenizer.pretokenizers import PRE_TOKENIZERS

Metadata = dict[str, Any]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGML = "tokenizer.ggml."


def read_metadata(path: Path) -> Metadata:
    """Tokenizer keys of a GGUF v3 file; the gguf package takes seconds for 400,000 strings, this a fraction."""
    data = path.read_bytes()
    magic, version, _, n_pairs = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    at = 24

    def text() -> bytes:
        nonlocal at
        (size,) = struct.unpack_from("<Q", data, at)
        at += 8 + size
        return data[at - size : at]

    def value(kind: int) -> object:
        nonlocal at
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            return [value(inner) for _ in range(count)]
        (number,) = struct.unpack_from("<" + _NUMBERS[kind], data, at)
        at += struct.calcsize("<" + _NUMBERS[kind])
        return number

    found = {}
    for _ in range(n_pairs):
        key = text().decode()
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        found[key] = value(kind)
    return {k: v for k, v in found.items() if k.startswith(("tokenizer.", "general."))}


def write_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """A GGUF v3 file of metadata alone, which llama.cpp opens with `vocab_only`."""

    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(raw)) + raw

    def array(key: str, values: list[Any]) -> bytes:
        if not isinstance(values[0], int | float):
            return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))
        kind = 0 if key.endswith("charsmap") else 6 if key.endswith("scores") else 5
        return struct.pack(f"<IQ{len(values)}{_NUMBERS[kind]}", kind, len(values), *values)

    parts = [struct.pack("<4sIQQ", b"GGUF", 3, 0, len(metadata))]
    for key, value in metadata.items():
        parts.append(text(key))
        if isinstance(value, bool):
            parts.append(struct.pack("<I?", 7, value))
        elif isinstance(value, int):
            parts.append(struct.pack("<II", 4, value))
        elif isinstance(value, str | bytes):
            parts.append(struct.pack("<I", 8) + text(value))
        else:
            parts.append(struct.pack("<I", 9) + array(key, list(value)))
    path.write_bytes(b"".join(parts))


def changed(metadata: Metadata, **changes: Any) -> Metadata:
    """`metadata` with other values of `tokenizer.ggml.*`; `__` in a name stands for a dot, None removes a key."""
    out = metadata | {_GGML + name.replace("__", "."): value for name, value in changes.items()}
    return {key: value for key, value in out.items() if value is not None}


def charsmap(rules: Mapping[bytes, bytes]) -> bytes:
    """Compile rewriting rules to the double array that SentencePiece uses."""
    texts = b"".join(to + b"\0" for to in rules.values())
    starts = itertools.accumulate((len(to) + 1 for to in rules.values()), initial=0)
    trie: dict[int, Any] = {}
    for rule, start in zip(rules, starts, strict=False):
        node = trie
        for byte in rule:
            node = node.setdefault(byte, {})
        node[0] = 1 << 31 | start
    nodes = {0: 0}
    bases: set[int] = set()

    def place(position: int, children: dict[int, Any]) -> None:
        # no two nodes share a base: the byte alone tells whether a child belongs to its parent
        base = next(
            b
            for b in itertools.count(1)
            if position ^ b not in bases and all((position ^ b ^ byte) not in nodes for byte in children)
        )
        bases.add(position ^ base)
        nodes[position] |= base << 10 | (1 << 8 if 0 in children else 0)
        for byte, child in children.items():
            nodes[position ^ base ^ byte] = child if byte == 0 else byte
        for byte, child in children.items():
            if byte:
                place(position ^ base ^ byte, child)

    place(0, trie)
    size = (max(nodes) | 0xFF) + 1
    return struct.pack(f"<I{size}I", 4 * size, *(nodes.get(i, 0) for i in range(size))) + texts


_RULES = {
    "\t": " ",
    "\u3000": " ",
    "\u200b": "",
    "ﬁ": "fi",
    "①": "1",
    "²": "2",
    "…": "...",
    "a\u0301": "á",
    "e\u0301\u0300": "E",
    "e\u0301": "é",
    "か\u3099": "が",
    "ab": "Ab",
    "abcd": "x",
}


def vocabularies(zoo: Path) -> Iterator[tuple[str, Callable[[], Metadata]]]:
    """Names and makers of the vocabularies: all pre-tokenizers by name, then the kinds other than plain BPE."""

    def base(name: str) -> Metadata:
        return read_metadata(zoo / "vocab" / f"ggml-vocab-{name}.gguf")

    llama3 = base("llama-bpe")
    for pre in sorted(PRE_TOKENIZERS.keys() - {"whitespace"}):  # with which llama.cpp aborts but in whitespace models
        yield f"pre {pre}", lambda pre=pre: changed(llama3, pre=pre)
    # spaces are marks and bytes have tokens of their own there
    gemma4 = read_metadata(zoo / "models" / "gemma4" / "model.gguf")
    for pre in ("gemma4", "sarvam-moe"):
        yield f"characters {pre}", lambda pre=pre: changed(gemma4, model="gpt2", pre=pre)

    bert = base("bert-bge")
    for lowercase, strip in itertools.product((None, True, False), repeat=2):
        settings = {"normalizer__lowercase": lowercase, "normalizer__strip_accents": strip}
        yield f"bert {lowercase} {strip}", lambda settings=settings: changed(bert, **settings)

    llama = base("llama-spm")
    n = len(llama[_GGML + "tokens"])
    likely = [-math.log2(2 + i) for i in range(n)]
    types = list(llama[_GGML + "token_type"])
    tokens = list(llama[_GGML + "tokens"])
    # llama.cpp breaks characters that begin like a user-defined token, so these begin like no rule
    for i, name in ((1200, "<extra_id_0>"), (5000, "<extra_id_1>"), (9000, "<extra"), (13000, "#!")):
        tokens[i], types[i] = name, 4
    types[17000] = 5
    rules = list(charsmap({key.encode(): to.encode() for key, to in _RULES.items()}))
    for prefix, remove in itertools.product((None, True, False), repeat=2):
        settings = {
            "model": "t5",
            "scores": likely,
            "tokens": tokens,
            "token_type": types,
            "add_space_prefix": prefix,
            "remove_extra_whitespaces": remove,
            "precompiled_charsmap": rules if prefix is not False else None,
            "add_bos_token": remove,
        }
        yield f"t5 {prefix} {remove}", lambda settings=settings: changed(llama, **settings)
    yield "llama without prefix", lambda: changed(llama, add_space_prefix=False, add_eos_token=True)
    yield "plamo2", lambda: changed(llama, model="plamo2", scores=[round(s, 1) for s in likely])

    yield "rwkv", lambda: _more_rwkv_tokens(read_metadata(zoo / "models" / "rwkv6" / "model.gguf"))

    starcoder = base("starcoder")
    kmers = ["".join(bases) + "\ue000" for bases in itertools.product("ACGT", repeat=6)]
    dna = ["<dna>", "</dna>", "<oov>", *kmers]
    yield "hybriddna without dna", lambda: changed(starcoder, model="hybriddna")
    yield (
        "hybriddna",
        lambda: changed(
            starcoder,
            model="hybriddna",
            tokens=[*starcoder[_GGML + "tokens"], *dna],
            token_type=[*starcoder[_GGML + "token_type"], *[1] * len(dna)],
        ),
    )
    for lowercase in (None, True, False):
        settings = {"model": "whitespace", "normalizer__lowercase": lowercase}
        yield f"whitespace {lowercase}", lambda settings=settings: changed(starcoder, pre="gpt-2", **settings)
        yield (
            f"whitespace characters {lowercase}",
            lambda settings=settings: changed(gemma4, pre="whitespace", **settings),
        )


def _more_rwkv_tokens(metadata: Metadata) -> Metadata:
    words = ["Hello", " world", "  ", "   ", "\n\n", "été", "你好", "🚀", "\\", "\\n", "ab\\x", "'ll", "\x00\x01", "12"]
    parts = [b"\xc3", b"\xe4\xbd", b"\xf0\x9f"]
    known = metadata[_GGML + "tokens"]
    more = [_escaped(data).encode() for data in (*(w.encode() for w in words), *parts)]
    more = [token for token in more if token not in known]
    return changed(metadata, tokens=known + more, token_type=metadata[_GGML + "token_type"] + [1] * len(more))


def _escaped(data: bytes) -> str:
    short = {0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r", 0x5C: r"\\"}
    return "".join(short.get(b) or (chr(b) if 0x20 <= b < 0x7F else rf"\x{b:02x}") for b in data)


_WORDS = (
    "the of Hello world don't I'LL we've it's 123 1234567 3.14 foo_bar CamelCase HTTPServer ISN'T abcd cab ab "
    "<|im_start|> </s> <s> [CLS] [MASK] <unk> <fim_prefix> <|endoftext|> <extra_id_0> <extra #! ' '' .. ... != === --- "
    "### // http://a.b/c?d=e&f return {} [] () IMGIMGABZ <sentinel:1> <dna>acgtACGTNN</dna> <dna>ACGTAC <dna></dna> "
    "été naïve Straße İstanbul 你好 世界 こんにちは か\u3099 안녕 привет สวัสดี नमस्ते 🚀 🦙 ﬁ ① Ⅷ ² ﷺ … ▁ ▁▁ "
    "a\u0301 e\u0301\u0300 \ufeff \u200b"
).split(" ")
_BLOCKS = [
    *[(0x20, 0x7E)] * 8,
    (0x01, 0x1F), (0x80, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x20A0, 0x218F), (0x2460, 0x24FF),
    (0x2580, 0x25FF), (0x3000, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xF900, 0xFAFF),
    (0xFE00, 0xFFFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF), (0x2B800, 0x2BFFF),
    (0x10000, 0x10FFFF),
]  # fmt: skip


def random_text(rng: random.Random, pieces: int = 14) -> str:
    """Words, numbers, white space and characters of all scripts, up to `pieces` of them."""
    out = []
    for _ in range(rng.randrange(1, pieces)):
        choice = rng.random()
        if choice < 0.4:
            out.append(rng.choice(_WORDS))
        elif choice < 0.5:
            out.append(" " * rng.randrange(1, 6))
        elif choice < 0.6:
            out.append("".join(rng.choices("0123456789", k=rng.randrange(1, 9))))
        elif choice < 0.7:
            out.append("".join(rng.choices(" \n\r\t\u00a0\u3000", k=rng.randrange(1, 7))))
        else:
            first, last = rng.choice(_BLOCKS)
            out.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randrange(1, 7))))
        out.append(" " * (rng.random() < 0.4))
    return "".join(out)
