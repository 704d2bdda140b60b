"""Where the golden data is."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def zoo_folder() -> Path:
    """Folder of golden data from llama.cpp and transformers, which may be absent."""
    return Path(os.environ.get("AIR_ZOO", ROOT.parent / "shared" / "zoo"))
