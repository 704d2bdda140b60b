"""Families of which the golden data has no model: random models, against what llama.cpp makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_model import KEPT, TOKENS
from family_models import MODELS
from measures import OpenEngine, divergence, same_bits

GOLDEN = Path(__file__).with_name("families.npz")

GELU_TABLE = {"gptneox", "bloom", "mpt", "starcoder", "falcon", "gemma3", "gemma3n"}
"""Architectures whose GELU llama.cpp looks up in a table of half precision, which shows."""


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_llama_cpp(tmp_path: Path, open_engine: OpenEngine, name: str) -> None:
    """With float activations; and token by token gives the bits of all at once."""
    model = MODELS[name]
    path = tmp_path / name / "model.gguf"
    path.parent.mkdir()
    model.write(path)
    engine = open_engine(path, "f32")
    logits = engine.logits(TOKENS)
    golden = np.load(GOLDEN)[name]
    limit = 1e-5 if model.architecture in GELU_TABLE else 1e-9
    assert divergence(golden, logits[KEPT]).max() < limit
    session = engine.new_session()
    steps = [session.eval([token]).copy() for token in TOKENS[:20]]
    session.reset()
    assert same_bits(np.concatenate(steps), logits[:20])


def test_every_model_has_golden_logits() -> None:
    assert set(np.load(GOLDEN)) == set(MODELS)
