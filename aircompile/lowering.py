"""Selection: every operator of the graph becomes kernel calls.

One function per operator type. A call names its kernel by spec and its pointers by what they point to;
addresses of values are filled in by the memory plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aircompile import operators as ops
from aircompile.graph import Graph, Operator
from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.attention import BLOCK_CELLS, CacheLayout, RopeShape
from airkernels.cpu.isa import PANEL
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS
from airrun.errors import UnsupportedError
from airrun.plan.schema import INPUTS
from airschedules.specs import (
    AttentionSpec,
    GatedSpec,
    GatherSpec,
    KernelSpec,
    MatmulSpec,
    NormSpec,
    PackSpec,
    QuantizeSpec,
    ReadProbeSpec,
    RopeStoreSpec,
    SelectSpec,
)

_GATED_CHUNK = 256
"""Columns per task of a gated activation: small enough to share one row between threads."""

_DIGITS = {"float32": 0, "q8": 1, "q16": 2}
"""Digits of each type of activations."""

_ATTENTION_GROUP = 8
"""Tokens per attention task in prefill."""


@dataclass(frozen=True)
class Pointer:
    """A pointer argument before the memory plan: an entry of a space by name, and an offset in bytes.

    Space 'value' is an activation; the others are those of the plan.
    """

    space: str
    name: str = ""
    offset: int = 0


NOTHING = Pointer("none")


@dataclass(frozen=True)
class Call:
    """A kernel call: the step of the plan before addresses."""

    spec: KernelSpec
    operator: Operator
    rows: str
    tasks: int
    tokens_per_task: int
    sync: bool
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class PanelWeight:
    """A matrix in panels, of one or several tensors of one format."""

    tensors: tuple[str, ...]
    layer: int
    pack: PackSpec

    @property
    def name(self) -> str:
        return "+".join(self.tensors)


@dataclass
class Phase:
    """A program to be: batches of up to `max_tokens` tokens."""

    name: str
    max_tokens: int


PHASES = (Phase("decode", 1), Phase("prefill", 512))


def stride(width: int) -> int:
    """Floats between rows of a value: whole panels, so that products need no tail."""
    return -(-width // PANEL) * PANEL


@dataclass
class Lowering:
    """Lowers a graph for one phase.

    Attributes
    ----------
    calls
        Kernel calls in order.
    weights
        Matrices to be interleaved, by name.
    strides
        Floats between the rows of each value; a value that is part of another has its stride.
    """

    graph: Graph
    cache: CacheLayout
    phase: str
    calls: list[Call] = field(default_factory=list)
    weights: dict[str, PanelWeight] = field(default_factory=dict)
    strides: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        for operator in self.graph.operators():
            lower = _LOWERINGS.get(type(operator.op))
            if lower is None:
                raise UnsupportedError(f"{operator.name}: no kernel computes {type(operator.op).__name__} on its own")
            lower(self, operator)

    def row_nbytes(self, value: str) -> int:
        """Bytes of a row of a value in the arena."""
        v = self.graph.values[value]
        digits = _DIGITS[v.dtype]
        nbytes = QuantizedRow(v.width, digits).nbytes if digits else 4 * stride(v.width)
        return -(-nbytes // 64) * 64

    def stride_of(self, value: str) -> int:
        return self.strides.get(value, self.row_nbytes(value) // 4)

    def emit(
        self,
        operator: Operator,
        spec: KernelSpec,
        pointers: dict[int, Pointer],
        *,
        tasks: int = 1,
        tokens_per_task: int = 1,
        sync: bool = True,
    ) -> None:
        listed = tuple(pointers.get(i, NOTHING) for i in range(8))
        rows = self.graph.values[operator.outputs[0]].rows
        self.calls.append(Call(spec, operator, rows, tasks, tokens_per_task, sync, listed))

    def value(self, name: str, column: int = 0) -> Pointer:
        """A value, from a column on; an alias points into the value it is part of."""
        base = self.aliases.get(name, name)
        if base in self.graph.outputs:
            return Pointer("logits", "", 4 * column)
        return Pointer("value", base, 4 * column)

    def tensor(self, name: str) -> Pointer:
        if self.graph.weights[name].format != "F32":
            fmt = self.graph.weights[name].format
            raise UnsupportedError(f"tensor {name}: vectors in {fmt} are not supported, only in F32")
        return Pointer("tensor", name)


def _input(name: str) -> Pointer:
    assert name in INPUTS
    return Pointer("input", name)


def _format(graph: Graph, tensor: str) -> str:
    name = graph.weights[tensor].format
    if name not in FORMATS:
        known = ", ".join(FORMATS)
        raise UnsupportedError(f"tensor {tensor}: block format {name} is not supported (supported: {known})")
    return name


def _gather(low: Lowering, operator: Operator) -> None:
    op: ops.Gather = operator.op  # type: ignore[assignment]
    out = operator.outputs[0]
    spec = GatherSpec(_format(low.graph, op.table), low.graph.values[out].width, low.stride_of(out))
    pointers = {0: Pointer("tensor", op.table), 1: _input("token_ids"), 2: low.value(out)}
    low.emit(operator, spec, pointers)


def _norm(low: Lowering, operator: Operator) -> None:
    op: ops.Norm = operator.op  # type: ignore[assignment]
    if op.bias is not None:
        raise UnsupportedError(f"{operator.name}: norms with a bias are not supported yet")
    source, out = operator.inputs[0], operator.outputs[0]
    n = low.graph.values[source].width
    spec = NormSpec(n, low.stride_of(source), low.stride_of(out), op.eps, _DIGITS[low.graph.values[out].dtype])
    low.emit(operator, spec, {0: low.value(source), 1: low.tensor(op.weight), 2: low.value(out)})


def _matmul(low: Lowering, operator: Operator) -> None:
    op: ops.MatMul = operator.op  # type: ignore[assignment]
    graph, source, out = low.graph, operator.inputs[0], operator.outputs[0]
    fmt = _format(graph, op.weights[0])
    n_cols = graph.values[source].width
    digits = _DIGITS[graph.values[source].dtype]
    weight = PanelWeight(op.weights, operator.layer, PackSpec(fmt, n_cols))
    low.weights[weight.name] = weight
    if op.accumulate:
        low.aliases[out] = low.aliases.get(operator.inputs[1], operator.inputs[1])
    panel_nbytes = PanelLayout(FORMATS[fmt], n_cols).nbytes
    members = op.members(graph.weights)
    # One call does all members at once, unless biases (a tensor each) keep them apart.
    pieces = [(first, stop, bias) for (_n, first, stop), bias in zip(members, op.biases, strict=True)]
    if not any(op.biases):
        pieces = [(0, members[-1][2], None)]
    for i, (first, stop, bias) in enumerate(pieces):
        shape = MatmulShape(stop - first, n_cols, low.stride_of(out), op.accumulate, bias is not None, max(digits, 1))
        spec = MatmulSpec(fmt, shape, 0 if digits else low.stride_of(source), digits > 0, low.phase)
        pointers = {
            0: Pointer("weight", weight.name, first // PANEL * panel_nbytes),
            1: low.value(source),
            2: low.value(out, first),
            7: Pointer("scratch"),
        }
        if bias is not None:
            pointers[3] = low.tensor(bias)
        tasks = -(-(stop - first) // PANEL)
        low.emit(operator, spec, pointers, tasks=tasks, tokens_per_task=0, sync=i == len(pieces) - 1)


def _rope_store(low: Lowering, operator: Operator) -> None:
    op: ops.RopeStore = operator.op  # type: ignore[assignment]
    graph, out = low.graph, operator.outputs[0]
    columns = op.columns([graph.values[name] for name in operator.inputs])
    places = [(operator.inputs[columns[part].input], columns[part].first) for part in ("q", "k", "v")]
    q_value, q_column = places[0]
    assert q_column == 0
    low.aliases[out] = low.aliases.get(q_value, q_value)
    low.strides[out] = low.stride_of(q_value)
    strides = tuple(low.stride_of(value) for value, _column in places)
    spec = RopeStoreSpec(low.cache, RopeShape(op.n_heads, op.dim, op.mode), (strides[0], strides[1], strides[2]))
    pointers = {i: low.value(value, column) for i, (value, column) in enumerate(places)}
    pointers |= {3: _input("rope"), 4: Pointer("kv", str(operator.layer)), 5: _input("cells")}
    pointers |= {6: _input("sequences"), 7: _input("block_table")}
    low.emit(operator, spec, pointers, tasks=op.n_heads + op.n_kv_heads)


def _attention(low: Lowering, operator: Operator) -> None:
    op: ops.Attention = operator.op  # type: ignore[assignment]
    if len(operator.inputs) != 1:
        raise UnsupportedError(f"{operator.name}: attention without the cache is not supported")
    source, out = operator.inputs[0], operator.outputs[0]
    group = _ATTENTION_GROUP if low.phase == "prefill" else 1
    spec = AttentionSpec(low.cache, op.n_heads, op.scale, low.stride_of(source), low.stride_of(out), group)
    pointers = {
        0: low.value(source),
        1: low.value(out),
        2: Pointer("kv", str(operator.layer)),
        3: _input("cells"),
        4: _input("sequences"),
        5: _input("block_table"),
    }
    low.emit(operator, spec, pointers, tasks=op.n_heads, tokens_per_task=group)


def _gated(low: Lowering, operator: Operator) -> None:
    op: ops.GatedActivation = operator.op  # type: ignore[assignment]
    graph, out = low.graph, operator.outputs[0]
    columns = op.columns([graph.values[name] for name in operator.inputs])
    gate, up = ((operator.inputs[columns[p].input], columns[p].first) for p in ("gate", "up"))
    n = graph.values[out].width
    strides = (low.stride_of(gate[0]), low.stride_of(up[0]), low.stride_of(out))
    spec = GatedSpec(n, *strides, _GATED_CHUNK, _DIGITS[graph.values[out].dtype])
    pointers = {0: low.value(*gate), 1: low.value(*up), 2: low.value(out)}
    low.emit(operator, spec, pointers, tasks=-(-n // _GATED_CHUNK))


def _select_rows(low: Lowering, operator: Operator) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    spec = SelectSpec(low.graph.values[source].width, low.stride_of(source), low.stride_of(out))
    low.emit(operator, spec, {0: low.value(source), 1: _input("output_rows"), 2: low.value(out)})


def _quantize(low: Lowering, operator: Operator) -> None:
    source, out = operator.inputs[0], operator.outputs[0]
    digits = _DIGITS[low.graph.values[out].dtype]
    spec = QuantizeSpec(low.graph.values[source].width, low.stride_of(source), digits)
    low.emit(operator, spec, {0: low.value(source), 2: low.value(out)})


_LOWERINGS: dict[type, Callable[[Lowering, Operator], None]] = {
    ops.Gather: _gather,
    ops.Norm: _norm,
    ops.MatMul: _matmul,
    ops.RopeStore: _rope_store,
    ops.Attention: _attention,
    ops.GatedActivation: _gated,
    ops.SelectRows: _select_rows,
    ops.Quantize: _quantize,
}


def cache_layout(graph: Graph, kv_type: str, max_tokens: int) -> CacheLayout:
    """The KV cache of a model: `max_tokens` is the longest sequence its block tables can describe."""
    hyper = graph.hyper
    dtype = {"f16": "float16", "f32": "float32"}[kv_type]
    return CacheLayout(hyper.n_kv_heads, hyper.head_dim, dtype, -(-max_tokens // BLOCK_CELLS))


def lower(graph: Graph, cache: CacheLayout) -> list[tuple[Phase, Lowering]]:
    """Lower the graph for every phase."""
    lowered = []
    for phase in PHASES:
        low = Lowering(graph, cache, phase.name)
        low.run()
        lowered.append((phase, low))
    return lowered


def specs_of(lowered: Sequence[tuple[Phase, Lowering]]) -> list[KernelSpec]:
    """Every kernel that a plan carries, once: those of the programs in order of first use, then those of the loader."""
    found: dict[KernelSpec, Any] = {}
    for _phase, low in lowered:
        found |= dict.fromkeys(call.spec for call in low.calls)
    for _phase, low in lowered:
        found |= dict.fromkeys(weight.pack for weight in low.weights.values())
    return [*found, ReadProbeSpec()]
