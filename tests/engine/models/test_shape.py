"""The shape of a model from its config alone is that of the loaded model."""

from pathlib import Path

import pytest

from engine.errors import RequestError
from engine.models.shape import find_shape
from tests.conftest import Loaded, family_called
from tests.families import build


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "opt", "longcat_flash"])
def test_the_shape_is_that_of_the_loaded_model(tmp_path: Path, name: str) -> None:
    model = build(family_called(name))
    model.config.save_pretrained(tmp_path)
    assert find_shape(str(tmp_path))[2:] == find_shape(model)[2:]
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_a_packaged_gguf_has_a_shape(smollm2: Loaded) -> None:
    assert find_shape("smollm2") == ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", 30, 576)
    assert find_shape(smollm2.model)[2:] == (30, 576)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(RequestError, match="did you mean 'smollm2'"):
        find_shape("smolm2")
