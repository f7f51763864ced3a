"""Held-out separation: right by a plain computation, finds what was planted, and finds nothing where nothing is."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.records.captures import ActivationData, ContrastData
from engine.records.concepts import Factors
from engine.stats.separation import compute_separation

Array = NDArray[np.float64]
FACTORS = ("persona", "template", "topic")
PERSONAS, TEMPLATES, TOPICS = 4, 3, 5


def all_factors() -> list[Factors]:
    """Every persona in every template on every topic."""
    return [
        Factors(persona=f"p{i}", template=f"t{j}", topic=f"about {k}")
        for i in range(PERSONAS)
        for j in range(TEMPLATES)
        for k in range(TOPICS)
    ]


def capture_of(layers: Sequence[tuple[Array, Array]], factors: list[Factors] | None) -> ContrastData:
    """A contrast whose last states are given: per layer positive and negative, `(pairs, hidden)` each."""

    def prompt(side: int, pair: int) -> ActivationData:
        return ActivationData(
            activations={i: torch.tensor(layer[side][pair])[None, None] for i, layer in enumerate(layers)},
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


def noise(rng: np.random.Generator, pairs: int, width: int = 24) -> tuple[Array, Array]:
    """Two sides that share what their pair is about, far from the origin, and differ by chance."""
    shared = rng.normal(size=(pairs, width)) + 30
    return shared + rng.normal(size=(pairs, width)), shared + rng.normal(size=(pairs, width))


def by_hand(positive: Array, negative: Array, groups: list[str]) -> tuple[float, float]:
    """The same two numbers with a loop over the groups and directions written out."""
    held_out_positive, held_out_negative = [], []
    for group in sorted(set(groups)):
        out = np.array([name == group for name in groups])
        direction = (positive[~out] - negative[~out]).mean(axis=0)
        direction /= np.linalg.norm(direction)
        middle = (positive[~out].mean(axis=0) + negative[~out].mean(axis=0)) / 2
        held_out_positive += list((positive[out] - middle) @ direction)
        held_out_negative += list((negative[out] - middle) @ direction)
    p, n = np.array(held_out_positive), np.array(held_out_negative)
    d_prime = (p.mean() - n.mean()) / np.sqrt((p.var(ddof=1) + n.var(ddof=1)) / 2)
    return float(d_prime), float(np.mean([(a > b) + (a == b) / 2 for a in p for b in n]))


def test_it_is_what_a_plain_computation_gives() -> None:
    rng = np.random.default_rng(0)
    factors = all_factors()
    positive, negative = noise(rng, len(factors))
    positive[:, 0] += 1.5
    (layer,) = compute_separation(capture_of([(positive, negative)], factors)).values()
    for factor in FACTORS:
        d_prime, auroc = by_hand(positive, negative, [str(dict(pair)[factor]) for pair in factors])
        assert layer["by_factor"][factor]["d_prime"] == pytest.approx(d_prime, rel=1e-9)
        assert layer["by_factor"][factor]["auroc"] == pytest.approx(auroc, rel=1e-9)
    assert layer["worst"] == min(layer["by_factor"], key=lambda name: layer["by_factor"][name]["d_prime"])


def worst(data: ContrastData) -> list[float]:
    return [layer["by_factor"][layer["worst"]]["d_prime"] for layer in compute_separation(data).values()]


def test_planted_layers_are_found_where_the_raw_norm_is_not() -> None:
    """States grow a hundredfold with depth, noise with them; the direction is planted at layers 3 and 4 of eight."""
    rng = np.random.default_rng(1)
    factors = all_factors()
    layers = []
    for depth in range(8):
        positive, negative = noise(rng, len(factors))
        positive[:, :3] += 2.0 * (depth in {3, 4})
        layers.append((positive * 2.0**depth, negative * 2.0**depth))
    raw = [np.linalg.norm((positive - negative).mean(axis=0)) for positive, negative in layers]
    scores = worst(capture_of(layers, factors))
    assert int(np.argmax(raw)) == 7
    assert set(np.argsort(scores)[-2:]) == {3, 4}
    assert min(scores[3], scores[4]) > 1.0 > max(scores[i] for i in (0, 1, 2, 5, 6, 7))


def test_what_each_persona_does_its_own_way_does_not_count() -> None:
    """Every persona moves its prompts in a direction of its own: new topics look separated, a new persona does not."""
    rng = np.random.default_rng(2)
    factors = all_factors()
    positive, negative = noise(rng, len(factors), width=64)
    for i in range(PERSONAS):
        own = np.array([pair["persona"] == f"p{i}" for pair in factors])
        positive[own] += 4.0 * np.eye(64)[i]
    (layer,) = compute_separation(capture_of([(positive, negative)], factors)).values()
    assert layer["worst"] == "persona"
    assert layer["by_factor"]["persona"]["d_prime"] < 0.5
    assert layer["by_factor"]["topic"]["d_prime"] > 1.0


def test_chance_scores_nothing_on_average() -> None:
    rng = np.random.default_rng(3)
    factors = all_factors()
    layers = [noise(rng, len(factors)) for _ in range(400)]
    separations = compute_separation(capture_of(layers, factors)).values()
    for factor in FACTORS:
        values = [layer["by_factor"][factor]["d_prime"] for layer in separations]
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values)) + 0.05


def test_pairs_without_factors_are_left_out_in_folds() -> None:
    rng = np.random.default_rng(4)
    positive, negative = noise(rng, 10)
    positive[:, 0] += 3.0
    (layer,) = compute_separation(capture_of([(positive, negative)], None)).values()
    d_prime, _ = by_hand(positive, negative, [str(i % 5) for i in range(10)])
    assert layer["worst"] == "pairs"
    assert layer["by_factor"]["pairs"]["d_prime"] == pytest.approx(d_prime, rel=1e-9)


def test_a_factor_that_does_not_vary_cannot_be_left_out() -> None:
    rng = np.random.default_rng(5)
    factors = [Factors(persona="only", template=f"t{i % 2}", topic=f"{i}") for i in range(6)]
    (layer,) = compute_separation(capture_of([noise(rng, 6)], factors)).values()
    assert set(layer["by_factor"]) == {"template", "topic"}


@pytest.mark.parametrize("pairs", [1, 3])
def test_too_few_pairs_get_no_number(pairs: int) -> None:
    assert compute_separation(capture_of([noise(np.random.default_rng(6), pairs)], None)) == {}


def test_sides_that_are_equal_get_zero_and_not_a_division_by_it() -> None:
    same = np.ones((6, 4))
    (layer,) = compute_separation(capture_of([(same, same)], None)).values()
    assert layer["by_factor"]["pairs"] == {"d_prime": 0.0, "auroc": 0.5}
