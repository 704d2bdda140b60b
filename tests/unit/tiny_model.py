"""A llama of two layers in a real file, and its plan: small enough to be compiled while a test waits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import aircompile
import airkernels
import airrun
import airschedules
from airrun.machine.profile import Disk, Profile, Tier, Tiers
from airrun.machine.system import detect
from airrun.paths import host_profile_path

N_LAYERS, N_EMBD, N_FF, HEAD_DIM, N_CTX = 2, 64, 96, 16, 256
PACKAGES = (aircompile, airkernels, airrun, airschedules)


def write_tiny(
    path: Path,
    seed: int = 0,
    n_layers: int = N_LAYERS,
    n_embd: int = N_EMBD,
    n_ff: int = N_FF,
    experts: tuple[int, int] | None = None,
) -> Path:
    """A GGUF with Q8_0 matrices of seeded random weights and a byte vocabulary.

    `experts`: so many instead of each feed-forward sub-layer, and how many of them a token uses.
    """
    rng, n_heads = np.random.default_rng(seed), n_embd // HEAD_DIM
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b"]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(words) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(words), n_embd), "output": (len(words), n_embd)}
    for i in range(n_layers):
        width = n_heads * HEAD_DIM
        shapes |= {f"blk.{i}.attn_q": (width, n_embd), f"blk.{i}.attn_output": (n_embd, width)}
        shapes |= {f"blk.{i}.attn_{name}": (n_heads // 2 * HEAD_DIM, n_embd) for name in "kv"}
        bank, suffix = ((experts[0],), "_exps") if experts else ((), "")
        shapes |= {f"blk.{i}.ffn_{name}{suffix}": (*bank, n_ff, n_embd) for name in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down{suffix}": (*bank, n_embd, n_ff)}
    for name, shape in shapes.items():
        data = rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quantize(data, kind), raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(n_layers) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(n_embd, np.float32))
    if experts:
        writer.add_expert_count(experts[0])
        writer.add_expert_used_count(experts[1])
        for i in range(n_layers):
            router = rng.standard_normal((experts[0], n_embd), np.float32) * n_embd**-0.5
            writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", router)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measured_host() -> Profile:
    """This machine with made-up rates, so that nothing needs to be probed."""
    found = detect()
    ram = Tier(found.tiers.ram.size, bandwidth=20_000_000_000, bandwidth_1=10_000_000_000)
    return replace(found, tiers=Tiers(ram, Disk(bandwidth=1_000_000_000)))


def shared_home(factory: pytest.TempPathFactory) -> Path:
    """A cache folder for one run of the tests: kernels are compiled once. Its model is ``tiny.gguf``."""
    home = factory.getbasetemp() / "tiny"
    if not home.is_dir():
        home.mkdir()
        write_tiny(home / "tiny.gguf")
        (home / host_profile_path().name).write_text(measured_host().to_toml())
    return home


def use_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Make this process, and those it starts, use a cache folder and the packages under test."""
    patch.setenv("AIRCOMPILE_HOME", str(home))
    patch.delenv("AIR_ISA", raising=False)
    folders = [str(Path(package.__file__ or "").parents[1]) for package in PACKAGES]
    patch.setenv("PYTHONPATH", ":".join(dict.fromkeys(folders)))


def tiny_plan(home: Path) -> Path:
    """The plan of ``tiny.gguf``, built once; `use_home` must have been called."""
    from aircompile.cli import main

    path = home / "tiny.plan.bin"
    if not path.exists():
        assert main(["build", str(home / "tiny.gguf"), "-o", str(path), "--quiet"]) == 0
    return path
