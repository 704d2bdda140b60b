"""The plan that later versions must still read, and how it was made.

    python tests/golden/golden_plan.py        # only after raising FORMAT_VERSION, under a new name

It is that of the golden data's small llama, with float activations, for the oldest processors.
"""

from __future__ import annotations

from pathlib import Path

from aircompile.pipeline import BuildOptions, build
from airrun.machine.profile import Cpu, Profile

PLAN = Path(__file__).with_name("llama.v2.plan.bin")
MODEL = Path("models", "llama", "model.gguf")
"""Below the folder of golden data."""


def make(zoo: Path) -> None:
    profile = Profile("golden", cpu=Cpu(isa=("x86-64-v2",)))
    build(zoo / MODEL, PLAN, BuildOptions(profile, ctx_size=512, threads=1, activations="f32"))


if __name__ == "__main__":
    make(Path(__file__).resolve().parents[3] / "shared" / "zoo")
