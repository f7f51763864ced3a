"""Specificity: planted neighbours, and every number against plain numpy."""

import numpy as np
import pytest

from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.results import NeighbourAt, SpecificityReport
from engine.stats.ranking import rank_layers
from engine.stats.specificity import measure_specificity
from tests.engine.stats.contrasts import (
    FACTORS,
    Array,
    Sides,
    all_factors,
    auroc_by_hand,
    capture_of,
    d_prime_by_hand,
    only_personas,
    planted,
    projected_by_hand,
    values_of,
)

PERSONAS, EACH, WIDTH = 12, 6, 32
DESIRABLE, OWN, OTHER = np.eye(WIDTH)[:3]


def shifted(rng: np.random.Generator, *vectors: Array) -> ContrastData:
    """One layer per vector, which the positive class is shifted along; pairs and personas vary in every dimension."""
    count = PERSONAS * EACH
    layers = []
    for vector in vectors:
        shared = rng.normal(size=(count, WIDTH)) + 5
        own = np.repeat(rng.normal(size=(PERSONAS, WIDTH)), EACH, axis=0) / 4
        positive, negative = (shared + rng.normal(size=shared.shape) for _ in range(2))
        layers.append((positive + own + vector, negative))
    return capture_of(layers, only_personas(PERSONAS, EACH))


def at(report: SpecificityReport, layer: int = 0) -> NeighbourAt:
    return report["layers"][layer]["neighbours"][0]


def test_a_copy_of_a_neighbour_is_sorted_by_its_direction_and_nothing_is_left() -> None:
    rng = np.random.default_rng(0)
    report = measure_specificity(shifted(rng, 4 * DESIRABLE), {"desirability": shifted(rng, 6 * DESIRABLE)})
    found = at(report)
    assert found["transfer"]["high"] >= report["layers"][0]["own"]["auroc"]
    assert report["layers"][0]["d_prime"] > 2
    assert abs(found["d_prime_left"]) < 0.7
    assert found["back"]["auroc"] > 0.9


def test_an_orthogonal_neighbour_sorts_nothing_and_takes_nothing_away() -> None:
    rng = np.random.default_rng(1)
    report = measure_specificity(shifted(rng, 4 * OWN), {"desirability": shifted(rng, 6 * DESIRABLE)})
    found, own = at(report), report["layers"][0]
    assert found["transfer"]["high"] < own["own"]["auroc"] - 0.1
    assert found["d_prime_left"] == pytest.approx(own["d_prime"], rel=0.1)
    assert report["layers"][0]["d_prime_left"] == pytest.approx(own["d_prime"], rel=0.1)


def test_half_a_neighbour_leaves_the_other_half() -> None:
    rng = np.random.default_rng(2)
    half = 4 * (DESIRABLE + OWN) / np.sqrt(2)
    neighbours = {"desirability": shifted(rng, 20 * DESIRABLE), "other": shifted(rng, 20 * OTHER)}
    report = measure_specificity(shifted(rng, half), neighbours)
    (own,) = report["layers"]
    one, other = own["neighbours"]
    assert one["d_prime_left"] == pytest.approx(own["d_prime"] / np.sqrt(2), rel=0.2)
    assert other["d_prime_left"] == pytest.approx(own["d_prime"], rel=0.1)
    assert own["d_prime_left"] == pytest.approx(one["d_prime_left"], rel=0.1)
    assert 0.5 < other["transfer"]["high"] < one["transfer"]["auroc"] < own["own"]["auroc"]


def left_by_hand(sides: Sides, directions: Array, groups: list[list[str]]) -> float:
    """Lowest held-out d' over the factors without the span of some directions, `(directions, hidden)`."""
    basis = np.linalg.qr(directions.T)[0]
    without = np.eye(len(basis)) - basis @ basis.T
    left = sides[0] @ without, sides[1] @ without
    return min(d_prime_by_hand(projected_by_hand(left, named)) for named in groups)


def test_every_number_agrees_with_plain_numpy() -> None:
    rng, factors = np.random.default_rng(3), all_factors()
    layers = planted(rng, [0.5, 1.5], len(factors))
    others = {name: planted(rng, [strength, 2.0], 30) for name, strength in (("one", 0.4), ("two", 1.0))}
    report = measure_specificity(
        capture_of(layers, factors), {name: capture_of(sides, None) for name, sides in others.items()}
    )
    groups = [values_of(factors, factor) for factor in FACTORS]
    assert report["layer"] == 1
    for layer, (sides, row) in enumerate(zip(layers, report["layers"], strict=True)):
        held = [projected_by_hand(sides, named) for named in groups]
        worst = min(held, key=d_prime_by_hand)
        assert row["d_prime"] == pytest.approx(d_prime_by_hand(worst))
        assert row["own"]["auroc"] == pytest.approx(auroc_by_hand(worst))
        towards = np.stack([(sides[layer][0] - sides[layer][1]).mean(axis=0) for sides in others.values()])
        assert row["d_prime_left"] == pytest.approx(left_by_hand(sides, towards, groups))
        direction = (sides[0] - sides[1]).mean(axis=0)
        for vector, given, found in zip(towards, others.values(), row["neighbours"], strict=True):
            there, back = given[layer]
            assert found["d_prime_left"] == pytest.approx(left_by_hand(sides, vector[None], groups))
            assert found["transfer"]["auroc"] == pytest.approx(auroc_by_hand((sides[0] @ vector, sides[1] @ vector)))
            assert found["back"]["auroc"] == pytest.approx(auroc_by_hand((there @ direction, back @ direction)))
            assert found["back"]["in_order"] == pytest.approx(np.mean((there - back) @ direction > 0))
    assert "one, two carry no factors" in report["warnings"][0]


def test_the_layer_is_the_top_ranked_one() -> None:
    rng = np.random.default_rng(4)
    data, other = shifted(rng, OWN, 3 * OWN, 2 * OWN), shifted(rng, OWN, OWN, OWN)
    assert measure_specificity(data, {"other": other})["layer"] == rank_layers(data)["layers"][0]["layer"] == 1
    chosen = measure_specificity(data, {"other": other}, layer=np.int64(2))["layer"]  # type: ignore[arg-type]
    assert (chosen, type(chosen)) == (2, int)


def test_two_equal_neighbours_are_projected_out_once() -> None:
    rng = np.random.default_rng(5)
    data, other = shifted(rng, 4 * OWN), shifted(rng, 6 * DESIRABLE)
    (once,) = measure_specificity(data, {"one": other})["layers"]
    (twice,) = measure_specificity(data, {"one": other, "two": other})["layers"]
    assert twice["d_prime_left"] == pytest.approx(once["d_prime_left"])


def test_only_rounding_errors_left_counts_as_nothing() -> None:
    """Without noise across the direction, a quotient of rounding errors would be any number."""
    rng, count = np.random.default_rng(6), PERSONAS * EACH
    along = rng.normal(size=(2, count, 1)) * DESIRABLE
    data = capture_of([(along[0] + 3 * DESIRABLE, along[1])], only_personas(PERSONAS, EACH))
    (row,) = measure_specificity(data, {"copy": data})["layers"]
    assert (row["d_prime_left"], row["neighbours"][0]["d_prime_left"]) == (0.0, 0.0)
    assert row["d_prime"] > 2


def test_classes_without_a_difference_sort_nothing() -> None:
    rng = np.random.default_rng(7)
    data, same = shifted(rng, 4 * OWN), shifted(rng, OWN)
    same["negative"] = same["positive"]
    (row,) = measure_specificity(data, {"same": same})["layers"]
    assert row["neighbours"][0]["transfer"]["auroc"] == 0.5
    assert row["neighbours"][0]["d_prime_left"] == pytest.approx(row["d_prime"])


def test_progress_counts_the_layers() -> None:
    rng, told = np.random.default_rng(8), []
    data = shifted(rng, OWN, OWN)
    measure_specificity(data, {"other": data}, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_what_cannot_be_measured_is_refused() -> None:
    rng = np.random.default_rng(9)
    data = shifted(rng, OWN)
    with pytest.raises(RequestError, match="no neighbours"):
        measure_specificity(data, {})
    with pytest.raises(RequestError, match="too few"):
        measure_specificity(capture_of(planted(rng, [1.0], 3), None), {"other": data})
    with pytest.raises(RequestError, match="different widths"):
        measure_specificity(data, {"other": capture_of(planted(rng, [1.0], 30, width=8), None)})
    with pytest.raises(RequestError, match="layer 3 was not captured"):
        measure_specificity(data, {"other": data}, layer=3)
    broken = shifted(rng, OWN)
    broken["positive"][0]["activations"][0][0, 0, 0] = float("nan")
    with pytest.raises(RequestError, match="non-finite"):
        measure_specificity(broken, {"other": data})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_neighbour_that_is_not_finite_is_named(value: float, side: str) -> None:
    rng = np.random.default_rng(10)
    data, broken = shifted(rng, OWN), shifted(rng, OWN)
    dict(broken)[side][3]["activations"][0][0, 0, 5] = value  # type: ignore[index]
    with pytest.raises(RequestError, match="layer 0 of the neighbour formality has non-finite values"):
        measure_specificity(data, {"sentiment": data, "formality": broken})


def at_layers(data: ContrastData, *layers: int) -> ContrastData:
    """Only these layers of a contrast."""
    for prompt in data["positive"] + data["negative"]:
        prompt["activations"] = {layer: prompt["activations"][layer] for layer in layers}
        prompt["captured_layers"] = [*layers]
    data["layers"] = [*layers]
    return data


def test_a_neighbour_with_fewer_layers_is_compared_where_it_has_them() -> None:
    rng = np.random.default_rng(11)
    data, whole = (shifted(rng, OWN, 2 * OWN, 3 * OWN) for _ in range(2))
    few = at_layers(shifted(rng, OWN, OWN, OWN), 1)
    report = measure_specificity(data, {"whole": whole, "few": few}, layer=2)
    compared = [[each["name"] for each in row["neighbours"]] for row in report["layers"]]
    assert compared == [["whole"], ["whole", "few"], ["whole"]]
    alone = measure_specificity(data, {"whole": whole}, layer=2)
    assert [report["layers"][layer] for layer in (0, 2)] == [alone["layers"][layer] for layer in (0, 2)]
    assert report["warnings"] == ["few lacks layers 0, 2 and is not compared there"]


def test_a_layer_that_no_neighbour_has_is_refused() -> None:
    rng = np.random.default_rng(12)
    data, few = shifted(rng, OWN, OWN, OWN), at_layers(shifted(rng, OWN, OWN, OWN), 1)
    with pytest.raises(RequestError, match=r"no neighbour has layer 2 \(few: \[1\]\). Expected: one of \[1\]"):
        measure_specificity(data, {"few": few}, layer=2)
    with pytest.raises(RequestError, match=r"share no layer \(the contrast: \[2\]; few: \[1\]\)"):
        measure_specificity(at_layers(data, 2), {"few": few})
