"""Shared fixtures: golden data, the real model, and small models made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo_folder import zoo_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def zoo() -> Path:
    """Folder of golden data from llama.cpp and transformers; tests skip where it is absent."""
    path = zoo_folder()
    if not path.is_dir():
        pytest.skip(f"golden data not found at {path} (set AIR_ZOO)")
    return path
