"""Transfer: AUROC and shares against plain loops, intervals against their coverage, the matrix against its parts."""

import numpy as np
import pytest
import torch

from engine.errors import RequestError
from engine.records.captures import ContrastData, Factors
from engine.stats.groups import pairs_at
from engine.stats.separation import compute_separation
from engine.stats.transfer import compare_transfer, mean_direction, own_transfer, resampled, sort_pairs, transfer
from tests.engine.plots.records import contrast_record, prompt_record
from tests.engine.stats.captures import provenance
from tests.engine.stats.contrasts import Array, Sides, all_factors, auroc_by_hand, capture_of, only_personas, planted

PAIRS = 60


def sorted_by_hand(direction: Array, sides: Sides) -> tuple[float, float]:
    """AUROC and the share of pairs in the right order, by comparing every two prompts."""
    positive, negative = (states @ direction for states in sides)
    return auroc_by_hand((positive, negative)), float(np.mean(positive > negative))


def weighted_by_hand(projected: Sides, weights: Array) -> float:
    """AUROC where each prompt counts with the weight of its pair."""
    total = above = 0.0
    for a, one in zip(projected[0], weights, strict=True):
        for b, other in zip(projected[1], weights, strict=True):
            total += one * other
            above += one * other * ((a > b) + (a == b) / 2)
    return above / total


def test_a_direction_sorts_the_pairs_of_another_contrast_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    (one,), (other,) = planted(rng, [2.0], 40), planted(rng, [1.0], PAIRS)
    direction = (one[0] - one[1]).mean(axis=0)
    found = transfer(mean_direction(pairs_at(capture_of([one], None), 0)), capture_of([other], all_factors()), 0)
    assert (found["auroc"], found["in_order"]) == pytest.approx(sorted_by_hand(direction, other))
    assert 0 < found["low"] < found["auroc"] < found["high"] <= 1


def test_the_own_direction_is_held_out_by_the_worst_factor() -> None:
    data = capture_of(planted(np.random.default_rng(1), [0.5], PAIRS), all_factors())
    found, separation = own_transfer(data, 0), compute_separation(data)[0]
    assert found is not None
    worst = separation["by_factor"][separation["worst"]]
    assert found["auroc"] == pytest.approx(worst["auroc"])
    assert found["in_order"] == pytest.approx(1 - worst["wrong_way"])


def test_without_groups_there_is_no_own_direction() -> None:
    assert own_transfer(capture_of(planted(np.random.default_rng(1), [0.5], 3), None), 0) is None


def test_the_interval_is_that_of_the_weighted_bootstrap() -> None:
    rng = np.random.default_rng(2)
    projected = rng.normal(size=12) + 0.8, rng.normal(size=12)
    units = torch.arange(12) // 3
    found = sort_pairs(torch.from_numpy(projected[0]), torch.from_numpy(projected[1]), units, seed=3)
    weights = torch.empty((4, 2000), dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(3))
    scores = np.array([weighted_by_hand(projected, column[units].numpy()) for column in weights.T[:200]])
    # 200 of the 2000 resamples: their standard deviation agrees to about 5%.
    student = 3.182446  # 97.5% quantile of t with three degrees of freedom
    half = student * np.sqrt(5 / 3) * np.std(np.log(scores / (1 - scores)), ddof=1)
    odds = [value / (1 - value) for value in (found["low"], found["auroc"], found["high"])]
    assert np.log(odds[2] / odds[1]) == pytest.approx(half, rel=0.15)
    assert odds[1] / odds[0] == pytest.approx(odds[2] / odds[1])


def test_ties_count_half_and_equal_prompts_say_nothing() -> None:
    same = torch.ones(8, dtype=torch.float64)
    found = sort_pairs(same, same, torch.arange(8))
    assert (found["auroc"], found["in_order"]) == (0.5, 0.5)
    assert (found["low"], found["high"]) == pytest.approx((0.5, 0.5))


def test_an_opposite_direction_sorts_the_pairs_backwards() -> None:
    data = capture_of(planted(np.random.default_rng(3), [3.0], PAIRS), all_factors())
    direction = mean_direction(pairs_at(data, 0))
    there, back = transfer(direction, data, 0), transfer(-direction, data, 0)
    assert there["auroc"] > 0.8
    assert back["auroc"] == pytest.approx(1 - there["auroc"])
    assert back["low"] == pytest.approx(1 - there["high"])


def test_personas_are_resampled_if_there_are_enough() -> None:
    layers = planted(np.random.default_rng(4), [1.0], PAIRS)
    assert resampled(capture_of(layers, all_factors()))[0] == "persona"
    two = [Factors(persona=f"p{i % 2}", template=f"t{i % 5}", topic="x") for i in range(PAIRS)]
    assert resampled(capture_of(layers, two))[0] == "template"
    name, units = resampled(capture_of(layers, None))
    assert (name, len(set(units.tolist()))) == ("pairs", PAIRS)


def test_perfect_order_stays_within_0_and_1() -> None:
    values = torch.arange(6, dtype=torch.float64)
    found = sort_pairs(values + 10, values, torch.arange(6))
    assert (found["auroc"], found["high"]) == (1.0, 1.0)
    assert 0.9 < found["low"] <= 1.0


def test_two_units_leave_the_interval_open() -> None:
    values = torch.arange(6, dtype=torch.float64)
    found = sort_pairs(values + 1.5, values, torch.arange(6) % 2)
    assert (found["low"], found["high"]) == (0.0, 1.0)


def personas_shifted(rng: np.random.Generator, shift: float, personas: int, each: int) -> Sides:
    """One dimension; personas shift the difference of their pairs by as much as the noise of a pair."""
    own = np.repeat(rng.normal(size=personas), each)
    count = personas * each
    return (rng.normal(size=count) + shift + own)[:, None], rng.normal(size=count)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_intervals_cover_the_auroc_of_the_population(shift: float) -> None:
    """Near 1 too, where an interval symmetric in AUROC covers 85%."""
    rng, axis = np.random.default_rng(5), torch.ones(1, dtype=torch.float64)
    wide = personas_shifted(rng, shift, 100_000, 1)
    true = float(np.searchsorted(np.sort(wide[1][:, 0]), wide[0][:, 0]).mean() / len(wide[1]))
    factors, covered = only_personas(12, 6), 0
    for _ in range(400):
        found = transfer(axis, capture_of([personas_shifted(rng, shift, 12, 6)], factors), 0)
        covered += found["low"] <= true <= found["high"]
    assert 0.92 <= covered / 400 <= 0.985


def matrix_captures() -> dict[str, ContrastData]:
    rng = np.random.default_rng(6)
    strengths = {"a": [0.2, 2.0], "b": [0.3, 1.5], "c": [0.1, 1.0]}
    return {name: capture_of(planted(rng, given, PAIRS), all_factors()) for name, given in strengths.items()}


def records_of(names: "dict[str, ContrastData] | str") -> list[object]:
    return [contrast_record() | {"name": name, "concept": f"concept {name}"} for name in names]


def test_the_matrix_holds_every_direction_on_every_contrast() -> None:
    data = matrix_captures()
    matrix = compare_transfer(records_of(data), lambda record: data[record["name"]])  # type: ignore[arg-type]
    assert (matrix["layer"], matrix["names"], matrix["titles"][0]) == (1, ["a", "b", "c"], "concept a")
    for row, one in enumerate("abc"):
        direction = mean_direction(pairs_at(data[one], 1))
        for column, other in enumerate("abc"):
            expected = own_transfer(data[one], 1) if one == other else transfer(direction, data[other], 1)
            assert matrix["cells"][row][column] == expected
    shares = [matrix["cells"][i][j]["in_order"] for i in range(3) for j in range(3) if i != j]
    assert matrix["off_diagonal"] == pytest.approx(np.mean([max(share, 1 - share) for share in shares]))
    chosen = compare_transfer(records_of(data), lambda record: data[record["name"]], layer=0)  # type: ignore[arg-type]
    assert chosen["layer"] == 0


def test_captures_that_cannot_be_compared_are_refused() -> None:
    data = matrix_captures()
    one = contrast_record()

    def load(_record: object) -> ContrastData:
        return data["a"]

    with pytest.raises(RequestError, match="prompts"):
        compare_transfer([one, prompt_record()], load)
    with pytest.raises(RequestError, match="differ in model"):
        other = contrast_record()
        other["provenance"] = provenance(model="other", positions="last")
        compare_transfer([one, other], load)
    with pytest.raises(RequestError, match="layer 7 was not captured"):
        compare_transfer([one, one], load, layer=7)
    with pytest.raises(RequestError, match="different widths"):
        transfer(torch.ones(3, dtype=torch.float64), data["a"], 0)
