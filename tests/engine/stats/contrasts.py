"""Made-up contrasts of known last states, and what is held out of them written out as a plain loop."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.records.captures import ActivationData, ContrastData, Factors

Array = NDArray[np.float64]
Sides = tuple[Array, Array]
"""The positive and the negative states of a layer, `(pairs, hidden)` each."""

FACTORS = ("persona", "template", "topic")
PERSONAS, TEMPLATES, TOPICS = 4, 3, 5


def all_factors(personas: int = PERSONAS, templates: int = TEMPLATES, topics: int = TOPICS) -> list[Factors]:
    """Every persona in every template on every topic."""
    return [
        Factors(persona=f"p{i}", template=f"t{j}", topic=f"about {k}")
        for i in range(personas)
        for j in range(templates)
        for k in range(topics)
    ]


def only_personas(personas: int, each: int) -> list[Factors]:
    """Pairs of which nothing but the persona is known to vary, the same number for each."""
    return [Factors(persona=f"p{i}", template="only", topic="only") for i in range(personas) for _ in range(each)]


def values_of(factors: Sequence[Factors], factor: str) -> list[str]:
    """The persona, template or topic of each pair."""
    return [str(dict(pair)[factor]) for pair in factors]


def numbers_of(factors: Sequence[Factors], factor: str) -> NDArray[np.int64]:
    """The same, as numbers from 0 in the order of their names."""
    return np.unique(values_of(factors, factor), return_inverse=True)[1].astype(np.int64)


def capture_of(layers: Sequence[Sides], factors: list[Factors] | None) -> ContrastData:
    """A contrast whose last states are given: per layer positive and negative, `(pairs, hidden)` each."""

    def prompt(side: int, pair: int) -> ActivationData:
        return ActivationData(
            activations={i: torch.from_numpy(layer[side][pair])[None, None] for i, layer in enumerate(layers)},
            input_ids=torch.zeros(1, 1, dtype=torch.long),
            tokens=["x"],
            prompt="x",
            num_layers=len(layers),
            captured_layers=list(range(len(layers))),
        )

    pairs = len(layers[0][0])
    data = ContrastData(
        positive=[prompt(0, pair) for pair in range(pairs)],
        negative=[prompt(1, pair) for pair in range(pairs)],
        num_pairs=pairs,
        concept=None,
        layers=list(range(len(layers))),
    )
    if factors is not None:
        data["factors"] = factors
    return data


def noise(rng: np.random.Generator, pairs: int, width: int = 24) -> Sides:
    """Two sides that share what their pair is about, far from the origin, and differ by chance."""
    shared = rng.normal(size=(pairs, width)) + 30
    return shared + rng.normal(size=(pairs, width)), shared + rng.normal(size=(pairs, width))


def planted(rng: np.random.Generator, strengths: Sequence[float], pairs: int, width: int = 24) -> list[Sides]:
    """Noise at each layer, with the positive side moved along one direction by so much."""
    layers = []
    for strength in strengths:
        positive, negative = noise(rng, pairs, width)
        positive[:, :3] += strength / np.sqrt(3)
        layers.append((positive, negative))
    return layers


def repeated(sides: Sides, times: NDArray[np.int64]) -> Sides:
    """Each pair as often as given."""
    return np.repeat(sides[0], times, axis=0), np.repeat(sides[1], times, axis=0)


def swapped(sides: Sides, signs: Array) -> Sides:
    """The prompts of a pair in each other's place where the sign is -1, `(pairs,)`."""
    swap = signs[:, None] < 0
    return np.where(swap, sides[1], sides[0]), np.where(swap, sides[0], sides[1])


def projected_by_hand(sides: Sides, groups: Sequence[object], weights: Array | None = None) -> Sides:
    """Both sides projected on the direction of all other groups, from their middle, with a loop over the groups."""
    positive, negative = sides
    weights = np.ones(len(positive)) if weights is None else weights
    projected = np.zeros(len(positive)), np.zeros(len(positive))
    for group in set(groups):
        out = np.array([name == group for name in groups])
        direction = np.average(positive[~out] - negative[~out], axis=0, weights=weights[~out])
        direction /= np.linalg.norm(direction)
        middle = np.average((positive[~out] + negative[~out]) / 2, axis=0, weights=weights[~out])
        for side, states in zip(projected, sides, strict=True):
            side[out] = (states[out] - middle) @ direction
    return projected


def d_prime_by_hand(projected: Sides, weights: Array | None = None) -> float:
    """Distance of the means over the root of the mean variance; unbiased variances of as many as there are pairs."""
    count = len(projected[0])
    weights = np.ones(count) if weights is None else weights
    means = [np.average(side, weights=weights) for side in projected]
    variances = [
        np.average((side - mean) ** 2, weights=weights) * count / (count - 1)
        for side, mean in zip(projected, means, strict=True)
    ]
    return float((means[0] - means[1]) / np.sqrt(np.mean(variances)))


def auroc_by_hand(projected: Sides) -> float:
    """Share of (positive, negative) in the right order, pair of prompts by pair of prompts."""
    return float(np.mean([(a > b) + (a == b) / 2 for a in projected[0] for b in projected[1]]))
