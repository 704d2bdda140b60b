"""Comparisons with a message: the words of `airrun.plan.verify`.

Each raises PlanError ``<path> is <value>, expected ...``; a path may be partial, see `airrun.plan.verify_steps`.
"""

from __future__ import annotations

from collections.abc import Container, Sized
from typing import NoReturn

from airrun.errors import PlanError
from airrun.plan.blocks import BLOCKS


def row_nbytes(path: str, form: str, n_cols: int) -> int:
    """Bytes of a row of `n_cols` elements of block format `form`, which must be whole blocks."""
    try:
        return BLOCKS[form].row_bytes(n_cols)
    except ValueError as error:
        fail(path, f"is wrong: {error}")


def within(path: str, value: int, low: int, high: int, what: str = "") -> None:
    """An inclusive range; where it is empty, what came before took all the room."""
    if not low <= value <= high:
        noun = f" {what}" if what else ""
        wanted = f"{low} to {high}" if low < high else str(low) if low == high else "nothing at all: no room is left"
        fail(path, f"is {value}{noun}, expected {wanted}")


def index(path: str, value: int, table: Sized, name: str) -> None:
    """A place in `table`."""
    if not 0 <= value < len(table):
        fail(path, f"is {value}, {name} has {len(table)} entries")


def one_of(path: str, value: str, known: Container[str]) -> None:
    """A word this version knows."""
    if value not in known:
        fail(path, f"is {show(value)}, which is unknown to this airrun")


def equal(path: str, value: int, wanted: int, why: str) -> None:
    """A number that follows from others."""
    if value != wanted:
        fail(path, f"is {value}, expected {wanted} from {why}")


def multiple(path: str, value: int, unit: int) -> None:
    """An aligned number."""
    if value % unit:
        fail(path, f"is {value}, not a multiple of {unit}")


def fail(path: str, reason: str) -> NoReturn:
    """The way all of them end."""
    raise PlanError(f"{path or 'plan'} {reason}")


def show(value: object) -> str:
    """A value in a few printable characters; numbers of thousands of digits cannot be printed, and need not be."""
    if type(value) is int and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
