"""`layerscope steer`: texts with and without steering."""

from pathlib import Path
from typing import Any

import pytest

import engine
from engine.steering import texts
from engine.steering.apply import NotFiniteError
from engine.store.read import load_contrast
from tests.engine.cli.conftest import assert_failed, widest
from tests.engine.cli.test_directions import parsed
from tests.engine.plots.pictures import svg_words
from tests.program import Program

PROMPT = "w5 w60 w9"


def steered_here(store: Path, folder: Path, **options: Any) -> Any:
    """The expected texts, computed in this process."""
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(folder))
    data = load_contrast(store / "loudness")
    layer = options.pop("layer", engine.rank_layers(data)["layers"][0]["layer"])
    directions = engine.extract_directions(data)
    return engine.steer_text(model, tokenizer, directions, PROMPT, layer=layer, data=data, **options)


def test_json_is_what_the_engine_returns(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    more = ("--model", str(tiny_folder), "--max-new-tokens", "5", "--json")
    result = layerscope("steer", "loudness", "--prompt", PROMPT, "--strength", "0.5", "--strength", "-1", *more)
    assert "no saved directions for loudness: the mean differences of the capture are used" in result.stderr
    expected = steered_here(contrasts, tiny_folder, strengths=[0.5, -1.0], max_new_tokens=5)
    shown = parsed(result)
    numbers = ("perplexity", "projection", "shift")
    for one, other in zip(
        (shown["baseline"], *shown["steered"], *shown["controls"]),
        (expected["baseline"], *expected["steered"], *expected["controls"]),
        strict=True,
    ):
        assert one.pop("projections") == pytest.approx(other.pop("projections"), rel=1e-3)
        assert [one.pop(name) for name in numbers] == pytest.approx([other.pop(name) for name in numbers], rel=1e-3)
        assert one == other
    assert len(shown["controls"]) == 2
    assert {key: shown[key] for key in ("layer", "method", "unit", "warnings")} == {
        key: expected[key] for key in ("layer", "method", "unit", "warnings")
    }


def test_the_texts_are_side_by_side_in_80_columns(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    arguments = ("--model", str(tiny_folder), "--raw", "--layer", "1", "--max-new-tokens", "5", "--quiet")
    result = layerscope("steer", "loudness", "-p", PROMPT, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert widest(result.stdout) <= 80
    assert result.stdout.startswith("loudness, layer 1, mean_diff\n")
    expected = steered_here(contrasts, tiny_folder, layer=1, chat=False, max_new_tokens=5)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["baseline", "loudness", "+0.1", "random", "+0.1"] in lines
    values = next(line for line in lines if line[:2] == ["loudness", "+0.1"])
    (text,) = expected["steered"]
    assert float(values[3]) == pytest.approx(text["perplexity"], abs=0.0051)
    assert float(values[4]) == pytest.approx(text["projection"], abs=0.0051)
    assert "warning" not in result.stdout


def test_ablation_with_saved_directions_and_samples(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    assert layerscope("directions", "loudness", "--method", "pca", "--output", "probe").returncode == 0
    arguments = ("--model", str(tiny_folder), "--ablate", "--sample", "--seed", "4", "--max-new-tokens", "5", "--json")
    shown = parsed(layerscope("steer", "probe", "-p", PROMPT, *arguments))
    assert (shown["method"], shown["sampled"], shown["seed"]) == ("pca", True, 4)
    assert [text["kind"] for text in (*shown["steered"], *shown["controls"])] == ["ablated", "control"]
    (contrasts / "loudness.pt").unlink()
    alone = parsed(layerscope("steer", "probe", "-p", PROMPT, *arguments))
    assert alone["controls"] == []
    assert "no control" in " ".join(alone["warnings"])
    assert alone["steered"] == shown["steered"]


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loudness", "--layer", "9"], "no direction at layer 9. Expected: one of [0, 1, 2, 3]"),
        (["loudness", "--unit", "norms"], "--unit cannot be 'norms'. Expected: one of norm, gap, raw"),
        (["loudness", "--tokens", "some"], "--tokens cannot be 'some'"),
        (["loudness", "--ablate", "--strength", "0.1"], "do not apply to --ablate"),
        (["loudness", "--ablate", "--tokens", "prompt"], "do not apply to --ablate"),
        (["loudness", "--sweep", "--layer", "1"], "do not apply to --sweep"),
        (["loudness", "--sweep", "--ablate"], "do not apply to --sweep"),
        (["loudness", "--layers", "1-2"], "--layers are those of a sweep. Next: add --sweep, or choose one layer"),
        (["loudness", "--output", "a.png"], "--output is the figure of a sweep. Next: add --sweep"),
        (["loudness", "--sweep", "-o", "a.txt"], "'a.txt' has no supported image format"),
        (["loudness", "--strength", "much"], "Invalid value for '--strength'"),
        (["loudness", "--max-new-tokens", "0"], "Invalid value for '--max-new-tokens'"),
        (["prompt"], "is a capture of prompts"),
        (["loudness"], "has no alias on this machine. Next: name it with --model"),
    ],
)
def test_invalid_arguments_end_with_2_before_a_model_is_loaded(
    layerscope: Program, arguments: list[str], said: str
) -> None:
    result = layerscope("steer", *arguments, "--prompt", PROMPT)
    assert_failed(result, 2)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert "loading" not in result.stderr


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sweep", "--layers", "1-2"], "float32. Next: steer by less."),
        (["--layer", "1", "--dtype", "float16"], "float16. Next: steer by less, or add --dtype float32"),
    ],
    ids=["sweep", "float16"],
)
def test_a_strength_that_overflows_ends_with_2(
    layerscope: Program, tiny_folder: Path, options: list[str], said: str
) -> None:
    result = layerscope("steer", "loudness", "-p", PROMPT, "--model", str(tiny_folder), *options, "--strength", "1e30")
    assert_failed(result, 2)
    assert f"a strength of 1e+30 at layer 1 overflows in {said}" in result.stderr


@pytest.mark.usefixtures("contrasts")
def test_layers_without_a_direction_are_not_swept(layerscope: Program, tiny_folder: Path) -> None:
    for layers, said in [("3", "there is no direction at the layers 3. Expected: some of [0, 1]"), ("9", "0 to 3")]:
        result = layerscope(
            "steer", "loudness_low", "-p", PROMPT, "--model", str(tiny_folder), "--sweep", "--layers", layers
        )
        assert_failed(result, 2)
        assert said in result.stderr


@pytest.mark.usefixtures("contrasts")
def test_an_unknown_name_ends_with_5_and_an_empty_prompt_with_4(layerscope: Program, tiny_folder: Path) -> None:
    assert_failed(layerscope("steer", "nothing", "-p", PROMPT), 5)
    assert_failed(layerscope("steer", "loudness", "-p", "", "--model", str(tiny_folder)), 4)


def test_the_help_has_examples_and_loads_no_torch(layerscope: Program) -> None:
    result = layerscope("steer", "--help")
    assert "layerscope steer smollm2_honesty --prompt" in result.stdout
    program = "import engine.cli.steer, sys; print('torch' in sys.modules)"
    assert layerscope.python("-c", program, PYTHONPATH=str(Path(engine.__file__).parents[1])).stdout == "False\n"


def test_a_sweep_is_the_same_as_steering_at_each_layer(layerscope: Program, contrasts: Path, tiny_folder: Path) -> None:
    sweep = ("--sweep", "--layers", "1-2", "--strength", "0.5", "--strength", "-1")
    arguments = ("--model", str(tiny_folder), *sweep, "--max-new-tokens", "4")
    swept: Any = parsed(layerscope("steer", "loudness", "-p", PROMPT, *arguments, "--json"))
    assert [one["layer"] for one in swept] == [1, 2]
    for one in swept:
        expected = steered_here(contrasts, tiny_folder, layer=one["layer"], strengths=[0.5, -1.0], max_new_tokens=4)
        for mine, theirs in zip(one["steered"], expected["steered"], strict=True):
            assert mine["text"] == theirs["text"]
            assert mine["shift"] == pytest.approx(theirs["shift"], rel=1e-3, abs=1e-3)
    shown = layerscope("steer", "loudness", "-p", PROMPT, *arguments, "--output", "sweep.svg")
    assert widest(shown.stdout) <= 80
    assert shown.stderr.endswith("saved sweep.svg\n")
    words = svg_words(layerscope.folder / "sweep.svg")
    assert {f"{text['shift']:+.1f}" for one in swept for text in one["steered"] if abs(text["shift"]) > 0.05} <= {
        *words
    }
    (first, _) = swept
    row = next(line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["1"])
    cells = [(f"{text['shift']:+.2f}", f"{text['perplexity']:.2f}") for text in first["steered"]]
    assert row[1:] == [number for cell in cells for number in cell]


@pytest.mark.usefixtures("contrasts")
def test_a_sweep_leaves_out_layers_and_marks_strengths_that_overflow(
    layerscope: Program, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = texts.steer_text

    def overflowing(*given: Any, **named: Any) -> Any:
        if named["layer"] == 1:
            raise NotFiniteError("the predictions are not finite here")
        return write(*given, **named)

    monkeypatch.setattr(texts, "steer_text", overflowing)
    arguments = ("--model", str(tiny_folder), "--sweep", "--layers", "1-2", "--strength", "0.5", "--strength", "1e30")
    shown = layerscope("steer", "loudness", "-p", PROMPT, *arguments, "--max-new-tokens", "4")
    assert shown.returncode == 0, shown.stderr
    assert "no texts at layer 1: the predictions are not finite here" in shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["2"]]
    assert [row[-1] for row in rows] == ["overflow", "overflow"]  # the direction and the control
    assert all(len(row) == 4 for row in rows)
    assert "warning: a strength of 1e+30 at layer 2 overflows in float32" in shown.stdout
