"""Logits of every position: how well the model predicts a text, and what it expects after it.

python examples/perplexity.py smol.plan.bin
"""

import sys

import numpy as np

from airrun import Engine

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Dog lazy the over jumps fox brown quick the.",
)

with Engine.from_plan(sys.argv[1]) as engine:
    for text in TEXTS:
        ids = engine.tokenize(text)
        logits = engine.logits(ids).astype(np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        # the logits of a position are about the token after it
        predicted = log_p[np.arange(len(ids) - 1), ids[1:]]
        print(f"{text}  perplexity {np.exp(-predicted.mean()):.0f}")

    best = engine.logits(engine.tokenize("The opposite of hot is"))[-1].argsort()[::-1][:3]
    print([engine.detokenize([int(token)]) for token in best])

# Output:
#   The quick brown fox jumps over the lazy dog.  perplexity 57
#   Dog lazy the over jumps fox brown quick the.  perplexity 61349
#   [' cold', ' cool', ' luke']
