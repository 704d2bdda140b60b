"""Several conversations in one pass over the weights: each step reads the model once for all of them.

python examples/batch.py smol.plan.bin
"""

import sys

from airrun import Engine
from airrun.replay.batch import Batch

PROMPTS = ("1, 2, 3, 4, 5,", "a, b, c, d, e,", "Monday, Tuesday, Wednesday,")

with Engine.from_plan(sys.argv[1], parallel=len(PROMPTS)) as engine:
    sessions = [engine.new_session() for _ in PROMPTS]
    texts: list[list[int]] = [[] for _ in PROMPTS]
    new = [engine.tokenize(prompt) for prompt in PROMPTS]
    for _ in range(12):
        # prompts in the first step, then one token each; logits of the last token of each
        parts = [session.extend(ids, [len(ids) - 1]) for session, ids in zip(sessions, new, strict=True)]
        best = engine.run(Batch(parts)).argmax(axis=1).tolist()
        new = [[token] for token in best]
        for text, token in zip(texts, best, strict=True):
            text.append(token)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        print(prompt + engine.detokenize(text))

# Output:
#   1, 2, 3, 4, 5, 6, 7, 8, 9,
#   a, b, c, d, e, f, g, h, i, j, k,
#   Monday, Tuesday, Wednesday, and Thursday) to create a 3-day weekend.
