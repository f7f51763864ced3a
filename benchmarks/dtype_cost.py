"""Compare captures in bfloat16 and float32: directions, rankings and time.

Both captures of a concept use the same pairs and the last token of every layer. The table shows the cosine between the
two mean differences (median layer, worst layer, best layer of the float32 ranking), the rank that bfloat16 gives to the
best float32 layer, the rank correlation of the two rankings, and the time of each capture.

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

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

import engine
from engine.records.captures import ContrastData
from engine.stats.groups import last_states
from engine.stats.ranking import rank_layers


def capture(concepts: list[str], model: str, dtype: str) -> dict[str, tuple[ContrastData, float]]:
    """Capture several concepts with one model; return each contrast and its seconds."""
    loaded, tokenizer, _ = engine.load_model_and_tokenizer(model, dtype=dtype)
    made = {}
    for concept in concepts:
        start = time.perf_counter()
        data = engine.capture_from_concept(loaded, tokenizer, concept, positions="last")
        made[concept] = (data, time.perf_counter() - start)
    return made


def cosines(one: ContrastData, other: ContrastData) -> dict[int, float]:
    """Cosine between the mean differences of two contrasts at each layer."""
    found = {}
    for layer in one["layers"]:
        first, second = (
            (last_states(data["positive"], layer) - last_states(data["negative"], layer)).mean(dim=0)
            for data in (one, other)
        )
        found[layer] = float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))
    return found


def order(data: ContrastData) -> list[int]:
    """Layers in the order of their ranking, best first."""
    return [row["layer"] for row in rank_layers(data, resamples=200)["layers"]]


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--concepts", nargs="+", default=["honesty", "formality", "empathy"], help="Built-in concepts or concept files"
    )
    parser.add_argument("--model", default="smollm2", help="Model, as for layerscope capture --model")
    parser.add_argument("--dtype", default="bfloat16", help="Dtype to compare with float32")
    parser.add_argument("--markdown", action="store_true", help="Print a Markdown table for docs/performance.md")
    arguments = parser.parse_args()
    exact = capture(arguments.concepts, arguments.model, "float32")
    rounded = capture(arguments.concepts, arguments.model, arguments.dtype)
    bar = "| " if arguments.markdown else ""
    columns = (
        "concept",
        "cosine, median",
        "worst",
        "at the best layer",
        "rank of best layer",
        "rank correlation",
        "seconds",
    )
    print(bar + " | ".join(columns) + (" |" if arguments.markdown else ""))
    if arguments.markdown:
        print("|" + " --- |" * len(columns))
    for concept in arguments.concepts:
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
        print(bar + " | ".join(cells) + (" |" if arguments.markdown else ""))


if __name__ == "__main__":
    main()
