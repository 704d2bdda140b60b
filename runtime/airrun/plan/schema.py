"""What a plan says: plain data, written by the compiler and replayed by the runtime.

A plan is a template that holds for every memory budget and every number of tokens; `airrun.replay.bind` turns
it into addresses. References between tables are indices, checked when a plan is loaded.
"""

from airrun.records import record

FORMAT_VERSION = 2

POINTERS_PER_STEP = 8
"""Pointer arguments of every kernel."""

PANEL_ROWS = 16
"""Rows of a panel, see `Weight`."""

ACCESSES = ("weight", "pinned", "row_gather", "experts")
"""How a tensor is read: whole, as part of a `Weight`; whole and always in memory; row by row from its file; as a bank
of matrices, of which a step reads those that its tokens chose."""

ARCHITECTURES = ("x86_64", "aarch64")

DTYPES = {"float64": 8, "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}
"""Element types of constants, by their bytes."""

KV_FORMATS = ("F32", "F16", "Q8_0", "Q4_0")
"""Formats of the rows of a KV cache, of those in `plan.blocks`."""


@record
class WeightFile:
    """A file that holds weights, known by fingerprint and never by path.

    `name` is what the file was called when the plan was built: a hint for messages and for the search
    beside the plan. `header_sha256` digests the first `header_nbytes` bytes, everything before the
    tensor data (metadata and tensor table). `name` is no path: it has no separators.
    """

    name: str
    nbytes: int
    header_nbytes: int
    header_sha256: str


@record
class Tensor:
    """A tensor as it stands in a weight file: bytes [offset, offset + nbytes) of `files[file]`, after its header.

    `shape` is row-major, so the last entry is the contiguous one; `format` is a name of `airrun.plan.blocks.BLOCKS`,
    and `nbytes` is exactly what both need. `access` is one of `ACCESSES`. A step reads a 'row_gather' tensor as its
    operand 0, by the row numbers of the input that is its operand 1; such a tensor can be part of a weight as well. An
    'experts' tensor is [matrices, rows, columns], with whole panels of rows, and the only part of its weight.
    """

    name: str
    file: int
    offset: int
    nbytes: int
    format: str
    shape: tuple[int, ...]
    access: str


@record
class WeightPart:
    """Rows of a fused weight that come from one tensor: all of it, starting at panel `first_panel`."""

    tensor: int
    first_panel: int


@record
class Weight:
    """A matrix as the kernels read it: in panels, `panel_nbytes` per 16 rows, interleaved by kernel `pack`.

    Fused projections keep their members as `parts`, which follow each other, each padded to whole panels; all parts
    have the weight's format and `n_cols`. `n_rows` counts the rows of the tensors, without padding or with it;
    `nbytes` includes the padding. `layer` is -1 for weights of no layer. `pack` is the symbol of one of the plan's
    kernels. A part is read and kept in chunks of `chunk_panels` panels, its last one with what is left
    (`airrun.plan.chunks`).
    """

    name: str
    layer: int
    format: str
    n_rows: int
    n_cols: int
    nbytes: int
    panel_nbytes: int
    pack: str
    chunk_panels: int
    parts: tuple[WeightPart, ...]


@record
class Stream:
    """How chunks are read that are not kept in memory: by `readers` threads, into `slots` buffers in turn."""

    readers: int
    slots: int


@record
class Constant:
    """A small array carried by the plan, at `offset` (a multiple of the element size) in the segment of constants.

    `dtype` is one of `DTYPES`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@record
class Buffer:
    """Activations of one kind. Both figures are bytes per token of the largest batch: the arena for n
    tokens has every buffer at `offset * n` with `nbytes * n` bytes (both are multiples of 64)."""

    name: str
    offset: int
    nbytes: int


@record
class Operand:
    """A pointer argument: `offset` bytes into entry `index` of a space.

    Spaces: 'none'; 'weight'; 'experts' (where the matrices of weight `index`, a bank of experts, are: int64 bytes after
    the bank, an entry each); 'tensor' (as it stands in the file); 'buffer'; 'constant'; 'input' (index into
    INPUTS); 'kv' and 'state' (cache `index`); 'logits'; 'scratch'. The spaces without entries have index 0, and 'none'
    has offset 0 too. `offset` lies inside the entry; inside one token's share where it grows with the batch.
    """

    space: str
    index: int
    offset: int


SPACES = ("none", "weight", "experts", "tensor", "buffer", "constant", "input", "kv", "state", "logits", "scratch")

INPUTS = ("token_ids", "cells", "sequences", "output_rows", "rope", "block_table", "state_slots")
"""What the host fills before a step runs. int32 unless said otherwise:
token_ids [n]; cells [n] (place of each token in its sequence); sequences [n] (row of the block table);
output_rows [n_outputs]; rope float32 [n, 2, rope.n_pairs] (cosines, then sines);
block_table [n_sequences, max_blocks + ring_blocks];
state_slots [n] (where the states of each token's sequence are; -1 - that for the first token of a sequence)."""


@record
class Step:
    """One kernel call, spread over the workers.

    It has `tasks` tasks, times the number of groups of `tokens_per_task` rows if that is not 0.
    `rows`: 'tokens' or 'outputs', what the kernel is told as its number of rows.
    A step with an operand that has a row per output ('logits', input 'output_rows') has rows 'outputs'.
    A step has at most one operand of space 'weight', and then as operand 0, at the beginning of a panel: its tasks are
    panels, from there on. All programs read the same weights in the same order. A step on a bank of experts has all of
    it as operand 0, the order of its rows (`airkernels.cpu.row_order`) as operand 4 and its 'experts' as operand 5. Its
    tasks are panels of all its matrices, or with `tokens_per_task` 1, of those that a token chose. Banks do not count
    in the order of weights, and can be read matrix by matrix: a chunk of one is a matrix.
    `layer`: 0 to n_layers - 1 in phase 'layer'; elsewhere it may be -1.
    `sync`: every worker waits here until all tasks so far are done.
    `phase`: 'embed' (skipped when the caller gives embeddings), 'layer', 'head' (skipped without outputs).
    """

    kind: str
    device: str
    stream: int
    kernel: int
    layer: int
    phase: str
    label: str
    rows: str
    tasks: int
    tokens_per_task: int
    sync: bool
    operands: tuple[Operand, ...]


STEP_KINDS = ("call",)
"""'collective' is reserved."""

DEVICES = ("cpu",)
"""'cuda' is reserved."""

PHASES = ("embed", "layer", "head")
ROWS = ("tokens", "outputs")


@record
class Program:
    """The steps for batches of up to `max_tokens` tokens; a plan lists its programs by increasing `max_tokens`."""

    name: str
    max_tokens: int
    steps: tuple[Step, ...]


@record
class Kernel:
    """An entry point that every library of the plan exports, and what `explain` says about it."""

    symbol: str
    op: str
    format: str
    shape: tuple[int, ...]
    schedule: str
    reason: str


@record
class Library:
    """A shared object for one instruction set: segment `segment`, needing CPU `features`.

    `arch` is one of `ARCHITECTURES`; `calls` are the calls of the Linux kernel without which the code does not run, by
    name; `scratch_nbytes` of working memory for each worker.
    """

    isa: str
    arch: str
    features: tuple[str, ...]
    calls: tuple[str, ...]
    segment: int
    scratch_nbytes: int


@record
class KvLayer:
    """One layer's cache: a block takes `block_nbytes` and holds, per KV head, the keys of its cells and then their
    values. A value is a row of `v_dim` elements in its format. Of keys, which have `head_dim`, each unit of a row (an
    element, or the scale or a word of codes of a block of elements) stands next to the same unit of the other cells.

    With `ring`, block i of a sequence is entry `max_blocks + i % ring_blocks` of its row of the block table.
    """

    n_kv_heads: int
    head_dim: int
    v_dim: int
    block_nbytes: int
    ring: bool


@record
class KvCache:
    """The cache's shape: blocks of `block_cells` tokens, of rows in formats that are among `KV_FORMATS`.

    `layers` has an entry per cache, which space 'kv' counts; model layers that share one, or have none, make them
    fewer. A row of the block table has `max_blocks` entries, enough for `ctx_size` tokens, and `ring_blocks` more for
    layers that look back at no more than `window` tokens (the token itself counted) from each: enough for those and
    the largest batch. Both are 0 if there are none.
    """

    block_cells: int
    max_blocks: int
    ring_blocks: int
    window: int
    keys: str
    values: str
    layers: tuple[KvLayer, ...]


@record
class StateCache:
    """What one operator carries from each token of a sequence to the next: `nbytes` per sequence, a multiple of 64.

    The states of the sequence in slot s begin at s * nbytes. A first token starts from zeros, whatever is there.
    """

    name: str
    nbytes: int


@record
class Rope:
    """Rotary positions: angle of pair i at position p is `p[axis[i]] * inverse_frequency[i]`; its cosine and sine are
    scaled by `magnitude[i]`. The arrays are constants, by index, with an entry per pair: `inverse_frequency` and
    `magnitude` float64, `axis` int32. A model with several tables has the pairs of all of them, one table after the
    other; `n_pairs` is 0 for a model without."""

    n_pairs: int
    inverse_frequency: int
    axis: int
    magnitude: int
    n_axes: int


@record
class Model:
    """What the runtime needs to know of the model itself. `hidden` is the buffer that embeddings are written to,
    float32 [n, n_embd]. A row of logits takes `logits_stride` float32, at least `n_vocab`."""

    name: str
    architecture: str
    n_vocab: int
    n_embd: int
    n_layers: int
    n_ctx_train: int
    n_params: int
    hidden: int
    logits_stride: int


@record
class Choice:
    """The decisions a user made, or that were made for them.

    `threads` is 0 where the runtime decides, `ram_nbytes` where no budget was given.
    """

    target: str
    ctx_size: int
    threads: int
    activations: str
    kv_type: str
    tune: str
    ram_nbytes: int


@record
class Cost:
    """What a program moves and computes per token, and the machine numbers the prediction uses.

    A rate of 0 is unknown; `decode_overhead_s` is what a token costs beyond reading its weights, in seconds.
    `estimates` are kernels whose rates were not measured but taken from similar ones.
    """

    weight_nbytes_per_token: int
    macs_per_token: int
    ram_bytes_per_s: float
    disk_bytes_per_s: float
    decode_overhead_s: float
    prefill_macs_per_s: float
    estimates: tuple[str, ...]


@record
class Segment:
    """Bytes of the plan file, at a multiple of 4096; the digest in the file's header covers them."""

    name: str
    offset: int
    nbytes: int


@record
class Plan:
    """Everything. `arena_nbytes` is per token; `keep_order` lists every chunk once, most worth keeping first.

    `tokenizer` and `constants_segment` are indices of segments.
    """

    generator: str
    model: Model
    choice: Choice
    files: tuple[WeightFile, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[Weight, ...]
    keep_order: tuple[int, ...]
    stream: Stream
    constants: tuple[Constant, ...]
    buffers: tuple[Buffer, ...]
    arena_nbytes: int
    kv: KvCache
    states: tuple[StateCache, ...]
    rope: Rope
    kernels: tuple[Kernel, ...]
    programs: tuple[Program, ...]
    libraries: tuple[Library, ...]
    cost: Cost
    tokenizer: int
    constants_segment: int
    segments: tuple[Segment, ...]
