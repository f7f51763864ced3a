"""The crossed test: equal to plain loops, blind to the effects of single factors, and exact about what it counts."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from engine.stats.crossed import MOST_PAIRS, CrossedLayer, CrossedTest, Kept, crossed_p_values
from engine.stats.groups import Sides, pairs_of, sample_pairs
from tests.engine.stats.contrasts import Array

FACTORS = ("persona", "template", "topic")


def design(personas: int = 7, templates: int = 6, topics: int = 8) -> dict[str, torch.Tensor]:
    """Every persona with every template, topics in turn."""
    rows = torch.arange(personas * templates)
    columns = (rows % personas, rows // personas, (rows * 5) % topics)
    return dict(zip(FACTORS, columns, strict=True))


def crossed_test(groupings: dict[str, torch.Tensor], resamples: int = 999) -> CrossedTest:
    return CrossedTest(groupings, resamples, torch.Generator().manual_seed(0))


def score_by_hand(differences: Array, groupings: dict[str, torch.Tensor]) -> float:
    """The sum over all ordered two pairs that share nothing, over its multiway-clustered standard error."""
    groups = [column.numpy() for column in groupings.values()]
    pairs = range(len(differences))
    apart = np.array([[all(column[i] != column[j] for column in groups) for j in pairs] for i in pairs])
    score = sum(float(differences[i] @ differences[j]) for i, j in itertools.product(pairs, pairs) if apart[i, j])
    centered = differences - differences.mean(axis=0)
    products = np.where(apart, centered @ centered.T, 0.0)
    weights = np.zeros((len(differences), len(differences)))
    for i, j in itertools.product(pairs, pairs):
        shared = [column for column in groups if column[i] == column[j]]
        effective = [1 / np.square(np.bincount(column) / len(column)).sum() for column in shared]
        corrections = [count / (count - 1) for count in effective]
        weights[i, j] = sum(corrections) - (len(shared) - 1) if shared else 0.0
    variance = 2 * np.trace(weights @ products @ weights @ products)
    return score / float(variance**0.5)


def test_the_score_equals_plain_loops() -> None:
    groupings = design()
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(42, 5))
    for factor, spread in zip(FACTORS, (1.0, 0.8, 0.6), strict=True):
        groups = groupings[factor].numpy()
        differences += spread * rng.normal(size=(groups.max() + 1, 5))[groups]
    found = crossed_test(groupings).layer(torch.from_numpy(differences)).score
    assert found == pytest.approx(score_by_hand(differences, groupings), rel=1e-9)


def test_effects_of_single_factors_add_nothing_to_the_score() -> None:
    """Strong effects that sum to zero over their groups cancel; a common difference does not."""
    groupings = design(personas=8, templates=8, topics=8)
    groupings["topic"] = (groupings["persona"] + groupings["template"]) % 8  # a Latin square: fully balanced
    rng = np.random.default_rng(5)
    noise = torch.from_numpy(rng.normal(size=(64, 6)))
    strong = torch.zeros_like(noise)
    for groups in groupings.values():
        effects = rng.normal(size=(8, 6))
        strong += 30 * torch.from_numpy(effects - effects.mean(axis=0))[groups]
    test = crossed_test(groupings)
    plain, buried, common = test.layer(noise), test.layer(noise + strong), test.layer(noise + strong + 60)
    assert abs(buried.score) < 3
    assert crossed_p_values([buried]).item() > 0.05
    assert crossed_p_values([common]).item() <= 0.01
    assert crossed_p_values([plain]).item() > 0.05


def test_the_null_has_unit_variance_and_widens_for_few_groups() -> None:
    rng = np.random.default_rng(2)
    spread = {}
    for count in (6, 30):
        groupings = design(personas=count, templates=6, topics=8)
        pairs = len(groupings["persona"])
        along = rng.normal(size=(pairs, 1)) + rng.normal(size=(count, 1))[groupings["persona"].numpy()]
        spread[count] = crossed_test(groupings, 4000).layer(torch.from_numpy(along)).null.square().mean().sqrt().item()
    assert 1 < spread[30] < spread[6]


@pytest.mark.parametrize("width", [1, 6])
def test_the_null_is_widened_by_the_degrees_of_freedom_of_the_group_means(width: int) -> None:
    """Satterthwaite's: (groups - 1) times the participation ratio of the covariance of their means, with loops."""
    groupings = design(personas=5)
    rng = np.random.default_rng(4)
    differences = rng.normal(size=(30, width)) + 2 * rng.normal(size=(5, width))[groupings["persona"].numpy()]
    centered = differences - differences.mean(axis=0)
    persona = crossed_test(groupings)._factors[0]
    shared = torch.stack([groups[:, None] == groups for groups in groupings.values()]).any(dim=0)
    products = torch.from_numpy(centered @ centered.T)
    found = persona.widening(products, products * ~shared, torch.Generator().manual_seed(7))
    chances = torch.rand(999, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    members = [np.flatnonzero(groupings["persona"].numpy() == group) for group in range(5)]
    variance = sum(np.square(centered[group].mean(axis=0)).sum() for group in members) / (5 - 1)
    squared = 0.0
    for one, other in itertools.permutations(members, 2):
        apart = [centered[i] @ centered[j] for i in one for j in other if not shared[i, j]]
        squared += (sum(apart) / len(one) / len(other) * 5 / 4) ** 2 / (5 * 4)
    freedom = 4 * max(variance**2 / squared, 1.0)
    assert found.numpy() == pytest.approx(np.sqrt(freedom / chi2.isf(chances.numpy(), freedom)), rel=1e-9)


def test_p_values_count_the_best_layer() -> None:
    layers = [CrossedLayer(2.0, torch.tensor([1.0, 2.5, 0.0])), CrossedLayer(0.5, torch.tensor([0.0, 0.1, 4.0]))]
    assert crossed_p_values(layers).tolist() == [(2 + 1) / 4, (3 + 1) / 4]


def test_scale_and_order_of_pairs_do_not_matter() -> None:
    groupings = design()
    differences = torch.from_numpy(np.random.default_rng(3).normal(size=(42, 5)) + 0.3)
    layer = crossed_test(groupings).layer(differences)
    scaled = crossed_test(groupings).layer(differences * 1e6)
    assert scaled.score == pytest.approx(layer.score, rel=1e-9)
    assert torch.allclose(scaled.null, layer.null)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(1))
    moved = crossed_test({factor: groups[order] for factor, groups in groupings.items()}).layer(differences[order])
    assert moved.score == pytest.approx(layer.score, rel=1e-9)


def test_equal_classes_are_not_significant() -> None:
    layer = crossed_test(design()).layer(torch.zeros(42, 5, dtype=torch.float64))
    assert layer.score == 0
    assert crossed_p_values([layer]).item() == 1


@pytest.mark.parametrize("count", [3, MOST_PAIRS + 500])
def test_chosen_pairs_are_kept_while_all_are_read(count: int) -> None:
    positive = torch.arange(count, dtype=torch.float64)[:, None] * 3
    negative = torch.arange(count, dtype=torch.float64)[:, None]

    def in_chunks() -> Iterator[Sides]:
        for start in range(0, count, 100):
            yield positive[start : start + 100], negative[start : start + 100]

    chosen = sample_pairs({"persona": torch.arange(count) % 3}, MOST_PAIRS, seed=4)
    for pairs in (pairs_of(positive, negative), in_chunks):
        kept = Kept(pairs, chosen)
        for _ in range(2):  # a second reading replaces the first
            read: list[Any] = list(kept())
            assert sum(len(one) for one, _ in read) == count
        assert kept.differences[:, 0].tolist() == (2 * chosen).tolist()
    assert len(set(chosen.tolist())) == min(count, MOST_PAIRS)


def test_groups_of_unequal_size_give_less_certainty() -> None:
    """One persona with most of the pairs: its effect hardly averages out, so that the null is wider."""
    rng = np.random.default_rng(6)
    even = design(personas=8, templates=8, topics=8)
    uneven = even | {"persona": torch.where(torch.arange(64) < 40, 0, even["persona"])}
    differences = torch.from_numpy(rng.normal(size=(64, 1)))
    nulls = [crossed_test(groupings, 4000).layer(differences).null for groupings in (even, uneven)]
    assert nulls[1].square().mean() > 1.2 * nulls[0].square().mean()


def test_a_factor_whose_groups_are_rare_is_tested_in_a_large_capture() -> None:
    """A random sample of 1024 of 5000 pairs would miss most of the small groups."""
    count = 5000
    rare = torch.zeros(count, dtype=torch.long)
    rare[:5] = torch.arange(1, 6)
    groupings = {"persona": rare, "topic": torch.arange(count) % 7}
    chosen = sample_pairs(groupings, MOST_PAIRS)
    assert len(chosen) == MOST_PAIRS
    assert set(rare[chosen].tolist()) == set(range(6))
    test = crossed_test({factor: groups[chosen] for factor, groups in groupings.items()})
    differences = torch.from_numpy(np.random.default_rng(7).normal(size=(MOST_PAIRS, 3)))
    assert crossed_p_values([test.layer(differences)]).item() > 0.01
