"""A stand-in for the native engine: a byte tokenizer and a "model" that is a Python function of the context."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airrun.errors import UsageError

SPECIALS = {256: "<s>", 257: "</s>", 258: "<|im_start|>", 259: "<|im_end|>"}
BOS, EOS, IM_START, IM_END = SPECIALS
N_VOCAB = 260

NextToken = Callable[[list[int]], int]


class FakeStream:
    """Bytes to text that never splits a character."""

    def __init__(self) -> None:
        self._bytes = b""

    def push(self, token: int) -> str:
        if token in SPECIALS:
            return ""
        self._bytes += bytes([token])
        try:
            text, self._bytes = self._bytes.decode(), b""
        except UnicodeDecodeError:
            text = ""
        return text

    def flush(self) -> str:
        text, self._bytes = self._bytes.decode(errors="replace"), b""
        return text


class FakeTokenizer:
    """Token ids are bytes; four special tokens follow."""

    def __init__(self, chat_template: str | None = None, bos: bool = True) -> None:
        self.bos = bos
        self.spec = SimpleNamespace(
            eog_ids={EOS, IM_END},
            bos_id=BOS,
            eos_id=EOS,
            chat_template=chat_template,
            tokens=[f"<{i}>" for i in range(256)] + list(SPECIALS.values()),
        )

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        ids = [BOS] if add_special and self.bos else []
        while text:
            special = next((i for i, s in SPECIALS.items() if parse_special and text.startswith(s)), None)
            ids += [special] if special is not None else list(text[0].encode())
            text = text[len(SPECIALS[special]) if special is not None else 1 :]
        return ids

    def stream(self, skip_special: bool = True, continuation: bool = False) -> FakeStream:
        assert skip_special
        assert continuation, "the decoder would swallow the space between the prompt and its continuation"
        return FakeStream()


class FakeSession:
    """Keeps ids; ``evaluated`` counts the tokens that were given to ``eval``."""

    def __init__(self, engine: FakeEngine, n_ctx: int) -> None:
        self.engine = engine
        self.n_ctx = n_ctx
        self.ids: list[int] = []
        self.evaluated = 0

    @property
    def n_past(self) -> int:
        return len(self.ids)

    def eval(self, ids: Sequence[int], *, all_logits: bool = False) -> NDArray[np.float32]:
        if len(self.ids) + len(ids) > self.n_ctx:
            raise UsageError("the context is full")
        self.ids += ids
        self.evaluated += len(ids)
        return self.engine.logits_of(self.ids)[None]

    def keepable(self, n: int) -> int:
        return n

    def verify(self, ids: Sequence[int]) -> NDArray[np.float32]:
        assert 2 <= len(ids) <= self.engine.max_outputs
        return np.concatenate([self.eval([token]) for token in ids])

    def truncate(self, n: int) -> None:
        assert 0 <= n <= len(self.ids)
        del self.ids[n:]

    def reset(self) -> None:
        self.truncate(0)

    def save_state(self) -> tuple[dict[str, Any], list[memoryview]]:
        kv = np.array(self.ids, np.float32)
        return {"shape": [len(self.ids)]}, [memoryview(kv[:1]), memoryview(kv[1:])]

    def load_state(self, meta: dict[str, Any], payload: memoryview) -> None:
        assert meta["shape"] == [len(meta["ids"])]
        self.ids = [int(x) for x in np.frombuffer(payload, np.float32)]


class FakeEngine:
    """``next_token`` maps the context to the token that is by far the most likely next."""

    loaded = SimpleNamespace(digest="fake")
    n_vocab = N_VOCAB
    streams = False
    device, chooses, no_gpu = "cpu", False, ""
    max_outputs = 8
    states = SimpleNamespace(specs=())

    def __init__(self, next_token: NextToken, n_ctx: int = 4096, **tokenizer: Any) -> None:
        self.next_token = next_token
        self.n_ctx = n_ctx
        self.tokenizer = FakeTokenizer(**tokenizer)
        self.session = FakeSession(self, n_ctx)
        self.closed = False
        self.accepted = 0

    def logits_of(self, ids: list[int]) -> NDArray[np.float32]:
        row = np.zeros(N_VOCAB, np.float32)
        row[self.next_token(ids)] = 30.0
        return row

    def count_accepted(self) -> None:
        self.accepted += 1

    def metrics(self) -> dict[str, Any]:
        return {
            "load_seconds": 0.5,
            "decode_seconds": 2.0,
            "decode_tokens": 25,
            "prefill_seconds": 0.0,
            "prefill_tokens": 0,
            "peak_rss_bytes": 3 << 20,
            "stall_share": 0.125,
            "threads": 2,
        }

    def close(self, *, zero_memory: bool = False) -> None:
        self.closed = True


class NoisyEngine(FakeEngine):
    """Logits are noise that depends on every token of the context: a wrong context gives other tokens."""

    def __init__(self, n_ctx: int = 4096, **tokenizer: Any) -> None:
        super().__init__(lambda ids: 0, n_ctx, **tokenizer)

    def logits_of(self, ids: list[int]) -> NDArray[np.float32]:
        seed = zlib.crc32(np.array(ids, np.int32).tobytes())
        row = np.random.default_rng(seed).standard_normal(N_VOCAB).astype(np.float32)
        row[256:] = -9.0
        return row


def continuing(prompt: Sequence[int], text: str, end: int = EOS) -> NextToken:
    """A model that continues a prompt with a text and then ends."""
    data = text.encode()

    def next_token(ids: list[int]) -> int:
        at = len(ids) - len(prompt)
        return data[at] if 0 <= at < len(data) else end

    return next_token


def answering(*answers: str) -> NextToken:
    """A model of ChatML that gives one answer a turn."""
    opening = [IM_START, *b"assistant\n"]

    def next_token(ids: list[int]) -> int:
        places = [i + len(opening) for i in range(len(ids)) if ids[i : i + len(opening)] == opening]
        data, at = answers[len(places) - 1].encode(), len(ids) - places[-1]
        return data[at] if at < len(data) else IM_END

    return next_token
