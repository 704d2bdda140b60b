"""Conversations to prompts: the model's own Jinja template, rendered as transformers and llama.cpp render it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from airrun.errors import ModelFileError, UsageError
from airrun.generation.template_sandbox import MAX_SECONDS, BoundedEnvironment

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_STOP = "<|im_end|>"

_MAX_SOURCE = 1 << 20  # characters; the longest templates in use have 40 thousand


class _Refusal(TemplateError):
    """What a template raises on purpose."""


class ChatTemplate:
    """A compiled chat template.

    Parameters
    ----------
    source : str
        Jinja source; it may come from anywhere (see `airrun.generation.template_sandbox`).
    bos_token, eos_token : str
        Texts of the model's tokens that templates refer to.
    seconds : float
        Time limit of one rendering.

    Raises
    ------
    ModelFileError
        If the template does not compile.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "", *, seconds: float = MAX_SECONDS) -> None:
        self.bos_token = bos_token
        self._seconds = seconds
        self._lock = threading.Lock()  # the environment counts the steps of one rendering
        self._environment = BoundedEnvironment()
        self._environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        self._constants = {"bos_token": bos_token, "eos_token": eos_token, "tools": None, "documents": None}
        if len(source) > _MAX_SOURCE:
            raise ModelFileError(f"the chat template has {len(source)} characters, more than {_MAX_SOURCE}")
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # a template is a program from the file: its compiler may fail in any way
            raise ModelFileError(f"the chat template does not compile: {_one_line(error)}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Render a conversation.

        Parameters
        ----------
        messages : sequence of mappings
            Each with "role" ("system", "user", "assistant") and "content".
        add_generation_prompt : bool
            End with what opens the assistant's answer.
        **variables
            Further variables of the template, such as ``enable_thinking`` or ``tools``.

        Raises
        ------
        UsageError
            If the template refuses the conversation (roles out of order, no system role, ...).
        ModelFileError
            If the template fails or exceeds the limits on time and size.
        """
        arguments = self._constants | variables
        with self._lock:
            self._environment.start(self._seconds)
            try:
                return self._template.render(
                    arguments, messages=list(messages), add_generation_prompt=add_generation_prompt
                )
            except _Refusal as refusal:
                raise UsageError(f"the chat template refuses this conversation: {_one_line(refusal)}") from None
            except Exception as error:  # as above: it is the template's program that failed, whatever the type
                raise ModelFileError(f"the chat template failed: {_one_line(error)}") from None


def _refuse(message: object) -> None:
    raise _Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
