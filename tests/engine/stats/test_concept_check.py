"""A concept's texts are checked before a model runs."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.concepts.catalog import save_concept
from engine.concepts.pairs import DEFAULT_SAMPLES, draw_pairs, render_pairs
from engine.errors import RequestError
from engine.records.captures import Concept, Persona, Template
from engine.records.results import ConceptCheck
from engine.stats.concept_check import BUILT_IN_SIZE, check_concept
from engine.stats.confounds import find_confounds
from engine.stats.ranking import rank_layers
from tests.conftest import Loaded
from tests.engine.stats.test_confounds import VOCABULARY, contrast_of

Edit = Callable[[int, str, str], tuple[str, str]]
"""Changes both texts of the persona of a number."""


def concept_of(personas: int = 24, templates: int = 12, topics: int = 40, edit: Edit | None = None) -> Concept:
    """A concept whose personas share most words with their opposite; texts vary much in length."""
    rng = np.random.default_rng(3)

    def persona(number: int) -> Persona:
        start = " ".join(rng.choice(VOCABULARY, size=8 + 5 * (number % 12)))
        texts = f"a {start} of yes{number} kind", f"a {start} of no{number} kind"
        return Persona(f"p{number}", *(edit(number, *texts) if edit else texts))

    return Concept(
        name="made-up",
        description="Made up.",
        positive="more",
        negative="less",
        personas=tuple(persona(number) for number in range(personas)),
        templates=tuple(Template(f"t{n}", user=f"w{n} {{persona}}. {{topic}}") for n in range(templates)),
        topics=tuple(f"about thing {n}" for n in range(topics)),
    )


def suspects(check: ConceptCheck) -> list[str]:
    return [warning.split(" alone ")[0] for warning in check["confounds"]["warnings"]]


def length(number: int, one: str, other: str) -> tuple[str, str]:
    """Nine more words in every positive text, of its own."""
    article, *rest = one.split()
    return " ".join([article, *(f"own{number}word{place}" for place in range(9)), *rest]), other


def capitals(_number: int, one: str, other: str) -> tuple[str, str]:
    return one.upper(), other


def punctuation(_number: int, one: str, other: str) -> tuple[str, str]:
    return f"{one}!", f"{other}."


def order(_number: int, one: str, _other: str) -> tuple[str, str]:
    return f"{one}, slow but sure", f"{one}, sure but slow"


def keyword(number: int, one: str, other: str) -> tuple[str, str]:
    """In three quarters of the personas: 9 of 12."""
    return (f"{one} truly", f"{other} so{number}") if number % 4 else (one, other)


PLANTED: dict[str, Edit] = {
    "prompt length": length,
    "capitals": capitals,
    "punctuation": punctuation,
    "word order": order,
    "all words": keyword,
}


@pytest.mark.parametrize("personas", [12, 24])
@pytest.mark.parametrize("what", PLANTED)
def test_planted_confounds_are_found(what: str, personas: int) -> None:
    check = check_concept(concept_of(personas, edit=PLANTED[what]))
    assert suspects(check) == [what]
    assert check["warnings"] == check["confounds"]["warnings"]


def test_telltale_words_are_named_with_their_personas() -> None:
    check = check_concept(concept_of(12, edit=keyword))
    assert "'truly' in the positive prompts of 9 of 12 personas, the negative prompts of 0" in check["warnings"][0]
    assert check["telltale"] == [{"text": "truly", "positive": 9, "negative": 0, "total": 12, "counted": "persona"}]


def test_a_clean_concept_of_the_built_in_size_gets_no_warning() -> None:
    check = check_concept(concept_of())
    assert (check["warnings"], check["advice"], check["telltale"]) == ([], [], [])
    assert check["groups"] == BUILT_IN_SIZE
    assert check["pairs"] == DEFAULT_SAMPLES


def test_random_texts_of_twelve_personas_get_no_warning() -> None:
    """Words occur in several personas, but not more often in one class."""
    rng = np.random.default_rng(1)
    texts = [[" ".join(rng.choice(VOCABULARY, size=6)) for _ in range(2)] for _ in range(12)]
    check = check_concept(concept_of(12, 6, 20, lambda number, _one, _other: (texts[number][0], texts[number][1])))
    assert check["warnings"] == []
    assert all(row["p_value"] >= 0.5 or row["p_value"] > 0.01 for row in check["confounds"]["checks"])


def test_valence_is_said_to_be_unchecked() -> None:
    """The positive class is the likeable one in all personas, in different words: no text feature shows it."""
    kind = ["kind", "loving", "brave", "gentle", "loyal", "wise", "warm", "fair", "lavish", "patient", "frank", "mild"]
    cruel = [
        "cruel",
        "hateful",
        "craven",
        "harsh",
        "false",
        "silly",
        "cold",
        "unjust",
        "greedy",
        "rash",
        "lying",
        "mad",
    ]
    check = check_concept(concept_of(12, edit=lambda n, _one, _other: (f"a {kind[n]} man", f"a {cruel[n]} man")))
    assert check["warnings"] == []
    assert any("valence" in each and "specificity" in each for each in check["unchecked"])


def test_a_word_of_topics_on_both_sides_is_no_confound() -> None:
    """Every topic has the word that names the positive class."""
    concept = concept_of()
    topics = tuple(f"is it honest, thing {n}?" for n in range(40))
    changed = Concept(**{**vars(concept), "topics": topics, "positive": "honest"})
    assert check_concept(changed)["warnings"] == []


def test_unbalanced_negations_are_counted() -> None:
    """Six personas against one, in different words."""
    added = ["not", "never", "no", "nobody", "without", "isn't"]

    def negate(number: int, one: str, other: str) -> tuple[str, str]:
        return (f"{one} {added[number]}" if number < 6 else one, f"{other} nothing" if number == 6 else other)

    check = check_concept(concept_of(12, edit=negate))
    assert check["negations"] == {"positive": 6, "negative": 1}
    assert (
        "negations are unbalanced: only the positive text has one in 6 of 12 personas, only the negative text in 1"
        in check["warnings"]
    )
    both = check_concept(concept_of(12, edit=lambda _n, one, other: (f"{one} not", f"{other} never")))
    assert both["negations"] == {"positive": 0, "negative": 0}


def test_the_smallest_p_and_what_to_add() -> None:
    check = check_concept(concept_of(5, 4, 40))
    assert check["smallest_p"] == {"persona": 1 / 16, "template": 1 / 8, "topic": 1 / 4097}
    assert check["advice"] == [
        "add personas: these pairs have 5, a built-in concept 24",
        "then add templates: these pairs have 4, a built-in concept 12",
    ]
    assert check["warnings"][-1].startswith("too few to test: 5 personas, 4 templates. Permuting fewer than 6 groups")


@pytest.mark.parametrize(("personas", "templates", "topics"), [(24, 12, 40), (8, 4, 5), (8, 3, 9), (4, 3, 5)])
def test_the_smallest_p_is_that_of_a_ranking(personas: int, templates: int, topics: int) -> None:
    """The largest over all tests counts."""
    concept = concept_of(personas, templates, topics)
    pairs = draw_pairs(concept, 96)
    own = [f"w{number}" for number in range(len(pairs))]
    data = contrast_of(own, [f"{text} w" for text in own], [pair.factors for pair in pairs])
    for prompt in (*data["positive"], *data["negative"]):
        prompt["activations"][0].normal_()
    ranking = rank_layers(data)
    found = check_concept(concept, max_samples=96)["smallest_p"]
    assert max(found[test] for test in ranking["layers"][0]["p_by_factor"]) == ranking["smallest_p"]
    assert ("crossed" in found) == ("crossed" in ranking["layers"][0]["p_by_factor"])


def test_personas_with_one_opposite_share_its_prompts() -> None:
    """A ranking of them gives the same warning."""
    check = check_concept(concept_of(6, 2, 3, edit=lambda _number, one, _other: (one, "somebody")), max_samples=None)
    assert [said for said in check["warnings"] if "share prompts" in said] == [
        "36 of 36 pairs share prompts with pairs of another persona: over personas, intervals are too narrow, and"
        " only the crossed test counts them once; use each prompt with one persona only"
    ]


def test_pairs_that_cannot_be_held_out_are_only_counted() -> None:
    check = check_concept(concept_of(2, 1, 1))
    assert check["confounds"] == {"checks": [], "warnings": []}
    assert "2 personas, 1 template, 1 topic" in check["warnings"][0]


def test_a_concept_is_checked_by_file_or_name(tmp_path: Path) -> None:
    concept = concept_of(6, 2, 3)
    assert check_concept(save_concept(concept, tmp_path), max_samples=None) == check_concept(concept, max_samples=None)
    assert engine.check_concept("honesty", max_samples=12)["concept"] == "honesty"
    with pytest.raises(RequestError, match="there is no concept called 'honest'"):
        check_concept("honest")


def test_with_a_tokenizer_it_equals_the_check_of_a_capture(smollm2: Loaded) -> None:
    """The chat template is applied and tokens are counted."""
    concept = concept_of(12, 6, 20, edit=length)
    check = check_concept(concept, smollm2.tokenizer, max_samples=36)
    texts = render_pairs(smollm2.tokenizer, concept, 36)
    data = contrast_of(texts.positive, texts.negative, texts.factors, positions="last")
    for side, prompts in ((data["positive"], texts.positive), (data["negative"], texts.negative)):
        for prompt, text in zip(side, prompts, strict=True):
            prompt["tokens"] = smollm2.tokenizer.tokenize(text)
            prompt["input_ids"] = prompt["input_ids"].new_zeros(1, len(prompt["tokens"]))
    assert check["confounds"] == find_confounds(data)
    counted = re.match(r"([\d.]+) tokens per positive", check["confounds"]["checks"][0]["detail"])
    assert counted is not None
    without = check_concept(concept, max_samples=36)["confounds"]["checks"]
    assert "words per positive prompt" in without[0]["detail"]
    assert "token read" not in [row["what"] for row in without]


def test_the_pairs_are_those_of_a_capture() -> None:
    """The seed and the number of pairs draw the same pairs as a capture."""
    concept = concept_of(12, 6, 20, edit=length)
    pairs = draw_pairs(concept, 30, seed=4)
    words = [sum(len(message["content"].split()) for message in pair.positive) for pair in pairs]
    (check, *_) = check_concept(concept, max_samples=30, seed=4)["confounds"]["checks"]
    assert check["detail"].startswith(f"{np.mean(words):.1f} words per positive prompt")
