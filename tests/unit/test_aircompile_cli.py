"""The compiler's command line: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from tiny_model import shared_home, tiny_plan, use_home

import airrun
from aircompile import cli, demo_command
from aircompile.progress import BarReport
from airrun import cli as airrun_cli
from airrun.built_here import was_built_here
from airrun.machine import probe
from airrun.machine.isa import host_levels
from airrun.plan.container import read_plan
from airschedules.targets import list_targets


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = shared_home(tmp_path_factory)
    use_home(monkeypatch, found)
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, in which nothing half-written may stay."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_build_writes_a_plan_for_this_machine(home: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", str(home / "tiny.gguf")]) == 0
    out, err = capsys.readouterr()
    loaded = read_plan(here / "tiny.host.plan.bin")
    assert [library.isa for library in loaded.plan.libraries] == host_levels()[:1]
    assert was_built_here(loaded.digest)
    n = len(loaded.plan.kernels)
    assert re.fullmatch(rf"tiny\.host\.plan\.bin: \d+\.\d KiB, \d+\.\d s, {n} kernels, predicted .*\n", out), out
    assert "aircompile: compile kernels\n" in err


def test_quiet_says_nothing_and_equal_builds_are_equal_files(
    home: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert cli.main(["build", str(home / "tiny.gguf"), "-o", name, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (here / "a").read_bytes() == (here / "b").read_bytes()


def test_options_reach_the_plan(home: Path, here: Path) -> None:
    options = ["--ctx-size", "100", "--threads", "3", "--activations", "f32", "--quiet", "--debug-dump", "dump"]
    assert cli.main(["build", str(home / "tiny.gguf"), "-o", "plan", *options]) == 0
    plan = read_plan("plan").plan
    choice = plan.choice
    assert (choice.ctx_size, choice.threads, choice.activations, choice.kv_type) == (100, 3, "f32", "f32")
    assert (plan.kv.keys, plan.kv.values) == ("F32", "F32")
    dumped = sorted(path.name for path in (here / "dump").iterdir())
    assert dumped[0] == "00_graph.txt" and len(dumped) > 4
    assert cli.main(["build", str(home / "tiny.gguf"), "-o", "plan", "--kv-type", "f32", "--quiet"]) == 0
    assert read_plan("plan").plan.kv.keys == "F32"
    assert read_plan("plan").plan.choice.activations == "auto"


@pytest.mark.slow
def test_the_portable_target_carries_all_levels(home: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", str(home / "tiny.gguf"), "--target", "cpu"]) == 0
    plan = read_plan("tiny.cpu.plan.bin").plan
    assert [library.isa for library in plan.libraries] == [
        "x86-64-v4",
        "x86-64-v3+avxvnni",
        "x86-64-v3",
        "x86-64-v2",
    ]
    assert "for 4 instruction sets" in capsys.readouterr().out


def test_a_profile_of_the_users_own(home: Path, here: Path) -> None:
    (here / "box.toml").write_text(f'inherits = "cpu"\n[cpu]\nisa = ["{host_levels()[0]}"]\n')
    assert cli.main(["build", str(home / "tiny.gguf"), "--target", "box.toml", "--quiet"]) == 0
    assert read_plan("tiny.box.plan.bin").plan.choice.target == "box"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.onnx"], "model.onnx: ONNX models are not supported yet; use GGUF"),
        (["model.safetensors"], "model.safetensors: safetensors models are not supported yet; use GGUF"),
        (["text.txt"], "text.txt: not a GGUF file: it starts with b'text'"),
        (["absent.gguf"], "absent.gguf: No such file or directory"),
        (["."], ".: Is a directory"),
        (["short.gguf"], "short.gguf: "),
        (["tiny.gguf", "--target", "toaster"], "unknown target 'toaster'"),
        (["tiny.gguf", "--target", "absent.toml"], "absent.toml: No such file or directory"),
        (["tiny.gguf", "-o", "folder"], "folder: is a folder, not a file to write"),
        (["tiny.gguf", "-o", "tiny.gguf"], "tiny.gguf: is a model; it is not overwritten by a plan"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    home: Path, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    shutil.copy(home / "tiny.gguf", here)
    (here / "short.gguf").write_bytes((home / "tiny.gguf").read_bytes()[:2000])
    (here / "text.txt").write_text("text")
    (here / "folder").mkdir()
    before = sorted((path.name, path.stat().st_size) for path in here.iterdir())
    assert cli.main(["build", *arguments, "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1
    assert sorted((path.name, path.stat().st_size) for path in here.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["bild"], "unknown command 'bild': choose from build, explain"),
        (["build"], "the following arguments are required: MODEL"),
        (["build", "m", "--ctx-size", "0"], "'0' must be 1 to"),
        (["build", "m", "--threads", "x"], "'x' is not a valid number"),
        (["build", "m", "--tune", "half"], "invalid choice: 'half'"),
        (["build", "m", "--kv-type", "q8"], "'q8' is no type of a KV cache"),
        (["build", "m", "--vrams", "1"], "unrecognized arguments: --vrams 1"),
        (["tune", "m"], "the following arguments are required: --target"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_an_interrupt_leaves_nothing(
    home: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "plan").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # the last moment: the new file is complete but not yet in place
    monkeypatch.setattr("airrun.paths.os.replace", interrupt)
    assert cli.main(["build", str(home / "tiny.gguf"), "-o", "plan", "--quiet"]) == 130
    assert capsys.readouterr() == ("", "\n")
    assert [path.name for path in here.iterdir()] == ["plan"] and (here / "plan").read_text() == "old"


def test_without_the_compiler_the_way_to_get_it_is_named(
    home: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "tvm" else real(name))
    assert cli.main(["build", str(home / "tiny.gguf")]) == 1
    expected = 'error: the compiler is not installed (tvm is missing): pip install "aircompile[compile]"\n'
    assert capsys.readouterr().err == expected


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "--help"]) == 0
    text = capsys.readouterr().out
    flags = "--target --output --ctx-size --threads --activations --kv-type --tune --debug-dump --quiet"
    assert all(flag in text for flag in flags.split())
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"aircompile {name} " in text for name in ("build", "explain", "targets", "probe", "demo"))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"aircompile {airrun.__version__}\n"


def test_targets_are_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:] if line] == list_targets()
    assert "sm_86" in next(line for line in lines if line.split()[:1] == ["rtx3060"])


def test_probe_writes_and_prints_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path))
    short = probe.Effort(8 << 20, 0.01, 1, 32 << 20, readers=(1,), chunks=(4 << 20,))
    monkeypatch.setattr(probe, "QUICK", short)
    assert cli.main(["probe", "--quick", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"# {tmp_path / 'host.toml'}\n") and err == ""
    assert out.split("\n", 1)[1] == (tmp_path / "host.toml").read_text()
    assert cli.main(["probe", "--quick", "--quiet", "-o", str(tmp_path / "box.toml"), "--disk", str(tmp_path)]) == 0
    assert (tmp_path / "box.toml").is_file()


def test_explain_is_the_runtimes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(tiny_plan(home))
    printed = []
    for main in (cli.main, airrun_cli.main):
        assert main(["explain", plan]) == 0
        # the memory of the interpreter is measured, the rest is counted
        printed.append([line for line in capsys.readouterr().out.splitlines() if "RAM " not in line])
    assert printed[0] == printed[1]
    assert "Ledger" in printed[0]


def test_demo_runs_the_model_and_names_commands_that_work(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny_plan(home)
    monkeypatch.setattr(demo_command, "fetch_smollm2", lambda progress: home / "tiny.gguf")
    monkeypatch.setattr(demo_command, "plan_for", lambda model: plan)
    assert cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(demo_command.PROMPT) and re.search(r"^decode: \d+ tokens, .* tokens/s$", out, re.MULTILINE)
    commands = [shlex.split(line) for line in out.split("Next:\n")[1].splitlines()]
    assert {words[0] for words in commands} == {"airrun", "aircompile"}
    mains: dict[str, Any] = {"airrun": airrun_cli.main, "aircompile": cli.main}
    for program, *arguments in commands:
        if arguments[0] in ("explain",):
            assert mains[program](arguments) == 0


def test_the_bar_names_phase_and_kernel() -> None:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    screen = io.StringIO()
    with Progress(TextColumn("{task.description}"), console=Console(file=screen, force_terminal=True)) as progress:
        report = BarReport(progress)
        report.phase("compile kernels")
        report.step("x86-64-v4 norm_64", 1, 20)
        progress.refresh()
        assert progress.tasks[0].total == 20 and progress.tasks[0].completed == 1
    assert "compile kernels: x86-64-v4 norm_64" in screen.getvalue()
