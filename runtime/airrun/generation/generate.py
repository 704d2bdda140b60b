"""Generation: prompt ids in, token ids or text out, one token at a time, with a reason for the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Literal, get_args

from airrun.errors import UsageError
from airrun.generation.sampler_config import SamplerConfig
from airrun.generation.stopping import StopFilter
from airrun.records import record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from airrun.engine import Engine
    from airrun.generation.leaders import Leaders
    from airrun.generation.sampling import Sampler
    from airrun.generation.speculate import Speculator
    from airrun.session import Session

Speculation = Literal["none", "ngram"]
SPECULATIONS: tuple[Speculation, ...] = get_args(Speculation)
FinishReason = Literal["eos", "stop", "length", "context", "cancelled", "unfinished"]

# With a cancel callback, a long prompt is evaluated in pieces of this many tokens, so that it can be cancelled as well.
_CANCEL_INTERVAL = 256


@record(kw_only=True)
class GenerateConfig(SamplerConfig):
    """A `SamplerConfig` (temperature, top_k, ..., seed) and when to stop.

    Attributes
    ----------
    max_tokens : int
        Most tokens to generate; -1 goes on to the end of generation or of the context, 0 only evaluates the prompt.
    stop : sequence of str
        The text ends before the first of these; a single string is taken as one stop.
    ignore_eos : bool
        Never choose an end-of-generation token.
    speculate : str
        "ngram" guesses tokens from earlier text and verifies several in one pass, which changes nothing but the
        speed; "none" does not.

    Raises
    ------
    UsageError
        For a value outside its range, naming it.
    """

    max_tokens: int = -1
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    speculate: Speculation = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < -1:
            raise UsageError(f"max_tokens must be -1 or more, not {self.max_tokens}")
        if self.speculate not in SPECULATIONS:
            raise UsageError(f"speculate must be one of {', '.join(SPECULATIONS)}, not {self.speculate!r}")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if "" in stops:
            raise UsageError("stop must not contain an empty string")
        object.__setattr__(self, "stop", stops)


@record(frozen=False)
class GenerateResult:
    """What one generation did.

    Attributes
    ----------
    finish_reason : str
        "eos", "stop" (a stop string), "length" (max_tokens), "context" (full), "cancelled", or "unfinished" while it
        runs and when the consumer dropped it.
    prompt_tokens, reused_tokens : int
        Length of the prompt, and how much of its beginning the session already held.
    tokens : list of int
        The generated ids, without the end-of-generation token.
    seed : int
        Of the draw; the same seed and prompt give the same tokens.
    drafted, accepted : int
        Tokens that speculation guessed, and how many of them were right.
    passes : int
        Passes over the weights after the prompt's.
    prefill_seconds, decode_seconds : float
        Time to the first logits, and from there to the end (the consumer's time between tokens included).
    """

    finish_reason: FinishReason = "unfinished"
    prompt_tokens: int = 0
    reused_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    seed: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens)


def make_sampler(engine: Engine, config: GenerateConfig) -> Sampler:
    """A sampler for the engine's vocabulary that honours ``config.ignore_eos``."""
    from airrun.generation.sampling import Sampler

    return Sampler(config, engine.n_vocab, engine.tokenizer.spec.eog_ids if config.ignore_eos else ())


def generate_tokens(
    session: Session,
    ids: Sequence[int],
    config: GenerateConfig,
    *,
    sampler: Sampler | None = None,
    result: GenerateResult | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Generator[int, None, None]:
    """Evaluate a prompt and yield generated token ids.

    Parameters
    ----------
    session : Session
        Its context becomes the prompt and what is generated; whatever prefix of ``ids`` it already holds is reused.
        The token yielded last is not evaluated, so that it is not part of the context yet.
    ids : sequence of int
        The whole prompt.
    config : GenerateConfig
    sampler : Sampler, optional
        To go on with the random state of an earlier generation; otherwise one is made from ``config``.
    result : GenerateResult, optional
        Filled in as the generation goes; complete when the iterator ends.
    cancel : callable, optional
        Asked before every token; the generation ends when it returns True.

    Raises
    ------
    UsageError
        If the prompt is empty, does not fit the context or holds an id out of range.
    """
    sampler = make_sampler(session.engine, config) if sampler is None else sampler
    result = GenerateResult() if result is None else result
    eog = frozenset(session.engine.tokenizer.spec.eog_ids)
    speculator = _speculator(session, ids, config)
    start = time.perf_counter()
    logits: NDArray[np.float32] | Leaders | None = _prefill(session, ids, result, cancel)
    sampler.begin(ids)
    result.seed = sampler.seed
    begun = time.perf_counter()
    result.prefill_seconds = begun - start
    if logits is None:
        result.finish_reason = "cancelled"
        return
    tokens, limit, n_ctx = result.tokens, config.max_tokens, session.n_ctx
    chosen: int | None = None
    engine = session.engine
    last_rows: NDArray[np.float32] | None = None
    try:
        while len(tokens) != limit:
            if cancel is not None and cancel():
                result.finish_reason = "cancelled"
                return
            token = sampler.sample(logits) if chosen is None else chosen
            if token in eog:
                result.finish_reason = "eos"
                return
            sampler.accept(token)
            tokens.append(token)
            yield token
            if len(tokens) == limit:
                break
            if (session if speculator is None else speculator).n_past >= n_ctx:
                result.finish_reason = "context"
                return
            if speculator is not None:
                logits = speculator.eval(token, limit - len(tokens) - 1 if limit >= 0 else n_ctx)
                continue
            result.passes += 1
            if engine.chooses and sampler.is_argmax:
                chosen = session.choose(token)
                continue
            if engine.chooses and sampler.narrows and len(watched := sampler.watched) <= engine.max_watched:
                logits, last_rows = session.leaders(token, watched), None
                continue
            rows = session.eval((token,))
            if rows is not last_rows:  # a view that is overwritten: its only row is taken once
                logits, last_rows = rows[0], rows
        result.finish_reason = "length"
    finally:
        if speculator is not None:
            speculator.close()
            result.drafted, result.accepted = speculator.drafted, speculator.accepted
            result.passes = speculator.passes
        result.decode_seconds = time.perf_counter() - begun


def _speculator(session: Session, ids: Sequence[int], config: GenerateConfig) -> Speculator | None:
    if config.speculate == "none":
        return None
    if session.engine.device != "cpu":
        raise UsageError(
            "speculation is for the CPU: a GPU's logits of several tokens are not bit for bit those of one"
        )
    if session.engine.states.specs:
        raise UsageError("speculation is not for recurrent models: their states cannot take a wrong guess back")
    from airrun.generation.speculate import Speculator

    return Speculator(session, ids)


class TextStream(Iterator[str]):
    """Iterator over pieces of generated text; ``result`` tells how it went, and is complete at the end.

    A piece is never empty, never part of a stop string, and never part of a character.
    """

    def __init__(
        self,
        session: Session,
        ids: Sequence[int],
        config: GenerateConfig,
        *,
        sampler: Sampler | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        self.result = GenerateResult()
        self._tokens = generate_tokens(session, ids, config, sampler=sampler, result=self.result, cancel=cancel)
        self._pieces = self._run(session, config)

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self, session: Session, config: GenerateConfig) -> Iterator[str]:
        decoder = session.engine.tokenizer.stream(continuation=True)
        stops = StopFilter(config.stop)
        for token in self._tokens:
            text = stops.push(decoder.push(token))
            if text:
                yield text
            if stops.hit is not None:
                self._tokens.close()
                self.result.finish_reason = "stop"
                return
        text = stops.push(decoder.flush())
        if stops.hit is not None:
            self.result.finish_reason = "stop"
        text += stops.flush()
        if text:
            yield text


def encode_prompt(engine: Engine, prompt: str | Sequence[int]) -> list[int]:
    """Token ids of a prompt given as text (special tokens are recognised, BOS is added as the model wants) or as ids.

    Raises
    ------
    UsageError
        If nothing is left to evaluate.
    """
    ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise UsageError("the prompt is empty, and this model has no token to begin a text with")
    return ids


def stream_text(session: Session, prompt: str | Sequence[int], config: GenerateConfig | None = None) -> TextStream:
    """Generate from a prompt and stream the text: what `Engine.stream` does on the default session."""
    return TextStream(session, encode_prompt(session.engine, prompt), config or GenerateConfig())


def generate_text(session: Session, prompt: str | Sequence[int], config: GenerateConfig | None = None) -> str:
    """Generate from a prompt and return the whole text: what `Engine.generate` does on the default session."""
    return "".join(stream_text(session, prompt, config))


def _prefill(
    session: Session, ids: Sequence[int], result: GenerateResult, cancel: Callable[[], bool] | None
) -> NDArray[np.float32] | None:
    """Bring the session to exactly ``ids`` and return the logits [n_vocab] of the last one, or None if cancelled."""
    if not ids:
        raise UsageError("the prompt is empty")
    if len(ids) > session.n_ctx:
        raise UsageError(f"the prompt has {len(ids)} tokens, but the context holds {session.n_ctx}: raise --ctx-size")
    # The last prompt token is always evaluated: its logits are what is wanted.
    reused = session.keepable(min(common_prefix(session.ids, ids), len(ids) - 1))
    session.truncate(reused)
    result.prompt_tokens, result.reused_tokens = len(ids), reused
    if cancel is None:
        row: NDArray[np.float32] = session.eval(ids[reused:])[0]
        return row
    logits = None
    for at in range(reused, len(ids), _CANCEL_INTERVAL):
        if cancel():
            return None
        logits = session.eval(ids[at : at + _CANCEL_INTERVAL])[0]
    return logits


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two id sequences."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
