"""Command-line options, each declared once: flags, help, type, default and environment twin.

Names and defaults follow llama.cpp. An option takes its value from its flag, else from its environment variable
``AIR_ARG_<NAME>``, else from its default. Other commands build on the same table: see `add_options`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from airrun.errors import UsageError

PREFIX = "AIR_ARG_"
LOAD_MODES = ("auto", "direct", "buffered", "mmap")
_ATTACHED = re.compile(r"-[A-Za-z](?!-?[0-9.]+$)[^-].*", re.DOTALL)  # a short flag with more behind it than a number
_TRUE, _FALSE = ("1", "true", "on", "yes"), ("0", "false", "off", "no", "")


class Option(NamedTuple):
    """One command-line option.

    Attributes
    ----------
    flags : tuple of str
        The last long one names the attribute and the environment variable, unless ``dest`` does.
    help : str
    type : callable
        Text to value; raises ValueError.
    default : object
        Lists for repeatable options, False for switches.
    metavar : str
        What the value is called in the help; empty for a switch.
    repeat : bool
        May be given several times; its environment variable holds one value per line.
    """

    flags: tuple[str, ...]
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    metavar: str = ""
    repeat: bool = False
    dest: str = ""

    @property
    def name(self) -> str:
        """Attribute of the parsed arguments."""
        return self.dest or next(flag for flag in reversed(self.flags) if flag.startswith("--"))[2:].replace("-", "_")

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper()


def _count(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(f"must be {low} or more")
        return value

    return number


def _nbytes(text: str) -> int:
    from airrun.machine.profile import parse_bytes

    try:
        return parse_bytes(text)
    except UsageError:
        raise ValueError("must be a number of bytes such as 1500MiB, 10GB or 4096") from None


def _load_mode(text: str) -> str:
    return _one_of(text, LOAD_MODES)


def _speculation(text: str) -> str:
    from airrun.generation.generate import SPECULATIONS

    return _one_of(text, SPECULATIONS)


def _one_of(text: str, names: Sequence[str]) -> str:
    if text not in names:
        raise ValueError(f"must be one of {', '.join(names)}")
    return text


def _device(text: str) -> str:
    if text not in ("auto", "cpu", "cuda"):
        raise ValueError("must be auto, cpu or cuda")
    return text


def _seed(text: str) -> int | None:
    value = int(text)
    return None if value < 0 else value


def _bias(text: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+)([+-].+)", text)
    if match is None:
        raise ValueError("must look like 15043+1.5 or 2-inf")
    return int(match[1]), float(match[2])


OPTIONS: tuple[Option, ...] = (
    Option(("--model",), "weight file of the plan; repeat it for a split model (default: found by fingerprint)",
           metavar="FILE", repeat=True, default=()),
    Option(("-p", "--prompt"), "text to continue, taken literally", metavar="TEXT"),
    Option(("-f", "--file"), "read the prompt from a file, or from stdin with -; one final newline is dropped",
           metavar="FILE"),
    Option(("-n", "--predict", "--n-predict"), "most tokens to generate; -1 until the model or the context ends",
           _count(-1), -1, "N", dest="predict"),
    Option(("-c", "--ctx-size"), "context length in tokens (default: that of the plan)", _count(1), None, "N"),
    Option(("-t", "--threads"), "threads to compute with (default: that of the plan)", _count(1), None, "N"),
    Option(("--ram",), "memory the process may take, as 1500MiB; weights that do not fit are streamed "
           "(default: that of the plan, else what is available)", _nbytes, None, "BYTES"),
    Option(("--vram",), "the same of a GPU's memory; weights that do not fit cross the bus in every step "
           "(default: that of the plan, else what is free)", _nbytes, None, "BYTES"),
    Option(("-np", "--parallel"), "generate N continuations of the prompt together, with seeds from -s on", _count(1),
           1, "N"),
    Option(("--load-mode",), "how weights are read: direct, buffered, mmap, or auto, which finds out", _load_mode,
           "auto", "MODE"),
    Option(("--device",), "where to run: cpu, cuda, or auto: a GPU if the plan has code for it and it is there",
           _device, "auto", "D"),
    Option(("--require-signature",), "refuse a plan that none of these ed25519 public keys signed; repeatable",
           metavar="KEY.pem", repeat=True, default=()),
    Option(("--zero-memory",), "fill the GPU's memory with zeros afterwards", default=False),
    Option(("--check-steps",), "wait for every kernel of the GPU, and name the step that fails; slow", default=False),
    Option(("--speculate",), "guess tokens from earlier text and verify several in one pass: none or ngram",
           _speculation, "none", "HOW"),
    Option(("-s", "--seed"), "seed of the draw; -1 takes a fresh one", _seed, None, "N"),
    Option(("--temp", "--temperature"), "temperature; 0 takes the most likely token", float, 0.8, "T", dest="temp"),
    Option(("--top-k",), "draw from the K most likely tokens; 0 is off", int, 40, "K"),
    Option(("--top-p",), "draw from the most likely tokens that reach probability P; 1 is off", float, 0.95, "P"),
    Option(("--min-p",), "drop tokens below P times the most likely one; 0 is off", float, 0.05, "P"),
    Option(("--repeat-penalty",), "penalty on tokens of the last --repeat-last-n; 1 is off", float, 1.0, "X"),
    Option(("--repeat-last-n",), "window of the penalties in tokens; 0 is off, -1 the whole context", _count(-1), 64,
           "N"),
    Option(("--frequency-penalty",), "penalty per occurrence in the window; 0 is off", float, 0.0, "X"),
    Option(("--presence-penalty",), "penalty on any occurrence in the window; 0 is off", float, 0.0, "X"),
    Option(("-l", "--logit-bias"), "add to a token's logit, as 15043+1 or 15043-inf; repeatable", _bias, (),
           "TOKEN_ID(+/-)BIAS", repeat=True),
    Option(("-r", "--reverse-prompt", "--stop"), "end before this text; repeatable", str, (), "TEXT", repeat=True),
    Option(("--ignore-eos",), "never choose an end-of-generation token", default=False),
    Option(("--chat",), "converse in the terminal; -p or -f is the first message", default=False),
    Option(("-sys", "--system-prompt"), "system prompt of a chat", metavar="TEXT"),
    Option(("--session",), "restore the state from FILE if it exists, and save it there afterwards", metavar="FILE"),
    Option(("-v", "--verbose"), "print rates and memory to stderr afterwards", default=False),
)  # fmt: skip

_BY_NAME = {option.name: option for option in OPTIONS}
_DEFAULTS_UNSHOWN = (None, False, ())

# Of llama.cpp, known to be wanted: refused with a better line than "unrecognized".
NOT_YET = ("--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file")


class _NotYet(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{'/'.join(self.option_strings)} is not implemented yet")


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose table options may come from the environment."""

    def __init__(self, prog: str, **settings: Any) -> None:
        # argparse makes a formatter for every option it is told of, and each asks for the width of the terminal, unless
        # it is given one: that was a third of declaring the options
        declaring = partial(argparse.RawDescriptionHelpFormatter, width=80)
        super().__init__(prog, allow_abbrev=False, formatter_class=declaring, **settings)
        self._table: list[Option] = []

    def format_help(self) -> str:
        """The help text, as wide as the terminal."""
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print one line and exit 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def add_options(self, names: Iterable[str]) -> None:
        """Add options of the table by name, for instance ``("model", "threads", "ctx_size")``."""
        for option in (_BY_NAME[name] for name in names):
            self._table.append(option)
            shown = "" if option.default in _DEFAULTS_UNSHOWN else f"default: {option.default}; "
            settings: dict[str, Any] = {
                "dest": option.name,
                "help": f"{option.help} ({shown}env: {option.environment})".replace("%", "%%"),
                "default": argparse.SUPPRESS,
            }
            if option.metavar:
                settings |= {"metavar": option.metavar, "type": self._converter(option)}
                settings["action"] = "append" if option.repeat else "store"
            else:
                settings["action"] = "store_true"
            self.add_argument(*option.flags, **settings)

    def add_not_yet(self) -> None:
        """Refuse the options of `NOT_YET`."""
        for flag in NOT_YET:
            self.add_argument(flag, action=_NotYet, nargs="?", help=argparse.SUPPRESS)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, then fill what no flag gave from the environment and the defaults."""
        parsed = super().parse_args(None if args is None else self._joined(args), namespace)
        for option in self._table:
            if not hasattr(parsed, option.name):
                setattr(parsed, option.name, self._from_environment(option))
        return parsed

    def _joined(self, args: Sequence[str]) -> list[str]:
        """Join a flag with the text that follows it: argparse would take a text in dashes for another flag."""
        texts = {flag: option for option in self._table if option.metavar == "TEXT" for flag in option.flags}
        joined, rest = [], iter(args)
        for arg in rest:
            if _ATTACHED.fullmatch(arg) and arg not in self._option_string_actions:
                # argparse would read llama.cpp's -fa as -f a; only numbers may be attached to a short flag.
                self.error(f"unrecognized arguments: {arg}")
            value = next(rest, None) if arg in texts else None
            if value is None:
                joined.append(arg)
            else:
                joined.append(f"{next(f for f in texts[arg].flags if f.startswith('--'))}={value}")
        return joined

    def _from_environment(self, option: Option) -> Any:
        text = os.environ.get(option.environment)
        if text is None:
            return list(option.default) if option.repeat else option.default
        try:
            if not option.metavar:
                if text.lower() not in _TRUE + _FALSE:
                    raise ValueError("must be 1 or 0")
                return text.lower() in _TRUE
            return [option.type(line) for line in text.splitlines() if line] if option.repeat else option.type(text)
        except ValueError as error:
            self.error(f"environment variable {option.environment}: {_reason(text, error)}")

    @staticmethod
    def _converter(option: Option) -> Callable[[str], Any]:
        def convert(text: str) -> Any:
            try:
                return option.type(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(_reason(text, error)) from None

        return convert


def _reason(text: str, error: ValueError) -> str:
    reason = str(error)
    return f"{text!r} {reason if reason.startswith('must') else 'is not a valid number'}"
