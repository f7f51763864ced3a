"""The texts of the built-in concepts follow the rules in CONTRIBUTING: only the concept separates the classes."""

import re
from collections import Counter
from collections.abc import Callable

import pytest

from engine.concepts.catalog import default_templates, list_concepts
from engine.concepts.pairs import render_pairs
from engine.records.captures import Concept
from tests.conftest import Loaded

CONCEPTS = list_concepts()
PAIRS_OF_ROLES = [
    pytest.param(persona.positive, persona.negative, id=f"{concept.name}-{persona.name}")
    for concept in CONCEPTS
    for persona in concept.personas
]
NEGATIONS = {
    *("not", "never", "no", "without", "nothing", "nobody", "none", "nor", "neither", "hardly", "cannot", "nowhere"),
    *("rarely", "seldom", "barely", "scarcely", "lacks", "lacking"),
}
MOST = 3  # personas of 24 in which a word may occur in one class only
each_concept = pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("n't", " not"))


def only_in(one: str, other: str) -> set[str]:
    return set(words(one)) - set(words(other))


@each_concept
def test_the_design_is_large_enough(concept: Concept) -> None:
    assert len(concept.personas) >= 24
    assert len(concept.topics) >= 40
    assert len({topic.lower() for topic in concept.topics}) == len(concept.topics)
    roles = [text for persona in concept.personas for text in (persona.positive, persona.negative)]
    assert len(set(roles)) == len(roles)


def test_the_built_in_concepts_share_their_templates() -> None:
    templates = default_templates()
    assert len(templates) == 12
    assert len({(template.system, template.user) for template in templates}) == 12
    assert all(concept.templates == templates for concept in CONCEPTS)


def test_half_of_the_templates_put_the_topic_first() -> None:
    texts = [f"{template.system}\n{template.user}" for template in default_templates()]
    assert sum(text.index("{topic}") < text.index("{persona}") for text in texts) == len(texts) / 2


def test_names_are_short_and_in_kebab_case() -> None:
    names = [template.name for template in default_templates()]
    names += [persona.name for concept in CONCEPTS for persona in concept.personas]
    assert [name for name in names if not re.fullmatch(r"[a-z]+(-[a-z]+){0,3}", name)] == []


def test_no_prompt_has_the_default_system_message_of_the_model(smollm2: Loaded) -> None:
    inserted = "You are a helpful AI assistant named SmolLM"
    assert inserted in str(smollm2.tokenizer.chat_template)
    rendered = render_pairs(smollm2.tokenizer, CONCEPTS[0], 24)
    assert [text for text in (*rendered.positive, *rendered.negative) if inserted in text] == []


@pytest.mark.parametrize(("positive", "negative"), PAIRS_OF_ROLES)
def test_capitals_and_punctuation_of_a_persona_are_alike(positive: str, negative: str) -> None:
    marks: list[Callable[[str], list[str]]] = [
        lambda text: re.findall(r"[^\w\s]", text),
        lambda text: re.findall(r"[A-Z]", text),
        lambda text: re.findall(r"[0-9]", text),
    ]
    assert [find(positive) for find in marks] == [find(negative) for find in marks]


@pytest.mark.parametrize(("positive", "negative"), PAIRS_OF_ROLES)
def test_the_roles_of_a_persona_share_most_of_their_words(positive: str, negative: str) -> None:
    assert positive.split()[:2] == negative.split()[:2]
    shared = Counter(words(positive)) & Counter(words(negative))
    assert shared.total() >= len(words(positive)) / 2


@each_concept
def test_negations_are_balanced(concept: Concept) -> None:
    positive, negative = (
        sum(word in NEGATIONS for text in texts for word in words(text))
        for texts in ([p.positive for p in concept.personas], [p.negative for p in concept.personas])
    )
    assert positive == negative


@each_concept
def test_no_word_separates_the_classes_of_many_personas(concept: Concept) -> None:
    positive: Counter[str] = Counter()
    negative: Counter[str] = Counter()
    for persona in concept.personas:
        positive.update(only_in(persona.positive, persona.negative))
        negative.update(only_in(persona.negative, persona.positive))
    assert [word for words in (positive, negative) for word, number in words.items() if number > MOST] == []


@each_concept
def test_topics_do_not_name_the_concept(concept: Concept) -> None:
    stems = tuple(word[:6] for name in (concept.name, concept.positive, concept.negative) for word in words(name))
    assert [topic for topic in concept.topics if any(word.startswith(stems) for word in words(topic))] == []
