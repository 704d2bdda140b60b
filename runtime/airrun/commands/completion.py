"""Raw completion on the command line: a prompt in, the generated text and nothing else on stdout."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airrun.commands.opening import open_engine
from airrun.errors import AirError, UsageError
from airrun.generation.generate import GenerateConfig, TextStream, encode_prompt

if TYPE_CHECKING:
    from airrun.engine import Engine


def make_config(args: Namespace) -> GenerateConfig:
    """Generation settings from the parsed options."""
    return GenerateConfig(
        max_tokens=args.predict,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
        frequency_penalty=args.frequency_penalty,
        presence_penalty=args.presence_penalty,
        logit_bias=dict(args.logit_bias),
        seed=args.seed,
        speculate=args.speculate,
    )


def read_prompt(args: Namespace) -> str | None:
    """The prompt of -p, of -f, or of stdin unless it is a terminal or a chat; None where there is none.

    Raises
    ------
    AirError
        If the file cannot be read or is not UTF-8.
    """
    if args.prompt is not None:
        try:
            args.prompt.encode()
        except UnicodeEncodeError:  # bytes that the shell passed and that are no text
            raise UsageError("the prompt is not valid UTF-8") from None
        return str(args.prompt)
    if args.file is not None and args.file != "-":
        try:
            with open(args.file, "rb") as file:
                return _decoded(file.read(), args.file)
        except OSError as error:
            raise AirError(f"{args.file}: the prompt cannot be read: {error.strerror}") from None
    if args.file == "-" or not (args.chat or sys.stdin.isatty()):
        return _decoded(sys.stdin.buffer.read(), "stdin")
    return None


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise AirError(f"{source}: the prompt is not UTF-8 at byte {error.start}") from None


def run(args: Namespace, config: GenerateConfig, prompt: str | None) -> None:
    """Run one completion, or a chat, as the options say."""
    engine = open_engine(
        args.path,
        args.model,
        threads=args.threads,
        ctx_size=args.ctx_size,
        ram=args.ram,
        vram=args.vram,
        load_mode=args.load_mode,
        require_signature=args.require_signature,
        parallel=args.parallel,
        device=args.device,
        check_steps=args.check_steps,
        progress=_load_bar(args),
    )
    try:
        _announce(engine, args.verbose)
        if args.parallel > 1:
            _several(engine, config, prompt or "", args.parallel)
            return
        saved = _restore(args, engine)
        extra = _chat(args, engine, config, prompt, saved) if args.chat else _complete(engine, config, prompt, saved)
        if args.session is not None:
            from airrun.session_file import save_session

            save_session(args.session, engine.session, engine.loaded.digest, extra)
    finally:
        if args.verbose:
            from airrun.replay.memory import peak_resident_nbytes

            metrics = engine.metrics() | {"peak_resident_bytes": peak_resident_nbytes()}
            print(format_metrics(metrics), file=sys.stderr)
        engine.close(zero_memory=args.zero_memory)


def _load_bar(args: Namespace) -> Callable[[int, int], None] | None:
    """What shows on a terminal how weights load to a GPU."""
    if args.device == "cpu" or not sys.stderr.isatty():
        return None
    from airrun.commands.pace import LoadBar

    return LoadBar(sys.stderr)


def _announce(engine: Engine, verbose: bool) -> None:
    """Where weights are streamed, say what to expect, and show a processor's passes on a terminal."""
    if engine.device == "cuda" and (engine.streams or verbose):
        from airrun.commands.pace import device_announcement
        from airrun.cuda.engine import CudaEngine

        assert isinstance(engine, CudaEngine)
        line = device_announcement(engine)
        if line is not None:
            print(line, file=sys.stderr)
    if not engine.streams or engine.device != "cpu":
        return
    from airrun.commands.pace import LayerBar, announcement

    line = announcement(engine)
    if line is not None:
        print(line, file=sys.stderr)
    if sys.stderr.isatty():
        engine.watch(LayerBar(sys.stderr))


def _several(engine: Engine, config: GenerateConfig, prompt: str, n: int) -> None:
    """Print several continuations of a prompt, each behind a line with its number; the first as it comes."""
    from airrun.generation.parallel import ParallelStream

    waiting = [""] * n
    print(f"--- 1 of {n}")
    for piece in ParallelStream(engine, [prompt] * n, config):
        if piece.number == 0:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        else:
            waiting[piece.number] += piece.text
    print()
    for i, text in enumerate(waiting[1:], 2):
        print(f"--- {i} of {n}\n{text}")


def _restore(args: Namespace, engine: Engine) -> dict[str, Any] | None:
    if args.session is None or not os.path.exists(args.session):
        return None
    from airrun.session_file import load_session

    return load_session(args.session, engine.session, engine.loaded.digest)


def _complete(
    engine: Engine, config: GenerateConfig, prompt: str | None, saved: Mapping[str, Any] | None
) -> dict[str, Any]:
    session = engine.session
    if not prompt and saved is not None:
        # Going on: what was generated last had not been evaluated when the session was saved.
        ids = [*session.ids, *saved.get("pending", ())]
    else:
        ids = encode_prompt(engine, prompt or "")
    stream = TextStream(session, ids, config)
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    if sys.stdout.isatty():
        print()
    result = stream.result
    if result.finish_reason == "context":
        print(f"note: the context of {session.n_ctx} tokens is full; --ctx-size sets it", file=sys.stderr)
    return {"pending": [*ids, *result.tokens][session.n_past :]}


def _chat(
    args: Namespace, engine: Engine, config: GenerateConfig, first: str | None, saved: dict[str, Any] | None
) -> dict[str, Any]:
    from airrun.commands.chat import run_chat, start_conversation

    conversation = start_conversation(engine.session, config, args.system_prompt, saved)
    run_chat(conversation, first)
    return {"messages": conversation.messages}


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Metrics of an engine as lines of text.

    ``NAME_seconds`` and ``NAME_tokens`` become one line with their rate; otherwise the end of a name tells the unit
    (``_seconds``, ``_bytes``, ``_bytes_per_second``, ``_share``).
    """
    lines = []
    for name, value in metrics.items():
        label, _, unit = name.rpartition("_")
        tokens = metrics.get(f"{label}_tokens")
        if unit == "tokens" and f"{label}_seconds" in metrics:
            continue
        if unit == "seconds" and tokens is not None:
            rate = f", {tokens / value:.1f} tokens/s" if value > 0 else ""
            text = f"{tokens} tokens, {value:.3f} s{rate}"
        elif unit == "seconds":
            text = f"{value:.3f} s"
        elif name.endswith("_bytes_per_second"):
            label, text = name.removesuffix("_bytes_per_second"), f"{value / 1e9:.2f} GB/s"
        elif unit == "bytes":
            text = f"{value / 2**20:.1f} MiB"
        elif unit == "share":
            text = f"{value:.1%}"
        else:
            label, text = name, f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"{label.replace('_', ' ')}: {text}")
    return "\n".join(lines)
