"""Structure-aware fuzzing of the plan reader: a valid plan whose header, index or segments are changed in one to
three places. Mostly the digest is computed again, so that what lies behind it is reached.

A reader may answer with PlanError in one line, or accept the plan if what it returns keeps the promises that the
runtime builds on, which are computed here in their own way. Anything else - another exception, a slow answer, too
much memory, a broken promise - is a failure, and the file is kept.

    python tests/fuzz/fuzz_plan.py -n 100000
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import re
import struct
import sys
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from plan_sample import sample

from airrun.errors import PlanError
from airrun.plan.chunks import chunks_of
from airrun.plan.codec import PLAN_CODEC
from airrun.plan.container import LoadedPlan, content_digest, decode_plan, encode_plan
from airrun.plan.schema import INPUTS, Plan

SECONDS_PER_CASE = 5.0  # a clean answer takes 2 ms
MEMORY_LIMIT = 4 << 30
HEADER_FIELDS = [(0, "Q"), (8, "I"), (12, "I")] + [(16 + 8 * i, "Q") for i in range(6)]
INDEX_OFFSET, INDEX_NBYTES, INFLATED_NBYTES, TOTAL, DIGEST, HEADER_NBYTES = 24, 32, 40, 16, 64, 96

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 65, 127, 255, 256, 4095, 4096, 65535, 65536]
NUMBERS += [
    sign * (1 << bits) + more for bits in (20, 31, 32, 53, 61, 62, 63, 64) for sign in (1, -1) for more in (-1, 0)
]
OTHERS: list[Any] = [True, False, None, 0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 10**400]
OTHERS += ["", "x", "cuda", "collective", "none", "weight", "scratch", "logits", "input", "outputs", "head", "layer"]
OTHERS += ["..", "a/b", "a\\b", "\0", "\n", "\x1b[2J", "\ud800", "é" * 200, "A" * 70000, "raw", "panels", "Q6_K", "F32"]
OTHERS += [[], [[]], {}, {"a": 1}, [0] * 8, [1, 2, 3]]


@dataclass(frozen=True)
class Base:
    """A valid plan: its file, its index as JSON, and the paths of every field, by class and field."""

    data: bytes
    text: str
    places: tuple[tuple[tuple[Any, ...], ...], ...]


def walk(document: dict[str, Any], kind: str, value: Any, path: tuple[Any, ...], key: str) -> Iterator[tuple[str, Any]]:
    """All (class.field, path) in a value of type `kind`, by what the document says of its own classes."""
    yield key, path
    if kind.startswith("["):
        for i, item in enumerate(value):
            yield from walk(document, kind[1:-1], item, (*path, i), key + "[]")
    elif kind in document["classes"]:
        for i, (name, member) in enumerate(document["classes"][kind]):
            yield from walk(document, member, value[i], (*path, i), f"{kind}.{name}")


def bases() -> list[Base]:
    """Plans of one and two layers."""
    result = []
    for n_layers in (1, 2):
        plan, segments = sample(n_layers)
        data = encode_plan(plan, segments)
        document = json.loads(json.dumps(PLAN_CODEC.encode(decode_plan(data, Path("base")).plan)))
        places = defaultdict(list)
        for key, path in walk(document, "Plan", document["plan"], ("plan",), "Plan"):
            places[key].append(path)
        for name, rows in document["pools"].items():
            for key, path in walk(document, f"[{name}]", rows, ("pools", name), f"pool {name}"):
                places[key].append(path)
        for name, members in document["classes"].items():
            for key, path in walk({"classes": {}}, "[[str]]", members, ("classes", name), "classes"):
                places[key].append(path)
        result.append(Base(data, json.dumps(document), tuple(tuple(places[key]) for key in sorted(places))))
    return result


def some_value(rng: random.Random, old: Any) -> Any:
    """A boundary value, or one near the old."""
    if type(old) is int and rng.random() < 0.4:
        return rng.choice(
            [old + 1, old - 1, old * 2, old // 2, -old, old + 64, old - 64, old ^ (1 << rng.randrange(62))]
        )
    return copy.deepcopy(rng.choice(NUMBERS if rng.random() < 0.6 else OTHERS))


def mutate_document(rng: random.Random, base: Base) -> str:
    """The index with one to three places changed."""
    document = json.loads(base.text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *outer, last = rng.choice(rng.choice(base.places))
        try:
            parent = document
            for step in outer:
                parent = parent[step]
            kind = rng.random()
            if kind < 0.7:
                parent[last] = some_value(rng, parent[last])
            elif kind < 0.8:
                del parent[last]
            elif kind < 0.9:
                parent.insert(last, copy.deepcopy(parent[last]))
            else:
                other = rng.randrange(len(parent))
                parent[last], parent[other] = parent[other], parent[last]
        except (IndexError, KeyError, TypeError, AttributeError, ValueError):
            document[rng.choice(("classes", "pools", "plan", "more"))] = some_value(rng, 0)  # the place is gone
    return json.dumps(document)


def mutate_text(rng: random.Random, text: str) -> str:
    """JSON damaged as text."""
    at = rng.randrange(len(text))
    damage = [*'[],"0- \\', "e9", "1" * 5000, "[" * 100_000, "NaN", "\\ud800", '"plan":1,']
    insert = rng.choice(damage)
    return text[:at] + insert + text[at + rng.choice((0, 0, 1, 2, 50)) :]


def with_index(data: bytes, text: str) -> bytearray:
    """`data` with another index, its places in the header corrected."""
    raw = text.encode()
    index = zlib.compress(raw, 0)
    offset = struct.unpack_from("<Q", data, INDEX_OFFSET)[0]
    result = bytearray(data[:offset] + index)
    struct.pack_into("<QQQQ", result, TOTAL, len(result), offset, len(index), len(raw))
    return result


def mutate(rng: random.Random, base: Base) -> bytes:
    """A mutated plan file."""
    kind = rng.random()
    data = bytearray(base.data)
    if kind < 0.78:
        data = with_index(base.data, mutate_document(rng, base))
    elif kind < 0.83:
        data = with_index(base.data, mutate_text(rng, base.text))
    elif kind < 0.92:
        for _ in range(rng.choice((1, 2))):
            at, code = rng.choice(HEADER_FIELDS)
            size = struct.calcsize(code)
            value = some_value(rng, int.from_bytes(data[at : at + size], "little"))
            value = value if type(value) is int else 0
            data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    elif kind < 0.96:
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind < 0.98:
        del data[rng.choice([rng.randrange(len(data)), rng.randrange(HEADER_NBYTES + 1)]) :]
    else:
        data += bytes(rng.choice((1, 8, 4096)))
    if rng.random() < 0.95 and len(data) >= HEADER_NBYTES:
        if rng.random() < 0.5:
            struct.pack_into("<Q", data, TOTAL, len(data))
        data[DIGEST:HEADER_NBYTES] = content_digest(data)
    return bytes(data)


def check(loaded: LoadedPlan) -> None:
    """The promises about an accepted plan: whoever follows its numbers stays inside memory and files."""
    plan = loaded.plan
    assert PLAN_CODEC.loads(PLAN_CODEC.dumps(plan)) == plan
    for i, segment in enumerate(plan.segments):
        assert segment.offset % 4096 == 0
        assert len(loaded.segment(i)) == segment.nbytes
    for tensor in plan.tensors:
        file = plan.files[tensor.file]
        assert file.header_nbytes <= tensor.offset < tensor.offset + tensor.nbytes <= file.nbytes
    for weight in plan.weights:
        written = set()
        for part in weight.parts:
            n_rows = plan.tensors[part.tensor].nbytes * 16 // weight.panel_nbytes
            panels = range(part.first_panel, part.first_panel + (n_rows + 15) // 16)
            assert written.isdisjoint(panels)
            written.update(panels)
        assert written == set(range(weight.nbytes // weight.panel_nbytes))
        assert weight.pack in [kernel.symbol for kernel in plan.kernels]
    check_chunks(plan)
    constants = loaded.segment(plan.constants_segment)
    for constant in plan.constants:
        assert 0 <= constant.offset <= constant.offset + constant.nbytes <= len(constants)
    axes = constants[plan.constants[plan.rope.axis].offset :].tobytes()[: 4 * plan.rope.n_pairs]
    assert all(0 <= axis < plan.rope.n_axes for axis in struct.unpack(f"<{plan.rope.n_pairs}i", axes))
    assert all(len(loaded.segment(library.segment)) for library in plan.libraries)
    assert 4 * plan.model.n_embd <= plan.buffers[plan.model.hidden].nbytes
    sizes = [len(program.steps) for program in plan.programs]
    assert min(sizes) > 0
    assert [program.max_tokens for program in plan.programs] == sorted({p.max_tokens for p in plan.programs})
    for program in plan.programs:
        check_program(plan, program.max_tokens, program)


def check_chunks(plan: Plan) -> None:
    """Chunks are all of every weight, in order, and inside its tensors."""
    chunks = list(chunks_of(plan))
    assert Counter(plan.keep_order) == Counter(range(len(chunks)))
    for i, weight in enumerate(plan.weights):
        mine = [chunk for chunk in chunks if chunk.weight == i]
        assert [c.first_panel for c in mine] == [sum(d.n_panels for d in mine[:j]) for j in range(len(mine))]
        assert sum(chunk.n_panels for chunk in mine) * weight.panel_nbytes == weight.nbytes
        assert sum(chunk.nbytes for chunk in mine) == sum(plan.tensors[part.tensor].nbytes for part in weight.parts)
        for chunk in mine:
            assert 0 < chunk.nbytes <= chunk.n_panels * weight.panel_nbytes < 1 << 30
            assert chunk.offset + chunk.nbytes <= plan.files[chunk.file].nbytes


def check_program(plan: Plan, n: int, program: Any) -> None:
    """Follow every operand of a batch of `n` tokens and one output, in memory allocated as the plan says."""
    arena = plan.arena_nbytes * n
    per_token = {"rope": 8 * plan.rope.n_pairs}
    assert 0 < arena < 1 << 63
    assert sum(layer.block_nbytes for layer in plan.kv.layers) * plan.kv.max_blocks < 1 << 63
    assert plan.kv.max_blocks * plan.kv.block_cells >= plan.choice.ctx_size
    for step in program.steps:
        assert (step.kind, step.device) == ("call", "cpu")
        assert re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", plan.kernels[step.kernel].symbol) and step.kernel >= 0
        assert -1 <= step.layer < plan.model.n_layers
        groups = (n + step.tokens_per_task - 1) // step.tokens_per_task if step.tokens_per_task else 1
        assert 0 < step.tasks * groups < 1 << 31
        assert len(step.operands) == 8
        for operand in step.operands:
            i = operand.index
            assert i >= 0
            assert operand.offset >= 0
            match operand.space:
                case "none":
                    assert (i, operand.offset) == (0, 0)
                case "weight":
                    assert operand.offset < plan.weights[i].nbytes
                case "tensor":
                    assert operand.offset < plan.tensors[i].nbytes
                case "constant":
                    assert operand.offset < plan.constants[i].nbytes
                case "buffer":
                    buffer = plan.buffers[i]
                    begin, end = buffer.offset * n, (buffer.offset + buffer.nbytes) * n
                    assert 0 <= begin <= begin + operand.offset < end <= arena
                    assert begin % 64 == 0
                case "kv":
                    assert operand.offset < plan.kv.layers[i].block_nbytes
                case "state":
                    assert operand.offset < plan.states[i].nbytes
                case "logits":
                    assert (i, step.rows) == (0, "outputs")
                    assert operand.offset < 4 * plan.model.logits_stride
                case "scratch":
                    assert i == 0
                    assert all(operand.offset < library.scratch_nbytes for library in plan.libraries)
                case "input":
                    name = INPUTS[i]
                    assert operand.offset < per_token.get(name, 4)
                    assert name != "output_rows" or step.rows == "outputs"
                case space:
                    raise AssertionError(space)


def run_case(data: bytes) -> str:
    """Read one file: the refusal with all its particulars removed, or 'accepted'."""
    start = time.perf_counter()
    outcome = "accepted"
    try:
        loaded = decode_plan(data, Path("case"))
    except PlanError as error:
        message = str(error)
        assert len(message) < 1000 and message.isprintable(), message
        outcome = re.sub(r"'.*?'|\".*?\"|-?\d[\d.e+-]*", "#", message)
    else:
        check(loaded)
    assert time.perf_counter() - start < SECONDS_PER_CASE, "slow"
    return outcome


def fuzz(n_cases: int, seed: int, keep: Path | None = None) -> Counter[str]:
    """Run `n_cases` mutations; the counts of outcomes, where every key of a failure begins with 'FAILED'."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    plans = bases()
    for i in range(n_cases):
        data = mutate(rng, rng.choice(plans))
        try:
            outcome = run_case(data)
        except Exception as error:
            outcome = f"FAILED {type(error).__name__}"
            traceback.print_exc()
            print(f"case {i} of seed {seed}", file=sys.stderr)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"plan-{seed}-{i}.bin").write_bytes(data)
        counts[outcome] += 1
    return counts


def main() -> int:
    """Command line: exit 1 if any case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=10_000, help="number of mutated plans (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default %(default)s)")
    parser.add_argument("--keep", type=Path, default=None, help="folder for files that failed")
    parser.add_argument("--verbose", action="store_true", help="print every kind of refusal")
    arguments = parser.parse_args()
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    start = time.perf_counter()
    counts = fuzz(arguments.n, arguments.seed, arguments.keep)
    failed = {outcome: count for outcome, count in counts.items() if outcome.startswith("FAILED")}
    for outcome, count in counts.most_common() if arguments.verbose else failed.items():
        print(f"{count:8} {outcome}")
    n_refused = arguments.n - counts["accepted"] - sum(failed.values())
    n_kinds = len(counts.keys() - failed.keys() - {"accepted"})
    print(
        f"{arguments.n} mutated plans in {time.perf_counter() - start:.0f} s: {counts['accepted']} accepted and sound, "
        f"{n_refused} refused in {n_kinds} ways, {sum(failed.values())} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
