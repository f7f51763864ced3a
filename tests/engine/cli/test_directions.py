"""`layerscope directions` and `layerscope read`: saving directions and reading texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

import engine
from engine.records.files import TokenReading
from engine.store.catalog import show_capture
from engine.store.names import DIRECTIONS
from engine.store.read import load_contrast
from engine.store.record import encode_record
from tests.conftest import Loaded, Trained
from tests.engine.cli.conftest import assert_failed, concept_text, widest
from tests.engine.plots.pictures import svg_words
from tests.program import Program, Result

SWEAR = "I swear that I did not take it"


def parsed(result: Result) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def token_lines(result: Result) -> list[str]:
    """The lines of tokens, which have a scale."""
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if "│" in line or "●" in line]


# layerscope directions


def test_directions_are_saved_next_to_the_capture(layerscope: Program, contrasts: Path) -> None:
    result = layerscope("directions", "loudness")
    assert (result.returncode, result.stdout) == (0, f"activations/loudness{DIRECTIONS}\n")
    data = load_contrast(contrasts / "loudness")
    saved, leading = engine.load_directions(contrasts / "loudness")
    assert leading == engine.rank_layers(data)["layers"][0]["layer"]
    compared = engine.compare_methods(data, leading)
    aurocs = ", ".join(f"{score['method']} {score['auroc']:.3f}" for score in compared["scores"])
    assert result.stderr.splitlines() == [
        f"held-out AUROC at layer {leading}: {aurocs}",
        f"saved 4 directions ({compared['best']}), layers 0 to 3",
    ]
    assert list(saved) == [0, 1, 2, 3]
    for layer, direction in saved.items():
        expected = engine.extract_direction(data, layer, compared["best"])
        assert torch.equal(direction["vector"], expected["vector"])
        assert dict(direction) | {"vector": None} == dict(expected) | {"vector": None, "methods": compared}


@pytest.mark.parametrize("method", ["logistic", "pca", "lda", "mean_diff"])
def test_another_method_under_another_name(layerscope: Program, contrasts: Path, method: str) -> None:
    result = layerscope("directions", "activations/loudness.pt", "--method", method, "--output", "loudness_probe")
    assert (result.returncode, result.stdout) == (0, f"activations/loudness_probe{DIRECTIONS}\n")
    assert result.stderr == f"saved 4 directions ({method}), layers 0 to 3\n"
    saved, _ = engine.load_directions(contrasts / "loudness_probe")
    data = load_contrast(contrasts / "loudness")
    for layer, direction in saved.items():
        assert (direction["method"], direction["concept"]) == (method, "loudness")
        assert "methods" not in direction
        assert torch.equal(direction["vector"], engine.extract_direction(data, layer, method)["vector"])
    assert not (contrasts / f"loudness{DIRECTIONS}").exists()


@pytest.mark.usefixtures("contrasts")
def test_a_path_sets_the_folder(layerscope: Program) -> None:
    result = layerscope("directions", "loudness", "--output", "runs/probe")
    assert result.stdout == f"runs/probe{DIRECTIONS}\n"
    assert engine.load_directions(layerscope.folder / "runs/probe")[0].keys() == {0, 1, 2, 3}


def test_the_name_of_another_capture_is_refused(layerscope: Program, contrasts: Path) -> None:
    before = {path: path.read_bytes() for path in contrasts.iterdir()}
    for output in ("warmth", "activations/warmth"):
        result = layerscope("directions", "loudness", "--output", output, "--force")
        assert_failed(result, 5)
        assert "warmth is the name of a capture, and these directions come from the capture 'loudness'" in result.stderr
        assert "Next: choose another name." in result.stderr
    shutil.copytree(contrasts, layerscope.folder / "copy")
    elsewhere = layerscope("directions", "loudness", "--output", "copy/loudness")
    assert_failed(elsewhere, 5)
    assert "these directions come from the capture of that name in activations" in elsewhere.stderr
    assert {path: path.read_bytes() for path in contrasts.iterdir()} == before


@pytest.mark.parametrize("command", [["read"], ["steer", "--max-new-tokens", "2"]])
def test_directions_that_a_store_has_under_the_name_of_another_capture_are_named(
    layerscope: Program, contrasts: Path, tiny_folder: Path, command: list[str]
) -> None:
    layerscope("directions", "loudness", "--output", "probe")
    how = ("--prompt", "w5", "--model", str(tiny_folder))
    own = layerscope(*command, "probe", *how)
    assert "the directions probe come from the capture 'loudness'\n" in own.stderr
    (contrasts / f"probe{DIRECTIONS}").rename(contrasts / f"warmth{DIRECTIONS}")  # as earlier versions allowed
    said = "the directions saved as warmth come from the capture 'loudness', not from the capture warmth\n"
    for more in ((), ("--quiet",)):
        result = layerscope(*command, "warmth", *how, *more)
        assert result.returncode == 0, result.stderr
        assert f"warning: {said}" in result.stderr


def not_found(store: Path, name: str) -> str:
    """Make a saved contrast one that is not found; returns the warning to expect."""
    record = show_capture(name, store=store)
    assert record["ranking"]
    for row in record["ranking"]["layers"]:
        row["p_value"] = 0.2
    (store / f"{name}.json").write_text(encode_record(record).decode())
    return f"warning: no layer of {name} separates its classes better than chance: its direction may be noise\n"


def test_the_direction_of_a_contrast_that_was_not_found_may_be_noise(
    layerscope: Program, contrasts: Path, tiny_folder: Path
) -> None:
    """It was extracted, read and steered with as if it were there."""
    warning = not_found(contrasts, "loudness")
    how = ("--prompt", "w5", "--model", str(tiny_folder), "--quiet")
    commands = [
        ["read", "loudness", *how],
        ["steer", "loudness", "--max-new-tokens", "2", "--layer", "1", *how],
        ["calibrate", "loudness", "--layers", "1", *how[2:]],
        ["directions", "loudness"],
        ["directions", "loudness", "--output", "probe"],
        ["directions", "loudness", "--format", "npz", "--output", "loudness.npz"],
        ["directions", "probe", "--format", "npz", "--output", "probe.npz"],
        ["read", "probe", *how],
    ]
    for arguments in commands:
        assert layerscope(*arguments).stderr.count(warning) == 1, arguments
    assert "may be noise" not in layerscope("directions", "warmth").stderr


def test_saved_directions_are_replaced_only_on_request(layerscope: Program, contrasts: Path) -> None:
    layerscope("directions", "loudness")
    target = contrasts / f"loudness{DIRECTIONS}"
    before = target.read_bytes()
    refused = layerscope("directions", "loudness", "--method", "pca")
    assert_failed(refused, 5)
    assert f"activations/loudness{DIRECTIONS} already exists" in refused.stderr
    assert "--output" in refused.stderr
    assert "--force" in refused.stderr
    assert target.read_bytes() == before
    assert layerscope("directions", "loudness", "--method", "pca", "--force").returncode == 0
    assert engine.load_directions(contrasts / "loudness")[0][0]["method"] == "pca"


@pytest.mark.usefixtures("contrasts")
def test_directions_are_no_capture(layerscope: Program) -> None:
    before = layerscope("list", "--json").stdout
    assert layerscope("directions", "loudness").returncode == 0
    assert layerscope("list", "--json").stdout == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loudness", "--method", "logistics"], "there is no method 'logistics'. Expected: one of mean_diff, pca, log"),
        (["loudness", "--method", "logistics"], "did you mean 'logistic'?"),
        (["prompt"], "is a capture of prompts"),
    ],
)
def test_a_wrong_argument_ends_with_2(layerscope: Program, contrasts: Path, arguments: list[str], said: str) -> None:
    before = sorted(contrasts.iterdir())
    result = layerscope("directions", *arguments)
    assert_failed(result, 2)
    assert said in result.stderr
    assert sorted(contrasts.iterdir()) == before


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize("arguments", [["nothing"], ["loudness", "--output", "../out of here"]])
def test_a_name_that_cannot_be_used_ends_with_5(layerscope: Program, arguments: list[str]) -> None:
    assert_failed(layerscope("directions", *arguments), 5)
    assert list(layerscope.folder.parent.glob(f"*{DIRECTIONS}")) == []


# layerscope read


@pytest.fixture
def probe(contrasts: Path) -> Path:
    """Directions of loudness, saved in this process with leading layer 2; returns the path without suffix."""
    found = engine.extract_directions(load_contrast(contrasts / "loudness"))
    engine.save_directions(found, contrasts / "probe", leading=2)
    return contrasts / "probe"


def read_here(probe: Path, folder: Path, text: str) -> TokenReading:
    """The expected reading, computed in this process."""
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(folder))
    found, leading = engine.load_directions(probe)
    return engine.read_text(model, tokenizer, found, text, leading=leading)


def test_a_text_is_read_along_saved_directions(layerscope: Program, probe: Path, tiny_folder: Path) -> None:
    result = layerscope("read", "probe", "--prompt", "w5 w60 w9", "--model", str(tiny_folder))
    assert result.returncode == 0, result.stderr
    assert widest(result.stdout) <= 80
    assert result.stdout.startswith("loudness, layer 2, mean_diff")
    values = read_here(probe, tiny_folder, "w5 w60 w9")["values"][2]
    shown = [line.split()[:2] for line in token_lines(result)]
    assert [token for token, _ in shown] == ["w5", "w60", "w9"]
    assert [float(value) for _, value in shown] == pytest.approx(values, abs=0.0051)


@pytest.mark.usefixtures("probe")
def test_a_text_is_read_with_weights_on_disk(layerscope: Program, tiny_folder: Path) -> None:
    command = ("read", "probe", "--prompt", "w5 w60 w9", "--model", str(tiny_folder))
    spread = layerscope(*command, "--device-map", "auto", "--max-memory", "cpu=0")
    assert spread.returncode == 0, spread.stderr
    assert "layers 0-3 on disk" in spread.stderr
    assert spread.stdout == layerscope(*command).stdout


def test_a_text_is_read_in_the_dtype_of_the_capture(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "mine.toml").write_text(concept_text("warmth"))
    capture = ("capture", "--concept", "mine.toml", "--model", str(tiny_folder), "--positions", "last")
    assert layerscope(*capture, "--dtype", "bfloat16", "--output", "half").returncode == 0
    command = ("read", "half", "--store", ".", "--prompt", "w5 w60 w9", "--model", str(tiny_folder))
    assert "in bfloat16" not in " ".join(layerscope(*command).stdout.split())
    other = " ".join(layerscope(*command, "--dtype", "float32").stdout.split())
    assert "differs from that of the directions in dtype: bfloat16 there, float32 here" in other


def test_json_is_what_the_engine_reads(layerscope: Program, probe: Path, tiny_folder: Path) -> None:
    result = layerscope("read", "probe", "--prompt", "w5 w60 w9", "--model", str(tiny_folder), "--json", "--quiet")
    assert result.stderr == ""
    shown, expected = parsed(result), read_here(probe, tiny_folder, "w5 w60 w9")
    for layer, values in expected["values"].items():
        assert shown["values"][str(layer)] == pytest.approx(values, rel=1e-4, abs=1e-4)
    assert shown | {"values": None} == dict(expected) | {"values": None}
    assert (shown["tokens"], shown["layers"], shown["leading"]) == (["w5", "w60", "w9"], [0, 1, 2, 3], 2)


@pytest.mark.usefixtures("contrasts")
def test_a_capture_without_saved_directions_is_read_too(layerscope: Program, tiny_folder: Path) -> None:
    arguments = ("--prompt", "w5 w60", "--model", str(tiny_folder), "--json")
    unsaved = layerscope("read", "loudness", *arguments)
    assert "no saved directions for loudness: extracted from the capture" in unsaved.stderr
    assert layerscope("directions", "loudness").returncode == 0
    saved = layerscope("read", f"activations/loudness{DIRECTIONS}", *arguments)
    assert "no saved directions" not in saved.stderr
    assert parsed(saved) == parsed(unsaved)


@pytest.mark.usefixtures("probe")
def test_the_requested_layer_is_shown_and_a_png_drawn(layerscope: Program, tiny_folder: Path) -> None:
    more = ("--layer", "0", "--output", "figures/tokens.png", "--quiet")
    result = layerscope("read", "probe", "--prompt", "w5 w60 w9", "--model", str(tiny_folder), *more)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("loudness, layer 0, mean_diff")
    assert matplotlib.image.imread(layerscope.folder / "figures/tokens.png").ndim == 3


def test_the_real_model_is_found_by_the_name_it_was_captured_with(layerscope: Program, smollm2: Loaded) -> None:
    contrast = engine.capture_from_concept(
        *smollm2, "honesty", max_samples=8, layers=[10, 20], positions="last", use_hooks=True
    )
    engine.save_activations(contrast, "smollm2_honesty", store=layerscope.folder / "activations")
    result, asked = layerscope.without_network(
        ("read", "smollm2_honesty", "--prompt", SWEAR, "--chat", "--output", "tokens.svg")
    )
    assert (result.returncode, asked) == (0, False), result.stderr
    assert "saved tokens.svg" in result.stderr
    assert widest(result.stdout) <= 80
    assert "I swear that I did not take it" in " ".join(result.stdout.split())
    shown = [line.split()[0] for line in token_lines(result)]
    assert {"<|im_start|>", "swear", "take", "<|im_end|>", "⏎"} <= set(shown)  # the whole chat is read
    words = svg_words(layerscope.folder / "tokens.svg")
    assert {"honesty (mean_diff)", "swear", "10", "20"} <= set(words)
    leading = engine.rank_layers(contrast)["layers"][0]["layer"]
    assert result.stdout.startswith(f"honesty, layer {leading}, mean_diff")


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["probe", "--layer", "9", "--model", "./nowhere.gguf"], "no direction at layer 9. Expected: one of [0, 1, 2"),
        (["probe"], "the model of this capture, tiny, has no alias on this machine. Next: name it with --model"),
        (["probe", "--model", "smolm2"], "did you mean 'smollm2'"),
        (["prompt", "--model", "./nowhere.gguf"], "is a capture of prompts"),
        (["probe", "--max-memory", "1GB"], "--max-memory needs --device-map. Next: add --device-map auto"),
    ],
    ids=["layer", "no model", "unknown model", "prompts", "memory"],
)
def test_invalid_arguments_of_read_end_with_2_before_a_model_is_loaded(
    layerscope: Program, arguments: list[str], said: str
) -> None:
    result = layerscope("read", *arguments, "--prompt", "w5")
    assert_failed(result, 2)
    assert said in result.stderr
    assert "loading" not in result.stderr


@pytest.mark.usefixtures("probe")
def test_directions_of_another_model_are_refused(layerscope: Program, small_folder: Path) -> None:
    result = layerscope("read", "probe", "--prompt", "w5", "--model", str(small_folder))
    assert_failed(result, 2)
    assert "the directions come from tiny (width 32), but the model is small (width 32)" in result.stderr
    assert "capture the contrast with this model" in result.stderr


@pytest.mark.parametrize("name", ["nothing", f"nothing{DIRECTIONS}", f"runs/nothing{DIRECTIONS}", "../nothing"])
@pytest.mark.usefixtures("contrasts")
def test_an_unknown_name_ends_with_5(layerscope: Program, name: str) -> None:
    result = layerscope("read", name, "--prompt", "w5")
    assert_failed(result, 5)
    assert "nothing" in result.stderr


@pytest.mark.parametrize("content", [b"", b"not directions", b"\x08" + b"\x00" * 7 + b'{"a": 1}'])
def test_damaged_directions_end_with_5(layerscope: Program, probe: Path, content: bytes) -> None:
    Path(f"{probe}{DIRECTIONS}").write_bytes(content)
    result = layerscope("read", "probe", "--prompt", "w5")
    assert_failed(result, 5)
    assert f"probe{DIRECTIONS} is damaged" in result.stderr
    assert "--force" in result.stderr


@pytest.mark.usefixtures("probe")
def test_an_empty_text_ends_with_4(layerscope: Program, tiny_folder: Path) -> None:
    result = layerscope("read", "probe", "--prompt", "", "--model", str(tiny_folder))
    assert_failed(result, 4)


@pytest.mark.usefixtures("contrasts")
@pytest.mark.parametrize("command", ["read", "compare", "visualize", "steer"])
def test_a_figure_of_an_unknown_format_is_refused_before_anything_runs(layerscope: Program, command: str) -> None:
    more = {"read": ["--prompt", "w5"], "compare": ["warmth"], "visualize": [], "steer": ["--prompt", "w5", "--sweep"]}
    result = layerscope(command, "loudness", *more[command], "--output", "figure.exe")
    assert_failed(result, 2)
    assert "'figure.exe' has no supported image format. Expected: a name ending in .png, .svg, .pdf" in result.stderr
    assert "loading" not in result.stderr


@pytest.mark.usefixtures("probe")
def test_chat_without_a_chat_template_warns(layerscope: Program, tiny_folder: Path) -> None:
    result = layerscope("read", "probe", "--prompt", "w5 w6", "--model", str(tiny_folder), "--chat")
    assert result.returncode == 0
    assert "no chat template" in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("contrasts")
def test_the_network_is_not_used(layerscope: Program, tiny_folder: Path) -> None:
    result, asked = layerscope.without_network(
        ("directions", "loudness", "--method", "logistic"),
        ("read", "loudness", "--prompt", "w5", "--model", str(tiny_folder), "--output", "tokens.png"),
        ("compare", "loudness", "warmth", "--output", "cosines.png"),
    )
    assert (result.returncode, asked) == (0, False), result.stderr
    assert [(layerscope.folder / name).stat().st_size > 0 for name in ("tokens.png", "cosines.png")] == [True, True]


def test_the_network_guard_works(layerscope: Program) -> None:
    """Without this, the tests above would prove nothing."""
    _, asked = layerscope.without_network(("capture", "--model", "someone/not-here", "--prompt", "x"))
    assert asked


def test_tensors_whose_record_is_gone_have_directions(layerscope: Program, contrasts: Path) -> None:
    shutil.copyfile(contrasts / "loudness.pt", layerscope.folder / "alone.pt")
    result = layerscope("directions", "alone.pt")
    assert (result.returncode, result.stdout) == (0, f"alone{DIRECTIONS}\n")
    refused = layerscope("read", "./alone", "--prompt", "w5")
    assert_failed(refused, 2)
    assert "the capture does not record its model. Next: name it with --model" in refused.stderr


def test_the_folder_of_another_model_is_not_read_with(layerscope: Program, trained: list[Trained]) -> None:
    """The alias of the capture is also the name of a folder here, which has other weights."""
    engine.save_activations(trained[0].data, "first", store=layerscope.folder / "activations")
    for one, said in ((trained[1], "its weights differ. Next: name it with --model"), (trained[0], "")):
        link = layerscope.folder / "checkpoint-500"
        link.unlink(missing_ok=True)
        link.symlink_to(one.folder, target_is_directory=True)
        result = layerscope("read", "first", "--prompt", "w5 w30")
        assert result.returncode == (2 if said else 0), result.stderr
        assert said in result.stderr
    named = layerscope("read", "first", "--prompt", "w5 w30", "--model", str(trained[1].folder))
    assert named.returncode == 0
    assert "the model differs from that of the directions in weights" in " ".join(named.stdout.split())
