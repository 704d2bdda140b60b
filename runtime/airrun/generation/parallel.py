"""Several texts generated together: every pass over the weights serves all that are still going on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from airrun.errors import UsageError
from airrun.generation.generate import GenerateConfig, GenerateResult, encode_prompt, make_sampler
from airrun.generation.stopping import StopFilter
from airrun.replay.batch import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from airrun.engine import Engine


class Piece(NamedTuple):
    """Text that was added to one of several texts: which, and what."""

    number: int
    text: str


class _Text:
    """One of the texts: a session of its own, and what samples, decodes and stops it.

    Attributes
    ----------
    pending
        Tokens that the session does not hold yet.
    """

    def __init__(self, engine: Engine, prompt: str | Sequence[int], config: GenerateConfig) -> None:
        self._engine, self._config = engine, config
        self.session = engine.new_session()
        self.pending = encode_prompt(engine, prompt)
        if len(self.pending) > self.session.n_ctx:
            n = len(self.pending)
            raise UsageError(f"the prompt has {n} tokens, but the context holds {self.session.n_ctx}: raise --ctx-size")
        self._sampler = make_sampler(engine, config)
        self._sampler.begin(self.pending)
        self._eog = frozenset(engine.tokenizer.spec.eog_ids)
        self._decoder = engine.tokenizer.stream(continuation=True)
        self._stops = StopFilter((config.stop,) if isinstance(config.stop, str) else config.stop)
        self.result = GenerateResult(prompt_tokens=len(self.pending), seed=self._sampler.seed)

    @property
    def ended(self) -> bool:
        return self.result.finish_reason != "unfinished"

    def take(self, logits: NDArray[np.float32]) -> str:
        """Choose the next token; returns the text that is now certain."""
        token = self._sampler.sample(logits)
        if token in self._eog:
            return self._end("eos")
        self._sampler.accept(token)
        self.result.tokens.append(token)
        text = self._stops.push(self._decoder.push(token))
        if self._stops.hit is not None:
            self.result.finish_reason = "stop"
            return text
        if len(self.result.tokens) == self._config.max_tokens:
            return text + self._end("length")
        if self.session.n_past >= self.session.n_ctx:
            return text + self._end("context")
        self.pending = [token]
        return text

    def _end(self, reason: str) -> str:
        self.result.finish_reason = reason  # type: ignore[assignment]
        text = self._stops.push(self._decoder.flush())
        if self._stops.hit is not None:
            self.result.finish_reason = "stop"
        return text + self._stops.flush()


class ParallelStream(Iterator[Piece]):
    """Iterator over pieces of several texts, as they come.

    A text is what it would be if it were generated alone: rows of a batch do not depend on each other.

    Parameters
    ----------
    engine
        Opened with at least as many parallel sessions as there are prompts.
    prompts
        One for each text.
    config
        For all of them; where it has a seed, text i draws with that seed plus i.

    Attributes
    ----------
    results
        What became of each text; complete at the end.
    """

    def __init__(self, engine: Engine, prompts: Sequence[str | Sequence[int]], config: GenerateConfig) -> None:
        if len(prompts) > engine.parallel:
            raise UsageError(f"{len(prompts)} texts at once, but the engine was opened for {engine.parallel}")
        if config.speculate != "none":
            raise UsageError("speculation is for one text at a time: several share each pass already")
        self._engine = engine
        self._texts: list[_Text] = []
        self._pieces = self._run()
        try:
            for i, prompt in enumerate(prompts):
                seeded = config if config.seed is None else replace(config, seed=config.seed + i)
                self._texts.append(_Text(engine, prompt, seeded))
        except BaseException:
            self.close()
            raise

    @property
    def results(self) -> list[GenerateResult]:
        return [text.result for text in self._texts]

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Give the room of all texts in the cache back."""
        for text in self._texts:
            text.session.reset()

    def _run(self) -> Iterator[Piece]:
        try:
            while active := [text for text in self._texts if not text.ended]:
                for text, logits in self._pass(active):
                    piece = text.take(logits)
                    if piece:
                        yield Piece(self._texts.index(text), piece)
        finally:
            self.close()

    def _pass(self, active: Sequence[_Text]) -> list[tuple[_Text, NDArray[np.float32]]]:
        """Evaluate as much of what is pending as one batch holds; those that are up to date, with their logits."""
        room, parts, ready = self._engine.max_batch, [], []
        for text in active:
            now, text.pending = text.pending[:room], text.pending[room:]
            if not now:
                break
            room -= len(now)
            done = not text.pending
            parts.append(text.session.extend(now, [len(now) - 1] if done else []))
            if done:
                ready.append(text)
        logits = self._engine.run(Batch(parts))
        return list(zip(ready, logits, strict=True))


def generate_many(engine: Engine, prompts: Sequence[str | Sequence[int]], config: GenerateConfig) -> list[str]:
    """The continuations of several prompts, generated together."""
    texts = [""] * len(prompts)
    for piece in ParallelStream(engine, prompts, config):
        texts[piece.number] += piece.text
    return texts
