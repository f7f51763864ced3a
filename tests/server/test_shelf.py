"""Models that stay loaded: which, how large, and which goes first."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import engine
from engine.errors import RequestError
from engine.models.placement import LoadOptions
from server.settings import ServerSettings
from server.shelf import ModelShelf


def test_a_model_is_loaded_once_whatever_it_is_called(settings: ServerSettings, tiny_folder: Path) -> None:
    shelf = ModelShelf(settings)
    by_name = shelf.get("tiny")
    assert shelf.get(str(tiny_folder)) is by_name
    assert [model.name for model in shelf.loaded()] == ["tiny"]
    files = sum(path.stat().st_size for path in tiny_folder.glob("*.safetensors"))
    assert by_name.bytes == pytest.approx(files, rel=0.1)
    assert by_name.config.num_layers == 4


def test_the_least_recently_used_model_makes_room(settings: ServerSettings) -> None:
    shelf = ModelShelf(settings)
    tiny, slow = shelf.get("tiny"), shelf.get("slow")
    assert shelf.get("tiny") is tiny
    assert [model.name for model in shelf.loaded()] == ["slow", "tiny"]
    tight = ModelShelf(replace(settings, memory_bytes=slow.bytes))
    tight.get("tiny")
    tight.get("slow")
    assert [model.name for model in tight.loaded()] == ["slow"]


def test_a_model_larger_than_the_budget_is_loaded_all_the_same(settings: ServerSettings) -> None:
    shelf = ModelShelf(replace(settings, memory_bytes=1))
    assert shelf.get("slow").bytes > 1
    assert [model.name for model in shelf.loaded()] == ["slow"]


def test_a_model_lies_where_the_server_was_told(settings: ServerSettings) -> None:
    whole = ModelShelf(settings).get("tiny")
    spread = ModelShelf(replace(settings, load_options=LoadOptions("auto", "auto", {"cpu": 0}))).get("tiny")
    assert spread.bytes < 0.1 * whole.bytes  # what lies on the disk is not in memory
    one, other = (engine.capture_activations(at.model, at.tokenizer, "w5 w6 w7") for at in (whole, spread))
    assert all(torch.equal(one["activations"][layer], other["activations"][layer]) for layer in range(4))


def test_a_model_has_the_dtype_that_the_server_was_told(settings: ServerSettings) -> None:
    shelf = ModelShelf(replace(settings, load_options=LoadOptions("bfloat16")))
    assert shelf.get("tiny").model.dtype == torch.bfloat16


def test_a_model_that_was_let_go_can_be_used_to_the_end_by_who_has_it(settings: ServerSettings) -> None:
    shelf = ModelShelf(settings)
    held = shelf.get("tiny")
    shelf.unload("tiny")
    assert shelf.loaded() == []
    with torch.no_grad():
        assert held.model(torch.tensor([[5, 6]])).logits.shape[:2] == (1, 2)
    assert shelf.get("tiny") is not held


@pytest.mark.parametrize("name", ["tiny", "smollm2", "", "/etc"])
def test_what_is_not_loaded_cannot_be_let_go(settings: ServerSettings, name: str) -> None:
    with pytest.raises(RequestError, match="is not loaded"):
        ModelShelf(settings).unload(name)


def test_a_model_that_is_not_allowed_is_not_loaded(settings: ServerSettings) -> None:
    shelf = ModelShelf(settings)
    with pytest.raises(RequestError, match="does not load the model 'smollm2'"):
        shelf.get("smollm2")
    assert shelf.loaded() == []
