"""Commands of `airrun` in one process of a box: python arm_box.py COMMANDS.json

Prints [status, stdout, stderr] of each, as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from airrun.cli import main


def run(command: list[str]) -> tuple[int, str, str]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(command)
    return status, out.getvalue(), error.getvalue()


if __name__ == "__main__":
    print(json.dumps([run(command) for command in json.loads(Path(sys.argv[1]).read_text())]))
