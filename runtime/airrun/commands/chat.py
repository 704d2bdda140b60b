"""Conversation with a model: history, incremental evaluation, and the terminal loop around it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from airrun.errors import UsageError
from airrun.generation.chat_template import CHATML, CHATML_STOP, ChatTemplate
from airrun.generation.generate import GenerateConfig, GenerateResult, TextStream, make_sampler

if TYPE_CHECKING:
    from airrun.session import Session
    from airrun.tokenizer import Tokenizer

Message = dict[str, str]

HELP = """\
/reset   forget the conversation, keep the system prompt
/stats   tokens and speed of the last answer, and how full the context is
/exit    leave (so do Ctrl-C and Ctrl-D at the prompt)
/help    this list
Ctrl-C stops an answer and keeps what was said. A line that ends in \\ goes on in the next one."""


def load_template(tokenizer: Tokenizer) -> tuple[ChatTemplate, bool]:
    """The model's chat template, or ChatML where the file has none; the flag tells that it was missing."""
    spec = tokenizer.spec
    source = spec.chat_template or CHATML
    return ChatTemplate(source, _token_text(tokenizer, spec.bos_id), _token_text(tokenizer, spec.eos_id)), (
        not spec.chat_template
    )


def _token_text(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None or token < 0 else str(tokenizer.spec.tokens[token])


class Conversation:
    """Messages exchanged over one session.

    Each turn renders the whole conversation and evaluates only what the session does not hold yet, which is the new
    message, unless the template rewrites the past.

    Parameters
    ----------
    session : Session
    template : ChatTemplate
    config : GenerateConfig
        One random state, seeded by it, serves the whole conversation.
    system : str, optional
        System prompt.
    messages : sequence of Message
        Earlier messages to go on from; with them ``system`` is not repeated.

    Attributes
    ----------
    messages : list of Message
    last : GenerateResult or None
        The latest answer.
    """

    def __init__(
        self,
        session: Session,
        template: ChatTemplate,
        config: GenerateConfig,
        system: str | None = None,
        messages: Sequence[Message] = (),
    ) -> None:
        self.session = session
        self.template = template
        self.config = config
        self.last: GenerateResult | None = None
        self._sampler = make_sampler(session.engine, config)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(messages) or list(self._system)

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.messages = list(self._system)
        self.session.reset()
        self.last = None

    def prompt_ids(self) -> list[int]:
        """Token ids of the conversation so far, with the opening of an answer."""
        text = self.template.render(self.messages)
        # Most templates write BOS themselves; it must not come twice.
        bos = self.template.bos_token
        return self.session.engine.tokenizer.encode(text, add_special=not (bos and text.startswith(bos)))

    def ask(self, text: str, cancel: Callable[[], bool] | None = None) -> Iterator[str]:
        """Say ``text`` and stream the answer; both become history, also when the answer is cut short.

        Raises
        ------
        UsageError
            If the conversation does not fit the context or the template refuses it; the message is taken back.
        """
        self.messages.append({"role": "user", "content": text})
        answer: list[str] = []
        finished = False
        try:
            stream = TextStream(self.session, self.prompt_ids(), self.config, sampler=self._sampler, cancel=cancel)
            self.last = stream.result
            for piece in stream:
                answer.append(piece)
                yield piece
            finished = stream.result.finish_reason != "cancelled"
        finally:
            # A question without any answer would leave two user messages in a row, which templates refuse.
            if answer or finished:
                self.messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.messages.pop()


class StopOnInterrupt:
    """While it is entered, a first Ctrl-C only sets ``requested``; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopOnInterrupt:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def start_conversation(
    session: Session, config: GenerateConfig, system: str | None, saved: dict[str, Any] | None
) -> Conversation:
    """A conversation with the model's own template, going on from the messages of a saved session if there are any."""
    template, missing = load_template(session.engine.tokenizer)
    if missing:
        print("note: the model file has no chat template; ChatML is used instead", file=sys.stderr)
        config = replace(config, stop=(*config.stop, CHATML_STOP))
    messages = (saved or {}).get("messages", [])
    return Conversation(session, template, config, system, messages)


def run_chat(conversation: Conversation, first: str | None = None) -> None:
    """Converse on stdin and stdout until the user leaves; notices go to stderr.

    Parameters
    ----------
    conversation : Conversation
    first : str, optional
        A first message, asked before any is read.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  # gives input() a history and line editing

        print("Type a message, /help for commands.", file=sys.stderr)
    if first is not None:
        _answer(conversation, first)
    while True:
        try:
            text = _read_message("> " if interactive else "")
        except (EOFError, KeyboardInterrupt):
            if interactive:
                print()
            return
        command = text.strip()
        if command == "/exit":
            return
        if command == "/reset":
            conversation.reset()
        elif command == "/stats":
            print(describe(conversation), file=sys.stderr)
        elif command == "/help":
            print(HELP, file=sys.stderr)
        elif command.startswith("/") and command[1:].isalpha():
            print(f"unknown command {command}; /help lists them", file=sys.stderr)
        elif command:
            _answer(conversation, text)


def describe(conversation: Conversation) -> str:
    """One line on the last answer and the context."""
    session, last = conversation.session, conversation.last
    context = f"context {session.n_past} of {session.n_ctx} tokens"
    if last is None:
        return context
    speed = last.completion_tokens / last.decode_seconds if last.decode_seconds > 0 else 0.0
    return (
        f"prompt {last.prompt_tokens} tokens, {last.reused_tokens} reused, {last.prefill_seconds:.2f} s; "
        f"answer {last.completion_tokens} tokens, {speed:.1f} tokens/s; {context}"
    )


def _read_message(prompt: str) -> str:
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(". " if prompt else ""))
    return "\n".join(lines)


def _answer(conversation: Conversation, text: str) -> None:
    """Print the answer as it comes; Ctrl-C stops it at the next token."""
    try:
        with StopOnInterrupt() as interrupt:
            for piece in conversation.ask(text, cancel=lambda: interrupt.requested):
                print(piece, end="", flush=True)
    except UsageError as error:
        print(f"error: {error}" + (" or /reset" if "context" in str(error) else ""), file=sys.stderr)
        return
    except KeyboardInterrupt:  # the second one, in the middle of an evaluation, which is undone
        pass
    print(flush=True)
    reason = conversation.last.finish_reason if conversation.last else None
    if reason == "context":
        print(f"note: the context of {conversation.session.n_ctx} tokens is full; /reset starts over", file=sys.stderr)
    elif reason == "length":
        print(f"note: stopped after {conversation.config.max_tokens} tokens (-n)", file=sys.stderr)
