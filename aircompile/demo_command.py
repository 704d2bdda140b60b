"""``aircompile demo``: the main job on a real model, from nothing to text."""

from __future__ import annotations

import shlex
import sys
import time

from aircompile.build_command import require_compiler
from aircompile.demo import fetch_smollm2
from airrun.autobuild import plan_for
from airrun.commands.completion import format_metrics
from airrun.engine import Engine
from airrun.generation.generate import GenerateConfig

PROMPT = "The capital of France is"
TOKENS = 48


def run() -> int:
    """Fetch SmolLM2-135M, compile it for this machine, continue a prompt, and say what to try next."""
    require_compiler()
    model = fetch_smollm2(_say)
    _say(f"compiling {model.name} for this machine")
    started = time.perf_counter()
    plan = plan_for(model)
    _say(f"{plan}: ready after {time.perf_counter() - started:.1f} s")
    with Engine.from_plan(plan, model) as engine:
        print(PROMPT, end="", flush=True)
        for piece in engine.stream(PROMPT, GenerateConfig(max_tokens=TOKENS, temperature=0.0)):
            print(piece, end="", flush=True)
        print(f"\n\n{format_metrics(engine.metrics())}")
    name = shlex.quote(str(plan))
    print("\nNext:")
    for command in (
        f"airrun {name} --chat",
        f"airrun {name} -p 'Once upon a time' -n 100",
        f"airrun bench {name}",
        f"aircompile explain {name}",
        f"aircompile build {shlex.quote(str(model))} --target cpu",
    ):
        print(f"  {command}")
    return 0


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)
