"""Whether the GPU's part of a plan is consistent: every index, offset and size, before anything uses them."""

from __future__ import annotations

import math

from airrun.errors import PlanError
from airrun.plan.blocks import BLOCKS
from airrun.plan.checks import equal, fail, index, multiple, one_of, row_nbytes, show, within
from airrun.plan.device import (
    AXES,
    BACKENDS,
    COUNTS,
    DEVICE_FORMAT_VERSION,
    DEVICE_INPUTS,
    DEVICE_SPACES,
    DeviceLibrary,
    DevicePlan,
    Launch,
    matrix_uses,
)
from airrun.plan.schema import PHASES, Operand, Plan
from airrun.plan.verify import MAX_COUNT, MAX_NBYTES
from airrun.plan.verify_steps import MAX_BATCH

MAX_THREADS = 1024
MAX_SHARED_NBYTES = 1 << 18
MAX_GRID = (1 << 31) - 1
_INTEGERS = ("tokens", "outputs")


def verify_device(device: DevicePlan, plan: Plan) -> None:
    """Check the numbers of the GPU's part against its own tables and those of the plan around it.

    Raises
    ------
    PlanError
        The first inconsistency, with its path.
    """
    if device.format_version != DEVICE_FORMAT_VERSION:
        fail(
            "gpu.format_version", f"is {device.format_version}, this airrun knows {DEVICE_FORMAT_VERSION}: build again"
        )
    _libraries(device, plan)
    _weights(device, plan)
    _memory(device, plan)
    steps = _Steps(device, plan)
    within("gpu.vram_nbytes", device.vram_nbytes, 0, MAX_NBYTES)
    for i, target in enumerate(device.targets):
        for name in ("vram_nbytes", "vram_bytes_per_s", "bus_bytes_per_s"):
            within(f"gpu.targets[{i}].{name}", getattr(target, name), 0, 1 << 62)
    within("number of gpu.programs", len(device.programs), 1, 8)
    smallest = 1
    for i, program in enumerate(device.programs):
        within(f"gpu.programs[{i}].max_tokens", program.max_tokens, smallest, MAX_BATCH)
        smallest = program.max_tokens + 1
        index(f"gpu.programs[{i}].hidden", program.hidden, device.buffers, "gpu.buffers")
        hidden = device.buffers[program.hidden].nbytes
        within(f"gpu.programs[{i}].hidden", hidden, 4 * plan.model.n_embd, MAX_NBYTES, "bytes a token")
        steps.check(f"gpu.programs[{i}].steps", program.steps, program.max_tokens)
    order = [use.weight for use in matrix_uses(device.programs[0].steps)]
    for i, program in enumerate(device.programs):
        if [use.weight for use in matrix_uses(program.steps)] != order:
            fail(f"gpu.programs[{i}].steps", "read their matrices in another order than those of the first program")
    equal("gpu.programs[0].max_tokens", device.programs[0].max_tokens, 1, "single tokens being decoded by it")
    steps.check("gpu.greedy", device.greedy, 1)
    steps.check("gpu.leaders.steps", device.leaders.steps, 1)
    _leaders(device)


def _libraries(device: DevicePlan, plan: Plan) -> None:
    within("number of gpu.libraries", len(device.libraries), 1, 16)
    for i, library in enumerate(device.libraries):
        path = f"gpu.libraries[{i}]"
        one_of(f"{path}.backend", library.backend, BACKENDS)
        index(f"{path}.segment", library.segment, plan.segments, "segments")
        if not library.arch:
            fail(f"{path}.arch", "is empty")
        equal(f"{path}.binaries", len(library.binaries), len(device.kernels), "the number of kernels")
        _binaries(path, library, plan.segments[library.segment].nbytes)
    if len({library.arch for library in device.libraries}) < len(device.libraries):
        fail("gpu.libraries", "has two for one architecture")


def _binaries(path: str, library: DeviceLibrary, room: int) -> None:
    for j, binary in enumerate(library.binaries):
        at = f"{path}.binaries[{j}]"
        if not binary.entry.isidentifier():
            fail(f"{at}.entry", f"is {show(binary.entry)}, no name of a function")
        within(f"{at}.nbytes", binary.nbytes, 1, room)
        within(f"{at}.offset", binary.offset, 0, room - binary.nbytes)
        within(f"{at}.threads", binary.threads, 1, MAX_THREADS)
        within(f"{at}.shared_nbytes", binary.shared_nbytes, 0, MAX_SHARED_NBYTES)
        for k, tile in enumerate(binary.tiles):
            within(f"{at}.tiles[{k}]", tile, 1, MAX_COUNT)


def _weights(device: DevicePlan, plan: Plan) -> None:
    for i, weight in enumerate(device.weights):
        path = f"gpu.weights[{i}]"
        within(f"{path}.layer", weight.layer, -1, plan.model.n_layers - 1)
        one_of(f"{path}.format", weight.format, BLOCKS)
        within(f"{path}.n_rows", weight.n_rows, 1, MAX_COUNT)
        within(f"{path}.n_cols", weight.n_cols, 1, MAX_COUNT)
        within(f"{path}.nbytes", weight.nbytes, 1, MAX_NBYTES)
        within(f"{path}.places", weight.places, weight.n_cols // BLOCKS[weight.format].block, MAX_COUNT)
        within(f"{path}.halves_offset", weight.halves_offset, 0, weight.nbytes - 1)
        within(f"{path}.pack", weight.pack, -1, len(device.kernels) - 1)
        rows = 0
        for j, part in enumerate(weight.parts):
            index(f"{path}.parts[{j}]", part, plan.tensors, "tensors")
            tensor = plan.tensors[part]
            if (tensor.format, tensor.shape[-1]) != (weight.format, weight.n_cols):
                fail(f"{path}.parts[{j}]", f"is {tensor.format} with rows of {tensor.shape[-1]}, unlike the weight")
            rows += math.prod(tensor.shape[:-1])
        equal(f"{path}.n_rows", weight.n_rows, rows, "its parts")
        row = row_nbytes(f"{path}.n_cols", weight.format, weight.n_cols)
        # planes are padded, never shorter than the blocks
        within(f"{path}.nbytes", weight.nbytes, rows * row, MAX_NBYTES)


def _memory(device: DevicePlan, plan: Plan) -> None:
    within("gpu.arena_nbytes", device.arena_nbytes, 64, MAX_NBYTES // MAX_BATCH)
    for i, buffer in enumerate(device.buffers):
        path = f"gpu.buffers[{i}]"
        within(f"{path}.nbytes", buffer.nbytes, 64, device.arena_nbytes)
        within(f"{path}.offset", buffer.offset, 0, device.arena_nbytes - buffer.nbytes)
        multiple(f"{path}.nbytes", buffer.nbytes, 64)
        multiple(f"{path}.offset", buffer.offset, 64)
    within("gpu.scratch_nbytes", device.scratch_nbytes, 0, MAX_NBYTES)
    within("gpu.logits_stride", device.logits_stride, plan.model.n_vocab, MAX_COUNT)


def _leaders(device: DevicePlan) -> None:
    leaders = device.leaders
    within("gpu.leaders.parts", leaders.parts, 1, 1 << 12)
    within("gpu.leaders.best", leaders.best, 1, 1 << 12)
    within("gpu.leaders.offset", leaders.offset, 0, device.scratch_nbytes - leaders.nbytes)
    multiple("gpu.leaders.offset", leaders.offset, 16)


class _Steps:
    """Checks of launches; every distinct operand and extent once a table."""

    def __init__(self, device: DevicePlan, plan: Plan) -> None:
        self._device, self._plan = device, plan
        inputs = dict.fromkeys(DEVICE_INPUTS, 4) | {"rope": 8 * max(plan.rope.n_pairs, 1)}
        self._room = {
            "none": [1],
            "weight": [weight.nbytes for weight in device.weights],
            "halves": [weight.nbytes - weight.halves_offset for weight in device.weights],
            "tensor": [tensor.nbytes for tensor in plan.tensors],
            "buffer": [buffer.nbytes for buffer in device.buffers],
            "input": [inputs[name] for name in DEVICE_INPUTS],
            "kv": [layer.block_nbytes for layer in plan.kv.layers],
            "logits": [4 * device.logits_stride],
            "scratch": [max(device.scratch_nbytes, 1)],
        }

    def check(self, path: str, steps: tuple[Launch, ...], max_tokens: int) -> None:
        seen: set[int] = set()
        for i, step in enumerate(steps):
            at = f"{path}[{i}]"
            index(f"{at}.kernel", step.kernel, self._device.kernels, "gpu.kernels")
            one_of(f"{at}.phase", step.phase, PHASES)
            within(f"{at}.layer", step.layer, 0 if step.phase == "layer" else -1, self._plan.model.n_layers - 1)
            for integer in step.integers:
                one_of(f"{at}.integers", integer, _INTEGERS)
            for operand in step.operands:
                if id(operand) not in seen:
                    seen.add(id(operand))
                    self._operand(at, operand)
            self._grid(at, step, max_tokens)

    def _operand(self, path: str, operand: Operand) -> None:
        one_of(f"{path}.operands.space", operand.space, DEVICE_SPACES)
        room = self._room[operand.space]
        index(f"{path}.operands.index", operand.index, room, f"space {operand.space}")
        within(f"{path}.operands.offset", operand.offset, 0, room[operand.index] - 1)

    def _grid(self, path: str, step: Launch, max_tokens: int) -> None:
        for library in self._device.libraries:
            tiles = library.binaries[step.kernel].tiles
            equal(f"{path}.extents", len(step.extents), len(tiles), f"the tiles of its kernel for {library.arch}")
            programs = [1] * AXES
            for extent, tile in zip(step.extents, tiles, strict=True):
                within(f"{path}.extents.axis", extent.axis, 0, AXES - 1)
                one_of(f"{path}.extents.count", extent.count, COUNTS)
                within(f"{path}.extents.n", extent.n, 1, MAX_COUNT)
                total = extent.n * (1 if extent.count == "fixed" else max_tokens)
                programs[extent.axis] *= -(-total // tile)
            if programs[0] > MAX_GRID or max(programs[1:]) > 65535:
                raise PlanError(f"{path} needs a grid of {programs} programs, more than there can be")
