"""Errors say what is wrong, what was expected and what to do next, and set the exit code."""

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import engine
from engine.cli.steer import one_of
from engine.errors import CaptureError, LayerscopeError, ModelError, RequestError, StoreError, nearest, visible
from engine.models.placement import STRATEGIES, require_strategy
from engine.records.files import METHODS
from engine.records.steering import UNITS
from engine.remedies import Advice, Face, Remedy
from engine.stats.fitting import require_method
from engine.stats.scores import SCORES, find_score
from engine.steering.apply import require_choice
from engine.steering.causal_request import CausalRequest
from engine.store.names import locate
from engine.store.summaries import COLUMNS, parse_filter


def test_the_three_parts_read_as_sentences() -> None:
    error = LayerscopeError("layer 30 does not exist", expected="0 to 29", next_step="give a smaller one")
    assert str(error) == "layer 30 does not exist. Expected: 0 to 29. Next: give a smaller one."
    assert (error.problem, error.expected, error.next_step) == (
        "layer 30 does not exist",
        "0 to 29",
        "give a smaller one",
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LayerscopeError("it broke"), "it broke."),
        (LayerscopeError("it broke."), "it broke."),
        (LayerscopeError("it broke", expected="an intact one"), "it broke. Expected: an intact one."),
        (LayerscopeError("it broke", next_step="fix it"), "it broke. Next: fix it."),
        (LayerscopeError("no 'a'; did you mean 'b'?"), "no 'a'; did you mean 'b'?"),
    ],
)
def test_parts_may_be_missing_or_end_in_punctuation(error: LayerscopeError, text: str) -> None:
    assert str(error) == text


def test_each_kind_has_its_own_exit_code() -> None:
    kinds = [LayerscopeError, RequestError, ModelError, CaptureError, StoreError]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4, 5]


def test_every_kind_is_a_layerscope_error() -> None:
    for kind in (RequestError, ModelError, CaptureError, StoreError):
        with pytest.raises(LayerscopeError, match="it broke"):
            raise kind("it broke")


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("honest", ["empathy", "honesty"], "did you mean 'honesty'?"),
        ("HONEST", ["empathy", "honesty"], "did you mean 'honesty'?"),
        ("qwen", ["qwen2", "qwen3", "phi"], "did you mean 'qwen3' or 'qwen2'?"),
        ("zzz", ["empathy", "honesty"], "choose one of: empathy, honesty"),
        ("zzz", [], "there are none yet"),
    ],
)
def test_nearest_suggests_existing_names(name: str, known: list[str], words: str) -> None:
    assert nearest(name, known) == words


@pytest.mark.parametrize(
    ("refuse", "known"),
    [
        (lambda: find_score("foo"), [score.key for score in SCORES]),
        (lambda: require_strategy("foo"), STRATEGIES),
        (lambda: parse_filter("foo:1"), COLUMNS),
        (lambda: CausalRequest(method="foo"), METHODS),  # type: ignore[arg-type]
        (lambda: require_method("foo", METHODS), METHODS),
        (lambda: require_choice("the unit", "foo", UNITS), UNITS),
        (lambda: one_of("--unit", "foo", UNITS), UNITS),
    ],
)
def test_known_names_are_listed_once(refuse: Callable[[], object], known: Iterable[str]) -> None:
    with pytest.raises(RequestError) as caught:
        refuse()
    words = re.findall(r"[\w']+", str(caught.value))
    assert {name: words.count(name) for name in known} == dict.fromkeys(known, 1)


def test_a_mistyped_name_is_suggested_beside_the_list() -> None:
    with pytest.raises(RequestError, match=r"no score 'aurc'\. Expected: one of .*\. Next: did you mean 'auroc'\?$"):
        find_score("aurc")


def test_a_remedy_is_worded_for_the_face_that_shows_it() -> None:
    error = StoreError("there is no capture 'x'", expected="a name", next_step=Remedy.LIST_CAPTURES)
    problem = "there is no capture 'x'. Expected: a name. Next:"
    assert str(error) == f"{problem} list_captures shows the captures of a store."
    assert (
        error.said("command_line") == f"{problem} layerscope list shows the captures; --store FOLDER looks elsewhere."
    )
    assert error.said("server") == f"{problem} list_captures."
    assert error.said("app") == f"{problem} Esc returns to the library, which lists the captures."


@pytest.mark.parametrize(
    ("face", "said"),
    [
        ("python", "resume with respond=4, sample=False, layers=[3, 4], choose another name, or replace it with"),
        (
            "command_line",
            "resume with --respond 4 --layers 3,4 and without --sample, choose another name",
        ),
        ("server", "repeat the capture call with the saved settings to resume, choose another name"),
        ("app", "resume with the saved settings, or enter another name in the field Save as"),
    ],
)
def test_settings_are_worded_for_the_face(face: Face, said: str) -> None:
    settings = (("respond", 4), ("sample", False), ("layers", [3, 4]))
    error = StoreError("it differs", next_step=Advice(Remedy.RESUME_AS_STARTED, settings=settings))
    assert error.said(face).startswith(f"it differs. Next: {said}")


def test_a_command_names_the_store_of_its_capture() -> None:
    def said(remedy: Remedy, path: str) -> str:
        return StoreError("it broke", next_step=locate(path).advice(remedy)).said("command_line").partition("Next: ")[2]

    assert said(Remedy.LIST_CAPTURES, "my runs/mine").startswith("layerscope list --store 'my runs' shows")
    assert (
        said(Remedy.EXTRACT_AGAIN, "runs/mine")
        == "extract them again: layerscope directions mine --store runs --force."
    )
    assert said(Remedy.EXTRACT_AGAIN, "activations/mine") == "extract them again: layerscope directions mine --force."
    created = "create one with `layerscope capture --concept honesty --output runs/`, or name another with --store."
    assert said(Remedy.CHOOSE_STORE, "runs/mine") == created


def test_a_next_step_without_a_remedy_is_the_same_everywhere() -> None:
    error = RequestError("layer 30 does not exist", next_step="give a smaller one")
    assert error.said("server") == error.said("app") == str(error)


def test_remedies_name_public_functions() -> None:
    named = {word for remedy in Remedy for word in re.findall(r"\b[a-z]+_[a-z_]+\b(?!=)", remedy.words("python"))}
    assert named - {"save_figure", "device_map", "max_samples"} <= set(engine.__all__)


def test_engine_errors_name_no_command_or_tool() -> None:
    """They are read in a terminal, by agents and in scripts; only the command line may name its options."""
    sources = [path for path in Path(engine.__file__).parent.rglob("*.py") if "cli" not in path.parts]
    commands = "capture|list|show|rank|read|compare|directions|visualize|serve|tui"
    words = re.compile(rf"layerscope ({commands})\b|(?<!pip install )--[a-z]|=true\b|list_captures\(")
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in {"next_step", "expected"}:
                assert not words.search(ast.unparse(node.value)), f"{path.name}, line {node.value.lineno}"


def test_no_message_can_steer_a_terminal() -> None:
    error = LayerscopeError("there is no capture \x1b]0;owned\x07", expected="\udcff\x9b2J", next_step="read \u202eit")
    assert str(error) == r"there is no capture \x1b]0;owned\x07. Expected: \udcff\x9b2J. Next: read \u202eit."
    assert visible("two lines\n\té, 誠実 and 👩\u200d👧") == "two lines\n\té, 誠実 and 👩\u200d👧"
