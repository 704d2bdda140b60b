"""Chat templates and their bounds, conversations, and the terminal loop."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import time
from datetime import datetime
from typing import Any

import pytest
from fake_engine import FakeEngine, NoisyEngine, answering

from airrun.commands.chat import Conversation, describe, load_template, run_chat, start_conversation
from airrun.errors import ModelFileError, UsageError
from airrun.generation.chat_template import CHATML, ChatTemplate
from airrun.generation.generate import GenerateConfig

GREEDY = GenerateConfig(temperature=0.0)
USER = [{"role": "user", "content": "Hi"}]
TURNS = [
    {"role": "system", "content": "Be brief."},
    *USER,
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Nothing"},
]

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)


def render(source: str, messages: Any = USER, **variables: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>", seconds=1.0).render(messages, **variables)


def test_templates_in_use() -> None:
    assert render(CHATML, TURNS) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nNothing<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(LLAMA3) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(MISTRAL, TURNS[1:]) == "<s>[INST] Hi [/INST]Yes?</s>[INST] Nothing [/INST]"
    with pytest.raises(UsageError, match=r"^the chat template refuses this conversation: Conversation roles must alt"):
        render(MISTRAL, TURNS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if true %}\n  a\n{% endif %}\nb", "  a\nb"),  # trim_blocks
        ("  {% if true %}a{% endif %}", "a"),  # lstrip_blocks
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ [1, {'b': 2}] | tojson(indent=2) }}", json.dumps([1, {"b": 2}], indent=2)),
        ("{{ 'x' ~ 1 ~ none ~ undefined_name }}", "x1None"),
        ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "02"),
        ("{% generation %}{{ 1 }}{% endgeneration %}", "1"),
        ("{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{% macro m(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call m(2) %}!{% endcall %}", "<2!>"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}", "A1"),
        ("{{ tools is none }}{{ messages[0].content }}{{ messages|length }}", "TrueHi1"),
        ("{{ 'a-b'.split('-')[1] }}{{ '%s-%d'|format('x', 3) }}{{ '{}{:>3}'.format(4, 5) }}", "bx-34  5"),
        ("{{ ['a', 'b']|join(', ') }}{{ 'aXa'|replace('X', 'yy') }}{{ 'aXa'.replace('X', '') }}", "a, bayyaaa"),
        ("{{ messages|map(attribute='role')|list }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
         "['user']1"),
        ("{{ 'a\nb'|indent(2) }}{{ {'b': 1, 'a': 2}|dictsort }}", "a\n  b[('a', 2), ('b', 1)]"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{% for a in [1, [2, 3]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "123"),
        ("{{ extra }}", "given"),
    ],
)  # fmt: skip
def test_the_language_that_templates_expect(source: str, expected: str) -> None:
    assert render(source, extra="given") == expected


DOUBLING = (
    "{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set {step} %}}{{% endfor %}}{{{{ ns.s }}}}"
)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for a in [[1]] recursive %}{{ loop([[a]]) }}{{ loop([[a]]) }}{% endfor %}",
        "{% set f = 'a' * 4000000 %}{% for a in range(99999) if f.count('ab') > 1 %}{% endfor %}",
        DOUBLING.format(start="'ab'", step="ns.s = ns.s ~ ns.s"),
        DOUBLING.format(start="'ab'", step="ns.s = ns.s + ns.s"),
        DOUBLING.format(start="'ab'", step="ns.s = [ns.s, ns.s]|join"),
        DOUBLING.format(start="'ab'", step="ns.s = '%s%s' % (ns.s, ns.s)"),
        DOUBLING.format(start="['ab']", step="ns.s = [ns.s, ns.s]"),
        DOUBLING.format(start="['ab']", step="ns.s = (ns.s, ns.s)"),
        DOUBLING.format(start="['ab']", step="ns.s = {'a': ns.s, 'b': ns.s}"),
        DOUBLING.format(start="['ab']", step="ns.s = ns.s + ns.s"),
        DOUBLING.format(start="3", step="ns.s = ns.s * ns.s"),
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}"
        "{% set ns.s = x %}{% endfor %}",
        "{{ 'a' * 10**10 }}", "{{ [1] * 10**10 }}", "{{ 10**9 * 'ab' }}", "{{ (10**1000)**1000 }}",
        "{{ '%1000000000d' % 1 }}", "{{ '%1000000000d'|format(1) }}", "{{ '%*d'|format(1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 1000000000) }}",
        "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}", "{% set x = 'a' * 1000000 %}{{ x|replace('a', new=x) }}",
        "{% set x = 'a' * 100000 %}{{ x.join(x) }}", "{% set x = 'a' * 100000 %}{{ x|join(d=x) }}",
        "{% set x = 'a' * 4000000 %}{{ '{0}{0}{0}{0}'.format(x) }}",
        "{% set x = 'a' * 100000 %}{{ range(90000)|map('string')|map('replace', '', x)|list|length }}",
        "{% set x = '\\n' * 1000000 %}{{ x|indent(1000000) }}", "{{ [1]|tojson(indent=10**9) }}",
        "{{ 'a'|center(10**9) }}", "{{ 'a'.zfill(10**9) }}", "{{ (1).to_bytes(10**9) }}", "{{ lipsum(n=100000) }}",
        "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{{ messages.append(1) }}",
        "{% include 'x' %}", "{{ x.y.z }}", "{{ 1 / 0 }}", "{% for %}", "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500, "{% for a in b %}" * 30 + "{% endfor %}" * 30, " " * (2 << 20),
    ],
    ids=lambda source: re.sub(r"\W+", "_", source)[:60],
)  # fmt: skip
def test_hostile_templates_end_with_one_line(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelFileError) as caught:
        render(source)
    assert time.monotonic() - start < 10
    assert str(caught.value).startswith("the chat template ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_template_can_be_rendered_again_after_it_hit_a_limit() -> None:
    template = ChatTemplate("{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}done")
    with pytest.raises(ModelFileError, match="steps"):
        template.render(USER, n=99_999)
    assert template.render(USER, n=3) == "done"


def conversation(engine: FakeEngine, config: GenerateConfig = GREEDY, system: str | None = None) -> Conversation:
    return Conversation(engine.session, load_template(engine.tokenizer)[0], config, system)


def test_a_conversation_evaluates_only_what_is_new() -> None:
    engine = FakeEngine(answering("Hello!", "Fine."), chat_template=CHATML)
    chat = conversation(engine, system="Be kind.")
    assert "".join(chat.ask("Hi")) == "Hello!"
    before = engine.session.evaluated
    assert "".join(chat.ask("How are you?")) == "Fine."
    assert [m["content"] for m in chat.messages] == ["Be kind.", "Hi", "Hello!", "How are you?", "Fine."]
    new = engine.tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nFine.", add_special=False
    )
    assert engine.session.evaluated - before == len(new)
    assert re.fullmatch(
        r"prompt \d+ tokens, \d+ reused, \d\.\d\d s; answer 5 tokens, [\d.]+ tokens/s; context \d+ of 4096 tokens",
        describe(chat),
    )


def test_the_context_of_a_later_turn_equals_a_fresh_one() -> None:
    config = GenerateConfig(temperature=0.0, max_tokens=6, ignore_eos=True)
    chat = conversation(NoisyEngine(chat_template=CHATML), config)
    for text in ("a", "b", "c"):
        answer = "".join(chat.ask(text))
        fresh = conversation(NoisyEngine(chat_template=CHATML), config)
        fresh.messages = [dict(m) for m in chat.messages[:-2]]
        assert "".join(fresh.ask(text)) == answer


@pytest.mark.parametrize("template", [CHATML, "{{ bos_token }}" + CHATML])
def test_bos_comes_once(template: str) -> None:
    engine = FakeEngine(answering("x"), chat_template=template)
    list(conversation(engine).ask("Hi"))
    assert [i for i, token in enumerate(engine.session.ids) if token == 256] == [0]


def test_reset_keeps_the_system_prompt() -> None:
    engine = FakeEngine(answering("x"), chat_template=CHATML)
    chat = conversation(engine, system="S")
    list(chat.ask("Hi"))
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "S"}]
    assert engine.session.n_past == 0


def test_a_message_that_does_not_fit_is_taken_back() -> None:
    chat = conversation(FakeEngine(answering("x", "y"), n_ctx=60, chat_template=CHATML))
    list(chat.ask("Hi"))
    with pytest.raises(UsageError, match="context holds 60"):
        list(chat.ask("long " * 20))
    assert [m["content"] for m in chat.messages] == ["Hi", "x"]


class Terminal:
    """Runs `run_chat` with lines typed on a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, chat: Conversation, typed: str, first: str | None = None) -> tuple[str, str]:
        self._patch.setattr(sys, "stdin", io.StringIO(typed))
        run_chat(chat, first)
        captured = self._capsys.readouterr()
        return captured.out, captured.err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_terminal_turns_and_commands(terminal: Terminal) -> None:
    chat = conversation(FakeEngine(answering("Hello!", "Fine.", "three"), chat_template=CHATML))
    out, err = terminal(chat, "Hi\n/stats\n\nHow\\\nare you?\n/nonsense\n/help\n", first="Start")
    assert out == "Hello!\nFine.\nthree\n"
    assert [m["content"] for m in chat.messages[::2]] == ["Start", "Hi", "How\nare you?"]
    assert "answer 5 tokens" in err
    assert "unknown command /nonsense" in err
    assert "/reset" in err
    out, _ = terminal(chat, "/reset\nAgain\n/exit\nnever\n")
    assert out == "Hello!\n"
    assert len(chat.messages) == 2


def test_terminal_tells_when_the_context_or_the_limit_ends_an_answer(terminal: Terminal) -> None:
    chat = conversation(FakeEngine(answering("x" * 100), n_ctx=60, chat_template=CHATML))
    out, err = terminal(chat, "Hi\nmore\n")
    assert re.fullmatch("x+\n", out)
    assert "note: the context of 60 tokens is full" in err
    assert re.search(r"error: the prompt has \d+ tokens, but the context holds 60: raise --ctx-size or /reset", err)
    limited = GenerateConfig(max_tokens=4, temperature=0.0)
    chat = conversation(FakeEngine(answering("x" * 100), chat_template=CHATML), limited)
    assert terminal(chat, "Hi\n") == ("xxxx\n", "note: stopped after 4 tokens (-n)\n")


def test_interrupt_stops_the_answer_and_keeps_the_history(terminal: Terminal) -> None:
    answer = answering("abcdefgh", "next")

    def interrupting(ids: list[int]) -> int:
        token = answer(ids)
        if token == ord("d"):
            signal.raise_signal(signal.SIGINT)
        return token

    chat = conversation(FakeEngine(interrupting, chat_template=CHATML))
    handler = signal.getsignal(signal.SIGINT)
    out, _ = terminal(chat, "Hi\nGo on\n")
    assert out == "abc\nnext\n"
    assert [m["content"] for m in chat.messages] == ["Hi", "abc", "Go on", "next"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_breaks_an_evaluation_and_keeps_the_history(terminal: Terminal) -> None:
    answer = answering("abcdefgh", "next")

    def stuck(ids: list[int]) -> int:
        token = answer(ids)
        if token == ord("d"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return token

    chat = conversation(FakeEngine(stuck, chat_template=CHATML))
    out, _ = terminal(chat, "Hi\nGo on\n")
    assert out == "abc\nnext\n"
    assert [m["content"] for m in chat.messages] == ["Hi", "abc", "Go on", "next"]


def test_an_interrupt_before_any_answer_takes_the_message_back(terminal: Terminal) -> None:
    def interrupting(ids: list[int]) -> int:
        signal.raise_signal(signal.SIGINT)
        return 65

    chat = conversation(FakeEngine(interrupting, chat_template=CHATML))
    out, _ = terminal(chat, "Hi\n")
    assert (out, chat.messages) == ("\n", [])


def test_fallback_is_announced_and_stops_at_its_own_end(capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(FakeEngine):
        """A model that knows nothing of ChatML: the end of a message is plain text to it."""

    engine = Plain(answering("x"))
    engine.tokenizer.spec.eog_ids = {257}
    chat = start_conversation(engine.session, GREEDY, None, None)
    assert "no chat template; ChatML" in capsys.readouterr().err
    assert chat.config.stop == ("<|im_end|>",)
    with_template = FakeEngine(answering("x"), chat_template=CHATML)
    assert start_conversation(with_template.session, GREEDY, None, None).config.stop == ()
    assert capsys.readouterr().err == ""
