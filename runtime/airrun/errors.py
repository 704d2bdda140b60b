"""Errors that a user can act on: each is one line that names what was wrong and where."""

from __future__ import annotations


class AirError(Exception):
    """Base of every error this product reports on purpose; command lines print it and exit 1."""


class ModelFileError(AirError):
    """A model file that is damaged, truncated, hostile or of an unsupported kind."""


class UnsupportedError(AirError):
    """A valid input that needs something this version does not implement."""


class PlanError(AirError):
    """A plan that is damaged, too new, or that does not match its weight file or this machine."""


class WeightFileError(AirError):
    """A weight file that cannot be read, or is no longer what it was, while a model runs."""


class BudgetError(AirError):
    """A memory budget in which the plan cannot run."""


class PackageError(AirError):
    """A package that is damaged, hostile or incomplete."""


class UsageError(AirError):
    """A request that contradicts itself or its limits (empty prompt, token id out of range, full context)."""
