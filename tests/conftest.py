"""What tests share: the real default model, its captures, and a tiny offline tokenizer for tiny models."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

# Both are read once, at import. Torch's threads wait by spinning, and take from each other what they wait for; and the
# bits of a capture in this process are compared with those of children, which have one thread too.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import engine
from engine.records.models import ModelConfig
from tests.families import FAMILIES, VOCAB, Family, build
from tests.program import Program, Result, Run


class Loaded(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def smollm2_config() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]:
    """The real default model, as a user loads it."""
    model, tokenizer, config = engine.load_model_and_tokenizer("smollm2")
    return model, tokenizer, config


@pytest.fixture(scope="session")
def smollm2(smollm2_config: tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]) -> Loaded:
    """The real default model with its tokenizer."""
    return Loaded(smollm2_config[0], smollm2_config[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what shares the long captures first, on one worker: the other neither waits for them nor ends before it."""
    items.sort(key=lambda item: "captured" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Captures of concepts as `make demo` makes them, each made once for all workers; to be copied, not changed."""
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
    """Words "w3" to "w127" are tokens 3 to 127; no chat template, no special tokens added: a base model's tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))  # noqa: S106 - a token of text, not a secret
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """A fresh tiny llama of four blocks and width 32: tests may do to it what they like."""
    return build(family_called("llama"))


def family_called(name: str) -> Family:
    """A family by its name."""
    return next(family for family in FAMILIES if family.name == name)


def framework_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that passes for one of the library's own, so that a model with it counts as unaltered."""
    hook.__module__ = "transformers"
    return hook


@pytest.fixture(autouse=True)
def _own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads the configuration of whoever runs it, or touches the network."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
