"""Saving is atomic: the how-to's dictionaries in the .pt, everything else in the .json."""

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import RequestError, StoreError
from engine.records.captures import ActivationData, ContrastData, Factors
from engine.remedies import Remedy
from engine.store.catalog import show_capture
from engine.store.write import write_atomically
from tests.engine.cli.conftest import concept_text

PROMPT_KEYS = {"activations", "input_ids", "tokens", "prompt", "num_layers", "captured_layers"}


def test_the_pt_of_a_prompt_is_the_how_tos_dictionary(prompt_data: ActivationData, tmp_path: Path) -> None:
    engine.save_activations(prompt_data, "mine", store=tmp_path)
    loaded = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert set(loaded) == PROMPT_KEYS
    assert all(torch.equal(loaded["activations"][i], prompt_data["activations"][i]) for i in range(4))


def test_the_pt_of_a_contrast_is_the_how_tos_dictionary(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    loaded = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert set(loaded) == {"positive", "negative", "num_pairs", "concept", "layers"}
    assert all(set(prompt) == PROMPT_KEYS for prompt in [*loaded["positive"], *loaded["negative"]])


def test_the_json_holds_provenance_factors_and_statistics(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    record = json.loads((tmp_path / "mine.json").read_text())
    assert record["schema"] == 3
    assert record["prompts"] == ["w5 w9", "w6 w9"]
    assert record["negative_prompts"] == ["w15 w9", "w16 w9"]
    assert [factors["persona"] for factors in record["factors"]] == ["one", "two"]
    assert record["data"]["bytes"] == (tmp_path / "mine.pt").stat().st_size
    provenance = record["provenance"]
    assert {"model", "revision", "source", "dtype", "device", "attention", "chat_template", "versions"} <= set(
        provenance
    )
    assert (provenance["site"], provenance["positions"]) == ("resid_post", "last")
    assert provenance["receipt"]["num_layers"] == 4
    means = [
        torch.cat([prompt["activations"][2][:, -1] for prompt in contrast_data[side]]).double().mean(0)
        for side in ("positive", "negative")
    ]
    assert record["statistics"][2]["diff_norm"] == pytest.approx(float((means[0] - means[1]).norm()))


def test_the_json_holds_the_ranking_and_the_confounds(ranked_data: ContrastData, tmp_path: Path) -> None:
    paths = engine.save_activations(ranked_data, "mine", store=tmp_path)
    record = json.loads(paths.record.read_text())
    assert record["ranking"] == engine.rank_layers(ranked_data)
    assert {layer["layer"] for layer in record["ranking"]["layers"]} == {0, 1, 2, 3}
    assert record["unranked"] == ""
    assert record["confounds"] == engine.find_confounds(ranked_data, record["ranking"])
    assert record["confounds"]["checks"]


def test_the_ranking_equals_that_of_the_loaded_tensors(ranked_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(ranked_data, "mine", store=tmp_path)
    loaded = engine.load_activations("mine", store=tmp_path)
    assert "positive" in loaded
    assert engine.rank_layers(loaded) == show_capture("mine", store=tmp_path)["ranking"]


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [(2, "2 pairs are too few to rank layers"), (4, "the pairs have too few personas, templates and topics")],
)
def test_a_contrast_that_cannot_be_ranked_is_saved_with_the_reason(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, pairs: int, reason: str
) -> None:
    factors = [Factors(template="t", persona="p", topic="w9")] * pairs
    texts = [f"w{5 + i} w9" for i in range(pairs)]
    others = [f"w30 {text}" for text in texts]
    data = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, texts, others, factors=factors)
    engine.save_activations(data, "mine", store=tmp_path)
    record = show_capture("mine", store=tmp_path)
    assert record["ranking"] is None
    assert record["unranked"].startswith(reason)
    assert record["confounds"] == {"checks": [], "warnings": []}
    assert len(record["statistics"]) == 4


def test_a_prompt_has_nothing_to_rank(prompt_data: ActivationData, tmp_path: Path) -> None:
    engine.save_activations(prompt_data, "mine", store=tmp_path)
    record = show_capture("mine", store=tmp_path)
    assert (record["ranking"], record["unranked"], record["confounds"]) == (None, "", None)


def test_a_path_is_used_as_given(prompt_data: ActivationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine.save_activations(prompt_data, "my_activations")
    engine.save_activations(prompt_data, "runs/first.pt")
    assert sorted(str(path) for path in Path().rglob("*.*")) == [
        *("my_activations.json", "my_activations.pt", "runs/first.json", "runs/first.pt"),
    ]


def test_an_existing_capture_is_replaced_only_on_request(
    prompt_data: ActivationData, contrast_data: ContrastData, tmp_path: Path
) -> None:
    engine.save_activations(prompt_data, "mine", store=tmp_path)
    with pytest.raises(StoreError, match=r"already a capture called mine.*force=True"):
        engine.save_activations(contrast_data, "mine", store=tmp_path)
    assert "prompt" in engine.load_activations("mine", store=tmp_path)
    engine.save_activations(contrast_data, "mine", store=tmp_path, force=True)
    assert "positive" in engine.load_activations("mine", store=tmp_path)


@pytest.mark.parametrize("given", [None, 3, "mine", {}])
def test_what_is_no_capture_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="this is not a capture but"):
        engine.save_activations(given, "mine", store=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_states_that_are_not_finite_are_refused_and_the_earlier_capture_stays(
    contrast_data: ContrastData, tmp_path: Path
) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    changed = copy.deepcopy(contrast_data)
    changed["positive"][1]["activations"][changed["layers"][0]][0, -1, 3] = torch.nan
    with pytest.raises(StoreError, match="states that are not finite at layer"):
        engine.save_activations(changed, "mine", store=tmp_path, force=True)
    assert engine.verify_capture("mine", store=tmp_path).status == "ok"


@pytest.mark.parametrize("name", ["../mine", "a/b", "/tmp/x", "", ".hidden", "..", "a" * 129, "a b", "x\n"])  # noqa: S108
def test_no_name_leaves_the_store(prompt_data: ActivationData, tmp_path: Path, name: str) -> None:
    store = tmp_path / "inside" / "store"
    with pytest.raises(StoreError, match="is not a valid capture name"):
        engine.save_activations(prompt_data, name, store=store)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_out_of_the_store_is_not_followed(prompt_data: ActivationData, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "secret.pt").write_text("not yours")
    (store / "mine.pt").symlink_to(tmp_path / "secret.pt")
    for attempt in (
        lambda: engine.save_activations(prompt_data, "mine", store=store, force=True),
        lambda: engine.load_activations("mine", store=store),
    ):
        with pytest.raises(StoreError, match="link out of the store"):
            attempt()
    assert (tmp_path / "secret.pt").read_text() == "not yours"


def test_a_view_is_saved_without_its_base(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, " ".join(["w5"] * 60))
    data["activations"] = {layer: states[:, -1:] for layer, states in data["activations"].items()}
    engine.save_activations(data, "last", store=tmp_path)
    assert (tmp_path / "last.pt").stat().st_size < 60 * 4 * 32 * 4


def test_a_store_that_cannot_be_written_says_so(prompt_data: ActivationData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file is not a writable folder"):
        engine.save_activations(prompt_data, "mine", store=tmp_path / "file")


SAVE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import torch
import engine

store, moment = sys.argv[1:]
data = engine.load_activations("first", store=store)
data["prompt"] = "second"

def kill_at(count, function):
    calls = []
    def called(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called

name, count = moment.split()
if name == "write":
    torch.save = kill_at(int(count), torch.save)
elif name == "sync":
    os.fsync = kill_at(int(count), os.fsync)
else:
    Path.replace = kill_at(int(count), Path.replace)
engine.save_activations(data, "first", store=store, force=True)
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("replace 2", "no record"),
        *(
            pytest.param(moment, left, marks=pytest.mark.slow)
            for moment, left in (("write 1", "first"), ("sync 1", "first"), ("sync 2", "first"), ("sync 3", "second"))
        ),
    ],
)
def test_a_kill_leaves_the_store_readable(prompt_data: ActivationData, tmp_path: Path, moment: str, left: str) -> None:
    """Kill the save while writing, before, between and after the two renames."""
    engine.save_activations(prompt_data, "first", store=tmp_path)
    engine.save_activations(prompt_data, "other", store=tmp_path)
    child = subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(tmp_path), moment], check=False)
    assert child.returncode == -signal.SIGKILL
    entries = {entry.name: entry for entry in engine.list_captures(tmp_path)}
    assert entries["other"].record is not None
    data = engine.load_activations("first", store=tmp_path)
    assert "activations" in data
    if left == "no record":
        assert "has no record" in entries["first"].problem
        assert (data["prompt"], "provenance" in data) == ("second", False)
    else:
        assert entries["first"].record is not None
        assert data["prompt"] == {"first": "w5 w6 w7", "second": "second"}[left]


def test_a_full_disk_leaves_nothing_behind(prompt_data: ActivationData, tmp_path: Path) -> None:
    """Simulate a full disk by limiting the child to files of 1 kB."""
    engine.save_activations(prompt_data, "first", store=tmp_path)
    program = """
import resource, sys, engine
data = engine.load_activations("first", store=sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    engine.save_activations(data, "second", store=sys.argv[1])
except engine.LayerscopeError as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "nothing was saved" in child.stdout, child.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "first.pt"]


def test_a_disk_that_fills_up_during_a_large_save_is_reported(prompt_data: ActivationData, tmp_path: Path) -> None:
    """Torch hides the OSError behind its own error."""
    engine.save_activations(prompt_data, "first", store=tmp_path)
    program = """
import resource, sys, engine
data = engine.load_activations("first", store=sys.argv[1])
data["activations"] = {layer: states.repeat(1, 1, 20000) for layer, states in data["activations"].items()}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    engine.save_activations(data, "second", store=sys.argv[1])
except engine.LayerscopeError as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "nothing was saved" in child.stdout, child.stderr
    assert "File too large" in child.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "first.pt"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_read_only_folder_needs_another_folder_not_less_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StoreError) as caught:
        write_atomically(tmp_path / "file", b"content")
    assert caught.value.next_step is Remedy.CHOOSE_FOLDER
    assert os.strerror(number) in caught.value.problem


def test_a_file_is_written_completely_and_its_folder_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"first, and longer", b"", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_only_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file.bin"
    write_atomically(path, b"first")
    with monkeypatch.context() as patch:
        patch.setattr(moment, fail)
        with pytest.raises(StoreError, match=r"nothing was saved in .*No space left.*free some disk space"):
            write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_other_errors_leave_nothing_and_keep_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file.bin", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"nothing was saved in .*file"):
        write_atomically(tmp_path / "file" / "inner", b"content")
    assert (tmp_path / "file").read_text() == "mine"


def test_numpy_and_pandas_values_are_saved(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    factors = pd.DataFrame({"persona": ["p", "q"], "template": ["t", "t"], "topic": ["w9", "w9"]})
    how: dict[str, Any] = {
        "site": np.str_("resid_post"),
        "positions": np.int64(-1),
        "batch_size": np.int64(2),
        "layers": np.array([1, 2]),
    }
    data = engine.capture_contrastive_activations(
        tiny_llama,
        tiny_tokenizer,
        pd.Series(["w5 w9", "w6 w9"]),
        np.array(["w15 w9", "w16 w9"]),
        factors=factors.to_dict("records"),
        **how,
    )
    engine.save_activations(data, "mine", store=tmp_path)
    assert torch.load(tmp_path / "mine.pt")["positive"][1]["prompt"] == "w6 w9"
    record = show_capture("mine", store=tmp_path)
    assert (record["captured_layers"], record["factors"]) == ([1, 2], factors.to_dict("records"))
    layer: Any = np.int64(2)
    engine.save_directions({2: engine.extract_direction(data, layer)}, "mine", store=tmp_path, leading=layer)
    assert engine.load_directions("mine", store=tmp_path)[1] == 2


def test_a_concept_sampled_with_numpy_numbers_is_saved(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "loudness.toml").write_text(concept_text("loudness"))
    how: dict[str, Any] = {"max_samples": np.int64(24), "seed": np.int64(1), "model_key": np.str_("mine")}
    data = engine.capture_from_concept(tiny_llama, tiny_tokenizer, tmp_path / "loudness.toml", **how)
    engine.save_activations(data, "one", store=tmp_path)
    engine.capture_contrast_in_shards(
        tiny_llama, tiny_tokenizer, tmp_path / "loudness.toml", "many", store=tmp_path, **how
    )
    for name in ("one", "many"):
        provenance = show_capture(name, store=tmp_path)["provenance"]
        assert provenance is not None
        assert (provenance["seed"], provenance["alias"]) == (1, "mine")
