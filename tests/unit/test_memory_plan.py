"""The memory plan on random and real programs, judged by running them on an arena of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import empty_graph, llama_metadata, llama_model, llama_tensors

from aircompile.architectures import build_graph
from aircompile.graph import Operator
from aircompile.lowering import NOTHING, Call, Lowering, Pointer, lower, plan_caches
from aircompile.memory_plan import Interval, Placement, lifetimes, place
from aircompile.operators import Quantize
from aircompile.passes import run_passes
from aircompile.passes.options import Activations, PassOptions
from airschedules.specs import QuantizeSpec


@dataclass(frozen=True)
class Instruction:
    """What a call does to values; without `sync`, the next call runs beside it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sync: bool = True


class Program(Lowering):
    """A lowering made of instructions, whose values have given sizes."""

    def __init__(self, sizes: dict[str, int], instructions: Sequence[Instruction]) -> None:
        graph = empty_graph()
        super().__init__(graph, plan_caches(graph, "f16", 64), "prefill")
        self.sizes = sizes
        for i, instruction in enumerate(instructions):
            named = [*instruction.reads, *instruction.writes]
            pointers = [Pointer("value", name) for name in named] + [Pointer("input", "cells")]
            padded = (*pointers, *[NOTHING] * (8 - len(pointers)))
            operator = Operator(f"o{i}", Quantize(), (), (), 0, "layer")
            self.calls.append(Call(QuantizeSpec(32, 32, 1), operator, "tokens", 1, 1, instruction.sync, padded))

    def row_nbytes(self, value: str) -> int:
        return self.sizes[value]


def stages_of(instructions: Sequence[Instruction]) -> list[list[Instruction]]:
    stages: list[list[Instruction]] = [[]]
    for instruction in instructions:
        stages[-1].append(instruction)
        if instruction.sync:
            stages.append([])
    return [stage for stage in stages if stage]


def execute(instructions: Sequence[Instruction], placed: dict[str, Placement], nbytes: int) -> None:
    """Run a program on an arena, where every write has contents of its own, and check all that is read.

    Calls of a stage run in any order, so what one of them writes must leave what any of them reads or writes intact.
    """
    arena = np.zeros(nbytes, np.int64)
    contents: dict[str, int] = {}
    version = 0

    def holds(name: str) -> bool:
        at = placed[name]
        return bool((arena[at.offset : at.offset + at.nbytes] == contents[name]).all())

    for stage in stages_of(instructions):
        for instruction in stage:
            assert all(holds(name) for name in instruction.reads), "overwritten before it was read"
        kept = {name: contents[name] for instruction in stage for name in instruction.reads}
        written = [name for instruction in stage for name in instruction.writes]
        for name in written:
            version += 1
            contents[name] = version
            arena[placed[name].offset : placed[name].offset + placed[name].nbytes] = version
        assert all(holds(name) for name in written), "two values written side by side share memory"
        for name in kept.keys() - set(written):
            assert holds(name), "overwritten while a call beside it may still read it"


@st.composite
def programs(draw: st.DrawFn) -> tuple[dict[str, int], list[Instruction]]:
    """Values are written before they are read; some are written twice (residuals), some read long after."""
    sizes: dict[str, int] = {}
    instructions = []
    for i in range(draw(st.integers(1, 14))):
        known = list(sizes)
        reads = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        # a call that runs beside others must not read what they write: only values of earlier stages
        stage = stages_of(instructions)[-1] if instructions and not instructions[-1].sync else []
        fresh = {name for instruction in stage for name in instruction.writes}
        busy = fresh | {name for instruction in stage for name in instruction.reads}
        reads = [name for name in reads if name not in fresh]
        writes = [name for name in reads if name not in busy][:1] if draw(st.booleans()) else []
        for j in range(draw(st.integers(0 if reads or writes else 1, 2))):
            name = f"v{i}.{j}"
            sizes[name] = 64 * draw(st.integers(1, 6))
            writes.append(name)
        instructions.append(Instruction(tuple(reads), tuple(writes), draw(st.booleans())))
    return sizes, instructions


@settings(max_examples=150, deadline=None)
@given(programs())
def test_no_value_is_overwritten_while_it_is_needed(program: tuple[dict[str, int], list[Instruction]]) -> None:
    sizes, instructions = program
    low = Program(sizes, instructions)
    placed, nbytes = place(low)
    assert placed.keys() == lifetimes(low).keys() == sizes.keys()
    for name, at in placed.items():
        assert at.nbytes == sizes[name] and at.offset % 64 == 0 and 0 <= at.offset <= nbytes - at.nbytes
    # shared among calls that run at the same time, the arena needs at least this
    stages = stages_of(instructions)
    alive = [
        sum(sizes[name] for name, life in lifetimes(low).items() if life.first <= at <= life.last)
        for at in range(len(stages))
    ]
    assert max(alive) <= nbytes <= sum(sizes.values())
    execute(instructions, placed, nbytes)


def chain(n: int) -> list[Instruction]:
    return [Instruction((f"v{i - 1}",) if i else (), (f"v{i}",)) for i in range(n)]


def test_a_chain_takes_two_places() -> None:
    placed, nbytes = place(Program({f"v{i}": 64 for i in range(9)}, chain(9)))
    assert nbytes == 128
    assert [placed[f"v{i}"].offset for i in range(9)] == [0, 64] * 4 + [0]


def test_a_small_value_fits_into_a_gap() -> None:
    # "long" lives throughout; "big" dies before "small" is born
    steps = [
        Instruction((), ("big", "long")),
        Instruction(("big",), ("mid",)),
        Instruction(("mid", "long"), ("small",)),
    ]
    placed, nbytes = place(Program({"big": 256, "long": 192, "mid": 128, "small": 64}, steps))
    assert nbytes == 256 + 192 + 128
    assert placed["small"] == Placement(0, 64)


def test_calls_without_a_barrier_between_them_share_nothing() -> None:
    for sync, expected in ((True, 128), (False, 192)):
        steps = [
            Instruction((), ("a",)),
            Instruction(("a",), ("b",), sync),
            Instruction(("b",) if sync else (), ("c",)),
        ]
        assert place(Program({"a": 64, "b": 64, "c": 64}, steps))[1] == expected


def test_lifetimes_count_stages() -> None:
    steps = [
        Instruction((), ("a",), False),
        Instruction((), ("b",)),
        Instruction(("a",), ("c",)),
        Instruction(("c",), ()),
    ]
    low = Program(dict.fromkeys("abc", 64), steps)
    assert lifetimes(low) == {"a": Interval(0, 1), "b": Interval(0, 0), "c": Interval(1, 2)}


def effects(low: Lowering) -> list[Instruction]:
    """What the calls of a real program read and write, known from their operators."""
    found = []
    for call in low.calls:
        inputs = {low.place_of(name)[0] for name in call.operator.inputs}
        outputs = {low.place_of(name)[0] for name in call.operator.outputs} - set(low.graph.outputs)
        found.append(Instruction(tuple(sorted(inputs)), tuple(sorted(outputs)), call.sync))
    return found


def together(low: Lowering) -> set[tuple[str, str]]:
    """Pairs of values that live at the same time."""
    lives = lifetimes(low)
    return {(a, b) for a in lives for b in lives if lives[a].overlaps(lives[b])}


@pytest.mark.parametrize("activations", ["auto", "f32"])
@pytest.mark.parametrize("biases", [(), ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down")])
def test_a_llama_fits_its_arena(activations: Activations, biases: tuple[str, ...]) -> None:
    tensors = llama_tensors(n_layers=3, biases=biases)
    graph = build_graph(llama_model(llama_metadata(block_count=3), tensors))
    graph = run_passes(graph, PassOptions(activations))
    lowered = lower(graph, plan_caches(graph, "f16", 128))
    placed, nbytes = place(lowered[-1][1])
    for phase, low in lowered:
        # one layout serves every phase: none may need values together that it puts in the same place
        assert together(low) <= together(lowered[-1][1]), phase.name
        execute(effects(low), placed, nbytes)
    # layers use the same memory again: three need no more than one
    one = run_passes(build_graph(llama_model(tensors=llama_tensors(biases=biases))), PassOptions(activations))
    assert nbytes == place(lower(one, plan_caches(one, "f16", 128))[-1][1])[1]
