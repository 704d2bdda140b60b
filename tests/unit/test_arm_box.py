"""What a box does with what a workstation sends: an emulated ARM machine that has the runtime and no compiler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import arm_machine
import pytest
from tiny_model import shared_home, use_home

from aircompile.cli import main
from airrun.engine import Engine
from airrun.generation.generate import GenerateConfig
from airrun.machine.isa import machine

pytestmark = pytest.mark.skipif(machine() != "x86_64", reason="compares with a workstation of another architecture")

PROMPT, N_TOKENS = "abba", 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with plans for three machines, and packages of that for the box, of which one is damaged."""
    home, folder = shared_home(tmp_path_factory), tmp_path_factory.mktemp("box")
    with pytest.MonkeyPatch.context() as patch:
        use_home(patch, home)
        model = str(shutil.copy(home / "tiny.gguf", folder))
        for target in ("rpi5", "graviton3", "host"):
            out = str(folder / f"{target}.plan.bin")
            assert main(["build", model, "--target", target, "--activations", "f32", "-o", out, "--quiet"]) == 0
        package = folder / "box.tar.zst"
        assert main(["pack", model, str(folder / "rpi5.plan.bin"), "-o", str(package), "--quiet"]) == 0
        data = bytearray(package.read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "damaged.tar.zst").write_bytes(data)
        yield folder


def on_the_box(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of commands of `airrun`."""
    (file := folder / "commands.json").write_text(json.dumps(commands))
    worker, processor = str(Path(__file__).with_name("arm_box.py")), arm_machine.PROCESSORS["armv8-a+dotprod"]
    environment = {"AIRCOMPILE_HOME": str(folder / "home")}
    done = arm_machine.python(processor, worker, str(file), environment=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(each) for each in json.loads(done.stdout)]


def test_a_package_is_verified_and_run_and_strangers_are_refused(folder: Path) -> None:
    plan, model = str(folder / "out" / "rpi5.plan.bin"), str(folder / "tiny.gguf")
    text = ["-p", PROMPT, "-n", str(N_TOKENS), "--temp", "0", "--ignore-eos"]
    verified, checked, ran, damaged, foreign, better = on_the_box(
        folder,
        [
            ["verify", str(folder / "box.tar.zst"), "--extract", str(folder / "out")],
            ["doctor", plan],
            [plan, *text],
            ["verify", str(folder / "damaged.tar.zst")],
            [str(folder / "host.plan.bin"), "--model", model, *text],
            [str(folder / "graviton3.plan.bin"), "--model", model, *text],
        ],
    )
    assert verified[0] == 0 and verified[1].count("ok  ") == 2
    for name in ("rpi5.plan.bin", "tiny.gguf"):
        assert (folder / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert checked[0] == 0 and checked[1].endswith("can run here\n")
    assert "armv8-a+dotprod, which is picked" in checked[1]
    with Engine.from_plan(folder / "host.plan.bin", model) as engine:
        config = GenerateConfig(max_tokens=N_TOKENS, temperature=0.0, ignore_eos=True)
        assert ran[:2] == (0, engine.generate(PROMPT, config))
    for (status, _out, error), wanted in (
        (damaged, "damaged.tar.zst: "),
        (foreign, "host.plan.bin: the plan needs architecture x86_64; this machine has aarch64"),
        (better, "the plan needs the instructions of armv8-a+i8mm; this machine has a processor without i8mm"),
    ):
        lines = [line for line in error.splitlines() if not line.startswith("note: ")]  # that it was built elsewhere
        assert status == 1 and len(lines) == 1 and wanted in lines[0], error
