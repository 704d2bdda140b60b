"""``aircompile``: build plans, explain them, measure this machine."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NoReturn

from airrun.commands.options import OptionParser
from airrun.errors import AirError

_DESCRIPTION = """\
Compile a language model for a machine: reads a GGUF file, writes a plan that airrun replays."""


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
        # what is still buffered cannot be written, and must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _dispatch(args: list[str]) -> int:
    if not args or args[0] not in _COMMANDS:
        _no_command(args)
    help_text, declare, run = _COMMANDS[args[0]]
    parser = OptionParser(f"aircompile {args[0]}", description=help_text)
    declare(parser)
    return run(parser.parse_args(args[1:]))


def _no_command(args: list[str]) -> NoReturn:
    """Answer ``--help`` and ``--version``; anything else is wrong usage."""
    from airrun import __version__

    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  aircompile {name:{width}} {entry[0]}" for name, entry in _COMMANDS.items())
    parser = OptionParser("aircompile", description=_DESCRIPTION, epilog=f"commands (each has --help):\n{commands}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    parser.add_argument("--version", action="version", version=f"aircompile {__version__}")
    parsed, _rest = parser.parse_known_args(args)
    parser.error(f"unknown command {parsed.command!r}: choose from {', '.join(_COMMANDS)}")


def _build_arguments(parser: OptionParser) -> None:
    from aircompile.build_command import add_arguments

    add_arguments(parser)


def _build(args: Namespace) -> int:
    from aircompile.build_command import run

    return run(args)


def _explain_arguments(parser: OptionParser) -> None:
    from airrun.commands.explain import add_arguments

    add_arguments(parser)


def _explain(args: Namespace) -> int:
    from airrun.commands.explain import run

    return run(args)


def _no_arguments(parser: OptionParser) -> None:
    pass


def _targets(args: Namespace) -> int:
    """Print the profiles that `--target` knows by name."""
    from airrun.commands.explain_text import show_table, size
    from airschedules.targets import list_targets, load_target

    rows = []
    for name in list_targets():
        profile = load_target(name)
        ram = profile.tiers.ram
        memory = f"{size(ram.size)}" if ram.size else "unknown"
        speed = f"{ram.bandwidth / 1e9:.0f} GB/s" if ram.bandwidth else "unknown"
        gpu = profile.gpu.arch if profile.gpu else ""
        rows.append([name, " ".join(profile.cpu.isa), memory, speed, gpu, profile.description])
    show_table("Targets", ["name", "instruction sets", "RAM", "read rate", "GPU", "description"], rows)
    return 0


def _probe_arguments(parser: OptionParser) -> None:
    from airrun.commands.probe import add_arguments

    add_arguments(parser)


def _probe(args: Namespace) -> int:
    from airrun.commands.probe import run

    return run(args)


def _tune_arguments(parser: OptionParser) -> None:
    from aircompile.tune_command import add_arguments

    add_arguments(parser)


def _tune(args: Namespace) -> int:
    from aircompile.tune_command import run

    return run(args)


def _pack_arguments(parser: OptionParser) -> None:
    from aircompile.pack_command import add_arguments

    add_arguments(parser)


def _pack(args: Namespace) -> int:
    from aircompile.pack_command import run

    return run(args)


def _demo(args: Namespace) -> int:
    from aircompile.demo_command import run

    return run()


_COMMANDS: dict[str, tuple[str, Callable[[OptionParser], None], Callable[[Namespace], int]]] = {
    "build": ("compile a model into a plan", _build_arguments, _build),
    "explain": ("show where a plan's bytes and time go", _explain_arguments, _explain),
    "targets": ("list the machines that --target knows", _no_arguments, _targets),
    "probe": ("measure this machine and write its profile", _probe_arguments, _probe),
    "tune": ("measure kernels on this machine's GPU for later builds", _tune_arguments, _tune),
    "pack": ("bundle a plan and its weights for another machine", _pack_arguments, _pack),
    "demo": ("fetch a small model, compile it and run it", _no_arguments, _demo),
}
