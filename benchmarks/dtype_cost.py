"""What a capture in bfloat16 costs next to one in float32: directions, ranking, and what it gains in time.

For each concept both captures are made of the same pairs, last token of every layer. Printed are the cosine between the
two mean differences (the median layer, the worst, and the best layer of the float32 ranking), where the layer that
float32 ranks first is ranked in bfloat16, the rank correlation of the two rankings, and the seconds of each capture.

Examples:
    .venv/bin/python benchmarks/dtype_cost.py
    .venv/bin/python benchmarks/dtype_cost.py --concepts honesty formality --dtype float16 --markdown
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

import engine
from engine.records.captures import ContrastData
from engine.stats.groups import last_states
from engine.stats.ranking import rank_layers


def capture(concepts: list[str], model: str, dtype: str) -> dict[str, tuple[ContrastData, float]]:
    """Contrasts of some concepts, and how many seconds each took; the model is loaded once and forgotten."""
    loaded, tokenizer, _ = engine.load_model_and_tokenizer(model, dtype=dtype)
    made = {}
    for concept in concepts:
        begun = time.perf_counter()
        data = engine.capture_from_concept(loaded, tokenizer, concept, positions="last")
        made[concept] = (data, time.perf_counter() - begun)
    return made


def cosines(one: ContrastData, other: ContrastData) -> dict[int, float]:
    """Layer to the cosine of the two mean differences."""
    found = {}
    for layer in one["layers"]:
        first, second = (
            (last_states(data["positive"], layer) - last_states(data["negative"], layer)).mean(dim=0)
            for data in (one, other)
        )
        found[layer] = float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))
    return found


def order(data: ContrastData) -> list[int]:
    """Layers, the best first."""
    return [row["layer"] for row in rank_layers(data, resamples=200)["layers"]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=["honesty", "formality", "empathy"], help="built-in or a file")
    parser.add_argument("--model", default="smollm2", help="as layerscope capture --model takes it")
    parser.add_argument("--dtype", default="bfloat16", help="what is held against float32")
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/performance.md")
    asked = parser.parse_args()
    exact = capture(asked.concepts, asked.model, "float32")
    rounded = capture(asked.concepts, asked.model, asked.dtype)
    bar = "| " if asked.markdown else ""
    columns = (
        "concept",
        "cosine, median",
        "worst",
        "at the best layer",
        "best layer's place",
        "rank correlation",
        "seconds",
    )
    print(bar + " | ".join(columns) + (" |" if asked.markdown else ""))
    if asked.markdown:
        print("|" + " --- |" * len(columns))
    for concept in asked.concepts:
        (one, slow), (other, fast) = exact[concept], rounded[concept]
        near, first, second = cosines(one, other), order(one), order(other)
        worst = min(near, key=lambda layer: near[layer])
        places = [[ranked.index(layer) for layer in one["layers"]] for ranked in (first, second)]
        cells = (
            concept,
            f"{sorted(near.values())[len(near) // 2]:.4f}",
            f"{near[worst]:.4f} (layer {worst})",
            f"{near[first[0]]:.4f} (layer {first[0]})",
            str(second.index(first[0]) + 1),
            f"{spearmanr(*places).statistic:.3f}",
            f"{slow:.1f} and {fast:.1f}",
        )
        print(bar + " | ".join(cells) + (" |" if asked.markdown else ""))


if __name__ == "__main__":
    main()
