"""A Jinja environment for templates from the internet: no access to Python, and bounds on time and size.

Jinja's own sandbox closes the way to Python's internals but not the way to a hang: nested loops, ``x ~ x`` forty
times or a field width of a billion. Here every value that an expression makes is weighed when it is made (strings,
and containers with all they hold), operations that could overshoot in a single step are estimated before they run,
and loop rounds and calls are counted against a step limit and a clock. By induction no operation ever sees more than
`MAX_WEIGHT`, so that each one is short, and the clock is looked at between them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_WEIGHT = 1 << 23  # of one value: characters, with _NODE for every element of a container
MAX_STEPS = 1_000_000  # loop rounds, calls and filters in one rendering
MAX_SECONDS = 5.0
_NODE = 16
_MAX_INT_BITS = 4096
_MAX_JSON_INDENT = 100

# Widths and precisions in printf and format strings; a nested or starred one comes from an argument.
_PRINTF_WIDTH = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\*|\d{4,}|\d*\.(?:\*|\d{4,}))")
_FORMAT_WIDTH = re.compile(r"\{[^{}]*(?:\{|:[^{}]*\d{4,})")

_STR_METHODS = frozenset(
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper".split()
)
_FILTERS = frozenset(
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string "
    "title trim truncate unique upper urlencode wordcount".split()
)


class TemplateLimitError(TemplateRuntimeError):
    """A template that asks for more time or memory than a chat needs."""


def weigh(value: object, limit: int = MAX_WEIGHT) -> int:
    """Weight of a value with all it holds; stops, and raises TemplateLimitError, as soon as it exceeds ``limit``."""
    weight, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            weight += len(item)
        elif isinstance(item, int) and item.bit_length() > _MAX_INT_BITS:
            raise TemplateLimitError("a number grows without bound")
        elif isinstance(item, Mapping):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending.extend(item)
        weight += _NODE
        if weight + _NODE * len(pending) > limit:
            raise TemplateLimitError(f"a value grows beyond {MAX_WEIGHT} characters")
    return weight


def _estimate(weight: int) -> None:
    if weight > MAX_WEIGHT:
        raise TemplateLimitError(f"a value would grow beyond {MAX_WEIGHT} characters")


def _check_printf(template: str, values: object) -> None:
    if _PRINTF_WIDTH.search(template):
        raise TemplateLimitError("a format has an excessive or computed width")
    _estimate(template.count("%") * weigh(values))


def _check_replace(text: str, old: object, new: object) -> None:
    _estimate(len(text) + text.count(str(old)) * len(str(new)))


def _check_join(separator: str, items: Iterable[object]) -> list[object]:
    items = list(items)
    _estimate(len(separator) * len(items) + weigh(items))
    return items


def _power_bits(base: object, exponent: object) -> int:
    """Most bits that an integer power can have; 0 where it is none."""
    return base.bit_length() * max(exponent, 0) if isinstance(base, int) and isinstance(exponent, int) else 0


class _QuietNamespace(Namespace):
    """A namespace whose text does not repeat its contents: it may hold itself many times over."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Instrument(NodeTransformer):
    """Puts a step counter into every loop and a weighing around everything that builds a value without a call."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        tick = nodes.ExprStmt(_filter(nodes.Const(None), "_tick"), lineno=node.lineno)
        node.body.insert(0, tick)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, "_weighed")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, "_weighed")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_weighed") if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_concat")


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; for a chat it is its contents."""

    tags = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module. ``start`` begins a rendering; one rendering at a time."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation], cache_size=0
        )
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals["namespace"] = _QuietNamespace
        self.filters = {name: self._guarded(name, self.filters[name]) for name in _FILTERS}
        self.filters |= {
            "tojson": self._guarded("tojson", self._tojson),
            "_concat": self._concat,
            "_weighed": self._weighed,
        }
        self.filters["_tick"] = self._tick
        self.start(MAX_SECONDS)

    def start(self, seconds: float) -> None:
        """Grant a rendering ``seconds`` and a fresh count of steps."""
        self._steps = 0
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def step(self) -> None:
        """Count one loop round, call or filter."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateLimitError(f"it does not end within {MAX_STEPS} steps")
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it does not end within {self._seconds:g} seconds")

    # Hooks that Jinja calls.

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return template

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the output of a template, macro or block."""
        parts, weight = [], 0
        for piece in pieces:
            self.step()
            weight += len(piece)
            _estimate(weight)
            parts.append(piece)
        return "".join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may see an attribute: of strings only the methods whose cost is known."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        return not isinstance(obj, (int, float)) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Guard ``str.format``, on top of what the sandbox does."""
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None
        template: str = value.__self__

        def guarded(*args: Any, **kwargs: Any) -> str:
            if _FORMAT_WIDTH.search(template):
                raise TemplateLimitError("a format has an excessive or computed width")
            _estimate(template.count("{") * weigh([args, kwargs]))
            return formatter(*args, **kwargs)

        return guarded

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, method or macro for the template."""
        self.step()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            method = getattr(function, "__name__", "")
            if method == "replace" and len(args) >= 2:
                _check_replace(owner, args[0], args[1])
            elif method == "join" and args:
                args = (_check_join(owner, args[0]), *args[1:])
        return self._weighed(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` if the result stays small."""
        self.step()
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
                    _estimate((len(sequence) if isinstance(sequence, str) else weigh(sequence)) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            _check_printf(left, right)
        elif operator == "**" and _power_bits(left, right) > _MAX_INT_BITS:
            raise TemplateLimitError("a number grows without bound")
        return self._weighed(super().call_binop(context, operator, left, right))

    # Filters.

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts as a step, is estimated where it can overshoot, and whose result is weighed."""
        passed = getattr(function, "jinja_pass_arg", None)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.step()
            first = 0 if passed is None else 1
            value, options = args[first], args[first + 1 :]
            if name == "replace":
                old, new = (*options, *(kwargs[key] for key in ("old", "new") if key in kwargs))[:2]
                _check_replace(str(value), old, new)
            elif name == "join":
                items = _check_join(str(options[0] if options else kwargs.get("d", "")), value)
                args = (*args[:first], items, *options)
            elif name == "format":
                _check_printf(str(value), [options, kwargs])
            elif name == "indent":
                width = options[0] if options else kwargs.get("width", 4)
                _estimate((str(value).count("\n") + 1) * (width if isinstance(width, int) else len(str(width))))
            made = function(*args, **kwargs)
            return self._metered(made) if isinstance(made, Iterator) else self._weighed(made)

        if passed is not None:
            guarded.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return guarded

    @staticmethod
    def _weighed(value: Any) -> Any:
        weigh(value)
        return value

    @staticmethod
    def _metered(items: Iterator[Any]) -> Iterator[Any]:
        """A lazy sequence whose elements are weighed together: what collects them cannot check before it is done."""
        room = MAX_WEIGHT
        for item in items:
            room -= weigh(item, room)
            yield item

    def _concat(self, values: list[object]) -> str:
        _estimate(sum(len(value) for value in values if isinstance(value, str)))
        return self.concat(map(str, values))

    @pass_context
    def _tick(self, _context: Context, _value: object) -> None:
        self.step()

    def _tojson(
        self,
        value: object,
        indent: int | str | None = None,
        ensure_ascii: bool = False,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as chat templates expect it: not escaped for HTML, unlike Jinja's own filter."""
        if indent is None and separators is None:
            return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
        if (indent if isinstance(indent, int) else len(indent or "")) > _MAX_JSON_INDENT:
            raise TemplateLimitError(f"a JSON indent exceeds {_MAX_JSON_INDENT}")
        encoder = json.JSONEncoder(indent=indent, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
        return self.concat(encoder.iterencode(value))
