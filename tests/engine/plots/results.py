"""Synthetic comparisons, projections, readings and steered texts."""

import math
from collections.abc import Sequence
from typing import Any

from engine.records.files import TokenReading
from engine.records.results import ClassProjections, ComparedLayer, Comparison, DepthRow, Transfer
from engine.records.steering import Kind, SteeredText, SteeredTexts

# Layer, cosine, random 95%, split-half: both extremes, one within the random range and one outside it.
COSINES = [(0, 1.0, 0.1, 0.9), (1, -1.0, 0.5, 0.8), (2, 0.05, 0.2, 0.95), (3, -0.3, 0.25, 0.7)]
FEW, MANY = "small_honesty", "large_honesty"


def sorted_pairs(auroc: float) -> Transfer:
    """A direction that sorts pairs, with an interval of up to 0.05 on either side."""
    return Transfer(auroc=auroc, low=max(auroc - 0.05, 0.0), high=min(auroc + 0.05, 1.0), in_order=auroc)


def compared_directions(rows: Sequence[tuple[int, float, float, float]] = COSINES, **changes: Any) -> Comparison:
    """Comparison of two concepts on one model; their own directions separate best at the first layer."""
    made = Comparison(
        kind="directions",
        names=("some_honesty", "some_empathy"),
        titles=("honesty", "empathy"),
        directions=[
            ComparedLayer(
                layer=layer,
                cosine=cosine,
                chance=chance,
                ceiling=ceiling,
                transfer=sorted_pairs((1 + cosine) / 2),
                back=sorted_pairs(0.5 + cosine / 4),
                own=(sorted_pairs(0.9 - place / 1000), sorted_pairs(0.8)),
            )
            for place, (layer, cosine, chance, ceiling) in enumerate(rows)
        ],
        depths=[],
        warnings=[],
    )
    return made | changes  # type: ignore[return-value]  # merging with a plain dict loses the TypedDict


def depth_rows(name: str, d_primes: Sequence[float], tied: Sequence[int]) -> list[DepthRow]:
    """All layers of a model; intervals reach 0.5 below and 1 above the score."""
    return [
        DepthRow(
            capture=name,
            layer=layer,
            depth=(layer + 1) / len(d_primes),
            d_prime=d_prime,
            low=d_prime - 0.5,
            high=d_prime + 1,
            tied=layer in tied,
        )
        for layer, d_prime in enumerate(d_primes)
    ]


def compared_depths(
    few: Sequence[float] = (0.5, 1.25, -0.5), many: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 1.5, 0.25), **changes: Any
) -> Comparison:
    """One concept on models of three and six layers.

    Layers 0 and 1 of the first model and layers 3 and 4 of the second are tied.
    """
    made = Comparison(
        kind="depth",
        names=(FEW, MANY),
        titles=("someone/small", "someone/large"),
        directions=[],
        depths=[*depth_rows(FEW, few, [0, 1]), *depth_rows(MANY, many, [3, 4])],
        warnings=[],
    )
    return made | changes  # type: ignore[return-value]  # as above


def sides_of(positive: Sequence[float], negative: Sequence[float], left_out: str = "persona") -> ClassProjections:
    """Projections at layer 7."""
    wrong = sum(plus < minus for plus, minus in zip(positive, negative, strict=True))
    return ClassProjections(
        layer=7,
        left_out=left_out,
        positive=list(positive),
        negative=list(negative),
        d_prime=1.5,
        auroc=0.875,
        wrong_way=wrong / len(positive),
    )


def reading_of(tokens: Sequence[str], *values: Sequence[float], **changes: Any) -> TokenReading:
    """A reading at layers 3, 7, 11, ...; the second leads, or the only one."""
    layers = [3 + 4 * place for place in range(len(values))]
    made = TokenReading(
        prompt="made up",
        tokens=list(tokens),
        layers=layers,
        leading=layers[min(1, len(layers) - 1)],
        values={layer: list(row) for layer, row in zip(layers, values, strict=True)},
        concept="honesty",
        method="mean_diff",
        warnings=[],
    )
    return made | changes  # type: ignore[return-value]  # as above


def steered_text(kind: Kind, tokens: Sequence[str], values: Sequence[float], **changes: Any) -> SteeredText:
    """A text of a few tokens, with a perplexity of 2 and no shift."""
    made = SteeredText(
        kind=kind,
        strength=None if kind == "baseline" else 0.1,
        text="".join(tokens).strip(),
        tokens=len(tokens),
        ended=True,
        perplexity=2.0,
        projection=sum(values) / len(values),
        shift=0.0,
        token_ids=list(range(len(tokens))),
        token_texts=list(tokens),
        projections=list(values),
    )
    return made | changes  # type: ignore[return-value]  # as above


def overflowed_text(kind: Kind, strength: float) -> SteeredText:
    """A text that could not be written."""
    problem = f"the predictions are not finite when steered by {strength:g}"
    numbers = dict.fromkeys(("perplexity", "projection", "shift"), math.nan)
    return steered_text(kind, [], [0.0], strength=strength, projections=[], problem=problem, **numbers)


def steered_texts(**changes: Any) -> SteeredTexts:
    """A greeting at layer 16: unsteered, steered and with a random direction."""
    made = SteeredTexts(
        prompt="Hello",
        rendered="Hello",
        layer=16,
        concept="warmth",
        method="mean_diff",
        unit="norm",
        steered_tokens="all",
        unit_length=20.0,
        sampled=False,
        seed=0,
        max_new_tokens=4,
        baseline=steered_text("baseline", ["Good", " day", "."], [-0.5, 0.25, 0.5]),
        steered=[
            steered_text("steered", ["I", " am", " glad", "!"], [0.0, 0.5, 3.0, 1.0], perplexity=2.5, shift=1.125)
        ],
        controls=[steered_text("control", ["What", "\n", "?"], [0.0, -3.0, 0.5], shift=-0.833, ended=False)],
        control_cosine=-0.03,
        warnings=[],
    )
    return made | changes  # type: ignore[return-value]  # as above
