"""`layerscope calibrate`: strengths under a bound of damage."""

import json
from pathlib import Path

import pytest

import engine
from engine.store.read import load_contrast
from tests.engine.cli.conftest import widest
from tests.program import Program

PROMPTS = "w20 w21\nw22 w23\nw30 w31 w32\nw5 w6\nw70\n"


@pytest.fixture
def prompts(layerscope: Program) -> str:
    (layerscope.folder / "neutral.txt").write_text(PROMPTS)
    return "neutral.txt"


def test_json_is_what_the_engine_returns(layerscope: Program, contrasts: Path, tiny_folder: Path, prompts: str) -> None:
    how = ("--prompts", prompts, "--layers", "1-2", "--bound", "0.05", "--max-new-tokens", "3")
    result = layerscope("calibrate", "loudness", *how, "--model", str(tiny_folder), "--json")
    assert result.returncode == 0, result.stderr
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    directions = engine.extract_directions(load_contrast(contrasts / "loudness"))
    chosen = {layer: directions[layer] for layer in (1, 2)}
    lines = PROMPTS.splitlines()
    expected = engine.calibrate_strength(model, tokenizer, chosen, lines, bound=0.05, max_new_tokens=3)
    shown = json.loads(result.stdout)
    assert [row["layer"] for row in shown] == [1, 2]
    for row, other in zip(shown, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3)


def test_the_table_fits_80_columns(layerscope: Program, contrasts: Path, tiny_folder: Path, prompts: str) -> None:
    del contrasts
    how = ("--prompts", prompts, "--layers", "all", "--max-new-tokens", "2", "--model", str(tiny_folder))
    result = layerscope("calibrate", "loudness", *how, COLUMNS="80")
    assert widest(result.stdout) <= 80
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["layer", "strength", "95%", "interval", "KL", "perplexity"]
    assert [line[0] for line in lines[1:-1]] == ["0", "1", "2", "3"]
    assert result.stdout.splitlines()[-1].startswith("5 neutral prompts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loudness", "--damage", "taste"], "--damage cannot be 'taste'"),
        (["loudness", "--bound", "0", "--model", "TINY", "--prompts", "neutral.txt"], "the bound cannot be 0"),
        (["loudness", "--model", "TINY"], "2 neutral prompts are too few"),
        (["prompt"], "it has no positive and negative class"),
        (["nothing"], "nothing"),
    ],
    ids=["measure", "bound", "topics", "prompt", "name"],
)
def test_refusals_say_what_is_wrong(
    layerscope: Program, contrasts: Path, tiny_folder: Path, prompts: str, arguments: list[str], message: str
) -> None:
    del contrasts, prompts
    named = [str(tiny_folder) if argument == "TINY" else argument for argument in arguments]
    result = layerscope("calibrate", *named)
    assert result.returncode != 0
    assert message in result.stderr
