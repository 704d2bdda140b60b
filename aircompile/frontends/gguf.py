"""GGUF v2 and v3: metadata and tensor locations of a model file, without its weights.

A model file from the internet is hostile input: every count, length and offset is checked against a cap and against
the file size before anything is allocated or read for it. Only the header is read (see ``gguf_cursor``).

Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import io
import itertools
import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from aircompile.frontends.gguf_cursor import Cursor
from airrun.errors import ModelFileError, UnsupportedError
from airrun.plan.blocks import BY_ID

# Caps, as in gguf_cursor: far above what real files hold.
MAX_METADATA = 1 << 16  # real files have 20 to 60 entries
MAX_TENSORS = 1 << 20  # the largest mixtures with unmerged experts have under 100,000
MAX_KEY_BYTES = (1 << 16) - 1  # set by the specification
MAX_NAME_BYTES = 1024  # the specification says 64; some converters write longer ones, and a name is only a key here
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 30  # 32 in practice; above a huge page it means nothing
MAX_SHARDS = 1 << 12  # 50 GB shards: 200 TB
MAX_ELEMENTS = (1 << 63) - 1  # ggml counts elements in int64

_DEFAULT_ALIGNMENT = 32
_UINT32 = 4
_SHARD_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class WeightFile:
    """One file of a model: its size, and the bytes before its tensor data (`header_nbytes`)."""

    path: Path
    nbytes: int
    header_nbytes: int


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `offset` and `nbytes` are absolute bytes in ``files[file]``; `shape` is row-major.

    GGUF stores dimensions innermost first; `shape` has them reversed, as numpy does, so a matrix is (rows, columns)
    and its last entry is the contiguous one. `format` is a name of ``airrun.plan.blocks.BLOCKS``.
    """

    name: str
    file: int
    offset: int
    nbytes: int
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GGUFModel:
    """A whole model, of one file or several shards.

    `metadata` maps keys to str, int, float, bool, list of str (bytes where an entry is not UTF-8, as byte-level
    vocabularies may hold), numpy array of numbers, or list of those for nested arrays. Of a split model it is the
    first shard's.
    """

    files: tuple[WeightFile, ...]
    metadata: dict[str, object]
    tensors: dict[str, TensorInfo]


def read_gguf(path: str | Path) -> GGUFModel:
    """Read the header of a GGUF model, and of all its shards if it is split.

    Parameters
    ----------
    path
        A ``.gguf`` file; of a split model (``NAME-00001-of-0000N.gguf``) any shard.

    Returns
    -------
    GGUFModel
        Every tensor lies inside its file, is aligned, and overlaps no other.

    Raises
    ------
    ModelFileError
        Damaged, truncated or hostile file, or a missing shard; names file, offset and reason.
    UnsupportedError
        A GGUF version or byte order that is not read.
    """
    path = Path(path)
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) <= 1:
        shard = _read_file(path, 0)
        count = _split_key(shard, "split.count", 1)
        if count > 1:
            raise ModelFileError(
                f"{path}: shard {_split_key(shard, 'split.no', 0) + 1} of a model split into {count} files, but its "
                f"name does not end in -NNNNN-of-{count:05d}.gguf, so the others cannot be found"
            )
        return GGUFModel((shard.file,), shard.metadata, shard.tensors)

    n_shards = int(match["count"])
    if n_shards > MAX_SHARDS:
        raise ModelFileError(f"{path}: the name says {n_shards} shards, more than {MAX_SHARDS}")
    if not 1 <= int(match["number"]) <= n_shards:
        raise ModelFileError(f"{path}: the name says shard {int(match['number'])} of {n_shards}")
    paths = [path.with_name(f"{match['prefix']}-{i + 1:05d}-of-{n_shards:05d}.gguf") for i in range(n_shards)]
    missing = [sibling for sibling in paths if not sibling.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelFileError(f"{missing[0]}: this shard of a model split into {n_shards} files is missing{more}")
    return _join([_read_file(sibling, i) for i, sibling in enumerate(paths)])


@dataclass(frozen=True)
class _Shard:
    file: WeightFile
    metadata: dict[str, object]
    tensors: dict[str, TensorInfo]


def _join(shards: list[_Shard]) -> GGUFModel:
    """Check that shards, in the order of their names, make one model, and merge their tensors."""
    tensors: dict[str, TensorInfo] = {}
    for i, shard in enumerate(shards):
        path = shard.file.path
        for key, expected in (("split.count", len(shards)), ("split.no", i)):
            found = _split_key(shard, key, None)
            if found != expected:
                raise ModelFileError(f"{path}: {key} is {found}, but by its name it should be {expected}")
        for name, tensor in shard.tensors.items():
            if name in tensors:
                raise ModelFileError(f"{path}: tensor {name!r} is also in {shards[tensors[name].file].file.path}")
            tensors[name] = tensor
    total = _split_key(shards[0], "split.tensors.count", None)
    if total != len(tensors):
        raise ModelFileError(
            f"{shards[0].file.path}: split.tensors.count is {total}, but the {len(shards)} shards "
            f"have {len(tensors)} tensors"
        )
    return GGUFModel(tuple(shard.file for shard in shards), shards[0].metadata, tensors)


def _split_key(shard: _Shard, key: str, default: int | None) -> int:
    value = shard.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise ModelFileError(f"{shard.file.path}: {key} is {_brief(value)}, not a count")
    return value


def _brief(value: object) -> str:
    """A value as it may stand in an error line: whole if short, never a vocabulary."""
    if value is None:
        return "missing"
    if isinstance(value, (int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


def _read_file(path: Path, index: int) -> _Shard:
    try:
        status = path.stat()
        # opening a pipe or a device could block forever
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path}: not a regular file")
        with io.FileIO(path) as stream:
            return _parse(Cursor(stream, path, status.st_size), index)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from error


def _parse(cursor: Cursor, index: int) -> _Shard:
    path, size = cursor.path, cursor.size
    cursor.need(4, "the magic")
    if cursor.buffer[:4] != b"GGUF":
        raise ModelFileError(f"{path}: not a GGUF file: it starts with {cursor.buffer[:4]!r}")
    cursor.pos = 4
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError(f"{path}: a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise UnsupportedError(f"{path}: GGUF version {version}; versions 2 and 3 are read")
    at = cursor.pos
    n_tensors = cursor.u64("the tensor count")
    n_metadata = cursor.u64("the metadata count")
    # a tensor entry takes at least 33 bytes (name of one byte, no dimensions), a metadata entry 14
    cursor.check_count(n_tensors, MAX_TENSORS, 33, "the tensor table", at)
    cursor.check_count(n_metadata, MAX_METADATA, 14, "the metadata", at + 8)

    metadata: dict[str, object] = {}
    alignment = _DEFAULT_ALIGNMENT
    for i in range(n_metadata):
        at = cursor.pos
        key = cursor.name(MAX_KEY_BYTES, f"the key of metadata entry {i}")
        if key in metadata:
            cursor.fail(f"duplicate key {key!r}", at)
        kind = cursor.u32(f"the type of {key!r}")
        metadata[key] = cursor.value(kind, repr(key))
        if key == "general.alignment":
            alignment = _alignment(metadata[key], kind, cursor, at)

    entries = [_tensor_entry(cursor, i) for i in range(n_tensors)]
    data_start = -(-cursor.pos // alignment) * alignment
    tensors = _place(entries, data_start, alignment, cursor, index)
    # a file without tensors (a bare vocabulary, the first shard of some models) need not be padded
    return _Shard(WeightFile(path, size, min(data_start, size)), metadata, tensors)


def _alignment(value: object, kind: int, cursor: Cursor, at: int) -> int:
    if kind != _UINT32 or not isinstance(value, int):
        cursor.fail(f"general.alignment has type {kind}, not 4 (uint32)", at)
    if value == 0 or value & (value - 1) or value > MAX_ALIGNMENT:
        cursor.fail(f"general.alignment is {value}, not a power of two up to {MAX_ALIGNMENT}", at)
    return value


@dataclass(frozen=True)
class _Entry:
    """One row of the tensor table; `at` is where it stands, `offset` counts from the start of the data section."""

    at: int
    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int


def _tensor_entry(cursor: Cursor, i: int) -> _Entry:
    at = cursor.pos
    name = cursor.name(MAX_NAME_BYTES, f"the name of tensor {i}")
    n_dims = cursor.u32(f"the number of dimensions of {name!r}")
    if n_dims > MAX_DIMS:
        cursor.fail(f"tensor {name!r} has {n_dims} dimensions, more than {MAX_DIMS}", at)
    dims = tuple(cursor.u64(f"dimension {d} of {name!r}") for d in range(n_dims))
    kind = cursor.u32(f"the type of {name!r}")
    return _Entry(at, name, dims, kind, cursor.u64(f"the offset of {name!r}"))


def _place(entries: list[_Entry], data_start: int, alignment: int, cursor: Cursor, index: int) -> dict[str, TensorInfo]:
    """Check the tensor table against the file: known types, whole blocks, in bounds, aligned, no two overlapping."""
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, _Entry]] = []
    for entry in entries:
        name, at = entry.name, entry.at
        if name in tensors:
            cursor.fail(f"duplicate tensor {name!r}", at)
        block_type = BY_ID.get(entry.kind)
        if block_type is None:
            cursor.fail(f"tensor {name!r} has unknown type {entry.kind}", at)
        n_elements = math.prod(entry.dims)
        # an empty tensor has no use in a model, and would hide an overflow from the size checks below
        if not 0 < n_elements <= MAX_ELEMENTS:
            cursor.fail(f"tensor {name!r} of shape {entry.dims[::-1]} has {n_elements} elements", at)
        columns = entry.dims[0] if entry.dims else 1
        if columns % block_type.block:
            cursor.fail(
                f"tensor {name!r} has rows of {columns} elements, not a multiple of the {block_type.block} "
                f"of a {block_type.name} block",
                at,
            )
        nbytes = n_elements // block_type.block * block_type.nbytes
        start = data_start + entry.offset
        if entry.offset % alignment:
            cursor.fail(f"tensor {name!r} has offset {entry.offset}, not a multiple of the alignment {alignment}", at)
        if start + nbytes > cursor.size:
            cursor.fail(
                f"tensor {name!r} takes bytes {start} to {start + nbytes}, the file has {cursor.size} (truncated?)", at
            )
        tensors[name] = TensorInfo(name, index, start, nbytes, block_type.name, entry.dims[::-1])
        spans.append((start, start + nbytes, entry))
    spans.sort(key=lambda span: span[0])
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            cursor.fail(f"tensor {second.name!r} overlaps tensor {first.name!r} at byte {start}", second.at)
    return tensors
