"""The models that a server may load, and their names."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from mcp import Client

from engine.errors import RequestError, StoreError
from engine.models.registry import user_registry_path
from server.app import LayerscopeServer
from server.settings import ServerSettings, default_memory
from tests.server.conftest import call
from tests.server.test_journey import finished


def test_every_alias_unless_some_are_allowed(tmp_path: Path) -> None:
    settings = ServerSettings(tmp_path)
    assert settings.require_allowed("smollm2")[0] == "smollm2"
    for other in ("owner/name", str(tmp_path), "smollm"):
        with pytest.raises(RequestError, match="does not load"):
            settings.require_allowed(other)
    only = replace(settings, allowed_models=("qwen",))
    assert list(only.models()) == ["qwen"]
    with pytest.raises(RequestError, match="qwen"):
        only.require_allowed("smollm2")


def test_a_folder_goes_by_its_name_and_by_its_path(settings: ServerSettings, tiny_folder: Path) -> None:
    for name in ("tiny", str(tiny_folder)):
        meaning, listing = settings.require_allowed(name)
        assert (meaning, listing.alias, listing.source.local) == (str(tiny_folder), "tiny", True)


@pytest.mark.anyio
async def test_a_model_has_one_name_from_the_list_to_the_reading(app: LayerscopeServer, tiny_folder: Path) -> None:
    """Reading along a direction finds the model again, even if it was given by path."""
    async with Client(app) as client:
        pairs = [{"positive": f"w5 w{n}", "negative": f"w6 w{n}"} for n in range(20, 36)]
        made = await call(client, "capture_contrast", pairs=pairs, model=str(tiny_folder), positions="last")
        made = await finished(client, made)
        assert (made["capture"]["name"], made["capture"]["model"]) == ("tiny_pairs", "tiny")
        read = await finished(client, await call(client, "read_text", name="tiny_pairs", text="w5 w30"))
        assert [token["token"] for token in read["reading"]["tokens"]] == ["w5", "w30"]
        listed = {entry["name"]: entry for entry in (await call(client, "list_models"))["models"]}
        assert (listed["tiny"]["loaded"], listed["tiny"]["layers"], listed["slow"]["loaded"]) == (True, 4, False)
        unloaded = await call(client, "load_model", model="tiny", unload=True)
        assert not unloaded["model"]["loaded"]
        assert (await call(client, "list_models"))["loaded_bytes"] == 0
        assert (await call(client, "list_captures", model="tiny"))["total"] >= 1


def test_the_default_is_half_of_the_memory() -> None:
    assert default_memory() > 1 << 28


def test_settings_that_break_every_call_are_refused_at_start(settings: ServerSettings, tmp_path: Path) -> None:
    settings.require_usable()
    replace(settings, store=tmp_path / "not" / "there" / "yet").require_usable()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RequestError, match="is not a folder"):
        replace(settings, store=file).require_usable()
    shards = tmp_path / "large"
    shards.mkdir()
    (shards / "plan.json").write_text("{}")
    with pytest.raises(RequestError, match=rf"folder of one capture in shards, .* --store {tmp_path}"):
        replace(settings, store=shards).require_usable()
    with pytest.raises(RequestError, match="'smollm2'"):
        replace(settings, allowed_models=("smolm2",)).require_usable()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_a_store_that_the_user_may_not_open_is_refused_at_start(settings: ServerSettings, tmp_path: Path) -> None:
    (tmp_path / "private" / "store").mkdir(parents=True)
    (tmp_path / "private").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root ignores permissions
    try:
        with pytest.raises(StoreError, match=r"store cannot be read: Permission denied.*ask its owner"):
            replace(settings, store=tmp_path / "private" / "store").require_usable()
    finally:
        os.seteuid(user)
        (tmp_path / "private").chmod(stat.S_IRWXU)


def test_different_models_of_one_name_are_refused_at_start(settings: ServerSettings, checkpoints: list[Path]) -> None:
    first, second = map(str, checkpoints)
    for names in ((first, second), ("one/Small-1B", "other/small-1b"), ("one/smollm2", "smollm2")):
        with pytest.raises(RequestError, match=f"two allowed models go by the name .*: {names[0]} and {names[1]}"):
            replace(settings, allowed_models=names).require_usable()
    register("later", second)
    with pytest.raises(RequestError, match=r"Next: give one an alias in .*models.toml, as in \[checkpoint-500-2\]"):
        replace(settings, allowed_models=(first, second)).require_usable()
    apart = replace(settings, allowed_models=(first, "later"))
    apart.require_usable()
    assert apart.require_allowed("later")[1].source.location == str(Path(second).resolve())


def test_a_model_may_be_allowed_twice(
    settings: ServerSettings, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoints[0].parent)
    replace(settings, allowed_models=(str(checkpoints[0]), "checkpoint-500", "./checkpoint-500")).require_usable()


def register(alias: str, folder: str) -> None:
    user_registry_path().parent.mkdir(parents=True, exist_ok=True)
    user_registry_path().write_text(f'[{alias}]\npath = "{folder}"\nlayers = 4\nparameters = "tiny"\n')
