"""The engine: a plan, its weights in memory, and the threads that run it, shared by all sessions.

Nothing here imports numpy before the weights are being loaded: it takes a third of the start of a process, and the
native threads that load need neither it nor the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airrun.ledger import Sizes, sizes_of
from airrun.plan.container import LoadedPlan, has_device_plan, read_plan
from airrun.plan.fingerprint import locate
from airrun.replay.native import Library, Team
from airrun.requirements import require
from airrun.weights.files import LoadMode, WeightFiles
from airrun.weights.loading import Loading
from airrun.weights.resident import Weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from airrun.generation.generate import GenerateConfig
    from airrun.generation.leaders import Leaders
    from airrun.replay.batch import Batch
    from airrun.replay.kv_cache import SequenceMemory
    from airrun.session import Session
    from airrun.tokenizer import Tokenizer

ModelPaths = str | Path | Sequence[str | Path] | None


class Engine:
    """A compiled model, ready to run. Make one with `from_plan` or `from_gguf`.

    Attributes
    ----------
    n_vocab, n_ctx
        Vocabulary size, and most tokens a session holds.
    streams
        Whether weights are streamed, because they do not fit.
    max_batch, max_outputs
        Most tokens of one step, and of those whose logits are all wanted.
    parallel
        Sessions that can be full at the same time.
    device, chooses
        'cpu' or 'cuda', and whether it finds the most likely next tokens without handing out all logits.
    max_watched
        Most tokens whose logits `leaders` sees.
    no_gpu
        Why a plan with code for GPUs runs on the processor all the same; empty where there is nothing to say.
    """

    device, chooses, max_watched = "cpu", False, 0
    no_gpu = ""

    def __init__(self, loaded: LoadedPlan, paths: Sequence[Path], sizes: Sizes, load_mode: LoadMode = "auto") -> None:
        plan = loaded.plan
        self.loaded, self.plan, self.sizes = loaded, plan, sizes
        self.threads, self.n_ctx, self.max_batch = sizes.threads, sizes.ctx_size, sizes.max_tokens
        self.max_outputs, self.parallel = sizes.max_outputs, sizes.parallel
        self.n_vocab = plan.model.n_vocab
        self.isa = sizes.library.isa
        library = Library(loaded.segment(sizes.library.segment), str(loaded.path))
        self._files = WeightFiles(plan, paths)
        self.streams = sizes.residency.streams
        if load_mode == "auto" and not self.streams:
            load_mode = "mmap"
        self.load_mode = self._files.open_streams(load_mode)
        weights = Weights(plan, self._files, sizes, library)
        self._team = Team(library, sizes.threads, sizes.panels // sizes.threads)
        self._loading = Loading(weights, self._files, self._team, self.load_mode, keep_maps=self.streams)

        from airrun.replay.executor import Executor
        from airrun.replay.kv_cache import BlockPool, StatePool

        self.pool = BlockPool(plan.kv, sizes.kv_blocks, sizes.ring_blocks)
        self.states = StatePool(plan.states, sizes.state_slots)
        memory = (self.pool, self.states)
        self._executor = Executor(
            loaded, library, sizes, self._team, weights, self._files, memory, self._loading, self.load_mode
        )

    @classmethod
    def from_plan(
        cls,
        plan: str | Path,
        model: ModelPaths = None,
        *,
        threads: int | None = None,
        ctx_size: int | None = None,
        parallel: int = 1,
        ram: int | str | None = None,
        vram: int | str | None = None,
        load_mode: LoadMode = "auto",
        device: str = "auto",
        require_signature: Sequence[str | Path] = (),
        check_steps: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Load a plan and the weights it names.

        Parameters
        ----------
        plan
            Path of a plan file.
        model
            Weight files; by default they are found by fingerprint.
        threads
            Worker threads; by default what the plan was built for, at most this machine's cores.
        ctx_size
            Most tokens of a session; by default the plan's.
        parallel
            Sessions that can be full at the same time.
        ram
            Bytes that the process may take, also as ``"1500MiB"``: weights that do not fit are streamed from their file
            in every step. By default what the plan was built for, else what is available now.
        vram
            The same of a GPU's memory: weights that do not fit stay in the host's, as far as `ram` goes, and cross the
            bus in every step.
        load_mode
            How weights are read: 'direct' (past the page cache), 'buffered', 'mmap', or 'auto': mapped if everything
            fits, else direct where the file system has that, else buffered.
        device
            'cpu', 'cuda', or 'auto': a GPU where the plan has code for one and there is one.
        require_signature
            Public keys (PEM files) of which one must have signed the plan.
        check_steps
            Wait for every kernel of a GPU, so that an error names the step that failed.
        progress
            Called with the bytes that were read and those there are to read, while weights are loaded to a GPU.

        Raises
        ------
        PlanError
            The plan is damaged, too new, for another machine, or its weights are not found.
        WeightFileError
            A weight file cannot be read.
        BudgetError
            `ram` is too small.
        UsageError
            Numbers out of range.
        """
        loaded = read_plan(Path(plan))
        if require_signature:
            from airrun.plan.signature import require_signature as require_one_of

            require_one_of(loaded, require_signature)
        given = [] if model is None else [model] if isinstance(model, str | Path) else list(model)
        paths = locate(loaded.plan, loaded.path, [Path(p) for p in given])
        ram, vram = _nbytes(ram), _nbytes(vram)
        obstacle = ""
        if device == "cuda" or (device == "auto" and has_device_plan(loaded.plan)):
            from airrun.cuda.engine import cuda_engine

            found = cuda_engine(
                loaded,
                paths,
                device,
                ctx_size=ctx_size,
                parallel=parallel,
                vram=vram,
                ram=ram,
                load_mode=load_mode,
                check_steps=check_steps,
                progress=progress,
            )
            if not isinstance(found, str):
                return found
            obstacle = found
        require(loaded)
        sizes = sizes_of(loaded.plan, threads=threads, ctx_size=ctx_size, parallel=parallel, ram=ram)
        engine = cls(loaded, paths, sizes, load_mode)
        engine.no_gpu = obstacle
        return engine

    @classmethod
    def from_gguf(cls, path: str | Path, **options: Any) -> Engine:
        """Build and cache the plan of a model for this machine (needs the compiler), then load it."""
        from airrun.autobuild import plan_for

        return cls.from_plan(plan_for(Path(path)), path, **options)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from airrun.tokenizer import Tokenizer
        from airrun.tokenizer.wire import spec_from_bytes

        return Tokenizer(spec_from_bytes(self.loaded.segment(self.plan.tokenizer)))

    @cached_property
    def session(self) -> Session:
        """The session that `generate`, `stream` and `reset` act on."""
        return self.new_session()

    def new_session(self) -> Session:
        """A further session; all share the KV cache."""
        from airrun.session import Session

        return Session(self)

    @property
    def step_devices(self) -> dict[str, str]:
        """Where steps of each kind run: device by operator."""
        steps = [step for program in self.plan.programs for step in program.steps]
        return {self.plan.kernels[step.kernel].op: step.device for step in steps}

    def run(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Evaluate tokens of one or several sessions in one pass over the weights.

        Returns
        -------
        float32 [n_outputs, n_vocab], a view that the next call overwrites.
        """
        return self._executor.run(batch)

    @property
    def decode(self) -> Callable[[SequenceMemory, int, int], npt.NDArray[np.float32]]:
        """`Executor.decode`: `run` for one token of one sequence, to which (memory, cell, token id) are given."""
        return self._executor.decode

    def choose(self, memory: SequenceMemory, cell: int, token: int) -> int:
        """The most likely token after `token`, which becomes the one at `cell` of a sequence; only if `chooses`."""
        raise NotImplementedError

    def leaders(self, memory: SequenceMemory, cell: int, token: int, watched: npt.NDArray[np.int32]) -> Leaders:
        """The most likely tokens after `token`, and the logits of those `watched`; only if `chooses`."""
        raise NotImplementedError

    def count_accepted(self) -> None:
        """Count one of a batch's guesses as right, see `metrics`."""
        self._executor.count_accepted()

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every position of a fresh sequence: float32 [len(ids), n_vocab]. Leaves `session` as it is."""
        session = self.new_session()
        try:
            return session.eval(ids, all_logits=True)
        finally:
            session.reset()

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def generate(self, prompt: str | Sequence[int], config: GenerateConfig | None = None) -> str:
        """The continuation of a prompt, on the default session."""
        return "".join(self.stream(prompt, config))

    def stream(self, prompt: str | Sequence[int], config: GenerateConfig | None = None) -> Iterator[str]:
        """The continuation of a prompt, piece by piece, on the default session."""
        from airrun.generation.generate import GenerateConfig, stream_text

        return stream_text(self.session, prompt, config or GenerateConfig())

    def generate_many(self, prompts: Sequence[str | Sequence[int]], config: GenerateConfig | None = None) -> list[str]:
        """The continuations of several prompts, generated together, in sessions of their own.

        The engine must have been opened with `parallel` of at least their number.
        """
        from airrun.generation.generate import GenerateConfig
        from airrun.generation.parallel import generate_many

        return generate_many(self, prompts, config or GenerateConfig())

    def reset(self) -> None:
        """Forget the default session's conversation."""
        self.session.reset()

    def metrics(self) -> dict[str, float]:
        """What was done so far: seconds and tokens of load, prefill and decode, seconds inside native code.

        Where weights are streamed also the bytes read, the passes, and the share of time that was waited for reads.
        With speculation also the tokens `drafted`, those `accepted`, and the passes that verified them.
        """
        self._team.wait()
        return {"load_seconds": self._loading.seconds, **self._executor.metrics()}

    def watch(self, progress: Callable[[int, int], None] | None) -> None:
        """Have `progress` called with the layers done and those there are, where weights are streamed."""
        if self._executor.streamed is not None:
            self._executor.streamed.progress = progress

    def close(self, *, zero_memory: bool = False) -> None:
        """End the threads. The engine cannot run afterwards. `zero_memory` is about the memory of a GPU."""
        self._executor.close()
        self._team.close()
        self._files.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _nbytes(quantity: int | str | None) -> int | None:
    if not isinstance(quantity, str):
        return quantity
    from airrun.machine.profile import parse_bytes

    return parse_bytes(quantity)
