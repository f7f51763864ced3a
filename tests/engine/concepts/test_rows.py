"""Prompts and pairs in saved datasets are captured like those in files; other folders are refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts.pair_files import PairFile, open_pairs
from engine.concepts.text_files import PromptFile, is_text_file, open_prompts, open_texts
from engine.errors import RequestError

datasets = pytest.importorskip("datasets")

TEXTS = [f"w{3 + i} w7 w9" for i in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with a column of prompts and another column, in two files."""
    rows = {"prompt": TEXTS, "label": list(range(len(TEXTS)))}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "mine", num_shards=2)
    return tmp_path / "mine"


def test_prompts_are_in_row_order(folder: Path) -> None:
    assert len(list(folder.glob("*.arrow"))) == 2
    assert list(open_prompts(folder).texts()) == TEXTS


def test_a_dataset_gives_the_same_states_as_a_file(
    folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(TEXTS))
    for prompts, name in ((folder, "one"), (tmp_path / "mine.txt", "other")):
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, prompts, name, store=tmp_path)
    shards = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("one", "other")]
    assert shards[0]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


def test_a_dataset_folder_is_not_taken_for_a_concept(folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_texts(folder), PromptFile)
    (tmp_path / "honesty").mkdir()
    assert [is_text_file(path) for path in (folder, tmp_path / "honesty", tmp_path / "nowhere")] == [True, False, False]


PAIRS = [
    {"positive": f"w5 w{30 + i}", "negative": f"w40 w5 w{30 + i}", "persona": f"w{i % 2}", "topic": "w9" if i else None}
    for i in range(6)
]


def test_a_dataset_gives_the_same_pairs_as_a_file_and_ignores_other_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{**pair, "score": 1} for pair in PAIRS]).save_to_disk(tmp_path / "mine")
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    assert [*open_pairs(tmp_path / "mine").pairs()] == [*open_pairs(tmp_path / "mine.jsonl").pairs()]
    assert isinstance(open_texts(tmp_path / "mine"), PairFile)


def test_pairs_are_saved_as_shards_too(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    datasets.Dataset.from_list([{**pair, "topic": "w9"} for pair in PAIRS]).save_to_disk(tmp_path / "mine")
    engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, tmp_path / "mine", "six", store=tmp_path)
    [shard] = engine.open_shards("six", store=tmp_path)
    assert shard.prompts[:4] == ["w5 w30", "w40 w5 w30", "w5 w31", "w40 w5 w31"]


def test_a_dataset_contains_either_prompts_or_pairs(tmp_path: Path) -> None:
    for name, columns in (("both", {"prompt", "positive", "negative"}), ("neither", {"text"})):
        datasets.Dataset.from_dict({column: ["w3"] for column in columns}).save_to_disk(tmp_path / name)
        with pytest.raises(RequestError, match=rf"contains {name} (prompts and|prompts nor) pairs"):
            open_texts(tmp_path / name)


def test_a_changed_dataset_has_a_different_stamp(folder: Path) -> None:
    before = open_prompts(folder).stamp()
    assert open_prompts(folder).stamp() == before
    with next(folder.glob("*.arrow")).open("ab") as file:
        file.write(b"more")
    assert open_prompts(folder).stamp() != before


def test_one_split_at_a_time(folder: Path, tmp_path: Path) -> None:
    whole = datasets.load_from_disk(str(folder))
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "both")
    with pytest.raises(RequestError, match=r"both has splits: test, train.*use .*both/test"):
        open_prompts(tmp_path / "both")
    assert list(open_prompts(tmp_path / "both" / "train").texts()) == TEXTS


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({"text": ["w3"]}, r"has no column 'prompt'.*among its columns: text"),
        ({"prompt": ["w3", " "]}, r"row 2: the prompt is only white space.*fix or remove that row"),
        ({"prompt": ["w3", None]}, r"row 2: prompt is missing"),
        ({"prompt": [1, 2]}, r"row 1: the prompt is not a text: 1"),
        ({"prompt": []}, r"contains no prompts"),
    ],
)
def test_rows_without_prompts_are_refused(tmp_path: Path, rows: dict[str, list[object]], problem: str) -> None:
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "mine")
    with pytest.raises(RequestError, match=problem):
        list(open_prompts(tmp_path / "mine").texts())


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({"positive": ["w3"]}, r"has no column 'negative'.*among its columns: positive"),
        ({"positive": ["w3", "w4"], "negative": ["w5", ""]}, r"row 2: the negative prompt is empty"),
        ({"positive": ["w3"], "negative": ["w4"], "topic": [7]}, r"row 1: topic must be a string"),
        ({"positive": [], "negative": []}, r"contains no pairs"),
    ],
)
def test_rows_without_pairs_are_refused(tmp_path: Path, rows: dict[str, list[object]], problem: str) -> None:
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "mine")
    with pytest.raises(RequestError, match=problem):
        list(open_pairs(tmp_path / "mine").pairs())


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"{re.escape(str(tmp_path))} is a folder but not a saved dataset"):
        open_prompts(tmp_path)


def test_a_damaged_dataset_is_refused(folder: Path) -> None:
    for path in folder.glob("*.arrow"):
        path.write_bytes(b"not an Arrow file")
    with pytest.raises(RequestError, match=r"mine cannot be read: .*save it again"):
        open_prompts(folder)


def test_without_the_library_the_error_says_how_to_install_it(folder: Path) -> None:
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from engine.concepts.text_files import open_prompts\n"
        "from engine.errors import RequestError\n"
        f"try: open_prompts({str(folder)!r})\n"
        "except RequestError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "which is not installed" in output
    assert "pip install 'layerscope[datasets]'" in output
