"""Pairs that two captures share: which pairs count, and that noise looks sorted only in-sample."""

from collections.abc import Iterable

import numpy as np
import pytest

from engine.records.captures import ActivationData, ContrastData, Factors, ResponseText
from engine.records.files import CaptureRecord
from engine.stats.comparison import compare_captures, compare_directions
from engine.stats.shared_pairs import describe_shared, new_pairs
from engine.stats.specificity import measure_specificity
from engine.stats.transfer import compare_transfer
from engine.stats.wordings import wordings
from tests.engine.plots.records import contrast_record
from tests.engine.stats.captures import provenance
from tests.engine.stats.contrasts import all_factors, capture_of, noise, planted

WIDTH = 64
FACTORS = all_factors(6, 2, 8)


def of_pairs(data: ContrastData, kept: slice) -> ContrastData:
    """Some pairs of a capture, captured separately."""
    part = data.copy()
    part["positive"], part["negative"] = data["positive"][kept], data["negative"][kept]
    part["num_pairs"] = len(part["positive"])
    if "factors" in data:
        part["factors"] = data["factors"][kept]
    return part


def pure_noise(seed: int = 0) -> ContrastData:
    return capture_of([noise(np.random.default_rng(seed), len(FACTORS), WIDTH)], list(FACTORS))


def found_in(name: str, seed: int = 0) -> dict[str, ContrastData]:
    """A capture, and another one of a third of its pairs, taken evenly."""
    data = pure_noise(seed)
    return {"all": data, name: of_pairs(data, slice(None, None, 3))}


def records_of(captures: Iterable[str]) -> list[CaptureRecord]:
    made = []
    for number, name in enumerate(captures):
        record = contrast_record(concept=name)
        record["name"], record["provenance"] = name, provenance(positions="last")
        record["data"]["sha256"] = str(number) * 64
        made.append(record)
    return made


def test_pairs_with_either_prompt_in_the_fit_are_left_out() -> None:
    data = pure_noise()
    one, other = of_pairs(data, slice(0, 10)), of_pairs(data, slice(20, 30))
    other["negative"] = [*data["negative"][:3], *other["positive"][3:]]  # three from the fit, seven that are new
    assert new_pairs(other, wordings(one)).shared == 3
    swapped = other.copy()
    swapped["positive"], swapped["negative"] = other["negative"], other["positive"]
    assert new_pairs(swapped, wordings(one)).shared == 3
    kept = new_pairs(data, wordings(of_pairs(data, slice(0, 12)))).data
    assert [prompt["prompt"] for prompt in kept["positive"]] == [prompt["prompt"] for prompt in data["positive"][12:]]
    assert [prompt["prompt"] for prompt in kept["negative"]] == [prompt["prompt"] for prompt in data["negative"][12:]]
    assert kept["factors"] == FACTORS[12:]
    assert kept["num_pairs"] == len(FACTORS) - 12


def answered(prompt: ActivationData, said: str) -> ActivationData:
    changed = prompt.copy()
    changed["response"] = ResponseText(text=said, tokens=1, ended=True)
    return changed


def test_the_same_prompt_with_another_response_is_new() -> None:
    data = capture_of([noise(np.random.default_rng(1), 12)], None)
    again = of_pairs(data, slice(None))
    for captured, said in ((data, "yes"), (again, "no")):
        captured["positive"] = [answered(prompt, said) for prompt in captured["positive"]]
        captured["negative"] = [answered(prompt, said) for prompt in captured["negative"]]
    assert new_pairs(again, wordings(data)).shared == 0
    assert new_pairs(data, wordings(data)).shared == 12


@pytest.mark.parametrize(
    ("kept", "in_sample"),
    [
        (slice(0, 0), True),  # nothing is new
        (slice(0, 5), True),  # five pairs
        (slice(0, 32), True),  # two of six personas
        (slice(0, 48), False),  # three of six personas
        (slice(None, None, 5), False),  # one in five pairs, of every persona
    ],
)
def test_all_pairs_count_if_too_few_are_new(kept: slice, in_sample: bool) -> None:
    data = pure_noise()
    new = [prompt["prompt"] for prompt in data["positive"][kept]]
    fitted = {(str(prompt["prompt"]), "") for prompt in data["positive"] if prompt["prompt"] not in new}
    found = new_pairs(data, fitted)
    assert (found.total, found.shared, found.in_sample) == (len(FACTORS), len(FACTORS) - len(new), in_sample)
    assert found.data["num_pairs"] == (len(FACTORS) if in_sample else len(new))


def test_the_warnings_count_pairs_and_name_captures_with_as_many_together() -> None:
    data, other = pure_noise(), pure_noise(1)
    few, none = new_pairs(data, wordings(of_pairs(data, slice(0, 24)))), new_pairs(data, wordings(other))
    whole = new_pairs(data, wordings(data))
    assert describe_shared("x", {"a": none}) == []
    assert describe_shared("x", {"a": few, "b": whole, "c": few}) == [
        "24 of 96 pairs of x share a prompt with a, c, whose directions are tested on the other 72",
        "96 of 96 pairs of x share a prompt with b, whose direction sorts them in-sample: AUROC there is too far from"
        " 0.5",
    ]


def test_noise_is_at_chance_among_pairs_that_were_not_in_the_fit() -> None:
    """Sorted in-sample, the same captures give an AUROC far above 0.5."""
    found, inside = [], []
    for seed in range(8):
        captures = found_in("third", seed)
        (row,) = compare_directions(captures["all"], captures["third"])
        assert row["transfer"].get("shared") == 32
        assert "shared" not in row["back"]
        inside.append(row["transfer"]["auroc"])
        found.append(row["back"]["auroc"])
    assert np.mean(inside) > 0.7
    assert abs(np.mean(found) - 0.5) < 0.04


def test_captures_with_shared_pairs_are_compared_with_a_warning() -> None:
    captures = found_in("third")
    one, other = records_of(captures)
    comparison = compare_captures(one, other, lambda record: captures[record["name"]])
    assert comparison["warnings"] == [
        "32 of 32 pairs of third share a prompt with all, whose direction sorts them in-sample: AUROC there is too far"
        " from 0.5",
        "32 of 96 pairs of all share a prompt with third, whose direction is tested on the other 64",
        "shared prompts move the cosine away from 0, but not the random range",
    ]


def test_a_capture_compared_with_itself_says_so() -> None:
    data = pure_noise()
    (record,) = records_of({"all": data})
    warnings = compare_captures(record, record, lambda _: data)["warnings"]
    assert warnings[0].startswith("96 of 96 pairs of all (2) share a prompt with all (1), whose direction sorts them")
    assert warnings[1].startswith("96 of 96 pairs of all (1) share a prompt with all (2), whose direction sorts them")


def test_the_matrix_leaves_out_shared_pairs_and_marks_cells_that_are_in_sample() -> None:
    captures = found_in("third") | {"other": pure_noise(1)}
    matrix = compare_transfer(records_of(captures), lambda record: captures[record["name"]])
    assert [[cell.get("shared", 0) for cell in row] for row in matrix["cells"]] == [[0, 32, 0], [0, 0, 0], [0, 0, 0]]
    (there,) = compare_directions(captures["third"], captures["all"])
    assert matrix["cells"][1][0] == there["transfer"]
    assert [warning.split(", whose")[0] for warning in matrix["warnings"]] == [
        "32 of 96 pairs of all share a prompt with third",
        "32 of 32 pairs of third share a prompt with all",
    ]


def test_neighbours_with_shared_pairs_sort_the_others() -> None:
    captures = found_in("third")
    report = measure_specificity(captures["all"], {"third": captures["third"], "copy": captures["all"]})
    third, copy = report["layers"][0]["neighbours"]
    (row,) = compare_directions(captures["third"], captures["all"])
    assert third["transfer"] == row["transfer"]
    assert third["back"].get("shared") == 32
    assert copy["transfer"].get("shared") == copy["back"].get("shared") == 96
    assert report["warnings"] == [
        "32 of 96 pairs of the contrast share a prompt with third, whose direction is tested on the other 64",
        "96 of 96 pairs of the contrast share a prompt with copy, whose direction sorts them in-sample: AUROC there is"
        " too far from 0.5",
        "32 of 32 pairs of third share a prompt with the contrast, whose direction sorts them in-sample: AUROC there is"
        " too far from 0.5",
        "96 of 96 pairs of copy share a prompt with the contrast, whose direction sorts them in-sample: AUROC there is"
        " too far from 0.5",
        "d' left without third, copy is too low: directions fitted to a pair take away its noise",
    ]


def test_captures_of_one_concept_with_the_same_personas_are_compared_with_a_warning() -> None:
    """Although they share no pair: the effects of these personas are in both."""
    rng = np.random.default_rng(2)
    captures = {name: capture_of(planted(rng, [1.0], len(FACTORS)), list(FACTORS)) for name in "ab"}
    one, other = records_of(captures)

    def warnings() -> list[str]:
        matrix = compare_transfer([one, other], lambda record: captures[record["name"]])
        compared = compare_captures(one, other, lambda record: captures[record["name"]])
        assert compared["warnings"] == matrix["warnings"]
        return compared["warnings"]

    one["factors"] = [Factors(**pair) for pair in FACTORS]
    other["factors"] = [
        Factors(persona=f"new {pair['persona']}", template="t1", topic=pair["topic"]) for pair in FACTORS
    ]
    assert warnings() == []  # personas of another concept are others, even if they have the same name
    other["concept"] = one["concept"]
    said = "in common: AUROC of one direction on the pairs of the other says nothing about new ones"
    assert warnings() == [f"a and b have templates, topics {said}"]
    other["factors"] = [Factors(persona=pair["persona"], template="t1", topic="new") for pair in FACTORS]
    assert warnings() == [f"a and b have personas, templates {said}"]
    one["factors"] = [Factors(persona=f"other {pair['persona']}", template="t1", topic="x") for pair in FACTORS]
    assert warnings() == []  # a single template is in the warnings of both rankings


def test_captures_of_different_prompts_are_compared_in_full() -> None:
    rng = np.random.default_rng(2)
    captures = {name: capture_of(planted(rng, [1.0], len(FACTORS)), list(FACTORS)) for name in "ab"}
    assert new_pairs(captures["a"], wordings(captures["b"])).data is captures["a"]
    one, other = records_of(captures)
    comparison = compare_captures(one, other, lambda record: captures[record["name"]])
    assert comparison["warnings"] == []
