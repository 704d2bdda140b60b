"""Logits of plans on another machine, in one process: python arm_worker.py JOBS.json

A job names a plan, its model, a file of token ids and one for the logits of all of them; prints the instruction set
that was chosen for each, and how weights are read where they are not kept. With more than one number of tokens in
`split`, they are given one after the other; `options` are those of the engine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from airrun.engine import Engine


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        ids = np.load(job["ids"]).tolist()
        with Engine.from_plan(job["plan"], job["model"], **job["options"]) as engine:
            session = engine.new_session()
            rows, at = [], 0
            for n in job["split"]:
                rows.append(session.eval(ids[at : at + n], all_logits=True).copy())
                at += n
            session.reset()
            np.save(job["logits"], np.concatenate(rows))
            print(engine.isa, engine.load_mode if engine.streams else "")


if __name__ == "__main__":
    main()
