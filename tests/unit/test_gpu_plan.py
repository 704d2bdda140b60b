"""A plan for a GPU, built and replayed without one: its kernels run in Triton's interpreter."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeDevice, use_fake_gpu
from leaders_of import leaders_of
from small_models import llama_model, llama_tensors
from tiny_model import measured_host, shared_home, use_home

from aircompile.architectures import build_graph
from aircompile.gpu import assemble
from aircompile.gpu.operators import lower_for_device
from aircompile.lowering import plan_caches
from aircompile.operators import Norm, TokenShift
from aircompile.passes import PASSES, run_passes
from aircompile.passes.options import Activations, PassOptions
from aircompile.pipeline import BuildOptions, build
from airrun import Engine, GenerateConfig
from airrun.errors import AirError
from airrun.generation.generate import generate_tokens
from airrun.generation.leaders import MASS_ERROR
from airrun.machine.profile import Gpu
from airrun.plan.device import DEVICE_CODEC, DeviceTarget
from airrun.replay.batch import Batch
from airschedules.gpu.specs import ConvertSpec, NormSpec

PROMPT = [1, 40, 77, 5, 200, 9, 31, 8, 120]
"""More than a small batch."""


_BUILT: dict[str, Path] = {}


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    use_fake_gpu(patch)
    return build_plan(tmp_path_factory, patch)


@pytest.fixture(scope="module")
def rounded_alike(plan: Path, tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """The same with one digit everywhere: otherwise each side gives a second one by a rule of its own."""
    return build_plan(tmp_path_factory, patch, "q8")


def build_plan(factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch, activations: Activations = "auto") -> Path:
    """The plan of the tiny model with a part for two architectures, whose kernels are descriptions; built once."""
    home = shared_home(factory)
    use_home(patch, home)
    if activations in _BUILT:
        return _BUILT[activations]
    out = factory.mktemp("gpu") / "tiny.gpu.plan.bin"
    profile = measured_host()
    profile = replace(profile, gpu=Gpu("sm_90"), cpu=replace(profile.cpu, isa=profile.cpu.isa[:1]))
    gpus = tuple(DeviceTarget(name, arch, 1 << 30, 1e12, 2e10) for name, arch in (("a", "sm_90"), ("b", "sm_86")))
    build(home / "tiny.gguf", out, BuildOptions(profile, ctx_size=128, activations=activations, gpus=gpus))
    _BUILT[activations] = out
    return out


def open_on(plan: Path, device: str, **options: Any) -> Engine:
    return Engine.from_plan(plan, device=device, **options)


def test_same_logits_as_on_the_processor(rounded_alike: Path) -> None:
    with open_on(rounded_alike, "cpu") as cpu, open_on(rounded_alike, "cuda") as gpu:
        want = cpu.logits(PROMPT)
        got = gpu.logits(PROMPT)
        one_by_one = [gpu.session.eval([token])[0].copy() for token in PROMPT[:3]]
    # batches keep activations in half precision where the processor rounds them
    scale = np.abs(want).max()
    np.testing.assert_allclose(np.stack(one_by_one), want[:3], atol=2e-3 * scale)
    np.testing.assert_allclose(got, want, atol=3e-2 * scale)


def test_same_text_as_on_the_processor(plan: Path) -> None:
    config = GenerateConfig(max_tokens=4, temperature=0.0)
    with open_on(plan, "cpu") as cpu, open_on(plan, "cuda") as gpu:
        want = list(cpu.stream(PROMPT, config))
        assert list(gpu.stream(PROMPT, config)) == want
        assert "advance" in gpu.gpu.launches  # type: ignore[attr-defined]


def test_small_batches_are_the_tokens_one_by_one(plan: Path) -> None:
    """Of one sequence, and of several, of which one has tokens already."""
    ids = [1, 40, 77, 5, 200]
    with open_on(plan, "cuda", parallel=3) as gpu:
        first, second, third = gpu.new_session(), gpu.new_session(), gpu.new_session()
        want = [first.eval([token])[0].copy() for token in ids]
        got = second.eval(ids, all_logits=True)
        assert (got == np.stack(want)).all()
        third.eval([9])
        alone = [third.eval([token])[0].copy() for token in (7, 8)]
        third.truncate(1)
        batch = Batch([second.extend([7], [0]), third.extend([7, 8], [0, 1])])
        rows = gpu.run(batch).copy()
        second.truncate(len(ids))
        assert (rows[0] == second.eval([7])[0]).all()
        assert (rows[1:] == np.stack(alone)).all()


def test_greedy_choice_is_that_of_the_logits(plan: Path) -> None:
    with open_on(plan, "cuda") as gpu:
        session, other = gpu.new_session(), gpu.new_session()
        token = int(np.argmax(session.eval(PROMPT)[0]))
        other.eval(PROMPT)
        for _ in range(2):
            chosen = session.choose(token)
            assert chosen == int(np.argmax(other.eval([token])[0]))
            token = chosen


def test_state_is_saved_and_restored(plan: Path) -> None:
    with open_on(plan, "cuda", parallel=2) as gpu:
        session, other = gpu.new_session(), gpu.new_session()
        session.eval(PROMPT)
        meta, parts = session.save_state()
        want = session.eval([7])[0].copy()
        payload = memoryview(b"".join(bytes(part) for part in parts))
        other.load_state(meta, payload)
        assert (other.eval([7])[0] == want).all()
    with open_on(plan, "cpu") as cpu, pytest.raises(AirError, match="device"):
        cpu.session.load_state(meta, payload)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "MXFP4"])
def test_every_launch_fits_its_kernel(plan: Path, fmt: str, exact: bool) -> None:
    """Extents and tiles, operands and parameters agree in number, whatever the weights are in."""
    graph = build_graph(llama_model(tensors=llama_tensors(default=fmt, biases=("attn_q", "attn_v"))))
    options = PassOptions("f32" if exact else "auto")
    for _name, rewrite in PASSES:
        graph = rewrite(graph, options)
    caches = plan_caches(graph, "f32" if exact else "f16", 128)
    target = DeviceTarget("a", "sm_90", 0, 0.0, 0.0)
    segments = assemble.build_for_devices(graph, caches, exact, [target], 0, 0, print)
    device = DEVICE_CODEC.loads(segments.contents[0])
    steps = [step for program in device.programs for step in program.steps]
    for step in [*steps, *device.greedy, *device.leaders.steps]:
        binary = device.libraries[0].binaries[step.kernel]
        code = segments.contents[1][binary.offset : binary.offset + binary.nbytes]
        spec, arch = pickle.loads(code)
        assert len(step.extents) == len(binary.tiles), step.label
        assert len(step.operands) + len(step.integers) == len(spec.schedule(arch).types), step.label


def test_rows_for_unlike_block_formats_are_copied_for_each() -> None:
    """Blocks of 32 and of 64 elements: the norm writes floats, which are rounded once for each."""
    tensors = llama_tensors(formats={"attn_k": "NVFP4"})
    graph = run_passes(build_graph(llama_model(tensors=tensors)), PassOptions("q8"))
    low = lower_for_device(graph, plan_caches(graph, "f16", 128), exact=False)["decode"]
    norm, *calls = (call for call in low.calls if call.operator.layer == 0)
    assert isinstance(norm.spec, NormSpec) and norm.spec.out.kind == "f32"
    copies = [call.spec.out for call in calls if isinstance(call.spec, ConvertSpec)]
    assert [(kind.kind, kind.block) for kind in copies if kind.n == 64] == [("q8", 32), ("q8", 64)]


def test_what_gpus_cannot_do_is_refused(plan: Path) -> None:
    graph = build_graph(llama_model())
    for _name, rewrite in PASSES:
        graph = rewrite(graph, PassOptions("f32"))
    norm = next(operator for operator in graph.operators() if isinstance(operator.op, Norm))
    shift = TokenShift(graph.values[norm.outputs[0]].width)
    graph.replace([norm.name], [replace(norm, op=shift)])
    with pytest.raises(AirError, match="GPUs have no kernel for TokenShift yet"):
        lower_for_device(graph, plan_caches(graph, "f16", 128), exact=False)


def test_memory_is_zeroed_on_request(plan: Path) -> None:
    engine = open_on(plan, "cuda")
    engine.close(zero_memory=True)
    assert engine.gpu.closed == "zeroed"  # type: ignore[attr-defined]


def test_a_failing_step_is_named(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_on(plan, "cuda", check_steps=True) as gpu:
        monkeypatch.setattr(FakeDevice, "failing", "gated")
        with pytest.raises(AirError, match=r"step layers.0.gated \(layer 0\): .*illegal_address"):
            gpu.session.eval([7])


def test_devices_of_steps_are_reported(plan: Path) -> None:
    with open_on(plan, "cuda") as gpu, open_on(plan, "cpu") as cpu:
        assert {"product", "split", "argmax", "leaders", "gemm", "flash"} <= set(gpu.step_devices)
        assert set(gpu.step_devices.values()) == {"cuda"}
        assert set(cpu.step_devices.values()) == {"cpu"}


def test_too_little_memory(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "memory", 1 << 17)
    with pytest.raises(AirError, match=r"0 MiB of the GPU's memory are not enough .* that works is \d+ MiB"):
        open_on(plan, "auto")


def test_another_architecture(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "arch", "sm_75")
    with pytest.raises(AirError, match="this GPU is sm_75, the plan has code for sm_90, sm_86"):
        open_on(plan, "cuda")


def test_without_a_driver(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import airrun.cuda.engine

    monkeypatch.setattr(airrun.cuda.engine, "available", lambda: "no NVIDIA driver")
    with open_on(plan, "auto") as engine:
        assert engine.isa.startswith("x86-64")
    with pytest.raises(AirError, match="no NVIDIA driver"):
        open_on(plan, "cuda")


def test_draws_are_those_of_the_host(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same tokens, whether the device finds the likely ones or all logits are copied."""
    config = GenerateConfig(max_tokens=3, seed=11, repeat_penalty=1.4, ignore_eos=True, logit_bias={5: 2.0})
    with open_on(plan, "cuda", parallel=2) as gpu:
        launches: list[str] = gpu.gpu.launches  # type: ignore[attr-defined]
        got = list(generate_tokens(gpu.session, PROMPT[:3], config))
        assert launches.count("leaders") == 2
        monkeypatch.setattr(type(gpu), "max_watched", -1)
        assert list(generate_tokens(gpu.new_session(), PROMPT[:3], config)) == got
        assert launches.count("leaders") == 2


def test_leaders_are_those_of_the_row(plan: Path) -> None:
    watched = np.array([200, 5, 261], np.int32)
    with open_on(plan, "cuda") as gpu:
        found = gpu.session.leaders(40, watched)
        want = leaders_of(found.row(), *found.best.shape, watched=watched)
    np.testing.assert_array_equal(found.best, want.best)
    np.testing.assert_array_equal(found.tokens, want.tokens)
    np.testing.assert_array_equal(found.seen, want.seen)
    np.testing.assert_allclose(found.sums, want.sums, rtol=MASS_ERROR / 4)
