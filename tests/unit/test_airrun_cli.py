"""The command line: options and their twins, streams, exit statuses; on a stand-in engine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_command import CHATML_TEMPLATE, Command
from fake_engine import BOS, FakeEngine, answering, continuing

import airrun
from airrun.commands.completion import format_metrics, make_config
from airrun.commands.options import OPTIONS, OptionParser


def test_stdout_is_the_generated_text_and_nothing_else(airrun_command: Command, tmp_path: Path) -> None:
    plan = airrun_command.plan
    assert airrun_command(plan, "-p", "Hello", "--temp", "0") == (0, " world", "")
    assert airrun_command.engine.closed
    assert airrun_command(plan, "--temp", "0", stdin="Hello\n") == (0, " world", "")
    (tmp_path / "prompt.txt").write_text("Hello\n")
    assert airrun_command(plan, "--temp", "0", "-f", str(tmp_path / "prompt.txt")) == (0, " world", "")
    assert airrun_command(plan, "--temp", "0", "-f", "-", stdin="Hello") == (0, " world", "")
    assert airrun_command(plan, "-p", "Hello", "--temp", "0", "-n", "3") == (0, " wo", "")
    assert airrun_command(plan, "-p", "Hello", "--temp", "0", "-r", "zz", "--stop", "r") == (0, " wo", "")


def test_plans_and_models_are_opened_by_what_they_are(airrun_command: Command) -> None:
    run = airrun_command
    run(run.plan, "-p", "Hello")
    unset = {"threads": None, "ctx_size": None, "ram": None, "load_mode": "auto", "parallel": 1, "device": "auto"}
    unset |= {"vram": None, "check_steps": False, "progress": None, "require_signature": []}
    assert run.opened == ("plan", run.plan, None, unset)
    run(run.plan, "-p", "Hello", "--model", "a", "--model", "b", "-t", "2", "-c", "99")
    assert run.opened == ("plan", run.plan, ["a", "b"], unset | {"threads": 2, "ctx_size": 99})
    run(run.gguf, "-p", "Hello", "-t3", "--ram", "2GiB", "--load-mode", "direct")
    assert run.opened == ("gguf", run.gguf, unset | {"threads": 3, "ram": 2 << 30, "load_mode": "direct"})
    for path, message in (
        ("x.onnx", "x.onnx: ONNX models are not supported yet"),
        ("x.safetensors", "x.safetensors: safetensors models are not supported yet"),
        ("missing.bin", "missing.bin: No such file or directory"),
    ):
        status, out, err = run(path, "-p", "Hello")
        assert (status, out) == (1, "")
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
    assert "is a model itself" in run(run.gguf, "-p", "Hello", "--model", "a")[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: MODEL_OR_PLAN"),
        (["--nonsense", "-p", "x"], "unrecognized arguments: --nonsense"),
        (["-ngl", "99", "-p", "x"], "-ngl"),
        (["-fa", "-p", "x"], "unrecognized arguments: -fa"),
        (["--tem", "0", "-p", "x"], "unrecognized arguments: --tem"),
        (["--grammar", "root ::= x", "-p", "x"], "--grammar is not implemented yet"),
        (["-j", "{}", "-p", "x"], "-j is not implemented yet"),
        (["--json-schema={}", "-p", "x"], "--json-schema is not implemented yet"),
        (["--ram", "much", "-p", "x"], "'much' must be a number of bytes"),
        (["--load-mode", "fast", "-p", "x"], "'fast' must be one of auto, direct, buffered, mmap"),
        (["-p", "x", "-f", "y"], "not both"),
        (["-p", "x", "-sys", "y"], "needs --chat"),
        (["-p", "x", "-np", "2", "--chat"], "goes with neither --chat nor --session"),
        (["-p"], "expected one argument"),
        (["-p", "x", "--temp", "warm"], "'warm' is not a valid number"),
        (["-p", "x", "-n", "-5"], "must be -1 or more"),
        (["-p", "x", "-t", "0"], "must be 1 or more"),
        (["-p", "x", "--top-p", "1.5"], "top_p must be between 0 and 1"),
        (["-p", "x", "--stop", ""], "empty string"),
        (["-p", "x", "-l", "12"], "must look like"),
        (["-p", "x", "-l", "12+nan"], "logit_bias of token 12"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(airrun_command: Command, args: list[str], message: str) -> None:
    status, out, err = airrun_command(*([airrun_command.plan] if args else []), *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert airrun_command.opened == ()


def test_no_prompt_at_a_terminal_is_wrong_usage(airrun_command: Command) -> None:
    status, _, err = airrun_command(airrun_command.plan)
    assert (status, "no prompt" in err) == (2, True)


def parse(*args: str) -> Any:
    parser = OptionParser("airrun")
    parser.add_options(option.name for option in OPTIONS)
    return parser.parse_args(args)


def test_defaults_are_those_of_llama_cpp(airrun_command: Command) -> None:
    config = make_config(parse())
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.8, 40, 0.95, 0.05)
    assert (config.repeat_penalty, config.repeat_last_n, config.frequency_penalty) == (1.0, 64, 0.0)
    assert (config.max_tokens, config.seed, config.stop, dict(config.logit_bias)) == (-1, None, (), {})
    assert (config.speculate, make_config(parse("--speculate", "ngram")).speculate) == ("none", "ngram")


GIVEN = {
    "vram": (["--vram", "3GiB"], "3GiB", 3 << 30),
    "check_steps": (["--check-steps"], "1", True),
    "model": (["--model", "a", "--model", "b"], "a\nb", ["a", "b"]),
    "prompt": (["-p", "--- x"], "--- x", "--- x"),
    "file": (["-f", "x"], "x", "x"),
    "predict": (["--n-predict", "5"], "5", 5),
    "ctx_size": (["-c", "7"], "7", 7),
    "threads": (["-t", "2"], "2", 2),
    "parallel": (["-np", "3"], "3", 3),
    "ram": (["--ram", "1MiB"], "1 MiB", 1 << 20),
    "load_mode": (["--load-mode", "mmap"], "mmap", "mmap"),
    "device": (["--device", "cuda"], "cuda", "cuda"),
    "require_signature": (["--require-signature", "a", "--require-signature", "b"], "a\nb", ["a", "b"]),
    "zero_memory": (["--zero-memory"], "1", True),
    "speculate": (["--speculate", "ngram"], "ngram", "ngram"),
    "seed": (["-s", "9"], "9", 9),
    "temp": (["--temperature", "-1"], "-1", -1.0),
    "top_k": (["--top-k", "-1"], "-1", -1),
    "top_p": (["--top-p", ".5"], ".5", 0.5),
    "min_p": (["--min-p", "0.5"], "0.5", 0.5),
    "repeat_penalty": (["--repeat-penalty", "1.5"], "1.5", 1.5),
    "repeat_last_n": (["--repeat-last-n", "-1"], "-1", -1),
    "frequency_penalty": (["--frequency-penalty", "1.5"], "1.5", 1.5),
    "presence_penalty": (["--presence-penalty", "-1.5"], "-1.5", -1.5),
    "logit_bias": (["-l", "3+1.5", "--logit-bias", "4-inf"], "3+1.5\n4-inf", [(3, 1.5), (4, float("-inf"))]),
    "stop": (["-r", "---", "--stop", "-p"], "---\n-p", ["---", "-p"]),
    "ignore_eos": (["--ignore-eos"], "1", True),
    "chat": (["--chat"], "true", True),
    "system_prompt": (["-sys", "-x-"], "-x-", "-x-"),
    "session": (["--session", "x"], "x", "x"),
    "verbose": (["-v"], "on", True),
}


def test_every_option_has_a_flag_and_a_twin(airrun_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(GIVEN) == {option.name for option in OPTIONS}
    for option in OPTIONS:
        flags, twin, expected = GIVEN[option.name]
        default = list(option.default) if option.repeat else option.default
        assert getattr(parse(), option.name) == default != expected
        assert getattr(parse(*flags), option.name) == expected
        with monkeypatch.context() as context:
            context.setenv(f"AIR_ARG_{option.name.upper()}", twin)
            assert getattr(parse(), option.name) == expected
            context.setenv(f"AIR_ARG_{option.name.upper()}", "0" if not option.metavar else "\n")
            if option.name not in ("prompt", "file", "system_prompt", "session", "model", "logit_bias", "stop"):
                assert getattr(parse(*flags), option.name) == expected  # the flag wins


def test_a_bad_environment_value_is_named(airrun_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIR_ARG_TOP_K", "many")
    status, _, err = airrun_command(airrun_command.plan, "-p", "x")
    assert (status, "environment variable AIR_ARG_TOP_K: 'many'" in err) == (2, True)
    monkeypatch.delenv("AIR_ARG_TOP_K")
    monkeypatch.setenv("AIR_ARG_CHAT", "maybe")
    assert "AIR_ARG_CHAT: 'maybe' must be 1 or 0" in airrun_command(airrun_command.plan, "-p", "x")[2]


def test_help_shows_every_option_with_its_twin(airrun_command: Command) -> None:
    status, out, _ = airrun_command("--help")
    assert status == 0
    for option in OPTIONS:
        assert option.flags[0] in out
        assert option.environment in out.replace("\n", "").replace(" ", "")
    assert "airrun bench" in out
    assert "--grammar" not in out
    assert airrun_command("--version")[1] == f"airrun {airrun.__version__}\n"


def test_prompts_that_cannot_be_read(airrun_command: Command, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\xff")
    for args, stdin, message in (
        (["-f", str(tmp_path / "binary")], None, "the prompt is not UTF-8 at byte 2"),
        (["-f", str(tmp_path)], None, "cannot be read: Is a directory"),
        (["-f", "nowhere"], None, "nowhere: the prompt cannot be read"),
        ([], b"\xff", "stdin: the prompt is not UTF-8 at byte 0"),
        (["-p", "\udcff"], None, "the prompt is not valid UTF-8"),
    ):
        status, out, err = airrun_command(airrun_command.plan, *args, stdin=stdin)  # type: ignore[arg-type]
        assert (status, out) == (1, "")
        assert message in err


def test_a_full_context_is_told_on_stderr(airrun_command: Command) -> None:
    airrun_command.engine = FakeEngine(continuing([BOS, *b"Hello"], "x" * 99), n_ctx=10)
    status, out, err = airrun_command(airrun_command.plan, "-p", "Hello", "--temp", "0")
    assert (status, out) == (0, "xxxxx")
    assert err == "note: the context of 10 tokens is full; --ctx-size sets it\n"
    status, out, err = airrun_command(airrun_command.plan, "-p", "Hello, hello")
    assert (status, out) == (1, "")
    assert err == "error: the prompt has 13 tokens, but the context holds 10: raise --ctx-size\n"


def test_verbose_prints_the_metrics(airrun_command: Command) -> None:
    status, out, err = airrun_command(airrun_command.plan, "-p", "Hello", "--temp", "0", "--verbose")
    assert (status, out) == (0, " world")
    *lines, peak = err.splitlines()
    assert lines == format_metrics(airrun_command.engine.metrics()).splitlines()
    assert peak.startswith("peak resident: ")
    assert lines == [
        "load: 0.500 s",
        "decode: 25 tokens, 2.000 s, 12.5 tokens/s",
        "prefill: 0 tokens, 0.000 s",
        "peak rss: 3.0 MiB",
        "stall: 12.5%",
        "threads: 2",
    ]


def test_chat(airrun_command: Command) -> None:
    airrun_command.engine = FakeEngine(answering("one", "two"), chat_template=CHATML_TEMPLATE)
    run = airrun_command(airrun_command.plan, "--chat", "-sys", "S", "-p", "A", "--temp", "0", stdin="B\n")
    assert run == (0, "one\ntwo\n", "")
    assert bytes(t for t in airrun_command.engine.session.ids if t < 256).startswith(b"system\nS\nuser\nA\n")


def test_subcommands_are_dispatched(airrun_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(args: Any) -> int:
        seen.append(args)
        return 3

    module = ModuleType("airrun.commands.bench")
    module.add_arguments = lambda parser: parser.add_options(["model", "threads"])  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "airrun.commands.bench", module)
    monkeypatch.setenv("AIR_ARG_MODEL", "w")
    assert airrun_command("bench", "-t", "4")[0] == 3
    assert (seen[0].threads, seen[0].model) == (4, ["w"])
    assert "see airrun bench --help" in airrun_command("bench", "--top-k", "4")[2]
