"""Built-in concepts are usable, user concepts are found, and errors name the invalid field."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.concepts import catalog
from engine.concepts.catalog import default_templates, list_concepts, load_concept, save_concept, user_concepts_path
from engine.errors import RequestError
from engine.records.captures import Concept

BUILT_IN = [
    *("confidence", "creativity", "desirability", "empathy", "enthusiasm"),
    *("formality", "helpfulness", "honesty", "sentiment", "verbosity"),
]

PATIENCE = """\
name = "patience"
description = "Waiting without complaint."
positive = "patient"
negative = "impatient"
topics = ["The bus is late.", "Explain {it} again."]

[[personas]]
name = "teacher"
positive = "a teacher who takes time"
negative = "a teacher who rushes"

[[templates]]
name = "act-as"
user = "Act as {persona}. {topic}"

[[templates]]
name = "system"
system = "You are {persona}."
user = "{topic}"
"""


@pytest.fixture
def own_folder() -> Path:
    """The user's concept folder, empty."""
    folder = user_concepts_path()
    folder.mkdir(parents=True)
    return folder


def test_the_built_in_concepts() -> None:
    assert [concept.name for concept in list_concepts()] == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_concept_can_be_loaded_by_name(name: str) -> None:
    assert load_concept(name).name == name


def test_a_concept_without_templates_gets_the_default_ones(own_folder: Path) -> None:
    (own_folder / "patience.toml").write_text(PATIENCE[: PATIENCE.index("[[templates]]")])
    assert load_concept("patience").templates == load_concept("honesty").templates == default_templates()


def test_a_user_concept_is_found_by_name(own_folder: Path) -> None:
    (own_folder / "patience.toml").write_text(PATIENCE)
    assert [concept.name for concept in list_concepts()] == [*BUILT_IN, "patience"]
    concept = load_concept("patience")
    assert (concept.positive, concept.negative) == ("patient", "impatient")
    assert concept.topics == ("The bus is late.", "Explain {it} again.")
    assert [(template.name, template.system) for template in concept.templates] == [
        ("act-as", ""),
        ("system", "You are {persona}."),
    ]


def test_a_user_concept_overrides_a_built_in_one(own_folder: Path) -> None:
    (own_folder / "honesty.toml").write_text(PATIENCE.replace('name = "patience"', 'name = "honesty"'))
    assert load_concept("honesty").positive == "patient"
    assert [concept.name for concept in list_concepts()] == BUILT_IN


def test_every_listed_name_can_be_loaded(own_folder: Path) -> None:
    """Even if the file is not named after the concept."""
    (own_folder / "my-own.toml").write_text(PATIENCE)
    for concept in list_concepts():
        assert load_concept(concept.name) == concept


@pytest.mark.parametrize("as_given", [str, Path])
def test_a_file_anywhere(tmp_path: Path, as_given: Callable[[Path], str | Path]) -> None:
    path = tmp_path / "elsewhere.toml"
    path.write_text(PATIENCE)
    concept = load_concept(as_given(path))
    assert isinstance(concept, Concept)
    assert concept.name == "patience"


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(RequestError, match=r"no concept called 'honestly'; did you mean 'honesty'"):
        load_concept("honestly")


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"gone\.toml cannot be read: No such file"):
        load_concept(tmp_path / "gone.toml")


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_bytes(b'name = "odd"\ndescription = "caf\xe9"\n')
    with pytest.raises(RequestError, match=r"odd\.toml, line 2 is not UTF-8.*save the file in UTF-8"):
        load_concept(tmp_path / "odd.toml")


def test_a_broken_user_file_does_not_block_the_others(own_folder: Path) -> None:
    (own_folder / "patience.toml").write_text("name =")
    assert load_concept("honesty").name == "honesty"


BROKEN = {
    "not TOML": ('name = "patience"', "name = patience", r"not valid TOML: .*line 1"),
    "unknown field": (
        'positive = "patient"',
        'positiv = "patient"',
        r"positiv is not a known field; did you mean 'positive'",
    ),
    "no name": ('name = "patience"', "", r"name is missing"),
    "no description": ('description = "Waiting without complaint."', "", r"description is missing"),
    "positive is a number": ('positive = "patient"', "positive = 3", r"positive is not a text: 3"),
    "negative is blank": ('negative = "impatient"', 'negative = " "', r"negative is only white space"),
    "no topics": ('topics = ["The bus is late.", "Explain {it} again."]', "", r"topics must be a non-empty list"),
    "topics empty": ('["The bus is late.", "Explain {it} again."]', "[]", r"topics must be a non-empty list"),
    "topics a text": ('["The bus is late.", "Explain {it} again."]', '"The bus"', r"topics must be a non-empty list"),
    "a topic a number": ('["The bus is late.", "Explain', '[3, "Explain', r"topics\[0\] is not a text: 3"),
    "a topic blank": ('"The bus is late."', '""', r"topics\[0\] is empty"),
    "a topic twice": ('"Explain {it} again."', '"The bus is late."', r"topics contains 'The bus is late.' twice"),
    "personas one table": ("[[personas]]", "[personas]", r"personas must be written as one or more \[\[personas\]\]"),
    "no personas": ("[[personas]]", "[[people]]", r"people is not a known field"),
    "a persona without a name": ('name = "teacher"\n', "", r"personas\[0\]\.name is missing"),
    "a persona without a negative": (
        'negative = "a teacher who rushes"',
        "",
        r"personas\[0\]\.negative is missing",
    ),
    "a persona with equal texts": ("who rushes", "who takes time", r"personas\[0\] has the same positive and negative"),
    "a field of a template mistyped": (
        'user = "Act as {persona}. {topic}"',
        'user = "Act as {persona}. {topic}"\nsystm = "Answer in one line."',
        r"templates\[0\]\.systm is not a known field; did you mean 'system'",
    ),
    "a template's name twice": ('name = "system"', 'name = "act-as"', r"templates uses the name 'act-as' twice"),
    "a template without a user": ('user = "{topic}"', "", r"templates\[1\]\.user is missing"),
    "a template with an empty system": ('"You are {persona}."', '""', r"templates\[1\]\.system is empty"),
    "a template without a persona": ("Act as {persona}", "Act", r"templates\[0\] must contain \{persona\} exactly"),
    "a template without a topic": (
        "{persona}. {topic}",
        "{persona}.",
        r"templates\[0\] must contain \{topic\} exactly",
    ),
    "a template with two personas": (
        "You are {persona}.",
        "You, {persona}, are {persona}.",
        r"templates\[1\] must contain \{persona\} exactly once",
    ),
    "a template of numbers": (
        'system = "You are {persona}."',
        "system = 3",
        r"templates\[1\]\.system is not a text: 3",
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), BROKEN.values(), ids=list(BROKEN))
def test_an_invalid_file_is_named_with_the_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "patience.toml"
    assert PATIENCE.count(old) == 1
    path.write_text(PATIENCE.replace(old, new))
    with pytest.raises(RequestError, match=said) as caught:
        load_concept(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "patience.toml"
    path.write_bytes(b'name = "\xff\xfe"')
    with pytest.raises(RequestError, match=r"patience\.toml, line 1 is not UTF-8"):
        load_concept(path)


def test_a_saved_concept_loads_unchanged(tmp_path: Path) -> None:
    concept = replace(load_concept("honesty"), name="candour")
    assert save_concept(concept, tmp_path / "concepts").name == "candour.toml"
    assert load_concept("candour", tmp_path / "concepts") == concept
    assert concept in list_concepts(tmp_path / "concepts")
    assert concept not in list_concepts()


def test_an_existing_name_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="already a concept called 'honesty'"):
        save_concept(load_concept("honesty"), tmp_path)
    concept = replace(load_concept("honesty"), name="candour")
    save_concept(concept, tmp_path)
    with pytest.raises(RequestError, match="already a concept called 'candour'"):
        save_concept(concept, tmp_path)
    save_concept(replace(concept, positive="frank"), tmp_path, force=True)
    assert load_concept("candour", tmp_path).positive == "frank"


def test_of_two_writers_of_one_name_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other writer saves after this one found the name free."""
    concept = replace(load_concept("honesty"), name="candour")
    as_text = catalog.concept_as_toml

    def after_another(wanted: Concept) -> str:
        monkeypatch.setattr(catalog, "concept_as_toml", as_text)
        save_concept(replace(wanted, positive="frank"), tmp_path)
        return as_text(wanted)

    monkeypatch.setattr(catalog, "concept_as_toml", after_another)
    with pytest.raises(RequestError, match="already a concept called 'candour'"):
        save_concept(concept, tmp_path)
    assert load_concept("candour", tmp_path).positive == "frank"
    assert [path.name for path in tmp_path.iterdir()] == ["candour.toml"]


@pytest.mark.parametrize("name", ["../candour", "a b", "", ".candour", "x" * 65])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"is not a valid concept name.*at most 64"):
        save_concept(replace(load_concept("honesty"), name=name), tmp_path / "concepts")
    assert list(tmp_path.iterdir()) == []


def test_paths_are_refused_where_only_names_are_allowed(tmp_path: Path) -> None:
    path = save_concept(replace(load_concept("honesty"), name="candour"), tmp_path)
    assert load_concept(path).name == "candour"
    with pytest.raises(RequestError, match="there is no concept called"):
        load_concept(str(path), by_name_only=True)


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ('name = "patience"', r'name = "pati\u001bence"', "name"),
        ('name = "teacher"', r'name = "tea\ncher"', r"personas\[0\]\.name"),
        ('name = "act-as"', r'name = "act\u202eas"', r"templates\[0\]\.name"),
        ("Waiting", r"\u001b[31mWaiting", "description"),
        ('positive = "patient"', r'positive = "\tpatient"', "positive"),
    ],
)
def test_control_characters_in_names_are_refused(own_folder: Path, before: str, after: str, field: str) -> None:
    (own_folder / "patience.toml").write_text(PATIENCE.replace(before, after, 1))
    with pytest.raises(RequestError, match=rf"{field} must not contain control characters"):
        load_concept(own_folder / "patience.toml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_file_that_is_no_concept_does_not_hang_or_crash(own_folder: Path) -> None:
    os.mkfifo(own_folder / "pipe.toml")
    (own_folder / "folder.toml").mkdir()
    (own_folder / "deep.toml").write_text("a = " + "[" * 9000)
    (own_folder / "long.toml").write_text("a = " + "9" * 9000)
    for name, said in (
        ("pipe", "is a named pipe"),
        ("folder", "is a folder, not a regular file"),
        ("deep", "is not valid TOML"),
        ("long", "is not valid TOML"),
    ):
        with pytest.raises(RequestError, match=said):
            load_concept(name)
    assert load_concept("honesty").name == "honesty"


def test_links_to_other_places_are_neither_read_nor_written_through(own_folder: Path, tmp_path: Path) -> None:
    (own_folder / "patience.toml").write_text(PATIENCE)
    patience = load_concept("patience")
    store = tmp_path / "store"
    store.mkdir()
    (store / "concepts").symlink_to(own_folder)
    other = replace(patience, name="other")
    with pytest.raises(RequestError, match="is a symbolic link to another folder"):
        save_concept(other, store / "concepts")
    assert [path.name for path in own_folder.iterdir()] == ["patience.toml"]
    folder = store / "own"
    (tmp_path / "other.toml").write_text(PATIENCE.replace("patience", "other"))
    save_concept(replace(patience, name="mine"), folder)
    (folder / "other.toml").symlink_to(tmp_path / "other.toml")
    (folder / "loop.toml").symlink_to("loop.toml")
    (folder / "same.toml").symlink_to("mine.toml")
    names = [concept.name for concept in list_concepts(folder, store / "concepts")]
    assert names == [*BUILT_IN, "patience", "mine"]


def test_a_file_in_place_of_the_folder_is_named(own_folder: Path, tmp_path: Path) -> None:
    (own_folder / "patience.toml").write_text(PATIENCE)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file.other\.toml cannot be written"):
        save_concept(replace(load_concept("patience"), name="other"), tmp_path / "file")
