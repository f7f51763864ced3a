"""The model that stays loaded: by what it is loaded from, not by its alias."""

import os
import shutil
from pathlib import Path

import pytest

from engine.errors import RequestError
from engine.models.placement import LoadOptions
from engine.models.registry import user_registry_path
from tests.conftest import Trained
from tui.models import ModelCache


def test_a_capture_finds_the_folder_that_it_was_made_from(trained: list[Trained]) -> None:
    models = ModelCache(LoadOptions())
    for one in trained:
        assert models.get(str(one.folder))[2].weights == one.config.weights
    for one in trained:
        assert models.captured(one.data["provenance"])[2].weights == one.config.weights


def test_a_model_of_the_same_name_is_refused(trained: list[Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    of_first, second = trained[0].data["provenance"], trained[1].folder
    models = ModelCache(LoadOptions())
    models.get(str(second))
    with pytest.raises(
        RequestError,
        match=r"no alias on this machine; 'checkpoint-500' is another model\. Next: register .*: \[checkpoint-500\]",
    ):
        models.captured(of_first)
    monkeypatch.chdir(second.parent)  # where the alias is a path
    with pytest.raises(RequestError, match="is not the model of this capture: its weights differ"):
        ModelCache(LoadOptions()).captured(of_first)


def test_an_alias_that_now_means_another_folder_loads_that(trained: list[Trained]) -> None:
    models = ModelCache(LoadOptions())
    for one in trained:
        register("mine", one.folder)
        found = models.get("mine")
        assert found[2].weights == one.config.weights
        assert models.get("mine") is found
    assert models.captured(trained[1].data["provenance"]) is found
    with pytest.raises(RequestError, match="has no alias"):
        models.captured(trained[0].data["provenance"])


def test_a_folder_that_was_saved_again_is_loaded_again(trained: list[Trained], tmp_path: Path) -> None:
    folder, models = tmp_path / "latest", ModelCache(LoadOptions())
    for number, one in enumerate(trained):
        shutil.copytree(one.folder, folder, dirs_exist_ok=True)
        os.utime(folder / "config.json", ns=(0, 2 * 10**18 + number))
        assert models.get(str(folder))[2].weights == one.config.weights


def register(alias: str, folder: Path) -> None:
    user_registry_path().parent.mkdir(parents=True, exist_ok=True)
    user_registry_path().write_text(f'[{alias}]\npath = "{folder}"\nlayers = 4\nparameters = "tiny"\n')
