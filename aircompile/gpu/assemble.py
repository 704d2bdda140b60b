"""Assembly of the GPU's part of a plan: its index, and a segment of machine code per architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from aircompile.codegen import Progress
from aircompile.gpu.calls import DECODE, Axis, DeviceCall, DeviceMatrix
from aircompile.gpu.codegen import CHECKED, compile_binaries
from aircompile.gpu.lowering import DeviceLowering, input_array
from aircompile.gpu.operators import lower_for_device
from aircompile.graph import Graph, Operator
from aircompile.lowering import Caches, Pointer
from aircompile.memory_plan import Placement, place
from airkernels.triton.build import Binary, gpu_target
from airkernels.triton.layout import padded
from airrun.plan import device, schema
from airrun.plan.container import DEVICE_SEGMENT
from airschedules.gpu.specs import LEADERS, AdvanceSpec, ArgmaxSpec, LeadersSpec, argmax_parts, leader_parts

_ALIGNMENT = 256
"""Of parts of scratch, in bytes."""

_LEADERS = "leaders"
"""Kind of scratch."""


@dataclass(frozen=True)
class DeviceSegments:
    """The GPU's part of a plan, and the segments that hold it: names, and contents."""

    plan: device.DevicePlan
    names: tuple[str, ...]
    contents: tuple[bytes, ...]


def build_for_devices(
    graph: Graph,
    caches: Caches,
    exact: bool,
    targets: Sequence[device.DeviceTarget],
    first_segment: int,
    vram: int,
    progress: Progress,
) -> DeviceSegments:
    """Lower, compile and assemble the GPU's part.

    Parameters
    ----------
    exact
        Whether batches keep float32 precision where activations are floats.
    targets
        What to carry machine code for.
    first_segment
        Number of the segment that the index becomes.
    vram
        Bytes of a device's memory that a run may take by default, 0 for what is free.
    """
    lowered = lower_for_device(graph, caches, exact)
    tables = _Tables(graph, lowered)
    contents, libraries = [], []
    archs = list(dict.fromkeys(target.arch for target in targets))
    for i, arch in enumerate(archs):
        binaries = compile_binaries(tables.specs, arch, progress)
        library, code = _library(tables, arch, binaries, first_segment + 1 + i)
        libraries.append(library)
        contents.append(code)
    plan = tables.plan(libraries, targets, vram)
    names = (DEVICE_SEGMENT, *(f"{DEVICE_SEGMENT}.{arch}" for arch in archs))
    return DeviceSegments(plan, names, (device.DEVICE_CODEC.dumps(plan), *contents))


class _Tables:
    """Indices of everything a pointer can name."""

    def __init__(self, graph: Graph, lowered: Mapping[str, DeviceLowering]) -> None:
        self._graph, self._lowered = graph, lowered
        self.greedy = _greedy(graph, lowered[DECODE])
        self.leaders = _leaders(graph, lowered[DECODE])
        calls = [call for low in lowered.values() for call in low.calls] + self.greedy + [self.leaders]
        self.matrices: dict[str, DeviceMatrix] = {}
        for low in lowered.values():
            self.matrices |= low.matrices
        packs = [matrix.pack for matrix in self.matrices.values() if matrix.pack is not None]
        self.specs = list(dict.fromkeys([*(call.spec for call in calls), *packs]))
        self._kernels = {spec: i for i, spec in enumerate(self.specs)}
        self._tensors = {name: i for i, name in enumerate(graph.weights)}
        self._matrix = {name: i for i, name in enumerate(self.matrices)}
        self._buffers: dict[tuple[str, str], int] = {}
        self._placed: list[schema.Buffer] = []
        self._arena = 0
        for phase, low in lowered.items():
            placements, arena = place(low)
            self._arena = max(self._arena, arena)
            for name, placement in placements.items():
                self._add_buffer(phase, name, placement)
        self._scratch, self._scratch_nbytes = _scratch([low.scratch for low in lowered.values()])

    def _add_buffer(self, phase: str, name: str, placement: Placement) -> None:
        self._buffers[phase, name] = len(self._placed)
        self._placed.append(schema.Buffer(f"{phase}.{name}", placement.offset, placement.nbytes))

    def plan(
        self, libraries: Sequence[device.DeviceLibrary], targets: Sequence[device.DeviceTarget], vram: int
    ) -> device.DevicePlan:
        output = self._graph.outputs[0]
        return device.DevicePlan(
            format_version=device.DEVICE_FORMAT_VERSION,
            kernels=tuple(schema.Kernel(s.symbol, s.op, s.fmt, s.shape, "", "") for s in self.specs),
            libraries=tuple(libraries),
            weights=tuple(self._weight(matrix) for matrix in self.matrices.values()),
            buffers=tuple(self._placed),
            arena_nbytes=self._arena,
            scratch_nbytes=self._scratch_nbytes,
            logits_stride=self._lowered[DECODE].stride_of(output),
            programs=tuple(
                device.DeviceProgram(
                    phase, low.max_tokens, self._hidden(phase, low), tuple(self._launch(phase, c) for c in low.calls)
                )
                for phase, low in self._lowered.items()
            ),
            greedy=tuple(self._launch(DECODE, call) for call in self.greedy),
            leaders=self._leaders(self._graph.values[output].width),
            targets=tuple(targets),
            vram_nbytes=vram,
        )

    def _leaders(self, n: int) -> device.DeviceLeaders:
        steps = (self._launch(DECODE, self.leaders),)
        return device.DeviceLeaders(steps, self._scratch[_LEADERS], leader_parts(n), LEADERS)

    def _hidden(self, phase: str, low: DeviceLowering) -> int:
        embed = [operator for operator in self._graph.operators() if operator.phase == "embed"][-1]
        return self._buffers[phase, low.place_of(embed.outputs[0])[0]]

    def _weight(self, matrix: DeviceMatrix) -> device.DeviceWeight:
        layout, pack = matrix.layout, matrix.pack
        return device.DeviceWeight(
            name=matrix.name,
            layer=matrix.layer,
            format=matrix.fmt,
            n_rows=matrix.n_rows,
            n_cols=matrix.n_cols,
            nbytes=layout.nbytes,
            places=padded(layout.n_blocks),
            halves_offset=layout.halves_offset,
            pack=-1 if pack is None else self._kernels[pack],
            parts=tuple(self._tensors[name] for name in matrix.tensors),
        )

    def _launch(self, phase: str, call: DeviceCall) -> device.Launch:
        return device.Launch(
            kernel=self._kernels[call.spec],
            layer=call.operator.layer,
            phase=call.operator.phase,
            label=call.operator.name,
            extents=tuple(device.Extent(e.axis, e.count, e.n) for e in call.extents),
            operands=tuple(self._operand(phase, pointer) for pointer in call.pointers),
            integers=call.integers,
        )

    def _operand(self, phase: str, pointer: Pointer) -> schema.Operand:
        space, index, offset = pointer.space, 0, pointer.offset
        if space == "value":
            space, index = "buffer", self._buffers[phase, pointer.name]
        elif space in ("weight", "halves"):
            index = self._matrix[pointer.name]
        elif space == "tensor":
            index = self._tensors[pointer.name]
        elif space == "input":
            index = device.DEVICE_INPUTS.index(pointer.name)
        elif space == "kv":
            index = int(pointer.name)
        elif space == "scratch":
            offset += self._scratch[pointer.name]
        return schema.Operand(space, index, offset)


def _after_logits(graph: Graph, name: str) -> Operator:
    """What launches that read the logits belong to."""
    head = graph.producer(graph.outputs[0])
    assert head is not None
    return Operator(name, head.op, (), (), -1, "head")


def _greedy(graph: Graph, low: DeviceLowering) -> list[DeviceCall]:
    """The launches that choose the most likely token and step to it."""
    output, operator = graph.outputs[0], _after_logits(graph, "greedy")
    n = graph.values[output].width
    parts = argmax_parts(n)
    values, places = (low.scratch_for(f"best.{what}", 4 * parts) for what in ("values", "places"))
    state = [input_array(name) for name in ("token_ids", "cells", "rope_rows", "chosen")]
    return [
        DeviceCall(ArgmaxSpec(n), operator, (Axis(0, "fixed", parts),), (low.value(output), values, places)),
        DeviceCall(AdvanceSpec(n), operator, (Axis(0, "fixed", 1),), (values, places, *state)),
    ]


def _leaders(graph: Graph, low: DeviceLowering) -> DeviceCall:
    """The launch that finds the most likely tokens, and its results side by side in scratch."""
    output = graph.outputs[0]
    n = graph.values[output].width
    parts = leader_parts(n)
    sizes = [4 * parts * LEADERS, 4 * parts * LEADERS, 4 * device.MAX_WATCHED, 4 * parts]
    found = low.scratch_for(_LEADERS, sum(sizes))
    results = [Pointer(found.space, found.name, at) for at in accumulate(sizes[:-1], initial=0)]
    pointers = (low.value(output), input_array("watched"), *results)
    return DeviceCall(LeadersSpec(n), _after_logits(graph, "leaders"), (Axis(0, "fixed", parts),), pointers)


def _scratch(wanted: Sequence[Mapping[str, int]]) -> tuple[dict[str, int], int]:
    """Offsets of the kinds of scratch, side by side, and bytes of all."""
    places: dict[str, int] = {}
    at = 0
    for use in dict.fromkeys(name for each in wanted for name in each):
        places[use] = at
        at += -(-max(each.get(use, 0) for each in wanted) // _ALIGNMENT) * _ALIGNMENT
    return places, at


def _library(
    tables: _Tables, arch: str, binaries: Sequence[Binary], segment: int
) -> tuple[device.DeviceLibrary, bytes]:
    """The table of an architecture's binaries, and its segment: their images one after the other."""
    entries, code = [], b""
    for spec, binary in zip(tables.specs, binaries, strict=True):
        schedule = spec.schedule(arch)
        entries.append(
            device.Binary(
                entry=binary.entry,
                offset=len(code),
                nbytes=len(binary.image),
                threads=binary.threads,
                shared_nbytes=binary.shared_nbytes,
                pdl=binary.pdl,
                tiles=schedule.tiles,
                schedule=str(schedule),
                reason=schedule.reason,
            )
        )
        code += binary.image + bytes(-len(binary.image) % 8)
    backend = gpu_target(arch).backend
    return device.DeviceLibrary(backend, arch, segment, arch in CHECKED, tuple(entries)), code
