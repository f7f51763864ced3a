"""Baselines detect what separates the classes without a model, and ignore the concept itself."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engine.concepts.catalog import load_concept
from engine.concepts.pairs import draw_pairs
from engine.records.captures import ActivationData, ContrastData, Factors, Message
from engine.records.results import Confound, ConfoundReport
from engine.stats import confounds
from engine.stats.confounds import SUSPICIOUS, find_confounds
from tests.engine.stats.captures import provenance
from tests.engine.stats.contrasts import (
    Array,
    all_factors,
    auroc_by_hand,
    d_prime_by_hand,
    projected_by_hand,
    values_of,
)

NAMES = ["prompt length", "token read", "topic words", "all words"]
BUILT_IN = [
    "confidence",
    "creativity",
    "empathy",
    "enthusiasm",
    "formality",
    "helpfulness",
    "honesty",
    "verbosity",
]
VOCABULARY = [f"{a}{b}{c}" for a in "bdgk" for b in "aeiou" for c in "lmnrst"]


def contrast_of(
    positive: Sequence[str], negative: Sequence[str], factors: list[Factors] | None = None, positions: str | None = None
) -> ContrastData:
    """A contrast of texts whose words are their tokens; the states are unused."""

    def prompt(text: str) -> ActivationData:
        tokens = text.split()
        return ActivationData(
            activations={0: torch.zeros(1, 1, 2)},
            input_ids=torch.zeros(1, len(tokens), dtype=torch.long),
            tokens=tokens,
            prompt=text,
            num_layers=1,
            captured_layers=[0],
        )

    data = ContrastData(
        positive=[prompt(text) for text in positive],
        negative=[prompt(text) for text in negative],
        num_pairs=len(positive),
        concept=None,
        layers=[0],
    )
    if factors is not None:
        data["factors"] = factors
    if positions is not None:
        data["provenance"] = provenance(positions=positions)
    return data


def sayings(rng: np.random.Generator, number: int, words: int = 6) -> list[str]:
    """Texts of random words with the same last word."""
    return [" ".join([*rng.choice(VOCABULARY, size=words), "end"]) for _ in range(number)]


def checks(report: ConfoundReport) -> dict[str, Confound]:
    return {check["what"]: check for check in report["checks"]}


def warned(report: ConfoundReport) -> list[str]:
    """Names of the baselines that have a warning."""
    return [name for name in NAMES for warning in report["warnings"] if warning.startswith(f"{name} alone")]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_classes_with_the_same_words_are_not_suspicious(rng: np.random.Generator) -> None:
    report = find_confounds(contrast_of(sayings(rng, 60), sayings(rng, 60)))
    assert report["warnings"] == []
    assert [check["what"] for check in report["checks"]] == ["prompt length", "token read", "all words"]
    assert all(0.2 < check["auroc"] < 0.65 for check in report["checks"])


def test_a_longer_class_is_detected(rng: np.random.Generator) -> None:
    longer = [" ".join(["and", *text.split()[:-1], *text.split()]) for text in sayings(rng, 60)]
    report = find_confounds(contrast_of(longer, [f"and {text}" for text in sayings(rng, 60)]))
    check = checks(report)["prompt length"]
    assert "prompt length" in warned(report)
    assert check["auroc"] == 1.0
    assert check["detail"] == "14.0 tokens per positive prompt, 8.0 per negative prompt"


def test_a_shorter_class_is_detected(rng: np.random.Generator) -> None:
    report = find_confounds(contrast_of(sayings(rng, 40, words=3), sayings(rng, 40, words=5)))
    assert checks(report)["prompt length"]["auroc"] == 1.0


def test_equal_length_distributions_are_not_suspicious(rng: np.random.Generator) -> None:
    lengths = rng.integers(3, 20, size=(2, 60))
    sides = [[sayings(rng, 1, words=int(words))[0] for words in side] for side in lengths]
    assert "prompt length" not in warned(find_confounds(contrast_of(sides[0], sides[1])))


def test_alternating_length_differences_do_not_generalize(rng: np.random.Generator) -> None:
    """Half of the personas have longer positive prompts, half have longer negative prompts."""
    factors = all_factors(8, 2, 3)
    longer = [int(name[1:]) % 2 == 0 for name in values_of(factors, "persona")]
    positive = [sayings(rng, 1, words=7 if more else 5)[0] for more in longer]
    negative = [sayings(rng, 1, words=5 if more else 7)[0] for more in longer]
    report = find_confounds(contrast_of(positive, negative, factors))
    assert "prompt length" not in warned(report)


def test_a_different_last_token_is_detected_where_it_was_read(rng: np.random.Generator) -> None:
    positive, negative = ([f"{text} {last}" for text in sayings(rng, 40)] for last in ("yes", "no"))
    for positions in ("last", "all", "-3:", None):
        report = find_confounds(contrast_of(positive, negative, positions=positions))
        assert "token read" in warned(report)
        check = checks(report)["token read"]
        assert check["auroc"] == 1.0
        expected = "the same in 0 of 40 pairs; mostly 'yes' in positive prompts, 'no' in negative prompts"
        assert check["detail"] == expected


@pytest.mark.parametrize("positions", ["-2", "-4:-1", "mean"])
def test_a_different_last_token_does_not_matter_at_other_positions(rng: np.random.Generator, positions: str) -> None:
    positive, negative = ([f"{text} {last}" for text in sayings(rng, 40)] for last in ("yes", "no"))
    report = find_confounds(contrast_of(positive, negative, positions=positions))
    assert "token read" not in warned(report)
    assert checks(report)["token read"]["auroc"] == 0.5


def test_a_token_read_in_every_prompt_is_named(rng: np.random.Generator) -> None:
    report = find_confounds(contrast_of(sayings(rng, 12), sayings(rng, 12), positions="last"))
    assert checks(report)["token read"]["detail"] == "the same in 12 of 12 pairs; mostly 'end'"


def test_a_mean_reads_no_single_token(rng: np.random.Generator) -> None:
    for positions in ("mean", "mean:2:4"):
        report = find_confounds(contrast_of(sayings(rng, 12), sayings(rng, 12), positions=positions))
        assert checks(report)["token read"] == {
            "what": "token read",
            "auroc": 0.5,
            "detail": "the capture keeps a mean over tokens",
        }


def test_topics_in_both_prompts_score_exactly_chance(rng: np.random.Generator) -> None:
    factors = all_factors()
    topics = values_of(factors, "topic")
    sides = [[f"{saying} {topic}" for saying, topic in zip(sayings(rng, 60), topics, strict=True)] for _ in range(2)]
    check = checks(find_confounds(contrast_of(sides[0], sides[1], factors)))["topic words"]
    assert check["auroc"] == 0.5
    assert check["detail"] == "the topic is the same in both prompts of every pair"


def test_topics_that_separate_the_classes_are_detected(rng: np.random.Generator) -> None:
    """Custom pairs whose classes have different subjects; the topic factor is in neither prompt."""
    factors = all_factors(6, 2, 5)
    sides = [[f"{saying} on the {topic}" for saying in sayings(rng, 60)] for topic in ("sea", "hill")]
    report = find_confounds(contrast_of(sides[0], sides[1], factors))
    assert {"topic words", "all words"} <= set(warned(report))
    detail = checks(report)["topic words"]["detail"]
    assert "'hill': 0 positive, 60 negative" in detail
    assert "'sea': 60 positive, 0 negative" in detail


def test_a_word_shared_by_all_positive_prompts_is_detected_and_named(rng: np.random.Generator) -> None:
    factors = all_factors(6, 2, 5)
    topics = values_of(factors, "topic")
    sides = [
        [f"a {word} one {saying} {topic}" for saying, topic in zip(sayings(rng, 60), topics, strict=True)]
        for word in ("Honest", "Deceptive")
    ]
    report = find_confounds(contrast_of(sides[0], sides[1], factors))
    assert warned(report) == ["all words"]
    check = checks(report)["all words"]
    assert check["auroc"] > 0.95
    assert "'deceptive': 0 positive, 60 negative" in check["detail"]
    assert "'honest': 60 positive, 0 negative" in check["detail"]
    assert report["warnings"] == [
        f"all words alone separates held-out prompts (AUROC {check['auroc']:.2f}): {check['detail']}"
    ]


def test_persona_specific_words_do_not_generalize(rng: np.random.Generator) -> None:
    """Words identify the class within a persona, but say nothing about a new persona."""
    factors = all_factors(6, 2, 5)
    personas = values_of(factors, "persona")
    texts = sayings(rng, 60)
    positive = [f"a good{persona} one {text}" for persona, text in zip(personas, texts, strict=True)]
    negative = [f"a bad{persona} one {text}" for persona, text in zip(personas, texts, strict=True)]
    report = find_confounds(contrast_of(positive, negative, factors))
    assert report["warnings"] == []
    assert checks(report)["all words"]["auroc"] == pytest.approx(0.5)


def test_identical_texts_score_chance_everywhere(rng: np.random.Generator) -> None:
    texts = sayings(rng, 12)
    assert [check["auroc"] for check in find_confounds(contrast_of(texts, texts))["checks"]] == [0.5] * 3


def worst_by_hand(positive: Array, negative: Array, factors: list[Factors]) -> float:
    """AUROC for the factor with the lowest d'."""
    found = []
    for factor in ("persona", "template", "topic"):
        projected = projected_by_hand((positive, negative), values_of(factors, factor))
        found.append((d_prime_by_hand(projected), auroc_by_hand(projected)))
    return min(found)[1]


def test_values_equal_a_plain_computation(rng: np.random.Generator) -> None:
    """Words are compared without case and as present or absent; for ties see test_separation."""
    factors = all_factors()
    sides = [
        [" ".join(rng.choice(favoured, size=rng.integers(4, 9))) for _ in factors]
        for favoured in (VOCABULARY[:30], VOCABULARY[20:])
    ]
    sides[0] = [text.upper() for text in sides[0]]
    found = checks(find_confounds(contrast_of(sides[0], sides[1], factors, positions="last")))

    lengths = [np.array([[len(text.split())] for text in side], dtype=np.float64) for side in sides]
    expected = worst_by_hand(lengths[0], lengths[1], factors)
    assert found["prompt length"]["auroc"] == pytest.approx(expected, abs=0.01)  # many lengths are equal

    words = sorted({word for side in sides for text in side for word in text.lower().split()})
    bags = [np.array([[float(word in text.lower().split()) for word in words] for text in side]) for side in sides]
    assert found["all words"]["auroc"] == pytest.approx(worst_by_hand(bags[0], bags[1], factors))

    last = sorted({text.split()[-1] for side in sides for text in side})  # tokens are case-sensitive
    tokens = [np.array([[float(text.split()[-1] == word) for word in last] for text in side]) for side in sides]
    expected = worst_by_hand(tokens[0], tokens[1], factors)
    assert found["token read"]["auroc"] == pytest.approx(expected, abs=0.01)


def test_a_warning_starts_at_the_threshold() -> None:
    """If one of four pairs differs in length, AUROC is slightly above 0.5; if all do, it is 1."""
    texts = ["a b c", "a b", "a b c d", "a b c d e"]
    for longer, suspicious in ((1, False), (4, True)):
        positive = [f"{text} x y z" if number < longer else text for number, text in enumerate(texts)]
        report = find_confounds(contrast_of(positive, texts))
        assert ("prompt length" in warned(report)) is suspicious
        assert (checks(report)["prompt length"]["auroc"] >= SUSPICIOUS) is suspicious


@pytest.mark.parametrize("pairs", [1, 3])
def test_too_few_pairs_are_not_checked(rng: np.random.Generator, pairs: int) -> None:
    assert find_confounds(contrast_of(sayings(rng, pairs), sayings(rng, pairs))) == {"checks": [], "warnings": []}


def said(messages: Sequence[Message]) -> str:
    return " ".join(message["content"] for message in messages)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_words_of_a_built_in_concept_do_not_separate_it(name: str) -> None:
    """Length is counted in words, because there is no tokenizer here."""
    pairs = draw_pairs(load_concept(name), 72)
    data = contrast_of(
        [f"{said(pair.positive)} end" for pair in pairs],
        [f"{said(pair.negative)} end" for pair in pairs],
        [pair.factors for pair in pairs],
        positions="last",
    )
    report = find_confounds(data)
    assert [check["what"] for check in report["checks"]] == NAMES
    assert report["warnings"] == []
    assert checks(report)["topic words"]["auroc"] == 0.5


def test_a_search_that_takes_long_can_be_stopped_within_a_check(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twenty thousand words and as many pairs a check takes a minute; small chunks simulate that here."""
    monkeypatch.setattr(confounds, "_BAG_VALUES", 400)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if told.count((2, 3)) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        find_confounds(contrast_of(sayings(rng, 60), sayings(rng, 60)), progress=stop)
    assert told[0] == (0, 3)
    assert told[-5:] == [(2, 3)] * 5
