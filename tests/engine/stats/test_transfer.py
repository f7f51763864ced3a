"""Transfer: AUROC and shares against plain loops, intervals against their coverage, the matrix against its parts."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

from engine.errors import RequestError
from engine.records.captures import ContrastData, Factors
from engine.records.files import DataFile
from engine.records.results import Transfer
from engine.stats.components import variance_components
from engine.stats.groups import pairs_at, resampled_factors
from engine.stats.separation import compute_separation
from engine.stats.transfer import (
    compare_transfer,
    mean_direction,
    own_transfer,
    sort_pairs,
    transfer,
)
from tests.engine.plots.records import contrast_record, prompt_record
from tests.engine.stats.captures import provenance
from tests.engine.stats.contrasts import (
    Array,
    Sides,
    all_factors,
    auroc_by_hand,
    capture_of,
    numbers_of,
    only_personas,
    planted,
)

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


def sort_arrays(projected: Sides, groupings: dict[str, torch.Tensor], seed: int = 0) -> Transfer:
    return sort_pairs(torch.from_numpy(projected[0]), torch.from_numpy(projected[1]), groupings, seed=seed)


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
    assert found["d_prime"] == pytest.approx(worst["d_prime"])


def test_without_groups_there_is_no_own_direction() -> None:
    assert own_transfer(capture_of(planted(np.random.default_rng(1), [0.5], 3), None), 0) is None


def test_the_interval_is_that_of_the_weighted_bootstrap() -> None:
    rng = np.random.default_rng(2)
    projected = rng.normal(size=12) + 0.8, rng.normal(size=12)
    units = torch.arange(12) // 3
    found = sort_arrays(projected, {"persona": units}, seed=3)
    weights = torch.empty((4, 2000), dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(3))
    scores = np.array([weighted_by_hand(projected, column[units].numpy()) for column in weights.T[:200]])
    # 200 of the 2000 resamples: their standard deviation agrees to about 5%.
    half = student.ppf(0.975, 3) * np.sqrt(5 / 3) * np.std(np.log(scores / (1 - scores)), ddof=1)
    odds = [value / (1 - value) for value in (found["low"], found["auroc"], found["high"])]
    assert np.log(odds[2] / odds[1]) == pytest.approx(half, rel=0.15)
    assert odds[1] / odds[0] == pytest.approx(odds[2] / odds[1])


def test_ties_count_half_and_equal_prompts_say_nothing() -> None:
    same = torch.ones(8, dtype=torch.float64)
    found = sort_pairs(same, same, {"pairs": torch.arange(8)})
    assert (found["auroc"], found["in_order"]) == (0.5, 0.5)
    assert (found["low"], found["high"]) == pytest.approx((0.5, 0.5))


def test_an_opposite_direction_sorts_the_pairs_backwards() -> None:
    data = capture_of(planted(np.random.default_rng(3), [3.0], PAIRS), all_factors())
    direction = mean_direction(pairs_at(data, 0))
    there, back = transfer(direction, data, 0), transfer(-direction, data, 0)
    assert there["auroc"] > 0.8
    assert back["auroc"] == pytest.approx(1 - there["auroc"])
    assert back["low"] == pytest.approx(1 - there["high"])


def test_every_factor_is_resampled_that_has_enough_groups() -> None:
    layers = planted(np.random.default_rng(4), [1.0], PAIRS)
    assert [*resampled_factors(capture_of(layers, all_factors()))] == ["persona", "template", "topic"]
    two = [Factors(persona=f"p{i % 2}", template=f"t{i % 5}", topic="x") for i in range(PAIRS)]
    assert [*resampled_factors(capture_of(layers, two))] == ["template"]
    (alone,) = resampled_factors(capture_of(planted(np.random.default_rng(4), [1.0], 3), None)).values()
    assert alone.tolist() == [0, 1, 2]


def log_odds_width(found: Transfer) -> float:
    odds = [value / (1 - value) for value in (found["low"], found["high"])]
    return float(np.log(odds[1] / odds[0]))


def test_the_interval_combines_the_factors() -> None:
    """The variances add up, that of single pairs counts once, and t has the degrees of freedom of both."""
    rng = np.random.default_rng(7)
    persona, template = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)
    shift = rng.normal(size=8)[persona] + rng.normal(size=5)[template]
    projected = rng.normal(size=40) + 1 + shift, rng.normal(size=40)
    groupings = {"persona": torch.from_numpy(persona), "template": torch.from_numpy(template)}
    variances = {}
    for number, (factor, groups) in enumerate(groupings.items()):
        count = int(groups.max()) + 1
        generator = torch.Generator().manual_seed(number)
        weights = torch.empty((count, 2000), dtype=torch.float64).exponential_(generator=generator).numpy()
        scores = np.array([weighted_by_hand(projected, column[groups]) for column in weights.T[:300]])
        variances[factor] = np.var(np.log(scores / (1 - scores)), ddof=1) * (count + 1) / (count - 1)
    components = variance_components(torch.from_numpy(projected[0] - projected[1]), groupings)
    least = min(variances, key=lambda factor: variances[factor])
    parts = components[least] / {"persona": 8, "template": 5}[least], components["pair"] / 40
    total = sum(variances.values())
    once = max(total - variances[least] * parts[1] / sum(parts), *variances.values())
    freedom = total**2 / (variances["persona"] ** 2 / 7 + variances["template"] ** 2 / 4)
    expected = 2 * student.ppf(0.975, freedom) * np.sqrt(once)
    assert log_odds_width(sort_arrays(projected, groupings)) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("factor", ["persona", "template", "topic"])
def test_the_effects_of_any_factor_widen_the_interval(factor: str) -> None:
    rng, factors = np.random.default_rng(8), all_factors(6, 6, 6)
    groups = {name: numbers_of(factors, name) for name in ("persona", "template", "topic")}
    noise = rng.normal(size=(2, len(factors)))
    plain = noise[0] + 1, noise[1]
    moved = plain[0] + 2 * rng.normal(size=6)[groups[factor]], plain[1]
    units = {name: torch.from_numpy(numbers) for name, numbers in groups.items()}
    narrow, wide = (log_odds_width(sort_arrays(sides, units)) for sides in (plain, moved))
    assert wide > 2 * narrow


def test_perfect_order_stays_within_0_and_1() -> None:
    values = torch.arange(6, dtype=torch.float64)
    found = sort_pairs(values + 10, values, {"pairs": torch.arange(6)})
    assert (found["auroc"], found["high"]) == (1.0, 1.0)
    assert 0.4 < found["low"] < 0.7  # six pairs without an error do not show that there are none


@pytest.mark.parametrize("personas", [None, 12])
def test_an_interval_covers_an_auroc_near_1(personas: int | None) -> None:
    """Of 24 pairs nearly all are in order, in a third of sets all of them: resamples then have no spread."""
    rng, true, covered = np.random.default_rng(3), 0.99, 0
    shift = np.sqrt(2) * norm.ppf(true)
    groups = {"pairs": torch.arange(24)} if personas is None else {"persona": torch.arange(24) % personas}
    for _ in range(60):
        draws = rng.normal(size=(2, 24))
        if personas is not None:
            draws = np.sqrt(0.5) * (draws + np.tile(rng.normal(size=(2, personas)), 2))
        found = sort_pairs(torch.from_numpy(draws[0] + shift), torch.from_numpy(draws[1]), groups)
        covered += found["low"] <= true <= found["high"]
    assert covered >= 54


def test_two_units_leave_the_interval_open() -> None:
    values = torch.arange(6, dtype=torch.float64)
    found = sort_pairs(values + 1.5, values, {"persona": torch.arange(6) % 2})
    assert (found["low"], found["high"]) == (0.0, 1.0)


def personas_shifted(rng: np.random.Generator, shift: float, personas: int, each: int) -> Sides:
    """One dimension; personas shift the difference of their pairs by as much as the noise of a pair."""
    own = np.repeat(rng.normal(size=personas), each)
    count = personas * each
    return (rng.normal(size=count) + shift + own)[:, None], rng.normal(size=count)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_intervals_cover_the_auroc_of_the_population(shift: float) -> None:
    """Near 1 too, where an interval symmetric in AUROC covers 85%; so near it, the score interval covers more."""
    rng, axis = np.random.default_rng(5), torch.ones(1, dtype=torch.float64)
    wide = personas_shifted(rng, shift, 100_000, 1)
    true = float(np.searchsorted(np.sort(wide[1][:, 0]), wide[0][:, 0]).mean() / len(wide[1]))
    factors, covered = only_personas(12, 6), 0
    for _ in range(400):
        found = transfer(axis, capture_of([personas_shifted(rng, shift, 12, 6)], factors), 0)
        covered += found["low"] <= true <= found["high"]
    assert 0.92 <= covered / 400 <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("effects", [(1.0, 1.0), (0.3, 1.0)])
def test_intervals_cover_with_crossed_effects(effects: tuple[float, float]) -> None:
    """Resampling personas alone covers 84% with equal effects, and 66% if templates vary most."""
    rng, axis = np.random.default_rng(9), torch.ones(1, dtype=torch.float64)
    factors = [Factors(persona=f"p{i}", template=f"t{j}", topic="only") for i in range(12) for j in range(6)]
    wide = rng.normal(size=(2, 200_000)) * [[np.sqrt(1 + effects[0] ** 2 + effects[1] ** 2)], [1.0]]
    true = float(np.searchsorted(np.sort(wide[1]), wide[0] + 1).mean() / wide.shape[1])
    covered = 0
    for _ in range(400):
        shift = np.repeat(rng.normal(size=12), 6) * effects[0] + np.tile(rng.normal(size=6), 12) * effects[1]
        sides = (rng.normal(size=72) + 1 + shift)[:, None], rng.normal(size=72)[:, None]
        found = transfer(axis, capture_of([sides], factors), 0)
        covered += found["low"] <= true <= found["high"]
    assert 0.92 <= covered / 400 <= 0.99


def matrix_captures() -> dict[str, ContrastData]:
    rng = np.random.default_rng(6)
    strengths = {"a": [0.2, 2.0], "b": [0.3, 1.5], "c": [0.1, 1.0]}
    return {name: capture_of(planted(rng, given, PAIRS), all_factors()) for name, given in strengths.items()}


def records_of(names: "dict[str, ContrastData] | str") -> list[object]:
    return [contrast_record() | {"name": name, "concept": f"concept {name}", "data": saved_as(name)} for name in names]


def saved_as(name: str) -> DataFile:
    return DataFile(name=f"{name}.pt", bytes=1, sha256=sha256(name.encode()).hexdigest())


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


def test_of_layers_that_sort_every_pair_the_matrix_takes_the_one_with_the_highest_d_prime() -> None:
    rng = np.random.default_rng(5)
    data = {name: capture_of(planted(rng, [20.0, 60.0, 40.0], PAIRS), all_factors()) for name in "ab"}
    assert [own["auroc"] for layer in range(3) if (own := own_transfer(data["a"], layer))] == [1.0] * 3
    matrix = compare_transfer(records_of("ab"), lambda record: data[record["name"]])  # type: ignore[arg-type]
    assert matrix["layer"] == 1


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
        compare_transfer(records_of("ab"), load, layer=7)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="different widths"):
        transfer(torch.ones(3, dtype=torch.float64), data["a"], 0)


def not_loaded(record: object) -> ContrastData:
    raise AssertionError(f"{record} was loaded")


def test_a_matrix_of_fewer_than_two_captures_is_refused() -> None:
    for records in ([], [contrast_record()]):
        with pytest.raises(RequestError, match="two or more captures"):
            compare_transfer(records, not_loaded)


def test_one_capture_given_twice_is_refused() -> None:
    """Its direction on its own pairs would count as transfer."""
    one, other, copy = records_of("abc")
    copy["data"] = one["data"]  # type: ignore[index]
    with pytest.raises(RequestError, match="a is given twice"):
        compare_transfer([one, other, one], not_loaded)  # type: ignore[list-item]
    with pytest.raises(RequestError, match="a and c are the same capture"):
        compare_transfer([one, other, copy], not_loaded)  # type: ignore[list-item]


def test_a_capture_that_cannot_be_held_out_is_refused() -> None:
    """The diagonal would hold its direction in-sample."""
    data = matrix_captures() | {"b": capture_of(planted(np.random.default_rng(6), [0.5, 0.5], 3), None)}
    with pytest.raises(RequestError, match=r"no group of pairs of b can be held out.*at least 4 pairs"):
        compare_transfer(records_of("ab"), lambda record: data[record["name"]])  # type: ignore[arg-type]


def test_states_that_are_not_finite_are_refused() -> None:
    data = matrix_captures()["a"]
    axis = mean_direction(pairs_at(data, 0))
    data["negative"][5]["activations"][0][0, 0, 0] = float("nan")
    with pytest.raises(RequestError, match="layer 0 has non-finite values"):
        transfer(axis, data, 0)
    with pytest.raises(RequestError, match="layer 0 has non-finite values"):
        own_transfer(data, 0)
