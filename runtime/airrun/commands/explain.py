"""``explain``: what a plan holds, where every byte goes, which kernels run and why, and how fast it should be."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from dataclasses import asdict
from itertools import groupby
from typing import Any

from airrun.built_here import was_built_here
from airrun.commands.options import OptionParser
from airrun.errors import PlanError
from airrun.ledger import Sizes, gathered, sizes_of
from airrun.machine.isa import LEVELS, missing
from airrun.plan.container import LoadedPlan, has_device_plan, read_plan
from airrun.plan.schema import Kernel, Library, Plan, Program, Step
from airrun.predict import CONTEXT, predict
from airrun.requirements import choose_library, require


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("plan", metavar="PLAN", help="plan.bin to explain; its weight file is not needed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--steps", action="store_true", help="list every step rather than one of each kind of layer")
    parser.add_options(("ctx_size", "threads", "ram", "vram"))
    parser.add_argument("--context", type=int, default=CONTEXT, metavar="N",
                        help=f"tokens in the cache for the predicted speed (default: {CONTEXT})")  # fmt: skip


def run(args: Namespace) -> int:
    """Print the explanation of a plan.

    Raises
    ------
    AirError
        A plan that cannot be read, or sizes out of its range.
    """
    loaded = read_plan(args.plan)
    found = describe(
        loaded,
        threads=args.threads,
        ctx_size=args.ctx_size,
        ram=args.ram,
        vram=args.vram,
        context=args.context,
        all_steps=args.steps,
    )
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        from airrun.commands.explain_text import render

        render(found)
    return 0


def describe(
    loaded: LoadedPlan,
    *,
    threads: int | None = None,
    ctx_size: int | None = None,
    ram: int | None = None,
    vram: int | None = None,
    context: int = CONTEXT,
    all_steps: bool = False,
) -> dict[str, Any]:
    """Everything that `explain` prints, as plain data; the keys are those of ``--json``.

    Parameters
    ----------
    loaded
        The plan.
    threads, ctx_size, ram, vram
        Override the plan's.
    context
        Tokens in the cache for the predicted speed.
    all_steps
        Every layer's steps rather than those of each distinct layer.
    """
    plan = loaded.plan
    try:
        require(loaded)
        library = choose_library(plan)
        level, obstacle = library.isa, ""
    except PlanError as error:
        library, level, obstacle = plan.libraries[0], "", str(error)
    sizes = sizes_of(plan, threads=threads, ctx_size=ctx_size, library=library, ram=ram)
    return {
        "plan": {
            "path": str(loaded.path),
            "nbytes": loaded.path.stat().st_size,
            "digest": loaded.digest,
            "generator": plan.generator,
            "built_here": was_built_here(loaded.digest),
            "segments": {segment.name: segment.nbytes for segment in plan.segments},
        },
        "model": {key: value for key, value in asdict(plan.model).items() if key not in ("hidden", "logits_stride")},
        "choice": asdict(plan.choice),
        "files": [asdict(file) for file in plan.files],
        "libraries": [_library(each, level) for each in plan.libraries],
        "obstacle": obstacle,
        "ledger": ledger(plan, sizes),
        "formats": _formats(plan),
        "kernels": _kernels(plan),
        "programs": [_program(plan, program, all_steps) for program in plan.programs],
        "prediction": asdict(predict(plan, context, sizes)),
        "gpu": _device(loaded, ctx_size, ram, vram),
    }


def _device(loaded: LoadedPlan, ctx_size: int | None, ram: int | None, vram: int | None) -> dict[str, Any] | None:
    if not has_device_plan(loaded.plan):
        return None
    from airrun.commands.explain_device import describe_device

    return describe_device(loaded, ctx_size, ram, vram)


def ledger(plan: Plan, sizes: Sizes) -> dict[str, Any]:
    """Bytes by tier: what is allocated, and what is read from files in every pass, or a row of it."""
    return {
        "threads": sizes.threads,
        "ctx_size": sizes.ctx_size,
        "batch": sizes.max_tokens,
        "budget": sizes.budget,
        "ram": sizes.entries,
        "ram_total": sizes.total,
        "disk": {file.name: file.nbytes for file in plan.files},
        "disk_total": sum(file.nbytes for file in plan.files),
        "streamed_per_pass": sizes.residency.streamed_nbytes,
        "read_by_row": sum(plan.tensors[i].nbytes for i in gathered(plan)),
    }


def _library(library: Library, chosen: str) -> dict[str, Any]:
    return {
        "isa": library.isa,
        "arch": library.arch,
        "features": list(library.features),
        "missing_here": missing(library.isa) if library.isa in LEVELS else [library.isa],
        "chosen_here": library.isa == chosen,
        "scratch_nbytes_per_worker": library.scratch_nbytes,
    }


def _formats(plan: Plan) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in plan.tensors:
        entry = found.setdefault(tensor.format, {"tensors": 0, "nbytes": 0})
        entry["tensors"] += 1
        entry["nbytes"] += tensor.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["nbytes"]))


def _kernels(plan: Plan) -> list[dict[str, Any]]:
    counts = {program.name: [step.kernel for step in program.steps] for program in plan.programs}
    return [
        {**asdict(kernel), "calls": {name: used.count(i) for name, used in counts.items() if i in used}}
        for i, kernel in enumerate(plan.kernels)
    ]


def _program(plan: Plan, program: Program, all_steps: bool) -> dict[str, Any]:
    """Steps by section: what comes before the layers, each distinct layer once, and what comes after."""
    sections: list[dict[str, Any]] = []
    for (phase, layer), group in groupby(program.steps, key=lambda step: (step.phase, step.layer)):
        steps = [_step(plan, step) for step in group]
        same = next((s for s in sections if phase == "layer" == s["phase"] and s["steps"] == steps), None)
        if same is not None and not all_steps:
            same["layers"].append(layer)
        else:
            sections.append({"phase": phase, "layers": [layer] if phase == "layer" else [], "steps": steps})
    return {
        "name": program.name,
        "max_tokens": program.max_tokens,
        "n_steps": len(program.steps),
        "n_syncs": sum(step.sync for step in program.steps),
        "sections": sections,
    }


def _step(plan: Plan, step: Step) -> dict[str, Any]:
    kernel: Kernel = plan.kernels[step.kernel]
    weights = [plan.weights[operand.index] for operand in step.operands if operand.space == "weight"]
    return {
        "label": re.sub(rf"^layers\.{step.layer}\.", "", step.label),
        "kernel": kernel.symbol,
        "op": kernel.op,
        "format": kernel.format,
        "shape": list(kernel.shape),
        "rows": step.rows,
        "tasks": step.tasks,
        "tokens_per_task": step.tokens_per_task,
        "sync": step.sync,
        # a product with biases takes one call per member: a task is a panel
        "weight_nbytes": sum(step.tasks * w.panel_nbytes for w in weights),
    }
