"""Speculation: tokens/s with and without, on prompts that repeat and prompts that do not, alternating.

    python tests/bench/speculate.py MODEL.gguf [--ram 400MiB,0] [-t 2] [-n 128] [-r 3]

Each budget has an engine of its own; 0 is none. Greedy, so that the texts must be equal, which is checked. A ratio
above 1 means that speculation is faster; "tokens a pass" is what a pass over the weights gives.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from vs_llama_cpp import build

from airrun import Engine, GenerateConfig
from airrun.generation.generate import GenerateResult, generate_tokens

_STORY = """The lighthouse at Cape Marrow was built in 1871 by Thomas Ardley, a mason from Hull. It is 38 metres tall,
and its lamp could be seen from a distance of 22 nautical miles. In the winter of 1893 the keeper, Edwin Sloane, rowed
out alone to the wreck of the Halcyon and brought back eleven sailors. The lamp was replaced by an electric one in 1934,
and the last keeper left the tower in the spring of 1986."""
_CODE = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def peek(self):
        if not self.items:
            raise IndexError("peek at an empty stack")
        return self.items[-1]
"""


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS = {
    "quotes": chat(f"{_STORY}\n\nRepeat the text above word by word, then quote its most important sentences."),
    "code edit": chat(f"```python\n{_CODE}```\nRename the class to Pile and write out the whole file again."),
    "list": "Squares: 1 * 1 = 1, 2 * 2 = 4, 3 * 3 = 9, 4 * 4 = 16, 5 * 5 = 25, 6 * 6 =",
    "story": chat("Write a story about a fox who finds a violin."),
    "answer": chat("Why is the sky blue? Explain it to a physicist."),
    "plain text": "In the year 1905, Albert Einstein published four papers that",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--plan", type=Path, help="use this plan instead of building one")
    parser.add_argument("--ram", default="0", help="budgets, separated by commas; 0 for none")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-n", type=int, default=128, help="tokens per text")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = args.plan or build(args.model, Path(folder) / "bench.plan.bin")
        print("| RAM | prompt | tokens/s without | with | ratio | tokens a pass | guesses right |")
        print("|---|---|---|---|---|---|---|")
        for ram in args.ram.split(","):
            budget = None if ram == "0" else ram
            with Engine.from_plan(plan, args.model, threads=args.threads, ram=budget, ctx_size=2048) as engine:
                for name, prompt in PROMPTS.items():
                    print(f"| {ram} | {name} |", compare(engine, prompt, args.n, args.rounds), flush=True)


def compare(engine: Engine, prompt: str, n: int, rounds: int) -> str:
    ids = engine.tokenize(prompt)
    speeds: dict[str, list[float]] = {"none": [], "ngram": []}
    texts = set()
    for _ in range(rounds):
        for how, seen in speeds.items():
            result = GenerateResult()
            config = GenerateConfig(temperature=0.0, max_tokens=n, ignore_eos=True, speculate=how)  # type: ignore[arg-type]
            started = time.perf_counter()
            texts.add(tuple(generate_tokens(engine.session, ids, config, result=result)))
            seen.append(n / (time.perf_counter() - started - result.prefill_seconds))
    assert len(texts) == 1, "speculation changed the text"
    without, with_it = (statistics.median(seen) for seen in speeds.values())
    return (
        f"{without:.2f} | {with_it:.2f} | {with_it / without:.2f} | {(n - 1) / max(1, result.passes):.2f} "
        f"| {result.accepted} of {result.drafted} |"
    )


if __name__ == "__main__":
    main()
