"""Statistics of a causal ranking: p-values by hand, intervals that cover, and error rates of the whole decision."""

import math

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

from engine.stats.causal import (
    AblationResults,
    AdditionResults,
    compare_ablations,
    compare_additions,
    exceeds_controls,
    interval_of_means,
)

LAYERS, PERSONAS, PROMPTS = 6, 24, 48


def groups(seed: int) -> dict[str, Tensor]:
    drawing = torch.Generator().manual_seed(seed)
    return {"persona": torch.arange(PROMPTS) % PERSONAS, "topic": torch.randperm(PROMPTS, generator=drawing) % 30}


def gradients(seed: int, mean: float) -> Tensor:
    """Sensitivity of each prompt's margin, `(layers, prompts, 8)`: a mean, and effects of personas and topics."""
    drawing = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawing, dtype=torch.float64)

    crossed = groups(seed)
    common = mean * draw(1, 1, 8)
    persona, topic = 0.7 * draw(LAYERS, PERSONAS, 8), 0.5 * draw(LAYERS, 30, 8)
    return common + persona[:, crossed["persona"]] + topic[:, crossed["topic"]] + draw(LAYERS, PROMPTS, 8)


def results(seed: int, *, mean: float) -> AdditionResults:
    """Effects of a direction and twelve controls, all of which are random."""
    drawing = torch.Generator().manual_seed(10_000 + seed)
    vectors = torch.randn(13, 8, generator=drawing, dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    effects = torch.einsum("lph,dh->ldp", gradients(seed, mean), vectors)
    ones = torch.ones(LAYERS, 13, dtype=torch.float64)
    return AdditionResults(effects, ones, ones[:, 0], groups(seed), permuted=2)


def found(made: AdditionResults, seed: int) -> bool:
    test = compare_additions(made, seed)
    return bool(((test.p_values <= 0.05) & (test.interval.mean > 0)).any())


def test_the_p_value_counts_directions_with_both_signs_over_all_layers() -> None:
    observed = torch.tensor([3.0, 1.0])
    controls = torch.tensor([[1.0, -2.0], [1.0, 1.0]])
    scale = torch.tensor([14 / 3, 1.0]).sqrt()
    best = [max((sign * column / scale).tolist()) for column in (observed, *controls.T) for sign in (1, -1)]
    expected = [sum(one >= float(value) for one in best) / 6 for value in observed / scale]
    assert exceeds_controls(observed, controls, signed=True).tolist() == pytest.approx(expected)
    assert expected[0] == pytest.approx(1 / 6)


def test_without_signs_each_control_counts_once() -> None:
    p_values = exceeds_controls(torch.tensor([2.0]), torch.tensor([[1.0, 0.5, 2.5]]), signed=False)
    assert p_values.tolist() == [0.5]


def test_an_interval_of_equal_values_is_a_point() -> None:
    found = interval_of_means(torch.full((1, 12), 0.3, dtype=torch.float64), {"pair": torch.arange(12)})
    assert (float(found.low), float(found.high)) == pytest.approx((0.3, 0.3))
    assert float(found.p_values) < 0.01


def effective_by_hand(numbers: list[int]) -> float:
    """Number of equally large groups that would average an effect as well."""
    return 1 / sum((numbers.count(group) / len(numbers)) ** 2 for group in set(numbers))


def error_by_hand(values: list[float], groups: dict[str, list[int]]) -> float:
    """Standard error of a mean by multiway clustering, with loops; at least that of any factor alone."""
    count = len(values)
    mean = sum(values) / count
    clustered = []
    for numbers in groups.values():
        sums = [sum(v - mean for v, n in zip(values, numbers, strict=True) if n == group) for group in set(numbers)]
        many = effective_by_hand(numbers)
        clustered.append(sum(value**2 for value in sums) * many / (many - 1) / count**2)
    pairs = sum((value - mean) ** 2 for value in values) / count**2
    return math.sqrt(max(sum(clustered) - (len(groups) - 1) * pairs, *clustered, 0.0))


@pytest.mark.parametrize("sizes", [(3,), (12,), (3, 5), (12, 8)], ids=str)
@pytest.mark.parametrize("mean", [0.2, 0.5])
def test_an_interval_has_the_clustered_error_and_students_t(sizes: tuple[int, ...], mean: float) -> None:
    """The largest of 2,000 deviations of one layer is a normal deviate, up to a sampling error of 3%."""
    drawing = torch.Generator().manual_seed(sum(sizes))
    values = mean + torch.randn(40, generator=drawing, dtype=torch.float64)
    groups = {f"factor {size}": torch.arange(40) * 7 // (3 + place) % size for place, size in enumerate(sizes)}
    error = error_by_hand(values.tolist(), {name: numbers.tolist() for name, numbers in groups.items()})
    interval = interval_of_means(values[None], groups)
    freedom = min(effective_by_hand(numbers.tolist()) for numbers in groups.values()) - 1
    reach = student.ppf(0.975, freedom)
    half = float(interval.high - interval.low) / 2
    assert half == pytest.approx(reach * error, rel=0.07)
    assert float(interval.mean) == pytest.approx(float(values.mean()))
    assert float(interval.p_values) == pytest.approx(student.sf(float(interval.mean) / error, freedom), abs=0.03)


def test_one_persona_with_most_prompts_is_not_taken_for_many() -> None:
    """Its effect is most of the mean: counted as one of eight personas, it is found in four of ten sets."""
    persona = torch.tensor([0] * 36 + [1 + number % 7 for number in range(12)])
    finds = 0
    for seed in range(60):
        drawing = torch.Generator().manual_seed(seed)
        effects, noise = (torch.randn(4, count, generator=drawing, dtype=torch.float64) for count in (8, 48))
        finds += float(interval_of_means(effects[:, persona] + noise, {"persona": persona}).p_values.min()) <= 0.05
    assert finds <= 6


def test_simultaneous_intervals_hold_for_many_layers_and_few_personas() -> None:
    """No layer has an effect; Student's t for one layer, which is too narrow for the largest of 12, covers 86%."""
    persona, inside = torch.arange(48) % 6, 0
    for seed in range(100):
        drawing = torch.Generator().manual_seed(seed)
        effects, noise = (torch.randn(12, count, generator=drawing, dtype=torch.float64) for count in (6, 48))
        interval = interval_of_means(effects[:, persona] + noise, {"persona": persona}, seed)
        inside += bool(((interval.low <= 0) & (interval.high >= 0)).all())
    assert inside >= 92


def test_an_effect_shared_by_all_prompts_is_found() -> None:
    made = results(3, mean=0.0)
    own = made.effects.clone()
    own[2, 0] += 1.5
    test = compare_additions(AdditionResults(own, made.damage, made.perplexity, made.groups, made.permuted), seed=0)
    assert test.p_values[2] <= 0.05
    assert test.p_by_control["controls"][2] == pytest.approx(1 / 26)
    assert float(test.wrong_way[2]) == float((own[2, 0] < 0).double().mean())
    assert test.quantiles[2].tolist() == pytest.approx(
        own[2, 0].quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)).tolist()
    )


def test_ablation_is_compared_with_the_mean_and_the_best_of_the_controls() -> None:
    drawing = torch.Generator().manual_seed(0)
    removed = 0.1 * torch.randn(2, 22, 24, generator=drawing, dtype=torch.float64)
    removed[1, 0] += 0.4
    removed[:, 1:] += 0.05
    difference = 1 + 0.2 * torch.randn(24, generator=drawing, dtype=torch.float64)
    crossed = {"persona": torch.arange(24) % 12}
    test = compare_ablations(AblationResults([0, 1], removed, difference, crossed))
    assert test is not None
    whole = float(difference.mean())
    assert test.interval.mean.tolist() == pytest.approx((removed[:, 0].mean(dim=1) / whole).tolist())
    assert test.p_values[0] > 0.05 >= test.p_values[1]
    assert test.p_values[1] == pytest.approx(1 / 22)
    assert test.controls.tolist() == pytest.approx((removed[:, 1:].mean(dim=2).amax(dim=1) / whole).tolist())


def test_a_share_that_is_the_same_for_all_prompts_is_certain() -> None:
    """Whatever their differences are: the interval is that of a ratio."""
    drawing = torch.Generator().manual_seed(1)
    difference = 1 + 0.3 * torch.randn(24, generator=drawing, dtype=torch.float64)
    removed = 0.3 * difference[None, None].repeat(1, 20, 1)
    test = compare_ablations(AblationResults([0], removed, difference, {"pair": torch.arange(24)}))
    assert test is not None
    assert (float(test.interval.low), float(test.interval.high)) == pytest.approx((0.3, 0.3))


def test_what_controls_remove_as_well_is_not_significant() -> None:
    """The direction removes 0.3 of each prompt, and the controls nearly as much; it is barely the best of them."""
    drawing = torch.Generator().manual_seed(2)
    noise = torch.randn(24, generator=drawing, dtype=torch.float64)
    own = 0.3 + 0.1 * (noise - noise.mean())
    removed = torch.cat([own[None], torch.full((20, 24), 0.295, dtype=torch.float64)])[None]
    groups = {"pair": torch.arange(24)}
    test = compare_ablations(AblationResults([0], removed, torch.ones(24, dtype=torch.float64), groups))
    assert test is not None
    assert float(test.interval.low) > 0.2
    error = error_by_hand(own.tolist(), {"pair": list(range(24))})
    assert float(test.p_values) == pytest.approx(student.sf(0.005 / error, 23), abs=0.04)


def test_no_share_is_stated_if_one_group_has_nearly_all_prompts() -> None:
    difference = 1 + 0.1 * torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    removed = difference[None, None].repeat(1, 20, 1)
    for numbers in (torch.zeros(16, dtype=torch.long), (torch.arange(16) == 0).long()):
        assert compare_ablations(AblationResults([0], removed, difference, {"pair": numbers})) is None


def test_no_share_is_stated_of_an_uncertain_difference() -> None:
    drawing = torch.Generator().manual_seed(0)
    difference = torch.randn(16, generator=drawing, dtype=torch.float64)
    removed = torch.randn(1, 20, 16, generator=drawing, dtype=torch.float64)
    assert compare_ablations(AblationResults([0], removed, difference, {"pair": torch.arange(16)})) is None


@pytest.mark.slow
def test_the_interval_of_a_share_holds_whatever_removal_depends_on() -> None:
    """Removal that does not grow with the difference: an interval that divides by its mean as if known covers half."""
    inside = 0
    for seed in range(300):
        drawing = torch.Generator().manual_seed(seed)
        noise = torch.randn(3, 16, generator=drawing, dtype=torch.float64)
        difference, removed = 1 + 0.4 * noise[0], (0.3 + 0.05 * noise[1])[None, None].expand(1, 2, 16)
        test = compare_ablations(AblationResults([0], removed, difference, {"pair": torch.arange(16)}), seed)
        assert test is not None
        inside += bool(test.interval.low <= 0.3 <= test.interval.high)
    assert 0.91 <= inside / 300 <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.0, 1.0], ids=["no prompt moves", "any direction moves the prompts"])
def test_a_random_direction_is_found_in_at_most_one_set_of_twenty(mean: float) -> None:
    """Where every direction moves the prompts somehow, only the controls keep a random direction from being found."""
    assert sum(found(results(seed, mean=mean), seed) for seed in range(400)) / 400 <= 0.08


@pytest.mark.slow
def test_intervals_hold_for_all_layers_at_once() -> None:
    """With the mean of the population at 0. At a true share of 95%, 400 sets have a standard error of 1.1%."""
    inside = 0
    for seed in range(400):
        values = results(seed, mean=0.0).effects[:, 0]
        interval = interval_of_means(values, groups(seed), seed)
        inside += bool(((interval.low <= 0) & (interval.high >= 0)).all())
    assert 0.92 <= inside / 400 <= 0.98
