"""``aircompile build``: options, checks before anything is compiled, and the line that sums up."""

from __future__ import annotations

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aircompile.kv_types import parse_kv_type
from airrun.commands.explain_text import size
from airrun.commands.options import OptionParser
from airrun.cuda.predict import predict_device
from airrun.cuda.sizes import device_sizes
from airrun.errors import AirError, BudgetError, ModelFileError, UnsupportedError, UsageError
from airrun.ledger import MAX_THREADS, sizes_of
from airrun.machine.probe import probe
from airrun.machine.profile import Profile, Tier, parse_bytes
from airrun.plan.container import read_plan
from airrun.plan.device import DevicePlan, DeviceTarget
from airrun.plan.read_device import device_plan
from airrun.plan.signature import make_signature
from airrun.predict import predict
from airschedules.targets import HOST, load_target

if TYPE_CHECKING:
    from airrun.plan.schema import Plan

_NOT_YET = {".onnx": "ONNX", ".safetensors": "safetensors"}
_MAX_CONTEXT = 1 << 24
_COMPILER = ("tvm", "tvm_ffi", "gguf", "networkx", "ziglang")


def add_arguments(parser: OptionParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="GGUF file; of a split model any part")
    parser.add_argument("--target", default=HOST, metavar="NAME|host|FILE.toml",
                        help="machine to compile for: host is this one, cpu any x86-64 processor, others as "
                        "`aircompile targets` lists them, or a profile of your own; several with GPUs, separated by "
                        "commas, share a plan (default: host)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="OUT",
                        help="plan to write (default: MODEL's name.TARGET.plan.bin in the current folder)")  # fmt: skip
    parser.add_argument("-c", "--ctx-size", type=_count(_MAX_CONTEXT), metavar="N",
                        help="tokens of context (default: what the model was trained for, at most 4096)")  # fmt: skip
    parser.add_argument("-t", "--threads", type=_count(MAX_THREADS), default=0, metavar="N",
                        help="threads the plan runs on (default: all of the machine it runs on)")  # fmt: skip
    parser.add_argument("--activations", choices=("auto", "q8", "f32"), default="auto",
                        help="what products multiply weights with: 8-bit blocks, floats, or 8-bit blocks where the "
                        "weights are quantized (default: auto)")  # fmt: skip
    parser.add_argument("--kv-type", type=_kv_type, default="auto", metavar="TYPE[,TYPE]",
                        help="what the KV cache holds: f32, f16, q8_0 or q4_0, or one of them for keys and one for "
                        "values; auto is f32 with --activations f32, else f16 (default: auto)")  # fmt: skip
    parser.add_argument("--tune", choices=("none", "fast", "full"), default="none",
                        help="measure schedules on this machine before choosing: not at all (records and rules "
                        "decide), the likely ones, or all (default: none)")  # fmt: skip
    parser.add_argument("--ram", type=_nbytes, metavar="BYTES",
                        help="memory that a process running the plan may take, such as 1500MiB; weights that do not "
                        "fit are streamed from their file (default: what is available there)")  # fmt: skip
    parser.add_argument("--vram", type=_nbytes, metavar="BYTES",
                        help="the same of a GPU's memory; weights that do not fit cross the bus in every step "
                        "(default: what is free there)")  # fmt: skip
    parser.add_argument("--sign", type=Path, metavar="KEY.pem",
                        help="sign the plan by an ed25519 private key, for airrun --require-signature")  # fmt: skip
    parser.add_argument("--debug-dump", type=Path, metavar="DIR", help="write the program after each phase to DIR")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _kv_type(text: str) -> str:
    try:
        if text != "auto":
            parse_kv_type(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _nbytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a valid number") from None
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be 1 to {most}")
        return value

    return count


def run(args: Namespace) -> int:
    """Compile as the arguments say.

    Raises
    ------
    AirError
        Whatever keeps the plan from being built; no file is left then.
    """
    started = time.perf_counter()
    check_model(args.model)
    profile, gpus = load_targets(args.target)
    out = args.output or Path(f"{args.model.stem}.{profile.name}.plan.bin")
    _check_output(out)
    if args.sign is not None:
        make_signature("", args.sign)  # finds out before compiling whether it can
    profile = for_this_machine(profile, args.quiet) if args.target == HOST else profile
    require_compiler(_COMPILER)
    if gpus:
        require_compiler(("triton",), "compile-cuda")
    elif args.vram is not None:
        raise UsageError(f"--vram: target {profile.name} has no GPU")
    from aircompile.pipeline import BuildOptions, build
    from aircompile.progress import reporting

    options = BuildOptions(
        profile=profile,
        ctx_size=args.ctx_size,
        threads=args.threads,
        activations=args.activations,
        kv_type=args.kv_type,
        tune=args.tune,
        ram=args.ram,
        vram=args.vram,
        debug_dump=args.debug_dump,
        gpus=gpus,
        sign=args.sign,
    )
    with reporting(args.quiet) as report:
        build(args.model, out, options, report)
    if not args.quiet:
        print(_summary(out, time.perf_counter() - started))
    return 0


def load_targets(names: str) -> tuple[Profile, tuple[DeviceTarget, ...]]:
    """The profile of a target, and its GPU; or of several, separated by commas: the plan then runs on each of their
    GPUs, and is planned for the first.

    Raises
    ------
    UsageError
        An unknown target, or several of which one has no GPU.
    """
    profiles = [load_target(name) for name in names.split(",")]
    gpus = tuple(_gpu(profile, profile.gpu.arch) for profile in profiles if profile.gpu is not None)
    if len(profiles) == 1:
        return profiles[0], gpus
    for profile in profiles:
        if profile.gpu is None:
            raise UsageError(f"target {profile.name} has no GPU: only targets that have one can share a plan")
    name = "+".join(dict.fromkeys(profile.name for profile in profiles))
    return replace(profiles[0], name=name), tuple(dict.fromkeys(gpus))


def _gpu(profile: Profile, arch: str) -> DeviceTarget:
    vram, bus = profile.tiers.vram or Tier(), profile.tiers.bus or Tier()
    return DeviceTarget(profile.name, arch, vram.size, float(vram.bandwidth), float(bus.bandwidth))


def check_model(path: Path) -> None:
    """Refuse what is not a GGUF file in one line.

    Raises
    ------
    UnsupportedError, ModelFileError
        Another kind of model, or a file that cannot be read.
    """
    kind = _NOT_YET.get(path.suffix.lower())
    if kind is not None:
        raise UnsupportedError(f"{path}: {kind} models are not supported yet; use GGUF")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise ModelFileError(f"{path}: not a GGUF file: it starts with {magic!r}")


def for_this_machine(profile: Profile, quiet: bool) -> Profile:
    """The profile `host` with only the best instruction set, and with rates, measured in 2 s if they never were."""
    if not profile.tiers.ram.bandwidth:
        try:
            profile = probe(quick=True, progress=not quiet)
        except AirError as error:
            # the rates serve the prediction only
            print(f"note: this machine was not measured, so no speed is predicted: {error}", file=sys.stderr)
    return replace(profile, cpu=replace(profile.cpu, isa=profile.cpu.isa[:1]))


def require_compiler(modules: Sequence[str] = _COMPILER, extra: str = "compile") -> None:
    """Refuse to go on where only the runtime is installed.

    Raises
    ------
    UsageError
        Names what is missing and how to install it.
    """
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise UsageError(f'the compiler is not installed ({missing[0]} is missing): pip install "aircompile[{extra}]"')


def _check_output(out: Path) -> None:
    """Find out before compiling what cannot be written, or must not be."""
    if out.is_dir():
        raise UsageError(f"{out}: is a folder, not a file to write")
    if out.is_file():
        with out.open("rb") as file:
            if file.read(4) == b"GGUF":
                raise UsageError(f"{out}: is a model; it is not overwritten by a plan")


def _summary(out: Path, seconds: float) -> str:
    """What was built, and how fast it should be on each target."""
    loaded = read_plan(out)
    plan, part = loaded.plan, device_plan(loaded)
    libraries = f" for {len(plan.libraries)} instruction sets" if len(plan.libraries) > 1 else ""
    kernels = f"{len(plan.kernels)} kernels{libraries}"
    if part is not None:
        speeds = _device_speeds(plan, part)
    else:
        sizes = sizes_of(plan, library=plan.libraries[0]) if plan.choice.ram_nbytes else None
        found = predict(plan, sizes=sizes)
        at_most = "at most " if found.upper_limit else ""
        speeds = [_speed(found.decode_tokens_per_second, found.decode_bound, at_most)]
    built = f"{out}: {size(out.stat().st_size)}, {seconds:.1f} s, {kernels}"
    return f"{built}, {speeds[0]}" if len(speeds) == 1 else "\n  ".join([built, *speeds])


def _device_speeds(plan: Plan, part: DevicePlan) -> list[str]:
    """A line for each GPU, with what it has of memory."""
    lines = []
    for target in part.targets:
        try:
            sizes = device_sizes(plan, part, free=target.vram_nbytes or None)
        except BudgetError as error:
            lines.append(f"on {target.name} nothing: {error}")
            continue
        found = predict_device(plan, part, sizes, target)
        lines.append(f"on {target.name} {_speed(found.tokens_per_second, found.bound)}")
    return lines


def _speed(rate: float | None, bound: str, at_most: str = "") -> str:
    if rate is None:
        return "speed unknown"
    return f"predicted {at_most}{rate:.{0 if rate >= 10 else 3}f} tokens/s, bound by {bound}"
