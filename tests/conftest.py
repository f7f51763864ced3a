"""Shared fixtures: the real default model, its captures, and a tiny offline tokenizer."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock

# Both are read once, at import. Torch's threads spin while they wait, so they slow each other down on shared cores.
# Child processes use one thread too, and captures made here must be bit-identical to theirs.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import engine
from engine.records.captures import ContrastData
from engine.records.models import ModelConfig
from tests.families import FAMILIES, VOCAB, Family, build
from tests.program import Program, Result, Run


class Loaded(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Trained(NamedTuple):
    """A checkpoint, its description, and a contrast captured from it."""

    folder: Path
    config: ModelConfig
    data: ContrastData


@pytest.fixture(scope="session")
def smollm2_config() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]:
    """The real default model, loaded as a user would."""
    model, tokenizer, config = engine.load_model_and_tokenizer("smollm2")
    return model, tokenizer, config


@pytest.fixture(scope="session")
def smollm2(smollm2_config: tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]) -> Loaded:
    """The real default model with its tokenizer."""
    return Loaded(smollm2_config[0], smollm2_config[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that share the long captures first, so that workers finish at about the same time."""
    items.sort(key=lambda item: "captured" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Captures of concepts, as in `make demo`, made once for all workers; copy them instead of changing them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def capture(concept: str) -> Run:
        path = folder / "captured" / concept
        path.mkdir(parents=True, exist_ok=True)
        said = path / "said.json"
        with FileLock(path / "lock"):
            if not said.exists():
                made = Program(path).script("capture", "--concept", concept)
                said.write_text(json.dumps(vars(made)))
        return Run(Result(**json.loads(said.read_text())), path / "activations" / f"smollm2_{concept}")

    return capture


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A base model's tokenizer: words "w3" to "w127" are tokens 3 to 127; no chat template or special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106 - a token of text, not a secret
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> list[Path]:
    """Two llamas of different weights in folders of the same name, "checkpoint-500"."""
    folders = []
    for scale in (1.0, 0.5):
        model = build(family_called("llama"))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(scale)
        folders.append(tmp_path_factory.mktemp("run") / "checkpoint-500")
        model.save_pretrained(folders[-1])
        tiny_tokenizer.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="session")
def trained(checkpoints: list[Path]) -> list[Trained]:
    """The two checkpoints, loaded, each with a contrast captured from it."""
    positive, negative = ([f"{side} w{number}" for number in range(20, 44)] for side in ("w5 w9", "w6 w8"))
    found = []
    for folder in checkpoints:
        model, tokenizer, config = engine.load_model_and_tokenizer(str(folder))
        data = engine.capture_contrastive_activations(model, tokenizer, positive, negative, positions="last")
        found.append(Trained(folder, config, data))
    return found


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """A fresh tiny llama with four blocks of width 32; tests may modify it."""
    return build(family_called("llama"))


def family_called(name: str) -> Family:
    """Look up a family by name."""
    return next(family for family in FAMILIES if family.name == name)


def framework_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Disguise a hook as one of transformers' own, so that the model counts as unaltered."""
    hook.__module__ = "transformers"
    return hook


@pytest.fixture(autouse=True)
def _own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep tests off the user's configuration and the network."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
