"""Measure the time and memory of `rank_layers` at the size of a real capture.

The capture has 288 pairs × 30 layers × width 576: the default design of 24 personas × 12 templates × 40 topics on the
default model. The benchmark prints the median time of five runs and the peak memory of two processes, with 2,000 and
with 20,000 resamples, which should be nearly equal.

Examples:
    .venv/bin/python benchmarks/ranking.py             # time and both peaks
    .venv/bin/python benchmarks/ranking.py --peak N    # only the peak with N resamples; Linux and macOS

Other load on the machine can multiply the time, because torch's threads wait for each other.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

from engine.records.captures import ActivationData, ContrastData, Factors
from engine.stats.ranking import rank_layers
from engine.stats.resampling import RESAMPLES

LAYERS, WIDTH = 30, 576
FACTORS = [
    Factors(persona=f"p{i}", template=f"t{j}", topic=f"about {(12 * i + j) % 40}")
    for i, j in product(range(24), range(12))
]
RUNS = 5


def synthetic_contrast() -> ContrastData:
    """Synthetic contrast: noise plus a planted direction, float32."""
    generator = torch.Generator().manual_seed(0)

    def prompt(sign: float, pair: int) -> ActivationData:
        states = {layer: torch.randn(1, 1, WIDTH, generator=generator) + 30 for layer in range(LAYERS)}
        for layer, state in states.items():
            state[..., 0] += sign * layer / LAYERS
        return ActivationData(
            activations=states,
            input_ids=torch.zeros(1, 1, dtype=torch.long),
            tokens=["x"],
            prompt=f"{sign} {pair}",
            num_layers=LAYERS,
            captured_layers=list(range(LAYERS)),
        )

    return ContrastData(
        positive=[prompt(1.0, pair) for pair in range(len(FACTORS))],
        negative=[prompt(-1.0, pair) for pair in range(len(FACTORS))],
        num_pairs=len(FACTORS),
        concept=None,
        layers=list(range(LAYERS)),
        factors=FACTORS,
    )


def median_seconds(data: ContrastData) -> float:
    """Median time of several runs with default arguments."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        rank_layers(data)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peak_mib() -> float:
    """Peak memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


def peak_of_process(resamples: int) -> float:
    """Peak memory of a new process that ranks once, in MiB."""
    command = [sys.executable, __file__, "--peak", str(resamples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=int, metavar="N", help="Rank once with N resamples and print the peak in MiB")
    arguments = parser.parse_args()
    if arguments.peak is not None:
        rank_layers(synthetic_contrast(), resamples=arguments.peak)
        print(f"{peak_mib():.0f}")
        return
    print(f"{len(FACTORS)} pairs, {LAYERS} layers, width {WIDTH}, {torch.get_num_threads()} threads")
    print(f"rank_layers, median of {RUNS}: {median_seconds(synthetic_contrast()):.2f} s")
    for resamples in (RESAMPLES, 10 * RESAMPLES):
        print(f"peak RSS with {resamples:,} resamples: {peak_of_process(resamples):.0f} MiB")


if __name__ == "__main__":
    main()
