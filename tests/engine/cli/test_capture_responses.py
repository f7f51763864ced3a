"""`layerscope capture --respond` and given responses, and what `show` prints of them."""

import json
from typing import Any

import pytest

from engine.capture.run import capture_stacked
from engine.store import resume, shard_run
from tests.engine.cli.conftest import assert_failed, concept_text, widest
from tests.program import Program

ROWS = [
    {
        "positive": f"w5 w{20 + i}",
        "negative": f"w6 w{20 + i}",
        "positive_response": f"w50 w{70 + i}",
        "negative_response": f"w51 w52 w{70 + i}",
    }
    for i in range(9)
]


@pytest.fixture
def folder(layerscope: Program) -> Program:
    """A folder with a concept, and files of pairs with and without responses."""
    (layerscope.folder / "loudness.toml").write_text(concept_text("loudness"))
    (layerscope.folder / "given.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    bare = [{"positive": row["positive"], "negative": row["negative"]} for row in ROWS]
    (layerscope.folder / "bare.jsonl").write_text("\n".join(map(json.dumps, bare)))
    return layerscope


@pytest.mark.parametrize("shards", [False, True])
def test_the_model_answers_first(folder: Program, tiny_folder: object, shards: bool) -> None:
    command = ("capture", "--model", str(tiny_folder), "--concept", "loudness.toml", "--respond", "5", "--sample")
    extra = ("--shards",) if shards else ()
    result = folder(*command, "--seed", "2", "--json", *extra)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["provenance"]["positions"] == "response"
    assert record["provenance"]["responses"] == {
        "origin": "generated",
        "max_new_tokens": 5,
        "sampled": True,
        "seed": 2,
        "settings": "temperature 1.0, top_k 50, top_p 1.0",
    }
    assert len(record["responses"]) == len(record["prompts"]) == len(record["negative_responses"])
    assert all(0 <= one["tokens"] <= 5 for one in record["responses"])
    assert "responses were cut at the maximum of 5 tokens" in result.stderr
    shown = folder("show", "tiny_loudness")
    assert "responses  at most 5 tokens, sampled with seed 2" in shown.stdout
    assert f"positive response 2  {record['responses'][2]['text']!r}" in shown.stdout
    assert f"negative response 2  {record['negative_responses'][2]['text']!r}" in shown.stdout
    assert "response 3" not in shown.stdout
    assert widest(shown.stdout) <= 80
    other = folder(*command, "--seed", "3", "--json", "--output", "other", *extra)
    assert json.loads(other.stdout)["responses"] != record["responses"]


def test_given_responses(folder: Program, tiny_folder: object) -> None:
    result = folder("capture", "--model", str(tiny_folder), "--pairs", "given.jsonl", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert [one["text"] for one in record["negative_responses"]] == [row["negative_response"] for row in ROWS]
    assert "responses  given with the prompts" in folder("show", "tiny_given").stdout


def test_prompts_of_the_command_line(folder: Program, tiny_folder: object) -> None:
    result = folder(
        *("capture", "--model", str(tiny_folder), "--prompt", "w5 w6", "--respond", "4", "--sample", "--seed", "1"),
        *("--positions", "response:all", "--json"),
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["provenance"]["responses"]["seed"] == 1
    assert "negative_responses" not in record
    shown = folder("show", "tiny_prompt")
    assert f"response 0  {record['responses'][0]['text']!r}" in shown.stdout


def test_a_dry_run_counts_the_longest_responses(folder: Program, tiny_folder: object) -> None:
    command = ("capture", "--model", str(tiny_folder), "--pairs", "bare.jsonl", "--dry-run", "--timed", "--json")
    told = json.loads(folder(*command, "--respond", "7").stdout)
    assert (told["prompts"], told["tokens"]) == (18, 18 * 2 + 18 * 7)
    assert told["seconds"] > 0
    assert not (folder.folder / "activations").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pairs", "bare.jsonl", "--positions", "response"), "need responses, and the prompts have none. Next: add"),
        (("--pairs", "given.jsonl", "--respond", "5"), "the prompts already have responses"),
        (("--pairs", "bare.jsonl", "--sample"), "sampling applies only to responses of the model"),
        (("--pairs", "bare.jsonl", "--respond", "5", "--seed", "1"), "--seed without --concept would change nothing"),
        (("--pairs", "bare.jsonl", "--positions", "response:first"), "cannot be parsed"),
    ],
)
def test_refused_before_the_model_is_loaded(folder: Program, options: tuple[str, ...], said: str) -> None:
    result = folder("capture", "--model", "nowhere/at-all", *options)
    assert_failed(result, 2)
    assert said in " ".join(result.stderr.split())


def interrupt(program: Program, monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """Run a capture in shards until its second shard."""
    original, ran = capture_stacked, iter(range(9))

    def killed(*given: Any, **named: Any) -> Any:
        if next(ran) == 1:
            raise KeyboardInterrupt
        return original(*given, **named)

    with monkeypatch.context() as during:
        during.setattr(shard_run, "capture_stacked", killed)
        result = program(*command)
    assert result.returncode == 130, result.stderr
    assert "1 of 6 shards are saved" in result.stderr


@pytest.mark.parametrize(
    ("started", "changed", "said", "advice"),
    [
        (
            "--respond 4",
            "--respond 6",
            "the maximum number of tokens of a response was 4, is now 6",
            "with --respond 4",
        ),
        (
            "--respond 4",
            "--respond 4 --sample",
            "sampling of responses was off, is now on",
            "without --sample",
        ),
        (
            "--respond 4 --sample --seed 3",
            "--respond 4 --seed 3",
            "sampling of responses was on, is now off",
            "with --sample --seed 3",
        ),
        (
            "--respond 4",
            "",
            "positions was response, is now last; the source of responses was the model, is now none; the maximum"
            " number of tokens of a response was 4, is now none",
            "with --positions response --respond 4",
        ),
        (
            "",
            "--respond 4 --positions last",
            "the source of responses was none, is now the model; the maximum number of tokens of a response was none,"
            " is now 4",
            "without --respond",
        ),
        (
            "--respond 4 --sample --seed 3",
            "--seed 3",
            "positions was response, is now last; the source of responses was the model, is now none; the maximum"
            " number of tokens of a response was 4, is now none",
            "with --positions response --respond 4 --sample --seed 3",
        ),
        (
            "",
            "--respond 4 --sample --positions last",
            "the source of responses was none, is now the model; the maximum number of tokens of a response was none,"
            " is now 4",
            "without --respond and --sample",
        ),
        (
            "--respond 4 --max-samples 12",
            "--respond 4 --max-samples 20",
            "the number of prompts was 24, is now 40",
            "with --max-samples 12",
        ),
    ],
    ids=["tokens", "sampled", "greedy", "none", "some", "none sampled", "some sampled", "pairs"],
)
def test_what_differs_and_how_to_resume(
    folder: Program,
    tiny_folder: object,
    monkeypatch: pytest.MonkeyPatch,
    started: str,
    changed: str,
    said: str,
    advice: str,
) -> None:
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", {"": 8, "--respond 4 --max-samples 12": 32}.get(started, 64))
    command = ("capture", "--model", str(tiny_folder), "--concept", "loudness.toml", "--shards", "--output", "mine")
    interrupt(folder, monkeypatch, *command, *started.split())
    result = folder(*command, *changed.split())
    assert result.returncode == 5
    told = " ".join(result.stderr.split())
    assert f"the unfinished capture 'mine' was started with different settings: {said}. Expected" in told
    assert f"Next: resume {advice}, choose another name with --output, or replace it with --force." in told
    assert folder(*command, *started.split()).returncode == 0
