"""`TokenizerSpec` as bytes: a checked header, then zlib over a small JSON head and plain arrays.

Numbers are stored as byte planes (all low bytes, then all second bytes, ...) and sorted columns as differences,
which zlib packs well and numpy restores at once.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from airrun.errors import PlanError
from airrun.tokenizer.pretokenizers import PRE_TOKENIZERS
from airrun.tokenizer.spec import (
    MAX_CHARSMAP_BYTES,
    MAX_MERGES,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    MERGE_MODELS,
    MODEL_WPM,
    MODELS,
    SCORE_MODELS,
    MergeTable,
    TokenizerSpec,
    TokenType,
)
from airrun.tokenizer.strings import PackedStrings

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC: Final = b"ATOK"
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<4sHHI")  # magic, version, reserved, length after decompression
_MAX_RAW_BYTES: Final = 64 << 20

_ID_FIELDS: Final = ("bos_id", "eos_id", "eot_id", "eom_id", "unk_id", "pad_id", "sep_id", "mask_id")
_FLAG_FIELDS: Final = (
    "add_bos",
    "add_eos",
    "add_space_prefix",
    "remove_extra_whitespaces",
    "lowercase",
    "strip_accents",
)
_FIM_NAMES: Final = frozenset(["prefix", "suffix", "middle", "pad", "repo", "separator"])


def spec_to_bytes(spec: TokenizerSpec) -> bytes:
    """Serialize; the same spec gives the same bytes."""
    merges = spec.merges
    head = {
        "model": spec.model,
        "pre": spec.pre,
        "n_tokens": spec.n_tokens,
        "token_bytes": len(spec.tokens.data),
        "n_merges": len(merges.left),
        "n_extra": len(merges.extra),
        "extra_bytes": len(merges.extra.data),
        "n_byte_symbols": len(merges.byte_symbols),
        "charsmap_bytes": len(spec.charsmap),
        "fim_ids": dict(sorted(spec.fim_ids.items())),
        "eog_ids": sorted(spec.eog_ids),
        "lstrip_ids": sorted(spec.lstrip_ids),
        "rstrip_ids": sorted(spec.rstrip_ids),
        "chat_template": spec.chat_template,
        "chat_templates": dict(sorted(spec.chat_templates.items())),
    }
    head |= {name: getattr(spec, name) for name in (*_ID_FIELDS, *_FLAG_FIELDS)}
    text = json.dumps(head, separators=(",", ":"), sort_keys=True).encode("ascii")
    raw = b"".join(
        [
            struct.pack("<I", len(text)),
            text,
            spec.tokens.data,
            _to_planes(spec.tokens.lengths, 2),
            spec.token_types.tobytes(),
            spec.scores.astype("<f4").tobytes(),
            merges.extra.data,
            _to_planes(merges.extra.lengths, 2),
            _to_planes(np.diff(merges.left, prepend=np.uint32(0)), 3),
            _to_planes(merges.right, 3),
            _to_planes(merges.rank, 3),
            # a merge mostly makes the token that was trained at its rank, so this difference is nearly constant
            _to_planes(merges.result - merges.rank, 4),
            _to_planes(merges.byte_symbols, 3),
            spec.charsmap,
        ]
    )
    return _HEADER.pack(_MAGIC, _VERSION, 0, len(raw)) + zlib.compress(raw, 9)


def spec_from_bytes(data: bytes | memoryview) -> TokenizerSpec:
    """Inverse of `spec_to_bytes`, safe on any input.

    Raises
    ------
    PlanError
        The bytes are damaged, too large or of a newer version.
    """
    cursor = _Cursor(_decompress(memoryview(data)))
    head = _Head(cursor.take(struct.unpack("<I", cursor.take(4))[0]))
    model, pre = head.text("model"), head.text("pre")
    if model not in MODELS or pre not in PRE_TOKENIZERS:
        raise _damaged(f"unknown kind {model!r} with pre-tokenizer {pre!r}")

    n_tokens = head.count("n_tokens", MAX_TOKENS, least=1)
    tokens = _read_strings(cursor, n_tokens, head.count("token_bytes", _MAX_RAW_BYTES), "token")
    types = np.frombuffer(cursor.take(n_tokens), np.uint8)
    if types.max() > max(TokenType):
        raise _damaged("unknown token type")
    scores = np.frombuffer(cursor.take(4 * n_tokens if model in SCORE_MODELS else 0), "<f4").astype(np.float32)
    if np.isnan(scores).any():
        raise _damaged("a token score is NaN")
    merges = _read_merges(cursor, head, n_tokens)
    if (len(merges.byte_symbols) > 0) != (model in MERGE_MODELS and PRE_TOKENIZERS[pre].byte_level):
        raise _damaged("byte symbols do not fit the pre-tokenizer")
    charsmap = bytes(cursor.take(head.count("charsmap_bytes", MAX_CHARSMAP_BYTES)))
    cursor.finish()

    ids: dict[str, Any] = {name: head.token_id(name, n_tokens) for name in _ID_FIELDS}
    flags: dict[str, Any] = {name: head.flag(name) for name in _FLAG_FIELDS}
    for flag, needed in (("add_bos", "bos_id"), ("add_eos", "sep_id" if model == MODEL_WPM else "eos_id")):
        if flags[flag] and ids[needed] is None:
            raise _damaged(f"{flag} without {needed}")
    return TokenizerSpec(
        model=model,
        pre=pre,
        tokens=tokens,
        scores=scores,
        token_types=types,
        merges=merges,
        **ids,
        **flags,
        charsmap=charsmap,
        fim_ids=head.fim_ids(n_tokens),
        eog_ids=head.id_set("eog_ids", n_tokens),
        lstrip_ids=head.id_set("lstrip_ids", n_tokens),
        rstrip_ids=head.id_set("rstrip_ids", n_tokens),
        chat_template=head.optional_text("chat_template"),
        chat_templates=head.texts("chat_templates"),
    )


def _damaged(reason: str) -> PlanError:
    return PlanError(f"tokenizer section of the plan is damaged: {reason}")


def _decompress(data: memoryview) -> memoryview:
    if len(data) < _HEADER.size:
        raise _damaged("it ends inside its header")
    magic, version, reserved, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged("wrong magic number")
    if version > _VERSION:
        raise PlanError(f"tokenizer section has format version {version}; this runtime reads up to {_VERSION}")
    if reserved or not version:
        raise _damaged("impossible header")
    if version < _VERSION:
        raise PlanError(f"tokenizer section has format version {version}, which is too old: build the plan again")
    if length > _MAX_RAW_BYTES:
        raise _damaged(f"it claims {length} bytes, at most {_MAX_RAW_BYTES} are allowed")
    inflate = zlib.decompressobj()
    try:
        # one byte more than promised, so that a longer stream shows
        raw = inflate.decompress(data[_HEADER.size :], length + 1)
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if len(raw) != length or not inflate.eof or inflate.unused_data:
        raise _damaged("its length is not what the header says")
    return memoryview(raw)


class _Cursor:
    """Reads consecutive stretches and refuses to pass the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._data):
            raise _damaged(f"it ends at byte {len(self._data)}, inside a field that ends at {end}")
        part = self._data[self._at : end]
        self._at = end
        return part

    def finish(self) -> None:
        if self._at != len(self._data):
            raise _damaged(f"{len(self._data) - self._at} bytes too many")


class _Head:
    """The JSON head; every getter checks type and range."""

    def __init__(self, text: memoryview) -> None:
        try:
            values = json.loads(bytes(text).decode("ascii"))
        except (ValueError, RecursionError):
            raise _damaged("its head is not JSON") from None
        if not isinstance(values, dict):
            raise _damaged("its head is not an object")
        self._values: dict[str, object] = values

    def _get(self, name: str) -> object:
        if name not in self._values:
            raise _damaged(f"{name} is missing")
        return self._values[name]

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise _damaged(f"{name} is not text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._get(name) is None else self.text(name)

    def texts(self, name: str) -> dict[str, str]:
        value = self._get(name)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise _damaged(f"{name} is not a table of texts")
        return value

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise _damaged(f"{name} is not a boolean")
        return value

    def count(self, name: str, most: int, least: int = 0) -> int:
        return _checked_int(self._get(name), name, least, most)

    def token_id(self, name: str, n_tokens: int) -> int | None:
        value = self._get(name)
        return None if value is None else _checked_int(value, name, 0, n_tokens - 1)

    def id_set(self, name: str, n_tokens: int) -> frozenset[int]:
        value = self._get(name)
        if not isinstance(value, list):
            raise _damaged(f"{name} is not a list")
        return frozenset(_checked_int(v, name, 0, n_tokens - 1) for v in value)

    def fim_ids(self, n_tokens: int) -> dict[str, int]:
        value = self._get("fim_ids")
        if not isinstance(value, dict) or not value.keys() <= _FIM_NAMES:
            raise _damaged("fim_ids is not a table of known names")
        return {name: _checked_int(v, "fim_ids", 0, n_tokens - 1) for name, v in value.items()}


def _checked_int(value: object, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _damaged(f"{name} is not an integer from {least} to {most}")
    return value


def _read_strings(cursor: _Cursor, n: int, n_bytes: int, what: str) -> PackedStrings:
    data = bytes(cursor.take(n_bytes))
    lengths = _from_planes(cursor.take(2 * n), 2)
    ends = np.cumsum(lengths, dtype=np.int64)
    if n and int(lengths.min()) == 0:
        raise _damaged(f"empty {what}")
    if (int(ends[-1]) if n else 0) != n_bytes:
        raise _damaged(f"{what} lengths do not add up")
    return PackedStrings(data, ends)


def _read_merges(cursor: _Cursor, head: _Head, n_tokens: int) -> MergeTable:
    n_extra = head.count("n_extra", 3 * MAX_MERGES)
    extra = _read_strings(cursor, n_extra, head.count("extra_bytes", _MAX_RAW_BYTES), "merge symbol")
    n = head.count("n_merges", MAX_MERGES)
    left = np.cumsum(_from_planes(cursor.take(3 * n), 3), dtype=np.uint32)
    right = _from_planes(cursor.take(3 * n), 3)
    rank = _from_planes(cursor.take(3 * n), 3)
    result = _from_planes(cursor.take(4 * n), 4) + rank
    byte_symbols = _from_planes(cursor.take(3 * head.count("n_byte_symbols", 256)), 3)
    if len(byte_symbols) not in (0, 256):
        raise _damaged("incomplete byte symbols")
    n_symbols = n_tokens + n_extra
    if n:
        if max(int(column.max()) for column in (left, right, result)) >= n_symbols:
            raise _damaged("a merge names a symbol that does not exist")
        step_left, step_right = np.diff(left.astype(np.int64)), np.diff(right.astype(np.int64))
        if ((step_left < 0) | ((step_left == 0) & (step_right <= 0))).any():
            raise _damaged("merges are not in order")
    if len(byte_symbols) and int(byte_symbols.max()) > n_symbols:
        raise _damaged("a byte names a symbol that does not exist")
    return MergeTable(left, right, rank, result, extra, byte_symbols)


def _to_planes(values: NDArray[Any], width: int) -> bytes:
    octets = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(octets[:, :width].T).tobytes()


def _from_planes(data: memoryview, width: int) -> NDArray[np.uint32]:
    planes = np.frombuffer(data, np.uint8).reshape(width, -1)
    octets = np.zeros((planes.shape[1], 4), np.uint8)
    octets[:, :width] = planes.T
    return octets.view("<u4").reshape(-1).astype(np.uint32, copy=False)


assert MAX_TOKENS + 3 * MAX_MERGES < 1 << 25, "symbol ids are bounded"
assert MAX_TOKEN_BYTES < 1 << 16, "lengths are stored in two planes"
