"""The explanation of a plan as text: tables in a terminal where rich is installed, aligned columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

Rows = Sequence[Sequence[str]]
Table = Callable[[str, Sequence[str], Rows], None]


def render(found: dict[str, Any]) -> None:
    """Print what `airrun.commands.explain.describe` found."""
    table = show_table
    _overview(found)
    _ledger(found["ledger"], table)
    formats = found["formats"].items()
    table("Tensors by format", ["format", "tensors", "bytes"],
          [[name, str(entry["tensors"]), size(entry["nbytes"])] for name, entry in formats])  # fmt: skip
    table("Native code", ["instruction set", "here", "needs"],
          [[each["isa"], _here(each), " ".join(each["features"])] for each in found["libraries"]])  # fmt: skip
    if found["obstacle"]:
        print(f"note: {found['obstacle']}\n")
    scheduled = [kernel for kernel in found["kernels"] if kernel["schedule"]]
    table("Kernels with a choice of schedule", ["kernel", "calls", "schedule", "why"],
          [[_kernel(k), _calls(k["calls"]), k["schedule"], k["reason"]] for k in scheduled])  # fmt: skip
    for program in found["programs"]:
        _program(program, table)
    _prediction(found["prediction"])
    if found["gpu"] is not None:
        _gpu(found["gpu"], table)


def _gpu(found: dict[str, Any], table: Table) -> None:
    """The part for GPUs."""
    table("Code for GPUs", ["architecture", "bytes", "state"],
          [[each["arch"], size(each["nbytes"]), "" if each["checked"] else "compiled, not run"]
           for each in found["libraries"]])  # fmt: skip
    rows = [["GPU", name, size(nbytes)] for name, nbytes in found["memory"].items()]
    rows += [["GPU", "total", size(found["total"])]]
    rows += [["RAM", name, size(nbytes)] for name, nbytes in found["host_memory"].items()]
    rows += [["bus", "copied for every token", size(found["bus_per_token"])]] if found["bus_per_token"] else []
    rows += [["disk", "read for every token", size(found["disk_per_token"])]] if found["disk_per_token"] else []
    table("Memory of a run on the GPU", ["tier", "what", "bytes"], rows)
    chosen = [
        [_kernel(kernel), _calls(kernel["calls"]), f"{arch}: {entry['schedule']}", entry["reason"]]
        for kernel in found["kernels"]
        for arch, entry in kernel["schedules"].items()
        if entry["reason"]
    ]
    table("Kernels of GPUs with a choice of tiling", ["kernel", "calls", "tiling", "why"], chosen)
    for each in found["predictions"]:
        _device_prediction(each)


def _device_prediction(found: dict[str, Any]) -> None:
    rate, load = found["tokens_per_second"], found["load_seconds"]
    parts = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in found["seconds"].items())
    speed = "unknown" if rate is None else f"{rate:.{1 if rate >= 1 else 3}f} tokens/s"
    first = "" if load is None else f"; first load {load:.1f} s"
    print(f"Predicted on {found['target']}: decode {speed}, bound by {found['bound']} ({parts}){first}")


def show_table(title: str, header: Sequence[str], rows: Rows) -> None:
    """Print a table."""
    (_rich_table if sys.stdout.isatty() and find_spec("rich") else _plain_table)(title, header, rows)


def size(nbytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes:.0f} B"


def _overview(found: dict[str, Any]) -> None:
    plan, model, choice = found["plan"], found["model"], found["choice"]
    threads = f"{choice['threads']} threads" if choice["threads"] else "all processors"
    print(f"{plan['path']}: {size(plan['nbytes'])}, digest {plan['digest'][:16]}")
    print(f"  {plan['generator']}, {'built on this machine' if plan['built_here'] else 'not built on this machine'}")
    print(
        f"  model {model['name'] or '(no name)'}: {model['architecture']}, {model['n_params'] / 1e6:.1f}M parameters, "
        f"{model['n_layers']} layers, width {model['n_embd']}, vocabulary {model['n_vocab']}"
    )
    print(
        f"  target {choice['target']}: context {choice['ctx_size']}, {threads}, activations {choice['activations']}, "
        f"KV cache {choice['kv_type']}, tuning {choice['tune']}"
    )
    for file in found["files"]:
        print(f"  weights {file['name']}: {size(file['nbytes'])}, fingerprint {file['header_sha256'][:16]}")
    print()


def _ledger(ledger: dict[str, Any], table: Table) -> None:
    rows = [["RAM", name, size(nbytes)] for name, nbytes in ledger["ram"].items()]
    limit = f", of a budget of {size(ledger['budget'])}" if ledger["budget"] else ""
    rows += [["RAM", f"total{limit}", size(ledger["ram_total"])]]
    rows += [["disk", name, size(nbytes)] for name, nbytes in ledger["disk"].items()]
    if ledger["streamed_per_pass"]:
        rows += [["disk", "of it, read in every pass", size(ledger["streamed_per_pass"])]]
    rows += [["disk", "of it, read a row at a time", size(ledger["read_by_row"])]]
    table("Ledger", ["tier", "what", "bytes"], rows)


def _here(library: dict[str, Any]) -> str:
    if library["chosen_here"]:
        return "chosen"
    return f"lacks {' '.join(library['missing_here'])}" if library["missing_here"] else "runs"


def _kernel(kernel: dict[str, Any]) -> str:
    shape = "x".join(map(str, kernel["shape"]))
    return " ".join(part for part in (kernel["op"], kernel["format"], shape) if part)


def _calls(calls: dict[str, int]) -> str:
    return ", ".join(f"{count} {program}" for program, count in calls.items())


def _program(program: dict[str, Any], table: Table) -> None:
    rows = []
    for section in program["sections"]:
        where = f"layer {layer_ranges(section['layers'])}" if section["layers"] else section["phase"]
        for step in section["steps"]:
            nbytes = size(step["weight_nbytes"]) if step["weight_nbytes"] else ""
            tasks = str(step["tasks"])
            if step["tokens_per_task"]:
                tasks += f" per {step['tokens_per_task']} {step['rows'].removesuffix('s')}"
                tasks += "s" if step["tokens_per_task"] > 1 else ""
            rows.append([where, step["label"], _kernel(step), tasks, nbytes, "wait" if step["sync"] else ""])
            where = ""
    title = f"Program {program['name']}: up to {program['max_tokens']} tokens, {program['n_steps']} steps, "
    header = ["where", "step", "kernel", "tasks", "weights", "then"]
    table(title + f"{program['n_syncs']} waits", header, rows)


def _prediction(found: dict[str, Any]) -> None:
    at_most = "at most " if found["upper_limit"] else ""
    decode, prefill, load = (
        found[k] for k in ("decode_tokens_per_second", "prefill_tokens_per_second", "load_seconds")
    )
    print("Predicted")
    if decode is None:
        print("  decode: unknown, the target's memory bandwidth was not measured (aircompile probe)")
    else:
        parts = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in found["decode_seconds"].items())
        where = f"with {found['context']} tokens in the cache"
        rate = f"{decode:.{1 if decode >= 1 else 3}f}"
        print(f"  decode: {at_most}{rate} tokens/s {where}, bound by {found['decode_bound']} ({parts})")
    if prefill is not None:
        print(f"  prefill: {prefill:.{0 if prefill >= 10 else 2}f} tokens/s, bound by {found['prefill_bound']}")
    if found["estimates"]:
        print(f"  estimated: the speed of {', '.join(found['estimates'])}, by that of similar kernels")
    if load is not None:
        print(f"  first load: {load:.2f} s, bound by disk")


def _plain_table(title: str, header: Sequence[str], rows: Rows) -> None:
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    print(title)
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()


def _rich_table(title: str, header: Sequence[str], rows: Rows) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = RichTable(*header, title=escape(title), title_justify="left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def layer_ranges(layers: Sequence[int]) -> str:
    """Layer numbers in words: ``0-3, 5``."""
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][-1] == layer - 1:
            found[-1] = [found[-1][0], layer]
        else:
            found.append([layer])
    return ", ".join("-".join(map(str, each)) for each in found)
