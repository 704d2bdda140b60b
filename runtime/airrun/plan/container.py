"""The plan file: header, segments, index.

::

    0     header, little endian, see `_HEADER`: magic, format version, header size, length of the file,
          without a signature, place of the index (offset, stored bytes, bytes once inflated), place of a signature
          (offset, bytes; both zero where there is none), SHA-256 of the rest of the header, with zeros for the place
          of a signature, and of everything after it but the signature
    4096  segments in order, each at the first multiple of 4096 after the one before, zeros between
    ...   index at the next multiple of 4096: deflated JSON, see `airrun.plan.codec`
    ...   signature right after the index, where there is one, see `airrun.plan.signature`

There is one valid arrangement of given contents, so nothing can hide between the parts and equal plans
are equal files. Signing a plan adds to the file and leaves its digest as it is.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from airrun.built_here import was_built_here
from airrun.errors import PlanError
from airrun.paths import write_atomic
from airrun.plan.checks import show
from airrun.plan.codec import PLAN_CODEC
from airrun.plan.schema import FORMAT_VERSION, Plan, Segment
from airrun.plan.signature import SIGNATURE, make_signature
from airrun.plan.verify import verify, verify_rope_axis
from airrun.records import record

MAGIC = b"AIRPLAN\0"
ALIGNMENT = 4096
MAX_INDEX_NBYTES = 1 << 26
"""Of the inflated index; a model of 100 layers needs about half a megabyte."""
MAX_PLAN_NBYTES = 1 << 30
"""Of the file, which is read whole; code for several processors and GPUs takes some megabytes."""

_VERSION = struct.Struct("<8sI")
_HEADER = struct.Struct("<8sII6Q32s")
_PLACE = struct.Struct("<2Q")
_DIGEST_AT = _HEADER.size - 32
_SIGNATURE_AT = _DIGEST_AT - _PLACE.size


@record
class LoadedPlan:
    """A verified plan, in memory: what happens to its file later does not matter.

    `digest` is the SHA-256 of the contents in hex, the identity of the plan; `signature` is as it stands in the file,
    unchecked, and empty where there is none.
    """

    plan: Plan
    digest: str
    path: Path
    signature: bytes
    _data: memoryview

    def segment(self, index: int) -> memoryview:
        """The bytes of segment `index`, read-only and not copied."""
        place = self.plan.segments[index]
        return self._data[place.offset : place.offset + place.nbytes]


DEVICE_SEGMENT = "gpu"
"""The segment that holds the GPU's part of a plan (`airrun.plan.device`)."""


def has_device_plan(plan: Plan) -> bool:
    """Whether a plan has a part for GPUs."""
    return any(segment.name == DEVICE_SEGMENT for segment in plan.segments)


def encode_plan(plan: Plan, segments: Sequence[bytes]) -> bytes:
    """The bytes of a plan file.

    Parameters
    ----------
    plan
        The plan; of ``plan.segments`` the names are used, offsets and lengths are filled in.
    segments
        What each of ``plan.segments`` holds.

    Raises
    ------
    PlanError
        A plan that `decode_plan` would refuse.
    ValueError
        A number of segments other than the plan's.
    """
    places = []
    end = ALIGNMENT
    for segment, data in zip(plan.segments, segments, strict=True):
        places.append(Segment(segment.name, end, len(data)))
        end = _aligned(end + len(data))
    raw = PLAN_CODEC.dumps(replace(plan, segments=tuple(places)))
    body = bytearray(end - _HEADER.size)
    for place, data in zip(places, segments, strict=True):
        at = place.offset - _HEADER.size
        body[at : at + len(data)] = data
    result = seal(body, end, zlib.compress(raw, 9), len(raw))
    decode_plan(result, Path("plan"))
    return result


def seal(body: bytes | bytearray, index_offset: int, index: bytes, inflated_nbytes: int) -> bytes:
    """Put header and digest before `body`, everything from the header to `index_offset`, and `index` after it."""
    total = index_offset + len(index)
    numbers = (FORMAT_VERSION, _HEADER.size, total, index_offset, len(index), inflated_nbytes, 0, 0)
    data = bytearray(_HEADER.pack(MAGIC, *numbers, bytes(32)) + body + index)
    data[_DIGEST_AT : _HEADER.size] = content_digest(data)
    return bytes(data)


def content_digest(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of an unsigned plan file without the place of the digest itself."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:_SIGNATURE_AT])
    digest.update(bytes(_PLACE.size))
    digest.update(view[_HEADER.size :])
    return digest.digest()


def decode_plan(data: bytes, path: Path, *, verified: Callable[[str], bool] = lambda digest: False) -> LoadedPlan:
    """Check a plan file in memory.

    Parameters
    ----------
    path
        For messages and for `LoadedPlan.path`.
    verified
        Whether the numbers of the plan with this digest (hex) are known to be consistent: then they are not verified
        again. That nothing is damaged is always checked.

    Raises
    ------
    PlanError
        Anything that is not a complete, undamaged, consistent plan of this format version.
    """
    view = memoryview(data)
    try:
        plan, digest, signature = _decode(view)
        if not verified(digest):
            verify(plan)
            constants = plan.segments[plan.constants_segment]
            verify_rope_axis(plan, view[constants.offset : constants.offset + constants.nbytes])
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    return LoadedPlan(plan, digest, path, signature, view)


def _decode(view: memoryview) -> tuple[Plan, str, bytes]:
    if len(view) < _VERSION.size and MAGIC.startswith(bytes(view[:8])):
        raise PlanError(f"plan is truncated: {len(view)} bytes")
    if bytes(view[:8]) != MAGIC:
        raise PlanError("not a plan (it does not begin with AIRPLAN)")
    version = _VERSION.unpack_from(view)[1]
    if version > FORMAT_VERSION:
        raise PlanError(
            f"plan format {version} is newer than this airrun understands ({FORMAT_VERSION}); update aircompile"
        )
    if version != FORMAT_VERSION:
        raise PlanError(f"plan format {version} is not known; build the plan again")
    if len(view) < _HEADER.size:
        raise PlanError(f"plan is truncated: {len(view)} bytes, the header alone has {_HEADER.size}")
    header_nbytes, total, index_offset, index_nbytes, inflated_nbytes, *place, digest = _HEADER.unpack_from(view)[2:]
    if header_nbytes != _HEADER.size:
        raise PlanError(f"header of {header_nbytes} bytes, format {version} has {_HEADER.size}")
    if place not in ([0, 0], [total, SIGNATURE.size]):
        raise PlanError(f"signature at {place[0]} of {place[1]} bytes does not follow the index")
    nbytes = total + place[1]
    if len(view) != nbytes:
        what = "truncated" if len(view) < nbytes else "followed by other data"
        raise PlanError(f"plan is {what}: {len(view)} bytes, its header says {nbytes}")
    view, signature = view[:total], bytes(view[total:])
    if content_digest(view) != digest:
        raise PlanError("plan is damaged: its digest does not match its contents; build or copy it again")
    if not (ALIGNMENT <= index_offset <= total and index_offset + index_nbytes == total):
        raise PlanError(f"index at {index_offset} of {index_nbytes} bytes does not end the file of {total} bytes")
    plan = PLAN_CODEC.loads(_inflate(view[index_offset:total], inflated_nbytes))
    _check_segments(plan, view, index_offset)
    return plan, digest.hex(), signature


def _inflate(data: memoryview, nbytes: int) -> bytes:
    """Inflate to exactly `nbytes`, never holding more than that."""
    if not 0 < nbytes <= MAX_INDEX_NBYTES:
        raise PlanError(f"index of {nbytes} bytes, expected 1 to {MAX_INDEX_NBYTES}")
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, nbytes)
        # At the exact length the end marker may still be unread: room for one more byte shows which it is.
        rest = b"" if inflater.eof else inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise PlanError(f"index cannot be inflated: {error}") from None
    if len(result) != nbytes or rest or not inflater.eof or inflater.unused_data:
        raise PlanError(f"index does not inflate to the {nbytes} bytes that the header says")
    return result


def _check_segments(plan: Plan, view: memoryview, index_offset: int) -> None:
    """Every segment where the one before ends, zeros in between, the index after the last."""
    end, start = _HEADER.size, ALIGNMENT
    for i, segment in enumerate(plan.segments):
        if segment.offset != start:
            raise PlanError(f"segments[{i}] {show(segment.name)} is at {segment.offset}, expected at {start}")
        if not 0 <= segment.nbytes <= index_offset - start:
            raise PlanError(
                f"segments[{i}] {show(segment.name)} at {start} of {segment.nbytes} bytes "
                f"exceeds the {index_offset} bytes before the index"
            )
        _check_padding(view, end, start)
        end = start + segment.nbytes
        start = _aligned(end)
    if index_offset != start:
        raise PlanError(f"index is at {index_offset}, expected at {start}")
    _check_padding(view, end, start)


def _check_padding(view: memoryview, begin: int, end: int) -> None:
    if view[begin:end] != bytes(end - begin):
        raise PlanError(f"bytes {begin} to {end} between two parts are not zero")


def write_plan(path: str | os.PathLike[str], plan: Plan, segments: Sequence[bytes]) -> None:
    """Write a plan file, or leave what was there untouched; see `encode_plan` for the arguments.

    Raises
    ------
    PlanError
        A plan that would not load.
    UsageError
        A file that cannot be written.
    """
    write_atomic(Path(path), encode_plan(plan, segments))


def sign_plan(path: str | os.PathLike[str], key: Path) -> None:
    """Sign a plan file by a private key (PEM), in the place of a signature that it has.

    Raises
    ------
    PlanError, UsageError
        No plan, or no such key.
    """
    loaded = read_plan(path)
    data = bytearray(loaded.path.read_bytes())
    (total,) = struct.unpack_from("<Q", data, _VERSION.size + 4)
    _PLACE.pack_into(data, _SIGNATURE_AT, total, SIGNATURE.size)
    write_atomic(loaded.path, bytes(data[:total]) + make_signature(loaded.digest, key))


def read_plan(path: str | os.PathLike[str]) -> LoadedPlan:
    """Read, check and decode a plan file.

    It is read and not mapped: from a file that is cut off while it is mapped, the next access would end the process.

    Returns
    -------
    LoadedPlan
        The plan, with every number in range as `airrun.plan.verify` says; a plan that was built on this machine was
        verified when it was written, and its digest says that it is still the same.

    Raises
    ------
    PlanError
        An unreadable file, or anything that `decode_plan` refuses.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(len(MAGIC))
            if data == MAGIC:  # anything else may be large, and is refused by its first bytes
                nbytes = os.fstat(file.fileno()).st_size
                if nbytes > MAX_PLAN_NBYTES:
                    raise PlanError(f"{path}: plan of {nbytes} bytes, at most {MAX_PLAN_NBYTES} are allowed")
                data += file.read(nbytes - len(data))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: cannot read the plan: {getattr(error, 'strerror', None) or error}") from None
    return decode_plan(data, path, verified=was_built_here)


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
