"""Baselines detect what separates the classes without a model, and ignore the concept itself."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from engine.records.captures import ActivationData, ContrastData, Factors
from engine.records.results import Confound, ConfoundReport, Ranking
from engine.stats import text_features
from engine.stats.baselines import permuted_p
from engine.stats.confounds import find_confounds
from engine.stats.groups import group_by_factors, pairs_of
from engine.stats.held_out import hold_out
from tests.engine.plots.records import ranking_of
from tests.engine.stats.captures import provenance
from tests.engine.stats.contrasts import (
    Array,
    all_factors,
    auroc_by_hand,
    numbers_of,
    projected_by_hand,
    swapped,
    values_of,
)

NAMES = ["prompt length", "token read", "capitals", "punctuation", "topic words", "all words", "word order"]
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
    assert [check["what"] for check in report["checks"]] == [name for name in NAMES if name != "topic words"]
    assert all(0.2 < check["auroc"] < 0.65 for check in report["checks"])


def test_a_longer_class_is_detected(rng: np.random.Generator) -> None:
    longer = [" ".join(["and", *text.split()[:-1], *text.split()]) for text in sayings(rng, 60)]
    report = find_confounds(contrast_of(longer, [f"and {text}" for text in sayings(rng, 60)]))
    check = checks(report)["prompt length"]
    assert "prompt length" in warned(report)
    assert (check["auroc"], check["within_pairs"]) == (1.0, 1.0)
    assert check["detail"] == (
        "14.0 tokens per positive prompt, 8.0 per negative prompt; more in the positive prompt in 60 of 60 pairs,"
        " fewer in 0"
    )


def test_a_shorter_class_is_detected(rng: np.random.Generator) -> None:
    report = find_confounds(contrast_of(sayings(rng, 40, words=3), sayings(rng, 40, words=5)))
    assert checks(report)["prompt length"]["auroc"] == 1.0


def personas_of(rng: np.random.Generator, personas: int) -> list[tuple[str, str]]:
    """Both texts of every persona: four words that no other text has, after a shared start whose length varies."""
    starts = [" ".join(rng.choice(VOCABULARY, size=8 + 5 * number)) for number in range(personas)]
    return [(f"{start} {own_words(n, 4)} end", f"{start} {own_words(-n, 4)} end") for n, start in enumerate(starts, 1)]


def own_words(persona: int, number: int) -> str:
    return " ".join(f"{'yes' if persona > 0 else 'no'}{abs(persona)}word{place}" for place in range(number))


def clean_personas(rng: np.random.Generator, personas: int) -> list[tuple[str, str]]:
    """Both texts of every persona, with words that others have too."""
    starts = [" ".join(rng.choice(VOCABULARY, size=8 + 5 * number)) for number in range(personas)]
    return [(f"{start} {sayings(rng, 1, 4)[0]}", f"{start} {sayings(rng, 1, 4)[0]}") for start in starts]


def prompts_of(personas: Sequence[tuple[str, str]]) -> ContrastData:
    """Every persona in two templates with three topics."""
    factors = all_factors(len(personas), 2, 3)
    sides = [
        [f"{pair['template']} {personas[int(pair['persona'][1:])][side]} {pair['topic']}" for pair in factors]
        for side in (0, 1)
    ]
    return contrast_of(sides[0], sides[1], factors, positions="last")


def test_a_length_that_differs_within_pairs_is_detected(rng: np.random.Generator) -> None:
    """Nine more tokens in every positive prompt, with words of its own; AUROC alone would miss it."""
    personas = [(f"{own_words(100 + n, 9)} {one}", other) for n, (one, other) in enumerate(personas_of(rng, 12))]
    report = find_confounds(prompts_of(personas))
    check = checks(report)["prompt length"]
    assert check["auroc"] < 0.72
    assert check["within_pairs"] == 1.0
    assert warned(report) == ["prompt length"]


def test_a_class_in_capitals_is_detected(rng: np.random.Generator) -> None:
    report = find_confounds(prompts_of([(one.upper(), other) for one, other in personas_of(rng, 12)]))
    assert warned(report) == ["capitals"]
    assert "0.0 per negative prompt; more in the positive prompt in 72 of 72 pairs" in report["warnings"][0]


def test_different_punctuation_is_detected_and_named(rng: np.random.Generator) -> None:
    report = find_confounds(prompts_of([(f"{one}!", f"{other}.") for one, other in personas_of(rng, 12)]))
    assert "punctuation" in warned(report)
    assert (
        "'!' in the positive prompts of 12 of 12 personas, the negative prompts of 0; '.' in the positive prompts of"
        " 0 of 12 personas, the negative prompts of 12"
    ) in report["warnings"][0]


def test_a_different_order_of_the_same_words_is_detected(rng: np.random.Generator) -> None:
    texts = [one for one, _ in personas_of(rng, 12)]
    report = find_confounds(prompts_of([(f"{text} very well end", f"{text} well very end") for text in texts]))
    assert checks(report)["all words"]["within_pairs"] == 0.5
    assert warned(report) == ["word order"]
    assert "'end very' in the positive prompts of 12 of 12 personas, the negative prompts of 0" in report["warnings"][0]


def test_a_keyword_of_most_personas_is_detected_and_named(rng: np.random.Generator) -> None:
    personas = personas_of(rng, 12)
    personas[:9] = [(f"truly {one}", f"quite{number} {other}") for number, (one, other) in enumerate(personas[:9])]
    report = find_confounds(prompts_of(personas))
    assert warned(report) == ["all words"]
    telltale = checks(report)["all words"]["telltale"][0]
    assert telltale == {"text": "truly", "positive": 9, "negative": 0, "total": 12, "counted": "persona"}
    assert "'truly' in the positive prompts of 9 of 12 personas, the negative prompts of 0" in report["warnings"][0]


@pytest.mark.parametrize("personas", [12, 24])
def test_clean_sets_get_no_warning(rng: np.random.Generator, personas: int) -> None:
    assert find_confounds(prompts_of(clean_personas(rng, personas)))["warnings"] == []


@pytest.mark.parametrize(("personas", "said"), [(3, "3 personas"), (4, "4 personas"), (5, "5 personas")])
def test_few_groups_are_not_tested(rng: np.random.Generator, personas: int, said: str) -> None:
    """With three, a clean set would reach the smallest p-value, 1/4, in many of the baselines."""
    texts = [(f"{one}!", f"{other}.") for one, other in personas_of(rng, personas)]
    report = find_confounds(prompts_of(texts))
    assert report["warnings"] == [f"too few groups to test the baselines: {said}, 6 are needed"]
    assert checks(report)["punctuation"]["within_pairs"] == 1.0


def test_few_pairs_without_factors_are_not_tested(rng: np.random.Generator) -> None:
    report = find_confounds(contrast_of([f"{text} !" for text in sayings(rng, 5)], sayings(rng, 5)))
    assert report["warnings"] == ["too few groups to test the baselines: 5 pairs, 6 are needed"]


@pytest.mark.slow
def test_a_clean_set_is_rarely_suspicious(rng: np.random.Generator) -> None:
    """At 5% for all baselines together, more than 16 of 200 sets have a probability of 1.5%."""
    found = sum(bool(find_confounds(prompts_of(clean_personas(rng, 12)))["warnings"]) for _ in range(200))
    assert found <= 16


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


@pytest.mark.parametrize("positions", ["-2", "-4:-1"])
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
        assert "token read" not in checks(report)


def test_topics_in_both_prompts_score_exactly_chance(rng: np.random.Generator) -> None:
    factors = all_factors()
    topics = values_of(factors, "topic")
    sides = [[f"{saying} {topic}" for saying, topic in zip(sayings(rng, 60), topics, strict=True)] for _ in range(2)]
    check = checks(find_confounds(contrast_of(sides[0], sides[1], factors)))["topic words"]
    assert check["auroc"] == 0.5
    assert check["detail"] == "the same in both prompts of every pair"


def test_a_topic_quoted_by_one_class_only_is_no_confound(rng: np.random.Generator) -> None:
    """The positive prompts have the topic as it is written, the negative ones have its words."""
    factors = all_factors(6, 2, 5)
    topics = values_of(factors, "topic")
    texts = sayings(rng, 60)
    positive = [f"{text} {topic}" for text, topic in zip(texts, topics, strict=True)]
    negative = [f"{text} {' '.join(reversed(topic.split()))}" for text, topic in zip(texts, topics, strict=True)]
    found = checks(find_confounds(contrast_of(positive, negative, factors)))
    assert found["topic words"]["auroc"] == found["topic words"]["within_pairs"] == 0.5


def test_a_word_of_one_class_in_topics_of_both_is_not_counted_as_a_difference(rng: np.random.Generator) -> None:
    factors = all_factors(6, 2, 5)
    for pair in factors:
        pair["topic"] = f"on honest work {pair['topic']}"
    sides = [[f"{saying} {pair['topic']}" for saying, pair in zip(sayings(rng, 60), factors, strict=True)]] * 2
    sides = [[f"a {word} one {text}" for text in side] for word, side in zip(("honest", "plain"), sides, strict=True)]
    found = checks(find_confounds(contrast_of(sides[0], sides[1], factors)))
    assert found["topic words"]["within_pairs"] == 0.5
    assert "'honest'" not in found["all words"]["detail"]
    assert (
        "'plain' in the positive prompts of 0 of 6 personas, the negative prompts of 6" in found["all words"]["detail"]
    )


def test_topics_that_separate_the_classes_are_detected(rng: np.random.Generator) -> None:
    """Custom pairs whose classes have different subjects; the topic factor is in neither prompt."""
    factors = all_factors(6, 2, 5)
    sides = [[f"{saying} on the {topic}" for saying in sayings(rng, 60)] for topic in ("sea", "hill")]
    report = find_confounds(contrast_of(sides[0], sides[1], factors))
    assert warned(report) == ["token read", "all words"]
    detail = checks(report)["all words"]["detail"]
    assert "'hill' in the positive prompts of 0 of 6 personas, the negative prompts of 6" in detail
    assert "'sea' in the positive prompts of 6 of 6 personas, the negative prompts of 0" in detail


def test_topics_named_by_one_class_only_are_detected(rng: np.random.Generator) -> None:
    factors = all_factors(6, 2, 5)  # topics share the word "about"
    positive = [f"{saying} {pair['topic']}" for saying, pair in zip(sayings(rng, 60), factors, strict=True)]
    report = find_confounds(contrast_of(positive, sayings(rng, 60), factors))
    assert "topic words" in warned(report)
    detail = checks(report)["topic words"]["detail"]
    assert "'0' in the positive prompts of 6 of 6 personas, the negative prompts of 0" in detail


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
    assert "'deceptive' in the positive prompts of 0 of 6 personas, the negative prompts of 6" in check["detail"]
    assert "'honest' in the positive prompts of 6 of 6 personas, the negative prompts of 0" in check["detail"]
    scores = f"puts 100% of held-out pairs in the right order (AUROC {check['auroc']:.2f})"
    assert report["warnings"] == [f"all words alone {scores}: {check['detail']}"]


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
    found = find_confounds(contrast_of(texts, texts))["checks"]
    assert [(check["auroc"], check["within_pairs"], check["p_value"]) for check in found] == [(0.5, 0.5, 1.0)] * 6


def worst_by_hand(positive: Array, negative: Array, factors: list[Factors]) -> tuple[float, float]:
    """Share of pairs in the right order and AUROC, for the factor where the share is lowest."""
    found = []
    for factor in ("persona", "template", "topic"):
        projected = projected_by_hand((positive, negative), values_of(factors, factor))
        gaps = np.round(projected[0] - projected[1], 9)
        found.append((float(np.mean((gaps > 0) + (gaps == 0) / 2)), auroc_by_hand(projected)))
    return min(found)


def presence(sides: Sequence[Sequence[Sequence[str]]]) -> tuple[Array, Array]:
    """Which of all words each prompt has, from the words of each prompt of both classes."""
    words = sorted({word for side in sides for text in side for word in text})
    found = [np.array([[float(word in text) for word in words] for text in side]) for side in sides]
    return found[0], found[1]


def random_sides(rng: np.random.Generator, factors: Sequence[Factors]) -> list[list[str]]:
    """Texts whose classes favor different words."""
    return [
        [" ".join(rng.choice(favored, size=rng.integers(4, 9))) for _ in factors]
        for favored in (VOCABULARY[:30], VOCABULARY[20:])
    ]


def test_values_equal_a_plain_computation(rng: np.random.Generator) -> None:
    """Words are compared without case and as present or absent; order and tokens as written."""
    factors = all_factors()
    sides = random_sides(rng, factors)
    sides[0] = [f"{text[:5].upper()}{text[5:]}!" for text in sides[0]]
    found = checks(find_confounds(contrast_of(sides[0], sides[1], factors, positions="last")))
    split = [[text.replace("!", " !").split() for text in side] for side in sides]
    lengths = [np.array([[float(len(text.split()))] for text in side]) for side in sides]
    capitals = [np.array([[float(sum(map(str.isupper, text)))] for text in side]) for side in sides]
    expected = {
        "prompt length": (lengths[0], lengths[1]),
        "capitals": (capitals[0], capitals[1]),
        "token read": presence([[[text.split()[-1]] for text in side] for side in sides]),
        "punctuation": presence([[["!"] if "!" in text else ["none"] for text in side] for side in sides]),
        "all words": presence([[[word.lower() for word in words] for words in side] for side in split]),
        "word order": presence(
            [[[" ".join(two) for two in pairwise(["^", *words, "$"])] for words in side] for side in split]
        ),
    }
    for what, vectors in expected.items():
        scores = found[what]["within_pairs"], found[what]["auroc"]
        assert scores == pytest.approx(worst_by_hand(*vectors, factors), abs=0.02), what
    by_hand = worst_by_hand(*expected["all words"], factors)
    assert (found["all words"]["within_pairs"], found["all words"]["auroc"]) == pytest.approx(by_hand)


def test_a_p_value_equals_that_of_swapped_prompts(rng: np.random.Generator) -> None:
    """All 16 ways to swap the prompts of five personas; swapping all of them changes nothing."""
    factors = all_factors(5, 2, 3)
    sides = random_sides(rng, factors)
    words = presence([[text.split() for text in side] for side in sides])
    personas = values_of(factors, "persona")
    scores = []
    for number in range(16):
        signs = np.array([1.0 if number >> int(name[1:]) & 1 else -1.0 for name in personas])
        positive, negative = projected_by_hand(swapped(words, signs), personas)
        scores.append(float((positive - negative).mean()))
    groupings = group_by_factors(factors)
    held_out = hold_out(pairs_of(torch.from_numpy(words[0]), torch.from_numpy(words[1])), groupings)
    true = scores[0]  # all prompts swapped
    moments = held_out.by_factor["persona"].moments
    assert permuted_p(moments) == np.mean([score >= true - 1e-9 for score in scores])
    assert permuted_p(moments, permutations=15) >= 1 / 16  # sampled: the true labels count


def ranking_with(auroc: float, misordered: float) -> Ranking:
    ranking = ranking_of()
    ranking["layers"][0]["auroc"], ranking["layers"][0]["wrong_way"] = auroc, misordered
    return ranking


def test_a_warning_is_relative_to_the_best_layer(rng: np.random.Generator) -> None:
    """A word in ten of 24 personas: significant, but far from what a good layer reaches."""
    personas = personas_of(rng, 24)
    personas[:10] = [(f"truly {one}", other) for one, other in personas[:10]]
    data = prompts_of(personas)
    check = checks(find_confounds(data))["all words"]
    assert check["p_value"] < 0.01
    assert check["within_pairs"] < 0.78
    assert "all words" not in warned(find_confounds(data, ranking_with(1.0, 0.0)))
    report = find_confounds(data, ranking_with(0.7, 0.2))
    assert "all words" in warned(report)
    assert "; best layer 80% and 0.70): " in report["warnings"][-1]


def test_few_groups_are_judged_by_the_smallest_possible_p() -> None:
    """With six pairs p is never below 1/32; one that is longer could be chance, six could not."""
    texts = ["a b c", "a b", "a b c d", "a b c d e", "a", "a b d"]
    for longer, suspicious in ((1, False), (6, True)):
        positive = [f"{text} x y z" if number < longer else text for number, text in enumerate(texts)]
        report = find_confounds(contrast_of(positive, texts))
        assert ("prompt length" in warned(report)) is suspicious


@pytest.mark.parametrize("pairs", [1, 3])
def test_too_few_pairs_are_not_checked(rng: np.random.Generator, pairs: int) -> None:
    assert find_confounds(contrast_of(sayings(rng, pairs), sayings(rng, pairs))) == {"checks": [], "warnings": []}


def test_a_large_vocabulary_is_cut_to_its_most_frequent_differences(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    personas = [(f"truly {one}", f"quite {other}") for one, other in personas_of(rng, 12)]
    whole = checks(find_confounds(prompts_of(personas)))["all words"]
    monkeypatch.setattr(text_features, "_MOST_COLUMNS", 2)
    monkeypatch.setattr(text_features, "_MOST_COUNTED", 40)
    cut = checks(find_confounds(prompts_of(personas)))["all words"]
    assert [word["text"] for word in cut["telltale"]] == ["quite", "truly"]
    assert cut["within_pairs"] == whole["within_pairs"] == 1.0


def test_a_search_that_takes_long_can_be_stopped_within_a_check(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twenty thousand words and as many pairs a check takes a minute; small chunks simulate that here."""
    monkeypatch.setattr(text_features, "_BAG_VALUES", 400)
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if told.count((5, 6)) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        find_confounds(contrast_of(sayings(rng, 60), sayings(rng, 60)), progress=stop)
    assert told[0] == (0, 6)
    assert told[-5:] == [(5, 6)] * 5


def test_lengths_that_vary_by_template_alone_are_no_confound() -> None:
    """They differ between the templates that were drawn and say nothing about others, which persona labels miss."""
    rng = np.random.default_rng(0)
    factors = all_factors(12, 6, 1)
    found = 0
    for _ in range(20):
        lengths, extra = rng.integers(20, 60, size=len(factors)), rng.integers(-6, 7, size=6)
        longer = lengths + extra[numbers_of(factors, "template")]
        sides = [
            [" ".join([name, *["w"] * (count - 1)]) for name, count in zip(NUMBERED, side, strict=True)]
            for side in (longer, lengths)
        ]
        report = find_confounds(contrast_of(sides[0], sides[1], factors))
        found += any(warning.startswith("prompt length") for warning in report["warnings"])
    assert found <= 2


NUMBERED = [f"u{number}" for number in range(72)]
