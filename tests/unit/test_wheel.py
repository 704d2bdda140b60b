"""The wheel is pure Python, and a machine that has only the base installation runs, checks and measures with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ("numpy", "jinja2", "markupsafe", "backports")
"""Packages of the base installation."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("aircompile", "kernels", "schedules", "runtime"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("setuptools cannot be had: no network")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_it_is_pure_python_and_whole(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    kinds = {Path(name).suffix for name in names}
    assert kinds <= {".py", ".typed", ".toml", ".json", ".c", ".h"}
    folders = {"aircompile": "", "airkernels": "kernels", "airschedules": "schedules", "airrun": "runtime"}
    kept = {
        str(path.relative_to(ROOT / folder))
        for package, folder in folders.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == kept
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(required) == len(declared) == 3


def test_a_box_with_the_base_installation(
    wheel: Path, plan: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an environment of its own: without TVM or anything else of the compiler, and without pip."""
    from aircompile.cli import main

    shutil.copy(plan, tmp_path / "box.plan.bin")
    assert main(["pack", str(model), str(tmp_path / "box.plan.bin"), "--quiet"]) == 0
    venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    here = Path(sysconfig.get_path("purelib"))
    for name in (*BASE, "numpy.libs"):
        if (here / name).exists():
            (site / name).symlink_to(here / name)
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("AIRCOMPILE_HOME", str(tmp_path / "home"))

    def airrun(*arguments: str) -> str:
        command = [python, "-m", "airrun", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    absent = [python, "-c", "import tvm"]
    assert subprocess.run(absent, capture_output=True).returncode and os.path.isdir(site / "airrun")
    airrun("verify", "box.tar.zst", "--extract", "box")
    assert airrun("doctor", "box/box.plan.bin").endswith("can run here\n")
    assert airrun("box/box.plan.bin", "-p", "ab", "-n", "3", "--temp", "0")
    assert json.loads(airrun("explain", "box/box.plan.bin", "--json"))["plan"]["built_here"] is False
    airrun("probe", "--quick", "--quiet", "-o", "box.toml", "--disk", str(tmp_path))
    assert tomllib.loads((tmp_path / "box.toml").read_text())["name"] == "box"
