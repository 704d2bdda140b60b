"""Every command of the README and every example, run on the real model; output that is shown must come out."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import measured_host, use_home

from aircompile import demo
from airrun.errors import AirError
from airrun.paths import host_profile_path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SLOW = ("--target cpu", "--target rpi5")
ANYTHING = "..."
PLAN = "test -e smol.plan.bin || aircompile build SmolLM2-135M-Instruct.Q4_1.gguf -o smol.plan.bin --quiet"

Run = Callable[..., str]


def console() -> list[tuple[str, list[str]]]:
    """Commands of the console blocks with the output shown under each."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs shell commands in a folder with the model, a cache of its own, and both programs on the path."""
    try:
        model = demo.fetch_smollm2(lambda _: None)
    except AirError as error:
        pytest.skip(f"the demonstration's model cannot be had: {error}")
    folder = tmp_path_factory.mktemp("readme")
    home, programs = folder / "home", folder / "bin"
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, home)
        programs.mkdir()
        for name in ("aircompile", "airrun"):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n')
            (programs / name).chmod(0o755)
        patch.setenv("PATH", str(programs), prepend=":")
        (home / "models").mkdir(parents=True)
        (home / "models" / demo.FILE_NAME).symlink_to(model)
        (folder / demo.FILE_NAME).symlink_to(model)
        host_profile_path().write_text(measured_host().to_toml())

        def shell(command: str, stdin: str = "") -> str:
            done = subprocess.run(
                command, shell=True, cwd=folder, input=stdin, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            return done.stdout

        yield shell


def same(shown: list[str], printed: str) -> bool:
    """Whether a text is what was shown, in which ``...`` stands for anything, also for nothing."""
    parts = (re.escape(part.strip()) for part in "\n".join(shown).split(ANYTHING))
    return re.fullmatch(r"\s*" + ".*".join(parts) + r"\s*", printed, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param(*entry, id=entry[0], marks=[pytest.mark.slow] if any(s in entry[0] for s in SLOW) else [])
        for entry in console()
    ],
)
def test_commands_of_the_readme(run: Run, command: str, shown: list[str]) -> None:
    # later commands use what earlier ones made, as a reader would
    if "smol.plan.bin" in command and not command.startswith("aircompile build"):
        run(PLAN)
    printed = run(command, stdin="What is the capital of France?\n" if "--chat" in command else "")
    assert same(shown, printed), printed
    if shown:
        assert printed.strip()


def test_the_first_command_of_the_readme(run: Run) -> None:
    first = re.search(r"^    (.*)$", README, re.MULTILINE)
    assert first is not None
    install, _, command = first[1].partition(" && ")
    # that the installation works is shown by running in an environment that it made
    assert install == 'pip install ".[compile]"' and command == "aircompile demo"
    assert run(command).startswith("The capital of France is Paris")


def test_python_of_the_readme(run: Run, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert blocks
    run(PLAN)
    for block in blocks:
        (tmp_path / "block.py").write_text(block)
        assert run(f'"{sys.executable}" "{tmp_path}/block.py"').startswith(" Paris.")


def test_the_family_of_the_readme() -> None:
    """It is what the file has after its imports, and no family takes more than 120 lines."""
    name, shown = re.findall(r"all of\n`(\w+\.py)` but its imports:\n\n((?:(?:    .*)?\n)+?)(?=\S)", README)[0]
    families = ROOT / "aircompile" / "architectures"
    _imports, decorator, body = (families / name).read_text().partition("@family(")
    assert textwrap.dedent(shown).strip() == (decorator + body).strip()
    for path in families.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 120, path.name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_print_what_they_show(run: Run, path: Path) -> None:
    run(PLAN)
    shown = path.read_text().split("# Output:\n")[1]
    printed = run(f'"{sys.executable}" "{path}" smol.plan.bin')
    assert "".join(f"#   {line}".rstrip() + "\n" for line in printed.splitlines()) == shown


def test_shown_output_is_compared() -> None:
    assert same([" Paris.", "..."], " Paris.\n\nmore") and same(["..."], "") and same([], "\n")
    assert not same([" Paris."], " Paris. more") and not same([], "x") and not same(["a...c"], "a b")
