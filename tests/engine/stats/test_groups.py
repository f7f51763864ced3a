"""Groups of pairs that are held out together, and units that are resampled together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.records.captures import Factors
from engine.stats.groups import FEWEST_PAIRS, FOLDS, PAIRS, group_pairs, resampled_units
from tests.engine.stats.contrasts import FACTORS, all_factors, numbers_of, only_personas, values_of


def test_every_varying_factor_can_be_held_out() -> None:
    factors = all_factors()
    groupings = group_pairs(factors, len(factors))
    assert list(groupings) == list(FACTORS)
    for factor, groups in groupings.items():
        np.testing.assert_array_equal(groups.numpy(), numbers_of(factors, factor))


def test_a_factor_with_one_or_two_values_cannot_be_held_out() -> None:
    """With two groups each is projected on the other alone, which gives a single number."""
    assert list(group_pairs(only_personas(3, 2), 6)) == ["persona"]
    factors = all_factors(3, 2, 4)
    assert list(group_pairs(factors, len(factors))) == ["persona", "topic"]


@pytest.mark.parametrize("personas", [1, 2])
def test_nothing_is_held_out_if_hardly_anything_varies(personas: int) -> None:
    assert group_pairs(only_personas(personas, 6), 6 * personas) == {}


@given(st.lists(st.tuples(*[st.sampled_from("abcdé x")] * 3), min_size=FEWEST_PAIRS, max_size=30))
def test_pairs_with_the_same_value_are_in_the_same_group(values: list[tuple[str, str, str]]) -> None:
    factors = [Factors(persona=a, template=b, topic=c) for a, b, c in values]
    for factor, groups in group_pairs(factors, len(factors)).items():
        names = values_of(factors, factor)
        assert [[a == b for a in names] for b in names] == (groups[:, None] == groups[None, :]).tolist()
        assert sorted(set(groups.tolist())) == list(range(len(set(names))))  # from 0, without gaps


def test_the_order_of_the_pairs_does_not_name_the_groups() -> None:
    """Indices follow the names, so that a capture in another order gives the same weights to the same groups."""
    factors = all_factors()
    order = np.random.default_rng(0).permutation(len(factors))
    moved = group_pairs([factors[i] for i in order], len(factors))
    for factor, groups in group_pairs(factors, len(factors)).items():
        assert moved[factor].tolist() == groups[torch.from_numpy(order)].tolist()


@pytest.mark.parametrize("factors", [None, []])
@pytest.mark.parametrize("pairs", [4, 5, 7, 12])
def test_pairs_without_factors_go_into_folds_in_turn(factors: list[Factors] | None, pairs: int) -> None:
    groupings = group_pairs(factors, pairs)
    assert list(groupings) == [PAIRS]
    assert groupings[PAIRS].tolist() == [pair % FOLDS for pair in range(pairs)]


@pytest.mark.parametrize("pairs", range(FEWEST_PAIRS))
def test_too_few_pairs_are_not_grouped(pairs: int) -> None:
    assert group_pairs(None, pairs) == {}
    assert group_pairs(all_factors()[:pairs], pairs) == {}


def test_groups_are_resampled_whole_and_pairs_without_factors_one_by_one() -> None:
    groups = torch.tensor([0, 1, 0, 1, 2])
    assert resampled_units("persona", groups).tolist() == groups.tolist()
    assert resampled_units(PAIRS, groups).tolist() == [0, 1, 2, 3, 4]
