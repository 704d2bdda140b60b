"""A model in several files runs exactly as the same model in one."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from aircompile.pipeline import BuildOptions, build
from airrun import AirError, Engine
from airrun.machine.system import detect


def split(source: Path, folder: Path, tensors_per_file: int) -> list[Path]:
    """Copy a GGUF into shards, tensors in their order."""
    reader = gguf.GGUFReader(source)
    groups = [reader.tensors[i : i + tensors_per_file] for i in range(0, len(reader.tensors), tensors_per_file)]
    paths = [folder / f"model-{i + 1:05d}-of-{len(groups):05d}.gguf" for i in range(len(groups))]
    for i, (path, group) in enumerate(zip(paths, groups, strict=True)):
        writer = gguf.GGUFWriter(path, "llama")
        if i == 0:
            for name, entry in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    kind = entry.types[0]
                    sub_type = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(name, entry.contents(), kind, sub_type=sub_type)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", len(groups))
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in group:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_split_model_gives_the_same_logits(zoo: Path, tmp_path: Path) -> None:
    source = zoo / "models" / "llama" / "model.gguf"
    shards = split(source, tmp_path, 9)
    assert len(shards) > 2
    options = BuildOptions(detect(), activations="f32")
    build(source, tmp_path / "one.plan.bin", options)
    build(shards[1], tmp_path / "many.plan.bin", options)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    with Engine.from_plan(tmp_path / "one.plan.bin", source) as engine:
        expected = engine.logits(ids)
    with Engine.from_plan(tmp_path / "many.plan.bin") as engine:
        assert np.array_equal(engine.logits(ids), expected)
    with Engine.from_plan(tmp_path / "many.plan.bin", list(reversed(shards))) as engine:
        assert np.array_equal(engine.logits(ids), expected)
    shards[2].rename(tmp_path / "hidden")
    with pytest.raises(AirError, match=shards[2].name):
        Engine.from_plan(tmp_path / "many.plan.bin", shards[:2])
