"""What goes into shards by itself: states that would take more memory than anyone should be surprised by."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.cli import capture_work
from engine.cli.capture_work import too_large
from engine.cli.console import Narrator
from engine.store.stream import contrast_bytes
from tests.engine.cli.conftest import Program, assert_failed

PAIRS = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w7 w{20 + i}", "topic": f"w{20 + i}"} for i in range(9)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    return path


@pytest.mark.parametrize("positions", ["all", "last", "mean"])
def test_the_bytes_are_those_of_the_states(
    positions: str, pairs: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama,
        tiny_tokenizer,
        [pair["positive"] for pair in PAIRS],
        [pair["negative"] for pair in PAIRS],
        layers=[1, 3],
        positions=positions,
    )
    states = [rows for prompt in data["positive"] + data["negative"] for rows in prompt["activations"].values()]
    told = contrast_bytes(tiny_llama, tiny_tokenizer, pairs, [1, 3], positions=positions)
    assert told == sum(rows.nbytes for rows in states)


def test_it_is_said_and_done_above_a_limit(
    pairs: Path,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = contrast_bytes(tiny_llama, tiny_tokenizer, pairs, positions="all")
    for limit, large in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(capture_work, "_MOST_IN_MEMORY", limit)
        assert too_large(Narrator(quiet=False), tiny_llama, tiny_tokenizer, pairs, {"positions": "all"}) is large
    assert "GB of states: into shards" in capsys.readouterr().err


def test_pairs_and_concepts_go_into_shards_when_told(layerscope: Program, tiny_folder: Path) -> None:
    rows = "\n".join(map(json.dumps, PAIRS))
    (layerscope.folder / "mine.jsonl").write_text(rows)
    command = ("capture", "--model", str(tiny_folder), "--positions", "last", "--quiet")
    for what, name in (
        (("--pairs", "mine.jsonl"), "tiny_mine"),
        (("--concept", "honesty", "-n", "20"), "tiny_honesty"),
    ):
        whole = layerscope(*command, *what, "--output", f"whole/{name}", "--json")
        parts = layerscope(*command, *what, "--shards", "--json")
        assert parts.returncode == 0, parts.stderr
        assert (layerscope.folder / "activations" / name / "plan.json").exists()
        one, other = json.loads(whole.stdout), json.loads(parts.stdout)
        assert [row["layer"] for row in one["ranking"]["layers"]] == [
            row["layer"] for row in other["ranking"]["layers"]
        ]
        assert one["confounds"] == other["confounds"]
        ranked = layerscope("rank", name)
        assert ranked.returncode == 0, ranked.stderr
        shown = layerscope("visualize", f"activations/{name}", "--layer", "2", "--no-plot")
        assert "point the wrong way" in shown.stdout


def test_prompts_given_one_by_one_do_not(layerscope: Program) -> None:
    assert_failed(layerscope("capture", "--prompt", "hello", "--shards"), 2)
    (layerscope.folder / "bad.jsonl").write_text('{"positive": "w5"}\n')
    assert_failed(layerscope("capture", "--pairs", "bad.jsonl", "--shards"), 2)
