"""Directions: each method against plain numpy, sign from negative to positive, and refusals."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.files import METHODS, Direction
from engine.stats.direction import extract_direction, extract_directions
from tests.engine.stats.captures import contrast, one_prompt, provenance, random_states
from tests.engine.stats.contrasts import Array, Sides, capture_of, noise, planted
from tests.engine.stats.test_fitting import Sizes

SAME: Sides = (np.ones((6, 4)), np.ones((6, 4)))


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def vector_of(direction: Direction) -> Array:
    found: NDArray[np.float64] = direction["vector"].double().numpy()
    return found


def some_sides(seed: int = 0, pairs: int = 40) -> Sides:
    return planted(np.random.default_rng(seed), [3.0], pairs)[0]


def rows_that_correlate(seed: int) -> tuple[Sides, Array]:
    """Two classes slightly apart along the first axis, with tenfold noise that the second axis shares.

    Returns the classes and the best separating direction: the mean difference whitened by the noise.
    """
    rng = np.random.default_rng(seed)
    mix = np.eye(10)
    mix[0, 0], mix[1, 0] = 10.0, 9.0
    apart = 3.0 * np.eye(10)[0]
    positive, negative = (rng.normal(size=(200, 10)) @ mix.T + side * apart / 2 for side in (1, -1))
    return (positive, negative), unit(np.linalg.solve(mix @ mix.T, apart))


def share_on_the_right_side(sides: Sides, vector: Array) -> float:
    positive, negative = (states @ vector for states in sides)
    middle = (positive.mean() + negative.mean()) / 2
    return float(((positive > middle).mean() + (negative < middle).mean()) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_a_float32_unit_vector_along_which_positive_projects_higher(method: str) -> None:
    sides = some_sides()
    direction = extract_direction(capture_of([sides], None), 0, method)
    assert direction["vector"].dtype == torch.float32
    assert direction["vector"].shape == (24,)
    assert float(direction["vector"].norm()) == pytest.approx(1, abs=1e-6)
    assert (direction["layer"], direction["method"], direction["num_pairs"]) == (0, method, 40)
    assert direction["positive_mean"] > direction["negative_mean"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", METHODS)
def test_its_means_are_the_mean_projections_of_the_classes(method: str, seed: int) -> None:
    """Over samples in which the singular vector has either sign."""
    sides = some_sides(seed)
    direction = extract_direction(capture_of([sides], None), 0, method)
    vector = vector_of(direction)
    assert direction["positive_mean"] == pytest.approx((sides[0] @ vector).mean(), rel=1e-5)
    assert direction["negative_mean"] == pytest.approx((sides[1] @ vector).mean(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_its_norm_is_the_mean_norm_of_the_states_of_both_classes(method: str) -> None:
    sides = some_sides()
    direction = extract_direction(capture_of([sides], None), 0, method)
    assert direction["norm"] == pytest.approx(np.linalg.norm(np.concatenate(sides), axis=1).mean(), rel=1e-5)


def test_the_mean_difference_equals_numpys() -> None:
    positive, negative = some_sides()
    direction = extract_direction(capture_of([(positive, negative)], None), 0)
    assert direction["method"] == "mean_diff"
    np.testing.assert_allclose(vector_of(direction), unit((positive - negative).mean(axis=0)), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_pca_is_the_first_singular_vector_with_its_sign_fixed(seed: int) -> None:
    """The sign of numpy's vector is arbitrary; both signs occur in six samples."""
    positive, negative = some_sides(seed)
    vector = vector_of(extract_direction(capture_of([(positive, negative)], None), 0, "pca"))
    first = np.linalg.svd(positive - negative)[2][0]
    np.testing.assert_allclose(vector, first * np.sign(first @ vector), atol=1e-6)
    assert (positive @ vector).mean() > (negative @ vector).mean()


def test_the_mean_difference_needs_one_chunk_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures in shards may be larger than memory."""
    sides, _ = rows_that_correlate(0)
    data = capture_of([sides], None)
    expected = extract_direction(data, 0)
    monkeypatch.setattr("engine.stats.groups._CHUNK_VALUES", 4 * sides[0].shape[1])
    with Sizes() as sizes:  # type: ignore[no-untyped-call]  # torch's class has no types
        found = extract_direction(data, 0)
    assert sizes.largest <= 4 * sides[0].shape[1]
    np.testing.assert_allclose(vector_of(found), vector_of(expected), atol=1e-7)
    assert (found["positive_mean"], found["norm"]) == pytest.approx((expected["positive_mean"], expected["norm"]))


@pytest.mark.parametrize("seed", range(4))
def test_pca_does_not_center_the_mean_difference_away(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = unit(rng.normal(size=48))
    shared = rng.normal(size=(72, 48)) + 30
    positive = shared + 4 * true + 0.5 * rng.normal(size=shared.shape)
    negative = shared + 0.5 * rng.normal(size=shared.shape)
    differences = positive - negative
    centred = np.linalg.svd(differences - differences.mean(axis=0))[2][0]
    vector = vector_of(extract_direction(capture_of([(positive, negative)], None), 0, "pca"))
    assert vector @ true > 0.97
    assert abs(centred @ true) < 0.4


@pytest.mark.parametrize("seed", range(4))
def test_logistic_is_not_misled_by_noise_that_correlates(seed: int) -> None:
    sides, best = rows_that_correlate(seed)
    data = capture_of([sides], None)
    probe, mean = (vector_of(extract_direction(data, 0, method)) for method in ("logistic", "mean_diff"))
    assert probe @ best > 0.95 > abs(mean @ best)
    assert share_on_the_right_side(sides, probe) > 0.85 > 0.65 > share_on_the_right_side(sides, mean)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_the_states_does_not_change_it(method: str, scale: float) -> None:
    sides, _ = rows_that_correlate(0)
    one, other = (
        extract_direction(capture_of([(sides[0] * by, sides[1] * by)], None), 0, method) for by in (1.0, scale)
    )
    assert vector_of(one) @ vector_of(other) > 1 - 1e-5
    assert other["positive_mean"] == pytest.approx(one["positive_mean"] * scale, rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_swapped_classes_reverse_it(method: str) -> None:
    positive, negative = some_sides()
    there = extract_direction(capture_of([(positive, negative)], None), 0, method)
    back = extract_direction(capture_of([(negative, positive)], None), 0, method)
    np.testing.assert_allclose(vector_of(back), -vector_of(there), atol=1e-4)
    assert back["positive_mean"] == pytest.approx(-there["negative_mean"], rel=1e-4)
    assert back["negative_mean"] == pytest.approx(-there["positive_mean"], rel=1e-4)


def test_it_is_that_of_the_last_kept_token() -> None:
    """For prompts of different lengths whose first tokens are hundreds of times larger."""
    positive = [random_states(3 + seed % 4, seed) for seed in range(8)]
    negative = [random_states(2 + seed % 3, 100 + seed) for seed in range(8)]
    last = torch.stack([p[7][-1].double() - n[7][-1].double() for p, n in zip(positive, negative, strict=True)])
    direction = extract_direction(contrast(positive, negative), 7)
    np.testing.assert_allclose(vector_of(direction), unit(last.mean(dim=0).numpy()), atol=1e-6)
    assert direction["concept"] == "made-up"


@pytest.mark.parametrize("method", METHODS)
def test_states_in_bf16_are_not_subtracted_in_bf16(method: str) -> None:
    positive, negative = ([random_states(2, side + seed, torch.bfloat16) for seed in range(8)] for side in (0, 50))
    exact = [[{i: kept.double() for i, kept in prompt.items()} for prompt in side] for side in (positive, negative)]
    short, long = (extract_direction(data, 3, method) for data in (contrast(positive, negative), contrast(*exact)))
    assert torch.equal(short["vector"], long["vector"])
    assert short["positive_mean"] == long["positive_mean"]


def test_it_includes_the_provenance() -> None:
    data = capture_of([some_sides()], None)
    assert extract_direction(data, 0)["provenance"] is None
    data["provenance"] = provenance(site="attn_out")
    assert extract_direction(data, 0)["provenance"] == data["provenance"]


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_has_its_own_direction(method: str) -> None:
    data = capture_of(planted(np.random.default_rng(1), [1.0, 2.0, 3.0], 20), None)
    found = extract_directions(data, method)
    assert list(found) == [0, 1, 2]
    for layer, direction in found.items():
        alone = extract_direction(data, layer, method)
        assert torch.equal(direction["vector"], alone["vector"])
        assert (direction["layer"], direction["positive_mean"]) == (layer, alone["positive_mean"])


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_with_equal_classes_is_refused_alone_and_skipped_among_others(method: str) -> None:
    """Like the embedding of a last token that all prompts share."""
    wide = np.ones((6, 24)), np.ones((6, 24))
    data = capture_of([wide, noise(np.random.default_rng(2), 6), wide], None)
    with pytest.raises(RequestError, match="the two classes do not differ at layer 2"):
        extract_direction(data, 2, method)
    assert list(extract_directions(data, method)) == [1]


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_are_equal_at_every_layer_are_refused(method: str) -> None:
    with pytest.raises(RequestError, match="the two classes do not differ"):
        extract_directions(capture_of([SAME, SAME], None), method)


@pytest.mark.parametrize("method", ["mean_diff", "pca", "logistic", "lda"])
def test_classes_with_equal_means_are_refused(method: str) -> None:
    """Pairs that differ without a common direction."""
    apart = np.concatenate([np.eye(8)[:3] * 5, -np.eye(8)[:3] * 5])
    with pytest.raises(RequestError):
        extract_direction(capture_of([(apart, np.zeros_like(apart))], None), 0, method)


def with_a(value: float) -> ContrastData:
    """Two layers, the second with one non-finite value."""
    sides = some_sides()
    spoilt = sides[0].copy()
    spoilt[5, 3] = value
    return capture_of([sides, (spoilt, sides[1])], None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["mean_diff", "pca", "logistic", "lda"])
def test_states_that_are_not_finite_are_refused(method: str, value: float) -> None:
    with pytest.raises(RequestError):
        extract_direction(with_a(value), 1, method)


def test_a_layer_that_was_not_captured_is_refused_with_those_that_were() -> None:
    with pytest.raises(RequestError, match=r"layer 2 was not captured\. Expected: one of \[0, 1\]"):
        extract_direction(capture_of([some_sides(), some_sides()], None), 2)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    data = capture_of([some_sides()], None)
    for extract in (lambda: extract_direction(data, 0, "mean_dif"), lambda: extract_directions(data, "mean_dif")):
        with pytest.raises(RequestError, match=r"no method 'mean_dif'.*mean_diff, pca, logistic.*did you mean"):
            extract()


def test_prompts_have_no_direction() -> None:
    prompts = one_prompt(random_states(4, 0))
    with pytest.raises(RequestError, match="this is a capture of prompts"):
        extract_direction(prompts, 3)  # type: ignore[arg-type]  # wrong type on purpose


def test_prompts_have_no_directions() -> None:
    with pytest.raises(RequestError, match="this is a capture of prompts"):
        extract_directions(one_prompt(random_states(4, 0)))  # type: ignore[arg-type]
