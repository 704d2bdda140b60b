"""The compiler, phase by phase: a model file and a target become a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from aircompile.architectures import build_graph
from aircompile.assemble import Parts, assemble
from aircompile.codegen import CompiledLibrary, Progress, compile_library
from aircompile.cost import estimate
from aircompile.frontends.gguf import read_gguf
from aircompile.graph import Graph
from aircompile.lowering import Caches, lower, plan_caches, specs_of
from aircompile.memory_plan import place
from aircompile.passes import PASSES
from aircompile.passes.options import Activations, PassOptions
from airkernels.cpu.isa import ISAS, VectorIsa
from airrun import __version__
from airrun.built_here import remember_plan
from airrun.cuda.sizes import device_sizes
from airrun.errors import UsageError
from airrun.ledger import sizes_of
from airrun.machine.profile import Profile
from airrun.paths import remember_weights
from airrun.plan.container import content_digest, sign_plan, write_plan
from airrun.plan.device import DeviceTarget
from airrun.plan.schema import Choice, Plan, Segment
from airrun.tokenizer.metadata import spec_from_metadata
from airrun.tokenizer.wire import spec_to_bytes

GENERATOR = f"aircompile {__version__}"

_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class BuildOptions:
    """What a user decides about a build.

    Attributes
    ----------
    profile
        The target machine.
    ctx_size
        Context of a session; by default what the model was trained for, at most 4096.
    threads
        Threads the plan runs on by default; 0 leaves it to the machine.
    activations
        'auto': bytes where the weights are integers, else floats; 'q8', 'f32'.
    kv_type
        'f32', 'f16', 'q8_0', 'q4_0', two of them as 'KEYS,VALUES', or 'auto': f32 with float activations, else f16.
    tune
        'none' (records and rules), 'fast', 'full'.
    ram
        Bytes that a process running the plan may take by default; None leaves it to the machine.
    debug_dump
        Folder for the graph after every phase.
    gpus
        GPUs that the plan carries code for, beside that for the processor.
    vram
        Bytes of a GPU's memory that a run may take by default; None leaves it to the machine.
    sign
        Private key (PEM) that signs the plan; None leaves it unsigned.
    """

    profile: Profile
    ctx_size: int | None = None
    threads: int = 0
    activations: Activations = "auto"
    kv_type: str = "auto"
    tune: str = "none"
    ram: int | None = None
    debug_dump: Path | None = None
    gpus: tuple[DeviceTarget, ...] = ()
    vram: int | None = None
    sign: Path | None = None


class Report:
    """Progress of a build; does nothing unless overridden."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def step(self, what: str, done: int, total: int) -> None:
        """Part of a phase is done."""


def build(model_path: Path, out: Path, options: BuildOptions, report: Report | None = None) -> Plan:
    """Compile a model.

    Parameters
    ----------
    model_path
        GGUF file (any shard of a split one).
    out
        Plan file to write; replaced whole or not at all.

    Raises
    ------
    AirError
        The model is damaged or not supported, or the options contradict it.
    """
    report = report or Report()
    dump = _Dump(options.debug_dump)

    report.phase("read the model")
    model = read_gguf(model_path)
    tokenizer = spec_to_bytes(spec_from_metadata(model.metadata))

    report.phase("build the graph")
    graph = build_graph(model, options.ctx_size)
    graph.check()
    dump.graph("graph", graph)

    report.phase("rewrite the graph")
    for name, rewrite in PASSES:
        graph = rewrite(graph, PassOptions(options.activations))
        graph.check()
        dump.graph(name, graph)

    report.phase("select kernels")
    n_ctx_max = graph.hyper.n_ctx_max or max(graph.hyper.n_ctx_train, options.ctx_size or 0)
    ctx_size = options.ctx_size or min(n_ctx_max, _DEFAULT_CONTEXT)
    if ctx_size > n_ctx_max:
        raise UsageError(f"{model_path}: context of {ctx_size} tokens: the positions of this model end at {n_ctx_max}")
    kv_type = options.kv_type if options.kv_type != "auto" else "f32" if options.activations == "f32" else "f16"
    caches = plan_caches(graph, kv_type, n_ctx_max)
    lowered = lower(graph, caches)
    specs = specs_of(lowered)

    report.phase("tune kernels")
    isas = _instruction_sets(options.profile)
    if options.tune != "none":
        from aircompile.tuning import tune

        tune(specs, isas[0], options.tune, report.step)

    report.phase("plan memory")
    placements, arena_nbytes = place(lowered[-1][1])
    dump.text("memory", "\n".join(f"{p.offset:8d} {p.nbytes:8d} {name}" for name, p in placements.items()))

    report.phase("compile kernels")
    libraries: list[CompiledLibrary] = [compile_library(specs, isa, report.step) for isa in isas]

    report.phase("write the plan")
    choice = Choice(
        options.profile.name,
        ctx_size,
        options.threads,
        options.activations,
        kv_type,
        options.tune,
        options.ram or 0,
    )
    parts = Parts(model, graph, caches, lowered, placements, arena_nbytes, libraries, options.profile.tiers.disk)
    plan, segments = assemble(parts, choice, estimate(lowered, options.profile, options.threads), tokenizer, GENERATOR)
    if options.ram is not None:
        sizes_of(plan, library=plan.libraries[0], threads=options.threads or options.profile.cpu.threads or None)
    if options.gpus:
        report.phase("compile kernels for GPUs")
        plan, segments = with_gpus(plan, segments, graph, caches, options, report.step)
    write_plan(out, plan, segments)
    remember_plan(content_digest(out.read_bytes()).hex())
    if options.sign is not None:
        sign_plan(out, options.sign)
    for file, source in zip(plan.files, model.files, strict=True):
        remember_weights(file.header_sha256, source.path)
    return plan


def with_gpus(
    plan: Plan, segments: list[bytes], graph: Graph, caches: Caches, options: BuildOptions, progress: Progress
) -> tuple[Plan, list[bytes]]:
    """A plan with a part for GPUs, which is further segments of it."""
    from aircompile.gpu.assemble import build_for_devices

    exact = options.activations == "f32"
    added = build_for_devices(graph, caches, exact, options.gpus, len(plan.segments), options.vram or 0, progress)
    if options.vram is not None:
        device_sizes(plan, added.plan, vram=options.vram, ram=options.ram)
    places = tuple(Segment(name, 0, 0) for name in added.names)
    return replace(plan, segments=plan.segments + places), [*segments, *added.contents]


def _instruction_sets(profile: Profile) -> list[VectorIsa]:
    """Those of the target's levels that there are kernels for, best first."""
    known = [replace(ISAS[level], prefetch=profile.cpu.prefetch) for level in profile.cpu.isa if level in ISAS]
    if not known:
        have = ", ".join(profile.cpu.isa) or "none"
        raise UsageError(f"target {profile.name}: no kernels for its CPU levels ({have}); known: {', '.join(ISAS)}")
    return known


class _Dump:
    """Writes what each phase made, numbered in order."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._count = folder, 0
        self._write: Callable[[str, str], None] = self._save if folder is not None else lambda _name, _text: None

    def graph(self, name: str, graph: Graph) -> None:
        if self._folder is not None:
            self.text(name, graph.dump())

    def text(self, name: str, text: str) -> None:
        self._write(name, text)

    def _save(self, name: str, text: str) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._count:02d}_{name}.txt").write_text(text)
        self._count += 1
