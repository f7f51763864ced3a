"""How long `rank_layers` takes, and how much memory, at the size of a real capture.

90 pairs × 30 layers × width 576, as of the default model with 3 personas × 2 templates × 15 topics: more topics than
can be swapped in every way, so that the default 2,000 resamples and 10,000 permutations are all run. Prints the median
of five runs, and the peak memory of a process that ranks with 2,000 and of one that ranks with 20,000 resamples, which
should hardly differ.

Usage:
    .venv/bin/python benchmarks/ranking.py             # seconds and both peaks
    .venv/bin/python benchmarks/ranking.py --peak N    # the peak of this process alone, N resamples; Linux and macOS

A machine that is busy with something else gives several times the seconds: torch's threads wait for each other.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

from engine.records.captures import ActivationData, ContrastData, Factors
from engine.stats.ranking import RESAMPLES, rank_layers

LAYERS, WIDTH = 30, 576
FACTORS = [
    Factors(persona=f"p{i}", template=f"t{j}", topic=f"about {k}") for i, j, k in product(range(3), range(2), range(15))
]
RUNS = 5


def made_up() -> ContrastData:
    """A contrast of noise with a direction planted, float32 as captured."""
    generator = torch.Generator().manual_seed(0)

    def prompt(side: float) -> ActivationData:
        states = {layer: torch.randn(1, 1, WIDTH, generator=generator) + 30 for layer in range(LAYERS)}
        for layer, state in states.items():
            state[..., 0] += side * layer / LAYERS
        return ActivationData(
            activations=states,
            input_ids=torch.zeros(1, 1, dtype=torch.long),
            tokens=["x"],
            prompt="x",
            num_layers=LAYERS,
            captured_layers=list(range(LAYERS)),
        )

    return ContrastData(
        positive=[prompt(1.0) for _ in FACTORS],
        negative=[prompt(-1.0) for _ in FACTORS],
        num_pairs=len(FACTORS),
        concept=None,
        layers=list(range(LAYERS)),
        factors=FACTORS,
    )


def median_seconds(data: ContrastData) -> float:
    """Of several runs with default arguments."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        rank_layers(data)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_mib() -> float:
    """Most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux


def peak_of_a_process(resamples: int) -> float:
    """Peak of a fresh process that ranks once."""
    command = [sys.executable, __file__, "--peak", str(resamples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=int, metavar="N", help="rank once with N resamples and print the peak in MiB")
    asked = parser.parse_args()
    if asked.peak is not None:
        rank_layers(made_up(), resamples=asked.peak)
        print(f"{peak_mib():.0f}")
        return
    print(f"{len(FACTORS)} pairs, {LAYERS} layers, width {WIDTH}, {torch.get_num_threads()} threads")
    print(f"rank_layers, median of {RUNS}: {median_seconds(made_up()):.2f} s")
    for resamples in (RESAMPLES, 10 * RESAMPLES):
        print(f"peak RSS with {resamples:,} resamples: {peak_of_a_process(resamples):.0f} MiB")


if __name__ == "__main__":
    main()
