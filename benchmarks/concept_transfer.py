"""Measure how well the direction of one concept orders the pairs of another.

The direction of a concept is its mean difference over all pairs, at one layer and the last token. A cell is the share
of the column's pairs whose positive prompt projects higher onto the row's direction than its negative prompt does. On
the diagonal, the direction comes from all personas but the pair's own. A share of .5 is chance; a share far below it
means that the two concepts are opposed. The last two rows split the diagonal: in the second half of the personas of a
built-in concept, the positive role is the less desirable one, so that a direction of desirability fails there.
The first table shows the best held-out layer of each concept.

Examples:
    .venv/bin/python benchmarks/concept_transfer.py                              # all concepts, layer 15
    .venv/bin/python benchmarks/concept_transfer.py --layers 12 15 20 --markdown
    .venv/bin/python benchmarks/concept_transfer.py --concepts honesty empathy --pairs 72
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

import engine
from engine.concepts.catalog import list_concepts, load_concept
from engine.stats.groups import last_states
from engine.stats.separation import compute_separation

CONTROLS = ("desirability", "sentiment")


@dataclass(frozen=True)
class Differences:
    """What a concept's capture leaves for the table.

    Attributes:
        states: Positive minus negative state of each pair, of shape `(pairs, hidden)` at each layer.
        personas: Number of each pair's persona, in the order of the concept file.
        best: Layer with the highest held-out d', its d' and its AUROC.
    """

    states: dict[int, Tensor]
    personas: Tensor
    best: tuple[int, float, float]


def capture(concepts: list[str], model: str, pairs: int) -> dict[str, Differences]:
    """Capture concepts at all layers and keep the difference of each pair."""
    loaded, tokenizer, _ = engine.load_model_and_tokenizer(model)
    kept = {}
    for concept in concepts:
        order = [persona.name for persona in load_concept(concept).personas]
        data = engine.capture_from_concept(loaded, tokenizer, concept, max_samples=pairs, positions="last")
        states = {
            layer: last_states(data["positive"], layer).float() - last_states(data["negative"], layer).float()
            for layer in data["layers"]
        }
        scores = {layer: found["by_factor"][found["worst"]] for layer, found in compute_separation(data).items()}
        best = max(scores, key=lambda layer: scores[layer]["d_prime"])
        kept[concept] = Differences(
            states,
            personas=torch.tensor([order.index(factors["persona"]) for factors in data["factors"]]),
            best=(best, scores[best]["d_prime"], scores[best]["auroc"]),
        )
        print(f"{concept}: {data['num_pairs']} pairs", file=sys.stderr)
    return kept


def share(source: Differences, target: Differences, layer: int) -> float:
    """Share of the target's pairs that the source's direction orders correctly."""
    return ordered(target.states[layer] @ source.states[layer].mean(dim=0))


def held_out(concept: Differences, layer: int) -> Tensor:
    """Project each pair onto the concept's direction over the other personas; of shape `(pairs,)`."""
    states = concept.states[layer]
    projected = torch.zeros(len(states))
    for persona in set(concept.personas.tolist()):
        out = concept.personas == persona
        projected[out] = states[out] @ states[~out].mean(dim=0)
    return projected


def halves(concept: Differences, layer: int) -> tuple[float, float]:
    """Held-out share of the pairs from the first and from the second half of the personas."""
    projected, first = held_out(concept, layer), concept.personas < (concept.personas.max() + 1) / 2
    return ordered(projected[first]), ordered(projected[~first])


def ordered(projections: Tensor) -> float:
    """Share of projected differences above zero; one of exactly zero counts as half."""
    return float((projections > 0).float().mean() + (projections == 0).float().mean() / 2)


def spread(table: list[list[float]], names: list[str]) -> float:
    """Mean of max(s, 1 - s) off the diagonal, without the control concepts."""
    kept = [index for index, name in enumerate(names) if name not in CONTROLS]
    shares = [table[row][column] for row in kept for column in kept if row != column]
    return sum(max(each, 1 - each) for each in shares) / max(len(shares), 1)


def main() -> None:
    """Run the benchmark and print a table for each layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", help="Built-in concepts or concept files; all concepts by default")
    parser.add_argument("--model", default="smollm2", help="Model, as for layerscope capture --model")
    parser.add_argument("--pairs", type=int, default=288, help="Maximum number of pairs of each concept")
    parser.add_argument("--layers", type=int, nargs="+", default=[15], help="Layers of the tables")
    parser.add_argument("--markdown", action="store_true", help="Print Markdown tables")
    arguments = parser.parse_args()
    names = arguments.concepts or [concept.name for concept in list_concepts()]
    kept = capture(names, arguments.model, arguments.pairs)

    def write(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |" if arguments.markdown else "".join(f"{cell:>14}" for cell in cells))

    write("concept", "best layer", "d'", "AUROC")
    for name in names:
        layer, d_prime, auroc = kept[name].best
        write(name, str(layer), f"{d_prime:.2f}", f"{auroc:.2f}")
    for layer in arguments.layers:
        table = [
            [
                ordered(held_out(kept[row], layer)) if row == column else share(kept[row], kept[column], layer)
                for column in names
            ]
            for row in names
        ]
        print(f"\nlayer {layer}: mean of max(s, 1 - s) off the diagonal {spread(table, names):.3f}")
        write("row / column", *names)
        for name, row in zip(names, table, strict=True):
            write(name, *(f"{each:.2f}" for each in row))
        split = [halves(kept[name], layer) for name in names]
        write("own, first", *(f"{first:.2f}" for first, _ in split))
        write("own, second", *(f"{second:.2f}" for _, second in split))


if __name__ == "__main__":
    main()
