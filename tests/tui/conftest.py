"""Stores for the tests: made-up records with known screens, and real captures of a tiny model."""

import shutil
from pathlib import Path

import msgspec
import pytest
from transformers import PreTrainedTokenizerFast

import engine
from engine.records.captures import Factors
from engine.records.files import CaptureRecord
from engine.records.results import ClassSummary, WrongPair
from tests.conftest import family_called
from tests.engine.plots.records import contrast_record, prompt_record, ranking_of
from tests.families import build

LAYERS = 30
PAIRS = 12


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three intact captures, newest first (warmth, calm, a prompt), and one whose tensors are missing."""
    folder = tmp_path / "activations"
    put(folder, ranked_record("small_warmth", peak=16, day=4))
    put(folder, ranked_record("small_calm", peak=9, day=3, model="other"))
    put(folder, named(prompt_record(), "some_prompt", day=2))
    put(folder, ranked_record("small_lost", peak=12, day=1))
    (folder / "small_lost.pt").unlink()
    return folder


def ranked_record(name: str, *, peak: int, day: int, model: str = "small") -> CaptureRecord:
    """A contrast of thirty layers whose d' peaks at 2 at one layer, with which its neighbors are tied."""
    scores = [2.0 - 0.1 * abs(layer - peak) for layer in range(LAYERS)]
    record = contrast_record(ranking=ranking_of(scores, tied=(peak - 1, peak + 1)), num_pairs=PAIRS)
    for row in record["statistics"]:
        row["diff_norm"] = 0.5 * (row["layer"] + 1)
    record["prompts"] = [f"Be kind to guest {pair}." for pair in range(PAIRS)]
    record["negative_prompts"] = [f"Be curt to guest {pair}." for pair in range(PAIRS)]
    record["factors"] = [
        Factors(persona=f"guest {pair}", template="plain", topic=f"topic {pair}") for pair in range(PAIRS)
    ]
    record["sides"] = [_sides(layer, wrong=1 + abs(layer - peak) // 8) for layer in range(LAYERS)]
    record["concept"] = name.partition("_")[2]
    if record["provenance"]:
        record["provenance"]["alias"] = model
    return named(record, name, day)


def _sides(layer: int, wrong: int) -> ClassSummary:
    return ClassSummary(
        layer=layer,
        left_out="persona",
        low=-2.5,
        high=2.5,
        positive=[0] * 20 + [1, 2, 4, 4, 1] * 4,
        negative=[1, 2, 4, 4, 1] * 4 + [0] * 20,
        wrong=[WrongPair(pair=pair, gap=-0.5 + 0.1 * pair) for pair in range(wrong)],
        wrong_total=wrong,
    )


def named(record: CaptureRecord, name: str, day: int) -> CaptureRecord:
    """The record with another name, saved in January 2020: for past years the list shows only the date."""
    record["name"], record["created"] = name, f"2020-01-{day:02}T03:04:05+00:00"
    record["data"]["name"] = f"{name}.pt"
    return record


def put(store: Path, record: CaptureRecord) -> None:
    """Save a record and a tensor file of the stated size: enough for lists and charts."""
    store.mkdir(exist_ok=True)
    (store / record["data"]["name"]).write_bytes(bytes(record["data"]["bytes"]))
    unfinished = store / f".{record['name']}.json"
    unfinished.write_bytes(msgspec.json.encode(record))
    unfinished.rename(store / f"{record['name']}.json")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Llama model with four blocks."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build(family_called("llama")).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Real captures of pairs, `tiny_loud` and `tiny_warm`; copy them before changing anything."""
    folder = tmp_path_factory.mktemp("made") / "activations"
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    factors = [Factors(template="t", persona=f"w{5 + i % 6}", topic=f"w{30 + i // 6}") for i in range(PAIRS)]
    positive = [f"{pair['persona']} {pair['topic']}" for pair in factors]
    for name, word in (("tiny_loud", "w40"), ("tiny_warm", "w50")):
        negative = [f"{word} {text}" for text in positive]
        data = engine.capture_contrastive_activations(
            model, tokenizer, positive, negative, factors=factors, positions="last"
        )
        engine.save_activations(data, name, store=folder)
    return folder


@pytest.fixture
def real_store(captures: Path, tmp_path: Path, tiny_folder: Path) -> Path:
    """A copy of the real captures; the user's configuration registers their model as "tiny"."""
    configured = tmp_path / "config" / "layerscope"
    configured.mkdir(parents=True)
    (configured / "models.toml").write_text(f'[tiny]\npath = "{tiny_folder}"\nlayers = 4\nparameters = "tiny"\n')
    return Path(shutil.copytree(captures, tmp_path / "activations"))
