"""``probe``: measure this machine and write its profile."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from airrun.machine.probe import probe
from airrun.paths import host_profile_path


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of the command ``probe``."""
    parser.add_argument("--quick", action="store_true", help="about 2 s instead of 20 s, with a larger error")
    written = "profile to write (default: host.toml in the cache folder, which target host reads)"
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=written)
    measured = "a folder on the disk to measure (default: the cache folder)"
    parser.add_argument("--disk", type=Path, metavar="DIR", help=measured)
    parser.add_argument("--quiet", action="store_true", help="say nothing while measuring")


def run(args: Namespace) -> int:
    """Measure, write the profile and print it."""
    profile = probe(args.quick, args.output, args.disk, progress=not args.quiet)
    print(f"# {args.output or host_profile_path()}")
    print(profile.to_toml(), end="")
    return 0
