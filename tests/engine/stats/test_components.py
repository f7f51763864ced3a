"""Variance components and what they say about precision: equal to planted variances and to plain formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.stats.components import combine, error_shares, variance_components
from engine.stats.ranking import rank_layers
from tests.engine.stats.contrasts import all_factors, capture_of, numbers_of


def test_planted_variances_are_found() -> None:
    rng = np.random.default_rng(0)
    factors = all_factors(40, 30, 1)
    groupings = {name: torch.from_numpy(numbers_of(factors, name)) for name in ("persona", "template")}
    found = []
    for _ in range(30):
        values = 2.0 * rng.normal(size=40)[groupings["persona"]] + rng.normal(size=30)[groupings["template"]]
        values += 3.0 * rng.normal(size=1200)
        found.append(list(variance_components(torch.from_numpy(values), groupings).values()))
    assert np.mean(found, axis=0) == pytest.approx([4.0, 1.0, 9.0], rel=0.12)


def test_a_balanced_design_gives_the_variances_of_the_analysis_of_variance() -> None:
    """One way, equal groups: within = residual; between = its excess over the residual per group."""
    values = np.random.default_rng(1).normal(size=(8, 5)) + 3 * np.random.default_rng(2).normal(size=(8, 1))
    within = values.var(axis=1, ddof=1).mean()
    between = values.mean(axis=1).var(ddof=1) - within / 5
    groups = torch.arange(8).repeat_interleave(5)
    found = variance_components(torch.from_numpy(values.ravel()), {"persona": groups})
    assert found == pytest.approx({"persona": between, "pair": within}, rel=1e-9)


def test_shares_divide_by_the_number_of_groups() -> None:
    shares = error_shares({"persona": 6.0, "template": 0.0, "pair": 24.0}, {"persona": 12, "template": 6}, 48)
    assert shares == {"persona": 0.5, "template": 0.0, "pair": 0.5}
    assert error_shares({"pair": 0.0}, {}, 10) == {"pair": 0.0}


def test_single_pairs_count_once_in_a_combined_variance() -> None:
    """Without effects of factors, three bootstraps each contain the variance of single pairs, which is there once."""
    deviations = {name: torch.randn(4000, dtype=torch.float64) for name in ("persona", "template", "topic")}
    groups = dict.fromkeys(deviations, 12)
    only_pairs = dict.fromkeys(deviations, 0.0) | {"pair": 1.0}
    once, _ = combine(deviations, only_pairs, groups, 72)
    assert float(once.var()) == pytest.approx(1.0, abs=0.15)
    only_factors = dict.fromkeys(deviations, 1.0) | {"pair": 0.0}
    added, freedom = combine(deviations, only_factors, groups, 72)
    assert float(added.var()) == pytest.approx(3.0, rel=0.1)
    assert freedom == pytest.approx(33, rel=0.05)


@given(st.lists(st.floats(0.01, 9.0), min_size=1, max_size=3), st.lists(st.floats(0.0, 9.0), min_size=4, max_size=4))
def test_a_combined_variance_is_that_of_the_formula_and_at_least_that_of_each_factor(
    variances: list[float], components: list[float]
) -> None:
    names, groups = ("persona", "template", "topic")[: len(variances)], {"persona": 12, "template": 6, "topic": 9}
    unit = torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5  # variance 1
    deviations = {name: value**0.5 * unit for name, value in zip(names, variances, strict=True)}
    by_name = dict(zip((*names, "pair"), components, strict=False)) | {"pair": components[-1]}
    combined, freedom = combine(deviations, by_name, groups, 72)
    least = names[variances.index(min(variances))]
    parts = by_name[least] / groups[least], by_name["pair"] / 72
    alone = parts[1] / sum(parts) if sum(parts) else 0.0
    total = sum(variances)
    once = total - (len(names) - 1) * alone * min(variances)
    assert float(combined.var()) * total / sum(value**0.5 for value in variances) ** 2 == pytest.approx(once)
    assert once >= max(variances) * (1 - 1e-12)
    weights = [value**2 / (groups[name] - 1) for name, value in zip(names, variances, strict=True)]
    assert freedom == pytest.approx(total**2 / sum(weights))


def test_a_ranking_says_which_factor_limits_it() -> None:
    rng = np.random.default_rng(3)
    factors = all_factors(12, 8, 1)
    persona = numbers_of(factors, "persona")
    differences = rng.normal(size=(96, 6)) + 2.5 * rng.normal(size=(12, 6))[persona]
    differences[:, 0] += 4
    middles = rng.normal(size=(96, 6))
    layers = [(middles + differences / 2, middles - differences / 2)]
    limits = rank_layers(capture_of(layers, factors), resamples=50, permutations=50)["limits"]
    assert sum(limits.values()) == pytest.approx(1.0)
    assert max(limits, key=lambda factor: limits[factor]) == "persona"
    assert limits["persona"] > 0.8
