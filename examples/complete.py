"""Completion and streaming with the Python API.

python examples/complete.py smol.plan.bin
"""

import sys

from airrun import Engine, GenerateConfig

greedy = GenerateConfig(max_tokens=15, temperature=0.0)

with Engine.from_plan(sys.argv[1]) as engine:
    print(engine.generate("1, 2, 3, 4, 5,", greedy))

    engine.reset()
    for piece in engine.stream("Monday, Tuesday, Wednesday,", greedy):
        print(piece, end="", flush=True)
    print()

    # the same seed gives the same text
    drawn = []
    for _ in range(2):
        engine.reset()
        drawn.append(engine.generate("Once upon a time", GenerateConfig(max_tokens=20, temperature=0.8, seed=42)))
    print("same text:", drawn[0] == drawn[1])

# Output:
#    6, 7, 8, 9, 10
#    and Thursday) to create a 3-day weekend.
#
#   The
#   same text: True
