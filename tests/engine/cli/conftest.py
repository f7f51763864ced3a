"""Run the program in an empty folder; shared captures are made once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts.catalog import load_concept
from engine.records.files import CaptureRecord
from engine.store import neighbours, specificity
from engine.store.record import encode_record
from tests.conftest import family_called
from tests.families import Family, build
from tests.program import Program, Result, Run

CONCEPTS = ("loudness", "warmth", "calm")
# A concept in the vocabulary of the tiny tokenizer: six personas, two templates, two topics.
_CONCEPT = """
name = "{name}"
description = "Made up."
positive = "more"
negative = "less"
topics = ["w20 w21", "w22 w23"]

[[templates]]
name = "plain"
user = "{{persona}} {{topic}}"

[[templates]]
name = "other"
user = "w50 {{persona}} w51 {{topic}}"
"""
_PERSONA = """
[[personas]]
name = "voice {number}"
positive = "w{positive} w9"
negative = "w{negative} w8"
"""


@pytest.fixture
def layerscope(tmp_path: Path) -> Program:
    """The program in an empty folder."""
    return Program(tmp_path)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny llama as `save_pretrained` writes it; its name is "tiny"."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build(family_called("llama")).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Another model of the same width, of two blocks; its name is "small"."""
    folder = tmp_path_factory.mktemp("models") / "small"
    config = family_called("llama").config()
    config.num_hidden_layers = 2
    build(Family("small", lambda: config)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def contrast_store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, small_folder: Path) -> Path:
    """Captures of tiny models, made in this process; tests must not change them.

    With "tiny", 24 pairs at the last token: `loudness` and `warmth`; `loudness_all` with all tokens, `loudness_few` of
    five pairs, `loudness_low` and `loudness_high` with different layers, and `prompt`. With "small": `small_loudness`
    and `small_calm`.
    """
    store = tmp_path_factory.mktemp("contrasts") / "activations"
    tiny, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    small, _, _ = engine.load_model_and_tokenizer(str(small_folder))
    concepts = {}
    for name in CONCEPTS:
        concepts[name] = store.parent / f"{name}.toml"
        concepts[name].write_text(concept_text(name))

    def capture(model: PreTrainedModel, concept: str, name: str, positions: str = "last", **options: Any) -> None:
        data = engine.capture_from_concept(model, tokenizer, concepts[concept], positions=positions, **options)
        engine.save_activations(data, name, store=store)

    capture(tiny, "loudness", "loudness")
    capture(tiny, "warmth", "warmth")
    capture(tiny, "loudness", "loudness_all", positions="all")
    capture(tiny, "loudness", "loudness_few", max_samples=5)
    capture(tiny, "loudness", "loudness_low", layers=[0, 1])
    capture(tiny, "loudness", "loudness_high", layers=[2, 3])
    capture(small, "loudness", "small_loudness")
    capture(small, "calm", "small_calm")
    engine.save_activations(engine.capture_activations(tiny, tokenizer, "w5 w6"), "prompt", store=store)
    return store


@pytest.fixture
def contrasts(layerscope: Program, contrast_store: Path) -> Path:
    """These captures in the default store of the folder that `layerscope` runs in."""
    folder = layerscope.folder / "activations"
    shutil.copytree(contrast_store, folder)
    return folder


@pytest.fixture
def tiny_neighbours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Warmth and calm, in the words of the tiny tokenizer, are the built-in neighbours; where they are kept."""
    concepts = []
    for name in ("warmth", "calm"):
        path = tmp_path / f"{name}.toml"
        path.write_text(concept_text(name))
        concepts.append(load_concept(path))
    monkeypatch.setattr(specificity, "built_in_neighbours", lambda: concepts)
    monkeypatch.setattr(neighbours, "neighbours_path", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def concept_text(name: str) -> str:
    """A concept file; each concept has its own words."""
    first = 60 + 12 * CONCEPTS.index(name)
    personas = (
        _PERSONA.format(number=number, positive=first + number, negative=first + 6 + number) for number in range(6)
    )
    return _CONCEPT.format(name=name) + "".join(personas)


@pytest.fixture(scope="session")
def prompt_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The how-to's first command."""
    folder = tmp_path_factory.mktemp("prompt")
    result = Program(folder)("capture", "--model", "smollm2", "--prompt", "Tell me a story")
    return Run(result, folder / "activations" / "smollm2_prompt")


@pytest.fixture(scope="session")
def concept_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The how-to's second command, with fewer pairs."""
    folder = tmp_path_factory.mktemp("concept")
    result = Program(folder)("capture", "--model", "smollm2", "--concept", "honesty", "--max-samples", "2")
    return Run(result, folder / "activations" / "smollm2_honesty")


@pytest.fixture(scope="session")
def ranked_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Enough pairs for a ranking, at three layers."""
    folder = tmp_path_factory.mktemp("ranked")
    how = ("--max-samples", "12", "--positions", "last", "--layers", "4,16,29", "--output", "activations/ranked")
    return Run(Program(folder)("capture", "--concept", "formality", *how), folder / "activations" / "ranked")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Run:
    """A capture of several prompts with another model, from a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    result = Program(folder)("capture", "--model", str(tiny_folder), "--prompt", "w5 w6 w7", "--prompt", "w8")
    return Run(result, folder / "activations" / "tiny_prompt")


@pytest.fixture
def store(layerscope: Program, prompt_run: Run, concept_run: Run, tiny_run: Run) -> Path:
    """The default store in the folder that `layerscope` runs in, with three captures."""
    folder = layerscope.folder / "activations"
    for run in (prompt_run, concept_run, tiny_run):
        shutil.copytree(run.path.parent, folder, dirs_exist_ok=True)
    return folder


def save_record(record: CaptureRecord, store: Path) -> CaptureRecord:
    """Save a made-up record, with tensors that no command may read."""
    store.mkdir(exist_ok=True)
    (store / f"{record['name']}.json").write_bytes(encode_record(record))
    (store / f"{record['name']}.pt").write_bytes(b"x" * record["data"]["bytes"])
    return record


def assert_failed(result: Result, exit_code: int) -> None:
    """Check that the program ended with a user error: empty stdout, no traceback, this exit code."""
    assert (result.returncode, result.stdout) == (exit_code, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())
