"""Signatures of plans: a plan is a program, and a fleet of machines may refuse those of strangers.

Ed25519 (RFC 8032) over the plan's digest, which stands for all of its contents. Signing changes neither the digest nor
anything else of the plan, so a signed plan is the same plan.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airrun.errors import PlanError, UsageError

if TYPE_CHECKING:
    from airrun.plan.container import LoadedPlan

SIGNATURE = struct.Struct("<32s64s")
"""The public key and the signature."""

_PURPOSE = b"airrun plan\0"  # a signature of something else is none of a plan
_PRIVATE, _PUBLIC = "an ed25519 private key without a password", "an ed25519 public key"


def make_signature(digest: str, key: Path) -> bytes:
    """Sign the plan with this digest (hex) by a private key, a PEM file as ``openssl genpkey`` writes it.

    Raises
    ------
    UsageError
        No such key, or the package `cryptography` is missing.
    """
    from_pem, ed25519 = _cryptography("load_pem_private_key")
    private = _load(key, _PRIVATE, lambda data: from_pem(data, None), ed25519.Ed25519PrivateKey)
    return SIGNATURE.pack(private.public_key().public_bytes_raw(), private.sign(_message(digest)))


def require_signature(loaded: LoadedPlan, keys: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse a plan that none of the public keys, PEM files, signed.

    Raises
    ------
    PlanError
        It is not signed, by another key, or the signature is not of this plan.
    UsageError
        No such key, or the package `cryptography` is missing.
    """
    require_one_of(loaded, read_public_keys(keys))


def read_public_keys(keys: Sequence[str | os.PathLike[str]]) -> frozenset[bytes]:
    """Public keys, 32 bytes each, of PEM files.

    Raises
    ------
    UsageError
        No such key, or the package `cryptography` is missing.
    """
    from_pem, ed25519 = _cryptography("load_pem_public_key")
    return frozenset(_load(Path(k), _PUBLIC, from_pem, ed25519.Ed25519PublicKey).public_bytes_raw() for k in keys)


def require_one_of(loaded: LoadedPlan, trusted: frozenset[bytes]) -> None:
    """Refuse a plan that none of the public keys signed.

    Raises
    ------
    PlanError
        It is not signed, by another key, or the signature is not of this plan.
    """
    ed25519 = _cryptography("load_pem_public_key")[1]
    if not loaded.signature:
        raise PlanError(f"{loaded.path}: is not signed, and a signature is required")
    key, signature = SIGNATURE.unpack(loaded.signature)
    if key not in trusted:
        raise PlanError(f"{loaded.path}: is signed by another key than those required: {key.hex()[:16]}")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, _message(loaded.digest))
    except Exception:  # that of the library says nothing more
        raise PlanError(f"{loaded.path}: its signature is not of this plan") from None


def _message(digest: str) -> bytes:
    return _PURPOSE + bytes.fromhex(digest)


def _load(path: Path, what: str, from_pem: Callable[[bytes], Any], kind: type) -> Any:
    try:
        key = from_pem(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except Exception:  # whatever is wrong with it, there is one thing to be said
        key = None
    if not isinstance(key, kind):
        raise UsageError(f"{path}: is not {what} in PEM")
    return key


def _cryptography(loader: str) -> tuple[Callable[..., Any], Any]:
    """A function that reads keys, and the algorithm."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError('signatures need the package cryptography: pip install "aircompile[sign]"') from None
    return getattr(serialization, loader), ed25519
