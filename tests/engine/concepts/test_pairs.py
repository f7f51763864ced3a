"""Pairs are distinct, balanced over factors, reproducible, and differ only in the persona."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.concepts.catalog import list_concepts, load_concept
from engine.concepts.chat import render_chat
from engine.concepts.pairs import DEFAULT_SAMPLES, draw_pairs
from engine.errors import RequestError
from engine.records.captures import Concept, Factors, Message, Pair, Persona, Template
from tests.conftest import Loaded

FACTORS: tuple[tuple[str, ...], ...] = (("persona",), ("template",), ("topic",))
CROSSINGS = (("persona", "template"), ("persona", "topic"), ("template", "topic"))


def concept_of(personas: int, templates: int, topics: int) -> Concept:
    """A synthetic concept of a given size; every second template has a system text."""
    return Concept(
        name="made-up",
        description="Nothing.",
        positive="good",
        negative="bad",
        personas=tuple(Persona(f"p{i}", f"a good one {i}", f"a bad one {i}") for i in range(personas)),
        templates=tuple(
            Template(f"t{i}", f"{i}: {{topic}}", "You are {persona}.")
            if i % 2
            else Template(f"t{i}", f"{i}: act as {{persona}}. {{topic}}")
            for i in range(templates)
        ),
        topics=tuple(f"topic {i}" for i in range(topics)),
    )


def identity(factors: Factors) -> tuple[str, str, str]:
    return factors["template"], factors["persona"], factors["topic"]


def counts(pairs: Sequence[Pair], factors: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each value, or each combination of values, occurs."""
    return Counter(tuple(str(dict(pair.factors)[factor]) for factor in factors) for pair in pairs)


def joined(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20))


@given(sizes, st.none() | st.integers(1, 800), st.integers(0, 2**32))
@settings(deadline=None)
@example((6, 6, 5), 168, 0)
@example((5, 3, 1), 7, 0)
def test_each_value_occurs_about_equally_often(size: tuple[int, int, int], max_samples: int | None, seed: int) -> None:
    pairs = draw_pairs(concept_of(*size), max_samples, seed)
    for factor, number in zip(FACTORS, size, strict=True):
        counted = counts(pairs, factor)
        share = len(pairs) / number
        assert max(counted.values()) <= share + 3, counted
        assert (min(counted.values()) if len(counted) == number else 0) >= share - 3, counted


@given(sizes, st.none() | st.integers(1, 800), st.integers(0, 2**32))
@settings(deadline=None)
def test_pairs_are_distinct_and_as_many_as_possible(
    size: tuple[int, int, int], max_samples: int | None, seed: int
) -> None:
    pairs = draw_pairs(concept_of(*size), max_samples, seed)
    total = size[0] * size[1] * size[2]
    assert len(pairs) == min(total, max_samples or total)
    assert len({identity(pair.factors) for pair in pairs}) == len(pairs)
    assert len({joined(pair.positive) for pair in pairs}) == len(pairs)


@given(sizes, st.integers(1, 800), st.integers(0, 2**32))
@settings(deadline=None)
def test_fewer_pairs_are_the_first_of_more(size: tuple[int, int, int], max_samples: int, seed: int) -> None:
    concept = concept_of(*size)
    assert draw_pairs(concept, max_samples, seed) == draw_pairs(concept, None, seed)[:max_samples]


@pytest.mark.parametrize(("most", "tolerance"), [(720, 2), (None, 3)])
def test_a_built_in_concept_is_balanced_at_every_sample_size(most: int | None, tolerance: int) -> None:
    """At no sample size is a value of one factor a proxy for a value of another."""
    concept = load_concept("honesty")
    number = {"persona": len(concept.personas), "template": len(concept.templates), "topic": len(concept.topics)}
    pairs = draw_pairs(concept, most)
    for one, other in CROSSINGS:
        possible = number[one] * number[other]
        counted: Counter[tuple[str, str]] = Counter()
        reached = Counter({0: possible})  # combinations by how often they occur
        for size, pair in enumerate(pairs, start=1):
            combination = (str(dict(pair.factors)[one]), str(dict(pair.factors)[other]))
            reached[counted[combination]] -= 1
            counted[combination] += 1
            reached[counted[combination]] += 1
            occurring = [times for times, combinations in reached.items() if combinations]
            assert max(occurring) <= size / possible + tolerance, (one, other, size)
            assert min(occurring) >= size / possible - tolerance, (one, other, size)


def test_the_default_number_crosses_personas_and_templates_evenly() -> None:
    concept = load_concept("honesty")
    counted = counts(draw_pairs(concept, DEFAULT_SAMPLES), ("persona", "template"))
    assert len(counted) == min(DEFAULT_SAMPLES, len(concept.personas) * len(concept.templates))
    assert max(counted.values()) - min(counted.values()) <= 1


def test_two_pairs_differ_in_every_factor() -> None:
    one, other = draw_pairs(load_concept("honesty"), 2)
    assert not set(identity(one.factors)) & set(identity(other.factors))


def test_none_gives_every_combination() -> None:
    concept = load_concept("honesty")
    drawn = {identity(pair.factors) for pair in draw_pairs(concept, None)}
    assert drawn == {
        (template.name, persona.name, topic)
        for template in concept.templates
        for persona in concept.personas
        for topic in concept.topics
    }


def test_the_seed_decides() -> None:
    concept = load_concept("honesty")
    assert draw_pairs(concept, 20, seed=3) == draw_pairs(concept, 20, seed=3)
    assert draw_pairs(concept, 20, seed=3) != draw_pairs(concept, 20, seed=4)


@pytest.mark.parametrize("concept", list_concepts(), ids=lambda concept: concept.name)
def test_the_classes_differ_only_in_the_persona(concept: Concept) -> None:
    personas = {persona.name: persona for persona in concept.personas}
    for pair in draw_pairs(concept):
        persona = personas[pair.factors["persona"]]
        positive, negative = joined(pair.positive), joined(pair.negative)
        assert positive != negative
        assert positive.count(persona.positive) == 1
        assert positive.replace(persona.positive, persona.negative) == negative


@pytest.mark.parametrize("markup", ["chat", "plain"])
@pytest.mark.parametrize("concept", list_concepts(), ids=lambda concept: concept.name)
def test_the_classes_have_the_same_length_and_last_token(
    concept: Concept, markup: str, smollm2: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither length nor the last token may separate the classes: every persona and template, one topic."""
    if markup == "plain":
        monkeypatch.setattr(smollm2.tokenizer, "chat_template", None)
    for pair in draw_pairs(replace(concept, topics=concept.topics[:1]), None):
        positive, negative = (
            smollm2.tokenizer(render_chat(smollm2.tokenizer, chat), add_special_tokens=False)["input_ids"]
            for chat in (pair.positive, pair.negative)
        )
        assert len(positive) == len(negative), pair.factors
        assert positive[-1] == negative[-1], pair.factors


def test_a_pair_matches_its_factors() -> None:
    concept = concept_of(1, 2, 1)
    by_template = {pair.factors["template"]: pair for pair in draw_pairs(concept)}
    assert by_template["t0"].positive == (Message(role="user", content="0: act as a good one 0. topic 0"),)
    assert by_template["t1"].negative == (
        Message(role="system", content="You are a bad one 0."),
        Message(role="user", content="1: topic 0"),
    )


@pytest.mark.parametrize("topic", ["{}", "{0}", "{persona}", "{topic}", "print(f'{x!r:>{width}}')", "100 % {", "\\1"])
def test_braces_in_a_topic_survive(topic: str) -> None:
    template = Template("act-as", "Act as {persona}. {topic}")
    concept = Concept("c", "d", "p", "n", (Persona("p", "good", "bad"),), (template,), (topic,))
    (pair,) = draw_pairs(concept)
    assert pair.positive == (Message(role="user", content=f"Act as good. {topic}"),)


def test_braces_in_a_persona_survive() -> None:
    template = Template("act-as", "Act as {persona}. {topic}")
    concept = Concept("c", "d", "p", "n", (Persona("p", "one who says {topic}", "bad"),), (template,), ("Hello.",))
    (pair,) = draw_pairs(concept)
    assert pair.positive == (Message(role="user", content="Act as one who says {topic}. Hello."),)


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_pair_is_refused(number: int) -> None:
    with pytest.raises(RequestError, match=rf"max_samples.*cannot be {number}.*at least 1"):
        draw_pairs(load_concept("honesty"), number)
