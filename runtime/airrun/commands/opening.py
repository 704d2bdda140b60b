"""From a file on the command line to an engine: what kind of file it is decides who opens it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airrun.built_here import claimed_digest, was_built_here
from airrun.errors import ModelFileError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from airrun.engine import Engine

_NOT_YET = {".onnx": "ONNX", ".safetensors": "safetensors"}


def open_engine(path: str, model: Sequence[str] = (), **options: Any) -> Engine:
    """Open a plan, or a GGUF model, which is compiled first unless the cache has its plan.

    Parameters
    ----------
    path : str
        Plan or model file.
    model : sequence of str
        Weight files of a plan; found by fingerprint where empty.
    options
        Those of `Engine.from_plan`.

    Raises
    ------
    ModelFileError, UnsupportedError, UsageError
        If the file cannot be read, is of a kind that cannot be run, or ``model`` comes with a model.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _NOT_YET:
        raise UnsupportedError(f"{path}: {_NOT_YET[suffix]} models are not supported yet; use GGUF")
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from None
    # nothing here calls BLAS, whose threads cost more to start than all of ours together
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if is_gguf or suffix == ".gguf":
        if model:
            raise UsageError(f"--model gives the weights of a plan, but {path} is a model itself")
        from airrun.engine import Engine

        return _told(Engine.from_gguf(path, **options))
    if not options.get("require_signature"):  # then it is refused, or from someone who is trusted
        _announce(path)
    # what is made here lives as long as the process: the collector would look through it again and again, and at exit
    gc.disable()
    try:
        from airrun.engine import Engine

        return _told(Engine.from_plan(path, list(model) or None, **options))
    finally:
        gc.freeze()
        gc.enable()


def _told(engine: Engine) -> Engine:
    """The engine, having said on stderr if it runs on the processor though it was built for a GPU."""
    if engine.no_gpu:
        print(f"note: running on the processor: {engine.no_gpu}", file=sys.stderr)
    return engine


def _announce(path: str) -> None:
    """Say on stderr that a plan comes from elsewhere, before any of its code is loaded."""
    digest = claimed_digest(path)
    if digest is not None and not was_built_here(digest):
        print(
            f"note: {path} was not built on this machine; a plan is a program, trust whoever sent it", file=sys.stderr
        )
