"""Synthetic contrasts with known last states, and held-out scores computed by plain loops."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray

from engine.records.captures import ActivationData, ContrastData, Factors
from engine.records.results import ClassSummary
from engine.stats.classes import summarise_layer
from engine.stats.groups import group_pairs, pairs_at
from engine.stats.held_out import hold_out

Array = NDArray[np.float64]
Sides = tuple[Array, Array]
"""Positive and negative states of a layer, `(pairs, hidden)` each."""

FACTORS = ("persona", "template", "topic")
PERSONAS, TEMPLATES, TOPICS = 4, 3, 5


def all_factors(personas: int = PERSONAS, templates: int = TEMPLATES, topics: int = TOPICS) -> list[Factors]:
    """Every combination of persona, template and topic."""
    return [
        Factors(persona=f"p{i}", template=f"t{j}", topic=f"about {k}")
        for i in range(personas)
        for j in range(templates)
        for k in range(topics)
    ]


def only_personas(personas: int, each: int) -> list[Factors]:
    """Factors where only the persona varies, with the same number of pairs per persona."""
    return [Factors(persona=f"p{i}", template="only", topic="only") for i in range(personas) for _ in range(each)]


def values_of(factors: Sequence[Factors], factor: str) -> list[str]:
    """Persona, template or topic of each pair."""
    return [str(dict(pair)[factor]) for pair in factors]


def numbers_of(factors: Sequence[Factors], factor: str) -> NDArray[np.int64]:
    """Persona, template or topic of each pair as an index from 0, in the order of their names."""
    return np.unique(values_of(factors, factor), return_inverse=True)[1].astype(np.int64)


def capture_of(layers: Sequence[Sides], factors: list[Factors] | None) -> ContrastData:
    """A contrast with given last states: positive and negative per layer, `(pairs, hidden)` each.

    The text of a prompt is a digest of its states, so that prompts with other states have other texts.
    """

    def prompt(side: int, pair: int) -> ActivationData:
        states = [layer[side][pair] for layer in layers]
        return ActivationData(
            activations={i: torch.from_numpy(state)[None, None] for i, state in enumerate(states)},
            input_ids=torch.zeros(1, 1, dtype=torch.long),
            tokens=["x"],
            prompt=sha256(b"".join(state.tobytes() for state in states)).hexdigest(),
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


def with_own_texts(data: ContrastData) -> ContrastData:
    """Give every prompt another text, also those with equal states."""
    for number, prompt in enumerate((*data["positive"], *data["negative"])):
        prompt["prompt"] = f"prompt {number}"
    return data


def noise(rng: np.random.Generator, pairs: int, width: int = 24) -> Sides:
    """Two classes that share a large component per pair and differ only by noise."""
    shared = rng.normal(size=(pairs, width)) + 30
    return shared + rng.normal(size=(pairs, width)), shared + rng.normal(size=(pairs, width))


def planted(rng: np.random.Generator, strengths: Sequence[float], pairs: int, width: int = 24) -> list[Sides]:
    """Noise at each layer, with the positive class shifted along one direction by the given strength."""
    layers = []
    for strength in strengths:
        positive, negative = noise(rng, pairs, width)
        positive[:, :3] += strength / np.sqrt(3)
        layers.append((positive, negative))
    return layers


def repeated(sides: Sides, times: NDArray[np.int64]) -> Sides:
    """Repeat each pair the given number of times."""
    return np.repeat(sides[0], times, axis=0), np.repeat(sides[1], times, axis=0)


def swapped(sides: Sides, signs: Array) -> Sides:
    """Swap the prompts of each pair with sign -1, `(pairs,)`."""
    swap = signs[:, None] < 0
    return np.where(swap, sides[1], sides[0]), np.where(swap, sides[0], sides[1])


def projected_by_hand(sides: Sides, groups: Sequence[object], weights: Array | None = None) -> Sides:
    """Project both classes on the direction of all other groups, centered, with a loop over the groups."""
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
    """Distance of the class means over the root mean variance; variances are unbiased for the number of pairs."""
    count = len(projected[0])
    weights = np.ones(count) if weights is None else weights
    means = [np.average(side, weights=weights) for side in projected]
    variances = [
        np.average((side - mean) ** 2, weights=weights) * count / (count - 1)
        for side, mean in zip(projected, means, strict=True)
    ]
    return float((means[0] - means[1]) / np.sqrt(np.mean(variances)))


def auroc_by_hand(projected: Sides) -> float:
    """Share of (positive, negative) in the right order, by comparing every two prompts."""
    return float(np.mean([(a > b) + (a == b) / 2 for a in projected[0] for b in projected[1]]))


def summaries_of(data: ContrastData) -> list[ClassSummary]:
    """Summaries of all layers, as in a record."""
    groupings = group_pairs(data)
    found = [summarise_layer(layer, hold_out(pairs_at(data, layer), groupings)) for layer in data["layers"]]
    return [summary for summary in found if summary is not None]
