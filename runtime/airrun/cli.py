"""``airrun``: run a plan, or one of the commands that measure and explain it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from airrun.commands.options import OPTIONS, OptionParser
from airrun.errors import AirError, UsageError

COMMANDS = {
    "bench": "measure prefill and decode speed of a plan",
    "probe": "measure this machine and write its profile",
    "explain": "show where a plan's bytes and time go",
    "doctor": "check that a plan can run here",
    "verify": "check a package against its manifest, and unpack it",
}

_DESCRIPTION = """\
Generate text. stdout is the generated text and nothing else; the prompt is that of -p, of -f, or of stdin."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status: 0, 1 for a reported error, 2 for wrong usage, 130 after Ctrl-C, 141 if the reader of stdout left.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        status = _dispatch(args)
        sys.stdout.flush()
        return status
    except SystemExit as leaving:  # argparse, after it has printed its line
        return leaving.code if isinstance(leaving.code, int) else 0
    except AirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except OSError as error:
        _abandon_stdout()
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _dispatch(args: list[str]) -> int:
    if args and args[0] in COMMANDS:
        module = import_module(f"airrun.commands.{args[0]}")
        parser = OptionParser(f"airrun {args[0]}", description=COMMANDS[args[0]])
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(args[1:])))
    return _run(args)


def _run(args: list[str]) -> int:
    from airrun import __version__

    commands = "\n".join(f"  airrun {name:8} {text}" for name, text in COMMANDS.items())
    parser = OptionParser("airrun", description=_DESCRIPTION, epilog=f"other commands:\n{commands}")
    parser.add_argument("path", metavar="MODEL_OR_PLAN", help="plan.bin, or a GGUF model, which is compiled and cached")
    parser.add_argument("--version", action="version", version=f"airrun {__version__}")
    parser.add_options(option.name for option in OPTIONS)
    parser.add_not_yet()
    parsed = parser.parse_args(args)
    if parsed.prompt is not None and parsed.file is not None:
        parser.error("give the prompt by -p or by -f, not both")
    if parsed.parallel > 1 and (parsed.chat or parsed.session):
        parser.error("-np/--parallel goes with neither --chat nor --session")
    if parsed.system_prompt is not None and not parsed.chat:
        parser.error("-sys/--system-prompt needs --chat")

    if hasattr(sys.stdout, "reconfigure"):  # not where a test or a notebook has replaced it
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    from airrun.commands import completion

    try:
        config = completion.make_config(parsed)
    except UsageError as error:
        parser.error(str(error))
    prompt = completion.read_prompt(parsed)
    if prompt is None and not parsed.chat and not (parsed.session and os.path.exists(parsed.session)):
        parser.error("no prompt: give -p TEXT or -f FILE, pipe it in, or use --chat")
    completion.run(parsed, config, prompt)
    return 0


def _abandon_stdout() -> None:
    """Point stdout at nothing: what is still buffered cannot be written, and must not fail again at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object without a descriptor
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
