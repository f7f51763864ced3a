"""Show where the time of a capture goes: products, attention, other operations, and everything outside of PyTorch.

The capture keeps the last token of every layer of a concept's pairs, with the default model in float32 on one thread.
Times are processor time, which other load does not affect; a share is the median over rounds.

Examples:
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/time_shares.py
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/time_shares.py --pairs 200 --markdown
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

import engine
from benchmarks.tasks import positive

KINDS: dict[Callable[..., Any], str] = {linear: "matrix products", scaled_dot_product_attention: "attention"}
OTHER, OUTSIDE = "other operations", "Python, tokenizer and checks"


class Timer(TorchFunctionMode):
    """Add up the processor time of PyTorch's functions by kind.

    Attributes:
        seconds: Kind to processor time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Any,  # noqa: ANN401 - torch's own signature
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Time one call."""
        start = time.process_time()
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.seconds[KINDS.get(func, OTHER)] += time.process_time() - start


def time_shares(capture: Callable[[], object]) -> dict[str, float]:
    """Time one capture.

    Returns:
        Kind to its share of the processor time; the shares sum to 1.
    """
    start = time.process_time()
    with Timer() as timer:
        capture()
    total = time.process_time() - start
    inside = {kind: timer.seconds[kind] / total for kind in (*KINDS.values(), OTHER)}
    return {**inside, OUTSIDE: 1 - sum(inside.values())}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="honesty", help="Concept to capture")
    parser.add_argument("--pairs", type=positive, default=72, help="Number of pairs")
    parser.add_argument("--rounds", type=positive, default=5, help="Number of rounds")
    parser.add_argument("--markdown", action="store_true", help="Print a Markdown table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, _ = engine.load_model_and_tokenizer("smollm2", device="cpu")

    def capture() -> None:
        engine.capture_from_concept(
            model, tokenizer, arguments.concept, max_samples=arguments.pairs, positions="last", use_hooks=True
        )

    capture()  # warms up
    found = [time_shares(capture) for _ in range(arguments.rounds)]
    if arguments.markdown:
        print("| | share of the time |\n| --- | --- |")
    for kind in found[0]:
        share = statistics.median(one[kind] for one in found)
        print(f"| {kind} | {share:.0%} |" if arguments.markdown else f"{kind:<30} {share:6.1%}")


if __name__ == "__main__":
    main()
