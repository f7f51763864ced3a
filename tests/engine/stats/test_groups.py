"""Groups of pairs that are held out together, and units that are resampled together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.records.captures import ContrastData, Factors, ResponseText
from engine.records.results import FEWEST_PAIRS, FOLDS
from engine.stats.groups import MOST_UNITS, PAIRS, group_by_factors, group_pairs, held_out_groups
from engine.stats.wordings import number_pairs
from tests.engine.stats.contrasts import FACTORS, all_factors, capture_of, numbers_of, only_personas, values_of


def test_every_varying_factor_can_be_held_out() -> None:
    factors = all_factors()
    groupings = group_by_factors(factors)
    assert list(groupings) == list(FACTORS)
    for factor, groups in groupings.items():
        np.testing.assert_array_equal(groups.numpy(), numbers_of(factors, factor))


def test_a_factor_with_one_or_two_values_cannot_be_held_out() -> None:
    """With two groups each is projected on the other alone, which gives a single number."""
    assert list(group_by_factors(only_personas(3, 2))) == ["persona"]
    factors = all_factors(3, 2, 4)
    assert list(group_by_factors(factors)) == ["persona", "topic"]


@pytest.mark.parametrize("personas", [1, 2])
def test_nothing_is_held_out_if_hardly_anything_varies(personas: int) -> None:
    assert group_by_factors(only_personas(personas, 6)) == {}


@given(st.lists(st.tuples(*[st.sampled_from("abcdé x")] * 3), min_size=FEWEST_PAIRS, max_size=30))
def test_pairs_with_the_same_value_are_in_the_same_group(values: list[tuple[str, str, str]]) -> None:
    factors = [Factors(persona=a, template=b, topic=c) for a, b, c in values]
    for factor, groups in group_by_factors(factors).items():
        names = values_of(factors, factor)
        assert [[a == b for a in names] for b in names] == (groups[:, None] == groups[None, :]).tolist()
        assert sorted(set(groups.tolist())) == list(range(len(set(names))))  # from 0, without gaps


def test_labels_that_differ_in_spaces_or_capitals_are_one_group() -> None:
    """A stray space made six personas of three, enough for a small p-value: in 23 of 24 sets without an effect."""
    clean, typed = (only_personas(3, 4) for _ in range(2))
    spellings = (lambda name: f" {name}", lambda name: f"{name}\u00a0", str.upper, str)
    for pair, known in enumerate(typed):
        known["persona"] = spellings[pair % 4](known["persona"])
    assert len({known["persona"] for known in typed}) == 12
    [groups], [others] = group_by_factors(clean).values(), group_by_factors(typed).values()
    assert groups.tolist() == others.tolist()


def test_a_factor_that_some_pairs_lack_is_not_held_out() -> None:
    factors = all_factors(6, 6, 6)
    factors[0]["persona"] = ""
    assert list(group_by_factors(factors)) == ["template", "topic"]


def test_the_order_of_the_pairs_does_not_name_the_groups() -> None:
    """Indices follow the names, so that a capture in another order gives the same weights to the same groups."""
    factors = all_factors()
    order = np.random.default_rng(0).permutation(len(factors))
    moved = group_by_factors([factors[i] for i in order])
    for factor, groups in group_by_factors(factors).items():
        assert moved[factor].tolist() == groups[torch.from_numpy(order)].tolist()


@pytest.mark.parametrize("factors", [None, []])
@pytest.mark.parametrize("pairs", [4, 5, 7, 70])
def test_pairs_without_factors_are_resampled_one_by_one_and_held_out_in_folds(
    factors: list[Factors] | None, pairs: int
) -> None:
    groupings = group_pairs(contrast_of([(f"yes {pair}", f"no {pair}") for pair in range(pairs)], factors))
    assert list(groupings) == [PAIRS]
    assert groupings[PAIRS].tolist() == [pair % MOST_UNITS for pair in range(pairs)]
    assert held_out_groups(PAIRS, groupings[PAIRS]).tolist() == [pair % FOLDS for pair in range(pairs)]


@pytest.mark.parametrize("pairs", range(FEWEST_PAIRS))
def test_too_few_pairs_are_not_grouped(pairs: int) -> None:
    assert group_pairs(contrast_of([(f"yes {pair}", f"no {pair}") for pair in range(pairs)])) == {}
    assert group_by_factors(all_factors()[:pairs]) == {}


@pytest.mark.parametrize(
    ("again", "number"),
    [
        pytest.param(("yes 1", "no 1"), 1, id="the whole pair"),
        pytest.param(("yes 2", "another"), 2, id="one prompt"),
        pytest.param(("no 3", "another"), 3, id="a prompt of the other class"),
        pytest.param(("another", "one more"), 5, id="nothing"),
    ],
)
def test_pairs_that_share_a_prompt_are_one_group(again: tuple[str, str], number: int) -> None:
    pairs = [*((f"yes {pair}", f"no {pair}") for pair in range(5)), again]
    assert group_pairs(contrast_of(pairs))[PAIRS].tolist() == [0, 1, 2, 3, 4, number]


def test_pairs_that_share_prompts_through_others_are_one_group() -> None:
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"), ("i", "j"), ("a", "d")]
    assert number_pairs(contrast_of(pairs)).tolist() == [0, 0, 1, 2, 3, 0]
    assert group_pairs(contrast_of([(f"yes {pair}", "no") for pair in range(40)])) == {}


def test_pairs_of_responses_to_a_prompt_are_one_group() -> None:
    pairs = with_responses(contrast_of([(f"prompt {pair % 6}",) * 2 for pair in range(18)]))
    assert number_pairs(pairs).tolist() == [pair % 6 for pair in range(18)]


@pytest.mark.parametrize("factors", [None, all_factors()[:18]])
def test_responses_to_few_prompts_or_with_factors_count_as_part_of_them(factors: list[Factors] | None) -> None:
    """Several personas may answer one prompt, which is not theirs."""
    prompts = 6 if factors else 5
    pairs = [(f"prompt {pair % prompts}",) * 2 for pair in range(18)]
    assert number_pairs(with_responses(contrast_of(pairs, factors))).tolist() == [*range(18)]
    assert number_pairs(contrast_of(pairs, factors)).tolist() == [pair % prompts for pair in range(18)]


def with_responses(data: ContrastData) -> ContrastData:
    """Give every prompt a response of its own."""
    for number, prompt in enumerate([*data["positive"], *data["negative"]]):
        prompt["response"] = ResponseText(text=f"response {number}", tokens=1, ended=True)
    return data


def test_groups_are_held_out_as_they_are() -> None:
    assert held_out_groups("persona", torch.tensor([0, 7, 0, 9, 2])).tolist() == [0, 7, 0, 9, 2]


def contrast_of(pairs: list[tuple[str, str]], factors: list[Factors] | None = None) -> ContrastData:
    """A contrast of which only the wording counts."""
    states = np.zeros((len(pairs), 1))
    data = capture_of([(states, states)], factors)
    for side, prompts in enumerate((data["positive"], data["negative"])):
        for prompt, pair in zip(prompts, pairs, strict=True):
            prompt["prompt"] = pair[side]
    return data
