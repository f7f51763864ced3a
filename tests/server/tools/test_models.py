"""Tools for models: list, load and unload."""

from pathlib import Path

import pytest
from mcp import Client

from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from tests.server.conftest import ERAS, call, failed, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("era", ERAS)
async def test_a_model_is_listed_loaded_and_unloaded(app: LayerscopeServer, era: str) -> None:
    async with Client(app, mode=era) as client:
        before = await call(client, "list_models")
        assert [(model["name"], model["loaded"]) for model in before["models"]] == [("tiny", False), ("slow", False)]
        assert (before["loaded_bytes"], before["budget_bytes"]) == (0, 1 << 30)
        assert all(model["here"] for model in before["models"])
        loaded = await finished(client, await call(client, "load_model", model="tiny"))
        assert (loaded["model"]["name"], loaded["model"]["layers"], loaded["model"]["loaded"]) == ("tiny", 4, True)
        during = await call(client, "list_models")
        assert during["loaded_bytes"] > 0
        assert [model["loaded"] for model in during["models"]] == [True, False]
        unloaded = await call(client, "load_model", model="tiny", unload=True)
        assert (unloaded["status"], unloaded["model"]["name"], unloaded["model"]["loaded"]) == ("done", "tiny", False)
        after = await call(client, "list_models")
        assert (after["loaded_bytes"], [model["loaded"] for model in after["models"]]) == (0, [False, False])
        assert "is not loaded" in await refused(client, "load_model", model="tiny", unload=True)


async def test_a_folder_for_compiled_code_that_cannot_be_made_is_for_the_operator(
    app: LayerscopeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    async with Client(app) as client:
        for _ in range(2):
            said = (await failed(client, "load_model", model="tiny"))["error"]
            assert said.startswith("PyTorch cannot make the folder")
            assert "tell the person who runs this server to set TORCHINDUCTOR_CACHE_DIR" in said


async def test_without_allowed_models_every_alias_is_listed() -> None:
    """Only the default model is certainly local; listing downloads nothing."""
    async with Client(build_server(ServerSettings(Path("never-made")))) as client:
        models = {model["name"]: model for model in (await call(client, "list_models"))["models"]}
    assert models["smollm2"]["here"]
    assert models["smollm2"]["layers"] == 30
    assert "qwen" in models
