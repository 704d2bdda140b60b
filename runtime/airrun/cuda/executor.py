"""Replay on a GPU: single tokens and small batches as one CUDA graph, prompts as launches in stream order.

Greedy decoding stays on the device: the graph chooses the token and steps to it, so that the next one is started before
the host has seen it; where weights are streamed that gains nothing, and an unwanted step costs much. Where they come
from files in every step, there is no graph, as reading cannot be part of one. Where a token is drawn, the graph finds
the few that can be, and the host draws among them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from airrun.cuda.driver import Device, Graph
from airrun.cuda.inputs import Inputs
from airrun.cuda.loading import DeviceWeights
from airrun.cuda.pool import DevicePool
from airrun.cuda.programs import Addresses, BoundProgram, Kernel
from airrun.cuda.sizes import DeviceSizes
from airrun.generation.leaders import Leaders
from airrun.plan.container import LoadedPlan
from airrun.plan.device import CHOSEN_RING, MAX_SMALL, MAX_WATCHED, DevicePlan
from airrun.replay.batch import Batch, BatchSequence
from airrun.replay.kv_cache import SequenceMemory

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]


class CudaExecutor:
    """The GPU's part of a plan, bound to a device. Not thread-safe: one batch at a time.

    Parameters
    ----------
    loaded, device
        The plan, and its part for GPUs.
    kernels
        Its kernels, loaded, in order.
    sizes
        How much of everything to allocate.
    """

    def __init__(
        self,
        loaded: LoadedPlan,
        device: DevicePlan,
        gpu: Device,
        kernels: list[Kernel],
        sizes: DeviceSizes,
        weights: DeviceWeights,
        pool: DevicePool,
    ) -> None:
        self._gpu, self._device, self._sizes, self._kernels = gpu, device, sizes, kernels
        self._model = loaded.plan.model
        self._inputs = Inputs(loaded, gpu, sizes.max_tokens, sizes.ctx_size)
        self._arena = gpu.allocate(sizes.arena)
        self._scratch = gpu.allocate(sizes.scratch)
        self._tensors = [weights.tensors.get(i, 0) for i in range(len(loaded.plan.tensors))]
        self._weights, self._pool = weights, pool
        self._rows = 0
        self._room_for_outputs(1)
        decode = device.programs[0]
        self._decode = BoundProgram(gpu, decode.steps, kernels, self._addresses(self._inputs.one))
        self._greedy = BoundProgram(gpu, device.greedy, kernels, self._addresses(self._inputs.one))
        self._leaders = BoundProgram(gpu, device.leaders.steps, kernels, self._addresses(self._inputs.one))
        self._found_memory = gpu.allocate_pinned(device.leaders.nbytes)
        self._small = self._bind_small()
        self._graphs: dict[str, Graph] = {}
        self._ahead: tuple[SequenceMemory, int, int] | None = None
        self._marks = (gpu.event(), gpu.event())
        self._turn = 0
        self.work: dict[str, float] = {
            "prefill_tokens": 0,
            "decode_tokens": 0,
            "prefill_seconds": 0.0,
            "decode_seconds": 0.0,
            "native_seconds": 0.0,
        }

    def _addresses(self, inputs: list[int]) -> Addresses:
        device, weights = self._device, self._weights
        places = zip(weights.addresses, device.weights, strict=True)
        return {
            "weight": weights.addresses,
            "halves": [address + weight.halves_offset for address, weight in places],
            "tensor": self._tensors,
            "buffer": [self._arena + buffer.offset * self._sizes.max_tokens for buffer in device.buffers],
            "input": inputs,
            "kv": self._pool.addresses,
            "logits": [self._logits],
            "scratch": [self._scratch],
        }

    def _room_for_outputs(self, n: int) -> None:
        """Have memory for the logits of `n` rows, and bind the program of batches to it."""
        if n <= self._rows:
            return
        stride = self._device.logits_stride
        if not self._rows:
            self._first_logits = self._logits = self._gpu.allocate(4 * stride)
            self._row_memory = self._gpu.allocate_pinned(4 * stride)
            self._row = self._view(np.frombuffer(self._row_memory, np.float32), 1)
        else:
            if self._logits != self._first_logits:
                self._gpu.free(self._logits)
            self._logits = self._gpu.allocate(4 * stride * n)
        self._rows = n
        steps = self._device.programs[-1].steps
        self._prefill = BoundProgram(self._gpu, steps, self._kernels, self._addresses(self._inputs.addresses))

    def _bind_small(self) -> BoundProgram | None:
        """The program of small batches, with memory for the logits of each of their tokens."""
        found = [program for program in self._device.programs[1:-1] if program.max_tokens <= MAX_SMALL]
        if not found:
            return None
        self._max_small = found[-1].max_tokens
        nbytes = 4 * self._device.logits_stride * MAX_SMALL
        self._small_logits = self._gpu.allocate(nbytes)
        memory = self._gpu.allocate_pinned(nbytes)
        self._small_memory = ctypes.addressof(memory)
        self._small_rows = self._view(np.frombuffer(memory, np.float32), MAX_SMALL)
        addresses = {**self._addresses(self._inputs.addresses), "logits": [self._small_logits]}
        return BoundProgram(self._gpu, found[-1].steps, self._kernels, addresses)

    def _view(self, flat: Logits, n: int) -> Logits:
        return flat.reshape(n, self._device.logits_stride)[:, : self._model.n_vocab]

    # single tokens

    def decode(self, blocks: SequenceMemory, cell: int, token: int) -> Logits:
        """Logits [1, n_vocab] of one token of one sequence; a view that the next call overwrites."""
        started = perf_counter()
        self._gpu.use()
        self._ahead = None
        self._inputs.set_blocks(blocks)
        # what an earlier graph reads must not change under it
        self._gpu.synchronize()
        self._inputs.set_one(token, cell)
        launched = perf_counter()
        self._start("logits", self._for_logits)
        self._gpu.synchronize()
        self._count("decode", 1, started, launched)
        return self._row

    def leaders(self, blocks: SequenceMemory, cell: int, token: int, watched: npt.NDArray[np.int32]) -> Leaders:
        """The most likely tokens after `token`, which stands at `cell`; views that the next call overwrites."""
        started = perf_counter()
        self._gpu.use()
        self._ahead = None
        self._inputs.set_blocks(blocks)
        self._gpu.synchronize()
        self._inputs.set_one(token, cell)
        self._inputs.watch(watched)
        launched = perf_counter()
        self._start("leaders", self._for_leaders)
        self._gpu.synchronize()
        self._count("decode", 1, started, launched)
        return self._found(watched)

    def _found(self, watched: npt.NDArray[np.int32]) -> Leaders:
        """What the steps to the leaders left."""
        spec = self._device.leaders
        n, parts = spec.parts * spec.best, spec.parts
        found = np.frombuffer(self._found_memory, np.float32)
        best, seen, sums = found[:n], found[2 * n :][: len(watched)], found[2 * n + MAX_WATCHED :]
        tokens = found[n : 2 * n].view(np.int32)
        return Leaders(best.reshape(parts, -1), tokens.reshape(parts, -1), sums, watched, seen, self._whole_row)

    def _whole_row(self) -> Logits:
        """The logits of the last single token, float32 [n_vocab]; a view that the next call overwrites."""
        self._gpu.download(ctypes.addressof(self._row_memory), self._first_logits, 4 * self._model.n_vocab)
        self._gpu.synchronize()
        row: Logits = self._row[0]
        return row

    def choose(self, blocks: SequenceMemory, cell: int, token: int) -> int:
        """The most likely token after `token`, which stands at `cell`."""
        started = perf_counter()
        self._gpu.use()
        if self._ahead is None or self._ahead[0] is not blocks or self._ahead[1:] != (cell, token):
            self._inputs.set_blocks(blocks)
            self._gpu.synchronize()
            self._inputs.set_one(token, cell)
            self._inputs.upload_one()
            self._start_choice()
        self._inputs.set_blocks(blocks)
        mine = self._marks[self._turn]
        launched = perf_counter()
        ahead = cell + 1 < blocks.n_cells and not self._weights.streams
        if ahead:
            # the token that is being chosen is evaluated before the caller has seen it: it nearly always wants that
            self._start_choice()
        self._gpu.wait(mine)
        chosen = int(self._inputs.chosen[cell % CHOSEN_RING])
        self._ahead = (blocks, cell + 1, chosen) if ahead else None
        self._count("decode", 1, started, launched)
        return chosen

    def _start_choice(self) -> None:
        self._start("greedy", self._for_choice)
        self._turn = 1 - self._turn
        self._gpu.record(self._marks[self._turn])

    def _start(self, kind: str, record: Callable[[], None]) -> None:
        """Start a step of a kind, recorded when the first of its kind is started."""
        if self._weights.reads or self._gpu.careful:
            record()
            return
        if kind not in self._graphs:
            self._graphs[kind] = self._gpu.capture(record)
        self._graphs[kind].launch()

    def _for_logits(self) -> None:
        self._inputs.upload_one()
        self._weights.run(self._decode, 1, 1)
        self._gpu.download(ctypes.addressof(self._row_memory), self._first_logits, 4 * self._model.n_vocab)

    def _for_leaders(self) -> None:
        self._inputs.upload_one()
        self._weights.run(self._decode, 1, 1)
        self._leaders.launch(1, 1)
        spec = self._device.leaders
        self._gpu.download(ctypes.addressof(self._found_memory), self._scratch + spec.offset, spec.nbytes)

    def _for_choice(self) -> None:
        self._weights.run(self._decode, 1, 1)
        self._greedy.launch(1, 1)

    # batches

    def run(self, batch: Batch) -> Logits:
        """Evaluate a batch: a small one in one pass, another one sequence after the other.

        Returns
        -------
        float32 [n_outputs, n_vocab], a view that the next call overwrites.
        """
        self._gpu.use()
        self._ahead = None
        plain = all(s.token_ids is not None and s.positions is None for s in batch.sequences)
        if self._small is not None and plain and batch.n_tokens <= self._max_small:
            return self._run_small(self._small, batch)
        rows = [self._run_sequence(sequence) for sequence in batch.sequences]
        found = [row for row in rows if row is not None]
        if len(found) == 1:
            return found[0]
        empty = np.empty((0, self._model.n_vocab), np.float32)
        return np.concatenate(found) if found else empty

    def _run_small(self, program: BoundProgram, batch: Batch) -> Logits:
        started = perf_counter()
        n, n_outputs = batch.n_tokens, batch.n_outputs
        self._gpu.synchronize()
        self._inputs.set_several(batch.sequences)
        launched = perf_counter()

        def record() -> None:
            self._weights.run(program, n, n_outputs, 0, None if n_outputs else program.first_head)
            if n_outputs:
                nbytes = 4 * self._device.logits_stride * n_outputs
                self._gpu.download(self._small_memory, self._small_logits, nbytes)

        self._start(f"{n} tokens, {n_outputs} outputs", record)
        self._gpu.synchronize()
        worth = n - batch.guesses
        self._count("decode" if worth == len(batch.sequences) else "prefill", worth, started, launched)
        return self._small_rows[:n_outputs]

    def _run_sequence(self, sequence: BatchSequence) -> Logits | None:
        started = perf_counter()
        gpu, n, n_outputs = self._gpu, sequence.n, len(sequence.outputs)
        assert 0 < n <= self._sizes.max_tokens
        gpu.synchronize()
        self._room_for_outputs(n_outputs)
        self._inputs.set_blocks(sequence.memory)
        self._inputs.set_batch(sequence)
        program = self._prefill
        first = 0
        if sequence.embeddings is not None:
            first = program.first_after_embed
            self._upload_embeddings(sequence.embeddings)
        launched = perf_counter()
        self._weights.run(program, n, n_outputs, first, None if n_outputs else program.first_head)
        out = None
        if n_outputs:
            flat = np.empty(n_outputs * self._device.logits_stride, np.float32)
            gpu.download(flat.ctypes.data, self._logits, flat.nbytes)
            out = self._view(flat, n_outputs)
        gpu.synchronize()
        self._count("decode" if n == 1 else "prefill", n, started, launched)
        return out

    def _upload_embeddings(self, embeddings: Any) -> None:
        buffer = self._device.buffers[self._device.programs[-1].hidden]
        rows = np.zeros((len(embeddings), buffer.nbytes // 4), np.float32)
        rows[:, : self._model.n_embd] = embeddings
        target = self._arena + buffer.offset * self._sizes.max_tokens
        self._gpu.upload(target, rows.ctypes.data, rows.nbytes)
        self._gpu.synchronize()

    def _count(self, kind: str, n: int, started: float, launched: float) -> None:
        ended = perf_counter()
        self.work[f"{kind}_tokens"] += n
        self.work[f"{kind}_seconds"] += ended - started
        self.work["native_seconds"] += ended - launched
