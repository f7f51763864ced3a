"""Tools for concepts: built-in ones and those that agents define."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from engine.concepts.catalog import load_concept
from engine.stats.concept_check import check_concept
from server.app import LayerscopeServer
from tests.server.conftest import call, contents, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio

PATIENCE: dict[str, Any] = {
    "name": "patience",
    "positive": "patient",
    "negative": "impatient",
    "description": "Waiting without complaint.",
    "personas": [{"name": f"p{n}", "positive": f"w{n} w9", "negative": f"w{n} w8"} for n in (10, 11, 12, 13)],
    "topics": ["w20 w21", "w22 w23"],
    "templates": [{"name": "plain", "user": "{persona} {topic}"}],
}


async def test_a_concept_that_was_defined_is_kept_shown_and_captured(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        made = await call(client, "define_concept", **PATIENCE)
        assert made["concept"]["pairs"] == 8
        assert made["next_step"] == "capture_contrast(concept='patience')"
        kept = load_concept(store / "concepts" / "patience.toml")
        assert [persona.positive for persona in kept.personas] == [p["positive"] for p in PATIENCE["personas"]]
        shown = await call(client, "list_concepts", name="patience")
        assert (shown["topics"], shown["left_out"]) == (PATIENCE["topics"], 0)
        assert shown["personas"] == PATIENCE["personas"]
        asked = {"concept": "patience", "model": "tiny", "max_samples": 8}
        captured = await finished(client, await call(client, "capture_contrast", **asked))
        assert (captured["capture"]["concept"], captured["capture"]["pairs"]) == ("patience", 8)


async def test_the_templates_of_the_built_in_concepts_are_the_default(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        made = await call(client, "define_concept", **{key: PATIENCE[key] for key in PATIENCE if key != "templates"})
        shown = await call(client, "list_concepts", name="honesty")
        assert [entry["name"] for entry in made["templates"]] == [entry["name"] for entry in shown["templates"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "honesty"}, "already"),
        ({"name": "../patience"}, "letters, digits"),
        ({"name": "patience.toml"}, "letters, digits"),
        ({"personas": PATIENCE["personas"][:1]}, "at least 2 items"),
        ({"topics": ["w20"]}, "at least 2 items"),
        ({"templates": [{"name": "t", "user": "{persona} {persona} {topic}"}]}, "{persona} exactly once"),
        ({"templates": [{"name": "t", "user": "{persona.__class__} {topic}"}]}, "{persona} exactly once"),
        ({"personas": [{"name": "p", "positive": "x"}] * 2}, "negative is missing"),
        ({"personas": [{"name": "p", "positive": "x", "negative": "y", "neutral": "z"}] * 2}, "neutral"),
    ],
)
async def test_an_invalid_concept_is_refused_and_not_saved(
    app: LayerscopeServer, store: Path, changes: dict[str, Any], said: str
) -> None:
    before = contents(store.parent)
    async with Client(app) as client:
        assert said in await refused(client, "define_concept", **PATIENCE | changes)
    assert contents(store.parent) == before


async def test_braces_in_texts_are_literal(app: LayerscopeServer) -> None:
    personas = [{"name": f"p{n}", "positive": f"{{topic}} w{n}", "negative": f"{{0}} w{n + 20}"} for n in (10, 11)]
    async with Client(app) as client:
        await call(client, "define_concept", **PATIENCE | {"personas": personas, "topics": ["{persona}", "w5 {"]})
        asked = {"concept": "patience", "model": "tiny", "max_samples": 4, "name": "braces"}
        assert (await finished(client, await call(client, "capture_contrast", **asked)))["status"] == "done"
        prompts = (await call(client, "describe_capture", name="braces"))["example_prompts"]
        assert "{topic} w10 {persona}" in prompts


async def test_the_texts_of_a_concept_are_paged_in_full(app: LayerscopeServer) -> None:
    honesty = load_concept("honesty")
    async with Client(app) as client:
        page = await call(client, "list_concepts", name="honesty", detail="full")
        topics = page["topics"]
        templates = page["templates"]
        assert page["concept"]["name"] == "honesty"
        while "next_offset" in page:
            page = await call(client, "list_concepts", name="honesty", detail="full", offset=page["next_offset"])
            topics, templates = topics + page["topics"], templates + page["templates"]
        assert topics == list(honesty.topics)
        assert [template["user"] for template in templates] == [template.user for template in honesty.templates]
        beyond = await call(client, "list_concepts", name="honesty", offset=10**6)
        assert (beyond["personas"], beyond["templates"], beyond["topics"]) == ([], [], [])


async def test_an_invalid_concept_hides_no_other(app: LayerscopeServer, store: Path) -> None:
    folder = store / "concepts"
    folder.mkdir(exist_ok=True)
    (folder / "broken.toml").write_text("name = ")
    async with Client(app) as client:
        listed = await call(client, "list_concepts")
        assert "honesty" in {concept["name"] for concept in listed["concepts"]}
        (warning,) = listed["warnings"]
        assert "broken.toml is not valid TOML" in warning


async def test_a_dry_run_checks_the_texts_and_saves_nothing(app: LayerscopeServer, store: Path) -> None:
    before = contents(store.parent)
    async with Client(app) as client:
        checked = await call(client, "define_concept", **PATIENCE, dry_run=True)
        assert contents(store.parent) == before
        assert "dry_run" in checked["next_step"]
        assert "already" in await refused(client, "define_concept", **PATIENCE | {"name": "honesty"}, dry_run=True)
        saved = await call(client, "define_concept", **PATIENCE)
    expected = check_concept(load_concept(store / "concepts" / "patience.toml"))
    for reply in (checked, saved):
        assert reply["warnings"] == expected["warnings"]
        assert reply["check"]["pairs"] == expected["pairs"] == 8
        assert reply["check"]["repeated_words"] == ["w8: positive 0, negative 4", "w9: positive 4, negative 0"]
        assert reply["check"]["pairs_in_order"]["all words"] == 1.0
        assert reply["check"]["smallest_p"]["persona"] == 0.125
        assert reply["check"]["unchecked"] == expected["unchecked"]
    assert "too few groups to test the baselines: 4 personas" in checked["warnings"][0]
    assert "too few to test" in checked["warnings"][-1]
