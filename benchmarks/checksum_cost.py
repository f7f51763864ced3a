"""Measure what the checksums of tensors cost: whole captures in shards, with and without them, in turns.

A capture includes the forward passes, writing and the ranking, which reads every layer and checks it. The table shows
medians of processor seconds, and the share of a capture that is spent in the checksums themselves, which varies less.

Examples:
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/checksum_cost.py
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/checksum_cost.py --pairs 72 --rounds 9
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

import torch

import engine
from benchmarks.tasks import positive
from engine.store import tensor_files
from engine.store.names import locate


class Clock:
    """The checksum of a tensor, timed."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._digest = tensor_files._digest

    def __call__(self, tensor: torch.Tensor) -> str:
        """Compute it."""
        start = time.thread_time()
        found = self._digest(tensor)
        self.spent += time.thread_time() - start
        return found


def seconds(capture: Callable[[Path], object]) -> float:
    """Processor seconds of one capture into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        capture(Path(folder))
        return time.process_time() - start


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="honesty", help="Concept, as for layerscope capture --concept")
    parser.add_argument("--model", default="smollm2", help="Model, as for layerscope capture --model")
    parser.add_argument("--pairs", type=positive, default=36, help="Number of pairs")
    parser.add_argument("--rounds", type=positive, default=5, help="Captures of each kind")
    arguments = parser.parse_args()
    model, tokenizer, _ = engine.load_model_and_tokenizer(arguments.model)
    clock = Clock()
    print("positions  with  without  ratio  share")
    for positions in ("last", "all"):

        def capture(store: Path, positions: str = positions) -> None:
            request = engine.CaptureRequest(
                engine.load_concept(arguments.concept),
                positions=positions,
                max_samples=arguments.pairs,
                shards=True,
                paths=locate("measured", store),
            )
            engine.capture_and_save(model, tokenizer, request)

        seconds(capture)  # the first run allocates memory that the others reuse
        checked, unchecked, shares = [], [], []
        for _ in range(arguments.rounds):
            clock.spent = 0.0
            with patch.object(tensor_files, "_digest", clock):
                checked.append(seconds(capture))
            shares.append(clock.spent / checked[-1])
            with patch.object(tensor_files, "_digest", lambda _tensor: ""):
                unchecked.append(seconds(capture))
        one, other = median(checked), median(unchecked)
        print(f"{positions:9}  {one:.2f}  {other:7.2f}  {one / other:.3f}  {median(shares):.2%}", flush=True)


if __name__ == "__main__":
    main()
