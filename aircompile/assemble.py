"""Assembly: lowered programs, placements and libraries become the tables of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aircompile.codegen import CompiledLibrary, needed_calls
from aircompile.frontends.gguf import GGUFModel
from aircompile.graph import Graph
from aircompile.lowering import Caches, Call, Lowering, PanelWeight, Phase, Pointer, specs_of
from aircompile.memory_plan import Placement
from aircompile.stream_plan import accesses, chunk_panels, keep_order, stream
from airkernels.cpu.cache import BLOCK_CELLS
from airkernels.cpu.isa import PANEL
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS
from airrun.machine.isa import LEVELS
from airrun.machine.profile import Disk
from airrun.plan import schema
from airrun.plan.chunks import n_chunks
from airrun.plan.fingerprint import fingerprint
from airschedules.specs import KernelSpec

CONSTANTS, TOKENIZER, FIRST_LIBRARY = 0, 1, 2
"""Segments of a plan."""


@dataclass(frozen=True)
class Parts:
    """What the phases before produced."""

    model: GGUFModel
    graph: Graph
    caches: Caches
    lowered: Sequence[tuple[Phase, Lowering]]
    placements: Mapping[str, Placement]
    arena_nbytes: int
    libraries: Sequence[CompiledLibrary]
    disk: Disk


class Tables:
    """Indices of everything a pointer can name."""

    def __init__(self, parts: Parts) -> None:
        graph = parts.graph
        self.placements = parts.placements
        self.tensors = {name: i for i, name in enumerate(graph.weights)}
        self.weights: dict[str, PanelWeight] = {}
        for _phase, low in parts.lowered:
            self.weights |= low.weights
        self.weight_index = {name: i for i, name in enumerate(self.weights)}
        self.states = {name: i for i, name in enumerate(parts.caches.states)}
        self.buffers = {name: i for i, name in enumerate(parts.placements)}
        self.specs: list[KernelSpec] = specs_of(parts.lowered)
        self.kernels = {spec: i for i, spec in enumerate(self.specs)}

    def operand(self, pointer: Pointer) -> schema.Operand:
        if pointer.space == "value":
            return schema.Operand("buffer", self.buffers[pointer.name], pointer.offset)
        index = 0
        if pointer.space in ("weight", "experts"):
            index = self.weight_index[pointer.name]
        elif pointer.space == "tensor":
            index = self.tensors[pointer.name]
        elif pointer.space == "input":
            index = schema.INPUTS.index(pointer.name)
        elif pointer.space == "kv":
            index = int(pointer.name)
        elif pointer.space == "state":
            index = self.states[pointer.name]
        return schema.Operand(pointer.space, index, pointer.offset)

    def step(self, call: Call) -> schema.Step:
        return schema.Step(
            kind="call",
            device="cpu",
            stream=0,
            kernel=self.kernels[call.spec],
            layer=call.operator.layer,
            phase=call.operator.phase,
            label=call.operator.name,
            rows=call.rows,
            tasks=call.tasks,
            tokens_per_task=call.tokens_per_task,
            sync=call.sync,
            operands=tuple(self.operand(p) for p in call.pointers),
        )


def assemble(
    parts: Parts, choice: schema.Choice, cost: schema.Cost, tokenizer: bytes, generator: str
) -> tuple[schema.Plan, list[bytes]]:
    """Build the plan and its segments."""
    graph, tables = parts.graph, Tables(parts)
    constants, blob = _constants(graph)
    names = [c.name for c in constants]
    hyper = graph.hyper
    output = graph.values[graph.outputs[0]]
    embed = [operator for operator in graph.operators() if operator.phase == "embed"][-1]
    access = accesses(parts.lowered, graph.weights)
    weights = tuple(
        _weight(graph, tables, w, parts.disk, access[w.tensors[0]] == "experts") for w in tables.weights.values()
    )
    plan = schema.Plan(
        generator=generator,
        model=schema.Model(
            name=hyper.name,
            architecture=hyper.architecture,
            n_vocab=output.width,
            n_embd=hyper.n_embd,
            n_layers=hyper.n_layers,
            n_ctx_train=hyper.n_ctx_train,
            n_params=hyper.n_params,
            hidden=tables.buffers[parts.lowered[0][1].place_of(embed.outputs[0])[0]],
            logits_stride=parts.lowered[0][1].stride_of(output.name),
        ),
        choice=choice,
        files=tuple(
            schema.WeightFile(f.path.name, f.nbytes, f.header_nbytes, fingerprint(f.path, f.header_nbytes))
            for f in parts.model.files
        ),
        tensors=tuple(
            schema.Tensor(t.name, t.file, t.offset, t.nbytes, t.format, t.shape, access[name])
            for name, t in graph.weights.items()
        ),
        weights=weights,
        keep_order=(),
        stream=stream(parts.disk),
        constants=constants,
        buffers=tuple(schema.Buffer(name, p.offset, p.nbytes) for name, p in parts.placements.items()),
        arena_nbytes=parts.arena_nbytes,
        kv=_cache(parts.caches),
        states=tuple(schema.StateCache(name, state.nbytes) for name, state in parts.caches.states.items()),
        rope=schema.Rope(
            n_pairs=sum(rope.dim // 2 for rope in hyper.ropes),
            inverse_frequency=names.index("rope.inverse_frequency"),
            axis=names.index("rope.axis"),
            magnitude=names.index("rope.magnitude"),
            n_axes=max((rope.n_axes for rope in hyper.ropes), default=1),
        ),
        kernels=tuple(_kernel(spec, parts.libraries[0]) for spec in tables.specs),
        programs=tuple(
            schema.Program(phase.name, phase.max_tokens, tuple(tables.step(call) for call in low.calls))
            for phase, low in parts.lowered
        ),
        libraries=tuple(
            schema.Library(
                isa=lib.isa.name,
                arch=lib.isa.arch,
                features=tuple(sorted(LEVELS[lib.isa.name])),
                calls=needed_calls(),
                segment=FIRST_LIBRARY + i,
                scratch_nbytes=lib.scratch_nbytes,
            )
            for i, lib in enumerate(parts.libraries)
        ),
        cost=cost,
        tokenizer=TOKENIZER,
        constants_segment=CONSTANTS,
        segments=tuple(
            schema.Segment(name, 0, 0)
            for name in ["constants", "tokenizer", *(f"kernels.{lib.isa.name}" for lib in parts.libraries)]
        ),
    )
    plan = replace(plan, keep_order=keep_order(n_chunks(plan)))
    return plan, [blob, tokenizer, *(lib.image for lib in parts.libraries)]


def _constants(graph: Graph) -> tuple[tuple[schema.Constant, ...], bytes]:
    entries, blob = [], b""
    for name, array in graph.constants.items():
        data = np.ascontiguousarray(array).tobytes()
        entries.append(schema.Constant(name, str(array.dtype), array.shape, len(blob), len(data)))
        blob += data + bytes(-len(data) % 64)
    return tuple(entries), blob


def _weight(graph: Graph, tables: Tables, weight: PanelWeight, disk: Disk, is_bank: bool) -> schema.Weight:
    """A matrix, or a bank of experts, whose chunks are its matrices."""
    n_rows = [math.prod(graph.weights[name].shape[:-1]) for name in weight.tensors]
    panels = [-(-n // PANEL) for n in n_rows]
    panel_nbytes = PanelLayout(FORMATS[weight.pack.weights], weight.pack.n_cols).nbytes
    if is_bank:
        chunk = graph.weights[weight.tensors[0]].shape[1] // PANEL
    else:
        chunk = chunk_panels(max(panels), panel_nbytes, disk)
    return schema.Weight(
        name=weight.name,
        layer=weight.layer,
        format=weight.pack.weights,
        n_rows=sum(n_rows),
        n_cols=weight.pack.n_cols,
        nbytes=sum(panels) * panel_nbytes,
        panel_nbytes=panel_nbytes,
        pack=weight.pack.symbol,
        chunk_panels=chunk,
        parts=tuple(schema.WeightPart(tables.tensors[name], sum(panels[:i])) for i, name in enumerate(weight.tensors)),
    )


def _kernel(spec: KernelSpec, library: CompiledLibrary) -> schema.Kernel:
    schedule, reason = spec.schedule(library.isa)
    return schema.Kernel(spec.symbol, spec.op, spec.fmt, spec.shape, schedule, reason)


def _cache(cache: Caches) -> schema.KvCache:
    layers = (schema.KvLayer(c.n_kv_heads, c.head_dim, c.v_dim, c.block_nbytes, c.ring) for c in cache.layers)
    table = cache.table
    return schema.KvCache(
        BLOCK_CELLS, table.max_blocks, table.ring_blocks, cache.window, cache.keys, cache.values, tuple(layers)
    )
