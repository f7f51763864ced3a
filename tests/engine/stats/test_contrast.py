"""Statistics of a contrast against numpy in float64, and captures that cannot be compared."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import LayerscopeError, RequestError
from engine.records.captures import ContrastData
from engine.records.results import LayerDiff
from engine.stats.contrast import compute_contrastive_diff
from tests.engine.stats.captures import LAYERS, contrast, one_prompt, provenance, random_states, several_prompts


def by_numpy(positive: list[Tensor], negative: list[Tensor]) -> LayerDiff:
    """Expected values from the last states of each class, `(hidden,)` each; classes of equal size are pairs."""
    one, other = (
        np.stack([state.float().numpy() for state in side]).astype(np.float64) for side in (positive, negative)
    )
    difference = np.sqrt(((one.mean(0) - other.mean(0)) ** 2).sum())
    size = np.mean([np.sqrt((state**2).sum()) for state in (*one, *other)])
    cosine = one.mean(0) @ other.mean(0) / np.sqrt((one.mean(0) ** 2).sum() * (other.mean(0) ** 2).sum())
    return LayerDiff(
        diff_norm=float(difference),
        relative_norm=float(difference / size),
        cosine_sim=float(cosine),
        pair_cosine=pair_cosine_by_numpy(one - other) if len(one) == len(other) else None,
    )


def assert_equal(diff: LayerDiff, expected: LayerDiff) -> None:
    """Compare up to rounding; both must have None for the same keys."""
    assert {key for key, value in diff.items() if value is None} == {k for k, v in expected.items() if v is None}
    numbers = {key: value for key, value in expected.items() if value is not None}
    assert {key: dict(diff)[key] for key in numbers} == pytest.approx(numbers, rel=1e-9)


def pair_cosine_by_numpy(differences: NDArray[np.float64]) -> float | None:
    """Mean cosine over all combinations of two distinct pairs."""
    units = [difference / np.sqrt(difference @ difference) for difference in differences]
    cosines = [float(one @ other) for one, other in combinations(units, 2)]
    return float(np.mean(cosines)) if cosines else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_prompts(dtype: torch.dtype) -> None:
    positive, negative = random_states(9, seed=0, dtype=dtype), random_states(5, seed=1, dtype=dtype)
    diffs = compute_contrastive_diff(one_prompt(positive), one_prompt(negative))
    assert list(diffs) == LAYERS
    for layer in LAYERS:
        assert_equal(diffs[layer], by_numpy([positive[layer][-1]], [negative[layer][-1]]))


def test_two_batches_are_compared_at_their_last_tokens() -> None:
    positive = [random_states(length, seed=length) for length in (4, 9, 2)]
    negative = [random_states(length, seed=length) for length in (5, 3)]
    diffs = compute_contrastive_diff(several_prompts(positive), several_prompts(negative))
    for layer in LAYERS:
        expected = by_numpy([states[layer][-1] for states in positive], [states[layer][-1] for states in negative])
        assert_equal(diffs[layer], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_contrast_of_several_pairs(dtype: torch.dtype) -> None:
    positive = [random_states(length, length, dtype) for length in (4, 9, 6)]
    negative = [random_states(length, length, dtype) for length in (5, 8, 7)]
    diffs = compute_contrastive_diff(contrast(positive, negative))
    for layer in LAYERS:
        expected = by_numpy([states[layer][-1] for states in positive], [states[layer][-1] for states in negative])
        assert_equal(diffs[layer], expected)


def test_a_small_difference_of_bfloat16_states_is_not_rounded_away() -> None:
    """The mean of 256 and 258 is 257, which bfloat16 cannot represent."""
    positive = [{3: torch.full((1, 4), value, dtype=torch.bfloat16)} for value in (256.0, 258.0)]
    negative = [{3: torch.full((1, 4), 256.0, dtype=torch.bfloat16)} for _ in range(2)]
    assert compute_contrastive_diff(contrast(positive, negative))[3]["diff_norm"] == pytest.approx(2.0, rel=1e-12)


def test_equal_classes_do_not_differ() -> None:
    states = random_states(5, seed=0)
    for diff in compute_contrastive_diff(one_prompt(states), one_prompt(states)).values():
        assert_equal(diff, LayerDiff(diff_norm=0.0, relative_norm=0.0, cosine_sim=1.0, pair_cosine=None))


def test_opposite_classes() -> None:
    states = random_states(5, seed=0)
    mirrored = {layer: -state for layer, state in states.items()}
    for diff in compute_contrastive_diff(one_prompt(states), one_prompt(mirrored)).values():
        assert (diff["relative_norm"], diff["cosine_sim"]) == pytest.approx((2.0, -1.0))


def test_the_raw_norm_grows_with_the_states_and_the_relative_norm_does_not() -> None:
    positive, negative = random_states(5, seed=0), random_states(5, seed=1)
    small = compute_contrastive_diff(contrast([positive], [negative]))[3]
    large = compute_contrastive_diff(contrast([{3: positive[3] * 8}], [{3: negative[3] * 8}]))[3]
    assert large["diff_norm"] == pytest.approx(8 * small["diff_norm"])
    assert large["relative_norm"] == pytest.approx(small["relative_norm"])
    assert large["cosine_sim"] == pytest.approx(small["cosine_sim"])
    assert small["pair_cosine"] is None  # a single pair


def with_differences(*differences: tuple[float, float]) -> ContrastData:
    """Pairs whose last states differ by the given vectors."""
    shared = torch.randn(len(differences), 1, 2, generator=torch.Generator().manual_seed(0))
    negative = [{3: state} for state in shared]
    positive = [{3: state + torch.tensor([moved])} for state, moved in zip(shared, differences, strict=True)]
    return contrast(positive, negative)


@pytest.mark.parametrize(
    ("differences", "cosine"),
    [
        ([(1.0, 0.0), (5.0, 0.0), (0.1, 0.0)], 1.0),
        ([(2.0, 0.0), (0.0, 3.0)], 0.0),
        ([(2.0, 0.0), (-1.0, 0.0)], -1.0),
        ([(1.0, 0.0), (1.0, 0.0), (-1.0, 0.0)], -1 / 3),
        ([(1.0, 0.0), (1.0, 1.0)], 0.5**0.5),
    ],
    ids=["one way", "nothing in common", "opposite", "one against two", "half way"],
)
def test_pair_cosine_measures_agreement_of_pair_differences(
    differences: list[tuple[float, float]], cosine: float
) -> None:
    diff = compute_contrastive_diff(with_differences(*differences))[3]
    assert diff["pair_cosine"] == pytest.approx(cosine, abs=1e-5)


def test_pairs_that_do_not_differ_have_no_pair_cosine() -> None:
    some = compute_contrastive_diff(with_differences((2.0, 0.0), (0.0, 0.0), (1.0, 0.0)))[3]
    assert some["pair_cosine"] == pytest.approx(1.0, abs=1e-5)
    none = compute_contrastive_diff(with_differences((0.0, 0.0), (0.0, 0.0), (1.0, 0.0)))[3]
    assert none["pair_cosine"] is None


def test_pairs_that_have_nothing_in_common_score_nothing_on_average() -> None:
    """Including each pair with itself would score 0.1 for ten random pairs in many dimensions."""
    generator = torch.Generator().manual_seed(0)
    cosines = []
    for _ in range(50):
        sides = torch.randn(2, 10, 1, 64, generator=generator)
        data = contrast([{3: state} for state in sides[0]], [{3: state} for state in sides[1]])
        cosines.append(compute_contrastive_diff(data)[3]["pair_cosine"])
    assert float(np.mean([cosine for cosine in cosines if cosine is not None])) == pytest.approx(0.0, abs=0.01)


DESIGNS = {
    "one negative": [(pair, 60) for pair in range(60)],
    "a negative for each ten": [(pair, 60 + pair // 10) for pair in range(60)],
    "each pair twice": [(pair % 30, 60 + pair % 30) for pair in range(60)],
    "each pair twice, once turned": [(pair, 30 + pair) for pair in range(30)] + [(30 + p, p) for p in range(30)],
    "every positive with every negative": [(one, 8 + other) for one in range(8) for other in range(8)],
    "a chain": [(pair, pair + 1) for pair in range(60)],
    "some of both": [(pair // 3, 60 + pair % 4 + pair // 12) for pair in range(60)],
}


def of_shared_prompts(design: list[tuple[int, int]], seed: int) -> ContrastData:
    """Pairs of prompts whose states are noise, the same wherever a prompt is used."""
    states = torch.randn(1 + max(map(max, design)), 1, 64, generator=torch.Generator().manual_seed(seed))
    data = contrast([{3: states[one]} for one, _ in design], [{3: states[other]} for _, other in design])
    for (one, other), positive, negative in zip(design, data["positive"], data["negative"], strict=True):
        positive["prompt"], negative["prompt"] = f"prompt {one}", f"prompt {other}"
    return data


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_two_pairs_that_share_a_prompt_do_not_count(
    design: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is peculiar to a shared prompt is in both differences: a shared negative alone scored 0.5 on noise."""
    monkeypatch.setattr("engine.stats.groups._CHUNK_VALUES", 7 * 64)  # several chunks
    found = []
    for seed in range(20):
        data = of_shared_prompts(design, seed)
        found.append(compute_contrastive_diff(data)[3]["pair_cosine"])
        states = zip(data["positive"], data["negative"], strict=True)
        differences = [(one["activations"][3].double() - other["activations"][3])[0, -1] for one, other in states]
        units = [(difference / difference.norm()).numpy() for difference in differences]
        apart = [(i, j) for i, j in combinations(range(len(design)), 2) if not {*design[i]} & {*design[j]}]
        expected = [float(units[i] @ units[j]) for i, j in apart]
        assert found[-1] == (pytest.approx(np.mean(expected), abs=1e-12) if expected else None)
    assert all(cosine is None for cosine in found) or abs(np.mean([*filter(None, found)])) < 0.02


def test_batches_count_their_shared_prompts_too() -> None:
    """Two captures of the same prompts: the first of one belongs to the first of the other."""
    positive = several_prompts([random_states(4, seed=seed) for seed in range(3)])
    negative = several_prompts([random_states(4, seed=seed) for seed in range(3, 6)])
    assert compute_contrastive_diff(positive, negative)[3]["pair_cosine"] is None
    positive["prompt"], negative["prompt"] = ["a", "b", "c"], ["d", "e", "f"]
    assert compute_contrastive_diff(positive, negative)[3]["pair_cosine"] is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "someone/other-model"),
        ("revision", "def"),
        ("dtype", "bfloat16"),
        ("site", "mlp_out"),
        ("positions", "last"),
    ],
)
def test_captures_made_differently_are_refused_with_what_differs(field: str, value: str) -> None:
    states = random_states(5, seed=0)
    ours = provenance()
    theirs = provenance(**{field: value})
    with pytest.raises(RequestError) as caught:
        compute_contrastive_diff(one_prompt(states, provenance=ours), one_prompt(states, provenance=theirs))
    assert f"they differ in {field} ({dict(ours)[field]} and {value})." in str(caught.value)


def test_irrelevant_settings_may_differ() -> None:
    states = random_states(5, seed=0)
    theirs = provenance(mode="hidden_states", batch_size=1, device="cuda:0", alias="x")
    diffs = compute_contrastive_diff(one_prompt(states, provenance=provenance()), one_prompt(states, provenance=theirs))
    assert list(diffs) == LAYERS


def test_captures_of_other_layers_are_refused() -> None:
    states = random_states(5, seed=0)
    with pytest.raises(RequestError, match=r"captured layers \(\[3, 7\] and \[3\]\)"):
        compute_contrastive_diff(one_prompt(states), one_prompt({3: states[3]}))


def test_captures_of_other_widths_are_refused() -> None:
    """Width is the only check left if the JSON with the provenance is missing."""
    states = random_states(5, seed=0)
    narrow = {layer: state[:, :4] for layer, state in states.items()}
    with pytest.raises(LayerscopeError, match="cannot be compared"):
        compute_contrastive_diff(one_prompt(states), one_prompt(narrow))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(RequestError, match="negative class is missing"):
        compute_contrastive_diff(one_prompt(random_states(5, seed=0)))


def test_a_contrast_takes_no_second_argument() -> None:
    states = random_states(5, seed=0)
    with pytest.raises(RequestError, match="already holds both classes"):
        compute_contrastive_diff(contrast([states], [states]), one_prompt(states))


def test_a_contrast_is_refused_as_the_negative_class() -> None:
    states = random_states(5, seed=0)
    whole: Any = contrast([states], [states])
    with pytest.raises(LayerscopeError):
        compute_contrastive_diff(one_prompt(states), whole)


@pytest.mark.parametrize("given", [(1, 2), (1, None), (None, None), (one_prompt(random_states(3, seed=0)), 2)])
def test_what_is_no_capture_is_refused(given: Any) -> None:
    with pytest.raises(RequestError, match="this is not a capture but"):
        compute_contrastive_diff(*given)
